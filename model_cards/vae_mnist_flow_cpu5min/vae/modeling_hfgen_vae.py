"""Variational autoencoders of small images (Kingma and Welling 2014): linear, convolutional, spatial, ladders.

This file is saved with the weights and depends only on torch and diffusers.
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
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Normal
from torch.nn import functional

LEVELS = 256  # pixel values
MIN_LOG_SCALE = -7.0  # a narrower logistic has all its mass on one level


class DiscretizedLogistic(Distribution):
    """Logistic distributions discretised to 256 levels in [0, 1] (Salimans et al. 2017).

    Args:
        mean: Location parameter, in [0, 1].
        log_scale: Logarithm of the scale, in the shape of `mean`.
    """

    arg_constraints: ClassVar[dict] = {}

    def __init__(self, mean: Tensor, log_scale: Tensor):
        super().__init__(mean.shape, validate_args=False)
        self.centre, self.log_scale = mean, log_scale.clamp_min(MIN_LOG_SCALE)

    @property
    def mean(self) -> Tensor:
        """The location parameter, in [0, 1]."""
        return self.centre

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of each pixel's level, in nats, for `value` in [0, 1]."""
        half = 0.5 / (LEVELS - 1)
        scale = self.log_scale.exp()
        upper, lower = ((value + offset - self.centre) / scale for offset in (half, -half))
        below, above = functional.logsigmoid(upper), functional.logsigmoid(-lower)  # tails beyond [0, 1]
        inside = below + above + torch.log(-torch.expm1(-2 * half / scale))  # accurate far from the centre
        return torch.where(value < half, below, torch.where(value > 1 - half, above, inside))


@dataclass
class VAEDecoderOutput(BaseOutput):
    """Decoder output: pixel means, (B, C, H, W) in [−1, 1]."""

    sample: Tensor


def pixel_distribution(logits: Tensor, log_scale: Tensor | None) -> Distribution:
    """Return p(x | z) of pixels in [0, 1].

    Args:
        logits: Logits of the means, (B, C, H, W).
        log_scale: None for Bernoulli distributions, the log standard deviation (a scalar) for Gaussian ones, the log
            scale of each pixel, (B, C, H, W), for discretised logistic ones.
    """
    if log_scale is None:
        return Bernoulli(logits=logits, validate_args=False)
    if log_scale.ndim == 0:
        return Normal(logits.sigmoid(), log_scale.exp(), validate_args=False)
    return DiscretizedLogistic(logits.sigmoid(), log_scale)


@dataclass
class VAEModelOutput(BaseOutput):
    """Output of a VAE with L latent samples per image; plain tensors, as `torch.export` requires.

    Args:
        sample: Reconstructions, (L · B, C, H, W) in [−1, 1].
        latent_mean, latent_std: Parameters of q(z | x), (B, latent_dim); of a ladder those along the sampled path,
            (L, B, latent_dim).
        latents: z, (L · B, latent_dim).
        pixel_logits, pixel_log_scale: Parameters of p(x | z), (L · B, C, H, W); see `pixel_distribution`.
    """

    sample: Tensor
    latent_mean: Tensor | None = None
    latent_std: Tensor | None = None
    latents: Tensor | None = None
    pixel_logits: Tensor | None = None
    pixel_log_scale: Tensor | None = None

    @property
    def latent_dist(self) -> Normal:
        """q(z | x), over (B, latent_dim) or (L, B, latent_dim)."""
        return Normal(self.latent_mean, self.latent_std, validate_args=False)

    @property
    def pixels(self) -> Distribution:
        """p(x | z) of pixels in [0, 1], over (L · B, C, H, W)."""
        return pixel_distribution(self.pixel_logits, self.pixel_log_scale)


class ResidualBlock(nn.Module):
    """Pre-activation residual block of two convolutions with group norm (He et al. 2016), on (B, C, H, W)."""

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
        """Add the residual."""
        return x + self.layers(x)


