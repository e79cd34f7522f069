"""`hfgen evaluate`: sample a model or load images, compute metrics, write the report."""

import contextlib
import dataclasses
import functools
import io
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from hfgen.config import ClassifierConfig
from hfgen.config.commands import EvaluateConfig
from hfgen.data.decoding import border_brightness, is_inverse
from hfgen.data.images import ImageData, load_images
from hfgen.data.sources import placed_folder, placed_source, public_name
from hfgen.evaluation.generated import GeneratedImages, generate, labels_like, load_generated, origin_of
from hfgen.evaluation.processes import is_shared, together
from hfgen.evaluation.real import (
    check_size,
    data_source_of,
    default_output,
    held_out_by,
    load_references,
    name_of,
    say_what_is_left_out,
    train_split_of,
    training_of,
    versions,
)
from hfgen.evaluation.report import PICTURES, RECORD, save_classifier_report, save_pictures, save_report
from hfgen.evaluation.restoration import evaluate_translation
from hfgen.figures.grids import save_arrays
from hfgen.judges.judge import WEIGHTS, Judge, judges_numbers, load_judge
from hfgen.judges.pretrained import Inception
from hfgen.judges.statistics import (
    KERNEL_SUBSET,
    KERNEL_SUBSETS,
    NEIGHBOURS,
    RealStatistics,
    accuracy_of,
    count_in,
    nearest,
    smallest_of_each_class,
)
from hfgen.metrics.frechet_distance.frechet_distance import frechet_distance_per_class
from hfgen.pipelines.loading import load, move
from hfgen.pipelines.pipeline_hfgen_image_translation import ImageTranslationPipeline
from hfgen.runs.folder import run_fields
from hfgen.sampling.sample import (
    check_sampling,
    default_sampler,
    image_shape_of,
    is_conditional,
    say_learnt_steps,
    with_time_steps,
)
from hfgen.tasks.classifier import ClassifierTask, load_test_images
from hfgen.training.run import train as run_training
from hfgen.utils.devices import find_placement
from hfgen.utils.errors import InterruptedTrainingError, Problems, UserError
from hfgen.utils.files import remove_leftovers
from hfgen.utils.progress import progress_bar
from hfgen.utils.seeds import derive_seed

DEFAULT_NUM_IMAGES = 10_000
SCORE_STEPS = 1500  # optimizer steps of the classifiers of the classification accuracy score
SHOWN_IMAGES = 100
SHOWN_NEIGHBOURS = 16


def evaluate(config: EvaluateConfig) -> Path:
    """Evaluate a model's images, given images or a classifier, and write the report; sample with all processes.

    Returns:
        The path of `evaluation.json`; `evaluation.md` and its figures are in the same folder.

    Raises:
        UserError: before sampling, if the model, data, feature extractors or number of images do not fit.
    """
    return together(functools.partial(_evaluate, config))


def _evaluate(config: EvaluateConfig) -> Path:
    source = Path(config.run_or_repo or "").expanduser()
    find_placement(config.device, config.dtype)
    if is_shared() and config.classification_accuracy_score:
        raise UserError(
            "the classification accuracy score trains in one process; evaluate without it first, then with it in one "
            "process, which reuses the images"
        )
    if config.run_or_repo and (source / "config.json").is_file() and (source / WEIGHTS).is_file():
        return _evaluate_classifier(config, source)
    loaded = None
    if config.images:
        loaded = load_images(placed_folder(config.images), channels=config.channels, cache_dir=config.cache_dir)
        if config.invert:
            loaded = dataclasses.replace(loaded, images=255 - loaded.images)
    pipeline = None
    if not loaded:
        pipeline = load(config.run_or_repo, revision=config.revision, trust_remote_code=config.trust_remote_code)
        if isinstance(pipeline, ImageTranslationPipeline):
            return evaluate_translation(pipeline, config)
    run, training = ({}, {}) if loaded else (run_fields(source), training_of(source))
    num_images = config.num_images or (len(loaded) if loaded else DEFAULT_NUM_IMAGES)
    check_given = functools.partial(_check_given, config, loaded, num_images) if loaded else None
    references = load_references(config, run, config.run_or_repo, num_images, check_given)
    if config.classification_accuracy_score and not references[0].extractor.label_names:
        raise UserError(
            "the classification accuracy score needs a judge, whose classes it uses; name one with --judge"
        )
    say_what_is_left_out(references, num_images)
    output = Path(config.output_dir) if config.output_dir else default_output(config.run_or_repo)
    if loaded:
        generated = _load_images(config, loaded, num_images, references[0])
    else:
        generated = _generate_images(config, pipeline, run, num_images, references[0], output)
    output.mkdir(parents=True, exist_ok=True)
    remove_leftovers(output)
    record = _measure(config, generated, references, run, training, output)
    if config.classification_accuracy_score:
        record["classification_accuracy_score"] = _classification_accuracy_score(generated, references[0])
        save_report(record, output)
    return output / RECORD


