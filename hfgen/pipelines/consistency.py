"""Consistency models (Song et al. 2023) in diffusers' own pipeline, with the names of their classes.

What is saved is diffusers' `ConsistencyModelPipeline`, which needs no code of hfgen. It takes classes by index only.
Their names are beside its components in `model_index.json`, where diffusers ignores entries with an underscore.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import diffusers
import torch
from diffusers import CMStochasticIterativeScheduler, ImagePipelineOutput, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hfgen.pipelines.pipeline_hfgen_class_conditional_diffusion import GuidedModel
from hfgen.pipelines.pipeline_hfgen_gan import GANPipeline

NAMES, STEPS = "_id2label", "_num_inference_steps"  # in `model_index.json`
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0  # noise levels of x₀ + σ ε, as in the paper
RHO = 7.0
SIGMA_DATA = 1.0
NOISE_LEVELS = 6  # of the scheduler; two steps then start at σ 80 and 0.97


class ConsistencyModelPipeline(diffusers.ConsistencyModelPipeline):
    """diffusers' pipeline, which also takes classes by name and has a default number of steps.

    Args:
        unet: The network, with `num_class_embeds` equal to the number of classes, or None for an unconditional model.
        scheduler: The noise levels.
        id2label: Class names by index; by default the indices.
        num_inference_steps: Default number of steps.
    """

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: CMStochasticIterativeScheduler,
        id2label: Mapping[Any, str] | None = None,
        num_inference_steps: int = 1,
    ):
        super().__init__(unet, scheduler)
        names = id2label or {number: str(number) for number in range(unet.config.num_class_embeds or 0)}
        self.register_to_config(**{
            NAMES: {int(number): name for number, name in names.items()},
            STEPS: num_inference_steps,
        })  # fmt: skip

    @property
    def labels(self) -> dict[str, int]:
        """Class indices by name; empty for an unconditional model."""
        return {name: number for number, name in self.config[NAMES].items()}

    @property
    def most_steps(self) -> int:
        """The number of noise levels of the scheduler."""
        return self.scheduler.config.num_train_timesteps

    get_label_ids = GANPipeline.get_label_ids

    @torch.no_grad()
    def states(
        self,
        batch_size: int,
        class_ids: Sequence[int] | None,
        num_inference_steps: int,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Sample images step by step (Song et al. 2023, algorithm 1), in float32 whatever the network's precision.

        Args:
            batch_size: Number of images.
            class_ids: The class of each, or None for an unconditional model.
            num_inference_steps: Number of steps.
            generator: See `__call__`.

        Yields:
            For each step (x₀ + σ ε) / √(1 + σ²), whose variance is about 1, and the network's estimate of x₀; at the
            end the images twice. Each float32 (B, C, H, W), images in [−1, 1].
        """
        unet, scheduler, device = self.unet, self.scheduler, self._execution_device
        size = unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        noise = randn_tensor((batch_size, unet.config.in_channels, height, width), generator, device)
        classes = None if class_ids is None else torch.tensor(class_ids, device=device)
        x = noise * scheduler.init_noise_sigma
        scheduler.set_timesteps(num_inference_steps)
        for sigma, timestep in zip(scheduler.sigmas, scheduler.timesteps, strict=False):
            prediction = self._predict(scheduler.scale_model_input(x, timestep), timestep, classes)
            skip, out = scheduler.get_scalings_for_boundary_condition(sigma)
            yield x / (1 + sigma**2).sqrt(), (out * prediction + skip * x).clamp(-1, 1)
            x = scheduler.step(prediction, timestep, x, generator=generator).prev_sample
        self.maybe_free_model_hooks()
        yield x, x

    def _predict(self, x: Tensor, timestep: Tensor, classes: Tensor | None) -> Tensor:
        size = GuidedModel.CPU_BATCH_SIZE if x.device.type == "cpu" else len(x)
        parts = x.to(self.unet.dtype).split(size)
        labels = [None] * len(parts) if classes is None else classes.split(size)
        predictions = [
            self.unet(part, timestep, class_labels=ids).sample for part, ids in zip(parts, labels, strict=True)
        ]
        return torch.cat(predictions).to(x.dtype)

    def __call__(
        self,
        batch_size: int = 1,
        class_labels: str | int | Sequence[str | int] | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Sample images.

        Args:
            batch_size: Number of images, unless class_labels determine it.
            class_labels: Names or indices of classes of a class-conditional model, one per image; by default all
                classes in turn.
            num_inference_steps: Number of steps; by default that of the pipeline.
            generator: Random generator of the noise: one for all images, or one per image.
            output_type: `pil`, `np` (float (B, H, W, C) in [0, 1]) or `pt` (float (B, C, H, W) in [0, 1]).
            return_dict: Return an `ImagePipelineOutput` instead of a tuple.

        Raises:
            ValueError: for an unknown class or output_type, an invalid number of images or steps, or classes of an
                unconditional model.
        """
        steps = self.config[STEPS] if num_inference_steps is None else num_inference_steps
        if not 1 <= steps <= self.most_steps:
            raise ValueError(f"num_inference_steps must be from 1 to {self.most_steps}, not {steps}")
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type must be pil, np or pt, not {output_type}")
        class_ids = None
        if class_labels is not None:
            if not self.labels:
                raise ValueError("this model is unconditional: class_labels do not apply")
            class_ids = self.get_label_ids(class_labels)
            batch_size = len(class_ids)
        elif self.labels:
            class_ids = [number % len(self.labels) for number in range(batch_size)]
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, not {batch_size}")
        *_, (images, _) = self.states(batch_size, class_ids, steps, generator)
        images = self.postprocess_image(images, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)


def noise_levels() -> CMStochasticIterativeScheduler:
    """Return the scheduler of hfgen's consistency models."""
    return CMStochasticIterativeScheduler(
        NOISE_LEVELS, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX, sigma_data=SIGMA_DATA, rho=RHO
    )
