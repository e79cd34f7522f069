"""Sampling from any generative pipeline of hfgen. Image i depends on (seed, i) only, not on its batch."""

import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from diffusers import DDPMPipeline, DiffusionPipeline, SchedulerMixin, UNet2DModel
from torch import Tensor

from hfgen.config.vae import PRIORS
from hfgen.families import GUIDANCE, model_of, own_sampler
from hfgen.losses.diffusion import FLOW_SCHEDULERS
from hfgen.models.modeling_hfgen_vae import SpatialVAEModel
from hfgen.pipelines.consistency import STEPS, ConsistencyModelPipeline
from hfgen.pipelines.pipeline_hfgen_class_conditional_diffusion import ClassConditionalDiffusionPipeline, GuidedModel
from hfgen.pipelines.pipeline_hfgen_cluster_conditional_diffusion import ClusterConditionalDiffusionPipeline
from hfgen.pipelines.pipeline_hfgen_flow_map import FlowMapPipeline
from hfgen.pipelines.pipeline_hfgen_gan import GANPipeline
from hfgen.pipelines.pipeline_hfgen_vae import VAEPipeline
from hfgen.sampling.schedulers import denoising_states, learnt_entry, learnt_steps, make_scheduler, name_of_scheduler
from hfgen.utils.errors import UserError
from hfgen.utils.seeds import derive_seed

LARGEST_GUIDANCE = 1000  # in amount; beyond, float32 makes nothing but noise of it
GUIDED = (ClassConditionalDiffusionPipeline, ClusterConditionalDiffusionPipeline)


def is_conditional(pipeline: DiffusionPipeline) -> bool:
    """Return whether a pipeline is class-conditional."""
    return bool(getattr(pipeline, "labels", {}))


def is_guided(pipeline: DiffusionPipeline) -> bool:
    """Return whether a pipeline takes classifier-free guidance."""
    return isinstance(pipeline, GUIDED)


def decodes(pipeline: DiffusionPipeline) -> bool:
    """Tell whether one call of a pipeline makes images of latents."""
    model = model_of(type(pipeline).__name__)
    return model is not None and model.use == "decode"


def takes_few_steps(pipeline: DiffusionPipeline) -> bool:
    """Tell whether a pipeline comes from noise to images in one or a few steps."""
    model = model_of(type(pipeline).__name__)
    return model is not None and model.use == "few_steps"


def _option_names(pipeline: DiffusionPipeline) -> tuple[str, ...]:
    """Return the names of the sampler options of a pipeline's call."""
    return model_of(type(pipeline).__name__).sampler


def network_of(pipeline: DiffusionPipeline) -> torch.nn.Module:
    """Return the network that makes the images."""
    model = model_of(type(pipeline).__name__)
    return pipeline.components[model.network if model else "unet"]


def dtype_of(pipeline: DiffusionPipeline) -> str:
    """Return the name of the data type of a pipeline's weights, such as `float32`."""
    network = next(part for part in pipeline.components.values() if isinstance(part, torch.nn.Module))
    return str(network.dtype).removeprefix("torch.")


def decoder_of(pipeline: DiffusionPipeline) -> SpatialVAEModel | None:
    """Return the VAE that decodes the latents of a latent diffusion model, or None for any other pipeline."""
    return None if decodes(pipeline) else pipeline.components.get("vae")


def require_pixels(pipeline: DiffusionPipeline, what: str) -> None:
    """Check that a diffusion model works on pixels, as `what` needs it.

    Raises:
        UserError: for latent diffusion.
    """
    if decoder_of(pipeline) is not None:
        raise UserError(f"{what} needs a diffusion model of pixels, and this is one of the latents of a VAE")


def image_shape_of(pipeline: DiffusionPipeline) -> tuple[int, int, int]:
    """Return the shape (C, H, W) of a pipeline's images."""
    return sample_shape_of(decoder_of(pipeline) or network_of(pipeline))


def size_of(shape: tuple[int, int, int]) -> str:
    """Describe a shape (C, H, W)."""
    return f"{shape[2]}×{shape[1]} pixels in {shape[0]} channel{'s' if shape[0] > 1 else ''}"


def sample_shape_of(network: torch.nn.Module) -> tuple[int, int, int]:
    """Return the shape (C, H, W) of the images, or latents, of a network."""
    config = network.config
    size, channels = config.sample_size, config.get("out_channels") or config.in_channels
    return (channels, *((size, size) if isinstance(size, int) else size))


