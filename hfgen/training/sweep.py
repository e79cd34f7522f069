"""Sweeps: one run for each value of a field (`hfgen train FAMILY --sweep`), and a page that puts them side by side."""

import dataclasses
import itertools
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from hfgen.config import TrainingConfig
from hfgen.config.training import CONFIG_FILE
from hfgen.data.images import ImageData
from hfgen.evaluation import report
from hfgen.evaluation.report import code, duration, escaped, number, table, with_error, with_std
from hfgen.figures.pictures import members_curves_picture, named_pictures, save_picture
from hfgen.publishing.facts import public_command, public_text, read_training
from hfgen.runs.checkpoints import list_steps
from hfgen.runs.record import METRICS_FILE, RUN_FILE, read_rows, this_command
from hfgen.tasks.base import Task
from hfgen.training.run import train
from hfgen.utils.errors import UserError
from hfgen.utils.files import complete_or_absent
from hfgen.utils.untrusted import own_file, read_json, shown

RECORD = "sweep.json"
PAGE = "sweep.md"
PICTURES = "sweep"  # folder beside them
SEPARATOR = r"[\\/]"  # of the parts of a path, here or elsewhere
NOT_SWEPT = {"config", "hub_model_id", "mixed_precision", "output_dir", "resume_from_checkpoint", "sweep"}
# Fields that change neither the loss nor the images that it is of, but only how low it gets.
SAME_LOSS = {
    *("adam_beta1", "adam_beta2", "adam_epsilon", "adam_weight_decay", "learning_rate", "lr_scheduler"),
    *("lr_warmup_steps", "max_grad_norm", "optimizer", "ema_max_decay", "use_ema", "seed", "torch_compile"),
    *("max_train_seconds", "max_train_steps", "num_train_epochs", "train_batch_size", "gradient_accumulation_steps"),
    *("architecture", "block_out_channels", "layers_per_block", "attention_levels", "attention_head_dim"),
    *("add_attention", "norm_num_groups", "act_fn", "hidden_sizes", "decoder_hidden_sizes", "embedding_size"),
    *("decoder_block_out_channels", "activate_decoder_input", "depths"),
}
NOT_SHOWN = ("step", "learning_rate", "grad_norm/")  # beginnings of names of metrics
ANALYSED = {
    "mse": lambda record: number(record["similarity"]["mse"]),
    "PSNR (dB)": lambda record: number(record["similarity"]["psnr"]),
    "SSIM": lambda record: number(record["similarity"]["ssim"]) if "ssim" in record["similarity"] else "",
    "pixels right": lambda record: f"{record['pixel_accuracy']:.2%}",
    "class kept": lambda record: "; ".join(
        report.accuracy_text(found["reconstructions"]) for found in record["class_kept"].values()
    ),
    "−ELBO (nats)": lambda record: with_error(record["bounds"]["negative_elbo"]),
    "importance-weighted": lambda record: with_error(record["bounds"]["negative_importance_weighted_bound"]),
    "active dimensions": lambda record: str(record["active_units"]),
}


def parse_sweep(sweep: list[str]) -> list[dict[str, list[str]]]:
    """Return what each member sets, in words, from entries such as `latent_dim=2,4,16`; several multiply.

    Raises:
        UserError: for an entry of another form, or a field that members cannot differ in.
    """
    fields: dict[str, list[list[str]]] = {}
    for entry in sweep:
        name, equals, values = entry.partition("=")
        choices = [value.split() for value in values.split(",")]
        if not equals or not all(choices) or name in fields or not name:
            raise UserError(f"sweep takes a field once, with its values, as in latent_dim=2,4,16, not {entry}")
        if name in NOT_SWEPT:
            raise UserError(f"the members of a sweep cannot differ in {name}")
        if twice := [value for value in choices if choices.count(value) > 1]:
            raise UserError(f"sweep has {name} {' '.join(twice[0])} twice")
        fields[name] = choices
    return [dict(zip(fields, values, strict=True)) for values in itertools.product(*fields.values())]


