"""Flat training configurations: one dataclass per family, named after the flags of diffusers' training scripts.

Each field becomes a flag, and its docstring entry the help text. The same names are the keys of recipes
(`hfgen/recipes/*.yaml`) and of the `config.yaml` of every run.
"""

from hfgen.config.classifier import ClassifierConfig
from hfgen.config.consistency import ConsistencyConfig
from hfgen.config.cyclegan import CycleGANConfig
from hfgen.config.ddpm import DDPMConfig
from hfgen.config.flow_map import FlowMapConfig
from hfgen.config.gan import GANConfig
from hfgen.config.training import TrainingConfig
from hfgen.config.translation import TranslationConfig
from hfgen.config.vae import VAEConfig

__all__ = [
    "ClassifierConfig",
    "ConsistencyConfig",
    "CycleGANConfig",
    "DDPMConfig",
    "FlowMapConfig",
    "GANConfig",
    "TrainingConfig",
    "TranslationConfig",
    "VAEConfig",
]
