"""The registry of model families."""

import functools
import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any, Literal

from hfgen.config import (
    ClassifierConfig,
    ConsistencyConfig,
    CycleGANConfig,
    DDPMConfig,
    FlowMapConfig,
    GANConfig,
    TrainingConfig,
    TranslationConfig,
    VAEConfig,
)
from hfgen.config.suggestions import suggestion
from hfgen.config.training import defaults
from hfgen.utils.errors import first_line

ENTRY_POINTS = "hfgen.families"
GUIDANCE = ("guidance_scale", "guidance_interval")


@dataclass(frozen=True)
class Model:
    """A model class that a family saves.

    Attributes:
        use: `denoise` (diffusion), `few_steps` (noise to images in one or a few steps), `decode` (latents to
            images in one call), `translate` (image to image) or `classify`.
        noun: What its models are called.
        network: The component that generates the images.
        sampler: Configuration fields that are also sampler arguments of the pipeline's call.
        card: Template of the model card, a file in `hfgen/templates` or a path.
        library: The library that loads it, by its Hub name.
        task: The Hub's `pipeline_tag`.
        tags: Additional Hub tags.
    """

    use: Literal["denoise", "few_steps", "decode", "translate", "classify"]
    noun: str = "diffusion model"
    network: str = "unet"
    sampler: tuple[str, ...] = ()
    card: str = "card_other.md"
    library: str = "diffusers"
    task: str = "unconditional-image-generation"  # the Hub has no tag for class-conditional models
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        config: Its configuration; `config.family` is the name in `hfgen train NAME`.
        task: Its `hfgen.tasks.base.Task`, as `module:class`, imported when training starts.
        models: The model classes that it saves, by class name.
        modules: Full names of modules to save as remote code, other than hfgen's.
        synonyms: Other words for it, separated by spaces, for which a message suggests its name.
    """

    config: type[TrainingConfig]
    task: str
    models: Mapping[str, Model] = field(default_factory=lambda: MappingProxyType({}))
    modules: tuple[str, ...] = ()
    synonyms: str = ""

    @property
    def name(self) -> str:
        """The name in `hfgen train NAME`."""
        return self.config.family

    def task_class(self) -> type:
        """Import the task."""
        module, _, name = self.task.partition(":")
        return getattr(importlib.import_module(module), name)


DIFFUSION = ("scheduler", "num_inference_steps")
TRANSLATOR = Model(
    "translate", "image-to-image network", "generator", card="card_translation.md", task="image-to-image"
)
CLASSIFIER = Model(
    "classify",
    "classifier",
    card="card_classifier.md",
    library="transformers",
    task="image-classification",
    tags=("judge",),
)
BUILT_IN = (
    Family(
        DDPMConfig,
        "hfgen.tasks.diffusion:DiffusionTask",
        {
            "DDPMPipeline": Model("denoise", sampler=DIFFUSION, card="card_diffusion.md", tags=("unconditional",)),
            "ClassConditionalDiffusionPipeline": Model(
                "denoise",
                sampler=(*DIFFUSION, *GUIDANCE),
                card="card_class_conditional.md",
                tags=("class-conditional",),
            ),
            "ClusterConditionalDiffusionPipeline": Model(
                "denoise",
                sampler=(*DIFFUSION, *GUIDANCE),
                card="card_cluster_conditional.md",
                tags=("unconditional",),
            ),
        },
        synonyms="diffusion flow rectified_flow flow_matching ddim score unet",
    ),
    Family(
        ConsistencyConfig,
        "hfgen.tasks.consistency:ConsistencyTask",
        {
            "ConsistencyModelPipeline": Model(
                "few_steps",
                "consistency model",
                sampler=("num_inference_steps",),
                card="card_consistency.md",
                tags=("consistency-model", "distillation"),
            )
        },
        synonyms="distill distillation student cm",
    ),
    Family(
        FlowMapConfig,
        "hfgen.tasks.flow_map:FlowMapTask",
        {
            "FlowMapPipeline": Model(
                "few_steps",
                "flow map",
                sampler=("num_inference_steps",),
                card="card_flow_map.md",
                tags=("flow-map", "few-step"),
            )
        },
        synonyms="soflow mean_flow meanflow one_step few_step",
    ),
    Family(
        VAEConfig,
        "hfgen.tasks.vae:VAETask",
        {"VAEPipeline": Model("decode", "VAE", "vae", ("prior",), "card_vae.md", tags=("autoencoder", "vae"))},
        synonyms="autoencoder variational_autoencoder iwae",
    ),
    Family(
        GANConfig,
        "hfgen.tasks.gan:GANTask",
        {"GANPipeline": Model("decode", "GAN", "generator", ("truncation",), "card_gan.md", tags=("gan",))},
        synonyms="dcgan wgan adversarial",
    ),
    Family(
        TranslationConfig,
        "hfgen.tasks.translation:TranslationTask",
        {"ImageTranslationPipeline": TRANSLATOR},
        synonyms="pix2pix image_to_image denoising denoiser super_resolution inpainting restoration",
    ),
    Family(
        CycleGANConfig,
        "hfgen.tasks.cyclegan:CycleGANTask",
        {"ImageTranslationPipeline": TRANSLATOR},
        synonyms="unpaired unpaired_translation",
    ),
    Family(
        ClassifierConfig,
        "hfgen.tasks.classifier:ClassifierTask",
        dict.fromkeys(("ResNetForImageClassification", "RegNetForImageClassification"), CLASSIFIER),
        synonyms="judge resnet regnet classification",
    ),
)


@functools.cache
def families() -> dict[str, Family]:
    """Return the families by name: hfgen's, then those of other packages (entry points `hfgen.families`).

    An entry point that fails to load, or whose family or model names are taken, is reported and skipped.
    """
    registry = {family.name: family for family in BUILT_IN}
    for point in entry_points(group=ENTRY_POINTS):
        try:
            family = point.load()
            names = {name for other in registry.values() for name in (other.name, *other.models)}
            if taken := names & {family.name, *family.models}:
                raise ValueError(f"the name {min(taken)} is already taken")
            registry[family.name] = family
        except Exception as error:  # errors of other packages must not affect hfgen's own families
            package = point.dist.name if point.dist else point.module
            print(f"hfgen: skipped the family {point.name} of {package}: {first_line(error)}", file=sys.stderr)
    return registry


def suggest_family(word: str) -> str:
    """Return the end of a message that suggests the family that a word means, or nothing."""
    return suggestion(word, families(), other_words={name: family.synonyms for name, family in families().items()})


def family_of(class_name: str) -> Family | None:
    """Return the first family that saves models of a class, or None for an unknown class."""
    return next((family for family in families().values() if class_name in family.models), None)


def model_of(class_name: str) -> Model | None:
    """Return the entry of a model class, or None for an unknown class."""
    family = family_of(class_name)
    return family.models[class_name] if family else None


def own_sampler(class_name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sampler options of a run's own sample grids, for `hfgen.sampling.sample.sample`.

    Args:
        class_name: The class of its pipeline; an unknown class is treated as a `DDPMPipeline`.
        fields: The fields of the run's configuration; missing ones have their defaults.
    """
    family = family_of(class_name) or BUILT_IN[0]
    model = family.models.get(class_name) or BUILT_IN[0].models["DDPMPipeline"]
    known = defaults(family.config) | dict(fields)
    return {name: known[name] for name in model.sampler}
