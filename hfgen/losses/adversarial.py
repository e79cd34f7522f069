"""Adversarial losses and gradient penalties.

D is the discriminator's output, (B,), one logit per image; σ is the logistic sigmoid.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, softplus

PROBABILITIES = {"minimax", "non_saturating"}  # losses for which σ(D) is the probability that an image is real


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Disable gradients of a module's parameters; they still flow through it to its inputs."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def discriminator_loss(loss: str, real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator loss, a scalar.

    `minimax` and `non_saturating`: −E ln σ(D(x)) − E ln(1 − σ(D(G(z)))), the binary cross-entropy (Goodfellow et al.
    2014, eq. 1). `least_squares`: ½ E (D(x) − 1)² + ½ E D(G(z))² (Mao et al. 2017, eq. 2). `hinge`:
    E max(0, 1 − D(x)) + E max(0, 1 + D(G(z))) (Lim and Ye 2017). `wasserstein`: E D(G(z)) − E D(x) (Arjovsky et al.
    2017). `relativistic`: −E ln σ(D(x) − D(G(z))), over pairs (Jolicoeur-Martineau 2019).

    Args:
        loss: One of these.
        real: D(x), (B,).
        fake: D(G(z)), (B,).
    """
    match loss:
        case "minimax" | "non_saturating":
            return softplus(-real).mean() + softplus(fake).mean()
        case "least_squares":
            return 0.5 * ((real - 1).square().mean() + fake.square().mean())
        case "hinge":
            return relu(1 - real).mean() + relu(1 + fake).mean()
        case "wasserstein":
            return fake.mean() - real.mean()
        case "relativistic":
            return softplus(fake - real).mean()


def discriminator_scores(loss: str, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """Return the mean D(x) and D(G(z)), as probabilities for the losses that define them.

    Args:
        loss: See `discriminator_loss`.
        real: D(x), (B,).
        fake: D(G(z)), (B,).
    """
    score = torch.sigmoid if loss in PROBABILITIES else torch.as_tensor
    return {"real": score(real.detach()).mean(), "fake": score(fake.detach()).mean()}


def generator_loss(loss: str, real: Tensor, fake: Tensor) -> Tensor:
    """Return the generator loss, a scalar.

    `minimax`: E ln(1 − σ(D(G(z)))), which saturates where the discriminator is confident. `non_saturating`:
    −E ln σ(D(G(z))) (Goodfellow et al. 2014, section 3). `least_squares`: ½ E (D(G(z)) − 1)². `hinge` and
    `wasserstein`: −E D(G(z)). `relativistic`: −E ln σ(D(G(z)) − D(x)). Sources as for `discriminator_loss`.

    Args:
        loss: One of these.
        real: D(x), (B,); used by `relativistic` only.
        fake: D(G(z)), (B,).
    """
    match loss:
        case "minimax":
            return -softplus(fake).mean()
        case "non_saturating":
            return softplus(-fake).mean()
        case "least_squares":
            return 0.5 * (fake - 1).square().mean()
        case "hinge" | "wasserstein":
            return -fake.mean()
        case "relativistic":
            return softplus(real - fake).mean()


def squared_gradient_norms(logits: Tensor, images: Tensor) -> Tensor:
    """Return ‖∇_x D(x)‖², (B,), differentiable with respect to the discriminator's parameters.

    Its mean over real images, times γ / 2, is the R1 penalty; over generated images it is R2 (Mescheder et al. 2018,
    eq. 9 and 10).

    Args:
        logits: D(x), (B,), computed from `images`.
        images: x, (B, C, H, W), with `requires_grad`.
    """
    (gradients,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradients.float().square().flatten(1).sum(1)


def gradient_penalty(discriminate: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    """Return E (‖∇_x D(x)‖ − 1)² at random interpolates of real and generated images (WGAN-GP).

    That is eq. 3 of Gulrajani et al. (2017), without its weight.

    Args:
        discriminate: The discriminator: images to D, (B,).
        real: Images (B, C, H, W).
        fake: Images (B, C, H, W).
    """
    weights = torch.rand(len(real), 1, 1, 1, device=real.device)
    between = torch.lerp(real, fake, weights).requires_grad_()
    norms = (squared_gradient_norms(discriminate(between), between) + 1e-12).sqrt()
    return (norms - 1).square().mean()
