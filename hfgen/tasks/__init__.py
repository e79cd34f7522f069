"""One task a family: what one training step computes, and which pipeline it becomes."""

from collections.abc import Iterator
from typing import Protocol

import PIL.Image
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from hfgen.batches import Batch


class Task(Protocol):
    """The contract between a family and the training loop (`hfgen.training`).

    Attributes:
        modules: The networks to train, by name. The loop replaces each with the one that `accelerate` prepared, and
            `losses` must call these; `pipeline` and `preview` use the original networks.
    """

    modules: dict[str, nn.Module]

    def losses(self, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Yield (module name, scalar loss); the loop updates that module before it resumes here."""
        ...

    def pipeline(self) -> DiffusionPipeline:
        """Return the pipeline to save, sample and publish, made of the networks that are trained."""
        ...

    def preview(self, num_images: int, seed: int) -> PIL.Image.Image:
        """Draw the picture by which a person judges how far training is."""
        ...
