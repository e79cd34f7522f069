"""Pretrained feature extractors: vision models of `transformers`, such as DINOv2, and Inception."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import httpx2
import PIL.Image
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModel

from hfgen.judges.features import CONFIG, PROCESSOR, FeatureExtractor, checked_config, load_network, quiet_transformers
from hfgen.metrics.inception_scores.inception_scores import inception_features, inception_score, load_inception
from hfgen.utils.devices import find_placement
from hfgen.utils.errors import UserError, first_line
from hfgen.utils.files import local_path
from hfgen.utils.hashes import sha256_of
from hfgen.utils.progress import progress_bar
from hfgen.utils.untrusted import shown

WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")
STEPS = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}  # of an image processor
FILTERS = {"NEAREST": "nearest-exact", "BILINEAR": "bilinear", "BICUBIC": "bicubic"}  # of Pillow and of torch
LARGEST_SIZE = 1024  # pixels to which images are resized
PIXELS_AT_A_TIME = 64 * 224**2  # of resized images, in a batch


@dataclass
class VisionModel(FeatureExtractor):
    """A pretrained vision model of `transformers`, such as DINOv2.

    Images are resized as a whole, without cropping, to the size that its image processor makes, with its filter, and
    normalised with its mean and standard deviation; greyscale images are repeated to three channels. The features are
    the pooled output of the model, or without one the class token; of a model of images and texts, such as CLIP, its
    image embedding.

    Attributes:
        size: Height and width of its inputs in pixels.
        mode: The filter, as `torch.nn.functional.interpolate` calls it.
        scale, mean, std: Of the normalisation (scale × pixel − mean) / std of pixels from 0 to 255; mean and std have
            shape (3, 1, 1).
        has_pooler: Whether the weights have those of the pooled output.
    """

    size: tuple[int, int]
    mode: str
    scale: float
    mean: Tensor
    std: Tensor
    has_pooler: bool = True

    @property
    def num_features(self) -> int:
        """Dimension of the features."""
        return self._width

    def __post_init__(self):
        # Some images show the dimension, and whether the network takes such images at all.
        images = torch.arange(8 * 3 * 8 * 8).remainder(251).reshape(8, 3, 8, 8).to(torch.uint8)
        features, again = (self.extract(images)[0] for _ in range(2))
        if not torch.allclose(features, again, rtol=1e-2, atol=1e-4):  # masked autoencoders hide random patches
            raise ValueError("its features of the same images differ from call to call")
        self._width = features.shape[1]

    @torch.inference_mode()
    def extract(self, images: Tensor) -> tuple[Tensor, None]:
        """Return features, float32 (N, D), and no logits (see `FeatureExtractor`)."""
        batches = images.split(max(1, PIXELS_AT_A_TIME // math.prod(self.size)))
        shown_batches = progress_bar(batches, self.name, unit="batch", leave=False, disable=len(batches) < 2)
        return torch.cat([self._pooled(self.normalize(batch)).float().cpu() for batch in shown_batches]), None

    def normalize(self, images: Tensor) -> Tensor:
        """Return the network's inputs, float32 (N, 3, height, width), for images, uint8 (N, C, H, W)."""
        smooth = {} if self.mode.startswith("nearest") else {"antialias": True}
        pixels = F.interpolate(images, self.size, mode=self.mode, **smooth)  # as uint8 on the CPU it equals Pillow's
        pixels = pixels.to(self.device).float().expand(-1, 3, -1, -1)
        return (pixels * self.scale - self.mean.to(self.device)) / self.std.to(self.device)

    def _pooled(self, pixels: Tensor) -> Tensor:
        embeds = getattr(self.model, "get_image_features", self.model)
        output = embeds(pixel_values=pixels)
        if isinstance(output, Tensor):
            return output
        pooled = getattr(output, "pooler_output", None) if self.has_pooler else None
        if pooled is None:
            tokens = output.last_hidden_state
            pooled = tokens[:, 0] if tokens.ndim == 3 else tokens.mean((2, 3))
        return pooled.flatten(1)

    def facts(self) -> dict[str, Any]:
        """Return what a record says of it."""
        return super().facts() | {"resized_to": list(self.size), "filter": self.mode}


class Inception(FeatureExtractor):
    """Inception v3 with the weights of torch-fidelity: the features of FID and KID, and the Inception Score."""

    NAME: ClassVar[str] = "Inception"

    @property
    def num_features(self) -> int:
        """Dimension of the features."""
        return self.model.fc.in_features

    def extract(self, images: Tensor) -> tuple[Tensor, None]:
        """Return features, float32 (N, D), and no logits, since its classes are those of photographs."""
        return inception_features(self.model, images), None

    def score(self, features: Tensor) -> dict[str, float]:
        """Return the Inception Score of features (N, D), and its standard deviation over ten splits."""
        mean, std = inception_score(self.model, features)
        return {"value": mean, "std": std}


