"""The families of models: the one place that knows which ones there are."""

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
    CycleGANConfig,
    DDPMConfig,
    GANConfig,
    TrainingConfig,
    TranslationConfig,
    VAEConfig,
)
from hfgen.config.training import defaults
from hfgen.utils.errors import first_line

ENTRY_POINTS = "hfgen.families"
GUIDANCE = ("guidance_scale", "guidance_interval")


@dataclass(frozen=True)
class Model:
    """A class of models that a family saves.

    Attributes:
        use: `denoise` (a diffusion model of pixels), `decode` (one call makes images of latents), `translate` (images
            of images) or `classify`.
        network: The component that makes the images.
        sampler: Fields of the configuration that decide how images are drawn, which the pipeline's call takes too.
        card: Template of the model card, a file in `hfgen/templates` or the path of another one.
        library: The library that loads it, as the Hub names it.
        task: The task, as the Hub names it (`pipeline_tag`).
        tags: Further words by which the Hub finds it.
    """

    use: Literal["denoise", "decode", "translate", "classify"]
    network: str = "unet"
    sampler: tuple[str, ...] = ()
    card: str = "card_other.md"
    library: str = "diffusers"
    task: str = "unconditional-image-generation"  # the Hub has no other word for class-conditional models
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        config: Its configuration; `config.family` is the name in `hfgen train NAME`.
        task: Its `hfgen.tasks.base.Task`, as `module:class`, imported when a training begins.
        models: What it saves, by class name.
        modules: Modules whose files travel with the weights, by full name, where they are not hfgen's.
    """

    config: type[TrainingConfig]
    task: str
    models: Mapping[str, Model] = field(default_factory=lambda: MappingProxyType({}))
    modules: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name in `hfgen train NAME`."""
        return self.config.family

    def task_class(self) -> type:
        """Import the task."""
        module, _, name = self.task.partition(":")
        return getattr(importlib.import_module(module), name)


DIFFUSION = ("scheduler", "num_inference_steps")
TRANSLATOR = Model("translate", "generator", card="card_translation.md", task="image-to-image")
CLASSIFIER = Model(
    "classify", card="card_classifier.md", library="transformers", task="image-classification", tags=("judge",)
)
BUILT_IN = (
    Family(
        DDPMConfig,
        "hfgen.tasks.diffusion:DiffusionTask",
        {
            "DDPMPipeline": Model("denoise", "unet", DIFFUSION, "card_diffusion.md", tags=("unconditional",)),
            "ClassConditionalDiffusionPipeline": Model(
                "denoise", "unet", (*DIFFUSION, *GUIDANCE), "card_class_conditional.md", tags=("class-conditional",)
            ),
        },
    ),
    Family(
        VAEConfig,
        "hfgen.tasks.vae:VAETask",
        {"VAEPipeline": Model("decode", "vae", ("prior",), "card_vae.md", tags=("autoencoder", "vae"))},
    ),
    Family(
        GANConfig,
        "hfgen.tasks.gan:GANTask",
        {"GANPipeline": Model("decode", "generator", ("truncation",), "card_gan.md", tags=("gan",))},
    ),
    Family(TranslationConfig, "hfgen.tasks.translation:TranslationTask", {"ImageTranslationPipeline": TRANSLATOR}),
    Family(CycleGANConfig, "hfgen.tasks.cyclegan:CycleGANTask", {"ImageTranslationPipeline": TRANSLATOR}),
    Family(
        ClassifierConfig,
        "hfgen.tasks.classifier:ClassifierTask",
        dict.fromkeys(("ResNetForImageClassification", "RegNetForImageClassification"), CLASSIFIER),
    ),
)


@functools.cache
def families() -> dict[str, Family]:
    """Return the families by name: hfgen's, then those of other packages (entry points `hfgen.families`).

    An entry point that cannot be loaded, or whose family or models have names that are taken, is said and left out.
    """
    found = {family.name: family for family in BUILT_IN}
    for point in entry_points(group=ENTRY_POINTS):
        try:
            family = point.load()
            known = {name for other in found.values() for name in (other.name, *other.models)}
            if taken := known & {family.name, *family.models}:
                raise ValueError(f"there is a {min(taken)} already")
            found[family.name] = family
        except Exception as error:  # whatever another package does, hfgen's own families work
            package = point.dist.name if point.dist else point.module
            print(f"hfgen: left out the family {point.name} of {package}: {first_line(error)}", file=sys.stderr)
    return found


def family_of(class_name: str) -> Family | None:
    """Return the first family that saves models of a class, or None for a class that hfgen does not know."""
    return next((family for family in families().values() if class_name in family.models), None)


def model_of(class_name: str) -> Model | None:
    """Return what is known of a class of models, or None for one that hfgen does not know."""
    family = family_of(class_name)
    return family.models[class_name] if family else None


def own_sampler(class_name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a run draws its own grids, as `hfgen.sampling.sample.sample` takes it.

    Args:
        class_name: The class of its pipeline; one that hfgen does not know is drawn from like a `DDPMPipeline`.
        fields: Those of the run's configuration; where one is missing, its default holds.
    """
    family = family_of(class_name) or BUILT_IN[0]
    model = family.models.get(class_name) or BUILT_IN[0].models["DDPMPipeline"]
    known = defaults(family.config) | dict(fields)
    return {name: known[name] for name in model.sampler}
