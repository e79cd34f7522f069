"""Precision, recall, density and coverage of generated images, in any features."""

import datasets
import evaluate
import torch
from torch import Tensor

_CITATION = """\
@inproceedings{kynkaanniemi2019improved, title={Improved Precision and Recall Metric for Assessing Generative Models},
  author={Kynkäänniemi, Tuomas and others}, booktitle={NeurIPS}, year={2019}}
@inproceedings{naeem2020reliable, title={Reliable Fidelity and Diversity Metrics for Generative Models},
  author={Naeem, Muhammad Ferjad and others}, booktitle={ICML}, year={2020}}"""

_DESCRIPTION = """\
Around each sample stands a ball that reaches its k-th nearest neighbour in its own set. Precision is the share of
generated samples inside some real ball, density the mean number of real balls around a generated sample, over k;
recall is the share of real samples inside some generated ball, coverage the share of real balls that hold a
generated sample. Precision and density ask how real each generated sample looks, recall and coverage how much of
the real variety there is. Recall and coverage rise with the number of generated samples: compare values of equal
numbers only."""

_INPUTS = """\
Args:
    predictions: Features of the generated images, float (N, D), N > k.
    references: Features of real images, float (M, D), M > k.
    k: Neighbours that a ball reaches to.
Returns:
    precision, recall, coverage: From 0 to 1.
    density: From 0; for samples of the real distribution it is 1 on average."""

_ROWS = 1000  # of a distance matrix in memory at a time


def neighbour_radii(features: Tensor, k: int) -> Tensor:
    """Return the distance of each sample, (N, D), to its k-th nearest neighbour in the same set: (N,).

    Raises:
        ValueError: if there are no k other samples.
    """
    if len(features) <= k:
        raise ValueError(f"a {k}-th nearest neighbour needs more than {k} samples, not {len(features)}")
    parts = [
        _squared_distances(part, features).topk(k + 1, largest=False).values[:, -1] for part in features.split(_ROWS)
    ]
    return torch.cat(parts).sqrt()


def precision_recall_density_coverage(
    predictions: Tensor,
    references: Tensor,
    k: int = 5,
    reference_radii: Tensor | None = None,
    prediction_radii: Tensor | None = None,
) -> dict[str, float]:
    """Return the four measures for features (N, D) and (M, D).

    Args:
        predictions: Features of the generated images.
        references: Features of real images.
        k: Neighbours that a ball reaches to.
        reference_radii: `neighbour_radii(references, k)`, where it is known already.
        prediction_radii: `neighbour_radii(predictions, k)`, where it is known already.

    Raises:
        ValueError: if a set has no more than k samples.
    """
    if reference_radii is None:
        reference_radii = neighbour_radii(references, k)
    if prediction_radii is None:
        prediction_radii = neighbour_radii(predictions, k)
    reference_squares, prediction_squares = reference_radii.square(), prediction_radii.square()
    balls_around = torch.zeros(len(predictions), dtype=torch.long)
    recalled = covered = 0
    for part, radii in zip(references.split(_ROWS), reference_squares.split(_ROWS), strict=True):
        distances = _squared_distances(part, predictions)
        inside = distances < radii[:, None]
        balls_around += inside.sum(0)
        covered += inside.any(1).sum().item()
        recalled += (distances < prediction_squares).any(1).sum().item()
    return {
        "precision": (balls_around > 0).double().mean().item(),
        "recall": recalled / len(references),
        "density": balls_around.double().mean().item() / k,
        "coverage": covered / len(references),
    }


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.addmm(a.square().sum(1)[:, None] + b.square().sum(1), a, b.T, alpha=-2).clamp_(min=0)


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class PrecisionRecallDensityCoverage(evaluate.Metric):
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
        """Compute as usual; the sets may differ in size, which the table behind `add_batch` cannot hold."""
        if predictions is None:
            return super().compute(**options)
        return self._compute(predictions, references, **options)

    def _compute(self, predictions, references, k=5):
        predictions, references = torch.as_tensor(predictions), torch.as_tensor(references)
        return precision_recall_density_coverage(predictions, references, k)
