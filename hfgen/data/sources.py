"""Sources of images: a split of any data set, opened with `datasets`."""

import functools
import glob
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps

from hfgen.config.suggestions import suggestion
from hfgen.config.training import SHORT_NAMES
from hfgen.utils.errors import UserError, first_line
from hfgen.utils.files import local_path

MAX_CLASSES = 100_000  # of an .npz file without label_names


def placed_source(source: str) -> str:
    """Return a data set's name independent of the working folder: for a local one, its absolute path."""
    path = local_path(source)
    return str(path.absolute()) if source not in {"digits", *SHORT_NAMES} and path.exists() else source


def placed_folder(folder: str) -> str:
    """Return the absolute path of a folder, so that a run can be resumed or evaluated from anywhere."""
    return str(local_path(folder).absolute())


def public_name(source: str) -> str:
    """Return a data set's Hub id, or for a local one its last path component, which reveals nothing private."""
    path = local_path(source)
    local = path.exists() or path.is_absolute() or ".." in path.parts
    return path.name if local else SHORT_NAMES.get(source, source)


def local_copy(source: str) -> Path | None:
    """Return the file or folder of a local data set, or None for the built-in digits and Hub ids.

    Raises:
        UserError: for anything else.
    """
    if source == "digits":
        return None
    if source in SHORT_NAMES:
        copies = os.environ.get("HFGEN_DATA_DIR")
        if copies and not Path(copies).is_dir():
            raise UserError(f"HFGEN_DATA_DIR is set to {copies}, which is not a folder; correct or unset it")
        return Path(copies, source) if copies and Path(copies, source).is_dir() else None
    path = local_path(source)
    if source.strip() and (path.is_dir() or path.is_file()):
        return path
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        known = ["digits", *SHORT_NAMES]
        raise UserError(
            f"there is no data set {source or '“”'}: it is not a folder, a file, a Hub id (user/name), "
            f"or one of the short names {', '.join(known)}{suggestion(source, known)}"
        )
    return None


def file_states(*places: Path) -> list[tuple[str, int, int]]:
    """Return name, size and modification time of all files below, to detect changes of the data."""
    files = [f for place in places for f in (sorted(place.rglob("*")) if place.is_dir() else [place])]
    return [(str(f), (state := f.stat()).st_size, state.st_mtime_ns) for f in files if f.is_file()]


def open_dataset(source: str, local: Path | None, split: str) -> Any:
    """Open a split of a data set with `datasets`."""
    import datasets  # takes a second to import, and a cached data set does not need it

    if source == "digits":
        return _select_only_split(_digits(), source, split)
    if local and local.is_file():
        return _load_arrays(local, source, split) if local.suffix == ".npz" else _load_picture(local, source, split)
    try:
        if local and _is_saved(local):
            saved = datasets.load_from_disk(str(local))
            return _select_split(saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}, split)
        if local and glob.has_magic(str(local.absolute())):
            raise ValueError("`datasets` interprets *, ? and [ in a folder name as a pattern; rename the folder")
        return datasets.load_dataset(str(local) if local else SHORT_NAMES.get(source, source), split=split)
    except ConnectionError as error:
        copies = os.environ.get("HFGEN_DATA_DIR")
        place = f"{copies}, has no folder {source}" if copies else "can name a folder of such copies"
        raise UserError(
            f"{source} is not in the local cache and the Hub cannot be reached. Connect once to download it, set "
            f"--dataset_name to a local copy (HFGEN_DATA_DIR{',' if copies else ''} {place}), or use the built-in "
            "--dataset_name digits, or --train_data_dir with your own images"
        ) from error
    except IndexError as error:  # `load_from_disk` fails so for a data set without rows
        raise UserError(f"{source} has no images in its split {split}") from error
    except Exception as error:  # raised by `datasets` or the reader of any file format
        raise UserError(f"cannot open split {split} of {source}: {error}") from error


