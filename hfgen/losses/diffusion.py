"""Training objectives of diffusion and flow models as pure functions, each with its equation and source."""

from typing import Literal

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, SchedulerMixin
from diffusers.training_utils import compute_density_for_timestep_sampling
from torch import Tensor

FLOW_PREDICTION = "flow_prediction"
FLOW_SCHEDULERS = (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler)


def prediction_type_of(scheduler: SchedulerMixin) -> str:
    """Return a scheduler's prediction type, by diffusers' name (see `diffusion_target`)."""
    return FLOW_PREDICTION if isinstance(scheduler, FLOW_SCHEDULERS) else scheduler.config.prediction_type


def alpha_sigma(scheduler: SchedulerMixin, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Return α_t and σ_t of x_t = α_t x₀ + σ_t ε.

    Diffusion: α_t = √ᾱ_t, σ_t = √(1 − ᾱ_t) (Ho et al. 2020, eq. 4), with ᾱ interpolated linearly between integer
    timesteps. Rectified flow: σ_t = t / T, α_t = 1 − σ_t (Liu et al. 2023).

    Args:
        scheduler: Defines the noise schedule.
        timesteps: t, (B,) or a scalar, from 0 to T.

    Returns:
        α_t and σ_t, float32, (B, 1, 1, 1) or (1, 1, 1, 1), on the device of the timesteps. They are computed in double
        precision on the CPU, as Apple GPUs have no float64.
    """
    device, t = timesteps.device, timesteps.cpu().double().reshape(-1, 1, 1, 1)
    if prediction_type_of(scheduler) == FLOW_PREDICTION:
        sigma = t / scheduler.config.num_train_timesteps
        return (1 - sigma).float().to(device), sigma.float().to(device)
    alphas_cumprod = scheduler.alphas_cumprod.cpu().double()
    last = len(alphas_cumprod) - 1
    below = t.long().clamp(0, last)
    above = (below + 1).clamp(max=last)
    alpha_bar = torch.lerp(alphas_cumprod[below], alphas_cumprod[above], t - below)
    return alpha_bar.sqrt().float().to(device), (1 - alpha_bar).sqrt().float().to(device)


def diffusion_target(prediction_type: str, images: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return the prediction target of a network at x_t = α x₀ + σ ε.

    `epsilon`: the noise ε (Ho et al. 2020, eq. 14). `sample`: the image x₀. `v_prediction`: v = α ε − σ x₀ (Salimans
    and Ho 2022, appendix D). `flow_prediction`: the velocity ε − x₀ (Liu et al. 2023, who reverse the direction of
    time).

    Args:
        prediction_type: One of these.
        images: x₀, (B, C, H, W) in [−1, 1].
        noise: ε, (B, C, H, W).
        alpha: α, (B, 1, 1, 1).
        sigma: σ, (B, 1, 1, 1).

    Returns:
        The target, (B, C, H, W).
    """
    match prediction_type:
        case "epsilon":
            return noise
        case "sample":
            return images
        case "v_prediction":
            return alpha * noise - sigma * images
        case "flow_prediction":
            return noise - images
        case other:
            raise ValueError(f"unknown prediction type {other}")


def predict_x0(prediction_type: str, prediction: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return the x₀, (B, C, H, W), that corresponds to a prediction at x = α x₀ + σ ε (see `diffusion_target`)."""
    match prediction_type:
        case "epsilon":
            return (x - sigma * prediction) / alpha
        case "sample":
            return prediction
        case "v_prediction":
            return alpha * x - sigma * prediction
        case "flow_prediction":
            return x - sigma * prediction
        case other:
            raise ValueError(f"unknown prediction type {other}")


def loss_weights(weighting: str, prediction_type: str, alpha: Tensor, sigma: Tensor, snr_gamma: float) -> Tensor:
    """Return the weights of the squared prediction errors, by noise level.

    `uniform`: 1. `min_snr` weights the x₀-prediction error by min(SNR, γ), where SNR = α² / σ² (Hang et al. 2023).
    `p2` weights the ε-prediction error by 1 / (1 + SNR) (Choi et al. 2022, k = γ = 1). At a given x_t, the squared
    error of x₀ is σ² times that of v or of the velocity, and σ² / α² times that of ε. At SNR 0, where sampling starts,
    both weights would vanish; there the weight is 1, as in the code of Hang et al.

    Args:
        weighting: One of these.
        prediction_type: See `diffusion_target`.
        alpha: α, (B, 1, 1, 1).
        sigma: σ, (B, 1, 1, 1).
        snr_gamma: γ of `min_snr`.

    Returns:
        float32 (B, 1, 1, 1).
    """
    snr = (alpha / sigma).square()
    match weighting:
        case "uniform":
            return torch.ones_like(sigma)
        case "min_snr":
            x0_weight = snr.clamp(max=snr_gamma)
        case "p2":
            x0_weight = alpha.square() / (alpha.square() + sigma.square())  # SNR / (1 + SNR), for infinite SNR too
        case other:
            raise ValueError(f"unknown loss weighting {other}")
    x0_error_ratio = {"epsilon": 1 / snr, "sample": torch.ones_like(snr)}
    return torch.where(snr > 0, x0_weight * x0_error_ratio.get(prediction_type, sigma.square()), 1.0)


def sample_timesteps(
    density: Literal["uniform", "logit_normal"],
    scheduler: SchedulerMixin,
    batch_size: int,
    logit_mean: float = 0.0,
    logit_std: float = 1.0,
) -> Tensor:
    """Sample training timesteps, (B,), on the CPU: integers from 0 to T − 1, or floats in [0, T] for a flow.

    With `logit_normal`, t / T is the sigmoid of a normal variable with this mean and standard deviation (Esser et al.
    2024), which favours intermediate noise levels.
    """
    u = compute_density_for_timestep_sampling(density, batch_size, logit_mean=logit_mean, logit_std=logit_std)
    t = u * scheduler.config.num_train_timesteps
    return t if prediction_type_of(scheduler) == FLOW_PREDICTION else t.long()
