"""A network that predicts masked pixels. This file travels with the weights, so it imports nothing of hfgen."""

from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn


@dataclass
class MaskedPixelsOutput(BaseOutput):
    """Output of `MaskedPixelsModel`.

    Args:
        logits: Of the grey levels of each pixel, (B, num_levels, C, H, W).
    """

    logits: Tensor


class MaskedPixelsModel(ModelMixin, ConfigMixin):
    """A residual convolutional network over pixels, some of which are masked.

    Args:
        sample_size: Height and width of the images.
        in_channels: Channels of the images.
        num_levels: Grey levels; the level `num_levels` stands for a masked pixel.
        hidden_channels: Channels of the network.
        num_layers: Residual blocks.
    """

    @register_to_config
    def __init__(
        self, sample_size: int, in_channels: int, num_levels: int = 8, hidden_channels: int = 64, num_layers: int = 4
    ):
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels * (num_levels + 1), hidden_channels, 3, padding=1)
        self.position = nn.Parameter(torch.zeros(1, hidden_channels, sample_size, sample_size))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(1, hidden_channels),
                nn.SiLU(),
                nn.Conv2d(hidden_channels, hidden_channels, 3, padding=2 ** (layer % 3), dilation=2 ** (layer % 3)),
                nn.SiLU(),
                nn.Conv2d(hidden_channels, hidden_channels, 1),
            )
            for layer in range(num_layers)
        )
        self.conv_out = nn.Conv2d(hidden_channels, in_channels * num_levels, 1)

    def forward(self, levels: Tensor) -> MaskedPixelsOutput:
        """Predict the masked pixels.

        Args:
            levels: int64 (B, C, H, W), from 0 to `num_levels`, which is a masked pixel.
        """
        one_hot = nn.functional.one_hot(levels, self.config.num_levels + 1).to(self.dtype)
        hidden = self.conv_in(one_hot.permute(0, 1, 4, 2, 3).flatten(1, 2)) + self.position
        for block in self.blocks:
            hidden = hidden + block(hidden)
        logits = self.conv_out(hidden).unflatten(1, (self.config.in_channels, self.config.num_levels))
        return MaskedPixelsOutput(logits.transpose(1, 2))
