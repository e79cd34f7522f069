"""Which template is the page of a model of each kind, and by what the Hub finds such models."""

from typing import Any, NamedTuple

from hfgen.losses.diffusion import FLOW_PREDICTION
from hfgen.sampling.schedulers import SHORT_NAMES


class Kind(NamedTuple):
    """What is said of every model of one kind.

    Attributes:
        template: Its page, in `hfgen/templates`.
        library: The library that loads it.
        task: The Hub's name of what it does (`pipeline_tag`).
        tags: Further words to find it by.
    """

    template: str
    library: str
    task: str
    tags: tuple[str, ...]


UNCONDITIONAL = "unconditional-image-generation"  # the Hub has no other word for class-conditional models
CLASSIFIER = Kind("card_classifier.md", "transformers", "image-classification", ("judge",))
KINDS = {
    "DDPMPipeline": Kind("card_diffusion.md", "diffusers", UNCONDITIONAL, ("unconditional",)),
    "ClassConditionalDiffusionPipeline": Kind(
        "card_class_conditional.md", "diffusers", UNCONDITIONAL, ("class-conditional",)
    ),
    "VAEPipeline": Kind("card_vae.md", "diffusers", UNCONDITIONAL, ("autoencoder", "vae")),
    "GANPipeline": Kind("card_gan.md", "diffusers", UNCONDITIONAL, ("gan",)),
    "ImageTranslationPipeline": Kind("card_translation.md", "diffusers", "image-to-image", ()),
    "ResNetForImageClassification": CLASSIFIER,
    "RegNetForImageClassification": CLASSIFIER,
}
DIFFUSION = ("DDPMPipeline", "ClassConditionalDiffusionPipeline")


def tags_of(facts: dict[str, Any]) -> list[str]:
    """Return the words by which a model is found, of its kind and of its method."""
    config, tags = facts["config"], [*facts["kind"].tags]
    if facts["class_name"] == "ImageTranslationPipeline":
        tags.append("cyclegan" if "cycle_weight" in config else "image-restoration")
    if facts["class_name"] in DIFFUSION:
        tags += ["rectified-flow"] if config.get("prediction_type") == FLOW_PREDICTION else ["ddpm", "diffusion"]
    elif facts["labels"]:
        tags.append("class-conditional")
    if facts["class_name"] == "ClassConditionalDiffusionPipeline" and config["class_dropout_prob"] > 0:
        tags.append("classifier-free-guidance")
    return tags


def in_code(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the scheduler and the steps that stand in the code of a page, if they are not the pipeline's own."""
    config = facts["config"]
    if facts["class_name"] != "DDPMPipeline":
        return {}
    steps = config["num_inference_steps"]
    if config.get("prediction_type") == FLOW_PREDICTION:  # its own scheduler is the one for it
        return {"scheduler_in_code": None, "steps_in_code": steps}
    if config["scheduler"] in ("ddim", "dpmsolver"):  # `DDPMPipeline` takes no others but its own
        return {"scheduler_in_code": SHORT_NAMES[config["scheduler"]], "steps_in_code": steps}
    return {"scheduler_in_code": None, "steps_in_code": min(max(steps, 100), config["num_train_timesteps"])}
