"""Pages in Markdown and HTML, rendered from the templates in `hfgen/templates`, and the filters that those use."""

import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

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


def fenced(text: str, language: str) -> str:
    """Write a text as a block of code, whatever it holds."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return "\n".join([f"{fence}{language}", *text.splitlines(), fence])


def with_error(found: dict[str, float]) -> str:
    """Format a value with its standard error, both rounded to two significant digits of the error."""
    decimals = max(0, 1 - math.floor(math.log10(found["std"]))) if found["std"] > 0 else 2
    return f"{found['value']:.{decimals}f} ± {found['std']:.{decimals}f}"


def duration(seconds: float) -> str:
    """Format a duration in minutes, or in seconds if it is short."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.{0 if seconds >= 600 else 1}f} min".replace(".0 ", " ")


def accuracy_text(found: dict[str, Any]) -> str:
    """Write an accuracy and its standard deviation in per cent."""
    return f"{found['accuracy']:.2%} ± {found['accuracy_std']:.2%}"


def with_commas(value: float) -> str:
    """Write a number with commas between its thousands."""
    return f"{value:,}"


def percent(share: float, decimals: int = 2) -> str:
    """Write a share in per cent."""
    return f"{share:.{decimals}%}"


def percent_if_known(share: float | None) -> str:
    """Write a share in per cent, or nothing for None."""
    return "" if share is None else percent(share)


def plain(markdown: str) -> str:
    """Return a sentence in Markdown without its marks: links become their texts."""
    return re.sub(r"\\(.)|\[([^\]]*)\]\([^)]*\)|[`*]", lambda found: found[1] or found[2] or "", markdown)


def json_text(value: Any, indent: int | None = None) -> str:
    """Write a value as JSON, with its letters as they are."""
    return json.dumps(value, indent=indent, ensure_ascii=False)


class _Missing(StrictUndefined):
    """Something that the values of a template lack: whatever is done with it raises an error that names it."""

    __abs__ = __format__ = StrictUndefined._fail_with_undefined_error


TEMPLATES = Path(__file__).parents[1] / "templates"
_templates = Environment(
    loader=FileSystemLoader(TEMPLATES),
    undefined=_Missing,
    # In Markdown, what strangers named passes through `escaped`, `code` and the like.
    autoescape=select_autoescape(("html",), default_for_string=False),
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_templates.policies["json.dumps_kwargs"] = {}  # of `tojson`, which keeps the order
_templates.filters |= {
    "accuracy": accuracy_text,
    "code": code,
    "code_cell": code_cell,
    "duration": duration,
    "escaped": escaped,
    "fenced": fenced,
    "json": json_text,
    "number": number,
    "percent": percent,
    "plain": plain,
    "quoted": shlex.quote,
    "percent_if_known": percent_if_known,
    "with_commas": with_commas,
    "with_error": with_error,
    "with_std": with_std,
}


def render(template: str, *, block: str | None = None, **values: Any) -> str:
    """Return a page or a part of one, written from a file in `hfgen/templates`, or from another by its absolute path.

    Args:
        template: The file. In a page of HTML all values are escaped.
        block: Return only what this block of the template, or of one that it extends, writes.
        values: What the template may use.

    Raises:
        jinja2.UndefinedError: if the template shows something that the values lack.
    """
    if Path(template).is_absolute():
        loaded = _templates.from_string(Path(template).read_text(encoding="utf-8"))
    else:
        loaded = _templates.get_template(template)
    if block is None:
        return loaded.render(values)
    context = loaded.new_context(values)
    next(loaded.root_render_func(context), None)  # finds the blocks of the templates that this one extends
    return "".join(context.blocks[block][0](context))


# Sections of model cards by earlier versions.
EARLIER_SECTIONS = {
    "Between and around latents", "From noise to images", "How good it is", "How it was trained", "Limits",
    "What its latents keep",
}  # fmt: skip
NO_CARD = "---\ntags:\n- hfgen\n---\n"  # a card without hfgen's sections


def sections_of(page: str) -> dict[str, str]:
    """Return the sections of a page by title, each from its `##` line to the next `#` or `##` outside of code."""
    sections: dict[str, str] = {}
    title, fence = None, ""
    for line in page.splitlines():
        marks = re.match(r"`{3,}|~{3,}", line)
        if marks and not fence:
            fence = marks[0]
        elif fence and line.strip() and set(line.strip()) == {fence[0]} and len(line.strip()) >= len(fence):
            fence = ""
        elif not fence and (heading := re.match(r"(##?) +(.*)", line)):
            title = heading[2].strip() if heading[1] == "##" else None
        if title is not None:
            sections[title] = sections.get(title, "") + line + "\n"
    return sections


def authors_sections(page: str, renewed: str = "") -> dict[str, str]:
    """Return the sections of a model card that hfgen did not write.

    Args:
        page: The card.
        renewed: The card as hfgen writes it now.
    """
    templates = [path.read_text(encoding="utf-8") for path in TEMPLATES.glob("card*.md")]
    own = EARLIER_SECTIONS.union(*map(sections_of, [renewed, *templates]))
    return {title: text for title, text in sections_of(page).items() if title not in own}


def authors_page(page: str) -> str:
    """Return a model card without the sections that hfgen wrote, or nothing if there are no others."""
    sections = authors_sections(page)
    return with_sections(NO_CARD, sections) if sections else ""


def with_sections(page: str, sections: Mapping[str, str]) -> str:
    """Append sections to a page."""
    return "\n\n".join(text.strip("\n") for text in (page, *sections.values())) + "\n"


def linked_pictures(text: str) -> list[str]:
    """List the PNG and GIF files of this folder that a text shows."""
    return re.findall(r"\]\(([^():\s]+\.(?:png|gif))\)", text)
