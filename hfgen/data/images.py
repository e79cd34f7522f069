"""Any source of images, decoded once into one memory-mapped uint8 tensor."""

import contextlib
import glob
import hashlib
import io
import json
import os
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from filelock import FileLock, Timeout
from huggingface_hub import constants
from torch import Tensor

from hfgen.data.parts import divide
from hfgen.utils.errors import UserError, first_line
from hfgen.utils.files import complete_or_absent, local_path, remove, remove_leftovers

SHORT_NAMES = {
    "mnist": "ylecun/mnist",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
}
GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L"}
SIXTEEN_BIT_MODES = {"I", "I;16", "I;16B", "I;16L"}

# What Pillow decodes by itself. Of others, it hands EPS to Ghostscript, a program that executes what the file says.
FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP",
    "XBM",
)  # fmt: skip
MAX_CLASSES = 100_000  # of an .npz file without label_names
WAIT_SECONDS = 10  # for another process, before it is said

_CACHE_FORMAT = 4  # increase when the decoding rules, or what the cache holds, change
_DECODE_CHUNK = 1024  # images decoded before they are written out
_DECODE_BYTES = 2**28  # that these may take, where their size is known beforehand


@dataclass
class ImageData:
    """A decoded data set.

    Attributes:
        images: uint8, (N, C, H, W), memory-mapped from the cache.
        labels: int64, (N,), or None where the set has no class labels.
        label_names: One name a class, or None.
        source: What the user called it.
        fingerprint: SHA-256 of (C, H, W) and the pixels.
        unlabelled: Why there are no labels, as far as that is known.
    """

    images: Tensor
    labels: Tensor | None
    label_names: list[str] | None
    source: str
    fingerprint: str
    unlabelled: str = ""

    def __len__(self) -> int:
        return len(self.images)

    def require_labels(self) -> Tensor:
        """Return the labels, or say how to get some.

        Raises:
            UserError: if the set has no class labels.
        """
        if self.labels is None:
            raise UserError(
                f"{self.source} has no class labels, which are needed here: "
                + (
                    self.unlabelled
                    or "name their column with --label_column, or put the images into one sub-folder a class"
                )
            )
        return self.labels


