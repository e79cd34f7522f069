"""Image-to-image pipeline: denoising, super-resolution, inpainting, colourisation and domain translation.

This file is saved with the weights and depends only on torch, diffusers and their dependencies.
"""

import inspect
import json
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import PIL.Image
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor
from torch.nn import functional

MOST = 100.0  # a larger pixel is not on the scale of [0, 1], even with very strong noise

Images = PIL.Image.Image | np.ndarray | Tensor | Sequence[PIL.Image.Image | np.ndarray | Tensor]


class ImageTranslationPipeline(DiffusionPipeline):
    """Translates images.

    Args:
        generator: A network of `modeling_hfgen_translation`.
        inverse_generator: A network for the opposite direction, of a model trained without pairs (CycleGAN).
        degradation: The degradation that the network was trained to undo or, without pairs, the one that defines the
            target domain, in hfgen's notation; for readers.
    """

    model_cpu_offload_seq = "generator->inverse_generator"
    _optional_components: ClassVar[list[str]] = ["inverse_generator"]

    def __init__(
        self,
        generator: ModelMixin,
        inverse_generator: ModelMixin | None = None,
        degradation: str = "",
    ):
        super().__init__()
        self.register_modules(generator=generator, inverse_generator=inverse_generator)
        self.register_to_config(degradation=degradation)

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

    @torch.no_grad()
    def __call__(
        self,
        image: Images,
        noise_std: float | Sequence[float] | None = None,
        inverse: bool = False,
        tile_size: int | None = None,
        batch_size: int = 64,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Translate images.

        Args:
            image: A PIL image, array (H, W), (H, W, C) or (B, H, W, C), tensor (C, H, W) or (B, C, H, W), or a list of
                these, possibly of different sizes. Floating-point pixels are in [0, 1], or beyond if noisy; integers
                in [0, 255]. Sizes that are not divisible by the network's `multiple` are padded internally. PIL images
                are converted to the network's channels without compositing: flatten transparent ones first.
                `diffusers.utils.load_image` opens files.
            noise_std: Standard deviation of the noise for pixels in [0, 1], one for all images or one per image, for a
                network conditioned on it (`noise_level_input`).
            inverse: Translate in the opposite direction, if the model supports it.
            tile_size: Process larger images in overlapping square tiles of this many pixels, whose results are
                blended; by default images are processed whole.
            batch_size: Images of the same size per batch.
            output_type: `pil`, `np` (float (B, H, W, C) in [0, 1]) or `pt` (float (B, C, H, W) in [0, 1]); the latter
                two are lists if the sizes differ.
            return_dict: Return an `ImagePipelineOutput` instead of a tuple.

        Raises:
            TypeError: for anything but images, such as a file name.
            ValueError: for a wrong number of channels, pixels outside the range of their type, a missing or invalid
                noise_std, an unsupported direction, too small tiles or batches, or an unknown output_type.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type must be pil, np or pt, not {output_type}")
        network = self.inverse_generator if inverse else self.generator
        if network is None:
            raise ValueError("this model translates in one direction only; inverse must be False")
        if tile_size is not None and tile_size < 2 * network.multiple:
            raise ValueError(f"tile_size must be at least {2 * network.multiple}, not {tile_size}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, not {batch_size}")
        given = [self._preprocess(one, network) for one in single_images(image)]
        stds = self._noise_stds(noise_std, len(given), network)
        results: list[Tensor | None] = [None] * len(given)
        for shape in dict.fromkeys(image.shape for image in given):
            alike = [number for number, image in enumerate(given) if image.shape == shape]
            for first in range(0, len(alike), batch_size):
                numbers = alike[first : first + batch_size]
                batch = torch.stack([given[number] for number in numbers]).to(self._execution_device, network.dtype)
                stds_of_batch = None if stds is None else stds[numbers].to(batch)
                made = self._translate(network, batch, stds_of_batch, tile_size)
                for number, image in zip(numbers, made.float().cpu().clamp(-1, 1), strict=True):
                    results[number] = image
        self.maybe_free_model_hooks()
        processed = [VaeImageProcessor().postprocess(image[None], output_type=output_type) for image in results]
        translated = [image for images in processed for image in images]
        if output_type in ("np", "pt") and len({image.shape for image in translated}) == 1:
            translated = np.stack(translated) if output_type == "np" else torch.stack(translated)
        return ImagePipelineOutput(images=translated) if return_dict else (translated,)

    @staticmethod
    def _preprocess(image: PIL.Image.Image | np.ndarray | Tensor, network: ModelMixin) -> Tensor:
        """Convert one image to float32 (C, H, W) in [−1, 1], or beyond if noisy."""
        channels = network.config.in_channels
        pixels = image_to_tensor(image, "L" if channels == 1 else "RGB")
        if len(pixels) != channels:
            raise ValueError(
                f"this model needs images with {channels} channel{'s' * (channels > 1)}, not {len(pixels)}; PIL "
                "images are converted automatically"
            )
        return 2 * pixels - 1

    def _noise_stds(self, noise_std: float | Sequence[float] | None, count: int, network: ModelMixin) -> Tensor | None:
        if noise_std is None and network.config.noise_level_input:
            trained = f" (it was trained with {self.config.degradation})" if self.config.degradation else ""
            raise ValueError(
                "noise_std is missing: this model is conditioned on the standard deviation of the noise, for pixels "
                f"in [0, 1]{trained}"
            )
        if noise_std is not None and not network.config.noise_level_input:
            raise ValueError("this model is not conditioned on noise_std; leave it out")
        if noise_std is None:
            return None
        stds = torch.as_tensor(noise_std, dtype=torch.float32).reshape(-1)
        if len(stds) not in (1, count) or not ((stds >= 0) & stds.isfinite()).all():
            raise ValueError(
                f"noise_std must be a finite number of at least 0, or one for each of the {count} images, not "
                f"{noise_std}"
            )
        return stds.expand(count)

    def _translate(self, network: ModelMixin, images: Tensor, stds: Tensor | None, tile_size: int | None) -> Tensor:
        """Translate images (B, C, H, W) of the same size, in tiles if they are larger than tile_size."""
        height, width = images.shape[-2:]
        if tile_size is None or max(height, width) <= tile_size:
            return self._translate_padded(network, images, stds)
        scale = network.config.scale_factor
        side, step = tile_size, tile_size - tile_size // 4
        tops, lefts = (_starts(size, side, step) for size in (height, width))
        total = images.new_zeros(len(images), network.config.out_channels, height * scale, width * scale)
        weights = images.new_zeros(height * scale, width * scale)
        for top in tops:
            for left in lefts:
                part = images[..., top : top + side, left : left + side]
                made = self._translate_padded(network, part, stds)
                window = _window(made.shape[-2:]).to(made)
                rows = slice(top * scale, top * scale + made.shape[-2])
                columns = slice(left * scale, left * scale + made.shape[-1])
                total[..., rows, columns] += made * window
                weights[rows, columns] += window
        return total / weights

    @staticmethod
    def _translate_padded(network: ModelMixin, images: Tensor, stds: Tensor | None) -> Tensor:
        """Translate images, padded to a valid size by repeating their edges."""
        scale = network.config.scale_factor
        multiple = network.multiple // math.gcd(network.multiple, scale)  # the upscaled size must be divisible
        height, width = images.shape[-2:]
        missing = [-size % multiple for size in (height, width)]
        padded = functional.pad(images, (0, missing[1], 0, missing[0]), mode="replicate")
        return network(padded, stds).sample[..., : height * scale, : width * scale]


# Copied from hfgen.pipelines.pipeline_hfgen_vae.single_images
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


# Copied from hfgen.pipelines.pipeline_hfgen_vae.image_to_tensor
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


def _starts(size: int, side: int, step: int) -> list[int]:
    """Return the offsets of tiles of a side that cover a length, the last one flush with its end."""
    return sorted({*range(0, max(size - side, 0), step), max(size - side, 0)})


def _window(shape: Sequence[int]) -> Tensor:
    """Return blending weights (H, W) that decrease from the centre to the edges but stay positive."""
    rows, columns = (1 - (2 * (torch.arange(size) + 0.5) / size - 1).abs() + 1e-3 for size in shape)
    return rows[:, None] * columns


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
