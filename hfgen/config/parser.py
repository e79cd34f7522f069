"""Configurations from defaults, a file and flags, in order of increasing precedence."""

import contextlib
import dataclasses
import difflib
import re
import typing
from argparse import ArgumentError
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import yaml
from docstring_parser import parse as parse_docstring
from jsonargparse import ActionYesNo, ArgumentParser

from hfgen.config.training import CONFIG_FILE
from hfgen.utils.errors import UserError

C = TypeVar("C")
LARGEST_CONFIG = 10**6  # bytes
RECIPES = Path(__file__).parents[1] / "recipes"


def parse_config(
    config_class: type[C],
    arguments: list[str],
    *,
    prog: str,
    positional: str | None = None,
    base: Mapping[str, Any] = MappingProxyType({}),
) -> C:
    """Build a configuration from the defaults, the file that `--config` names, and flags, each winning over the last.

    Args:
        config_class: A flat dataclass whose docstring documents each field.
        arguments: The command line after the command.
        prog: The command, for messages.
        positional: The field that is given without a flag.
        base: Fields that take the place of the defaults.

    Raises:
        UserError: for an unknown flag or key (with a suggestion), or a value of the wrong type.
        SystemExit: after printing help.
    """
    parser = _make_parser(config_class, prog, positional)
    flags = _names(config_class) - {positional} | {"config", "help"}
    for argument in arguments:
        name = argument.removeprefix("--").partition("=")[0]
        if argument.startswith("--") and name not in flags and name.removeprefix("no_") not in flags:
            raise UserError(f"there is no flag --{name}" + suggestion([name], sorted(flags), "--"))
    with _explained(prog):
        parser.set_defaults(dict(base))
        file = parser.parse_args(arguments).config
        if file is not None:
            _take_file(parser, config_class, file)
        return _built(config_class, parser.parse_args(arguments))


def make_config(config_class: type[C], values: Mapping[str, Any], *, prog: str, positional: str | None = None) -> C:
    """Build a configuration from the defaults, a file, and values, each winning over the last.

    Args:
        config_class: A flat dataclass; its docstring says what each field means.
        values: By field, as Python has them; under `config` the file, as `--config` takes it.
        prog: The command, for messages.
        positional: The field that is given to the command without a flag.

    Raises:
        UserError: for an unknown field (with a suggestion), or a value of a wrong type.
    """
    parser = _make_parser(config_class, prog, positional)
    hints = typing.get_type_hints(config_class)
    if unknown := values.keys() - hints.keys() - {"config"}:
        name = min(unknown)
        raise UserError(f"there is no field {name}" + suggestion([name], sorted(hints)))
    given = {name: _plain(value, hints[name]) for name, value in values.items() if name != "config"}
    with _explained(prog):
        if file := values.get("config"):
            _take_file(parser, config_class, str(file))
        return _built(config_class, parser.parse_object(given))


def _plain(value: Any, hint: Any) -> Any:
    """Return a value as a file would hold it: a path as text, a single entry of a list as the list."""
    if item := _item_type(hint):
        entries = [] if value is None else [value] if isinstance(value, str | int | float | PathLike) else list(value)
        return [str(entry) for entry in entries] if item is str else entries
    return str(value) if isinstance(value, PathLike) else value


def _take_file(parser: ArgumentParser, config_class: type, file: str) -> None:
    """Let the values of a configuration file take the place of the defaults."""
    values = _read_config_file(file)
    if folder := _run_of(file):
        values["output_dir"] = folder
    _check_fields(values, file, _names(config_class), typing.get_type_hints(config_class))
    parser.set_defaults(parser.parse_object(values, defaults=False).as_dict())


def _built(config_class: type[C], namespace: Any) -> C:
    fields = {name: namespace[name] for name in _names(config_class)}
    for name, value in fields.items():
        for text in value if isinstance(value, list) else [value]:
            _require_home(name, text)
    return config_class(**fields)


def _names(config_class: type) -> set[str]:
    return {field.name for field in dataclasses.fields(config_class)}


@contextlib.contextmanager
def _explained(prog: str) -> Iterator[None]:
    """Say in one line what the parser refuses."""
    try:
        yield
    except (ArgumentError, TypeError, ValueError) as error:  # TypeError: of words in the place of a list's entries
        message = re.sub(r'Parser key "(\w+)":|<class \'(\w+)\'>|typing\.', r"\1\2", " ".join(str(error).split()))
        raise UserError(f"{message}; see {prog} --help") from error


