"""The page that compares the runs of a sweep."""

from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from hfgen.data.decoding import open_picture
from hfgen.evaluation import report
from hfgen.evaluation.results import read_record
from hfgen.evaluation.verdict import tied
from hfgen.figures.curves import members_curves_picture
from hfgen.figures.grids import labelled_row, save_picture
from hfgen.runs.checkpoints import list_steps
from hfgen.runs.folder import ANALYSIS, EVALUATION, METRICS_FILE, RUN_FILE
from hfgen.runs.record import metrics_of, public_command, read_rows, read_training
from hfgen.training.sweep import read_sweep
from hfgen.utils.files import complete_or_absent
from hfgen.utils.markdown import accuracy_text, duration, escaped, number, percent, with_error, with_std

PAGE = "sweep.md"
PICTURES = "sweep"  # folder beside them
# Fields that change neither the loss function nor its images, so losses are comparable.
SAME_LOSS = {
    *("adam_beta1", "adam_beta2", "adam_epsilon", "adam_weight_decay", "learning_rate", "lr_scheduler"),
    *("lr_warmup_steps", "max_grad_norm", "optimizer", "ema_max_decay", "use_ema", "seed", "torch_compile"),
    *("max_train_seconds", "max_train_steps", "num_train_epochs", "train_batch_size", "gradient_accumulation_steps"),
    *("architecture", "block_out_channels", "layers_per_block", "attention_levels", "attention_head_dim"),
    *("add_attention", "norm_num_groups", "act_fn", "hidden_sizes", "decoder_hidden_sizes", "embedding_size"),
    *("decoder_block_out_channels", "activate_decoder_input", "depths", "flow_hidden_size", "flow_blocks"),
    *("flow_learning_rate", "ladder_channels"),
}
NOT_SHOWN = ("learning_rate", "grad_norm/")  # prefixes of metric names
ANALYSED = {
    "mse": lambda record: number(record["similarity"]["mse"]),
    "PSNR (dB)": lambda record: number(record["similarity"]["psnr"]),
    "SSIM": lambda record: number(record["similarity"]["ssim"]) if "ssim" in record["similarity"] else "",
    "pixel accuracy": lambda record: percent(record["pixel_accuracy"]),
    "class accuracy": lambda record: "; ".join(
        accuracy_text(found["reconstructions"]) for found in record["class_kept"].values()
    ),
    "−ELBO (nats)": lambda record: with_error(record["bounds"]["negative_elbo"]),
    "importance-weighted": lambda record: with_error(record["bounds"]["negative_importance_weighted_bound"]),
    "active dimensions": lambda record: str(record["active_units"]),
}


def write_page(folder: Path) -> Path:
    """Rewrite the page of a sweep with the current results of its runs; return its path."""
    record = read_sweep(folder)
    members = {name: Member(folder / name, settings) for name, settings in record["members"].items()}
    (folder / PICTURES).mkdir(exist_ok=True)
    pictures = {
        "curves": members_curves_picture({member.label: member.curves() for member in members.values()}),
        "samples": labelled_row({member.label: open_picture(member.samples()) for member in members.values()}),
    }
    for name, picture in pictures.items():
        save_picture(picture, folder / PICTURES / f"{name}.png")
    best = _best(members)
    marks = {best["name"]: " (best)", **dict.fromkeys(best["ties"], " (tie)")} if "metric" in best else {}
    columns: dict[str, list[str]] = {}
    for position, (name, member) in enumerate(members.items()):
        for title, text in {"run": f"[{escaped(name)}]({quote(name)}){marks.get(name, '')}", **member.cells()}.items():
            columns.setdefault(title, [""] * len(members))[position] = text
    page = report.render_report(
        "sweep.md",
        name=folder.resolve().name,
        fields=next(iter(record["members"].values())),
        command=public_command(record["command"]),
        columns=columns,
        rows=zip(*columns.values(), strict=True),
        best=best,
    )
    with complete_or_absent(folder / PAGE) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return folder / PAGE


def _best(members: dict[str, "Member"]) -> dict[str, Any]:
    """Find the best run by a metric on the test images, else by the training loss, if they are comparable."""
    incomparable = []
    for title, metric in {
        "lowest −ELBO": Member.negative_elbo,
        "lowest Fréchet distance": Member.frechet_distance,
        "highest accuracy": Member.accuracy,
    }.items():
        found = {name: metric(member) for name, member in members.items()}
        if None in found.values():
            continue
        if len({measured.protocol for measured in found.values()}) > 1:
            incomparable.append(title.split(" ", 1)[1])
            continue
        best, *others = sorted(found, key=lambda name: found[name].value)
        return {
            "metric": title,
            "name": best,
            "ties": [n for n in others if tied(found[n]._asdict(), found[best]._asdict())],
        }
    if incomparable:
        return {"incomparable": incomparable}
    first = next(iter(members.values()))
    if first.is_adversarial():
        return {"is_adversarial": True}
    if others := [field for field in first.settings if field not in SAME_LOSS]:
        return {"fields": others}
    loss = next(name for name in first.rows[0] if name.startswith("loss/"))  # that of the model comes first
    losses = {name: member.last(loss) for name, member in members.items()}
    return {"name": min(losses, key=losses.get)}


