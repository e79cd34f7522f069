"""Networks that make an image of an image: a plain U-Net, one of residual blocks, and a discriminator of patches.

This file is saved beside the weights and needs nothing but torch and diffusers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from torch.nn import functional

LEAKY_SLOPE = 0.2


@dataclass
class TranslatorOutput(BaseOutput):
    """What a network makes of images: (B, C', H · scale_factor, W · scale_factor), around [−1, 1]."""

    sample: Tensor


@dataclass
class PatchDiscriminatorOutput(BaseOutput):
    """What a discriminator thinks of patches: (B, 1, h, w), whose sigmoid is the probability that a patch is real."""

    logits: Tensor


class _Translator(ModelMixin, ConfigMixin):
    """What all of them share: what is shown to the layers, and what is made of what they say."""

    @property
    def multiple(self) -> int:
        """Height and width, once enlarged, must be multiples of it."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    def _check(self) -> int:
        """Return how many channels the layers are shown.

        Raises:
            ValueError: if the residual cannot be added to what was given.
        """
        config = self.config
        if config.predict_residual and config.in_channels not in (1, config.out_channels):
            raise ValueError(f"{config.in_channels} channels cannot be corrected to {config.out_channels}")
        return config.in_channels + config.noise_level_input

    def forward(
        self, sample: Tensor, noise_std: Tensor | None = None, return_dict: bool = True
    ) -> TranslatorOutput | tuple[Tensor]:
        """Make images of images.

        Args:
            sample: (B, C, H, W), around [−1, 1]; enlarged (bicubic) before all else where `scale_factor` is not 1.
            noise_std: Standard deviation of the white noise in each, for pixels from 0 to 1, (B,), if the network is
                to be told (`noise_level_input`).
            return_dict: Return a `TranslatorOutput` instead of a tuple.

        Raises:
            ValueError: if the noise is missing or not asked for.
        """
        config = self.config
        if (noise_std is None) == config.noise_level_input:
            raise ValueError("noise_std is " + ("missing" if noise_std is None else "not known to this model"))
        if config.scale_factor > 1:
            sample = functional.interpolate(sample, scale_factor=config.scale_factor, mode="bicubic")
        shown = sample
        if noise_std is not None:
            level = noise_std.to(sample)[:, None, None, None].expand(-1, 1, *sample.shape[-2:])
            shown = torch.cat([sample, level], 1)
        made = self.layers(shown)
        if config.predict_residual:
            made = sample + made
        return TranslatorOutput(made) if return_dict else (made,)


class _Skip(nn.Module):
    """One level of a U-Net: down, what lies below, up, and beside it what was there before."""

    def __init__(self, down: nn.Module, below: nn.Module, up: nn.Module):
        super().__init__()
        self.down, self.below, self.up = down, below, up

    def forward(self, x: Tensor) -> Tensor:
        """Return twice the channels: what was given, and what comes back from below."""
        return torch.cat([x, self.up(self.below(self.down(x)))], 1)


class TranslationUNet(_Translator):
    """Convolutions downwards, transposed ones upwards, skips between them (Isola et al. 2017, without normalisation).

    A convolution at full size and one of stride 2 a level, with leaky ReLU; transposed convolutions of stride 2 with
    ReLU; tanh.

    Args:
        sample_size: Height and width of the images that it was trained to make, or one number for both; others work.
        in_channels: 1 for grey, 3 for RGB.
        out_channels: Likewise.
        block_out_channels: Channels at each level, the finest first; each further one halves height and width.
        scale_factor: How often as high and wide the images are that it makes.
        noise_level_input: Whether it is told the standard deviation of the noise.
        predict_residual: Whether it makes what is to be added to the image that it is given; then there is no tanh.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | Sequence[int] = 28,
        in_channels: int = 1,
        out_channels: int = 1,
        block_out_channels: Sequence[int] = (32, 64, 128),
        scale_factor: int = 1,
        noise_level_input: bool = False,
        predict_residual: bool = False,
    ):
        super().__init__()
        first = block_out_channels[0]
        inner: nn.Module = nn.Identity()
        for level, (finer, coarser) in reversed([*enumerate(pairwise(block_out_channels))]):
            down = nn.Sequential(nn.Conv2d(finer, coarser, 4, stride=2, padding=1), nn.LeakyReLU(LEAKY_SLOPE))
            is_deepest = level == len(block_out_channels) - 2
            width = coarser if is_deepest else 2 * coarser
            up = nn.Sequential(nn.ConvTranspose2d(width, finer, 4, stride=2, padding=1), nn.ReLU())
            inner = _Skip(down, inner, up)
        self.layers = nn.Sequential(
            nn.Conv2d(self._check(), first, 3, padding=1),
            nn.LeakyReLU(LEAKY_SLOPE),
            inner,
            nn.Conv2d(first if len(block_out_channels) == 1 else 2 * first, out_channels, 3, padding=1),
            nn.Identity() if predict_residual else nn.Tanh(),
        )


