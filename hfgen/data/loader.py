"""Batches of a decoded data set as a pure function of (seed, step, process)."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from hfgen.data.images import ImageData
from hfgen.utils.seeds import derive_seed

# A set moves to the accelerator when it takes at most this share of its free memory. On the CPU no set is copied to
# memory at all: it is memory-mapped, and one larger than memory streams from the disk.
DEVICE_MEMORY_SHARE = 0.25


@dataclass
class Batch:
    """What one forward pass sees.

    Attributes:
        images: float32 (B, C, H, W) in [−1, 1].
        labels: int64 (B,), or None.
        step: Optimizer steps done before.
        indices: Which of the data set's images they are, int64 (B,).
    """

    images: Tensor
    labels: Tensor | None
    step: int
    indices: Tensor


class ImageBatches:
    """The batches of a training run, as a pure function of (seed, step, process).

    An epoch is a permutation that follows from (seed, epoch). Each optimizer step takes the next
    `train_batch_size × gradient_accumulation_steps × num_processes` images of it; the last step of an epoch is
    filled up from the permutation's beginning, so that every batch has the same shape.
    """

    def __init__(
        self,
        data: ImageData,
        *,
        train_batch_size: int,
        gradient_accumulation_steps: int = 1,
        num_processes: int = 1,
        process_index: int = 0,
        seed: int = 0,
        random_flip: bool = False,
        device: torch.device | str = "cpu",
    ):
        self.data = data
        self.train_batch_size = train_batch_size
        self.images_per_step = train_batch_size * gradient_accumulation_steps * num_processes
        self.steps_per_epoch = -(-len(data) // self.images_per_step)
        self.num_processes = num_processes
        self.process_index = process_index
        self.seed = seed
        self.random_flip = random_flip
        self.device = torch.device(device)
        self._order = functools.lru_cache(maxsize=2)(self._find_order)  # ends with this object, as do the images
        self.images = data.images
        if (
            self.device.type == "cuda"
            and data.images.nbytes <= DEVICE_MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]
        ):
            self.images = data.images.to(device)

    def indices(self, step: int, micro_step: int = 0) -> Tensor:
        """Return which images this process sees in a forward pass of an optimizer step: int64 (B,)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        block = micro_step * self.num_processes + self.process_index
        start = position * self.images_per_step + block * self.train_batch_size
        return self._order(epoch)[torch.arange(start, start + self.train_batch_size) % len(self.data)]

    def __call__(self, step: int, micro_step: int = 0) -> Batch:
        """Return the batch of a forward pass; a random flip draws from torch's generator."""
        indices = self.indices(step, micro_step)
        images = self.images[indices.to(self.images.device)].to(self.device)
        images = images.float() / 127.5 - 1
        if self.random_flip:
            flipped = torch.rand(len(images), device=self.device) < 0.5
            images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
        labels = self.data.labels
        return Batch(images, None if labels is None else labels[indices].to(self.device), step, indices)

    def _find_order(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed("order", self.seed, epoch))
        return torch.randperm(len(self.data), generator=generator)
