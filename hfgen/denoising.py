"""Which diffusers schedulers fit a diffusion model, and denoising with one of them, step by step."""

import difflib
from collections.abc import Callable, Iterator

import diffusers
import torch
from diffusers import SchedulerMixin
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hfgen.errors import UserError
from hfgen.losses import (
    FLOW_PREDICTION,
    FLOW_SCHEDULERS,
    diffusion_target,
    implied_image,
    prediction_type_of,
    signal_and_noise,
)
from hfgen.pipelines.pipeline_hfgen_class_conditional_diffusion import denoising_step, show, start_denoising

SHORT_NAMES = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "deis": "DEISMultistepScheduler",
    "dpmsolver": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "flow_euler": "FlowMatchEulerDiscreteScheduler",
    "flow_heun": "FlowMatchHeunDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
}
# Solvers of diffusion models that also follow a flow, if they are told.
FLOW_SOLVERS = {
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
}


def make_scheduler(name: str, own: SchedulerMixin) -> SchedulerMixin:
    """Build a scheduler for a model from the one that it was trained with.

    Args:
        name: A key of `SHORT_NAMES`, or the name of a diffusers class.
        own: The scheduler that the pipeline was saved with.

    Raises:
        UserError: with the list of schedulers that fit, if this one does not or there is none of the name.
    """
    if name not in SHORT_NAMES and not hasattr(diffusers, name):
        near = difflib.get_close_matches(name, SHORT_NAMES, n=1)
        raise UserError(
            f"there is no scheduler {name}{f'; did you mean {near[0]}?' if near else ''} These fit the model: "
            + ", ".join(suitable_schedulers(own))
        )
    scheduler = _from_config(SHORT_NAMES.get(name, name), own)
    if scheduler is None or not recovers_known_image(scheduler):
        fitting = ", ".join(suitable_schedulers(own))
        raise UserError(
            f"scheduler {name} does not fit a model with prediction type {prediction_type_of(own)}"
            + ("" if prediction_type_of(own) == FLOW_PREDICTION else f" and beta schedule {own.config.beta_schedule}")
            + f"; these do: {fitting}"
        )
    return scheduler


def suitable_schedulers(own: SchedulerMixin) -> list[str]:
    """List the schedulers that fit a model: short names where there is one, else class names."""
    short = {class_name: name for name, class_name in SHORT_NAMES.items()}
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # those that do not fit complain
    try:
        built = {name: _from_config(name, own) for name in sorted(_class_names(own))}
        return [short.get(name, name) for name, s in built.items() if s is not None and recovers_known_image(s)]
    finally:
        logging.set_verbosity(verbosity)


def _class_names(own: SchedulerMixin) -> set[str]:
    if prediction_type_of(own) == FLOW_PREDICTION:
        return {*(c.__name__ for c in FLOW_SCHEDULERS), *FLOW_SOLVERS}
    return {type(own).__name__, *(c.__name__ for c in own.compatibles)}


def _from_config(class_name: str, own: SchedulerMixin) -> SchedulerMixin | None:
    if class_name not in _class_names(own):
        return None
    config = own.config
    if class_name in FLOW_SOLVERS and prediction_type_of(own) == FLOW_PREDICTION:
        config = {
            "num_train_timesteps": own.config.num_train_timesteps,
            "prediction_type": FLOW_PREDICTION,
            "use_flow_sigmas": True,
        }
    try:
        return getattr(diffusers, class_name).from_config(config)
    except (ImportError, NotImplementedError, ValueError):  # needs a package that is not there, or does not fit
        return None


def recovers_known_image(scheduler: SchedulerMixin, num_inference_steps: int = 25) -> bool:
    """Tell whether a scheduler fits the prediction type that its configuration names.

    A model that knows the image x₀ can say exactly what a network should predict at each x_t. A scheduler that
    understands this kind of prediction then ends at x₀; one that takes it for another kind does not, or refuses.
    """
    image = torch.linspace(-0.9, 0.9, 16).view(1, 1, 4, 4)
    try:
        *_, (x, _) = denoising_states(_Oracle(image, scheduler), scheduler, num_inference_steps, image.shape, [0])
    except (AttributeError, NotImplementedError, ValueError):
        return False
    return bool((x - image).abs().max() < 0.1)


class _Oracle:
    """Predicts exactly, because it knows the image."""

    def __init__(self, image: Tensor, scheduler: SchedulerMixin):
        self.image, self.scheduler = image, scheduler

    def __call__(self, x: Tensor, timestep: Tensor) -> Tensor:
        alpha, sigma = signal_and_noise(self.scheduler, timestep)
        noise = (x - alpha * self.image) / sigma
        return diffusion_target(prediction_type_of(self.scheduler), self.image, noise, alpha, sigma).to(x.dtype)


@torch.no_grad()
def denoising_states(
    model: Callable[[Tensor, Tensor], Tensor],
    scheduler: SchedulerMixin,
    num_inference_steps: int,
    shape: tuple[int, ...],
    seeds: list[int],
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Denoise from pure noise, yielding what the network is shown at each step and what image it sees in that.

    Args:
        model: Predicts from x and a timestep.
        scheduler: Says which noise levels to visit and how to step between them.
        num_inference_steps: How many steps to take.
        shape: (B, C, H, W), or (1, C, H, W) for all.
        seeds: One seed an image, so that an image does not depend on those drawn with it.
        device: Where to compute; the noise is drawn on the CPU, the same for every device.

    Yields:
        x_t = α_t x₀ + σ_t ε, whatever the scheduler keeps, and the x̂₀ that the prediction implies; last, twice x₀.
        Each float32 (B, C, H, W), images in [−1, 1] up to the model's errors.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = randn_tensor((len(seeds), *shape[1:]), generator=generators, device=torch.device(device))
    x = start_denoising(scheduler, num_inference_steps, noise)
    for timestep in scheduler.timesteps:
        shown = show(scheduler, x, timestep)
        x, prediction = denoising_step(model, scheduler, x, timestep, generators)
        yield (
            shown,
            implied_image(prediction_type_of(scheduler), prediction, shown, *signal_and_noise(scheduler, timestep)),
        )
    yield x, x
