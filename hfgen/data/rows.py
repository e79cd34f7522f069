"""Which rows of a data set are taken, and which of its columns are images and labels."""

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from hfgen.data.parts import divide
from hfgen.data.sources import SHORT_NAMES, open_dataset, split_names
from hfgen.utils.errors import UserError


@dataclass(frozen=True)
class Parts:
    """How a split is divided into parts (see `load_images`)."""

    held_out_of: str
    validation_fraction: float
    test_fraction: float

    def named(self, split: str) -> str | None:
        """Return the part that a split's name stands for, or None if it stands for the data set's own split.

        Raises:
            UserError: for a slice that would cut across the parts.
        """
        held_out = {"validation": self.validation_fraction, "test": self.test_fraction}
        if not any(held_out.values()):
            return None
        if _whole(self.held_out_of) != self.held_out_of or self.held_out_of in held_out:
            raise UserError(
                f"validation_fraction and test_fraction divide a whole split that is called neither validation nor "
                f"test, not {self.held_out_of}"
            )
        if split == self.held_out_of:
            return "train"
        if held_out.get(split):
            return split
        if self.held_out_of in _whole(split).split("+"):
            raise UserError(
                f"the split {split} would cut across the parts into which validation_fraction and test_fraction "
                f"divide {self.held_out_of}; take {', '.join([self.held_out_of, *filter(held_out.get, held_out)])}"
            )
        return None


def _whole(split: str) -> str:
    """Return the splits that a split's name takes slices of: `train+test` of `train[:9%]+test[:9](closest)`."""
    return "+".join(re.split(r"[\[(]", name)[0].strip() for name in split.split("+"))


