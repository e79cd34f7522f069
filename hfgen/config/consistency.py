"""Configuration of `hfgen distill` and `hfgen train consistency`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from hfgen.config.recipes import RECIPES, read_recipes
from hfgen.config.training import CONFIG_FILE, MAX_GUIDANCE, MAX_TIMESTEPS, TrainingConfig, defaults, read_fields
from hfgen.utils.errors import UserError

MAX_STEPS = 6  # noise levels of the scheduler
MAX_TRAJECTORIES = 1_000_000
DATA_FIELDS = (  # taken from the teacher's run if no data are named
    "dataset_name", "train_data_dir", "train_split", "validation_fraction", "test_fraction", "image_column",
    "label_column", "resolution", "channels", "max_train_samples", "random_flip",
)  # fmt: skip


@dataclass(kw_only=True)
class ConsistencyConfig(TrainingConfig):
    """Consistency model (Song et al. 2023) of one or a few steps, distilled from a diffusion model.

    Args:
        > Teacher
        teacher: Diffusion model to distil: a run of `hfgen train ddpm`, a folder, a Hub id, or a recipe with a trained
            model. Without dataset_name and train_data_dir, the images are those of its run.
        teacher_steps: Steps in which UniPC follows the teacher's trajectories; by default those of its sample grids,
            30 at most.
        guidance_scale: Guidance scale of the teacher, which the student reproduces without guidance; by default that
            of its sample grids.
        trajectories: Number of the teacher's trajectories to learn from at a time, rounded up to a multiple of 128;
            older ones are replaced.
        trajectory_uses: About how often each trajectory is used, by a random point of it each time.

        > Objective
        adversarial_weight: Weight of the loss against a small discriminator of the student's images, which learns
            along with the student (GAN, relativistic, with both penalties); 0: none.
        discriminator_learning_rate: Peak learning rate of this discriminator, which AdamW trains.
        consistency_fraction: Fraction of the training for consistency tuning, after learning the trajectories.

        > Sample grids
        num_inference_steps: Steps of the sample grids, and default of the pipeline.

    Examples:
        hfgen distill ddpm_conditional_mnist_cpu5min --max_train_seconds 300 --output_dir runs/student
        hfgen distill ada/digits --dataset_name mnist --output_dir runs/student
    """

    family: ClassVar[str] = "consistency"
    model_fields: ClassVar[tuple[str, ...]] = ("teacher",)

    teacher: str | None = None
    teacher_steps: int | None = None
    guidance_scale: float | None = None
    trajectories: int = 1024
    trajectory_uses: int = 16
    adversarial_weight: float = 0.02
    discriminator_learning_rate: float = 2e-3
    consistency_fraction: float = 0.0
    train_batch_size: int = 64
    optimizer: Literal["adamw", "muon"] = "muon"
    learning_rate: float = 4e-3
    ema_max_decay: float = 0.999
    num_inference_steps: int = 2

    def __post_init__(self):
        """Validate the fields (see `TrainingConfig`); take those of the data from the teacher's run."""
        if not self.teacher:
            raise UserError("teacher is missing: name the diffusion model to distil, as in hfgen distill runs/mine")
        if self.dataset_name is None and self.train_data_dir is None:
            fields = _fields_of(self.teacher)
            if not any(fields.get(name) for name in ("dataset_name", "train_data_dir")):
                who = self.teacher
                if not Path(who).expanduser().exists():
                    who = f"there is no folder {who}, and a model on the Hub"
                raise UserError(f"{who} does not record its training data; set dataset_name or train_data_dir")
            usual = defaults(type(self))
            for name in DATA_FIELDS:
                if fields.get(name) is not None and getattr(self, name) == usual[name]:
                    setattr(self, name, fields[name])
        super().__post_init__()
        self._require("positive", ["teacher_steps"], at_most=MAX_TIMESTEPS)
        self._require("positive", ["num_inference_steps"], at_most=MAX_STEPS)
        self._require("positive", ["trajectories", "trajectory_uses"], at_most=MAX_TRAJECTORIES)
        self._require("positive", ["discriminator_learning_rate"])
        self._require("zero or more", ["adversarial_weight"])
        self._require("zero or more", ["guidance_scale"], at_most=MAX_GUIDANCE)
        if self.torch_compile and self.adversarial_weight:
            raise UserError(
                "the discriminator needs second-order gradients, which torch_compile does not support; leave it out, "
                "or set adversarial_weight to 0"
            )
        if self.mixed_precision == "fp16" and self.adversarial_weight:
            raise UserError(
                "the discriminator needs gradients that overflow in mixed_precision fp16; use bf16, or set "
                "adversarial_weight to 0"
            )
        if not 0 <= self.consistency_fraction <= 1:
            raise UserError(f"consistency_fraction must be from 0 to 1, not {self.consistency_fraction}")

    def learning_rate_of(self, module: str) -> float:
        """Return the peak learning rate of the student or of the discriminator."""
        return self.discriminator_learning_rate if module == "discriminator" else self.learning_rate

    def optimizer_of(self, module: str) -> str:
        """Return the optimizer of the student; AdamW for the discriminator."""
        return "adamw" if module == "discriminator" else self.optimizer


def _fields_of(teacher: str) -> dict[str, Any]:
    """Return the configuration of a teacher's run or recipe; empty if it has none here."""
    folder = Path(teacher).expanduser()
    file = folder / CONFIG_FILE
    if folder.parent.name == "checkpoints":  # of a run
        file = folder.parents[1] / CONFIG_FILE
    elif not folder.exists() and teacher in read_recipes():
        file = RECIPES / f"{teacher}.yaml"
    return read_fields(file) if file.is_file() else {}