def require_diffusion(pipeline: DiffusionPipeline) -> None:
    """Check that a pipeline is a diffusion model of pixels or of the latents of hfgen's VAEs.

    Raises:
        UserError: naming the pipeline, if it is not.
    """
    noun = model.noun if (model := model_of(type(pipeline).__name__)) else ""
    if decodes(pipeline):
        raise UserError(f"a {noun} generates images in one step, so it has no denoising to film, compare or edit")
    if takes_few_steps(pipeline):
        raise UserError(f"a {noun} cannot edit images, and has no denoising to film; a diffusion model has")
    parts = pipeline.components
    drawable = parts.keys() - {"guide", "vae"} == {"unet", "scheduler"} and isinstance(parts["unet"], UNet2DModel)
    if (guide := parts.get("guide")) is not None:
        same = ("in_channels", "out_channels", "sample_size", "num_class_embeds")
        alike = isinstance(guide, UNet2DModel) and all(guide.config[n] == parts["unet"].config[n] for n in same)
        if not alike:
            raise UserError("the guide of this model does not fit its unet")
    if not drawable or bool(parts["unet"].config.num_class_embeds) != is_guided(pipeline):
        raise UserError(f"{type(pipeline).__name__} is not a diffusion model that hfgen supports")
    vae = decoder_of(pipeline)
    if vae is not None and not (
        isinstance(vae, SpatialVAEModel) and vae.latent_shape == sample_shape_of(parts["unet"])
    ):
        raise UserError("the vae of this model does not fit its unet")
    scheduler = parts["scheduler"]
    is_diffusion = hasattr(scheduler, "alphas_cumprod") and "prediction_type" in scheduler.config
    if not is_diffusion and not isinstance(scheduler, FLOW_SCHEDULERS):
        raise UserError(f"hfgen cannot sample with a {type(scheduler).__name__}")


def default_sampler(pipeline: DiffusionPipeline, run: dict[str, Any]) -> dict[str, Any]:
    """Return the sampler options of a run's own sample grids, for `sample`.

    Args:
        pipeline: The pipeline of the run.
        run: The run's configuration. For missing fields, models use the options saved with the pipeline, but
            unconditional diffusion models, which save none, the default scheduler and steps.
    """
    saved = {}
    if decodes(pipeline):
        saved = {name: pipeline.config[name] for name in _option_names(pipeline)}
    elif takes_few_steps(pipeline):
        own = STEPS if isinstance(pipeline, ConsistencyModelPipeline) else "num_inference_steps"
        saved = {"num_inference_steps": pipeline.config[own]}
    elif is_guided(pipeline):
        saved = {name: pipeline.config[name] for name in ("num_inference_steps", "guidance_scale")}
        saved["guidance_interval"] = [*pipeline.config.guidance_interval.values()]
        saved["scheduler"] = name_of_scheduler(pipeline.scheduler)
    return own_sampler(type(pipeline).__name__, saved | run)


def with_time_steps(pipeline: DiffusionPipeline, sampler: dict[str, Any]) -> dict[str, Any]:
    """Complete sampler options by the `time_steps` that the model has learnt for them, unless they have some or none.

    Args:
        pipeline: The pipeline.
        sampler: Options of `sample`.

    Raises:
        UserError: if a pipeline that has no time steps shall not use learnt ones.
    """
    if takes_few_steps(pipeline) or not hasattr(pipeline, "scheduler"):
        if "time_steps" in sampler:
            raise UserError("even_steps applies to diffusion models only, and this is none")
        return sampler
    if "time_steps" in sampler:
        return sampler
    found = learnt_steps(pipeline.scheduler, sampler["scheduler"], sampler["num_inference_steps"])
    return sampler | {"time_steps": found} if found else sampler


def say_learnt_steps(pipeline: DiffusionPipeline, sampler: dict[str, Any]) -> None:
    """Print whether images are sampled with learnt time steps, and whether these were learnt with another guidance."""
    if not sampler.get("time_steps"):
        return
    name, count = sampler["scheduler"], sampler["num_inference_steps"]
    print(f"hfgen: uses the learnt time steps of the model ({name}, {count} steps)", file=sys.stderr)
    guidance = learnt_entry(pipeline.scheduler, name, count)["guidance"]
    if any(sampler.get(option) != value for option, value in guidance.items()):
        scale, (first, last) = guidance["guidance_scale"], guidance["guidance_interval"]
        print(
            f"hfgen: they were learnt with guidance {scale:g} from {first:g} to {last:g}, and may not fit another",
            file=sys.stderr,
        )


