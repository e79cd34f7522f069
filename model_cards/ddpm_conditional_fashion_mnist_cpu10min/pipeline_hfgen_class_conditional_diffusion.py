"""Class-conditional diffusion pipeline with classifier-free guidance (Ho and Salimans 2022).

This file is saved with the weights and depends only on torch, diffusers and their dependencies.
"""

import inspect
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    ImagePipelineOutput,
    ModelMixin,
    SchedulerMixin,
    UNet2DModel,
)
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

ClassLabel = int | str | None
ClassLabels = ClassLabel | Sequence[ClassLabel] | np.ndarray | Tensor


class GuidedModel:
    """Class-conditional denoiser with classifier-free guidance and an optional negative class, or with autoguidance.

    ε̃(x, c) = ε(x, n) + s (ε(x, c) − ε(x, n)), where s is `guidance_scale` and n the negative class or null label. With
    s = 1 this is the conditional network, at half the cost (Ho and Salimans 2022, eq. 6, whose w is s − 1). In
    autoguidance a weaker network's ε(x, c) takes the place of ε(x, n) (Karras et al. 2024, arXiv:2406.02507). The same
    holds for every prediction type, since at a given x and t they are affine functions of each other.

    Args:
        unet: Called as `unet(x, timestep, class_labels=…).sample`.
        class_ids: c of each image, int64 (B,).
        negative_ids: n of each image, int64 (B,).
        guidance_scale: s.
        guidance_interval: Interval of t / T in which guidance is applied, from 0 (image) to 1 (pure noise); outside
            of it s is 1 (Kynkäänniemi et al. 2024).
        num_train_timesteps: T.
        guide: The weaker network of autoguidance, called like `unet`.
    """

    CPU_BATCH_SIZE = 128  # a CPU takes longer for each image of larger batches

    def __init__(
        self,
        unet: UNet2DModel,
        class_ids: Tensor,
        negative_ids: Tensor,
        guidance_scale: float,
        guidance_interval: Sequence[float],
        num_train_timesteps: int,
        guide: UNet2DModel | None = None,
    ):
        self.unet, self.guide, self.class_ids, self.negative_ids = unet, guide, class_ids, negative_ids
        self.guidance_scale = guidance_scale
        self.first, self.last = (share * num_train_timesteps for share in guidance_interval)

    def __call__(self, x: Tensor, timestep: Tensor) -> Tensor:
        """Return the guided prediction at x, (B, C, H, W), for one timestep or one each, in the type of x."""
        times, ids = timestep.to(x.device).expand(len(x)), self.class_ids
        is_guided = (self.first <= times) & (times <= self.last)
        if self.guidance_scale == 1 or not is_guided.any():
            return self._predict(self.unet, x, times, ids)
        if self.guide is not None:
            asked, weak = (self._predict(network, x, times, ids) for network in (self.unet, self.guide))
        else:
            twice = torch.cat([x, x]), torch.cat([times, times]), torch.cat([ids, self.negative_ids])
            asked, weak = self._predict(self.unet, *twice).chunk(2)
        return torch.lerp(weak, asked, torch.where(is_guided, self.guidance_scale, 1.0).view(-1, 1, 1, 1).to(x))

    def _predict(self, network: UNet2DModel, x: Tensor, times: Tensor, class_ids: Tensor) -> Tensor:
        size = self.CPU_BATCH_SIZE if x.device.type == "cpu" else len(x)
        parts = zip(x.to(network.dtype).split(size), times.split(size), class_ids.split(size), strict=True)
        predictions = [network(part, time, class_labels=labels).sample for part, time, labels in parts]
        return torch.cat(predictions).to(x.dtype)


def start_denoising(scheduler: SchedulerMixin, num_inference_steps: int, noise: Tensor) -> Tensor:
    """Set the scheduler's timesteps, and scale standard normal noise to its initial sigma.

    The time steps that a scheduler's configuration has for its class and this number of steps are used
    (`_learnt_steps`).
    """
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):  # its default last step is larger than the others
        levels = [1 - step / num_inference_steps for step in range(num_inference_steps)]
        scheduler.set_timesteps(sigmas=levels, device=noise.device)
    else:
        scheduler.set_timesteps(num_inference_steps, device=noise.device)
    steps = scheduler.timesteps
    if steps[-1] < 0:  # diffusers rounds "trailing" steps to one too many, for instance 61
        scheduler.timesteps = steps.clamp(min=0) if hasattr(scheduler, "sigmas") else steps[:-1]
    key = f"{type(scheduler).__name__}:{num_inference_steps}"
    if learnt := scheduler.config.get("_learnt_steps", {}).get(key):
        scheduler.timesteps = torch.tensor(learnt["timesteps"], device=noise.device)
        scheduler.sigmas = torch.tensor(learnt["sigmas"])
    return noise * getattr(scheduler, "init_noise_sigma", 1.0)  # flow matching has no such attribute


