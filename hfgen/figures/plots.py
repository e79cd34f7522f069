"""Plots of evaluations and analyses, and the style of all plots."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import PIL.Image
import torch
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor

from hfgen.figures.grids import image_grid, plain_label, signed

STYLE = {
    "figure.dpi": 100, "savefig.dpi": "figure", "figure.constrained_layout.use": True, "figure.titlesize": 11,
    "font.family": "DejaVu Sans", "font.size": 10, "axes.titlesize": 10, "axes.labelsize": 9, "legend.fontsize": 9,
    "xtick.labelsize": 9, "ytick.labelsize": 9, "axes.titlelocation": "left", "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.alpha": 0.3,
    "legend.frameon": False, "axes.titley": 1.0,
}  # fmt: skip
in_style = matplotlib.rc_context(STYLE)
GENERATED, REAL, REAL_HALVES = "tab:orange", "tab:blue", "lightsteelblue"


def mathless_label(name: str, length: int = 60) -> str:
    """Return a label for matplotlib, which interprets `$…$` as a formula and omits labels that start with `_`."""
    line = plain_label(name, length).replace("$", r"\$")
    return f" {line}" if line.startswith("_") else line


def plain_ticks(axis: Axis) -> None:
    """Label a logarithmic axis with 0.2 instead of 2 × 10⁻¹."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


@in_style
def confusion_picture(
    images: Tensor, labels: Tensor, logits: Tensor, label_names: list[str], num_mistakes: int
) -> PIL.Image.Image:
    """Plot the confusion matrix of a classifier and its most confident mistakes.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        logits: float (N, classes).
        label_names: One name per class.
        num_mistakes: Maximum number of mistakes to show.
    """
    predicted = logits.argmax(1)
    counts = torch.zeros(len(label_names), len(label_names), dtype=torch.long)
    counts.index_put_((labels, predicted), torch.ones_like(labels), accumulate=True)
    wrong = (predicted != labels).nonzero()[:, 0]
    confidence = logits[wrong].softmax(1).max(1).values
    worst = wrong[confidence.argsort(descending=True)][:num_mistakes]
    figure = Figure(figsize=(12, 6))
    matrix, mistakes = figure.subplots(1, 2)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    matrix.imshow(shares, cmap="Blues")
    matrix.grid(visible=False)
    for row, column in counts.nonzero().tolist():
        color = "white" if shares[row, column] > 0.5 else "black"
        matrix.text(column, row, int(counts[row, column]), ha="center", va="center", color=color, fontsize=7)
    names = [mathless_label(name) for name in label_names]
    matrix.set_xticks(range(len(names)), names, rotation=90)
    matrix.set_yticks(range(len(names)), names)
    matrix.set(xlabel="predicted class", ylabel="true class")
    matrix.set_title(f"{(predicted == labels).float().mean():.2%} of {len(labels):,} test images correct")
    mistakes.axis("off")
    mistakes.set_title(f"the {len(worst)} most confident of {len(wrong):,} mistakes: true → predicted class")
    if len(worst):
        side = math.ceil(math.sqrt(len(worst)))
        grid = image_grid(images[worst], side)
        mistakes.imshow(grid)
        for place, index in enumerate(worst.tolist()):
            text = " → ".join(mathless_label(label_names[number], 9) for number in (labels[index], predicted[index]))
            x, y = (place % side) * grid.width / side, (place // side) * grid.height / math.ceil(len(worst) / side)
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8}
            mistakes.text(x + 4, y + 4, text, va="top", fontsize=min(9, 48 / side), bbox=box)
    return to_picture(figure)


def to_picture(figure: Figure) -> PIL.Image.Image:
    """Render a matplotlib figure. (`Figure.savefig` would draw it once more, only to lay it out.)"""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return PIL.Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


@in_style
def measures_picture(
    measures: dict[str, dict[str, dict[str, float | None]]],
    floors: dict[str, dict[str, dict[str, float]]],
    titles: dict[str, tuple[str, str]],
    floor_names: dict[str, str],
) -> PIL.Image.Image:
    """Plot each metric and its standard deviation beside real-data baselines.

    There is a row per feature space and a panel per metric, which is empty if the metric was not computed.
    """
    figure = Figure(figsize=(max(6, 1.75 * len(titles)), 0.6 + 2.3 * len(measures)))
    parts = figure.subfigures(len(measures), 1, squeeze=False)[:, 0]
    shown = {"generated": GENERATED}
    for part, (judge, found) in zip(parts, measures.items(), strict=True):
        part.suptitle(f"features of {mathless_label(judge)}", x=0.01, ha="left", fontsize=10)
        for axes, (name, (title, better)) in zip(
            part.subplots(1, len(titles), squeeze=False)[0], titles.items(), strict=True
        ):
            bars = {"generated": (found[name]["value"], found[name]["std"], GENERATED)} if name in found else {}
            for (floor, values), color in zip(floors[judge].items(), (REAL, REAL_HALVES), strict=False):
                if name in values:
                    bars[f"real: {floor_names[floor]}"] = values[name], None, color
            for place, (value, std, color) in enumerate(bars.values()):
                axes.bar(place, value, yerr=std, capsize=4, color=color)
                text = f"{value:.2g}" if abs(value) >= 0.01 else signed(value, 4)
                above = place, max(0, value + (std or 0))
                axes.annotate(text, above, (0, 2), textcoords="offset points", ha="center", fontsize=7)
            axes.margins(y=0.15)
            axes.set_xticks([])
            if not bars:
                axes.set_yticks([])
            axes.set_title(f"{title}\n({better if name in found else 'not computed'})", fontsize=9)
            axes.tick_params(labelsize=8)
            axes.grid(axis="x", visible=False)
            shown |= {name: color for name, (_, _, color) in bars.items()}
    patches = [Patch(color=color) for color in shown.values()]
    figure.legend(patches, shown, loc="outside lower center", ncols=3)
    return to_picture(figure)


