"""Sweeps: one run for each value of a field (`hfgen train FAMILY --sweep`)."""

import dataclasses
import itertools
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hfgen.config import TrainingConfig
from hfgen.config.training import CONFIG_FILE
from hfgen.data.images import ImageData
from hfgen.runs.record import this_command
from hfgen.tasks.base import Task
from hfgen.training.publisher import Publisher
from hfgen.training.run import train
from hfgen.utils.errors import UserError
from hfgen.utils.files import complete_or_absent
from hfgen.utils.privacy import public_text
from hfgen.utils.untrusted import own_file, read_json, shown

RECORD = "sweep.json"
SEPARATOR = r"[\\/]"  # path separators of all systems
NOT_SWEPT = {"config", "hub_model_id", "mixed_precision", "output_dir", "resume_from_checkpoint", "sweep"}


def parse_sweep(sweep: list[str]) -> list[dict[str, list[str]]]:
    """Return the fields of each run, as flag values, from entries such as `latent_dim=2,4,16`; entries multiply.

    Raises:
        UserError: for a malformed entry, or a field that cannot be swept.
    """
    fields: dict[str, list[list[str]]] = {}
    for entry in sweep:
        name, equals, values = entry.partition("=")
        choices = [value.split() for value in values.split(",")]
        if not equals or not all(choices) or name in fields or not name:
            raise UserError(
                f"a sweep entry must be a new field and its values, such as latent_dim=2,4,16, not {entry}"
            )
        if name in NOT_SWEPT:
            raise UserError(f"{name} cannot be swept")
        if twice := [value for value in choices if choices.count(value) > 1]:
            raise UserError(f"sweep has {name} {' '.join(twice[0])} twice")
        fields[name] = choices
    return [dict(zip(fields, values, strict=True)) for values in itertools.product(*fields.values())]


def train_members(
    config: TrainingConfig,
    parse: Callable[[list[str]], TrainingConfig],
    make_task: Callable[[TrainingConfig, ImageData], Task],
    publisher: Publisher,
) -> Path:
    """Train the runs of a sweep in sequence, each in a subfolder.

    A stopped sweep continues with `resume_from_checkpoint` latest; finished runs are kept.

    Args:
        config: The shared configuration; its `output_dir` is the folder of the sweep.
        parse: Parses flags on top of the shared configuration.
        make_task: See `hfgen.training.run.train`.
        publisher: Likewise.

    Returns:
        The folder.

    Raises:
        UserError: before any work, for invalid values, or in several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("a sweep runs in one process; train its runs one by one to use several")
    folder = Path(config.output_dir)
    if config.push_to_hub:
        raise UserError("a sweep cannot be pushed to one repo; hfgen publish-all publishes its runs")
    if (folder / CONFIG_FILE).exists():
        raise UserError(f"{folder} holds a run; choose another --output_dir for the sweep")
    existing = read_sweep(folder)["members"] if (folder / RECORD).is_file() else {}
    if not existing and folder.is_dir() and any(not (entry / CONFIG_FILE).is_file() for entry in folder.iterdir()):
        raise UserError(f"output_dir {folder} is not empty and holds no sweep; name a new or empty folder")
    members = {}
    for fields in parse_sweep(config.sweep):
        chosen = parse([word for name, values in fields.items() for word in _flag(type(config), name, values)])
        settings = {name: "_".join(map(public_text, values)) for name, values in fields.items()}
        parts = [f"{field}_{re.split(SEPARATOR, value)[-1]}" for field, value in settings.items()]
        name = "-".join([folder.resolve().name, *parts])
        name = next(
            (old for old, known in existing.items() if known == settings), name
        )  # as named before the folder was moved
        if name in members:
            raise UserError(
                f"two runs of the sweep would be called {name}; rename the files or folders among the values"
            )
        members[name] = (
            settings,
            dataclasses.replace(chosen, sweep=[], output_dir=str(folder / name)),
        )
    record = {"command": this_command(), "members": {name: settings for name, (settings, _) in members.items()}}
    folder.mkdir(parents=True, exist_ok=True)
    with complete_or_absent(folder / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    for _, member in members.values():
        train(member, make_task, publisher)
    return folder


def _flag(config_class: type[TrainingConfig], name: str, values: list[str]) -> list[str]:
    """Return the flag that sets a field; boolean flags take no value."""
    is_bool = any(
        field.name == name and field.type in (bool, bool | None) for field in dataclasses.fields(config_class)
    )
    if is_bool and values in (["true"], ["false"]):
        return [f"--{name}" if values == ["true"] else f"--no_{name}"]
    return [f"--{name}", *values]


def members_of(run: str) -> list[str]:
    """Return the runs of a sweep folder, or the run itself for any other folder."""
    folder = Path(run).expanduser()
    if not (folder / RECORD).is_file():
        return [run]
    members = [folder / name for name in read_sweep(folder)["members"]]
    if missing := [member for member in members if not member.is_dir()]:
        raise UserError(f"the sweep in {folder} is not finished: there is no {missing[0]}")
    return [str(member) for member in members]


def read_sweep(folder: Path) -> dict[str, Any]:
    """Read `sweep.json`.

    Raises:
        UserError: naming the file, if it is not a record of a sweep or a run is outside the folder.
    """
    file = folder / RECORD
    record = read_json(file)
    members = record.get("members")
    if not isinstance(record.get("command"), str) or not isinstance(members, dict) or not members:
        raise UserError(f"{file} is not a record of a sweep: it must have command and members")
    for name, settings in members.items():
        if re.search(SEPARATOR, name) or name in ("", ".", ".."):
            raise UserError(f"{file}: a member must be the name of a folder beside it, not {shown(name)}")
        own_file(folder, name)
        if not isinstance(settings, dict) or not settings:
            raise UserError(f"{file}: {name} must have the swept fields, not {shown(settings)}")
    return record
