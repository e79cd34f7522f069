"""FID, KID and Inception Score, in features of Inception, for colour photographs."""

import contextlib
import warnings
from collections.abc import Iterator

import datasets
import evaluate
import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

_CITATION = """\
@inproceedings{heusel2017gans, title={{GANs} Trained by a Two Time-Scale Update Rule Converge to a Local {Nash}
  Equilibrium}, author={Heusel, Martin and others}, booktitle={NeurIPS}, year={2017}}
@inproceedings{salimans2016improved, title={Improved Techniques for Training {GANs}}, author={Salimans, Tim and
  others}, booktitle={NeurIPS}, year={2016}}"""

_DESCRIPTION = """\
The Fréchet and kernel Inception distances and the Inception Score, by torchmetrics with the weights of torch-
fidelity, which are downloaded on first use. Inception was trained on photographs: for drawings, digits or greyscale
images these values mean little."""

_INPUTS = """\
Args:
    predictions: At least 2,048 generated images: PIL, or uint8 arrays (H, W) or (H, W, 3).
    references: At least 2,048 real images.
    subset_size: Subset size of the KID.
    seed: Random seed of the KID's subsets and the Inception Score's splits.
Returns:
    fid, kid, kid_std, inception_score, inception_score_std.
Examples:
    >>> module = evaluate.load("hfgen/inception_scores")
    >>> images = np.random.default_rng(0).integers(0, 256, (2048, 32, 32, 3), dtype=np.uint8)
    >>> sorted(module.compute(predictions=images, references=255 - images))
    ['fid', 'inception_score', 'inception_score_std', 'kid', 'kid_std']
"""


MINIMUM = 2048  # images: as many as features


class _Features(nn.Module):
    """Identity in place of a network, so that one forward pass serves all three metrics."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def load_inception() -> nn.Module:
    """Return the network: from uint8 (N, 3, H, W) to features (N, 2048), from which its `fc` computes logits.

    Raises:
        ModuleNotFoundError: without the package torch-fidelity.
        OSError: if the weights are not cached and cannot be downloaded.
    """
    inception = NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"])
    return inception.to(torch.accelerator.current_accelerator(check_available=True) or "cpu")


def inception_scores(
    predictions: Tensor, references: Tensor, subset_size: int = 1000, seed: int = 0, inception: nn.Module | None = None
) -> dict[str, float]:
    """Return the scores of images, uint8 (N, C, H, W) and (M, C, H, W); greyscale images are expanded to RGB.

    Args:
        predictions: Generated images.
        references: Real images.
        subset_size: Subset size of the KID.
        seed: Random seed of the KID's subsets and the Inception Score's splits.
        inception: The result of `load_inception`, if it is already loaded.

    Raises:
        ValueError: for fewer than 2,048 images, too few for the FID in 2,048 features.
    """
    if min(len(predictions), len(references)) < MINIMUM:
        raise ValueError(
            f"the FID needs at least {MINIMUM} generated and real images each, not {len(predictions)} and "
            f"{len(references)}"
        )
    inception = inception or load_inception()
    generated, real = (inception_features(inception, images).double() for images in (predictions, references))
    mean, std = inception_score(inception, generated, seed)
    with _seeded(seed):
        distance = FrechetInceptionDistance(feature=_Features(generated.shape[1])).set_dtype(torch.float64)
        kernel = KernelInceptionDistance(feature=_Features(generated.shape[1]), subset_size=subset_size)
        for metric in (distance, kernel):
            metric.update(real, real=True)
            metric.update(generated, real=False)
        kid, kid_std = kernel.compute()
    return {
        "fid": distance.compute().item(),
        "kid": kid.item(),
        "kid_std": kid_std.item(),
        "inception_score": mean,
        "inception_score_std": std,
    }


@torch.inference_mode()
def inception_features(inception: nn.Module, images: Tensor) -> Tensor:
    """Return the features, float32 (N, 2048) on the CPU, of images, uint8 (N, C, H, W)."""
    device = inception.fc.weight.device
    return torch.cat([inception(batch.expand(-1, 3, -1, -1).to(device)).float().cpu() for batch in images.split(64)])


@torch.inference_mode()
def inception_score(inception: nn.Module, features: Tensor, seed: int = 0) -> tuple[float, float]:
    """Return the Inception Score of features (N, 2048), and its standard deviation over ten splits."""
    logits = features.double() @ inception.fc.weight.T.double().cpu()  # without bias, as torch-fidelity
    with _seeded(seed):
        score = InceptionScore(feature=_Features(logits.shape[1]))
        score.update(logits)
        mean, std = score.compute()
    return mean.item(), std.item()


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torchmetrics' random choices, and silence its warning that it keeps features."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(seed)
        warnings.filterwarnings("ignore", "Metric .* will save all extracted features", UserWarning)
        yield


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class InceptionScores(evaluate.Metric):
    """The `evaluate` module."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()}),
        )

    def compute(self, *, predictions=None, references=None, **options):
        """Compute as usual, but bypass the table of `add_batch`, which needs sets of equal size."""
        if predictions is None:
            return super().compute(**options)
        return self._compute(predictions, references, **options)

    def _compute(self, predictions, references, subset_size=1000, seed=0):
        return inception_scores(_to_tensor(predictions), _to_tensor(references), subset_size, seed)


def _to_tensor(images) -> Tensor:
    pictures = [PIL.Image.fromarray(np.asarray(image)).convert("RGB") for image in images]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
