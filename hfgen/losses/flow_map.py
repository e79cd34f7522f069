"""Flow maps from scratch: SoFlow (Luo, Yuan and Liu 2025, arXiv:2512.15657).

On the straight paths x_t = (1 − t) x₀ + t ε of rectified flow, with velocity v = ε − x₀, a flow map
f(x_t, t, s) = x_t + (s − t) F(x_t, t, s) follows the flow from t to s. So F is the mean velocity between t and s, and
at s = t the velocity. A jump from x_t, and one from a point x_l a little further along, must have the same end.
"""

import math

import torch
from torch import Tensor

EPSILON = 1e-3  # of the weights


def gap(progress: float, initial: float, final: float) -> float:
    """Return ρ = (t − l) / (t − s), which falls exponentially with the completed fraction of the training."""
    return initial * (final / initial) ** progress


def sample_times(
    count: int, flow_fraction: float, start: tuple[float, float], end: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Sample the times t ≥ s of jumps, each (B, 1, 1, 1), on the CPU.

    Args:
        count: B.
        flow_fraction: The fraction with s = t, in the first rows.
        start: Mean and standard deviation of the logit of t.
        end: The same of s, which is t where it would be larger.
    """
    t, s = (torch.sigmoid(mean + std * torch.randn(count, 1, 1, 1)) for mean, std in (start, end))
    is_flow = torch.arange(count).view(-1, 1, 1, 1) < math.ceil(flow_fraction * count)
    return t, torch.where(is_flow, t, torch.minimum(s, t))


def guided_velocity(velocity: Tensor, conditional: Tensor, unconditional: Tensor, scale: Tensor) -> Tensor:
    """Return v + (1 − 1/w) (F_c − F_u), each (B, C, H, W), by which a network learns the guided velocity.

    Where F_c equals its mean, it is v_c + (w − 1) (v_c − F_u), the guided velocity (Luo et al. 2025, section 3.4, with
    their mixing weight 1/w, with which guidance does not amplify the noise in v).

    Args:
        velocity: ε − x₀.
        conditional: The network's velocity F(x_t, t, t) with the class.
        unconditional: The same without.
        scale: w, (B, 1, 1, 1); 1 does not guide.
    """
    return velocity + (1 - 1 / scale) * (conditional - unconditional)


def mean_velocity_target(velocity: Tensor, prediction: Tensor, later: Tensor, rho: float) -> Tensor:
    """Return the target of F(x_t, t, s), v − (1 − ρ)/ρ (F(x_t, t, s) − F(x_l, l, s)), (B, C, H, W).

    It is F + (f(x_t, t, s) − f(x_l, l, s)) / (t − l) for x_l = x_t + (l − t) v and l = t + ρ (s − t), written so that
    nothing cancels. The squared error has the gradient of the solution consistency loss (Luo et al. 2025, section 3.3)
    up to a factor. As ρ → 0 it is v − (t − s) dF/dt, the target of MeanFlow (Geng et al. 2025, arXiv:2505.13447),
    without its Jacobian-vector product; with ρ = 1, or s = t, it is v, as in flow matching.

    Args:
        velocity: v at x_t.
        prediction: F(x_t, t, s).
        later: F(x_l, l, s).
        rho: ρ.
    """
    return velocity - (1 - rho) / rho * (prediction - later)


def weighted_error(prediction: Tensor, target: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """Return the mean over images of δ / (δ + 0.001)^p, where δ is an image's mean squared error, and the mean of δ.

    The weight has no gradient. It makes the loss for p = 1/2 like a distance, and for p = 1 every image count alike.
    """
    errors = (prediction - target.detach()).square().flatten(1).mean(1)
    return (errors / (errors.detach() + EPSILON) ** power).mean(), errors.detach().mean()
