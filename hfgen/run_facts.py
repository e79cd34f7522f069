"""What a run folder tells of a model, without what it tells of the machine and its user."""

import json
import math
import shlex
from pathlib import Path
from typing import Any

from safetensors import safe_open

from hfgen.config.training import CONFIG_FILE, read_fields
from hfgen.data import public_name
from hfgen.errors import UserError
from hfgen.loading import INDEX
from hfgen.metrics.judge import UPSCALE
from hfgen.model_kinds import KINDS
from hfgen.records import RUN_FILE
from hfgen.report import ANALYSIS_RECORD, RECORD
from hfgen.sampling import NETWORKS

STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")  # of batch normalisation: no parameters
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


def _class_name_of(folder: Path) -> str | None:
    """Return the name of the class that a folder's model is of, or None if it holds no model."""
    for file, key in ((INDEX, "_class_name"), ("config.json", "architectures")):
        if (folder / file).is_file():
            named = json.loads((folder / file).read_text()).get(key)
            return named[-1] if isinstance(named, list) else named
    return None


def read_run(run: Path) -> dict[str, Any]:
    """Collect what a page says of a run; nothing in it names a place on this machine.

    Raises:
        UserError: if the folder holds no finished run, or one that no page can be written of.
    """
    class_name = _class_name_of(run)
    if class_name is None or not (run / RUN_FILE).is_file() or not (run / CONFIG_FILE).is_file():
        raise UserError(f"{run} holds no finished run of hfgen train")
    if class_name not in KINDS:
        raise UserError(f"{run} holds a {class_name}, of which hfgen can write no page")
    config = read_fields(run / CONFIG_FILE)
    folder = config["train_data_dir"]
    training = json.loads((run / RUN_FILE).read_text())
    shown = {name: value for name, value in config.items() if name not in NOT_SHOWN and value not in (None, [])}
    reports = {
        name: json.loads((run / file).read_text()) if (run / file).is_file() else None
        for name, file in (("evaluation", RECORD), ("analysis", ANALYSIS_RECORD))
    }
    return {
        "class_name": class_name,
        "hub_model_id": config["hub_model_id"],
        "kind": KINDS[class_name],
        "config": {name: _public(value) for name, value in shown.items()},
        "data": Path(folder).name if folder else public_name(config["dataset_name"]),
        "training": training | {"command": public_command(training["command"])},
        **reports,
        **_network(run, class_name),
    }


def _network(run: Path, class_name: str) -> dict[str, Any]:
    """Return the number of parameters, the size and channels of the images, and the classes if there are any."""
    labels: list[str] = []
    if KINDS[class_name].library == "diffusers":
        network = NETWORKS.get(class_name, "unet")
        config = json.loads((run / network / "config.json").read_text())
        size, channels = config["sample_size"], config.get("in_channels") or config["out_channels"]
        height, width = (size, size) if isinstance(size, int) else size
        parts = [network, "inverse_generator"] if (run / "inverse_generator").is_dir() else [network]
        weights = [run / part / "diffusion_pytorch_model.safetensors" for part in parts]
        labels = list(json.loads((run / INDEX).read_text()).get("id2label", {}).values())
    else:
        size = json.loads((run / "preprocessor_config.json").read_text())["size"]
        channels = json.loads((run / "config.json").read_text())["num_channels"]
        height, width = size["height"] // UPSCALE, size["width"] // UPSCALE
        weights = [run / "model.safetensors"]
    parameters = sum(map(_count_parameters, weights))
    kind = "grey" if channels == 1 else "RGB"
    return {"parameters": parameters, "size": f"{kind} {height}×{width}-pixel", "channels": channels, "labels": labels}


def _count_parameters(weights: Path) -> int:
    with safe_open(weights, "pt") as file:
        names = [name for name in file.keys() if not name.endswith(STATISTICS)]  # noqa: SIM118
        return sum(math.prod(file.get_slice(name).get_shape()) for name in names)


def _public(value: Any) -> Any:
    """Take the place on this machine from a path, and leave everything else as it is."""
    if not isinstance(value, str):
        return value
    path = Path(value.removeprefix("file://"))
    return path.name if path.is_absolute() or value.startswith("~") or ".." in path.parts else value


def public_command(command: str) -> str:
    """Take from a command what is nobody's business, and the places on this machine."""
    words: list[str] = []
    left_out = False
    for word in shlex.split(command):
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if flag:
            left_out = flag.removeprefix("--") in NOT_SHOWN - {"output_dir"}
        if not left_out:
            words.append(f"{flag}{equals}{_public(value)}")
    return shlex.join(words)
