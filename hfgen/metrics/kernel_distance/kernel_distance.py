"""Kernel distance (unbiased squared maximum mean discrepancy) between the features of two sets of images."""

import datasets
import evaluate
import torch
from torch import Tensor
from torchmetrics.image.kid import poly_mmd

_CITATION = """\
@inproceedings{binkowski2018demystifying, title={Demystifying {MMD} {GANs}}, author={Bińkowski, Mikołaj and
  Sutherland, Danica J. and Arbel, Michael and Gretton, Arthur}, booktitle={ICLR}, year={2018}}"""

_DESCRIPTION = """\
The unbiased squared maximum mean discrepancy with the kernel (x·y / D + 1)³, averaged over random subsets. In
Inception features it is the KID; in any others it must not be called so. Its expectation does not depend on the
number of samples, and it can be slightly negative."""

_INPUTS = """\
Args:
    predictions: Features of the generated images, float (N, D).
    references: Features of real images, float (M, D).
    subsets: Number of random subsets.
    subset_size: Samples per subset, at most N and M.
    seed: Random seed of the subsets.
Returns:
    kernel_distance: Mean over the subsets.
    kernel_distance_std: Standard deviation over the subsets.
Examples:
    >>> module = evaluate.load("hfgen/kernel_distance")
    >>> features = torch.eye(4)
    >>> results = module.compute(predictions=features, references=1 - features, subsets=1, subset_size=4)
    >>> {name: round(value, 3) for name, value in results.items()}
    {'kernel_distance': 0.945, 'kernel_distance_std': 0.0}
"""


def kernel_distance(
    predictions: Tensor, references: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return mean and standard deviation over subsets of features (N, D) and (M, D), by torchmetrics.

    Raises:
        ValueError: if there are fewer samples than subset_size.
    """
    for name, features in (("predictions", predictions), ("references", references)):
        if len(features) < subset_size:
            raise ValueError(f"subset_size is {subset_size}, more than the {len(features)} {name}; use a smaller one")
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(subsets):
        chosen = [
            features[torch.randperm(len(features), generator=generator)[:subset_size]].double()
            for features in (references, predictions)
        ]
        values.append(poly_mmd(*chosen))
    return torch.stack(values).mean().item(), torch.stack(values).std(correction=0).item()


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class KernelDistance(evaluate.Metric):
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

    def _compute(self, predictions, references, subsets=100, subset_size=1000, seed=0):
        predictions, references = (torch.as_tensor(f).to("cpu", torch.float32) for f in (predictions, references))
        mean, std = kernel_distance(predictions, references, subsets, subset_size, seed)
        return {"kernel_distance": mean, "kernel_distance_std": std}
