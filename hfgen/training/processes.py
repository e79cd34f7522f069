"""What a training does to its process, and undoes; what several processes do together."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from hfgen.utils.devices import default_device
from hfgen.utils.errors import UserError, first_line

T = TypeVar("T")
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
DETERMINISTIC_CUBLAS = (":4096:8", ":16:8")  # the values under which cuBLAS is, by NVIDIA's documentation

_training = threading.Lock()


@contextlib.contextmanager
def as_found(*, deterministic: bool = False) -> Iterator[None]:
    """Leave the process as it was found, so that whatever is done in it next does the same as without a training.

    That is accelerate's state, torch's generators, threads, current device, precision of float32 products and
    deterministic switches, and the group of processes. Two things stay, since they cannot be undone: how the C library
    returns memory (`hfgen.training.run.keep_freed_memory`) and, if `deterministic`, how cuBLAS uses its own.

    Args:
        deterministic: Let torch use algorithms only that give the same bits each time.

    Raises:
        UserError: if another thread of this process is training, since both would draw from one generator; or if it
            is too late for cuBLAS to become deterministic.
    """
    if not _training.acquire(blocking=False):
        raise UserError("another training goes on in this process; wait for it, or use a process of its own")
    try:
        grouped = _is_grouped()
        with _accelerate_as_found(), _generators_as_found(), _switches_as_found():
            if deterministic:
                _be_deterministic()
            try:
                yield
            except UserError:  # of all processes, so that none waits for another
                if _is_grouped() and not grouped:
                    torch.distributed.destroy_process_group()
                raise
    finally:
        _training.release()


def _is_grouped() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@contextlib.contextmanager
def _accelerate_as_found() -> Iterator[None]:
    """Restore what all of accelerate's objects share; it is empty unless the caller has an `Accelerator`."""
    states = [(one._shared_state, dict(one._shared_state)) for one in (AcceleratorState, PartialState, GradientState)]
    try:
        yield
    finally:
        for shared, before in states:
            shared.clear()
            shared.update(before)


@contextlib.contextmanager
def _generators_as_found() -> Iterator[None]:
    """Restore torch's generators of the CPU and of the current accelerator, and which is the current one."""
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
            module.manual_seed(torch.initial_seed())  # with which it would have begun


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
    asked = os.environ.get(CUBLAS)
    if asked not in (None, *DETERMINISTIC_CUBLAS):
        raise UserError(f"deterministic needs {CUBLAS}={DETERMINISTIC_CUBLAS[0]} in the environment, not {asked}")
    if asked is None and torch.cuda.is_initialized():
        raise UserError(
            f"deterministic comes too late, since this process has used the GPU before: set "
            f"{CUBLAS}={DETERMINISTIC_CUBLAS[0]} in the environment, or train in a process of its own"
        )
    os.environ[CUBLAS] = asked or DETERMINISTIC_CUBLAS[0]
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False


def on_all_processes(accelerator: Accelerator, action: Callable[[], T], what: str) -> T:
    """Do something on each process; where it fails on one, it fails on all, so that none waits for another.

    Args:
        accelerator: Knows the processes.
        action: What to do.
        what: What that is, for those who are done first.

    Raises:
        UserError: on the processes on which it did not fail, naming one on which it did.
    """
    result, error = None, None
    try:
        result = action()
    except Exception as found:  # whatever it is, the others are not to wait for this process
        error = found
    with saying_what_is_waited_for(f"the other processes ({what})"):
        errors = gather_object([error and f"process {accelerator.process_index}: {first_line(error)}"])
    if error:
        raise error
    if failed := [message for message in errors if message]:
        raise UserError(failed[0])
    return result


@contextlib.contextmanager
def saying_what_is_waited_for(what: str, patience_seconds: float = 10) -> Iterator[None]:
    """Say what is waited for, if it takes longer than that."""
    timer = threading.Timer(patience_seconds, tqdm.write, [f"hfgen: waiting for {what}"], {"file": sys.stderr})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class SpeedWatch:
    """Notices that a training has become far slower than it was.

    Args:
        step: Optimizer steps done.
        window_seconds: Over which a speed is measured.
        factor: How many times slower than at its best a window must be.
    """

    def __init__(self, step: int, window_seconds: float = 10, factor: float = 3):
        self.window_seconds, self.factor = window_seconds, factor
        self.steps, self.seconds, self.best, self.told = 0, 0.0, 0.0, False
        self.begin(step)

    def begin(self, step: int) -> None:
        """Measure from here on."""
        self.step, self.time = step, time.monotonic()

    def slower(self, step: int) -> str | None:
        """Measure up to here; return what to say if it has become slow, once."""
        self.steps += step - self.step
        self.seconds += time.monotonic() - self.time
        if self.seconds < self.window_seconds:
            return None
        speed, self.steps, self.seconds = self.steps / self.seconds, 0, 0.0
        self.best = max(self.best, speed)
        if self.told or speed * self.factor >= self.best:
            return None
        self.told = True
        return (
            f"training has become slow: {speed:.3g} steps a second, and {self.best:.3g} before. Most likely another "
            "program uses the processor or the GPU"
        )
