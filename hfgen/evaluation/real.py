"""Real data and feature extractors (judges) for an evaluation."""

import itertools
import math
import shlex
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hfgen.config import ClassifierConfig
from hfgen.config.commands import MeasuringOptions, TestingOptions
from hfgen.data.images import ImageData, cache_folder, load_images
from hfgen.data.sources import SHORT_NAMES, placed_folder, placed_source
from hfgen.evaluation.verdict import weak_judges
from hfgen.judges.features import FeatureExtractor
from hfgen.judges.judge import Judge, judges_numbers, load_judge, shipped_judges_of
from hfgen.judges.pretrained import load_features, load_inception_extractor
from hfgen.judges.statistics import NEIGHBOURS, RealStatistics
from hfgen.runs.folder import RUN_FILE, is_checkpoint
from hfgen.runs.record import read_training
from hfgen.sampling.sample import size_of
from hfgen.utils.errors import Problems, UserError
from hfgen.utils.untrusted import own_file

REPORTED_TRAINING = ["device", "threads", "num_processes", "mixed_precision", "images_seen", "train_seconds"]
JUDGES_WIDTHS = (128, 64, 32, 16, 8)  # feature dimensions of a judge; the first is the default
JUDGES_STEPS = 300  # optimizer steps that the training of a judge needs at least
SUGGESTED_FEATURES = "facebook/dinov2-small"  # 384 features, 88 MB
REPORTED_PACKAGES = ["hfgen", "torch", "diffusers", "transformers", "torchmetrics"]


def load_references(
    options: MeasuringOptions,
    run: dict[str, Any],
    owner: str,
    num_images: int,
    check: Callable[[ImageData, ImageData, list[Judge], Problems], None] | None = None,
) -> list[RealStatistics]:
    """Load the real images and the feature extractors: those that are named, and the shipped judges that fit.

    Args:
        options: Data set, judges and other features, as far as they are set.
        run: Configuration of the model's run, or empty; it supplies what the options leave open.
        owner: The model, as the user named it.
        num_images: Number of generated images.
        check: Notes further problems, given the test and training images and the judges.

    Returns:
        The statistics of the real images for each feature extractor, judges first.

    Raises:
        UserError: if metrics cannot be computed with them; it has all the problems that are found at once.
    """
    dataset = options.dataset_name or data_source_of(run)
    if dataset is None:
        raise UserError(f"{owner} does not record its training data; set --dataset_name")
    problems = Problems()
    named: list[Judge] = []
    pretrained: list[FeatureExtractor] = []
    real: list[ImageData] = []
    for name in options.judge:
        with problems.gathered():
            named.append(load_judge(name, options.device))
    for name in options.features:
        with problems.gathered():
            pretrained.append(load_features(name, options.device))
    if options.inception:
        with problems.gathered():
            pretrained.append(load_inception_extractor(options.device))
    for split in (options.reference_split, train_split_of(options, run)):
        with problems.gathered():
            real.append(load_real(options, run, dataset, split))
    problems.raise_any()
    test, train = real
    judges = named or judges_of(options, dataset, test)
    if not judges and not pretrained:
        known = ", ".join(["digits", *SHORT_NAMES])
        shipped = f" of {size_of(test.images.shape[1:])}" if shipped_judges_of(dataset) else f", only for {known}"
        problems.add(
            f"hfgen ships no judge for {dataset}{shipped}. "
            + _how_to_measure(options, run, dataset, [test, train], num_images)
        )
    _check(num_images, judges, pretrained, test, train, problems)
    if check:
        check(test, train, judges, problems)
    problems.raise_any()
    cache = cache_folder(options.cache_dir)
    references = [RealStatistics(extractor, test, train, cache) for extractor in (*judges, *pretrained)]
    warn_of_weak_judges({each.extractor.name: each.accuracy for each in references if each.accuracy})
    return references


def say_what_is_left_out(references: list[RealStatistics], num_images: int) -> None:
    """Print which metrics of an evaluation cannot be computed with its feature extractors and images."""
    if not references[0].extractor.label_names:
        print(
            "hfgen: there is no judge (classifier of these images), so class frequencies and class accuracy are not "
            "measured; --judge names one",
            file=sys.stderr,
        )
    for each in references:
        fewest, needed = min(num_images, len(each.test)), each.extractor.num_features
        if fewest <= needed:
            print(
                f"hfgen: the Fréchet distance in the {needed:,} features of {each.extractor.name} needs more than "
                f"{needed:,} generated and real images each; with {num_images:,} and {len(each.test):,} it is left "
                "out, and the other metrics are computed",
                file=sys.stderr,
            )


