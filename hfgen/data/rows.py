"""Selection of the rows, image column and label column of a data set."""

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
    """The division of a split into parts (see `load_images`)."""

    held_out_of: str
    validation_fraction: float
    test_fraction: float

    def names(self) -> set[str]:
        """Return the names of the held-out parts."""
        return {name for name, fraction in self.fractions().items() if fraction}

    def fractions(self) -> dict[str, float]:
        """Return the held-out fractions by name."""
        return {"validation": self.validation_fraction, "test": self.test_fraction}

    def named(self, split: str) -> str | None:
        """Return the part that a split name refers to, or None if it refers to a split of the data set itself.

        Raises:
            UserError: for a slice that overlaps several parts.
        """
        held_out = self.fractions()
        if not any(held_out.values()):
            return None
        if _whole(self.held_out_of) != self.held_out_of or self.held_out_of in held_out:
            raise UserError(
                f"validation_fraction and test_fraction need a whole split that is not called validation or test, "
                f"not {self.held_out_of}"
            )
        if split == self.held_out_of:
            return "train"
        if held_out.get(split):
            return split
        if self.held_out_of in _whole(split).split("+"):
            raise UserError(
                f"the split {split} would overlap the parts into which validation_fraction and test_fraction divide "
                f"{self.held_out_of}; use {', '.join([self.held_out_of, *filter(held_out.get, held_out)])}"
            )
        return None


def _whole(split: str) -> str:
    """Return a split name without slices: `train+test` for `train[:9%]+test[:9](closest)`."""
    return "+".join(re.split(r"[\[(]", name)[0].strip() for name in split.split("+"))


