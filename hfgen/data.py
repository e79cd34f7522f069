"""Any source of images, decoded once into one memory-mapped uint8 tensor."""

import hashlib
import io
import json
import os
import warnings
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from filelock import FileLock
from huggingface_hub import constants
from torch import Tensor

from hfgen.errors import UserError
from hfgen.files import complete_or_absent, remove_leftovers

SHORT_NAMES = {
    "mnist": "ylecun/mnist",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
}
GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L"}
SIXTEEN_BIT_MODES = {"I", "I;16", "I;16B", "I;16L"}

_CACHE_FORMAT = 3  # increase when the decoding rules change
_DECODE_CHUNK = 1024  # images decoded before they are written out


@dataclass
class ImageData:
    """A decoded data set.

    Attributes:
        images: uint8, (N, C, H, W), memory-mapped from the cache.
        labels: int64, (N,), or None where the set has no class labels.
        label_names: One name a class, or None.
        source: What the user called it.
        fingerprint: SHA-256 of (C, H, W) and the pixels.
    """

    images: Tensor
    labels: Tensor | None
    label_names: list[str] | None
    source: str
    fingerprint: str

    def __len__(self) -> int:
        return len(self.images)

    def require_labels(self) -> Tensor:
        """Return the labels, or say how to get some.

        Raises:
            UserError: if the set has no class labels.
        """
        if self.labels is None:
            raise UserError(
                f"{self.source} has no class labels, which are needed here: name their column with --label_column, "
                "or put the images into one sub-folder a class"
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
) -> ImageData:
    """Decode a data set once, in parallel, into a cache on disk, and memory-map it from there.

    Sizes: with `resolution`, the shorter side is resized to it (Lanczos) and the centre cropped; without, all
    images must have one size. Channels: without `channels`, the first image decides: grey stays 1, everything else
    becomes RGB. 16-bit grey is scaled to 8 bits, transparency is laid on white, a palette becomes RGB, and a
    photograph is turned the way its EXIF tag says.

    Args:
        source: `digits` (the 1,797 of 8×8 pixels that scikit-learn carries), a name in `SHORT_NAMES`, a local
            folder (parquet, arrow, a saved data set, or images), a picture, an .npz file (uint8 `images`, (N, H, W) or
            (N, H, W, 3); optional `labels`, int (N,), and `label_names`), or a Hub id. `HFGEN_DATA_DIR` may name
            a folder that holds local copies of the short names.
        split: Split of the data set, possibly a slice such as `train[:90%]`.
        image_column: Column with the images; the only one of type Image if None.
        label_column: Column with the labels; the only one of type ClassLabel if None.
        resolution: Pixels.
        channels: 1 or 3.
        max_samples: Take the first so many rows.
        on_bad_image: Raise for an image that cannot be decoded, or skip it and report the count.
        cache_dir: Where decoded sets are kept; by default `hfgen/` in the Hugging Face home.

    Raises:
        UserError: for a source, split or column that is not there, an empty set, unequal sizes, a broken image.
    """
    cache = cache_folder(cache_dir)
    local = _local_copy(source)
    dataset = None if local or source == "digits" else _load_dataset(source, None, split)
    if source == "digits":
        version: Any = "scikit-learn"
    elif local:
        version = _file_states(local)
    else:
        version = _file_states(*(Path(file["filename"]) for file in dataset.cache_files))
    rules = [_CACHE_FORMAT, split, image_column, label_column, resolution, channels, max_samples, on_bad_image]
    key = hashlib.sha256(json.dumps([source, rules, version]).encode()).hexdigest()[:20]
    folder = cache / f"{Path(source).name}-{key}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{folder.name}.lock"):  # another process may want the same set
        if not folder.exists():
            dataset = dataset or (_load_digits(split) if source == "digits" else _load_dataset(source, local, split))
            image_column, label_column = _find_columns(dataset, source, image_column, label_column)
            if max_samples:
                dataset = dataset.select(range(min(max_samples, len(dataset))))
            if not len(dataset):
                raise UserError(f"{source} has no images in its split {split}")
            remove_leftovers(cache, folder.name)
            with complete_or_absent(folder) as temporary:
                temporary.mkdir()
                _decode(dataset, source, image_column, label_column, resolution, channels, on_bad_image, temporary)
    return _open_cache(folder, source)


def placed_source(source: str) -> str:
    """Return the name of a data set that means the same in whatever folder: of a local one, its absolute path."""
    path = Path(source).expanduser()
    return str(path.absolute()) if source not in {"digits", *SHORT_NAMES} and path.exists() else source


def public_name(source: str) -> str:
    """Name a data set as on the Hub, and a local one by its last part: where it lies is nobody's business."""
    path = Path(source).expanduser()
    local = path.exists() or path.is_absolute() or ".." in path.parts
    return path.name if local else SHORT_NAMES.get(source, source)


def cache_folder(cache_dir: str | Path | None) -> Path:
    """Return the folder for what is computed once: the one that is named, or `hfgen` in the Hugging Face home."""
    return Path(cache_dir or Path(constants.HF_HOME, "hfgen")).expanduser()


def _local_copy(source: str) -> Path | None:
    if source == "digits":
        return None
    if source in SHORT_NAMES:
        copies = os.environ.get("HFGEN_DATA_DIR")
        return Path(copies, source) if copies and Path(copies, source).is_dir() else None
    path = Path(source).expanduser()
    if path.is_dir() or path.is_file():
        return path
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        known = ", ".join(["digits", *SHORT_NAMES])
        raise UserError(
            f"there is no data set {source}: it is no folder, no file, no Hub id (user/name), "
            f"and none of the short names {known}"
        )
    return None


