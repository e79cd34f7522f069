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
Each sample has a ball whose radius is the distance to its k-th nearest neighbour in its own set. Precision is the
fraction of generated samples inside any real ball, density the mean number of real balls around a generated sample,
divided by k; recall is the fraction of real samples inside any generated ball, coverage the fraction of real balls
that contain a generated sample. Precision and density measure fidelity, recall and coverage diversity. Recall and
coverage increase with the number of generated samples: compare only values for equal numbers."""

_INPUTS = """\
Args:
    predictions: Features of the generated images, float (N, D), N > k.
    references: Features of real images, float (M, D), M > k.
    k: Index of the nearest neighbour that defines the radius.
Returns:
    precision, recall, coverage: From 0 to 1.
    density: From 0, without upper bound; 1 on average for samples of the real distribution.
Examples:
    >>> module = evaluate.load("hfgen/precision_recall_density_coverage")
    >>> features = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    >>> module.compute(predictions=features, references=features)
    {'precision': 1.0, 'recall': 1.0, 'density': 1.0, 'coverage': 1.0}
"""

_ROWS = 1000  # of a distance matrix processed at a time


def squared_radii(features: Tensor, k: int) -> Tensor:
    """Return the squared distance of each sample, (N, D), to its k-th nearest neighbour in the same set: (N,).

    Squares are compared directly: taking the root and squaring it again would decide by rounding whether samples at
    the edge of a ball are inside.

    Raises:
        ValueError: if there are no more than k samples, or a feature is NaN or infinite.
    """
    if not features.isfinite().all():
        raise ValueError("the features must be finite numbers")
    if len(features) <= k:
        raise ValueError(f"a {k}-th nearest neighbour needs more than {k} samples, not {len(features)}")
    centred = features - features.mean(0)  # far from 0, float32 loses the precision of the distances
    parts = [
        _squared_distances(part, centred).topk(k + 1, largest=False).values[:, -1] for part in centred.split(_ROWS)
    ]
    return torch.cat(parts)


def precision_recall_density_coverage(predictions: Tensor, references: Tensor, k: int = 5) -> dict[str, float]:
    """Return the four metrics for features (N, D) and (M, D).

    Raises:
        ValueError: if a set has no more than k samples.
    """
    return values_of_hits(*hits(predictions, references, k), k)


def hits(
    predictions: Tensor, references: Tensor, k: int, reference_squares: Tensor | None = None, num_groups: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the samples inside balls of the other set, separately for groups of generated samples.

    Args:
        predictions: Features of the generated images, (N, D).
        references: Features of real images, (M, D).
        k: Index of the nearest neighbour that defines the radius.
        reference_squares: `squared_radii(references, k)`, if already computed.
        num_groups: Number G of groups; sample i belongs to group i mod G.

    Returns:
        Number of real balls around each generated sample, int (N,); whether each real ball contains a sample of each
        group, bool (M, G); whether each real sample is inside a ball of each group, bool (M, G).
    """
    if reference_squares is None:
        reference_squares = squared_radii(references, k)
    prediction_squares = squared_radii(predictions, k)
    centre = references.mean(0)
    predictions, references = predictions - centre, references - centre
    balls_around = torch.zeros(len(predictions), dtype=torch.long)
    covered, recalled = [], []
    for part, squares in zip(references.split(_ROWS), reference_squares.split(_ROWS), strict=True):
        distances = _squared_distances(part, predictions)
        inside, around = distances < squares[:, None], distances < prediction_squares
        balls_around += inside.sum(0)
        covered.append(torch.stack([inside[:, group::num_groups].any(1) for group in range(num_groups)], 1))
        recalled.append(torch.stack([around[:, group::num_groups].any(1) for group in range(num_groups)], 1))
    return balls_around, torch.cat(covered), torch.cat(recalled)


def values_of_hits(balls_around: Tensor, covered: Tensor, recalled: Tensor, k: int) -> dict[str, float]:
    """Return the four metrics from the results of `hits`."""
    return {
        "precision": (balls_around > 0).double().mean().item(),
        "recall": recalled.any(1).double().mean().item(),
        "density": balls_around.double().mean().item() / k,
        "coverage": covered.any(1).double().mean().item(),
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
        """Compute as usual, but bypass the table of `add_batch`, which needs sets of equal size."""
        if predictions is None:
            return super().compute(**options)
        return self._compute(predictions, references, **options)

    def _compute(self, predictions, references, k=5):
        predictions, references = (torch.as_tensor(f).to("cpu", torch.float32) for f in (predictions, references))
        return precision_recall_density_coverage(predictions, references, k)
