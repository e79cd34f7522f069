"""Drawing images from a diffusion pipeline with any diffusers scheduler that fits its model."""

import difflib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, SchedulerMixin, UNet2DModel
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hfgen.config import GUIDANCE
from hfgen.errors import UserError
from hfgen.losses import (
    FLOW_PREDICTION,
    FLOW_SCHEDULERS,
    diffusion_target,
    implied_image,
    prediction_type_of,
    signal_and_noise,
)
from hfgen.pipelines.pipeline_hfgen_class_conditional_diffusion import (
    ClassConditionalDiffusionPipeline,
    denoising_step,
    show,
    start_denoising,
)
from hfgen.seeds import derive_seed

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


def is_conditional(pipeline: DiffusionPipeline) -> bool:
    """Tell whether a pipeline draws the classes that it is asked for."""
    return isinstance(pipeline, ClassConditionalDiffusionPipeline)


def image_shape_of(pipeline: DiffusionPipeline) -> tuple[int, int, int]:
    """Return (C, H, W) of the images that a pipeline draws."""
    config = pipeline.unet.config
    size = config.sample_size
    return (config.out_channels, *((size, size) if isinstance(size, int) else size))


def require_drawable(pipeline: DiffusionPipeline) -> None:
    """Refuse what is no diffusion on pixels.

    Raises:
        UserError: naming the pipeline.
    """
    parts = pipeline.components
    drawable = parts.keys() == {"unet", "scheduler"} and isinstance(parts["unet"], UNet2DModel)
    if not drawable or bool(parts["unet"].config.num_class_embeds) != is_conditional(pipeline):
        raise UserError(f"hfgen cannot draw from a {type(pipeline).__name__}")
    scheduler = parts["scheduler"]
    is_diffusion = hasattr(scheduler, "alphas_cumprod") and "prediction_type" in scheduler.config
    if not is_diffusion and not isinstance(scheduler, FLOW_SCHEDULERS):
        raise UserError(f"hfgen cannot draw with a {type(scheduler).__name__}")


def check_sampling(
    pipeline: DiffusionPipeline,
    *,
    num_inference_steps: int,
    scheduler: str,
    class_labels: Sequence[str | int] = (),
    negative_class_labels: Sequence[str | int] = (),
    **guidance: Any,
) -> SchedulerMixin:
    """Build the scheduler for `sample`, or refuse what cannot be drawn.

    Raises:
        UserError: if the pipeline is no diffusion on pixels; if the scheduler does not fit the model, or cannot take
            so many steps; for a class that the model does not know, or if it knows none; for an impossible guidance.
    """
    require_drawable(pipeline)
    conditional = is_conditional(pipeline)
    max_steps = pipeline.scheduler.config.num_train_timesteps
    if not 1 <= num_inference_steps <= max_steps:
        raise UserError(f"num_inference_steps must be from 1 to {max_steps}, not {num_inference_steps}")
    if not conditional and (class_labels or negative_class_labels or guidance):
        raise UserError("the model knows no classes, so that it cannot be asked for one, nor guided to it")
    if conditional:
        try:
            pipeline.guided([*class_labels, *negative_class_labels] or [None], **guidance)
        except ValueError as error:
            raise UserError(str(error)) from error
    return make_scheduler(scheduler, pipeline.scheduler)


def sample(
    pipeline: DiffusionPipeline,
    *,
    num_images: int,
    seed: int = 0,
    batch_size: int = 64,
    first_image: int = 0,
    class_labels: Sequence[str | int] = (),
    **sampler: Any,
) -> Iterator[Tensor]:
    """Draw images batch by batch from number `first_image` on; image i follows from (seed, i), not from its batch.

    Args:
        pipeline: A `DDPMPipeline` or `ClassConditionalDiffusionPipeline`.
        num_images: How many.
        seed: Zero or more.
        batch_size: Images drawn at a time.
        first_image: Number of the first one.
        class_labels: Image i shows class `class_labels[i % len(class_labels)]`; all classes in turn by default.
        sampler: `num_inference_steps` and `scheduler` (see `make_scheduler`), and of what
            `ClassConditionalDiffusionPipeline.guided` takes `guidance_scale`, `guidance_interval` and
            `negative_class_labels`, which are taken in turn like the classes.

    Yields:
        The images of each batch, uint8 (B, C, H, W).

    Raises:
        UserError: see `check_sampling`.
    """
    solver = check_sampling(pipeline, class_labels=class_labels, **sampler)
    end = first_image + num_images
    for first in range(first_image, end, batch_size):
        numbers = range(first, min(first + batch_size, end))
        *_, (images, _) = _states(pipeline, solver, numbers, seed, class_labels, sampler)
        yield to_uint8(images)


def film(
    pipeline: DiffusionPipeline,
    *,
    num_images: int,
    num_frames: int,
    seed: int = 0,
    class_labels: Sequence[str | int] = (),
    **sampler: Any,
) -> tuple[Tensor, Tensor]:
    """Draw the images of `sample` in one batch, and keep what happens on the way.

    Returns:
        x_t and the model's x̂₀ at up to `num_frames` steps, evenly spread, the images themselves last: each uint8
        (F, B, C, H, W).

    Raises:
        UserError: see `check_sampling`.
    """
    solver = check_sampling(pipeline, class_labels=class_labels, **sampler)
    solver.set_timesteps(sampler["num_inference_steps"])
    frames = {len(solver.timesteps) * (i + 1) // num_frames for i in range(num_frames)}
    states = enumerate(_states(pipeline, solver, range(num_images), seed, class_labels, sampler))
    kept = [(to_uint8(x), to_uint8(estimate)) for index, (x, estimate) in states if index in frames]
    noised, estimates = zip(*kept, strict=True)
    return torch.stack(noised), torch.stack(estimates)


def _states(
    pipeline: DiffusionPipeline,
    solver: SchedulerMixin,
    numbers: range,
    seed: int,
    class_labels: Sequence[str | int],
    sampler: dict[str, Any],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the states of the images with these numbers; see `denoising_states`."""
    model = functools.partial(_predict, pipeline.unet)
    if is_conditional(pipeline):
        guidance = {name: sampler[name] for name in GUIDANCE if name in sampler}
        if negatives := sampler.get("negative_class_labels"):
            guidance["negative_class_labels"] = labels_of(pipeline, negatives, numbers)
        model = pipeline.guided(labels_of(pipeline, class_labels, numbers), **guidance)
    seeds = [derive_seed("image", seed, i) for i in numbers]
    shape = (1, *image_shape_of(pipeline))
    return denoising_states(model, solver, sampler["num_inference_steps"], shape, seeds, pipeline.device)


def labels_of(pipeline: DiffusionPipeline, class_labels: Sequence[str | int], numbers: Iterable[int]) -> list[int]:
    """Return the classes of images by their numbers, in `sample`."""
    known = pipeline.get_label_ids(class_labels or list(pipeline.labels.values()))
    return [known[i % len(known)] for i in numbers]


def _predict(unet: UNet2DModel, x: Tensor, timestep: Tensor) -> Tensor:
    return unet(x.to(unet.dtype), timestep).sample.to(x.dtype)


def to_uint8(x: Tensor) -> Tensor:
    """Round images from [−1, 1] to uint8 on the CPU, cutting off what lies outside."""
    return ((x / 2 + 0.5).clamp(0, 1) * 255).round().to("cpu", torch.uint8)
