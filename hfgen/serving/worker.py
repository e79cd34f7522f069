"""The thread that computes for all visitors: a step of each job in turn, and jobs that are alike in one batch."""

import asyncio
import contextlib
import functools
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

MOST_ITEMS = 64  # in a batch of several jobs
MOST_UNREAD = 16  # states of a job; then it is not computed further until its reader has caught up
PAUSE_SECONDS = 0.01  # where all jobs wait for their readers
States = Iterator[dict[str, Any]]


class BusyError(Exception):
    """There are too many jobs."""


class ClosedError(Exception):
    """The thread has ended."""


@dataclass(eq=False)
class Job:
    """Something to compute, step by step.

    Attributes:
        work: Given the items of all jobs of a batch, yields states: of each, the tensors have as many rows as items.
        items: What to compute, such as the seeds of images; sent to `work` together with those of jobs that are alike.
        key: Jobs with the same key may share a batch; None for a job that does not.
    """

    work: Callable[[Sequence[Any]], States]
    items: Sequence[Any] = (None,)
    key: Hashable | None = None
    deliver: Callable[[Any], None] = field(default=lambda state: None, init=False)
    unread: int = field(default=0, init=False)  # states that were delivered, and not read yet
    is_given_up: bool = field(default=False, init=False)


@dataclass(eq=False)
class _Batch:
    jobs: list[Job]

    def add(self, job: Job) -> None:
        self.jobs.append(job)

    @property
    def size(self) -> int:
        return sum(len(job.items) for job in self.jobs)

    @functools.cached_property
    def states(self) -> States:
        """What the work of the first job, with the items of all, yields; asked for once no further job is added."""
        return _begin(self.jobs[0].work, [item for job in self.jobs for item in job.items])


class Worker:
    """Computes jobs in one thread, so that those of one visitor neither stop nor slow down those of others by threads.

    Args:
        most_jobs: Number of jobs that may wait and be computed.
    """

    def __init__(self, most_jobs: int):
        self.most_jobs = most_jobs
        self.waiting: deque[Job] = deque()
        self.batches: list[_Batch] = []
        self.is_closed = False
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._run, name="hfgen-studio", daemon=True)
        self.thread.start()

    async def states(self, job: Job) -> AsyncIterator[dict[str, Any]]:
        """Compute a job and yield its states. It is given up when the caller stops to iterate.

        Raises:
            BusyError: if there are too many jobs.
            Exception: whatever the work raises.
        """
        loop, found = asyncio.get_running_loop(), asyncio.Queue()

        def deliver(state: Any) -> None:
            job.unread += 1
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(found.put_nowait, state)

        job.deliver = deliver
        self._add(job)
        try:
            while (state := await found.get()) is not None:
                job.unread -= 1
                if isinstance(state, BaseException):
                    raise state
                yield state
        finally:
            job.is_given_up = True

    async def result(self, job: Job) -> dict[str, Any]:
        """Compute a job and return its last state."""
        last: dict[str, Any] = {}
        async for state in self.states(job):
            last = state
        return last

    def load(self) -> dict[str, int]:
        """Return how many jobs wait and are computed."""
        with self.changed:
            return {"waiting": len(self.waiting), "computed": sum(len(batch.jobs) for batch in self.batches)}

    def close(self) -> None:
        """End the thread; jobs that are not done fail."""
        with self.changed:
            self.is_closed = True
            self.changed.notify()
        self.thread.join()

    def _add(self, job: Job) -> None:
        with self.changed:
            if self.is_closed:
                raise ClosedError("the studio is being stopped")
            jobs = [*self.waiting, *(other for batch in self.batches for other in batch.jobs)]
            if sum(not other.is_given_up for other in jobs) >= self.most_jobs:
                raise BusyError(f"{self.most_jobs} requests are being answered already; try again later")
            self.waiting.append(job)
            self.changed.notify()

    def _run(self) -> None:
        while True:
            with self.changed:
                while not (self.waiting or self.batches or self.is_closed):
                    self.changed.wait()
                if self.is_closed:
                    self._fail_all()
                    return
                self._take()
            ready = [
                batch
                for batch in self.batches
                if any(job.unread < MOST_UNREAD or job.is_given_up for job in batch.jobs)
            ]
            for batch in ready:
                self._step(batch)
            if not ready:
                time.sleep(PAUSE_SECONDS)

    def _take(self) -> None:
        """Begin the jobs that wait, those with the same key together.

        While a batch of a key is computed, others with this key gather, since a large batch is faster than many small.
        """
        busy = {batch.jobs[0].key for batch in self.batches} - {None}
        kept: deque[Job] = deque()
        begun: dict[Hashable, _Batch] = {}
        for job in self.waiting:
            batch = begun.get(job.key)
            if job.key in busy or (batch and batch.size + len(job.items) > MOST_ITEMS):
                kept.append(job)
            elif batch:
                batch.add(job)
            else:
                self.batches.append(_Batch([job]))
                if job.key is not None:
                    begun[job.key] = self.batches[-1]
        self.waiting = kept

    def _step(self, batch: _Batch) -> None:
        """Compute a step of a batch, and deliver to each job its rows."""
        if all(job.is_given_up for job in batch.jobs):
            batch.states.close()
            self._forget(batch)
            return
        try:
            state = next(batch.states, None)
        except Exception as error:  # whatever a model raises is the answer to its request, and ends no other
            state = error
        start = 0
        for job in batch.jobs:
            rows = slice(start, start := start + len(job.items))
            if isinstance(state, dict):
                job.deliver(
                    {name: value[rows] if isinstance(value, Tensor) else value for name, value in state.items()}
                )
            else:
                job.deliver(state)
        if not isinstance(state, dict):
            self._forget(batch)

    def _forget(self, batch: _Batch) -> None:
        with self.changed:
            self.batches.remove(batch)

    def _fail_all(self) -> None:
        for job in (*self.waiting, *(job for batch in self.batches for job in batch.jobs)):
            job.deliver(ClosedError("the studio was stopped"))


def _begin(work: Callable[[Sequence[Any]], States], items: Sequence[Any]) -> States:
    """Return the states of a work, which itself is begun by the first step."""
    yield from work(items)