class ConvChannelsLast(nn.Conv2d):
    """`nn.Conv2d` that leaves the channels last in memory, in which the layers after it take less time on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        return super().forward(x).contiguous(memory_format=torch.channels_last)


class ResidualBlock(nn.Module):
    """Two convolutions beside an identity, without normalisation (Lim et al. 2017); (B, C, H, W) to the same."""

    def __init__(self, channels: int):
        super().__init__()
        last = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), last)

    def forward(self, x: Tensor) -> Tensor:
        """Add what the two convolutions find."""
        return x + self.layers(x)


class _Sum(nn.Module):
    """One level of a residual U-Net: to what is there, what comes back from below is added."""

    def __init__(self, below: nn.Sequential):
        super().__init__()
        self.below = below

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape."""
        return x + self.below(x)


class ResidualTranslationUNet(_Translator):
    """A U-Net of residual blocks with strided convolutions between the levels (DRUNet, Zhang et al. 2021).

    Args:
        sample_size: See `TranslationUNet`.
        in_channels: Likewise.
        out_channels: Likewise.
        block_out_channels: Likewise.
        layers_per_block: Residual blocks at each level, on the way down and on the way up.
        scale_factor: Likewise.
        noise_level_input: Likewise.
        predict_residual: Likewise.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | Sequence[int] = 28,
        in_channels: int = 1,
        out_channels: int = 1,
        block_out_channels: Sequence[int] = (32, 64, 128),
        layers_per_block: int = 2,
        scale_factor: int = 1,
        noise_level_input: bool = False,
        predict_residual: bool = False,
    ):
        super().__init__()

        def blocks(channels: int) -> list[nn.Module]:
            return [ResidualBlock(channels) for _ in range(layers_per_block)]

        first = block_out_channels[0]
        inner = blocks(block_out_channels[-1])
        for finer, coarser in reversed([*pairwise(block_out_channels)]):
            down, up = nn.Conv2d(finer, coarser, 2, stride=2), nn.ConvTranspose2d(coarser, finer, 2, stride=2)
            inner = [*blocks(finer), _Sum(nn.Sequential(down, *inner, up)), *blocks(finer)]
        self.layers = nn.Sequential(
            ConvChannelsLast(self._check(), first, 3, padding=1), *inner, nn.Conv2d(first, out_channels, 3, padding=1)
        )


class PatchDiscriminator(ModelMixin, ConfigMixin):
    """Convolutions of stride 2 with leaky ReLU, then a convolution that judges each patch (Isola et al. 2017).

    Args:
        in_channels: Of what it is shown: an image, or an image and what it was made of.
        block_out_channels: Channels of the convolutions of stride 2.
    """

    @register_to_config
    def __init__(self, in_channels: int = 1, block_out_channels: Sequence[int] = (32, 64)):
        super().__init__()
        self.layers = nn.Sequential()
        for before, after in pairwise([in_channels, *block_out_channels]):
            self.layers.extend([nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(LEAKY_SLOPE)])
        self.layers.append(nn.Conv2d(block_out_channels[-1], 1, 3, padding=1))

    def forward(self, sample: Tensor, return_dict: bool = True) -> PatchDiscriminatorOutput | tuple[Tensor]:
        """Judge the patches of images.

        Args:
            sample: (B, C, H, W) in [−1, 1].
            return_dict: Return a `PatchDiscriminatorOutput` instead of a tuple.
        """
        logits = self.layers(sample)
        return PatchDiscriminatorOutput(logits) if return_dict else (logits,)
