"""Variational autoencoders of small images (Kingma and Welling 2014), fully connected and convolutional.

This file is saved beside the weights and needs nothing but torch and diffusers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.activations import get_activation
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Normal
from torch.nn import functional

LEVELS = 256  # of a pixel
MIN_LOG_SCALE = -7.0  # a logistic narrower than this is a level by itself


class DiscretizedLogistic(Distribution):
    """Logistic distributions whose mass is gathered on the 256 levels of pixels from 0 to 1 (Salimans et al. 2017).

    Args:
        mean: Where they are centred, in [0, 1].
        log_scale: Logarithm of their scale; like `mean`.
    """

    arg_constraints: ClassVar[dict] = {}

    def __init__(self, mean: Tensor, log_scale: Tensor):
        super().__init__(mean.shape, validate_args=False)
        self.centre, self.log_scale = mean, log_scale.clamp_min(MIN_LOG_SCALE)

    @property
    def mean(self) -> Tensor:
        """Where the distributions are centred, in [0, 1]."""
        return self.centre

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the logarithm of the probability of each pixel's level, in nats; `value` in [0, 1]."""
        half = 0.5 / (LEVELS - 1)
        scale = self.log_scale.exp()
        upper, lower = ((value + offset - self.centre) / scale for offset in (half, -half))
        below, above = functional.logsigmoid(upper), functional.logsigmoid(-lower)  # all that is cut off
        inside = below + above + torch.log(-torch.expm1(-2 * half / scale))  # exact however far from the centre
        return torch.where(value < half, below, torch.where(value > 1 - half, above, inside))


@dataclass
class VAEDecoderOutput(BaseOutput):
    """What a VAE decodes: the means of the pixels, (B, C, H, W) in [−1, 1]."""

    sample: Tensor


def pixel_distribution(logits: Tensor, log_scale: Tensor | None) -> Distribution:
    """Return p(x | z) of pixels in [0, 1].

    Args:
        logits: Of the means, (B, C, H, W).
        log_scale: None for Bernoulli distributions; the logarithm of one standard deviation, a scalar, for normal
            ones; that of each pixel's scale, like `logits`, for discretised logistic ones.
    """
    if log_scale is None:
        return Bernoulli(logits=logits, validate_args=False)
    if log_scale.ndim == 0:
        return Normal(logits.sigmoid(), log_scale.exp(), validate_args=False)
    return DiscretizedLogistic(logits.sigmoid(), log_scale)


@dataclass
class VAEModelOutput(BaseOutput):
    """What a VAE makes of images, from L latents of each; in tensors, which `torch.export` can return.

    Args:
        sample: The reconstructions, (L · B, C, H, W) in [−1, 1].
        latent_mean, latent_std: Of q(z | x), (B, latent_dim).
        latents: z, (L · B, latent_dim).
        pixel_logits, pixel_log_scale: Of p(x | z), (L · B, C, H, W); see `pixel_distribution`.
    """

    sample: Tensor
    latent_mean: Tensor | None = None
    latent_std: Tensor | None = None
    latents: Tensor | None = None
    pixel_logits: Tensor | None = None
    pixel_log_scale: Tensor | None = None

    @property
    def latent_dist(self) -> Normal:
        """q(z | x), over (B, latent_dim)."""
        return Normal(self.latent_mean, self.latent_std, validate_args=False)

    @property
    def pixels(self) -> Distribution:
        """p(x | z) of pixels in [0, 1], over (L · B, C, H, W)."""
        return pixel_distribution(self.pixel_logits, self.pixel_log_scale)


class ResidualBlock(nn.Module):
    """Two normalised convolutions beside an identity (He et al. 2016); (B, C, H, W) to the same."""

    def __init__(self, channels: int, norm_num_groups: int, act_fn: str):
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(norm_num_groups, channels),
            get_activation(act_fn),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(norm_num_groups, channels),
            get_activation(act_fn),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Add what the two convolutions find."""
        return x + self.layers(x)


def mlp(sizes: Sequence[int], act_fn: str) -> nn.Sequential:
    """Linear layers from size to size, with activations between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), get_activation(act_fn)]
    return nn.Sequential(*layers[:-1])


def downsampling(channels: Sequence[int], layers_per_block: int, norm_num_groups: int, act_fn: str) -> nn.Sequential:
    """Convolutions of stride 2 with activations and residual blocks; (B, C, H, W) to (B, C', H / 2ⁿ, W / 2ⁿ)."""
    layers = nn.Sequential()
    for before, after in pairwise(channels):
        layers.extend([nn.Conv2d(before, after, 3, stride=2, padding=1), get_activation(act_fn)])
        layers.extend(ResidualBlock(after, norm_num_groups, act_fn) for _ in range(layers_per_block))
    return layers


