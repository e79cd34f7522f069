"""Configuration of `hfgen train translation`."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from hfgen.config.training import MAX_DEPTH, MAX_WIDTH, TrainingConfig
from hfgen.utils.errors import UserError


@dataclass(kw_only=True)
class TranslationConfig(TrainingConfig):
    """Paired image-to-image translation (pix2pix, Isola et al. 2017).

    The images of the data set are the targets. The inputs are degraded targets (`degradation`), or come from a second
    column or folder.

    Args:
        > Data
        degradation: Degradations of the targets, applied in this order: `gaussian_noise=0.1` (standard deviation, for
            pixels in [0, 1]), `salt_and_pepper=0.1` (fraction of the pixels), `blur=1` (standard deviation in pixels),
            `mask=14` (side of a grey square at a random position), `downscale=2` (the network then upscales),
            `jpeg=20` (quality), `grey` (remove colour, so that the network learns colourisation), `invert`,
            `thicken=1`, `tint`. A range such as `gaussian_noise=0.1..0.5` samples the amount for each image.
        input_column: Data set column with the input images.
        input_data_dir: Folder with the input images, with the same file names as in train_data_dir.

        > Network
        architecture: `unet` (plain convolutions, tanh output) or `residual_unet` (residual blocks, Zhang et al. 2021).
        block_out_channels: Channels at each level, from fine to coarse; each further entry halves height and width.
        layers_per_block: Residual blocks per level of a residual_unet, in the encoder and in the decoder.
        predict_residual: Predict the difference to the input image.
        noise_level_input: Condition the network on the noise's standard deviation; gaussian_noise must be the last
            degradation.
        discriminator_block_out_channels: Channels of the discriminator's stride-2 convolutions.
        conditional_discriminator: Condition the discriminator on the input image.

        > Objective
        l1_weight: Weight of the mean absolute error, for pixels in [−1, 1].
        mse_weight: Weight of the mean squared error, which favours the posterior mean.
        psnr_weight: Weight of the negative PSNR in dB, averaged over images (Chen et al. 2021). It scales with
            relative error, so that images that are easy to restore matter as much as hard ones.
        ssim_weight: Weight of 1 − SSIM (Wang et al. 2004).
        adversarial_weight: Weight of the generator's adversarial loss; 0 trains without a discriminator.
        adversarial_loss: Adversarial loss per patch (see `hfgen train gan --help`).

    Examples:
        hfgen train translation --config translation_fashion_mnist_cpu10min
        hfgen train translation --train_data_dir clean --input_data_dir noisy --output_dir runs/pairs
    """

    family: ClassVar[str] = "translation"
    next_commands: ClassVar[tuple[str, ...]] = (
        "hfgen translate {run} --input IMAGES", "hfgen evaluate {run}{reference}",
    )  # fmt: skip
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
        """Validate the fields (see `TrainingConfig`)."""
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
            raise UserError("conditional_discriminator needs adversarial_weight above 0, or there is no discriminator")
        given = [name for name in ("degradation", "input_column", "input_data_dir") if getattr(self, name)]
        if len(given) != 1:
            raise UserError(
                "choose the network's input by one of degradation (for instance --degradation gaussian_noise=0.3), "
                f"input_column and input_data_dir, not by {' and '.join(given) or 'none'}"
            )
        if self.input_data_dir and not self.train_data_dir:
            raise UserError("input_data_dir needs train_data_dir, the folder with the target images")
        if not self.degradation and (self.random_flip or self.on_bad_image == "skip"):
            name = "random_flip" if self.random_flip else "on_bad_image skip"
            raise UserError(f"{name} would break the pairs of input_column or input_data_dir; leave it out")
        if self.noise_level_input and not (self.degradation and self.degradation[-1].startswith("gaussian_noise=")):
            raise UserError("noise_level_input needs gaussian_noise=… as the last degradation")