def _is_saved(folder: Path) -> bool:
    """Return whether a folder was written by `save_to_disk`."""
    return any((folder / name).exists() for name in ("state.json", "dataset_dict.json"))


def split_names(source: str, local: Path | None, dataset: Any) -> set[str]:
    """Return the names of all splits of the data set of an opened split."""
    if source == "digits" or (local and (local.is_file() or (local / "state.json").exists())):
        return {"train"}
    if local and _is_saved(local):
        return set(json.loads((local / "dataset_dict.json").read_text())["splits"])
    return set(dataset.info.splits or ())


@functools.cache
def _digits() -> Any:
    """Return scikit-learn's handwritten digits, 8×8 pixels with 17 grey levels, as a `datasets.Dataset`."""
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
    return datasets.Dataset.from_dict({"image": images, "label": digits.target}, features=features)


def _load_picture(path: Path, source: str, split: str) -> Any:
    """Open a single image file as a `datasets.Dataset`."""
    import datasets

    features = datasets.Features({"image": datasets.Image()})
    return _select_only_split(
        datasets.Dataset.from_dict({"image": [str(path.absolute())]}, features=features), source, split
    )


def _load_arrays(path: Path, source: str, split: str) -> Any:
    """Open an .npz file (see `load_images`) as a `datasets.Dataset`."""
    import datasets

    try:
        with zipfile.ZipFile(path) as archive:
            declared = sum(member.file_size for member in archive.infolist())
        if declared > _memory() / 4:  # several copies are in memory while it is read
            raise UserError(f"{source} declares {declared / 1e9:.1f} GB of arrays, too much for this machine's memory")
        with np.lib.npyio.NpzFile(path, allow_pickle=False) as arrays:
            there = ", ".join(arrays)
            images, labels, names = (arrays.get(name) for name in ("images", "labels", "label_names"))
    except UserError:
        raise
    except Exception as error:  # a damaged header or archive
        raise UserError(f"{source} cannot be read as an .npz file of plain arrays ({first_line(error)})") from error
    is_images = images is not None and images.dtype == np.uint8 and images.ndim in (3, 4)
    if not is_images or images.shape[3:] not in ((), (3,)) or 0 in images.shape[1:]:
        found = f"it has {there or 'no arrays'}" if images is None else f"not {images.dtype} {images.shape}"
        raise UserError(f"{source} must have an array images, uint8 (N, H, W) or (N, H, W, 3); {found}")
    columns = {"image": [PIL.Image.fromarray(image) for image in images]}
    features = {"image": datasets.Image()}
    if labels is not None:
        if labels.shape != (len(images),) or labels.dtype.kind not in "iu" or (len(labels) and labels.min() < 0):
            raise UserError(
                f"labels of {source} must be one non-negative integer per image, ({len(images)},), "
                f"not {labels.dtype} {labels.shape}"
            )
        columns["label"] = labels
        if names is None and labels.max(initial=0) >= MAX_CLASSES:
            raise UserError(
                f"labels of {source} must be below {MAX_CLASSES:,} without label_names, not {labels.max()}"
            )
        names = [str(name) for name in (range(labels.max(initial=0) + 1) if names is None else np.atleast_1d(names))]
        if len(set(names)) != len(names) or labels.max(initial=0) >= len(names):
            raise UserError(
                f"label_names of {source} must be distinct names, one for each label up to {labels.max(initial=0)}, "
                f"not {', '.join(names)}"
            )
        features["label"] = datasets.ClassLabel(names=names)
    dataset = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    return _select_only_split(dataset, source, split)


def _memory() -> int:
    """Return this machine's memory in bytes."""
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
    """Select a split, or a slice such as `train[:90%]`, of in-memory data sets, as `load_dataset` does.

    Raises:
        ValueError: if there is no such split.
    """
    import datasets

    parts = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(part) for name, part in splits.items()})
    selected = [splits[part.splitname].select(range(part.from_, part.to)) for part in parts]
    return selected[0] if len(selected) == 1 else datasets.concatenate_datasets(selected)
