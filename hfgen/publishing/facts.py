"""Model-card facts read from a run, with local paths removed."""

import math
from pathlib import Path
from typing import Any

from diffusers import SchedulerMixin
from safetensors import safe_open

from hfgen.config.training import CONFIG_FILE, NOT_SHOWN, read_fields
from hfgen.data.sources import public_name
from hfgen.evaluation.results import read_record
from hfgen.families import model_of
from hfgen.judges.judge import UPSCALE
from hfgen.pipelines.consistency import NAMES
from hfgen.pipelines.loading import INDEX, require_folder
from hfgen.publishing.licenses import data_license
from hfgen.runs.folder import ANALYSIS, EVALUATION, RUN_FILE, run_fields, suggest_runs
from hfgen.runs.record import read_training
from hfgen.utils.errors import UserError
from hfgen.utils.privacy import public_text, public_value
from hfgen.utils.untrusted import (
    LEARNT_STEPS,
    check_content,
    check_learnt_steps,
    is_word,
    one_line,
    own_file,
    read_index,
    read_json,
    shown,
)

STATISTICS = (  # buffers of batch norms and of spatial latents, not parameters
    ".running_mean", ".running_var", ".num_batches_tracked", "latents_mean", "latents_std",
)  # fmt: skip
TRAINED_ON = (  # fields that name training data, the main one first
    "train_data_dir", "dataset_name", "input_data_dir", "target_dataset_name", "target_data_dir",
)  # fmt: skip
LOCAL = "local images"
USED_IN_CODE = {  # fields in the code of a model card, and their validators
    "guidance_scale": lambda value: isinstance(value, int | float),
    "num_inference_steps": lambda value: isinstance(value, int),
    "num_samples": lambda value: isinstance(value, int),
    "num_train_timesteps": lambda value: isinstance(value, int),
    "prior": is_word,
    "scheduler": is_word,
}


def require_run(run: Path) -> str:
    """Return the model class name of a finished run.

    Raises:
        UserError: if the folder holds no finished run, or its model class is unknown.
    """
    require_folder(run)
    class_name = _class_name_of(run)
    if class_name is None or not own_file(run, RUN_FILE).is_file() or not own_file(run, CONFIG_FILE).is_file():
        raise UserError(f"{run} holds no finished run of hfgen train" + suggest_runs(run, RUN_FILE))
    if model_of(class_name) is None:
        raise UserError(f"{run} holds a {one_line(class_name)}, for which hfgen has no model card")
    return class_name


def _class_name_of(folder: Path) -> str | None:
    """Return the class name of a folder's model, or None if it holds none."""
    if own_file(folder, INDEX).is_file():
        named = read_index(folder / INDEX)["_class_name"]
        return named[-1] if isinstance(named, list) else named
    if own_file(folder, "config.json").is_file():
        named = read_json(folder / "config.json").get("architectures")
        return named[0] if isinstance(named, list) and named and isinstance(named[0], str) else None
    return None


def read_run(run: Path) -> dict[str, Any]:
    """Collect the values of a run's model card, without local paths.

    Raises:
        UserError: if the folder holds no finished run, its model class is unknown, or a file is damaged or a symbolic
            link.
    """
    class_name = require_run(run)
    config = _read_config(run / CONFIG_FILE)
    training = read_training(run / RUN_FILE)
    fields = {name: value for name, value in config.items() if name not in NOT_SHOWN and value not in (None, [])}
    reports = {
        name: read_record(own_file(run, file)) if own_file(run, file).is_file() else None
        for name, file in (("evaluation", EVALUATION), ("analysis", ANALYSIS))
    }
    names, network = _data_of(config), _network(run, class_name)
    of_vae = _data_of_vae(run, config) if network["is_latent"] else []
    scheduler = own_file(run, f"scheduler/{SchedulerMixin.config_name}")
    learnt = _learnt_steps(scheduler) if scheduler.is_file() else []
    return {
        "class_name": class_name,
        "hub_model_id": config.get("hub_model_id"),
        "kind": model_of(class_name),
        "config": {name: public_value(value) for name, value in fields.items()},
        "data": names[0],
        "data_licenses": [data_license(name) for name in dict.fromkeys([*names, *of_vae])],
        "data_of_vae": of_vae,
        "training": training,
        "teacher": _teacher_of(config),
        "reference_split": one_line(training["reference_split"]) if training.get("reference_split") else None,
        "learnt_steps": learnt,
        **reports,
        **network,
    }


