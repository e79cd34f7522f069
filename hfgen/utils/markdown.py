"""Markdown formatting of arbitrary text and numbers."""

import math
import re
from collections.abc import Iterable

from hfgen.utils.untrusted import one_line


def number(value: float) -> str:
    """Format a number with three significant digits."""
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def with_std(measure: dict[str, float | None]) -> str:
    """Format a metric with its standard deviation."""
    return number(measure["value"]) + (f" ± {number(float(f'{std:.1g}'))}" if (std := measure["std"]) else "")


def table(header: list[str], rows: Iterable[list[str]]) -> list[str]:
    """Return the lines of a Markdown table, preceded by an empty one."""
    return ["", "| " + " | ".join(header) + " |", "|---" * len(header) + "|"] + [f"| {' | '.join(r)} |" for r in rows]


def escaped(text: object) -> str:
    """Escape untrusted text, such as the name of a class or folder, to one line of literal Markdown."""
    return re.sub(r"([\\`*\[\]<>|$&~])", r"\\\1", one_line(text))


def code(text: object) -> str:
    """Format arbitrary text as inline code."""
    line = one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") or not line else ""
    return f"{fence}{space}{line}{space}{fence}"


def code_cell(text: object) -> str:
    """Format text as inline code in a table cell."""
    return code(text).replace("|", r"\|")


def fenced(text: str, language: str) -> list[str]:
    """Return the lines of a fenced code block of arbitrary text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return [f"{fence}{language}", *text.splitlines(), fence]


def with_error(found: dict[str, float]) -> str:
    """Format a value with its standard error, both rounded to two significant digits of the error."""
    decimals = max(0, 1 - math.floor(math.log10(found["std"]))) if found["std"] > 0 else 2
    return f"{found['value']:.{decimals}f} ± {found['std']:.{decimals}f}"


def duration(seconds: float) -> str:
    """Format a duration in minutes, or in seconds if it is short."""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
