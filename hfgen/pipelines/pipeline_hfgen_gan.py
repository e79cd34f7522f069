"""Draw and interpolate images with the generator of a generative adversarial network (Goodfellow et al. 2014).

This file is saved beside the weights and needs nothing but torch, diffusers and what they need.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

ClassLabel = int | str
ClassLabels = ClassLabel | Sequence[ClassLabel] | np.ndarray | Tensor
Generators = torch.Generator | list[torch.Generator] | None


@dataclass
class GANPipelineOutput(BaseOutput):
    """What a `GANPipeline` draws.

    Args:
        images: PIL images, an array (B, H, W, C) or a tensor (B, C, H, W), in [0, 1].
        latents: What they were made of, (B, latent_dim).
    """

    images: Any
    latents: Tensor


class GANPipeline(DiffusionPipeline):
    """Makes images of latents.

    Args:
        generator: A generator of `modeling_hfgen_gan`.
        discriminator: The discriminator that it was trained against, if that was saved with it.
        id2label: The names of the classes by their numbers, of a model that is told classes.
        truncation: How far from 0 latents are drawn unless it is said; see `__call__`.
    """

    model_cpu_offload_seq = "generator"
    _optional_components: ClassVar[list[str]] = ["discriminator"]

    def __init__(
        self,
        generator: ModelMixin,
        discriminator: ModelMixin | None = None,
        id2label: dict | None = None,
        truncation: float | None = None,
    ):
        super().__init__()
        self.register_modules(generator=generator, discriminator=discriminator)
        id2label = {int(number): name for number, name in (id2label or {}).items()}
        self.register_to_config(id2label=id2label, truncation=truncation)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Self:
        """Take over the parts of another pipeline; the classes of its networks are in files that this one lacks."""
        return super().from_pipe(pipeline, **pipeline.components | kwargs)

    @property
    def labels(self) -> dict[str, int]:
        """The numbers of the classes by their names; none of a model that is told no classes."""
        return {name: number for number, name in self.config.id2label.items()}

    def get_label_ids(self, class_labels: ClassLabels) -> list[int]:
        """Return the numbers of classes that are given by name or by number.

        A text is a name, or else a name in another case, or else a number.

        Raises:
            ValueError: for a class that the model does not know.
        """
        class_labels = _plain(class_labels)
        if isinstance(class_labels, int | str):
            class_labels = [class_labels]
        known: dict[ClassLabel, int] = {number: number for number in self.labels.values()}
        known |= {str(number): number for number in self.labels.values()}
        known |= {name.lower(): number for name, number in self.labels.items()} | self.labels

        def find(label: ClassLabel) -> int | None:
            return known.get(label, known.get(label.lower()) if isinstance(label, str) else None)

        found = [find(label) for label in class_labels]
        if None in found:
            raise ValueError(
                f"the model knows no class {class_labels[found.index(None)]}, but "
                + ", ".join(f"{name} ({number})" for name, number in self.labels.items())
            )
        return found

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        latents: Tensor | None = None,
        class_labels: ClassLabels | None = None,
        truncation: float | None = None,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> GANPipelineOutput | tuple:
        """Draw images.

        Args:
            batch_size: How many, if neither latents nor class_labels say it.
            latents: What to make images of, (B, latent_dim); by default they are drawn.
            class_labels: Names or numbers of classes, one an image or one for all, of a model that is told classes; by
                default, if the latents are drawn, all classes in turn.
            truncation: Draw each number of the latents from the part of the normal distribution between −truncation
                and truncation (Brock et al. 2019): less varied images, nearer to what the generator knows best. By
                default what the model was saved with, most often `math.inf`, the whole distribution.
            generator: What draws them: one torch generator for all, or one an image.
            output_type: `pil`, `np` (float (B, H, W, C) in [0, 1]) or `pt` (float (B, C, H, W) in [0, 1]).
            return_dict: Return a `GANPipelineOutput` instead of a tuple.

        Returns:
            The images and their latents.

        Raises:
            ValueError: for an unknown class or output_type, a truncation that leaves nothing, or latents of another
                shape.
        """
        class_labels = _plain(class_labels)
        if latents is not None:
            batch_size = len(latents)
        elif class_labels is not None and not isinstance(class_labels, int | str):
            batch_size = len(class_labels)
        if latents is None:
            latents = self.draw_latents(batch_size, truncation, generator)
            if class_labels is None and self.labels:
                ids = list(self.labels.values())
                class_labels = [ids[number % len(ids)] for number in range(batch_size)]
        output = self._make_images(latents, self._classes(class_labels, len(latents)), output_type)
        return output if return_dict else (output.images, output.latents)

    @torch.no_grad()
    def interpolate(
        self,
        start: Tensor,
        end: Tensor,
        num_steps: int = 10,
        mode: Literal["linear", "spherical"] = "spherical",
        class_labels: ClassLabels | None = None,
        output_type: str = "pil",
    ) -> GANPipelineOutput:
        """Go from one latent to another through equally spaced points.

        Args:
            start: A latent (latent_dim,).
            end: Likewise.
            num_steps: How many images, the two ends among them; two or more.
            mode: On a straight line, or along the arc between two directions while the length changes evenly (Shoemake
                1985), which stays where latents are drawn.
            class_labels: See `__call__`.
            output_type: See `__call__`.

        Returns:
            `num_steps` images.

        Raises:
            ValueError: for fewer steps, or an unknown mode.
        """
        if num_steps < 2:
            raise ValueError(f"num_steps must be 2 or more, not {num_steps}")
        first, last = (latent.to(self._execution_device, self.generator.dtype) for latent in (start, end))
        shares = torch.linspace(0, 1, num_steps, dtype=first.dtype, device=first.device)[:, None]
        match mode:
            case "linear":
                latents = torch.lerp(first[None], last[None], shares)
            case "spherical":
                latents = _slerp(first, last, shares)
            case _:
                raise ValueError(f"mode must be linear or spherical, not {mode}")
        return self._make_images(latents, self._classes(class_labels, num_steps), output_type)

    def draw_latents(self, batch_size: int, truncation: float | None = None, generator: Generators = None) -> Tensor:
        """Draw latents (B, latent_dim); see `__call__`."""
        truncation = next((t for t in (truncation, self.config.truncation) if t is not None), math.inf)
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, not {batch_size}")
        shape = (batch_size, self.generator.config.latent_dim)
        noise = randn_tensor(shape, generator, self._execution_device, torch.float32)
        if not truncation > 0:
            raise ValueError(f"truncation must be positive, not {truncation}")
        if truncation < math.inf:
            mass = math.erf(truncation / 2**0.5)  # of the normal distribution within it
            exact = noise.cpu().double()  # which Apple GPUs do not have
            noise = 2**0.5 * torch.erfinv(torch.erf(exact / 2**0.5) * mass)
        return noise.to(self.generator.dtype).to(self._execution_device)

    def _make_images(self, latents: Tensor, labels: Tensor | None, output_type: str) -> GANPipelineOutput:
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type must be pil, np or pt, not {output_type}")
        if latents.ndim != 2 or latents.shape[1] != self.generator.config.latent_dim:
            raise ValueError(f"latents must be (B, {self.generator.config.latent_dim}), not {tuple(latents.shape)}")
        latents = latents.to(self._execution_device, self.generator.dtype)
        sample = self.generator(latents, labels).sample
        images = VaeImageProcessor().postprocess(sample.float().cpu(), output_type=output_type)
        self.maybe_free_model_hooks()
        return GANPipelineOutput(images=images, latents=latents)

    def _classes(self, class_labels: ClassLabels | None, count: int) -> Tensor | None:
        """Return the numbers of the classes of so many images, int64 (count,), or None if the model knows none."""
        if not self.labels:
            if class_labels is not None:
                raise ValueError("the model knows no classes")
            return None
        if class_labels is None:
            raise ValueError("class_labels are missing: the model is told the class of each image")
        ids = self.get_label_ids(class_labels)
        if len(ids) == 1:
            ids *= count
        if len(ids) != count:
            raise ValueError(f"class_labels must be one, or one for each of the {count} images, not {len(ids)}")
        return torch.tensor(ids, device=self._execution_device)


def _slerp(first: Tensor, last: Tensor, shares: Tensor) -> Tensor:
    """Return points (N, D) on the arc from one vector (D,) to another at shares (N, 1) of it."""
    lengths = torch.lerp(first.norm(), last.norm(), shares)
    start, end = (vector / vector.norm().clamp_min(1e-8) for vector in (first, last))
    angle = torch.acos((start @ end).clamp(-1, 1))
    if torch.sin(angle) < 1e-4:  # there is no arc, or no one arc
        return torch.lerp(first[None], last[None], shares)
    along = torch.sin((1 - shares) * angle) * start + torch.sin(shares * angle) * end
    return lengths * along / torch.sin(angle)


def _plain(class_labels: ClassLabels) -> ClassLabel | list[ClassLabel]:
    """Return one label or several as Python has them, of what NumPy or torch may have."""
    if isinstance(class_labels, list | tuple):
        return [_plain(label) for label in class_labels]
    return class_labels.tolist() if hasattr(class_labels, "tolist") else class_labels
