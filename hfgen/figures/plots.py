"""Plots of training curves and evaluations."""

import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.ImageOps
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor

from hfgen.data.decoding import open_picture
from hfgen.figures.grids import image_grid, plain_label
from hfgen.runs.record import read_rows
from hfgen.utils.files import complete_or_absent

FLOOR_COLORS = ("tab:blue", "lightsteelblue")


def mathless_label(name: str) -> str:
    """Return a label for matplotlib, which interprets `$…$` as a formula and omits labels that start with `_`."""
    line = plain_label(name).replace("$", r"\$")
    return f" {line}" if line.startswith("_") else line


def save_training_curves(metrics_file: Path, path: Path, steps_per_epoch: int) -> None:
    """Plot each loss and gradient norm of a `metrics.jsonl` over steps and epochs, with its running mean."""
    rows = read_rows(metrics_file)
    steps = np.array([row["step"] for row in rows])
    names = [name for name in rows[0] if name != "step"]
    figure = Figure(figsize=(8, 2.4 * len(names)), layout="constrained")
    for name, axes in zip(names, figure.subplots(len(names), sharex=True, squeeze=False)[:, 0], strict=True):
        values = np.array([row[name] for row in rows])
        axes.plot(steps, values, color="tab:blue", alpha=0.25, linewidth=0.8)
        axes.plot(*_running_mean(steps, values), color="tab:blue")
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
        if name.startswith("loss/") and values.min() > 0:
            axes.set_yscale("log")
    axes.set_xlabel("optimizer steps")
    epochs = (lambda step: step / steps_per_epoch, lambda epoch: epoch * steps_per_epoch)
    figure.axes[0].secondary_xaxis("top", functions=epochs).set_xlabel("epochs")
    with complete_or_absent(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)


def save_class_shares(classes_file: Path, path: Path) -> None:
    """Plot the class frequencies of generated images as one stacked bar per checkpoint of a `classes.jsonl`.

    The last bar shows real images, if the run recorded them (older versions did not).
    """
    rows = read_rows(classes_file)
    bars = [(f"{row['step']:,}", row["shares"]) for row in rows]
    if real := rows[-1].get("real_shares"):
        bars.append(("real", real))
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    bottom = np.zeros(len(bars))
    for number, name in enumerate(rows[0]["shares"]):
        shares = np.array([of_class[name] for _, of_class in bars])
        axes.bar(
            range(len(bars)),
            shares,
            bottom=bottom,
            label=mathless_label(name),
            color=f"C{number % 10}",
            edgecolor="white",
        )
        bottom += shares
    shown = sorted({round(place) for place in np.linspace(0, len(bars) - 1, 8)})
    axes.set_xticks(shown, [bars[place][0] for place in shown])
    axes.set(xlabel="optimizer steps", ylabel="fraction of the images", xlim=(-1, len(bars)), ylim=(0, 1))
    figure.legend(loc="outside right upper", reverse=True)
    with complete_or_absent(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)


