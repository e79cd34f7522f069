"""Image-to-image networks: a plain U-Net, a residual U-Net and a patch discriminator.

This file is saved with the weights and depends only on torch and diffusers.
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
    """Network output: images (B, C', H · scale_factor, W · scale_factor), approximately in [−1, 1]."""

    sample: Tensor


@dataclass
class PatchDiscriminatorOutput(BaseOutput):
    """Discriminator output: logits (B, 1, h, w), whose sigmoid is the probability that a patch is real."""

    logits: Tensor


class _Translator(ModelMixin, ConfigMixin):
    """Base of the networks: upscaling, noise-level input and residual prediction around `layers`."""

    @property
    def multiple(self) -> int:
        """Divisor that height and width must have after upscaling."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    def _check(self) -> int:
        """Return the number of input channels of `layers`.

        Raises:
            ValueError: if the residual cannot be added to the input.
        """
        config = self.config
        if config.predict_residual and config.in_channels not in (1, config.out_channels):
            raise ValueError(
                f"predict_residual cannot add {config.out_channels} channels to an input with {config.in_channels}"
            )
        return config.in_channels + config.noise_level_input

    def forward(
        self, sample: Tensor, noise_std: Tensor | None = None, return_dict: bool = True
    ) -> TranslatorOutput | tuple[Tensor]:
        """Translate images.

        Args:
            sample: Images (B, C, H, W) in [−1, 1], or beyond if noisy; first upscaled (bicubic) by `scale_factor`.
            noise_std: Standard deviation of the white noise in each image, for pixels in [0, 1], (B,), for a network
                conditioned on it (`noise_level_input`).
            return_dict: Return a `TranslatorOutput` instead of a tuple.

        Raises:
            ValueError: if noise_std is missing or does not apply.
        """
        config = self.config
        if (noise_std is None) == config.noise_level_input:
            raise ValueError(
                "noise_std is missing: this model is conditioned on it"
                if noise_std is None
                else "this model is not conditioned on noise_std"
            )
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
    """One level of a U-Net with a concatenated skip connection."""

    def __init__(self, down: nn.Module, below: nn.Module, up: nn.Module):
        super().__init__()
        self.down, self.below, self.up = down, below, up

    def forward(self, x: Tensor) -> Tensor:
        """Return the input concatenated with the upsampled output of the lower levels: twice the channels."""
        return torch.cat([x, self.up(self.below(self.down(x)))], 1)


class TranslationUNet(_Translator):
    """Plain U-Net (pix2pix, Isola et al. 2017, without normalisation).

    The encoder has a convolution at full resolution and one of stride 2 per level, with leaky ReLU; the decoder has
    transposed convolutions of stride 2 with ReLU; the output is a tanh.

    Args:
        sample_size: Height and width of the training images, or one number for both; other sizes work too.
        in_channels: 1 for greyscale, 3 for RGB.
        out_channels: Likewise.
        block_out_channels: Channels at each level, from fine to coarse; each further entry halves height and width.
        scale_factor: Upscaling factor of the output.
        noise_level_input: Whether the network is conditioned on the noise's standard deviation.
        predict_residual: Whether it predicts the difference to its input; then there is no tanh.
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
    """`nn.Conv2d` with channels-last output, with which the following layers are faster on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        return super().forward(x).contiguous(memory_format=torch.channels_last)


class ResidualBlock(nn.Module):
    """Residual block of two convolutions without normalisation (EDSR, Lim et al. 2017), on (B, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        last = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), last)

    def forward(self, x: Tensor) -> Tensor:
        """Add the residual."""
        return x + self.layers(x)


class _Sum(nn.Module):
    """One level of a residual U-Net with an additive skip connection."""

    def __init__(self, below: nn.Sequential):
        super().__init__()
        self.below = below

    def forward(self, x: Tensor) -> Tensor:
        """Add the output of the lower levels to the input."""
        return x + self.below(x)


class ResidualTranslationUNet(_Translator):
    """U-Net of residual blocks with strided convolutions between the levels (DRUNet, Zhang et al. 2021).

    Args:
        sample_size: See `TranslationUNet`.
        in_channels: Likewise.
        out_channels: Likewise.
        block_out_channels: Likewise.
        layers_per_block: Residual blocks per level, in the encoder and in the decoder.
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
    """PatchGAN discriminator: stride-2 convolutions with leaky ReLU and a logit per patch (Isola et al. 2017).

    Args:
        in_channels: Channels of an image, or of an image concatenated with the network's input.
        block_out_channels: Channels of the stride-2 convolutions.
    """

    @register_to_config
    def __init__(self, in_channels: int = 1, block_out_channels: Sequence[int] = (32, 64)):
        super().__init__()
        self.layers = nn.Sequential()
        for before, after in pairwise([in_channels, *block_out_channels]):
            self.layers.extend([nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(LEAKY_SLOPE)])
        self.layers.append(nn.Conv2d(block_out_channels[-1], 1, 3, padding=1))

    def forward(self, sample: Tensor, return_dict: bool = True) -> PatchDiscriminatorOutput | tuple[Tensor]:
        """Return a logit per patch, (B, 1, h, w).

        Args:
            sample: Images (B, C, H, W) in [−1, 1].
            return_dict: Return a `PatchDiscriminatorOutput` instead of a tuple.
        """
        logits = self.layers(sample)
        return PatchDiscriminatorOutput(logits) if return_dict else (logits,)
