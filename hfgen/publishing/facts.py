"""What a run folder tells of a model, without what it tells of the machine and its user."""

import math
import re
import shlex
from pathlib import Path
from typing import Any

from safetensors import safe_open

from hfgen.config.training import CONFIG_FILE, read_fields
from hfgen.data.images import public_name
from hfgen.evaluation.report import ANALYSIS_RECORD, RECORD, read_record
from hfgen.judges.judge import UPSCALE
from hfgen.pipelines.loading import INDEX, require_folder
from hfgen.publishing.kinds import KINDS
from hfgen.runs.record import RUN_FILE
from hfgen.sampling.sample import NETWORKS
from hfgen.utils.errors import UserError
from hfgen.utils.untrusted import check_content, is_word, one_line, own_file, read_index, read_json, shown

STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")  # of batch normalisation: no parameters
# What begins a path of any machine: /a, \\a, C:\a, ~, file:; not what stands within a word or an address.
PLACE = re.compile(r"(?<![^\s=:;,\"'`|(\[{@<>])(file:|[A-Za-z]:[\\/]|[\\/]{1,2}(?=[^\s\\/])|~)(?<!://)")
# What a record must have, and of what type.
TRAINING = {
    "command": str,
    "device": str,
    "device_type": str,
    "images_per_second": int | float,
    "images_seen": int,
    "mixed_precision": str,
    "num_processes": int,
    "optimizer_steps": int,
    "threads": int,
    "train_seconds": int | float,
    "versions": dict,
}
USED_IN_CODE = {  # fields that stand in the code of a page, and what they may be
    "guidance_scale": lambda value: isinstance(value, int | float),
    "num_inference_steps": lambda value: isinstance(value, int),
    "num_train_timesteps": lambda value: isinstance(value, int),
    "prior": is_word,
    "scheduler": is_word,
}
# What concerns the machine or the publishing, not the model.
NOT_SHOWN = {
    "cache_dir",
    "hub_license",
    "hub_model_id",
    "hub_private_repo",
    "hub_strategy",
    "output_dir",
    "push_to_hub",
    "report_to",
    "resume_from_checkpoint",
}


def require_run(run: Path) -> str:
    """Return the name of the class that a finished run's model is of.

    Raises:
        UserError: if the folder holds no finished run, or one that no page can be written of.
    """
    require_folder(run)
    class_name = _class_name_of(run)
    if class_name is None or not own_file(run, RUN_FILE).is_file() or not own_file(run, CONFIG_FILE).is_file():
        raise UserError(f"{run} holds no finished run of hfgen train")
    if class_name not in KINDS:
        raise UserError(f"{run} holds a {one_line(class_name)}, of which hfgen can write no page")
    return class_name


def _class_name_of(folder: Path) -> str | None:
    """Return the name of the class that a folder's model is of, or None if it holds no model."""
    if own_file(folder, INDEX).is_file():
        named = read_index(folder / INDEX)["_class_name"]
        return named[-1] if isinstance(named, list) else named
    if own_file(folder, "config.json").is_file():
        named = read_json(folder / "config.json").get("architectures")
        return named[0] if isinstance(named, list) and named and isinstance(named[0], str) else None
    return None


def read_run(run: Path) -> dict[str, Any]:
    """Collect what a page says of a run; nothing in it names a place on this machine.

    Raises:
        UserError: if the folder holds no finished run, one that no page can be written of, or a file that is damaged
            or a symbolic link.
    """
    class_name = require_run(run)
    config = _read_config(run / CONFIG_FILE)
    training = read_training(run / RUN_FILE)
    fields = {name: value for name, value in config.items() if name not in NOT_SHOWN and value not in (None, [])}
    reports = {
        name: read_record(own_file(run, file)) if own_file(run, file).is_file() else None
        for name, file in (("evaluation", RECORD), ("analysis", ANALYSIS_RECORD))
    }
    folder = config.get("train_data_dir")
    network = _network(run, class_name)
    return {
        "class_name": class_name,
        "hub_model_id": config.get("hub_model_id"),
        "kind": KINDS[class_name],
        "config": {name: public_value(value) for name, value in fields.items()},
        "data": public_text(folder or public_name(config["dataset_name"])) or "local images",
        "training": training,
        **reports,
        **network,
    }


