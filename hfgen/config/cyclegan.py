"""What `hfgen train cyclegan` takes."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from hfgen.config.training import MAX_BATCH_SIZE, MAX_DEPTH, MAX_WIDTH, TrainingConfig
from hfgen.utils.errors import UserError


@dataclass(kw_only=True)
class CycleGANConfig(TrainingConfig):
    """Image-to-image translation without pairs (Zhu et al. 2017): two sets of images, two networks, there and back.

    The images of the data set are of the first kind.

    Args:
        target_dataset_name: Data set with the images of the second kind; not given, they are made of the first.
        target_data_dir: Folder with them, instead of a data set.
        target_split: Split of it.
        target_image_column: Its column with the images; found by its type if not named.
        target_degradation: What is done to them, as in `hfgen train translation --help`; `invert` and `thicken=1` for
            instance make a second kind out of the first.
        architecture: See `hfgen train translation --help`; of both networks.
        block_out_channels: Likewise.
        layers_per_block: Likewise.
        adversarial_loss: See `hfgen train gan --help`; of each patch.
        adversarial_weight: Weight of the generators' adversarial losses. That of `least_squares` is half of what the
            paper's generators minimise, so that 2, 10 and 5 are the paper's weights 1, 10 and 5.
        cycle_weight: Weight of the mean absolute error of what went there and back again.
        identity_weight: Weight of the mean absolute change of images that are already of the kind wanted; only of
            kinds with equally many channels.
        discriminator_block_out_channels: Channels of the discriminators' convolutions of stride 2.
        pool_size: Results of former steps among which half of those that a discriminator sees are drawn (Shrivastava
            et al. 2017); with 0 it sees the newest only.
    """

    family: ClassVar[str] = "cyclegan"
    next_command: ClassVar[str] = "hfgen evaluate"
    dataset_fields: ClassVar[tuple[str, ...]] = ("dataset_name", "target_dataset_name")
    folder_fields: ClassVar[tuple[str, ...]] = ("train_data_dir", "target_data_dir")

    train_batch_size: int = 32
    learning_rate: float = 2e-4
    lr_warmup_steps: int = 0
    adam_beta1: float = 0.5
    adam_beta2: float = 0.999
    max_grad_norm: float = 1000.0
    checkpointing_steps: int = 1000
    save_images_epochs: int | None = 1
    ema_max_decay: float = 0.999
    target_dataset_name: str | None = None
    target_data_dir: str | None = None
    target_split: str = "train"
    target_image_column: str | None = None
    target_degradation: list[str] = field(default_factory=list)
    architecture: Literal["unet", "residual_unet"] = "residual_unet"
    block_out_channels: list[int] = field(default_factory=lambda: [32, 64])
    layers_per_block: int = 2
    adversarial_loss: Literal["minimax", "non_saturating", "least_squares", "hinge", "relativistic"] = "least_squares"
    adversarial_weight: float = 2.0
    cycle_weight: float = 10.0
    identity_weight: float = 5.0
    discriminator_block_out_channels: list[int] = field(default_factory=lambda: [32, 64])
    pool_size: int = 50

    def __post_init__(self):
        """Refuse values that no networks or objective can be built from (see `TrainingConfig`)."""
        super().__post_init__()
        self._require("positive", ["block_out_channels", "discriminator_block_out_channels"], at_most=MAX_WIDTH)
        self._require("positive", ["layers_per_block"], at_most=MAX_DEPTH)
        self._require("positive", ["adversarial_weight"])
        self._require("zero or more", ["cycle_weight", "identity_weight"])
        self._require("zero or more", ["pool_size"], at_most=MAX_BATCH_SIZE)
        if 0 < self.pool_size < self.train_batch_size:
            raise UserError(
                f"pool_size must be 0 or at least train_batch_size, which is {self.train_batch_size}, "
                f"not {self.pool_size}"
            )
        for name in ("block_out_channels", "discriminator_block_out_channels"):
            if not getattr(self, name):
                raise UserError(f"{name} must have at least one entry, not none")
        if self.target_dataset_name and self.target_data_dir:
            raise UserError("name the second images by target_dataset_name or by target_data_dir, not by both")
        if self.target_dataset_name or self.target_data_dir:
            return
        if not self.target_degradation:
            raise UserError(
                "say what the second kind of images is: target_dataset_name, target_data_dir, or target_degradation"
            )
        if self.target_split != "train" or self.target_image_column:
            raise UserError(
                "target_split and target_image_column belong to target_dataset_name or target_data_dir; name the data "
                "set once more to take other images of it"
            )
