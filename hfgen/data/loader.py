"""Training batches of a decoded data set, as a pure function of (seed, step, process)."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from hfgen.data.images import ImageData
from hfgen.utils.seeds import derive_seed

# A data set is moved to the accelerator if it takes at most this fraction of its free memory. On the CPU it is only
# memory-mapped, so that a data set larger than memory streams from the disk.
DEVICE_MEMORY_SHARE = 0.25


@dataclass
class Batch:
    """The data of one forward pass.

    Attributes:
        images: float32 (B, C, H, W) in [−1, 1].
        labels: int64 (B,), or None.
        step: Number of optimizer steps before.
        indices: Indices of the images in the data set, int64 (B,).
        progress: Completed fraction of the training, from 0 to 1.
    """

    images: Tensor
    labels: Tensor | None
    step: int
    indices: Tensor
    progress: float = 0.0


class ImageBatches:
    """The batches of a training run, as a pure function of (seed, step, process).

    Each epoch is a permutation seeded by (seed, epoch). Each optimizer step takes its next
    `train_batch_size × gradient_accumulation_steps × num_processes` images. The last step of an epoch is filled up
    from the start of the permutation, so that all batches have the same shape.
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
        self._order = functools.lru_cache(maxsize=2)(self._find_order)  # freed with this object, as are the images
        self.images = data.images
        if (
            self.device.type == "cuda"
            and data.images.nbytes <= DEVICE_MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]
        ):
            self.images = data.images.to(device)

    def indices(self, step: int, micro_step: int = 0) -> Tensor:
        """Return the image indices of this process in a forward pass of an optimizer step: int64 (B,)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        block = micro_step * self.num_processes + self.process_index
        start = position * self.images_per_step + block * self.train_batch_size
        return self._order(epoch)[torch.arange(start, start + self.train_batch_size) % len(self.data)]

    def __call__(self, step: int, micro_step: int = 0, progress: float = 0.0) -> Batch:
        """Return the batch of a forward pass; random flips use torch's default generator."""
        indices = self.indices(step, micro_step)
        images = self.images[indices.to(self.images.device)].to(self.device)
        images = images.float() / 127.5 - 1
        if self.random_flip:
            flipped = torch.rand(len(images), device=self.device) < 0.5
            images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
        labels = self.data.labels
        of_batch = None if labels is None else labels[indices].to(self.device)
        return Batch(images, of_batch, step, indices, progress)

    def _find_order(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed("order", self.seed, epoch))
        return torch.randperm(len(self.data), generator=generator)