def load_images(
    source: str,
    *,
    split: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
    resolution: int | None = None,
    channels: Literal[1, 3] | None = None,
    max_samples: int | None = None,
    on_bad_image: Literal["error", "skip"] = "error",
    cache_dir: str | Path | None = None,
    held_out_of: str = "train",
    validation_fraction: float = 0.0,
    test_fraction: float = 0.0,
) -> ImageData:
    """Decode a data set once, in parallel, into a cache on disk, and memory-map it from there.

    Sizes: with `resolution`, the shorter side is resized to it (Lanczos) and the centre cropped; without, all
    images must have one size. Channels: without `channels`, the first image decides: grey stays 1, everything else
    becomes RGB. 16-bit grey is scaled to 8 bits, transparency is laid on white, a palette becomes RGB, and a
    photograph is turned the way its EXIF tag says.

    Formats: those of `FORMATS`; others, of which Pillow hands some to programs, count as unreadable. So does a file
    outside the data set that a row of it names, since a data set from elsewhere must not read the pictures of this
    machine. Links in an image folder are followed wherever they lead, since whoever keeps a folder of links wants
    them, and that is said.

    What cannot be missed is printed: images and labels that were left out, and why; a damaged cache, which is made
    anew.

    Args:
        source: `digits` (the 1,797 of 8×8 pixels that scikit-learn carries), a name in `SHORT_NAMES`, a local
            folder (parquet, arrow, a saved data set, or images), a picture, an .npz file (uint8 `images`, (N, H, W) or
            (N, H, W, 3); optional `labels`, int (N,), and `label_names`), or a Hub id. `HFGEN_DATA_DIR` may name
            a folder that holds local copies of the short names.
        split: Split of the data set, possibly a slice such as `train[:90%]` that has images of all classes.
        image_column: Column with the images; the only one of type Image if None.
        label_column: Column with the labels; the only one of type ClassLabel if None.
        resolution: Pixels.
        channels: 1 or 3.
        max_samples: Take the first so many rows.
        on_bad_image: Raise for an image that cannot be decoded, or skip it and report the count.
        cache_dir: Where decoded sets are kept; by default `hfgen/` in the Hugging Face home.
        held_out_of: The split that is divided, if any fraction is above 0: its name then stands for the part that is
            trained on, and the splits `validation` and `test` for those that are held out of it (see
            `hfgen.data.parts.divide`).
        validation_fraction: Part of each class that is held out for validation.
        test_fraction: Likewise for testing.

    Raises:
        UserError: for a source, split or column that is not there, an empty set, unequal sizes, a broken image, a
            slice without some class, a held-out part that the data set has already.
    """
    parts = _Parts(held_out_of, validation_fraction, test_fraction)
    part = parts.named(split)
    spec = held_out_of if part else split
    local = _local_copy(source)
    dataset = None if local or source == "digits" else _load_dataset(source, None, spec)
    if source == "digits":
        version: Any = "scikit-learn"
    elif local:
        version = _file_states(local)
    else:
        version = _file_states(*(Path(file["filename"]) for file in dataset.cache_files))
    rules = [_CACHE_FORMAT, split, image_column, label_column, resolution, channels, max_samples, on_bad_image]
    rules += astuple(parts) if part else ()
    key = hashlib.sha256(json.dumps([source, rules, version]).encode()).hexdigest()[:20]
    cache = cache_folder(cache_dir)
    folder = cache / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', Path(source).name)[:80]}-{key}"
    if data := _open_cache(folder, source):
        return data
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _lock(cache / f".{folder.name}.lock", source):  # another process may want the same set
            if data := _open_cache(folder, source, say=True):
                return data
            dataset = dataset or _load_dataset(source, local, spec)
            image_column, label_column = _find_columns(dataset, source, image_column, label_column)
            rows = _Rows(dataset, source, local, image_column, label_column)
            if part:
                rows.take_part(parts, part)
            else:
                rows.check_slice(split)
            if max_samples:
                rows.take_first(max_samples)
            if not len(rows.dataset):
                raise UserError(f"{source} has no images in its split {split}")
            rows.explain_missing_labels()
            remove(folder)
            remove_leftovers(cache, folder.name)
            with complete_or_absent(folder) as temporary:
                temporary.mkdir()
                _decode(rows, resolution, channels, on_bad_image, temporary)
    except OSError as error:
        raise UserError(
            f"the decoded images of {source} cannot be kept in {cache} ({error.strerror or error}); make room, or "
            "name another folder with --cache_dir"
        ) from error
    return _open_cache(folder, source)


def placed_source(source: str) -> str:
    """Return the name of a data set that means the same in whatever folder: of a local one, its absolute path."""
    path = local_path(source)
    return str(path.absolute()) if source not in {"digits", *SHORT_NAMES} and path.exists() else source


def placed_folder(folder: str) -> str:
    """Return the absolute path of a folder, which means the same from wherever a run is resumed or measured."""
    return str(local_path(folder).absolute())


def public_name(source: str) -> str:
    """Name a data set as on the Hub, and a local one by its last part: where it lies is nobody's business."""
    path = local_path(source)
    local = path.exists() or path.is_absolute() or ".." in path.parts
    return path.name if local else SHORT_NAMES.get(source, source)


def cache_folder(cache_dir: str | Path | None) -> Path:
    """Return the folder for what is computed once: the one that is named, or `hfgen` in the Hugging Face home."""
    return local_path(str(cache_dir or Path(constants.HF_HOME, "hfgen")))


