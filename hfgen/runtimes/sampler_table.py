"""A deterministic sampler as a table of numbers, so that any runtime can denoise without a scheduler."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from hfgen.losses.diffusion import alpha_sigma, predict_x0, prediction_type_of
from hfgen.pipelines.pipeline_hfgen_class_conditional_diffusion import denoising_step, start_denoising
from hfgen.sampling.schedulers import make_scheduler
from hfgen.utils.errors import UserError

TOLERANCE = 1e-3  # of images in [−1, 1], in the check of a table


def sampler_table(
    own: SchedulerMixin, name: str, num_inference_steps: int, time_steps: Mapping[str, list[float]] | None = None
) -> dict[str, Any]:
    """Return the coefficients of a sampler.

    What a deterministic solver computes is linear in the initial noise ε and the network's predictions p₁, p₂, …
    So the input of the network's k-th call is c₀ ε + c₁ p₁ + … + c₍ₖ₋₁₎ p₍ₖ₋₁₎, and so are the estimate of the image
    after it (with pₖ) and the image at the end.

    Args:
        own: The scheduler of the pipeline.
        name: See `make_scheduler`.
        num_inference_steps: Number of denoising steps.
        time_steps: Likewise.

    Returns:
        `scheduler`, `num_inference_steps`, and per call of the network `timesteps`, `inputs` (lists of 1, 2, …
        coefficients) and `estimates` (of 2, 3, …); `image` has the coefficients of the image.

    Raises:
        UserError: if the scheduler does not fit the model, or is not linear because it adds noise or clips.
    """
    scheduler = make_scheduler(name, own, num_inference_steps, time_steps)
    scheduler.set_timesteps(num_inference_steps)
    calls = 2 * len(scheduler.timesteps)  # as many as there may be
    inputs: list[Tensor] = []
    estimates: list[Tensor] = []

    def unit(index: int) -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor(index), calls + 1).float().reshape(1, 1, 1, -1)

    def record(x: Tensor, timestep: Tensor) -> Tensor:
        inputs.append(x.flatten())
        prediction = unit(len(inputs))
        levels = alpha_sigma(scheduler, timestep)
        estimates.append(predict_x0(prediction_type_of(scheduler), prediction, x, *levels).flatten())
        return prediction

    image, timesteps = _denoise(scheduler, num_inference_steps, unit(0), record)
    table = {
        "scheduler": name,
        "num_inference_steps": num_inference_steps,
        "timesteps": timesteps,
        "inputs": [row[: index + 1].tolist() for index, row in enumerate(inputs)],
        "estimates": [row[: index + 2].tolist() for index, row in enumerate(estimates)],
        "image": image.flatten()[: len(inputs) + 1].tolist(),
    }
    _require_equal(table, scheduler)
    return table


def denoise_by_table(table: dict[str, Any], noise: Tensor, model: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Denoise with a table: return the image, in the shape of the noise, (B, C, H, W)."""
    known = [noise]
    for timestep, row in zip(table["timesteps"], table["inputs"], strict=True):
        x = sum(factor * each for factor, each in zip(row, known, strict=True))
        known.append(model(x, torch.tensor(timestep)))
    return sum(factor * each for factor, each in zip(table["image"], known, strict=True))


def _denoise(
    scheduler: SchedulerMixin, num_inference_steps: int, noise: Tensor, model: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, list[float]]:
    """Denoise with a scheduler; return the image and the timesteps of the calls."""
    x = start_denoising(scheduler, num_inference_steps, noise)
    for timestep in scheduler.timesteps:
        x, _ = denoising_step(model, scheduler, x, timestep, torch.Generator().manual_seed(0))
    return x, scheduler.timesteps.tolist()


def _require_equal(table: dict[str, Any], scheduler: SchedulerMixin) -> None:
    """Check a table by the scheduler itself, with a model that is not linear."""
    noise = torch.linspace(-2, 2, 16).reshape(1, 1, 4, 4)

    def model(x: Tensor, timestep: Tensor) -> Tensor:
        return 3 * torch.tanh(x) + torch.sin(0.01 * timestep)  # so that images leave [−1, 1], where some solvers clip

    expected, _ = _denoise(scheduler, table["num_inference_steps"], noise, model)
    if not (denoise_by_table(table, noise, model) - expected).abs().max() < TOLERANCE:
        raise UserError(
            f"scheduler {table['scheduler']} cannot be exported as a table, because it adds noise or clips; set "
            "another --scheduler, such as unipc"
        )
