"""What a model's images are compared with: the real images that it was trained on and others, and the judges."""

import itertools
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hfgen.config.commands import MeasuringOptions, TestingOptions
from hfgen.data.images import ImageData, cache_folder, load_images
from hfgen.data.sources import SHORT_NAMES, placed_folder, placed_source
from hfgen.evaluation.generated import size_of
from hfgen.evaluation.report import weak_judges
from hfgen.evaluation.statistics import Reference
from hfgen.judges.judge import Judge, judges_numbers, load_judge, shipped_judges_of
from hfgen.runs.folder import RUN_FILE, is_checkpoint
from hfgen.runs.record import read_training
from hfgen.utils.errors import UserError
from hfgen.utils.untrusted import own_file

REPORTED_TRAINING = ["device", "threads", "num_processes", "mixed_precision", "images_seen", "train_seconds"]
JUDGES_WIDTHS = (128, 64, 32, 16, 8)  # features of a judge; the first is the default
REPORTED_PACKAGES = ["hfgen", "torch", "diffusers", "transformers", "torchmetrics"]


def load_references(options: MeasuringOptions, run: dict[str, Any], owner: str, num_images: int) -> list[Reference]:
    """Load the real images and the judges.

    Args:
        options: Which ones, as far as that was said.
        run: The fields of the model's run, where there is one, which say the rest.
        owner: What the user called the model.
        num_images: How many images are to be compared with them.

    Returns:
        The same images as each judge sees them.

    Raises:
        UserError: if no measure can be made of them.
    """
    dataset = options.dataset_name or data_source_of(run)
    if dataset is None:
        raise UserError(f"{owner} does not say what it was trained on; name it with --dataset_name")
    judges = [load_judge(name) for name in options.judge or shipped_judges_of(dataset)]
    test, train = (
        load_real(options, run, dataset, split) for split in (options.reference_split, train_split_of(options, run))
    )
    if not judges:
        raise UserError(
            f"hfgen ships no judge of {dataset}, but of {', '.join(SHORT_NAMES)}. "
            + _how_to_get_a_judge(options, run, dataset, [test, train], num_images)
        )
    _check(options, num_images, judges, test, train)
    references = [Reference(judge, test, train, cache_folder(options.cache_dir)) for judge in judges]
    warn_of_weak_judges({each.judge.name: each.accuracy for each in references if each.accuracy})
    return references


def _how_to_get_a_judge(
    options: MeasuringOptions, run: dict[str, Any], dataset: str, real: list[ImageData], num_images: int
) -> str:
    """Return the command that trains a judge of the images that a model is measured with."""
    if any(data.labels is None for data in real):
        return (
            f"To train one takes class labels, and {dataset} has none; without them, name a judge of images like "
            "these (--judge)"
        )
    fewest = min(num_images, *map(len, real))
    widths = [width for width in JUDGES_WIDTHS if width < fewest]
    if not widths:
        return (
            f"To measure in the features of one takes more than {JUDGES_WIDTHS[-1]} images of each kind, not {fewest}"
        )
    own = placed_source(dataset) == data_source_of(run)
    flags = {"train_data_dir" if own and run.get("train_data_dir") else "dataset_name": dataset}
    flags |= {"train_split": train_split_of(options, run), "test_split": options.reference_split}
    flags |= {name: run.get(name) for name in ("image_column", "label_column") if own}
    flags |= {name: getattr(options, name) or run.get(name) for name in ("resolution", "channels")}
    flags |= {"on_bad_image": run.get("on_bad_image")}
    flags |= held_out_by(options, run, dataset)
    usual = {"train_split": "train", "test_split": "test", "on_bad_image": "error"}
    needed = {name: str(value) for name, value in flags.items() if value and value != usual.get(name)}
    words = [word for name, value in needed.items() for word in (f"--{name}", value)]
    if widths[0] < JUDGES_WIDTHS[0]:  # the features must be fewer than the images
        words += ["--hidden_sizes", *3 * [str(widths[0])]]
    names = ("runs/judge" + (f"-{number}" if number > 1 else "") for number in itertools.count(1))
    output = next(name for name in names if not Path(name).exists())
    command = shlex.join(["hfgen", "train", "classifier", *words, "--output_dir", output])
    return f"Train one: {command}. Then repeat this command with --judge {output}"


