"""`hfgen analyze`: bounds, what latents keep, collapse, pictures; black-and-white pixels."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import TINY, train_vae
from huggingface_hub import ModelCard
from torch.distributions import Bernoulli, Normal, kl_divergence

import hfgen
from hfgen.cli.main import main
from hfgen.config import DDPMConfig
from hfgen.data.binarization import Binarizer
from hfgen.data.images import load_images
from hfgen.models.modeling_hfgen_vae import GaussianMixtureModel, VAEModel
from hfgen.pipelines.pipeline_hfgen_vae import VAEPipeline
from hfgen.pipelines.saving import save_pipeline
from hfgen.tasks.diffusion import DiffusionTask

TEST = ["--reference_split", "train[80%:]"]
FEW = ["--reference_split", "train[95%:]"]
QUICK = ["--num_importance_samples", "20", "--num_bound_images", "30", *FEW]


def analyze(run: Path, output: Path, *flags: str) -> dict:
    assert main(["analyze", str(run), "--output_dir", str(output), *TEST, *flags]) == 0
    return json.loads((output / "analysis.json").read_text())


@pytest.fixture(scope="module")
def test_data():
    return load_images("digits", split="train[80%:]")


@pytest.fixture(scope="module")
def record(vae_run, judge_run, tmp_path_factory):
    """What is found of a small VAE of digits, and where."""
    output = tmp_path_factory.mktemp("analysis")
    return analyze(vae_run, output, "--judge", str(judge_run), "--num_importance_samples", "300"), output


def test_bounds_are_those_of_their_definitions(record, vae_run, test_data):
    bounds = {name: found["value"] for name, found in record[0]["bounds"].items()}
    vae, images = hfgen.load(str(vae_run)).vae, test_data.images.float() / 255
    with torch.no_grad():
        q = vae.encode(images * 2 - 1)
        divergence = kl_divergence(q, Normal(0.0, 1.0)).sum(1)
        errors = [-vae.pixels(q.sample()).log_prob(images).flatten(1).sum(1) for _ in range(20)]
    assert bounds["kl"] == pytest.approx(divergence.mean().item(), rel=1e-4)
    assert bounds["reconstruction"] == pytest.approx(torch.stack(errors).mean().item(), rel=0.02)
    assert bounds["negative_elbo"] == pytest.approx(bounds["kl"] + bounds["reconstruction"], rel=1e-6)
    assert bounds["negative_importance_weighted_bound"] < bounds["negative_elbo"] - 0.2
    std = record[0]["bounds"]["kl"]["std"]
    assert std == pytest.approx((divergence.std() / math.sqrt(len(images))).item(), rel=1e-4)


def test_what_reconstructions_keep(record, vae_run, test_data):
    again = hfgen.load(str(vae_run)).reconstruct(test_data.images.float() / 255, output_type="pt").images
    images = test_data.images.float() / 255
    found = record[0]
    assert found["similarity"]["mse"] == pytest.approx((again - images).square().mean().item(), rel=1e-3)
    right = ((again >= 0.5) == (images >= 0.5)).double().mean().item()
    assert found["pixel_accuracy"] == pytest.approx(right, abs=1e-3)
    (kept,) = found["class_kept"].values()
    assert 0.5 < kept["reconstructions"]["accuracy"] < kept["images"]["accuracy"]
    assert found["active_units"] == 4
    assert len(found["divergence_per_dimension"]) == 4


def test_the_report_has_pictures_and_the_page_of_the_model_shows_it(record, vae_run, tmp_path):
    output = record[1]
    page = (output / "analysis.md").read_text()
    for name in ("reconstructions", "latents", "interpolations", "traversals"):
        assert f"analysis/{name}.png" in page
        assert np.array(PIL.Image.open(output / "analysis" / f"{name}.png")).std() > 10
    assert "analysis/plane.png" not in page
    assert "Pixels are not binarised, so this is the binary cross-entropy, not a likelihood" in page
    run = tmp_path / "vae"
    shutil.copytree(vae_run, run)
    for report in output.iterdir():
        shutil.copytree(report, run / report.name) if report.is_dir() else shutil.copy(report, run)
    assert main(["card", str(run), "--gallery", str(tmp_path / "gallery")]) == 0
    folder = tmp_path / "gallery" / "vae"
    text = ModelCard.load(folder / "README.md").text
    assert f"{record[0]['bounds']['negative_elbo']['value']:.2f}" in text
    assert (folder / "analysis" / "reconstructions.png").exists()
    assert (folder / "analysis.md").exists()
    assert main(["results", str(folder.parent), "--output", str(tmp_path / "RESULTS.md")]) == 0
    (row,) = [line for line in (tmp_path / "RESULTS.md").read_text().splitlines() if line.startswith("| [vae]")]
    assert f"{record[0]['bounds']['negative_elbo']['value']:.2f}" in row
    assert "4 of 4" in row


def test_the_same_seed_finds_the_same_whatever_the_batches(vae_run, tmp_path):
    first = analyze(vae_run, tmp_path / "a", *QUICK, "--batch_size", "50")
    again = analyze(vae_run, tmp_path / "b", *QUICK, "--batch_size", "64")
    for name, found in first["bounds"].items():
        assert again["bounds"][name]["value"] == pytest.approx(found["value"], rel=1e-3), name
    other = analyze(vae_run, tmp_path / "c", *QUICK, "--seed", "1")
    assert other["bounds"]["reconstruction"]["value"] != first["bounds"]["reconstruction"]["value"]


def save_blind_vae(folder: Path, latent_dim: int = 3) -> float:
    """Save a VAE that does not look at its latents, and return −ln p(x) of the test digits, in black and white."""
    vae = VAEModel(sample_size=8, latent_dim=latent_dim, hidden_sizes=[4])
    for layer in (vae.to_latents[-1], vae.from_latents[0], vae.from_latents[-1]):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    images = (load_images("digits", split="train[80%:]").images >= 128).float()
    brightness = images.mean(0).clamp(0.01, 0.99)
    vae.from_latents[-1].bias.data.copy_(torch.logit(brightness).flatten())
    save_pipeline(VAEPipeline(vae, GaussianMixtureModel(latent_dim, 1)), folder)
    with torch.no_grad():
        pixels = vae.pixels(torch.zeros(1, latent_dim)).probs
    return -Bernoulli(pixels).log_prob(images).sum((1, 2, 3)).mean().item()


def test_bounds_are_exact_where_the_latents_tell_nothing_and_that_is_said(tmp_path):
    exact = save_blind_vae(tmp_path / "model")
    flags = ["--dataset_name", "digits", "--binarization", "threshold", "--num_bound_images", "1000"]
    found = analyze(tmp_path / "model", tmp_path / "report", *flags, "--num_importance_samples", "7")
    for name in ("negative_elbo", "negative_importance_weighted_bound"):
        assert found["bounds"][name]["value"] == pytest.approx(exact, rel=1e-5), name
    assert found["active_units"] == 0
    page = (tmp_path / "report" / "analysis.md").read_text()
    assert "The posterior has collapsed" in page
    assert "not a likelihood" not in page


def test_a_plane_of_latents_is_drawn(tmp_path):
    run = train_vae(tmp_path / "vae", latent_dim=2, max_train_steps=200, binarization="static")
    found = analyze(run, tmp_path / "report", *QUICK)
    assert found["protocol"]["pixels"] == "static"
    assert "sampled once" in (tmp_path / "report" / "analysis.md").read_text()
    plane = np.array(PIL.Image.open(tmp_path / "report" / "analysis" / "plane.png").convert("L")).astype(float)
    assert plane.std() > 20
    pipeline = hfgen.load(str(run))
    corner = torch.tensor([[-1.959964, 1.959964]])  # a fortieth and 39 fortieths of a normal distribution, z1 upwards
    expected = pipeline(latents=corner, output_type="np").images[0, ..., 0]
    top, left = plane.shape[0] - 20 * 52, plane.shape[1] - 20 * 52  # of images of 8×8 pixels, each pixel 6×6, and gaps
    shown = plane[top + 2 : top + 50, left + 2 : left + 50].reshape(8, 6, 8, 6).mean((1, 3))
    assert np.corrcoef(shown.ravel(), expected.ravel())[0, 1] > 0.99


def test_a_model_of_classes_is_told_them(tmp_path):
    run = train_vae(tmp_path / "vae", class_conditional=True)
    told = analyze(run, tmp_path / "report", *QUICK)["bounds"]["negative_elbo"]["value"]
    vae, data = hfgen.load(str(run)).vae, load_images("digits", split="train[95%:]")
    images, labels = data.images.float() / 255, data.labels

    def negative_elbo(labels: torch.Tensor) -> float:
        with torch.no_grad():
            q = vae.encode(images * 2 - 1, labels)
            errors = [-vae.pixels(q.sample(), labels).log_prob(images).flatten(1).sum(1) for _ in range(10)]
        return (torch.stack(errors).mean(0) + kl_divergence(q, Normal(0.0, 1.0)).sum(1)).mean().item()

    assert told == pytest.approx(negative_elbo(labels), rel=0.02)
    assert told < 0.95 * negative_elbo(labels.roll(1))


def test_colour_any_size_few_images_no_labels_and_one_dimension(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(4):
        PIL.Image.new("RGB", (12, 16), (60 * number, 90, 0)).save(pictures / f"{number}.png")
    fields = {"train_data_dir": str(pictures), "dataset_name": None, "train_split": "train", "latent_dim": 1}
    options = {"pixel_distribution": "logistic", "block_out_channels": [8, 8], "max_train_steps": 3}
    run = train_vae(tmp_path / "vae", **fields, **options)
    assert main(["analyze", str(run), "--reference_split", "train", *QUICK[:2], "--num_bound_images", "2"]) == 0
    found = json.loads((run / "analysis.json").read_text())
    assert found["class_kept"] == {}
    assert (run / "analysis" / "interpolations.png").exists()


def test_judges_that_do_not_fit_are_left_out_unless_they_are_named(tmp_path, judge_run, capsys):
    run = train_vae(tmp_path / "vae", resolution=12, max_train_steps=3)
    assert main(["analyze", str(run), *TEST, *QUICK, "--judge", str(judge_run)]) == 2
    assert "the judge digits_judge has 8×8 pixels" in capsys.readouterr().err
    assert main(["analyze", str(run), *TEST, *QUICK]) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_bound_images", "1"], "num_bound_images must be 2 or more"),
        ([*TEST, "--resolution", "16"], "has 8×8 pixels"),
        (["--reference_split", "nothing"], "nothing"),
    ],
)
def test_what_cannot_be_analysed_is_refused(vae_run, tmp_path, capsys, flags, message):
    assert main(["analyze", str(vae_run), "--output_dir", str(tmp_path / "x"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_other_models_are_refused(tmp_path, capsys):
    DiffusionTask(DDPMConfig(**TINY | {"output_dir": "x"}), load_images("digits")).save(tmp_path / "model")
    assert main(["analyze", str(tmp_path / "model"), "--output_dir", str(tmp_path / "x")]) == 2
    assert "not a VAE; use hfgen evaluate" in capsys.readouterr().err


def test_a_model_of_grey_likelihoods_has_no_black_and_white(tmp_path, capsys):
    run = train_vae(tmp_path / "vae", pixel_distribution="logistic", max_train_steps=5)
    assert main(["analyze", str(run), *TEST, "--binarization", "static"]) == 2
    assert "does not model binary pixels" in capsys.readouterr().err


# --- collapse


def test_a_run_that_collapses_says_so_and_a_good_one_does_not(tmp_path, capsys, vae_run):
    run = train_vae(tmp_path / "vae", beta=1000.0, max_train_steps=200)
    assert "warning at step 200: posterior collapse: no latent dimension is active" in capsys.readouterr().err
    (problem,) = json.loads((run / "run.json").read_text())["problems"]
    assert main(["card", str(run), "--gallery", str(tmp_path / "gallery")]) == 0
    assert problem in (tmp_path / "gallery" / "vae" / "README.md").read_text()
    assert json.loads((vae_run / "run.json").read_text())["problems"] == []


# --- black-and-white pixels


@pytest.fixture(scope="module")
def grey():
    """Digits and their numbers, float (N, 1, 8, 8) in [−1, 1]."""
    data = load_images("digits")
    return data, data.images.float() / 127.5 - 1, torch.arange(len(data))


def test_static_pixels_are_drawn_once_with_the_probability_of_their_brightness(grey):
    data, images, indices = grey
    drawn = Binarizer("static", data)(images, indices)
    assert drawn.unique().tolist() == [-1, 1]
    assert drawn.equal(Binarizer("static", data)(images, indices)), "follows from the data set alone"
    some = torch.tensor([7, 3])
    assert Binarizer("static", data)(images[some], some).equal(drawn[some]), "whatever the batch"
    part = load_images("digits", split="train[80%:]")
    assert not Binarizer("static", part)(part.images.float() / 127.5 - 1, torch.arange(len(part))).equal(
        drawn[-len(part) :]
    ), "another data set is drawn by itself"
    for level in (0.0, 0.25, 0.5, 1.0):
        near = ((images / 2 + 0.5) - level).abs() < 0.02
        assert (drawn[near] > 0).float().mean().item() == pytest.approx(level, abs=0.03)


def test_dynamic_pixels_are_drawn_anew_and_a_threshold_draws_nothing(grey):
    data, images, indices = grey
    dynamic = Binarizer("dynamic", data)
    torch.manual_seed(0)
    first, second = dynamic(images, indices), dynamic(images, indices)
    assert not first.equal(second)
    assert (first > 0).float().mean().item() == pytest.approx((images / 2 + 0.5).mean().item(), abs=0.01)
    seeded = [dynamic(images, indices, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert seeded[0].equal(seeded[1])
    assert Binarizer("threshold", data)(images, indices).equal(2 * (data.images >= 128).float() - 1)
    assert Binarizer("none", data)(images, indices).equal(images)
