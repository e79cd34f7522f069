"""Pipeline of a VAE (Kingma and Welling 2014): sampling, reconstruction, interpolation and latent traversal.

This file is saved with the weights and depends only on torch, diffusers and their dependencies.
"""

import inspect
import json
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import PIL.Image
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

MOST = 100.0  # a larger pixel is not on the scale of [0, 1], even with very strong noise

ClassLabel = int | str
ClassLabels = ClassLabel | Sequence[ClassLabel] | np.ndarray | Tensor
Images = PIL.Image.Image | np.ndarray | Tensor | Sequence[PIL.Image.Image | np.ndarray | Tensor]
Generators = torch.Generator | list[torch.Generator] | None


class VAEPipeline(DiffusionPipeline):
    """Decodes latents and encodes images.

    Args:
        vae: A `VAEModel`, `SpatialVAEModel` or `LadderVAEModel`.
        mixture: A `GaussianMixtureModel` of the latents of the training images.
        id2label: Class names by index, of a class-conditional model.
        prior: Default of `__call__`, `normal`, `mixture` or `flow`.
        binarization: Binarisation of the training images, for readers; `none` if there was none.
        flow: A `LatentFlowModel` of the latents of the training images.
    """

    model_cpu_offload_seq = "flow->vae"
    _exclude_from_cpu_offload: ClassVar[list[str]] = ["mixture"]  # has no parameters, which the hooks expect
    _optional_components: ClassVar[list[str]] = ["flow"]

    def __init__(
        self,
        vae: ModelMixin,
        mixture: ModelMixin,
        id2label: dict | None = None,
        prior: str = "normal",
        binarization: str = "none",
        flow: ModelMixin | None = None,
    ):
        super().__init__()
        self.register_modules(vae=vae, mixture=mixture, flow=flow)
        id2label = {int(number): name for number, name in (id2label or {}).items()}
        self.register_to_config(id2label=id2label, prior=prior, binarization=binarization)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Self:
        """Reuse the components of another pipeline. diffusers cannot resolve their classes, defined in other files."""
        return super().from_pipe(pipeline, **pipeline.components | kwargs)

    def save_config(self, save_directory: str | os.PathLike) -> None:
        """Save `model_index.json` and the code that it names; `save_pretrained` calls this."""
        super().save_config(save_directory)
        save_code(self, save_directory)

    @property
    def labels(self) -> dict[str, int]:
        """Class indices by name; empty for an unconditional model."""
        return {name: number for number, name in self.config.id2label.items()}

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
        prior: Literal["normal", "mixture", "flow"] | None = None,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Sample images.

        Args:
            batch_size: Number of images, unless latents or class_labels determine it.
            latents: Latents (B, latent_dim); by default they are sampled.
            class_labels: Names or indices of classes of a class-conditional model, one per image or one for all. By
                default all classes in turn, if the latents are sampled.
            prior: Distribution of the latents: `normal`, the prior N(0, I) of training, `mixture`, the Gaussian
                mixture fitted to the latents of the training images, or `flow`, the rectified flow trained on them; by
                default as saved with the model.
            generator: Random generator of the latents: one for all images, or one per image.
            output_type: `pil`, `np` (float (B, H, W, C) in [0, 1]) or `pt` (float (B, C, H, W) in [0, 1]).
            return_dict: Return an `ImagePipelineOutput` instead of a tuple.

        Returns:
            The images: the means of the pixel distributions.

        Raises:
            ValueError: for an unknown class, prior or output_type, latents of another shape, or if there is no flow.
        """
        class_labels = plain_labels(class_labels)
        if latents is not None:
            batch_size = len(latents)
        elif class_labels is not None and not isinstance(class_labels, int | str):
            batch_size = len(class_labels)
        elif class_labels is None and self.labels:
            ids = list(self.labels.values())
            class_labels = [ids[number % len(ids)] for number in range(batch_size)]
        labels = self._classes(class_labels, batch_size)
        if latents is None:
            latents = self.draw_latents(batch_size, prior, generator, labels)
        images = self._postprocess(self._decode(latents, labels), output_type)
        return images if return_dict else (images.images,)

    @torch.no_grad()
    def reconstruct(
        self,
        image: Images,
        class_labels: ClassLabels | None = None,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """Encode images to their posterior means, and decode these.

        Args:
            image: A PIL image, array (H, W), (H, W, C) or (B, H, W, C), tensor (C, H, W) or (B, C, H, W), or a list
                of these, of the model's image size. Floating-point pixels are in [0, 1], integers in [0, 255].
            class_labels: See `__call__`.
            output_type: See `__call__`.

        Raises:
            TypeError: for anything but images, such as a file name.
            ValueError: for an unknown class, images of another size, or pixels outside the range of their type.
        """
        images = self._preprocess(image)
        labels = self._classes(class_labels, len(images))
        return self._postprocess(self._decode(self.vae.encode(images, labels).mean, labels), output_type)

    @torch.no_grad()
    def encode(self, image: Images, class_labels: ClassLabels | None = None) -> Tensor:
        """Return the posterior means of images (see `reconstruct`), (B, latent_dim)."""
        images = self._preprocess(image)
        means = self.vae.encode(images, self._classes(class_labels, len(images))).mean
        self.maybe_free_model_hooks()
        return means

    @torch.no_grad()
    def interpolate(
        self,
        start: Images | Tensor,
        end: Images | Tensor,
        num_steps: int = 10,
        mode: Literal["linear", "spherical"] = "spherical",
        class_labels: ClassLabels | None = None,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """Interpolate between two images or latents in equal steps.

        Args:
            start: An image (see `reconstruct`), or a latent (latent_dim,).
            end: Likewise.
            num_steps: Number of images including both ends; two or more.
            mode: `linear`, or `spherical` in direction and linear in length (Shoemake 1985), which stays in the
                region of high prior mass.
            class_labels: See `__call__`.
            output_type: See `__call__`.

        Returns:
            `num_steps` images.

        Raises:
            ValueError: for fewer steps, or an unknown mode.
        """
        if num_steps < 2:
            raise ValueError(f"num_steps must be 2 or more, not {num_steps}")
        labels = self._classes(class_labels, num_steps)
        first, last = self._latent_of(start, labels), self._latent_of(end, None if labels is None else labels.flip(0))
        shares = torch.linspace(0, 1, num_steps, dtype=first.dtype, device=first.device)[:, None]
        match mode:
            case "linear":
                latents = torch.lerp(first[None], last[None], shares)
            case "spherical":
                latents = _slerp(first, last, shares)
            case _:
                raise ValueError(f"mode must be linear or spherical, not {mode}")
        return self._postprocess(self._decode(latents, labels), output_type)

    @torch.no_grad()
    def traverse(
        self,
        start: Images | Tensor | None = None,
        dimensions: Sequence[int] | None = None,
        span: float = 3.0,
        num_steps: int = 10,
        class_labels: ClassLabels | None = None,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """Traverse the latent space along one dimension at a time, from −span to span.

        Args:
            start: An image (see `reconstruct`), or a latent (latent_dim,); by default the centre of the prior.
            dimensions: Indices of the dimensions; by default all.
            span: Largest absolute value, in standard deviations of the prior.
            num_steps: Images per dimension.
            class_labels: See `__call__`.
            output_type: See `__call__`.

        Returns:
            `num_steps` images for each dimension, grouped by dimension.

        Raises:
            ValueError: for a span that is not finite.
        """
        if not math.isfinite(span):
            raise ValueError(f"span must be a finite number, not {span}")
        size = self.vae.config.latent_dim
        dimensions = range(size) if dimensions is None else dimensions
        labels = self._classes(class_labels, len(dimensions) * num_steps)
        latent = torch.zeros(size, device=self._execution_device) if start is None else self._latent_of(start, labels)
        latents = latent.repeat(len(dimensions), num_steps, 1)
        for row, dimension in enumerate(dimensions):
            latents[row, :, dimension] = torch.linspace(-span, span, num_steps, device=latent.device)
        return self._postprocess(self._decode(latents.flatten(0, 1), labels), output_type)

    @torch.no_grad()
    def draw_latents(
        self,
        batch_size: int,
        prior: Literal["normal", "mixture", "flow"] | None = None,
        generator: Generators = None,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """Sample latents (B, latent_dim) from a prior; see `__call__`.

        Only the flow of a class-conditional model uses `class_labels`, the indices of classes, int64 (B,).
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, not {batch_size}")
        device = self._execution_device
        noise = randn_tensor((batch_size, self.vae.config.latent_dim), generator, device, torch.float32)
        match prior or self.config.prior:
            case "normal":
                return noise
            case "mixture":
                uniform = torch.special.ndtr(randn_tensor((batch_size, 1), generator, device, torch.float32))[:, 0]
                return self.mixture(noise, uniform).sample
            case "flow":
                if self.flow is None:
                    raise ValueError("this model has no flow; choose the prior normal or mixture")
                return self.flow.draw(noise, class_labels).sample
            case _:
                raise ValueError(f"prior must be normal, mixture or flow, not {prior}")

    def _latent_of(self, given: Images | Tensor, labels: Tensor | None) -> Tensor:
        """Return a latent (latent_dim,) unchanged, or the posterior mean of an image, whose class is labels[0]."""
        if isinstance(given, Tensor) and given.ndim == 1:
            return given.to(self._execution_device, self.vae.dtype)
        latent_dist = self.vae.encode(self._preprocess(given)[:1], None if labels is None else labels[:1])
        return latent_dist.mean[0].to(self.vae.dtype)

    def _decode(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        if latents.ndim != 2 or latents.shape[1] != self.vae.config.latent_dim:
            raise ValueError(f"latents must be (B, {self.vae.config.latent_dim}), not {tuple(latents.shape)}")
        latents = latents.to(self._execution_device, self.vae.dtype)
        return self.vae.decode(latents, labels).sample

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

    def _preprocess(self, image: Images) -> Tensor:
        """Convert to (B, C, H, W) in [−1, 1]."""
        channels, size = self.vae.config.in_channels, self.vae.config.sample_size
        pictures = [image_to_tensor(one, "L" if channels == 1 else "RGB") for one in single_images(image)]
        expected = (channels, *((size, size) if isinstance(size, int) else size))
        if (shapes := {tuple(picture.shape) for picture in pictures}) != {expected}:
            raise ValueError(f"images must have the shape {expected} each, not {shapes or 'none'}")
        return 2 * torch.stack(pictures).to(self._execution_device, self.vae.dtype) - 1

    def _postprocess(self, images: Tensor, output_type: str) -> ImagePipelineOutput:
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type must be pil, np or pt, not {output_type}")
        images = VaeImageProcessor().postprocess(images.float().clamp(-1, 1).cpu(), output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images)


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


def single_images(images: Images) -> list[PIL.Image.Image | np.ndarray | Tensor]:
    """Flatten images to a list of single ones.

    Raises:
        TypeError: for anything but images, such as a file name.
    """
    if isinstance(images, PIL.Image.Image):
        return [images]
    if isinstance(images, np.ndarray | Tensor):
        return [*images] if images.ndim == 4 else [images]
    if not isinstance(images, Sequence) or isinstance(images, str | bytes):
        raise TypeError(
            f"images must be PIL images, arrays, tensors or a list of them, not {type(images).__name__}; "
            "diffusers.utils.load_image opens files"
        )
    return [image for part in images for image in single_images(part)]


def image_to_tensor(image: PIL.Image.Image | np.ndarray | Tensor, mode: str) -> Tensor:
    """Convert one image to float32 (C, H, W) in [0, 1], or beyond if noisy; PIL images are first converted to `mode`.

    Raises:
        ValueError: for pixels outside the range of their type.
    """
    if isinstance(image, PIL.Image.Image):
        image = np.array(image.convert(mode))
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(image[..., None] if image.ndim == 2 else image).movedim(-1, 0)
    pixels = image.float()
    if image.dtype == torch.bool:
        return pixels
    if image.is_floating_point():
        if not pixels.abs().max() <= MOST:
            raise ValueError(f"floating-point pixels must be in [0, 1], apart from noise, not {pixels.abs().max():g}")
        return pixels
    if pixels.min() < 0 or pixels.max() > 255:
        wrong = pixels.min() if pixels.min() < 0 else pixels.max()
        raise ValueError(f"integer pixels must be in [0, 255], not {wrong:g}")
    return pixels / 255


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


def plain_labels(class_labels: ClassLabels) -> ClassLabel | list[ClassLabel]:
    """Convert labels to plain Python objects, from NumPy or torch."""
    if isinstance(class_labels, list | tuple):
        return [plain_labels(label) for label in class_labels]
    return class_labels.tolist() if hasattr(class_labels, "tolist") else class_labels