@contextlib.contextmanager
def _lock(path: Path, source: str) -> Iterator[None]:
    """Keep other processes from decoding the same images meanwhile; say so where that takes long."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=WAIT_SECONDS)
    except Timeout:
        print(
            f"{source}: waiting for another process, which decodes these images. If there is none (it may have been "
            f"killed on another machine), remove {path}",
            flush=True,
        )
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _local_copy(source: str) -> Path | None:
    if source == "digits":
        return None
    if source in SHORT_NAMES:
        copies = os.environ.get("HFGEN_DATA_DIR")
        if copies and not Path(copies).is_dir():
            raise UserError(f"HFGEN_DATA_DIR is set to {copies}, which is no folder; correct it, or unset it")
        return Path(copies, source) if copies and Path(copies, source).is_dir() else None
    path = local_path(source)
    if source.strip() and (path.is_dir() or path.is_file()):
        return path
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        known = ", ".join(["digits", *SHORT_NAMES])
        raise UserError(
            f"there is no data set {source or '“”'}: it is no folder, no file, no Hub id (user/name), "
            f"and none of the short names {known}"
        )
    return None


def _file_states(*places: Path) -> list[tuple[str, int, int]]:
    """Name, size and modification time of every file below, which change when the data does."""
    files = [f for place in places for f in (sorted(place.rglob("*")) if place.is_dir() else [place])]
    return [(str(f), (state := f.stat()).st_size, state.st_mtime_ns) for f in files if f.is_file()]


def _load_dataset(source: str, local: Path | None, split: str) -> Any:
    """Open a split of a data set with `datasets`."""
    import datasets  # takes a second to import, and a cached set does not need it

    if source == "digits":
        return _load_digits(split)
    if local and local.is_file():
        return _load_arrays(local, source, split) if local.suffix == ".npz" else _load_picture(local, source, split)
    try:
        if local and _is_saved(local):
            saved = datasets.load_from_disk(str(local))
            return _select_split(saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}, split)
        if local and glob.has_magic(str(local.absolute())):
            raise ValueError("`datasets` takes *, ? and [ in the name of a folder for a pattern; rename the folder")
        return datasets.load_dataset(str(local) if local else SHORT_NAMES.get(source, source), split=split)
    except ConnectionError as error:
        raise UserError(
            f"{source} is not in the local cache and the Hub cannot be reached. Connect once to download it, or give "
            "--dataset_name a local folder with a copy (HFGEN_DATA_DIR names a folder of such copies), or use the "
            "built-in --dataset_name digits, or --train_data_dir with images of your own"
        ) from error
    except IndexError as error:  # what `load_from_disk` makes of a set without rows
        raise UserError(f"{source} has no images in its split {split}") from error
    except Exception as error:  # of `datasets` and of the reader of any file format
        raise UserError(f"cannot open split {split} of {source}: {error}") from error


def _is_saved(folder: Path) -> bool:
    """Tell what `save_to_disk` wrote from other folders."""
    return any((folder / name).exists() for name in ("state.json", "dataset_dict.json"))


def _split_names(source: str, local: Path | None, dataset: Any) -> set[str]:
    """Return the splits of the data set that a split was opened of."""
    if source == "digits" or (local and (local.is_file() or (local / "state.json").exists())):
        return {"train"}
    if local and _is_saved(local):
        return set(json.loads((local / "dataset_dict.json").read_text())["splits"])
    return set(dataset.info.splits or ())


def _load_digits(split: str) -> Any:
    """Open scikit-learn's handwritten digits, 8×8 pixels of 17 grey levels, as a `datasets.Dataset`."""
    import datasets
    from sklearn.datasets import load_digits

    digits = load_digits()
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=[str(name) for name in digits.target_names]),
        }
    )
    images = [PIL.Image.fromarray(np.uint8(np.round(image * 255 / 16))) for image in digits.images]
    dataset = datasets.Dataset.from_dict({"image": images, "label": digits.target}, features=features)
    return _select_only_split(dataset, "digits", split)


def _load_picture(path: Path, source: str, split: str) -> Any:
    """Open a single picture as a `datasets.Dataset`."""
    import datasets

    features = datasets.Features({"image": datasets.Image()})
    return _select_only_split(datasets.Dataset.from_dict({"image": [str(path)]}, features=features), source, split)


