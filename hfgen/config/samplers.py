"""The sampler that each run uses for its own sample grids."""

from typing import Any

from hfgen.config.ddpm import DDPMConfig
from hfgen.config.gan import GANConfig
from hfgen.config.training import defaults
from hfgen.config.vae import VAEConfig

GUIDANCE = ("guidance_scale", "guidance_interval")


def own_sampler(pipeline: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the sampler options of a run's own sample grids, as accepted by `hfgen.sampling.sample.sample`.

    Args:
        pipeline: Class name of the run's pipeline.
        fields: The run's configuration; missing fields have their defaults.
    """
    config_class, names = {
        "ClassConditionalDiffusionPipeline": (DDPMConfig, ("scheduler", "num_inference_steps", *GUIDANCE)),
        "VAEPipeline": (VAEConfig, ("prior",)),
        "GANPipeline": (GANConfig, ("truncation",)),
    }.get(pipeline, (DDPMConfig, ("scheduler", "num_inference_steps")))
    known = defaults(config_class) | fields
    return {name: known[name] for name in names}