def show(scheduler: SchedulerMixin, x: Tensor, timestep: Tensor) -> Tensor:
    """Scale a scheduler's sample to the network's input; some solvers use x₀ + σε, with σ in the thousands."""
    return scheduler.scale_model_input(x, timestep) if hasattr(scheduler, "scale_model_input") else x


def denoising_step(
    model: Callable[[Tensor, Tensor], Tensor],
    scheduler: SchedulerMixin,
    x: Tensor,
    timestep: Tensor,
    generator: torch.Generator | list[torch.Generator] | None,
) -> tuple[Tensor, Tensor]:
    """Step x, (B, C, H, W), from one of `scheduler.timesteps` to the next; return it and the model's prediction."""
    prediction = model(show(scheduler, x, timestep), timestep)
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    extra = {"generator": generator} if takes_generator else {}
    return scheduler.step(prediction, timestep, x, **extra).prev_sample, prediction


def checked_defaults(
    guidance_scale: float, guidance_interval: dict[str, float] | None, num_inference_steps: int
) -> dict[str, Any]:
    """Return the default options of a pipeline's call, for its configuration.

    Raises:
        ValueError: if the scale is no finite number, the interval not two numbers, 0 ≤ first ≤ last ≤ 1, or there is
            no step.
    """
    if not isinstance(guidance_scale, int | float) or not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale must be a finite number, not {guidance_scale}")
    asked = guidance_interval or {"first": 0.0, "last": 1.0}
    interval = {name: asked.get(name) for name in ("first", "last")}
    are_numbers = all(isinstance(number, int | float) for number in interval.values())
    if len(asked) != 2 or not are_numbers or not 0 <= interval["first"] <= interval["last"] <= 1:
        raise ValueError(f"guidance_interval must have two numbers, 0 ≤ first ≤ last ≤ 1, not {asked}")
    if not isinstance(num_inference_steps, int) or num_inference_steps < 1:
        raise ValueError(f"num_inference_steps must be 1 or more, not {num_inference_steps}")
    return {
        "guidance_scale": guidance_scale,
        "guidance_interval": interval,
        "num_inference_steps": num_inference_steps,
    }


