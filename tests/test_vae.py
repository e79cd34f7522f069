"""Variational autoencoders: the networks, the bounds, the pipeline, and a model that learns digits."""

import json
import math

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import TINY_VAE, train_vae
from huggingface_hub import ModelCard
from torch.distributions import Normal, kl_divergence

import hfgen
from hfgen.cli.main import main
from hfgen.config import VAEConfig
from hfgen.data.images import load_images
from hfgen.data.loader import Batch
from hfgen.figures.curves import panel_and_line
from hfgen.judges.judge import load_judge
from hfgen.losses.vae import (
    free_bits_kl,
    iwae_bound,
    kl_to_standard_normal,
    latent_flow_loss,
    optimal_sigma_gaussian,
    reconstruction_nll,
)
from hfgen.models.modeling_hfgen_vae import (
    DiscretizedLogistic,
    GaussianMixtureModel,
    LatentFlowModel,
    LatentFlowOutput,
    VAEModel,
)
from hfgen.pipelines.pipeline_hfgen_vae import VAEPipeline, _slerp
from hfgen.pipelines.saving import save_pipeline
from hfgen.runs.folder import METRICS_FILE
from hfgen.runs.record import read_rows
from hfgen.tasks.vae import VAETask
from hfgen.training.run import train
from hfgen.tuning.search_space import SearchSpace
from hfgen.utils.errors import UserError
from hfgen.utils.seeds import derive_seed


@pytest.fixture(scope="module")
def run(vae_run):
    return vae_run


@pytest.fixture(scope="module")
def test_images():
    """Digits that the run has not seen, float (N, 1, 8, 8) in [0, 1]."""
    return load_images("digits", split="train[80%:]").images.float() / 255


# --- networks


@pytest.mark.parametrize(
    ("fields", "shape"),
    [
        ({}, (1, 28, 28)),
        ({"block_out_channels": [8, 16], "hidden_sizes": [32]}, (1, 28, 28)),
        ({"block_out_channels": [8, 16], "decoder_block_out_channels": [8], "hidden_sizes": []}, (3, 32, 32)),
        ({"block_out_channels": [8, 16], "layers_per_block": 2, "pixel_distribution": "logistic"}, (3, 32, 32)),
        ({"sample_size": (8, 12), "hidden_sizes": [20, 10], "pixel_distribution": "gaussian"}, (3, 8, 12)),
    ],
)
def test_shapes(fields, shape):
    model = VAEModel(**{"sample_size": shape[-1], "in_channels": shape[0], "latent_dim": 5} | fields)
    images = torch.rand(3, *shape) * 2 - 1
    output = model(images, num_draws=2)
    assert output.sample.shape == (6, *shape)
    assert output.latents.shape == (6, 5)
    assert output.latent_dist.mean.shape == (3, 5)
    assert output.pixels.log_prob(images.repeat(2, 1, 1, 1) / 2 + 0.5).shape == (6, *shape)
    assert output.sample.abs().max() <= 1
    torch.testing.assert_close(model(images).latents, model.encode(images).mean)


def test_the_convolutional_network_of_its_recipe_has_the_stated_layers():
    """Encoder conv 32, conv 64, dense 128; decoder dense 3136, three transposed convolutions; latents of 16."""
    model = VAEModel(block_out_channels=[32, 64], hidden_sizes=[128], decoder_hidden_sizes=[], latent_dim=16)
    sizes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.ndim > 1}
    assert list(sizes.values()) == [
        (32, 1, 3, 3), (64, 32, 3, 3), (128, 3136), (32, 128),
        (3136, 16), (64, 64, 3, 3), (64, 32, 3, 3), (32, 1, 3, 3),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"block_out_channels": [8, 8, 8]},
            "of stride 2 need images with sides divisible by 8, not 28×28",
        ),
        ({"block_out_channels": [8, 8], "decoder_block_out_channels": []}, "one fewer, not 0 for 2"),
        ({"pixel_distribution": "poisson"}, "bernoulli, gaussian or logistic, not poisson"),
    ],
)
def test_networks_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        VAEModel(**fields)