def train_members(
    config: TrainingConfig,
    parse: Callable[[list[str]], TrainingConfig],
    make_task: Callable[[TrainingConfig, ImageData], Task],
) -> Path:
    """Train the members of a sweep one after the other, each in a folder of its own, and write their page.

    A sweep that was stopped goes on with `resume_from_checkpoint` latest: members that are finished stay as they are.

    Args:
        config: What they share; its `output_dir` is the folder of the sweep.
        parse: Makes a configuration from further flags.
        make_task: See `hfgen.training.run.train`.

    Returns:
        The page.

    Raises:
        UserError: before any work, for values that no configuration can have, or in several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("a sweep runs in one process; train its members one by one to use several")
    folder = Path(config.output_dir)
    if config.push_to_hub:
        raise UserError("a sweep cannot be pushed to one repo; hfgen publish-all publishes its members")
    if (folder / CONFIG_FILE).exists():
        raise UserError(f"{folder} holds a run; choose another --output_dir for the sweep")
    begun = _read_record(folder)["members"] if (folder / RECORD).is_file() else {}
    if not begun and folder.is_dir() and any(not (entry / CONFIG_FILE).is_file() for entry in folder.iterdir()):
        raise UserError(f"output_dir {folder} is not empty and holds no sweep; name a new or empty folder")
    members = {}
    for words in parse_sweep(config.sweep):
        chosen = parse([word for name, values in words.items() for word in _flag(type(config), name, values)])
        settings = {name: "_".join(map(public_text, values)) for name, values in words.items()}
        parts = [f"{field}_{re.split(SEPARATOR, value)[-1]}" for field, value in settings.items()]
        name = "-".join([folder.resolve().name, *parts])
        name = next((old for old, known in begun.items() if known == settings), name)  # from before it was moved
        if name in members:
            raise UserError(f"two members of the sweep would be called {name}; rename what they are given")
        members[name] = (
            settings,
            dataclasses.replace(chosen, sweep=[], output_dir=str(folder / name)),
        )
    record = {"command": this_command(), "members": {name: settings for name, (settings, _) in members.items()}}
    folder.mkdir(parents=True, exist_ok=True)
    with complete_or_absent(folder / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    for _, member in members.values():
        train(member, make_task)
    write_page(folder)
    return folder / PAGE


def _flag(config_class: type[TrainingConfig], name: str, values: list[str]) -> list[str]:
    """Return the flag that sets a field; those of what is true or false take no value."""
    is_bool = any(
        field.name == name and field.type in (bool, bool | None) for field in dataclasses.fields(config_class)
    )
    if is_bool and values in (["true"], ["false"]):
        return [f"--{name}" if values == ["true"] else f"--no_{name}"]
    return [f"--{name}", *values]


def members_of(run: str) -> list[str]:
    """Return the runs of a sweep's folder; of another, the run itself."""
    folder = Path(run).expanduser()
    if not (folder / RECORD).is_file():
        return [run]
    members = [folder / name for name in _read_record(folder)["members"]]
    if missing := [member for member in members if not member.is_dir()]:
        raise UserError(f"the sweep in {folder} is not finished: there is no {missing[0]}")
    return [str(member) for member in members]


def _read_record(folder: Path) -> dict[str, Any]:
    """Read `sweep.json`, whose members lie in the folder itself.

    Raises:
        UserError: naming the file, for a member that does not, or what is no record of a sweep.
    """
    file = folder / RECORD
    record = read_json(file)
    members = record.get("members")
    if not isinstance(record.get("command"), str) or not isinstance(members, dict) or not members:
        raise UserError(f"{file} is no record of a sweep: it must have command and members")
    for name, settings in members.items():
        if re.search(SEPARATOR, name) or name in ("", ".", ".."):
            raise UserError(f"{file}: a member must be the name of a folder beside it, not {shown(name)}")
        own_file(folder, name)
        if not isinstance(settings, dict) or not settings:
            raise UserError(f"{file}: {name} must have the fields that were swept, not {shown(settings)}")
    return record


def write_page(folder: Path) -> None:
    """Write the page of a sweep anew, with what its members know of themselves by now."""
    record = _read_record(folder)
    members = {name: _Member(folder / name, settings) for name, settings in record["members"].items()}
    (folder / PICTURES).mkdir(exist_ok=True)
    pictures = {
        "curves": members_curves_picture({member.label: member.curves() for member in members.values()}),
        "samples": named_pictures({member.label: member.samples() for member in members.values()}),
    }
    for name, picture in pictures.items():
        save_picture(picture, folder / PICTURES / f"{name}.png")
    columns: dict[str, list[str]] = {}
    for position, (name, member) in enumerate(members.items()):
        for title, text in {"run": f"[{escaped(name)}]({quote(name)})", **member.cells()}.items():
            columns.setdefault(title, [""] * len(members))[position] = text
    fields = ", ".join(next(iter(record["members"].values())))
    lines = [
        f"# {escaped(folder.resolve().name)} by {escaped(fields)}",
        "",
        f"Written by {code(public_command(record['command']))}. Losses and their terms are means over the last "
        "epoch of training; the rest is what `hfgen analyze` and `hfgen evaluate` found of each run, where they "
        "were asked.",
        *table(list(columns), zip(*columns.values(), strict=True)),
        "",
        _best(members),
        "",
        f"![losses by epoch]({PICTURES}/curves.png)",
        "",
        f"![what each draws in the end]({PICTURES}/samples.png)",
    ]
    with complete_or_absent(folder / PAGE) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def _best(members: dict[str, "_Member"]) -> str:
    """Name the best member by what was measured on the test images, or else by the loss, where that compares."""
    unlike = []
    for title, measure in {
        "lowest −ELBO": _Member.negative_elbo,
        "lowest Fréchet distance": _Member.frechet_distance,
        "highest accuracy": _Member.accuracy,
    }.items():
        found = {name: measure(member) for name, member in members.items()}
        if None in found.values():
            continue
        if len({measured.protocol for measured in found.values()}) > 1:
            unlike.append(title.split(" ", 1)[1])
            continue
        best, *others = sorted(found, key=lambda name: found[name].value)
        close = [escaped(name) for name in others if found[name].is_close_to(found[best])]
        too = f" Within the standard error of the difference are {', '.join(close)}." if close else ""
        return (
            f"The {title} on the test images has {escaped(best)}.{too} Chosen by them, its value is too good for a "
            "test result: choose by images that are neither for training nor for the test, and test what was chosen."
        )
    if unlike:
        return (
            f"The {' and the '.join(unlike)} of the members do not compare, as they are of other images, pixels or "
            "judges; no member is named the best."
        )
    first = next(iter(members.values()))
    if first.is_a_game():
        return (
            "Losses of networks that play against each other do not tell which member is best; `hfgen evaluate` does."
        )
    if others := [code(field) for field in first.settings if field not in SAME_LOSS]:
        return (
            f"Members that differ in {', '.join(others)} may have another loss or other images, so that their losses "
            "do not tell which is best; `hfgen evaluate` does, and `hfgen analyze` of VAEs."
        )
    losses = {name: member.last("loss/") for name, member in members.items()}
    return (
        f"The lowest loss in training has {escaped(min(losses, key=losses.get))}, which does not tell how good it is "
        "on other images."
    )


