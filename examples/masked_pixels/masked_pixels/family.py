"""What hfgen has to know of the family. It is imported by every command, so it imports nothing heavy."""

from dataclasses import dataclass
from typing import ClassVar

from hfgen.config import TrainingConfig
from hfgen.families import Family, Model


@dataclass(kw_only=True)
class MaskedPixelsConfig(TrainingConfig):
    """Train a masked generative model of pixels (Chang et al. 2022).

    Args:
        > Network
        num_levels: Grey levels to which pixels are rounded.
        hidden_channels: Channels of the network.
        num_layers: Residual blocks of the network.

        > Sample grids
        num_inference_steps: Steps of decoding; more are better and slower.

    Examples:
        hfgen train masked_pixels --dataset_name digits --output_dir runs/masked
    """

    family: ClassVar[str] = "masked_pixels"

    num_levels: int = 8
    hidden_channels: int = 64
    num_layers: int = 4
    num_inference_steps: int = 16

    def __post_init__(self):
        """Refuse values that no model can have."""
        super().__post_init__()
        self._require("positive", ["hidden_channels", "num_layers", "num_inference_steps"], at_most=1000)
        self._require("positive", ["num_levels"], at_most=256)


FAMILY = Family(
    config=MaskedPixelsConfig,
    task="masked_pixels.task:MaskedPixelsTask",
    models={
        "MaskedPixelsPipeline": Model(
            use="decode", network="network", sampler=("num_inference_steps",), tags=("masked-generative-model",)
        )
    },
    modules=("masked_pixels.modeling_masked_pixels", "masked_pixels.pipeline_masked_pixels"),
)
