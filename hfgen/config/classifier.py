"""Configuration of `hfgen train classifier`."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from hfgen.config.training import MAX_DEPTH, MAX_RESOLUTION, MAX_WIDTH, TrainingConfig
from hfgen.utils.errors import UserError

REGNET_GROUP_WIDTH = 16  # channels per group of the grouped convolutions


@dataclass(kw_only=True)
class ClassifierConfig(TrainingConfig):
    """Image classifier, the feature extractor of `hfgen evaluate`.

    Args:
        > Data
        test_dataset_name: Data set with the test images, if it is not the training data set.
        test_split: Split on which the accuracy is measured.
        random_shift: Shift each training image by up to this many pixels in each direction.
        random_erase: Side in pixels of a square erased to grey in each training image (Cutout, DeVries and Taylor
            2017).

        > Network
        architecture: `resnet` (He et al. 2016, basic blocks) or `regnet` (Radosavovic et al. 2020, X blocks), as
            implemented in `transformers`.
        embedding_size: Output channels of the first convolution.
        hidden_sizes: Channels of each stage. The first stage of a resnet keeps the resolution; all others halve it.
            The last entry is the feature dimension.
        depths: Number of residual blocks in each stage.

        > Objective
        label_smoothing: Probability mass spread uniformly over all classes (Szegedy et al. 2016).

    Examples:
        hfgen train classifier --config classifier_mnist
        hfgen train classifier --train_data_dir my_pictures --resolution 32 --test_fraction 0.2 --output_dir runs/judge
    """

    family: ClassVar[str] = "classifier"
    next_commands: ClassVar[tuple[str, ...]] = ("hfgen evaluate {run}",)
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
        """Validate the fields (see `TrainingConfig`)."""
        super().__post_init__()
        self._require("positive", ["embedding_size", "hidden_sizes"], at_most=MAX_WIDTH)
        self._require("positive", ["depths"], at_most=MAX_DEPTH)
        self._require("zero or more", ["random_shift", "random_erase"], at_most=MAX_RESOLUTION)
        self._require("from 0 to below 1", ["label_smoothing"])
        if self.test_dataset_name and self.test_fraction:
            raise UserError("test_dataset_name already provides the test images; leave out test_fraction")
        if not self.hidden_sizes or len(self.hidden_sizes) != len(self.depths):
            raise UserError(
                "hidden_sizes and depths must have the same number of entries, one per stage, not "
                f"{self.hidden_sizes} and {self.depths}"
            )
        if self.architecture == "regnet" and (misfits := [c for c in self.hidden_sizes if c % REGNET_GROUP_WIDTH]):
            raise UserError(
                f"hidden_sizes of a regnet must be multiples of its group width, {REGNET_GROUP_WIDTH}; "
                f"{misfits} are not"
            )
