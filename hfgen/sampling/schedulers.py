"""Compatible diffusers schedulers of a diffusion model, and denoising with one of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypedDict

import diffusers
import torch
from diffusers import SchedulerMixin
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hfgen.config.suggestions import OTHER_VALUES, suggestion
from hfgen.losses.diffusion import (
    FLOW_PREDICTION,
    FLOW_SCHEDULERS,
    alpha_sigma,
    diffusion_target,
    predict_x0,
    prediction_type_of,
)
from hfgen.pipelines.pipeline_hfgen_class_conditional_diffusion import denoising_step, show, start_denoising
from hfgen.utils import untrusted
from hfgen.utils.errors import UserError
from hfgen.utils.untrusted import LEARNT_STEPS

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
# Options that a short name implies besides the class.
SETTINGS = {
    "dpmsolver": {"algorithm_type": "dpmsolver++"},
    "dpmsolver_sde": {"algorithm_type": "sde-dpmsolver++"},  # adds noise in every step, as ddpm does
}
# Solvers of diffusion models that also integrate a flow, with use_flow_sigmas.
FLOW_SOLVERS = {
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
}

# Short names of the solvers whose time steps can be learnt.
FREE_SOLVERS = tuple(name for each in untrusted.FREE_SOLVERS for name in SHORT_NAMES if SHORT_NAMES[name] == each)
# Options that determine α and σ of each timestep. Their defaults differ between schedulers, so they are always copied.
NOISE_LEVELS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")


def make_scheduler(
    name: str, own: SchedulerMixin, num_inference_steps: int, time_steps: Mapping[str, list[float]] | None = None
) -> SchedulerMixin:
    """Build a scheduler for a model from the one that it was trained with.

    Args:
        name: A key of `SHORT_NAMES`, or the name of a diffusers class.
        own: The scheduler of the pipeline, as used in training.
        num_inference_steps: Number of denoising steps.
        time_steps: Its `timesteps` and `sigmas` instead of its own (see `learnt_steps`).

    Raises:
        UserError: listing the compatible schedulers, if this one does not exist or is not compatible.
    """
    if name not in SHORT_NAMES and not hasattr(diffusers, name):
        near = suggestion(name, SHORT_NAMES, other_words=OTHER_VALUES) or "."
        raise UserError(
            f"there is no scheduler {name}{near} Compatible with this model: "
            + ", ".join(suitable_schedulers(own, num_inference_steps))
        )
    scheduler = _from_config(name, own)
    if scheduler is None or not is_compatible(scheduler, own, num_inference_steps):
        fitting = ", ".join(suitable_schedulers(own, num_inference_steps))
        raise UserError(
            f"scheduler {name} is not compatible with a model of prediction type {prediction_type_of(own)}"
            + ("" if prediction_type_of(own) == FLOW_PREDICTION else f" and beta schedule {own.config.beta_schedule}")
            + f", in {num_inference_steps} steps; these are: {fitting}"
        )
    if time_steps:
        scheduler.register_to_config(**{LEARNT_STEPS: {learnt_key(name, num_inference_steps): time_steps}})
    return scheduler


class LearntEntry(TypedDict):
    """What a scheduler's configuration has of the time steps that were learnt for it (see `learnt_key`).

    Attributes:
        timesteps: The K times that the network is conditioned on, falling.
        sigmas: The K + 1 noise levels between which the scheduler steps, in its own unit, falling.
        guidance: The `guidance_scale` and `guidance_interval` that they were learnt with, or nothing.
        reference_split: The split of real images by whose Fréchet distance they were found better than others.
        num_images: Number of sampled images of that comparison.
    """

    timesteps: list[float]
    sigmas: list[float]
    guidance: dict[str, Any]
    reference_split: str
    num_images: int


def learnt_steps(own: SchedulerMixin, name: str, num_inference_steps: int) -> dict[str, list[float]] | None:
    """Return the time steps that were learnt for a model, a scheduler and a number of steps K, or None.

    Args:
        own: The scheduler of the pipeline, whose configuration has them.
        name: See `make_scheduler`.
        num_inference_steps: K.

    Returns:
        `timesteps` and `sigmas` (see `LearntEntry`).
    """
    found = learnt_entry(own, name, num_inference_steps)
    return {"timesteps": found["timesteps"], "sigmas": found["sigmas"]} if found else None


def learnt_entry(own: SchedulerMixin, name: str, num_inference_steps: int) -> LearntEntry | None:
    """Return all that is known of the time steps that `learnt_steps` returns."""
    if name not in FREE_SOLVERS:
        return None
    return own.config.get(LEARNT_STEPS, {}).get(learnt_key(name, num_inference_steps))


def learnt_key(name: str, num_inference_steps: int) -> str:
    """Return the name of an entry of learnt time steps in a scheduler's configuration."""
    return f"{SHORT_NAMES[name]}:{num_inference_steps}"


