"""Generated images for an evaluation: sampled (resumably) or loaded."""

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
class GeneratedImages:
    """Images to evaluate.

    Attributes:
        images: uint8 (N, C, H, W).
        labels: Target classes, as the judges' class indices, int64 (N,), or None.
        protocol: Their origin, for the report.
        seconds: Sampling time of this call.
    """

    images: Tensor
    labels: Tensor | None
    protocol: dict[str, Any]
    seconds: float


def size_of(shape: tuple[int, int, int]) -> str:
    """Describe a shape (C, H, W)."""
    return f"{shape[2]}×{shape[1]} pixels in {shape[0]} channel{'s' if shape[0] > 1 else ''}"


def load_generated(data: ImageData, name: str, num_images: int, label_names: list[str]) -> GeneratedImages:
    """Select images in random order: files may be sorted by class, and metrics on subsets assume shuffled images.

    Args:
        data: The images.
        name: Their name in reports.
        num_images: Number of images to select.
        label_names: Class names in the order of the judges' indices. Labels are matched by name, or by index if the
            images' classes are named 0, 1, …

    Raises:
        UserError: if there are fewer images, or the judges lack one of their classes.
    """
    if num_images > len(data):
        raise UserError(f"num_images is {num_images}, but {name} has {len(data)} images")
    generator = torch.Generator().manual_seed(derive_seed("given images"))
    chosen = torch.randperm(len(data), generator=generator)[:num_images]
    labels = None
    if data.labels is not None:
        labels = judges_numbers(data.label_names, name, label_names)[data.labels[chosen]]
    return GeneratedImages(data.images[chosen], labels, {"images": name, "images_sha256": data.fingerprint}, 0.0)


def labels_like(data: ImageData, seed: int) -> list[str]:
    """Return the classes of the training images in random order, to sample with their class frequencies."""
    generator = torch.Generator().manual_seed(derive_seed("labels", seed))
    labels = data.require_labels()[torch.randperm(len(data), generator=generator)]
    return [data.label_names[number] for number in labels]


def generate(
    pipeline: DiffusionPipeline,
    model: str,
    sampler: dict[str, Any],
    num_images: int,
    batch_size: int,
    folder: Path,
    class_labels: list[str],
    label_names: list[str],
) -> GeneratedImages:
    """Sample images, reusing those of an interrupted or smaller earlier call.

    Args:
        pipeline: The pipeline.
        model: Its name in reports.
        sampler: Options of `hfgen.sampling.sample.sample`: `scheduler`, `num_inference_steps`, `seed`, the guidance.
        num_images: Number of images.
        batch_size: Images sampled and saved per batch.
        folder: Where they are saved, in a subfolder named by a hash of model, sampler and classes.
        class_labels: Class labels for `sample`; empty for an unconditional model.
        label_names: Class names in the order of the judges' indices.
    """
    started = time.monotonic()
    labels = None
    if class_labels:
        names = [class_labels[i % len(class_labels)] for i in range(num_images)]
        asked = sorted(set(class_labels))
        numbers = dict(zip(asked, judges_numbers(asked, model, label_names).tolist(), strict=True))
        labels = torch.tensor([numbers[name] for name in names])
    sha256 = sha256_of(network_of(pipeline))
    parts = [part for name, part in pipeline.components.items() if name != "discriminator"]  # not used in sampling
    others = [sha256_of(part) for part in parts if isinstance(part, torch.nn.Module)]
    configs = [{name: value for name, value in part.config.items() if not name.startswith("_")} for part in parts]
    key = hashlib.sha256(json.dumps([sampler, class_labels, *others, *configs]).encode()).hexdigest()[:12]
    place = folder / f"images-{key}"
    place.mkdir(parents=True, exist_ok=True)
    remove_leftovers(place)
    images, count = torch.empty(num_images, *image_shape_of(pipeline), dtype=torch.uint8), 0
    for part in _read_parts(place):
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
    with tqdm(total=num_images, initial=min(count, num_images), desc="sampling", unit="image", disable=None) as bar:
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
        "class_labels": "in the proportions of the training images" if class_labels else None,
        "quantisation": "rounded to 8 bits",
    }
    return GeneratedImages(images, labels, protocol, time.monotonic() - started)


def sha256_of(module: torch.nn.Module) -> str:
    """Return the SHA-256 of a network's weights, serialised as safetensors."""
    weights = save({name: value.cpu().contiguous() for name, value in module.state_dict().items()})
    return hashlib.sha256(weights).hexdigest()


def _read_parts(folder: Path) -> Iterator[Tensor]:
    """Read the saved images up to the first gap; each file is named by the index of its first image."""
    count = 0
    while (path := folder / f"{count:06d}.npy").exists():
        try:
            images = torch.from_numpy(np.load(path))
        except (ValueError, EOFError):
            say_damaged(path)
            return
        yield images
        count += len(images)
