"""Make an image of an image: remove noise, sharpen, fill in, colour, or go from one set of images to another.

This file is saved beside the weights and needs nothing but torch, diffusers and what they need.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
import PIL.Image
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor
from torch.nn import functional

MOST = 100.0  # of a pixel from 0 to 1, even with ten times as strong noise; above it, it was not from 0 to 1

Images = PIL.Image.Image | np.ndarray | Tensor | Sequence[PIL.Image.Image | np.ndarray | Tensor]


class ImageTranslationPipeline(DiffusionPipeline):
    """Translates images.

    Args:
        generator: A network of `modeling_hfgen_translation`.
        inverse_generator: One for the other direction, of a model that was trained without pairs.
        degradation: What the network was trained to undo, or, without pairs, what made the second kind of images, as
            hfgen writes it; for readers.
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

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Self:
        """Take over the parts of another pipeline; the classes of its networks are in files that this one lacks."""
        return super().from_pipe(pipeline, **pipeline.components | kwargs)

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
            image: One picture, array (H, W), (H, W, C) or (B, H, W, C), tensor (C, H, W) or (B, C, H, W), or a list
                of such, which may differ in size. Floating-point pixels are from 0 to 1, and beyond where noise has
                taken them; whole numbers from 0 to 255. What is no multiple of the network's `multiple` is padded for
                it. Pictures are brought to the network's channels, as they are: lay transparent ones on a colour
                before. `diffusers.utils.load_image` opens files.
            noise_std: Standard deviation of the noise for pixels from 0 to 1, one or one an image, of a network that
                is told (`noise_level_input`).
            inverse: Go the other way, of a model that can.
            tile_size: Cut images that are larger into overlapping squares of so many pixels, whose results fade
                into each other; by default each image is taken as a whole.
            batch_size: Images of one size that the network is shown at a time.
            output_type: `pil`, `np` (float (B, H, W, C) in [0, 1]) or `pt` (float (B, C, H, W) in [0, 1]); of images
                of different sizes the latter two are lists.
            return_dict: Return an `ImagePipelineOutput` instead of a tuple.

        Raises:
            TypeError: for what is no image, such as the name of a file.
            ValueError: for arrays with other channels, pixels that are not in the range of their type, a missing or
                impossible noise_std, an unknown direction, too small tiles or batches, an unknown output_type.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type must be pil, np or pt, not {output_type}")
        network = self.inverse_generator if inverse else self.generator
        if network is None:
            raise ValueError("the model knows one direction only, so that inverse must be False")
        if tile_size is not None and tile_size < 2 * network.multiple:
            raise ValueError(f"tile_size must be at least {2 * network.multiple}, not {tile_size}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, not {batch_size}")
        given = [self._preprocess(one, network) for one in _single(image)]
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
        """Convert one image to float32 (C, H, W) around [−1, 1]."""
        channels = network.config.in_channels
        pixels = _to_tensor(image, "L" if channels == 1 else "RGB")
        if len(pixels) != channels:
            raise ValueError(
                f"the model takes images with {channels} channel{'s' * (channels > 1)}, not {len(pixels)}; PIL "
                "images are brought to that"
            )
        return 2 * pixels - 1

    def _noise_stds(self, noise_std: float | Sequence[float] | None, count: int, network: ModelMixin) -> Tensor | None:
        if noise_std is None and network.config.noise_level_input:
            trained = f" (it was trained with {self.config.degradation})" if self.config.degradation else ""
            raise ValueError(
                "noise_std is missing: this model has to be told the standard deviation of the noise, for pixels from "
                f"0 to 1{trained}"
            )
        if noise_std is not None and not network.config.noise_level_input:
            raise ValueError("noise_std is not known to this model, which finds out by itself; leave it out")
        if noise_std is None:
            return None
        stds = torch.as_tensor(noise_std, dtype=torch.float32).reshape(-1)
        if len(stds) not in (1, count) or not ((stds >= 0) & stds.isfinite()).all():
            raise ValueError(f"noise_std must be a finite number from 0 up, or one for each of the {count} images")
        return stds.expand(count)

    def _translate(self, network: ModelMixin, images: Tensor, stds: Tensor | None, tile_size: int | None) -> Tensor:
        """Translate images (B, C, H, W) of one size."""
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
        """Translate images, filled up to a size that the network takes by repeating their edges."""
        scale = network.config.scale_factor
        multiple = network.multiple // math.gcd(network.multiple, scale)  # the enlarged images must divide
        height, width = images.shape[-2:]
        missing = [-size % multiple for size in (height, width)]
        padded = functional.pad(images, (0, missing[1], 0, missing[0]), mode="replicate")
        return network(padded, stds).sample[..., : height * scale, : width * scale]


def _single(images: Images) -> list[PIL.Image.Image | np.ndarray | Tensor]:
    """Return images one by one.

    Raises:
        TypeError: for what is no image, such as the name of a file.
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
    return [image for part in images for image in _single(part)]


def _to_tensor(image: PIL.Image.Image | np.ndarray | Tensor, mode: str) -> Tensor:
    """Convert one image to float32 (C, H, W), with pixels from 0 to 1, but for noise; PIL images to a mode before.

    Raises:
        ValueError: for pixels that are not in the range of their type.
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
            raise ValueError(f"floating-point pixels are from 0 to 1, give or take noise, not {pixels.abs().max():g}")
        return pixels
    if pixels.min() < 0 or pixels.max() > 255:
        wrong = pixels.min() if pixels.min() < 0 else pixels.max()
        raise ValueError(f"whole numbers as pixels are from 0 to 255, not {wrong:g}")
    return pixels / 255


def _starts(size: int, side: int, step: int) -> list[int]:
    """Return where squares of a side begin that cover a length, the last one at its end."""
    return sorted({*range(0, max(size - side, 0), step), max(size - side, 0)})


def _window(shape: Sequence[int]) -> Tensor:
    """Return weights (H, W) that fall off from the middle to the edges, and nowhere to nothing."""
    rows, columns = (1 - (2 * (torch.arange(size) + 0.5) / size - 1).abs() + 1e-3 for size in shape)
    return rows[:, None] * columns