class _Measured(NamedTuple):
    """A metric of a run.

    Attributes:
        protocol: Values are comparable if their protocols are equal.
        value: Lower is better.
        std: Its standard deviation over samples of the model, or None if it is not independent between runs.
    """

    protocol: tuple[Any, ...]
    value: float
    std: float | None


class Member:
    """A finished run of a sweep.

    Args:
        run: Its folder.
        settings: Its values of the swept fields.
    """

    def __init__(self, run: Path, settings: dict[str, str]):
        self.run, self.settings = run, settings
        self.label = ", ".join(f"{field} {value}" for field, value in settings.items())
        self.training = read_training(run / RUN_FILE)
        self.rows = read_rows(run / METRICS_FILE)

    def curves(self) -> dict[str, tuple[list[float], list[float]]]:
        """Return epochs and values of each loss and term."""
        curves = {}
        for name in self._shown():
            rows = [row for row in self.rows if name in row]
            epochs = [row["step"] / self.training["steps_per_epoch"] for row in rows]
            curves[name] = epochs, [row[name] for row in rows]
        return curves

    def samples(self) -> Path:
        """Return the last sample grid."""
        return list_steps(self.run / "samples", ".png")[-1]

    def last(self, prefix: str) -> float:
        """Return the sum of the metrics with a prefix, averaged over the steps of the last epoch that have them.

        If none has, it is that of the last step that has.
        """
        sums = {
            row["step"]: sum(row[name] for name in names)
            for row in self.rows
            if (names := [name for name in row if name.startswith(prefix)])
        }
        before = self.rows[-1]["step"] - self.training["steps_per_epoch"]
        last = [value for step, value in sums.items() if step > before] or [*sums.values()][-1:]
        return sum(last) / len(last)

    def negative_elbo(self) -> _Measured | None:
        """Return the −ELBO on the test images, if it was computed; without std, as all runs share the images."""
        found = self._read(ANALYSIS)
        if not found:
            return None
        protocol = tuple(found["protocol"][name] for name in ("pixels", "pixel_distribution", "reference_sha256"))
        return _Measured(protocol, found["bounds"]["negative_elbo"]["value"], None)

    def frechet_distance(self) -> _Measured | None:
        """Return the Fréchet distance in the first features, if it was computed."""
        found = self._read(EVALUATION)
        if not found or "measures" not in found:
            return None
        name, measures = next(iter(found["measures"].items()))
        if "frechet_distance" not in measures:
            return None
        protocol = found["protocol"]
        shared = report.sha256_in(protocol, name), protocol["num_images"], protocol["reference_sha256"]
        return _Measured(shared, **measures["frechet_distance"])

    def accuracy(self) -> _Measured | None:
        """Return a classifier's negative accuracy, if it was computed; without std, as all runs share the images."""
        found = self._read(EVALUATION)
        if not found or "accuracy" not in found:
            return None
        return _Measured((found["protocol"]["reference_sha256"],), -found["accuracy"], None)

    def is_adversarial(self) -> bool:
        """Return whether a discriminator was trained, so that losses say little."""
        return any(name.startswith("loss/discriminator") for name in self.rows[0])

    def cells(self) -> dict[str, str]:
        """Return its cells of the table, by column title."""
        cells = {escaped(field): escaped(value) for field, value in self.settings.items()}
        cells["training"] = f"{self.training['optimizer_steps']:,} steps, {duration(self.training['train_seconds'])}"
        for name in self._shown():
            cells[name] = number(self.last(name))
        return cells | self.measured()

    def measured(self) -> dict[str, str]:
        """Return its results on test images, by column title."""
        cells = {}
        if found := self._read(ANALYSIS):
            cells |= {title: text(found) for title, text in ANALYSED.items()}
        found = self._read(EVALUATION)
        if found and "accuracy" in found:
            cells["accuracy"] = accuracy_text(found)
        elif found and "restoration" in found:
            for setting in found["restoration"]:
                made = setting["made"]
                cells |= {
                    f"{name.upper()}, {escaped(setting['title'])}": number(made[name])
                    for name in ("psnr", "ssim")
                    if name in made
                }
        elif found:
            measures = next(iter(found["measures"].values()))
            cells |= {report.MEASURES[name][0]: with_std(measure) for name, measure in measures.items()}
        return cells

    def _shown(self) -> list[str]:
        return [name for name in metrics_of(self.rows[0]) if not name.startswith(NOT_SHOWN)]

    def _read(self, name: str) -> Any:
        return read_record(self.run / name) if (self.run / name).is_file() else None
