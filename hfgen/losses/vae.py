"""Terms of the ELBO and of the importance-weighted bound, each with its equation and source."""

import math

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Normal

ACTIVE_VARIANCE = 0.01  # variance of a latent dimension's posterior mean above which it is active


def kl_to_standard_normal(latent_dist: Normal) -> Tensor:
    """Return KL(N(μ, σ²) ‖ N(0, 1)) = ½ (μ² + σ² − 1 − ln σ²) per latent dimension, in the shape of μ, in nats.

    That is appendix B of Kingma and Welling (2014).
    """
    variance = latent_dist.stddev.square()
    return 0.5 * (latent_dist.mean.square() + variance - 1 - variance.log())


def count_active_units(means: Tensor) -> int:
    """Count active latent dimensions, Var_x(E[z_d | x]) > 0.01 (Burda et al. 2016).

    Args:
        means: Posterior means E[z | x] of a data set, (N, D).
    """
    return int((means.var(0) > ACTIVE_VARIANCE).sum())


def reconstruction_nll(pixels: Distribution, images: Tensor) -> Tensor:
    """Return −ln p(x | z) of each pixel, (B, C, H, W), in nats, for images in [0, 1]."""
    return -pixels.log_prob(images)


def optimal_sigma_gaussian(mean: Tensor, images: Tensor) -> Normal:
    """Return N(mean, σ²) with the shared σ² that maximises the likelihood of the images, their mean squared error.

    Gradients flow through σ (optimal σ-VAE, Rybkin et al. 2021, section 4.2). Shapes are (B, C, H, W).
    """
    return Normal(mean, (images - mean).square().mean().clamp_min(1e-8).sqrt(), validate_args=False)


def free_bits_kl(divergence: Tensor, free_nats: float) -> Tensor:
    """Return Σ_d max(λ, KL of dimension d averaged over the batch), a scalar, in nats (Kingma et al. 2016, eq. 15)."""
    return divergence.mean(0).clamp_min(free_nats).sum()


def iwae_bound(error: Tensor, latents: Tensor, latent_dist: Normal) -> Tensor:
    """Return the importance-weighted bound ln (1/k Σ_i w_i), (B,), in nats (IWAE, Burda et al. 2016, eq. 8)."""
    return log_importance_weights(error, latents, latent_dist).logsumexp(0) - math.log(len(latents))


def latent_flow_loss(flow: nn.Module, latents: Tensor, class_labels: Tensor | None = None) -> Tensor:
    """Return the mean squared error of a flow's velocity ε − z at x_t = (1 − t) z + t ε (Liu et al. 2023), a scalar.

    Args:
        flow: A `LatentFlowModel`.
        latents: z, (B, D). The logit of t is normal (Esser et al. 2024).
        class_labels: int64 (B,), for a class-conditional flow.
    """
    noise, times = torch.randn_like(latents), torch.randn_like(latents[:, 0]).sigmoid()
    x = torch.lerp(latents, noise, times[:, None])
    return (flow(x, times, class_labels).sample - (noise - latents)).square().mean()


def log_importance_weights(error: Tensor, latents: Tensor, latent_dist: Normal) -> Tensor:
    """Return ln w_i = ln p(x | z_i) p(z_i) / q(z_i | x), (k, B), in nats.

    Args:
        error: −ln p(x | z_i), (k, B).
        latents: Samples z_i of q(z | x), (k, B, D).
        latent_dist: q(z | x), batch shape (B, D), or (k, B, D) if it differs between the samples, as in a ladder.
    """
    prior = Normal(torch.zeros_like(latents), 1.0, validate_args=False)
    return (prior.log_prob(latents) - latent_dist.log_prob(latents)).sum(-1) - error
