"""The page of a study, its record, and its best configuration."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import yaml
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FixedTrial, TrialState

from hfgen.config.commands import AnalyzeConfig, EvaluateConfig
from hfgen.config.training import NOT_SHOWN, TrainingConfig, defaults
from hfgen.evaluation import report
from hfgen.evaluation.evaluate import evaluate
from hfgen.evaluation.sweep_report import Member
from hfgen.evaluation.vae import analyze
from hfgen.figures.grids import save_picture
from hfgen.figures.tuning import fields_picture, history_picture, importances_picture, rungs_picture
from hfgen.runs.folder import ANALYSIS, EVALUATION, RUN_FILE, STUDY, TRIALS
from hfgen.runs.record import public_command
from hfgen.tuning.search_space import SearchSpace
from hfgen.utils.errors import UserError, first_line
from hfgen.utils.files import complete_or_absent
from hfgen.utils.markdown import json_text
from hfgen.utils.privacy import public_text
from hfgen.utils.untrusted import read_json

PAGE, PICTURES, BEST = "study.md", "study", "best.yaml"
STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}
METRICS = {  # titles of the metrics that select
    "accuracy": "accuracy",
    "frechet_distance": "Fréchet distance",
    "negative_elbo": "−ELBO (nats)",
    "psnr": "PSNR (dB)",
}
BOUND_SAMPLES, BOUND_IMAGES = 50, 200  # of the importance-weighted bound, which does not select
SHOWN = 20  # trials in the table


def read_study(folder: Path) -> dict[str, Any]:
    """Read `study.json`.

    Raises:
        UserError: if it is not the record of a study.
    """
    record = read_json(folder / STUDY)
    if not all(isinstance(record.get(name), str) for name in ("folder", "study_name", "command")):
        raise UserError(f"{folder / STUDY} is not the record of a study")
    return record


def measure_on_test_images(run: Path, config: TrainingConfig, num_images: int) -> str | None:
    """Evaluate a run on test images, and analyse a VAE, unless this was done; return why it could not be, or None."""
    commands = " ".join(config.next_commands)
    try:
        if "hfgen analyze" in commands and not (run / ANALYSIS).is_file():
            bounds = {"num_importance_samples": BOUND_SAMPLES, "num_bound_images": BOUND_IMAGES}
            analyze(AnalyzeConfig(run_or_repo=str(run), **bounds))
        if "hfgen evaluate" in commands and not (run / EVALUATION).is_file():
            judge = [config.evaluation_judge] if config.evaluation_judge else []
            options = {} if config.family == "classifier" else {"num_images": num_images, "judge": judge}
            evaluate(EvaluateConfig(run_or_repo=str(run), **options))
    except UserError as error:
        print(f"hfgen: {run} was not measured completely on test images: {error}")
        return first_line(error)
    return None


def write_report(
    folder: Path, record: dict[str, Any], study: optuna.Study, space: SearchSpace, base: TrainingConfig
) -> dict[str, Any]:
    """Write the record, the page, the pictures and the best configuration of a study.

    Args:
        folder: The folder of the study.
        record: Its settings.
        study: The study.
        space: Its search space.
        base: The starting configuration.

    Returns:
        The record.
    """
    trials = [_describe(trial, folder) for trial in study.get_trials(deepcopy=False)]
    complete = [trial for trial in trials if trial["state"] == "complete"]
    others = [trial for trial in trials if trial["state"] != "complete"]
    ranked = sorted(complete, key=lambda trial: trial["value"], reverse=record["higher_is_better"])
    record = record | {
        "trials": trials,
        "best": ranked[0]["number"] if ranked else None,
        "start": next((trial["number"] for trial in trials if trial["is_start"]), None),
        "train_seconds": round(sum(trial["seconds"] for trial in trials), 1),
        "importances": _importances(study, complete),
    }
    (folder / PICTURES).mkdir(exist_ok=True)
    title = METRICS.get(record["metric"], record["metric"])
    pictures = {
        "history": history_picture(trials, title, record["higher_is_better"]),
        "rungs": rungs_picture(trials, title, record["trial_seconds"], record["num_rungs"], record["best"]),
        "fields": fields_picture(trials, title, space.logarithmic(), record["best"]),
    }
    if record["importances"]:
        pictures["importances"] = importances_picture(record["importances"])
    for name, picture in pictures.items():
        save_picture(picture, folder / PICTURES / f"{name}.png")
    if ranked:
        _write_best(folder / BEST, record, ranked[0], space, base)
    page = report.render_report(
        "study.md",
        name=folder.resolve().name,
        study=record | {"command": public_command(record["command"])},
        title=title,
        best=ranked[0] if ranked else None,
        start=next((trial for trial in trials if trial["is_start"]), None),
        counts={state: sum(trial["state"] == state for trial in trials) for state in STATES.values()},
        ranked=[*ranked, *sorted(others, key=lambda trial: trial["state"] == "failed")][:SHOWN],
        fields=list(space),
        tested=_tested(folder, record),
    )
    for name, text in {PAGE: page, STUDY: json_text(record, indent=1) + "\n"}.items():
        with complete_or_absent(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return record


def _describe(trial: optuna.trial.FrozenTrial, folder: Path) -> dict[str, Any]:
    attributes = trial.user_attrs
    run = f"{TRIALS}/{trial.number:04d}"
    return {
        "number": trial.number,
        "state": STATES[trial.state],
        "value": trial.value,
        "params": dict(trial.params),
        "seconds": attributes.get("seconds", 0.0),
        "rungs": {str(rung): value for rung, value in sorted(trial.intermediate_values.items())},
        "reason": public_text(attributes["reason"]) if "reason" in attributes else None,
        "is_start": attributes.get("is_start", False),
        "run": run if (folder / run / RUN_FILE).is_file() else None,
    }


def _importances(study: optuna.Study, complete: list[dict[str, Any]]) -> dict[str, float]:
    """Return the importance of each field, or nothing if there are too few trials."""
    if len({trial["value"] for trial in complete}) < 2:
        return {}
    try:
        with np.errstate(over="ignore"):
            found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    except (RuntimeError, ValueError):  # the trees of fANOVA see no variance, or values beyond float32
        return {}
    return {name: float(value) for name, value in found.items()}


def _write_best(
    file: Path, record: dict[str, Any], best: dict[str, Any], space: SearchSpace, base: TrainingConfig
) -> None:
    """Write the best configuration, which `--config` takes."""
    config = dataclasses.replace(base, **space.suggest(FixedTrial(best["params"])))
    usual, fields = defaults(type(config)), config.to_dict()
    left_out = NOT_SHOWN | {name for name in fields if name.startswith("evaluation_")}
    chosen = {
        name: value
        for name, value in fields.items()
        if name not in left_out and (name in space.parameters or value != usual[name])
    }
    done = sum(trial["state"] != "running" for trial in record["trials"])
    text = (
        f"# Trial {best['number']}, the best of {done} of a study: {record['metric']} {best['value']:.5g}\n"
        f"# on held-out images after {record['trial_seconds']:g} s of training.\n"
        f"# Command: hfgen train {record['family']} --config {BEST} --output_dir NAME\n"
    )
    with complete_or_absent(file) as temporary:
        temporary.write_text(text + yaml.safe_dump(chosen, sort_keys=False), encoding="utf-8")


def _tested(folder: Path, record: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return what was measured on test images, by trial and title."""
    tested = {}
    for trial in dict.fromkeys((record["best"], record["start"])):
        run = folder / f"{TRIALS}/{trial:04d}" if trial is not None else None
        if run and any((run / name).is_file() for name in (EVALUATION, ANALYSIS)):
            cells = Member(run, {}).measured()
            tested[str(trial)] = cells
    return tested
