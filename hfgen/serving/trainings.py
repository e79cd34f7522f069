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
    "input_data_dir", "test_dataset_name", "push_to_hub", "hub_model_id", "hub_private_repo", "hub_license",
    "hub_strategy",
}  # fmt: skip
MOST_RUNNING = 4  # trainings at once
SAVED = 128 + signal.SIGTERM  # the exit status of a training that was asked to stop, and saved its state
NOT_BEGUN = -signal.SIGTERM  # and of one that had not begun yet


class _Training:
    """A process of `hfgen train`, and the last lines that it printed."""

    def __init__(self, arguments: list[str]):
        self.lines: deque[str] = deque(maxlen=LINES)
        self.was_asked_to_stop = False
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
        """Ask it to save its state and end, once: a second signal would interrupt the saving."""
        if self.is_running and not self.was_asked_to_stop:
            self.was_asked_to_stop = True
            self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Wait until it has ended, by force if it takes too long, and return its exit status."""
        try:
            self.process.wait(STOPPING_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)  # with processes of its own
            self.process.wait()
        self.reader.join(1)
        return self.process.returncode


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
        given["output_dir"] = str(run)
        make_config(known.config, given, prog=f"hfgen train {family}")
        self._begin(run, ["train", family, *_flags(given)])
        return run

    def resume(self, run: Path, family: str) -> None:
        """Go on with a training that was stopped.

        Raises:
            UserError: if it is running, or has no configuration.
        """
        if not (run / CONFIG_FILE).is_file():
            raise UserError(f"{run} has no {CONFIG_FILE} to go on from")
        _family(family)
        flags = {"config": str(run / CONFIG_FILE), "resume_from_checkpoint": "latest"}
        self._begin(run, ["train", family, *_flags(flags)])

    def stop(self, run: Path) -> None:
        """Ask a training to save its state and end.

        Raises:
            UserError: if it was not started here, or has ended.
        """
        training = self.processes.get(run.resolve())
        if training is None or not training.is_running:
            raise UserError(f"{run} is not being trained by this studio; stop it where it was started, with Ctrl-C")
        training.stop()

    def is_running(self, run: Path) -> bool:
        """Return whether a run is being trained by this studio."""
        return (training := self.processes.get(run.resolve())) is not None and training.is_running

    def output(self, run: Path) -> dict[str, Any] | None:
        """Return the last lines that a training printed, and its exit status; None if it was not started here."""
        if (training := self.processes.get(run.resolve())) is None:
            return None
        return {"lines": list(training.lines), "status": training.process.poll()}

    def close(self) -> dict[Path, bool]:
        """Stop all trainings, wait until they have ended, and return of each that ran whether its state is saved."""
        running = [training for training in self.processes.values() if training.is_running]
        for training in running:
            training.stop()
        statuses = {run: training.wait() for run, training in self.processes.items() if training in running}
        return {run: status == SAVED for run, status in statuses.items()}

    def _begin(self, run: Path, arguments: list[str]) -> None:
        """Start a process for a run, if none is running for it."""
        place = run.resolve()
        with self.lock:
            if self.is_running(run):
                raise UserError(f"{run} is being trained")
            if sum(training.is_running for training in self.processes.values()) >= MOST_RUNNING:
                raise UserError(f"{MOST_RUNNING} trainings are running; stop one of them first, or wait")
            self.processes[place] = _Training(arguments)


def form_of(family: Family) -> list[dict[str, Any]]:
    """Return the fields of a family for the form on the page, with their help."""
    fields = [field for name, field in fields_of(family.config).items() if name not in _files_of(family)]
    return [
        {
            "name": field.name,
            "group": field.group,
            "help": field.help,
            "kind": field.kind.__name__ if isinstance(field.kind, type) else "str",
            "choices": list(DATASETS) if field.name in family.config.dataset_fields else [*field.choices],
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
        if name in _files_of(family):
            raise UserError(f"{name} cannot be set on the page; use hfgen train {family.name}")
        if name in family.config.dataset_fields and value not in (None, "", *DATASETS):
            raise UserError(f"{name} must be {', '.join(DATASETS)} on the page, not {value}; use hfgen train")
        for entry in value if isinstance(value, list) else []:
            if re.match(r"-(?![\d.])", str(entry)):  # a command line would take it for a flag
                raise UserError(f"an entry of {name} cannot begin with a dash, as {entry} does")
    if (recipe := fields.get("config")) and (not isinstance(recipe, str) or recipe not in read_recipes()):
        raise UserError(f"config must be the name of a recipe on the page, not {recipe}")


def _files_of(family: Family) -> set[str]:
    """Return the fields of a family that are not on the page."""
    return NOT_ON_THE_PAGE | {*family.config.folder_fields, *family.config.model_fields}


def _family(name: str) -> Family:
    if not isinstance(name, str) or name not in families():
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
