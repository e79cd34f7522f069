"""GAN generators and discriminators for small images: fully connected, convolutional and residual.

This file is saved with the weights and depends only on torch and diffusers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm as spectrally_normed

LEAKY_SLOPE = 0.2
GAIN = math.sqrt(2 / (1 + LEAKY_SLOPE**2))  # of a leaky ReLU (He et al. 2015, eq. 15)


@dataclass
class GeneratorOutput(BaseOutput):
    """Generator output: images (B, C, H, W) in [−1, 1]."""

    sample: Tensor


@dataclass
class DiscriminatorOutput(BaseOutput):
    """Discriminator output: logits (B,), whose sigmoid is the probability that an image is real."""

    logits: Tensor


def linear_layers(sizes: Sequence[int], activation: Callable[[], nn.Module], dropout: float = 0.0) -> nn.Sequential:
    """Linear layers of the given sizes, each followed by an activation and dropout."""
    layers = nn.Sequential()
    for before, after in pairwise(sizes):
        layers.extend([nn.Linear(before, after), activation(), nn.Dropout(dropout)])
    return layers


def leaky() -> nn.Module:
    """Return the activation of the convolutional networks, a leaky ReLU."""
    return nn.LeakyReLU(LEAKY_SLOPE)


def initialize_evenly(layer: nn.Module) -> None:
    """Initialise a convolution or linear layer with Xavier-uniform weights and zero biases (Glorot and Bengio 2010).

    torch's default weights are too small for a generator without normalisation: its outputs barely depend on the
    latents, and it collapses early to black images, where the sigmoid saturates.
    """
    if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)


class ResidualBlock(nn.Module):
    """Residual block of two convolutions without normalisation (Fixup, Zhang et al. 2019), on (B, C, H, W).

    The last convolution is initialised to zero and the first one scaled down by the number of blocks, which preserves
    the scale of activations in a deep network, as normalisation would.
    """

    def __init__(self, channels: int, num_blocks: int):
        super().__init__()
        first, last = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.layers = nn.Sequential(leaky(), first, leaky(), last)
        nn.init.normal_(first.weight, std=GAIN / math.sqrt(9 * channels * num_blocks))
        nn.init.zeros_(last.weight)
        for layer in (first, last):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Add the residual."""
        return x + self.layers(x)


class Upsampling(nn.Module):
    """1×1 convolution, then bilinear upsampling; (B, C, H, W) to (B, C', 2 H, 2 W)."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.channels = nn.Conv2d(before, after, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Change the channels, then interpolate bilinearly, which avoids checkerboard artefacts."""
        return functional.interpolate(self.channels(x), scale_factor=2, mode="bilinear")


class Downsampling(nn.Module):
    """2×2 average pooling, then a 1×1 convolution; (B, C, H, W) to (B, C', H / 2, W / 2)."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.channels = nn.Conv2d(before, after, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Pool, then change the channels."""
        return self.channels(functional.avg_pool2d(x, 2))


