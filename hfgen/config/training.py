"""Training options that all families share, their validation, and those that may change on resume."""

import dataclasses
import math
import shlex
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml

from hfgen.config.fields import fields_of
from hfgen.utils.errors import UserError

CONFIG_FILE = "config.yaml"  # in the run's folder
SHORT_NAMES = {  # of data sets on the Hub
    "mnist": "ylecun/mnist",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
}

# Upper bounds, far above any sensible value. They catch typing errors that would otherwise exhaust the memory or run
# forever, not every size that is too large for a machine.
MAX_RESOLUTION = 4096  # pixels
MAX_BATCH_SIZE = 1_000_000
MAX_WIDTH = 16_384  # channels, features or latent dimensions
MAX_DEPTH = 1_000  # layers
MAX_TIMESTEPS = 100_000  # noise levels, and denoising steps
MAX_SAMPLES = 10_000  # images in a sample grid
MAX_EVALUATION_IMAGES = 1000  # sampled for an evaluation while training
MAX_WARMUP_STEPS = 10_000_000
MAX_IMAGES = 10_000_000  # sampled
MAX_LATENTS = 1_000_000  # sampled per image for a bound
MAX_GUIDANCE = 1_000
MAX_LOGIT = 10  # beyond, the sigmoid is 0 or 1
MAX_CLUSTERS = 1_000  # of training images
MAX_NOISE = 100  # standard deviation, for pixels in [0, 1]
MAX_PENALTY_INTERVAL = 10_000  # optimizer steps
MAX_TILE = 1_000_000  # pixels
MAX_TRUNCATION = 1_000
MAX_SEED = 2**63 - 1

# Fields that may change on resume: output, logging, checkpoints, and the length, to which the rest of the
# learning-rate schedule is stretched. After any other change, no single configuration would describe the model.
CHANGEABLE_ON_RESUME = {
    "cache_dir",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "evaluation_seconds",
    "evaluation_share",
    "evaluation_steps",
    "hub_license",
    "hub_model_id",
    "hub_private_repo",
    "hub_strategy",
    "load_best_model_at_end",
    "logging_steps",
    "max_train_seconds",
    "max_train_steps",
    "num_samples",
    "num_train_epochs",
    "output_dir",
    "push_to_hub",
    "report_to",
    "resume_from_checkpoint",
    "sample_steps",
    "save_images_epochs",
    "sweep",
}


