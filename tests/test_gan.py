"""Generative adversarial networks: the networks, the losses, who is updated by what, the pipeline, digits."""

import dataclasses
import functools
import json
import math
import re
import signal

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from conftest import finish, flags, hfgen, kill_when
from huggingface_hub import ModelCard

import hfgen as package
from hfgen.cli.main import main
from hfgen.config import GANConfig
from hfgen.config.recipes import RECIPES
from hfgen.data.images import ImageData, load_images
from hfgen.data.loader import Batch
from hfgen.evaluation.sweep_report import Member
from hfgen.figures.curves import training_curves
from hfgen.losses.adversarial import (
    discriminator_loss,
    frozen,
    generator_loss,
    gradient_penalty,
    squared_gradient_norms,
)
from hfgen.models.modeling_hfgen_gan import (
    ConvolutionalDiscriminator,
    ConvolutionalGenerator,
    FullyConnectedDiscriminator,
    FullyConnectedGenerator,
    ResidualDiscriminator,
    ResidualGenerator,
)
from hfgen.pipelines.pipeline_hfgen_gan import GANPipeline
from hfgen.publishing.pages import curves_of
from hfgen.runs.record import read_rows
from hfgen.tasks.gan import GANTask
from hfgen.training.run import train
from hfgen.training.trainer import METRICS_FILE, STATE_FILE
from hfgen.utils.errors import UserError

LOSSES = ["minimax", "non_saturating", "least_squares", "hinge", "wasserstein", "relativistic"]
PAIRS = [
    (FullyConnectedGenerator, FullyConnectedDiscriminator, {"hidden_sizes": (20,)}),
    (ConvolutionalGenerator, ConvolutionalDiscriminator, {"block_out_channels": (16, 16)}),
    (
        functools.partial(ConvolutionalGenerator, pixel_shuffle=True),
        ConvolutionalDiscriminator,
        {"block_out_channels": (16, 16), "hidden_sizes": (20,)},
    ),
    (ResidualGenerator, ResidualDiscriminator, {"block_out_channels": (16, 16, 16), "layers_per_block": 1}),
]


def config(**fields) -> GANConfig:
    settings = {"dataset_name": "digits", "output_dir": "unused", "architecture": "fully_connected", "latent_dim": 3}
    return GANConfig(**settings | {"hidden_sizes": [16], "train_batch_size": 6} | fields)


def networks_of(recipe: str, shape: tuple[int, int, int]):
    """Return the generator and the discriminator of a recipe, for images (C, H, W)."""
    images = torch.zeros(2, *shape, dtype=torch.uint8)
    data = ImageData(images, None, None, source="pictures", fingerprint="", splits=())
    task = GANTask(GANConfig(**yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())), data)
    return task.generator, task.discriminator


def batch_of(data, count: int = 6) -> Batch:
    indices = torch.arange(count)
    return Batch(data.images[indices].float() / 127.5 - 1, data.labels[indices], 0, indices)


@pytest.fixture(scope="module")
def digits():
    return load_images("digits")


# --- networks


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 8, 12)])
@pytest.mark.parametrize("num_classes", [None, 4])
@pytest.mark.parametrize("spectral_norm", [False, True])
@pytest.mark.parametrize(("make", "judge", "sizes"), PAIRS)
def test_shapes_and_ranges(make, judge, sizes, shape, num_classes, spectral_norm):
    shared = {"sample_size": shape[1:], "num_classes": num_classes, **sizes}
    generator = make(out_channels=shape[0], latent_dim=5, **shared)
    discriminator = judge(in_channels=shape[0], spectral_norm=spectral_norm, **shared)
    labels = torch.tensor([0, 3]) if num_classes else None
    latents = torch.randn(2, 5)
    images = generator(latents, labels).sample
    assert images.shape == (2, *shape)
    assert -1 <= images.min() < images.max() <= 1
    logits = discriminator(images, labels).logits
    assert logits.shape == (2,)
    assert logits.isfinite().all()
    assert torch.equal(generator(latents, labels, return_dict=False)[0], images)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in generator.parameters()), "all of it makes the images"


