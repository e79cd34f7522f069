"""Restoration metrics of an image-to-image model on test images: PSNR, SSIM, class accuracy."""

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
from hfgen.figures.grids import comparison_grid, save_picture
from hfgen.judges.judge import Judge, judges_numbers
from hfgen.judges.statistics import accuracy_of
from hfgen.metrics.image_similarity.image_similarity import image_similarity
from hfgen.pipelines.loading import move
from hfgen.pipelines.pipeline_hfgen_image_translation import ImageTranslationPipeline
from hfgen.runs.folder import run_fields
from hfgen.sampling.sample import dtype_of, to_uint8
from hfgen.utils.errors import UserError
from hfgen.utils.hashes import sha256_of
from hfgen.utils.seeds import derive_seed, seed_torch

AMOUNTS = (0.0, 0.5, 1.0)  # positions between the smallest and the largest amount of a degradation
SHOWN = 16
BATCH_SIZE = 1000  # of degrading


def noise_settings(degradations: Sequence[Degradation]) -> list[list[Degradation]]:
    """Return the degradations to evaluate: at the smallest, middle and largest amount if it is random in training.

    With paired data the only setting is empty.
    """
    if all(degradation.low == degradation.high for degradation in degradations):
        return [list(degradations)]
    return [[degradation.at(amount) for degradation in degradations] for amount in AMOUNTS]


