"""Pipeline of a generative adversarial network (Goodfellow et al. 2014): sampling and interpolation.

This file is saved with the weights and depends only on torch, diffusers and their dependencies.
"""

import inspect
import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
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
    """Output of a `GANPipeline`.

    Args:
        images: PIL images, an array (B, H, W, C) or a tensor (B, C, H, W), in [0, 1].
        latents: The latents of the images, (B, latent_dim).
    """

    images: Any
    latents: Tensor


class GANPipeline(DiffusionPipeline):
    """Generates images from latents.

    Args:
        generator: A generator of `modeling_hfgen_gan`.
        discriminator: Its discriminator, if that was saved.
        id2label: Class names by index, of a class-conditional model.
        truncation: Default of `__call__`.
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

    # Copied from hfgen.pipelines.pipeline_hfgen_vae.VAEPipeline.labels
    @property
    def labels(self) -> dict[str, int]:
        """Class indices by name; empty for an unconditional model."""
        return {name: number for number, name in self.config.id2label.items()}

    # Copied from hfgen.pipelines.pipeline_hfgen_vae.VAEPipeline.get_label_ids
    def get_label_ids(self, class_labels: ClassLabels) -> list[int]:
        """Return the indices of classes that are given by name or index.

        A string is matched with the names, then case-insensitively, then with the indices.

        Raises:
            ValueError: for an unknown class, listing the known ones.
        """
        class_labels = plain_labels(class_labels)
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
                f"this model has no class {class_labels[found.index(None)]}; its classes are "
                + ", ".join(n if n == str(number) else f"{n} ({number})" for n, number in self.labels.items())
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
        """Sample images.

        Args:
            batch_size: Number of images, unless latents or class_labels determine it.
            latents: Latents (B, latent_dim); by default they are sampled.
            class_labels: Names or indices of classes of a class-conditional model, one per image or one for all. By
                default all classes in turn, if the latents are sampled.
            truncation: Truncation trick (Brock et al. 2019): sample latents from a normal truncated to [−t, t];
                smaller t trades diversity for fidelity. By default as saved with the model, usually `math.inf`, which
                does not truncate.
            generator: Random generator of the latents: one for all images, or one per image.
            output_type: `pil`, `np` (float (B, H, W, C) in [0, 1]) or `pt` (float (B, C, H, W) in [0, 1]).
            return_dict: Return a `GANPipelineOutput` instead of a tuple.

        Returns:
            The images and their latents.

        Raises:
            ValueError: for an unknown class or output_type, a truncation that is not positive, or latents of another
                shape.
        """
        class_labels = plain_labels(class_labels)
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
        """Interpolate between two latents in equal steps.

        Args:
            start: A latent (latent_dim,).
            end: Likewise.
            num_steps: Number of images including both ends; two or more.
            mode: `linear`, or `spherical` in direction and linear in length (Shoemake 1985), which stays in the
                region where latents are sampled.
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
        """Sample latents (B, latent_dim); see `__call__`."""
        truncation = next((t for t in (truncation, self.config.truncation) if t is not None), math.inf)
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, not {batch_size}")
        shape = (batch_size, self.generator.config.latent_dim)
        noise = randn_tensor(shape, generator, self._execution_device, torch.float32)
        if not truncation > 0:
            raise ValueError(f"truncation must be positive, not {truncation}")
        if truncation < math.inf:
            mass = math.erf(truncation / 2**0.5)  # probability of [−truncation, truncation]
            exact = noise.cpu().double()  # Apple GPUs have no float64
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

    # Copied from hfgen.pipelines.pipeline_hfgen_vae.VAEPipeline._classes
    def _classes(self, class_labels: ClassLabels | None, count: int) -> Tensor | None:
        """Return the class indices of `count` images, int64 (count,), or None for an unconditional model."""
        if not self.labels:
            if class_labels is not None:
                raise ValueError("this model is unconditional: class_labels do not apply")
            return None
        if class_labels is None:
            raise ValueError("class_labels are missing: this model is class-conditional")
        ids = self.get_label_ids(class_labels)
        if len(ids) == 1:
            ids *= count
        if len(ids) != count:
            raise ValueError(f"class_labels must be one, or one for each of the {count} images, not {len(ids)}")
        return torch.tensor(ids, device=self._execution_device)


# Copied from hfgen.pipelines.pipeline_hfgen_vae._slerp
def _slerp(first: Tensor, last: Tensor, shares: Tensor) -> Tensor:
    """Interpolate spherically between two vectors (D,) at fractions (N, 1): (N, D)."""
    dtype = first.dtype
    first, last, shares = first.float(), last.float(), shares.float()  # half precision has no 1e-8
    lengths = torch.lerp(first.norm(), last.norm(), shares)
    start, end = (vector / vector.norm().clamp_min(1e-8) for vector in (first, last))
    angle = torch.acos((start @ end).clamp(-1, 1))
    if torch.sin(angle) < 1e-4:  # parallel or opposite vectors: the arc is not defined
        return torch.lerp(first[None], last[None], shares).to(dtype)
    along = torch.sin((1 - shares) * angle) * start + torch.sin(shares * angle) * end
    return (lengths * along / torch.sin(angle)).to(dtype)


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
