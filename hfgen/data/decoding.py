"""Decoding of image files to uint8 arrays."""

import io
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor

GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L"}
SIXTEEN_BIT_MODES = {"I", "I;16", "I;16B", "I;16L"}

# Formats that Pillow decodes by itself. EPS, for instance, it passes to Ghostscript, which executes the file.
FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP",
    "XBM",
)  # fmt: skip


class OwnFiles:
    """Opens the images that a data set's rows contain or refer to, but no other files on this machine.

    Args:
        root: Folder of the files that rows may refer to, or a single such file, or None.
        follow: Whether symbolic links in it may point outside of it.

    Attributes:
        followed: The links that did.
    """

    def __init__(self, root: Path | None, follow: bool):
        self.root, self.follow = root, follow
        self.followed: list[str] = []

    def __call__(self, item: dict[str, Any]) -> BinaryIO | str:
        """Return a file object or path for Pillow.

        Raises:
            ValueError: for a file outside the data set.
        """
        if item["bytes"] is not None:
            return io.BytesIO(item["bytes"])
        if self.root is None or not item["path"]:
            raise ValueError("the row contains no image")
        path = os.path.abspath(self.root / item["path"])
        if not any(Path(path).is_relative_to(root) for root in (self.root, self.root.resolve())):
            raise ValueError("the row refers to a file outside the data set; the rows must contain the images")
        if not Path(path).resolve().is_relative_to(self.root.resolve()):
            if not self.follow:
                raise ValueError("the row refers to a link that points outside the data set")
            self.followed.append(path)
        return path


def open_picture(content: BinaryIO | str | Path) -> PIL.Image.Image:
    """Open an image in one of `FORMATS`, which Pillow decodes without external programs.

    Raises:
        Exception: of any type, for a damaged or unsupported file; so does reading its pixels.
    """
    PIL.Image.init()
    return PIL.Image.open(content, formats=[name for name in FORMATS if name in PIL.Image.OPEN])


def border_brightness(images: Tensor) -> float:
    """Return the mean brightness, in [0, 1], of the border pixels of one image, or of about 1,000 images.

    Args:
        images: uint8 (C, H, W) or (N, C, H, W).
    """
    if images.ndim == 4:
        images = images[:: max(1, len(images) // 1000)]
    borders = [images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]]
    return torch.cat([border.flatten().float() for border in borders]).mean().item() / 255


def is_inverse(brightness: float, usual: float) -> bool:
    """Return whether the border of images is bright but usually dark, or vice versa.

    Dark is a brightness below 0.25, bright one above 0.75: typical of drawings, not of photographs.
    """
    return min(brightness, usual) < 0.25 and max(brightness, usual) > 0.75


def to_array(image: PIL.Image.Image, resolution: int | None, channels: int | None) -> np.ndarray:
    """Convert an opened image to uint8 (C, H, W) by the rules of `load_images`."""
    grey = channels == 1 or (channels is None and image.mode in GREY_MODES)
    image = PIL.ImageOps.exif_transpose(image)
    if image.mode in SIXTEEN_BIT_MODES:
        image = PIL.Image.fromarray(np.uint8(np.clip(np.asarray(image, dtype=np.int64), 0, 65535) // 257))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if grey else "RGB")
    if resolution:
        image = PIL.ImageOps.fit(image, (resolution, resolution), PIL.Image.Resampling.LANCZOS)
    array = np.asarray(image)
    return np.ascontiguousarray(array[None] if grey else array.transpose(2, 0, 1))
