"""Judges: classifiers of `hfgen train classifier` as feature extractors, and the shipped ones."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, RegNetForImageClassification, ResNetForImageClassification

from hfgen.data.images import ImageData
from hfgen.data.sources import SHORT_NAMES
from hfgen.judges.features import CONFIG, PROCESSOR, FeatureExtractor, checked_config, load_network
from hfgen.utils.devices import find_placement
from hfgen.utils.errors import UserError
from hfgen.utils.untrusted import read_json, shown

JUDGES = Path(__file__).parent
WEIGHTS = "model.safetensors"
RECORD = "evaluation.json"
NETWORKS = (ResNetForImageClassification, RegNetForImageClassification)
BATCH_SIZE = 500
# The stock networks were designed for photographs and first halve the image. Upscaling by repeating pixels lets their
# first convolution use every pixel of a small image.
UPSCALE = 2


@dataclass
class Judge(FeatureExtractor):
    """A classifier from `hfgen train classifier`, as a feature extractor.

    Its name is that of its folder, and its SHA-256 that of its weights.

    Attributes:
        size: Height and width to which images are upscaled by repeating pixels.
    """

    size: tuple[int, int]

    @property
    def label_names(self) -> list[str]:
        """Class names by index."""
        return [self.model.config.id2label[index] for index in range(self.model.config.num_labels)]

    @property
    def num_features(self) -> int:
        """Dimension of the features."""
        return self.model.config.hidden_sizes[-1]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of the training images."""
        return (self.model.config.num_channels, self.size[0] // UPSCALE, self.size[1] // UPSCALE)

    @torch.inference_mode()
    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and logits of images.

        Args:
            images: uint8 (N, C, H, W).

        Returns:
            Features, float32 (N, D), the last layer averaged over positions, and logits, float32 (N, classes), both on
            the CPU.
        """
        features, logits = [], []
        for batch in images.split(BATCH_SIZE):
            pixels = F.interpolate(batch.to(self.device).float() / 127.5 - 1, self.size)
            pooled = self.model.base_model(pixels).pooler_output
            features.append(pooled.flatten(1).cpu())
            logits.append(self.model.classifier(pooled).cpu())
        return torch.cat(features), torch.cat(logits)


def load_judge(name_or_folder: str, device: str = "auto") -> Judge:
    """Load a shipped judge by name, or a trained classifier by its run folder, onto a device, in float32.

    Raises:
        UserError: if there is no such judge or device, or the weights of a shipped one differ from those evaluated.
    """
    shipped = name_or_folder in shipped_judges()
    folder = JUDGES / name_or_folder if shipped else Path(name_or_folder).expanduser()
    if not (folder / WEIGHTS).is_file():
        what = "a folder without a finished classifier" if folder.is_dir() else "not a folder"
        raise UserError(
            f"there is no judge {name_or_folder}: it is none of those shipped ({', '.join(shipped_judges())}), and "
            f"{what}; train one with hfgen train classifier"
        )
    sha256 = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    if shipped and sha256 != json.loads((folder / RECORD).read_text())["protocol"]["weights_sha256"]:
        raise UserError(f"the judge {name_or_folder} is damaged: its weights differ from those evaluated")
    model = _load_network(folder, name_or_folder)
    size = read_json(folder / PROCESSOR).get("size")
    if not isinstance(size, dict) or not all(isinstance(size.get(side), int) for side in ("height", "width")):
        raise UserError(f"{folder / PROCESSOR}: size must have height and width, not {shown(size)}")
    place, _ = find_placement(device, torch.float32)
    model = model.to(place, memory_format=torch.channels_last)
    return Judge(folder.resolve().name, model, sha256, (size["height"], size["width"]))


def find_judge(name_or_folder: str | None, data: ImageData, device: str = "auto") -> Judge | None:
    """Load the judge that was named for a data set, or the first shipped one that fits it; None if there is none.

    Raises:
        UserError: if the one that was named does not fit the images.
    """
    shape = tuple(data.images.shape[1:])
    if name_or_folder:
        judge = load_judge(name_or_folder, device)
        if judge.image_shape != shape:
            raise UserError(f"the judge {judge.name} does not fit the image size of {data.source}")
        return judge
    shipped = (load_judge(name, device) for name in shipped_judges_of(data.source))
    return next((judge for judge in shipped if judge.image_shape == shape), None)


def _load_network(folder: Path, name: str) -> PreTrainedModel:
    """Load a classifier of one of `NETWORKS`, which need no remote code."""
    architectures = checked_config(folder).get("architectures")
    if architectures not in [[network.__name__] for network in NETWORKS]:
        known = " or ".join(network.__name__ for network in NETWORKS)
        raise UserError(f"{folder / CONFIG}: a judge must be a {known}, not {shown(architectures)}")
    network = next(network for network in NETWORKS if [network.__name__] == architectures)
    model, missing = load_network(network, folder, f"the judge {name}")
    if missing:
        raise UserError(f"cannot load the judge {name}: its weights lack {missing[0]}")
    return model


def judges_numbers(names: list[str], owner: str, label_names: list[str]) -> Tensor:
    """Return the judges' class indices for the class names of a data set or model, int64 (classes,).

    Raises:
        UserError: for a class that the judges do not have.
    """
    known = {label: number for number, label in enumerate(label_names)}
    if known.keys().isdisjoint(names):
        known = {str(number): number for number in range(len(label_names))}
    if strangers := set(names) - known.keys():
        raise UserError(
            f"{owner} has classes that the judges do not have, such as {min(strangers)}; theirs are "
            f"{', '.join(label_names)}, or the indices 0 to {len(label_names) - 1}; use a --judge with these classes, "
            "rename them, or leave out the labels"
        )
    return torch.tensor([known[name] for name in names])


def shipped_judges(dataset: str = "") -> list[str]:
    """List the shipped judges of one data set or all; the first of a data set is the more accurate one."""
    return sorted(path.name for path in JUDGES.glob(f"{dataset}*") if path.is_dir() and path.name[0] != "_")


def shipped_judges_of(dataset: str) -> list[str]:
    """List the shipped judges of a data set, by any of its names."""
    short = {name: short for short, name in SHORT_NAMES.items()}.get(dataset, dataset)
    return shipped_judges(short) if short in {"digits", *SHORT_NAMES} else []