def counts_learnt(own: SchedulerMixin, name: str) -> list[int]:
    """Return the numbers of steps for which a model has learnt time steps of a scheduler (see `learnt_steps`)."""
    keys = (key.split(":") for key in own.config.get(LEARNT_STEPS, {}))
    return sorted(int(count) for class_name, count in keys if class_name == SHORT_NAMES[name])


def name_of_scheduler(scheduler: SchedulerMixin) -> str:
    """Return the name of a scheduler for `make_scheduler`: a short one if any, else that of its class."""
    class_name = type(scheduler).__name__
    names = (
        name
        for name, short_for in SHORT_NAMES.items()
        if short_for == class_name and SETTINGS.get(name, {}).items() <= dict(scheduler.config).items()
    )
    return next(names, class_name)


def suitable_schedulers(own: SchedulerMixin, num_inference_steps: int, among: Sequence[str] = ()) -> list[str]:
    """List the compatible schedulers of a model for a number of steps, among these names or all.

    All schedulers have their short names if they have any, else those of their classes.
    """
    classes = _class_names(own)
    names = [*among]
    if not names:
        names = [name for name, class_name in SHORT_NAMES.items() if class_name in classes]
        names += sorted(classes - set(SHORT_NAMES.values()))
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # incompatible schedulers warn
    try:
        built = {name: _from_config(name, own) for name in names}
        return [
            name
            for name, scheduler in built.items()
            if scheduler is not None and is_compatible(scheduler, own, num_inference_steps)
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
    # A scheduler that was not loaded lists the options left at their defaults; the new one has its own defaults.
    config = {name: value for name, value in own.config.items() if name not in ("_use_default_values", LEARNT_STEPS)}
    levels = {name: config[name] for name in NOISE_LEVELS if name in config}
    if class_name in FLOW_SOLVERS and prediction_type_of(own) == FLOW_PREDICTION:
        config = {"prediction_type": FLOW_PREDICTION, "use_flow_sigmas": True}
    try:
        return getattr(diffusers, class_name).from_config(config, **levels, **SETTINGS.get(name, {}))
    except (ImportError, NotImplementedError, TypeError, ValueError):  # needs a missing package, or is incompatible
        return None


def is_compatible(scheduler: SchedulerMixin, own: SchedulerMixin, num_inference_steps: int) -> bool:
    """Return whether a scheduler can denoise with a model that was trained with another one.

    Run the scheduler with an oracle that returns the exact prediction for a known x₀. A compatible scheduler, with the
    same prediction type and noise levels, recovers x₀, and a small constant prediction error stays bounded. At low SNR
    an error of ε is amplified in x₀, so some schedulers leave the range that networks are trained on unless they clip.

    Args:
        scheduler: The scheduler to test.
        own: The scheduler that the model was trained with.
        num_inference_steps: Number of denoising steps.
    """
    image = torch.linspace(-0.9, 0.9, 16).view(1, 1, 4, 4)

    def visited(error: float) -> list[Tensor]:
        model = OracleDenoiser(image, own, error)
        return [x for x, _ in denoising_states(model, scheduler, num_inference_steps, image.shape, [0])]

    try:
        *_, x = visited(error=0.0)
        *states, _ = visited(error=0.05)
    except (AssertionError, AttributeError, IndexError, NotImplementedError, TypeError, ValueError):
        return False
    return bool((x - image).abs().max() < 0.03) and max(float(x.abs().max()) for x in states) < 10


class OracleDenoiser:
    """The exact prediction for a known image, plus a constant error.

    Args:
        image: x₀, (B, C, H, W).
        own: The scheduler used in training, which determines prediction type and noise levels.
        error: Constant added to the prediction.
    """

    def __init__(self, image: Tensor, own: SchedulerMixin, error: float = 0.0):
        self.image, self.own, self.error = image, own, error

    def __call__(self, x: Tensor, timestep: Tensor) -> Tensor:
        """Return the prediction at x_t, (B, C, H, W), for one timestep, in the shape and type of x."""
        alpha, sigma = alpha_sigma(self.own, timestep)
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
    """Denoise from pure noise, yielding x_t and the predicted x₀ at each step.

    Args:
        model: The prediction at x_t and a timestep.
        scheduler: A diffusers scheduler.
        num_inference_steps: Number of denoising steps.
        shape: (B, C, H, W); B is replaced by the number of seeds.
        seeds: One seed per image, so that an image does not depend on its batch.
        device: Device of the computation. The noise is sampled on the CPU, the same for every device.

    Yields:
        x_t = α_t x₀ + σ_t ε, whatever the scheduler's internal scaling, and the predicted x₀; at the end x₀ twice.
        Each float32 (B, C, H, W), images in [−1, 1] up to prediction errors.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = randn_tensor((len(seeds), *shape[1:]), generator=generators, device=torch.device(device))
    x = start_denoising(scheduler, num_inference_steps, noise)
    for timestep in scheduler.timesteps:
        shown = show(scheduler, x, timestep)
        x, prediction = denoising_step(model, scheduler, x, timestep, generators)
        yield (
            shown,
            predict_x0(prediction_type_of(scheduler), prediction, shown, *alpha_sigma(scheduler, timestep)),
        )
    yield x, x
