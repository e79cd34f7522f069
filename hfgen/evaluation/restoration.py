"""How well an image-to-image model makes test images of what became of them: PSNR, SSIM, the class that is seen."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hfgen.config.commands import EvaluateConfig
from hfgen.data.degradations import Degradation, Degraded, to_gray
from hfgen.data.images import ImageData
from hfgen.data.paired import PairedInputs, TargetDomain
from hfgen.data.sources import public_name
from hfgen.evaluation.generated import sha256_of
from hfgen.evaluation.real import (
    data_source_of,
    default_output,
    judges_of,
    load_real,
    name_of,
    training_of,
    versions,
    warn_of_weak_judges,
)
from hfgen.evaluation.report import PICTURES, save_restoration_report
from hfgen.evaluation.statistics import accuracy_of
from hfgen.figures.grids import comparison_grid, save_picture
from hfgen.judges.judge import Judge, judges_numbers
from hfgen.metrics.image_similarity.image_similarity import image_similarity
from hfgen.pipelines.pipeline_hfgen_image_translation import ImageTranslationPipeline
from hfgen.runs.folder import run_fields
from hfgen.sampling.sample import to_uint8
from hfgen.utils.devices import default_device
from hfgen.utils.errors import UserError
from hfgen.utils.seeds import derive_seed, seed_torch

SHARES = (0.0, 0.5, 1.0)  # of the way from the least amount of a degradation to the largest
SHOWN = 16
AT_A_TIME = 1000  # images that are degraded together


def settings(degradations: Sequence[Degradation]) -> list[list[Degradation]]:
    """Return the amounts to measure: where they were drawn, the least, the middle and the largest, else what is fixed.

    Of pairs that were given there is one setting, without any.
    """
    if all(degradation.low == degradation.high for degradation in degradations):
        return [list(degradations)]
    return [[degradation.at(share) for degradation in degradations] for share in SHARES]


def give(inputs: PairedInputs, images: Tensor, degradations: Sequence[Degradation], seed: int) -> Degraded:
    """Return what the first images of a set, uint8 (N, C, H, W), become; what is drawn follows from the seed."""
    seed_torch(derive_seed("degradation", seed), torch.device("cpu"))
    parts = [
        inputs(images[indices].float() / 127.5 - 1, indices, degradations)
        for indices in torch.arange(len(images)).split(AT_A_TIME)
    ]
    return Degraded(*(torch.cat(found) for found in zip(*parts, strict=True)))


def restore(pipeline: ImageTranslationPipeline, given: Degraded, batch_size: int = 250) -> Tensor:
    """Return what a model makes of degraded images, uint8 (N, C, H, W)."""
    noise_std = given.noise_std if pipeline.generator.config.noise_level_input else None
    made = pipeline(given.images / 2 + 0.5, noise_std=noise_std, batch_size=batch_size, output_type="pt").images
    return to_uint8(made * 2 - 1)


def similarity(images: Tensor, wanted: Tensor) -> dict[str, float]:
    """Return mean squared error, PSNR and SSIM of images, each uint8 (N, C, H, W)."""
    return image_similarity(images.float() / 255, wanted.float() / 255)


def class_seen(images: Tensor, test: ImageData, judge: Judge) -> dict[str, Any]:
    """Return how often a judge takes images for what the first images of a set show."""
    labels = judges_numbers(test.label_names, test.source, judge.label_names)[test.labels[: len(images)]]
    return accuracy_of(judge.extract(images)[1].argmax(1), labels, len(judge.label_names))


def evaluate_translation(pipeline: ImageTranslationPipeline, config: EvaluateConfig) -> Path:
    """Measure what a model makes of test images, and write the report.

    With pairs, that is how near it comes to the images. Without, it is whether what was translated to the first kind
    still shows its class, and how near images come to themselves there and back.

    Returns:
        The path of `evaluation.json`; `evaluation.md` and its pictures are beside it.

    Raises:
        UserError: before any work, if there is nothing to measure it on.
    """
    source = Path(config.run_or_repo).expanduser()
    run = run_fields(source)
    if not run:
        raise UserError(f"{config.run_or_repo} does not say what it was trained on; evaluate the run that it is from")
    if config.inception or config.classification_accuracy_score or config.given_sampler():
        raise UserError("an image-to-image model draws nothing; what it makes of test images is measured, and no more")
    dataset = config.dataset_name or data_source_of(run)
    if config.target_reference_split and not (run.get("target_dataset_name") or run.get("target_data_dir")):
        raise UserError(f"{config.run_or_repo} has no second set of images of which target_reference_split were one")
    if config.dataset_name and not (run.get("degradation") or "cycle_weight" in run):
        raise UserError(f"{config.run_or_repo} was trained on pairs, which another data set does not have")
    test = load_real(config, run, dataset, config.reference_split)
    given = {name: value for name in ("resolution", "channels", "cache_dir") if (value := getattr(config, name))}
    judges = judges_of(config, dataset, test)
    pipeline.to(default_device())
    images = test.images[: _count(config, test)]
    protocol: dict[str, Any] = {}
    if pipeline.inverse_generator is None:
        inputs = PairedInputs(run | given, test, config.reference_split)
        protocol["degradation"] = [str(degradation) for degradation in inputs.degradations]
        compared = _with_pairs(pipeline, config, inputs, test, images)
    else:
        other = TargetDomain(run | given, test, config.target_reference_split or config.reference_split)
        protocol["target_dataset"] = public_name(other.data.source)
        protocol["target_reference_split"] = config.target_reference_split or config.reference_split
        protocol["target_sha256"] = other.data.fingerprint
        protocol["target_degradation"] = [str(degradation) for degradation in other.degradations]
        compared = _without_pairs(pipeline, config, other, test, images)
    networks = [part for part in (pipeline.generator, pipeline.inverse_generator) if part is not None]
    record: dict[str, Any] = {
        "protocol": {
            "model": name_of(config.run_or_repo),
            "pipeline": type(pipeline).__name__,
            "weights_sha256": [sha256_of(network) for network in networks],
            "dataset": public_name(test.source),
            "reference_split": config.reference_split,
            "reference_images": len(images),
            "reference_sha256": test.fingerprint,
            **protocol,
            "seed": config.seed,
            "judges": {judge.name: judge.sha256 for judge in judges if test.labels is not None},
            "versions": versions(),
        },
        "judge_accuracy": {},
        "restoration": [],
        "training": training_of(source),
    }
    if test.labels is not None:
        record["judge_accuracy"] = {judge.name: class_seen(images, test, judge) for judge in judges}
        warn_of_weak_judges(record["judge_accuracy"])
    output = Path(config.output_dir) if config.output_dir else default_output(config.run_or_repo)
    (output / PICTURES).mkdir(parents=True, exist_ok=True)
    for number, comparison in enumerate(compared):
        record["restoration"].append({
            "title": comparison.title,
            "given": _measure(comparison.given, comparison, judges),
            "made": _measure(comparison.made, comparison, judges),
        })  # fmt: skip
        shown = {name: part[:SHOWN] for name, part in comparison.shown.items()}
        save_picture(comparison_grid(shown), output / PICTURES / f"restored-{number}.png")
    return save_restoration_report(record, output)


@dataclass
class _Comparison:
    """Images that are compared with what they should be.

    Attributes:
        title: What they are given.
        given, made: uint8 (N, C, H, W), of the size and channels of the first kind.
        wanted: What they should be, likewise, or None where nobody knows.
        labelled: The set whose first images they were made of, if judges of the first kind know what they show.
        shown: The rows of the picture.
    """

    title: str
    given: Tensor
    made: Tensor
    wanted: Tensor | None
    labelled: ImageData | None
    shown: dict[str, Tensor]


def _measure(images: Tensor, comparison: _Comparison, judges: list[Judge]) -> dict[str, Any]:
    labelled, wanted = comparison.labelled, comparison.wanted
    known = labelled is not None and labelled.labels is not None
    seen = {judge.name: class_seen(images, labelled, judge) for judge in judges} if known else {}
    near = {} if wanted is None or images is wanted else similarity(images, wanted)
    return near | {"class_seen": seen}


def _count(config: EvaluateConfig, data: ImageData) -> int:
    """Return how many of the first images to take."""
    if config.num_images and config.num_images > len(data):
        raise UserError(f"num_images is {config.num_images}, but {data.source} has {len(data)} images")
    return config.num_images or len(data)


def _with_pairs(
    pipeline: ImageTranslationPipeline, config: EvaluateConfig, inputs: PairedInputs, test: ImageData, images: Tensor
) -> Iterator[_Comparison]:
    """Where the amount of a degradation was drawn in training, take the least, the middle and the largest."""
    for degradations in settings(inputs.degradations):
        given = give(inputs, images, degradations, config.seed)
        made = restore(pipeline, given, config.batch_size)
        title = ", ".join(str(degradation) for degradation in degradations) or "the pairs of the data set"
        shown = {"original": images, "given": to_uint8(given.images), "made": made}
        yield _Comparison(title, _as_images(given.images, images), made, images, test, shown)


def _as_images(given: Tensor, images: Tensor) -> Tensor:
    """Bring what a network is given, float32 in [−1, 1], to size (bicubic) and channels of what it makes, as uint8."""
    channels, height, width = images.shape[1:]
    enlarged = functional.interpolate(given, (height, width), mode="bicubic")
    return to_uint8(to_gray(enlarged) if given.shape[1] > channels else enlarged.expand(-1, channels, -1, -1))


def _without_pairs(
    pipeline: ImageTranslationPipeline, config: EvaluateConfig, other: TargetDomain, test: ImageData, first: Tensor
) -> Iterator[_Comparison]:
    """Translate images of the second kind, and of the first; what they should be is known if both are of one set."""
    cpu = torch.device("cpu")
    options = {"batch_size": config.batch_size, "output_type": "pt"}
    is_one_set = other.data.fingerprint == test.fingerprint
    classes = [set(data.label_names or ()) for data in (test, other.data)]
    labelled = other.data if classes[0] == classes[1] else None
    seed_torch(derive_seed("degradation", config.seed), cpu)
    count = len(first) if is_one_set else min(len(first), len(other.data))
    second = other.take(torch.arange(count), cpu)
    made = to_uint8(pipeline(second / 2 + 0.5, inverse=True, **options).images * 2 - 1)
    given, as_first = to_uint8(second), _as_images(second, first)
    shown = {"given": given, "made": made} | ({"wanted": first} if is_one_set else {})
    yield _Comparison(
        "the second kind, made the first", as_first, made, first if is_one_set else None, labelled, shown
    )
    there = pipeline(first.float() / 255, **options).images
    if is_one_set and as_first.shape == given.shape:
        made = to_uint8(there * 2 - 1)
        shown = {"given": first, "made": made, "wanted": given}
        yield _Comparison("the first kind, made the second", first, made, given, None, shown)
    again = to_uint8(pipeline(there, inverse=True, **options).images * 2 - 1)
    shown = {"given": first, "made": to_uint8(there * 2 - 1), "back": again}
    yield _Comparison("the first kind, there and back", first, again, first, test, shown)