def check_sampling(pipeline: DiffusionPipeline, *, class_labels: Sequence[str | int] = (), **sampler: Any) -> None:
    """Check the arguments of `sample`.

    Raises:
        UserError: for a pipeline that hfgen cannot sample from; for options that do not apply to it; for unknown
            classes, or any classes if the model is unconditional; for an incompatible scheduler, or an invalid number
            of steps or guidance.
    """
    _drawing(pipeline, class_labels, sampler)


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
    """Sample images in batches; image i depends on (seed, i) only, not on its batch.

    Args:
        pipeline: A `DDPMPipeline`, `ClassConditionalDiffusionPipeline`, `ClusterConditionalDiffusionPipeline`,
            `ConsistencyModelPipeline`, `FlowMapPipeline`, `VAEPipeline` or `GANPipeline`.
        num_images: Number of images.
        seed: Random seed, zero or more.
        batch_size: Images per batch.
        first_image: Index of the first image.
        class_labels: Image i has the class `class_labels[i % len(class_labels)]`; by default all classes in turn.
        sampler: For a consistency model or a flow map `num_inference_steps`; for a diffusion model also `scheduler`
            (see `make_scheduler`), and the options `guidance_scale`, `guidance_interval` and `negative_class_labels`
            (cycled like the classes) of `ClassConditionalDiffusionPipeline.guided`, and `time_steps` (see
            `learnt_steps`), which are by default those that the model has learnt, if any, with None the scheduler's
            own; for a VAE `prior`; for a GAN `truncation`.

    Yields:
        The images of each batch, uint8 (B, C, H, W).

    Raises:
        UserError: see `check_sampling`.
    """
    draw = _drawing(pipeline, class_labels, sampler)
    end = first_image + num_images
    for first in range(first_image, end, batch_size):
        numbers = range(first, min(first + batch_size, end))
        *_, (x, _) = draw(numbers, [image_seed(seed, i) for i in numbers])
        yield to_uint8(decoded(pipeline, x))


def sample_steps(
    pipeline: DiffusionPipeline, *, seeds: Sequence[int], class_labels: Sequence[str | int] = (), **sampler: Any
) -> Iterator[tuple[Tensor, Tensor]]:
    """Sample images in one batch, step by step.

    Args:
        pipeline: See `sample`.
        seeds: The seed of each image, as `image_seed` returns it.
        class_labels: See `sample`.
        sampler: See `sample`.

    Yields:
        x_t and the predicted x₀ before each denoising step, and at last twice the images; uint8 (B, C, H, W) each. A
        VAE or GAN yields only the last.

    Raises:
        UserError: see `check_sampling`.
    """
    draw = _drawing(pipeline, class_labels, sampler)
    for states in draw(range(len(seeds)), list(seeds)):
        x, estimate = (to_uint8(decoded(pipeline, state)) for state in states)
        yield x, estimate


def image_seed(seed: int, number: int) -> int:
    """Return the seed of image `number` of those that `sample` makes from a seed."""
    return derive_seed("image", seed, number)


