"""FID, KID and Inception Score: the measures in features of Inception, for photographs in colour."""

import datasets
import evaluate
import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.image.fid import FrechetInceptionDistance
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
    predictions: Generated images: PIL, or uint8 arrays (H, W) or (H, W, 3), at least 2,048 of them for a valid FID.
    references: Real images.
    subset_size: Samples in a subset of the KID.
Returns:
    fid, kid, kid_std, inception_score, inception_score_std."""


def require_inception() -> None:
    """Load the network once, so that what is missing is known before any work (see `inception_scores`)."""
    FrechetInceptionDistance()


def inception_scores(predictions: Tensor, references: Tensor, subset_size: int = 1000) -> dict[str, float]:
    """Return the scores of images, uint8 (N, C, H, W) and (M, C, H, W); grey is repeated to three channels.

    Raises:
        ModuleNotFoundError: without the package torch-fidelity.
        OSError: if the weights are neither on this machine nor can be downloaded.
    """
    distances = MetricCollection([FrechetInceptionDistance(), KernelInceptionDistance(subset_size=subset_size)])
    score = InceptionScore()
    for images, real in ((references, True), (predictions, False)):
        for batch in images.split(64):
            batch = batch.expand(-1, 3, -1, -1)
            distances.update(batch, real=real)
            if not real:
                score.update(batch)
    fid, (kid, kid_std) = distances.compute().values()
    mean, std = score.compute()
    return {
        "fid": fid.item(),
        "kid": kid.item(),
        "kid_std": kid_std.item(),
        "inception_score": mean.item(),
        "inception_score_std": std.item(),
    }


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

    def _compute(self, predictions, references, subset_size=1000):
        return inception_scores(_to_tensor(predictions), _to_tensor(references), subset_size)


def _to_tensor(images) -> Tensor:
    pictures = [PIL.Image.fromarray(np.asarray(image)).convert("RGB") for image in images]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
