"""Trainings that are started on the page: processes of `hfgen train`, which go on without a browser."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hfgen.config.fields import fields_of
from hfgen.config.parser import make_config
from hfgen.config.recipes import read_recipes
from hfgen.config.training import CONFIG_FILE, SHORT_NAMES
from hfgen.families import Family, families, suggest_family
from hfgen.runs.folder import RunFolder
from hfgen.utils.errors import UserError

DATASETS = ("digits", *SHORT_NAMES)
LINES = 200  # of output that are kept
STOPPING_SECONDS = 60  # that a training may take to save its state
# Fields that name files, other places or accounts. They are for a command line, whose user owns the machine.
NOT_ON_THE_PAGE = {
    "output_dir", "cache_dir", "resume_from_checkpoint", "evaluation_judge", "judge", "report_to", "sweep",
    "train_data_dir", "target_data_dir", "input_data_dir", "test_dataset_name", "push_to_hub", "hub_model_id",
    "hub_private_repo", "hub_license", "hub_strategy",
}  # fmt: skip
NAMES_OF_DATASETS = ("dataset_name", "target_dataset_name")


class _Training:
    """A process of `hfgen train`, and the last lines that it printed."""

    def __init__(self, arguments: list[str]):
        self.lines: deque[str] = deque(maxlen=LINES)
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hfgen", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # so that Ctrl-C ends the studio first, which then lets it save its state
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        """Keep what is printed; a progress bar rewrites its line, so that only its last state is kept."""
        line, is_over = "", False
        output = io.TextIOWrapper(self.process.stdout, encoding="utf-8", errors="replace", newline="")
        while character := output.read(1):
            if character == "\n":
                self.lines.append(line)
                line, is_over = "", False
            elif character == "\r":
                is_over = True
            else:
                line, is_over = ("" if is_over else line) + character, False
        if line:
            self.lines.append(line)
        output.close()

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> None:
        """Ask it to save its state and end."""
        if self.is_running:
            self.process.send_signal(signal.SIGINT)

    def wait(self) -> None:
        """Wait until it has ended, by force if it takes too long."""
        try:
            self.process.wait(STOPPING_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join()


class Trainings:
    """The trainings of a studio.

    Args:
        folder: Where their runs are.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.processes: dict[Path, _Training] = {}
        self.lock = threading.Lock()

    def start(self, family: str, name: str, fields: Mapping[str, Any]) -> Path:
        """Start a training, and return the folder of its run.

        Args:
            family: The family of the model.
            name: A name for the run, that of its folder.
            fields: Configuration fields as in `hfgen train FAMILY --help`, and a recipe as `config`.

        Raises:
            UserError: before anything is started, if a name or value is invalid.
        """
        known = _family(family)
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,99}", name):
            raise UserError(f"the name of a run must be letters, digits, dots and dashes, not {name!r}")
        run = self.folder / name
        if RunFolder(run).foreign_files():
            raise UserError(f"there is a run {run} already; choose another name")
        check_fields(known, fields)
        given = {key: value for key, value in fields.items() if value not in (None, "", [])}
        make_config(known.config, {**given, "output_dir": str(run)}, prog=f"hfgen train {family}")
        with self.lock:
            self._forget_ended(run)
            self.processes[run] = _Training(["train", family, *_flags({**given, "output_dir": str(run)})])
        return run

    def resume(self, run: Path, family: str) -> None:
        """Go on with a training that was stopped.

        Raises:
            UserError: if it is running, or has no configuration.
        """
        if self.is_running(run):
            raise UserError(f"{run} is being trained")
        if not (run / CONFIG_FILE).is_file():
            raise UserError(f"{run} has no {CONFIG_FILE} to go on from")
        _family(family)
        flags = {"config": str(run / CONFIG_FILE), "resume_from_checkpoint": "latest"}
        with self.lock:
            self._forget_ended(run)
            self.processes[run] = _Training(["train", family, *_flags(flags)])

    def stop(self, run: Path) -> None:
        """Ask a training to save its state and end.

        Raises:
            UserError: if it was not started here, or has ended.
        """
        training = self.processes.get(run)
        if training is None or not training.is_running:
            raise UserError(f"{run} is not being trained by this studio; stop it where it was started, with Ctrl-C")
        training.stop()

    def is_running(self, run: Path) -> bool:
        """Return whether a run is being trained by this studio."""
        return (training := self.processes.get(run)) is not None and training.is_running

    def output(self, run: Path) -> dict[str, Any] | None:
        """Return the last lines that a training printed, and its exit status; None if it was not started here."""
        if (training := self.processes.get(run)) is None:
            return None
        return {"lines": list(training.lines), "status": training.process.poll()}

    def started(self) -> list[Path]:
        """List the runs of the trainings that were started here."""
        return list(self.processes)

    def close(self) -> list[Path]:
        """Stop all trainings, wait until they have saved their state, and return the runs of those that ran."""
        running = [run for run in self.processes if self.is_running(run)]
        for run in running:
            self.processes[run].stop()
        for training in self.processes.values():
            training.wait()
        return running

    def _forget_ended(self, run: Path) -> None:
        if (before := self.processes.pop(run, None)) is not None:
            before.wait()


def form_of(family: Family) -> list[dict[str, Any]]:
    """Return the fields of a family for the form on the page, with their help."""
    fields = [field for name, field in fields_of(family.config).items() if name not in NOT_ON_THE_PAGE]
    return [
        {
            "name": field.name,
            "group": field.group,
            "help": field.help,
            "kind": field.kind.__name__ if isinstance(field.kind, type) else "str",
            "choices": list(DATASETS) if field.name in NAMES_OF_DATASETS else [*field.choices],
            "is_list": field.is_list,
            "default": field.default,
        }
        for field in fields
    ]


def check_fields(family: Family, fields: Mapping[str, Any]) -> None:
    """Check that the fields of a request name no files, and only data sets by their short names.

    Raises:
        UserError: naming the field, if not.
    """
    for name, value in fields.items():
        if name in NOT_ON_THE_PAGE:
            raise UserError(f"{name} cannot be set on the page; use hfgen train {family.name}")
        if name in NAMES_OF_DATASETS and value not in (None, "", *DATASETS):
            raise UserError(f"{name} must be {', '.join(DATASETS)} on the page, not {value}; use hfgen train")
    if (recipe := fields.get("config")) and recipe not in read_recipes():
        raise UserError(f"config must be the name of a recipe on the page, not {recipe}")


def _family(name: str) -> Family:
    if name not in families():
        raise UserError(f"there is no family {name}{suggest_family(str(name))}")
    return families()[name]


def _flags(fields: Mapping[str, Any]) -> list[str]:
    """Write fields as a command line."""
    words: list[str] = []
    for name, value in fields.items():
        match value:
            case bool():
                words.append(f"--{name}" if value else f"--no_{name}")
            case list():
                words += [f"--{name}", *map(str, value)]
            case _:
                words.append(f"--{name}={value}")
    return words