def upsampling(
    channels: Sequence[int],
    doublings: int,
    activate_input: bool,
    layers_per_block: int,
    norm_num_groups: int,
    act_fn: str,
) -> nn.Sequential:
    """Transposed convolutions, before each an activation; (B, C, H, W) to (B, C', 2ⁿ H, 2ⁿ W).

    The first n of them have stride 2, the rest stride 1; before each are residual blocks. The first activation may be
    left out.
    """
    layers = nn.Sequential()
    for index, (before, after) in enumerate(pairwise(channels)):
        stride = {"stride": 2, "output_padding": 1} if index < doublings else {}
        layers.append(get_activation(act_fn) if index or activate_input else nn.Identity())
        layers.extend(ResidualBlock(before, norm_num_groups, act_fn) for _ in range(layers_per_block))
        layers.append(nn.ConvTranspose2d(before, after, 3, padding=1, **stride))
    return layers


class VAEModel(ModelMixin, ConfigMixin):
    """An encoder q(z | x), a decoder p(x | z), and a standard normal prior of z.

    The encoder has convolutions of stride 2, if any, then linear layers; the decoder has linear layers, then
    transposed convolutions. Without convolutions it is fully connected.

    Args:
        sample_size: Height and width of the images, or one number for both. Convolutions halve it once each.
        in_channels: 1 for grey, 3 for RGB.
        latent_dim: Numbers in z.
        block_out_channels: Channels of the encoder's convolutions.
        hidden_sizes: Features of the encoder's linear layers, but for the last, which gives mean and log-variance.
        decoder_hidden_sizes: Features of the decoder's linear layers; by default the encoder's, reversed.
        decoder_block_out_channels: Channels after each of the decoder's transposed convolutions but the last, which
            makes the image; by default the encoder's, reversed. As many of them as the encoder has convolutions have
            stride 2, the rest stride 1.
        layers_per_block: Residual blocks after each convolution and before each transposed one.
        norm_num_groups: Groups of the group norms in these blocks.
        act_fn: Activation, by diffusers' names.
        pixel_distribution: p(x | z) of a pixel in [0, 1]: `bernoulli`, `gaussian` (one standard deviation for all
            pixels, learnt; Rybkin et al. 2021) or `logistic` (discretised, with a scale for each pixel).
        num_classes: Classes that encoder and decoder are told, or None.
        activate_decoder_input: Apply the activation between the decoder's last linear layer and its first transposed
            convolution.

    Raises:
        ValueError: if the convolutions do not fit the images, or each other.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | Sequence[int] = 28,
        in_channels: int = 1,
        latent_dim: int = 20,
        block_out_channels: Sequence[int] = (),
        hidden_sizes: Sequence[int] = (400,),
        decoder_hidden_sizes: Sequence[int] | None = None,
        decoder_block_out_channels: Sequence[int] | None = None,
        layers_per_block: int = 0,
        norm_num_groups: int = 8,
        act_fn: str = "relu",
        pixel_distribution: str = "bernoulli",
        num_classes: int | None = None,
        activate_decoder_input: bool = True,
    ):
        super().__init__()
        if pixel_distribution not in ("bernoulli", "gaussian", "logistic"):
            raise ValueError(f"pixel_distribution must be bernoulli, gaussian or logistic, not {pixel_distribution}")
        size = (sample_size, sample_size) if isinstance(sample_size, int) else tuple(sample_size)
        halvings = len(block_out_channels)
        if any(length % 2**halvings for length in size):
            raise ValueError(f"{halvings} convolutions of stride 2 do not fit images of {size[0]}×{size[1]} pixels")
        if decoder_hidden_sizes is None:
            decoder_hidden_sizes = list(reversed(hidden_sizes))
        if decoder_block_out_channels is None:
            decoder_block_out_channels = list(reversed(block_out_channels))
        if len(decoder_block_out_channels) not in (halvings - 1, halvings):
            raise ValueError(
                "decoder_block_out_channels must have as many entries as block_out_channels, or one fewer, not "
                f"{len(decoder_block_out_channels)} for {halvings}"
            )
        blocks = (layers_per_block, norm_num_groups, act_fn)
        out_channels = in_channels * (2 if pixel_distribution == "logistic" else 1)
        inner = [length >> halvings for length in size]
        classes = num_classes or 0

        encoder_channels = [in_channels, *block_out_channels]
        self.down = downsampling(encoder_channels, *blocks)
        features = encoder_channels[-1] * math.prod(inner)
        self.to_latents = mlp([features + classes, *hidden_sizes, 2 * latent_dim], act_fn)

        decoder_channels = [encoder_channels[-1], *decoder_block_out_channels] if halvings else []
        self.inner_shape = ([*decoder_channels, out_channels][0], *inner)
        self.from_latents = mlp([latent_dim + classes, *decoder_hidden_sizes, math.prod(self.inner_shape)], act_fn)
        self.up = upsampling([*decoder_channels, out_channels], halvings, activate_decoder_input, *blocks)
        if pixel_distribution == "gaussian":
            self.log_std = nn.Parameter(torch.zeros(()))

    @apply_forward_hook
    def encode(self, images: Tensor, class_labels: Tensor | None = None) -> Normal:
        """Return q(z | x), a normal distribution over (B, latent_dim), for images (B, C, H, W) in [−1, 1].

        Args:
            images: x.
            class_labels: The classes, int64 (B,), if the model knows any.
        """
        features = self.down(images / 2 + 0.5).flatten(1)
        mean, log_variance = self.to_latents(self._with_classes(features, class_labels)).float().chunk(2, dim=1)
        return Normal(mean, (0.5 * log_variance.clamp(-30, 20)).exp(), validate_args=False)

    def pixels(self, latents: Tensor, class_labels: Tensor | None = None) -> Distribution:
        """Return p(x | z) of pixels in [0, 1], over (B, C, H, W), for latents (B, latent_dim)."""
        return pixel_distribution(*self._pixel_parameters(latents, class_labels))

    def _pixel_parameters(self, latents: Tensor, class_labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return what `pixel_distribution` takes, in float32."""
        features = self.from_latents(self._with_classes(latents.to(self.dtype), class_labels))
        logits = self.up(features.view(-1, *self.inner_shape)).float()
        match self.config.pixel_distribution:
            case "bernoulli":
                return logits, None
            case "gaussian":
                return logits, self.log_std.float()
            case "logistic":
                mean, log_scale = logits.chunk(2, dim=1)
                return mean, log_scale - 3  # which begins with a twentieth of the range

    @apply_forward_hook
    def decode(
        self, latents: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> VAEDecoderOutput | tuple[Tensor]:
        """Return the means of the pixels, (B, C, H, W) in [−1, 1], for latents (B, latent_dim)."""
        sample = self.pixels(latents, class_labels).mean * 2 - 1
        return VAEDecoderOutput(sample) if return_dict else (sample,)

    def forward(
        self,
        sample: Tensor,
        class_labels: Tensor | None = None,
        num_draws: int = 0,
        return_dict: bool = True,
    ) -> VAEModelOutput | tuple:
        """Reconstruct images (B, C, H, W) in [−1, 1].

        Args:
            sample: The images.
            class_labels: See `encode`.
            num_draws: L, how many latents are drawn of each q(z | x); with 0 its mean is the only one.
            return_dict: Return a `VAEModelOutput` instead of a tuple.
        """
        latent_dist = self.encode(sample, class_labels)
        latents = latent_dist.rsample((num_draws,)).flatten(0, 1) if num_draws else latent_dist.mean
        if class_labels is not None:
            class_labels = class_labels.repeat(max(num_draws, 1))
        parameters = self._pixel_parameters(latents, class_labels)
        sample = pixel_distribution(*parameters).mean * 2 - 1
        output = VAEModelOutput(sample, latent_dist.mean, latent_dist.stddev, latents, *parameters)
        return output if return_dict else output.to_tuple()

    def _with_classes(self, features: Tensor, class_labels: Tensor | None) -> Tensor:
        if (class_labels is None) != (self.config.num_classes is None):
            raise ValueError("class_labels are " + ("missing" if class_labels is None else "not known to this model"))
        if class_labels is None:
            return features
        return torch.cat([features, functional.one_hot(class_labels, self.config.num_classes).to(features)], dim=1)


@dataclass
class GaussianMixtureOutput(BaseOutput):
    """Latents drawn from a mixture, (B, D)."""

    sample: Tensor


class GaussianMixtureModel(ModelMixin, ConfigMixin):
    """A mixture of normal distributions of latents, which has the shape that q(z) really has, where the prior has not.

    Args:
        latent_dim: D.
        num_components: K.
    """

    @register_to_config
    def __init__(self, latent_dim: int = 20, num_components: int = 10):
        super().__init__()
        self.register_buffer("weights", torch.full((num_components,), 1 / num_components))
        self.register_buffer("means", torch.zeros(num_components, latent_dim))
        self.register_buffer("scale_trils", torch.eye(latent_dim).repeat(num_components, 1, 1))

    def set_parameters(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        """Take weights (K,), means (K, D) and covariances (K, D, D), best in double precision."""
        self.weights.copy_(weights.float())  # before it reaches a device that may have no double precision
        self.means.copy_(means.float())
        self.scale_trils.copy_(torch.linalg.cholesky(covariances).float())

    def forward(
        self, noise: Tensor, uniform: Tensor, return_dict: bool = True
    ) -> GaussianMixtureOutput | tuple[Tensor]:
        """Draw latents.

        Args:
            noise: N(0, 1), (B, D).
            uniform: Numbers drawn evenly from 0 to 1, (B,).
            return_dict: Return a `GaussianMixtureOutput` instead of a tuple.
        """
        chosen = torch.searchsorted(self.weights.cumsum(0), uniform).clamp(max=len(self.weights) - 1)
        sample = self.means[chosen] + (self.scale_trils[chosen] @ noise[..., None])[..., 0]
        return GaussianMixtureOutput(sample) if return_dict else (sample,)