def degrade_test_set(inputs: PairedInputs, images: Tensor, degradations: Sequence[Degradation], seed: int) -> Degraded:
    """Degrade the first images of a set, uint8 (N, C, H, W), with random numbers from the seed."""
    seed_torch(derive_seed("degradation", seed), torch.device("cpu"))
    parts = [
        inputs(images[indices].float() / 127.5 - 1, indices, degradations)
        for indices in torch.arange(len(images)).split(BATCH_SIZE)
    ]
    return Degraded(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def run_model(pipeline: ImageTranslationPipeline, inputs: Degraded, batch_size: int = 250) -> Tensor:
    """Return a model's outputs for degraded images, uint8 (N, C, H, W)."""
    noise_std = inputs.noise_std if pipeline.generator.config.noise_level_input else None
    outputs = pipeline(inputs.images / 2 + 0.5, noise_std=noise_std, batch_size=batch_size, output_type="pt").images
    return to_uint8(outputs * 2 - 1)


def image_metrics(images: Tensor, targets: Tensor) -> dict[str, float]:
    """Return mean squared error, PSNR and SSIM of images against targets, each uint8 (N, C, H, W)."""
    return image_similarity(images.float() / 255, targets.float() / 255)


def label_accuracy(images: Tensor, test: ImageData, judge: Judge) -> dict[str, Any]:
    """Return a judge's accuracy on images with the labels of the first images of a set (see `accuracy_of`)."""
    labels = judges_numbers(test.label_names, test.source, judge.label_names)[test.labels[: len(images)]]
    return accuracy_of(judge.extract(images)[1].argmax(1), labels, len(judge.label_names))


def evaluate_translation(pipeline: ImageTranslationPipeline, config: EvaluateConfig) -> Path:
    """Evaluate an image-to-image model on test images, and write the report.

    A paired model is compared with the targets. An unpaired one is measured by the class accuracy of translations to
    domain A and by the cycle reconstruction of images of domain A.

    Returns:
        The path of `evaluation.json`; `evaluation.md` and its figures are in the same folder.

    Raises:
        UserError: before any work, if there is no test data for it.
    """
    source = Path(config.run_or_repo).expanduser()
    run = run_fields(source)
    if not run:
        raise UserError(f"{config.run_or_repo} does not record its training data; evaluate its run folder")
    if config.features or config.inception or config.classification_accuracy_score or config.given_sampler():
        raise UserError("an image-to-image model has no sampler; only its outputs for test images are evaluated")
    dataset = config.dataset_name or data_source_of(run)
    if config.target_reference_split and not (run.get("target_dataset_name") or run.get("target_data_dir")):
        raise UserError(f"{config.run_or_repo} has no target data set, so target_reference_split does not apply")
    if config.dataset_name and not (run.get("degradation") or "cycle_weight" in run):
        raise UserError(f"{config.run_or_repo} was trained on paired data, which another data set does not have")
    test = load_real(config, run, dataset, config.reference_split)
    overrides = {name: value for name in ("resolution", "channels", "cache_dir") if (value := getattr(config, name))}
    judges = judges_of(config, dataset, test)
    networks = [part for part in (pipeline.generator, pipeline.inverse_generator) if part is not None]
    sha256 = [sha256_of(network) for network in networks]  # before the weights are rounded to another dtype
    move(pipeline, config.device, config.dtype)
    images = test.images[: _count(config, test)]
    protocol: dict[str, Any] = {}
    if pipeline.inverse_generator is None:
        inputs = PairedInputs(run | overrides, test)
        protocol["degradation"] = [str(degradation) for degradation in inputs.degradations]
        comparisons = _with_pairs(pipeline, config, inputs, test, images)
    else:
        domain_b = TargetDomain(run | overrides, test, config.target_reference_split or config.reference_split)
        protocol["target_dataset"] = public_name(domain_b.data.source)
        protocol["target_reference_split"] = config.target_reference_split or config.reference_split
        protocol["target_sha256"] = domain_b.data.fingerprint
        protocol["target_degradation"] = [str(degradation) for degradation in domain_b.degradations]
        comparisons = _without_pairs(pipeline, config, domain_b, test, images)
    record: dict[str, Any] = {
        "protocol": {
            "model": name_of(config.run_or_repo),
            "pipeline": type(pipeline).__name__,
            "weights_sha256": sha256,
            "dataset": public_name(test.source),
            "reference_split": config.reference_split,
            "reference_images": len(images),
            "reference_sha256": test.fingerprint,
            **protocol,
            "seed": config.seed,
            "judges": {judge.name: judge.sha256 for judge in judges if test.labels is not None},
            "device": str(pipeline.device),
            "dtype": dtype_of(pipeline),
            "versions": versions(),
        },
        "judge_accuracy": {},
        "restoration": [],
        "training": training_of(source),
    }
    if test.labels is not None:
        record["judge_accuracy"] = {judge.name: label_accuracy(images, test, judge) for judge in judges}
        warn_of_weak_judges(record["judge_accuracy"])
    output = Path(config.output_dir) if config.output_dir else default_output(config.run_or_repo)
    (output / PICTURES).mkdir(parents=True, exist_ok=True)
    for index, comparison in enumerate(comparisons):
        record["restoration"].append({
            "title": comparison.title,
            "given": _metrics(comparison.inputs, comparison, judges),
            "made": _metrics(comparison.outputs, comparison, judges),
        })  # fmt: skip
        rows = {name: part[:SHOWN] for name, part in comparison.rows.items()}
        save_picture(comparison_grid(rows), output / PICTURES / f"restored-{index}.png")
    return save_restoration_report(record, output)


@dataclass
class _Comparison:
    """Inputs and outputs to compare with their targets.

    Attributes:
        title: Name of the comparison.
        inputs, outputs: uint8 (N, C, H, W), of the size and channels of domain A.
        targets: Likewise, or None if there are none.
        labelled: The set whose first images they come from, if its labels apply and are classes of the judges.
        rows: The rows of the figure.
    """

    title: str
    inputs: Tensor
    outputs: Tensor
    targets: Tensor | None
    labelled: ImageData | None
    rows: dict[str, Tensor]


def _metrics(images: Tensor, comparison: _Comparison, judges: list[Judge]) -> dict[str, Any]:
    labelled, targets = comparison.labelled, comparison.targets
    has_labels = labelled is not None and labelled.labels is not None
    accuracies = {judge.name: label_accuracy(images, labelled, judge) for judge in judges} if has_labels else {}
    similarity = {} if targets is None or images is targets else image_metrics(images, targets)
    return similarity | {"class_seen": accuracies}


def _count(config: EvaluateConfig, data: ImageData) -> int:
    """Return the number of images to evaluate."""
    if config.num_images and config.num_images > len(data):
        raise UserError(f"num_images is {config.num_images}, but {data.source} has {len(data)} images")
    return config.num_images or len(data)


def _with_pairs(
    pipeline: ImageTranslationPipeline, config: EvaluateConfig, inputs: PairedInputs, test: ImageData, images: Tensor
) -> Iterator[_Comparison]:
    """Yield a comparison for each of `noise_settings`."""
    for degradations in noise_settings(inputs.degradations):
        degraded = degrade_test_set(inputs, images, degradations, config.seed)
        outputs = run_model(pipeline, degraded, config.batch_size)
        title = ", ".join(str(degradation) for degradation in degradations) or "paired images"
        rows = {"target": images, "input": to_uint8(degraded.images), "output": outputs}
        yield _Comparison(title, _as_images(degraded.images, images), outputs, images, test, rows)


def _as_images(inputs: Tensor, images: Tensor) -> Tensor:
    """Convert inputs, float32 in [−1, 1], to the size (bicubic) and channels of images, as uint8."""
    channels, height, width = images.shape[1:]
    upscaled = functional.interpolate(inputs, (height, width), mode="bicubic")
    return to_uint8(to_gray(upscaled) if inputs.shape[1] > channels else upscaled.expand(-1, channels, -1, -1))


def _without_pairs(
    pipeline: ImageTranslationPipeline, config: EvaluateConfig, domain_b: TargetDomain, test: ImageData, a: Tensor
) -> Iterator[_Comparison]:
    """Translate images of both domains; targets exist only if both domains are the same set of images."""
    cpu = torch.device("cpu")
    options = {"batch_size": config.batch_size, "output_type": "pt"}
    is_one_set = domain_b.data.fingerprint == test.fingerprint
    classes = [set(data.label_names or ()) for data in (test, domain_b.data)]
    labelled = domain_b.data if classes[0] == classes[1] else None
    seed_torch(derive_seed("degradation", config.seed), cpu)
    count = len(a) if is_one_set else min(len(a), len(domain_b.data))
    b = domain_b.take(torch.arange(count), cpu)
    to_a = to_uint8(pipeline(b / 2 + 0.5, inverse=True, **options).images * 2 - 1)
    b_uint8, b_as_a = to_uint8(b), _as_images(b, a)
    rows = {"input": b_uint8, "output": to_a} | ({"target": a} if is_one_set else {})
    yield _Comparison("domain B to domain A", b_as_a, to_a, a if is_one_set else None, labelled, rows)
    translated = pipeline(a.float() / 255, **options).images
    to_b = to_uint8(translated * 2 - 1)
    if is_one_set and b_as_a.shape == b_uint8.shape:
        rows = {"input": a, "output": to_b, "target": b_uint8}
        yield _Comparison("domain A to domain B", a, to_b, b_uint8, None, rows)
    cycled = to_uint8(pipeline(translated, inverse=True, **options).images * 2 - 1)
    rows = {"input": a, "output": to_b, "cycled": cycled}
    yield _Comparison("domain A to domain B and back", a, cycled, a, test, rows)