def test_classes_reach_encoder_and_decoder():
    model = VAEModel(sample_size=8, hidden_sizes=[16], latent_dim=2, num_classes=3)
    images, latents = torch.zeros(3, 1, 8, 8), torch.zeros(3, 2)
    classes = torch.tensor([0, 1, 2])
    assert len(model.encode(images, classes).mean.unique(dim=0)) == 3
    assert len(model.decode(latents, classes).sample.unique(dim=0)) == 3
    with pytest.raises(ValueError, match="class_labels are missing"):
        model.encode(images)
    with pytest.raises(ValueError, match="this model is unconditional: class_labels do not apply"):
        VAEModel(sample_size=8).encode(images, classes)


@pytest.mark.parametrize("log_scale", [-9.0, -4.0, 0.0])
def test_a_discretized_logistic_gives_the_levels_all_of_its_mass(log_scale):
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = torch.tensor([[0.0], [0.31], [0.999]], dtype=torch.float64)
    mass = DiscretizedLogistic(mean, torch.full_like(mean, log_scale)).log_prob(levels).exp()
    torch.testing.assert_close(mass.sum(1), torch.ones(3, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("distance", [-0.5, 0.5])
def test_a_discretized_logistic_learns_from_a_pixel_far_away(distance):
    mean, log_scale = torch.tensor([0.5], requires_grad=True), torch.tensor([-4.6], requires_grad=True)
    found = DiscretizedLogistic(mean, log_scale).log_prob(torch.tensor([0.5 + 0.9 * distance]))
    found.backward()
    assert found.item() == pytest.approx(-0.45 / math.exp(-4.6) + math.log(1 / 255) + 4.6, rel=1e-3)
    assert mean.grad.item() == pytest.approx(math.copysign(math.exp(4.6), distance), rel=1e-3)
    assert log_scale.grad.item() > 0


def test_draws_of_a_mixture_have_its_moments():
    mixture = GaussianMixtureModel(latent_dim=2, num_components=2)
    covariances = torch.tensor([[[1.0, 0.8], [0.8, 1.0]], [[0.1, 0.0], [0.0, 0.1]]])
    mixture.set_parameters(torch.tensor([0.25, 0.75]), torch.tensor([[0.0, 0.0], [10.0, 10.0]]), covariances)
    generator = torch.Generator().manual_seed(0)
    drawn = mixture(torch.randn(20_000, 2, generator=generator), torch.rand(20_000, generator=generator)).sample
    first = drawn[drawn[:, 0] < 6]
    assert len(first) / len(drawn) == pytest.approx(0.25, abs=0.01)
    torch.testing.assert_close(first.T.cov(), covariances[0], atol=0.05, rtol=0)


# --- bounds


def test_the_divergence_is_that_of_torch():
    found = Normal(torch.randn(5, 3), torch.rand(5, 3) + 0.1)
    torch.testing.assert_close(kl_to_standard_normal(found), kl_divergence(found, Normal(0.0, 1.0)))


def test_free_bits_are_free():
    divergence = torch.tensor([[0.0, 2.0], [0.2, 4.0]])
    assert free_bits_kl(divergence, 0.0) == pytest.approx(3.1)
    assert free_bits_kl(divergence, 0.5) == pytest.approx(3.5)


def test_the_best_gaussian_is_the_best():
    mean, images = torch.rand(4, 1, 3, 3), torch.rand(4, 1, 3, 3)
    best = reconstruction_nll(optimal_sigma_gaussian(mean, images), images).sum()
    std = optimal_sigma_gaussian(mean, images).stddev
    for factor in (0.9, 1.1):
        assert reconstruction_nll(Normal(mean, std * factor), images).sum() > best


def test_the_importance_weighted_bound_rises_from_the_elbo_to_the_truth():
    """x = z + noise of variance ¼, z ∼ N(0, 1), so that ln p(x) is known; q is not the true posterior."""
    torch.manual_seed(0)
    x = torch.tensor([0.3, -1.2, 2.0])

    def bound(draws: int, repeats: int) -> torch.Tensor:
        many = x.repeat(repeats)
        latent_dist = Normal(0.6 * many[:, None], torch.full((len(many), 1), 0.6))
        latents = latent_dist.sample((draws,))
        error = -Normal(latents[..., 0], 0.5).log_prob(many)
        return iwae_bound(error, latents, latent_dist).view(repeats, len(x)).mean(0)

    divergence = kl_divergence(Normal(0.6 * x, 0.6), Normal(0.0, 1.0))
    expected_error = 0.5 * (math.log(2 * math.pi * 0.25) + ((x - 0.6 * x) ** 2 + 0.36) / 0.25)
    torch.testing.assert_close(bound(1, 50_000), -expected_error - divergence, atol=0.03, rtol=0)
    truth = Normal(0.0, math.sqrt(1.25)).log_prob(x)
    torch.testing.assert_close(bound(2000, 25), truth, atol=0.02, rtol=0)
    assert (bound(1, 1000) < bound(20, 1000)).all()
    assert (bound(20, 1000) < truth).all()


# --- training


def losses(images: torch.Tensor, **fields) -> tuple[float, dict[str, float]]:
    """Return loss and terms of a fresh model of digits at step 9."""
    torch.manual_seed(0)
    task = VAETask(VAEConfig(**TINY_VAE | fields, output_dir="x"), load_images("digits"))
    torch.manual_seed(1)
    ((name, loss, terms),) = task.losses(
        Batch(images * 2 - 1, torch.zeros(len(images), dtype=torch.int64), 9, torch.arange(len(images)))
    )
    assert name == "vae"
    return loss.item(), {name: term.item() for name, term in terms.items()}


def test_the_objectives(test_images):
    images = test_images[:32]
    loss, terms = losses(images)
    assert loss == pytest.approx(terms["reconstruction"] + terms["kl"], rel=1e-5)
    assert 64 * math.log(2) * 0.8 < terms["reconstruction"] < 64 * math.log(2) * 1.2  # of a fresh network, in nats
    assert losses(images, beta=4)[0] == pytest.approx(terms["reconstruction"] + 4 * terms["kl"], rel=1e-5)
    assert losses(images, kl_warmup_steps=99)[0] == pytest.approx(
        terms["reconstruction"] + 0.1 * terms["kl"], rel=1e-5
    )
    assert losses(images, free_bits=2)[0] == pytest.approx(terms["reconstruction"] + 4 * 2, rel=1e-5)
    assert losses(images, reduction="mean")[0] == pytest.approx(
        terms["reconstruction"] / 64 + terms["kl"] / 4, rel=1e-5
    )
    assert losses(images, num_importance_samples=50)[0] < loss
    mean_squared_error = math.exp(2 * losses(images, pixel_distribution="gaussian_analytic")[1]["reconstruction"] / 64)
    assert 0.05 < mean_squared_error / (2 * math.pi * math.e) < 0.3


def test_it_trains_in_half_precision_and_keeps_an_analytic_deviation(tmp_path):
    fields = {"mixed_precision": "bf16", "pixel_distribution": "gaussian_analytic", "max_train_steps": 100}
    run = train(VAEConfig(**TINY_VAE | fields, output_dir=str(tmp_path / "vae")), VAETask)
    pipeline = hfgen.load(str(run))
    images = load_images("digits", split="train[:80%]").images.float() / 255
    with torch.no_grad():
        latents = pipeline.vae.encode(images * 2 - 1).sample()
        pixels = pipeline.vae.pixels(latents)
    error = (pixels.mean - images).square().mean().sqrt().item()
    assert pixels.stddev.flatten()[0].item() == pytest.approx(error, rel=0.1)


def test_importance_weights_leave_no_other_objective():
    with pytest.raises(UserError, match="needs reduction sum, beta 1 and free_bits 0"):
        VAEConfig(**TINY_VAE, output_dir="x", num_importance_samples=5, beta=2)
    with pytest.raises(UserError, match="kl_warmup_steps"):
        VAEConfig(**TINY_VAE, output_dir="x", num_importance_samples=5, kl_warmup_steps=2)
    with pytest.raises(UserError, match="needs a fixed likelihood"):
        VAEConfig(**TINY_VAE, output_dir="x", num_importance_samples=5, pixel_distribution="gaussian_analytic")


def test_a_network_that_does_not_fit_is_refused_before_training(tmp_path):
    with pytest.raises(UserError, match="need images with sides divisible by .*, not 8×8"):
        train(VAEConfig(**TINY_VAE, block_out_channels=[8] * 4, output_dir=str(tmp_path)), VAETask)


def test_it_learns_to_reconstruct_digits(run, test_images):
    pipeline = hfgen.load(str(run))
    error = (pipeline.reconstruct(test_images, output_type="pt").images - test_images).square().mean()
    of_the_mean = (test_images.mean(0) - test_images).square().mean()
    assert error < 0.5 * of_the_mean
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss/vae"] == pytest.approx(rows[-1]["vae/reconstruction"] + rows[-1]["vae/kl"], rel=1e-4)


def test_a_model_of_classes_draws_the_class_that_it_is_asked_for(tmp_path, judge_run):
    run = train(VAEConfig(**TINY_VAE, class_conditional=True, output_dir=str(tmp_path / "vae")), VAETask)
    pipeline = hfgen.load(str(run))
    labels = [number % 10 for number in range(200)]
    generator = torch.Generator().manual_seed(0)
    images = pipeline(class_labels=labels, generator=generator, output_type="pt").images
    judge = load_judge(str(judge_run))
    predicted = judge.extract((images * 255).round().to(torch.uint8))[1].argmax(1)
    assert (predicted == torch.tensor(labels)).double().mean() > 0.7
    assert torch.equal(
        pipeline(class_labels="3", latents=torch.zeros(1, 4), output_type="pt").images,
        pipeline(class_labels=[3], latents=torch.zeros(1, 4), output_type="pt").images,
    )
    ends = load_images("digits").images[:2].float() / 255
    with pytest.raises(ValueError, match="class_labels are missing"):
        pipeline.reconstruct(ends)
    strip = pipeline.interpolate(ends[:1], ends[1:], 4, class_labels=(3, 3, 7, 7), output_type="pt").images
    expected = pipeline.reconstruct(ends, class_labels=[3, 7], output_type="pt").images
    torch.testing.assert_close(strip[[0, -1]], expected)
    with pytest.raises(ValueError, match="no class ten; its classes are 0, 1"):
        pipeline(class_labels="ten")


# --- the pipeline


@pytest.fixture(scope="module")
def pipeline(run) -> VAEPipeline:
    return hfgen.load(str(run))


def test_images_follow_from_their_generators_not_from_their_batch(flow_vae_run):
    pipeline = hfgen.load(flow_vae_run)

    def draw(*seeds: int, prior: str) -> np.ndarray:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipeline(len(seeds), generator=generators, prior=prior, output_type="np").images

    for prior in ("normal", "mixture", "flow"):
        np.testing.assert_allclose(draw(1, 2, 3, prior=prior)[1:2], draw(2, prior=prior), atol=1e-5)
    assert not np.allclose(draw(1, prior="normal"), draw(1, prior="mixture"))
    assert not np.allclose(draw(1, prior="normal"), draw(1, prior="flow"))
    with pytest.raises(ValueError, match="normal, mixture or flow, not uniform"):
        draw(1, prior="uniform")


def test_the_mixture_is_that_of_the_latents(pipeline):
    images = load_images("digits", split="train[:80%]").images.float() / 255
    with torch.no_grad():
        latents = pipeline.vae.encode(images * 2 - 1).sample()
        drawn = pipeline.draw_latents(5000, "mixture", torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(0), latents.mean(0), atol=0.15, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), latents.T.cov(), atol=0.25, rtol=0)


def test_interpolation_goes_from_end_to_end(pipeline, test_images):
    ends = pipeline.reconstruct(test_images[:2], output_type="np").images
    for mode in ("linear", "spherical"):
        strip = pipeline.interpolate(test_images[:1], test_images[1:2], 10, mode, output_type="np").images
        assert strip.shape == (10, 8, 8, 1)
        np.testing.assert_allclose(strip[[0, -1]], ends, atol=1e-5)
        steps = np.abs(np.diff(strip, axis=0)).mean((1, 2, 3))
        assert steps.max() < 0.5 * np.abs(ends[0] - ends[1]).mean(), mode
    with pytest.raises(ValueError, match="num_steps must be 2 or more"):
        pipeline.interpolate(test_images[:1], test_images[1:2], 1)
    with pytest.raises(ValueError, match="linear or spherical, not cubic"):
        pipeline.interpolate(test_images[:1], test_images[1:2], mode="cubic")


def test_an_arc_keeps_the_length_that_a_line_cuts_short():
    first, last = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0])
    shares = torch.linspace(0, 1, 5)[:, None]
    torch.testing.assert_close(_slerp(first, last, shares).norm(dim=1), torch.linspace(2, 4, 5))
    torch.testing.assert_close(_slerp(first, -first, shares)[[0, -1]], torch.stack([first, -first]))


