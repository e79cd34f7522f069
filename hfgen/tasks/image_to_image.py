"""Networks of image-to-image models, built from a configuration."""

from hfgen.config import CycleGANConfig, TranslationConfig
from hfgen.models.modeling_hfgen_translation import PatchDiscriminator, ResidualTranslationUNet, TranslationUNet
from hfgen.utils.errors import UserError


def make_translator(
    config: TranslationConfig | CycleGANConfig, in_channels: int, shape: tuple[int, int, int], **options: int | bool
) -> TranslationUNet | ResidualTranslationUNet:
    """Build a network with outputs of shape (C, H, W).

    Raises:
        UserError: if it does not fit the shape.
    """
    out_channels, height, width = shape
    options |= {
        "sample_size": height if height == width else (height, width),
        "in_channels": in_channels,
        "out_channels": out_channels,
        "block_out_channels": config.block_out_channels,
    }
    try:
        if config.architecture == "unet":
            network = TranslationUNet(**options)
        else:
            network = ResidualTranslationUNet(layers_per_block=config.layers_per_block, **options)
    except ValueError as error:
        raise UserError(str(error)) from error
    if height % network.multiple or width % network.multiple:
        raise UserError(
            f"block_out_channels {config.block_out_channels} halve images {len(config.block_out_channels) - 1} times, "
            f"but {width}×{height} pixels are not divisible so often"
        )
    return network


def make_patch_discriminator(
    config: TranslationConfig | CycleGANConfig, in_channels: int, shape: tuple[int, int, int]
) -> PatchDiscriminator:
    """Build a patch discriminator for images of shape (C, H, W).

    Raises:
        UserError: if the images are too small.
    """
    channels = config.discriminator_block_out_channels
    if min(shape[1:]) < 2 ** len(channels):
        raise UserError(
            f"discriminator_block_out_channels {channels} halve images {len(channels)} times, "
            f"but {shape[2]}×{shape[1]} pixels are too few"
        )
    return PatchDiscriminator(in_channels, channels)
