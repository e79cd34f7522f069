"""One task a family: what one training step computes, and what is published in the end."""

from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol

import PIL.Image
from torch import Tensor, nn

from hfgen.data.images import ImageData
from hfgen.data.loader import Batch


class Loss(NamedTuple):
    """What a module is to be updated by, and what else there is to log of it.

    Attributes:
        module: The name of the module.
        value: The loss, a scalar.
        terms: Further scalars by name, for the metrics and the curves.
    """

    module: str
    value: Tensor
    terms: Mapping[str, Tensor] = MappingProxyType({})


class Diagnosis(NamedTuple):
    """What a task finds out of its networks at a checkpoint, beyond the losses.

    Attributes:
        problems: What has gone wrong, as one sentence each without a full stop; most often nothing.
        class_shares: Which share of the images it draws shows each class, if that is known.
        real_class_shares: The same of real images.
    """

    problems: Sequence[str] = ()
    class_shares: Mapping[str, float] = MappingProxyType({})
    real_class_shares: Mapping[str, float] = MappingProxyType({})


class Task(Protocol):
    """The contract between a family and the training loop (`hfgen.training.trainer`).

    Attributes:
        modules: The networks to train, by name. The loop replaces each with the one that `accelerate` prepared, and
            `losses` must call these; `save` and `preview` use the original networks.
        published: The names of those that `save` writes; these are averaged under `use_ema`.
        index_file: The file that `save` writes by which a reader finds the rest.
        further_images: What else it learns from than the training images.
    """

    modules: dict[str, nn.Module]
    published: Set[str]
    index_file: str
    further_images: Sequence[ImageData]

    def losses(self, batch: Batch) -> Iterator[Loss]:
        """Yield a loss; the loop updates its module before it resumes here."""
        ...

    def save(self, folder: Path) -> None:
        """Write what is sampled and published, as a folder that the library it belongs to loads alone."""
        ...

    def diagnose(self) -> Diagnosis:
        """Find out what no loss tells."""
        ...

    def preview(self, num_images: int, seed: int) -> PIL.Image.Image:
        """Draw the picture by which a person judges how far training is."""
        ...

    def pictures(self) -> dict[str, PIL.Image.Image]:
        """Draw what else shows a finished model, by name."""
        ...