def test_traversal_changes_one_dimension_at_a_time(pipeline, test_images):
    latent = pipeline.encode(test_images[:1])[0]
    images = pipeline.traverse(latent, dimensions=[2, 0], span=2, num_steps=5, output_type="pt").images
    expected = latent.repeat(10, 1)
    expected[:5, 2] = expected[5:, 0] = torch.linspace(-2, 2, 5)
    torch.testing.assert_close(images, pipeline(latents=expected, output_type="pt").images)
    assert len(pipeline.traverse(num_steps=3).images) == 4 * 3


def test_kinds_of_images(pipeline, test_images):
    pictures = [PIL.Image.fromarray((image[0] * 255).byte().numpy()).convert("RGB") for image in test_images[:2]]
    assert [picture.size for picture in pipeline.reconstruct(pictures).images] == [(8, 8)] * 2
    arrays = pipeline.reconstruct(test_images[:2].permute(0, 2, 3, 1).numpy(), output_type="np").images
    np.testing.assert_allclose(pipeline.reconstruct(pictures, output_type="np").images, arrays, atol=0.02)
    with pytest.raises(ValueError, match=r"latents must be \(B, 4\), not \(2, 3\)"):
        pipeline(latents=torch.zeros(2, 3))
    with pytest.raises(ValueError, match="this model is unconditional: class_labels do not apply"):
        pipeline(class_labels=[1])