@pytest.mark.parametrize(("make", "judge", "sizes"), PAIRS)
def test_classes_change_what_is_made_and_what_is_thought_of_it(make, judge, sizes):
    generator = make(sample_size=8, latent_dim=5, num_classes=4, **sizes)
    discriminator = judge(sample_size=8, num_classes=4, **sizes).eval()
    latents = torch.randn(1, 5).expand(2, -1)
    images = generator(latents, torch.tensor([0, 3])).sample
    assert not torch.equal(images[0], images[1])
    logits = discriminator(images[:1].expand(2, -1, -1, -1), torch.tensor([0, 3])).logits
    assert logits[0] != logits[1]
    with pytest.raises(ValueError, match="class_labels are missing"):
        generator(latents)
    with pytest.raises(ValueError, match="this model is unconditional: class_labels do not apply"):
        judge(sample_size=8, **sizes)(images, torch.tensor([0, 3]))


def test_the_convolutional_pair_is_that_of_its_specification():
    generator, discriminator = networks_of("gan_mnist_conv_cpu10min", (1, 28, 28))
    sizes = [[tuple(weight.shape) for weight in module.parameters()] for module in (generator, discriminator)]
    assert sizes == [
        [(6272, 100), (6272,), (128, 128, 4, 4), (128,), (128, 128, 4, 4), (128,), (1, 128, 7, 7), (1,)],
        [(64, 1, 3, 3), (64,), (64, 64, 3, 3), (64,), (1, 7 * 7 * 64), (1,)],
    ]
    assert [layer.p for layer in discriminator.layers if isinstance(layer, torch.nn.Dropout)] == [0.4, 0.4]
    layers = [*generator.layers, *discriminator.layers]
    slopes = [layer.negative_slope for layer in layers if isinstance(layer, torch.nn.LeakyReLU)]
    assert slopes == [0.2] * 5
    images, latents = torch.rand(2, 1, 28, 28), torch.randn(2, 100)
    expected = 2 * generator.layers(latents).sigmoid() - 1
    torch.testing.assert_close(generator(latents).sample, expected)
    inner = discriminator.eval().layers(images / 2 + 0.5)
    logits = discriminator(images).logits
    torch.testing.assert_close(logits, discriminator.head(inner.flatten(1))[:, 0])
    assert inner.shape == (2, 64 * 7 * 7)


def test_the_small_convolutional_pair_computes_four_pixels_at_a_time_and_has_linear_layers():
    generator, discriminator = networks_of("gan_mnist_cpu10min", (1, 28, 28))
    sizes = [[tuple(weight.shape) for weight in module.parameters()] for module in (generator, discriminator)]
    linear, first, last = [(256, 18), (256,), (64 * 7 * 7, 256), (3136,)], (64, 32, 4, 4), (4, 32, 3, 3)
    assert sizes == [
        [*linear, first, (32,), last, (4,)],
        [
            *((16, 1, 3, 3), (16,), (32, 16, 3, 3), (32,), (64, 32, 3, 3), (64,)),
            *((256, 64 * 4 * 4), (256,), (1, 256), (1,)),  # after 28, 14 and 7 pixels, 4
        ],
    ]
    assert discriminator(torch.rand(2, 1, 28, 28)).logits.shape == (2,)
    before = generator.layers[:-1](torch.randn(2, 18))
    torch.testing.assert_close(generator.layers[-1](before)[:, 0, 1::2, ::2], before[:, 2])


def test_batch_norm_makes_an_image_depend_on_its_batch_in_training_alone(digits):
    torch.manual_seed(0)
    settings = config(architecture="convolutional", block_out_channels=[8, 8], batch_norm=True, use_ema=False)
    generator = GANTask(settings, digits).generator
    latents = torch.randn(4, 3)
    assert not torch.allclose(generator(latents).sample[:2], generator(latents[:2]).sample, atol=1e-3)
    generator.eval()
    torch.testing.assert_close(generator(latents).sample[:2], generator(latents[:2]).sample)


def test_the_convolutional_generator_tells_latents_apart_from_the_beginning():
    torch.manual_seed(0)
    images = ConvolutionalGenerator()(torch.randn(16, 100)).sample
    assert images.std(0).mean() > 0.006, "with torch's own initial weights it is half of that"


def test_spectral_norm_bounds_each_layer():
    discriminator = FullyConnectedDiscriminator(sample_size=8, hidden_sizes=(32,), spectral_norm=True)
    for _ in range(50):  # each forward pass is a step of the power iteration
        discriminator(torch.rand(2, 1, 8, 8))
    for layer in (discriminator.layers[1], discriminator.head):
        assert torch.linalg.matrix_norm(layer.weight, 2).item() == pytest.approx(1, abs=0.01)


