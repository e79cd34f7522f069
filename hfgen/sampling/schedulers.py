"""Which diffusers schedulers fit a diffusion model, and denoising with one of them, step by step."""

import difflib
from collections.abc import Callable, Iterator

import diffusers
import torch
from diffusers import SchedulerMixin
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hfgen.losses.diffusion import (
    FLOW_PREDICTION,
    FLOW_SCHEDULERS,
    diffusion_target,
    implied_image,
    prediction_type_of,
    signal_and_noise,
)
from hfgen.pipelines.pipeline_hfgen_class_conditional_diffusion import denoising_step, show, start_denoising
from hfgen.utils.errors import UserError

SHORT_NAMES = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "deis": "DEISMultistepScheduler",
    "dpmsolver": "DPMSolverMultistepScheduler",
    "dpmsolver_sde": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "flow_euler": "FlowMatchEulerDiscreteScheduler",
    "flow_heun": "FlowMatchHeunDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
}
# What a short name says besides the class.
SETTINGS = {
    "dpmsolver": {"algorithm_type": "dpmsolver++"},
    "dpmsolver_sde": {"algorithm_type": "sde-dpmsolver++"},  # adds noise in every step, as ddpm does
}
# Solvers of diffusion models that also follow a flow, if they are told.
FLOW_SOLVERS = {
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
}


# What decides α and σ of each level. Schedulers differ in their defaults, so that these are always handed over.
NOISE_LEVELS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")


def make_scheduler(name: str, own: SchedulerMixin, num_inference_steps: int) -> SchedulerMixin:
    """Build a scheduler for a model from the one that it was trained with.

    Args:
        name: A key of `SHORT_NAMES`, or the name of a diffusers class.
        own: The scheduler that the pipeline was saved with.
        num_inference_steps: How many steps it will be asked for.

    Raises:
        UserError: with the list of schedulers that fit, if this one does not or there is none of the name.
    """
    if name not in SHORT_NAMES and not hasattr(diffusers, name):
        near = difflib.get_close_matches(name, SHORT_NAMES, n=1)
        raise UserError(
            f"there is no scheduler {name}{f'; did you mean {near[0]}?' if near else '.'} These fit the model: "
            + ", ".join(suitable_schedulers(own, num_inference_steps))
        )
    scheduler = _from_config(name, own)
    if scheduler is None or not recovers_known_image(scheduler, own, num_inference_steps):
        fitting = ", ".join(suitable_schedulers(own, num_inference_steps))
        raise UserError(
            f"scheduler {name} does not fit a model with prediction type {prediction_type_of(own)}"
            + ("" if prediction_type_of(own) == FLOW_PREDICTION else f" and beta schedule {own.config.beta_schedule}")
            + f", in {num_inference_steps} steps; these do: {fitting}"
        )
    return scheduler


def suitable_schedulers(own: SchedulerMixin, num_inference_steps: int) -> list[str]:
    """List the schedulers that fit a model in so many steps: short names where there is one, else class names."""
    classes = _class_names(own)
    names = [name for name, class_name in SHORT_NAMES.items() if class_name in classes]
    names += sorted(classes - set(SHORT_NAMES.values()))
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # those that do not fit complain
    try:
        built = {name: _from_config(name, own) for name in names}
        return [
            name
            for name, scheduler in built.items()
            if scheduler is not None and recovers_known_image(scheduler, own, num_inference_steps)
        ]
    finally:
        logging.set_verbosity(verbosity)


def _class_names(own: SchedulerMixin) -> set[str]:
    if prediction_type_of(own) == FLOW_PREDICTION:
        return {*(c.__name__ for c in FLOW_SCHEDULERS), *FLOW_SOLVERS}
    return {type(own).__name__, *(c.__name__ for c in own.compatibles)}


def _from_config(name: str, own: SchedulerMixin) -> SchedulerMixin | None:
    class_name = SHORT_NAMES.get(name, name)
    if class_name not in _class_names(own):
        return None
    # A scheduler that was not loaded also lists what nobody chose, where the new one would have its own default.
    config = {name: value for name, value in own.config.items() if name != "_use_default_values"}
    levels = {name: config[name] for name in NOISE_LEVELS if name in config}
    if class_name in FLOW_SOLVERS and prediction_type_of(own) == FLOW_PREDICTION:
        config = {"prediction_type": FLOW_PREDICTION, "use_flow_sigmas": True}
    try:
        return getattr(diffusers, class_name).from_config(config, **levels, **SETTINGS.get(name, {}))
    except (ImportError, NotImplementedError, ValueError):  # needs a package that is not there, or does not fit
        return None


def recovers_known_image(scheduler: SchedulerMixin, own: SchedulerMixin, num_inference_steps: int) -> bool:
    """Tell whether a scheduler denoises with what a model predicts that was trained with the noise levels of another.

    Who knows the image x₀ can say exactly what a network should predict at each x_t. A scheduler that understands this
    kind of prediction, and has the same noise levels, then ends at x₀. And when the prediction is off by a little, it
    must not leave the range that networks are trained on: where next to nothing is left of the image, what ε says of
    it is off by many times as much, unless the scheduler clips that.

    Args:
        scheduler: The one to try.
        own: The one that the model was trained with.
        num_inference_steps: How many steps to take.
    """
    image = torch.linspace(-0.9, 0.9, 16).view(1, 1, 4, 4)

    def visited(error: float) -> list[Tensor]:
        model = KnowsTheImage(image, own, error)
        return [x for x, _ in denoising_states(model, scheduler, num_inference_steps, image.shape, [0])]

    try:
        *_, x = visited(error=0.0)
        *states, _ = visited(error=0.05)
    except (AssertionError, AttributeError, NotImplementedError, ValueError):
        return False
    return bool((x - image).abs().max() < 0.03) and max(float(x.abs().max()) for x in states) < 10


class KnowsTheImage:
    """Predicts what a network should, or that and a constant error, because it knows the image.

    Args:
        image: x₀, (B, C, H, W).
        own: The scheduler with the noise levels of training, which says what is predicted.
        error: What is added to that.
    """

    def __init__(self, image: Tensor, own: SchedulerMixin, error: float = 0.0):
        self.image, self.own, self.error = image, own, error

    def __call__(self, x: Tensor, timestep: Tensor) -> Tensor:
        """Predict for x, (B, C, H, W), at one timestep; the result is like x."""
        alpha, sigma = signal_and_noise(self.own, timestep)
        noise = (x - alpha * self.image) / sigma
        target = diffusion_target(prediction_type_of(self.own), self.image, noise, alpha, sigma)
        return (target + self.error).to(x.dtype)


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
