"""The images that an evaluation measures: drawn from a model, resumably, or taken from a file or folder."""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from hfgen.data.images import ImageData
from hfgen.judges.judge import judges_numbers
from hfgen.sampling.sample import image_shape_of, network_of, sample
from hfgen.utils.errors import UserError
from hfgen.utils.files import complete_or_absent, remove_leftovers, say_damaged
from hfgen.utils.seeds import derive_seed


@dataclass
class Subject:
    """What is measured.

    Attributes:
        images: uint8 (N, C, H, W).
        labels: The classes that they are meant to show, as the judges number them, int64 (N,), or None.
        protocol: How they came about, for the report.
        seconds: What drawing them took this time.
    """

    images: Tensor
    labels: Tensor | None
    protocol: dict[str, Any]
    seconds: float


def size_of(shape: tuple[int, int, int]) -> str:
    """Say a shape (C, H, W) in words."""
    return f"{shape[2]}×{shape[1]} pixels in {shape[0]} channel{'s' if shape[0] > 1 else ''}"


def take(given: ImageData, name: str, num_images: int, label_names: list[str]) -> Subject:
    """Choose images at random: they may be sorted by class, and parts of them must be like the whole.

    Args:
        given: Images from anywhere.
        name: What to call them.
        num_images: How many; all, in another order, if there are no more.
        label_names: The classes by the judges' numbers. Labels are matched by these names, or, where the images'
            classes are called 0, 1, …, by number.

    Raises:
        UserError: if there are fewer, or with classes that the judges do not know.
    """
    if num_images > len(given):
        raise UserError(f"num_images is {num_images}, but {name} has {len(given)} images")
    generator = torch.Generator().manual_seed(derive_seed("given images"))
    chosen = torch.randperm(len(given), generator=generator)[:num_images]
    labels = None
    if given.labels is not None:
        labels = judges_numbers(given.label_names, name, label_names)[given.labels[chosen]]
    return Subject(given.images[chosen], labels, {"images": name, "images_sha256": given.fingerprint}, 0.0)


def labels_like(data: ImageData, seed: int) -> list[str]:
    """Return the classes of training images in random order, so that what is drawn has their shares of the classes."""
    generator = torch.Generator().manual_seed(derive_seed("labels", seed))
    labels = data.require_labels()[torch.randperm(len(data), generator=generator)]
    return [data.label_names[number] for number in labels]


def draw(
    pipeline: DiffusionPipeline,
    model: str,
    sampler: dict[str, Any],
    num_images: int,
    batch_size: int,
    folder: Path,
    class_labels: list[str],
    label_names: list[str],
) -> Subject:
    """Draw images, or the rest of them where drawing was interrupted or took fewer.

    Args:
        pipeline: What to draw from.
        model: What to call it.
        sampler: Options of `hfgen.sampling.sample.sample`: `scheduler`, `num_inference_steps`, `seed`, the guidance.
        num_images: How many.
        batch_size: Images drawn, and saved, at a time.
        folder: Where they are kept, in a folder that is named after model, sampler and classes.
        class_labels: What `sample` takes as such, of a model that knows classes; else none.
        label_names: The classes by the judges' numbers.
    """
    started = time.monotonic()
    labels = None
    if class_labels:
        names = [class_labels[i % len(class_labels)] for i in range(num_images)]
        asked = sorted(set(class_labels))
        numbers = dict(zip(asked, judges_numbers(asked, model, label_names).tolist(), strict=True))
        labels = torch.tensor([numbers[name] for name in names])
    sha256 = sha256_of(network_of(pipeline))
    parts = [part for name, part in pipeline.components.items() if name != "discriminator"]  # which draws nothing
    others = [sha256_of(part) for part in parts if isinstance(part, torch.nn.Module)]
    configs = [{name: value for name, value in part.config.items() if not name.startswith("_")} for part in parts]
    key = hashlib.sha256(json.dumps([sampler, class_labels, *others, *configs]).encode()).hexdigest()[:12]
    place = folder / f"images-{key}"
    place.mkdir(parents=True, exist_ok=True)
    remove_leftovers(place)
    images, count = torch.empty(num_images, *image_shape_of(pipeline), dtype=torch.uint8), 0
    for part in _drawn_before(place):
        images[count : count + len(part)] = part[: max(0, num_images - count)]
        count += len(part)
    batches = sample(
        pipeline,
        num_images=max(0, num_images - count),
        batch_size=batch_size,
        first_image=count,
        class_labels=class_labels,
        **sampler,
    )
    with tqdm(total=num_images, initial=min(count, num_images), desc="drawing", unit="image", disable=None) as bar:
        for part in batches:
            with complete_or_absent(place / f"{count:06d}.npy") as temporary, open(temporary, "wb") as file:
                np.save(file, part.numpy())
            images[count : count + len(part)] = part
            count += len(part)
            bar.update(len(part))
    protocol = {
        "model": model,
        "pipeline": type(pipeline).__name__,
        "weights_sha256": sha256,
        **sampler,
        "class_labels": "in the shares of the training images" if class_labels else None,
        "quantisation": "rounded to 8 bits",
    }
    return Subject(images, labels, protocol, time.monotonic() - started)


def sha256_of(module: torch.nn.Module) -> str:
    """Return the SHA-256 of a network's weights, as a safetensors file has them."""
    weights = save({name: value.cpu().contiguous() for name, value in module.state_dict().items()})
    return hashlib.sha256(weights).hexdigest()


def _drawn_before(folder: Path) -> Iterator[Tensor]:
    """Read the images that are there without a gap from the first; each file is named by its first image."""
    count = 0
    while (path := folder / f"{count:06d}.npy").exists():
        try:
            images = torch.from_numpy(np.load(path))
        except (ValueError, EOFError):
            say_damaged(path)
            return
        yield images
        count += len(images)
