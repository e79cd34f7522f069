"""How much closer generated images are to training images than to unseen ones."""

import datasets
import evaluate
import torch
from torch import Tensor

_CITATION = """\
@inproceedings{jiralerspong2023feature, title={Feature Likelihood Divergence: Evaluating the Generalization of
  Generative Models Using Samples}, author={Jiralerspong, Marco and others}, booktitle={NeurIPS}, year={2023}}"""

_DESCRIPTION = """\
Based on the feature likelihood divergence: a Gaussian with a fitted width is centred on each generated sample, so that
copies of training images become narrow peaks. The gap is the mean log-likelihood of the training images under this
mixture minus that of as many unseen images. Unlike in the original, the widths are fitted to both sets together, so
that the expected gap of a model that memorises nothing is zero. A model that copies has a large positive gap."""

_INPUTS = """\
Args:
    predictions: Features of the generated images, float (N, D).
    references: Features of training images, float (M, D).
    unseen: Features of images that the model was not trained on, float (M, D).
Returns:
    memorization_gap: Nats per image.
    memorization_gap_std: Its standard error over the images.
Examples:
    >>> module = evaluate.load("hfgen/memorization_gap")
    >>> training, unseen = torch.randn(2, 100, 4, generator=torch.Generator().manual_seed(0))
    >>> copied = module.compute(predictions=training, references=training, unseen=unseen)
    >>> copied["memorization_gap"] > 5 * copied["memorization_gap_std"]
    True
"""

_ITERATIONS = 10
_ROWS = 1000  # of a distance matrix processed at a time
_NARROWEST = 1e-3  # minimum variance, relative to the typical squared distance to the nearest sample


def memorization_gap(predictions: Tensor, references: Tensor, unseen: Tensor) -> tuple[float, float]:
    """Return the gap, in nats per image, and its standard error.

    The widths are fitted by expectation maximisation: σⱼ² ← Σᵢ rᵢⱼ ‖xᵢ − gⱼ‖² / (D Σᵢ rᵢⱼ), with rᵢⱼ the
    responsibility of sample gⱼ for image xᵢ.

    Args:
        predictions: Features of the generated images, (N, D).
        references: Features of training images, (M, D).
        unseen: Features of images from the same distribution that were not trained on, (M, D).

    Raises:
        ValueError: if references and unseen differ in number, or there are fewer than two.
    """
    if len(references) != len(unseen) or len(unseen) < 2:
        raise ValueError(
            "the memorisation gap compares two or more training images with as many unseen ones, "
            f"not {len(references)} with {len(unseen)}"
        )
    dimensions = predictions.shape[1]
    images = torch.cat([references, unseen])
    centre = images.mean(0)  # far from 0, float32 loses the precision of the distances
    squared = torch.cdist(images - centre, predictions - centre).square() / dimensions
    typical = squared.min(1).values.median().clamp(min=torch.finfo(squared.dtype).tiny)
    variance = typical.expand(len(predictions)).clone()
    for _ in range(_ITERATIONS):
        weight, spread = torch.zeros_like(variance), torch.zeros_like(variance)
        for part in squared.split(_ROWS):
            responsibility = _log_joint(part, variance, dimensions).softmax(1)
            weight += responsibility.sum(0)
            spread += (responsibility * part).sum(0)
        used = weight > 1e-6
        variance = torch.where(used, spread / weight.clamp(min=1e-6), variance).clamp(min=_NARROWEST * typical)
    likelihoods = torch.cat([_log_joint(part, variance, dimensions).logsumexp(1) for part in squared.split(_ROWS)])
    train, other = likelihoods.double().split([len(references), len(unseen)])
    error = (train.var() / len(train) + other.var() / len(other)).sqrt()
    return (train.mean() - other.mean()).item(), error.item()


def _log_joint(squared: Tensor, variance: Tensor, dimensions: int) -> Tensor:
    """Return log N(xᵢ; gⱼ, σⱼ² I) up to a constant; `squared` is ‖xᵢ − gⱼ‖² / D."""
    return -0.5 * dimensions * (variance.log() + squared / variance)


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class MemorizationGap(evaluate.Metric):
    """The `evaluate` module."""

    def _info(self):
        features = datasets.Sequence(datasets.Value("float32"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": features, "references": features}),
        )

    def compute(self, *, predictions=None, references=None, **options):
        """Compute as usual, but bypass the table of `add_batch`, which needs sets of equal size."""
        if predictions is None:
            return super().compute(**options)
        return self._compute(predictions, references, **options)

    def _compute(self, predictions, references, unseen=None):
        if unseen is None:
            raise ValueError("unseen is missing: features of as many images as references, not trained on")
        predictions, references = (torch.as_tensor(f).to("cpu", torch.float32) for f in (predictions, references))
        gap, error = memorization_gap(predictions, references, torch.as_tensor(unseen).to("cpu", torch.float32))
        return {"memorization_gap": gap, "memorization_gap_std": error}