def _load_images(
    config: EvaluateConfig, loaded: ImageData, num_images: int, reference: RealStatistics
) -> GeneratedImages:
    expected, actual = (border_brightness(data.images) for data in (reference.test, loaded))
    if is_inverse(actual, expected):
        print(
            f"hfgen: the border of {config.images} is {'dark' if expected > 0.5 else 'bright'}, and that of "
            f"{reference.test.source} {'bright' if expected > 0.5 else 'dark'}; --invert inverts the images",
            file=sys.stderr,
        )
    name = _name_of_images(config)
    return load_generated(loaded, name, num_images, reference.extractor.label_names)


def _name_of_images(config: EvaluateConfig) -> str:
    return Path(config.images).name + (", inverted" if config.invert else "")


def _check_given(
    config: EvaluateConfig,
    loaded: ImageData,
    num_images: int,
    test: ImageData,
    train: ImageData,
    judges: list[Judge],
    problems: Problems,
) -> None:
    """Note why the given images cannot be evaluated."""
    with problems.gathered():
        check_size(loaded.images.shape[1:], config.images, test)
    if num_images > len(loaded):
        problems.add(f"num_images is {num_images}, but {_name_of_images(config)} has {len(loaded)} images")
    if judges and loaded.labels is not None:
        with problems.gathered():
            judges_numbers(loaded.label_names, _name_of_images(config), judges[0].label_names)
    if config.classification_accuracy_score and judges and any(d.labels is None for d in (loaded, train, test)):
        problems.add("the classification accuracy score needs labels of both the images and the data set")


def _generate_images(
    config: EvaluateConfig,
    pipeline: DiffusionPipeline,
    run: dict[str, Any],
    num_images: int,
    reference: RealStatistics,
    output: Path,
) -> GeneratedImages:
    conditional = is_conditional(pipeline)
    if config.classification_accuracy_score and not conditional:
        raise UserError(f"the classification accuracy score needs labels, but {config.run_or_repo} is unconditional")
    if config.classification_accuracy_score:
        reference.test.require_labels()
    sampler = with_time_steps(pipeline, default_sampler(pipeline, run) | config.given_sampler())
    say_learnt_steps(pipeline, sampler)
    class_labels = labels_like(reference.train, config.seed) if conditional else []
    check_sampling(pipeline, **sampler, class_labels=sorted(set(class_labels)))
    check_size(image_shape_of(pipeline), config.run_or_repo, reference.test)
    origin = origin_of(pipeline, name_of(config.run_or_repo))  # before its weights are rounded to another dtype
    move(pipeline, config.device, config.dtype)
    return generate(
        pipeline,
        config.run_or_repo,
        config.loading_options(),
        origin,
        sampler | {"seed": config.seed},
        num_images,
        config.batch_size,
        output / PICTURES,
        class_labels,
        reference.extractor.label_names,
    )


