"""The base class of training tasks: losses of a training step, and the model to save."""

from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import PIL.Image
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from hfgen.config import TrainingConfig
from hfgen.data.images import ImageData
from hfgen.data.loader import Batch
from hfgen.families import own_sampler
from hfgen.figures.grids import sample_grid
from hfgen.pipelines.saving import save_pipeline
from hfgen.sampling.sample import is_conditional, labels_of, sample
from hfgen.utils.seeds import derive_seed


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

    def values(self) -> dict[str, Tensor]:
        """Return the loss and its terms, without their graphs, by their names in `metrics.jsonl`."""
        named = {f"loss/{self.module}": self.value} | {f"{self.module}/{term}": v for term, v in self.terms.items()}
        return {name: value.detach() for name, value in named.items()}


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
        config: The configuration.
        data: The training images.
        modules: The networks to train, by name. The loop replaces each with its wrapper from `accelerate`, which
            `losses` must call; `save` and `preview` use the unwrapped networks.
        saved_modules: Names of the modules that `save` writes; `use_ema` applies to these.
        index_file: The entry file of a saved model.
        extra_datasets: Additional training data.
        generates: Whether `sample` generates images.
        metric: The metric by which evaluations while training choose the best checkpoint: `frechet_distance` of
            samples in the feature space of a judge, or one of `validate`.
        loss_metric: The metric to use without a judge, or None if no loss measures the quality of samples.
        snapshot_step: Optimizer step after which the loop calls `take_snapshot`, if any.
        snapshot: The network that it kept, which `save` writes too.
    """

    config: TrainingConfig
    data: ImageData
    modules: dict[str, nn.Module]
    saved_modules: Set[str]
    index_file: str = DiffusionPipeline.config_name
    extra_datasets: Sequence[ImageData] = ()
    generates: ClassVar[bool] = True
    metric: ClassVar[str] = "frechet_distance"
    loss_metric: ClassVar[str | None] = None
    snapshot_step: int | None = None
    snapshot: nn.Module | None = None

    def losses(self, batch: Batch) -> Iterator[Loss]:
        """Yield one loss at a time; the loop updates its module before requesting the next."""
        raise NotImplementedError

    def fixed_networks(self) -> Sequence[nn.Module]:
        """Return the networks that the losses use and that are not trained; all processes must have the same."""
        return ()

    def remarks(self) -> Sequence[str]:
        """Return what to print before the training, one sentence each, without a full stop."""
        return ()

    def validate(self, batch: Batch) -> dict[str, Tensor | float]:
        """Return metrics of held-out images, scalars by name; by default the losses and their terms."""
        return {name: value for loss in self.losses(batch) for name, value in loss.values().items()}

    def pipeline(self) -> DiffusionPipeline:
        """Return the pipeline for sampling and publishing."""
        raise NotImplementedError

    def sampler(self) -> dict[str, Any]:
        """Return the sampler options of the configuration, for `hfgen.sampling.sample.sample`."""
        return own_sampler(type(self.pipeline()).__name__, self.config.to_dict())

    def sample(self, num_images: int, seed: int, class_labels: Sequence[int] = ()) -> Tensor:
        """Sample images with the current weights, uint8 (N, C, H, W); image i depends on (seed, i) only.

        Args:
            num_images: Number of images.
            seed: Random seed.
            class_labels: Classes of a class-conditional model, cycled; by default all classes in turn.
        """
        options = {"num_images": num_images, "seed": seed, "class_labels": class_labels}
        return torch.cat(list(sample(self.pipeline(), **options, **self.sampler())))

    def reference(self) -> ImageData:
        """Return the real images to compare the results of `sample` with; by default those of the task."""
        return self.data

    def preview(self, num_images: int, seed: int) -> PIL.Image.Image:
        """Render the image saved during training: a sample grid, with a row per class of a class-conditional model."""
        images, pipeline = self.sample(num_images, seed), self.pipeline()
        if not is_conditional(pipeline):
            return sample_grid(images)
        return sample_grid(images, labels_of(pipeline, (), range(num_images)), list(pipeline.labels))

    def example_indices(self, num_images: int, seed: int) -> Tensor:
        """Return indices of random training images for a preview, int64 (N,)."""
        generator = torch.Generator().manual_seed(derive_seed("preview", seed))
        return torch.randperm(len(self.data), generator=generator)[:num_images]

    def save(self, folder: Path) -> None:
        """Save the model as a folder that its library loads without hfgen."""
        save_pipeline(self.pipeline(), folder)

    def take_snapshot(self) -> None:
        """Keep a copy of a network as `snapshot`; it has its averaged weights and is in evaluation mode."""

    def load_snapshot(self, folder: Path) -> None:
        """Load the snapshot that `save` wrote to a folder, or None if there is none."""

    def diagnose(self) -> Diagnosis:
        """Run health checks beyond the losses; called at each checkpoint."""
        return Diagnosis()

    def save_figures(self, folder: Path) -> None:
        """Save additional figures of a finished model."""
