"""How runs draw their own images."""

from typing import Any

from hfgen.config.ddpm import DDPMConfig
from hfgen.config.gan import GANConfig
from hfgen.config.training import defaults
from hfgen.config.vae import VAEConfig

GUIDANCE = ("guidance_scale", "guidance_interval")


def own_sampler(pipeline: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Return how a run draws its own grids, as `hfgen.sampling.sample.sample` takes it.

    Args:
        pipeline: The name of its pipeline's class.
        fields: Those of the run's configuration; where one is missing, its default holds.
    """
    config_class, names = {
        "ClassConditionalDiffusionPipeline": (DDPMConfig, ("scheduler", "num_inference_steps", *GUIDANCE)),
        "VAEPipeline": (VAEConfig, ("prior",)),
        "GANPipeline": (GANConfig, ("truncation",)),
    }.get(pipeline, (DDPMConfig, ("scheduler", "num_inference_steps")))
    known = defaults(config_class) | fields
    return {name: known[name] for name in names}