def _measure(
    config: EvaluateConfig,
    generated: GeneratedImages,
    references: list[RealStatistics],
    run: dict[str, Any],
    training: dict[str, Any],
    output: Path,
) -> dict[str, Any]:
    """Compute the metrics that need no further training or download, and save the report."""
    started = time.monotonic()
    test, train = references[0].test, references[0].train
    extractors = [reference.extractor for reference in references]
    record: dict[str, Any] = {
        "protocol": {
            "num_images": len(generated.images),
            "image_shape": list(generated.images.shape[1:]),
            **generated.protocol,
            "dataset": public_name(test.source),
            "reference_split": config.reference_split,
            "reference_images": len(test),
            "reference_sha256": test.fingerprint,
            "train_split": train_split_of(config, run),
            **{name: value for name, value in held_out_by(config, run, test.source).items() if value},
            "training_images": len(train),
            "training_sha256": train.fingerprint,
            "reference_images_in_training": references[0].test_images_in_training,
            "neighbours": NEIGHBOURS,
            "kernel_subsets": KERNEL_SUBSETS,
            "kernel_subset_size": min(KERNEL_SUBSET, len(generated.images), len(test)),
            "judges": {each.name: each.sha256 for each in extractors if each.label_names},
            "features": {each.name: each.facts() for each in extractors if not each.label_names},
            "device": str(extractors[0].device),
            "python": platform.python_version(),
            "versions": versions(),
        },
        "measures": {}, "floors": {}, "memorization": {}, "classes": {}, "conditional": {},
        "judge_accuracy": {}, "copies_of_training_images": count_in(train, generated.images),
        "copies_of_reference_images": count_in(test, generated.images),
    }  # fmt: skip
    for reference in progress_bar(references, desc="measuring", unit="feature space"):
        extractor = reference.extractor
        features, logits = extractor.extract(generated.images)
        record["measures"][extractor.name] = reference.measures(features)
        record["floors"][extractor.name] = reference.floors(len(features))
        distances, numbers = nearest(features, reference.features(train))
        if reference.is_unseen:
            record["memorization"][extractor.name] = reference.memorization(features, distances)
        if logits is not None:
            _measure_classes(record, reference, features, logits, generated.labels)
        if isinstance(extractor, Inception):
            sets = {"generated": features, "real": reference.features(test)}
            record["inception_score"] = {name: extractor.score(found) for name, found in sets.items()}
        if reference is references[0]:
            classes = torch.zeros(len(features), dtype=torch.long) if logits is None else logits.argmax(1)
            closest = smallest_of_each_class(distances, classes, SHOWN_NEIGHBOURS)
            pairs = generated.images[closest], train.images[numbers[closest]]
            names = [extractor.label_names[number] for number in classes[closest]] if extractor.label_names else []
            planes = features, reference.features(test)
    if training:
        record["training"] = training
    record["seconds"] = {
        "drawing_this_time": round(generated.seconds, 3),
        "images_this_time": generated.sampled,
        "measuring": round(time.monotonic() - started, 1),
    }
    save_pictures(record, generated.images[:SHOWN_IMAGES], pairs, names, planes, output)
    save_report(record, output)
    return record


def _measure_classes(
    record: dict[str, Any], reference: RealStatistics, features: Tensor, logits: Tensor, labels: Tensor | None
) -> None:
    """Add a judge's class frequencies, its accuracy on real images, and on generated ones with target labels."""
    name, label_names = reference.extractor.name, reference.extractor.label_names
    if reference.accuracy:
        record["judge_accuracy"][name] = reference.accuracy
    predictions = {"generated": logits.argmax(1), "real": reference.predicted(reference.test)}
    record["classes"][name] = {
        "label_names": label_names,
        "shares": {part: _frequencies(predicted, len(label_names)) for part, predicted in predictions.items()},
    }
    if labels is not None:
        record["conditional"][name] = _conditional(labels, features, logits, reference)


def _frequencies(predicted: Tensor, num_classes: int) -> list[float]:
    return (predicted.bincount(minlength=num_classes).double() / len(predicted)).tolist()


def _conditional(labels: Tensor, features: Tensor, logits: Tensor, reference: RealStatistics) -> dict[str, Any]:
    """Return class accuracy and per-class Fréchet distances of images with target labels."""
    classes = len(reference.extractor.label_names)
    results = accuracy_of(logits.argmax(1), labels, classes)
    if (real := reference.labels(reference.test)) is not None:
        results["frechet_distance_per_class"] = frechet_distance_per_class(
            features, reference.features(reference.test), labels, real, classes
        )
    return results