def test_sizes_that_cannot_be_halved_are_refused():
    with pytest.raises(ValueError, match="images 2 times, which needs sides divisible by 4, not 30×30"):
        ConvolutionalGenerator(sample_size=30)


# --- losses


def test_losses_of_logits_agree_with_the_cross_entropy():
    real, fake = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    cross_entropy = torch.nn.functional.binary_cross_entropy
    ones, zeros = torch.ones(50), torch.zeros(50)
    expected = cross_entropy(real.sigmoid(), ones) + cross_entropy(fake.sigmoid(), zeros)
    for loss in ("minimax", "non_saturating"):
        torch.testing.assert_close(discriminator_loss(loss, real, fake), expected)
    torch.testing.assert_close(generator_loss("non_saturating", real, fake), cross_entropy(fake.sigmoid(), ones))
    torch.testing.assert_close(generator_loss("minimax", real, fake), (1 - fake.sigmoid()).log().mean())


def test_the_other_losses_at_single_points():
    real, fake = torch.tensor([0.5]), torch.tensor([-2.0])
    both = {
        "least_squares": (0.5 * 0.25 + 0.5 * 4, 0.5 * 9),
        "hinge": (0.5 + 0, 2),
        "wasserstein": (-2.5, 2),
        "relativistic": (math.log1p(math.exp(-2.5)), math.log1p(math.exp(2.5))),
    }
    for loss, (of_discriminator, of_generator) in both.items():
        assert discriminator_loss(loss, real, fake).item() == pytest.approx(of_discriminator, abs=1e-6), loss
        assert generator_loss(loss, real, fake).item() == pytest.approx(of_generator, abs=1e-6), loss


def test_penalties_of_a_slope_that_is_known():
    slope = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).requires_grad_()

    def discriminate(images):
        return (slope * images).sum((1, 2, 3))

    images = torch.rand(5, 2, 1, 1, requires_grad=True)
    norms = squared_gradient_norms(discriminate(images), images)
    torch.testing.assert_close(norms, torch.full((5,), 25.0))
    norms.mean().backward()
    torch.testing.assert_close(slope.grad.flatten(), torch.tensor([6.0, 8.0]))  # it reaches the parameters
    penalty = gradient_penalty(discriminate, torch.rand(5, 2, 1, 1), torch.rand(5, 2, 1, 1))
    assert penalty.item() == pytest.approx(16)


# --- who is updated by what


@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_moves_its_own_network_only(digits, loss):
    """Without `frozen` the generator's step would leave gradients in the discriminator, which its next step adds."""
    task = GANTask(config(adversarial_loss=loss, r1_gamma=1, r2_gamma=1, gradient_penalty_weight=1), digits)
    given = []
    for name, value, _ in task.losses(batch_of(digits)):
        for module in task.modules.values():
            module.zero_grad()
        value.backward()
        given.append((name, {n for n, m in task.modules.items() if any(p.grad is not None for p in m.parameters())}))
    assert given == [("discriminator", {"discriminator"}), ("generator", {"generator"})]
    assert all(parameter.requires_grad for parameter in task.discriminator.parameters())


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_by_itself_is_the_published_objective(digits, loss):
    """R3GAN penalises gradients at real and generated images, WGAN-GP between them, the others nowhere."""
    published = {"relativistic": {"r1", "r2"}, "wasserstein": {"gradient_penalty"}}.get(loss, set())
    settings = {"adversarial_loss": loss, "gradient_penalty_weight": 10.0 if loss == "wasserstein" else 0.0}
    computed = next(GANTask(config(**settings), digits).losses(batch_of(digits))).terms
    assert computed.keys() - {"real", "fake"} == published
    asked = next(GANTask(config(**settings, r1_gamma=3.0), digits).losses(batch_of(digits))).terms
    assert "r1" in asked, "a weight that is given holds for every loss"


