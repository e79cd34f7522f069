"""diffusers' U-Net for the tasks, built from a configuration."""

from typing import Any

from diffusers import UNet2DModel

from hfgen.config.unet import UNetConfig
from hfgen.utils.errors import UserError


def make_unet(
    config: UNetConfig, shape: tuple[int, int, int], *, of: str = "pixels", **conditioning: Any
) -> UNet2DModel:
    """Build the network for images or latents (C, H, W).

    Args:
        config: Its size.
        shape: (C, H, W).
        of: `pixels` or `latents`, which the shape counts.
        conditioning: Further arguments of `UNet2DModel`: `num_class_embeds`, or the number of input channels.

    Raises:
        UserError: if their size is not divisible by the network's downsampling factor.
    """
    channels, height, width = shape
    levels = len(config.block_out_channels)
    if height % 2 ** (levels - 1) or width % 2 ** (levels - 1):
        divisible = [size - size % 2 ** (levels - 1) for size in (height, height + 2 ** (levels - 1))]
        other_sizes = ", or a --resolution such as " + " or ".join(str(size) for size in divisible if size)
        raise UserError(
            f"a U-Net with {levels} entries in block_out_channels halves the images {levels - 1} times, but "
            f"{height}×{width} {of} are not divisible so often; use fewer entries"
            + (other_sizes if of == "pixels" else "")
        )
    attention = [level in config.attention_levels for level in range(levels)]
    options = {
        "sample_size": height if height == width else (height, width),
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": tuple(config.block_out_channels),
        "layers_per_block": config.layers_per_block,
        "down_block_types": tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        "up_block_types": tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
        "add_attention": config.add_attention,
        "attention_head_dim": config.attention_head_dim,
        "norm_num_groups": config.norm_num_groups,
        "dropout": config.dropout,
        "act_fn": "silu",
    }
    return UNet2DModel(**options | conditioning)
