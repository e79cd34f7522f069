"""The base class of the families: what one training step computes, and which model is saved."""

from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import PIL.Image
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from hfgen.data.images import ImageData
from hfgen.data.loader import Batch
from hfgen.pipelines.saving import save_pipeline


class Loss(NamedTuple):
    """The loss of one module.

    Attributes:
        module: The name of the module to update.
        value: The loss, a scalar.
        terms: Further scalars to log, by name.
    """

    module: str
    value: Tensor
    terms: Mapping[str, Tensor] = MappingProxyType({})


class Diagnosis(NamedTuple):
    """The result of a task's health checks.

    Attributes:
        problems: One sentence each, without a full stop.
        class_shares: Frequencies of the classes among samples, by name, if a classifier is at hand.
        real_class_shares: The same of training images.
    """

    problems: Sequence[str] = ()
    class_shares: Mapping[str, float] = MappingProxyType({})
    real_class_shares: Mapping[str, float] = MappingProxyType({})


class Task:
    """A family, as the training loop (`hfgen.training.trainer`) sees it; each family fills in what it has.

    Attributes:
        modules: The networks to train, by name. The loop replaces each with the one that `accelerate` prepared, and
            `losses` must call these; `save` and `preview` use the original networks.
        saved_modules: The names of those that `save` writes; these are averaged under `use_ema`.
        index_file: The file that `save` writes by which a reader finds the rest.
        extra_datasets: Additional training data.
    """

    modules: dict[str, nn.Module]
    saved_modules: Set[str]
    index_file: str = DiffusionPipeline.config_name
    extra_datasets: Sequence[ImageData] = ()

    def losses(self, batch: Batch) -> Iterator[Loss]:
        """Yield one loss after another; the loop updates the module of each before it resumes here."""
        raise NotImplementedError

    def pipeline(self) -> DiffusionPipeline:
        """Return the pipeline that is sampled and published."""
        raise NotImplementedError

    def preview(self, num_images: int, seed: int) -> PIL.Image.Image:
        """Render the preview image of a step, by which a person judges how far training is."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write the model, as a folder that its library loads without hfgen."""
        save_pipeline(self.pipeline(), folder)

    def diagnose(self) -> Diagnosis:
        """Run health checks beyond the losses, at a checkpoint."""
        return Diagnosis()

    def save_figures(self, folder: Path) -> None:
        """Save further figures of a finished model."""