@in_style
def curves_picture(
    rows: list[dict[str, Any]], floor: dict[str, float], labels: list[str], num_images: int
) -> PIL.Image.Image:
    """Plot metrics of sampler settings and their standard deviations over network evaluations.

    There is a line per scheduler and guidance.

    Args:
        rows: One row per setting, from `hfgen.evaluation.samplers`.
        floor: The metrics of real images (real-data baseline).
        labels: Names of the settings, "scheduler, N steps, …".
        num_images: Images per setting.
    """
    panels = {"frechet_distance": "Fréchet distance", "precision": "precision", "recall": "recall"}
    if all("accuracy" in row for row in rows):
        panels["accuracy"] = "class accuracy"
    lines: dict[str, list[dict[str, Any]]] = {}
    for row, label in zip(rows, labels, strict=True):
        lines.setdefault(re.sub(r", \d+ steps", "", label), []).append(row)
    figure = Figure(figsize=(3.4 * len(panels), 4))
    for axes, (name, title) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for label, group in lines.items():
            group = sorted(group, key=lambda row: row["network_evaluations"])
            costs = [row["network_evaluations"] for row in group]
            if name == "accuracy":
                values = [row[name] for row in group]
                stds = [math.sqrt(value * (1 - value) / num_images) for value in values]
            else:
                values, stds = [row[name]["value"] for row in group], [row[name]["std"] or 0 for row in group]
            axes.errorbar(costs, values, stds, marker="o", markersize=4, capsize=3, label=mathless_label(label))
        if name in floor:
            axes.axhline(floor[name], color="gray", linestyle="--", label="real images")
        axes.set(xscale="log", xlabel="network evaluations per image", title=title)
        plain_ticks(axes.xaxis)
        if name == "frechet_distance":
            axes.set_yscale("log")
            plain_ticks(axes.yaxis)
        else:
            axes.set_ylim(0, 1.02)
    figure.suptitle("Bars are ± one standard deviation", x=0.01, ha="left")
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3)
    return to_picture(figure)


@in_style
def class_shares_picture(classes: dict[str, dict[str, Any]], counts: Mapping[str, int]) -> PIL.Image.Image:
    """Plot the class frequencies of generated and real images, as predicted by each judge, with standard errors.

    Args:
        classes: Results by judge, from `hfgen.evaluation.evaluate`.
        counts: Numbers of `generated` and `real` images.
    """
    figure = Figure(figsize=(10, 0.5 + 2.4 * len(classes)))
    for axes, (judge, found) in zip(figure.subplots(len(classes), squeeze=False)[:, 0], classes.items(), strict=True):
        places = np.arange(len(found["label_names"]))
        for offset, kind, color in ((-0.2, "generated", GENERATED), (0.2, "real", REAL)):
            shares = 100 * np.array(found["shares"][kind])
            errors = np.sqrt(shares * (100 - shares) / counts[kind])
            axes.bar(places + offset, shares, 0.4, yerr=errors, label=kind, color=color, error_kw={"linewidth": 1})
        names = [mathless_label(name, 24) for name in found["label_names"]]
        axes.set_xticks(places, names, rotation=90 if sum(map(len, names)) > 100 else 0)
        axes.set(title=f"judge {mathless_label(judge)}", ylabel="% of the images", ylim=(0, None))
        axes.grid(axis="x", visible=False)
    figure.axes[0].legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.supxlabel("class that the judge predicts", fontsize=9)
    return to_picture(figure)


@in_style
def features_picture(generated: Tensor, real: Tensor, shown: int = 2000) -> PIL.Image.Image:
    """Plot generated and real features, (N, D) and (M, D), in the first two principal components of the real ones."""
    mean = real.mean(0)
    directions = torch.linalg.svd(real - mean, full_matrices=False).Vh[:2].T
    figure = Figure(figsize=(10, 5))
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, features, kind, color in ((left, real, "real", REAL), (right, generated, "generated", GENERATED)):
        points = (features[:shown] - mean) @ directions
        axes.scatter(*points.T.numpy(), s=6, alpha=0.5, color=color, linewidths=0)
        axes.set_title(f"{len(points):,} {kind} images")
    figure.supxlabel("first principal component of the real features", fontsize=9)
    figure.supylabel("second principal component", fontsize=9)
    return to_picture(figure)


class Plane(NamedTuple):
    """Points of latents in two dimensions, (N, 2), the names of both, and whether they have the same unit."""

    title: str
    names: tuple[str, str]
    points: np.ndarray


@in_style
def latents_picture(planes: Sequence[Plane], labels: Tensor | None, label_names: list[str] | None) -> PIL.Image.Image:
    """Plot two-dimensional projections of latents, coloured by labels (N,) if there are any."""
    figure = Figure(figsize=(6 * len(planes), 5.5))
    for axes, plane in zip(figure.subplots(1, len(planes), squeeze=False)[0], planes, strict=True):
        by_class = {}
        if labels is not None:
            by_class = {"c": labels.numpy(), "cmap": "tab10" if len(label_names) <= 10 else "nipy_spectral"}
        drawn = axes.scatter(*plane.points.T, s=9, alpha=0.7, linewidths=0, **by_class)
        axes.set(title=plane.title, xlabel=plane.names[0], ylabel=plane.names[1])
        axes.set_aspect("equal", adjustable="datalim")
    if labels is not None:
        handles, _ = drawn.legend_elements(num=None)
        present = labels.unique().tolist()
        names = [mathless_label(label_names[number], 24) for number in present]
        figure.legend(handles, names, loc="outside right upper")
    return to_picture(figure)
