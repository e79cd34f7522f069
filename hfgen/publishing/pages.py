"""The page of a run, `index.html`, which a browser shows without a network."""

import json
import math
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import UndefinedError

from hfgen.config.training import CONFIG_FILE, defaults
from hfgen.evaluation.report import render_report
from hfgen.evaluation.verdict import problems
from hfgen.families import Family, families, own_sampler
from hfgen.figures.curves import panel_and_line
from hfgen.publishing.card import card_text
from hfgen.publishing.facts import read_run
from hfgen.runs.checkpoints import step_of
from hfgen.runs.folder import (
    ANALYSIS_PICTURES,
    COMPARISON,
    COMPARISON_PICTURES,
    EVALUATION_PICTURES,
    FIGURES,
    METRICS_FILE,
    PAGE,
    PAGE_MARK,
    RUN_FILE,
    TIMES_FILE,
    RunFolder,
)
from hfgen.runs.record import metrics_of, read_rows
from hfgen.training.publisher import Publisher
from hfgen.utils.errors import UserError
from hfgen.utils.files import complete_or_absent
from hfgen.utils.untrusted import read_json

POINTS = 200  # of a curve, each the mean of as many steps


class PageWriter(Publisher):
    """Writes the page of a finished training."""

    def publish(self, run: Path) -> None:
        """Write the page and name it."""
        if page := renew_page(run):
            print(f"The page of the run is {page}")


def renew_page(folder: Path) -> Path | None:
    """Write the page of a folder if it holds a finished run; say so if that fails, which is no reason to stop."""
    if not (folder / CONFIG_FILE).is_file() or not (folder / RUN_FILE).is_file():
        return None
    try:
        return write_page(folder)
    except (UserError, OSError) as error:
        print(f"hfgen: the page {folder / PAGE} was not written: {error}", file=sys.stderr)
        return None


def write_page(run: Path) -> Path:
    """Write the page of a finished run, and return its path.

    Raises:
        UserError: if the folder holds no finished run, a damaged file, or an `index.html` of someone else.
    """
    folder = RunFolder(run)
    if not folder.owns_page():
        raise UserError("a file of this name is there, which hfgen did not write")
    facts = read_run(run)
    family = family_of_run(facts["class_name"], facts["config"])
    comparison = read_json(run / COMPARISON) if (run / COMPARISON).is_file() else None
    model = json.dumps(run.as_posix(), ensure_ascii=False)[1:-1]  # as it stands between quotes in Python
    try:
        page = render_report(
            "run.html",
            mark=PAGE_MARK,
            **facts,
            run=shlex.quote(str(run)),
            name=run.resolve().name,
            family=family.name,
            description=card_text(facts, model, block="description"),
            use=card_text(facts, model, block="use").strip(),
            model=model,
            commands=family.config.commands_for(run, facts["reference_split"]),
            sampler=own_sampler(facts["class_name"], facts["config"]),
            comparison=comparison,
            warnings=dict.fromkeys(
                problem
                for record in ({}, facts["evaluation"], facts["analysis"], comparison)
                for problem in problems((record or {}) | {"training": facts["training"]})
            ),
            grids=_grids(folder, facts["training"]),
            pictures={
                name: sorted(file.name for file in (run / name).glob("*.*") if file.suffix in (".png", ".gif"))
                for name in (FIGURES, EVALUATION_PICTURES, ANALYSIS_PICTURES, COMPARISON_PICTURES)
            },
            curves=panels(run),
            configuration=yaml.safe_dump(facts["config"], sort_keys=False),
            files=sorted(file.name + "/" * file.is_dir() for file in run.iterdir() if not file.name.startswith(".")),
        )
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, UndefinedError) as error:
        raise UserError(f"the records of {run} lack what it shows ({type(error).__name__}: {error})") from error
    with complete_or_absent(run / PAGE) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return run / PAGE


def _grids(folder: RunFolder, training: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the sample grids with their steps; the last one shows the model of the run, which may be older."""
    grids = [{"step": step_of(grid), "file": f"samples/{grid.name}"} for grid in folder.grids()]
    if grids and grids[-1]["step"] == training["optimizer_steps"]:
        grids[-1]["step"] = training.get("model_step", training["optimizer_steps"])
    return grids


def family_of_run(class_name: str | None, fields: Iterable[str]) -> Family:
    """Return the family of a run: of those that save its class, the one with most of the fields of its configuration.

    Args:
        class_name: The class of its model, or None where it is not known.
        fields: Names of fields of its configuration.
    """
    candidates = [family for family in families().values() if class_name is None or class_name in family.models]
    return max(candidates, key=lambda family: len(defaults(family.config).keys() & set(fields)))


def curves_of(run: Path) -> dict[str, Any]:
    """Return the metrics of a run as at most 200 points, each the mean over as many steps, of those that have it.

    Returns:
        `steps_per_point`, `steps` and `minutes` of each point (`minutes` is None without a record of times), and
        `values`, by name, which are None where they are not finite. Empty if there are no metrics.
    """
    rows = read_rows(run / METRICS_FILE) if (run / METRICS_FILE).is_file() else []
    if not rows:
        return {}
    width = math.ceil(len(rows) / POINTS)
    starts = np.arange(0, len(rows), width)
    means = {}
    for name in ("step", *metrics_of(rows[0])):
        sums, counts = (
            np.add.reduceat(values, starts)
            for values in ([row.get(name, 0.0) for row in rows], [float(name in row) for row in rows])
        )
        means[name] = np.divide(sums, counts, out=np.full(len(starts), np.nan), where=counts > 0)
    steps, minutes = means.pop("step"), None
    if (run / TIMES_FILE).is_file() and (times := read_rows(run / TIMES_FILE)):
        known = np.array([(0, 0), *((row["step"], row["seconds"]) for row in times)])
        minutes = [round(float(minute), 4) for minute in np.interp(steps, *known.T) / 60]
    return {
        "steps_per_point": width,
        "steps": [round(float(step), 1) for step in steps],
        "minutes": minutes,
        "values": {name: [_rounded(value) for value in values] for name, values in means.items()},
    }


def panels(run: Path) -> dict[str, Any]:
    """Return the curves of a run as `curves_of` does, but by panel and line: `"panels": {title: {line: values}}`."""
    curves = curves_of(run)
    grouped: dict[str, dict[str, list[float | None]]] = {}
    for name, values in curves.pop("values", {}).items():
        panel, line = panel_and_line(name)
        grouped.setdefault(panel, {})[line] = values
    return curves | {"panels": grouped}


def _rounded(value: float) -> float | None:
    return float(f"{value:.5g}") if np.isfinite(value) else None
