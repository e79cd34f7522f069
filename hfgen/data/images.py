"""Any source of images, decoded once into one memory-mapped uint8 tensor."""

import contextlib
import hashlib
import json
import os
import re
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

from hfgen.data.decoding import OwnFiles, open_picture, to_array
from hfgen.data.rows import Parts, Rows, column, find_columns
from hfgen.data.sources import file_states, local_copy, open_dataset
from hfgen.utils.errors import UserError, first_line
from hfgen.utils.files import complete_or_absent, local_path, remove, remove_leftovers

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
    if data := _open_cache(folder, source):
        return data
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _lock(cache / f".{folder.name}.lock", source):  # another process may want the same set
            if data := _open_cache(folder, source, say=True):
                return data
            dataset = dataset or open_dataset(source, local, spec)
            image_column, label_column = find_columns(dataset, source, image_column, label_column)
            rows = Rows(dataset, source, local, image_column, label_column)
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


def _decode(rows: Rows, resolution: int | None, channels: int | None, on_bad_image: str, folder: Path) -> None:
    """Decode every row into `folder`: pixels as raw bytes, labels as an array, the rest as JSON (written last)."""
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
        labels = column(columns, label_column)
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
