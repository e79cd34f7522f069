"""Fréchet distance between the features of two sets of images."""

import datasets
import evaluate
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

_CITATION = """\
@article{dowson1982frechet, title={The Fréchet distance between multivariate normal distributions},
  author={Dowson, D. C. and Landau, B. V.}, journal={Journal of Multivariate Analysis}, year={1982}}
@inproceedings{heusel2017gans, title={{GANs} Trained by a Two Time-Scale Update Rule Converge to a Local {Nash}
  Equilibrium}, author={Heusel, Martin and others}, booktitle={NeurIPS}, year={2017}}"""

_DESCRIPTION = """\
The Fréchet distance ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½) between Gaussians fitted to two sets of features. In
Inception features it is the FID; in any others it must not be called so. It decreases with the number of samples:
compare only values for equal numbers."""

_INPUTS = """\
Args:
    predictions: Features of the generated images, float (N, D), N > D.
    references: Features of real images, float (M, D), M > D.
    prediction_labels: Optional: the classes of the generated images, int (N,).
    reference_labels: With prediction_labels: the classes of the real images, int (M,).
    num_classes: With prediction_labels: the number of classes.
Returns:
    frechet_distance: 0 for equal sets, without upper bound.
    frechet_distance_per_class: With prediction_labels: one distance per class, None for too few samples.
Examples:
    >>> module = evaluate.load("hfgen/frechet_distance")
    >>> features = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    >>> results = module.compute(predictions=features + 1, references=features)
    >>> round(results["frechet_distance"], 3)
    4.0
"""


class _Features(nn.Module):
    """Identity in place of a network, so that torchmetrics accepts any features."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(predictions: Tensor, references: Tensor) -> float:
    """Return the Fréchet distance of features (N, D) and (M, D), computed in double precision by torchmetrics.

    Raises:
        ValueError: for no more samples than features (rank-deficient covariance), for NaN or infinite features, or for
            sets with different numbers of features.
    """
    if predictions.shape[1] != references.shape[1]:
        raise ValueError(
            f"both sets must have the same number of features, not {predictions.shape[1]} and {references.shape[1]}"
        )
    if not (predictions.isfinite().all() and references.isfinite().all()):
        raise ValueError("the features must be finite numbers")
    for name, features in (("predictions", predictions), ("references", references)):
        if len(features) <= features.shape[1]:
            raise ValueError(
                f"the Fréchet distance in {features.shape[1]} features needs more than {features.shape[1]} "
                f"{name}, not {len(features)}"
            )
    features = _Features(predictions.shape[1])
    metric = FrechetInceptionDistance(feature=features, sync_on_compute=False).set_dtype(torch.float64)
    metric.update(references.double(), real=True)
    metric.update(predictions.double(), real=False)
    return max(0.0, metric.compute().item())


def frechet_distance_per_class(
    predictions: Tensor, references: Tensor, prediction_labels: Tensor, reference_labels: Tensor, num_classes: int
) -> list[float | None]:
    """Return the Fréchet distance within each class, or None for a class with too few samples."""
    distances: list[float | None] = []
    for label in range(num_classes):
        samples = predictions[prediction_labels == label], references[reference_labels == label]
        enough = min(map(len, samples)) > predictions.shape[1]
        distances.append(frechet_distance(*samples) if enough else None)
    return distances


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class FrechetDistance(evaluate.Metric):
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

    def _compute(self, predictions, references, prediction_labels=None, reference_labels=None, num_classes=None):
        predictions, references = (torch.as_tensor(f).to("cpu", torch.float32) for f in (predictions, references))
        results = {"frechet_distance": frechet_distance(predictions, references)}
        if prediction_labels is not None:
            labels = torch.as_tensor(prediction_labels), torch.as_tensor(reference_labels)
            results["frechet_distance_per_class"] = frechet_distance_per_class(
                predictions, references, *labels, num_classes
            )
        return results
