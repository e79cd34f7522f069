"""The run folder: every name in it, what may be written there, and what a resumed run puts away."""

import base64
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hfgen.config.recipes import RECIPES, read_recipes
from hfgen.config.training import CONFIG_FILE, read_fields
from hfgen.runs.checkpoints import BEST, list_checkpoints, list_steps, step_of
from hfgen.utils.files import INCOMPLETE, complete_or_absent, remove, remove_leftovers
from hfgen.utils.markdown import authors_page

EVALUATION, EVALUATION_PAGE, EVALUATION_PICTURES = "evaluation.json", "evaluation.md", "evaluation"
ANALYSIS, ANALYSIS_PAGE, ANALYSIS_PICTURES = "analysis.json", "analysis.md", "analysis"
COMPARISON, COMPARISON_PAGE, COMPARISON_PICTURES = "comparison.json", "comparison.md", "comparison"
REPORTS = (EVALUATION, EVALUATION_PAGE, EVALUATION_PICTURES, ANALYSIS, ANALYSIS_PAGE, ANALYSIS_PICTURES)
STUDY, TRIALS = "study.json", "trials"  # of `hfgen tune`: its record, and the folder of its runs
CARD, PAGE, PAGE_MARK = "README.md", "index.html", '<meta name="generator" content="hfgen run">'
RUN_FILE, METRICS_FILE, CLASSES_FILE, TIMES_FILE = "run.json", "metrics.jsonl", "classes.jsonl", "times.jsonl"
ROWS = (METRICS_FILE, CLASSES_FILE, TIMES_FILE)  # files with a row per step or checkpoint
CHECKPOINTS, SAMPLES, FIGURES, OUTDATED, LOCK = "checkpoints", "samples", "figures", "outdated", ".lock"
VALIDATION = "validation.json"  # the protocol of evaluations while training
CURVES, CLASSES, ANIMATION, TIMELAPSE = "training_curves.png", "classes.png", "film.gif", "training.gif"  # in FIGURES
VALIDATION_CURVES, INPUT = "validation.png", "input.png"  # likewise

