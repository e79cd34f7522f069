"""The measures of `hfgen/metrics/` on images as judges see them, with deviations, real-data floors and a cache."""

import functools
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hfgen.data.images import ImageData
from hfgen.judges.judge import Judge, judges_numbers
from hfgen.metrics.class_accuracy.class_accuracy import class_accuracy
from hfgen.metrics.frechet_distance.frechet_distance import frechet_distance
from hfgen.metrics.kernel_distance.kernel_distance import kernel_distance
from hfgen.metrics.memorization_gap.memorization_gap import memorization_gap
from hfgen.metrics.precision_recall_density_coverage.precision_recall_density_coverage import (
    hits,
    precision_recall_density_coverage,
    squared_radii,
    values_of_hits,
)
from hfgen.utils.files import complete_or_absent, say_damaged
from hfgen.utils.seeds import derive_seed

NEIGHBOURS = 5  # k of precision, recall, density, coverage
KERNEL_SUBSET = 1000
KERNEL_SUBSETS = 100
GROUPS = 10  # into which samples are divided for the standard deviations
MEMORIZATION_SAMPLES = 4000  # of each kind, at most
LEAST_RECALL = 0.1  # below it no deviation is stated
DISTANCES_AT_A_TIME = 50_000_000  # in memory
OVERLAP = 0.01  # share of the test images from which on they count as seen in training
_VERSION = 2  # of what is cached; increase when a measure changes


