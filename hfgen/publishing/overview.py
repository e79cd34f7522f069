"""One page in HTML that puts runs of any family side by side (`hfgen results --output results.html`)."""

import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hfgen.config.training import CONFIG_FILE
from hfgen.evaluation.report import render_report
from hfgen.evaluation.results import MARK, files_below, read_record
from hfgen.families import model_of
from hfgen.publishing.facts import read_run
from hfgen.publishing.pages import curves_of, family_of_run
from hfgen.runs.folder import (
    ANALYSIS,
    ANALYSIS_PAGE,
    CARD,
    EVALUATION,
    EVALUATION_PAGE,
    EVALUATION_PICTURES,
    FIGURES,
    PAGE,
    RUN_FILE,
    RunFolder,
)
from hfgen.utils.errors import UserError

NOT_COMPARED = ("learning_rate", "grad_norm")  # beginnings of names of metrics


def overview_page(folders: list[Path], place: Path) -> str:
    """Return a page with a row for each finished run, evaluation or analysis below some folders.

    Args:
        folders: The folders.
        place: The folder to which links are relative.

    Raises:
        UserError: if there is none. What is unfinished or damaged is left out, which is said.
    """
    names = (RUN_FILE, EVALUATION, ANALYSIS)
    found = {file.parent.resolve(): file.parent for name in names for file in files_below(folders, name)}
    if not found:
        places = ", ".join(map(str, folders))
        raise UserError(f"there is no finished run and no {EVALUATION} below {places}; run hfgen train first")
    configs = [file.parent for file in files_below(folders, CONFIG_FILE)]
    if unfinished := [str(folder) for folder in configs if folder.resolve() not in found]:
        print(f"hfgen: left out, since they are not finished: {', '.join(unfinished)}", file=sys.stderr)
    rows = []
    for folder in sorted(found.values()):
        try:
            rows.append(_row(folder, place))
        except UserError as error:
            print(f"hfgen: left out: {error}", file=sys.stderr)
    curves = [{"row": index, **row["curves"]} for index, row in enumerate(rows) if row["curves"]]
    spaces = sorted({space for row in rows for space in (row["evaluation"] or {}).get("measures", ())})
    return render_report("overview.html", mark=MARK, rows=rows, curves=curves, spaces=spaces)


def _row(folder: Path, place: Path) -> dict[str, Any]:
    """Return what a row shows of a run, or of a folder with only a record: a card, a checkpoint, images."""
    if (folder / RUN_FILE).is_file():
        row = read_run(folder)
        row["family"] = family_of_run(row["class_name"], row["config"]).name
    else:
        evaluation, analysis = (
            read_record(folder / name) if (folder / name).is_file() else None for name in (EVALUATION, ANALYSIS)
        )
        protocol = (evaluation or analysis)["protocol"]
        row = {
            "data": protocol["dataset"],
            "family": _family(protocol),
            "training": (evaluation or {}).get("training"),
            "parameters": protocol.get("num_parameters"),
            "evaluation": evaluation,
            "analysis": analysis,
        }
    pictures = [folder / FIGURES / "samples.png", folder / EVALUATION_PICTURES / "images.png"]
    return row | {
        "name": folder.resolve().name,
        "page": _address([folder / name for name in (PAGE, CARD, EVALUATION_PAGE, ANALYSIS_PAGE, ".")], place),
        "picture": _address([*RunFolder(folder).grids()[-1:], *pictures], place),
        "curves": _curves(folder),
    }


def _family(protocol: dict[str, Any]) -> str:
    """Return the family of a model of which there is only a record, or `images`."""
    class_name = protocol.get("pipeline")
    if class_name is None or model_of(class_name) is None:
        return class_name or "images"
    return family_of_run(class_name, ["cycle_weight"] if "target_dataset" in protocol else []).name


def _address(candidates: list[Path], place: Path) -> str | None:
    """Return the address of the first of some files that exists, relative to a folder, or None."""
    there = next((path for path in candidates if path.exists()), None)
    return quote(Path(os.path.relpath(there.resolve(), place.resolve())).as_posix()) if there else None


def _curves(folder: Path) -> dict[str, Any]:
    """Return the losses of a run and their terms, see `hfgen.publishing.pages.curves_of`."""
    curves = curves_of(folder)
    for name in [name for name in curves.get("values", {}) if name.startswith(NOT_COMPARED)]:
        del curves["values"][name]
    return curves
