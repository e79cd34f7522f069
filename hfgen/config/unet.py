"""Configuration fields of the families with a U-Net."""

from dataclasses import dataclass, field

from hfgen.config.training import MAX_DEPTH, MAX_WIDTH, TrainingConfig
from hfgen.utils.errors import UserError


@dataclass(kw_only=True)
class UNetConfig(TrainingConfig):
    """Fields of diffusers' `UNet2DModel`.

    Args:
        > Network
        block_out_channels: Channels of the U-Net at each resolution, from fine to coarse; each further entry halves
            height and width.
        layers_per_block: Residual blocks per resolution.
        attention_levels: Resolutions with self-attention, as indices into block_out_channels (0 is the finest).
        add_attention: Self-attention in the middle block. On a CPU it costs far more time than its multiplications
            suggest (`benchmarks/results/choices.md`).
        attention_head_dim: Channels per attention head; by default a single head. More heads are slower.
        norm_num_groups: Groups of the group norms; must divide each entry of block_out_channels.
        dropout: Dropout probability in the residual blocks.
        class_conditional: Condition the network on class labels.
    """

    train_batch_size: int = 32
    block_out_channels: list[int] = field(default_factory=lambda: [32, 64, 96])
    layers_per_block: int = 1
    attention_levels: list[int] = field(default_factory=list)
    add_attention: bool = False
    attention_head_dim: int | None = None
    norm_num_groups: int = 8
    dropout: float = 0.0
    class_conditional: bool = False

    def __post_init__(self):
        """Validate the fields (see `TrainingConfig`)."""
        super().__post_init__()
        self._require("positive", ["block_out_channels", "attention_head_dim", "norm_num_groups"], at_most=MAX_WIDTH)
        self._require("positive", ["layers_per_block"], at_most=MAX_DEPTH)
        self._require("from 0 to below 1", ["dropout"])
        levels = len(self.block_out_channels)
        if not levels:
            raise UserError("block_out_channels must have an entry per resolution, not none")
        if any(not 0 <= level < levels for level in self.attention_levels):
            raise UserError(
                f"attention_levels must be from 0 to {levels - 1} for block_out_channels {self.block_out_channels}, "
                f"not {self.attention_levels}"
            )
        attended = [self.block_out_channels[level] for level in self.attention_levels]
        attended += [self.block_out_channels[-1]] if self.add_attention else []
        if self.attention_head_dim and not attended:
            raise UserError("attention_head_dim needs attention: set attention_levels or add_attention")
        if self.attention_head_dim and (misfits := [c for c in attended if c % self.attention_head_dim]):
            raise UserError(
                "channels with attention must be multiples of attention_head_dim, "
                f"which is {self.attention_head_dim}; {misfits} are not"
            )
        if misfits := [c for c in self.block_out_channels if c % self.norm_num_groups]:
            raise UserError(
                f"block_out_channels must be multiples of norm_num_groups, which is {self.norm_num_groups}; "
                f"{misfits} are not"
            )
