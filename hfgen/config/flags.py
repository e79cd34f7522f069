"""The flags of a configuration, and the help that lists them."""

import argparse
import itertools
import re
import shutil
import textwrap
from typing import Any, NoReturn

from hfgen.config.fields import Field, fields_of, sections_of
from hfgen.config.suggestions import field_suggestion
from hfgen.utils.errors import UserError

HELP_WIDTH = 110  # columns at most
METAVARS = {int: "INT", float: "FLOAT", str: "TEXT"}
TRUTHS = {"true", "false", "yes", "no", "on", "off", "0", "1"}


def read_flags(config_class: type, arguments: list[str], *, prog: str, positional: str | None) -> dict[str, Any]:
    """Return the fields that a command line sets, as text or lists of texts, and bool for switches.

    Args:
        config_class: A flat dataclass (see `fields_of`).
        arguments: The command line after the command.
        prog: The command, for messages.
        positional: The field that is given without a flag.

    Raises:
        UserError: for an unknown flag (with a suggestion), a flag without its value, or a value without a flag.
        SystemExit: after printing help.
    """
    fields = fields_of(config_class)
    switches = {name for name, field in fields.items() if field.kind is bool}
    flags = fields.keys() - {positional} | {f"no_{name}" for name in switches} | {"config", "help"}
    for argument, following in itertools.pairwise([*arguments, ""]):
        name, assigns, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--"):
            continue
        if name not in flags:
            raise UserError(f"there is no flag --{name}" + field_suggestion(name, sorted(flags), "--"))
        switch = name if name in switches else name.removeprefix("no_")
        if switch in switches and (assigns or following.lower() in TRUTHS):
            raise UserError(f"--{name} takes no value, not {value or following}; write --{switch} or --no_{switch}")
    given, excess = _make_parser(config_class, prog, positional).parse_known_intermixed_args(arguments)
    if excess and positional:
        what = fields[positional].summary
        raise UserError(f"{prog} takes one {positional} at a time ({what}), not also {excess[0]}")
    if excess:
        raise UserError(f"unexpected argument {excess[0]}: each value follows its flag; see {prog} --help")
    return vars(given)


def _make_parser(config_class: type, prog: str, positional: str | None) -> argparse.ArgumentParser:
    """Build the parser; what is not given is not in its result."""
    fields, sections = fields_of(config_class), sections_of(config_class)
    usage = [
        f"--{name} {_metavar(field)}" for name, field in fields.items() if field.is_required and name != positional
    ]
    if positional:
        fields = {positional: fields[positional]} | fields
        argument = positional.upper() + (" ..." if fields[positional].is_list else "")
        usage.insert(0, argument if fields[positional].is_required else f"[{argument}]")
    examples = textwrap.indent(textwrap.dedent(sections.get("Examples", "")), "  ")
    width = min(shutil.get_terminal_size().columns, HELP_WIDTH) - 2
    parser = _Parser(
        prog=prog,
        usage=" ".join([prog, *usage, "[OPTIONS]"]),
        description="\n\n".join(textwrap.fill(part, width) for part in sections[""].split("\n\n")),
        epilog=f"Examples:\n{examples}" if examples else None,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28, width=width),
        argument_default=argparse.SUPPRESS,
        add_help=False,
    )
    names = dict.fromkeys(field.group for field in fields.values())
    groups = {name: parser.add_argument_group(name) for name in names}
    for name, field in fields.items():
        text = field.help + (f" (default: {default})" if (default := _default(field)) else "")
        options: dict[str, Any] = {"help": text.replace("%", "%%")}
        if name == positional:
            options |= {"metavar": name.upper(), "nargs": "*" if field.is_list else "?"}
            groups[field.group].add_argument(name, **options)
        elif field.kind is bool:
            groups[field.group].add_argument(f"--{name}", action="store_true", **options)
            parser.add_argument(f"--no_{name}", action="store_false", dest=name, help=argparse.SUPPRESS)
        else:
            options |= {"metavar": _metavar(field), "nargs": "+" if field.is_list else None}
            groups[field.group].add_argument(f"--{name}", **options)
    general = parser.add_argument_group("Configuration")
    file = "A recipe (see `hfgen recipes`) or YAML" if hasattr(config_class, "family") else "A YAML"
    text = f"{file} file with values. Flags take precedence; --no_NAME turns off a switch that it turns on."
    general.add_argument("--config", metavar="FILE", help=text)
    general.add_argument("-h", "--help", action="help", help="Show this help.")
    return parser


def _metavar(field: Field) -> str:
    if field.choices:
        return f"{{{','.join(field.choices)}}}"
    return "FOLDER" if field.name.endswith("_dir") else METAVARS.get(field.kind, "VALUE")


def _default(field: Field) -> str:
    """Return a default as on the command line, or nothing where the help says what happens by default."""
    if field.is_required or field.default in (None, []):
        return ""
    if field.kind is bool:
        return f"on; --no_{field.name} turns it off" if field.default else "off"
    values = field.default if field.is_list else [field.default]
    return " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


class _Parser(argparse.ArgumentParser):
    """A parser that raises its complaints."""

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"argument (\S+): expected (at least )?one argument", r"\1 needs a value", message)
        raise UserError(f"{message}; see {self.prog} --help")