def load_inception_extractor(device: str = "auto") -> Inception:
    """Load Inception onto a device.

    Raises:
        UserError: without the package torch-fidelity, or its weights.
    """
    try:
        model = load_inception().to(find_placement(device, torch.float32)[0])
    except ModuleNotFoundError as error:
        raise UserError("--inception needs the package torch-fidelity: pip install torch-fidelity") from error
    except OSError as error:
        raise UserError(f"--inception needs weights that could not be downloaded ({error})") from error
    return Inception(Inception.NAME, model, sha256_of(model))


def load_features(name_or_folder: str, device: str = "auto") -> VisionModel:
    """Load a vision model of `transformers` from safetensors, without running code that comes with it.

    Args:
        name_or_folder: A folder with network and image processor, or a Hub id, which is downloaded if not cached.
        device: A device of torch, or `auto` (see `hfgen.utils.devices.find_placement`).

    Raises:
        UserError: if there is none, it is not a vision model, or needs more than `transformers` and safetensors.
    """
    folder = _folder_of(name_or_folder)
    checked_config(folder)
    weights = sorted(file for pattern in WEIGHTS for file in folder.glob(pattern))
    if not weights or not (folder / PROCESSOR).is_file():
        lacking = PROCESSOR if weights else WEIGHTS[0]
        raise UserError(f"{name_or_folder} cannot be used as features: it has no {lacking}")
    inputs = _inputs_of(folder, name_or_folder)
    model, missing = load_network(AutoModel, folder, name_or_folder)
    others = [name for name in missing if "pooler." not in name]  # which a saved classifier may lack
    if others:
        raise UserError(f"cannot load {name_or_folder}: its weights lack {others[0]}")
    if model.main_input_name != "pixel_values" and not hasattr(model, "get_image_features"):
        raise UserError(f"{name_or_folder} is a {type(model).__name__}, which takes no images")
    model.to(find_placement(device, torch.float32)[0])
    digest = hashlib.sha256()
    for file in (folder / CONFIG, folder / PROCESSOR, *weights):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    name = folder.resolve().name if local_path(name_or_folder).is_dir() else name_or_folder
    try:
        return VisionModel(name, model, digest.hexdigest(), **inputs, has_pooler=not missing)
    except Exception as error:  # of a network for other inputs, such as single channels or several images
        raise UserError(
            f"{name_or_folder}, a {type(model).__name__}, cannot be used as features: {first_line(error)}"
        ) from error


def _folder_of(name: str) -> Path:
    """Return a folder, or the one in the cache to which a Hub id is downloaded."""
    if (folder := local_path(name)).is_dir():
        return folder
    try:
        wanted = [CONFIG, PROCESSOR, *WEIGHTS, f"{WEIGHTS[0]}.index.json"]
        return Path(snapshot_download(name, allow_patterns=wanted))
    except HFValidationError as error:
        raise UserError(f"there is no folder {name}, and it is not a valid Hub id: {first_line(error)}") from error
    except (OSError, httpx2.HTTPError) as error:
        raise UserError(
            f"there is no folder {name}, and as a Hub id it could not be downloaded: {first_line(error)}"
        ) from error


def _inputs_of(folder: Path, name: str) -> dict[str, Any]:
    """Return size, filter and normalisation of an image processor, as `VisionModel` takes them."""
    checked_config(folder, PROCESSOR)
    try:
        with quiet_transformers():
            found = AutoImageProcessor.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            ).to_dict()
        others = {key for key, on in found.items() if on is True and key.startswith(("do_", "rescale_offset"))} - STEPS
        size = found["crop_size" if found.get("do_center_crop") and found.get("crop_size") else "size"]
        height, width = (size.get(side) or size.get("shortest_edge") for side in ("height", "width"))
        name_of_filter = PIL.Image.Resampling(found.get("resample", 3)).name
        mean, std = (torch.tensor(found[f"image_{part}"]).reshape(-1, 1, 1) for part in ("mean", "std"))
        if not all(isinstance(side, int) and 0 < side <= LARGEST_SIZE for side in (height, width)):
            raise ValueError(f"it resizes images to {shown(size)}")
    except Exception as error:  # untrusted files can cause any error
        raise UserError(f"cannot use the image processor of {name}: {first_line(error)}") from error
    if others or name_of_filter not in FILTERS:
        step = min(others) if others else f"the filter {name_of_filter}"
        raise UserError(f"the image processor of {name} uses {step}, which hfgen does not know")
    scale = found["rescale_factor"] if found.get("do_rescale") else 1.0
    if not found.get("do_normalize"):
        mean, std = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    return {"size": (height, width), "mode": FILTERS[name_of_filter], "scale": scale, "mean": mean, "std": std}