def _how_to_measure(
    options: MeasuringOptions, run: dict[str, Any], dataset: str, real: list[ImageData], num_images: int
) -> str:
    """Return the command that trains a judge on a model's evaluation data, or the flag that needs no judge."""
    if any(data.labels is None for data in real):
        return (
            f"Training one needs class labels, but {dataset} has none. Repeat this command with "
            f"--features {SUGGESTED_FEATURES}"
        )
    fewest = min(num_images, *map(len, real))
    widths = [width for width in JUDGES_WIDTHS if width < fewest]
    if not widths:
        return (
            f"An evaluation needs more than {JUDGES_WIDTHS[-1]} generated, training and test images each, not {fewest}"
        )
    own = placed_source(dataset) == data_source_of(run)
    flags = {"train_data_dir" if own and run.get("train_data_dir") else "dataset_name": dataset}
    flags |= {"train_split": train_split_of(options, run), "test_split": options.reference_split}
    flags |= {name: run.get(name) for name in ("image_column", "label_column") if own}
    flags |= {name: getattr(options, name) or run.get(name) for name in ("resolution", "channels")}
    flags |= {"on_bad_image": run.get("on_bad_image")}
    if ClassifierConfig.num_train_epochs * math.ceil(len(real[1]) / ClassifierConfig.train_batch_size) < JUDGES_STEPS:
        flags["max_train_steps"] = JUDGES_STEPS
    flags |= held_out_by(options, run, dataset)
    usual = {"train_split": "train", "test_split": "test", "on_bad_image": "error"}
    needed = {name: str(value) for name, value in flags.items() if value and value != usual.get(name)}
    words = [word for name, value in needed.items() for word in (f"--{name}", value)]
    if widths[0] < JUDGES_WIDTHS[0]:  # the covariance needs more images than features
        words += ["--hidden_sizes", *3 * [str(widths[0])]]
    names = ("runs/judge" + (f"-{number}" if number > 1 else "") for number in itertools.count(1))
    output = next(name for name in names if not Path(name).exists())
    command = shlex.join(["hfgen", "train", "classifier", *words, "--output_dir", output])
    return f"Train one: {command}. Then repeat this command with --judge {output}"


def warn_of_weak_judges(accuracies: dict[str, dict[str, Any]]) -> None:
    """Warn of judges with low accuracy on real images, given the results of `accuracy_of`."""
    for text in weak_judges(accuracies):
        print(f"hfgen: warning: {text}", file=sys.stderr)


def judges_of(options: TestingOptions, dataset: str, test: ImageData) -> list[Judge]:
    """Load the judges that were named, or the shipped ones for a data set that fit the image size.

    Raises:
        UserError: if one that was named does not fit.
    """
    if not options.judge:
        shipped = (load_judge(name, options.device) for name in shipped_judges_of(dataset))
        return [judge for judge in shipped if judge.image_shape == tuple(test.images.shape[1:])]
    judges = [load_judge(name, options.device) for name in options.judge]
    for judge in judges:
        check_size(judge.image_shape, f"the judge {judge.name}", test)
    return judges


def train_split_of(options: TestingOptions, run: dict[str, Any]) -> str:
    """Return the split that a model was trained on."""
    return getattr(options, "train_split", None) or run.get("train_split", "train")


def training_of(run: Path) -> dict[str, Any]:
    """Return the training facts for a report from the record of a run; empty without one."""
    if not (run / RUN_FILE).is_file():
        return {}
    training = read_training(run / RUN_FILE)
    problems = {"problems": training["problems"]} if training["problems"] else {}
    return {name: training[name] for name in REPORTED_TRAINING} | problems


def versions() -> dict[str, str]:
    """Return the versions of the packages that affect a report."""
    return {name: version(name) for name in REPORTED_PACKAGES}


def name_of(run_or_repo: str) -> str:
    """Name a run, a checkpoint with its run, or a model on the Hub."""
    source = Path(run_or_repo).expanduser()
    if not source.is_dir():
        return run_or_repo
    folder = source.resolve()
    return f"{folder.parents[1].name}-{folder.name}" if is_checkpoint(source) else folder.name


