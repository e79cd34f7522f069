"""Terms of a VAE's bounds as pure functions, each with its equation and source."""

import math

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

ACTIVE_VARIANCE = 0.01  # of a latent dimension's mean, above which it tells images apart


def normal_kl(latent_dist: Normal) -> Tensor:
    """Return the divergence of N(μ, σ²) from N(0, 1) of each latent dimension, in nats: (B, D).

    ½ (μ² + σ² − 1 − ln σ²) (Kingma and Welling 2014, appendix B).
    """
    variance = latent_dist.stddev.square()
    return 0.5 * (latent_dist.mean.square() + variance - 1 - variance.log())


def count_active_units(means: Tensor) -> int:
    """Count the latent dimensions that differ from image to image: Var_x(E[z_d | x]) > 0.01 (Burda et al. 2016).

    Args:
        means: E[z | x] of many images, (N, D).
    """
    return int((means.var(0) > ACTIVE_VARIANCE).sum())


def pixel_error(pixels: Distribution, images: Tensor) -> Tensor:
    """Return −ln p(x | z) of images (B, C, H, W) in [0, 1], in nats: (B, C, H, W)."""
    return -pixels.log_prob(images)


def best_gaussian(mean: Tensor, images: Tensor) -> Normal:
    """Return the normal distributions about `mean` whose one variance makes images most likely.

    It is their mean squared error; gradients flow through it too (σ-VAE, Rybkin et al. 2021, section 4.2).
    """
    return Normal(mean, (images - mean).square().mean().clamp_min(1e-8).sqrt(), validate_args=False)


def free_bits_kl(divergence: Tensor, free_nats: float) -> Tensor:
    """Return Σ_d max(λ, mean divergence of dimension d over the batch), a scalar (Kingma et al. 2016, eq. 15)."""
    return divergence.mean(0).clamp_min(free_nats).sum()


def importance_weighted_bound(error: Tensor, latents: Tensor, latent_dist: Normal) -> Tensor:
    """Return ln 1/k Σ_k w_k, in nats: (B,) (Burda et al. 2016, eq. 8); see `log_importance_weights`."""
    return log_importance_weights(error, latents, latent_dist).logsumexp(0) - math.log(len(latents))


def log_importance_weights(error: Tensor, latents: Tensor, latent_dist: Normal) -> Tensor:
    """Return ln w_k = ln p(x | z_k) p(z_k) / q(z_k | x), in nats: (k, B).

    Args:
        error: −ln p(x | z_k), (k, B).
        latents: z_k, drawn from q(z | x): (k, B, D).
        latent_dist: q(z | x), over (B, D).
    """
    prior = Normal(torch.zeros_like(latents), 1.0, validate_args=False)
    return (prior.log_prob(latents) - latent_dist.log_prob(latents)).sum(-1) - error