@dataclass
class Rows:
    """The rows of a data set that are to be decoded.

    Attributes:
        dataset: A `datasets.Dataset`.
        source: What the user called the data set.
        local: Where it lies, if not on the Hub.
        image_column: Its column with the images.
        label_column: Its column with the class labels, or None.
        notes: What the user has to know of the choice.
        unlabelled: Why there are no labels, as far as that is known.
    """

    dataset: Any
    source: str
    local: Path | None
    image_column: str
    label_column: str | None
    notes: list[str] = field(default_factory=list)
    unlabelled: str = ""

    def labels(self) -> list[int | None] | None:
        """Return the labels of the rows, or None if there are none."""
        return column(self.dataset, self.label_column) if self.label_column else None

    def classes(self) -> set[int]:
        """Return the classes that the rows have."""
        return _classes(self.labels() or ())

    def take_part(self, parts: Parts, part: str) -> None:
        """Take a part of the rows.

        Raises:
            UserError: if the data set has it already, or too few images for it.
        """
        fractions = {"validation": parts.validation_fraction, "test": parts.test_fraction}
        own = split_names(self.source, self.local, self.dataset)
        if double := [name for name, fraction in fractions.items() if fraction and name in own]:
            raise UserError(f"{self.source} has a split {double[0]} of its own; leave {double[0]}_fraction out")
        labels = self.labels()
        divided = divide(len(self.dataset), labels, **{f"{name}_fraction": value for name, value in fractions.items()})
        if not divided[part]:
            raise UserError(f"{self.source} has too few images, {len(self.dataset)}, for a {part} part")
        for name in (name for name, fraction in fractions.items() if fraction and labels):
            if lacking := _classes(labels) - {labels[row] for row in divided[name]}:
                self.notes.append(
                    f"the {name} part has no image of {self._names(lacking)}, of which there are too few"
                )
        self.dataset = self.dataset.select(divided[part])

    def check_slice(self, split: str) -> None:
        """Refuse a slice that loses classes; say of one without labels that nobody knows what it loses."""
        if (whole := _whole(split)) == split:
            return
        if not self.label_column:
            self.notes.append(
                f"{split} takes the images in their order and, without labels, nothing shows whether they are like "
                "the rest; --test_fraction and --validation_fraction hold images out at random"
            )
            return
        there = column(open_dataset(self.source, self.local, whole), self.label_column)
        if lost := _classes(there) - self.classes():
            raise UserError(
                f"{split} of {self.source} has no image of {self._names(lost)}: slices follow the order of the "
                "images, which are sorted by class. Instead of a slice, hold some of each class out with "
                "--test_fraction 0.2; to train on some classes only, name a folder of them"
            )

    def take_first(self, count: int) -> None:
        """Take the first rows, and say which classes are lost thereby."""
        before = self.classes()
        self.dataset = self.dataset.select(range(min(count, len(self.dataset))))
        if lost := before - self.classes():
            self.notes.append(f"the first {count} images, which are taken, have none of {self._names(lost)}")

    def _names(self, classes: set[int]) -> str:
        """Name classes, the first few of them."""
        names = self.dataset.features[self.label_column].names
        named = [names[label] if label < len(names) else str(label) for label in sorted(classes)]
        return f"{len(named)} classes ({', '.join(named[:5])}, …)" if len(named) > 5 else ", ".join(named)

    def explain_missing_labels(self) -> None:
        """Find out why there are no labels, if there are none; say it where it is surely a mistake."""
        import datasets

        if self.label_column:
            return
        features = self.dataset.features
        named = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        numbers = [name for name, feature in features.items() if "int" in str(getattr(feature, "dtype", ""))]
        if named:
            self.unlabelled = f"name one of its columns {', '.join(named)} with --label_column"
        elif numbers:
            self.unlabelled = (
                f"its column {numbers[0]} holds whole numbers, which `datasets` makes class labels by "
                f"cast_column({numbers[0]!r}, ClassLabel(num_classes=…))"
            )
        elif self.is_image_folder() and [*features] == [self.image_column]:
            items = column(
                self.dataset.cast_column(self.image_column, datasets.Image(decode=False)), self.image_column
            )
            pictures = [Path(os.path.relpath(item["path"], self.local)) for item in items]
            depths = Counter(len(picture.parts) for picture in pictures if len(picture.parts) > 1)
            depth = depths.most_common(1)[0][0] if depths else 0
            astray = [picture for picture in pictures if len(picture.parts) != depth]
            classes = {picture.parent for picture in pictures if len(picture.parts) == depth}
            if astray and len(classes) > 1:
                self.unlabelled = (
                    f"{len(astray)} of {len(pictures)} pictures lie outside the class folders (such as {astray[0]}), "
                    "so that `datasets` drops the labels"
                )
                self.notes.append(self.unlabelled)

    def is_image_folder(self) -> bool:
        """Tell a folder of pictures on this machine from data sets whose rows name files."""
        return bool(self.local) and self.dataset.info.builder_name == "imagefolder"

    def root(self) -> Path | None:
        """Return the folder of the files that rows may name, if they may name any."""
        if self.local:
            return self.local.absolute()
        repo = SHORT_NAMES.get(self.source, self.source)
        return Path(constants.HF_HUB_CACHE, f"datasets--{repo.replace('/', '--')}") if "/" in repo else None


def column(dataset: Any, name: str) -> list[Any]:
    """Return the values of a column of a `datasets.Dataset`."""
    return dataset.select_columns([name])[:][name]


def _classes(labels: Iterable[int | None]) -> set[int]:
    """Return the classes among labels, which may be missing: None or, as on the Hub, −1."""
    return {label for label in labels if label is not None and label >= 0}


def find_columns(dataset: Any, source: str, image: str | None, label: str | None) -> tuple[str, str | None]:
    """Find the image column and, if there is one, the label column by their feature types."""
    import datasets

    columns = dataset.features
    for named in filter(None, [image, label]):
        if named not in columns:
            raise UserError(f"{source} has no column {named}; it has {', '.join(columns)}")
    if image is None:
        images = [name for name, feature in columns.items() if isinstance(feature, datasets.Image)]
        if len(images) != 1:
            raise UserError(
                f"{source} has {len(images) or 'no'} image columns {', '.join(images)}; "
                f"name the one to use with --image_column (columns: {', '.join(columns)})"
            )
        image = images[0]
    elif not isinstance(columns[image], datasets.Image):
        raise UserError(f"column {image} of {source} holds no images, but {columns[image]}")
    if label is None:
        labels = [name for name, feature in columns.items() if isinstance(feature, datasets.ClassLabel)]
        label = labels[0] if len(labels) == 1 else None
    elif not isinstance(columns[label], datasets.ClassLabel):
        raise UserError(f"column {label} of {source} holds no class labels, but {columns[label]}")
    return image, label
