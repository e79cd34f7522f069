"""Drawing images from a diffusion pipeline with any diffusers scheduler that fits its model."""

import difflib
import inspect
from collections.abc import Iterator

import diffusers
import torch
from diffusers import DDPMPipeline, SchedulerMixin, UNet2DModel
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from hfgen.errors import UserError
from hfgen.seeds import derive_seed

SHORT_NAMES = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "deis": "DEISMultistepScheduler",
    "dpmsolver": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
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
            f"scheduler {name} does not fit a model with prediction type {own.config.prediction_type} and beta "
            f"schedule {own.config.beta_schedule}; these do: {fitting}"
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
    return {type(own).__name__, *(c.__name__ for c in own.compatibles)}


def _from_config(class_name: str, own: SchedulerMixin) -> SchedulerMixin | None:
    if class_name not in _class_names(own):
        return None
    try:
        return getattr(diffusers, class_name).from_config(own.config)
    except (
        ImportError,
        NotImplementedError,
        ValueError,
    ):  # needs a package that is not there, or does not fit
        return None


def recovers_known_image(scheduler: SchedulerMixin, num_inference_steps: int = 25) -> bool:
    """Tell whether a scheduler fits the prediction type that its configuration names.

    A model that knows the image x₀ can say exactly what a network should predict at each x_t. A scheduler that
    understands this kind of prediction then ends at x₀; one that takes it for another kind does not, or refuses.
    """
    image = torch.linspace(-0.9, 0.9, 16).view(1, 1, 4, 4)
    try:
        *_, x = denoising_states(_Oracle(image, scheduler), scheduler, num_inference_steps, image.shape, seeds=[0])
    except (AttributeError, NotImplementedError, ValueError):
        return False
    return bool((x - image).abs().max() < 0.1)


class _Oracle(nn.Module):
    """Predicts exactly, because it knows the image."""

    def __init__(self, image: Tensor, scheduler: SchedulerMixin):
        super().__init__()
        self.image, self.prediction_type = image, scheduler.config.prediction_type
        self.alphas_cumprod = scheduler.alphas_cumprod.double()

    def forward(self, x: Tensor, timestep: Tensor):
        position = timestep.double().clamp(0, len(self.alphas_cumprod) - 1)
        below = position.long()
        above = (below + 1).clamp(max=len(self.alphas_cumprod) - 1)
        alpha_bar = torch.lerp(self.alphas_cumprod[below], self.alphas_cumprod[above], position - below)
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        noise = (x - alpha * self.image) / sigma
        kinds = {"epsilon": noise, "sample": self.image, "v_prediction": alpha * noise - sigma * self.image}
        return diffusers.models.unets.unet_2d.UNet2DOutput(sample=kinds[self.prediction_type].to(x.dtype))


@torch.no_grad()
def denoising_states(
    model: nn.Module,
    scheduler: SchedulerMixin,
    num_inference_steps: int,
    shape: tuple[int, ...],
    seeds: list[int],
    device: torch.device | str = "cpu",
) -> Iterator[Tensor]:
    """Denoise from pure noise, yielding what the network is shown at each step, and last the sample x₀.

    Args:
        model: Called as `model(x, timestep).sample`.
        scheduler: Says which noise levels to visit and how to step between them.
        num_inference_steps: How many steps to take.
        shape: (B, C, H, W), or (1, C, H, W) for all.
        seeds: One seed an image, so that an image does not depend on those drawn with it.
        device: Where to compute; the noise is drawn on the CPU, the same for every device.

    Yields:
        float32 (B, C, H, W), √ᾱ x₀ + √(1−ᾱ) ε for every scheduler; x₀ is in [−1, 1] up to the model's errors.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    scheduler.set_timesteps(num_inference_steps, device=device)
    x = randn_tensor((len(seeds), *shape[1:]), generator=generators, device=torch.device(device))
    x = x * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        shown = scheduler.scale_model_input(x, timestep)
        yield shown
        prediction = model(shown, timestep).sample
        extra = {"generator": generators} if takes_generator else {}
        x = scheduler.step(prediction, timestep, x, **extra).prev_sample
    yield x


def sample(
    pipeline: DDPMPipeline,
    *,
    num_images: int,
    num_inference_steps: int,
    scheduler: str,
    seed: int = 0,
    batch_size: int = 64,
    num_frames: int = 1,
    first_image: int = 0,
) -> Iterator[list[Tensor]]:
    """Draw images batch by batch from number `first_image` on; image i follows from (seed, i), not from its batch.

    Yields:
        For each batch up to `num_frames` states of the denoising, evenly spread, uint8 (B, C, H, W); the last one
        is the images.

    Raises:
        UserError: if the scheduler does not fit the model, or cannot take so many steps.
    """
    if not isinstance(getattr(pipeline, "unet", None), UNet2DModel):
        raise UserError(
            f"a {type(pipeline).__name__} cannot be sampled here: it is no unconditional diffusion pipeline"
        )
    unet, max_steps = pipeline.unet, pipeline.scheduler.config.num_train_timesteps
    if not 1 <= num_inference_steps <= max_steps:
        raise UserError(f"num_inference_steps must be from 1 to {max_steps}, not {num_inference_steps}")
    solver = make_scheduler(scheduler, pipeline.scheduler)
    solver.set_timesteps(num_inference_steps)
    frames = {len(solver.timesteps) * (i + 1) // num_frames for i in range(num_frames)}
    size = unet.config.sample_size
    shape = (1, unet.config.in_channels, *((size, size) if isinstance(size, int) else size))
    end = first_image + num_images
    for first in range(first_image, end, batch_size):
        seeds = [derive_seed("image", seed, i) for i in range(first, min(first + batch_size, end))]
        states = denoising_states(unet, solver, num_inference_steps, shape, seeds, pipeline.device)
        yield [to_uint8(state) for index, state in enumerate(states) if index in frames]


def to_uint8(x: Tensor) -> Tensor:
    """Round images from [−1, 1] to uint8 on the CPU, cutting off what lies outside."""
    return ((x / 2 + 0.5).clamp(0, 1) * 255).round().to("cpu", torch.uint8)
