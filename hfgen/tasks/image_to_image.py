"""The networks of image-to-image models, built from a configuration and checked against the images."""

from hfgen.config import CycleGANConfig, TranslationConfig
from hfgen.models.modeling_hfgen_translation import PatchDiscriminator, ResidualTranslationUNet, TranslationUNet
from hfgen.utils.errors import UserError


def make_translator(
    config: TranslationConfig | CycleGANConfig, in_channels: int, shape: tuple[int, int, int], **options: int | bool
) -> TranslationUNet | ResidualTranslationUNet:
    """Build a network that makes images of a shape (C, H, W).

    Raises:
        UserError: if it cannot make such images.
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
            f"which {width}×{height} pixels do not fit"
        )
    return network


def make_patch_discriminator(
    config: TranslationConfig | CycleGANConfig, in_channels: int, shape: tuple[int, int, int]
) -> PatchDiscriminator:
    """Build a discriminator of images of a shape (C, H, W).

    Raises:
        UserError: if they are too small for it.
    """
    channels = config.discriminator_block_out_channels
    if min(shape[1:]) < 2 ** len(channels):
        raise UserError(
            f"discriminator_block_out_channels {channels} halve images {len(channels)} times, for which "
            f"{shape[2]}×{shape[1]} pixels are too few"
        )
    return PatchDiscriminator(in_channels, channels)
