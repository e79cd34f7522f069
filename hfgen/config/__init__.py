"""Flat training configurations, one dataclass a family, with the flags of diffusers' training scripts.

`hfgen.cli.main` turns each field into a flag and takes its help text from the docstrings here. The same names are the
keys of a recipe (`hfgen/recipes/*.yaml`) and of the `config.yaml` that every run keeps.
"""

from hfgen.config.classifier import ClassifierConfig
from hfgen.config.cyclegan import CycleGANConfig
from hfgen.config.ddpm import DDPMConfig
from hfgen.config.gan import GANConfig
from hfgen.config.training import TrainingConfig
from hfgen.config.translation import TranslationConfig
from hfgen.config.vae import VAEConfig

__all__ = [
    "ClassifierConfig",
    "CycleGANConfig",
    "DDPMConfig",
    "GANConfig",
    "TrainingConfig",
    "TranslationConfig",
    "VAEConfig",
]
