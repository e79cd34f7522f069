"""How good a model is: its evaluation, what it may have copied, and where it puts real images."""

import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfgen.config.commands import EvaluateConfig
from hfgen.evaluation.evaluate import DEFAULT_NUM_IMAGES
from hfgen.evaluation.real import data_source_of, load_real, load_references
from hfgen.evaluation.report import MEASURES
from hfgen.evaluation.results import read_record
from hfgen.evaluation.verdict import verdict
from hfgen.judges.statistics import RealStatistics
from hfgen.losses.vae import ACTIVE_VARIANCE, kl_to_standard_normal
from hfgen.pipelines.pipeline_hfgen_vae import VAEPipeline
from hfgen.runs.folder import COMPARISON, EVALUATION, EVALUATION_PICTURES
from hfgen.serving.library import LoadedModel
from hfgen.utils.errors import UserError
from hfgen.utils.untrusted import read_json

ENCODED = 1000  # test images in the plane of latents
NEIGHBOURS = 5  # training images beside a sample
QUANTILES = (0.01, 0.5)  # of the distances of unseen real images to their nearest training images
READING = (  # fields of a run that decide which real images there are
    "train_split", "validation_fraction", "test_fraction", "resolution", "channels", "max_train_samples",
    "image_column", "label_column", "on_bad_image",
)  # fmt: skip
MOST_DATA_SETS = 2  # whose features are kept in memory


def evaluation_of(folder: Path) -> dict[str, Any]:
    """Return the evaluation of a model for the page, and its comparison of samplers, each None if there is none."""
    found: dict[str, Any] = {"evaluation": None, "comparison": None}
    if (folder / EVALUATION).is_file():
        found["evaluation"] = _evaluation(read_record(folder / EVALUATION), folder)
    if (folder / COMPARISON).is_file():
        comparison = read_json(folder / COMPARISON)
        found["comparison"] = {"settings": comparison.get("settings", [])}
    return _finite(found)


def _evaluation(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the measures of an evaluation beside those of real images, and its classes from the worst to the best."""
    measures, floors = record.get("measures", {}), record.get("floors", {})
    rows = []
    for name, (title, better) in MEASURES.items():
        cells = []
        for space, found in measures.items():
            floor = next(iter(floors.get(space, {}).values()), {})
            cells.append({"value": found.get(name), "real": floor.get(name)})
        if any(cell["value"] for cell in cells):
            rows.append({"name": name, "title": title, "better": better, "cells": cells})
    classes = []
    for space, found in record.get("conditional", {}).items():
        names = record["classes"][space]["label_names"]
        distances = found.get("frechet_distance_per_class") or [None] * len(names)
        accuracies = zip(names, found["accuracy_per_class"], distances, strict=True)
        classes.append({
            "judge": space,
            "accuracy": found["accuracy"],
            "classes": sorted(
                (dict(zip(("name", "accuracy", "distance"), row, strict=True)) for row in accuracies),
                key=lambda row: (row["accuracy"], row["name"]),
            ),
        })  # fmt: skip
    return {
        "verdict": verdict(record),
        "protocol": {name: record["protocol"].get(name) for name in ("num_images", "dataset", "reference_images")},
        "spaces": [*measures],
        "measures": rows,
        "classes": classes,
        "restoration": [
            {"input": setting["title"]}
            | {f"{kind}_{name}": setting[kind].get(name) for kind in ("given", "made") for name in ("psnr", "ssim")}
            for setting in record.get("restoration", [])
        ],
        "pictures": sorted(
            f"{EVALUATION_PICTURES}/{path.name}" for path in (folder / EVALUATION_PICTURES).glob("*.png")
        ),
    }


class RealImages:
    """The real images of models' data sets, with features of a judge; computing them takes a while, once.

    It is used by one thread at a time.

    Args:
        device: Where to compute.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.references: OrderedDict[str, RealStatistics] = OrderedDict()

    def encodings(self, model: LoadedModel) -> dict[str, Any]:
        """Encode test images with a VAE.

        Returns:
            `means` (N, D) rounded, `labels` with `label_names`, and `kl`, the mean KL divergence of each dimension,
            with `active`, whether its mean varies (Burda et al. 2016).

        Raises:
            UserError: if it is no VAE, or its data are not there.
        """
        if not isinstance(model.pipeline, VAEPipeline):
            raise UserError(f"{model.entry.name} is no VAE, so it encodes nothing")
        config, dataset = self._config(model)
        data = load_real(config, model.fields, dataset, config.reference_split)
        images, labels = data.images[:ENCODED], None if data.labels is None else data.labels[:ENCODED]
        classes = labels.to(model.pipeline.device) if model.is_conditional and labels is not None else None
        with torch.no_grad():
            pixels = (images.float() / 127.5 - 1).to(model.pipeline.device, model.pipeline.vae.dtype)
            found = model.pipeline.vae.encode(pixels, classes)
        divergences = kl_to_standard_normal(found).float().mean(0)
        return {
            "means": [[round(value, 3) for value in row] for row in found.mean.float().tolist()],
            "labels": None if labels is None else labels.tolist(),
            "label_names": data.label_names,
            "kl": [round(value, 4) for value in divergences.tolist()],
            "active": (found.mean.float().var(0) > ACTIVE_VARIANCE).tolist(),
        }

    def neighbours(self, model: LoadedModel, image: Tensor) -> dict[str, Any]:
        """Find the training images that are nearest to an image in the features of the first judge.

        Args:
            model: The model that drew it.
            image: uint8 (C, H, W).

        Returns:
            `images`, uint8 (`NEIGHBOURS`, C, H, W), the nearest first, with their `distances`; `unseen`, quantiles of
            the distances of test images to their nearest training images; and the name of the `judge`.

        Raises:
            UserError: if the data are not there, or no judge fits them.
        """
        real = self._references(model)
        features = real.extractor.extract(image[None])[0]
        nearest = torch.cdist(features, real.features(real.train))[0].topk(NEIGHBOURS, largest=False)
        if not real.is_unseen:
            raise UserError(f"the test images of {real.test.source} are in its training images, so they tell nothing")
        unseen = torch.quantile(real.distances_of_unseen(), torch.tensor(QUANTILES))
        return {
            "images": real.train.images[nearest.indices],
            "distances": nearest.values.tolist(),
            "unseen": dict(zip(map(str, QUANTILES), unseen.tolist(), strict=True)),
            "judge": real.extractor.name,
        }

    def _references(self, model: LoadedModel) -> RealStatistics:
        config, dataset = self._config(model)
        key = repr((dataset, [model.fields.get(name) for name in READING]))
        if key not in self.references:
            self.references[key] = load_references(config, model.fields, model.entry.name, DEFAULT_NUM_IMAGES)[0]
        self.references.move_to_end(key)
        while len(self.references) > MOST_DATA_SETS:
            self.references.popitem(last=False)
        return self.references[key]

    def _config(self, model: LoadedModel) -> tuple[EvaluateConfig, str]:
        """Return the configuration of an evaluation of a model, and its data set."""
        dataset = data_source_of(model.fields)
        if dataset is None:
            raise UserError(f"{model.entry.name} does not record on which images it was trained")
        return EvaluateConfig(run_or_repo=model.entry.name, device=self.device), dataset


def _finite(value: Any) -> Any:
    """Return a record for JSON, which has no infinite numbers."""
    match value:
        case dict():
            return {name: _finite(part) for name, part in value.items()}
        case list():
            return [_finite(part) for part in value]
        case float():
            return value if math.isfinite(value) else None
        case _:
            return value
