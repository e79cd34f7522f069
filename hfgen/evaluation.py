"""`hfgen evaluate`: draw images from a model or take them from anywhere, measure them, write one honest report."""

import hashlib
import json
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from huggingface_hub import constants
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from hfgen import hub
from hfgen.config import ClassifierConfig, EvaluateConfig
from hfgen.data import SHORT_NAMES, ImageData, load_images
from hfgen.errors import UserError
from hfgen.figures import save_arrays
from hfgen.files import complete_or_absent, remove_leftovers
from hfgen.measures import KERNEL_SUBSET, KERNEL_SUBSETS, NEIGHBOURS, Reference, nearest
from hfgen.metrics.class_accuracy.class_accuracy import class_accuracy
from hfgen.metrics.frechet_distance.frechet_distance import frechet_distance_per_class
from hfgen.metrics.inception_scores.inception_scores import inception_scores, require_inception
from hfgen.metrics.judge import WEIGHTS, Judge, load_judge, shipped_judges
from hfgen.records import RUN_FILE
from hfgen.report import save_classifier_report, save_report
from hfgen.run import train as run_training
from hfgen.sampling import sample
from hfgen.seeds import derive_seed
from hfgen.tasks.classifier import ClassifierTask

DEFAULT_NUM_IMAGES = 10_000
SCORE_STEPS = 1500  # optimizer steps of the classifiers of the classification accuracy score
SHOWN_NEIGHBOURS = 16
RECORDED_TRAINING = ["device", "threads", "num_processes", "mixed_precision", "images_seen", "train_seconds"]
RECORDED_PACKAGES = ["hfgen", "torch", "diffusers", "transformers", "torchmetrics"]


@dataclass
class Subject:
    """What is measured: images, and where they are from.

    Attributes:
        images: uint8 (N, C, H, W).
        labels: The classes that they are meant to show, int64 (N,), or None.
        protocol: How they came about, for the report.
        seconds: What drawing them took this time.
    """

    images: Tensor
    labels: Tensor | None
    protocol: dict[str, Any]
    seconds: float


def evaluate(config: EvaluateConfig) -> Path:
    """Measure a model's images, or a classifier's accuracy, and write the report.

    Returns:
        The path of `evaluation.json`; `evaluation.md` and its pictures are beside it.

    Raises:
        UserError: before any image is drawn, if the model, the data, the judges or the number of images do not allow
            the measuring.
    """
    run = _run_fields(config)
    output = Path(config.output_dir or _default_output(config.run_or_repo))
    output.mkdir(parents=True, exist_ok=True)
    remove_leftovers(output)
    if "architecture" in run:
        return _evaluate_classifier(config, run, output)
    given = _given_images(config) if config.images else None
    dataset = config.dataset_name or run.get("dataset_name") or run.get("train_data_dir")
    if dataset is None:
        raise UserError(f"{config.run_or_repo} does not say what it was trained on; name it with --dataset_name")
    test, train = (
        _load_real(config, run, dataset, split)
        for split in (config.reference_split, config.train_split or run.get("train_split", "train"))
    )
    if config.inception:
        _require_inception()
    judges = [load_judge(name) for name in config.judge or _judges_of(dataset)]
    num_images = config.num_images or (len(given) if given else DEFAULT_NUM_IMAGES)
    _check_number(num_images, judges, test, train)
    for judge in judges:
        _check_fit(judge, test)
    if config.classification_accuracy_score:
        if given is None or given.labels is None:
            raise UserError("the classification accuracy score needs images with labels; these have none")
        test.require_labels()
    if given:
        subject = _take_images(config, given, num_images, test)
    else:
        subject = _draw_images(config, run, num_images, test, output)
    return _measure(config, subject, judges, test, train, output)


