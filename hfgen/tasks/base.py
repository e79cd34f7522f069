"""The base class of training tasks: losses of a training step, and the model to save."""

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
        terms: Additional scalars to log, by name; `kl` of the module `vae` becomes `vae/kl` in `metrics.jsonl`.
    """

    module: str
    value: Tensor
    terms: Mapping[str, Tensor] = MappingProxyType({})


class Diagnosis(NamedTuple):
    """The result of a task's health checks.

    Attributes:
        problems: One sentence each, without a full stop.
        class_shares: Class frequencies of samples by class name, if a classifier is available.
        real_class_shares: The same of training images.
    """

    problems: Sequence[str] = ()
    class_shares: Mapping[str, float] = MappingProxyType({})
    real_class_shares: Mapping[str, float] = MappingProxyType({})


class Task:
    """The interface between a model family and the training loop (`hfgen.training.trainer`).

    Attributes:
        modules: The networks to train, by name. The loop replaces each with its wrapper from `accelerate`, which
            `losses` must call; `save` and `preview` use the unwrapped networks.
        saved_modules: Names of the modules that `save` writes; `use_ema` applies to these.
        index_file: The entry file of a saved model.
        extra_datasets: Additional training data.
    """

    modules: dict[str, nn.Module]
    saved_modules: Set[str]
    index_file: str = DiffusionPipeline.config_name
    extra_datasets: Sequence[ImageData] = ()

    def losses(self, batch: Batch) -> Iterator[Loss]:
        """Yield one loss at a time; the loop updates its module before requesting the next."""
        raise NotImplementedError

    def pipeline(self) -> DiffusionPipeline:
        """Return the pipeline for sampling and publishing."""
        raise NotImplementedError

    def preview(self, num_images: int, seed: int) -> PIL.Image.Image:
        """Render the preview image that is saved during training."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Save the model as a folder that its library loads without hfgen."""
        save_pipeline(self.pipeline(), folder)

    def diagnose(self) -> Diagnosis:
        """Run health checks beyond the losses; called at each checkpoint."""
        return Diagnosis()

    def save_figures(self, folder: Path) -> None:
        """Save additional figures of a finished model."""
