"""Noise levels, targets and weights agree with diffusers' schedulers and with each other."""

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torchmetrics.functional.image import structural_similarity_index_measure

from hfgen.losses.diffusion import (
    alpha_sigma,
    diffusion_target,
    loss_weights,
    predict_x0,
    prediction_type_of,
    sample_timesteps,
)
from hfgen.losses.similarity import structural_similarity

TIMESTEPS = torch.tensor([0, 1, 500, 998, 999])
FLOW = FlowMatchEulerDiscreteScheduler()


def images_and_noise(count: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, 4, 4, generator=generator) * 2 - 1, torch.randn(count, 3, 4, 4, generator=generator)


@pytest.mark.parametrize("beta_schedule", ["linear", "squaredcos_cap_v2", "sigmoid"])
def test_noise_levels_and_velocity_are_those_of_diffusers(beta_schedule):
    scheduler = DDPMScheduler(beta_schedule=beta_schedule, prediction_type="v_prediction")
    images, noise = images_and_noise()
    alpha, sigma = alpha_sigma(scheduler, TIMESTEPS)
    torch.testing.assert_close(alpha * images + sigma * noise, scheduler.add_noise(images, noise, TIMESTEPS))
    velocity = diffusion_target("v_prediction", images, noise, alpha, sigma)
    torch.testing.assert_close(velocity, scheduler.get_velocity(images, noise, TIMESTEPS))


def test_noise_levels_of_a_flow_are_those_of_diffusers():
    images, noise = images_and_noise()
    timesteps = FLOW.timesteps[[0, 100, 500, 900, 999]]
    alpha, sigma = alpha_sigma(FLOW, timesteps)
    torch.testing.assert_close(alpha * images + sigma * noise, FLOW.scale_noise(images, timesteps, noise))


def test_between_two_timesteps_the_noise_level_is_interpolated():
    scheduler = DDPMScheduler()
    alpha, sigma = alpha_sigma(scheduler, torch.tensor([500.25]))
    expected = 0.75 * scheduler.alphas_cumprod[500] + 0.25 * scheduler.alphas_cumprod[501]
    assert alpha.square().item() == pytest.approx(expected.item(), rel=1e-5)
    assert (alpha.square() + sigma.square()).item() == pytest.approx(1)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction", "flow_prediction"])
@pytest.mark.parametrize("weighting", ["uniform", "min_snr", "p2"])
def test_a_weighting_means_the_same_whatever_is_predicted(prediction_type, weighting):
    """An error in what is predicted is an error of the image and of the noise, which the weights are defined by."""
    is_flow = prediction_type == "flow_prediction"
    alpha, sigma = alpha_sigma(FLOW if is_flow else DDPMScheduler(), TIMESTEPS[1:])
    images, noise = images_and_noise(4)
    wrong_images = images + 0.1
    wrong_noise = (alpha * images + sigma * noise - alpha * wrong_images) / sigma  # for the same x_t
    target = diffusion_target(prediction_type, images, noise, alpha, sigma)
    torch.testing.assert_close(
        predict_x0(prediction_type, target, alpha * images + sigma * noise, alpha, sigma), images
    )
    predicted = diffusion_target(prediction_type, wrong_images, wrong_noise, alpha, sigma)
    weights = loss_weights(weighting, prediction_type, alpha, sigma, snr_gamma=5.0)
    loss = (weights * (predicted - target).square()).mean((1, 2, 3))
    snr = (alpha / sigma).square().flatten()
    if weighting == "uniform":
        expected = (predicted - target).square().mean((1, 2, 3))
    elif weighting == "min_snr":
        expected = snr.clamp(max=5.0) * (wrong_images - images).square().mean((1, 2, 3))
    else:
        expected = (wrong_noise - noise).square().mean((1, 2, 3)) / (1 + snr)
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=1e-7)


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
@pytest.mark.parametrize("weighting", ["min_snr", "p2"])
def test_the_level_of_pure_noise_at_which_drawing_begins_is_trained(prediction_type, weighting):
    scheduler = DDPMScheduler(rescale_betas_zero_snr=True)
    alpha, sigma = alpha_sigma(scheduler, torch.tensor([998, 999]))
    assert alpha[1] == 0 < alpha[0]
    weights = loss_weights(weighting, prediction_type, alpha, sigma, snr_gamma=5.0).flatten()
    assert weights[1] == 1
    assert weights[0] == pytest.approx(alpha[0].square().item(), rel=1e-3), "SNR, nearly"


def test_a_wrong_prediction_type_or_weighting_is_an_error():
    one = torch.ones(1, 1, 1, 1)
    with pytest.raises(ValueError, match="unknown prediction type x"):
        diffusion_target("x", one, one, one, one)
    with pytest.raises(ValueError, match="unknown prediction type x"):
        predict_x0("x", one, one, one, one)
    with pytest.raises(ValueError, match="unknown loss weighting x"):
        loss_weights("x", "sample", one, one, 5.0)


@pytest.mark.parametrize("shape", [(3, 1, 28, 28), (2, 3, 11, 20)])
def test_structural_similarity_and_its_gradient_are_those_of_torchmetrics(shape):
    torch.manual_seed(0)
    wanted = torch.rand(shape)
    images = torch.lerp(wanted, torch.rand(shape), 0.3).requires_grad_()
    expected = structural_similarity_index_measure(images, wanted, data_range=1.0)
    (expected_gradient,) = torch.autograd.grad(expected, images)
    found = structural_similarity(images, wanted)
    (gradient,) = torch.autograd.grad(found, images)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-3)


def test_timesteps_are_whole_for_a_diffusion_and_any_for_a_flow():
    torch.manual_seed(0)
    diffusion, flow = (sample_timesteps("uniform", s, 100_000) for s in (DDPMScheduler(), FLOW))
    assert diffusion.dtype == torch.int64
    assert (diffusion.min(), diffusion.max()) == (0, 999)
    assert (diffusion.bincount() - 100).abs().max() < 60, "all alike"
    assert flow.is_floating_point()
    assert 0 <= flow.min() < 1
    assert 999 < flow.max() <= 1000
    middle = sample_timesteps("logit_normal", FLOW, 100_000)
    inner = ((middle > 250) & (middle < 750)).float().mean().item()
    assert inner == pytest.approx(0.7281, abs=0.01), "where a standard normal number is between ±log 3"
    noisier = sample_timesteps("logit_normal", FLOW, 100_000, logit_mean=1.0, logit_std=2.0)
    logits = torch.logit(noisier / 1000)
    assert (logits.mean().item(), logits.std().item()) == pytest.approx((1, 2), abs=0.03)
    assert prediction_type_of(FLOW) == "flow_prediction"
