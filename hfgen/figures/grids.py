"""Image grids and image files."""

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.ImageOps
import torch
from diffusers.utils import make_image_grid
from numpy.typing import ArrayLike
from torch import Tensor

from hfgen.utils.files import complete_or_absent
from hfgen.utils.untrusted import one_line

GRID_WIDTH = 900  # pixels; images are upscaled by the whole factor that brings a grid nearest to it
LARGEST_TILE = 128  # pixels of an upscaled image, about
ROW_WIDTH = 1200  # pixels of pictures beside each other, about
GAP_PIXELS = 2  # around each image of a grid
FONT_PIXELS, LINE_PIXELS = 14, 24  # like text of 10 points in the plots, at 100 dots per inch
PAPER, INK = "white", "black"


def plain_label(name: str, length: int = 60) -> str:
    """Return an untrusted name as a label for a figure: one line, and shortened."""
    line = one_line(name)
    return line if len(line) <= length else line[: length - 1] + "…"


def to_pil(image: Tensor) -> PIL.Image.Image:
    """Convert one uint8 image (C, H, W) with 1 or 3 channels."""
    array = image.numpy()
    return PIL.Image.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))


def image_grid(images: Tensor, columns: int | None = None, width: int = GRID_WIDTH) -> PIL.Image.Image:
    """Lay out uint8 images (N, C, H, W) row by row, upscaled by pixel repetition, with gaps.

    Args:
        images: The images.
        columns: Images per row; by default the grid is square.
        width: Approximate width in pixels, unless an image would be larger than `LARGEST_TILE`.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    size = images.shape[-2:]
    scale = max(1, round(min(LARGEST_TILE, width / columns) / max(size)))
    tiles = [to_pil(image).convert("RGB").resize((size[1] * scale, size[0] * scale), 0) for image in images]
    tiles = [PIL.ImageOps.expand(tile, GAP_PIXELS, PAPER) for tile in tiles]
    tiles += [PIL.Image.new("RGB", tiles[0].size, PAPER)] * (rows * columns - len(tiles))
    return make_image_grid(tiles, rows, columns)


@functools.cache
def _font() -> PIL.ImageFont.FreeTypeFont:
    return PIL.ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), FONT_PIXELS)


def signed(value: float, digits: int) -> str:
    """Format a number with a minus sign, like the axes of plots."""
    return f"{value:.{digits}f}".replace("-", "−")


def _shortened(name: str, width: float) -> str:
    """Return a label that is at most so many pixels wide."""
    length = len(label := plain_label(name))
    while length > 1 and _font().getlength(label) > width:
        label = plain_label(name, length := length - 1)
    return label


def labelled_rows(
    rows: Sequence[tuple[str, PIL.Image.Image]], columns: Sequence[str] = (), title: str = ""
) -> PIL.Image.Image:
    """Lay out pictures below each other.

    Args:
        rows: Their names, which are written at the left, and the pictures.
        columns: Names of equally wide columns, which are written above.
        title: One line above all.
    """
    names = [plain_label(name) for name, _ in rows]
    font, width = _font(), max(picture.width for _, picture in rows)
    left = math.ceil(max(map(font.getlength, names)))
    left += 5 * GAP_PIXELS if left else 0
    top = LINE_PIXELS * (bool(title) + bool(columns))
    size = (left + max(width, math.ceil(font.getlength(title))), top + sum(picture.height for _, picture in rows))
    page = PIL.Image.new("RGB", size, PAPER)
    draw = PIL.ImageDraw.Draw(page)
    draw.text((left + GAP_PIXELS, LINE_PIXELS // 2), title, INK, font, "lm")
    for number, name in enumerate(columns):
        middle = left + width * (2 * number + 1) / len(columns) / 2
        draw.text((middle, top - LINE_PIXELS // 2), _shortened(name, width / len(columns)), INK, font, "mm")
    for name, (_, picture) in zip(names, rows, strict=True):
        page.paste(picture, (left, top))
        draw.text((left - 3 * GAP_PIXELS, top + picture.height // 2), name, INK, font, "rm")
        top += picture.height
    return page


def sample_grid(
    images: Tensor,
    labels: Sequence[int] | None = None,
    label_names: Sequence[str] = (),
    columns: Sequence[str] = (),
    title: str = "",
) -> PIL.Image.Image:
    """Lay out uint8 images (N, C, H, W); with labels, one row per class, with its name at the left.

    Args:
        images: The images.
        labels: Indices of classes.
        label_names: Names of classes.
        columns: Names of the columns, as many as a row has images.
        title: One line above all.
    """
    if labels is None:
        return image_grid(images)
    labels = torch.as_tensor(labels)
    present = labels.unique().tolist()
    longest = max(int((labels == number).sum()) for number in present)
    rows = [(label_names[number], image_grid(images[labels == number], longest)) for number in present]
    return labelled_rows(rows, columns, title)


def comparison_grid(images: dict[str, Tensor], columns: int = 16, names: Sequence[str] = ()) -> PIL.Image.Image:
    """Lay out corresponding images in rows below each other.

    Greyscale images are converted to RGB, and smaller ones upscaled, where others need it.

    Args:
        images: uint8 (N, C, H, W) each, by the name that is written at the left of its row.
        columns: Images per row; more are continued below.
        names: N names, which are written above the images.
    """
    batches = [*images.values()]
    channels, side = max(len(batch[0]) for batch in batches), max(batch.shape[-1] for batch in batches)
    alike = {
        name: batch.expand(-1, channels, -1, -1)
        .repeat_interleave(side // batch.shape[-1], 2)
        .repeat_interleave(side // batch.shape[-1], 3)
        for name, batch in images.items()
    }
    columns = min(columns, len(batches[0]))
    blocks = []
    for first in range(0, len(batches[0]), columns):
        part = slice(first, first + columns)
        above = [*names[part], *[""] * columns][:columns] if names else ()
        blocks.append(labelled_rows([(name, image_grid(all_[part], columns)) for name, all_ in alike.items()], above))
    spaced = [PIL.ImageOps.expand(block, (0, 0, 0, 4 * GAP_PIXELS), PAPER) for block in blocks[:-1]]
    return labelled_rows([("", block) for block in [*spaced, blocks[-1]]])


def labelled_row(pictures: dict[str, PIL.Image.Image]) -> PIL.Image.Image:
    """Lay out pictures from left to right, each with its name above, reduced by a whole factor if they are large."""
    factor = max(1, round(sum(picture.width for picture in pictures.values()) / ROW_WIDTH))
    reduced = {name: picture.convert("RGB").reduce(factor) for name, picture in pictures.items()}
    blocks = [labelled_rows([("", picture)], [name]) for name, picture in reduced.items()]
    blocks = [PIL.ImageOps.expand(block, (4 * GAP_PIXELS, 0), PAPER) for block in blocks]
    row = PIL.Image.new("RGB", (sum(b.width for b in blocks), max(b.height for b in blocks)), PAPER)
    for number, block in enumerate(blocks):
        row.paste(block, (sum(b.width for b in blocks[:number]), 0))
    return row


def save_picture(picture: PIL.Image.Image, path: Path) -> None:
    """Save a PNG file atomically."""
    with complete_or_absent(path) as temporary:
        picture.save(temporary, format="PNG")  # `optimize` takes five times as long, for 2 % less


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
