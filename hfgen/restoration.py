"""How well an image-to-image model makes test images of what became of them: PSNR, SSIM, the class that is seen."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hfgen.data import ImageData, public_name
from hfgen.degradations import Degradation, Degraded, to_grey
from hfgen.errors import UserError
from hfgen.figures import counterparts_picture, save_picture
from hfgen.measures import accuracy_of
from hfgen.metrics.image_similarity.image_similarity import image_similarity
from hfgen.metrics.judge import Judge, load_judge, shipped_judges_of
from hfgen.options import EvaluateConfig
from hfgen.pairs import Inputs, SecondKind
from hfgen.pipelines.pipeline_hfgen_image_translation import ImageTranslationPipeline
from hfgen.references import (
    check_size,
    data_source_of,
    default_output,
    load_real,
    name_of,
    run_fields,
    training_of,
    versions,
)
from hfgen.report import PICTURES, save_restoration_report
from hfgen.sampling import to_uint8
from hfgen.seeds import derive_seed, seed_torch
from hfgen.subjects import judges_numbers, sha256_of

SHARES = (0.0, 0.5, 1.0)  # of the way from the least amount of a degradation to the largest
SHOWN = 16


def settings(degradations: Sequence[Degradation]) -> list[list[Degradation]]:
    """Return the amounts to measure: where they were drawn, the least, the middle and the largest, else what is fixed.

    Of pairs that were given there is one setting, without any.
    """
    if all(degradation.low == degradation.high for degradation in degradations):
        return [list(degradations)]
    return [[degradation.at(share) for degradation in degradations] for share in SHARES]


def give(inputs: Inputs, images: Tensor, degradations: Sequence[Degradation], seed: int) -> Degraded:
    """Return what the first images of a set, uint8 (N, C, H, W), become; what is drawn follows from the seed."""
    device = torch.device("cpu")
    seed_torch(derive_seed("degradation", seed), device)
    return inputs(images.float() / 127.5 - 1, torch.arange(len(images)), degradations)


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
    return accuracy_of(judge.look_at(images)[1].argmax(1), labels, len(judge.label_names))


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
    if config.inception or config.classification_accuracy_score:
        raise UserError("an image-to-image model draws nothing; what it makes of test images is measured, and no more")
    dataset = config.dataset_name or data_source_of(run)
    test = load_real(config, run, dataset, config.reference_split)
    judges = [load_judge(name) for name in config.judge or shipped_judges_of(dataset)]
    if not config.judge:
        judges = [judge for judge in judges if judge.image_shape == tuple(test.images.shape[1:])]
    for judge in judges:
        check_size(judge.image_shape, f"the judge {judge.name}", test)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    if pipeline.inverse_generator is None:
        compared = _with_pairs(pipeline, config, run, test)
    else:
        compared = _without_pairs(pipeline, config, run, test)
    output = Path(config.output_dir) if config.output_dir else default_output(config.run_or_repo)
    (output / PICTURES).mkdir(parents=True, exist_ok=True)
    networks = [part for part in (pipeline.generator, pipeline.inverse_generator) if part is not None]
    record: dict[str, Any] = {
        "protocol": {
            "model": name_of(config.run_or_repo),
            "pipeline": type(pipeline).__name__,
            "weights_sha256": [sha256_of(network) for network in networks],
            "dataset": public_name(test.source),
            "reference_split": config.reference_split,
            "reference_images": config.num_images or len(test),
            "reference_sha256": test.fingerprint,
            "seed": config.seed,
            "judges": {judge.name: judge.sha256 for judge in judges if test.labels is not None},
            "versions": versions(),
        },
        "judge_accuracy": {},
        "restoration": [],
        "training": training_of(source),
    }
    if test.labels is not None:
        images = test.images[: config.num_images]
        record["judge_accuracy"] = {judge.name: class_seen(images, test, judge) for judge in judges}
    for number, comparison in enumerate(compared):
        record["restoration"].append({
            "title": comparison.title,
            "given": _measure(comparison.given, comparison, judges),
            "made": _measure(comparison.made, comparison, judges),
        })  # fmt: skip
        shown = {name: part[:SHOWN] for name, part in comparison.shown.items()}
        save_picture(counterparts_picture(shown), output / PICTURES / f"restored-{number}.png")
    return save_restoration_report(record, output)


@dataclass
class _Comparison:
    """Images that are compared with what they should be.

    Attributes:
        title: What they are given.
        given, made: uint8 (N, C, H, W), of the size and channels of the first kind.
        wanted: What they should be, likewise, or None where nobody knows.
        labelled: The set whose first images they were made of.
        shown: The rows of the picture.
    """

    title: str
    given: Tensor
    made: Tensor
    wanted: Tensor | None
    labelled: ImageData
    shown: dict[str, Tensor]


def _measure(images: Tensor, comparison: _Comparison, judges: list[Judge]) -> dict[str, Any]:
    known = comparison.labelled.labels is not None
    seen = {judge.name: class_seen(images, comparison.labelled, judge) for judge in judges} if known else {}
    near = {} if comparison.wanted is None else similarity(images, comparison.wanted)
    return {**near, "class_seen": seen}


def _count(config: EvaluateConfig, data: ImageData) -> int:
    if config.num_images and config.num_images > len(data):
        raise UserError(f"num_images is {config.num_images}, but {data.source} has {len(data)} images")
    return config.num_images or len(data)


def _with_pairs(
    pipeline: ImageTranslationPipeline, config: EvaluateConfig, run: dict[str, Any], test: ImageData
) -> Iterator[_Comparison]:
    """Where the amount of a degradation was drawn in training, take the least, the middle and the largest."""
    inputs = Inputs(run, test, config.reference_split)
    images = test.images[: _count(config, test)]
    for degradations in settings(inputs.degradations):
        given = give(inputs, images, degradations, config.seed)
        made = restore(pipeline, given, config.batch_size)
        enlarged = functional.interpolate(given.images, images.shape[-2:], mode="bicubic")
        enlarged = to_uint8(enlarged.expand(-1, images.shape[1], -1, -1))
        title = ", ".join(str(degradation) for degradation in degradations) or "the pairs of the data set"
        shown = {"original": images, "given": to_uint8(given.images), "made": made}
        yield _Comparison(title, enlarged, made, images, test, shown)


def _without_pairs(
    pipeline: ImageTranslationPipeline, config: EvaluateConfig, run: dict[str, Any], test: ImageData
) -> Iterator[_Comparison]:
    other = SecondKind(run, test, config.reference_split)
    seed_torch(derive_seed("degradation", config.seed), torch.device("cpu"))
    second = other.take(torch.arange(_count(config, other.data)), torch.device("cpu"))
    options = {"batch_size": config.batch_size, "output_type": "pt"}
    made = to_uint8(pipeline(second / 2 + 0.5, inverse=True, **options).images * 2 - 1)
    channels = test.images.shape[1]
    given = to_uint8(second)
    as_first = given.expand(-1, channels, -1, -1) if len(given[0]) <= channels else to_uint8(to_grey(second))
    wanted = test.images[: len(made)] if other.data.fingerprint == test.fingerprint else None
    shown = {"given": given, "made": made} | ({} if wanted is None else {"wanted": wanted})
    yield _Comparison("the second kind, made the first", as_first, made, wanted, other.data, shown)
    first = test.images[: _count(config, test)]
    there = pipeline(first.float() / 255, **options).images
    again = to_uint8(pipeline(there, inverse=True, **options).images * 2 - 1)
    shown = {"given": first, "made": to_uint8(there * 2 - 1), "back": again}
    yield _Comparison("the first kind, there and back", first, again, first, test, shown)