def _classification_accuracy_score(generated: GeneratedImages, reference: RealStatistics) -> dict[str, Any]:
    """Train one classifier on the images and one on as many real images; test both on the test images."""
    test, train, test_labels = reference.test, reference.train, reference.labels(reference.test)
    generator = torch.Generator().manual_seed(derive_seed("classification accuracy score"))
    chosen = torch.randperm(len(train), generator=generator)[: len(generated.images)]
    sources = {
        "generated": (generated.images, generated.labels),
        "real": (train.images[chosen], reference.labels(train)[chosen]),
    }
    results: dict[str, Any] = {"optimizer_steps": SCORE_STEPS}
    print(
        f"Training two classifiers of {SCORE_STEPS:,} steps for the classification accuracy score, on the generated "
        "images and on as many real ones",
        file=sys.stderr,
    )
    label_names = np.array(reference.extractor.label_names)
    with tempfile.TemporaryDirectory() as folder:
        save_arrays(test.images, Path(folder, "test.npz"), labels=test_labels.numpy(), label_names=label_names)
        for name, (images, labels) in sources.items():
            file = Path(folder, f"{name}.npz")
            save_arrays(images, file, labels=labels.numpy(), label_names=label_names)
            fields = ClassifierConfig(
                dataset_name=str(file),
                test_dataset_name=str(Path(folder, "test.npz")),
                test_split="train",
                output_dir=str(Path(folder, name)),
                max_train_steps=SCORE_STEPS,
                lr_warmup_steps=SCORE_STEPS // 10,
                checkpointing_steps=SCORE_STEPS,
                cache_dir=folder,
            )
            try:
                with contextlib.redirect_stdout(io.StringIO()):  # it names temporary folders
                    judge = load_judge(str(run_training(fields, ClassifierTask)))
            except InterruptedTrainingError as error:
                told = "stopped; the same command uses the sampled images again"
                raise InterruptedTrainingError(told, error.signal_number) from error
            predicted = judge.extract(test.images)[1].argmax(1)
            results[name] = {
                "training_images": len(images),
                **accuracy_of(predicted, test_labels, len(label_names)),
            }
    return results


def _evaluate_classifier(config: EvaluateConfig, source: Path) -> Path:
    """Measure a classifier's accuracy on its test images."""
    if config.revision:
        raise UserError(f"{source} is a folder, and revision ({config.revision}) needs a Hub id")
    others = config.judge or config.features or config.inception
    if others or config.num_images or config.classification_accuracy_score:
        raise UserError(f"{config.run_or_repo} is a classifier; only its accuracy on all test images is measured")
    if config.dtype not in ("auto", "float32"):
        raise UserError(f"{config.run_or_repo} is a classifier, which computes in float32; omit dtype")
    judge = load_judge(str(source), config.device)
    run = ClassifierConfig(**(run_fields(source) | {"cache_dir": config.cache_dir}))
    if config.validation_fraction is not None or config.test_fraction is not None:
        raise UserError("a classifier is tested on the images held out in its training; omit the fractions")
    own = data_source_of(run.to_dict())
    if config.dataset_name:
        named = placed_source(config.dataset_name)
        run.test_dataset_name, run.test_split = None if named == own else named, config.reference_split
    test = load_test_images(run, own)
    test.require_labels()
    labels = judges_numbers(test.label_names, test.source, judge.label_names)[test.labels]
    predicted = judge.extract(test.images)[1].argmax(1)
    record = {
        "protocol": {
            "model": judge.name,
            "pipeline": type(judge.model).__name__,
            "weights_sha256": judge.sha256,
            "num_parameters": judge.model.num_parameters(),
            "num_features": judge.num_features,
            "dataset": public_name(test.source),
            "reference_split": run.test_split,
            "reference_images": len(test),
            "reference_sha256": test.fingerprint,
            "seed": run.seed,
            "device": str(judge.model.device),
            "versions": versions(),
        },
        "label_names": judge.label_names,
        **accuracy_of(predicted, labels, len(judge.label_names)),
    }
    output = Path(config.output_dir) if config.output_dir else source
    output.mkdir(parents=True, exist_ok=True)
    return save_classifier_report(record, output)
