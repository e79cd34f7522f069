"""Training objectives of diffusion and flow models as pure functions, each with its equation and source."""

from typing import Literal

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, SchedulerMixin
from diffusers.training_utils import compute_density_for_timestep_sampling
from torch import Tensor

FLOW_PREDICTION = "flow_prediction"
FLOW_SCHEDULERS = (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler)


def prediction_type_of(scheduler: SchedulerMixin) -> str:
    """Return what a network predicts for a scheduler, in diffusers' words: see `diffusion_target`."""
    return FLOW_PREDICTION if isinstance(scheduler, FLOW_SCHEDULERS) else scheduler.config.prediction_type


def signal_and_noise(scheduler: SchedulerMixin, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Return α_t and σ_t of x_t = α_t x₀ + σ_t ε.

    Diffusion has α_t = √ᾱ_t, σ_t = √(1 − ᾱ_t) (Ho et al. 2020, eq. 4); between two whole timesteps ᾱ is interpolated.
    Rectified flow has σ_t = t / T, α_t = 1 − σ_t (Liu et al. 2023).

    Args:
        scheduler: Holds the noise schedule.
        timesteps: t, (B,) or a scalar, from 0 to T.

    Returns:
        Two float32 tensors that broadcast with images, (B, 1, 1, 1) or (1, 1, 1, 1), on the device of the timesteps.
        They are computed in double precision on the CPU, since Apple GPUs have none.
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
    """What a network has to predict from x_t = α x₀ + σ ε.

    `epsilon`: the noise ε (Ho et al. 2020, eq. 14). `sample`: the image x₀. `v_prediction`: v = α ε − σ x₀ (Salimans
    and Ho 2022, appendix D). `flow_prediction`: ε − x₀ (Liu et al. 2023, whose time runs from noise to image).

    Args:
        prediction_type: One of these.
        images: x₀, (B, C, H, W) in [−1, 1].
        noise: ε, like images.
        alpha: α, (B, 1, 1, 1).
        sigma: σ, (B, 1, 1, 1).

    Returns:
        The target, like images.
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


def implied_image(prediction_type: str, prediction: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return the x₀ that a prediction implies at x = α x₀ + σ ε; `diffusion_target` says what may be predicted."""
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
    """Weights of the squared errors of a network's predictions, by noise level.

    `uniform`: 1. `min_snr`: the error of the image that is implied counts min(SNR, γ) times, where SNR = α² / σ² (Hang
    et al. 2023). `p2`: the error of the noise that is implied counts 1 / (1 + SNR) times (Choi et al. 2022, k = γ =
    1). At a given x_t, the squared error of the image is σ² times that of v or the flow, and σ² / α² times that of the
    noise. Where SNR is 0, both would leave out the level at which drawing begins; the weight there is 1, as in the
    code of Hang et al.

    Args:
        weighting: One of these.
        prediction_type: What the network predicts.
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
            of_image = snr.clamp(max=snr_gamma)
        case "p2":
            of_image = alpha.square() / (alpha.square() + sigma.square())  # SNR / (1 + SNR), for infinite SNR too
        case other:
            raise ValueError(f"unknown loss weighting {other}")
    of_image_error = {"epsilon": 1 / snr, "sample": torch.ones_like(snr)}
    return torch.where(snr > 0, of_image * of_image_error.get(prediction_type, sigma.square()), 1.0)


def draw_timesteps(sampling: Literal["uniform", "logit_normal"], scheduler: SchedulerMixin, batch_size: int) -> Tensor:
    """Draw the timesteps of a batch on the CPU: whole ones, 0 to T − 1, for a diffusion; from 0 to T for a flow.

    `logit_normal` prefers the middle: t / T is the sigmoid of a standard normal number (Esser et al. 2024).
    """
    share = compute_density_for_timestep_sampling(sampling, batch_size, logit_mean=0.0, logit_std=1.0)
    t = share * scheduler.config.num_train_timesteps
    return t if prediction_type_of(scheduler) == FLOW_PREDICTION else t.long()
