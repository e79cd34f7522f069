"""The fields of a configuration: their types and defaults by its dataclass, their help by its docstrings."""

import dataclasses
import functools
import inspect
import numbers
import os
import re
import typing
from collections.abc import Iterable
from typing import Any, Literal

from hfgen.config.suggestions import suggestion
from hfgen.utils.errors import UserError

WANTED = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


@dataclasses.dataclass(frozen=True)
class Field:
    """A field.

    Attributes:
        name: Its name.
        kind: The type of its value, or of the entries of a list: bool, int, float, str or `Literal[…]`.
        is_list: Whether its value is a list.
        is_optional: Whether it may be None.
        default: Its default, or `dataclasses.MISSING` for a required field.
        group: The group in which the help shows it.
        help: Its description.
    """

    name: str
    kind: Any
    is_list: bool
    is_optional: bool
    default: Any
    group: str
    help: str

    @property
    def is_required(self) -> bool:
        """Whether it has no default."""
        return self.default is dataclasses.MISSING

    @property
    def summary(self) -> str:
        """The first sentence of its description, for the middle of a message."""
        sentence = self.help.partition(". ")[0].removesuffix(".")
        return sentence[:1].lower() + sentence[1:]

    @property
    def choices(self) -> dict[str, Any]:
        """The values of a `Literal[…]` by their text; empty for other types."""
        values = typing.get_args(self.kind) if typing.get_origin(self.kind) is Literal else ()
        return {str(value): value for value in values}

    def read(self, value: Any) -> Any:
        """Return a value of the field's type from what a command line, a YAML file or Python has.

        Raises:
            UserError: with the name of the field, what it must be, and the value.
        """
        if value is None or (self.is_optional and value == "null"):
            if self.is_optional or self.is_list:
                return None if self.is_optional else []
            raise UserError(f"{self.name} must have a value")
        if not self.is_list:
            return self._read(value, self.name)
        entries = value if isinstance(value, Iterable) and not isinstance(value, str | os.PathLike) else [value]
        return [self._read(entry, f"each value of {self.name}") for entry in entries]

    def _read(self, value: Any, what: str) -> Any:
        if type(value).__module__ == "torch":  # a device or data type
            value = str(value).removeprefix("torch.")
        try:
            return self._converted(value)
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            choices = self.choices
            message = f"{what} must be {'one of ' + ', '.join(choices) if choices else WANTED[self.kind]}, not {value}"
            if self.is_list and "," in str(value):
                raise UserError(f"{message}; separate values by spaces: {str(value).replace(',', ' ')}") from error
            raise UserError(message + suggestion(str(value), choices)) from error

    def _converted(self, value: Any) -> Any:
        if choices := self.choices:
            return choices["no" if value is False else str(value)]  # as YAML reads an unquoted no
        if self.kind in WANTED and isinstance(value, bool) != (self.kind is bool):
            raise TypeError
        if self.kind is int:
            return _whole(value)
        if self.kind is float:
            return float(value)
        return _text(value) if self.kind is str else value


@functools.cache
def fields_of(config_class: type) -> dict[str, Field]:
    """Return the fields of a configuration by name, in the order of its help.

    In the `Args:` of a docstring, a line `> Group` begins a group of fields, as in transformers. Groups have the order
    in which the docstrings name them, those of base classes first; a base may name a group that subclasses fill.
    """
    hints, groups, documented = typing.get_type_hints(config_class), [], {}
    for each in reversed(config_class.__mro__):
        group, entries = "Options", sections_of(each).get("Args", "")
        for entry, text in re.findall(r"^    (> |\w+: )(.*(?:\n {8}.*)*)", entries, re.MULTILINE):
            if entry == "> ":
                group = text
                groups.append(group)
            else:
                documented[entry.removesuffix(": ")] = group, " ".join(text.split())
    groups.append("Options")
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    documented = {name: documented.get(name, ("Options", "")) for name in [*documented, *fields] if name in fields}
    return {
        name: _field(fields[name], hints[name], *documented[name])
        for name in sorted(documented, key=lambda name: groups.index(documented[name][0]))
    }


def sections_of(config_class: type) -> dict[str, str]:
    """Return the sections of a class's own docstring by title; the first, without a title, says what the class is."""
    text = inspect.cleandoc(vars(config_class).get("__doc__") or "")
    parts = ["", *re.split(r"\n\n(Args|Examples):\n", text)]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _field(field: dataclasses.Field, hint: Any, group: str, text: str) -> Field:
    kinds = [part for part in typing.get_args(hint) if part is not type(None)]
    is_optional = type(None) in typing.get_args(hint)
    kind = kinds[0] if is_optional else hint
    is_list = typing.get_origin(kind) is list
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return Field(field.name, typing.get_args(kind)[0] if is_list else kind, is_list, is_optional, default, group, text)


def _whole(value: Any) -> int:
    """Return a whole number, also of a text such as 1e3."""
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            value = float(value)
    if value != int(value):
        raise ValueError
    return int(value)


def _text(value: Any) -> str:
    """Return a text, also of a path, or of a number, as which YAML reads a text of digits."""
    if not isinstance(value, str | os.PathLike | numbers.Number):
        raise TypeError
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)
