"""Configurations from defaults, a file, and flags or values, in order of increasing precedence."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import yaml

from hfgen.config.fields import Field, fields_of
from hfgen.config.flags import read_flags
from hfgen.config.recipes import RECIPES, read_recipes
from hfgen.config.suggestions import field_suggestion, suggestion
from hfgen.config.training import CONFIG_FILE
from hfgen.utils.errors import UserError

C = TypeVar("C")
LARGEST_CONFIG = 10**6  # bytes


def parse_config(
    config_class: type[C],
    arguments: list[str],
    *,
    prog: str,
    positional: str | None = None,
    base: Mapping[str, Any] = MappingProxyType({}),
) -> C:
    """Build a configuration from a command line; see `make_config` and `read_flags`."""
    given = read_flags(config_class, arguments, prog=prog, positional=positional)
    return make_config(config_class, given, prog=prog, positional=positional, base=base)


def make_config(
    config_class: type[C],
    values: Mapping[str, Any],
    *,
    prog: str,
    positional: str | None = None,
    base: Mapping[str, Any] = MappingProxyType({}),
) -> C:
    """Build a configuration from the defaults, the file that `config` names, and values, each winning over the last.

    Args:
        config_class: A flat dataclass (see `fields_of`).
        values: By field, as Python or a command line has them; under `config` a recipe or a YAML file.
        prog: The command, for messages.
        positional: The field that is given to the command without a flag.
        base: Fields that take the place of the defaults.

    Raises:
        UserError: for an unknown field (with a suggestion), a missing one, or a value of a wrong type.
    """
    fields, chosen = fields_of(config_class), dict(base)
    if unknown := values.keys() - fields.keys() - {"config"}:
        name = min(unknown)
        raise UserError(f"there is no field {name}" + field_suggestion(name, fields))
    if (file := values.get("config")) is not None:
        chosen |= _read_file(str(file), config_class, fields, prog)
    chosen |= {name: _read(fields[name], value) for name, value in values.items() if name != "config"}
    for name, field in fields.items():
        if field.is_required and name not in chosen:
            raise UserError(f"{prog} needs {name if name == positional else f'--{name}'}: {field.summary}")
    return config_class(**chosen)


def _read(field: Field, value: Any) -> Any:
    """Return a value in the type of a field; refuse the home of an unknown user."""
    read = field.read(value)
    for text in read if isinstance(read, list) else [read]:
        if isinstance(text, str) and text.startswith("~"):
            try:
                Path(text).expanduser()
            except RuntimeError as error:
                raise UserError(f"{field.name} is {text}, and there is no user of that name here") from error
    return read


def _read_file(file: str, config_class: type, fields: Mapping[str, Field], prog: str) -> dict[str, Any]:
    """Return the values of a recipe or of another file; the configuration of a run has its folder as `output_dir`."""
    recipe = read_recipes().get(file)
    if recipe and recipe.family != getattr(config_class, "family", None):
        raise UserError(f"{file} is a recipe of hfgen train {recipe.family}, not of {prog}")
    values = _load(RECIPES / f"{file}.yaml" if recipe else Path(file))
    if folder := _run_of(file):
        values["output_dir"] = folder
    for key, value in values.items():
        if key not in fields:
            raise UserError(f"{file} has an unknown field {key}" + field_suggestion(str(key), fields))
        field = fields[key]
        if value is None and not field.is_optional:
            raise UserError(f"{file}: {key} must have a value, not null; leave the line out for the default")
        if isinstance(value, dict):
            raise UserError(f"{file}: {key} must be a value or a list, not nested fields")
        if field.is_list and not isinstance(value, list | None):
            entries = ", ".join(str(value).replace(",", " ").split())
            raise UserError(f"{file}: {key} must be a list, as in {key}: [{entries}], not {value!r}")
        try:
            values[key] = _read(field, value)
        except UserError as error:
            raise UserError(f"{file}: {error}") from error
    return values


def _load(path: Path) -> dict[Any, Any]:
    """Read a YAML file of fields."""
    if path.is_dir():
        inside = path / CONFIG_FILE
        raise UserError(f"{path} is a folder" + (f"; did you mean {inside}?" if inside.is_file() else ""))
    if not path.is_file():
        near = suggestion(str(path), read_recipes()) or "; hfgen recipes lists them"
        raise UserError(f"there is no configuration file {path} and no such recipe{near}")
    if (size := path.stat().st_size) > LARGEST_CONFIG:
        raise UserError(f"{path} has {size:,} bytes; a configuration file has at most {LARGEST_CONFIG:,}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must contain one `field: value` per line")
    return values


def _run_of(file: str) -> str | None:
    """Return the run folder if the file is a run's own configuration; the run continues there even if it was moved."""
    path = Path(file)
    of_run = path.name == CONFIG_FILE and any((path.parent / name).exists() for name in ("checkpoints", ".lock"))
    return str(path.parent) if of_run else None
