"""Clusters of images, on which a model is conditioned where there are no labels (pseudo-classes)."""

import dataclasses
import sys

import numpy as np
import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from hfgen.data.images import ImageData
from hfgen.utils.errors import UserError
from hfgen.utils.seeds import derive_seed

LARGEST_SIDE = 16  # to which images are reduced
FITTED_IMAGES = 20_000
IMAGES_AT_A_TIME = 10_000

_fitted: dict[tuple[str, int, int], KMeans] = {}  # by fingerprint, number and seed: several tasks share a training


def with_clusters(data: ImageData, training: ImageData, num_clusters: int, seed: int) -> ImageData:
    """Return a data set with the cluster of each image as its label.

    The clusters are those of k-means on the pixels of 20,000 training images, reduced to 16×16 pixels. They follow
    from images and seed: in float64, the order of sums hardly ever matters.

    Args:
        data: The training images, or images held out of them.
        training: The training images.
        num_clusters: Number of clusters.
        seed: Random seed.

    Raises:
        UserError: if there are fewer training images than clusters.
    """
    if len(training) < num_clusters:
        raise UserError(
            f"num_clusters must be at most the number of training images, {len(training):,}, not {num_clusters:,}"
        )
    with threadpool_limits(1):
        kmeans = _kmeans(training, num_clusters, seed)
        parts = [kmeans.predict(_reduced(part)) for part in data.images.split(IMAGES_AT_A_TIME)]
    labels = torch.from_numpy(np.concatenate(parts)).long()
    return dataclasses.replace(data, labels=labels, label_names=[str(number) for number in range(num_clusters)])


def _kmeans(training: ImageData, num_clusters: int, seed: int) -> KMeans:
    key = training.fingerprint, num_clusters, seed
    if key not in _fitted:
        generator = torch.Generator().manual_seed(derive_seed("clusters", seed))
        chosen = torch.randperm(len(training), generator=generator)[:FITTED_IMAGES]
        kmeans = KMeans(num_clusters, n_init=1, random_state=derive_seed("k-means", seed) % 2**32)
        print(f"hfgen: {training.source}: dividing the images into {num_clusters:,} clusters", file=sys.stderr)
        _fitted.clear()
        _fitted[key] = kmeans.fit(_reduced(training.images[chosen]))
    return _fitted[key]


def _reduced(images: Tensor) -> np.ndarray:
    """Return the pixels of images (N, C, H, W) that are averaged over areas, float64 (N, D)."""
    height, width = (min(side, LARGEST_SIDE) for side in images.shape[2:])
    return adaptive_avg_pool2d(images.double(), (height, width)).flatten(1).numpy()