def _running_mean(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the running mean over a window of 1 % of the values, and the steps at which the windows end."""
    width = max(1, len(values) // 100)
    return steps[width - 1 :], np.convolve(values, np.ones(width) / width, mode="valid")


def members_curves_picture(members: dict[str, dict[str, tuple[list[float], list[float]]]]) -> PIL.Image.Image:
    """Plot the running means of several runs' metrics over epochs, with a panel per metric and a line per run.

    Args:
        members: Epochs and values, by run and metric.
    """
    names = list(dict.fromkeys(name for curves in members.values() for name in curves))
    figure = Figure(figsize=(8, 2.8 * len(names)), layout="constrained")
    for name, axes in zip(names, figure.subplots(len(names), sharex=True, squeeze=False)[:, 0], strict=True):
        for label, curves in members.items():
            if name in curves:
                axes.plot(*_running_mean(*map(np.array, curves[name])), label=mathless_label(label))
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
    axes.set_xlabel("epochs")
    figure.axes[0].legend()
    return to_picture(figure)


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
    figure = Figure(figsize=(12, 6), layout="constrained")
    matrix, mistakes = figure.subplots(1, 2)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    matrix.imshow(shares, cmap="Blues")
    for row, column in counts.nonzero().tolist():
        color = "white" if shares[row, column] > 0.5 else "black"
        matrix.text(column, row, int(counts[row, column]), ha="center", va="center", color=color, fontsize=7)
    names = [mathless_label(name) for name in label_names]
    matrix.set_xticks(range(len(names)), names, rotation=90)
    matrix.set_yticks(range(len(names)), names)
    matrix.set(xlabel="predicted class", ylabel="true class")
    matrix.set_title(f"{(predicted == labels).float().mean():.2%} of {len(labels)} test images correct")
    mistakes.axis("off")
    mistakes.set_title(f"the {len(worst)} most confident of {len(wrong)} mistakes")
    if len(worst):
        mistakes.imshow(image_grid(images[worst]))
    return to_picture(figure)


def to_picture(figure: Figure) -> PIL.Image.Image:
    """Render a matplotlib figure."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=80)
    return open_picture(content).convert("RGB")


def measures_picture(
    measures: dict[str, dict[str, dict[str, float | None]]],
    floors: dict[str, dict[str, dict[str, float]]],
    titles: dict[str, tuple[str, str]],
    floor_names: dict[str, str],
) -> PIL.Image.Image:
    """Plot each metric and its standard deviation beside real-data baselines: a row per judge, a panel per metric."""
    figure = Figure(figsize=(2.2 * len(titles), 2.4 * len(measures)), layout="constrained")
    panels = figure.subplots(len(measures), len(titles), squeeze=False)
    for row, (judge, found) in zip(panels, measures.items(), strict=True):
        for axes, (name, (title, better)) in zip(row, titles.items(), strict=True):
            axes.bar(["generated"], found[name]["value"], yerr=found[name]["std"], capsize=4, color="tab:orange")
            for (floor, values), color in zip(floors[judge].items(), FLOOR_COLORS, strict=False):
                axes.bar([floor_names[floor]], values[name], color=color)
            axes.set_xticks([])
            axes.set_title(f"{title} ({better})", fontsize=8)
            axes.tick_params(labelsize=7)
            axes.grid(axis="y", alpha=0.3)
        row[0].set_ylabel(mathless_label(judge))
    shown = ["generated", *(f"real: {floor_names[floor]}" for floor in next(iter(floors.values())))]
    patches = [Patch(color=color) for color in ("tab:orange", *FLOOR_COLORS)]
    figure.legend(patches[: len(shown)], shown, loc="outside lower center", ncols=3, fontsize=8)
    return to_picture(figure)


def curves_picture(rows: list[dict[str, Any]], floor: dict[str, float], labels: list[str]) -> PIL.Image.Image:
    """Plot metrics of sampler settings over network evaluations, with a line per scheduler and guidance.

    Args:
        rows: One row per setting, from `hfgen.evaluation.samplers`.
        floor: The metrics of real images (real-data baseline).
        labels: Names of the settings, "scheduler, N steps, …".
    """
    panels = {"frechet_distance": "Fréchet distance", "precision": "precision", "recall": "recall"}
    if all("accuracy" in row for row in rows):
        panels["accuracy"] = "class accuracy"
    lines: dict[str, list[dict[str, Any]]] = {}
    for row, label in zip(rows, labels, strict=True):
        lines.setdefault(re.sub(r", \d+ steps", "", label), []).append(row)
    figure = Figure(figsize=(4 * len(panels), 4), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for label, group in lines.items():
            group = sorted(group, key=lambda row: row["network_evaluations"])
            costs = [row["network_evaluations"] for row in group]
            values = [row[name] if name == "accuracy" else row[name]["value"] for row in group]
            axes.plot(costs, values, marker="o", label=mathless_label(label))
        if name in floor:
            axes.axhline(floor[name], color="grey", linestyle="--", label="real images")
        axes.set(xscale="log", xlabel="network evaluations per image", title=title)
        if name == "frechet_distance":
            axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis) if name == "frechet_distance" else (axes.xaxis,):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8)
    return to_picture(figure)


