"""One task a family: what one training step computes, and what is published in the end."""

from collections.abc import Iterator, Set
from pathlib import Path
from typing import Protocol

import PIL.Image
from torch import Tensor, nn

from hfgen.batches import Batch


class Task(Protocol):
    """The contract between a family and the training loop (`hfgen.training`).

    Attributes:
        modules: The networks to train, by name. The loop replaces each with the one that `accelerate` prepared, and
            `losses` must call these; `save` and `preview` use the original networks.
        published: The names of those that `save` writes; these are averaged under `use_ema`.
        index_file: The file that `save` writes by which a reader finds the rest.
    """

    modules: dict[str, nn.Module]
    published: Set[str]
    index_file: str

    def losses(self, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Yield (module name, scalar loss); the loop updates that module before it resumes here."""
        ...

    def save(self, folder: Path) -> None:
        """Write what is sampled and published, as a folder that the library it belongs to loads alone."""
        ...

    def preview(self, num_images: int, seed: int) -> PIL.Image.Image:
        """Draw the picture by which a person judges how far training is."""
        ...
