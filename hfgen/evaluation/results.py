"""One table of many evaluations and analyses."""

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import UndefinedError

from hfgen.evaluation.report import ANALYSIS_RECORD, RECORD, render_report
from hfgen.runs.folder import OUTDATED
from hfgen.utils.errors import UserError, first_line
from hfgen.utils.files import complete_or_absent
from hfgen.utils.markdown import escaped
from hfgen.utils.untrusted import read_json

SECTIONS = {"measures": "models", "accuracy": "judges", "restoration": "restorers"}  # by what a record has


def results_page(folders: list[Path], place: Path) -> str:
    """Return one Markdown page, for the folder `place`, with a row for each `evaluation.json` below some folders.

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
        for name in (RECORD, ANALYSIS_RECORD)
    )
    if not records and not analyses:
        places = ", ".join(str(folder) for folder in folders)
        raise UserError(f"there is no {RECORD} below {places}; hfgen evaluate writes one")
    sections = {section: [item for item in records if kind in item[1]] for kind, section in SECTIONS.items()}
    sections["models"].sort(key=lambda item: (item[1]["protocol"]["dataset"], item[0]))
    return _page(**sections, analyses=sorted(analyses, key=lambda item: item[0]))


def _page(**sections: list[tuple[str, dict[str, Any]]]) -> str:
    """Return a page with the sections that have records, each of which comes with a link to its folder."""
    return render_report("results.md", **dict.fromkeys((*SECTIONS.values(), "analyses"), ()) | sections)


def read_record(file: Path) -> dict[str, Any]:
    """Read the record of an evaluation or an analysis.

    Raises:
        UserError: naming the file, if no row of a table can be written of it.
    """
    record = read_json(file)
    kind = next((kind for kind in SECTIONS if kind in record), None)
    if kind is None and file.name != ANALYSIS_RECORD:
        raise UserError(f"{file} is no record of hfgen evaluate: it has none of {', '.join(SECTIONS)}")
    try:
        _page(**{"analyses" if file.name == ANALYSIS_RECORD else SECTIONS[kind]: [("", record)]})
    except (KeyError, TypeError, ValueError, AttributeError, UndefinedError) as error:
        raise UserError(f"{file} is no whole record of hfgen: {type(error).__name__}: {first_line(error)}") from error
    return record


def _link(folder: Path, place: Path) -> str:
    return f"[{escaped(folder.name)}]({quote(Path(os.path.relpath(folder, place.resolve())).as_posix())})"


def write_results(folders: list[Path], output: Path) -> Path:
    """Write the table of some folders to a page.

    Returns:
        The page.

    Raises:
        UserError: if there is no evaluation, or a page that hfgen did not write would be written over.
    """
    if output.is_file() and "`hfgen results`" not in output.read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"{output} is not by hfgen results, and would be written over; name another --output")
    page = results_page(folders, output.parent)
    with complete_or_absent(output) as temporary:
        temporary.write_text(page)
    return output