def mlp(sizes: Sequence[int], act_fn: str) -> nn.Sequential:
    """Linear layers of the given sizes, with activations between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), get_activation(act_fn)]
    return nn.Sequential(*layers[:-1])


def downsampling(channels: Sequence[int], layers_per_block: int, norm_num_groups: int, act_fn: str) -> nn.Sequential:
    """Stride-2 convolutions with activations and residual blocks; (B, C, H, W) to (B, C', H / 2ⁿ, W / 2ⁿ)."""
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
    """Transposed convolutions, each after an activation and residual blocks; (B, C, H, W) to (B, C', 2ⁿ H, 2ⁿ W).

    The first n have stride 2, the rest stride 1. The first activation is optional.
    """
    layers = nn.Sequential()
    for index, (before, after) in enumerate(pairwise(channels)):
        stride = {"stride": 2, "output_padding": 1} if index < doublings else {}
        layers.append(get_activation(act_fn) if index or activate_input else nn.Identity())
        layers.extend(ResidualBlock(before, norm_num_groups, act_fn) for _ in range(layers_per_block))
        layers.append(nn.ConvTranspose2d(before, after, 3, padding=1, **stride))
    return layers


def checked_size(sample_size: int | Sequence[int], halvings: int, pixel_distribution: str) -> tuple[int, ...]:
    """Return height and width of the images.

    Raises:
        ValueError: if so many stride-2 convolutions do not divide them, or for an unknown distribution of pixels.
    """
    if pixel_distribution not in ("bernoulli", "gaussian", "logistic"):
        raise ValueError(f"pixel_distribution must be bernoulli, gaussian or logistic, not {pixel_distribution}")
    size = (sample_size, sample_size) if isinstance(sample_size, int) else tuple(sample_size)
    if any(length % 2**halvings for length in size):
        raise ValueError(
            f"{halvings} convolutions of stride 2 need images with sides divisible by {2**halvings}, not "
            f"{size[0]}×{size[1]}"
        )
    return size


def check_decoder(decoder_block_out_channels: Sequence[int], halvings: int) -> None:
    """Raise ValueError if a decoder's convolutions cannot undo so many halvings of the encoder."""
    if len(decoder_block_out_channels) not in (halvings - 1, halvings):
        raise ValueError(
            "decoder_block_out_channels must have as many entries as block_out_channels, or one fewer, not "
            f"{len(decoder_block_out_channels)} for {halvings}"
        )


def normal(parameters: Tensor) -> Normal:
    """Return the normal distribution whose mean and log-variance are the halves of (B, 2 D, …), in float32."""
    mean, log_variance = parameters.float().chunk(2, dim=1)
    return Normal(mean, (0.5 * log_variance.clamp(-30, 20)).exp(), validate_args=False)


class _VAE(ModelMixin, ConfigMixin):
    """What VAEs have in common: an encoder q(z | x) and a decoder p(x | z), with the prior N(0, I) of z.

    A subclass defines `encode` and `_logits`, and `_reconstruct` if its layers depend on each other.
    """

    def encode(self, images: Tensor, class_labels: Tensor | None = None) -> Normal:
        """Return q(z | x), a normal distribution over (B, latent_dim), for images (B, C, H, W) in [−1, 1]."""
        raise NotImplementedError

    def pixels(self, latents: Tensor, class_labels: Tensor | None = None) -> Distribution:
        """Return p(x | z) of pixels in [0, 1], over (B, C, H, W), for latents (B, latent_dim)."""
        return pixel_distribution(*self._pixel_parameters(self._logits(latents, class_labels)))

    @apply_forward_hook
    def decode(
        self, latents: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> VAEDecoderOutput | tuple[Tensor]:
        """Return the pixel means, (B, C, H, W) in [−1, 1], for latents (B, latent_dim)."""
        sample = self.pixels(latents, class_labels).mean * 2 - 1
        return VAEDecoderOutput(sample) if return_dict else (sample,)

    def forward(
        self,
        sample: Tensor,
        class_labels: Tensor | None = None,
        num_draws: int = 0,
        return_dict: bool = True,
        noise: Tensor | None = None,
    ) -> VAEModelOutput | tuple:
        """Reconstruct images (B, C, H, W) in [−1, 1].

        Args:
            sample: The images.
            class_labels: See `encode`.
            num_draws: Number L of samples from each q(z | x); 0 uses its mean instead.
            return_dict: Return a `VAEModelOutput` instead of a tuple.
            noise: Standard normal noise of these samples, (L, B, latent_dim), instead of random noise.
        """
        if noise is None and num_draws:
            noise = torch.randn(num_draws, sample.shape[0], self.config.latent_dim, device=sample.device)
        latent_dist, latents, logits = self._reconstruct(sample, class_labels, noise)
        parameters = self._pixel_parameters(logits)
        sample = pixel_distribution(*parameters).mean * 2 - 1
        output = VAEModelOutput(sample, latent_dist.mean, latent_dist.stddev, latents, *parameters)
        return output if return_dict else output.to_tuple()

    def _logits(self, latents: Tensor, class_labels: Tensor | None) -> Tensor:
        """Return the decoder's output for latents (B, latent_dim), in float32."""
        raise NotImplementedError

    def _reconstruct(
        self, images: Tensor, class_labels: Tensor | None, noise: Tensor | None
    ) -> tuple[Normal, Tensor, Tensor]:
        """Return q(z | x), its samples (L · B, latent_dim), and the decoder's output for these, in float32.

        The samples are those of the given noise (see `forward`); without it, the means, (B, latent_dim).
        """
        latent_dist = self.encode(images, class_labels)
        if noise is None:
            return latent_dist, latent_dist.mean, self._logits(latent_dist.mean, class_labels)
        latents = (latent_dist.mean + latent_dist.stddev * noise).flatten(0, 1)
        labels = None if class_labels is None else class_labels.repeat(len(noise))
        return latent_dist, latents, self._logits(latents, labels)

    def _pixel_parameters(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the arguments of `pixel_distribution` from the decoder's output."""
        match self.config.pixel_distribution:
            case "bernoulli":
                return logits, None
            case "gaussian":
                return logits, self.log_std.float()
            case "logistic":
                mean, log_scale = logits.chunk(2, dim=1)
                return mean, log_scale - 3  # initial scale of about 1/20

    def _with_classes(self, features: Tensor, class_labels: Tensor | None) -> Tensor:
        if (class_labels is None) != (self.config.num_classes is None):
            raise ValueError(
                "class_labels are missing: this model is class-conditional"
                if class_labels is None
                else "this model is unconditional: class_labels do not apply"
            )
        if class_labels is None:
            return features
        return torch.cat([features, functional.one_hot(class_labels, self.config.num_classes).to(features)], dim=1)


class VAEModel(_VAE):
    """Encoder q(z | x) and decoder p(x | z) with a standard normal prior of z.

    The encoder has optional stride-2 convolutions, then linear layers; the decoder has linear layers, then transposed
    convolutions. Without convolutions it is fully connected.

    Args:
        sample_size: Height and width of the images, or one number for both; each convolution halves them.
        in_channels: 1 for greyscale, 3 for RGB.
        latent_dim: Dimension of z.
        block_out_channels: Channels of the encoder's convolutions.
        hidden_sizes: Hidden layer sizes of the encoder, before the layer that outputs mean and log-variance.
        decoder_hidden_sizes: Hidden layer sizes of the decoder; by default the encoder's, reversed.
        decoder_block_out_channels: Output channels of the decoder's transposed convolutions, except the last, which
            outputs the image; by default the encoder's, reversed. The first ones, as many as the encoder has
            convolutions, have stride 2, the rest stride 1.
        layers_per_block: Residual blocks after each convolution and before each transposed convolution.
        norm_num_groups: Groups of the group norms in these blocks.
        act_fn: Activation, by its name in diffusers.
        pixel_distribution: p(x | z) of a pixel in [0, 1]: `bernoulli`, `gaussian` (one learnt standard deviation for
            all pixels, Rybkin et al. 2021) or `logistic` (discretised, with a scale per pixel).
        num_classes: Number of classes of a class-conditional model, or None.
        activate_decoder_input: Apply the activation between the decoder's last linear layer and its first transposed
            convolution.

    Raises:
        ValueError: if the convolutions do not match the image size, or encoder and decoder do not match.
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
        halvings = len(block_out_channels)
        size = checked_size(sample_size, halvings, pixel_distribution)
        if decoder_hidden_sizes is None:
            decoder_hidden_sizes = list(reversed(hidden_sizes))
        if decoder_block_out_channels is None:
            decoder_block_out_channels = list(reversed(block_out_channels))
        check_decoder(decoder_block_out_channels, halvings)
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
            class_labels: Classes of the images, int64 (B,), for a class-conditional model.
        """
        features = self.down((images / 2 + 0.5).to(self.dtype)).flatten(1)
        return normal(self.to_latents(self._with_classes(features, class_labels)))

    def _logits(self, latents: Tensor, class_labels: Tensor | None) -> Tensor:
        features = self.from_latents(self._with_classes(latents.to(self.dtype), class_labels))
        return self.up(features.view(-1, *self.inner_shape)).float()


class SpatialVAEModel(_VAE):
    """VAE whose latents have height and width, as latent diffusion needs them (Rombach et al. 2022).

    It is convolutional throughout: stride-2 convolutions with residual blocks, then one that outputs mean and
    log-variance of z; the decoder mirrors that. As in other VAEs, z is a vector, (B, latent_dim). `encode_map` and
    `decode_map` are for latent diffusion: their latents are (B, c, h, w), shifted and scaled by channel.

    Args:
        latent_dim: Number of latents, c · h · w.
        block_out_channels: Channels of the encoder's convolutions, which halve height and width, one or more.
        decoder_block_out_channels, layers_per_block: See `VAEModel`.
        sample_size, in_channels, norm_num_groups, act_fn, pixel_distribution: See `VAEModel`.
        num_classes: None, since such a model has no classes.
        trained_on: Public names of the training data, which go with the weights into latent diffusion; empty if they
            are unknown.

    Raises:
        ValueError: if the convolutions do not match the image size, the latents do not fill whole channels, or encoder
            and decoder do not match.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | Sequence[int] = 32,
        in_channels: int = 3,
        latent_dim: int = 1024,
        block_out_channels: Sequence[int] = (64,),
        decoder_block_out_channels: Sequence[int] | None = None,
        layers_per_block: int = 1,
        norm_num_groups: int = 8,
        act_fn: str = "silu",
        pixel_distribution: str = "gaussian",
        num_classes: None = None,
        trained_on: Sequence[str] = (),
    ):
        super().__init__()
        halvings = len(block_out_channels)
        height, width = (length >> halvings for length in checked_size(sample_size, halvings, pixel_distribution))
        latent_channels, rest = divmod(latent_dim, height * width)
        if not halvings or rest:
            raise ValueError(
                "spatial latents need block_out_channels, and a latent_dim that is a multiple of their height times "
                f"width, {height}·{width}, not {latent_dim}"
            )
        if decoder_block_out_channels is None:
            decoder_block_out_channels = list(reversed(block_out_channels))
        check_decoder(decoder_block_out_channels, halvings)
        self.latent_shape = (latent_channels, height, width)
        self.register_buffer("latents_mean", torch.zeros(latent_channels, 1, 1))
        self.register_buffer("latents_std", torch.ones(latent_channels, 1, 1))
        blocks = (layers_per_block, norm_num_groups, act_fn)
        inner = block_out_channels[-1]
        out_channels = in_channels * (2 if pixel_distribution == "logistic" else 1)
        self.down = downsampling([in_channels, *block_out_channels], *blocks)
        self.to_latents = nn.Conv2d(inner, 2 * latent_channels, 1)
        self.from_latents = nn.Conv2d(latent_channels, inner, 3, padding=1)
        self.up = upsampling([inner, *decoder_block_out_channels, out_channels], halvings, False, *blocks)
        if pixel_distribution == "gaussian":
            self.log_std = nn.Parameter(torch.zeros(()))

    @apply_forward_hook
    def encode(self, images: Tensor, class_labels: Tensor | None = None) -> Normal:
        """Return q(z | x), a normal distribution over (B, latent_dim), for images (B, C, H, W) in [−1, 1].

        There are no `class_labels`.
        """
        parameters = self.to_latents(self.down((self._with_classes(images, class_labels) / 2 + 0.5).to(self.dtype)))
        return normal(parameters.flatten(1))

    def set_statistics(self, latents: Tensor) -> None:
        """Set mean and standard deviation by channel to those of latents sampled from q(z | x), (N, latent_dim)."""
        by_channel = latents.unflatten(1, self.latent_shape).transpose(0, 1).flatten(1)
        self.latents_mean.copy_(by_channel.mean(1)[:, None, None])
        self.latents_std.copy_(by_channel.std(1)[:, None, None])

    @apply_forward_hook
    def encode_map(self, images: Tensor) -> Tensor:
        """Return the posterior means, float32 (B, c, h, w), of images (B, C, H, W) in [−1, 1].

        They are shifted and scaled by channel so that sampled latents have mean 0 and standard deviation 1.
        """
        return (self.encode(images).mean.unflatten(1, self.latent_shape) - self.latents_mean) / self.latents_std

    @apply_forward_hook
    def decode_map(self, latents: Tensor) -> Tensor:
        """Return the pixel means, float32 (B, C, H, W) in [−1, 1], of latents (B, c, h, w) as of `encode_map`."""
        return self.decode((latents * self.latents_std + self.latents_mean).flatten(1)).sample

    def _logits(self, latents: Tensor, class_labels: Tensor | None) -> Tensor:
        latents = self._with_classes(latents, class_labels).to(self.dtype).unflatten(1, self.latent_shape)
        return self.up(self.from_latents(latents)).float()


class LadderLayer(nn.Module):
    """A stochastic layer of a ladder below the top one.

    It works on features (B, C, H, W), and its latents have the same height and width.

    Args:
        channels: C.
        latent_channels: Channels of the latents.
        norm_num_groups, act_fn: See `VAEModel`.
    """

    def __init__(self, channels: int, latent_channels: int, norm_num_groups: int, act_fn: str):
        super().__init__()
        self.prior = nn.Sequential(get_activation(act_fn), nn.Conv2d(channels, 2 * latent_channels, 1))
        self.posterior = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 1),
            ResidualBlock(channels, norm_num_groups, act_fn),
            get_activation(act_fn),
            nn.Conv2d(channels, 2 * latent_channels, 1),
        )
        self.project = nn.Conv2d(latent_channels, channels, 1)

    def forward(
        self, above: Tensor, noise: Tensor, encoded: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Normal | None]:
        """Add z = μ + σ u to the features of the layers above, where N(μ, σ²) is the prior of z given these.

        Args:
            above: The features.
            noise: u, (B, D); with `encoded` the noise of its samples.
            encoded: The encoder's features, (B, C, H, W), to infer u.

        Returns:
            The sum, u, and q(u | x, layers above) over (B, D), or None without `encoded`.
        """
        posterior, latents = None, noise
        if encoded is not None:
            posterior = normal(self.posterior(torch.cat([above, encoded], dim=1)).flatten(1))
            latents = posterior.mean + posterior.stddev * noise
        prior = normal(self.prior(above))
        z = prior.mean + prior.stddev * latents.view_as(prior.mean)
        return above + self.project(z.to(above.dtype)), latents, posterior


class LadderVAEModel(_VAE):
    """VAE with a ladder of stochastic layers (Sønderby et al. 2016), inferred from the top down (Kingma et al. 2016).

    Stride-2 convolutions, each with residual blocks, encode the image. Each of these levels has latents of its height
    and width; the top layer above them has a vector. The prior of a layer's z is a normal distribution given the
    layers above; its posterior is one given these and the encoder's features of its level (Child 2021, figure 3).

    The model's latents are the standardised noises of all layers in one vector u, top layer first: z = μ + σ u, with
    μ and σ of the layer's prior. So the prior of u is N(0, I), and u determines p(x | u), as the latents of a
    `VAEModel` do. The posterior of a layer's u is normal given the latents above, so that the KL divergence and
    ln q(u | x) are sums over the layers.

    Args:
        latent_dim: Dimension of u. The top layer has what the levels leave of it.
        ladder_channels: Channels of the latents of each level, as many as `block_out_channels`.
        block_out_channels: Channels of the levels, the one next to the image first.
        hidden_sizes: Hidden layer sizes between the encoder's convolutions and the top layer; reversed in the decoder.
        layers_per_block: Residual blocks of a level, in the encoder and in the decoder.
        sample_size, in_channels, norm_num_groups, act_fn, pixel_distribution, num_classes: See `VAEModel`.

    Raises:
        ValueError: if the convolutions do not match the image size, or the latents do not match the levels.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | Sequence[int] = 28,
        in_channels: int = 1,
        latent_dim: int = 424,
        ladder_channels: Sequence[int] = (1, 4),
        block_out_channels: Sequence[int] = (32, 64),
        hidden_sizes: Sequence[int] = (256,),
        layers_per_block: int = 1,
        norm_num_groups: int = 8,
        act_fn: str = "silu",
        pixel_distribution: str = "bernoulli",
        num_classes: int | None = None,
    ):
        super().__init__()
        levels = len(block_out_channels)
        height, width = checked_size(sample_size, levels, pixel_distribution)
        if not levels or len(ladder_channels) != levels:
            raise ValueError(
                f"ladder_channels needs one entry for each level of block_out_channels, not {len(ladder_channels)} "
                f"for {levels}"
            )
        spatial = [c * (height >> n) * (width >> n) for n, c in enumerate(ladder_channels, 1)][::-1]
        if latent_dim <= sum(spatial):
            raise ValueError(
                f"latent_dim must be more than {sum(spatial)}, not {latent_dim}: the levels of the ladder take "
                f"{' + '.join(map(str, spatial))}, and the top layer the rest"
            )
        self.latent_sizes = [latent_dim - sum(spatial), *spatial]
        blocks = (layers_per_block, norm_num_groups, act_fn)
        classes = num_classes or 0
        self.inner_shape = (block_out_channels[-1], height >> levels, width >> levels)
        features = math.prod(self.inner_shape)

        self.down = nn.ModuleList(downsampling(pair, *blocks) for pair in pairwise([in_channels, *block_out_channels]))
        self.to_latents = mlp([features + classes, *hidden_sizes, 2 * self.latent_sizes[0]], act_fn)
        self.from_latents = mlp([self.latent_sizes[0] + classes, *reversed(hidden_sizes), features], act_fn)
        self.layers = nn.ModuleList(
            LadderLayer(*channels, norm_num_groups, act_fn)
            for channels in zip(reversed(block_out_channels), reversed(ladder_channels), strict=True)
        )
        out_channels = in_channels * (2 if pixel_distribution == "logistic" else 1)
        self.up = nn.ModuleList(
            upsampling(pair, 1, False, *blocks) for pair in pairwise([*reversed(block_out_channels), out_channels])
        )
        if pixel_distribution == "gaussian":
            self.log_std = nn.Parameter(torch.zeros(()))

    @apply_forward_hook
    def encode(self, images: Tensor, class_labels: Tensor | None = None) -> Normal:
        """Return q(u | x), a normal distribution over (B, latent_dim), for images (B, C, H, W) in [−1, 1].

        Each layer is that given the means of the layers above.

        Args:
            images: x.
            class_labels: Classes of the images, int64 (B,), for a class-conditional model.
        """
        return self._reconstruct(images, class_labels, None)[0]

    def _logits(self, latents: Tensor, class_labels: Tensor | None) -> Tensor:
        top, *below = latents.float().split(self.latent_sizes, dim=1)
        features = self._from_top(top, class_labels)
        for layer, up, part in zip(self.layers, self.up, below, strict=True):
            features = up(layer(features, part)[0])
        return features.float()

    def _reconstruct(
        self, images: Tensor, class_labels: Tensor | None, noise: Tensor | None
    ) -> tuple[Normal, Tensor, Tensor]:
        shape = (images.shape[0], self.config.latent_dim) if noise is None else noise.shape
        if noise is None:
            noise = images.new_zeros(1, *shape, dtype=torch.float32)
        draws, (noise, *below) = len(noise), noise.flatten(0, 1).split(self.latent_sizes, dim=1)
        encoded = [(images / 2 + 0.5).to(self.dtype)]
        for level in self.down:
            encoded.append(level(encoded[-1]))
        parameters = self.to_latents(self._with_classes(encoded[-1].flatten(1), class_labels))
        posteriors = [normal(parameters.repeat(draws, 1))]
        latents = [posteriors[0].mean + posteriors[0].stddev * noise]
        features = self._from_top(latents[0], None if class_labels is None else class_labels.repeat(draws))
        for layer, up, part, known in zip(self.layers, self.up, below, encoded[:0:-1], strict=True):
            features, sampled, posterior = layer(features, part, known.repeat(draws, 1, 1, 1))
            features = up(features)
            latents.append(sampled)
            posteriors.append(posterior)
        mean, std = ([getattr(part, name) for part in posteriors] for name in ("mean", "stddev"))
        latent_dist = Normal(torch.cat(mean, 1).view(shape), torch.cat(std, 1).view(shape), validate_args=False)
        return latent_dist, torch.cat(latents, dim=1), features.float()

    def _from_top(self, latents: Tensor, class_labels: Tensor | None) -> Tensor:
        """Return the decoder's features of the level below the top layer, (B, C, H, W)."""
        return self.from_latents(self._with_classes(latents.to(self.dtype), class_labels)).view(-1, *self.inner_shape)


@dataclass
class GaussianMixtureOutput(BaseOutput):
    """Samples of a Gaussian mixture, (B, D)."""

    sample: Tensor


class GaussianMixtureModel(ModelMixin, ConfigMixin):
    """Gaussian mixture fitted to the aggregate posterior q(z), an alternative to the N(0, I) prior for sampling.

    Args:
        latent_dim: Dimension D of the latents.
        num_components: Number K of components.
    """

    @register_to_config
    def __init__(self, latent_dim: int = 20, num_components: int = 10):
        super().__init__()
        self.register_buffer("weights", torch.full((num_components,), 1 / num_components))
        self.register_buffer("means", torch.zeros(num_components, latent_dim))
        self.register_buffer("scale_trils", torch.eye(latent_dim).repeat(num_components, 1, 1))

    def set_parameters(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        """Set weights (K,), means (K, D) and covariances (K, D, D), preferably in double precision."""
        self.weights.copy_(weights.float())  # converted first, as some devices have no float64
        self.means.copy_(means.float())
        self.scale_trils.copy_(torch.linalg.cholesky(covariances).float())

    def forward(
        self, noise: Tensor, uniform: Tensor, return_dict: bool = True
    ) -> GaussianMixtureOutput | tuple[Tensor]:
        """Sample latents.

        Args:
            noise: Standard normal noise, (B, D).
            uniform: Uniform random numbers in [0, 1], (B,).
            return_dict: Return a `GaussianMixtureOutput` instead of a tuple.
        """
        # In float32 whatever the weights' type: a cumulative sum in half precision would skip components.
        below = self.weights.float().cumsum(0) < uniform.float()[:, None]  # as searchsorted, which ONNX does not have
        chosen = below.sum(1).clamp(max=len(self.weights) - 1)
        sample = self.means[chosen].float() + (self.scale_trils[chosen].float() @ noise.float()[..., None])[..., 0]
        return GaussianMixtureOutput(sample) if return_dict else (sample,)


@dataclass
class LatentFlowOutput(BaseOutput):
    """Velocities or latents, (B, D)."""

    sample: Tensor


class LatentFlowBlock(nn.Module):
    """Residual block of two linear layers on (B, H), to which an embedding of time and class (B, H) is added."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.condition = nn.Linear(hidden_size, hidden_size)
        self.widen = nn.Linear(hidden_size, 2 * hidden_size)
        self.out = nn.Linear(2 * hidden_size, hidden_size)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Add the residual."""
        return x + self.out(functional.silu(self.widen(self.norm(x) + self.condition(condition))))


class LatentFlowModel(ModelMixin, ConfigMixin):
    """Rectified flow (Liu et al. 2023) from N(0, I) to the aggregate posterior q(z), a learnt prior for sampling.

    Args:
        latent_dim: Dimension D of the latents.
        hidden_size: Width H of the residual blocks.
        num_blocks: Number of these.
        num_classes: Number of classes of a class-conditional VAE, whose latents are those of the given class, or None.
        num_steps: Steps of Heun's method when sampling, one or more; each calls the network twice.

    Raises:
        ValueError: for no steps.
    """

    @register_to_config
    def __init__(
        self,
        latent_dim: int = 20,
        hidden_size: int = 192,
        num_blocks: int = 4,
        num_classes: int | None = None,
        num_steps: int = 16,
    ):
        super().__init__()
        if num_steps < 1:
            raise ValueError(f"num_steps must be positive, not {num_steps}")
        self.embed = nn.Linear(latent_dim, hidden_size)
        self.class_embedding = nn.Embedding(num_classes, hidden_size) if num_classes else None
        self.blocks = nn.ModuleList(LatentFlowBlock(hidden_size) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(hidden_size)
        self.project = nn.Linear(hidden_size, latent_dim)

    def forward(
        self, x: Tensor, times: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> LatentFlowOutput | tuple[Tensor]:
        """Return the velocity ε − z at x_t = (1 − t) z + t ε, in float32.

        Args:
            x: x_t, (B, D).
            times: t, (B,), from 0 (latents) to 1 (noise).
            class_labels: int64 (B,), for a class-conditional model.
            return_dict: Return a `LatentFlowOutput` instead of a tuple.
        """
        times = get_timestep_embedding(1000 * times.float(), self.config.hidden_size, downscale_freq_shift=0)
        condition = times.to(self.dtype)
        if self.class_embedding is not None:
            condition = condition + self.class_embedding(class_labels)
        hidden = self.embed(x.to(self.dtype))
        for block in self.blocks:
            hidden = block(hidden, condition)
        velocity = self.project(self.norm(hidden)).float()
        return LatentFlowOutput(velocity) if return_dict else (velocity,)

    @apply_forward_hook
    def draw(
        self, noise: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> LatentFlowOutput | tuple[Tensor]:
        """Return latents (B, D), in float32, for standard normal noise (B, D) and classes (B,), by Heun's method."""
        x, step = noise.float(), 1 / self.config.num_steps
        for number in range(self.config.num_steps):
            time = 1 - number * step
            velocity = self(x, torch.full_like(x[:, 0], time), class_labels).sample
            ahead = self(x - step * velocity, torch.full_like(x[:, 0], time - step), class_labels).sample
            x = x - step / 2 * (velocity + ahead)
        return LatentFlowOutput(x) if return_dict else (x,)
