"""Training objectives as pure functions, each with its equation and source."""

from diffusers import DDPMScheduler
from torch import Tensor


def diffusion_target(scheduler: DDPMScheduler, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What a diffusion network has to predict from x_t = √ᾱ_t x₀ + √(1−ᾱ_t) ε, by the scheduler's prediction type.

    `epsilon`: the noise ε (Ho et al. 2020, eq. 14). `sample`: the image x₀. `v_prediction`:
    v = √ᾱ_t ε − √(1−ᾱ_t) x₀ (Salimans and Ho 2022, appendix D).

    Args:
        scheduler: Holds ᾱ_t and the prediction type.
        images: x₀, (B, C, H, W) in [−1, 1].
        noise: ε, like images.
        timesteps: t, int64 (B,), from 0 to T − 1.

    Returns:
        The target, like images.
    """
    match scheduler.config.prediction_type:
        case "epsilon":
            return noise
        case "sample":
            return images
        case "v_prediction":
            return scheduler.get_velocity(images, noise, timesteps)
        case other:
            raise ValueError(f"unknown prediction type {other}")