def _load_arrays(path: Path, source: str, split: str) -> Any:
    """Open an .npz file, as `load_images` describes it, as a `datasets.Dataset`."""
    import datasets

    try:
        with zipfile.ZipFile(path) as archive:
            declared = sum(member.file_size for member in archive.infolist())
        if declared > _memory() / 4:  # for so many times the images are in memory while they are read
            raise UserError(f"{source} declares {declared / 1e9:.1f} GB of arrays, too much for this machine's memory")
        with np.lib.npyio.NpzFile(path, allow_pickle=False) as arrays:
            images, labels, names = (arrays.get(name) for name in ("images", "labels", "label_names"))
    except UserError:
        raise
    except Exception as error:  # of a damaged header or archive
        raise UserError(f"{source} cannot be read as an .npz file of plain arrays ({first_line(error)})") from error
    is_images = images is not None and images.dtype == np.uint8 and images.ndim in (3, 4)
    if not is_images or images.shape[3:] not in ((), (3,)) or 0 in images.shape[1:]:
        found = "no such array" if images is None else f"{images.dtype} {images.shape}"
        raise UserError(f"{source} must have an array images, uint8 (N, H, W) or (N, H, W, 3), not {found}")
    columns = {"image": [PIL.Image.fromarray(image) for image in images]}
    features = {"image": datasets.Image()}
    if labels is not None:
        if labels.shape != (len(images),) or labels.dtype.kind not in "iu" or (len(labels) and labels.min() < 0):
            raise UserError(
                f"labels of {source} must be one whole number from 0 an image, ({len(images)},), "
                f"not {labels.dtype} {labels.shape}"
            )
        columns["label"] = labels
        if names is None and labels.max(initial=0) >= MAX_CLASSES:
            raise UserError(
                f"labels of {source} must be below {MAX_CLASSES:,} where there are no label_names, not {labels.max()}"
            )
        names = [str(name) for name in (range(labels.max(initial=0) + 1) if names is None else np.atleast_1d(names))]
        if len(set(names)) != len(names) or labels.max(initial=0) >= len(names):
            raise UserError(
                f"label_names of {source} must be different names, one for each label up to {labels.max(initial=0)}, "
                f"not {', '.join(names)}"
            )
        features["label"] = datasets.ClassLabel(names=names)
    dataset = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    return _select_only_split(dataset, source, split)