class ClassConditionalDiffusionPipeline(DiffusionPipeline):
    """Samples images of given classes.

    Args:
        unet: A network with `num_class_embeds` one above the number of classes; the last index is the null label.
        scheduler: A diffusers scheduler with the network's prediction type.
        id2label: Class names by index; by default the indices.
        learnt_no_class: Whether the network was trained with label dropout and so has an unconditional (null-label)
            mode, from which guidance extrapolates unless there is a negative class.
        guidance_scale: Default classifier-free guidance scale; if None, 2, or 1 without an unconditional mode.
        guidance_interval: Default interval of noise levels in which guidance is applied, from `first` to `last`; by
            default all. It is a mapping because diffusers takes lists in a pipeline's configuration for classes.
        num_inference_steps: Default number of denoising steps.
        guide: A weaker network, such as an earlier state of `unet`, from which guidance leads away instead of from the
            prediction without a class (autoguidance, Karras et al. 2024).
        vae: A `SpatialVAEModel` that decodes what `unet` denoises, in latent diffusion (Rombach et al. 2022).
    """

    model_cpu_offload_seq = "unet->vae"
    _exclude_from_cpu_offload: ClassVar[list[str]] = ["guide"]
    _optional_components: ClassVar[list[str]] = ["guide", "vae"]

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: SchedulerMixin,
        id2label: dict | None = None,
        learnt_no_class: bool = True,
        guidance_scale: float | None = None,
        guidance_interval: dict[str, float] | None = None,
        num_inference_steps: int = 20,
        guide: UNet2DModel | None = None,
        vae: ModelMixin | None = None,
    ):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, guide=guide, vae=vae)
        names = id2label or {number: str(number) for number in range(unet.config.num_class_embeds - 1)}
        id2label = {int(number): name for number, name in names.items()}
        if guidance_scale is None:
            guidance_scale = 2.0 if learnt_no_class else 1.0
        self.register_to_config(
            id2label=id2label,
            learnt_no_class=learnt_no_class,
            **checked_defaults(guidance_scale, guidance_interval, num_inference_steps),
        )

    # Copied from hfgen.pipelines.pipeline_hfgen_vae.VAEPipeline.from_pipe
    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Self:
        """Reuse the components of another pipeline. diffusers cannot resolve their classes, defined in other files."""
        return super().from_pipe(pipeline, **pipeline.components | kwargs)

    # Copied from hfgen.pipelines.pipeline_hfgen_vae.VAEPipeline.save_config
    def save_config(self, save_directory: str | os.PathLike) -> None:
        """Save `model_index.json` and the code that it names; `save_pretrained` calls this."""
        super().save_config(save_directory)
        save_code(self, save_directory)

    @property
    def labels(self) -> dict[str, int]:
        """Class indices by name."""
        return {name: number for number, name in self.config.id2label.items()}

    def get_label_ids(self, class_labels: ClassLabels) -> list[int]:
        """Return the indices of classes that are given by name or index; None is the null label.

        A string is matched with the names, then case-insensitively, then with the indices.

        Raises:
            ValueError: for an unknown class, listing the known ones.
        """
        class_labels = plain_labels(class_labels)
        if class_labels is None or isinstance(class_labels, int | str):
            class_labels = [class_labels]
        known: dict[ClassLabel, int] = {None: self.unet.config.num_class_embeds - 1}
        known |= {number: number for number in self.labels.values()}
        known |= {str(number): number for number in self.labels.values()}
        known |= {name.lower(): number for name, number in self.labels.items()} | self.labels

        def find(label: ClassLabel) -> int | None:
            return known.get(label, known.get(label.lower()) if isinstance(label, str) else None)

        found = [find(label) for label in class_labels]
        if None in found:
            raise ValueError(
                f"this model has no class {class_labels[found.index(None)]}; its classes are "
                + ", ".join(n if n == str(number) else f"{n} ({number})" for n, number in self.labels.items())
            )
        return found

    def guided(
        self,
        class_labels: ClassLabels,
        guidance_scale: float | None = None,
        guidance_interval: Sequence[float] | None = None,
        negative_class_labels: ClassLabels = None,
    ) -> GuidedModel:
        """Return the guided denoiser for these classes, one per image; see `__call__`."""
        if guidance_scale is None:
            guidance_scale = self.config.guidance_scale
        if guidance_interval is None:
            guidance_interval = [*self.config.guidance_interval.values()]
        if not math.isfinite(guidance_scale):
            raise ValueError(f"guidance_scale must be a finite number, not {guidance_scale}")
        class_ids = self.get_label_ids(class_labels)
        negative_ids = self.get_label_ids(negative_class_labels)
        if len(negative_ids) not in (1, len(class_ids)):
            raise ValueError(
                f"negative_class_labels must be one, or one for each of the {len(class_ids)} images, not "
                f"{len(negative_ids)}"
            )
        if len(guidance_interval) != 2 or not 0 <= guidance_interval[0] <= guidance_interval[1] <= 1:
            raise ValueError(
                f"guidance_interval must be two numbers, 0 ≤ first ≤ last ≤ 1, not {list(guidance_interval)}"
            )
        guide = self.guide if negative_class_labels is None else None
        used = {*class_ids, *(negative_ids if guidance_scale != 1 and guide is None else ())}
        if not self.config.learnt_no_class and self.get_label_ids(None)[0] in used:
            raise ValueError(
                "this model was trained without label dropout: it has no unconditional mode. Set class_labels, and "
                "negative_class_labels or guidance_scale 1"
            )
        device = self._execution_device
        return GuidedModel(
            self.unet,
            torch.tensor(class_ids, device=device),
            torch.tensor(negative_ids, device=device).expand(len(class_ids)),
            guidance_scale,
            guidance_interval,
            self.scheduler.config.num_train_timesteps,
            guide,
        )

    @torch.no_grad()
    def __call__(
        self,
        class_labels: ClassLabels = None,
        guidance_scale: float | None = None,
        guidance_interval: Sequence[float] | None = None,
        negative_class_labels: ClassLabels = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[DiffusionPipeline, int, Tensor, dict[str, Tensor]], dict[str, Any]]
        | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Sample an image for each label.

        Args:
            class_labels: Names or indices of classes, one per image; None in the list samples unconditionally. By
                default one image of each class.
            guidance_scale: Guidance scale. 1 disables guidance; larger values trade diversity for
                class fidelity. By default that of the pipeline.
            guidance_interval: Interval of noise levels in which guidance is applied, from 0 (image) to 1 (pure noise)
                (Kynkäänniemi et al. 2024). By default that of the pipeline.
            negative_class_labels: Negative classes of the guidance, one for all images or one per image; by default
                the null label, or with autoguidance none.
            num_inference_steps: Denoising steps; by default those of the pipeline.
            generator: Random generator of the noise: one for all images, or one per image.
            output_type: `pil`, `np` (float (B, H, W, C) in [0, 1]) or `pt` (float (B, C, H, W) in [0, 1]).
            return_dict: Return an `ImagePipelineOutput` instead of a tuple.
            callback_on_step_end: Called after each step with this pipeline, the step's index, its timestep and
                `{"sample": x}`, x (B, C, H, W) in the scheduler's scaling, in latent diffusion the latents; a returned
                `sample` replaces x.

        Returns:
            The images.

        Raises:
            ValueError: for an unknown class or output_type, invalid guidance, or an invalid number of steps.
        """
        if num_inference_steps is None:
            num_inference_steps = self.config.num_inference_steps
        most = self.scheduler.config.num_train_timesteps
        if not 1 <= num_inference_steps <= most:
            raise ValueError(f"num_inference_steps must be from 1 to {most}, not {num_inference_steps}")
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type must be pil, np or pt, not {output_type}")
        class_labels = plain_labels(class_labels)
        if class_labels is None:
            class_labels = list(self.labels.values())
        elif isinstance(class_labels, int | str):
            class_labels = [class_labels]
        if not len(class_labels):
            raise ValueError("class_labels must be one class or more, not none")
        model = self.guided(class_labels, guidance_scale, guidance_interval, negative_class_labels)
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        shape = (len(class_labels), self.unet.config.in_channels, height, width)
        noise = randn_tensor(shape, generator, self._execution_device)
        x = start_denoising(self.scheduler, num_inference_steps, noise)
        for index, timestep in enumerate(self.progress_bar(self.scheduler.timesteps)):
            x, _ = denoising_step(model, self.scheduler, x, timestep, generator)
            if callback_on_step_end:
                x = (callback_on_step_end(self, index, timestep, {"sample": x}) or {}).get("sample", x)
        if self.vae is not None:
            x = torch.cat([self.vae.decode_map(part) for part in x.split(GuidedModel.CPU_BATCH_SIZE)])
        images = (x / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).float().numpy()
            if output_type == "pil":
                images = self.numpy_to_pil(images)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)


# Copied from hfgen.pipelines.pipeline_hfgen_vae.plain_labels
def plain_labels(class_labels: ClassLabels) -> ClassLabel | list[ClassLabel]:
    """Convert labels to plain Python objects, from NumPy or torch."""
    if isinstance(class_labels, list | tuple):
        return [plain_labels(label) for label in class_labels]
    return class_labels.tolist() if hasattr(class_labels, "tolist") else class_labels


# Copied from hfgen.pipelines.pipeline_hfgen_vae.save_code
def save_code(pipeline: DiffusionPipeline, folder: str | os.PathLike) -> None:
    """Complete a saved pipeline by the files of its classes that are not in diffusers or transformers.

    For such a class, diffusers saves the name of the module it was imported from, which is missing elsewhere. So
    its file is copied to where diffusers looks for remote code, and named instead.
    """
    index_file = Path(folder, pipeline.config_name)
    index = json.loads(index_file.read_text())
    for name, part in {"_class_name": pipeline, **pipeline.components}.items():
        part_class = type(getattr(part, "_orig_mod", part))  # of a compiled network
        if part is not None and part_class.__module__.partition(".")[0] not in ("diffusers", "transformers"):
            file = Path(inspect.getfile(part_class))
            shutil.copyfile(file, Path(folder, "" if part is pipeline else name, file.name))
            index[name] = [file.stem, part_class.__name__]
    index_file.write_text(json.dumps(index, indent=2) + "\n")