def test_r1_and_r2_count_half_of_their_gammas_and_the_third_penalty_its_whole_weight(digits):
    def loss(**fields):
        torch.manual_seed(0)
        task = GANTask(config(adversarial_loss="non_saturating", penalty_interval=1, **fields), digits)
        torch.manual_seed(1)
        return next(task.losses(batch_of(digits)))

    plain, both, third = loss().value, loss(r1_gamma=3.0, r2_gamma=5.0), loss(gradient_penalty_weight=10.0)
    assert (both.value - plain).item() == pytest.approx(
        (1.5 * both.terms["r1"] + 2.5 * both.terms["r2"]).item(), rel=1e-3
    )
    assert (third.value - plain).item() == pytest.approx(10 * third.terms["gradient_penalty"].item(), rel=1e-3)


def test_penalties_come_every_few_steps_and_count_as_many_times(digits):
    def loss(step, **fields):
        torch.manual_seed(0)
        task = GANTask(config(adversarial_loss="non_saturating", **fields), digits)
        torch.manual_seed(1)
        return next(task.losses(dataclasses.replace(batch_of(digits), step=step)))

    plain, each = loss(0).value, loss(0, r1_gamma=3.0, penalty_interval=1)
    rare = [loss(step, r1_gamma=3.0, penalty_interval=4) for step in (3, 4, 5)]
    assert [set(loss.terms) for loss in rare] == [{"real", "fake"}, {"real", "fake", "r1", "r2"}, {"real", "fake"}]
    assert rare[0].value == rare[2].value == plain
    assert (rare[1].value - plain).item() == pytest.approx(4 * (each.value - plain).item(), rel=1e-4)


def test_frozen_passes_gradients_through():
    discriminator = FullyConnectedDiscriminator(sample_size=8, hidden_sizes=(8,))
    images = torch.rand(2, 1, 8, 8, requires_grad=True)
    with frozen(discriminator):
        discriminator(images).logits.sum().backward()
    assert images.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in discriminator.parameters())


def test_a_relativistic_generator_is_compared_with_the_real_images(digits):
    task = GANTask(config(), digits)
    torch.manual_seed(0)
    *_, before = task.losses(batch_of(digits))
    other = batch_of(digits)
    other.images = -other.images
    torch.manual_seed(0)
    *_, after = task.losses(other)
    assert before.module == "generator"
    assert before.value != after.value


def test_several_discriminator_steps_see_different_images(digits):
    settings = config(discriminator_steps=3)
    assert settings.images_per_batch == 18
    task = GANTask(settings, digits)
    seen = []
    task.modules["discriminator"] = lambda images, labels: seen.append(images) or task.discriminator(images, labels)
    batch = batch_of(digits, 18)
    names = [loss.module for loss in task.losses(batch)]
    assert names == ["discriminator"] * 3 + ["generator"]
    torch.testing.assert_close(torch.cat([images[:6] for images in seen[:3]]), batch.images)


def test_real_and_generated_images_are_changed_alike(digits):
    task = GANTask(config(augmentation=["erase"]), digits)
    seen = []
    task.modules["discriminator"] = lambda images, labels: seen.append(images) or task.discriminator(images, labels)
    task.modules["generator"] = lambda latents, labels: type("Output", (), {"sample": torch.ones(6, 1, 8, 8)})
    for _ in task.losses(Batch(torch.ones(6, 1, 8, 8), None, 0, torch.arange(6))):
        assert len(seen[-1]) == 12, "real ones and generated ones"
        assert all(4 <= (image == 0).sum() <= 16 for image in seen[-1]), "a square of each is grey"


def test_the_learning_rate_of_the_discriminator_may_be_its_own():
    both, one = config(learning_rate=1e-3), config(learning_rate=1e-3, discriminator_learning_rate=4e-3)
    assert [one.learning_rate_of(name) for name in ("generator", "discriminator")] == [1e-3, 4e-3]
    assert both.learning_rate_of("discriminator") == 1e-3


# --- a run


@pytest.fixture(scope="module")
def run(gan_run):
    return gan_run


def test_a_run_learns_digits_of_the_classes_that_it_is_asked_for(run, judge_run):
    pipe = package.load(str(run))
    from hfgen.judges.judge import load_judge

    labels = [number for number in range(10) for _ in range(20)]
    images = pipe(class_labels=labels, generator=torch.Generator().manual_seed(0), output_type="pt").images
    judge = load_judge(str(judge_run))
    predicted = judge.extract((images * 255).round().to(torch.uint8))[1].argmax(1)
    numbers = torch.tensor([int(judge.label_names[number]) for number in predicted])
    assert (numbers == torch.tensor(labels)).float().mean() > 0.7
    assert images.view(10, 20, -1).std(1).mean() > 0.05, "images of a class differ"