def _memory() -> int:
    """Return how many bytes of memory this machine has."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return 2**34


def _select_only_split(dataset: Any, source: str, split: str) -> Any:
    try:
        return _select_split({"train": dataset}, split)
    except ValueError as error:
        raise UserError(f"cannot open split {split} of {source}: {error}") from error


def _select_split(splits: dict[str, Any], split: str) -> Any:
    """Select a split, or a slice such as `train[:90%]`, of data sets in memory, as `load_dataset` does.

    Raises:
        ValueError: if there is no such split.
    """
    import datasets

    parts = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(part) for name, part in splits.items()})
    selected = [splits[part.splitname].select(range(part.from_, part.to)) for part in parts]
    return selected[0] if len(selected) == 1 else datasets.concatenate_datasets(selected)


@dataclass(frozen=True)
class _Parts:
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
class _Rows:
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
        return _column(self.dataset, self.label_column) if self.label_column else None

    def classes(self) -> set[int]:
        """Return the classes that the rows have."""
        return _classes(self.labels() or ())

    def take_part(self, parts: _Parts, part: str) -> None:
        """Take a part of the rows.

        Raises:
            UserError: if the data set has it already, or too few images for it.
        """
        fractions = {"validation": parts.validation_fraction, "test": parts.test_fraction}
        own = _split_names(self.source, self.local, self.dataset)
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
        there = _column(_load_dataset(self.source, self.local, whole), self.label_column)
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
            items = _column(
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


def _column(dataset: Any, name: str) -> list[Any]:
    return dataset.select_columns([name])[:][name]


def _classes(labels: Iterable[int | None]) -> set[int]:
    """Return the classes among labels, which may be missing: None or, as on the Hub, −1."""
    return {label for label in labels if label is not None and label >= 0}


def _find_columns(dataset: Any, source: str, image: str | None, label: str | None) -> tuple[str, str | None]:
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


class _OwnFiles:
    """Opens what the rows of a data set hold or name, and no other files of this machine.

    Args:
        root: Folder in which the files are that rows may name, or such a file, or None.
        follow: Whether links in it may lead out of it.

    Attributes:
        followed: The links that did.
    """

    def __init__(self, root: Path | None, follow: bool):
        self.root, self.follow = root, follow
        self.followed: list[str] = []

    def __call__(self, item: dict[str, Any]) -> BinaryIO | str:
        """Return what Pillow can open.

        Raises:
            ValueError: for a file that is not the data set's own.
        """
        if item["bytes"] is not None:
            return io.BytesIO(item["bytes"])
        if self.root is None or not item["path"]:
            raise ValueError("the row holds no image")
        path = os.path.abspath(self.root / item["path"])
        if not any(Path(path).is_relative_to(root) for root in (self.root, self.root.resolve())):
            raise ValueError("the row names a file outside the data set; the images themselves have to be in its rows")
        if not Path(path).resolve().is_relative_to(self.root.resolve()):
            if not self.follow:
                raise ValueError("the row names a link that leads out of the data set")
            self.followed.append(path)
        return path


def open_picture(content: BinaryIO | str | Path) -> PIL.Image.Image:
    """Open a picture in one of `FORMATS`, none of which Pillow hands to a program.

    Raises:
        Exception: of whatever kind, for what is none, or is damaged; so does reading its pixels.
    """
    PIL.Image.init()
    return PIL.Image.open(content, formats=[name for name in FORMATS if name in PIL.Image.OPEN])


def border_brightness(images: Tensor) -> float:
    """Return the mean brightness, from 0 to 1, of the outermost pixels of an image, or of about 1,000 of many.

    Args:
        images: uint8 (C, H, W) or (N, C, H, W).
    """
    if images.ndim == 4:
        images = images[:: max(1, len(images) // 1000)]
    borders = [images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]]
    return torch.cat([border.flatten().float() for border in borders]).mean().item() / 255


def is_inverse(brightness: float, usual: float) -> bool:
    """Tell whether the border of images is bright where usually it is dark, or the other way round.

    Drawings have such borders, with a brightness below a quarter or above three quarters; photographs have not.
    """
    return min(brightness, usual) < 0.25 and max(brightness, usual) > 0.75


def _decode(rows: _Rows, resolution: int | None, channels: int | None, on_bad_image: str, folder: Path) -> None:
    """Decode every row into `folder`: pixels as raw bytes, labels as an array, the rest as JSON (written last)."""
    import datasets

    source, label_column = rows.source, rows.label_column
    columns = rows.dataset.select_columns([rows.image_column, *filter(None, [label_column])])
    columns = columns.cast_column(rows.image_column, datasets.Image(decode=False))
    shape: tuple[int, ...] | None = None
    kept, skipped = [], []
    own_files = _OwnFiles(rows.root(), follow=rows.is_image_folder() or bool(rows.local and rows.local.is_file()))

    def decode(item: dict[str, Any] | None) -> np.ndarray | Exception:
        try:
            if item is None:
                raise ValueError("the row holds no image")
            with open_picture(own_files(item)) as opened:
                return to_array(opened, resolution, channels)
        except Exception as error:  # Pillow's readers raise any kind for a damaged file
            return error

    workers = min(8, os.cpu_count() or 1)
    at_a_time = min(_DECODE_CHUNK, max(workers, _DECODE_BYTES // (3 * resolution**2))) if resolution else _DECODE_CHUNK
    with open(folder / "images.bin", "wb") as pixels, ThreadPoolExecutor(workers) as pool:
        row = 0
        for chunk in columns.iter(batch_size=at_a_time):
            items = chunk[rows.image_column]
            if channels is None:
                channels = next((len(a) for a in map(decode, items) if isinstance(a, np.ndarray)), None)
            shares = [items[start::workers] for start in range(workers)]  # one each: a task an image would cost more
            decoded = list(pool.map(lambda share: [decode(item) for item in share], shares))
            arrays = (decoded[index % workers][index // workers] for index in range(len(items)))
            for item, array in zip(items, arrays, strict=True):
                where = item["path"] if item and item["bytes"] is None else f"row {row}"
                row += 1
                if isinstance(array, Exception):
                    if on_bad_image == "error":
                        raise UserError(
                            f"{where} of {source} cannot be read as an image ({first_line(array)}); "
                            "mend it, or leave such images out with --on_bad_image skip"
                        )
                    skipped.append(where)
                    continue
                if array.shape != (shape := shape or array.shape):
                    raise UserError(
                        f"the images of {source} differ in size: {where} has {array.shape[2]}×{array.shape[1]} "
                        f"pixels, the first one {shape[2]}×{shape[1]}; bring them to one size with --resolution"
                    )
                pixels.write(array)
                kept.append(row - 1)
    if not kept:
        raise UserError(f"none of the {row} images of {source} can be read")
    notes = list(rows.notes)
    if skipped:
        examples = ", ".join(skipped[:3]) + (", …" if len(skipped) > 3 else "")
        notes.append(f"left out {len(skipped)} images that cannot be read ({examples})")
    if own_files.followed:
        link = min(own_files.followed)
        count = len({*own_files.followed})
        notes.append(f"{count} pictures are links out of the folder; {link} leads to {os.path.realpath(link)}")
    files = {"images.bin": _sha256_of(folder / "images.bin", repr(shape))}
    names = None
    if label_column:
        names = columns.features[label_column].names
        labels = _column(columns, label_column)
        for row in kept:
            if labels[row] is None:
                raise UserError(f"row {row} of {source} has no label in column {label_column}")
            if not 0 <= labels[row] < len(names):
                raise UserError(
                    f"row {row} of {source} has the label {labels[row]} in column {label_column}, which is none of "
                    f"its {len(names)} classes"
                )
        np.save(folder / "labels.npy", np.array([labels[row] for row in kept], dtype=np.int64))
        files["labels.npy"] = _sha256_of(folder / "labels.npy")
    states = {name: [*_size_and_time(folder / name), sha256] for name, sha256 in files.items()}
    record = {
        "shape": [len(kept), *shape], "label_names": names, "notes": notes, "unlabelled": rows.unlabelled,
        "fingerprint": files["images.bin"], "files": states,
    }  # fmt: skip
    (folder / "data.json").write_text(json.dumps({"record": record, "sha256": _sha256_of_record(record)}))


def to_array(image: PIL.Image.Image, resolution: int | None, channels: int | None) -> np.ndarray:
    """Convert one opened image to uint8 (C, H, W) by the rules that `load_images` states."""
    grey = channels == 1 or (channels is None and image.mode in GREY_MODES)
    image = PIL.ImageOps.exif_transpose(image)
    if image.mode in SIXTEEN_BIT_MODES:
        image = PIL.Image.fromarray(np.uint8(np.clip(np.asarray(image, dtype=np.int64), 0, 65535) // 257))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if grey else "RGB")
    if resolution:
        image = PIL.ImageOps.fit(image, (resolution, resolution), PIL.Image.Resampling.LANCZOS)
    array = np.asarray(image)
    return np.ascontiguousarray(array[None] if grey else array.transpose(2, 0, 1))


def _open_cache(folder: Path, source: str, say: bool = False) -> ImageData | None:
    """Map a decoded set, and print what there is to say of it; return None if it is not there, or damaged.

    Args:
        folder: Where it is.
        source: What the user called it.
        say: Print that it is damaged.
    """
    if not folder.exists():
        return None
    try:
        saved = json.loads((folder / "data.json").read_text())
        record = saved["record"]
        if saved["sha256"] != _sha256_of_record(record):
            raise ValueError("data.json was changed")
        shape = tuple(record["shape"])
        for name, (size, time, sha256) in record["files"].items():
            _check_file(folder / name, size, time, sha256, repr(shape[1:]) if name == "images.bin" else "")
        labels = torch.from_numpy(np.load(folder / "labels.npy")) if "labels.npy" in record["files"] else None
        with warnings.catch_warnings():  # torch cannot mark a tensor as read-only, and says so
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            images = torch.from_numpy(np.memmap(folder / "images.bin", np.uint8, mode="r", shape=shape))
    except (OSError, ValueError, KeyError, TypeError) as error:
        if say:
            print(f"{source}: its decoded images in {folder} are damaged ({first_line(error)}) and are made anew")
        return None
    for note in record["notes"]:
        print(f"{source}: {note}")
    return ImageData(images, labels, record["label_names"], source, record["fingerprint"], record["unlabelled"])


def _check_file(path: Path, size: int, time: int, sha256: str, prefix: str) -> None:
    """Raise ValueError if a file is not as it was written: looked at whole only if it was touched since."""
    if (state := _size_and_time(path)) == (size, time):
        return
    if state[0] != size or _sha256_of(path, prefix) != sha256:
        raise ValueError(f"{path.name} was changed")
    with contextlib.suppress(OSError):  # a copy, which is whole; it need not be read again
        os.utime(path, ns=(time, time))


def _size_and_time(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def _sha256_of(path: Path, prefix: str = "") -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.sha256(prefix.encode())).hexdigest()


def _sha256_of_record(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()
