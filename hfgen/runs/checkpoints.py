"""Atomic checkpoints: save, verify, rotate, find the newest intact one, pack and unpack."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from hfgen.runs.record import options_text
from hfgen.utils.errors import UserError
from hfgen.utils.files import complete_or_absent, remove

MANIFEST = "manifest.json"
POSITION_FILE = "training_position.json"
BEST = "best"  # with the step, the name of the best evaluated model


def save_checkpoint(folder: Path, step: int, write: Callable[[Path], None], limit: int | None) -> Path:
    """Write the checkpoint of a step, then remove the oldest ones beyond a limit.

    Args:
        folder: Folder of the checkpoints.
        step: Number of optimizer steps, which names the checkpoint.
        write: Writes the contents to a given folder.
        limit: Number of checkpoints to keep, or None for all.

    Returns:
        The checkpoint, a folder with a manifest of its files' sizes and SHA-256.

    Raises:
        OSError: if it cannot be written; earlier checkpoints are kept.
    """
    path = folder / f"step-{step:06d}"
    if path.exists():
        if damage(path) is None:  # a finished run that was resumed
            return path
        remove(path)
    with complete_or_absent(path) as temporary:
        temporary.mkdir()
        write(temporary)
        (temporary / MANIFEST).write_text(json.dumps(_fingerprints(temporary), indent=1))
    for old in list_checkpoints(folder)[: -limit if limit else 0]:
        remove(old)
    _remove_beaten(folder)
    return path


def save_best(folder: Path, step: int, write: Callable[[Path], None]) -> Path:
    """Write the model of the best evaluation so far, and remove those that no resumed run needs.

    Args:
        folder: Folder of the checkpoints.
        step: Number of optimizer steps, which is part of its name, such as `best-000469`.
        write: Writes the contents to a given folder.

    Returns:
        Its folder.

    Raises:
        OSError: if it cannot be written; earlier ones are kept.
    """
    path = folder / f"{BEST}-{step:06d}"
    remove(path)
    with complete_or_absent(path) as temporary:
        temporary.mkdir()
        write(temporary)
    _remove_beaten(folder)
    return path


def _remove_beaten(folder: Path) -> None:
    """Keep the best model, and the best one until the newest checkpoint, since training may resume from there."""
    best = list_steps(folder, name=BEST)
    newest = max(map(step_of, list_checkpoints(folder)), default=0)
    kept = {*best[-1:], *[path for path in best if step_of(path) <= newest][-1:]}
    for path in set(best) - kept:
        remove(path)


def list_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints in a folder, the oldest first."""
    return list_steps(folder)


def list_steps(folder: Path, ending: str = "", name: str = "step") -> list[Path]:
    """List the files and folders named after optimizer steps, such as `step-000469.png`, the earliest first."""
    entries = folder.iterdir() if folder.is_dir() else []
    pattern = rf"{name}-\d+{re.escape(ending)}"
    return sorted((path for path in entries if re.fullmatch(pattern, path.name)), key=step_of)


def step_of(path: Path) -> int:
    """Return the step in the name of a checkpoint (`step-000469`, `best-000469`) or sample (`step-000469.png`)."""
    return int(path.stem.rpartition("-")[2])


def damage(checkpoint: Path) -> str | None:
    """Describe the damage of a checkpoint, or return None if all files match its manifest."""
    try:
        expected = json.loads((checkpoint / MANIFEST).read_text())
        found = _fingerprints(checkpoint)
    except (OSError, ValueError) as error:
        return f"its manifest cannot be read ({error})"
    if not isinstance(expected, dict) or not expected:
        return "its manifest lists no files"
    if wrong := sorted(name for name in expected if found.get(name) != expected[name]):
        return f"{', '.join(wrong)} missing or changed"
    return None


def newest_complete(folder: Path, report: Callable[[str], None] = print) -> Path | None:
    """Return the newest intact checkpoint in a folder, or None if there are no checkpoints.

    Damaged ones are reported and skipped.

    Raises:
        UserError: if there are checkpoints and all are damaged.
    """
    checkpoints = list_checkpoints(folder)
    for checkpoint in reversed(checkpoints):
        if (problem := damage(checkpoint)) is None:
            return checkpoint
        report(f"checkpoint {checkpoint} is damaged: {problem}; trying the one before it")
    if checkpoints:
        raise UserError(f"every checkpoint in {folder} is damaged; to start over, remove them or use another folder")
    return None