class Reference:
    """Real images as one judge sees them; what has been computed once is kept on disk.

    Args:
        judge: Looks at the images.
        test: Images that generated ones are compared with.
        train: Images that the model was trained on.
        cache: Folder for what is kept.
    """

    def __init__(self, judge: Judge, test: ImageData, train: ImageData, cache: Path):
        self.judge, self.test, self.train, self.cache = judge, test, train, cache

    def features(self, data: ImageData) -> Tensor:
        """Return the features of a data set, float32 (N, D)."""
        return self._seen(data)["features"]

    def predicted(self, data: ImageData) -> Tensor:
        """Return the classes that the judge finds in a data set, int64 (N,)."""
        return self._seen(data)["predicted"]

    def labels(self, data: ImageData) -> Tensor | None:
        """Return the classes of a data set as the judge numbers them, int64 (N,), or None where it has none."""
        if data.labels is None:
            return None
        return judges_numbers(data.label_names, data.source, self.judge.label_names)[data.labels]

    def _seen(self, data: ImageData) -> dict[str, Tensor]:
        def look() -> dict[str, Tensor]:
            features, logits = self.judge.extract(data.images)
            return {"features": features, "predicted": logits.argmax(1)}

        return self._kept(f"features-{data.fingerprint[:16]}", look)

    def measures(self, features: Tensor) -> dict[str, dict[str, float | None]]:
        """Compare features (N, D) with those of the test images by every distribution measure.

        Returns:
            For each measure its value and its standard deviation over other samples of the same model. Those of
            precision, recall, density, coverage and the Fréchet distance come from leaving out a tenth of the samples
            at a time (the grouped jackknife); that of the kernel distance, which is a mean, from its values for each
            tenth alone. A deviation is None where a tenth has too few samples, and for a recall below `LEAST_RECALL`,
            which rests on the few largest balls: whether there are such in other samples, these cannot tell.
        """
        references = self.features(self.test)
        squares = self._kept(
            f"squared-radii-{NEIGHBOURS}-{self.test.fingerprint[:16]}",
            lambda: {"squares": squared_radii(references, NEIGHBOURS)},
        )["squares"]
        values = _distances(features, references)
        stds: dict[str, float | None] = dict.fromkeys(values)
        every = torch.arange(len(features)) % GROUPS
        if distances := self.frechet_distances_without(features):
            stds["frechet_distance"] = jackknife(distances)
        if (every == 0).sum() > NEIGHBOURS:
            parts = [_kernel_distance(features[every == group], references, GROUPS) for group in range(GROUPS)]
            stds["kernel_distance"] = torch.tensor(parts).std().item() / math.sqrt(GROUPS)
        balls, covered, recalled = hits(features, references, NEIGHBOURS, squares, GROUPS)
        values |= values_of_hits(balls, covered, recalled, NEIGHBOURS)
        without = [
            values_of_hits(
                balls[every != group], *(_without(found, group) for found in (covered, recalled)), NEIGHBOURS
            )
            for group in range(GROUPS)
        ]
        stds |= {name: jackknife([found[name] for found in without]) for name in without[0]}
        if values["recall"] < LEAST_RECALL:
            stds["recall"] = None
        return {name: {"value": value, "std": stds[name]} for name, value in values.items()}

    def frechet_distances_without(self, features: Tensor) -> list[float]:
        """Return the Fréchet distances to the test images without each tenth of features (N, D); none if N is small.

        Sample i is in tenth i mod 10, so that samples that belong together image by image are left out together.
        """
        every = torch.arange(len(features)) % GROUPS
        if (every != 0).sum() <= features.shape[1]:
            return []
        references = self.features(self.test)
        return [frechet_distance(features[every != group], references) for group in range(GROUPS)]

    @functools.cached_property
    def accuracy(self) -> dict[str, Any] | None:
        """How often the judge is right on the test images (see `accuracy_of`), or None where they have no labels."""
        labels = self.labels(self.test)
        if labels is None:
            return None
        return accuracy_of(self.predicted(self.test), labels, len(self.judge.label_names))

    @functools.cached_property
    def test_images_in_training(self) -> int:
        """How many test images are, to the pixel, among the training images."""
        return count_in(self.train, self.test.images)

    @property
    def is_unseen(self) -> bool:
        """Whether the test images are, but for a few, others than the training images."""
        return self.test_images_in_training <= OVERLAP * len(self.test)

    def floors(self, num_images: int) -> dict[str, dict[str, float]]:
        """Measure real images as if they were generated, as many, or all where there are fewer.

        Args:
            num_images: How many.

        Returns:
            `train_against_test`, if the test images are unseen: training images against the test images;
            `half_against_half`, if there are enough: training images against other training images, as many as there
            are test images or all others. Each with its `num_images`.
        """
        features = self.features(self.train)
        generator = torch.Generator().manual_seed(derive_seed("floors"))
        features = features[torch.randperm(len(features), generator=generator)]
        half = len(features) // 2
        sets = {}
        if self.is_unseen:
            sets["train_against_test"] = features[:num_images], self.features(self.test)
        if half > features.shape[1]:
            sets["half_against_half"] = features[:half][:num_images], features[half:][: len(self.test)]
        path = self._place(
            f"floors-{num_images}-{'-'.join(sets)}-{self.test.fingerprint[:16]}-{self.train.fingerprint[:16]}.json"
        )
        if path.exists():
            try:
                return json.loads(path.read_text())
            except ValueError:
                say_damaged(path)
        floors = {
            name: {
                "num_images": len(samples),
                **_distances(samples, references),
                **precision_recall_density_coverage(samples, references, NEIGHBOURS),
            }
            for name, (samples, references) in sets.items()
        }
        with complete_or_absent(path) as temporary:
            temporary.write_text(json.dumps(floors))
        return floors

    def memorization(self, features: Tensor) -> dict[str, dict[str, float]]:
        """Tell how much nearer to training than to test images samples stand, in equal numbers of each.

        Args:
            features: (N, D); the first `MEMORIZATION_SAMPLES` of them are used.

        Returns:
            For the samples (`generated`), and where there are enough for training images in their place that are not
            among those compared with (`real`): the gap in nats per image (see `memorization_gap`) and its standard
            error; the share of samples whose nearest real image is a training image, and how far from one half, its
            average, that is by the choice of the real images alone. If c_h of N samples have the real image h as their
            nearest, and it is chance whether that one was trained on, this deviation is ½ √(Σ c_h²) / N: the larger,
            the fewer real images are nearest to many samples.
        """
        generator = torch.Generator().manual_seed(derive_seed("memorization"))
        test, train = self.features(self.test), self.features(self.train)
        number = min(MEMORIZATION_SAMPLES, len(test), len(train))
        test = test[torch.randperm(len(test), generator=generator)[:number]]
        train = train[torch.randperm(len(train), generator=generator)]
        train, others = train[:number], train[number:]
        results = {}
        for kind, samples in (("generated", features), ("real", others)):
            samples = samples[: min(MEMORIZATION_SAMPLES, len(features))]
            if len(samples) > NEIGHBOURS:
                gap, gap_error = memorization_gap(samples, train, test)
                to_train, to_test = nearest(samples, train), nearest(samples, test)
                nearer = to_train[0] < to_test[0]
                counts = torch.where(nearer, to_train[1], number + to_test[1]).bincount().double()
                results[kind] = {
                    "gap": gap,
                    "gap_std": gap_error,
                    "nearer_to_training": nearer.double().mean().item(),
                    "nearer_to_training_std": 0.5 * counts.norm().item() / len(samples),
                }
        return results

    def _kept(self, name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        path = self._place(f"{name}.safetensors")
        if path.exists():
            try:
                return load_file(path)
            except SafetensorError:
                say_damaged(path)
        computed = {key: value.contiguous() for key, value in compute().items()}
        with complete_or_absent(path) as temporary:
            save_file(computed, temporary)
        return computed

    def _place(self, name: str) -> Path:
        return self.cache / f"statistics-{_VERSION}-{self.judge.sha256[:16]}-{name}"


def count_in(data: ImageData, images: Tensor) -> int:
    """Count the images (N, C, H, W) that are, to the pixel, in a data set."""

    def digest(image: np.ndarray) -> bytes:  # of a million images the pixels would fill the memory
        return hashlib.blake2b(image.tobytes(), digest_size=16).digest()

    known = set(map(digest, data.images.numpy()))
    return sum(digest(image) in known for image in images.numpy())


def nearest(features: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each of the features, (N, D), distance and number of the nearest of the others, (M, D)."""
    centre = others.mean(0)  # far from 0, float32 has no digits left for the distances
    others = others - centre
    rows = max(1, min(500, DISTANCES_AT_A_TIME // len(others)))
    found = [torch.cdist(part - centre, others).min(1) for part in features.split(rows)]
    return torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])


def _distances(features: Tensor, references: Tensor) -> dict[str, float]:
    return {
        "frechet_distance": frechet_distance(features, references),
        "kernel_distance": _kernel_distance(features, references, KERNEL_SUBSETS),
    }


def _kernel_distance(features: Tensor, references: Tensor, subsets: int) -> float:
    return kernel_distance(features, references, subsets, min(KERNEL_SUBSET, len(features), len(references)))[0]


def jackknife(values: list[float]) -> float:
    """Return the standard deviation from the values without each group (Tukey 1958)."""
    return math.sqrt((len(values) - 1) * torch.tensor(values, dtype=torch.float64).var(correction=0).item())


def _without(found: Tensor, group: int) -> Tensor:
    """Leave out a group of (M, G)."""
    return torch.cat([found[:, :group], found[:, group + 1 :]], 1)


def accuracy_of(predicted: Tensor, labels: Tensor, num_classes: int) -> dict[str, Any]:
    """Return the share of right predictions, its standard error, and the share within each class."""
    accuracy, per_class = class_accuracy(predicted, labels, num_classes)
    std = math.sqrt(accuracy * (1 - accuracy) / len(labels))
    return {"accuracy": accuracy, "accuracy_std": std, "accuracy_per_class": per_class}