def _file_states(*places: Path) -> list[tuple[str, int, int]]:
    """Name, size and modification time of every file below, which change when the data does."""
    files = [f for place in places for f in (sorted(place.rglob("*")) if place.is_dir() else [place])]
    return [(str(f), (state := f.stat()).st_size, state.st_mtime_ns) for f in files if f.is_file()]


def _load_dataset(source: str, local: Path | None, split: str) -> Any:
    """Open a local folder or a Hub data set with `datasets`."""
    import datasets  # takes a second to import, and a cached set does not need it

    if local and local.is_file():
        return _load_arrays(local, source, split) if local.suffix == ".npz" else _load_picture(local, source, split)
    try:
        if local and any((local / name).exists() for name in ("state.json", "dataset_dict.json")):
            saved = datasets.load_from_disk(str(local))
            return _select_split(saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}, split)
        return datasets.load_dataset(str(local) if local else SHORT_NAMES.get(source, source), split=split)
    except ConnectionError as error:
        raise UserError(
            f"{source} is not in the local cache and the Hub cannot be reached. Connect once to download it, or give "
            "--dataset_name a local folder with a copy (HFGEN_DATA_DIR names a folder of such copies), or use the "
            "built-in --dataset_name digits, or --train_data_dir with images of your own"
        ) from error
    except IndexError as error:  # what `load_from_disk` makes of a set without rows
        raise UserError(f"{source} has no images in its split {split}") from error
    except (ValueError, FileNotFoundError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"cannot open split {split} of {source}: {error}") from error


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
        with np.lib.npyio.NpzFile(path, allow_pickle=False) as arrays:
            images, labels, names = (arrays.get(name) for name in ("images", "labels", "label_names"))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{source} cannot be read as an .npz file of plain arrays ({error})") from error
    if images is None or images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (3,)):
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
        names = [str(name) for name in (range(labels.max(initial=0) + 1) if names is None else np.atleast_1d(names))]
        if len(set(names)) != len(names) or labels.max(initial=0) >= len(names):
            raise UserError(
                f"label_names of {source} must be different names, one for each label up to {labels.max(initial=0)}, "
                f"not {', '.join(names)}"
            )
        features["label"] = datasets.ClassLabel(names=names)
    dataset = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    return _select_only_split(dataset, source, split)


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


def _decode(
    dataset: Any,
    source: str,
    image_column: str,
    label_column: str | None,
    resolution: int | None,
    channels: int | None,
    on_bad_image: str,
    folder: Path,
) -> None:
    """Decode every row into `folder`: pixels as raw bytes, labels as an array, the rest as JSON (written last)."""
    import datasets

    features = dataset.features
    columns = dataset.select_columns([image_column, *filter(None, [label_column])])
    columns = columns.cast_column(image_column, datasets.Image(decode=False))
    shape: tuple[int, ...] | None = None
    kept, skipped = [], []

    def decode(item: dict[str, Any] | None) -> np.ndarray | Exception:
        try:
            content = io.BytesIO(item["bytes"]) if item["bytes"] is not None else item["path"]
            with PIL.Image.open(content) as opened:
                return to_array(opened, resolution, channels)
        except (OSError, SyntaxError, ValueError, TypeError, PIL.Image.DecompressionBombError) as error:
            return error

    workers = min(8, os.cpu_count() or 1)
    with open(folder / "images.bin", "wb") as pixels, ThreadPoolExecutor(workers) as pool:
        row = 0
        for items in _chunks(columns, image_column):
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
                            f"{where} of {source} cannot be read as an image ({array}); "
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
    if label_column:
        labels = list(columns[label_column])
        if missing := [row for row in kept if labels[row] is None]:
            raise UserError(f"row {missing[0]} of {source} has no label in column {label_column}")
        np.save(folder / "labels.npy", np.array([labels[row] for row in kept], dtype=np.int64))
    with open(folder / "images.bin", "rb") as pixels:
        fingerprint = hashlib.file_digest(pixels, lambda: hashlib.sha256(repr(shape).encode())).hexdigest()
    names = features[label_column].names if label_column else None
    record = {"shape": [len(kept), *shape], "label_names": names, "skipped": skipped, "fingerprint": fingerprint}
    (folder / "data.json").write_text(json.dumps(record))


def _chunks(dataset: Any, image_column: str) -> Iterator[list[dict[str, Any]]]:
    for rows in dataset.iter(batch_size=_DECODE_CHUNK):
        yield rows[image_column]


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


def _open_cache(folder: Path, source: str) -> ImageData:
    record = json.loads((folder / "data.json").read_text())
    if skipped := record["skipped"]:
        examples = ", ".join(skipped[:3]) + (", …" if len(skipped) > 3 else "")
        print(f"{source}: left out {len(skipped)} images that cannot be read ({examples})")
    shape = record["shape"]
    labels = torch.from_numpy(np.load(folder / "labels.npy")) if (folder / "labels.npy").exists() else None
    with warnings.catch_warnings():  # torch cannot mark a tensor as read-only, and says so
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        images = torch.from_numpy(np.memmap(folder / "images.bin", np.uint8, mode="r", shape=tuple(shape)))
    return ImageData(images, labels, record["label_names"], source, record["fingerprint"])