class _Generator(ModelMixin, ConfigMixin):
    """Base of all generators: from latents and classes to images."""

    def _condition(self, latents: Tensor, class_labels: Tensor | None) -> Tensor:
        _check_labels(class_labels, self.config.num_classes)
        if class_labels is None:
            return latents
        return torch.cat([latents, functional.one_hot(class_labels, self.config.num_classes).to(latents)], dim=1)

    def forward(
        self, latents: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> GeneratorOutput | tuple[Tensor]:
        """Generate images (B, C, H, W) in [−1, 1].

        Args:
            latents: Samples of the standard normal distribution, (B, latent_dim).
            class_labels: Classes of the images, int64 (B,), for a class-conditional model.
            return_dict: Return a `GeneratorOutput` instead of a tuple.
        """
        sample = self.layers(self._condition(latents, class_labels)).sigmoid() * 2 - 1
        return GeneratorOutput(sample) if return_dict else (sample,)


class _Discriminator(ModelMixin, ConfigMixin):
    """Base of all discriminators: features and a (projection) head (Miyato and Koyama 2018)."""

    def _add_head(self, features: int, num_classes: int | None) -> None:
        self.head = nn.Linear(features, 1)
        if num_classes:
            self.embedding = nn.Embedding(num_classes, features)
            nn.init.normal_(self.embedding.weight, std=1 / math.sqrt(features))

    def _normalize_spectrally(self) -> None:
        for layer in [*self.modules()]:
            if isinstance(layer, ResidualBlock):  # spectral normalisation cannot divide zeros
                nn.init.kaiming_normal_(layer.layers[-1].weight)
        for layer in [*self.modules()]:
            if isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding):
                spectrally_normed(layer)

    def _features(self, sample: Tensor) -> Tensor:
        return self.layers(sample).flatten(1)

    def forward(
        self, sample: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> DiscriminatorOutput | tuple[Tensor]:
        """Return logits (B,).

        Args:
            sample: Images (B, C, H, W) in [−1, 1].
            class_labels: Classes of the images, int64 (B,), for a class-conditional model.
            return_dict: Return a `DiscriminatorOutput` instead of a tuple.
        """
        _check_labels(class_labels, self.config.num_classes)
        features = self._features(sample)
        logits = self.head(features)[:, 0]
        if class_labels is not None:
            logits = logits + (self.embedding(class_labels) * features).sum(1)
        return DiscriminatorOutput(logits) if return_dict else (logits,)


class FullyConnectedGenerator(_Generator):
    """Fully connected generator with ReLU activations.

    Args:
        sample_size: Height and width of the images, or one number for both.
        out_channels: 1 for greyscale, 3 for RGB.
        latent_dim: Dimension of the latent space.
        hidden_sizes: Hidden layer sizes.
        num_classes: Number of classes of a class-conditional model, or None.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | Sequence[int] = 28,
        out_channels: int = 1,
        latent_dim: int = 100,
        hidden_sizes: Sequence[int] = (256, 512),
        num_classes: int | None = None,
    ):
        super().__init__()
        shape = (out_channels, *_height_and_width(sample_size))
        sizes = [latent_dim + (num_classes or 0), *hidden_sizes]
        self.layers = nn.Sequential(
            *linear_layers(sizes, nn.ReLU), nn.Linear(sizes[-1], math.prod(shape)), nn.Unflatten(1, shape)
        )


class FullyConnectedDiscriminator(_Discriminator):
    """Fully connected discriminator with ReLU activations.

    Args:
        sample_size: Height and width of the images, or one number for both.
        in_channels: 1 for greyscale, 3 for RGB.
        hidden_sizes: Hidden layer sizes.
        dropout: Dropout probability after each hidden layer.
        spectral_norm: Spectral normalisation of the weights (Miyato et al. 2018).
        num_classes: Number of classes of a class-conditional model, or None.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | Sequence[int] = 28,
        in_channels: int = 1,
        hidden_sizes: Sequence[int] = (512, 256),
        dropout: float = 0.0,
        spectral_norm: bool = False,
        num_classes: int | None = None,
    ):
        super().__init__()
        sizes = [in_channels * math.prod(_height_and_width(sample_size)), *hidden_sizes]
        self.layers = nn.Sequential(nn.Flatten(), *linear_layers(sizes, nn.ReLU, dropout))
        self._add_head(sizes[-1], num_classes)
        if spectral_norm:
            self._normalize_spectrally()


class UnflattenChannelsLast(nn.Unflatten):
    """`nn.Unflatten` to the channels-last memory format, in which transposed convolutions are faster."""

    def forward(self, x: Tensor) -> Tensor:
        """Reshape (B, C · H · W) to (B, C, H, W)."""
        return super().forward(x).contiguous(memory_format=torch.channels_last)


