"""Muon does to matrices what PyTorch's does, and to all else what AdamW does."""

import copy

import pytest
import torch
from torch import nn

from hfgen.training.optimizers import NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS, Muon, orthogonalize

OPTIONS = {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}


class Network(nn.Module):
    """One layer of each kind that there is."""

    def __init__(self):
        super().__init__()
        self.conv_in = nn.Conv2d(1, 8, 3)
        self.down = nn.Conv2d(8, 16, 3)
        self.again = nn.Conv2d(16, 16, 3)
        self.twin = nn.Conv2d(16, 16, 3)
        self.up = nn.ConvTranspose2d(16, 8, 2)
        self.linear = nn.Linear(16, 32)
        self.classes = nn.Embedding(10, 16)
        self.norm = nn.GroupNorm(4, 16)


MATRICES = {"down.weight", "again.weight", "twin.weight", "up.weight", "linear.weight"}


@pytest.fixture
def trained():
    """A network after some steps of Muon, what it began as, and the gradients that it got, by parameter."""
    torch.manual_seed(0)
    network = Network()
    before = copy.deepcopy(network)
    optimizer = Muon(network, **OPTIONS)
    gradients = [{name: torch.randn_like(p) for name, p in network.named_parameters()} for _ in range(5)]
    for given in gradients:
        for name, parameter in network.named_parameters():
            parameter.grad = given[name]
        optimizer.step()
    return network, before, gradients


def follow(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, gradients: list[torch.Tensor]) -> torch.Tensor:
    for gradient in gradients:
        parameter.grad = gradient.view_as(parameter)
        optimizer.step()
    return parameter.detach()


def test_matrices_are_updated_as_by_the_muon_of_pytorch(trained):
    network, before, gradients = trained
    for name in MATRICES:
        flat = nn.Parameter(before.get_parameter(name).detach().flatten(1))
        optimizer = torch.optim.Muon(
            [flat], lr=OPTIONS["lr"], weight_decay=OPTIONS["weight_decay"], adjust_lr_fn="match_rms_adamw"
        )
        start = flat.detach().clone()
        expected = follow(optimizer, flat, [given[name] for given in gradients])
        got = network.get_parameter(name).detach().flatten(1)
        difference = (got - expected).norm() / (expected - start).norm()
        assert difference < 0.02, f"{name}: {difference}"  # PyTorch's computes in bfloat16


def test_all_else_is_updated_as_by_adamw(trained):
    network, before, gradients = trained
    others = {name for name, _ in network.named_parameters()} - MATRICES
    assert {"conv_in.weight", "classes.weight", "norm.weight", "down.bias"} <= others
    for name in others:
        parameter = before.get_parameter(name)
        expected = follow(torch.optim.AdamW([parameter], **OPTIONS), parameter, [given[name] for given in gradients])
        torch.testing.assert_close(network.get_parameter(name).detach(), expected)


def test_singular_values_become_one():
    """For matrices of any size and scale, each as if it were alone."""
    generator = torch.Generator().manual_seed(0)
    shapes, scales = [(16, 40), (40, 16), (32, 32), (16, 90)], [1e-4, 1.0, 1e4, 1.0]
    matrices = [torch.randn(shape, generator=generator) * scale for shape, scale in zip(shapes, scales, strict=True)]
    for matrix, result in zip(matrices, orthogonalize(matrices), strict=True):
        assert result.shape == matrix.shape
        values = torch.linalg.svdvals(result)
        assert values.max() < 1.3
        assert values.median() > 0.7
        assert ((result * matrix).sum() / matrix.norm() / result.norm()) > 0.7, "the nearest, not any"
        torch.testing.assert_close(orthogonalize([matrix])[0], result)


def test_the_iteration_on_gram_matrices_is_that_on_the_matrices():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(24, 50, generator=generator) @ torch.diag(torch.logspace(0, -3, 50))
    x = matrix / matrix.norm()
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    torch.testing.assert_close(orthogonalize([matrix])[0], x, rtol=1e-3, atol=1e-5)


def test_a_gradient_of_zero_stays_zero():
    assert orthogonalize([torch.zeros(8, 12)])[0].eq(0).all()


def test_a_loaded_state_goes_on_as_if_nothing_had_been(trained):
    network, _, gradients = trained
    networks = [network, copy.deepcopy(network)]
    optimizers = [Muon(each, **OPTIONS) for each in networks]
    for optimizer, each in zip(optimizers, networks, strict=True):
        for name, parameter in each.named_parameters():
            parameter.grad = gradients[0][name]
        if each is network:
            optimizer.step()
            state = copy.deepcopy(optimizer.state_dict())
            assert all(group["fused"] for group in state["param_groups"]), "step counts follow their parameters"
            networks[1].load_state_dict(network.state_dict())
            optimizers[1].load_state_dict(state)
    for optimizer in optimizers:
        optimizer.step()
    for one, other in zip(*(each.parameters() for each in networks), strict=True):
        assert one.equal(other)


def test_parameters_without_gradients_stay_as_they_are():
    network = Network()
    network.down.weight.grad = torch.ones_like(network.down.weight)
    before = copy.deepcopy(network.state_dict())
    Muon(network, **OPTIONS).step()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"down.weight"}
    network.down.weight.grad = None
    Muon(network, **OPTIONS).step()


@pytest.mark.parametrize("precision", ["medium", "highest"])
def test_matrices_are_multiplied_in_full_float32_whatever_the_process_uses(precision):
    matrices = [torch.randn(64, 300, generator=torch.Generator().manual_seed(0))]
    expected = orthogonalize(matrices)[0]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert orthogonalize(matrices)[0].equal(expected)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
