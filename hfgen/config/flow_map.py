"""Configuration of `hfgen train flow_map`."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from hfgen.config.training import MAX_GUIDANCE, MAX_LOGIT
from hfgen.config.unet import UNetConfig
from hfgen.utils.errors import UserError

MAX_STEPS = 1000  # as the pipeline has it


@dataclass(kw_only=True)
class FlowMapConfig(UNetConfig):
    """Flow map from scratch (SoFlow, Luo et al. 2025, arXiv 2512.15657), which samples in one or a few steps.

    Args:
        > Network

        > Objective
        flow_fraction: Fraction of each batch that learns the velocity, as a flow does (s = t); the rest learns to jump
            from t to an earlier time s.
        logit_mean: Mean of the logit of t, where a jump starts: from 0 (image) to 1 (pure noise).
        logit_std: Standard deviation of that logit.
        end_logit_mean: Mean of the logit of s, where it ends.
        end_logit_std: Standard deviation of that logit.
        initial_gap: Fraction ρ of a jump between the two points that must agree on its end, at the start of training;
            with 1 the network learns velocities only.
        final_gap: ρ at the end, to which it falls exponentially. A smaller one has less bias but more noise, above all
            in half precision.
        loss_power: Exponent p of the weight (error + 0.001)^−p of each image; 0 is the squared error.
        class_dropout_prob: Probability of replacing the label by the null label during training, as guidance requires.
        guidance_scale: Guidance scale w of the velocity that a class-conditional network learns, so that samples need
            no guidance: v + (w − 1)(v − v without class). 1 disables it.
        guidance_interval: Interval of times in which that velocity is guided, from 0 (image) to 1 (pure noise).

        > Sample grids
        num_inference_steps: Steps of the sample grids, and default of the pipeline.

    Examples:
        hfgen train flow_map --config flow_map_conditional_mnist_cpu10min
        hfgen train flow_map --dataset_name mnist --max_train_seconds 600 --output_dir runs/flow_map
    """

    family: ClassVar[str] = "flow_map"

    flow_fraction: float = 0.5
    logit_mean: float = -0.5
    logit_std: float = 1.6
    end_logit_mean: float = -3.0
    end_logit_std: float = 1.6
    initial_gap: float = 1.0
    final_gap: float = 0.05
    loss_power: float = 0.5
    class_dropout_prob: float = 0.1
    guidance_scale: float = 1.0
    guidance_interval: list[float] = field(default_factory=lambda: [0.0, 1.0])
    optimizer: Literal["adamw", "muon"] = "muon"
    learning_rate: float = 4e-3
    num_inference_steps: int = 2

    def __post_init__(self):
        """Validate the fields (see `UNetConfig`)."""
        super().__post_init__()
        self._require("positive", ["logit_std", "end_logit_std"], at_most=MAX_LOGIT)
        self._require("any", ["logit_mean", "end_logit_mean"], at_most=MAX_LOGIT)
        self._require("positive", ["initial_gap", "final_gap"], at_most=1)
        if self.final_gap > self.initial_gap:
            raise UserError(
                f"final_gap must be at most initial_gap, which is {self.initial_gap:g}, not {self.final_gap:g}"
            )
        self._require("zero or more", ["loss_power", "flow_fraction"], at_most=1)
        self._require("from 0 to below 1", ["class_dropout_prob"])
        self._require("positive", ["num_inference_steps"], at_most=MAX_STEPS)
        self._require("positive", ["guidance_scale"], at_most=MAX_GUIDANCE)
        first, last = self.guidance_interval if len(self.guidance_interval) == 2 else (1, 0)
        if not 0 <= first <= last <= 1:
            raise UserError(
                f"guidance_interval must be two numbers, 0 ≤ first ≤ last ≤ 1, not {self.guidance_interval}"
            )
        learns_both = self.class_conditional and self.class_dropout_prob and self.flow_fraction
        if self.guidance_scale != 1 and not learns_both:
            raise UserError(
                f"guidance_scale {self.guidance_scale:g} needs class_conditional, and class_dropout_prob and "
                "flow_fraction above 0, so that the network learns the velocity without a class"
            )
