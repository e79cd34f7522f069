"""Records of a run: the metrics log, and versions, hardware and timings."""

import contextlib
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from hfgen.config.training import NOT_SHOWN
from hfgen.utils.devices import device_name, peak_memory_bytes
from hfgen.utils.errors import UserError
from hfgen.utils.files import complete_or_absent
from hfgen.utils.privacy import public_text, public_value, without_password
from hfgen.utils.untrusted import read_json, shown

RECORDED_PACKAGES = [
    "hfgen",
    "torch",
    "diffusers",
    "accelerate",
    "datasets",
    "safetensors",
    "huggingface-hub",
]


PYTHON_CALLS = ("hfgen.train(", "hfgen.tune(")
EVALUATED = "validation/"  # prefix of the metrics of evaluations while training, which some rows have


class MetricsFile:
    """`metrics.jsonl`: one JSON object per optimizer step, `{"step": 1, "loss/unet": …, …}`.

    It contains no timings, so that an interrupted and resumed run writes the same file; they are in `times.jsonl`.

    Args:
        path: The file.
        accelerator: Values are averaged over its processes.
    """

    def __init__(self, path: Path, accelerator: Accelerator):
        self.path, self.accelerator = path, accelerator
        self.waiting: list[tuple[int, dict[str, Tensor | float]]] = []

    def add(self, step: int, values: dict[str, Tensor | float]) -> None:
        """Buffer the scalars of a step; tensors stay on their device, to avoid synchronisation."""
        self.waiting.append((step, values))

    def write(self) -> dict[str, float]:
        """Append the buffered rows, averaged over the processes.

        Returns:
            The last row, or the first one with a loss or gradient norm that is not finite; it and later ones are not
            written.
        """
        scalars = [v for _, values in self.waiting for v in values.values() if isinstance(v, Tensor)]
        averaged = iter(self.accelerator.reduce(torch.stack(scalars), "mean").tolist())
        rows = [
            {"step": step} | {k: next(averaged) if isinstance(v, Tensor) else v for k, v in values.items()}
            for step, values in self.waiting
        ]
        self.waiting.clear()
        bad = next((i for i, row in enumerate(rows) if self.not_finite(row)), None)
        if self.accelerator.is_main_process:
            with open(self.path, "a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows[:bad])
        return rows[-1 if bad is None else bad]

    def not_finite(self, row: dict[str, float]) -> list[str]:
        """List the losses and gradient norms of a row that are NaN or infinite.

        With a gradient scaler (fp16), infinite gradient norms are normal: it skips those steps.
        """
        watched = "loss/" if self.accelerator.scaler else ("loss/", "grad_norm/")
        return [name for name, value in row.items() if name.startswith(watched) and not math.isfinite(value)]


def read_rows(path: Path) -> list[dict[str, float]]:
    """Read `metrics.jsonl`, `times.jsonl` or `classes.jsonl`: a row per step or checkpoint, skipping damaged lines."""
    return [row for line in path.read_bytes().splitlines() if (row := _row(line))]


def add_row(path: Path, row: dict[str, float]) -> None:
    """Append a row, after removing those of its step and later ones."""
    forget_rows(path, row["step"] - 1)
    append_row(path, row)


def append_row(path: Path, row: dict[str, float]) -> None:
    """Append a row of a later step than all others."""
    with open(path, "a") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def forget_rows(path: Path, step: int) -> None:
    """Remove rows after a step, and damaged lines; report their number, except for an incomplete last line."""
    if path.exists():
        *lines, _ = path.read_bytes().split(b"\n")
        rows = [_row(line) for line in lines]
        if damaged := rows.count(None):
            print(f"{path}: removed {damaged} line{'s' * (damaged > 1)} that cannot be read")
        with complete_or_absent(path) as temporary:
            kept = [line + b"\n" for line, row in zip(lines, rows, strict=True) if row and row["step"] <= step]
            temporary.write_bytes(b"".join(kept))


def _row(line: bytes) -> dict[str, float] | None:
    """Parse a line as a row, or return None if it is damaged."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def metrics_of(row: dict[str, float]) -> list[str]:
    """Return the names of the metrics of each step in a row of `metrics.jsonl`."""
    return [name for name in row if name != "step" and not name.startswith(EVALUATED)]


def losses_of(row: dict[str, float]) -> dict[str, float]:
    """Return the losses of a row of metrics by module name."""
    return {name.removeprefix("loss/"): value for name, value in row.items() if name.startswith("loss/")}


_call: ContextVar[str | None] = ContextVar("call", default=None)


@contextlib.contextmanager
def called_as(call: str) -> Iterator[None]:
    """Let `this_command` return a call of the Python API instead of the command line, which may be a notebook's."""
    token = _call.set(call)
    try:
        yield
    finally:
        _call.reset(token)


def this_command() -> str:
    """Return the Python call that is running, or else the command line of this process, without passwords."""
    program, *words = sys.argv
    command_line = shlex.join([Path(program).name.replace("__main__.py", "hfgen"), *map(without_password, words)])
    return _call.get() or command_line


def options_text(options: Mapping[str, str]) -> str:
    """Write fields for a message: as the Python call that is running takes them, or else as flags."""
    if _call.get():
        return ", ".join(f"{name}={value!r}" for name, value in options.items())
    return " ".join(f"--{name} {shlex.quote(value)}" for name, value in options.items())


def training_call(family: str, options: Mapping[str, str]) -> str:
    """Write a training for a message: as a Python call if one is running, or else as a command."""
    if _call.get():
        return f"hfgen.train({family!r}, {options_text(options)})"
    return f"hfgen train {family} {options_text(options)}"


def python_call(function: str, family: str, fields: Mapping[str, Any]) -> str:
    """Write a call of `train` or `tune`, without private fields, local paths and passwords."""

    def plain(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [plain(entry) for entry in value]
        text = os.fspath(value) if isinstance(value, os.PathLike) else value
        return without_password(text) if isinstance(text, str) else text

    shown_fields = {name: value for name, value in fields.items() if name not in NOT_SHOWN - {"output_dir"}}
    arguments = [f"{name}={public_value(plain(value))!r}" for name, value in shown_fields.items()]
    return f"hfgen.{function}({', '.join([repr(family), *arguments])})"


def own_commit(root: Path = Path(__file__).parents[2]) -> dict[str, Any] | None:
    """Return the commit of the checkout that hfgen runs from, and whether its code was modified.

    Returns:
        None for an installed hfgen, or without git.
    """
    if not (root / ".git").exists():  # so that no repository around an environment is taken for hfgen's
        return None
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str:
        options = {"env": environment, "capture_output": True, "text": True, "check": True, "timeout": 30}
        return subprocess.run(["git", "-C", str(root), *arguments], **options).stdout.strip()

    try:
        return {"sha": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain", "--", "hfgen"))}
    except (OSError, subprocess.SubprocessError):
        return None


def describe_run(
    path: Path,
    accelerator: Accelerator,
    command: str,
    steps: int,
    images_per_step: int,
    steps_per_epoch: int,
    seconds: float,
    problems: list[str],
    commit: dict[str, Any] | None,
    evaluations: dict[str, Any],
    reference_split: str | None,
) -> None:
    """Write `run.json`: command, versions, hardware, time and memory of a finished training, and its problems.

    With evaluations while training also their time, the best of them, and the step of the saved model. The reference
    split is the one on which to measure the model, or None for `test`.
    """
    record = {
        "command": command,
        "device_type": accelerator.device.type,
        "device": device_name(accelerator.device),
        "threads": torch.get_num_threads(),
        "num_processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "optimizer_steps": steps,
        "steps_per_epoch": steps_per_epoch,
        "images_seen": steps * images_per_step,
        "train_seconds": round(seconds, 1),
        "images_per_second": round(steps * images_per_step / seconds, 1),
        "peak_memory_bytes": peak_memory_bytes(accelerator.device),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in RECORDED_PACKAGES},
        **({"hfgen_commit": commit} if commit else {}),
        **evaluations,
        "reference_split": reference_split,
        "problems": problems,
    }
    with complete_or_absent(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")


# Required entries of a record, with their types.
TRAINING = {
    "command": str,
    "device": str,
    "device_type": str,
    "images_per_second": int | float,
    "images_seen": int,
    "mixed_precision": str,
    "num_processes": int,
    "optimizer_steps": int,
    "threads": int,
    "train_seconds": int | float,
    "versions": dict,
}


def read_training(file: Path) -> dict[str, Any]:
    """Read `run.json`, with local paths removed from command and problems."""
    training = read_json(file)
    for name, kind in TRAINING.items():
        if not isinstance(training.get(name), kind):
            raise UserError(f"{file} is not the record of a finished run: {name} is {shown(training.get(name))}")
    try:
        command = public_command(training["command"])
    except ValueError as error:
        raise UserError(f"{file}: command is {shown(training['command'])}, which is not a command") from error
    problems = [public_text(str(problem)) for problem in training.get("problems", [])]
    return training | {"command": command, "problems": problems}


def public_command(command: str) -> str:
    """Remove private flags and local paths from a command or a Python call.

    Raises:
        ValueError: for an unclosed quotation.
    """
    if command.startswith(PYTHON_CALLS):
        return public_text(command)
    words: list[str] = []
    left_out = False
    for word in shlex.split(command):
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if flag:
            left_out = flag.removeprefix("--") in NOT_SHOWN - {"output_dir"}
        if not left_out:
            words.append(f"{flag}{equals}{public_text(value)}")
    return shlex.join(words)