@pytest.mark.parametrize("prior", ["mixture", "flow"])
def test_a_run_loads_where_there_is_no_hfgen(flow_vae_run, without_hfgen, prior):
    run, pipeline = flow_vae_run, hfgen.load(flow_vae_run)
    code = (
        "import torch\nfrom diffusers import DiffusionPipeline\n"
        f"pipe = DiffusionPipeline.from_pretrained({str(run)!r}, trust_remote_code=True)\n"
        f"images = pipe(2, prior={prior!r}, generator=torch.Generator().manual_seed(0), output_type='np').images\n"
        "print(images.sum())\n"
    )
    output = without_hfgen.python(code)
    here = pipeline(2, prior=prior, generator=torch.Generator().manual_seed(0), output_type="np").images
    assert float(output.split()[-1]) == pytest.approx(here.sum(), rel=1e-4)


# --- the flow


def test_a_flow_learns_two_peaks_by_class():
    """Narrow ones at ±2, which no normal distribution has, with a class for each."""
    torch.manual_seed(0)
    flow = LatentFlowModel(latent_dim=1, hidden_size=32, num_blocks=2, num_classes=2)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for _ in range(300):
        labels = torch.randint(2, (256,))
        latents = (labels * 4.0 - 2)[:, None] + 0.2 * torch.randn(256, 1)
        latent_flow_loss(flow, latents, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    labels = torch.arange(1000) % 2
    with torch.no_grad():
        drawn = flow.draw(torch.randn(1000, 1), labels).sample
    assert (drawn[:, 0] - (labels * 4 - 2)).abs().mean() < 0.4


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_flow_of_any_width_is_finite(size):
    assert LatentFlowModel(2, hidden_size=size, num_blocks=1).draw(torch.randn(3, 2)).sample.isfinite().all()


def test_heuns_method_is_exact_where_the_velocity_is_linear_in_time():
    flow = LatentFlowModel(latent_dim=2, num_steps=3)
    flow.forward = lambda x, times, labels: LatentFlowOutput(2 * times[:, None].expand_as(x))  # the integral is t²
    noise = torch.randn(4, 2)
    torch.testing.assert_close(flow.draw(noise).sample, noise - 1)
    with pytest.raises(ValueError, match="num_steps must be positive, not 0"):
        LatentFlowModel(num_steps=0)


def energy_distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return twice the mean distance between two samples minus those within them, 0 for equal distributions."""
    between, *within = (torch.cdist(a, b).mean() for a, b in ((first, second), (first, first), (second, second)))
    return float(2 * between - sum(within))


def test_the_flow_of_a_run_is_that_of_its_latents(flow_vae_run):
    pipeline = hfgen.load(flow_vae_run)
    images = load_images("digits", split="train[:80%]").images.float() / 255
    with torch.no_grad():
        latents = pipeline.vae.encode(images * 2 - 1).sample()
    drawn = {
        prior: pipeline.draw_latents(len(latents), prior, torch.Generator().manual_seed(0))
        for prior in ("normal", "flow", None)
    }
    assert torch.equal(drawn["flow"], drawn[None]), "the default is that of the training"
    assert not drawn["flow"].requires_grad
    assert energy_distance(drawn["flow"], latents) < 0.5 * energy_distance(drawn["normal"], latents)


@pytest.mark.parametrize("fields", [{}, {"class_conditional": True, "num_importance_samples": 3}])
def test_the_flow_leaves_the_vae_as_it_is(tmp_path, fields):
    fields = fields | {"max_train_steps": 5}
    runs = [
        train_vae(tmp_path / "normal", **fields),
        train_vae(tmp_path / "flow", **fields, prior="flow", flow_hidden_size=16),
    ]
    weights = [(each / "vae" / "diffusion_pytorch_model.safetensors").read_bytes() for each in runs]
    assert weights[0] == weights[1]
    row = read_rows(runs[1] / METRICS_FILE)[-1]
    assert math.isfinite(row["loss/flow"])
    assert panel_and_line("loss/flow")[0] != panel_and_line("loss/vae")[0], "they are of different sizes"
    assert not (runs[0] / "flow").exists()
    assert len(hfgen.sample(runs[1], num_images=3)) == 3


def test_a_flow_has_a_learning_rate_of_its_own(tmp_path):
    fields = {"max_train_steps": 2, "lr_scheduler": "constant", "lr_warmup_steps": 0}
    run = train_vae(tmp_path / "vae", **fields, prior="flow", flow_learning_rate=2e-4)
    row = read_rows(run / METRICS_FILE)[-1]
    assert (row["learning_rate/vae"], row["learning_rate/flow"]) == (5e-3, 2e-4)
    with pytest.raises(UserError, match="flow_learning_rate needs the prior flow, not mixture"):
        VAEConfig(**TINY_VAE, output_dir="x", prior="mixture", flow_learning_rate=2e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_dim": 5}, "the flow does not fit the VAE"),
        ({"num_steps": 10**6}, "num_steps is 1000000, but hfgen allows 1,000 at most"),
        ({"num_steps": 0}, "num_steps must be positive"),
    ],
)
def test_a_flow_that_does_not_fit_is_refused(flow_vae_run, tmp_path, changes, message):
    model = hfgen.load(flow_vae_run)
    model.register_modules(flow=LatentFlowModel(changes.get("latent_dim", 4), 8, 1))
    save_pipeline(model, tmp_path / "model")
    file = tmp_path / "model" / "flow" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UserError, match=message):
        hfgen.load(tmp_path / "model")


def test_a_model_that_lacks_its_flow_is_refused(run, tmp_path):
    model = hfgen.load(run)
    model.register_to_config(prior="flow")
    save_pipeline(model, tmp_path / "model")
    with pytest.raises(UserError, match="names the prior flow, but the model has no flow"):
        hfgen.load(tmp_path / "model")


def test_what_the_bound_does_not_depend_on_is_not_searched_for_it():
    space = SearchSpace(["prior=normal,flow"], VAEConfig)
    with pytest.raises(UserError, match="prior cannot be searched: trials are compared by the −ELBO, which does not"):
        space.require_comparable("negative_elbo")
    space.require_comparable("frechet_distance")


def test_no_flow_where_none_was_trained(run, pipeline, tmp_path, capsys):
    with pytest.raises(ValueError, match="this model has no flow"):
        pipeline(2, prior="flow")
    assert main(["sample", str(run), "--prior", "flow", "--output", str(tmp_path / "x.png")]) == 2
    assert "this model has no flow; train one with --prior flow" in capsys.readouterr().err


# --- the commands


def test_hfgen_draws_what_the_pipeline_draws(flow_vae_run, tmp_path):
    run, pipeline = flow_vae_run, hfgen.load(flow_vae_run)
    for prior in ("normal", "mixture", "flow"):
        output = tmp_path / f"{prior}.npz"
        assert main(["sample", str(run), "--num_images", "3", "--prior", prior, "--output", str(output)]) == 0
        generators = [torch.Generator().manual_seed(derive_seed("image", 0, number)) for number in range(3)]
        expected = pipeline(3, prior=prior, generator=generators, output_type="np").images[..., 0]
        np.testing.assert_allclose(np.load(output)["images"], (255 * expected).round(), atol=1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scheduler", "unipc"], "samples in one step and only has the option prior, no scheduler"),
        (["--class_labels", "3"], "this model is unconditional"),
        (["--film"], "a VAE generates images in one step, so it has no denoising to film"),
    ],
)
def test_what_only_other_models_have_is_refused(run, tmp_path, capsys, flags, message):
    assert main(["sample", str(run), "--output", str(tmp_path / "x.png"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_evaluation_draws_as_the_run_does(run, judge_run, tmp_path):
    pipeline = hfgen.load(str(run))
    pipeline.register_to_config(prior="mixture")
    save_pipeline(pipeline, tmp_path / "model")
    for model, prior in ((run, "normal"), (tmp_path / "model", "mixture")):
        output = tmp_path / prior
        arguments = ["--judge", str(judge_run), "--num_images", "100", "--reference_split", "train[80%:]"]
        arguments += ["--dataset_name", "digits", "--train_split", "train[:80%]", "--output_dir", str(output)]
        assert main(["evaluate", str(model), *arguments]) == 0
        record = json.loads((output / "evaluation.json").read_text())
        assert record["protocol"]["prior"] == prior
        assert f"{prior} prior" in (output / "evaluation.md").read_text()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(run, test_images, dtype):
    pipeline = hfgen.load(str(run)).to(dtype)
    again = pipeline.reconstruct(test_images[:4], output_type="pt").images
    assert torch.allclose(again, hfgen.load(str(run)).reconstruct(test_images[:4], output_type="pt").images, atol=0.1)
    assert len(pipeline.interpolate(test_images[:1], torch.zeros(4), 3).images) == 3
    assert torch.isfinite(pipeline.vae(test_images[:4].to(dtype) * 2 - 1, num_draws=2).sample).all()


@pytest.mark.parametrize("prior", ["mixture", "flow"])
def test_it_goes_on_where_a_checkpoint_was_the_last_that_it_wrote(tmp_path, prior):
    fields = {"max_train_steps": 20, "checkpointing_steps": 20, "prior": prior}
    whole = train_vae(tmp_path / "whole", **fields)
    run = train_vae(tmp_path / "vae", **fields)
    for name in ("model_index.json", "run.json"):
        (run / name).unlink()
    train_vae(run, **fields, resume_from_checkpoint="latest")
    for part in {"vae", "mixture", prior}:
        weights = [folder / part / "diffusion_pytorch_model.safetensors" for folder in (whole, run)]
        assert weights[0].read_bytes() == weights[1].read_bytes()


def test_what_is_drawn_once_is_not_mirrored():
    with pytest.raises(UserError, match="binarization static .* leave out random_flip"):
        VAEConfig(**TINY_VAE, output_dir="x", binarization="static", random_flip=True)
    with pytest.raises(UserError, match="binarization dynamic needs pixel_distribution bernoulli, not logistic"):
        VAEConfig(**TINY_VAE, output_dir="x", binarization="dynamic", pixel_distribution="logistic")


def test_the_code_on_the_page_runs(run, tmp_path, without_hfgen):
    classes = train_vae(tmp_path / "of_classes", class_conditional=True, max_train_steps=3, prior="flow")
    runs = [run, classes]
    code = ""
    for each in runs:
        assert main(["card", str(each), "--gallery", str(tmp_path / "pages")]) == 0
        text = (tmp_path / "pages" / each.name / "README.md").read_text()
        code += text.partition("```python\n")[2].partition("```")[0].replace(f"user/{each.name}", str(each))
    without_hfgen.python(code, folder=tmp_path)
    card = ModelCard.load(tmp_path / "pages" / "of_classes" / "README.md")
    assert "class-conditional" in card.data.tags
    assert "latents of new images come from a rectified flow" in card.text
    networks = [part for part in hfgen.load(classes).components.values() if hasattr(part, "num_parameters")]
    assert f"{sum(part.num_parameters() for part in networks):,} parameters" in card.text


def test_its_page_says_what_it_is(run, tmp_path):
    assert main(["card", str(run), "--gallery", str(tmp_path)]) == 0
    card = ModelCard.load(tmp_path / "vae" / "README.md")
    assert "variational autoencoder" in card.text
    assert {"vae", "autoencoder"} < set(card.data.tags)
    assert "ddpm" not in card.data.tags
    assert not list(tmp_path.rglob("film.gif"))