class _Measured(NamedTuple):
    """What was measured of a member.

    Attributes:
        protocol: Values of another protocol do not compare.
        value: The lower the better.
        std: Its standard deviation over other samples of the model, or None if it is not independent of the others.
    """

    protocol: tuple[Any, ...]
    value: float
    std: float | None

    def is_close_to(self, best: "_Measured") -> bool:
        """Tell whether it is above the best by no more than the standard error of the difference."""
        return None not in (self.std, best.std) and self.value - best.value <= math.hypot(self.std, best.std)


class _Member:
    """A finished run of a sweep.

    Args:
        run: Its folder.
        settings: What it was given, by field.
    """

    def __init__(self, run: Path, settings: dict[str, str]):
        self.run, self.settings = run, settings
        self.label = ", ".join(f"{field} {value}" for field, value in settings.items())
        self.training = read_training(run / RUN_FILE)
        self.rows = read_rows(run / METRICS_FILE)

    def curves(self) -> dict[str, tuple[list[float], list[float]]]:
        """Return the epochs and the values of each loss and term."""
        epochs = [row["step"] / self.training["steps_per_epoch"] for row in self.rows]
        return {name: (epochs, [row[name] for row in self.rows]) for name in self._shown()}

    def samples(self) -> Path:
        """Return the picture of the last samples."""
        return list_steps(self.run / "samples", ".png")[-1]

    def last(self, prefix: str) -> float:
        """Return the mean over the last epoch of the metrics whose names begin so, added up."""
        rows = self.rows[-self.training["steps_per_epoch"] :]
        return sum(value for row in rows for name, value in row.items() if name.startswith(prefix)) / len(rows)

    def negative_elbo(self) -> _Measured | None:
        """Return −ELBO of the test images, if that has been found; those of others are of the same images."""
        found = self._read(report.ANALYSIS_RECORD)
        if not found:
            return None
        protocol = tuple(found["protocol"][name] for name in ("pixels", "pixel_distribution", "reference_sha256"))
        return _Measured(protocol, found["bounds"]["negative_elbo"]["value"], None)

    def frechet_distance(self) -> _Measured | None:
        """Return that of its images by the first judge, if it has been measured."""
        found = self._read(report.RECORD)
        if not found or "measures" not in found:
            return None
        judge, measures = next(iter(found["measures"].items()))
        protocol = found["protocol"]
        shared = protocol["judges"][judge], protocol["num_images"], protocol["reference_sha256"]
        return _Measured(shared, **measures["frechet_distance"])

    def accuracy(self) -> _Measured | None:
        """Return that of a classifier, times −1, if it has been measured; those of others are of the same images."""
        found = self._read(report.RECORD)
        if not found or "accuracy" not in found:
            return None
        return _Measured((found["protocol"]["reference_sha256"],), -found["accuracy"], None)

    def is_a_game(self) -> bool:
        """Tell whether several networks have losses of their own."""
        return sum(name.startswith("loss/") for name in self.rows[0]) > 1

    def cells(self) -> dict[str, str]:
        """Return what there is to say of it, by title."""
        cells = {escaped(field): escaped(value) for field, value in self.settings.items()}
        cells["training"] = f"{self.training['optimizer_steps']:,} steps, {duration(self.training['train_seconds'])}"
        for name in self._shown():
            cells[name] = number(self.last(name))
        if found := self._read(report.ANALYSIS_RECORD):
            cells |= {title: text(found) for title, text in ANALYSED.items()}
        found = self._read(report.RECORD)
        if found and "accuracy" in found:
            cells["accuracy"] = report.accuracy_text(found)
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
            cells |= {title: with_std(measures[name]) for name, (title, _) in report.MEASURES.items()}
        return cells

    def _shown(self) -> list[str]:
        return [name for name in self.rows[0] if not name.startswith(NOT_SHOWN)]

    def _read(self, name: str) -> Any:
        return report.read_record(self.run / name) if (self.run / name).is_file() else None