def _require_home(name: str, value: Any) -> None:
    if isinstance(value, str) and value.startswith("~"):
        try:
            Path(value).expanduser()
        except RuntimeError as error:
            raise UserError(f"{name} is {value}, and there is no user of that name here") from error


def _make_parser(config_class: type, prog: str, positional: str | None) -> ArgumentParser:
    ancestry = [parse_docstring(c.__doc__) for c in config_class.__mro__[:-1]]
    help_texts = {p.arg_name: p.description for documented in reversed(ancestry) for p in documented.params}
    hints = typing.get_type_hints(config_class)
    parser = ArgumentParser(prog=prog, description=ancestry[0].short_description, exit_on_error=False)
    parser.add_argument("--config", help="Recipe (see hfgen recipes) or YAML file with values; flags take precedence.")
    for field in dataclasses.fields(config_class):
        hint, default = hints[field.name], field.default
        options: dict[str, Any] = {"help": " ".join(help_texts[field.name].split())}
        if hint in (bool, bool | None):
            options["action"] = ActionYesNo(no_prefix="no_")
        elif item := _item_type(hint):
            options |= {"nargs": "*" if field.name == positional else "+", "type": item}
            default = default if field.default_factory is dataclasses.MISSING else field.default_factory()
        else:
            options |= {"type": hint} | ({"nargs": "?"} if field.name == positional else {})
        if field.name != positional and default is dataclasses.MISSING and not options.get("nargs"):
            parser.add_argument(f"--{field.name}", required=True, **options)
        elif field.name != positional:
            parser.add_argument(f"--{field.name}", default=default, **options)
        elif default is dataclasses.MISSING:
            parser.add_argument(field.name, type=hint, help=options["help"])
        else:
            parser.add_argument(field.name, default=default, **options)
    return parser


def _item_type(hint: Any) -> type | None:
    """Return the item type of a list or list | None field, else None."""
    lists = [part for part in (hint, *typing.get_args(hint)) if typing.get_origin(part) is list]
    return typing.get_args(lists[0])[0] if lists else None


def _check_fields(values: dict[Any, Any], file: str, known: set[str], hints: dict[str, Any]) -> None:
    """Refuse unknown fields and values of a wrong structure; restore `no`, which YAML reads as False."""
    for key, value in values.items():
        if key not in known:
            raise UserError(f"{file} has an unknown field {key}" + suggestion([str(key)], sorted(known)))
        words = [word for part in (hints[key], *typing.get_args(hints[key])) for word in typing.get_args(part)]
        if value is False and "no" in words:  # YAML reads an unquoted no as False
            values[key] = "no"
        if value is None and type(None) not in typing.get_args(hints[key]):
            raise UserError(f"{file}: {key} must have a value, not null; leave the line out for the default")
        if _item_type(hints[key]) and not isinstance(value, list | None):
            entries = ", ".join(str(value).split())
            raise UserError(f"{file}: {key} must be a list, as in {key}: [{entries}], not {value!r}")
        if isinstance(value, dict):
            raise UserError(f"{file}: {key} must be a value or a list, not nested fields")


def _read_config_file(name: str) -> dict[str, Any]:
    recipe = RECIPES / f"{name}.yaml"
    path = recipe if recipe.exists() else Path(name)
    if path.is_dir():
        inside = path / "config.yaml"
        raise UserError(f"{name} is a folder" + (f"; did you mean {inside}?" if inside.is_file() else ""))
    if not path.is_file():
        recipes = sorted(p.stem for p in RECIPES.glob("*.yaml"))
        raise UserError(
            f"there is no configuration file {name} and no such recipe ({', '.join(recipes)})"
            + suggestion([name], recipes)
        )
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


def suggestion(words: Sequence[str], known: Iterable[str], prefix: str = "") -> str:
    """Return the end of a message that suggests the known word closest to the ones received, or nothing."""
    near = [match for word in words for match in difflib.get_close_matches(word.replace("-", "_"), list(known), n=1)]
    return f"; did you mean {prefix}{near[0]}?" if near else ""