def find_checkpoint(folder: Path, name: str, report: Callable[[str], None] = print) -> Path | None:
    """Resolve `--resume_from_checkpoint`: `latest` (None if there is none yet), or the path of a checkpoint.

    Raises:
        UserError: if the named checkpoint is not one of the folder's, or is damaged.
    """
    if name == "latest":
        return newest_complete(folder, report)
    checkpoints = list_checkpoints(folder)
    there = f"checkpoints in {folder}: {', '.join(p.name for p in checkpoints) or 'none'}"
    places = {place.resolve() for place in (Path(name), folder / name)} if name else set()
    checkpoint = next((p for p in checkpoints if p.resolve() in places), None)
    if checkpoint is None:
        if any((place / POSITION_FILE).is_file() for place in places):
            raise UserError(f"checkpoint {name} belongs to another run; {there}")
        raise UserError(f"there is no checkpoint {name or repr(name)}; {there}")
    if problem := damage(checkpoint):
        raise UserError(f"checkpoint {checkpoint} is damaged: {problem}; use another, or latest")
    return checkpoint


def read_position(checkpoint: Path) -> dict[str, Any]:
    """Read the training state of a checkpoint: step, seconds, processes, data, configuration.

    Raises:
        UserError: if it is invalid although the files match the manifest.
    """
    try:
        position = json.loads((checkpoint / POSITION_FILE).read_text())
        known = {"step", "seconds", "num_processes", "command", "scaler", "data"} <= position.keys()
        whole = known and position["step"] == step_of(checkpoint) and position["seconds"] >= 0
    except (OSError, ValueError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise UserError(f"{unusable(checkpoint)} ({POSITION_FILE} cannot be read)")
    return position


def unusable(checkpoint: Path) -> str:
    """Return the message that training cannot resume from a checkpoint, with an alternative."""
    before = [p.name for p in list_checkpoints(checkpoint.parent) if step_of(p) < step_of(checkpoint)]
    advice = options_text({"resume_from_checkpoint": before[-1]}) if before else "a new run in another output_dir"
    return f"cannot resume from {checkpoint}, whose state is damaged; try {advice}"


def pack_state(
    modules: dict[str, nn.Module], optimizers: dict[str, torch.optim.Optimizer], averages: dict[str, EMAModel]
) -> dict[str, Tensor]:
    """Return all tensors of the training state, named for a safetensors file.

    Hyper-parameters of the optimizers are not included: they follow from the configuration and the step.
    """
    state: dict[str, Tensor] = {}
    for name, module in modules.items():
        state |= {f"modules.{name}.{key}": tensor for key, tensor in module.state_dict().items()}
    for name, optimizer in optimizers.items():
        for index, entries in optimizer.state_dict()["state"].items():
            state |= {f"optimizers.{name}.{index}.{key}": tensor for key, tensor in entries.items()}
    for name, average in averages.items():
        state |= {f"averages.{name}.{index}": tensor for index, tensor in enumerate(average.shadow_params)}
    return {key: tensor.detach().contiguous() for key, tensor in state.items()}


def unpack_state(
    state: dict[str, Tensor],
    modules: dict[str, nn.Module],
    optimizers: dict[str, torch.optim.Optimizer],
    averages: dict[str, EMAModel],
) -> None:
    """Load the result of `pack_state` into modules, optimizers and EMA models."""

    def part(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}

    for name, module in modules.items():
        module.load_state_dict(part(f"modules.{name}."))
    for name, optimizer in optimizers.items():
        entries: dict[int, dict[str, Tensor]] = {}
        for key, tensor in part(f"optimizers.{name}.").items():
            index, entry = key.split(".")
            entries.setdefault(int(index), {})[entry] = tensor
        optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
    for name, average in averages.items():
        tensors = part(f"averages.{name}.")
        if len(tensors) != len(average.shadow_params):
            raise ValueError(f"{len(tensors)} averaged tensors of {name} instead of {len(average.shadow_params)}")
        average.shadow_params = [tensors[str(index)] for index in range(len(tensors))]


def _fingerprints(folder: Path) -> dict[str, dict[str, int | str]]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
