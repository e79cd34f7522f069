"""Hub tags of models, and the values of the code in a model card."""

import inspect
from typing import Any

import diffusers
import numpy as np
from diffusers import SchedulerMixin

from hfgen.families import own_sampler
from hfgen.losses.diffusion import FLOW_PREDICTION, FLOW_SCHEDULERS
from hfgen.sampling.sample import clusters_of
from hfgen.sampling.schedulers import FLOW_SOLVERS, SETTINGS, SHORT_NAMES
from hfgen.utils.seeds import derive_seed
from hfgen.utils.untrusted import is_word

AGAIN = 4  # images of the sample grid that a card's code makes again
AUTOCAST = {"bf16": "bfloat16", "fp16": "float16"}  # in which training also draws its sample grids


def tags_of(facts: dict[str, Any]) -> list[str]:
    """Return the Hub tags of a model."""
    config, tags = facts["config"], [*facts["kind"].tags]
    if facts["kind"].use == "translate":
        tags.append("cyclegan" if "cycle_weight" in config else "image-restoration")
    if facts["kind"].use == "denoise":
        tags += ["rectified-flow"] if config.get("prediction_type") == FLOW_PREDICTION else ["ddpm", "diffusion"]
    elif facts["labels"] and facts["kind"].use in ("few_steps", "decode"):
        tags.append("class-conditional")
    if facts["is_latent"]:
        tags.append("latent-diffusion")
    guided = ("ClassConditionalDiffusionPipeline", "ClusterConditionalDiffusionPipeline")
    if facts["class_name"] in guided and config["class_dropout_prob"] > 0:
        tags.append("classifier-free-guidance")
    return tags


def in_code(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the scheduler (if not the pipeline's own) and steps for the code of a diffusion model's card."""
    config = facts["config"]
    if facts["class_name"] != "DDPMPipeline":
        return {}
    steps = config["num_inference_steps"]
    if config.get("prediction_type") == FLOW_PREDICTION:  # the pipeline's own scheduler fits
        return {"scheduler_in_code": None, "steps_in_code": steps}
    if config["scheduler"] in ("ddim", "dpmsolver"):  # other schedulers do not work in `DDPMPipeline`
        return {"scheduler_in_code": SHORT_NAMES[config["scheduler"]], "steps_in_code": steps}
    return {"scheduler_in_code": None, "steps_in_code": min(max(steps, 100), config["num_train_timesteps"])}


def reproduction(facts: dict[str, Any]) -> dict[str, Any] | None:
    """Return the values of the code that makes the first images of a run's sample grid again, with diffusers alone.

    Returns:
        None for a model without seeded samples, a scheduler whose timesteps hfgen corrects, or a damaged record.
    """
    config, training, class_name = facts["config"], facts["training"], facts["class_name"]
    sampler = own_sampler(class_name, config)
    count = min(AGAIN, config.get("num_samples", AGAIN))
    network = facts["kind"].network
    if not is_word(training["device_type"]) or count < 1:
        return None
    again: dict[str, Any] = {
        "count": count,
        "device": training["device_type"],
        "network": network,
        "autocast": AUTOCAST.get(training["mixed_precision"]) if network != "vae" else None,  # its decoder has none
        "scheduler": None,
        "is_rounded": False,
        "has_code": class_name != "ConsistencyModelPipeline",
        "has_learnt_steps": any(
            each["is_own"] and each["count"] == sampler.get("num_inference_steps") for each in facts["learnt_steps"]
        ),
    }
    match class_name:
        case "DDPMPipeline":
            return _denoising(config, sampler, again)
        case "ClassConditionalDiffusionPipeline":
            labels = facts["labels"]
            again["arguments"] = {"class_labels": [labels[index % len(labels)] for index in range(count)]}
        case "ClusterConditionalDiffusionPipeline":
            seeds = (derive_seed("image", 0, index) for index in range(count))
            again["arguments"] = {"batch_size": count, "clusters": clusters_of(facts["cluster_shares"], seeds)}
        case "VAEPipeline" | "GANPipeline" | "FlowMapPipeline":  # of all classes in turn
            again["arguments"] = {"batch_size": count}
        case "ConsistencyModelPipeline":
            if again["autocast"] and sampler["num_inference_steps"] > 1:
                # with autocast, diffusers' scheduler draws the noise between the steps in half precision
                again |= {"autocast": None, "is_rounded": True}
            again["arguments"] = {"batch_size": count}
            if labels := facts["labels"]:
                again["arguments"]["class_labels"] = [index % len(labels) for index in range(count)]
        case _:
            return None
    again["arguments"] |= {name: value for name, value in sampler.items() if value is not None and name != "scheduler"}
    again["arguments"] = {name: repr(value) for name, value in again["arguments"].items()}
    return again


def _denoising(config: dict[str, Any], sampler: dict[str, Any], again: dict[str, Any]) -> dict[str, Any] | None:
    """Add the values of a denoising loop, since `DDPMPipeline` takes few schedulers."""
    name, steps, total = sampler["scheduler"], sampler["num_inference_steps"], config["num_train_timesteps"]
    scheduler = SHORT_NAMES.get(name, name)
    scheduler_class = getattr(diffusers, scheduler, None)
    is_scheduler = isinstance(scheduler_class, type) and issubclass(scheduler_class, SchedulerMixin)
    if not is_scheduler or steps < 1 or len(np.arange(total, 0, -total / steps)) != steps:  # rounded to one too many
        return None
    settings = SETTINGS.get(name, {})
    if config.get("prediction_type") == FLOW_PREDICTION and scheduler in FLOW_SOLVERS:
        settings = {"prediction_type": FLOW_PREDICTION, "use_flow_sigmas": True}
    return again | {
        "scheduler": scheduler,
        "settings": {option: repr(value) for option, value in settings.items()},
        "steps": steps,
        "is_flow_scheduler": issubclass(scheduler_class, FLOW_SCHEDULERS),
        "takes_generator": "generator" in inspect.signature(scheduler_class.step).parameters,
    }
