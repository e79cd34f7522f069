"""FID, KID and Inception Score: the measures in features of Inception, for photographs in colour."""

import warnings

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
fidelity, which are downloaded at the first use. Inception knows photographs: of drawings, digits or grey images
these values say little."""

_INPUTS = """\
Args:
    predictions: At least 2,048 generated images: PIL, or uint8 arrays (H, W) or (H, W, 3).
    references: At least 2,048 real images.
    subset_size: Samples in a subset of the KID.
    seed: The subsets of the KID and the parts of the Inception Score follow from it.
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
    """Takes features for images, so that one pass of the network serves all three measures."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def load_inception() -> nn.Module:
    """Return the network; called with uint8 (N, 3, H, W), it gives features (N, 2048), of which its `fc` makes logits.

    Raises:
        ModuleNotFoundError: without the package torch-fidelity.
        OSError: if the weights are neither on this machine nor can be downloaded.
    """
    inception = NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"])
    return inception.to(torch.accelerator.current_accelerator(check_available=True) or "cpu")


def inception_scores(
    predictions: Tensor, references: Tensor, subset_size: int = 1000, seed: int = 0, inception: nn.Module | None = None
) -> dict[str, float]:
    """Return the scores of images, uint8 (N, C, H, W) and (M, C, H, W); grey is repeated to three channels.

    Args:
        predictions: Generated images.
        references: Real images.
        subset_size: Samples in a subset of the KID.
        seed: The subsets of the KID and the parts of the Inception Score follow from it.
        inception: What `load_inception` returned, where it is loaded already.

    Raises:
        ValueError: for fewer than 2,048 images, of which no FID in 2,048 features can be had.
    """
    if min(len(predictions), len(references)) < MINIMUM:
        raise ValueError(
            f"the FID needs at least {MINIMUM} images of each kind, not {len(predictions)} and {len(references)}"
        )
    inception = inception or load_inception()
    generated, real = _look(inception, predictions), _look(inception, references)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(seed)
        warnings.filterwarnings("ignore", "Metric .* will save all extracted features", UserWarning)
        distance = FrechetInceptionDistance(feature=_Features(generated[0].shape[1])).set_dtype(torch.float64)
        kernel = KernelInceptionDistance(feature=_Features(generated[0].shape[1]), subset_size=subset_size)
        for metric in (distance, kernel):
            metric.update(real[0], real=True)
            metric.update(generated[0], real=False)
        score = InceptionScore(feature=_Features(generated[1].shape[1]))
        score.update(generated[1])
        (kid, kid_std), (mean, std) = kernel.compute(), score.compute()
    return {
        "fid": distance.compute().item(),
        "kid": kid.item(),
        "kid_std": kid_std.item(),
        "inception_score": mean.item(),
        "inception_score_std": std.item(),
    }


@torch.inference_mode()
def _look(inception: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return features, (N, 2048), and the logits without their bias, (N, 1008), of which the Inception Score is."""
    weight = inception.fc.weight
    features = torch.cat([inception(batch.expand(-1, 3, -1, -1).to(weight.device)) for batch in images.split(64)])
    return features.double().cpu(), (features @ weight.T).double().cpu()


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
        """Compute as usual; the sets may differ in size, which the table behind `add_batch` cannot hold."""
        if predictions is None:
            return super().compute(**options)
        return self._compute(predictions, references, **options)

    def _compute(self, predictions, references, subset_size=1000, seed=0):
        return inception_scores(_to_tensor(predictions), _to_tensor(references), subset_size, seed)


def _to_tensor(images) -> Tensor:
    pictures = [PIL.Image.fromarray(np.asarray(image)).convert("RGB") for image in images]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