SUGGESTED_RUNS = 3  # are named where a folder of runs is given for a run


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run: the model as `from_pretrained` takes it, and beside it the run's own record.

    In a notebook it shows its newest sample grid and its curves.

    Args:
        path: The folder, which need not exist yet.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / CONFIG_FILE

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints, `step-000500` for instance."""
        return self.path / CHECKPOINTS

    @property
    def samples(self) -> Path:
        """The folder of sample grids, `step-000500.png` for instance."""
        return self.path / SAMPLES

    @property
    def figures(self) -> Path:
        """The folder of curves, animations and other figures of a finished run."""
        return self.path / FIGURES

    def best(self) -> list[Path]:
        """List the best models at their evaluations while training, the earliest first; the last one is the best."""
        return list_steps(self.checkpoints, name=BEST)

    def grids(self) -> list[Path]:
        """List the sample grids, the earliest first."""
        return list_steps(self.samples, ".png")

    def fields(self) -> dict[str, Any]:
        """Read the resolved configuration; an empty dictionary if there is none.

        Raises:
            UserError: if it is damaged.
        """
        return read_fields(self.config) if self.config.is_file() else {}

    def begin(self, fields: dict[str, Any]) -> None:
        """Write the resolved configuration, and make the sub-folders, without leftovers of processes that were killed.

        Args:
            fields: The configuration, as plain YAML types.
        """
        with complete_or_absent(self.config) as temporary:
            temporary.write_text(yaml.safe_dump(fields, sort_keys=False))
        for folder in (self.path, self.checkpoints, self.samples, self.figures):
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)

    def foreign_files(self) -> list[str]:
        """Name what is in the folder, but for empty folders and what a training leaves before it begins."""
        entries = sorted(self.path.iterdir()) if self.path.is_dir() else []
        full = (entry for entry in entries if entry.is_symlink() or not entry.is_dir() or any(entry.iterdir()))
        return [entry.name for entry in full if not entry.name.startswith((LOCK, INCOMPLETE))]

    def put_away(self, step: int) -> tuple[Path, list[str]]:
        """Move checkpoints, best models and grids of later steps, and older pages, to a new folder in `outdated`.

        Of the model card, the sections by the run's author stay.

        Args:
            step: The step from which the run goes on.

        Returns:
            The folder, and the names of what was moved there.
        """
        checkpoints = [path for path in list_checkpoints(self.checkpoints) if step_of(path) > step]
        redone = [path for path in (*self.grids(), *self.best()) if step_of(path) > step]
        if not checkpoints:  # the run was stopped after its last save, and makes them again
            for path in redone:
                remove(path)
            redone = []
        card = (self / CARD).read_text(encoding="utf-8", errors="replace") if (self / CARD).is_file() else ""
        remaining = authors_page(card)
        pages = (*REPORTS, COMPARISON, COMPARISON_PAGE, COMPARISON_PICTURES, *[CARD] * (card != remaining))
        outdated = [*checkpoints, *redone, *(self.path / name for name in pages if (self / name).exists())]
        taken = [int(path.name) for path in (self / OUTDATED).glob("*") if path.name.isdigit()]
        folder = self / OUTDATED / str(max(taken, default=0) + 1)
        for path in outdated:
            place = folder / path.relative_to(self.path)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)
        if remaining:
            with complete_or_absent(self / CARD) as temporary:
                temporary.write_text(remaining, encoding="utf-8")
        return folder, [str(path.relative_to(self.path)) for path in outdated]

    def owns_page(self) -> bool:
        """Return whether `index.html` is absent or was written by hfgen."""
        page = self / PAGE
        return not page.exists() or PAGE_MARK in page.read_text(encoding="utf-8", errors="replace")

    def remove_page(self) -> None:
        """Remove `index.html` of an older model; it is written anew when the run finishes."""
        if self.owns_page():
            (self / PAGE).unlink(missing_ok=True)

    def _repr_html_(self) -> str:
        return f"<p>Run in {self.path}</p>" + "".join(
            f'<p><img src="data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"></p>'
            for picture in self._newest_pictures()
        )

    def _newest_pictures(self) -> Iterator[Path]:
        yield from self.grids()[-1:]
        if (curves := self.figures / CURVES).is_file():
            yield curves


def run_fields(source: Path) -> dict[str, Any]:
    """Return the configuration that a run keeps of itself, found from its folder or one of its checkpoints.

    For the name of a recipe, where there is no such folder, it is that of the recipe.

    Raises:
        UserError: if it is damaged.
    """
    if not source.exists() and str(source) in read_recipes():
        return read_fields(RECIPES / f"{source}.yaml")
    return RunFolder(source).fields() or (
        RunFolder(source.resolve().parents[1]).fields() if is_checkpoint(source) else {}
    )


def suggest_runs(folder: Path, file: str = CONFIG_FILE) -> str:
    """Return the end of a message that names runs below a folder, the newest first, or nothing.

    Args:
        folder: The folder, searched two levels deep.
        file: A file that the runs have.
    """
    found = [path for pattern in (f"*/{file}", f"*/*/{file}") for path in folder.glob(pattern) if path.is_file()]
    names = [str(path.parent) for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)]
    others = f" and {len(names) - SUGGESTED_RUNS} others" if len(names) > SUGGESTED_RUNS else ""
    return f"; the runs in it, newest first, are {', '.join(names[:SUGGESTED_RUNS])}{others}" if names else ""


def is_trial(run: Path) -> bool:
    """Tell a trial of `hfgen tune` from other runs."""
    return run.resolve().parent.name == TRIALS and (run.resolve().parents[1] / STUDY).is_file()


def is_checkpoint(source: Path) -> bool:
    """Tell a checkpoint's folder from a run's."""
    return source.resolve().parent.name == CHECKPOINTS