def test_metrics_tell_what_the_discriminator_thinks(run):
    row = json.loads((run / METRICS_FILE).read_text().splitlines()[-1])
    wanted = {"loss/discriminator", "loss/generator", "grad_norm/discriminator", "grad_norm/generator"}
    assert wanted | {"discriminator/real", "discriminator/fake", "discriminator/r1"} <= row.keys()


def test_classes_are_counted_at_each_checkpoint_and_drawn(run):
    rows = read_rows(run / "classes.jsonl")
    assert [row["step"] for row in rows] == [200, 400]
    for row in rows:
        assert sum(row["shares"].values()) == pytest.approx(1)
        assert len(row["shares"]) == 10
        assert sum(row["real_shares"].values()) == pytest.approx(1)
        assert row["real_shares"] != row["shares"]
    assert min(rows[-1]["shares"].values()) > 0.02
    problems = json.loads((run / "run.json").read_text())["problems"]
    assert not [problem for problem in problems if "mode collapse" in problem or "unreliable" in problem]


def test_pictures_and_film_are_on_the_page(run, tmp_path):
    with PIL.Image.open(run / "figures" / "training.gif") as film:
        assert film.n_frames > 3
    assert main(["card", str(run), "--gallery", str(tmp_path)]) == 0
    page = ModelCard.load(tmp_path / run.name / "README.md")
    for name in ("interpolations.png", "truncations.png", "plane.png", "classes.png", "training.gif"):
        assert f"figures/{name}" in page.text
        assert (tmp_path / run.name / "figures" / name).stat().st_size > 1000
    assert {"gan", "class-conditional"} <= set(page.data.tags)


def test_a_collapsed_generator_is_named(judge_run, digits):
    task = GANTask(config(judge=str(judge_run)), digits)
    last = task.generator.layers[-2]  # makes one image of all latents
    torch.nn.init.zeros_(last.weight)
    last.bias.data.copy_(10 * (digits.images[3].float() / 127.5 - 1).flatten())
    diagnosis = task.diagnose()
    assert max(diagnosis.class_shares.values()) == 1
    (problem,) = [problem for problem in diagnosis.problems if "mode collapse" in problem]
    assert problem.startswith(
        "possible mode collapse, or too short a training: classifier digits_judge finds almost no samples of "
    )
    assert problem.endswith("finds almost no samples of 0, 1, 2, 4, 5, 6, 7, 8, 9 among 1,000")


def test_a_judge_that_errs_on_real_images_is_named(judge_run, digits):
    """One that knows the classes by other numbers does not err; labels that are wrong every fifth time are as bad."""
    other_names = [str((number + 3) % 10) for number in range(10)]
    renumbered = dataclasses.replace(digits, label_names=other_names, labels=(digits.labels - 3) % 10)
    assert not [p for p in GANTask(config(judge=str(judge_run)), renumbered).diagnose().problems if "accuracy" in p]
    wrong = torch.where(torch.arange(len(digits)) % 5 == 0, 9 - digits.labels, digits.labels)
    problems = GANTask(config(judge=str(judge_run)), dataclasses.replace(digits, labels=wrong)).diagnose().problems
    (said,) = [problem for problem in problems if "accuracy" in problem]
    found = re.fullmatch(
        r"the judge digits_judge has an accuracy of only (\d+) % on real images, so its results are unreliable", said
    )
    assert 70 < int(found[1]) < 84
    with pytest.raises(UserError, match="has classes that the judges do not have, such as apple"):
        GANTask(config(judge=str(judge_run)), dataclasses.replace(digits, label_names=["apple", *"123456789"]))


