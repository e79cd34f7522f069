"""Feature-space metrics with uncertainties and real-data baselines, and a cache of real statistics."""

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
from hfgen.judges.features import FeatureExtractor
from hfgen.judges.judge import judges_numbers
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
GROUPS = 10  # of samples, for the standard deviations
MEMORIZATION_SAMPLES = 4000  # of generated and real images each, at most
LEAST_RECALL = 0.1  # below it no standard deviation is reported
DISTANCES_AT_A_TIME = 50_000_000  # held in memory
CLOSE = 0.01  # quantile of the distances of test images to training images
OVERLAP = 0.01  # fraction of the test images in the training set above which they count as seen
_VERSION = 2  # of the cache; increase when a metric changes


class RealStatistics:
    """Statistics of the real images in the feature space of an extractor, cached on disk.

    Args:
        extractor: A judge or another feature extractor.
        test: Real images to compare generated ones with.
        train: Training images of the model.
        cache: Folder of the cache.
    """

    def __init__(self, extractor: FeatureExtractor, test: ImageData, train: ImageData, cache: Path):
        self.extractor, self.test, self.train, self.cache = extractor, test, train, cache

    def features(self, data: ImageData) -> Tensor:
        """Return the features of a data set, float32 (N, D)."""
        return self._outputs(data)["features"]

    def predicted(self, data: ImageData) -> Tensor:
        """Return the judge's predicted classes of a data set, int64 (N,)."""
        return self._outputs(data)["predicted"]

    def labels(self, data: ImageData) -> Tensor | None:
        """Return the labels of a data set as the judge's class indices, int64 (N,), or None without either."""
        if data.labels is None or not self.extractor.label_names:
            return None
        return judges_numbers(data.label_names, data.source, self.extractor.label_names)[data.labels]

    def _outputs(self, data: ImageData) -> dict[str, Tensor]:
        def compute() -> dict[str, Tensor]:
            features, logits = self.extractor.extract(data.images)
            return {"features": features} | ({} if logits is None else {"predicted": logits.argmax(1)})

        return self._cached(f"features-{data.fingerprint[:16]}", compute)

    def measures(self, features: Tensor) -> dict[str, dict[str, float | None]]:
        """Compute all distribution metrics between features (N, D) and those of the test images.

        Returns:
            For each metric its value and its standard deviation over sets of samples of the model. Those of precision,
            recall, density, coverage and the Fréchet distance are grouped jackknife estimates over tenths of the
            samples; that of the kernel distance, a mean, comes from its values for the single tenths. It is None if a
            tenth has too few samples, and for a recall below `LEAST_RECALL`, which depends on the few largest balls.
            The Fréchet distance is left out unless there are more images than features.
        """
        references = self.features(self.test)
        squares = self._cached(
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

    def quick_measures(self, features: Tensor) -> dict[str, float]:
        """Compute Fréchet distance, precision, recall, density and coverage of features (N, D), without deviations.

        The Fréchet distance is left out unless there are more images than features.
        """
        references = self.features(self.test)
        values = precision_recall_density_coverage(features, references, NEIGHBOURS)
        if min(len(features), len(references)) > features.shape[1]:
            values = {"frechet_distance": frechet_distance(features, references)} | values
        return values

    def frechet_distances_without(self, features: Tensor) -> list[float]:
        """Return the Fréchet distances to the test images without each tenth of features (N, D).

        They are empty unless there are more images than features.

        Sample i is in tenth i mod 10, so paired samples are left out together.
        """
        every = torch.arange(len(features)) % GROUPS
        references = self.features(self.test)
        if min((every != 0).sum(), len(references)) <= features.shape[1]:
            return []
        return [frechet_distance(features[every != group], references) for group in range(GROUPS)]

    @functools.cached_property
    def accuracy(self) -> dict[str, Any] | None:
        """The judge's accuracy on the test images (see `accuracy_of`), or None if they have no labels."""
        labels = self.labels(self.test)
        if labels is None:
            return None
        return accuracy_of(self.predicted(self.test), labels, len(self.extractor.label_names))

    @functools.cached_property
    def test_images_in_training(self) -> int:
        """Number of test images that are pixel-identical to a training image."""
        return count_in(self.train, self.test.images)

    @property
    def is_unseen(self) -> bool:
        """Whether at most a fraction `OVERLAP` of the test images are in the training set."""
        return self.test_images_in_training <= OVERLAP * len(self.test)

    def floors(self, num_images: int) -> dict[str, dict[str, float]]:
        """Compute the metrics for real images in place of generated ones, as a baseline.

        Args:
            num_images: Number of generated images; fewer are used if there are fewer real ones.

        Returns:
            `train_against_test`, if the test images are unseen: training images against the test images;
            `half_against_half`, if there are enough: training images against as many other training images as there
            are test images, at most half. Each with its `num_images`.
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
        path = self._cache_file(
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

    def memorization(self, features: Tensor, distances: Tensor) -> dict[str, dict[str, float]]:
        """Compare the distances of samples to training images and to equally many test images.

        Args:
            features: (N, D); the first `MEMORIZATION_SAMPLES` of them are used.
            distances: From each of the features to its nearest training image, (N,).

        Returns:
            For the samples (`generated`), and, if there are enough, for other training images in their place (`real`):
            the gap in nats per image (see `memorization_gap`) and its standard error; the proportion of samples whose
            nearest real image is a training image, and its standard deviation under the null hypothesis. Under it,
            each real image is a training image with probability ½. If the real image h is the nearest of c_h of N
            samples, the standard deviation is ½ √(Σ c_h²) / N: the fewer real images are nearest to many samples, the
            larger. For the samples also the proportion that is closer to a training image (of all) than 99 % of the
            test images are (`closer_than_unseen`).
        """
        generator = torch.Generator().manual_seed(derive_seed("memorization"))
        test, train = self.features(self.test), self.features(self.train)
        count = min(MEMORIZATION_SAMPLES, len(test), len(train))
        test = test[torch.randperm(len(test), generator=generator)[:count]]
        train = train[torch.randperm(len(train), generator=generator)]
        train, others = train[:count], train[count:]
        results = {}
        for name, samples in (("generated", features), ("real", others)):
            samples = samples[: min(MEMORIZATION_SAMPLES, len(features))]
            if len(samples) > NEIGHBOURS:
                gap, gap_error = memorization_gap(samples, train, test)
                to_train, to_test = nearest(samples, train), nearest(samples, test)
                nearer = to_train[0] < to_test[0]
                counts = torch.where(nearer, to_train[1], count + to_test[1]).bincount().double()
                results[name] = {
                    "gap": gap,
                    "gap_std": gap_error,
                    "nearer_to_training": nearer.double().mean().item(),
                    "nearer_to_training_std": 0.5 * counts.norm().item() / len(samples),
                }
        if "generated" in results:
            results["generated"]["closer_than_unseen"] = (distances < self._close()).double().mean().item()
        return results

    def distances_of_unseen(self) -> Tensor:
        """Return the distance of each test image to its nearest training image, float32 (N,)."""
        test, train = self.test.fingerprint[:16], self.train.fingerprint[:16]

        def compute() -> dict[str, Tensor]:
            return {"distances": nearest(self.features(self.test), self.features(self.train))[0]}

        return self._cached(f"nearest-{test}-{train}", compute)["distances"]

    def _close(self) -> float:
        """Return the distance to the nearest training image that 99 % of the test images exceed."""
        return torch.quantile(self.distances_of_unseen(), CLOSE).item()

    def _cached(self, name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        path = self._cache_file(f"{name}.safetensors")
        if path.exists():
            try:
                return load_file(path)
            except SafetensorError:
                say_damaged(path)
        computed = {key: value.contiguous() for key, value in compute().items()}
        with complete_or_absent(path) as temporary:
            save_file(computed, temporary)
        return computed

    def _cache_file(self, name: str) -> Path:
        return self.cache / f"statistics-{_VERSION}-{self.extractor.sha256[:16]}-{name}"


def count_in(data: ImageData, images: Tensor) -> int:
    """Count the images (N, C, H, W) that are pixel-identical to an image of a data set."""

    def digest(image: np.ndarray) -> bytes:  # keeping the pixels of a million images would take too much memory
        return hashlib.blake2b(image.tobytes(), digest_size=16).digest()

    known = set(map(digest, data.images.numpy()))
    return sum(digest(image) in known for image in images.numpy())


def nearest(features: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each of the features, (N, D), the distance and index of the nearest of the others, (M, D)."""
    centre = others.mean(0)  # float32 distances lose precision far from the origin
    others = others - centre
    rows = max(1, min(500, DISTANCES_AT_A_TIME // len(others)))
    minima = [torch.cdist(part - centre, others).min(1) for part in features.split(rows)]
    return torch.cat([part.values for part in minima]), torch.cat([part.indices for part in minima])


def smallest_of_each_class(values: Tensor, classes: Tensor, count: int) -> Tensor:
    """Return the indices of the smallest values (N,), equally many of each of the classes (N,), at most `count`.

    They are sorted by class, then value; of more than `count` classes, those with the smallest values remain.
    """
    present, order = classes.unique(), values.argsort()
    each = max(1, count // len(present))
    indices = torch.cat([order[classes[order] == number][:each] for number in present])
    return indices[values[indices].argsort()[:count].sort().values]


def _distances(features: Tensor, references: Tensor) -> dict[str, float]:
    distances = {"kernel_distance": _kernel_distance(features, references, KERNEL_SUBSETS)}
    if min(len(features), len(references)) > features.shape[1]:
        distances = {"frechet_distance": frechet_distance(features, references)} | distances
    return distances


def _kernel_distance(features: Tensor, references: Tensor, subsets: int) -> float:
    return kernel_distance(features, references, subsets, min(KERNEL_SUBSET, len(features), len(references)))[0]


def jackknife(values: list[float]) -> float:
    """Return the jackknife standard deviation from the values without each group (Tukey 1958)."""
    return math.sqrt((len(values) - 1) * torch.tensor(values, dtype=torch.float64).var(correction=0).item())


def _without(found: Tensor, group: int) -> Tensor:
    """Drop a group of (M, G)."""
    return torch.cat([found[:, :group], found[:, group + 1 :]], 1)


def accuracy_of(predicted: Tensor, labels: Tensor, num_classes: int) -> dict[str, Any]:
    """Return the accuracy of predictions, its standard error, and the accuracy per class."""
    accuracy, per_class = class_accuracy(predicted, labels, num_classes)
    share = (accuracy * len(labels) + 1) / (len(labels) + 2)  # Laplace's estimate, which is never 0 or 1
    std = math.sqrt(share * (1 - share) / len(labels))
    return {"accuracy": accuracy, "accuracy_std": std, "accuracy_per_class": per_class}
