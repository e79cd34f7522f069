"""Feature extractors of an evaluation: what they have in common, and safe loading."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from hfgen.utils.errors import UserError, first_line
from hfgen.utils.untrusted import check_numbers, read_json

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
# Keys with which a configuration makes transformers load remote code or change the computation.
STRANGE = ("auto_map", "attn_implementation", "_attn_implementation", "quantization_config", "custom_pipelines")


@dataclass
class FeatureExtractor(ABC):
    """A network in whose feature space images are compared.

    Attributes:
        name: Its name in records and pages.
        model: The network, in evaluation mode.
        sha256: Identifies the feature space of a measurement: SHA-256 of the weights and of what else decides the
            features.
    """

    name: str
    model: nn.Module
    sha256: str

    @property
    @abstractmethod
    def num_features(self) -> int:
        """Dimension of the features."""

    @property
    def label_names(self) -> list[str]:
        """Class names by index if it is a classifier of the data's classes, else empty."""
        return []

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next(self.model.parameters()).device

    @abstractmethod
    def extract(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return features and logits of images.

        Args:
            images: uint8 (N, C, H, W), 1 or 3 channels.

        Returns:
            Features, float32 (N, D), and the logits of a classifier, float32 (N, classes), or None, both on the CPU.
        """

    def facts(self) -> dict[str, Any]:
        """Return what a record says of it."""
        return {"network": type(self.model).__name__, "num_features": self.num_features, "sha256": self.sha256}


def checked_config(folder: Path, name: str = CONFIG) -> dict[str, Any]:
    """Read a configuration of `transformers`, after checking that it loads no code and has no excessive numbers.

    Raises:
        UserError: naming the file and the entry.
    """
    file = folder / name
    config = read_json(file)
    check_numbers(config, file)
    if strange := [key for key in config if key in STRANGE]:
        raise UserError(f"{file} has {strange[0]}, which is not allowed in a feature extractor")
    return config


def load_network(network: Any, folder: Path, name: str) -> tuple[PreTrainedModel, list[str]]:
    """Load a network from the safetensors of a folder, without remote code.

    Args:
        network: A model class of `transformers`.
        folder: Its folder.
        name: How a message calls it.

    Returns:
        The network in evaluation mode, in float32 on the CPU, and the names of weights that the folder lacks.

    Raises:
        UserError: if it cannot be loaded.
    """
    try:
        with quiet_transformers():
            model, found = network.from_pretrained(
                folder, use_safetensors=True, trust_remote_code=False, local_files_only=True,
                output_loading_info=True, dtype=torch.float32,
            )  # fmt: skip
    except Exception as error:  # untrusted files can cause any error
        raise UserError(f"cannot load {name}: {type(error).__name__}: {first_line(error)}") from error
    return model.eval(), sorted(found["missing_keys"])


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the notes of `transformers` on weights that are not used, and its progress bars."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
