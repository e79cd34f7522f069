"""Judges: classifiers that serve as feature extractors and class predictors for evaluation."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, RegNetForImageClassification, ResNetForImageClassification
from transformers.utils import logging as transformers_logging

from hfgen.data.sources import SHORT_NAMES
from hfgen.utils.devices import find_placement
from hfgen.utils.errors import UserError, first_line
from hfgen.utils.untrusted import check_numbers, read_json, shown

JUDGES = Path(__file__).parent
WEIGHTS = "model.safetensors"
PROCESSOR = "preprocessor_config.json"
RECORD = "evaluation.json"
NETWORKS = (ResNetForImageClassification, RegNetForImageClassification)
# Keys with which a configuration makes transformers load remote code or change the computation.
STRANGE = ("auto_map", "attn_implementation", "_attn_implementation", "quantization_config", "custom_pipelines")
BATCH_SIZE = 500
# The stock networks were designed for photographs and first halve the image. Upscaling by repeating pixels lets their
# first convolution use every pixel of a small image.
UPSCALE = 2


@dataclass
class Judge:
    """A classifier from `hfgen train classifier`, as a feature extractor.

    Attributes:
        name: The name of its folder.
        model: The network, in evaluation mode.
        size: Height and width to which images are upscaled by repeating pixels.
        sha256: SHA-256 of its weights, which identifies the feature space of a measurement.
    """

    name: str
    model: PreTrainedModel
    size: tuple[int, int]
    sha256: str

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
            pixels = F.interpolate(batch.to(self.model.device).float() / 127.5 - 1, self.size)
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
    model = model.eval().to(place, memory_format=torch.channels_last)
    return Judge(folder.resolve().name, model, (size["height"], size["width"]), sha256)


def _load_network(folder: Path, name: str) -> PreTrainedModel:
    """Load a classifier of one of `NETWORKS`, which need no remote code."""
    file = folder / "config.json"
    config = read_json(file)
    check_numbers(config, file)
    architectures = config.get("architectures")
    if architectures not in [[network.__name__] for network in NETWORKS]:
        known = " or ".join(network.__name__ for network in NETWORKS)
        raise UserError(f"{file}: a judge must be a {known}, not {shown(architectures)}")
    if strange := [key for key in config if key in STRANGE]:
        raise UserError(f"{file} has {strange[0]}, which is not allowed for a judge")
    network = next(network for network in NETWORKS if [network.__name__] == architectures)
    transformers_logging.disable_progress_bar()
    try:
        model, found = network.from_pretrained(
            folder, use_safetensors=True, trust_remote_code=False, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # untrusted files can cause any error
        raise UserError(f"cannot load the judge {name}: {type(error).__name__}: {first_line(error)}") from error
    if lacking := sorted(found["missing_keys"]):
        raise UserError(f"cannot load the judge {name}: its weights lack {lacking[0]}")
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
    return shipped_judges(short) if short in SHORT_NAMES else []
