"""Tables of evaluations and analyses."""

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import UndefinedError

from hfgen.evaluation.report import render_report
from hfgen.runs.folder import ANALYSIS, EVALUATION, OUTDATED
from hfgen.utils.errors import UserError, first_line
from hfgen.utils.files import complete_or_absent
from hfgen.utils.markdown import escaped
from hfgen.utils.untrusted import read_json

SECTIONS = {"measures": "models", "accuracy": "judges", "restoration": "restorers"}  # by a key of the record


def results_page(folders: list[Path], place: Path) -> str:
    """Return a Markdown page with a row for each `evaluation.json` below some folders; links are relative to `place`.

    Raises:
        UserError: if there is none.
    """
    records, analyses = (
        [
            (_link(file.resolve().parent, place), read_record(file))
            for folder in folders
            for file in sorted(folder.rglob(name))
            if OUTDATED not in file.relative_to(folder).parts
        ]
        for name in (EVALUATION, ANALYSIS)
    )
    if not records and not analyses:
        places = ", ".join(str(folder) for folder in folders)
        raise UserError(f"there is no {EVALUATION} below {places}; run hfgen evaluate first")
    sections = {section: [item for item in records if key in item[1]] for key, section in SECTIONS.items()}
    sections["models"].sort(key=lambda item: (item[1]["protocol"]["dataset"], item[0]))
    return _page(**sections, analyses=sorted(analyses, key=lambda item: item[0]))


def _page(**sections: list[tuple[str, dict[str, Any]]]) -> str:
    """Render the page from records by section, each with the link to its folder."""
    return render_report("results.md", **dict.fromkeys((*SECTIONS.values(), "analyses"), ()) | sections)


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
    except (KeyError, TypeError, ValueError, AttributeError, UndefinedError) as error:
        raise UserError(
            f"{file} is an incomplete record of hfgen: {type(error).__name__}: {first_line(error)}"
        ) from error
    return record


def _link(folder: Path, place: Path) -> str:
    return f"[{escaped(folder.name)}]({quote(Path(os.path.relpath(folder, place.resolve())).as_posix())})"


def write_results(folders: list[Path], output: Path) -> Path:
    """Write the tables of some folders to a page.

    Returns:
        The path of the page.

    Raises:
        UserError: if there is no evaluation, or the output exists and was not written by `hfgen results`.
    """
    if output.is_file() and "`hfgen results`" not in output.read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"{output} was not written by hfgen results and will not be overwritten; set another --output")
    page = results_page(folders, output.parent)
    with complete_or_absent(output) as temporary:
        temporary.write_text(page)
    return output