@dataclass(kw_only=True)
class TrainingConfig:
    """Options of every family: data, run length, optimizer, checkpoints.

    Args:
        > Data
        dataset_name: Data set: a Hub id, `mnist`, `fashion_mnist`, `cifar10`, the built-in `digits`, or a local
            folder of parquet or arrow files. Either this or train_data_dir is required.
        train_data_dir: Image folder (one sub-folder per class, or none) to train on instead of a data set.
        train_split: Split to train on. Slices such as `train[:90%]` work if they contain images of all classes.
        validation_fraction: Hold out this fraction of each class of train_split as the split `validation`, for data
            without one. The selection is random but always the same.
        test_fraction: Likewise for the split `test`, with which `hfgen evaluate` compares. A model and the classifiers
            that evaluate it need the same fractions.
        image_column: Column with the images; found by its type if not named.
        label_column: Column with the class labels; found by its type if not named.
        resolution: Height and width in pixels: the shorter side is resized to it, then the image is centre-cropped. By
            default images keep their size, which must be the same for all.
        channels: 1 for greyscale, 3 for RGB; by default as in the first image.
        max_train_samples: Use only this many images, the first ones; by default all.
        random_flip: Flip each training image horizontally with probability one half.
        on_bad_image: Action on unreadable images: stop with an `error` that names the file, or `skip` them and report
            the count.
        cache_dir: Folder for decoded images; by default `hfgen` in the Hugging Face home.

        > Training length
        num_train_epochs: Passes over the data; the default measure of a run's length.
        max_train_steps: Number of optimizer steps, instead of `num_train_epochs`.
        max_train_seconds: Wall-clock budget in seconds, to which the learning-rate schedule is fitted. Combined with
            `max_train_steps`, the run ends at whichever is reached first. Such a run can be resumed, but its number of
            steps depends on the machine's speed.
        train_batch_size: Images per process and forward pass.
        gradient_accumulation_steps: Forward passes per optimizer step; multiplies the effective batch size. With
            several networks, each is updated on the whole effective batch before the next one's loss is computed; an
            image-to-image network with a discriminator therefore keeps the activations of all passes in memory.
        seed: Random seed.
        sweep: Train one run per value of a field, such as `latent_dim=2,4,16`, in sub-folders of `output_dir`, and
            write a page that compares them. Separate the entries of a list value by spaces (`"hidden_sizes=400,512
            256"`). With several fields, every combination is trained.

        > Optimizer
        optimizer: `adamw`, or `muon` (Jordan et al. 2024), which orthogonalises the updates of convolutions and linear
            layers and uses AdamW for the rest.
        learning_rate: Peak learning rate.
        lr_scheduler: Decay of the learning rate over the whole run, from the peak to zero unless constant.
        lr_warmup_steps: Optimizer steps of linear warm-up, as a factor on top of the decay.
        adam_beta1: Decay rate of AdamW's first moment.
        adam_beta2: Decay rate of AdamW's second moment.
        adam_weight_decay: AdamW's decoupled weight decay; 0 is Adam.
        adam_epsilon: AdamW's epsilon.
        max_grad_norm: Maximum gradient norm, per module; larger gradients are clipped.
        use_ema: Keep an exponential moving average (EMA) of the weights, which is used for sampling and saved in the
            pipeline.
        ema_max_decay: Upper bound of the EMA decay, which is (1 + step) / (10 + step) until then.

        > Network

        > Objective

        > Sample grids
        num_samples: Number of images in a sample grid.
        sample_steps: Optimizer steps after which to save a sample grid, besides the one at the end.
        save_images_epochs: Also save a sample grid every this many epochs, from the same latents, noise or inputs each
            time; at the end they are joined into a timelapse animation.

        > Evaluation while training
        evaluation_seconds: Seconds of training between evaluations with the averaged weights: the losses on held-out
            images (the split `validation`: hold it out with validation_fraction), and for generators the Fréchet
            distance, precision and recall of samples in the feature space of a judge. The interval is longer where
            evaluations would take more than evaluation_share of the time.
        evaluation_steps: Likewise, but optimizer steps between evaluations, which are not limited by evaluation_share.
        evaluation_share: Maximum fraction of the training time for evaluations after evaluation_seconds.
        evaluation_images: Number of samples, and of held-out images for the losses.
        evaluation_judge: Judge, a shipped one or a folder; by default the first shipped one of the data set.
        load_best_model_at_end: Save the best evaluated model as that of the finished run, instead of the last one. The
            best model so far is kept in `checkpoints/best-…`.

        > Saving
        output_dir: Folder of the run (required): pipeline, configuration, metrics, samples, checkpoints.
        checkpointing_steps: Optimizer steps between checkpoints.
        checkpoints_total_limit: Keep only this many checkpoints, the newest ones; by default all.
        resume_from_checkpoint: `latest`, or the path of a checkpoint of this run.
        logging_steps: Optimizer steps between updates of the metrics file, progress bar and trackers.
        report_to: Trackers to log to, for instance tensorboard, wandb, trackio.

        > Publishing
        push_to_hub: Publish the finished model on the Hub, as `hfgen push` does.
        hub_model_id: Hub id to publish it under, `user/name`.
        hub_private_repo: Create that repo as a private one.
        hub_license: Licence of the weights, as a Hub identifier.
        hub_strategy: Publish the model only at the `end`, or also in the background at `every_save` of a checkpoint.

        > Hardware
        mixed_precision: Precision of the forward passes. By default as set by `accelerate launch` or `accelerate
            config`, else bf16 where the hardware supports it, else no.
        torch_compile: Compile the networks (inductor). Pays off on a GPU, seldom on a CPU. By default as set by
            `accelerate launch` or `accelerate config`, else no.
        deterministic: Use deterministic algorithms on a GPU, which are slower. A CPU is always deterministic.
    """

    family: ClassVar[str]
    next_commands: ClassVar[tuple[str, ...]] = ("hfgen sample {run}", "hfgen evaluate {run}{reference}")
    dataset_fields: ClassVar[tuple[str, ...]] = ("dataset_name",)  # fields that name data sets
    folder_fields: ClassVar[tuple[str, ...]] = ("train_data_dir",)  # fields that name image folders
    model_fields: ClassVar[tuple[str, ...]] = ()  # fields that name trained models: folders, Hub ids or recipes
    warmup_fields: ClassVar[tuple[str, ...]] = ("lr_warmup_steps",)  # fields that count warm-up steps
    single_steps: ClassVar[tuple[str, ...]] = ()  # fields that name an optimizer step at which something happens

    dataset_name: str | None = None
    train_data_dir: str | None = None
    train_split: str = "train"
    validation_fraction: float = 0.0
    test_fraction: float = 0.0
    image_column: str | None = None
    label_column: str | None = None
    resolution: int | None = None
    channels: Literal[1, 3] | None = None
    max_train_samples: int | None = None
    random_flip: bool = False
    on_bad_image: Literal["error", "skip"] = "error"
    cache_dir: str | None = None

    output_dir: str | None = None
    seed: int = 0
    train_batch_size: int = 128
    gradient_accumulation_steps: int = 1
    num_train_epochs: int = 10
    max_train_steps: int | None = None
    max_train_seconds: float | None = None

    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    lr_scheduler: Literal["constant", "linear", "cosine"] = "linear"
    lr_warmup_steps: int = 50
    adam_beta1: float = 0.9
    adam_beta2: float = 0.99
    adam_weight_decay: float = 0.0
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    torch_compile: bool | None = None
    deterministic: bool = False
    use_ema: bool = True
    ema_max_decay: float = 0.9999

    checkpointing_steps: int = 500
    checkpoints_total_limit: int | None = None
    resume_from_checkpoint: str | None = None
    sample_steps: list[int] = field(default_factory=list)
    save_images_epochs: int | None = None
    num_samples: int = 64
    logging_steps: int = 10
    evaluation_seconds: float | None = None
    evaluation_steps: int | None = None
    evaluation_share: float = 0.03
    evaluation_images: int = 500
    evaluation_judge: str | None = None
    load_best_model_at_end: bool = False
    sweep: list[str] = field(default_factory=list)
    report_to: list[str] = field(default_factory=list)

    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_private_repo: bool = False
    hub_license: str = "apache-2.0"
    hub_strategy: Literal["end", "every_save"] = "end"

    def __post_init__(self):
        """Validate the fields.

        Raises:
            UserError: naming the field, its value and a valid one.
        """
        require_values(self)
        for name in (*self.dataset_fields, *self.folder_fields):
            if (value := getattr(self, name)) is not None and not value.strip():
                raise UserError(f"{name} must not be empty; leave it out, or name a data set or folder")
        if (self.dataset_name is None) == (self.train_data_dir is None):
            raise UserError(
                "name the training data by either dataset_name (for instance --dataset_name mnist) or train_data_dir "
                f"(a folder of images), not {'both' if self.dataset_name else 'neither'}"
            )
        if not self.output_dir:
            raise UserError("output_dir is missing: name a folder for the run, for instance --output_dir runs/first")
        if self.push_to_hub and not self.hub_model_id:
            raise UserError("push_to_hub needs the Hub id to publish under, for instance --hub_model_id user/name")
        self._require("positive", [
            "max_train_samples", "num_train_epochs", "max_train_steps", "max_train_seconds", "learning_rate",
            "adam_epsilon", "max_grad_norm", "checkpointing_steps", "checkpoints_total_limit", "logging_steps",
            "sample_steps", "save_images_epochs", "evaluation_seconds", "evaluation_steps",
        ])  # fmt: skip
        self._require("positive", ["resolution"], at_most=MAX_RESOLUTION)
        self._require("positive", ["train_batch_size", "gradient_accumulation_steps"], at_most=MAX_BATCH_SIZE)
        self._require("positive", ["num_samples"], at_most=MAX_SAMPLES)
        self._require("positive", ["evaluation_images"], at_most=MAX_EVALUATION_IMAGES)
        self._require("positive", ["evaluation_share"], at_most=1)
        if self.evaluation_seconds and self.evaluation_steps:
            raise UserError("set evaluation_seconds or evaluation_steps, not both")
        if self.load_best_model_at_end and not self.evaluates:
            raise UserError("load_best_model_at_end needs evaluations: set evaluation_seconds or evaluation_steps")
        self._require("zero or more", ["seed"], at_most=MAX_SEED)
        self._require("zero or more", ["adam_weight_decay"])
        self._require("zero or more", self.warmup_fields, at_most=MAX_WARMUP_STEPS)
        self._require("from 0 to below 1", [
            "adam_beta1", "adam_beta2", "ema_max_decay", "validation_fraction", "test_fraction",
        ])  # fmt: skip
        if self.validation_fraction + self.test_fraction >= 1:
            raise UserError(
                "validation_fraction and test_fraction must leave images to train on: their sum must be below 1, not "
                f"{self.validation_fraction} + {self.test_fraction}"
            )

    def _require(self, kind: str, names: Iterable[str], at_most: float = math.inf):
        require(self, kind, names, at_most)

    @property
    def evaluates(self) -> bool:
        """Whether the model is evaluated while it trains."""
        return bool(self.evaluation_seconds or self.evaluation_steps)

    @property
    def images_per_batch(self) -> int:
        """Images per process and step."""
        return self.train_batch_size

    def learning_rate_of(self, module: str) -> float:
        """Return the peak learning rate of a module."""
        return self.learning_rate

    def optimizer_of(self, module: str) -> str:
        """Return the optimizer of a module, `adamw` or `muon`."""
        return self.optimizer

    def reading_options(self) -> dict[str, Any]:
        """Return the keyword arguments of `hfgen.data.images.load_images` that do not depend on the split."""
        names = (
            "image_column", "label_column", "resolution", "channels", "on_bad_image", "cache_dir",
            "validation_fraction", "test_fraction",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names} | {"held_out_of": self.train_split}

    @classmethod
    def commands_for(cls, run: Path, reference_split: str | None = None) -> list[str]:
        """Return the commands to go on with, for a finished run.

        Args:
            run: The run.
            reference_split: The split to measure it on, if that is not `test`.
        """
        reference = f" --reference_split {shlex.quote(reference_split)}" if reference_split else ""
        return [command.format(run=shlex.quote(str(run)), reference=reference) for command in cls.next_commands]

    def reference_split(self, splits: Collection[str]) -> str | None:
        """Return the split on which to measure the model, or None if the default, `test`, can be loaded.

        Args:
            splits: The splits that can be loaded; empty if unknown.
        """
        is_measured = any("{reference}" in command for command in self.next_commands)
        if not is_measured or not splits or "test" in splits:
            return None
        return "validation" if "validation" in splits else self.train_split

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain YAML types."""
        return dataclasses.asdict(self)


def require(options: Any, kind: str, names: Iterable[str], at_most: float = math.inf) -> None:
    """Check the range of numeric fields and of the entries of lists; None passes.

    Args:
        options: Any dataclass.
        kind: The range: `positive`, `zero or more`, `from 0 to below 1` or `any`.
        names: Field names.
        at_most: The largest absolute value.

    Raises:
        UserError: naming the field and its value.
    """
    holds = {
        "positive": lambda v: v > 0,
        "zero or more": lambda v: v >= 0,
        "from 0 to below 1": lambda v: 0 <= v < 1,
        "any": lambda v: True,
    }[kind]
    for name in names:
        for number in _values(options, name):
            if number is not None and not holds(number):
                raise UserError(f"{name} must be {kind}, not {number}")
            if number is not None and abs(number) > at_most:
                raise UserError(f"{name} must be at most {at_most:,}, not {number:,}")


def require_values(options: Any) -> None:
    """Give all values the types of their fields (see `Field.read`); check that all numbers are finite.

    Raises:
        UserError: naming the field, also if it is None and that is not its default.
    """
    types = fields_of(type(options))
    for each in dataclasses.fields(options):
        if getattr(options, each.name) is None and each.default is not None:
            raise UserError(f"{each.name} must have a value")
        for number in _values(options, each.name):
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{each.name} must be a finite number, not {number}")
        setattr(options, each.name, types[each.name].read(getattr(options, each.name)))


def _values(options: Any, name: str) -> list[Any]:
    value = getattr(options, name)
    return value if isinstance(value, list) else [value]


def read_fields(file: Path) -> dict[str, Any]:
    """Read a run's configuration (`config.yaml`).

    Raises:
        UserError: if the file is damaged.
    """
    try:
        fields = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
        raise UserError(f"{file} is damaged: it must contain the configuration of a run, one `field: value` per line")
    return fields


def changed_fields(config: TrainingConfig, saved: dict[str, Any]) -> list[str]:
    """List the changes to a saved configuration that a resumed run must not have, as `field: old → new`.

    A field missing from the file is newer than the run; its old value is the default of `TrainingConfig`, or else of
    the family. Local data may have moved since; their contents are compared when they are read.
    """
    before, now = defaults(type(config)) | defaults(TrainingConfig) | saved, config.to_dict()
    for name in (*config.dataset_fields, *config.folder_fields, *config.model_fields):
        if all(Path(str(fields.get(name))).is_absolute() for fields in (before, now)):
            before[name] = now[name]
    names = (before.keys() | now.keys()) - CHANGEABLE_ON_RESUME
    return [f"{n}: {before.get(n)} → {now.get(n)}" for n in sorted(names) if before.get(n) != now.get(n)]


def defaults(config_class: type[Any]) -> dict[str, Any]:
    """Return the default of each field."""
    return {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in dataclasses.fields(config_class)
    }


# Fields that concern the machine or publishing, not the model.
NOT_SHOWN = {
    "cache_dir",
    "hub_license",
    "hub_model_id",
    "hub_private_repo",
    "hub_strategy",
    "output_dir",
    "push_to_hub",
    "report_to",
    "resume_from_checkpoint",
}
