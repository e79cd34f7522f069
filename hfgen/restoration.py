"""How well an image-to-image model makes test images of what became of them: PSNR, SSIM, the class that is seen."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hfgen.data import ImageData, public_name
from hfgen.degradations import Degradation, Degraded
from hfgen.errors import UserError
from hfgen.figures import counterparts_picture, save_picture
from hfgen.measures import accuracy_of
from hfgen.metrics.image_similarity.image_similarity import image_similarity
from hfgen.metrics.judge import Judge, load_judge, shipped_judges_of
from hfgen.options import EvaluateConfig
from hfgen.pairs import Inputs
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
    """Measure what a model makes of degraded test images, and write the report.

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
    count = config.num_images or len(test)
    if count > len(test):
        raise UserError(f"num_images is {count}, but {test.source} has {len(test)} images")
    inputs = Inputs(run, test, config.reference_split)
    judges = [load_judge(name) for name in config.judge or shipped_judges_of(dataset)]
    if not config.judge:
        judges = [judge for judge in judges if judge.image_shape == tuple(test.images.shape[1:])]
    for judge in judges:
        check_size(judge.image_shape, f"the judge {judge.name}", test)
    if test.labels is None:
        judges = []
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    output = Path(config.output_dir) if config.output_dir else default_output(config.run_or_repo)
    (output / PICTURES).mkdir(parents=True, exist_ok=True)
    images = test.images[:count]
    record: dict[str, Any] = {
        "protocol": {
            "model": name_of(config.run_or_repo),
            "pipeline": type(pipeline).__name__,
            "weights_sha256": sha256_of(pipeline.generator),
            "degradation": [str(degradation) for degradation in inputs.degradations],
            "dataset": public_name(test.source),
            "reference_split": config.reference_split,
            "reference_images": count,
            "reference_sha256": test.fingerprint,
            "seed": config.seed,
            "judges": {judge.name: judge.sha256 for judge in judges},
            "versions": versions(),
        },
        "judge_accuracy": {judge.name: class_seen(images, test, judge) for judge in judges},
        "restoration": [],
        "training": training_of(source),
    }
    for number, degradations in enumerate(settings(inputs.degradations)):
        given = give(inputs, images, degradations, config.seed)
        made = restore(pipeline, given, config.batch_size)
        enlarged = functional.interpolate(given.images, images.shape[-2:], mode="bicubic")
        kinds = {"given": to_uint8(enlarged.expand(-1, images.shape[1], -1, -1)), "made": made}
        found = {
            kind: {**similarity(shown, images), "class_seen": {j.name: class_seen(shown, test, j) for j in judges}}
            for kind, shown in kinds.items()
        }
        title = ", ".join(str(degradation) for degradation in degradations) or "the pairs of the data set"
        record["restoration"].append({"title": title, **found})
        parts = {"original": images, "given": to_uint8(given.images), "made": made}
        picture = counterparts_picture({name: part[:SHOWN] for name, part in parts.items()})
        save_picture(picture, output / PICTURES / f"restored-{number}.png")
    return save_restoration_report(record, output)
