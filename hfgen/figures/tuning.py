"""Plots of a study of hyper-parameters."""

import math
from typing import Any

import PIL.Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hfgen.figures.plots import in_style, mathless_label, plain_ticks, to_picture

COLORS = {"complete": "tab:blue", "pruned": "tab:gray"}
BEST = "tab:orange"
COLUMNS = 3


def _fit(axes: Axes, values: list[float]) -> None:
    """Use a logarithmic scale for positive values of several magnitudes."""
    if values and min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")
        plain_ticks(axes.yaxis)


@in_style
def history_picture(trials: list[dict[str, Any]], title: str, higher_is_better: bool) -> PIL.Image.Image:
    """Plot the value of each trial, and the best value so far.

    Args:
        trials: The trials of `study.json`.
        title: The title of the metric.
        higher_is_better: Whether more of it is better.
    """
    figure = Figure(figsize=(8, 4))
    axes = figure.subplots()
    for state, color in COLORS.items():
        shown = [trial for trial in trials if trial["state"] == state and trial["value"] is not None]
        axes.plot([t["number"] for t in shown], [t["value"] for t in shown], "o", color=color, label=state)
    for trial in trials:
        if trial["state"] == "failed":
            axes.axvline(trial["number"], color="tab:red", linestyle=":", linewidth=1)
    complete = [trial for trial in trials if trial["state"] == "complete"]
    choose, best, steps = (max if higher_is_better else min), None, []
    for trial in complete:
        best = trial["value"] if best is None else choose(best, trial["value"])
        steps.append((trial["number"], best))
    if steps:
        axes.step(*zip(*steps, strict=True), where="post", color=BEST, label="best so far")
    if any(trial["state"] == "failed" for trial in trials):
        axes.plot([], [], color="tab:red", linestyle=":", label="failed")
    _fit(axes, [trial["value"] for trial in trials if trial["value"] is not None])
    axes.set(xlabel="trial", title=f"{title} on held-out images")
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside lower center", ncols=4)
    return to_picture(figure)


@in_style
def rungs_picture(
    trials: list[dict[str, Any]], title: str, seconds: float, num_rungs: int, best: int | None
) -> PIL.Image.Image:
    """Plot the values of each trial over the time of its training.

    Args:
        trials: The trials of `study.json`.
        title: The title of the metric.
        seconds: The budget of a trial.
        num_rungs: Evaluations of a trial.
        best: The number of the best trial.
    """
    figure = Figure(figsize=(8, 4))
    axes = figure.subplots()
    for trial in sorted(trials, key=lambda trial: trial["number"] == best):
        points = {int(rung) * seconds / num_rungs: value for rung, value in trial["rungs"].items()}
        if trial["state"] == "complete":
            points[seconds] = trial["value"]
        if points:
            color = BEST if trial["number"] == best else COLORS.get(trial["state"], "tab:red")
            axes.plot(*zip(*points.items(), strict=True), "o-", markersize=3, linewidth=1, color=color)
    _fit(axes, [value for trial in trials for value in trial["rungs"].values()])
    axes.set(xlabel="seconds of training", title=f"{title} on held-out images")
    _add_legend(figure, "o-")
    return to_picture(figure)


def _add_legend(figure: Figure, marker: str) -> None:
    """Name the colors of best, complete and pruned trials."""
    names = {"best": BEST, "complete": COLORS["complete"], "pruned": COLORS["pruned"]}
    lines = [Line2D([], [], color=color, marker=marker[0], linestyle=marker[1:] or "none") for color in names.values()]
    figure.legend(lines, names, loc="outside lower center", ncols=3)


@in_style
def fields_picture(
    trials: list[dict[str, Any]], title: str, logarithmic: dict[str, bool], best: int | None
) -> PIL.Image.Image:
    """Plot the value of each trial against each searched field.

    Args:
        trials: The trials of `study.json`.
        title: The title of the metric.
        logarithmic: Whether the axis of a field is, by field.
        best: The number of the best trial.
    """
    columns = min(COLUMNS, len(logarithmic))
    rows = math.ceil(len(logarithmic) / columns)
    figure = Figure(figsize=(3.6 * columns + 0.4, 3.2 * rows))
    places = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    shown = [trial for trial in trials if trial["value"] is not None]
    for axes, (name, is_logarithmic) in zip(places, logarithmic.items(), strict=False):
        for trial in shown:
            color = BEST if trial["number"] == best else COLORS.get(trial["state"], "tab:red")
            value = trial["params"][name]
            axes.plot(mathless_label(value, 24) if isinstance(value, str) else value, trial["value"], "o", color=color)
        if is_logarithmic:
            axes.set_xscale("log")
            plain_ticks(axes.xaxis)
        axes.margins(x=0.15)
        axes.set_xlabel(mathless_label(name))
    for axes in places[len(logarithmic) :]:
        axes.set_visible(False)
    _fit(figure.axes[0], [trial["value"] for trial in shown])
    figure.supylabel(title, fontsize=9)
    figure.suptitle(f"{title} of the trials on held-out images, by field", x=0.01, ha="left")
    _add_legend(figure, "o")
    return to_picture(figure)


@in_style
def importances_picture(importances: dict[str, float]) -> PIL.Image.Image:
    """Plot the importance of each field, the most important one at the top."""
    figure = Figure(figsize=(8, 0.8 + 0.35 * len(importances)))
    axes = figure.subplots()
    names = [mathless_label(name) for name in importances]
    axes.barh(names[::-1], [100 * value for value in importances.values()][::-1], color=COLORS["complete"])
    axes.set(xlabel="% of the variance between trials", xlim=(0, 100))
    axes.grid(axis="y", visible=False)
    return to_picture(figure)
