"""Ladder VAEs: the path of the latents, its densities, the bounds, and a model that learns digits."""

import json
import math

import pytest
import torch
from conftest import TINY_VAE, train_vae
from torch.distributions import Normal

import hfgen
from hfgen.cli.main import main
from hfgen.config import VAEConfig
from hfgen.data.images import load_images
from hfgen.losses.vae import iwae_bound, kl_to_standard_normal, log_importance_weights, reconstruction_nll
from hfgen.models.modeling_hfgen_vae import GaussianMixtureModel, LadderVAEModel
from hfgen.pipelines.pipeline_hfgen_vae import VAEPipeline
from hfgen.pipelines.saving import save_pipeline
from hfgen.tasks.vae import VAETask
from hfgen.utils.errors import UserError

TINY_LADDER = {
    "block_out_channels": [8, 8], "ladder_channels": [1, 2], "latent_dim": 4 + 2 * 2 * 2 + 4 * 4, "hidden_sizes": [32],
    "optimizer": "muon",
}  # fmt: skip
LAYERS = (4, 8, 16)  # latents of the layers, from the top down


def ladder() -> LadderVAEModel:
    """Return a ladder whose posteriors depend on what they are given."""
    torch.manual_seed(0)
    fields = {"latent_dim": 28, "ladder_channels": [1, 2], "block_out_channels": [8, 8], "hidden_sizes": [10]}
    model = LadderVAEModel(8, **fields).eval().requires_grad_(False)
    for layer in (*heads(model), model.from_latents[-1]):
        layer.weight.mul_(3)
    return model


def heads(model: LadderVAEModel) -> list[torch.nn.Module]:
    """Return what outputs the mean and log-variance of each layer's posterior."""
    return [model.to_latents[-1], *(layer.posterior[-1] for layer in model.layers)]


@pytest.fixture(scope="module")
def images():
    """Three digits, float (3, 1, 8, 8), with pixels −1 and 1."""
    return (load_images("digits").images[:3] >= 128).float() * 2 - 1


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small ladder of black-and-white digits."""
    folder = tmp_path_factory.mktemp("ladder") / "vae"
    return train_vae(folder, **TINY_LADDER, binarization="threshold", max_train_steps=300, num_mixture_components=1)


# --- the path


def test_each_layer_depends_on_the_layers_above_it_and_on_no_other(images):
    model = ladder()
    assert model.latent_sizes == [*LAYERS]
    means = model.encode(images).mean
    torch.testing.assert_close(model(images, noise=torch.zeros(1, 3, 28)).latent_mean[0], means)
    for number, size in enumerate(LAYERS):
        noise = torch.zeros(1, 3, 28)
        noise[..., sum(LAYERS[:number]) :][..., :size] = 1
        changed = [
            not found.equal(mean)
            for found, mean in zip(
                model(images, noise=noise).latent_mean[0].split(LAYERS, 1), means.split(LAYERS, 1), strict=True
            )
        ]
        assert changed == [layer > number for layer in range(3)]


def test_the_divergence_along_the_path_is_that_of_its_samples(images):
    """KL = E_q[ln q(u | x) − ln p(u)], where a layer's q is that given the samples of the layers above."""
    output = ladder()(images, num_draws=4000)
    latents = output.latents.unflatten(0, (4000, 3))
    log_ratio = output.latent_dist.log_prob(latents) - Normal(0.0, 1.0).log_prob(latents)
    found = kl_to_standard_normal(output.latent_dist)
    for size, sampled, divergence in zip(LAYERS, log_ratio.split(LAYERS, 2), found.split(LAYERS, 2), strict=True):
        sampled, divergence = sampled.sum(2), divergence.sum(2)
        error = (sampled - divergence).std(0) / math.sqrt(4000)
        assert ((sampled - divergence).mean(0).abs() < 5 * error).all(), size
        assert (divergence.mean(0) > 0.05).all(), "there is something to measure"


def test_decoding_samples_each_layer_from_its_prior(images):
    """z = μ + σ u with μ and σ of the prior given the layers above."""
    model, seen = ladder(), []
    for layer in model.layers:
        layer.prior.register_forward_hook(lambda module, given, output: seen.append(output))
        layer.project.register_forward_hook(lambda module, given, output: seen.append(given[0]))
    latents = torch.randn(5, 28)
    sample = model.decode(latents).sample
    for size, prior, z in zip(LAYERS[1:], seen[::2], seen[1::2], strict=True):
        mean, log_variance = prior.chunk(2, dim=1)
        noise = latents.split(LAYERS, 1)[LAYERS.index(size)].view_as(mean)
        torch.testing.assert_close(z, mean + log_variance.exp().sqrt() * noise)
    for latent in range(28):
        other = latents.clone()
        other[:, latent] += 1
        assert not model.decode(other).sample.equal(sample), latent
    output = model(images, num_draws=2)
    torch.testing.assert_close(output.sample, model.decode(output.latents).sample)


