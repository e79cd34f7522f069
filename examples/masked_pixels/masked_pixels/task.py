"""What one training step computes."""

import math
from collections.abc import Iterator

import torch
from torch.nn import functional as F

from hfgen.data.images import ImageData
from hfgen.data.loader import Batch
from hfgen.tasks.base import Loss, Task
from hfgen.utils.errors import UserError
from masked_pixels.family import MaskedPixelsConfig
from masked_pixels.modeling_masked_pixels import MaskedPixelsModel
from masked_pixels.pipeline_masked_pixels import MaskedPixelsPipeline


class MaskedPixelsTask(Task):
    """A masked generative model of pixels.

    Args:
        config: Network and objective.
        data: The training images.

    Raises:
        UserError: if the images are not square.
    """

    saved_modules = frozenset({"network"})
    loss_metric = "loss/network"

    def __init__(self, config: MaskedPixelsConfig, data: ImageData):
        channels, height, width = data.images.shape[1:]
        if height != width:
            raise UserError(f"masked_pixels needs square images, not {height}×{width}; use --resolution")
        self.config, self.data = config, data
        self.network = MaskedPixelsModel(
            height, channels, config.num_levels, config.hidden_channels, config.num_layers
        )
        self.modules = {"network": self.network}

    def losses(self, batch: Batch) -> Iterator[Loss]:
        """Yield the cross-entropy of the masked pixels (Chang et al. 2022, eq. 1)."""
        levels = ((batch.images + 1) / 2 * (self.config.num_levels - 1)).round().long()
        proportion = torch.cos(math.pi / 2 * torch.rand(len(levels), 1, 1, 1, device=levels.device))
        masked = torch.rand(levels.shape, device=levels.device) < proportion
        logits = self.modules["network"](levels.masked_fill(masked, self.config.num_levels)).logits
        errors = F.cross_entropy(logits.float(), levels, reduction="none")
        yield Loss("network", (errors * masked).sum() / masked.sum().clamp(min=1))

    def pipeline(self) -> MaskedPixelsPipeline:
        """Return the pipeline that is sampled and published."""
        return MaskedPixelsPipeline(self.network, self.config.num_inference_steps)
