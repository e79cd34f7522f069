"""Return values of the Python API, with notebook representations."""

import base64
import functools
import io
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from hfgen.config.commands import SampleConfig
from hfgen.figures.animations import FILM_FRAMES, STRIP_FRAMES, film_strip, save_film
from hfgen.figures.grids import image_grid, sample_grid, save_arrays, save_images, save_picture, to_pil
from hfgen.pipelines.loading import load
from hfgen.runs.folder import RunFolder, run_fields
from hfgen.sampling.sample import (
    default_sampler,
    film,
    is_conditional,
    labels_of,
    sample,
    say_learnt_steps,
    with_time_steps,
)


@dataclass(frozen=True)
class Images:
    """Images from a model; displayed as a grid in notebooks.

    Attributes:
        images: uint8, (N, C, H, W).
        labels: Class indices, or None for an unconditional model.
        label_names: Class names.
    """

    images: Tensor
    labels: list[int] | None
    label_names: list[str]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> PIL.Image.Image:
        return to_pil(self.images[index])

    def grid(self) -> PIL.Image.Image:
        """Return all images as a grid, with a row per class."""
        return sample_grid(self.images, self.labels, self.label_names)

    def save(self, output: Path) -> None:
        """Save as a .png (a grid), a .npz (`images`, and with classes `labels` and `label_names`), or a folder."""
        match output.suffix.lower():
            case ".png":
                save_picture(self.grid(), output)
            case ".npz":
                classes: dict[str, Any] = {"labels": self.labels, "label_names": self.label_names}
                save_arrays(self.images, output, **(classes if self.labels is not None else {}))
            case _:
                save_images(self.images, output)

    def _repr_png_(self) -> bytes:
        return _png(self.grid())


@dataclass(frozen=True)
class Animation:
    """The denoising process of images; displayed as a strip in notebooks.

    Attributes:
        noised: x_t at some steps, uint8 (F, B, C, H, W).
        estimates: The predicted x₀ at these steps, uint8 (F, B, C, H, W).
    """

    noised: Tensor
    estimates: Tensor

    def save(self, output: Path) -> None:
        """Save it as a .gif or a .png (a strip)."""
        if output.suffix.lower() == ".gif":
            save_film(self.noised, self.estimates, output)
        else:
            save_picture(film_strip(self.noised, self.estimates), output)

    def _repr_png_(self) -> bytes:
        return _png(film_strip(self.noised, self.estimates))


@dataclass(frozen=True)
class Edited:
    """Images transformed by a model; displayed in notebooks.

    Attributes:
        count: Number of images.
        images: The images, uint8 (C, H, W) each; empty if they were written to a folder one by one.
        unreadable: Unreadable files and the reasons.
    """

    count: int
    images: list[Tensor]
    unreadable: dict[Path, str]

    def __getitem__(self, index: int) -> PIL.Image.Image:
        return to_pil(self.images[index])

    def _repr_png_(self) -> bytes | None:
        if len({image.shape for image in self.images}) != 1:
            return None
        return _png(image_grid(torch.stack(self.images)))


@dataclass(frozen=True)
class Report:
    """An evaluation, an analysis or a comparison; its page is displayed in notebooks.

    Attributes:
        path: The record, a JSON file; its page is in the same folder.
    """

    path: Path

    @functools.cached_property
    def record(self) -> dict[str, Any]:
        """The content of the JSON file."""
        return json.loads(self.path.read_text(encoding="utf-8"))

    @property
    def page(self) -> Path:
        """The page, a Markdown file."""
        return self.path.with_suffix(".md")

    def _repr_markdown_(self) -> str:
        text, _, _ = self.page.read_text(encoding="utf-8").partition("\n## Protocol")

        def inlined(match: re.Match[str]) -> str:
            picture = base64.b64encode((self.path.parent / match[2]).read_bytes()).decode()
            return f"![{match[1]}](data:image/png;base64,{picture})"

        return re.sub(r"!\[([^\]]*)\]\(([^)]+\.png)\)", inlined, text)


@dataclass(frozen=True)
class Study(Report):
    """A study of hyper-parameters; its page is displayed in notebooks.

    Attributes:
        path: The record, `study.json`; its page is in the same folder.
    """

    @property
    def trials(self) -> list[dict[str, Any]]:
        """All trials: number, state, value, searched fields (`params`), seconds of training, why it failed."""
        return self.record["trials"]

    @property
    def best(self) -> dict[str, Any] | None:
        """The best trial, or None if none has succeeded."""
        return next((trial for trial in self.trials if trial["number"] == self.record["best"]), None)

    @property
    def best_config(self) -> Path:
        """The best configuration, a YAML file that `config` takes."""
        return self.path.with_name("best.yaml")

    @property
    def best_run(self) -> RunFolder | None:
        """The run of the best trial, or None if it was trained in another folder."""
        return RunFolder(self.path.parent / self.best["run"]) if self.best and self.best["run"] else None


def generate(config: SampleConfig, loaded: DiffusionPipeline | None) -> Images | Animation:
    """Sample images, or their denoising process, from a configuration.

    Args:
        config: The configuration.
        loaded: The model, if it is loaded already.

    Raises:
        UserError: if the options do not fit the model.
    """
    pipeline: Any = load(config.run_or_repo, **config.loading_options()) if loaded is None else loaded
    own = default_sampler(pipeline, run_fields(Path(config.run_or_repo).expanduser()))
    options = with_time_steps(pipeline, own | config.given_sampler())
    say_learnt_steps(pipeline, options)
    options |= {name: getattr(config, name) for name in ("num_images", "class_labels", "seed")}
    if config.negative_class_labels:
        options["negative_class_labels"] = config.negative_class_labels
    if config.film:
        frames = FILM_FRAMES if Path(config.output).suffix.lower() == ".gif" else STRIP_FRAMES
        return Animation(*film(pipeline, num_frames=frames, **options))
    images = torch.cat(list(sample(pipeline, batch_size=config.batch_size, **options)))
    if not is_conditional(pipeline):
        return Images(images, None, [])
    names = sorted(pipeline.labels, key=pipeline.labels.get)
    return Images(images, labels_of(pipeline, config.class_labels, range(config.num_images)), names)


def warn_if_replaced(output: Path) -> None:
    """Print a note if the output already exists."""
    if output.is_file():
        print(f"hfgen: replaces {output}", file=sys.stderr)
    elif output.is_dir() and any(output.iterdir()):
        print(f"hfgen: {output} is not empty; files of the same names are replaced", file=sys.stderr)


def _png(picture: PIL.Image.Image) -> bytes:
    written = io.BytesIO()
    picture.save(written, "png")
    return written.getvalue()
