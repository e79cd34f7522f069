"""Process state of a training, restored afterwards, and helpers for several processes."""

import contextlib
import functools
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import psutil
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from hfgen.utils.devices import default_device
from hfgen.utils.errors import UserError, first_line

T = TypeVar("T")
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
DETERMINISTIC_CUBLAS = (":4096:8", ":16:8")  # see NVIDIA's cuBLAS documentation

PATIENCE = timedelta(hours=6)  # for other processes, which may decode or sample images

SHORTEST_WINDOW = 0.3  # seconds in which the use of cores is measured
ENOUGH = 0.75  # of a core for each thread of a training

_training = threading.Lock()
_groups = itertools.count()


def is_shared() -> bool:
    """Return whether a launcher started several processes (`accelerate launch`, `torchrun`)."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@functools.cache
def launched() -> tuple[torch.distributed.Store, int, int]:
    """Return the store of the launcher, the rank of this process, and the number of processes."""
    store, rank, size = next(torch.distributed.rendezvous("env://"))
    store.set_timeout(PATIENCE)
    return store, rank, size


def own_group() -> dict[str, Any]:
    """Return where the processes of a training form their group, as arguments of `init_process_group`.

    The launcher's store keeps what an earlier group of these processes wrote there, so each has keys of its own.
    """
    if not is_shared():
        return {}
    store, rank, size = launched()
    own = torch.distributed.PrefixStore(f"hfgen-training-{next(_groups)}", store)
    return {"store": own, "rank": rank, "world_size": size}


@contextlib.contextmanager
def as_found(*, deterministic: bool = False) -> Iterator[None]:
    """Restore the process state afterwards, so that a training does not affect later code.

    This covers accelerate's state, torch's generators, threads, current device, float32 matmul precision and
    deterministic flags, and the process group. Two settings cannot be undone: memory allocation of the C library
    (`hfgen.training.run.keep_freed_memory`) and, if `deterministic`, the cuBLAS workspace.

    Args:
        deterministic: Use deterministic algorithms only.

    Raises:
        UserError: if another thread of this process is training, as both would share random generators; or if it is
            too late to make cuBLAS deterministic.
    """
    if not _training.acquire(blocking=False):
        raise UserError("another training is running in this process; wait for it, or use a separate process")
    try:
        grouped = _is_grouped()
        with _accelerate_as_found(), _generators_as_found(), _switches_as_found():
            if deterministic:
                _be_deterministic()
            try:
                yield
            except UserError:  # raised on all processes; none waits for another
                if _is_grouped() and not grouped:
                    torch.distributed.destroy_process_group()
                raise
    finally:
        _training.release()


def _is_grouped() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@contextlib.contextmanager
def _accelerate_as_found() -> Iterator[None]:
    """Restore accelerate's shared state, which is empty unless the caller has an `Accelerator`."""
    states = [(one._shared_state, dict(one._shared_state)) for one in (AcceleratorState, PartialState, GradientState)]
    try:
        yield
    finally:
        for shared, before in states:
            shared.clear()
            shared.update(before)


@contextlib.contextmanager
def _generators_as_found() -> Iterator[None]:
    """Restore torch's generators of the CPU and the current accelerator, and the current device."""
    device = default_device()
    module = torch.get_device_module(device)
    in_use = device.type != "cpu" and (not hasattr(module, "is_initialized") or module.is_initialized())
    index = torch.accelerator.current_device_index() if in_use else None
    states = torch.get_rng_state(), module.get_rng_state() if in_use else None
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        if in_use:
            torch.accelerator.set_device_index(index)
            module.set_rng_state(states[1])
        elif device.type != "cpu":
            module.manual_seed(torch.initial_seed())  # its initial state


@contextlib.contextmanager
def _switches_as_found() -> Iterator[None]:
    threads = torch.get_num_threads()
    precision = torch.get_float32_matmul_precision()
    algorithms = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(algorithms[0], warn_only=algorithms[1])
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn


