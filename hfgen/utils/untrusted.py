"""Checks of untrusted files and names, before they are loaded, published or printed."""

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hfgen.utils.errors import UserError, first_line

INDEX = "model_index.json"
LEARNT_STEPS = "_learnt_steps"  # in the configuration of a scheduler; diffusers keeps private options as they are
# Solvers that step along any `timesteps` and `sigmas`, without noise, and whose class is not that of a stochastic one.
FREE_SOLVERS = ("UniPCMultistepScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler")
LARGEST_TEXT = 50 * 2**20  # bytes of a JSON or text file, about 1,000 times the size of hfgen's own
LARGEST_NUMBER = 10**6
LARGEST = {"num_train_timesteps": 10**5, "sample_size": 4096, "num_steps": 1000}  # numbers in a configuration, by name
MOST_LAYERS = 100
MOST_ENTRIES = 1000
MAGIC = {".png": b"\x89PNG\r\n\x1a\n", ".gif": b"GIF8"}


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON file with an object.

    Raises:
        UserError: naming the file, if it is not one.
    """
    _check_size(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not a valid JSON file: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} must contain a JSON object, not {shown(content)}")
    return content


def read_index(file: Path) -> dict[str, Any]:
    """Read a `model_index.json`: the class of a pipeline, and library and class of each component.

    Raises:
        UserError: naming the file and the invalid entry. Component names become names of folders and files, so they
            must be plain identifiers.
    """
    index = read_json(file)
    pipeline = index.get("_class_name")
    if not is_word(pipeline) and not _is_pair(pipeline):
        raise UserError(f"{file}: _class_name must be the name of a pipeline class, not {shown(pipeline)}")
    for name, value in components_of(index).items():
        if not is_word(name):
            raise UserError(f"{file}: {shown(name)} cannot be the name of a component")
        if not _is_pair(value) and value != [None, None]:
            raise UserError(f"{file}: {name} must be a library and a class, as in [diffusers, UNet2DModel], "
                            f"not {shown(value)}")  # fmt: skip
    if not any(value[0] for value in components_of(index).values()):
        raise UserError(f"{file} names no component of a pipeline")
    for name in ("id2label", "_id2label"):
        labels = index.get(name, {})
        if not isinstance(labels, dict) or not all(k.isdecimal() and isinstance(v, str) for k, v in labels.items()):
            raise UserError(f"{file}: {name} must map class indices to names, not {shown(labels)}")
    return index


def components_of(index: dict[str, Any]) -> dict[str, list[Any]]:
    """Return library and class of each component in an index, both None for an absent component."""
    return {name: value for name, value in index.items() if isinstance(value, list) and not name.startswith("_")}


def check_numbers(config: dict[str, Any], file: Path | str) -> None:
    """Refuse numbers in a component's configuration that would take minutes or exhaust the memory.

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
            raise UserError(f"{file}: {name} {what}, but hfgen allows {most:,} at most")


def check_learnt_steps(config: Mapping[str, Any], source: str) -> None:
    """Check the learnt time steps, if any, in the configuration of an untrusted scheduler.

    Raises:
        UserError: naming the source, if they are not as `hfgen.sampling.schedulers.LearntEntry` describes them.
    """
    learnt = config.get(LEARNT_STEPS, {})
    for key, entry in learnt.items() if isinstance(learnt, dict) else [("", learnt)]:
        if not _is_learnt(key, entry, config):
            raise UserError(
                f"{source}: {LEARNT_STEPS} of its scheduler must have, by scheduler and number of steps K as in "
                f"{FREE_SOLVERS[0]}:4, K falling timesteps and K + 1 falling sigmas within the model's, the guidance, "
                f"the split and the number of images, not {shown({key: entry})}"
            )


