"""Image classifiers for evaluation (judges): stock networks of `transformers`."""

from collections.abc import Iterator
from pathlib import Path

import PIL.Image
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    RegNetConfig,
    RegNetForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTImageProcessorPil,
)
from transformers.utils import logging as transformers_logging

from hfgen.config.classifier import REGNET_GROUP_WIDTH, ClassifierConfig
from hfgen.data.augmentation import random_erase, random_shift
from hfgen.data.images import ImageData, load_images
from hfgen.data.loader import Batch
from hfgen.figures.plots import confusion_picture
from hfgen.judges.judge import UPSCALE, Judge
from hfgen.tasks.base import Loss, Task
from hfgen.utils.errors import UserError


class ClassifierTask(Task):
    """A classifier with its image processor; both load with `transformers` alone.

    Args:
        config: Network, augmentation, test data.
        data: The training images, with labels.

    Raises:
        UserError: if there are no labels, or training and test images do not match.
    """

    saved_modules = frozenset({"classifier"})
    generates = False
    metric = "accuracy"
    index_file = "config.json"

    def __init__(self, config: ClassifierConfig, data: ImageData):
        self.config, self.data = config, data
        data.require_labels()
        channels, height, width = data.images.shape[1:]
        if config.random_shift >= min(height, width):
            raise UserError(f"random_shift must be below the image size, {height}×{width}, not {config.random_shift}")
        try:
            self.test_data = load_test_images(config, data.source)
        except UserError as error:
            raise UserError(
                f"{error} (test images; set --test_fraction to hold out training images, or --test_split or "
                "--test_dataset_name)"
            ) from error
        if self.test_data.images.shape[1:] != data.images.shape[1:]:
            raise UserError(
                f"training and test images differ in channels or size: {tuple(data.images.shape[1:])} in "
                f"{data.source}, {tuple(self.test_data.images.shape[1:])} in {self.test_data.source}; "
                "set --resolution and --channels"
            )
        if self.test_data.label_names != data.label_names:
            raise UserError(
                f"training and test images have different classes: {data.label_names}, {self.test_data.label_names}"
            )
        self.size = (UPSCALE * height, UPSCALE * width)
        fields = {
            "num_channels": channels,
            "embedding_size": config.embedding_size,
            "hidden_sizes": config.hidden_sizes,
            "depths": config.depths,
            "id2label": dict(enumerate(data.label_names)),
            "label2id": {name: index for index, name in enumerate(data.label_names)},
        }
        if config.architecture == "resnet":
            self.model = ResNetForImageClassification(ResNetConfig(layer_type="basic", **fields))
        else:
            self.model = RegNetForImageClassification(
                RegNetConfig(layer_type="x", groups_width=REGNET_GROUP_WIDTH, **fields)
            )
        self.model.to(memory_format=torch.channels_last)  # 1.5 times faster on a CPU
        self.processor = ViTImageProcessorPil(
            do_resize=True,
            size={"height": self.size[0], "width": self.size[1]},
            resample=PIL.Image.Resampling.NEAREST,
            image_mean=[0.5] * channels,
            image_std=[0.5] * channels,
        )
        self.modules: dict[str, nn.Module] = {"classifier": self.model}

    def losses(self, batch: Batch) -> Iterator[Loss]:
        """Yield the cross-entropy with label smoothing, on randomly shifted and erased images."""
        images = random_erase(random_shift(batch.images, self.config.random_shift), self.config.random_erase)
        logits = self.modules["classifier"](F.interpolate(images, self.size)).logits
        smoothing = self.config.label_smoothing
        yield Loss("classifier", F.cross_entropy(logits.float(), batch.labels, label_smoothing=smoothing))

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy without label smoothing and the accuracy, on unchanged images."""
        logits = self.modules["classifier"](F.interpolate(batch.images, self.size)).logits.float()
        accuracy = (logits.argmax(1) == batch.labels).float().mean()
        return {"loss/classifier": F.cross_entropy(logits, batch.labels).detach(), "accuracy": accuracy}

    def save(self, folder: Path) -> None:
        """Save the network and the image processor."""
        transformers_logging.disable_progress_bar()
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def preview(self, num_images: int, seed: int) -> PIL.Image.Image:
        """Return the confusion matrix of the test images and the most confident errors; the seed is not used."""
        data = self.test_data
        logits = Judge("in training", self.model, "", self.size).extract(data.images)[1]
        return confusion_picture(data.images, data.labels, logits, data.label_names, num_images)


def load_test_images(config: ClassifierConfig, source: str) -> ImageData:
    """Load the test images of a classifier trained on `source`."""
    options = config.reading_options()
    if config.test_dataset_name:  # used whole
        options |= {"validation_fraction": 0.0, "test_fraction": 0.0}
    return load_images(config.test_dataset_name or source, split=config.test_split, **options)
