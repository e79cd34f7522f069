"""Muon for the weights of convolutions and linear layers, AdamW for all other parameters."""

import contextlib
from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

SMALLEST_SIDE = 8  # minimum input and output features of a layer that Muon updates
MOMENTUM = 0.95
# Coefficients of the quintic iteration that moves all singular values towards 1 (Jordan et al. 2024).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for the weights of convolutions and linear layers, AdamW for all other parameters.

    A weight is flattened to a matrix, first dimension by all others. Its Nesterov momentum is replaced by roughly the
    nearest semi-orthogonal matrix, scaled to the RMS of an AdamW update so that both share a learning rate (Jordan et
    al. 2024, https://kellerjordan.github.io/posts/muon; scale of Liu et al. 2025, arXiv:2502.16982, section 2.2).
    `torch.optim.Muon` accepts matrices only.

    AdamW updates embeddings, and layers with fewer than 8 input or output features, mostly the first and last ones.

    Args:
        module: The network whose parameters to update.
        lr: Learning rate of both.
        betas, eps: AdamW's.
        weight_decay: Decoupled weight decay of both.
    """

    def __init__(
        self, module: nn.Module, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        matrices = list(_matrices(module))
        chosen = {id(parameter) for parameter in matrices}
        others = [parameter for parameter in module.parameters() if id(parameter) not in chosen]
        groups = [{"params": matrices, "orthogonal": True}, {"params": others, "orthogonal": False}]
        super().__init__(
            [group for group in groups if group["params"]],
            # "fused" lets a loaded state keep its step counts on the parameters' device.
            {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "fused": True},
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update all parameters that have gradients."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            (self._step_of_muon if group["orthogonal"] else self._step_of_adamw)(group, parameters)

    def _step_of_muon(self, group: dict, parameters: list[Tensor]) -> None:
        if not parameters:
            return
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters]
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        nesterov = torch._foreach_lerp(gradients, momenta, MOMENTUM)
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        for parameter, update in zip(parameters, orthogonalize([x.flatten(1) for x in nesterov]), strict=True):
            scale = 0.2 * max(update.shape) ** 0.5
            parameter.sub_(update.reshape(parameter.shape), alpha=group["lr"] * scale)

    def _step_of_adamw(self, group: dict, parameters: list[Tensor]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] |= {
                    "step": torch.zeros((), device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        states = [self.state[parameter] for parameter in parameters]
        beta1, beta2 = group["betas"]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=group["fused"],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """Multiply float32 matrices without rounding them to fewer bits, such as TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@_full_float32()  # the Gram matrices' rounding errors are multiplied by a few hundred
def orthogonalize(matrices: list[Tensor]) -> list[Tensor]:
    """Orthogonalise matrices (rows, columns): all but very small singular values become 0.7 to 1.2.

    Each step of the iteration multiplies X by a polynomial of its Gram matrix G = X Xᵀ, so the steps need G alone:
    their product is taken first, for all matrices with the same smaller side at once, and multiplies X at the end.
    """
    a, b, c = NEWTON_SCHULZ
    wide = [matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT for matrix in matrices]
    results: list[Tensor] = [*matrices]
    by_side: dict[int, list[int]] = defaultdict(list)
    for index, matrix in enumerate(wide):
        by_side[matrix.shape[0]].append(index)
    for indices in by_side.values():
        scales = torch.stack([1 / wide[index].norm().clamp_min(1e-7) for index in indices])[:, None, None]
        gram = torch.stack([wide[index] @ wide[index].mT for index in indices]) * scales**2
        product = scales * torch.eye(len(gram[0]), device=gram.device)
        for _ in range(NEWTON_SCHULZ_STEPS):
            step = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            step.diagonal(dim1=1, dim2=2).add_(a)
            product, gram = step @ product, step @ gram @ step
        for index, factor in zip(indices, product, strict=True):
            result = factor @ wide[index]
            results[index] = result if wide[index] is matrices[index] else result.mT
    return results


def _matrices(module: nn.Module) -> Iterator[Tensor]:
    for layer in module.modules():
        mixes = isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
        if mixes and min(layer.weight.shape[:2]) >= SMALLEST_SIDE:
            yield layer.weight
