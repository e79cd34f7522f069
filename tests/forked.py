"""Processes that are forked from one that has imported hfgen, since importing it takes seconds."""

import contextlib
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
import weakref
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

REPOSITORY = Path(__file__).parents[1]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["preloaded"])


def _run(arguments: list[str], folder: str, environment: dict[str, str], output: str) -> None:
    """Be what a Python of its own with these arguments would be."""
    from preloaded import ENVIRONMENT

    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    assert {name: value for name, value in environment.items() if name.startswith("HF_")} == ENVIRONMENT
    multiprocessing.current_process()._config["daemon"] = False  # whose children would be refused
    warnings.simplefilter("error", ResourceWarning)
    if arguments[:2] == ["-m", "hfgen"]:
        sys.argv = arguments[1:]
        sys.exit(sys.modules["hfgen.cli.main"].main(arguments[2:]))
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")


class Forked:
    """Forked processes that print into one file, with what the tests use of `subprocess.Popen`.

    Args:
        arguments: `-m hfgen …`, or a script and its arguments.
        num_processes: More than one are a group, with the variables that torchrun sets, as far as they are not set.
    """

    def __init__(self, *arguments: str, num_processes: int = 1):
        path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "1"} | path), contextlib.chdir(REPOSITORY):
            forkserver.ensure_running()  # not with the hfgen of the folder in which a test is
        file, self.output = tempfile.mkstemp()
        os.close(file)
        weakref.finalize(self, os.unlink, self.output)
        self.processes = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        for rank in range(num_processes):
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            if num_processes > 1:
                ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                sizes = {"WORLD_SIZE": str(num_processes), "LOCAL_WORLD_SIZE": str(num_processes)}
                environment = group | environment | ranks | sizes
            what = (list(arguments), os.getcwd(), environment, self.output)
            self.processes.append(CONTEXT.Process(target=_run, args=what, daemon=True))  # ends with the tests
            self.processes[-1].start()
        self.pids = [process.pid for process in self.processes]
        self.pid = self.pids[0]

    def poll(self) -> int | None:
        """Return how they ended, or None while one goes on."""
        statuses = [process.exitcode for process in self.processes]
        return None if None in statuses else next(filter(None, statuses), 0)

    returncode = property(poll)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for process in self.processes:
            process.join(None if deadline is None else max(0, deadline - time.monotonic()))
        if self.poll() is None:
            raise subprocess.TimeoutExpired("a forked process", timeout, Path(self.output).read_text())
        return self.poll()

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Wait for the end; return what was printed."""
        self.wait(timeout)
        return Path(self.output).read_text(), None

    def send_signal(self, number: int) -> None:
        """Send a signal to each."""
        for pid in self.pids:
            os.kill(pid, number)

    def kill(self) -> None:
        """Kill each."""
        self.send_signal(signal.SIGKILL)