class ConvolutionalGenerator(_Generator):
    """Linear layers and stride-2 transposed convolutions with leaky ReLU (DCGAN, Radford et al. 2016).

    Args:
        sample_size: Height and width of the images, or one number for both; each transposed convolution doubles them.
        out_channels: 1 for greyscale, 3 for RGB.
        latent_dim: Dimension of the latent space.
        block_out_channels: Channels at each resolution, from coarse to fine.
        hidden_sizes: Sizes of further linear layers before it.
        pixel_shuffle: Compute the pixels from features of half the resolution, four at a time (sub-pixel convolution,
            Shi et al. 2016), in place of the last transposed convolution: a fraction of the cost.
        batch_norm: Batch normalisation after the last linear layer and each transposed convolution (Ioffe and Szegedy
            2015).
        num_classes: Number of classes of a class-conditional model, or None.

    Raises:
        ValueError: if the image size is not divisible accordingly.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | Sequence[int] = 28,
        out_channels: int = 1,
        latent_dim: int = 100,
        block_out_channels: Sequence[int] = (128, 128),
        hidden_sizes: Sequence[int] = (),
        pixel_shuffle: bool = False,
        batch_norm: bool = False,
        num_classes: int | None = None,
    ):
        super().__init__()
        inner = (block_out_channels[0], *_halved(sample_size, len(block_out_channels)))

        def activation(channels: int) -> list[nn.Module]:
            return [nn.BatchNorm2d(channels), leaky()] if batch_norm else [leaky()]

        sizes = [latent_dim + (num_classes or 0), *hidden_sizes]
        self.layers = nn.Sequential(
            *linear_layers(sizes, leaky),
            nn.Linear(sizes[-1], math.prod(inner)),
            UnflattenChannelsLast(1, inner),
            *activation(block_out_channels[0]),
        )
        doubled = block_out_channels if pixel_shuffle else [block_out_channels[0], *block_out_channels]
        for before, after in pairwise(doubled):
            self.layers.extend([nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), *activation(after)])
        last = block_out_channels[-1]
        if pixel_shuffle:
            self.layers.extend([nn.Conv2d(last, 4 * out_channels, 3, padding=1), nn.PixelShuffle(2)])
        else:
            self.layers.append(nn.Conv2d(last, out_channels, 7, padding=3))
        self.apply(initialize_evenly)


class ConvolutionalDiscriminator(_Discriminator):
    """Stride-2 convolutions with leaky ReLU and dropout, then linear layers (DCGAN, Radford et al. 2016).

    Args:
        sample_size: Height and width of the images, or one number for both; each convolution halves them, rounding up.
        in_channels: 1 for greyscale, 3 for RGB.
        block_out_channels: Channels of the convolutions.
        hidden_sizes: Sizes of linear layers after them and before the last one.
        dropout: Dropout probability after each of these layers.
        spectral_norm: Spectral normalisation of the weights (Miyato et al. 2018).
        num_classes: Number of classes of a class-conditional model, or None.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | Sequence[int] = 28,
        in_channels: int = 1,
        block_out_channels: Sequence[int] = (64, 64),
        hidden_sizes: Sequence[int] = (),
        dropout: float = 0.0,
        spectral_norm: bool = False,
        num_classes: int | None = None,
    ):
        super().__init__()
        self.layers = nn.Sequential()
        for before, after in pairwise([in_channels, *block_out_channels]):
            self.layers.extend([nn.Conv2d(before, after, 3, stride=2, padding=1), leaky(), nn.Dropout(dropout)])
        pixels = math.prod(math.ceil(side / 2 ** len(block_out_channels)) for side in _height_and_width(sample_size))
        sizes = [block_out_channels[-1] * pixels, *hidden_sizes]
        self.layers.extend([nn.Flatten(), *linear_layers(sizes, leaky, dropout)])
        self._add_head(sizes[-1], num_classes)
        self.apply(initialize_evenly)
        if spectral_norm:
            self._normalize_spectrally()

    def _features(self, sample: Tensor) -> Tensor:
        """Use pixels in [0, 1], so that black pixels contribute nothing to a convolution."""
        return super()._features(sample / 2 + 0.5)