def class_shares_picture(classes: dict[str, dict[str, Any]]) -> PIL.Image.Image:
    """Plot the class frequencies of generated and real images, as predicted by each judge."""
    figure = Figure(figsize=(10, 2.6 * len(classes)), layout="constrained")
    for axes, (judge, found) in zip(figure.subplots(len(classes), squeeze=False)[:, 0], classes.items(), strict=True):
        places = np.arange(len(found["label_names"]))
        for offset, (kind, color) in zip(
            (-0.2, 0.2), (("generated", "tab:orange"), ("real", "tab:blue")), strict=True
        ):
            axes.bar(places + offset, found["shares"][kind], width=0.4, label=kind, color=color)
        axes.set_xticks(places, [mathless_label(name) for name in found["label_names"]])
        axes.set(title=mathless_label(judge), ylabel="fraction")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
        axes.grid(axis="y", alpha=0.3)
    return to_picture(figure)


def features_picture(generated: Tensor, real: Tensor, shown: int = 2000) -> PIL.Image.Image:
    """Plot generated and real features, (N, D) and (M, D), in the first two principal components of the real ones."""
    mean = real.mean(0)
    directions = torch.linalg.svd(real - mean, full_matrices=False).Vh[:2].T
    figure = Figure(figsize=(10, 5), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, features, kind, color in (
        (left, real, "real", "tab:blue"),
        (right, generated, "generated", "tab:orange"),
    ):
        points = (features[:shown] - mean) @ directions
        axes.scatter(*points.T.numpy(), s=6, alpha=0.5, color=color, linewidths=0)
        axes.set_title(f"{kind}: {len(points)} images")
        axes.set(xlabel="first principal component of the real features", ylabel="second")
    return to_picture(figure)


def latents_picture(
    planes: dict[str, np.ndarray], labels: Tensor | None, label_names: list[str] | None
) -> PIL.Image.Image:
    """Plot two-dimensional projections of latents, (N, 2) each by name, coloured by labels (N,) if there are any."""
    figure = Figure(figsize=(6 * len(planes), 5.5), layout="constrained")
    for axes, (name, points) in zip(figure.subplots(1, len(planes), squeeze=False)[0], planes.items(), strict=True):
        by_class = {}
        if labels is not None:
            by_class = {"c": labels.numpy(), "cmap": "tab10" if len(label_names) <= 10 else "nipy_spectral"}
        drawn = axes.scatter(*points.T, s=7, alpha=0.7, linewidths=0, **by_class)
        axes.set_title(name)
        axes.set_aspect("equal", adjustable="datalim")
    if labels is not None:
        handles, _ = drawn.legend_elements(num=None)
        present = labels.unique().tolist()
        names = [mathless_label(label_names[number]) for number in present]
        figure.legend(handles, names, loc="outside right upper", fontsize=8)
    return to_picture(figure)


def neighbors_picture(images: Tensor, neighbors: Tensor) -> PIL.Image.Image:
    """Show generated images, uint8 (N, C, H, W), eight per row, each above its nearest training image, likewise."""
    columns = 8
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(columns, 2.2 * rows), layout="constrained")
    parts = figure.subfigures(rows, 1, squeeze=False)[:, 0]
    for part, start in zip(parts, range(0, len(images), columns), strict=True):
        panels = part.subplots(2, 1)  # one of each row, since axes of each image would take seconds
        for axes, (kind, shown) in zip(panels, (("generated", images), ("training", neighbors)), strict=True):
            axes.imshow(image_grid(shown[start : start + columns], columns))
            axes.set(xticks=[], yticks=[], ylabel=kind)
            axes.spines[:].set_visible(False)
    return to_picture(figure)
