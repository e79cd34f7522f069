"""What `hfgen train translation` takes."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from hfgen.config.training import MAX_DEPTH, MAX_WIDTH, TrainingConfig
from hfgen.utils.errors import UserError


@dataclass(kw_only=True)
class TranslationConfig(TrainingConfig):
    """Image-to-image translation with pairs (Isola et al. 2017): what images are made of, the network, the objective.

    The images of the data set are what the network is to make. What it is given is made of them by `degradation`, or
    is a second column or folder of images.

    Args:
        degradation: What is done to images, in this order: `gaussian_noise=0.1` (standard deviation, for pixels from 0
            to 1), `salt_and_pepper=0.1` (share of the pixels), `blur=1` (standard deviation in pixels), `mask=14`
            (side of a grey square somewhere), `downscale=2` (then the network enlarges), `jpeg=20` (quality), `grey`
            (of colour, which the network then guesses), `invert`, `thicken=1`, `tint`. Two numbers, as in
            `gaussian_noise=0.1..0.5`, draw the amount for each image.
        input_column: Column of the data set with the images that the network is given.
        input_data_dir: Folder with them, with the same names as in train_data_dir.
        architecture: `unet` (plain convolutions, tanh) or `residual_unet` (residual blocks, Zhang et al. 2021).
        block_out_channels: Channels at each level, the finest first; each further one halves height and width.
        layers_per_block: Residual blocks at each level of a residual_unet, downwards and upwards.
        predict_residual: Let the network make what is to be added to the image that it is given.
        noise_level_input: Tell the network the standard deviation of the noise; gaussian_noise must be the last
            degradation.
        l1_weight: Weight of the mean absolute error, of pixels from −1 to 1.
        mse_weight: Weight of the mean squared error, which favours the mean of what an image may have been.
        psnr_weight: Weight of minus the PSNR in dB, the mean over images (Chen et al. 2021): the squared error of each
            counts in proportion to itself, so that images that are easy to restore matter as much as hard ones.
        ssim_weight: Weight of 1 − SSIM (Wang et al. 2004).
        adversarial_weight: Weight of the generator's adversarial loss; with 0 there is no discriminator.
        adversarial_loss: See `hfgen train gan --help`; of each patch.
        discriminator_block_out_channels: Channels of the discriminator's convolutions of stride 2.
        conditional_discriminator: Show the discriminator also what the image was made of.
    """

    family: ClassVar[str] = "translation"
    next_command: ClassVar[str] = "hfgen evaluate"
    folder_fields: ClassVar[tuple[str, ...]] = ("train_data_dir", "input_data_dir")

    checkpointing_steps: int = 1000
    save_images_epochs: int | None = 1
    degradation: list[str] = field(default_factory=list)
    input_column: str | None = None
    input_data_dir: str | None = None
    architecture: Literal["unet", "residual_unet"] = "residual_unet"
    block_out_channels: list[int] = field(default_factory=lambda: [32, 64, 128])
    layers_per_block: int = 2
    predict_residual: bool = False
    noise_level_input: bool = False
    l1_weight: float = 1.0
    mse_weight: float = 0.0
    psnr_weight: float = 0.0
    ssim_weight: float = 0.0
    adversarial_weight: float = 0.0
    adversarial_loss: Literal["minimax", "non_saturating", "least_squares", "hinge", "relativistic"] = "non_saturating"
    discriminator_block_out_channels: list[int] = field(default_factory=lambda: [32, 64])
    conditional_discriminator: bool = False

    def __post_init__(self):
        """Refuse values that no network or objective can be built from (see `TrainingConfig`)."""
        super().__post_init__()
        weights = ["l1_weight", "mse_weight", "psnr_weight", "ssim_weight", "adversarial_weight"]
        self._require("positive", ["block_out_channels", "discriminator_block_out_channels"], at_most=MAX_WIDTH)
        self._require("positive", ["layers_per_block"], at_most=MAX_DEPTH)
        self._require("zero or more", weights)
        for name in ("block_out_channels", "discriminator_block_out_channels"):
            if not getattr(self, name):
                raise UserError(f"{name} must have at least one entry, not none")
        if not any(getattr(self, name) for name in weights):
            raise UserError(f"one of {', '.join(weights)} must be above 0, or there is nothing to learn")
        if self.conditional_discriminator and not self.adversarial_weight:
            raise UserError("conditional_discriminator needs an adversarial_weight, without which there is none")
        given = [name for name in ("degradation", "input_column", "input_data_dir") if getattr(self, name)]
        if len(given) != 1:
            raise UserError(
                "say what the network is given by one of degradation (for instance --degradation gaussian_noise=0.3), "
                f"input_column and input_data_dir, not by {' and '.join(given) or 'none'}"
            )
        if self.input_data_dir and not self.train_data_dir:
            raise UserError("input_data_dir belongs to train_data_dir, the folder with the images that are to be made")
        if not self.degradation and (self.random_flip or self.on_bad_image == "skip"):
            name = "random_flip" if self.random_flip else "on_bad_image skip"
            raise UserError(f"{name} would part the pairs of input_column or input_data_dir; leave it out")
        if self.noise_level_input and not (self.degradation and self.degradation[-1].startswith("gaussian_noise=")):
            raise UserError("noise_level_input needs a degradation of which the last is gaussian_noise=…")
