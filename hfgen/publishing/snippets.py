"""Hub tags of models, and the scheduler in a model card's code."""

from typing import Any

from hfgen.losses.diffusion import FLOW_PREDICTION
from hfgen.sampling.schedulers import SHORT_NAMES


def tags_of(facts: dict[str, Any]) -> list[str]:
    """Return the Hub tags of a model."""
    config, tags = facts["config"], [*facts["kind"].tags]
    if facts["kind"].use == "translate":
        tags.append("cyclegan" if "cycle_weight" in config else "image-restoration")
    if facts["kind"].use == "denoise":
        tags += ["rectified-flow"] if config.get("prediction_type") == FLOW_PREDICTION else ["ddpm", "diffusion"]
    elif facts["labels"] and facts["kind"].use == "decode":
        tags.append("class-conditional")
    if facts["class_name"] == "ClassConditionalDiffusionPipeline" and config["class_dropout_prob"] > 0:
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
