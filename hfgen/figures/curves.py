"""Curves of trainings: losses and other metrics, and classes of the samples, over steps."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hfgen.figures.grids import save_picture
from hfgen.figures.plots import GENERATED, REAL, in_style, mathless_label, plain_ticks, to_picture
from hfgen.runs.record import metrics_of, read_rows

NETWORKS = {"unet": "U-Net", "vae": "VAE"}
METRICS = {
    "loss": "loss", "grad_norm": "gradient norm", "learning_rate": "learning rate",
    "real": "mean output of the discriminator", "fake": "mean output of the discriminator",
    "r1": "gradient penalties", "r2": "gradient penalties", "gradient_penalty": "gradient penalties",
    "reconstruction": "reconstruction error, nats", "kl": "KL divergence, nats", "l1": "mean absolute error",
    "mse": "mean squared error", "psnr": "negative PSNR, dB", "ssim": "1 − SSIM", "adversarial": "adversarial loss",
    "cycle": "cycle consistency loss", "identity": "identity loss",
}  # fmt: skip
LINES = {
    "real": "real images", "fake": "generated images", "r1": "R1", "r2": "R2", "gradient_penalty": "WGAN-GP",
}  # fmt: skip
SAMPLED = ("frechet_distance", "precision", "recall")  # metrics of samples in evaluations while training
EVALUATIONS = {
    "frechet_distance": "Fréchet distance", "precision": "precision", "recall": "recall",
    "negative_elbo": "−ELBO, nats", "psnr": "PSNR, dB", "accuracy": "accuracy",
}  # fmt: skip
EARLY = 20  # axes fit the values after the first 20th of a training


def panel_and_line(metric: str) -> tuple[str, str]:
    """Return the title of the panel of a metric in `metrics.jsonl`, and the name of its line there, or nothing."""
    first, _, last = metric.partition("/")
    if last == "flow" and first != "learning_rate":  # of another size than the VAE's
        return f"{METRICS[first]} of the flow", ""
    if first in METRICS:
        return METRICS[first], NETWORKS.get(last, last)
    return METRICS.get(last, last), LINES.get(last, "")


def _name(axes: Axes, metric: str) -> None:
    """Name a panel of one metric in words and by its key."""
    panel, line = panel_and_line(metric)
    axes.set_title(f"{panel} of the {line}" if line and metric.split("/")[0] in METRICS else panel)
    axes.set_title(metric, loc="right", color="gray", fontsize=9)


def _training_figure(panels: int) -> tuple[Figure, list[Axes]]:
    """Return a figure with a wide panel above rows of two, and its panels.

    The margins fit labels of ticks of any length: measuring these takes longer than to draw all.
    """
    rows = 1 + panels // 2
    height = 0.9 + 2.1 * rows  # inches
    figure = Figure(figsize=(10, height), layout="none")
    figure.subplots_adjust(
        left=0.075, right=0.99, bottom=0.65 / height, top=1 - 0.8 / height, hspace=0.45, wspace=0.17
    )
    grid = figure.add_gridspec(rows, 2)
    places = [grid[0, :], *(grid[1 + number // 2, number % 2] for number in range(panels - 1))]
    return figure, [figure.add_subplot(place) for place in places]


@in_style
def save_training_curves(metrics_file: Path, path: Path, steps_per_epoch: int) -> None:
    """Plot a `metrics.jsonl`, see `training_curves`."""
    figure = training_curves(read_rows(metrics_file), steps_per_epoch)
    save_picture(to_picture(figure), path)


@in_style
def training_curves(rows: list[dict[str, float]], steps_per_epoch: int) -> Figure:
    """Plot the metrics of a training over its steps, related ones together, with running means of all noisy ones.

    Args:
        rows: Of a `metrics.jsonl`.
        steps_per_epoch: Optimizer steps per epoch.
    """
    last = rows[-1]["step"]
    panels: dict[str, list[str]] = {}
    for metric in metrics_of(rows[0]):
        panels.setdefault(panel_and_line(metric)[0], []).append(metric)
    window, outside = _window(len(rows)), False
    figure, all_axes = _training_figure(len(panels))
    for (title, metrics), axes in zip(panels.items(), all_axes, strict=True):
        curves: list[tuple[np.ndarray, np.ndarray]] = []
        for color, metric in enumerate(metrics):
            steps, values = np.array([(row["step"], row[metric]) for row in rows if metric in row]).T
            line = panel_and_line(metric)[1]
            label = f"{line} ({metric})" if line in LINES.values() else metric
            if title == METRICS["learning_rate"]:  # without noise, so that a mean would only blur it
                axes.plot(steps, values, label=label)
            else:
                ends, means = _running_mean(steps, values)
                axes.plot(steps, values, color=f"C{color}", alpha=0.25, linewidth=0.8)
                axes.plot(ends, means, color=f"C{color}", label=label)
                curves.append((values, means))
        if len(metrics) == 1:
            _name(axes, metrics[0])
        else:
            axes.set_title(f"{title}\n")  # the legend is on the second line
            where = {"loc": "lower left", "bbox_to_anchor": (-0.01, 0.97), "ncols": 3}
            axes.legend(**where, fontsize=7.5, handlelength=1, columnspacing=1)
        if curves:
            outside |= _fit(axes, curves, logarithmic=title != METRICS["real"])
        else:
            axes.set_ylim(bottom=0)
    note = f"; the first {100 // EARLY} % may lie outside the axes" if outside else ""
    figure.supxlabel(f"optimizer steps (one epoch is {steps_per_epoch:,}){note}", fontsize=9)
    figure.suptitle(f"Training: {last:,} steps, {last / steps_per_epoch:,.2f} epochs", x=0.01, ha="left")
    if window > 1:
        lines = [Line2D([], [], color="C0", alpha=0.25, linewidth=0.8), Line2D([], [], color="C0")]
        figure.legend(lines, ["each step", f"mean of {window:,} steps"], loc="upper right", ncols=2)
    return figure


@in_style
def save_validation_curves(history: list[dict[str, float]], protocol: dict[str, Any], path: Path) -> None:
    """Plot evaluations while training over steps: losses, and metrics of samples beside those of real images.

    Args:
        history: Step and metrics of each evaluation.
        protocol: Of a `validation.json`.
        path: The picture.
    """
    metric, floors = protocol["metric"], protocol.get("floors", {})
    names = [name for name in history[0] if name.startswith("loss/")]
    names += [name for name in EVALUATIONS if name in history[0]]
    best = (max if protocol["higher_is_better"] else min)(history, key=lambda row: row[metric])
    steps = [row["step"] for row in history]
    figure, all_axes = _training_figure(len(names))
    for name, axes in zip(names, all_axes, strict=True):
        values = [row[name] for row in history]
        if name in floors:
            axes.axhline(floors[name], color=REAL, linestyle="--", label="real images")
            values = [*values, floors[name]]
        if f"train_{name}" in history[0]:
            axes.plot(steps, [row[f"train_{name}"] for row in history], ".-", color="gray", label="training images")
        label = "samples" if name in SAMPLED else "held-out images"
        axes.plot(steps, [row[name] for row in history], ".-", color=GENERATED, label=label)
        axes.plot(best["step"], best[name], "*", color="black", fillstyle="none", markersize=12, label="best model")
        if 0 < 10 * min(values) < max(values):
            axes.set_yscale("log")
            plain_ticks(axes.yaxis)
        if name in EVALUATIONS:
            axes.set_title(EVALUATIONS[name] + " (decides which model is the best)" * (name == metric))
        else:
            _name(axes, name)
        axes.legend()
    figure.supxlabel("optimizer steps", fontsize=9)
    samples = f"; samples in the features of the judge {mathless_label(protocol['judge'])}" if floors else ""
    count = min(protocol["num_images"], protocol["held_out_images"])
    title = f"Evaluations while training, with {count:,} images of the split {protocol['split']}"
    figure.suptitle(title + samples, x=0.01, ha="left")
    save_picture(to_picture(figure), path)


def _fit(axes: Axes, curves: list[tuple[np.ndarray, np.ndarray]], *, logarithmic: bool = True) -> bool:
    """Fit the y axis to values and their running means, without those of the beginning and without rare outliers.

    The axis is logarithmic, if that is allowed, where they differ by more than a factor of ten.

    Returns:
        Whether running means lie outside.
    """
    bounds: list[float] = []
    for values, means in curves:
        values, later = _later(values), _later(means)
        bounds += [*np.quantile(values, (0.005, 0.995)), later.min(), later.max()] if len(later) else []
    low, high = min(bounds, default=0), max(bounds, default=0)
    if logarithmic and 0 < 10 * low < high:
        axes.set(yscale="log", ylim=(low / 1.1, high * 1.1))
        plain_ticks(axes.yaxis)
    elif low < high:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    return any((means < low).any() or (means > high).any() for _, means in curves)


def _later(values: np.ndarray) -> np.ndarray:
    values = values[len(values) // EARLY :]
    return values[np.isfinite(values)]


def _window(count: int) -> int:
    return max(1, count // 100, min(10, count // 10))


def _running_mean(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps at which windows of values end, and their means."""
    width = _window(len(values))
    return steps[width - 1 :], np.convolve(values, np.ones(width) / width, mode="valid")