class ResidualGenerator(_Generator):
    """Linear layer and residual blocks at each resolution (R3GAN, Huang et al. 2024, with plain convolutions).

    Args:
        sample_size: Height and width of the images, or one number for both; doubled between two resolutions.
        out_channels: 1 for greyscale, 3 for RGB.
        latent_dim: Dimension of the latent space.
        block_out_channels: Channels at each resolution, from coarse to fine.
        layers_per_block: Residual blocks per resolution.
        num_classes: Number of classes of a class-conditional model, or None.

    Raises:
        ValueError: if the image size is not divisible accordingly.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | Sequence[int] = 28,
        out_channels: int = 1,
        latent_dim: int = 64,
        block_out_channels: Sequence[int] = (128, 64, 32),
        layers_per_block: int = 2,
        num_classes: int | None = None,
    ):
        super().__init__()
        levels = len(block_out_channels)
        inner = (block_out_channels[0], *_halved(sample_size, levels - 1))
        self.layers = nn.Sequential(
            nn.Linear(latent_dim + (num_classes or 0), math.prod(inner)), nn.Unflatten(1, inner)
        )
        for level, channels in enumerate(block_out_channels):
            if level:
                self.layers.append(Upsampling(block_out_channels[level - 1], channels))
            self.layers.extend(ResidualBlock(channels, levels * layers_per_block) for _ in range(layers_per_block))
        self.layers.extend([leaky(), nn.Conv2d(block_out_channels[-1], out_channels, 3, padding=1)])


class ResidualDiscriminator(_Discriminator):
    """Mirror of `ResidualGenerator`: residual blocks at each resolution, then a depthwise convolution over all pixels.

    Args:
        sample_size: Height and width of the images, or one number for both; halved between two resolutions.
        in_channels: 1 for greyscale, 3 for RGB.
        block_out_channels: Channels at each resolution, from fine to coarse.
        layers_per_block: Residual blocks per resolution.
        dropout: Dropout probability of the features.
        spectral_norm: Spectral normalisation of the weights (Miyato et al. 2018).
        num_classes: Number of classes of a class-conditional model, or None.

    Raises:
        ValueError: if the image size is not divisible accordingly.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | Sequence[int] = 28,
        in_channels: int = 1,
        block_out_channels: Sequence[int] = (32, 64, 128),
        layers_per_block: int = 2,
        dropout: float = 0.0,
        spectral_norm: bool = False,
        num_classes: int | None = None,
    ):
        super().__init__()
        levels = len(block_out_channels)
        inner = _halved(sample_size, levels - 1)
        self.layers = nn.Sequential(nn.Conv2d(in_channels, block_out_channels[0], 3, padding=1))
        for level, channels in enumerate(block_out_channels):
            if level:
                self.layers.append(Downsampling(block_out_channels[level - 1], channels))
            self.layers.extend(ResidualBlock(channels, levels * layers_per_block) for _ in range(layers_per_block))
        last = block_out_channels[-1]
        self.layers.extend([leaky(), nn.Conv2d(last, last, inner, groups=last), nn.Dropout(dropout)])
        self._add_head(last, num_classes)
        if spectral_norm:
            self._normalize_spectrally()


def _height_and_width(sample_size: int | Sequence[int]) -> tuple[int, int]:
    return (sample_size, sample_size) if isinstance(sample_size, int) else tuple(sample_size)


def _halved(sample_size: int | Sequence[int], times: int) -> tuple[int, int]:
    height, width = _height_and_width(sample_size)
    if height % 2**times or width % 2**times:
        raise ValueError(
            f"block_out_channels halve or double images {times} times, which needs sides divisible by {2**times}, not "
            f"{height}×{width}"
        )
    return height // 2**times, width // 2**times


def _check_labels(class_labels: Tensor | None, num_classes: int | None) -> None:
    if (class_labels is None) != (num_classes is None):
        raise ValueError(
            "class_labels are missing: this model is class-conditional"
            if class_labels is None
            else "this model is unconditional: class_labels do not apply"
        )