def _measure(
    config: EvaluateConfig, subject: Subject, judges: list[Judge], test: ImageData, train: ImageData, output: Path
) -> Path:
    started = time.monotonic()
    cache = Path(config.cache_dir or Path(constants.HF_HOME, "hfgen")).expanduser()
    same_split = test.fingerprint == train.fingerprint
    record: dict[str, Any] = {
        "protocol": {
            "num_images": len(subject.images),
            "image_shape": list(subject.images.shape[1:]),
            **subject.protocol,
            "dataset": SHORT_NAMES.get(test.source, Path(test.source).name),
            "reference_split": config.reference_split,
            "reference_images": len(test),
            "training_images": len(train),
            "neighbours": NEIGHBOURS,
            "kernel_subsets": KERNEL_SUBSETS,
            "kernel_subset_size": min(KERNEL_SUBSET, len(subject.images), len(test)),
            "judges": {judge.name: judge.sha256 for judge in judges},
            "python": platform.python_version(),
            "versions": {name: version(name) for name in RECORDED_PACKAGES},
        },
        "measures": {}, "floors": {}, "memorization": {}, "classes": {},
    }  # fmt: skip
    pictures: dict[str, Any] = {"images": subject.images[:100]}
    if subject.labels is not None:
        record["conditional"] = {}
    for judge in tqdm(judges, desc="measuring", unit="judge", disable=None):
        reference = Reference(judge, test, train, cache)
        features, logits = judge.look_at(subject.images)
        record["measures"][judge.name] = reference.measures_with_deviations(features)
        record["floors"][judge.name] = reference.floors(len(features))
        if not same_split:
            record["memorization"][judge.name] = reference.memorization(features)
        shares = {
            "generated": _shares(logits.argmax(1), judge),
            "real": _shares(reference.predicted(test), judge),
        }
        record["classes"][judge.name] = {"label_names": judge.label_names, "shares": shares}
        if subject.labels is not None:
            record["conditional"][judge.name] = _conditional(subject.labels, features, logits, reference)
        if judge is judges[0]:
            distances, numbers = nearest(features, reference.features(train))
            closest = distances.argsort()[:SHOWN_NEIGHBOURS]
            pictures["closest"] = subject.images[closest]
            pictures["neighbours"] = train.images[numbers[closest]]
            pictures["features"] = features, reference.features(test)
    run_file = Path(config.run_or_repo or "", RUN_FILE)
    if config.run_or_repo and run_file.is_file():
        run = json.loads(run_file.read_text())
        record["training"] = {name: run[name] for name in RECORDED_TRAINING}
    record["seconds"] = {
        "drawing": round(subject.seconds, 1),
        "measuring": round(time.monotonic() - started, 1),
    }
    if config.inception:
        subset_size = min(KERNEL_SUBSET, len(subject.images), len(test))
        record["inception"] = inception_scores(subject.images, test.images, subset_size)
    if config.classification_accuracy_score:
        record["classification_accuracy_score"] = _classification_accuracy_score(config, subject, test, train)
    return save_report(record, pictures, output)


def _run_fields(config: EvaluateConfig) -> dict[str, Any]:
    """Return the configuration that a run keeps of itself, or nothing if it is no run."""
    file = Path(config.run_or_repo or "").expanduser() / "config.yaml"
    return yaml.safe_load(file.read_text()) if config.run_or_repo and file.is_file() else {}


def _default_output(run_or_repo: str) -> Path:
    folder = Path(run_or_repo).expanduser()
    return folder if folder.is_dir() else Path("evaluations", run_or_repo.replace("/", "--"))


def _load_real(config: EvaluateConfig, run: dict[str, Any], dataset: str, split: str) -> ImageData:
    own = dataset in (run.get("dataset_name"), run.get("train_data_dir"))
    try:
        return load_images(
            dataset,
            split=split,
            image_column=run.get("image_column") if own else None,
            label_column=run.get("label_column") if own else None,
            resolution=config.resolution or run.get("resolution"),
            channels=config.channels or run.get("channels"),
            on_bad_image=run.get("on_bad_image", "error"),
            cache_dir=config.cache_dir,
        )
    except UserError as error:
        if split == config.reference_split:
            raise UserError(f"{error}. Name the split to compare with by --reference_split") from error
        raise


def _judges_of(dataset: str) -> list[str]:
    if dataset in SHORT_NAMES.values():
        dataset = next(short for short, name in SHORT_NAMES.items() if name == dataset)
    if dataset not in SHORT_NAMES:
        raise UserError(
            f"hfgen ships no judge of {dataset}, but of {', '.join(SHORT_NAMES)}. Train one, hfgen train classifier "
            f"--dataset_name {dataset}, and name its run with --judge"
        )
    return shipped_judges(dataset)


