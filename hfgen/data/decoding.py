"""Pictures of any format as uint8 arrays."""

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

# What Pillow decodes by itself. Of others, it hands EPS to Ghostscript, a program that executes what the file says.
FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP",
    "XBM",
)  # fmt: skip


class OwnFiles:
    """Opens what the rows of a data set hold or name, and no other files of this machine.

    Args:
        root: Folder in which the files are that rows may name, or such a file, or None.
        follow: Whether links in it may lead out of it.

    Attributes:
        followed: The links that did.
    """

    def __init__(self, root: Path | None, follow: bool):
        self.root, self.follow = root, follow
        self.followed: list[str] = []

    def __call__(self, item: dict[str, Any]) -> BinaryIO | str:
        """Return what Pillow can open.

        Raises:
            ValueError: for a file that is not the data set's own.
        """
        if item["bytes"] is not None:
            return io.BytesIO(item["bytes"])
        if self.root is None or not item["path"]:
            raise ValueError("the row holds no image")
        path = os.path.abspath(self.root / item["path"])
        if not any(Path(path).is_relative_to(root) for root in (self.root, self.root.resolve())):
            raise ValueError("the row names a file outside the data set; the images themselves have to be in its rows")
        if not Path(path).resolve().is_relative_to(self.root.resolve()):
            if not self.follow:
                raise ValueError("the row names a link that leads out of the data set")
            self.followed.append(path)
        return path


def open_picture(content: BinaryIO | str | Path) -> PIL.Image.Image:
    """Open a picture in one of `FORMATS`, none of which Pillow hands to a program.

    Raises:
        Exception: of whatever kind, for what is none, or is damaged; so does reading its pixels.
    """
    PIL.Image.init()
    return PIL.Image.open(content, formats=[name for name in FORMATS if name in PIL.Image.OPEN])


def border_brightness(images: Tensor) -> float:
    """Return the mean brightness, from 0 to 1, of the outermost pixels of an image, or of about 1,000 of many.

    Args:
        images: uint8 (C, H, W) or (N, C, H, W).
    """
    if images.ndim == 4:
        images = images[:: max(1, len(images) // 1000)]
    borders = [images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]]
    return torch.cat([border.flatten().float() for border in borders]).mean().item() / 255


def is_inverse(brightness: float, usual: float) -> bool:
    """Tell whether the border of images is bright where usually it is dark, or the other way round.

    Drawings have such borders, with a brightness below a quarter or above three quarters; photographs have not.
    """
    return min(brightness, usual) < 0.25 and max(brightness, usual) > 0.75


def to_array(image: PIL.Image.Image, resolution: int | None, channels: int | None) -> np.ndarray:
    """Convert one opened image to uint8 (C, H, W) by the rules that `load_images` states."""
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
