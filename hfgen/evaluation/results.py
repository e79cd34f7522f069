"""Tables of evaluations and analyses."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import UndefinedError

from hfgen.evaluation.report import render_report, sha256_in
from hfgen.evaluation.verdict import tied, verdict
from hfgen.runs.folder import ANALYSIS, EVALUATION, OUTDATED
from hfgen.utils.errors import UserError, first_line
from hfgen.utils.files import complete_or_absent
from hfgen.utils.markdown import escaped
from hfgen.utils.untrusted import read_json

MARK = '<meta name="generator" content="hfgen results">'
MARKS = ("`hfgen results`", MARK)  # of pages that may be overwritten, in Markdown and HTML
SECTIONS = {"measures": "models", "accuracy": "judges", "restoration": "restorers"}  # by a key of the record


def files_below(folders: list[Path], name: str) -> list[Path]:
    """List the files of a name below some folders, but for those in `outdated`."""
    return [
        file
        for folder in folders
        for file in sorted(folder.rglob(name))
        if OUTDATED not in file.relative_to(folder).parts
    ]


def results_page(folders: list[Path], place: Path) -> str:
    """Return a Markdown page with a row for each `evaluation.json` below some folders; links are relative to `place`.

    Raises:
        UserError: if there is none.
    """
    records, analyses = (
        [(_link(file.resolve().parent, place), read_record(file)) for file in files_below(folders, name)]
        for name in (EVALUATION, ANALYSIS)
    )
    if not records and not analyses:
        places = ", ".join(str(folder) for folder in folders)
        raise UserError(f"there is no {EVALUATION} below {places}; run hfgen evaluate first")
    sections = {section: [item for item in records if key in item[1]] for key, section in SECTIONS.items()}
    return _page(**sections, analyses=sorted(analyses, key=lambda item: item[0]))


def _page(**sections: list[tuple[str, dict[str, Any]]]) -> str:
    """Render the page from records by section, each with the link to its folder."""
    given = {section: sections.get(section, []) for section in (*SECTIONS.values(), "analyses")}
    return render_report("results.md", tables=_tables(given["models"]), **given)


def _tables(models: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return a table of the models of each data set: its feature spaces, and the models by what they compare with."""
    tables: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for link, record in sorted(models, key=lambda item: (item[1]["protocol"]["dataset"], item[0])):
        tables.setdefault(record["protocol"]["dataset"], []).append((link, record))
    return [
        {
            "dataset": dataset,
            "spaces": list(dict.fromkeys(space for _, record in items for space in record["measures"])),
            "is_conditional": any(record["conditional"] for _, record in items),
            "groups": list(map(_ranked, _comparable(items))),
        }
        for dataset, items in tables.items()
    ]


def _comparable(items: list[tuple[str, dict[str, Any]]]) -> list[list[tuple[str, dict[str, Any]]]]:
    """Group models whose Fréchet distances in the first feature space compare."""
    groups: dict[tuple[Any, ...], list[tuple[str, dict[str, Any]]]] = {}
    for link, record in items:
        protocol, space = record["protocol"], next(iter(record["measures"]))
        shared = space, sha256_in(protocol, space), protocol["num_images"], protocol["reference_sha256"]
        groups.setdefault(shared, []).append((link, record))
    return list(groups.values())


def _ranked(items: list[tuple[str, dict[str, Any]]]) -> list[tuple[int, str, dict[str, Any]]]:
    """Sort models by Fréchet distance; those that tie with the first of a rank share it."""
    ranked: list[tuple[int, str, dict[str, Any]]] = []
    leader: dict[str, Any] = {"value": -math.inf, "std": None}
    for place, (link, record) in enumerate(sorted(items, key=lambda item: _distance(item[1])["value"]), 1):
        is_tied = tied(_distance(record), leader)
        leader = leader if is_tied else _distance(record)
        ranked.append((ranked[-1][0] if is_tied else place, link, record))
    return ranked


def _distance(record: dict[str, Any]) -> dict[str, Any]:
    measures = next(iter(record["measures"].values()))
    return measures.get("frechet_distance", {"value": math.inf, "std": None})  # too few images for it


def read_record(file: Path) -> dict[str, Any]:
    """Read the record of an evaluation or an analysis.

    Raises:
        UserError: naming the file, if it is not a record of hfgen.
    """
    record = read_json(file)
    key = next((key for key in SECTIONS if key in record), None)
    if key is None and file.name != ANALYSIS:
        raise UserError(f"{file} is not a record of hfgen evaluate: it has none of {', '.join(SECTIONS)}")
    try:
        _page(**{"analyses" if file.name == ANALYSIS else SECTIONS[key]: [("", record)]})
        verdict(record)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, UndefinedError) as error:
        raise UserError(
            f"{file} is an incomplete record of hfgen: {type(error).__name__}: {first_line(error)}"
        ) from error
    return record


def _link(folder: Path, place: Path) -> str:
    return f"[{escaped(folder.name)}]({quote(Path(os.path.relpath(folder, place.resolve())).as_posix())})"


def write_results(make: Callable[[list[Path], Path], str], folders: list[Path], output: Path) -> None:
    """Write a page on the results in some folders.

    Args:
        make: Returns the page from the folders and the folder to which its links are relative, like `results_page`.
        folders: The folders.
        output: The file.

    Raises:
        UserError: if there are no results, or the output exists and was not written by `hfgen results`.
    """
    if output.is_file() and not any(mark in output.read_text(encoding="utf-8", errors="replace") for mark in MARKS):
        raise UserError(f"{output} was not written by hfgen results and will not be overwritten; set another --output")
    page = make(folders, output.parent)
    with complete_or_absent(output) as temporary:
        temporary.write_text(page, encoding="utf-8")