@in_style
def members_curves_picture(members: dict[str, dict[str, tuple[list[float], list[float]]]]) -> PIL.Image.Image:
    """Plot the running means of several runs' metrics over epochs, with a panel per metric and a line per run.

    Args:
        members: Epochs and values, by run and metric.
    """
    metrics = list(dict.fromkeys(metric for curves in members.values() for metric in curves))
    figure, all_axes = _training_figure(len(metrics))
    figure.set_layout_engine("constrained")  # which makes room for the legend
    for metric, axes in zip(metrics, all_axes, strict=True):
        shown = []
        for label, curves in members.items():
            if metric in curves:
                epochs, means = _running_mean(*map(np.array, curves[metric]))
                axes.plot(epochs, means, label=mathless_label(label))
                shown.append((means, means))
        _fit(axes, shown, logarithmic=metric.split("/")[-1] not in ("real", "fake"))
        _name(axes, metric)
    title = f"Training: running means over epochs, of which the first {100 // EARLY} % may lie outside the axes"
    figure.suptitle(title, x=0.01, ha="left")
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return to_picture(figure)


@in_style
def save_class_shares(classes_file: Path, path: Path) -> None:
    """Plot the class frequencies of generated images at each checkpoint of a `classes.jsonl` as a heat map.

    The last column shows real images, if the run recorded them (older versions did not).
    """
    rows = read_rows(classes_file)
    real = rows[-1].get("real_shares")
    columns = [row["shares"] for row in rows] + ([real] if real else [])
    names = list(rows[0]["shares"])
    shares = np.array([[100 * of_class[name] for of_class in columns] for name in names])
    figure = Figure(figsize=(min(10, 4.5 + 0.5 * len(columns)), min(12, 1.5 + 0.28 * len(names))))
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, aspect="auto")
    if len(columns) > 16:
        figure.colorbar(image)
    else:
        for row, column in np.ndindex(shares.shape):
            color = "white" if shares[row, column] > 0.6 * shares.max() else "black"
            axes.text(column, row, f"{shares[row, column]:.1f}", ha="center", va="center", color=color, fontsize=8)
    if real:
        axes.axvline(len(rows) - 0.5, color="black")
        axes.text(len(rows), -0.6, "real", ha="center", va="bottom")
    shown = sorted({*np.linspace(0, len(rows) - 1, 8).round().astype(int)})
    axes.set_xticks(shown, [f"{rows[place]['step']:,}" for place in shown])
    axes.set_yticks(range(len(names)), [mathless_label(name, 24) for name in names])
    axes.set(xlabel="optimizer steps", ylabel="predicted class", title="Classes of the generated images, %")
    axes.grid(visible=False)
    save_picture(to_picture(figure), path)