def _data_of(config: dict[str, Any]) -> list[str]:
    """Return the public names of the training data of a configuration, the main ones first."""
    return [public_text(public_name(config[name])) or LOCAL for name in TRAINED_ON if config.get(name)]


def _data_of_vae(run: Path, config: dict[str, Any]) -> list[str]:
    """Return the public names of what the VAE of a latent model was trained on, or nothing if that is unknown.

    They are stored with its weights, or else, as by older versions, in its run.
    """
    stored = read_json(own_file(run, "vae/config.json")).get("trained_on")
    if isinstance(stored, list) and stored:
        return [public_text(one_line(name)) or LOCAL for name in stored]
    return _data_of(run_fields(Path(config["vae"]).expanduser())) if isinstance(config.get("vae"), str) else []


def _learnt_steps(scheduler: Path) -> list[dict[str, Any]]:
    """Return the entries of learnt time steps in the configuration of a scheduler, and what they are for.

    Those for the scheduler itself, which a pipeline uses by itself, come first.
    """
    config = read_json(scheduler)
    check_learnt_steps(config, str(scheduler))
    found = []
    for key, entry in config.get(LEARNT_STEPS, {}).items():
        name, _, count = key.partition(":")
        found.append({"scheduler": name, "is_own": name == config.get("_class_name"), "count": int(count), **entry})
    return sorted(found, key=lambda each: (not each["is_own"], each["scheduler"], each["count"]))


def _teacher_of(config: dict[str, Any]) -> str | None:
    """Return the model that a student was distilled from: its Hub id, or else the name of its folder or recipe."""
    if not (teacher := config.get("teacher")):
        return None
    return str(run_fields(Path(teacher)).get("hub_model_id") or public_text(teacher))


def _read_config(file: Path) -> dict[str, Any]:
    """Read a run's configuration and check the fields that a model card needs."""
    config = read_fields(file)
    places = [config.get("train_data_dir"), config.get("dataset_name")]
    if "seed" not in config or not any(isinstance(place, str) and place for place in places):
        raise UserError(f"{file} does not record the training data and the seed")
    for name, is_valid in USED_IN_CODE.items():
        if config.get(name) is not None and not is_valid(config[name]):
            raise UserError(f"{file}: {name} cannot be {shown(config[name])}")
    return config


def _network(run: Path, class_name: str) -> dict[str, Any]:
    """Return the parameter count, image size and channels, class names, proportions of clusters, other networks."""
    labels: list[str] = []
    cluster_shares: list[float] = []
    has_guide = is_latent = False
    try:
        model = model_of(class_name)
        if model.use != "classify":
            network = model.network
            more = [part for part in ("inverse_generator", "flow", "vae") if own_file(run, part).is_dir()]
            is_latent = model.use == "denoise" and "vae" in more
            config = read_json(own_file(run, f"{'vae' if is_latent else network}/config.json"))
            drawn, given = config.get("out_channels"), config.get("in_channels")
            size, channels = config["sample_size"], given if model.use == "translate" else drawn or given
            height, width = (size, size) if isinstance(size, int) else size
            parts = dict.fromkeys([network, *more])
            weights = [own_file(run, f"{part}/diffusion_pytorch_model.safetensors") for part in parts]
            index = read_index(run / INDEX)
            labels = list((index.get("id2label") or index.get(NAMES) or {}).values())
            has_guide = bool(index.get("guide", [None])[0])
            shares = dict(index.get("cluster_shares", {}))
            cluster_shares = [float(shares[number]) for number in sorted(shares, key=int)]
        else:
            size = read_json(own_file(run, "preprocessor_config.json"))["size"]
            channels = read_json(own_file(run, "config.json"))["num_channels"]
            height, width = size["height"] // UPSCALE, size["width"] // UPSCALE
            weights = [own_file(run, "model.safetensors")]
        if not all(type(number) is int for number in (channels, height, width)):
            raise TypeError("these are written into code")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the configuration of the model in {run} does not have the image size") from error
    for file in weights:
        check_content(file)
    parameters = sum(map(_count_parameters, weights))
    colours = "grey" if channels == 1 else "RGB"
    return {
        "parameters": parameters,
        "size": f"{colours} {height}×{width}-pixel",
        "channels": channels,
        "shape": [channels, height, width],
        "labels": labels,
        "cluster_shares": cluster_shares,
        "has_guide": has_guide,
        "is_latent": is_latent,
    }


def _count_parameters(weights: Path) -> int:
    with safe_open(weights, "pt") as file:
        names = [name for name in file.keys() if not name.endswith(STATISTICS)]  # noqa: SIM118
        return sum(math.prod(file.get_slice(name).get_shape()) for name in names)