def _check_number(num_images: int, judges: list[Judge], test: ImageData, train: ImageData) -> None:
    needed = max(judge.num_features for judge in judges)
    for number, what in (
        (num_images, "images"),
        (len(test), "reference images"),
        (len(train) // 2, "half of the training images"),
    ):
        if number <= needed:
            raise UserError(
                f"the Fréchet distance in the {needed} features of these judges needs more than {needed} images; "
                f"{what}: {number}"
            )


def _check_fit(judge: Judge, test: ImageData) -> None:
    channels, height, width = test.images.shape[1:]
    expected = (judge.model.config.num_channels, *judge.size)
    if (channels, 2 * height, 2 * width) != expected:
        raise UserError(
            f"the judge {judge.name} knows images of {_size((expected[0], expected[1] // 2, expected[2] // 2))}, and "
            f"{test.source} has {_size((channels, height, width))}; name another --judge, or give --resolution and "
            "--channels"
        )


def _size(shape: tuple[int, int, int]) -> str:
    return f"{shape[2]}×{shape[1]} pixels in {shape[0]} channel{'s' if shape[0] > 1 else ''}"


def _given_images(config: EvaluateConfig) -> ImageData:
    path = Path(config.images).expanduser()
    if not path.is_dir() and not (path.is_file() and path.suffix == ".npz"):
        raise UserError(f"there is no folder and no .npz file {config.images} (images)")
    return load_images(str(path.absolute()), channels=config.channels, cache_dir=config.cache_dir)


def _take_images(config: EvaluateConfig, given: ImageData, num_images: int, test: ImageData) -> Subject:
    if num_images > len(given):
        raise UserError(f"num_images is {num_images}, but {config.images} has {len(given)} images")
    if given.images.shape[1:] != test.images.shape[1:]:
        raise UserError(
            f"{config.images} has {_size(given.images.shape[1:])}, and {test.source} {_size(test.images.shape[1:])}; "
            "bring the data set to the images' size and channels with --resolution and --channels"
        )
    labels = None if given.labels is None else given.labels[:num_images]
    protocol = {"images": Path(config.images).name, "images_sha256": given.fingerprint}
    return Subject(given.images[:num_images], labels, protocol, 0.0)


def _draw_images(
    config: EvaluateConfig, run: dict[str, Any], num_images: int, test: ImageData, output: Path
) -> Subject:
    """Draw images, or the rest of them where an evaluation was interrupted or took fewer."""
    started = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = hub.load(config.run_or_repo).to(device)
    sampler = {
        "scheduler": config.scheduler or run.get("scheduler", "unipc"),
        "num_inference_steps": config.num_inference_steps or run.get("num_inference_steps", 20),
        "seed": config.seed,
    }
    weights = hashlib.sha256(
        save({k: v.cpu().contiguous() for k, v in pipeline.unet.state_dict().items()})
    ).hexdigest()
    key = hashlib.sha256(json.dumps([sampler, weights]).encode()).hexdigest()[:12]
    folder = output / "evaluation" / f"images-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    drawn = list(_drawn_before(folder))
    count = sum(map(len, drawn))
    with tqdm(total=num_images, initial=min(count, num_images), desc="drawing", unit="image", disable=None) as bar:
        for (images,) in sample(
            pipeline,
            num_images=max(0, num_images - count),
            batch_size=config.batch_size,
            first_image=count,
            **sampler,
        ):
            if images.shape[1:] != test.images.shape[1:]:
                raise UserError(
                    f"{config.run_or_repo} draws {_size(images.shape[1:])}, and {test.source} has "
                    f"{_size(test.images.shape[1:])}; give --resolution and --channels"
                )
            with complete_or_absent(folder / f"{count:06d}.npy") as temporary, open(temporary, "wb") as file:
                np.save(file, images.numpy())
            drawn.append(images)
            count += len(images)
            bar.update(len(images))
    protocol = {
        "model": Path(config.run_or_repo).name,
        "pipeline": type(pipeline).__name__,
        "weights_sha256": weights,
        **sampler,
        "quantisation": "rounded to 8 bits",
    }
    return Subject(torch.cat(drawn)[:num_images], None, protocol, time.monotonic() - started)


def _drawn_before(folder: Path) -> Iterator[Tensor]:
    """Read the images that are there without a gap from the first; each file is named by its first image."""
    count = 0
    while (path := folder / f"{count:06d}.npy").exists():
        images = torch.from_numpy(np.load(path))
        yield images
        count += len(images)


def _shares(predicted: Tensor, judge: Judge) -> list[float]:
    return (predicted.bincount(minlength=len(judge.label_names)).double() / len(predicted)).tolist()


def _conditional(labels: Tensor, features: Tensor, logits: Tensor, reference: Reference) -> dict[str, Any]:
    """Measure how well images show the classes that they are meant to."""
    names = reference.judge.label_names
    if labels.max() >= len(names):
        raise UserError(
            f"the images have labels up to {labels.max()}, and the judge knows classes up to {len(names) - 1}"
        )
    accuracy, per_class = class_accuracy(logits.argmax(1), labels, len(names))
    results: dict[str, Any] = {"accuracy": accuracy, "accuracy_per_class": per_class}
    try:
        results["frechet_distance_per_class"] = frechet_distance_per_class(
            features, reference.features(reference.test), labels, reference.test.require_labels()
        )
    except ValueError as error:
        results["frechet_distance_per_class"] = None
        results["why_no_frechet_distance_per_class"] = str(error)
    return results


def _require_inception() -> None:
    try:
        require_inception()
    except ModuleNotFoundError as error:
        raise UserError("--inception needs the package torch-fidelity: pip install torch-fidelity") from error
    except OSError as error:
        raise UserError(f"--inception needs weights that could not be downloaded ({error})") from error


def _classification_accuracy_score(
    config: EvaluateConfig, subject: Subject, test: ImageData, train: ImageData
) -> dict[str, Any]:
    """Train a classifier on the images and the same on as many real ones; test both on the test images."""
    generator = torch.Generator().manual_seed(derive_seed("classification accuracy score"))
    chosen = torch.randperm(len(train), generator=generator)[: len(subject.images)]
    sources = {
        "generated": (subject.images, subject.labels),
        "real": (train.images[chosen], train.require_labels()[chosen]),
    }
    results: dict[str, Any] = {"optimizer_steps": SCORE_STEPS, "training_images": len(chosen)}
    names = np.array(train.label_names)
    with tempfile.TemporaryDirectory() as folder:
        save_arrays(test.images, Path(folder, "test.npz"), labels=test.require_labels().numpy(), label_names=names)
        for kind, (images, labels) in sources.items():
            file = Path(folder, f"{kind}.npz")
            save_arrays(images, file, labels=labels.numpy(), label_names=names)
            fields = ClassifierConfig(
                dataset_name=str(file),
                test_dataset_name=str(Path(folder, "test.npz")),
                test_split="train",
                output_dir=str(Path(folder, kind)),
                max_train_steps=SCORE_STEPS,
                lr_warmup_steps=SCORE_STEPS // 10,
                checkpointing_steps=SCORE_STEPS,
                cache_dir=folder,
            )
            judge = load_judge(str(run_training(fields, ClassifierTask)))
            predicted = judge.look_at(test.images)[1].argmax(1)
            accuracy, per_class = class_accuracy(predicted, test.require_labels(), len(names))
            results[kind] = {"accuracy": accuracy, "accuracy_per_class": per_class}
    return results


def _evaluate_classifier(config: EvaluateConfig, run: dict[str, Any], output: Path) -> Path:
    """Measure a classifier's accuracy on its test images."""
    judge = load_judge(config.run_or_repo)
    dataset = run.get("test_dataset_name") or run["dataset_name"] or run["train_data_dir"]
    test = _load_real(config, run, dataset, run["test_split"])
    predicted = judge.look_at(test.images)[1].argmax(1)
    accuracy, per_class = class_accuracy(predicted, test.require_labels(), len(judge.label_names))
    record = {
        "protocol": {
            "model": judge.name,
            "pipeline": type(judge.model).__name__,
            "weights_sha256": judge.sha256,
            "num_parameters": judge.model.num_parameters(),
            "num_features": judge.num_features,
            "bytes": (Path(config.run_or_repo) / WEIGHTS).stat().st_size,
            "dataset": SHORT_NAMES.get(dataset, Path(dataset).name),
            "split": run["test_split"],
            "num_images": len(test),
            "data_sha256": test.fingerprint,
            "seed": run["seed"],
            "versions": {name: version(name) for name in RECORDED_PACKAGES},
        },
        "label_names": judge.label_names,
        "accuracy": accuracy,
        "accuracy_per_class": per_class,
    }
    return save_classifier_report(record, output)
