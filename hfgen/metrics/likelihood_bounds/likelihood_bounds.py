"""Bounds of the log-likelihood of a latent-variable model, from importance weights."""

import math

import datasets
import evaluate
import torch
from torch import Tensor

_CITATION = """\
@inproceedings{kingma2014auto, title={Auto-Encoding Variational {Bayes}}, author={Kingma, Diederik P. and Welling,
  Max}, booktitle={ICLR}, year={2014}}
@inproceedings{burda2016importance, title={Importance Weighted Autoencoders}, author={Burda, Yuri and Grosse, Roger and
  Salakhutdinov, Ruslan}, booktitle={ICLR}, year={2016}}"""

_DESCRIPTION = """\
From K importance weights log w = log p(x, z) − log q(z | x), z ∼ q(z | x), of each image: the evidence lower bound
E[log w], and the importance-weighted bound E[log (1/K) Σ w], which gets tighter as K grows."""

_INPUTS = """\
Args:
    predictions: Log importance weights in nats, float (N, K): K samples for each of N images.
Returns:
    elbo: Nats per image.
    importance_weighted_bound: Nats per image; at least the ELBO, and equal to it for K = 1.
    gain: Difference of the two bounds, nats per image; it varies less between images than either.
    elbo_std, importance_weighted_bound_std, gain_std: Standard errors over the images.
Examples:
    >>> module = evaluate.load("hfgen/likelihood_bounds")
    >>> results = module.compute(predictions=[[0.0, -1.0], [-2.0, -3.0]])
    >>> [round(results[name], 2) for name in ("elbo", "importance_weighted_bound", "gain")]
    [-1.5, -1.38, 0.12]
"""


def likelihood_bounds(log_weights: Tensor) -> dict[str, float]:
    """Return both bounds in nats per image, with standard errors, of log-weights (N, K) (Burda et al., eq. 8)."""
    weights = log_weights.double()
    elbo = weights.mean(1)
    bound = weights.logsumexp(1) - math.log(weights.shape[1])
    root = math.sqrt(len(weights))
    found = {"elbo": elbo, "importance_weighted_bound": bound, "gain": bound - elbo}
    return {name: values.mean().item() for name, values in found.items()} | {
        f"{name}_std": values.std().item() / root for name, values in found.items()
    }


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class LikelihoodBounds(evaluate.Metric):
    """The `evaluate` module."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("float64"))}),
        )

    def _compute(self, predictions):
        return likelihood_bounds(torch.as_tensor(predictions))