def _read_config(file: Path) -> dict[str, Any]:
    """Read a run's configuration, which must have the fields that a page is written from."""
    config = read_fields(file)
    places = [config.get("train_data_dir"), config.get("dataset_name")]
    if "seed" not in config or not any(isinstance(place, str) and place for place in places):
        raise UserError(f"{file} does not say what the run was trained on, with which seed")
    for name, fits in USED_IN_CODE.items():
        if config.get(name) is not None and not fits(config[name]):
            raise UserError(f"{file}: {name} cannot be {shown(config[name])}")
    return config


def read_training(file: Path) -> dict[str, Any]:
    """Read `run.json`, without the places on this machine in the command and in what went wrong."""
    training = read_json(file)
    for name, kind in TRAINING.items():
        if not isinstance(training.get(name), kind):
            raise UserError(f"{file} is no record of a finished run: {name} is {shown(training.get(name))}")
    try:
        command = public_command(training["command"])
    except ValueError as error:
        raise UserError(f"{file}: command is {shown(training['command'])}, which is no command") from error
    problems = [public_text(str(problem)) for problem in training.get("problems", [])]
    return training | {"command": command, "problems": problems}


def _network(run: Path, class_name: str) -> dict[str, Any]:
    """Return the number of parameters, the size and channels of the images, and the classes if there are any."""
    labels: list[str] = []
    try:
        if KINDS[class_name].library == "diffusers":
            network = NETWORKS.get(class_name, "unet")
            config = read_json(own_file(run, f"{network}/config.json"))
            size, channels = config["sample_size"], config.get("in_channels") or config["out_channels"]
            height, width = (size, size) if isinstance(size, int) else size
            parts = [network, "inverse_generator"] if own_file(run, "inverse_generator").is_dir() else [network]
            weights = [own_file(run, f"{part}/diffusion_pytorch_model.safetensors") for part in parts]
            labels = list(read_index(run / INDEX).get("id2label", {}).values())
        else:
            size = read_json(own_file(run, "preprocessor_config.json"))["size"]
            channels = read_json(own_file(run, "config.json"))["num_channels"]
            height, width = size["height"] // UPSCALE, size["width"] // UPSCALE
            weights = [own_file(run, "model.safetensors")]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the configuration of the model in {run} does not say the size of its images") from error
    for file in weights:
        check_content(file)
    parameters = sum(map(_count_parameters, weights))
    kind = "grey" if channels == 1 else "RGB"
    return {"parameters": parameters, "size": f"{kind} {height}×{width}-pixel", "channels": channels, "labels": labels}


def _count_parameters(weights: Path) -> int:
    with safe_open(weights, "pt") as file:
        names = [name for name in file.keys() if not name.endswith(STATISTICS)]  # noqa: SIM118
        return sum(math.prod(file.get_slice(name).get_shape()) for name in names)


def public_value(value: Any) -> Any:
    """Take the places on this machine from a value of a configuration, whatever it holds."""
    if isinstance(value, list):
        return [public_value(item) for item in value]
    if isinstance(value, dict):
        return {name: public_value(item) for name, item in value.items()}
    return public_text(value) if isinstance(value, str) else value


def public_text(text: str) -> str:
    """Take the places on this machine from a text, and leave everything else as it is.

    What is a path as a whole, absolute, with `..`, or from someone's home, becomes its last name; of other texts, such
    as `train_data_dir=/a/b,/c/d` or a sentence, so does what begins like such a path, up to the next comma or the end.
    """
    if PLACE.match(text) or _climbs(text):
        return _last_name(text)
    parts = []
    for part in text.split(","):
        found = PLACE.search(part)
        start = found.start() if found else 0 if _climbs(part) else len(part)
        parts.append(part[:start] + (_last_name(part[start:]) if start < len(part) else ""))
    return ",".join(parts)


def _climbs(text: str) -> bool:
    return ".." in re.split(r"[\\/=:\s]", text)


def _last_name(path: str) -> str:
    """Return the last part of a path of any system that names something, or nothing."""
    names = [name for name in re.split(r"[\\/]", path) if name.strip() not in ("", ".", "..")]
    of_user = len(names) == 1 and re.match("~|file:|[A-Za-z]:", path)
    of_home = len(names) == 2 and names[0] in ("home", "Users")
    return "" if not names or of_user or of_home else names[-1]


def public_command(command: str) -> str:
    """Take from a command what is nobody's business, and the places on this machine.

    Raises:
        ValueError: if a quotation does not end.
    """
    words: list[str] = []
    left_out = False
    for word in shlex.split(command):
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if flag:
            left_out = flag.removeprefix("--") in NOT_SHOWN - {"output_dir"}
        if not left_out:
            words.append(f"{flag}{equals}{public_text(value)}")
    return shlex.join(words)
