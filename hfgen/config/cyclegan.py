"""Configuration of `hfgen train cyclegan`."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from hfgen.config.training import MAX_BATCH_SIZE, MAX_DEPTH, MAX_WIDTH, TrainingConfig
from hfgen.utils.errors import UserError


@dataclass(kw_only=True)
class CycleGANConfig(TrainingConfig):
    """Unpaired image-to-image translation between two domains (CycleGAN, Zhu et al. 2017).

    The training data set is domain A; the target fields describe domain B.

    Args:
        > Data
        target_dataset_name: Data set of domain B; by default domain B is derived from the training images with
            target_degradation.
        target_data_dir: Folder of images of domain B, instead of a data set.
        target_split: Split of target_dataset_name.
        target_image_column: Image column of target_dataset_name; found by its type if not named.
        target_degradation: Degradations applied to the images of domain B, as in `hfgen train translation --help`.
            `invert` and `thicken=1`, for instance, derive a second domain from the first.

        > Network
        architecture: Of both generators; see `hfgen train translation --help`.
        block_out_channels: Likewise.
        layers_per_block: Likewise.
        discriminator_block_out_channels: Channels of the discriminators' stride-2 convolutions.

        > Objective
        adversarial_loss: Adversarial loss per patch; see `hfgen train gan --help`.
        adversarial_weight: Weight of the generators' adversarial losses. `least_squares` has a factor ½ here, so that
            2, 10 and 5 correspond to the paper's weights 1, 10 and 5.
        cycle_weight: Weight of the cycle-consistency loss: the mean absolute error after a round trip A→B→A or B→A→B.
        identity_weight: Weight of the identity loss: the mean absolute change of images that are already in the target
            domain. Used only if both domains have the same number of channels.
        pool_size: Size of the pool of earlier generated images from which half of each discriminator batch is drawn
            (Shrivastava et al. 2017); 0 disables it.

    Examples:
        hfgen train cyclegan --config cyclegan_mnist
        hfgen train cyclegan --train_data_dir photos --target_data_dir paintings --resolution 64 --output_dir runs/my
    """

    family: ClassVar[str] = "cyclegan"
    next_commands: ClassVar[tuple[str, ...]] = (
        "hfgen translate {run} --input IMAGES", "hfgen evaluate {run}{reference}",
    )  # fmt: skip
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
        """Validate the fields (see `TrainingConfig`)."""
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
            raise UserError("choose domain B by target_dataset_name or target_data_dir, not both")
        if self.target_dataset_name or self.target_data_dir:
            return
        if not self.target_degradation:
            raise UserError(
                "domain B is missing: set target_dataset_name, target_data_dir or target_degradation, for instance "
                "--target_degradation invert"
            )
        if self.target_split != "train" or self.target_image_column:
            raise UserError(
                "target_split and target_image_column need target_dataset_name or target_data_dir; repeat the name of "
                "the training data set to use another split or column of it"
            )
