"""Inputs of image-to-image models: degraded targets, a second column or folder, or an unpaired target domain."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfgen.data.degradations import Degradation, Degraded, check_degradations, degrade, parse_degradations
from hfgen.data.images import ImageData, load_images
from hfgen.data.sources import placed_folder
from hfgen.utils.errors import UserError


class PairedInputs:
    """The input images of paired translation, for each target image of a data set.

    Args:
        run: The fields of a `TranslationConfig`.
        data: The target images.

    Attributes:
        degradations: Degradations of the targets that give the inputs; empty if there are input images.
        data: The input images, or None with degradations.
        channels: Channels of the inputs.
        scale_factor: Ratio of the targets' size to the inputs' size.

    Raises:
        UserError: if the degradations do not apply to the images, or inputs and targets do not match.
    """

    def __init__(self, run: Mapping[str, Any], data: ImageData):
        self.degradations = parse_degradations(run["degradation"])
        shape = tuple(data.images.shape[1:])
        self.data: ImageData | None = None
        if self.degradations:
            self.channels, self.scale_factor = check_degradations(self.degradations, shape)
            return
        self.data = _load_inputs(run, data.split)
        if len(self.data) != len(data):
            raise UserError(f"there are {len(self.data)} input images for {len(data)} target images of {data.source}")
        given_channels, height, width = self.data.images.shape[1:]
        self.channels, self.scale_factor = given_channels, shape[1] // height
        if (height * self.scale_factor, width * self.scale_factor) != shape[1:]:
            raise UserError(
                f"input images of {width}×{height} pixels cannot be upscaled by a whole factor to the "
                f"{shape[2]}×{shape[1]} of {data.source}; resize both with --resolution"
            )

    def __call__(self, images: Tensor, indices: Tensor, degradations: list[Degradation] | None = None) -> Degraded:
        """Return the inputs.

        Args:
            images: The targets, float32 (B, C, H, W) in [−1, 1].
            indices: Their indices in the data set, (B,).
            degradations: Degradations to use instead of those of training.
        """
        if self.data is None:
            return degrade(images, degradations or self.degradations)
        given = self.data.images[indices.cpu()].to(images.device).float() / 127.5 - 1
        return Degraded(given, images.new_zeros(len(images)))


def _load_inputs(run: Mapping[str, Any], split: str) -> ImageData:
    names = ("label_column", "resolution", "channels", "cache_dir")
    options = {name: run[name] for name in names} | {"split": split} | _held_out(run, run["train_split"])
    options["max_samples"] = run["max_train_samples"] if split == run["train_split"] else None
    if column := run["input_column"]:
        source = run["dataset_name"] or placed_folder(run["train_data_dir"])
        return load_images(source, image_column=column, **options)
    folders = [Path(placed_folder(run[name])) for name in ("train_data_dir", "input_data_dir")]
    if not folders[1].is_dir():
        raise UserError(f"there is no folder {run['input_data_dir']} (input_data_dir)")
    wanted, found = (_names(folder) for folder in folders)
    if wanted != found or len(set(wanted)) != len(wanted):
        raise UserError(
            "the images of train_data_dir and input_data_dir must have the same names: "
            + _unpaired(run, wanted, found)
        )
    return load_images(str(folders[1]), **options)


def _held_out(run: Mapping[str, Any], split: str) -> dict[str, Any]:
    """Return the options that hold out parts of the second images as of the first."""
    fractions = {name: run.get(name, 0.0) for name in ("validation_fraction", "test_fraction")}  # newer than some runs
    return fractions | {"held_out_of": split}


def _unpaired(run: Mapping[str, Any], wanted: list[str], found: list[str]) -> str:
    """Describe the first image without a partner, or with several."""
    for name, names in (("train_data_dir", wanted), ("input_data_dir", found)):
        for picture, count in Counter(names).most_common(1):
            if count > 1:
                return f"{run[name]} has {picture} with several suffixes"
    for name, lacking, names in (("input_data_dir", found, wanted), ("train_data_dir", wanted, found)):
        if missing := sorted({*names} - {*lacking}):
            return f"{run[name]} has no {missing[0]}"
    return "their suffixes sort them differently; use the same ones in both"


def _names(folder: Path) -> list[str]:
    """Return the names of the files in a folder without suffixes, in loading order."""
    files = sorted((path for path in folder.rglob("*") if path.is_file()), key=str)
    return [str(file.relative_to(folder).with_suffix("")) for file in files]


class TargetDomain:
    """Domain B of unpaired translation.

    Args:
        run: The fields of a `CycleGANConfig`.
        data: The images of domain A.
        split: Split of the images of domain B.

    Attributes:
        data: The images of domain B, before their degradations.
        shape: (C, H, W) after their degradations.

    Raises:
        UserError: if there are no images, or the degradations do not apply to them.
    """

    def __init__(self, run: Mapping[str, Any], data: ImageData, split: str):
        self.degradations = parse_degradations(run["target_degradation"])
        folder = run["target_data_dir"]
        source = placed_folder(folder) if folder else run["target_dataset_name"]
        names = ("resolution", "channels", "on_bad_image", "cache_dir")
        options = {name: run[name] for name in names} | {"split": split, "image_column": run["target_image_column"]}
        options |= _held_out(run, run["target_split"])
        options["max_samples"] = run["max_train_samples"] if split == run["target_split"] else None
        self.data = load_images(source, **options) if source else data
        self.random_flip = run["random_flip"]
        shape = tuple(self.data.images.shape[1:])
        channels, scale_factor = check_degradations(self.degradations, shape)
        self.shape = (channels, shape[1] // scale_factor, shape[2] // scale_factor)

    def draw(self, count: int, device: torch.device) -> Tensor:
        """Sample training images with torch's default generator, float32 (count, C, H, W) in [−1, 1]."""
        images = self.take(torch.randint(len(self.data), (count,)), device)
        if self.random_flip:
            flipped = torch.rand(count, device=device) < 0.5
            images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
        return images

    def take(self, indices: Tensor, device: torch.device) -> Tensor:
        """Return the images of the given indices, float32 (B, C, H, W) in [−1, 1]."""
        images = self.data.images[indices].to(device).float() / 127.5 - 1
        return degrade(images, self.degradations).images
