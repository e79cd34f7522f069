"""Checks of files and words that strangers may have made, before anything is built, published or printed of them."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hfgen.utils.errors import UserError, first_line

INDEX = "model_index.json"
LARGEST_TEXT = 50 * 2**20  # bytes of a JSON file or a page; those that hfgen writes have a thousandth of it
LARGEST_NUMBER = 10**6
LARGEST = {"num_train_timesteps": 10**5, "sample_size": 4096}  # numbers in a configuration, by name
MOST_LAYERS = 100
MOST_ENTRIES = 1000
MAGIC = {".png": b"\x89PNG\r\n\x1a\n", ".gif": b"GIF8"}


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON file that must hold an object.

    Raises:
        UserError: naming the file, if it is no such file.
    """
    _check_size(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is no valid JSON file: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold a JSON object, not {shown(content)}")
    return content


def read_index(file: Path) -> dict[str, Any]:
    """Read a `model_index.json`: the class of a pipeline, and library and class of each component.

    Raises:
        UserError: naming the file and the entry, for what no pipeline can be loaded from. Names of components become
            names of folders and files, so they must be plain words.
    """
    index = read_json(file)
    pipeline = index.get("_class_name")
    if not is_word(pipeline) and not _is_pair(pipeline):
        raise UserError(f"{file}: _class_name must be the name of a pipeline's class, not {shown(pipeline)}")
    for name, value in components_of(index).items():
        if not is_word(name):
            raise UserError(f"{file}: {shown(name)} cannot be the name of a component")
        if not _is_pair(value) and value != [None, None]:
            raise UserError(f"{file}: {name} must be a library and a class, as in [diffusers, UNet2DModel], "
                            f"not {shown(value)}")  # fmt: skip
    if not any(value[0] for value in components_of(index).values()):
        raise UserError(f"{file} names no component of a pipeline")
    labels = index.get("id2label", {})
    if not isinstance(labels, dict) or not all(k.isdecimal() and isinstance(v, str) for k, v in labels.items()):
        raise UserError(f"{file}: id2label must give the name of each class by its number, not {shown(labels)}")
    return index


def components_of(index: dict[str, Any]) -> dict[str, list[Any]]:
    """Return library and class of each component that an index names, both None where there is none."""
    return {name: value for name, value in index.items() if isinstance(value, list) and not name.startswith("_")}


def check_numbers(config: dict[str, Any], file: Path | str) -> None:
    """Refuse a component's configuration with numbers that building it would take minutes or the whole memory for.

    Raises:
        UserError: naming the file, the field and the number.
    """
    for name, value in _numbers(config):
        is_depth = re.search("layer|block|depth|hidden_sizes", name)
        if isinstance(value, list):
            size, most, what = len(value), MOST_LAYERS if is_depth else MOST_ENTRIES, f"has {len(value)} entries"
        elif value < 0 and (is_depth or name in LARGEST):
            raise UserError(f"{file}: {name} is {shown(value)}, and cannot be negative")
        else:
            small = is_depth and name not in ("block_out_channels", "hidden_sizes")
            size, most = abs(value), LARGEST.get(name, MOST_LAYERS if small else LARGEST_NUMBER)
            what = f"is {shown(value)}"
        if size > most:
            raise UserError(f"{file}: {name} {what}, and hfgen takes {most:,} at most")


def _numbers(config: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the whole numbers of a configuration and its lists of anything, each with the name of its field."""
    if isinstance(config, dict):
        for key, value in config.items():
            if not key.endswith(("2label", "2id")):  # classes, of which there may be many
                yield from _numbers(value, key)
    elif isinstance(config, list):
        if not name.startswith(("trained_betas", "sigmas", "timesteps")):
            yield name, config
        for value in config:
            yield from _numbers(value, name)
    elif isinstance(config, int) or (isinstance(config, float) and name in LARGEST and math.isfinite(config)):
        yield name, config


def own_file(folder: Path, name: str | Path) -> Path:
    """Return a file or folder below a folder, if it really lies there.

    Raises:
        UserError: for a symbolic link, or anything else than a file or a folder: what it leads to is not the run's.
    """
    path = folder
    for part in Path(name).parts:
        path = path / part
        if part != one_line(part):
            raise UserError(f"{str(path)!r} has a name with letters that cannot be seen")
        if path.is_symlink():
            raise UserError(
                f"{path} is a symbolic link, which is not followed here: what it leads to need not be the run's"
            )
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path} is neither a file nor a folder")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{path} is not in {folder}")
    return path


def check_content(file: Path) -> None:
    """Refuse a file that is not what its name says: safetensors, PNG, GIF, JSON, text.

    Raises:
        UserError: naming the file.
    """
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file} is no safetensors file ({first_line(error)})") from error
    elif magic := MAGIC.get(file.suffix):
        with file.open("rb") as opened:
            if opened.read(len(magic)) != magic:
                raise UserError(f"{file} is no {file.suffix[1:].upper()} picture")
    elif file.suffix == ".json":
        read_json(file)
    else:
        _check_size(file)
        try:
            file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{file} is no text ({first_line(error)})") from error


def is_word(value: object) -> bool:
    """Tell whether a value is a name as Python has them, of plain letters, so that it is safe in code and paths."""
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z_]\w*", value, re.ASCII) is not None


def one_line(text: object) -> str:
    """Return a text in one line, with a space for each character that cannot be seen or is none at all."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())


def shown(value: object, length: int = 60) -> str:
    """Write a value for a message: in one line, and short."""
    text = one_line(repr(value))
    return text if len(text) <= length else text[: length - 1] + "…"


def _check_size(file: Path) -> None:
    if file.exists() and not file.is_file():
        raise UserError(f"{file} is no file")
    if file.exists() and (size := file.stat().st_size) > LARGEST_TEXT:
        raise UserError(f"{file} has {size:,} bytes, and can have {LARGEST_TEXT:,} at most")


def _is_pair(value: object) -> bool:
    """Tell whether a value is a module, perhaps in a package, and a class."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(part, str) for part in value)
        and all(map(is_word, [*value[0].split("."), value[1]]))
    )