def default_output(run_or_repo: str) -> Path:
    """Return the folder for reports on a model: its run, or one in `evaluations` for what should stay as it is."""
    source = Path(run_or_repo).expanduser()
    if not source.is_dir() or is_checkpoint(source):
        return Path("evaluations", name_of(run_or_repo).replace("/", "--"))
    for name in ("analysis", "comparison", "evaluation"):
        own_file(source, name)  # what a link leads to would be written over
    return source


def data_source_of(run: dict[str, Any]) -> str | None:
    """Return the training data of a run, in the form that `load_images` takes."""
    folder = run.get("train_data_dir")
    return placed_folder(folder) if folder else run.get("dataset_name")


def load_real(options: TestingOptions, run: dict[str, Any], dataset: str, split: str) -> ImageData:
    """Load a split of real images with the reading options of a run.

    Raises:
        UserError: if there are none.
    """
    own = placed_source(dataset) == data_source_of(run)
    held_out = held_out_by(options, run, dataset)
    try:
        return load_images(
            dataset,
            split=split,
            image_column=run.get("image_column") if own else None,
            label_column=run.get("label_column") if own else None,
            resolution=options.resolution or run.get("resolution"),
            channels=options.channels or run.get("channels"),
            max_samples=run.get("max_train_samples") if own and split == run.get("train_split") else None,
            on_bad_image=run.get("on_bad_image", "error"),
            cache_dir=options.cache_dir,
            held_out_of=train_split_of(options, run if own else {}),
            **held_out,
        )
    except UserError as error:
        if "cannot open split" in str(error):
            raise UserError(
                f"{str(error).rstrip('.')}. Train with --test_fraction 0.2 to hold out test images, "
                "or set --reference_split or --dataset_name"
            ) from error
        raise


def held_out_by(options: TestingOptions, run: dict[str, Any], dataset: str) -> dict[str, float]:
    """Return the held-out fractions of a data set: those of the model's training on it, else those of the options.

    Raises:
        UserError: if the options contradict the training, so that training images would count as held out.
    """
    own = placed_source(dataset) == data_source_of(run)
    fractions = {}
    for name in ("validation_fraction", "test_fraction"):
        trained, asked = run.get(name, 0.0) if own else 0.0, getattr(options, name)
        if own and asked not in (None, trained):
            raise UserError(
                f"the model was trained with {name} {trained:g}; {asked:g} would mix training and held-out images"
            )
        fractions[name] = trained if asked is None else asked
    return fractions


def _check(
    num_images: int,
    judges: list[Judge],
    pretrained: list[FeatureExtractor],
    test: ImageData,
    train: ImageData,
    problems: Problems,
) -> None:
    """Note why metrics cannot be computed with these feature extractors and images.

    A judge has to have fewer features than there are images, since a narrower one can be trained.
    """
    names = [extractor.name for extractor in (*judges, *pretrained)]
    if len(set(names)) < len(names):
        problems.add(f"judges and features must differ in the names of their folders: {', '.join(names)}")
    needed = max([NEIGHBOURS, *(judge.num_features for judge in judges)])
    counts = {"images": num_images, "reference images": len(test), "training images": len(train)}
    if few := [f"{what}: {count}" for what, count in counts.items() if count <= needed]:
        metrics = f"the Fréchet distance in the {needed} features of these judges" if judges else "an evaluation"
        problems.add(f"{metrics} needs more than {needed} images; {', '.join(few)}")
    for judge in judges:
        if tuple(test.images.shape[1:]) != judge.image_shape:
            problems.add(
                f"the judge {judge.name} was trained on images of {size_of(judge.image_shape)}, but {test.source} has "
                f"{size_of(test.images.shape[1:])}; use another --judge, or set --resolution and --channels"
            )
        if judge.label_names != judges[0].label_names:
            problems.add(f"the judges {judges[0].name} and {judge.name} have different classes")
    for data in (test, train):
        if judges and data.labels is not None:
            with problems.gathered():
                judges_numbers(data.label_names, data.source, judges[0].label_names)
    with problems.gathered():
        check_size(train.images.shape[1:], f"the training split of {train.source}", test)


def check_size(shape: tuple[int, int, int], what: str, test: ImageData) -> None:
    """Raise UserError if a shape (C, H, W) is not that of the real images."""
    if tuple(shape) != tuple(test.images.shape[1:]):
        raise UserError(
            f"{what} has {size_of(shape)}, and {test.source} {size_of(test.images.shape[1:])}; convert the "
            "data set with --resolution and --channels"
        )
