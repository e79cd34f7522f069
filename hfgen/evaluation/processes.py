"""An evaluation by several processes: the main one evaluates, and all of them sample."""

import itertools
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline

from hfgen.pipelines.loading import load
from hfgen.sampling.sample import sample
from hfgen.training.processes import is_shared, launched
from hfgen.utils.errors import UserError, first_line
from hfgen.utils.files import complete_or_absent
from hfgen.utils.progress import progress_bar

_messages = itertools.count()


@dataclass(frozen=True)
class SamplingJob:
    """Images to sample and save, for all processes; each attribute can be written as JSON.

    Attributes:
        model: The run, folder or Hub id from which processes that have no pipeline yet load it.
        loading: Options of `hfgen.pipelines.loading.load`.
        sampler: Options of `hfgen.sampling.sample.sample`, with the seed and the class labels.
        batches: The first number of the images of each batch, and the number after its last.
        folder: Where each batch is saved, in a file named by its first number.
        num_images: Number of all images, with those sampled earlier.
    """

    model: str
    loading: dict[str, Any]
    sampler: dict[str, Any]
    batches: list[tuple[int, int]]
    folder: str
    num_images: int

    def run(self, pipeline: DiffusionPipeline) -> None:
        """Sample all batches, with the help of the other processes of `together`."""
        if is_shared():
            _tell("sample", asdict(self))
            self.help(pipeline)
        else:
            self._sample(pipeline, 0, 1)

    def help(self, pipeline: DiffusionPipeline | None = None) -> None:
        """Sample this process's share of the batches, while the others sample theirs.

        Raises:
            UserError: if one of them fails, naming it.
        """
        _, rank, size = launched()
        error = None
        try:
            self._sample(pipeline or load(self.model, **self.loading), rank, size)
        except Exception as raised:  # any error, so that the others do not wait for this process
            error = raised
        errors = _gather(error and f"process {rank}: {first_line(error)}")
        if error:
            raise error
        if failed := [message for message in errors if message]:
            raise UserError(failed[0])

    def _sample(self, pipeline: DiffusionPipeline, rank: int, size: int) -> None:
        done = self.num_images - sum(end - first for first, end in self.batches)
        if size > 1:
            print(f"hfgen: process {rank} of {size} samples on {pipeline.device}", file=sys.stderr)
        options = {"total": self.num_images, "initial": done, "desc": "sampling", "unit": "image"}
        with progress_bar(**options, disable=rank > 0) as bar:
            for first, end in self.batches[rank::size]:
                numbers = {"num_images": end - first, "batch_size": end - first, "first_image": first}
                (images,) = sample(pipeline, **numbers, **self.sampler)
                path = Path(self.folder, f"{first:06d}.npy")
                with complete_or_absent(path) as temporary, open(temporary, "wb") as file:
                    np.save(file, images.numpy())
                bar.update(min((end - first) * size, self.num_images - bar.n))  # the others are about as fast


def is_main_process() -> bool:
    """Return whether this is the process that evaluates and reports."""
    return not is_shared() or os.environ.get("RANK") == "0"


def together(evaluate: Callable[[], Path]) -> Path:
    """Run an evaluation on the main process, while the others help with its `SamplingJob`s.

    Args:
        evaluate: Evaluates, and returns the path of the record.

    Returns:
        The path, on all processes, when the record is there.

    Raises:
        UserError: on all processes if the evaluation fails.
    """
    if not is_shared():
        return evaluate()
    return _lead(evaluate) if is_main_process() else _help()


def _lead(evaluate: Callable[[], Path]) -> Path:
    try:
        path = evaluate()
    except Exception as error:
        _tell("fail", f"process 0: {first_line(error)}")
        raise
    _tell("end", str(path))
    return path


def _help() -> Path:
    """Do what the main process tells, until it tells the path of the record or an error."""
    failure: Exception | None = None
    while True:
        what, content = _tell()
        if what == "end":
            return Path(content)
        if what == "fail":
            raise failure or UserError(content)
        try:
            SamplingJob(**content).help()
        except Exception as error:  # the main process learns of it and ends the evaluation
            failure = error


# The processes talk through the store of their launcher, not in a process group: with one, torchmetrics would take
# what the main process measures for a part of a common measurement.


def _tell(what: str = "", content: Any = None) -> tuple[str, Any]:
    """Send a message of the main process to all, `sample`, `fail` or `end` and what it is about, and return it.

    The main process, whose end may close the store, waits until all have it.
    """
    store, rank, size = launched()
    name = f"hfgen-{next(_messages)}"
    if rank == 0:
        store.set(name, json.dumps([what, content]))
        store.wait([f"{name}-{other}" for other in range(1, size)])
        return what, content
    what, content = json.loads(store.get(name))
    store.set(f"{name}-{rank}", "")
    return what, content


def _gather(outcome: str | None) -> list[str | None]:
    """Return what each process has to say."""
    store, rank, size = launched()
    name = f"hfgen-{next(_messages)}"
    store.set(f"{name}-{rank}", json.dumps(outcome))
    return [json.loads(store.get(f"{name}-{other}")) for other in range(size)]