def film(
    pipeline: DiffusionPipeline,
    *,
    num_images: int,
    num_frames: int,
    seed: int = 0,
    class_labels: Sequence[str | int] = (),
    **sampler: Any,
) -> tuple[Tensor, Tensor]:
    """Denoise the images of `sample` in one batch, keeping intermediate states.

    Returns:
        x_t and the predicted x₀ at up to `num_frames` evenly spaced steps, the last of which are the final images;
        each uint8 (F, B, C, H, W).

    Raises:
        UserError: if the pipeline is not a diffusion model; see also `check_sampling`.
    """
    require_diffusion(pipeline)
    solver = _check_denoising(pipeline, class_labels, **with_time_steps(pipeline, sampler))
    solver.set_timesteps(sampler["num_inference_steps"])
    frames = {len(solver.timesteps) * (i + 1) // num_frames for i in range(num_frames)}
    seeds = [image_seed(seed, i) for i in range(num_images)]
    states = enumerate(_denoise(pipeline, solver, class_labels, sampler, range(num_images), seeds))
    kept = [[to_uint8(decoded(pipeline, x)) for x in pair] for index, pair in states if index in frames]
    noised, estimates = zip(*kept, strict=True)
    return torch.stack(noised), torch.stack(estimates)


def labels_of(pipeline: DiffusionPipeline, class_labels: Sequence[str | int], numbers: Iterable[int]) -> list[int]:
    """Return the class labels of images by their indices in `sample`."""
    known = pipeline.get_label_ids(class_labels or list(pipeline.labels.values()))
    return [known[i % len(known)] for i in numbers]


def clusters_of(cluster_shares: Sequence[float], seeds: Iterable[int]) -> list[int]:
    """Return the random clusters of images by their seeds, in proportion to the sizes of the clusters."""
    shares = torch.tensor(cluster_shares, dtype=torch.float64)
    generators = (torch.Generator().manual_seed(derive_seed("cluster", seed)) for seed in seeds)
    return [int(torch.multinomial(shares, 1, generator=generator)) for generator in generators]


def with_hint(message: str, class_labels: Sequence[str | int]) -> str:
    """Return a message about classes, with a hint if they are separated by commas."""
    joined = next((label for label in class_labels if "," in str(label)), None)
    return f"{message}; separate classes by spaces: {joined.replace(',', ' ')}" if joined else message


def to_uint8(x: Tensor) -> Tensor:
    """Convert images from [−1, 1] to uint8 on the CPU, clipping values outside."""
    return ((x / 2 + 0.5).clamp(0, 1) * 255).round().to("cpu", torch.uint8)


@torch.no_grad()
def decoded(pipeline: DiffusionPipeline, x: Tensor) -> Tensor:
    """Return images (B, C, H, W) in [−1, 1] of what `_drawing` draws: of latents, if these are denoised."""
    vae = decoder_of(pipeline)
    if vae is None:
        return x
    parts = x.split(GuidedModel.CPU_BATCH_SIZE if x.device.type == "cpu" else len(x))
    return torch.cat([vae.decode_map(part) for part in parts])


def _drawing(
    pipeline: DiffusionPipeline, class_labels: Sequence[str | int], sampler: dict[str, Any]
) -> Callable[[range, list[int]], Iterator[tuple[Tensor, Tensor]]]:
    """Return what draws images (B, C, H, W) in [−1, 1], or their latents, by their numbers and seeds, step by step."""
    if decodes(pipeline):
        return _one_step(pipeline, class_labels, sampler)
    if takes_few_steps(pipeline):
        return _few_steps(pipeline, class_labels, sampler)
    require_diffusion(pipeline)
    solver = _check_denoising(pipeline, class_labels, **with_time_steps(pipeline, sampler))
    return functools.partial(_denoise, pipeline, solver, class_labels, sampler)


def _check_denoising(
    pipeline: DiffusionPipeline,
    class_labels: Sequence[str | int],
    *,
    num_inference_steps: int,
    scheduler: str,
    negative_class_labels: Sequence[str | int] = (),
    time_steps: dict[str, list[float]] | None = None,
    **guidance: Any,
) -> SchedulerMixin:
    """Check the options of a diffusion model and build its scheduler."""
    max_steps = pipeline.scheduler.config.num_train_timesteps
    if not isinstance(num_inference_steps, int) or not 1 <= num_inference_steps <= max_steps:
        raise UserError(f"num_inference_steps must be from 1 to {max_steps}, not {num_inference_steps}")
    scale = guidance.get("guidance_scale", 1)
    if not isinstance(scale, int | float) or not abs(scale) <= LARGEST_GUIDANCE:
        raise UserError(f"guidance_scale must be a number of at most {LARGEST_GUIDANCE}, not {scale}")
    if unknown := guidance.keys() - set(GUIDANCE):
        raise UserError(f"a diffusion model has no {', '.join(sorted(unknown))}")
    if not is_conditional(pipeline) and (
        class_labels or negative_class_labels or (guidance and not is_guided(pipeline))
    ):
        what = "class_labels do" if is_guided(pipeline) else "class_labels and guidance do"
        raise UserError(f"this model is unconditional: {what} not apply (train with --class_conditional)")
    if is_guided(pipeline):
        numbers = range(max(len(class_labels), len(negative_class_labels), 1))
        try:
            _guided(pipeline, class_labels, negative_class_labels, guidance, numbers, [0] * len(numbers))
        except ValueError as error:
            raise UserError(with_hint(str(error), [*class_labels, *negative_class_labels])) from error
    return make_scheduler(scheduler, pipeline.scheduler, num_inference_steps, time_steps)


def _guided(
    pipeline: ClassConditionalDiffusionPipeline | ClusterConditionalDiffusionPipeline,
    class_labels: Sequence[str | int],
    negative_class_labels: Sequence[str | int],
    guidance: dict[str, Any],
    numbers: Sequence[int],
    seeds: list[int],
) -> GuidedModel:
    """Return the guided model for the images with these indices and seeds."""
    if not is_conditional(pipeline):
        return pipeline.guided(clusters_of([*pipeline.config.cluster_shares.values()], seeds), **guidance)
    negatives = labels_of(pipeline, negative_class_labels, numbers) if negative_class_labels else None
    return pipeline.guided(labels_of(pipeline, class_labels, numbers), negative_class_labels=negatives, **guidance)


def denoiser(
    pipeline: DDPMPipeline | ClassConditionalDiffusionPipeline | ClusterConditionalDiffusionPipeline,
    class_labels: Sequence[str | int],
    sampler: dict[str, Any],
    numbers: Sequence[int],
    seeds: list[int],
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the prediction, guided if the pipeline is, at x_t and timesteps, for the images with these indices."""
    if not is_guided(pipeline):
        return functools.partial(_predict, pipeline.unet)
    guidance = {name: sampler[name] for name in GUIDANCE if name in sampler}
    return _guided(pipeline, class_labels, sampler.get("negative_class_labels", ()), guidance, numbers, seeds)


def _denoise(
    pipeline: DDPMPipeline | ClassConditionalDiffusionPipeline | ClusterConditionalDiffusionPipeline,
    solver: SchedulerMixin,
    class_labels: Sequence[str | int],
    sampler: dict[str, Any],
    numbers: range,
    seeds: list[int],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the denoising states of the images with these indices; see `denoising_states`."""
    model = denoiser(pipeline, class_labels, sampler, numbers, seeds)
    shape = (1, *sample_shape_of(pipeline.unet))
    return denoising_states(model, solver, sampler["num_inference_steps"], shape, seeds, pipeline.device)


def _predict(unet: UNet2DModel, x: Tensor, timestep: Tensor) -> Tensor:
    size = GuidedModel.CPU_BATCH_SIZE if x.device.type == "cpu" else len(x)
    parts = zip(x.to(unet.dtype).split(size), timestep.to(x.device).expand(len(x)).split(size), strict=True)
    return torch.cat([unet(part, time).sample for part, time in parts]).to(x.dtype)


def _one_step(
    pipeline: VAEPipeline | GANPipeline, class_labels: Sequence[str | int], sampler: dict[str, Any]
) -> Callable[[range, list[int]], Iterator[tuple[Tensor, Tensor]]]:
    """Return what draws latents and makes images of them, in one step."""
    _check_options(pipeline, sampler, "samples in one step and")
    if sampler.get("prior") not in (None, *PRIORS):
        raise UserError(f"prior must be {', '.join(PRIORS[:-1])} or {PRIORS[-1]}, not {sampler['prior']}")
    if sampler.get("prior") == "flow" and pipeline.flow is None:
        raise UserError("this model has no flow; train one with --prior flow, or choose the prior normal or mixture")
    if sampler.get("truncation") is not None and not sampler["truncation"] > 0:
        raise UserError(f"truncation must be positive, not {sampler['truncation']}")
    _check_classes(pipeline, class_labels)

    def draw(numbers: range, seeds: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        classes = {"class_labels": labels_of(pipeline, class_labels, numbers)} if is_conditional(pipeline) else {}
        options = {"generator": generators, "output_type": "pt"}
        images = pipeline(len(seeds), **sampler, **classes, **options).images * 2 - 1
        yield images, images

    return draw


def _few_steps(
    pipeline: ConsistencyModelPipeline | FlowMapPipeline, class_labels: Sequence[str | int], sampler: dict[str, Any]
) -> Callable[[range, list[int]], Iterator[tuple[Tensor, Tensor]]]:
    """Return what draws images with a consistency model or a flow map."""
    _check_options(pipeline, sampler, "samples in a few steps and")
    _check_classes(pipeline, class_labels)
    steps, most = sampler["num_inference_steps"], pipeline.most_steps
    if not isinstance(steps, int) or not 1 <= steps <= most:
        noun = model_of(type(pipeline).__name__).noun
        raise UserError(f"num_inference_steps of this {noun} must be from 1 to {most}, not {steps}")

    def draw(numbers: range, seeds: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        classes = labels_of(pipeline, class_labels, numbers) if is_conditional(pipeline) else None
        yield from pipeline.states(len(seeds), classes, steps, generators)

    return draw


def _check_options(pipeline: DiffusionPipeline, sampler: dict[str, Any], how: str) -> None:
    """Check that a pipeline has the sampler options that are given."""
    own = _option_names(pipeline)
    if others := sampler.keys() - set(own):
        options = f"only has the option {' and '.join(own)}" if own else "has no options"
        noun = model_of(type(pipeline).__name__).noun
        raise UserError(f"a {noun} {how} {options}, no {', '.join(sorted(others))}")


def _check_classes(pipeline: DiffusionPipeline, class_labels: Sequence[str | int]) -> None:
    """Check the classes of a model without guidance."""
    if class_labels and not is_conditional(pipeline):
        raise UserError("this model is unconditional: class_labels do not apply")
    try:
        if class_labels:
            pipeline.get_label_ids(class_labels)
    except ValueError as error:
        raise UserError(with_hint(str(error), class_labels)) from error
