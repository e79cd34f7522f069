"""Generated images for an evaluation: sampled (resumably) or loaded."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from hfgen.data.images import ImageData
from hfgen.evaluation.processes import SamplingJob
from hfgen.judges.judge import judges_numbers
from hfgen.sampling.sample import decoder_of, dtype_of, image_shape_of, network_of
from hfgen.utils.errors import UserError
from hfgen.utils.files import remove_leftovers, say_damaged
from hfgen.utils.hashes import sha256_of
from hfgen.utils.seeds import derive_seed


@dataclass
class GeneratedImages:
    """Images to evaluate.

    Attributes:
        images: uint8 (N, C, H, W).
        labels: Target classes, as the judges' class indices, int64 (N,), or None.
        protocol: Their origin, for the report.
        sampled: Number of images sampled in this call; the others were saved by an earlier one.
        seconds: Their sampling time.
    """

    images: Tensor
    labels: Tensor | None
    protocol: dict[str, Any]
    sampled: int
    seconds: float


def load_generated(data: ImageData, name: str, num_images: int, label_names: list[str]) -> GeneratedImages:
    """Select images in random order: files may be sorted by class, and metrics on subsets assume shuffled images.

    Args:
        data: The images.
        name: Their name in reports.
        num_images: Number of images to select.
        label_names: Class names in the order of the judges' indices; empty without judges, and then labels are not
            used. Labels are matched by name, or by index if the images' classes are named 0, 1, …

    Raises:
        UserError: if the judges lack one of their classes.
    """
    generator = torch.Generator().manual_seed(derive_seed("given images"))
    chosen = torch.randperm(len(data), generator=generator)[:num_images]
    labels = None
    if data.labels is not None and label_names:
        labels = judges_numbers(data.label_names, name, label_names)[data.labels[chosen]]
    return GeneratedImages(data.images[chosen], labels, {"images": name, "images_sha256": data.fingerprint}, 0, 0.0)


def labels_like(data: ImageData, seed: int) -> list[str]:
    """Return the classes of the training images in random order, to sample with their class frequencies."""
    generator = torch.Generator().manual_seed(derive_seed("labels", seed))
    labels = data.require_labels()[torch.randperm(len(data), generator=generator)]
    return [data.label_names[number] for number in labels]


def origin_of(pipeline: DiffusionPipeline, name: str) -> dict[str, str]:
    """Return a model's name in reports, its class, and the SHA-256 of the networks that make the images."""
    others = {part: getattr(pipeline, part, None) for part in ("guide", "flow")} | {"vae": decoder_of(pipeline)}
    found = {"weights_sha256": sha256_of(network_of(pipeline))}
    found |= {f"{part}_sha256": sha256_of(network) for part, network in others.items() if network is not None}
    return {"model": name, "pipeline": type(pipeline).__name__} | found


def generate(
    pipeline: DiffusionPipeline,
    model: str,
    loading: dict[str, Any],
    origin: dict[str, str],
    sampler: dict[str, Any],
    num_images: int,
    batch_size: int,
    folder: Path,
    class_labels: list[str],
    label_names: list[str],
) -> GeneratedImages:
    """Sample images with all processes, reusing those of an interrupted or smaller earlier call.

    Args:
        pipeline: The pipeline.
        model: The run, folder or Hub id from which other processes load it.
        loading: Options of `hfgen.pipelines.loading.load`.
        origin: Its name in reports (`model`) and other facts for the report.
        sampler: Options of `hfgen.sampling.sample.sample`: `scheduler`, `num_inference_steps`, `seed`, the guidance,
            and learnt `time_steps`, if any.
        num_images: Number of images.
        batch_size: Images sampled and saved per batch.
        folder: Where they are saved, in a subfolder named by a hash of model, sampler and classes.
        class_labels: Class labels for `sample`; empty for an unconditional model.
        label_names: Class names in the order of the judges' indices; empty without judges.

    Raises:
        UserError: if the processes do not write to the same disk.
    """
    labels = None
    if class_labels and label_names:
        names = [class_labels[i % len(class_labels)] for i in range(num_images)]
        asked = sorted(set(class_labels))
        numbers = dict(zip(asked, judges_numbers(asked, origin["model"], label_names).tolist(), strict=True))
        labels = torch.tensor([numbers[name] for name in names])
    place = folder / f"images-{_key(pipeline, sampler, class_labels)}"
    place.mkdir(parents=True, exist_ok=True)
    remove_leftovers(place)
    batches = missing_batches(_saved(place), num_images, batch_size)
    started = time.monotonic()
    if batches:
        options = sampler | {"class_labels": class_labels}
        loading = loading | {"dtype": dtype_of(pipeline)}  # the same on machines of other kinds
        ends = [(batch.start, batch.stop) for batch in batches]
        job = SamplingJob(model, loading, options, ends, str(place.absolute()), num_images)
        job.run(pipeline)
    seconds = time.monotonic() - started
    protocol = {
        **origin,
        **sampler,
        "class_labels": "in the proportions of the training images" if class_labels else None,
        "dtype": dtype_of(pipeline),
        "quantisation": "rounded to 8 bits",
    }
    images = torch.empty(num_images, *image_shape_of(pipeline), dtype=torch.uint8)
    sampled = sum(map(len, batches))
    return GeneratedImages(_read(place, images), labels, protocol, sampled, seconds)


def missing_batches(saved: Mapping[int, Sequence[Any]], num_images: int, batch_size: int) -> list[range]:
    """Return the numbers of the images to sample, in batches that fill the gaps between saved ones.

    Args:
        saved: The saved batches, not empty, by their first numbers.
        num_images: Number of all images.
        batch_size: Images per batch, at most.
    """
    batches, first = [], 0
    while first < num_images:
        if first in saved:
            first += len(saved[first])
            continue
        end = min([first + batch_size, num_images, *(number for number in saved if number > first)])
        batches.append(range(first, end))
        first = end
    return batches


def _key(pipeline: DiffusionPipeline, sampler: dict[str, Any], class_labels: list[str]) -> str:
    """Return a hash of all that images depend on: sampler, classes, weights, settings, and hardware but for a CPU."""
    used = {name: part for name, part in pipeline.components.items() if name != "discriminator"}
    parts = [part for part in used.values() if part is not None]
    weights = [sha256_of(part) for part in parts if isinstance(part, torch.nn.Module)]
    configs = [{name: value for name, value in part.config.items() if not name.startswith("_")} for part in parts]
    hardware = [] if pipeline.device.type == "cpu" else [pipeline.device.type]
    sampler = {name: value for name, value in sampler.items() if value is not None or name != "time_steps"}
    return hashlib.sha256(json.dumps([sampler, class_labels, *weights, *configs, *hardware]).encode()).hexdigest()[:12]


def _saved(folder: Path) -> dict[int, np.ndarray]:
    """Map the saved batches of images into memory, by the number of the first image, which names the file."""
    batches = {}
    for path in sorted(folder.glob("*.npy")):
        try:
            images = np.load(path, mmap_mode="r")
        except (ValueError, EOFError):
            say_damaged(path)
            continue
        if path.stem.isdigit() and len(images):
            batches[int(path.stem)] = images
    return batches


def _read(folder: Path, images: Tensor) -> Tensor:
    """Fill uint8 images (N, C, H, W) with the saved ones."""
    saved, first = _saved(folder), 0
    while first < len(images):
        if first not in saved:
            raise UserError(
                f"image {first} is not in {folder}; processes on several machines need a shared disk for it"
            )
        part = saved[first][: len(images) - first]
        images[first : first + len(part)] = torch.from_numpy(np.array(part))
        first += len(part)
    return images
