"""Image grids and image files."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.ImageOps
import torch
from diffusers.utils import make_image_grid
from numpy.typing import ArrayLike
from torch import Tensor

from hfgen.data.decoding import open_picture
from hfgen.utils.files import complete_or_absent
from hfgen.utils.untrusted import one_line

TILE_PIXELS = 64  # small images are upscaled by a whole factor to about this size
GAP_PIXELS = 2  # around each image of a grid
GAP_COLOR = "slategrey"


def plain_label(name: str, length: int = 60) -> str:
    """Return an untrusted name as a label for a figure: one line, and shortened."""
    line = one_line(name)
    return line if len(line) <= length else line[: length - 1] + "…"


def to_pil(image: Tensor) -> PIL.Image.Image:
    """Convert one uint8 image (C, H, W) with 1 or 3 channels."""
    array = image.numpy()
    return PIL.Image.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))


def image_grid(images: Tensor, columns: int | None = None) -> PIL.Image.Image:
    """Lay out uint8 images (N, C, H, W) row by row, upscaled by pixel repetition, with gaps.

    By default the grid is square.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    height, width = images.shape[-2:]
    scale = max(1, round(TILE_PIXELS / max(height, width)))
    tiles = [to_pil(image).resize((width * scale, height * scale), PIL.Image.Resampling.NEAREST) for image in images]
    tiles = [PIL.ImageOps.expand(tile.convert("RGB"), GAP_PIXELS, GAP_COLOR) for tile in tiles]
    tiles += [PIL.Image.new("RGB", tiles[0].size, GAP_COLOR)] * (rows * columns - len(tiles))
    return make_image_grid(tiles, rows, columns)


def sample_grid(
    images: Tensor, labels: Sequence[int] | None = None, label_names: Sequence[str] = ()
) -> PIL.Image.Image:
    """Lay out uint8 images (N, C, H, W); with labels, one row per class, with its name at the left."""
    if labels is None:
        return image_grid(images)
    labels = torch.as_tensor(labels)
    present = labels.unique().tolist()
    columns = max(int((labels == number).sum()) for number in present)
    rows = [image_grid(images[labels == number], columns) for number in present]
    font = PIL.ImageFont.load_default(TILE_PIXELS // 4)
    names = {number: plain_label(label_names[number]) for number in present}
    margin = math.ceil(max(map(font.getlength, names.values()))) + 4 * GAP_PIXELS
    height = rows[0].height
    picture = PIL.Image.new("RGB", (margin + rows[0].width, height * len(rows)), GAP_COLOR)
    draw = PIL.ImageDraw.Draw(picture)
    for place, (number, row) in enumerate(zip(present, rows, strict=True)):
        picture.paste(row, (margin, place * height))
        middle = (margin - 2 * GAP_PIXELS, place * height + height // 2)
        draw.text(middle, names[number], fill="white", font=font, anchor="rm")
    return picture


def comparison_grid(images: dict[str, Tensor], columns: int = 16) -> PIL.Image.Image:
    """Lay out corresponding images, uint8 (N, C, H, W) each, in rows below each other, with their names at the left.

    Greyscale images are converted to RGB, and smaller ones upscaled, where others need it.
    """
    batches = [*images.values()]
    channels, side = max(len(batch[0]) for batch in batches), max(batch.shape[-1] for batch in batches)
    alike = [
        batch.expand(-1, channels, -1, -1)
        .repeat_interleave(side // batch.shape[-1], 2)
        .repeat_interleave(side // batch.shape[-1], 3)
        for batch in batches
    ]
    parts = []
    for first in range(0, len(batches[0]), columns):
        rows = [batch[first : first + columns] for batch in alike]
        numbers = [number for number, row in enumerate(rows) for _ in row]
        parts.append(sample_grid(torch.cat(rows), numbers, [*images]))
    width, height = max(part.width for part in parts), sum(part.height for part in parts)
    picture = PIL.Image.new("RGB", (width, height), GAP_COLOR)
    top = 0
    for part in parts:
        picture.paste(part, (0, top))
        top += part.height
    return picture


def save_picture(picture: PIL.Image.Image, path: Path) -> None:
    """Save a PNG file atomically."""
    with complete_or_absent(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)


def save_images(images: Tensor, path: Path) -> None:
    """Save uint8 images (N, C, H, W) as PNG files `00000.png`, `00001.png`, … in a folder."""
    path.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        save_picture(to_pil(image), path / f"{index:05d}.png")


def save_arrays(images: Tensor, path: Path, **others: ArrayLike) -> None:
    """Save uint8 images (N, C, H, W) as `images`, (N, H, W) or (N, H, W, 3), with other arrays in an .npz file."""
    array = images.permute(0, 2, 3, 1).numpy()
    with complete_or_absent(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, images=array[..., 0] if array.shape[-1] == 1 else array, **others)


def labelled_row(pictures: dict[str, Path]) -> PIL.Image.Image:
    """Lay out image files from left to right, each with its name above."""
    loaded = {name: open_picture(path).convert("RGB") for name, path in pictures.items()}
    font = PIL.ImageFont.load_default(TILE_PIXELS // 3)
    top = TILE_PIXELS // 2
    width = sum(picture.width + GAP_PIXELS for picture in loaded.values()) - GAP_PIXELS
    result = PIL.Image.new("RGB", (width, top + max(picture.height for picture in loaded.values())), GAP_COLOR)
    draw, left = PIL.ImageDraw.Draw(result), 0
    for name, picture in loaded.items():
        draw.text((left + 4 * GAP_PIXELS, top // 2), plain_label(name), fill="white", font=font, anchor="lm")
        result.paste(picture, (left, top))
        left += picture.width + GAP_PIXELS
    return result
