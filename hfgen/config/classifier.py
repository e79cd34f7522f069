"""What `hfgen train classifier` takes."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from hfgen.config.training import MAX_DEPTH, MAX_RESOLUTION, MAX_WIDTH, TrainingConfig
from hfgen.utils.errors import UserError

REGNET_GROUP_WIDTH = 16  # channels that one grouped convolution mixes


@dataclass(kw_only=True)
class ClassifierConfig(TrainingConfig):
    """An image classifier, whose features and decisions judge generated images (`hfgen evaluate`).

    Args:
        test_dataset_name: Data set with the test images, where it is not the one that is trained on.
        test_split: Split on which the accuracy is measured.
        architecture: `resnet` (He et al. 2016, basic blocks) or `regnet` (Radosavovic et al. 2020, x blocks), as
            `transformers` has them.
        embedding_size: Channels of the first convolution.
        hidden_sizes: Channels of each stage; each but the first (of a resnet) halves height and width. The last one is
            the number of features.
        depths: Residual blocks of each stage.
        label_smoothing: Share of each label that is spread over all classes (Szegedy et al. 2016).
        random_shift: Move each training image by up to so many pixels.
        random_erase: Grey out a square of so many pixels in each training image (DeVries and Taylor 2017).
    """

    family: ClassVar[str] = "classifier"
    next_command: ClassVar[str] = "hfgen evaluate"
    dataset_fields: ClassVar[tuple[str, ...]] = ("dataset_name", "test_dataset_name")

    test_dataset_name: str | None = None
    test_split: str = "test"
    architecture: Literal["resnet", "regnet"] = "resnet"
    embedding_size: int = 64
    hidden_sizes: list[int] = field(default_factory=lambda: [64, 128, 128])
    depths: list[int] = field(default_factory=lambda: [1, 1, 1])
    label_smoothing: float = 0.1
    random_shift: int = 2
    random_erase: int = 0
    adam_weight_decay: float = 0.05
    learning_rate: float = 3e-3
    lr_warmup_steps: int = 200
    use_ema: bool = False

    def __post_init__(self):
        """Refuse values that no network can be built from (see `TrainingConfig`)."""
        super().__post_init__()
        self._require("positive", ["embedding_size", "hidden_sizes"], at_most=MAX_WIDTH)
        self._require("positive", ["depths"], at_most=MAX_DEPTH)
        self._require("zero or more", ["random_shift", "random_erase"], at_most=MAX_RESOLUTION)
        self._require("from 0 to below 1", ["label_smoothing"])
        if self.test_dataset_name and self.test_fraction:
            raise UserError("test_dataset_name names the test images, so that none are held out; drop test_fraction")
        if not self.hidden_sizes or len(self.hidden_sizes) != len(self.depths):
            raise UserError(
                "hidden_sizes and depths must have an entry for each stage, and so equally many, not "
                f"{self.hidden_sizes} and {self.depths}"
            )
        if self.architecture == "regnet" and (misfits := [c for c in self.hidden_sizes if c % REGNET_GROUP_WIDTH]):
            raise UserError(
                f"hidden_sizes of a regnet must be multiples of {REGNET_GROUP_WIDTH}, the width of its groups; "
                f"{misfits} are not"
            )
