"""Each `evaluate` module against a reference implementation or a case that can be computed by hand."""

import doctest
import math
import shutil
import sys

import evaluate
import numpy as np
import prdc
import pytest
import scipy.linalg
import skimage.metrics
import torch
from conftest import REPOSITORY
from torchmetrics.image import fid
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from hfgen.metrics.inception_scores import inception_scores

METRICS = REPOSITORY / "hfgen" / "metrics"
MODULES = sorted(path.name for path in METRICS.iterdir() if (path / f"{path.name}.py").exists())


def load(name: str):
    return evaluate.load(str(METRICS / name))


def features(count: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    """Correlated, skewed features with 6 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(6, 6, generator=torch.Generator().manual_seed(99))
    return (torch.randn(count, 6, generator=generator) @ mixing).relu() + shift


GENERATED, REAL = features(400, 1, shift=0.2), features(500, 2)


class Pooled(torch.nn.Module):
    """A stand-in for Inception: 6 features of an image with 6 channels."""

    num_features = 6

    def forward(self, images):
        return images.mean((2, 3))


def test_frechet_distance_is_the_closed_form_and_that_of_torchmetrics():
    found = load("frechet_distance").compute(predictions=GENERATED, references=REAL)["frechet_distance"]
    a, b = GENERATED.double().numpy(), REAL.double().numpy()
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert found == pytest.approx(expected, rel=1e-6)
    metric = FrechetInceptionDistance(feature=Pooled())
    metric.update(REAL[:, :, None, None], real=True)
    metric.update(GENERATED[:, :, None, None], real=False)
    assert found == pytest.approx(metric.compute().item(), rel=1e-4)


def test_frechet_distance_of_equal_sets_is_zero_and_needs_enough_samples():
    module = load("frechet_distance")
    assert module.compute(predictions=REAL, references=REAL)["frechet_distance"] == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="needs more than 6 predictions, not 6"):
        module.compute(predictions=REAL[:6], references=REAL)


def test_frechet_distance_per_class_is_that_of_each_class_alone():
    module = load("frechet_distance")
    labels = torch.arange(400) % 2, torch.arange(500) % 2
    found = module.compute(
        predictions=GENERATED, references=REAL, prediction_labels=labels[0], reference_labels=labels[1], num_classes=3
    )
    for label in (0, 1):
        alone = module.compute(predictions=GENERATED[label::2], references=REAL[label::2])["frechet_distance"]
        assert found["frechet_distance_per_class"][label] == alone
    assert found["frechet_distance_per_class"][2] is None, "no samples of that class"


@pytest.mark.parametrize("name", ["frechet_distance", "precision_recall_density_coverage"])
def test_features_that_are_no_numbers_are_refused(name):
    broken = GENERATED.clone()
    broken[3, 2] = float("nan")
    with pytest.raises(ValueError, match="must be finite"):
        load(name).compute(predictions=broken, references=REAL)


@pytest.mark.parametrize("name", ["frechet_distance", "precision_recall_density_coverage", "memorization_gap"])
def test_features_may_be_arrays_of_any_precision(name):
    options = {"unseen": REAL.double().numpy()} if name == "memorization_gap" else {}
    mixed = load(name).compute(predictions=GENERATED.double().numpy(), references=REAL, **options)
    plain = load(name).compute(predictions=GENERATED.tolist(), references=REAL.tolist(), **options)
    assert mixed == plain


def test_kernel_distance_is_the_unbiased_estimate_and_that_of_torchmetrics():
    found = load("kernel_distance").compute(predictions=GENERATED, references=REAL[:400], subsets=2, subset_size=400)
    x, y = GENERATED.double(), REAL[:400].double()
    kernels = [(a @ b.T / 6 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))]
    within = [(k.sum() - k.diagonal().sum()) / (400 * 399) for k in kernels[:2]]
    assert found["kernel_distance"] == pytest.approx((within[0] + within[1] - 2 * kernels[2].mean()).item(), rel=1e-6)
    assert found["kernel_distance_std"] == pytest.approx(0, abs=1e-9), "both subsets are the whole sets"
    with pytest.warns(UserWarning, match="will save all extracted features"):
        metric = KernelInceptionDistance(feature=Pooled(), subsets=1, subset_size=400)
    metric.update(REAL[:400, :, None, None], real=True)
    metric.update(GENERATED[:, :, None, None], real=False)
    assert found["kernel_distance"] == pytest.approx(metric.compute()[0].item(), rel=1e-4)


def test_kernel_distance_follows_its_seed_and_leaves_torchs_alone():
    module = load("kernel_distance")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again, other = (
        module.compute(predictions=GENERATED, references=REAL, subsets=3, subset_size=50, seed=seed)
        for seed in (1, 1, 2)
    )
    assert first == again != other
    assert torch.get_rng_state().equal(before)
    with pytest.raises(ValueError, match="subset_size is 1000, more than the 400 predictions"):
        module.compute(predictions=GENERATED, references=REAL)


@pytest.mark.parametrize("k", [3, 5])
def test_precision_recall_density_coverage_is_that_of_prdc(k):
    expected = prdc.compute_prdc(REAL.double().numpy(), GENERATED.double().numpy(), k)
    module = load("precision_recall_density_coverage")
    found = module.compute(predictions=GENERATED, references=REAL, k=k)
    assert 0.1 < found["precision"] < 1
    assert found == pytest.approx(expected, rel=1e-4)
    equal = module.compute(predictions=REAL, references=REAL, k=k)
    assert equal == prdc.compute_prdc(*2 * [REAL.double().numpy()], k) == dict.fromkeys(equal, 1.0)
    with pytest.raises(ValueError, match=f"needs more than {k} samples, not {k}"):
        load("precision_recall_density_coverage").compute(predictions=GENERATED[:k], references=REAL, k=k)


def test_memorization_gap_is_nothing_for_new_samples_and_large_for_copies():
    module = load("memorization_gap")
    train, unseen = features(400, 3), features(400, 4)
    gap, copied, swapped = (
        module.compute(predictions=predictions, references=references, unseen=others)
        for predictions, references, others in (
            (GENERATED, train, unseen),
            (torch.cat([GENERATED[:-80], train[:80]]), train, unseen),
            (torch.cat([GENERATED[:-80], train[:80]]), unseen, train),
        )
    )
    assert abs(gap["memorization_gap"]) < 3 * gap["memorization_gap_std"]
    assert copied["memorization_gap"] > 4 * copied["memorization_gap_std"]
    assert swapped["memorization_gap"] == pytest.approx(-copied["memorization_gap"], rel=1e-3)
    with pytest.raises(ValueError, match="not 400 with 399"):
        module.compute(predictions=GENERATED, references=train, unseen=unseen[1:])


def test_class_accuracy():
    found = load("class_accuracy").compute(predictions=[0, 1, 1, 1], references=[0, 0, 1, 1], num_classes=3)
    assert found == {"accuracy": 0.75, "accuracy_per_class": [0.5, 1.0, None]}


@pytest.mark.parametrize("shape", [(28, 28), (32, 32, 3)])
def test_image_similarity_is_that_of_scikit_image(shape):
    generator = np.random.default_rng(0)
    real = [generator.integers(0, 256, shape, dtype=np.uint8) for _ in range(3)]
    noisy = [np.uint8(np.clip(image + generator.normal(0, 30, shape), 0, 255)) for image in real]
    found = load("image_similarity").compute(predictions=noisy, references=real)
    pairs = list(zip(noisy, real, strict=True))
    options = {
        "gaussian_weights": True,
        "use_sample_covariance": False,
        "channel_axis": 2 if len(shape) == 3 else None,
    }
    # scikit-image leaves out the border that the window cannot be centred on, torchmetrics reflects the image there.
    border = [(5, 5), (5, 5), (0, 0)][: len(shape)]
    expected = {
        "mse": np.mean([skimage.metrics.mean_squared_error(a / 255, b / 255) for a, b in pairs]),
        "psnr": np.mean([skimage.metrics.peak_signal_noise_ratio(b, a) for a, b in pairs]),
        "ssim": np.mean([
            skimage.metrics.structural_similarity(*(np.pad(one, border, mode="reflect") for one in pair), **options)
            for pair in pairs
        ]),
    }  # fmt: skip
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_pair_of_equal_images_does_not_make_the_mean_psnr_infinite():
    grey, off = np.full((8, 8), 100, np.uint8), np.full((8, 8), 100, np.uint8)
    off[0, 0] += 1
    module = load("image_similarity")
    psnr = module.compute(predictions=[off], references=[grey])["psnr"]
    assert psnr == pytest.approx(10 * math.log10(255**2 * 64), rel=1e-6)
    assert module.compute(predictions=[off, grey], references=[grey, grey])["psnr"] == pytest.approx(psnr, rel=1e-6)


def test_image_similarity_of_several_scales_and_of_misfits():
    module = load("image_similarity")
    generator = np.random.default_rng(0)
    large = [generator.integers(0, 256, (176, 176), dtype=np.uint8)]
    assert module.compute(predictions=large, references=large)["ms_ssim"] == pytest.approx(1)
    small = [image[:28, :28] for image in large]
    with pytest.raises(ValueError, match="the same shape"):
        module.compute(predictions=large, references=small)
    with pytest.raises(ValueError, match="the same size"):
        module.compute(predictions=[*large, *small], references=[*large, *large])
    tiny = [large[0][:8, :8]]
    assert module.compute(predictions=tiny, references=tiny).keys() == {"mse", "psnr"}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "image_similarity",
            {"predictions": np.zeros((2, 28, 28)), "references": np.zeros((2, 28, 28))},
            "not float64",
        ),
        ("memorization_gap", {"predictions": GENERATED, "references": REAL}, "unseen is missing"),
        ("class_accuracy", {"predictions": [0], "references": [1]}, "num_classes is missing"),
        ("frechet_distance", {"predictions": GENERATED, "references": REAL[:, :5]}, "number of features, not 6 and 5"),
    ],
)
def test_what_a_module_cannot_take_is_said(name, options, message):
    with pytest.raises(ValueError, match=message):
        load(name).compute(**options)


def test_likelihood_bounds_of_a_model_that_can_be_computed():
    """Return the exact log-likelihood for weights from the posterior; from the prior, bounds that grow with K."""
    generator = torch.Generator().manual_seed(0)
    x = math.sqrt(2) * torch.randn(4000, 1, generator=generator)  # z ∼ N(0, 1), x | z ∼ N(z, 1)
    evidence = torch.distributions.Normal(0, math.sqrt(2)).log_prob(x)
    exact = load("likelihood_bounds").compute(predictions=evidence.expand(-1, 3))
    assert exact["elbo"] == pytest.approx(evidence.mean().item(), abs=1e-5)
    assert exact["importance_weighted_bound"] == pytest.approx(evidence.mean().item(), abs=1e-5)
    weights = torch.distributions.Normal(torch.randn(4000, 64, generator=generator), 1).log_prob(x)
    found = load("likelihood_bounds").compute(predictions=weights)
    assert found["elbo"] < found["importance_weighted_bound"] < evidence.mean() + 0.02
    assert found["elbo"] == pytest.approx(weights.mean().item(), abs=1e-4)
    assert found["importance_weighted_bound"] == pytest.approx(evidence.mean().item(), abs=0.05)
    assert found["gain"] == pytest.approx(found["importance_weighted_bound"] - found["elbo"], abs=1e-6)
    assert 0 < found["gain_std"] < found["elbo_std"]


def test_inception_scores_are_those_of_torchmetrics_and_follow_their_seed(small_inception, monkeypatch):
    monkeypatch.setattr(inception_scores, "MINIMUM", 100)
    generator = torch.Generator().manual_seed(0)
    generated, real = (torch.randint(low, 256, (120, 1, 4, 4), generator=generator).byte() for low in (50, 0))
    torch.manual_seed(0)
    found = inception_scores.inception_scores(generated, real, subset_size=100)
    torch.manual_seed(1)
    again = inception_scores.load_inception()
    assert found == inception_scores.inception_scores(generated, real, subset_size=100, inception=again)
    network = fid.NoTrainInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"])
    with torch.no_grad():
        first, second = (network._torch_fidelity_forward(x.expand(-1, 3, -1, -1)) for x in (generated, real))
    direct = load("frechet_distance").compute(predictions=first[0], references=second[0])
    assert found["fid"] == pytest.approx(direct["frechet_distance"], rel=1e-4)
    shares = first[1].softmax(1)
    divergence = (shares * (shares / shares.mean(0)).log()).sum(1).mean().exp().item()
    assert divergence > 1.04
    assert found["inception_score"] - 1 == pytest.approx(divergence - 1, rel=0.5), "up to its division into ten parts"
    assert found["kid"] > 3 * found["kid_std"] > 0
    with pytest.raises(ValueError, match="at least 100 generated and real images each, not 99 and 120"):
        inception_scores.inception_scores(generated[:99], real)


def test_inception_says_what_is_missing(monkeypatch):
    monkeypatch.setattr("torchmetrics.image.fid._TORCH_FIDELITY_AVAILABLE", False)
    with pytest.raises(ModuleNotFoundError, match="torch-fidelity"):
        inception_scores.load_inception()


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_give_what_they_say(name, small_inception, monkeypatch):
    """Run them as `evaluate`'s own test of a module does: with its folder in the place of the Hub."""
    module = load(name)
    monkeypatch.setattr(evaluate, "load", lambda path: {f"hfgen/{name}": module}[path])
    found = doctest.testmod(sys.modules[type(module).__module__], raise_on_error=True)
    assert found.attempted > 1


def test_each_module_can_be_pushed_as_it_is(tmp_path, without_hfgen):
    """Load copies of the folders alone, in a process that has no hfgen."""
    assert len(MODULES) == 8
    code = "import evaluate\n"
    for name in MODULES:
        folder = tmp_path / name
        shutil.copytree(METRICS / name, folder, ignore=shutil.ignore_patterns("__pycache__"))
        module = load(name)
        card = (folder / "README.md").read_text()
        assert card.startswith("---\n")
        assert f'evaluate.load("hfgen/{name}")' in card
        assert module.description.partition("\nArgs:")[0].strip() in card
        assert module.inputs_description.strip() in card
        assert {"evaluate", "datasets", "torch"} <= set((folder / "requirements.txt").read_text().split())
        code += f"assert evaluate.load({str(folder)!r}).citation\n"
    without_hfgen.python(code)