def test_nothing_is_counted_where_there_is_no_judge(digits):
    others = dataclasses.replace(digits, source="someones/digits")
    assert not GANTask(config(dataset_name="someones/digits"), others).diagnose().class_shares
    assert GANTask(config(), digits).diagnose().class_shares, "by the shipped judge of the digits"


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (
            {"r1_gamma": 0.0, "r2_gamma": 0.0, "discriminator_learning_rate": 0.01, "learning_rate": 1e-6},
            "the discriminator tells nearly all generated images from real ones: raise r1_gamma and r2_gamma, or "
            "lower discriminator_learning_rate",
        ),
        (
            {"r1_gamma": 1e4, "r2_gamma": 1e4, "penalty_interval": 1},
            "the outputs of the discriminator for real and generated images hardly differ: lower r1_gamma and "
            "r2_gamma, or raise discriminator_learning_rate",
        ),
    ],
)
def test_a_discriminator_that_is_too_good_or_too_weak_is_named_with_the_settings_to_change(tmp_path, fields, problem):
    length = {"max_train_steps": 150, "train_batch_size": 64, "num_samples": 4, "checkpointing_steps": 150}
    settings = config(**{"output_dir": str(tmp_path / "run"), "adversarial_loss": "non_saturating"} | length | fields)
    run = train(settings, GANTask)
    said = json.loads((run / "run.json").read_text())["problems"]
    assert said[0] == problem, said


def test_only_what_applies_to_the_loss_is_advised(digits):
    for loss, advice in [("hinge", ["raise discriminator_learning_rate"]), ("wasserstein", [])]:
        task = GANTask(config(adversarial_loss=loss, gradient_penalty_weight=1.0), digits)
        torch.nn.init.zeros_(task.discriminator.head.weight)
        found = [problem.partition("hardly differ: ") for problem in task.diagnose().problems]
        assert [said for _, hardly, said in found if hardly] == advice