def warn_of_weak_judges(accuracies: dict[str, dict[str, Any]]) -> None:
    """Say which judges are often wrong about real images, given what `accuracy_of` found of each."""
    for text in weak_judges(accuracies):
        print(f"hfgen: warning: {text}", file=sys.stderr)


def judges_of(options: TestingOptions, dataset: str, test: ImageData) -> list[Judge]:
    """Load the judges that were named, or those that hfgen ships for a data set and that know images of this size.

    Raises:
        UserError: if one that was named does not know such images.
    """
    if not options.judge:
        shipped = (load_judge(name) for name in shipped_judges_of(dataset))
        return [judge for judge in shipped if judge.image_shape == tuple(test.images.shape[1:])]
    judges = [load_judge(name) for name in options.judge]
    for judge in judges:
        check_size(judge.image_shape, f"the judge {judge.name}", test)
    return judges


def train_split_of(options: TestingOptions, run: dict[str, Any]) -> str:
    """Return the split that a model was trained on."""
    return getattr(options, "train_split", None) or run.get("train_split", "train")


def training_of(run: Path) -> dict[str, Any]:
    """Return what a report says of how a model was trained, from the record of its run; nothing without one."""
    if not (run / RUN_FILE).is_file():
        return {}
    training = read_training(run / RUN_FILE)
    return {name: training[name] for name in REPORTED_TRAINING}


def versions() -> dict[str, str]:
    """Return the versions of what a report rests on."""
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
    """Return what a run was trained on, as `load_images` takes it."""
    folder = run.get("train_data_dir")
    return placed_folder(folder) if folder else run.get("dataset_name")


def load_real(options: TestingOptions, run: dict[str, Any], dataset: str, split: str) -> ImageData:
    """Load a split of real images as a run read its own.

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
                f"{str(error).rstrip('.')}. A model that was trained with --test_fraction 0.2 has test images; "
                "--reference_split names another split, and --dataset_name another data set"
            ) from error
        raise


def held_out_by(options: TestingOptions, run: dict[str, Any], dataset: str) -> dict[str, float]:
    """Return which fractions of a data set are held out: as a model of it was trained, else as was asked.

    Raises:
        UserError: if others are asked for, with some of which the model was trained.
    """
    own = placed_source(dataset) == data_source_of(run)
    fractions = {}
    for name in ("validation_fraction", "test_fraction"):
        trained, asked = run.get(name, 0.0) if own else 0.0, getattr(options, name)
        if own and asked not in (None, trained):
            raise UserError(f"the model was trained with {name} {trained:g}, so that {asked:g} would mix the parts")
        fractions[name] = trained if asked is None else asked
    return fractions


def _check(options: MeasuringOptions, num_images: int, judges: list[Judge], test: ImageData, train: ImageData) -> None:
    """Refuse what no measure can be made of."""
    if len({judge.name for judge in judges}) < len(judges):
        raise UserError(f"judges must differ in the names of their folders: {', '.join(options.judge)}")
    needed = max(judge.num_features for judge in judges)
    for number, what in ((num_images, "images"), (len(test), "reference images"), (len(train), "training images")):
        if number <= needed:
            raise UserError(
                f"the Fréchet distance in the {needed} features of these judges needs more than {needed} images; "
                f"{what}: {number}"
            )
    for judge in judges:
        if tuple(test.images.shape[1:]) != judge.image_shape:
            raise UserError(
                f"the judge {judge.name} knows images of {size_of(judge.image_shape)}, and {test.source} has "
                f"{size_of(test.images.shape[1:])}; name another --judge, or give --resolution and --channels"
            )
        if judge.label_names != judges[0].label_names:
            raise UserError(f"the judges {judges[0].name} and {judge.name} know different classes")
    for data in (test, train):
        if data.labels is not None:
            judges_numbers(data.label_names, data.source, judges[0].label_names)
    check_size(train.images.shape[1:], f"the training split of {train.source}", test)


def check_size(shape: tuple[int, int, int], what: str, test: ImageData) -> None:
    """Refuse images (C, H, W) that are not like the real ones."""
    if tuple(shape) != tuple(test.images.shape[1:]):
        raise UserError(
            f"{what} has {size_of(shape)}, and {test.source} {size_of(test.images.shape[1:])}; bring the data set to "
            "the images' size and channels with --resolution and --channels"
        )
