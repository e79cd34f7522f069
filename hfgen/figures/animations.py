"""Denoising animations and training timelapses."""

from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from diffusers.utils import export_to_gif, make_image_grid
from torch import Tensor

from hfgen.data.decoding import open_picture
from hfgen.figures.grids import GAP_PIXELS, PAPER, image_grid, labelled_rows, sample_grid
from hfgen.utils.files import complete_or_absent

FILM_FRAMES = 40
STRIP_FRAMES = 11
FILM_FPS = 10
SLIDES_FPS = 5
SLIDES, SLIDE_SIZE = 15, (480, 240)
GRID_WIDTH = 200  # pixels, about, of each of the two grids of an animation
NAMES = ["noisy image xₜ", "predicted image"]


def save_film(noised: Tensor, estimates: Tensor, path: Path) -> None:
    """Save a denoising animation as a GIF: grids of x_t at the left and of the predicted x₀ at the right.

    The last frame is held for a second.

    Args:
        noised: x_t, uint8 (F, N, C, H, W).
        estimates: Predicted x₀, likewise.
        path: The file.
    """
    frames = []
    for pair in zip(noised, estimates, strict=True):
        grids = [PIL.ImageOps.expand(image_grid(images, width=GRID_WIDTH), GAP_PIXELS, PAPER) for images in pair]
        frames.append(labelled_rows([("", make_image_grid(grids, 1, 2))], NAMES))
    with complete_or_absent(path) as temporary:
        export_to_gif(frames + [frames[-1]] * FILM_FPS, str(temporary), fps=FILM_FPS)


def film_strip(noised: Tensor, estimates: Tensor) -> PIL.Image.Image:
    """Return a grid of denoising steps from left to right: for each image a row of x_t and one of the predicted x₀.

    Args:
        noised: x_t, uint8 (F, N, C, H, W).
        estimates: Predicted x₀, likewise.
    """
    rows = torch.stack([noised, estimates], 2).permute(1, 2, 0, 3, 4, 5)  # image, x_t or x₀, frame
    names = NAMES * rows.shape[0]
    return sample_grid(rows.flatten(0, 2), [row for row in range(len(names)) for _ in noised], names)


def save_slides(pictures: list[Path], path: Path) -> None:
    """Save a training timelapse as an animated GIF, whose last frame is held.

    To fit on a page, it shows at most `SLIDES` pictures, evenly spaced, and of each the upper part, at most
    `SLIDE_SIZE`.

    Args:
        pictures: Files whose names end in the step, `step-000500.png` for instance.
        path: The file.
    """
    chosen = sorted({round(i) for i in np.linspace(0, len(pictures) - 1, SLIDES)})
    slides = []
    for file in (pictures[index] for index in chosen):
        picture = open_picture(file).convert("RGB")
        picture = picture.reduce(max(1, round(max(picture.size) / SLIDE_SIZE[0])))
        part = picture.crop((0, 0, *map(min, picture.size, SLIDE_SIZE)))
        slides.append(labelled_rows([("", part)], title=f"step {int(file.stem.split('-')[-1]):,}"))
    with complete_or_absent(path) as temporary:
        export_to_gif(slides + [slides[-1]] * FILM_FPS, str(temporary), fps=SLIDES_FPS)
