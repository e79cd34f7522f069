"""Image data sets, decoded once into a memory-mapped uint8 tensor."""

import contextlib
import hashlib
import json
import os
import re
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock, Timeout
from huggingface_hub import constants
from torch import Tensor

from hfgen.config.training import TrainingConfig
from hfgen.data.decoding import OwnFiles, open_picture, to_array
from hfgen.data.rows import Parts, Rows, column, find_columns
from hfgen.data.sources import file_states, local_copy, open_dataset, placed_folder, split_names
from hfgen.utils.errors import UserError, first_line
from hfgen.utils.files import complete_or_absent, local_path, remove, remove_leftovers

WAIT_SECONDS = 10  # for another process, before a message is printed

_CACHE_FORMAT = 5  # increase when the decoding rules, or the contents of the cache, change
_DECODE_CHUNK = 1024  # images decoded before they are written
_DECODE_BYTES = 2**28  # memory limit of a chunk, if the resolution is known beforehand


@dataclass
class ImageData:
    """A decoded data set.

    Attributes:
        images: uint8, (N, C, H, W), memory-mapped from the cache.
        labels: int64, (N,), or None without class labels.
        label_names: One name per class, or None.
        source: The name that the user gave.
        fingerprint: SHA-256 of (C, H, W) and the pixels.
        unlabelled: The reason for missing labels, if known.
        split: The split of the data set.
        splits: Names of the splits that can be loaded, held-out parts included; empty if unknown.
    """

    images: Tensor
    labels: Tensor | None
    label_names: list[str] | None
    source: str
    fingerprint: str
    unlabelled: str = ""
    split: str = "train"
    splits: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def require_labels(self) -> Tensor:
        """Return the labels.

        Raises:
            UserError: if there are none, with a way to get some.
        """
        if self.labels is None:
            raise UserError(
                f"{self.source} has no class labels, which are needed here: "
                + (
                    self.unlabelled
                    or "name their column with --label_column, or put the images into one sub-folder per class"
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
    """Load a data set from the cache; it is decoded once, in parallel, and then memory-mapped.

    Sizes: with `resolution`, the shorter side is resized to it (Lanczos) and the image is centre-cropped; without, all
    images must have the same size. Channels: without `channels`, the first image decides: greyscale is 1 channel,
    everything else RGB. 16-bit greyscale is scaled to 8 bits, transparent images are composited on white, palettes
    become RGB, and EXIF orientation is applied.

    Formats: those of `FORMATS`; others count as unreadable, as Pillow passes some to external programs. So do rows
    that refer to files outside the data set, since an untrusted data set must not read other images on this machine.
    Symbolic links in an image folder are followed, as they are presumably intended, with a message.

    Messages are printed about images and labels left out, and about a damaged cache, which is recreated.

    Args:
        source: `digits` (scikit-learn's 1,797 images of 8×8 pixels), a name in `SHORT_NAMES`, a local folder
            (parquet, arrow, a saved data set, or images), an image, an .npz file (uint8 `images`, (N, H, W) or
            (N, H, W, 3); optional `labels`, int (N,), and `label_names`), or a Hub id. `HFGEN_DATA_DIR` may name a
            folder with local copies of the short names.
        split: Split of the data set, possibly a slice such as `train[:90%]` with images of all classes.
        image_column: Image column; by default the only one of type Image.
        label_column: Label column; by default the only one of type ClassLabel.
        resolution: Height and width in pixels.
        channels: 1 or 3.
        max_samples: Use only this many rows, the first ones.
        on_bad_image: Raise for an unreadable image, or skip it and report the count.
        cache_dir: Folder of decoded data sets; by default `hfgen/` in the Hugging Face home.
        held_out_of: The split that is divided if a fraction is above 0. Its name then refers to the training part,
            and `validation` and `test` refer to the held-out parts (see `hfgen.data.parts.divide`).
        validation_fraction: Fraction of each class that is held out for validation.
        test_fraction: Likewise for testing.

    Raises:
        UserError: for a missing source, split or column, an empty data set, unequal sizes, an unreadable image, a
            slice without some classes, or a held-out part that the data set already has as a split.
    """
    parts = Parts(held_out_of, validation_fraction, test_fraction)
    part = parts.named(split)
    spec = held_out_of if part else split
    local = local_copy(source)
    dataset = None if local or source == "digits" else open_dataset(source, None, spec)
    if source == "digits":
        version: Any = "scikit-learn"
    elif local:
        version = file_states(local)
    else:
        version = file_states(*(Path(file["filename"]) for file in dataset.cache_files))
    rules = [_CACHE_FORMAT, split, image_column, label_column, resolution, channels, max_samples, on_bad_image]
    rules += astuple(parts) if part else ()
    key = hashlib.sha256(json.dumps([source, rules, version]).encode()).hexdigest()[:20]
    cache = cache_folder(cache_dir)
    folder = cache / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', Path(source).name)[:80]}-{key}"
    if data := _open_cache(folder, source, split):
        return data
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _lock(cache / f".{folder.name}.lock", source):  # another process may load the same data set
            if data := _open_cache(folder, source, split, say=True):
                return data
            dataset = dataset or open_dataset(source, local, spec)
            rows = Rows(dataset, source, local, *find_columns(dataset, source, image_column, label_column))
            if label_column is None:
                rows.drop_labels_of_splits()
            if part:
                rows.take_part(parts, part)
            else:
                rows.check_slice(split)
            if max_samples:
                rows.take_first(max_samples)
            if not len(rows.dataset):
                raise UserError(f"{source} has no images in its split {split}")
            rows.note_unread_images()
            rows.explain_missing_labels()
            remove(folder)
            remove_leftovers(cache, folder.name)
            with complete_or_absent(folder) as temporary:
                temporary.mkdir()
                splits = sorted(split_names(source, local, dataset) | parts.names())
                _decode(rows, splits, resolution, channels, on_bad_image, temporary)
    except OSError as error:
        raise UserError(
            f"the decoded images of {source} cannot be cached in {cache} ({error.strerror or error}); free some space "
            "or name another folder with --cache_dir"
        ) from error
    return _open_cache(folder, source, split)


def load_training_images(config: TrainingConfig) -> ImageData:
    """Load the training images of a configuration; see `load_images`."""
    return load_images(
        config.dataset_name or placed_folder(config.train_data_dir),
        split=config.train_split,
        max_samples=config.max_train_samples,
        **config.reading_options(),
    )


def cache_folder(cache_dir: str | Path | None) -> Path:
    """Return the cache folder, by default `hfgen` in the Hugging Face home."""
    return local_path(str(cache_dir or Path(constants.HF_HOME, "hfgen")))


@contextlib.contextmanager
def _lock(path: Path, source: str) -> Iterator[None]:
    """Keep other processes from decoding the same images meanwhile; print a message if the wait is long."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=WAIT_SECONDS)
    except Timeout:
        print(
            f"hfgen: {source}: waiting for another process to decode these images. If there is none (it may have been "
            f"killed on another machine), delete {path}",
            file=sys.stderr,
        )
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _decode(
    rows: Rows, splits: list[str], resolution: int | None, channels: int | None, on_bad_image: str, folder: Path
) -> None:
    """Decode all rows into `folder`: pixels as raw bytes, labels as an array, metadata as JSON (written last)."""
    import datasets

    source, label_column = rows.source, rows.label_column
    columns = rows.dataset.select_columns([rows.image_column, *filter(None, [label_column])])
    columns = columns.cast_column(rows.image_column, datasets.Image(decode=False))
    shape: tuple[int, ...] | None = None
    kept, skipped = [], []
    own_files = OwnFiles(rows.root(), follow=rows.is_image_folder() or bool(rows.local and rows.local.is_file()))

    def decode(item: dict[str, Any] | None) -> np.ndarray | Exception:
        try:
            if item is None:
                raise ValueError("the row contains no image")
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
            # One task per worker: one per image would have more overhead.
            slices = [items[start::workers] for start in range(workers)]
            decoded = list(pool.map(lambda items: [decode(item) for item in items], slices))
            arrays = (decoded[index % workers][index // workers] for index in range(len(items)))
            for item, array in zip(items, arrays, strict=True):
                where = item["path"] if item and item["bytes"] is None else f"row {row}"
                row += 1
                if isinstance(array, Exception):
                    if on_bad_image == "error":
                        raise UserError(
                            f"{where} of {source} cannot be read as an image ({first_line(array)}); "
                            "repair it, or skip such images with --on_bad_image skip"
                        )
                    skipped.append(where)
                    continue
                if array.shape != (shape := shape or array.shape):
                    raise UserError(
                        f"the images of {source} differ in size: {where} has {array.shape[2]}×{array.shape[1]} "
                        f"pixels, the first one {shape[2]}×{shape[1]}; resize them with --resolution"
                    )
                pixels.write(array)
                kept.append(row - 1)
    if not kept:
        raise UserError(f"none of the {row} images of {source} can be read")
    notes = list(rows.notes)
    if skipped:
        examples = ", ".join(skipped[:3]) + (", …" if len(skipped) > 3 else "")
        notes.append(f"skipped {len(skipped)} images that cannot be read ({examples})")
    if own_files.followed:
        link = min(own_files.followed)
        count = len({*own_files.followed})
        notes.append(f"{count} images are links out of the folder; {link} points to {os.path.realpath(link)}")
    files = {"images.bin": _sha256_of(folder / "images.bin", repr(shape))}
    names = None
    if label_column:
        names = columns.features[label_column].names
        labels = column(columns, label_column)
        for row in kept:
            if labels[row] is None:
                raise UserError(f"row {row} of {source} has no label in column {label_column}")
            if not 0 <= labels[row] < len(names):
                raise UserError(
                    f"row {row} of {source} has the label {labels[row]} in column {label_column}, which has only "
                    f"{len(names)} classes, from 0"
                )
        np.save(folder / "labels.npy", np.array([labels[row] for row in kept], dtype=np.int64))
        files["labels.npy"] = _sha256_of(folder / "labels.npy")
    states = {name: [*_size_and_time(folder / name), sha256] for name, sha256 in files.items()}
    record = {
        "shape": [len(kept), *shape], "label_names": names, "notes": notes, "unlabelled": rows.unlabelled,
        "fingerprint": files["images.bin"], "files": states, "splits": splits,
    }  # fmt: skip
    (folder / "data.json").write_text(json.dumps({"record": record, "sha256": _sha256_of_record(record)}))


def _open_cache(folder: Path, source: str, split: str, say: bool = False) -> ImageData | None:
    """Memory-map a decoded data set and print its notes; return None if it is missing or damaged.

    Args:
        folder: Its folder in the cache.
        source: The name that the user gave.
        split: The split of the data set.
        say: Print a message if it is damaged.
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
        with warnings.catch_warnings():  # torch has no read-only tensors, and warns
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            images = torch.from_numpy(np.memmap(folder / "images.bin", np.uint8, mode="r", shape=shape))
    except (OSError, ValueError, KeyError, TypeError) as error:
        if say:
            reason = f"are damaged ({first_line(error)}) and will be recreated"
            print(f"hfgen: {source}: the decoded images in {folder} {reason}", file=sys.stderr)
        return None
    for note in record["notes"]:
        print(f"hfgen: {source}: {note}", file=sys.stderr)
    names, fingerprint = record["label_names"], record["fingerprint"]
    return ImageData(images, labels, names, source, fingerprint, record["unlabelled"], split, tuple(record["splits"]))


def _check_file(path: Path, size: int, time: int, sha256: str, prefix: str) -> None:
    """Raise ValueError if a file has changed since it was written; hash it only if its time or size has."""
    if (state := _size_and_time(path)) == (size, time):
        return
    if state[0] != size or _sha256_of(path, prefix) != sha256:
        raise ValueError(f"{path.name} was changed")
    with contextlib.suppress(OSError):  # an intact copy, which need not be hashed again
        os.utime(path, ns=(time, time))


def _size_and_time(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def _sha256_of(path: Path, prefix: str = "") -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.sha256(prefix.encode())).hexdigest()


def _sha256_of_record(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()