def test_colour_pictures_that_are_not_square(tmp_path):
    """In bfloat16 too, of a folder of pictures, without a judge."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 12, 3), dtype=np.uint8)
    for number, picture in enumerate(pixels):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        PIL.Image.fromarray(picture).save(tmp_path / "pictures" / f"{number}.png")
    settings = {
        "dataset_name": None,
        "train_data_dir": str(tmp_path / "pictures"),
        "output_dir": str(tmp_path / "run"),
    }
    networks = {"architecture": "residual", "block_out_channels": [8, 8], "mixed_precision": "bf16"}
    objective = {"augmentation": ["color", "shift", "erase"], "gradient_penalty_weight": 1.0}
    run = train(config(**settings, **networks, **objective, max_train_steps=2, num_samples=4), GANTask)
    assert package.load(str(run))(batch_size=2, output_type="np").images.shape == (2, 8, 12, 3)
    assert not (run / "classes.jsonl").exists()


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_killed_run_ends_with_the_same_bits(tmp_path, num_processes):
    """Both optimizers, both networks, the buffers of spectral normalisation, dropout and the average."""
    settings = {
        "dataset_name": "digits",
        "architecture": "residual",
        "block_out_channels": [8, 8],
        "latent_dim": 4,
        "train_batch_size": 10,
        "num_samples": 4,
        "max_train_samples": 100,
        "checkpointing_steps": 4,
        "spectral_norm": True,
        "dropout": 0.2,
        "gradient_penalty_weight": 1.0,
        "r1_gamma": 0.1,
        "discriminator_steps": 2,
        "discriminator_learning_rate": 1e-3,
        "class_conditional": True,
        "augmentation": ["color", "shift"],
        "max_train_steps": 24,
        "logging_steps": 1,
        "mixed_precision": "no",
    }

    def begin(name, *extra):
        return hfgen(
            "train", "gan", *flags(output_dir=tmp_path / name, **settings), *extra, num_processes=num_processes
        )

    finish(begin("whole"))
    process = begin("broken")
    metrics = tmp_path / "broken" / METRICS_FILE
    kill_when(process, lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= 10, signal.SIGKILL)
    process.communicate()
    finish(begin("broken", "--resume_from_checkpoint", "latest"))
    names = (METRICS_FILE, f"checkpoints/step-000024/{STATE_FILE}", "generator/diffusion_pytorch_model.safetensors")
    for name in names:
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not (tmp_path / "whole" / "discriminator").exists(), "it is not published"


# --- the pipeline


def test_latents_go_in_and_out(run):
    pipe = package.load(str(run))
    first = pipe(batch_size=4, generator=torch.Generator().manual_seed(3), output_type="pt")
    assert first.latents.shape == (4, 2)
    again = pipe(latents=first.latents, class_labels=[0, 1, 2, 3], output_type="pt").images
    torch.testing.assert_close(again, first.images)
    assert isinstance(pipe(class_labels="7").images[0], PIL.Image.Image)
    images, latents = pipe(batch_size=2, return_dict=False)
    assert len(images) == len(latents) == 2


def test_truncation_keeps_latents_near_the_centre(run):
    pipe = package.load(str(run))
    draw = {"batch_size": 4000, "generator": torch.Generator().manual_seed(0)}
    latents = pipe.draw_latents(**draw, truncation=0.7)
    assert 0.69 < latents.abs().max() <= 0.7
    expected = torch.distributions.Normal(0.0, 1.0)
    within = expected.cdf(torch.tensor(0.7)) - expected.cdf(torch.tensor(-0.7))
    below = (expected.cdf(torch.tensor(0.3)) - expected.cdf(torch.tensor(-0.7))) / within
    assert (latents < 0.3).float().mean().item() == pytest.approx(below.item(), abs=0.015)
    with pytest.raises(ValueError, match="truncation must be positive, not -1"):
        pipe.draw_latents(1, truncation=-1)
    truncated = GANPipeline(pipe.generator, id2label=pipe.config.id2label, truncation=0.5)
    assert truncated.draw_latents(500).abs().max() <= 0.5
    assert truncated.draw_latents(500, truncation=math.inf).abs().max() > 2
    assert truncated.draw_latents(500, truncation=7.0).isfinite().all()


def test_interpolations_begin_and_end_where_they_should(run):
    pipe = package.load(str(run))
    start, end = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    for mode, middle in {"linear": [0.5, 1.0], "spherical": [1.5 / 2**0.5] * 2}.items():
        strip = pipe.interpolate(start, end, num_steps=5, mode=mode, class_labels="3", output_type="pt")
        torch.testing.assert_close(strip.latents[[0, 2, 4]], torch.stack([start, torch.tensor(middle), end]))
        ends = pipe(latents=torch.stack([start, end]), class_labels="3", output_type="pt").images
        torch.testing.assert_close(strip.images[[0, 4]], ends)
    with pytest.raises(ValueError, match="num_steps must be 2 or more"):
        pipe.interpolate(start, end, num_steps=1, class_labels=3)
    with pytest.raises(ValueError, match="mode must be linear or spherical"):
        pipe.interpolate(start, end, mode="cubic", class_labels=3)
    with pytest.raises(ValueError, match=r"latents must be \(B, 2\), not \(3, 4\)"):
        pipe(latents=torch.zeros(3, 4), class_labels=3)


def test_it_loads_with_diffusers_alone(tmp_path, digits, without_hfgen):
    fields = {"output_dir": str(tmp_path / "run"), "max_train_steps": 2, "num_samples": 4, "save_discriminator": True}
    settings = {"architecture": "residual", "block_out_channels": [8, 8], "spectral_norm": True, "truncation": 1.0}
    run = train(config(**fields, **settings), GANTask)
    code = f"""
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained({str(run)!r}, trust_remote_code=True)
output = pipe(batch_size=3, generator=torch.Generator().manual_seed(0), output_type="pt")
torch.save((output.images, pipe.discriminator(output.images * 2 - 1).logits), {str(tmp_path / "found.pt")!r})
"""
    without_hfgen.python(code)
    images, logits = torch.load(tmp_path / "found.pt")
    pipe = package.load(str(run))
    expected = pipe(batch_size=3, generator=torch.Generator().manual_seed(0), output_type="pt").images
    torch.testing.assert_close(images, expected)
    assert logits.shape == (3,)
    assert pipe.config.truncation == 1.0


def test_drawing_by_the_command_line(run, tmp_path, capsys):
    output = str(tmp_path / "grid.png")
    assert main(["sample", str(run), "--class_labels", "3", "--truncation", "1", "--output", output]) == 0
    assert main(["sample", str(run), "--num_inference_steps", "5", "--output", output]) == 2
    assert "only has the option truncation, no num_inference_steps" in capsys.readouterr().err
    assert main(["sample", str(run), "--class_labels", "boot", "--output", output]) == 2
    assert "has no class boot" in capsys.readouterr().err
    assert main(["sample", str(run), "--truncation", "-1", "--output", output]) == 2
    assert "truncation must be positive" in capsys.readouterr().err


def test_an_evaluation_says_how_images_were_drawn(run, judge_run, tmp_path):
    folder = str(tmp_path / "report")
    splits = flags(train_split="train[:80%]", reference_split="train[80%:]", num_images=100, judge=str(judge_run))
    assert main(["evaluate", str(run), *splits, "--truncation", "2", "--output_dir", folder]) == 0
    record = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert record["protocol"]["truncation"] == 2
    assert "one step, latents within 2" in (tmp_path / "report" / "evaluation.md").read_text()


# --- what is refused


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"discriminator_steps": 2, "gradient_accumulation_steps": 2}, "need gradient_accumulation_steps 1"),
        ({"r1_gamma": -1.0}, "r1_gamma must be zero or more, not -1.0"),
        ({"dropout": 1.0}, "dropout must be from 0 to below 1"),
        ({"batch_norm": True, "architecture": "residual"}, "batch_norm needs the architecture convolutional"),
        (
            {"batch_norm": True, "architecture": "convolutional"},
            "not part of the EMA; add --no_use_ema",
        ),
        ({"block_out_channels": []}, "block_out_channels must have at least one entry"),
        ({"truncation": 0.0}, "truncation must be positive"),
        ({"adversarial_loss": "wasserstein"}, "wasserstein needs a Lipschitz constraint: gradient_penalty_weight"),
        ({"optimizer": "muon", "spectral_norm": True}, "conflicts with spectral_norm; use adamw"),
        ({"torch_compile": True}, "r1_gamma needs second-order gradients"),
        ({"mixed_precision": "fp16", "r1_gamma": 0.0}, "r2_gamma needs gradients that overflow in"),
    ],
)
def test_values_that_cannot_work(fields, message):
    with pytest.raises(UserError, match=message):
        config(**fields)


def test_networks_and_judges_that_do_not_fit_are_refused(digits):
    with pytest.raises(UserError, match="images 4 times, which needs sides divisible by 16, not 8×8"):
        GANTask(config(architecture="convolutional", block_out_channels=[8, 8, 8, 8]), digits)
    with pytest.raises(UserError, match="the judge mnist does not fit the image size of"):
        GANTask(config(judge="mnist"), digits)


def test_a_sweep_over_a_penalty_shows_it_where_there_is_one(tmp_path):
    settings = {"dataset_name": "digits", "architecture": "fully_connected", "hidden_sizes": 8, "r2_gamma": 0}
    length = {"max_train_steps": 2, "num_samples": 4, "train_batch_size": 8, "mixed_precision": "no"}
    folder = tmp_path / "sweep"
    given = flags(**settings, **length, output_dir=folder, sweep="r1_gamma=0,1")
    assert main(["train", "gan", *given]) == 0
    page = (folder / "sweep.md").read_text()
    assert "Adversarial losses do not rank runs; use `hfgen evaluate`" in page
    assert "discriminator/r1" in page


def test_penalties_of_some_steps_are_drawn_and_averaged_over_these(tmp_path):
    settings = {
        "dataset_name": "digits",
        "architecture": "fully_connected",
        "hidden_sizes": 8,
        "max_train_samples": 16,
    }
    length = {"max_train_steps": 4, "num_samples": 4, "train_batch_size": 8, "mixed_precision": "no"}
    folder = tmp_path / "sweep"
    assert main(["train", "gan", *flags(**settings, **length, output_dir=folder, sweep="penalty_interval=1,3")]) == 0
    every, third = sorted(path.parent for path in folder.glob("*/run.json"))
    penalties = [row.get("discriminator/r1") for row in read_rows(third / METRICS_FILE)]
    assert penalties[1:3] == [None, None]
    assert None not in [row.get("discriminator/r1") for row in read_rows(every / METRICS_FILE)]
    last = Member(third, {}).last("discriminator/r1")
    assert last == penalties[3], "the last epoch has two steps, one of them with a penalty"
    assert Member(third, {}).curves()["discriminator/r1"] == ([0.5, 2.0], [penalties[0], penalties[3]])
    short_epochs = Member(third, {})
    short_epochs.training["steps_per_epoch"] = 1
    short_epochs.rows = short_epochs.rows[:3]
    assert short_epochs.last("discriminator/r1") == penalties[0], "no step of the last epoch has one"
    shown = curves_of(third)["values"]["discriminator/r1"]
    assert [value is None for value in shown] == [False, True, True, False]
    axes = training_curves(read_rows(third / METRICS_FILE), 2).axes
    drawn = [
        line.get_xdata().tolist()
        for panel in axes
        for line in panel.lines
        if line.get_label() == "R1 (discriminator/r1)"
    ]
    assert drawn == [[1, 4]]
