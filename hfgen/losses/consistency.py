"""Consistency models (Song et al. 2023): preconditioning, and the targets of distillation.

Noisy images are x_σ = x₀ + σ ε here, as in Karras et al. 2022; a diffusion model's x_t = α_t x₀ + σ_t ε is α_t x_σ
with σ = σ_t / α_t.
"""

import torch
from diffusers import CMStochasticIterativeScheduler
from torch import Tensor

LAST_LEVEL = 1 - 1 / 255  # pixels above it are rounded to 255


def network_time(sigma: Tensor) -> Tensor:
    """Return the time that a consistency model's network is given, 250 ln σ as in diffusers, (B,)."""
    return 250 * sigma.flatten().log()


def input_scale(scheduler: CMStochasticIterativeScheduler, sigma: Tensor) -> Tensor:
    """Return c_in, by which x_σ is multiplied for the network (Karras et al. 2022, table 1), in the shape of σ."""
    return (sigma**2 + scheduler.config.sigma_data**2) ** -0.5


def estimate(scheduler: CMStochasticIterativeScheduler, prediction: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """Return the image c_skip x_σ + c_out F that follows from a network's prediction F (Song et al. 2023, appendix C).

    Args:
        scheduler: Has σ_data and σ_min, where the estimate is x itself.
        prediction: F, (B, C, H, W).
        x: x_σ, (B, C, H, W).
        sigma: σ, (B, 1, 1, 1).
    """
    skip, out = scheduler.get_scalings_for_boundary_condition(sigma)
    return skip * x + out * prediction


def pseudo_huber(difference: Tensor, width: float) -> Tensor:
    """Return the mean of √(d² + c²) − c over all pixels: d² / 2c for small differences d, and |d| for large ones.

    Of two values near an image's black background, the squared error takes a grey one in between, which is seen as
    noise; the absolute one does not (for consistency models, Song and Dhariwal 2024, arXiv:2310.14189, section 3.3).

    Args:
        difference: d, of any shape.
        width: c.
    """
    return ((difference.square() + width**2).sqrt() - width).mean()


def error_in_range(images: Tensor, targets: Tensor) -> Tensor:
    """Return what `images` differ from `targets`, (B, C, H, W), where clipping both to [-1, 1] leaves a difference.

    The pipeline clips its images. Where the target is at an end of the range, to the nearest of 256 levels, an image
    may therefore lie beyond it: a network that aims at -1 exactly leaves noise on a black background.
    """
    targets = targets.clamp(-1, 1)
    beyond = (targets > LAST_LEVEL) & (images > targets) | (targets < -LAST_LEVEL) & (images < targets)
    return torch.where(beyond, 0, images - targets)


def tuning_levels(count: int, nearness: float) -> tuple[Tensor, Tensor]:
    """Sample pairs of noise levels t > r for consistency tuning, each (B, 1, 1, 1), on the CPU.

    ln t is normal with mean −1.1 and standard deviation 2, and r = t − t (1 + 8 σ(−t)) / nearness, not below 0, where
    σ is the logistic sigmoid (Geng et al. 2024, arXiv:2406.14548, section 3.3).
    """
    t = (2.0 * torch.randn(count, 1, 1, 1) - 1.1).exp()
    return t, (t - t * (1 + 8 * torch.sigmoid(-t)) / nearness).clamp_min(0)