def are_time_steps(timesteps: Any, sigmas: Any, num_inference_steps: int, scheduler_config: Mapping[str, Any]) -> bool:
    """Return whether a scheduler with this configuration can step along these timesteps and noise levels."""

    def fall(numbers: Any, count: int, most: Any) -> bool:
        return (
            isinstance(numbers, list)
            and _is_number(most)
            and len(numbers) == count
            and all(_is_number(number) and 0 <= number <= most for number in numbers)
            and all(one > other for one, other in itertools.pairwise(numbers))
        )

    # The schedulers of flows have no prediction type.
    is_flow = scheduler_config.get("prediction_type", "flow_prediction") == "flow_prediction"
    return fall(timesteps, num_inference_steps, scheduler_config.get("num_train_timesteps")) and fall(
        sigmas, num_inference_steps + 1, 1 if is_flow else LARGEST_NUMBER
    )


def _is_learnt(key: str, entry: Any, scheduler_config: Mapping[str, Any]) -> bool:
    found = re.fullmatch(rf"(?:{'|'.join(FREE_SOLVERS)}):([1-9]\d{{0,5}})", key, re.ASCII)
    return (
        found is not None
        and isinstance(entry, dict)
        and entry.keys() == {"timesteps", "sigmas", "guidance", "reference_split", "num_images"}
        and are_time_steps(entry["timesteps"], entry["sigmas"], int(found[1]), scheduler_config)
        and _is_guidance(entry["guidance"])
        and isinstance(entry["reference_split"], str)
        and type(entry["num_images"]) is int
    )


def _is_guidance(value: Any) -> bool:
    """Return whether a value has the scale and the interval of guidance, or nothing."""
    if not isinstance(value, dict) or not value:
        return value == {}
    interval = value.get("guidance_interval")
    return (
        value.keys() == {"guidance_scale", "guidance_interval"}
        and isinstance(interval, list)
        and len(interval) == 2
        and all(map(_is_number, (value["guidance_scale"], *interval)))
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= LARGEST_NUMBER


def _numbers(config: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the integers and lists in a configuration, each with its field name."""
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
    """Return the path of a file or folder inside a folder, after checking that it really is inside.

    Raises:
        UserError: for a symbolic link, which may point outside, or anything but a file or folder.
    """
    path = folder
    for part in Path(name).parts:
        path = path / part
        if part != one_line(part):
            raise UserError(f"{str(path)!r} has a name with invisible characters")
        if path.is_symlink():
            raise UserError(f"{path} is a symbolic link, which is not followed here, as it may point outside the run")
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path} is neither a file nor a folder")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{path} is not in {folder}")
    return path


def check_content(file: Path) -> None:
    """Check that the content of a file matches its suffix: safetensors, PNG, GIF, JSON, text.

    Raises:
        UserError: naming the file.
    """
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file} is not a safetensors file ({first_line(error)})") from error
    elif magic := MAGIC.get(file.suffix):
        with file.open("rb") as opened:
            if opened.read(len(magic)) != magic:
                raise UserError(f"{file} is not a {file.suffix[1:].upper()} image")
    elif file.suffix == ".json":
        read_json(file)
    else:
        _check_size(file)
        try:
            file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{file} is not a text file ({first_line(error)})") from error


def is_word(value: object) -> bool:
    """Return whether a value is an ASCII identifier, which is safe in code and paths."""
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z_]\w*", value, re.ASCII) is not None


def one_line(text: object) -> str:
    """Return a text as one line, with unprintable characters replaced by spaces."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())


def shown(value: object, length: int = 60) -> str:
    """Format a value for a message, on one line and shortened."""
    text = one_line(repr(value))
    return text if len(text) <= length else text[: length - 1] + "…"


def _check_size(file: Path) -> None:
    if file.exists() and not file.is_file():
        raise UserError(f"{file} is not a file")
    if file.exists() and (size := file.stat().st_size) > LARGEST_TEXT:
        raise UserError(f"{file} has {size:,} bytes, but may have {LARGEST_TEXT:,} at most")


def _is_pair(value: object) -> bool:
    """Return whether a value is a pair of a (dotted) module name and a class name."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(part, str) for part in value)
        and all(map(is_word, [*value[0].split("."), value[1]]))
    )