@dataclass
class Rows:
    """The rows of a data set to decode.

    Attributes:
        dataset: A `datasets.Dataset`.
        source: The name that the user gave.
        local: Its path, if it is not on the Hub.
        image_column: Its image column.
        label_column: Its class-label column, or None.
        notes: Messages for the user about the selection.
        unlabelled: The reason for missing labels, if known.
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
        """Return the set of classes among the rows."""
        return _classes(self.labels() or ())

    def take_part(self, parts: Parts, part: str) -> None:
        """Select a part of the rows.

        Raises:
            UserError: if the data set already has such a split, or too few images.
        """
        fractions = parts.fractions()
        own = split_names(self.source, self.local, self.dataset)
        if double := [name for name, fraction in fractions.items() if fraction and name in own]:
            raise UserError(f"{self.source} already has a split {double[0]}; leave out {double[0]}_fraction")
        labels = self.labels()
        divided = divide(len(self.dataset), labels, **{f"{name}_fraction": value for name, value in fractions.items()})
        if not divided[part]:
            raise UserError(f"{self.source} has too few images, {len(self.dataset)}, for a {part} part")
        for name in (name for name, fraction in fractions.items() if fraction and labels):
            if lacking := _classes(labels) - {labels[row] for row in divided[name]}:
                self.notes.append(f"the {name} part has no images of {self._names(lacking)}, as there are too few")
        self.dataset = self.dataset.select(divided[part])

    def check_slice(self, split: str) -> None:
        """Refuse a slice that lacks classes; without labels, only note that it may not be representative."""
        if (whole := _whole(split)) == split:
            return
        if not self.label_column:
            self.notes.append(
                f"{split} takes the images in order and, without labels, it is unknown whether they are "
                "representative; --test_fraction and --validation_fraction hold out images at random"
            )
            return
        there = column(open_dataset(self.source, self.local, whole), self.label_column)
        if lost := _classes(there) - self.classes():
            raise UserError(
                f"{split} of {self.source} has no images of {self._names(lost)}: slices follow the order of the "
                "images, which are sorted by class. Instead of a slice, hold out some of each class with "
                "--test_fraction 0.2; to train on some classes only, use a folder of them"
            )

    def take_first(self, count: int) -> None:
        """Select the first rows, and note the classes that are lost."""
        before = self.classes()
        self.dataset = self.dataset.select(range(min(count, len(self.dataset))))
        if lost := before - self.classes():
            self.notes.append(f"the first {count} images, which are used, have none of {self._names(lost)}")

    def _names(self, classes: set[int]) -> str:
        """List class names, at most five of them."""
        names = self.dataset.features[self.label_column].names
        named = [names[label] if label < len(names) else str(label) for label in sorted(classes)]
        return f"{len(named)} classes ({', '.join(named[:5])}, …)" if len(named) > 5 else ", ".join(named)

    def note_unread_images(self) -> None:
        """Note images of an image folder that `datasets` leaves out of every split."""
        if not self.is_image_folder():
            return
        from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

        paths = (path.relative_to(self.local) for path in self.local.rglob("*") if path.is_file())
        images = [
            path
            for path in paths
            if path.suffix.lower() in ImageFolder.EXTENSIONS and not any(part.startswith(".") for part in path.parts)
        ]
        read = sum(split.num_examples for split in self.dataset.info.splits.values())
        if read < len(images):
            self.notes.append(
                f"only {read:,} of the {len(images):,} images in the folder are read: `datasets` takes folders called "
                "train, validation or test for splits and leaves out the others beside them, and it skips names with "
                "line breaks and names that begin with __; rename them to use their images"
            )

    def drop_labels_of_splits(self) -> None:
        """Drop the labels of an image folder such as `train/1.png, …, test/1.png`, which has no class folders.

        `datasets` takes the names of the splits for classes there, and labels some of the splits by them.
        """
        from datasets.data_files import SPLIT_KEYWORDS

        if not self.label_column or not self.is_image_folder():
            return
        names = self.dataset.features[self.label_column].names
        if set(names) <= set().union(*SPLIT_KEYWORDS.values()):
            self.label_column = None
            self.unlabelled = (
                f"its folders {' and '.join(names)} are splits and hold the images themselves; put the images of each "
                "split into one sub-folder per class, as in train/cat/1.png"
            )

    def explain_missing_labels(self) -> None:
        """Find the reason for missing labels; note it if it is surely a mistake."""
        import datasets

        if self.label_column or self.unlabelled:
            return
        features = self.dataset.features
        named = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        numbers = [name for name, feature in features.items() if "int" in str(getattr(feature, "dtype", ""))]
        if named:
            self.unlabelled = f"name one of its columns {', '.join(named)} with --label_column"
        elif numbers:
            self.unlabelled = (
                f"its column {numbers[0]} contains integers, which `datasets` converts to class labels with "
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
                    f"{len(astray)} of {len(pictures)} images are outside the class folders (such as {astray[0]}), "
                    "so `datasets` drops the labels"
                )
                self.notes.append(self.unlabelled)

    def is_image_folder(self) -> bool:
        """Return whether this is a local image folder, not a data set whose rows refer to files."""
        return bool(self.local) and self.dataset.info.builder_name == "imagefolder"

    def root(self) -> Path | None:
        """Return the folder of the files that rows may refer to, if any."""
        if self.local:
            return self.local.absolute()
        repo = SHORT_NAMES.get(self.source, self.source)
        return Path(constants.HF_HUB_CACHE, f"datasets--{repo.replace('/', '--')}") if "/" in repo else None


def column(dataset: Any, name: str) -> list[Any]:
    """Return the values of a column of a `datasets.Dataset`."""
    return dataset.select_columns([name])[:][name]


def _classes(labels: Iterable[int | None]) -> set[int]:
    """Return the set of classes among labels; missing ones are None or, as on the Hub, −1."""
    return {label for label in labels if label is not None and label >= 0}


def find_columns(dataset: Any, source: str, image: str | None, label: str | None) -> tuple[str, str | None]:
    """Find the image column and, if there is one, the label column, by their feature types."""
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
        raise UserError(f"column {image} of {source} must contain images, not {columns[image]}")
    if label is None:
        labels = [name for name, feature in columns.items() if isinstance(feature, datasets.ClassLabel)]
        label = labels[0] if len(labels) == 1 else None
    elif not isinstance(columns[label], datasets.ClassLabel):
        raise UserError(f"column {label} of {source} must contain class labels, not {columns[label]}")
    return image, label