def test_importance_weights_are_those_of_the_path(images, tmp_path):
    """Where the image does not depend on the latents, the mean of the weights is p(x), whatever the posterior."""
    model = ladder()
    for head in heads(model):  # posteriors that are wider than the prior: no weight is large
        head.weight.chunk(2)[1].zero_()
        head.bias.chunk(2)[1].fill_(0.2)
    model.up[-1][-1].weight.zero_()
    model.up[-1][-1].bias.fill_(-0.3)
    exact = torch.distributions.Bernoulli(logits=torch.tensor(-0.3)).log_prob(images / 2 + 0.5).flatten(1).sum(1)
    draws = 20_000
    output = model(images, num_draws=draws)
    error = reconstruction_nll(output.pixels, images.repeat(draws, 1, 1, 1) / 2 + 0.5).flatten(1).sum(1)
    latents = output.latents.unflatten(0, (draws, 3))
    arguments = (error.view(draws, 3), latents, output.latent_dist)
    assert (log_importance_weights(*arguments).mean(0) < exact - 0.5).all()
    torch.testing.assert_close(iwae_bound(*arguments), exact, atol=0.15, rtol=0)

    save_pipeline(VAEPipeline(model, GaussianMixtureModel(28, 1)), tmp_path / "model")
    flags = ["--dataset_name", "digits", "--reference_split", "train[98%:]", "--binarization", "threshold"]
    flags += ["--num_importance_samples", "6000", "--output_dir", str(tmp_path / "report")]
    assert main(["analyze", str(tmp_path / "model"), *flags]) == 0
    record = json.loads((tmp_path / "report" / "analysis.json").read_text())
    binary = (load_images("digits", split="train[98%:]").images >= 128).float()
    exact = -torch.distributions.Bernoulli(logits=torch.tensor(-0.3)).log_prob(binary).flatten(1).sum(1).mean().item()
    bounds = {name: found["value"] for name, found in record["bounds"].items()}
    assert bounds["reconstruction"] == pytest.approx(exact, rel=1e-4)
    assert bounds["kl"] > 0.5
    assert bounds["negative_importance_weighted_bound"] == pytest.approx(exact, abs=0.25)
    assert bounds["negative_elbo"] == pytest.approx(bounds["reconstruction"] + bounds["kl"], rel=1e-6)


# --- mistakes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"latent_dim": 24}, "latent_dim must be more than 24, not 24: the levels of the ladder take 8 \\+ 16"),
        (
            {"ladder_channels": [1]},
            "ladder_channels needs one entry for each level of block_out_channels, not 1 for 2",
        ),
        ({"block_out_channels": [8] * 4}, "need images with sides divisible by 16, not 8×8"),
        ({"block_out_channels": []}, "ladder_channels needs one entry .*, not 2 for 0"),
        ({"decoder_hidden_sizes": [8]}, "the decoder of a ladder mirrors its encoder; leave out decoder_block"),
        ({"activate_decoder_input": False}, "the decoder of a ladder mirrors its encoder"),
        ({"ladder_channels": [0, 1]}, "ladder_channels"),
    ],
)
def test_ladders_that_cannot_be(fields, message):
    with pytest.raises(UserError, match=message):
        VAETask(VAEConfig(**TINY_VAE | TINY_LADDER | fields, output_dir="x"), load_images("digits"))


# --- a run


def test_it_learns_digits_with_more_than_one_layer(run):
    pipeline = hfgen.load(str(run))
    images = (load_images("digits", split="train[80%:]").images >= 128).float()
    again = pipeline.reconstruct(images, output_type="pt").images
    assert (again - images).square().mean() < 0.75 * (images.mean(0) - images).square().mean()
    with torch.no_grad():
        output = pipeline.vae(images * 2 - 1, num_draws=1)
    divergence = kl_to_standard_normal(output.latent_dist).flatten(0, 1).mean(0)
    assert sum(part.sum() > 0.1 for part in divergence.split(LAYERS)) >= 2
    row = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert row["loss/vae"] == pytest.approx(row["vae/reconstruction"] + row["vae/kl"], rel=1e-4)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_importance_samples": 3, "class_conditional": True, "prior": "flow", "flow_hidden_size": 8},
        {"pixel_distribution": "logistic", "free_bits": 0.1},
        {"pixel_distribution": "gaussian_analytic"},
    ],
)
def test_what_else_a_vae_can_be(tmp_path, fields):
    run = train_vae(tmp_path / "vae", **TINY_LADDER | fields, max_train_steps=3, num_mixture_components=1)
    assert len(hfgen.sample(run, num_images=3)) == 3


def test_a_resumed_ladder_ends_with_the_same_bits(tmp_path):
    fields = TINY_LADDER | {"lr_scheduler": "constant", "num_importance_samples": 2, "num_mixture_components": 1}
    whole = train_vae(tmp_path / "whole", **fields, max_train_steps=6)
    run = train_vae(tmp_path / "vae", **fields, max_train_steps=3)
    train_vae(run, **fields, max_train_steps=6, resume_from_checkpoint="latest")
    weights = [folder / "vae" / "diffusion_pytorch_model.safetensors" for folder in (whole, run)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
