"""What a run folder tells of a training, also of one that is going on elsewhere."""

import contextlib
import functools
import math
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hfgen.families import families
from hfgen.publishing.pages import family_of_run, panels
from hfgen.runs.checkpoints import list_checkpoints, step_of
from hfgen.runs.folder import (
    CLASSES_FILE,
    LOCK,
    METRICS_FILE,
    RUN_FILE,
    TIMES_FILE,
    VALIDATION,
    RunFolder,
)
from hfgen.runs.record import EVALUATED, read_rows
from hfgen.serving.trainings import NOT_BEGUN, SAVED, Trainings
from hfgen.utils.errors import UserError, first_line
from hfgen.utils.untrusted import INDEX, read_json

QUIET_SECONDS = 30.0  # without a new line in its record, after which a run whose lock is free counts as stopped
KEPT = 64  # files whose content is kept until they change
PICTURES = {".png", ".gif"}


def summary_of(name: str, run: RunFolder, trainings: Trainings) -> dict[str, Any]:
    """Return what the list of runs shows of one."""
    try:
        fields, problem = run.fields(), ""
    except UserError as error:
        fields, problem = {}, first_line(error)
    times = _rows(run / TIMES_FILE)
    last = times[-1] if times else {"step": 0, "seconds": 0.0}
    state, output = _state(run, trainings), trainings.output(run.path)
    if state == "failed":
        said = [line for line in output["lines"] if line.startswith("hfgen: ")] or output["lines"][-1:]
        problem = said[-1].removeprefix("hfgen: ") if said else f"it ended with status {output['status']}"
    progress = last.get("progress")
    left = last["seconds"] * (1 - progress) / progress if progress else None
    return {
        "name": name,
        "family": family_of_run(None, fields).name if fields else "",
        "dataset": fields.get("dataset_name") or fields.get("train_data_dir") or "",
        "state": state,
        "can_go_on": state in ("stopped", "failed") and bool(list_checkpoints(run.checkpoints)),
        "is_here": trainings.is_running(run.path),
        "step": last["step"],
        "seconds": last["seconds"],
        "progress": progress,
        "seconds_left": left,
        "problem": problem,
    }


def record_of(name: str, run: RunFolder, trainings: Trainings) -> dict[str, Any]:
    """Return what the page shows of a run: curves, sample grids, evaluations, class frequencies, output, problems."""
    summary = summary_of(name, run, trainings)
    training = read_json(run / RUN_FILE) if (run / RUN_FILE).is_file() else {}
    protocol = read_json(run / VALIDATION) if (run / VALIDATION).is_file() else {}
    classes = _rows(run / CLASSES_FILE)
    return summary | {
        "curves": _curves(run.path, _stamp(run / METRICS_FILE)),
        "saves": saves_of(name, run, training) if draws(summary["family"]) else [],
        "grids": [{"step": step_of(grid), "file": f"samples/{grid.name}"} for grid in run.grids()],
        "evaluations": evaluations_of(run, protocol),
        "classes": [_finite(row) for row in classes],
        "output": trainings.output(run.path),
        "problems": training.get("problems", []),
    }


def saves_of(name: str, run: RunFolder, training: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the models that a training has saved, by step: those of its checkpoints, and the finished one."""
    checkpoints = [path for path in list_checkpoints(run.checkpoints) if (path / INDEX).is_file()]
    found = {step_of(path): f"{name}/{path.relative_to(run.path).as_posix()}" for path in checkpoints}
    if training and (run / INDEX).is_file():
        found[training.get("model_step", training.get("optimizer_steps", 0))] = name
    return [{"step": step, "model": model} for step, model in sorted(found.items())]


def draws(family: str) -> bool:
    """Return whether models of a family draw images from noise."""
    known = families().get(family)
    uses = {model.use for model in known.models.values()} if known else set()
    return not uses.isdisjoint({"denoise", "few_steps", "decode"})


def evaluations_of(run: RunFolder, protocol: dict[str, Any]) -> dict[str, Any]:
    """Return the evaluations while training by metric, with the values of real images.

    Returns:
        `steps`, `values` (metric: values) and `real` (metric: value of as many training images); empty without any.
    """
    found = [row for row in _rows(run / METRICS_FILE) if any(name.startswith(EVALUATED) for name in row)]
    if not found:
        return {}
    names = dict.fromkeys(name for row in found for name in row if name.startswith(EVALUATED))
    values = {name.removeprefix(EVALUATED): [_number(row.get(name)) for row in found] for name in names}
    return {"steps": [row["step"] for row in found], "values": values, "real": protocol.get("floors", {})}


def picture_of(run: Path, name: str) -> Path:
    """Return the path of a picture in a run folder.

    Raises:
        UserError: if there is none, or the name leads out of the folder.
    """
    with contextlib.suppress(OSError, ValueError):
        path = (run / name).resolve()
        if path.suffix in PICTURES and path.is_relative_to(run.resolve()) and path.is_file():
            return path
    raise UserError(f"there is no picture {name} in {run}")


def _stamp(file: Path) -> tuple[int, int] | None:
    """Return what changes with a file, None if it is not there."""
    with contextlib.suppress(OSError):
        found = file.stat()
        return found.st_mtime_ns, found.st_size
    return None


def _rows(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a file, which are read again only if it has changed."""
    return _read(file, stamp) if (stamp := _stamp(file)) else []


@functools.lru_cache(KEPT)
def _read(file: Path, stamp: tuple[int, int]) -> list[dict[str, Any]]:
    return read_rows(file)


@functools.lru_cache(KEPT)
def _curves(run: Path, stamp: tuple[int, int] | None) -> dict[str, Any]:
    return panels(run)


def _state(run: RunFolder, trainings: Trainings) -> str:
    """Return `running`, `finished`, `failed` or `stopped`."""
    output = trainings.output(run.path)
    if output and output["status"] is None:
        return "running"
    if output and output["status"] not in (0, SAVED, NOT_BEGUN):
        return "failed"
    if (run / RUN_FILE).is_file():
        return "finished"
    if output is None and _is_trained_elsewhere(run):
        return "running"
    return "stopped"


def _is_trained_elsewhere(run: RunFolder) -> bool:
    """Return whether another process holds the run's lock, or has just written to it, perhaps on another machine."""
    written = [stamp[0] / 1e9 for name in (METRICS_FILE, TIMES_FILE) if (stamp := _stamp(run / name))]
    if written and time.time() - max(written) < QUIET_SECONDS:
        return True
    lock = run / LOCK
    try:
        with FileLock(lock, timeout=0) if lock.is_file() else contextlib.nullcontext():
            return False
    except (Timeout, OSError):
        return True


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {name: _number(value) for name, value in row.items()}