def _be_deterministic() -> None:
    current = os.environ.get(CUBLAS)
    if current not in (None, *DETERMINISTIC_CUBLAS):
        raise UserError(f"deterministic needs {CUBLAS}={DETERMINISTIC_CUBLAS[0]} in the environment, not {current}")
    if current is None and torch.cuda.is_initialized():
        raise UserError(
            f"deterministic cannot be enabled, because this process has already used the GPU: set "
            f"{CUBLAS}={DETERMINISTIC_CUBLAS[0]} in the environment, or train in a separate process"
        )
    os.environ[CUBLAS] = current or DETERMINISTIC_CUBLAS[0]
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False


def on_all_processes(accelerator: Accelerator, action: Callable[[], T], what: str) -> T:
    """Run an action on each process; if it fails on one, raise on all, so that none waits for another.

    Args:
        accelerator: The accelerator of the processes.
        action: The action.
        what: Description of the action, for processes that wait.

    Raises:
        UserError: on processes where the action succeeded, naming one where it failed.
    """
    result, error = None, None
    try:
        result = action()
    except Exception as raised:  # any error, so that the others do not wait for this process
        error = raised
    with report_waiting(f"the other processes ({what})"):
        errors = gather_object([error and f"process {accelerator.process_index}: {first_line(error)}"])
    if error:
        raise error
    if failed := [message for message in errors if message]:
        raise UserError(failed[0])
    return result


@contextlib.contextmanager
def report_waiting(what: str, patience_seconds: float = 10) -> Iterator[None]:
    """Print what the process waits for, if it takes longer than `patience_seconds`."""
    timer = threading.Timer(patience_seconds, tqdm.write, [f"hfgen: waiting for {what}"], {"file": sys.stderr})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class SpeedWatch:
    """Detects that a training has slowed down.

    Args:
        step: Current optimizer step.
        window_seconds: Length of the windows in which speed is measured.
        factor: Ratio of the best speed to a window's that counts as slow.
    """

    def __init__(self, step: int, window_seconds: float = 10, factor: float = 3):
        self.window_seconds, self.factor = window_seconds, factor
        self.steps, self.seconds, self.best, self.reported = 0, 0.0, 0.0, False
        self.begin(step)

    def begin(self, step: int) -> None:
        """Start measuring."""
        self.step, self.time = step, time.monotonic()

    def slower(self, step: int) -> str | None:
        """Measure up to this step; return a message the first time that training is slow."""
        self.steps += step - self.step
        self.seconds += time.monotonic() - self.time
        if self.seconds < self.window_seconds:
            return None
        speed, self.steps, self.seconds = self.steps / self.seconds, 0, 0.0
        self.best = max(self.best, speed)
        if self.reported or speed * self.factor >= self.best:
            return None
        self.reported = True
        return (
            f"training has become slow: {speed:.3g} steps per second, down from {self.best:.3g}. Another program may "
            "be using the CPU or GPU"
        )


class OtherPrograms:
    """Measures how many cores other programs use, from now on."""

    def __init__(self):
        self.before = self._state()

    @staticmethod
    def _state() -> tuple[float, float, float]:
        """Return the wall-clock seconds, and the seconds of all cores that any program and this process used."""
        times = psutil.cpu_times()
        return time.monotonic(), times.user + times.system, time.process_time()

    def warning(self, threads: int) -> str | None:
        """Return a message if they leave too little for some threads of this process, which wait for each other."""
        seconds, used, own = (now - before for now, before in zip(self._state(), self.before, strict=True))
        others, cores = (used - own) / max(seconds, 1e-3), psutil.cpu_count()
        if threads < 2 or seconds < SHORTEST_WINDOW or cores - others > ENOUGH * threads:
            return None
        return (
            f"other programs use {others:.1f} of the {cores} cores. Training with {threads} threads, which wait for "
            "each other in every step, may then be many times slower than with one (OMP_NUM_THREADS=1)"
        )
