"""Image-to-image translation: networks, objective, pairs, the pipeline, the command, the report, exact resume."""

import json
import math
import shutil
import signal

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import TINY_TRANSLATION, finish, flags, hfgen, kill_when, train_translation
from huggingface_hub import ModelCard

from hfgen.cli.main import main
from hfgen.config import CycleGANConfig, TranslationConfig
from hfgen.data.images import load_images
from hfgen.data.loader import Batch
from hfgen.data.paired import TargetDomain
from hfgen.evaluation.report import similarity_texts
from hfgen.figures.grids import save_images
from hfgen.metrics.image_similarity.image_similarity import image_similarity
from hfgen.models.modeling_hfgen_translation import (
    PatchDiscriminator,
    ResidualTranslationUNet,
    TranslationUNet,
    TranslatorOutput,
)
from hfgen.pipelines.loading import load
from hfgen.pipelines.pipeline_hfgen_image_translation import ImageTranslationPipeline
from hfgen.runs.record import read_rows
from hfgen.tasks.cyclegan import CycleGANTask, Discriminators, Generators
from hfgen.tasks.translation import TranslationTask
from hfgen.training.run import train
from hfgen.training.trainer import METRICS_FILE, STATE_FILE
from hfgen.utils.errors import UserError

CYCLE = {
    "dataset_name": "digits",
    "train_split": "train[:40%]",
    "target_dataset_name": "digits",
    "target_split": "train[40%:80%]",
    "target_degradation": ["invert"],
    "architecture": "unet",
    "block_out_channels": [8, 16],
    "discriminator_block_out_channels": [8, 16],
    "train_batch_size": 16,
    "max_train_steps": 24,
    "checkpointing_steps": 6,
    "num_samples": 4,
    "mixed_precision": "no",
}
NETWORKS = [TranslationUNet, ResidualTranslationUNet]


def config(**fields) -> TranslationConfig:
    return TranslationConfig(**TINY_TRANSLATION | {"output_dir": "unused"} | fields)


@pytest.fixture(scope="module")
def digits():
    return load_images("digits")


def batch_of(data, count: int = 6) -> Batch:
    indices = torch.arange(count)
    return Batch(data.images[indices].float() / 127.5 - 1, None, 0, indices)


# --- networks


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("predict_residual", [False, True])
@pytest.mark.parametrize(("channels", "scale"), [((1, 1), 1), ((1, 3), 1), ((3, 3), 2)])
def test_shapes_of_whatever_size(network, predict_residual, channels, scale):
    options = {"in_channels": channels[0], "out_channels": channels[1], "scale_factor": scale}
    model = network(block_out_channels=(8, 12, 16), predict_residual=predict_residual, **options)
    for height, width in ((8, 8), (12, 20)):
        given = torch.rand(2, channels[0], height, width) * 2 - 1
        made = model(given).sample
        assert made.shape == (2, channels[1], height * scale, width * scale)
        assert torch.equal(model(given, return_dict=False)[0], made)
    made.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("network", NETWORKS)
def test_the_level_of_noise_is_told_or_not(network):
    told, blind = network(block_out_channels=(8, 8), noise_level_input=True), network(block_out_channels=(8, 8))
    images = torch.rand(2, 1, 8, 8)
    assert not torch.equal(
        told(images, torch.tensor([0.1, 0.1])).sample, told(images, torch.tensor([0.1, 0.5])).sample
    )
    with pytest.raises(ValueError, match="noise_std is missing"):
        told(images)
    with pytest.raises(ValueError, match="this model is not conditioned on noise_std"):
        blind(images, torch.tensor([0.1, 0.5]))
    with pytest.raises(ValueError, match="predict_residual cannot add 1 channels to an input with 3"):
        network(in_channels=3, out_channels=1, predict_residual=True)


def test_the_plain_network_is_that_of_its_specification():
    layers = [layer for layer in TranslationUNet(block_out_channels=(8, 16, 32)).modules() if not [*layer.children()]]
    kinds = [type(layer).__name__ for layer in layers]
    down, up = ["Conv2d", "LeakyReLU"], ["ConvTranspose2d", "ReLU"]
    assert kinds == [*down, *down, *down, "Identity", *up, *up, "Conv2d", "Tanh"]
    widths = [layer.in_channels for layer in layers if isinstance(layer, torch.nn.ConvTranspose2d)]
    assert widths == [32, 32], "the upper one is also given what was there before"
    made = TranslationUNet(block_out_channels=(8, 16))(10 * torch.randn(4, 1, 8, 8)).sample
    assert made.abs().max() <= 1


def test_the_discriminator_judges_patches():
    assert PatchDiscriminator(in_channels=2, block_out_channels=(4, 8))(torch.rand(3, 2, 28, 28)).logits.shape == (
        3, 1, 7, 7,
    )  # fmt: skip


# --- objective


def test_the_objective_is_the_sum_of_its_terms(digits):
    task = TranslationTask(config(l1_weight=2.0, mse_weight=3.0, adversarial_weight=0.5), digits)
    discriminator, generator = task.losses(batch_of(digits))
    assert (discriminator.module, generator.module) == ("discriminator", "generator")
    terms = generator.terms
    expected = 2 * terms["l1"] + 3 * terms["mse"] + 0.5 * terms["adversarial"]
    torch.testing.assert_close(generator.value, expected)
    assert discriminator.terms.keys() == {"real", "fake"}
    images = torch.rand(2, 1, 28, 28) * 2 - 1
    large = TranslationTask(config(ssim_weight=1.0), load_images("digits", resolution=28))
    assert large._reconstruction_loss(images, images)[0].item() == pytest.approx(0, abs=1e-5)
    other = torch.stack([torch.lerp(image, -image, share) for image, share in zip(images, (0.1, 0.9), strict=True)])
    measured = image_similarity(other / 2 + 0.5, images / 2 + 0.5)
    assert large._reconstruction_loss(other, images)[1]["ssim"].item() == pytest.approx(1 - measured["ssim"], abs=1e-4)
    large.config.psnr_weight = 0.01
    value, terms = large._reconstruction_loss(other, images)
    assert terms["psnr"].item() == pytest.approx(-measured["psnr"], abs=1e-4)
    torch.testing.assert_close(value - large.config.l1_weight * terms["l1"], terms["ssim"] + 0.01 * terms["psnr"])


@pytest.mark.parametrize("l1_weight", [0.0, 1.0])
def test_each_network_is_updated_by_its_own_loss_only(digits, l1_weight):
    task = TranslationTask(config(l1_weight=l1_weight), digits)
    for loss in task.losses(batch_of(digits)):
        for module in task.modules.values():
            module.zero_grad()
        loss.value.backward()
        moved = {name for name, m in task.modules.items() if any(p.grad is not None for p in m.parameters())}
        assert moved == {loss.module}
    assert all(parameter.requires_grad for parameter in task.discriminator.parameters())


def test_without_an_adversarial_loss_there_is_no_discriminator(digits):
    task = TranslationTask(config(adversarial_weight=0.0), digits)
    assert task.modules.keys() == {"generator"}
    (loss,) = task.losses(batch_of(digits))
    assert loss.terms.keys() == {"l1"}


@pytest.mark.parametrize(("family", "pairs"), [("translation", 1), ("cyclegan", 2)])
def test_the_relativistic_loss_compares_real_images_with_made_ones(digits, family, pairs):
    torch.manual_seed(0)
    fields = {"adversarial_loss": "relativistic"}
    task = {
        "translation": lambda: TranslationTask(config(**fields), digits),
        "cyclegan": lambda: CycleGANTask(cycle_config(**fields), digits),
    }[family]()
    losses = {loss.module.rstrip("s"): loss for loss in task.losses(batch_of(digits))}
    undecided = pytest.approx(pairs * math.log(2), abs=0.1)
    assert losses["generator"].terms["adversarial"].item() == undecided
    assert losses["discriminator"].value.item() == undecided


def test_the_noise_is_told_in_training_too(digits):
    told = TranslationTask(config(noise_level_input=True, adversarial_weight=0.0), digits)
    (loss,) = told.losses(batch_of(digits))
    loss.value.backward()
    first = next(iter(told.generator.parameters()))
    assert first.shape[1] == 2
    assert first.grad[:, 1].abs().max() > 0
    assert told.preview(4, 0).height == 3 * 132


def test_a_conditional_discriminator_sees_what_was_given(digits):
    task = TranslationTask(config(conditional_discriminator=True, degradation=["downscale=2"]), digits)
    assert task.discriminator.config.in_channels == 2
    assert [loss.module for loss in task.losses(batch_of(digits))] == ["discriminator", "generator"]


# --- what the network is given


@pytest.mark.parametrize(("fields", "message"), [
    ({"degradation": []}, "by one of degradation .* not by none"),
    ({"input_column": "x"}, "not by degradation and input_column"),
    ({"degradation": [], "input_data_dir": "x"}, "input_data_dir needs train_data_dir"),
    ({"degradation": [], "input_column": "x", "random_flip": True}, "random_flip would break the pairs"),
    ({"l1_weight": 0.0, "adversarial_weight": 0.0}, "must be above 0, or there is nothing to learn"),
    ({"l1_weight": -1.0}, "l1_weight must be zero or more, not -1"),
    ({"conditional_discriminator": True, "adversarial_weight": 0.0}, "needs adversarial_weight above 0"),
    ({"noise_level_input": True, "degradation": ["blur=1"]}, "needs gaussian_noise=… as the last degradation"),
    ({"block_out_channels": []}, "block_out_channels must have at least one entry"),
])  # fmt: skip
def test_contradictions_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        config(**fields)


@pytest.mark.parametrize(("fields", "message"), [
    ({"ssim_weight": 1.0}, "ssim_weight needs images of at least 11×11 pixels, not 8×8"),
    ({"block_out_channels": [8] * 5}, r"halve images 4 times, but 8×8 pixels are not divisible so often"),
    ({"degradation": ["downscale=3"]}, "does not divide"),
    ({"discriminator_block_out_channels": [4] * 4}, "halve images 4 times, but 8×8 pixels are too few"),
])  # fmt: skip
def test_what_does_not_fit_the_images_is_refused(digits, fields, message):
    with pytest.raises(UserError, match=message):
        TranslationTask(config(**fields), digits)


def test_pairs_of_two_folders(tmp_path, digits, capsys):
    save_images(digits.images[:40], tmp_path / "wanted")
    save_images(255 - digits.images[:40], tmp_path / "given")
    fields = {"dataset_name": None, "train_data_dir": str(tmp_path / "wanted"), "degradation": [],
              "input_data_dir": str(tmp_path / "given"), "train_split": "train"}  # fmt: skip
    task = TranslationTask(config(**fields), load_images(str(tmp_path / "wanted")))
    indices = torch.tensor([3, 30])
    given = task.inputs(torch.zeros(2, 1, 8, 8), indices)
    torch.testing.assert_close(given.images, -(task.data.images[indices].float() / 127.5 - 1))
    run = train_translation(tmp_path / "run", **fields, max_train_steps=2, max_train_samples=30)
    assert main(["evaluate", str(run), "--reference_split", "train"]) == 0
    record = json.loads((run / "evaluation.json").read_text())
    assert [setting["title"] for setting in record["restoration"]] == ["paired images"]
    assert record["protocol"]["reference_images"] == 30
    assert main(["evaluate", str(run), "--dataset_name", "digits"]) == 2
    assert "trained on paired data, which another data set does not have" in capsys.readouterr().err
    PIL.Image.new("L", (8, 8), 9).save(tmp_path / "given" / "00007.png")
    with pytest.raises(UserError, match="wanted and .*given are not those of step-000002"):
        train_translation(run, **fields, max_train_steps=3, max_train_samples=30, resume_from_checkpoint="latest")
    (tmp_path / "given" / "00007.png").rename(tmp_path / "given" / "extra.png")
    with pytest.raises(UserError, match="and input_data_dir must have the same names.*given has no 00007"):
        TranslationTask(config(**fields), task.data)
    command = ["train", "translation", "--train_data_dir", fields["train_data_dir"]]
    command += ["--input_data_dir", fields["input_data_dir"], "--output_dir", str(tmp_path / "given" / "run")]
    assert main(command) == 2
    assert "is inside the image folder input_data_dir" in capsys.readouterr().err


def test_names_that_sort_otherwise_with_other_endings_are_refused(tmp_path, digits):
    for folder, ending in (("wanted", "png"), ("given", "bmp")):
        (tmp_path / folder).mkdir()
        for name in ("a", "a.c"):
            PIL.Image.new("L", (8, 8)).save(tmp_path / folder / f"{name}.{ending}")
    fields = {"dataset_name": None, "train_data_dir": str(tmp_path / "wanted"), "degradation": [],
              "input_data_dir": str(tmp_path / "given"), "train_split": "train"}  # fmt: skip
    with pytest.raises(UserError, match="their suffixes sort them differently"):
        TranslationTask(config(**fields), load_images(str(tmp_path / "wanted")))


def test_pairs_of_two_columns_of_two_sizes(tmp_path, digits):
    import datasets

    def column(images):
        return [PIL.Image.fromarray(image.numpy()[0]) for image in images]

    halves = torch.nn.functional.avg_pool2d(digits.images[:30].float(), 2).round().to(torch.uint8)
    features = datasets.Features({"large": datasets.Image(), "small": datasets.Image()})
    columns = {"large": column(digits.images[:30]), "small": column(halves)}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "data" / "train.parquet")
    fields = {"dataset_name": str(tmp_path / "data"), "image_column": "large", "input_column": "small",
              "degradation": [], "train_split": "train", "block_out_channels": [8, 8]}  # fmt: skip
    run = train_translation(tmp_path / "run", **fields, max_train_steps=2)
    pipeline = load(str(run))
    assert pipeline.generator.config.scale_factor == 2
    assert pipeline(column(halves[:2])[0]).images[0].size == (8, 8)
    with pytest.raises(UserError, match="has no column other"):
        TranslationTask(config(**fields | {"input_column": "other"}), digits)


# --- the pipeline


def make_pipeline(**options) -> ImageTranslationPipeline:
    torch.manual_seed(0)
    return ImageTranslationPipeline(ResidualTranslationUNet(block_out_channels=(8, 8, 8), **options))


def test_images_of_all_kinds_are_taken():
    pipeline = make_pipeline()
    pixels = np.random.default_rng(0).integers(256, size=(3, 8, 8, 1), dtype=np.uint8)
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    pictures = [PIL.Image.fromarray(image[..., 0]) for image in pixels]
    kinds = [pictures, pixels, [*pixels], pixels / 255, tensor, [*tensor], tensor.float() / 255, pixels[..., 0:1]]
    found = [pipeline(images, output_type="np").images for images in kinds]
    for other in found:
        assert other.shape == (3, 8, 8, 1)
        np.testing.assert_allclose(other, found[0], atol=1e-5)
    single = [pictures[0], pixels[0], pixels[0, ..., 0], tensor[0]]
    for one in single:
        np.testing.assert_allclose(pipeline(one, output_type="np").images[0], found[0][0], atol=1e-5)
    assert isinstance(pipeline(pictures[0]).images[0], PIL.Image.Image)
    assert pipeline(pictures, return_dict=False)[0][0].size == (8, 8)
    coloured = pipeline(pictures[0].convert("RGB"), output_type="np").images[0]
    np.testing.assert_allclose(coloured, found[0][0], atol=1e-5)
    for mistake, error, message in (
        (
            torch.rand(3, 8, 8),
            ValueError,
            "images with 1 channel, not 3; PIL images are converted",
        ),
        (np.full((8, 8), 200.0), ValueError, "floating-point pixels must be in \\[0, 1\\], apart from noise, not 200"),
        (np.full((8, 8), 999), ValueError, "integer pixels must be in \\[0, 255\\], not 999"),
        ("a.png", TypeError, "images must be PIL images, arrays, tensors or a list of them, not str"),
        ([None], TypeError, "not NoneType"),
    ):
        with pytest.raises(error, match=message):
            pipeline(mistake)
    with pytest.raises(ValueError, match="output_type must be pil, np or pt, not jpg"):
        pipeline(pictures, output_type="jpg")


def test_images_of_all_sizes_are_taken():
    pipeline = make_pipeline(scale_factor=2)
    sizes = [(8, 8), (7, 9), (8, 8), (1, 3)]
    images = [torch.rand(1, *size) for size in sizes]
    made = pipeline(images, output_type="pt", batch_size=1).images
    assert [tuple(image.shape) for image in made] == [(1, 2 * height, 2 * width) for height, width in sizes]
    torch.testing.assert_close(made[2], pipeline(images[2], output_type="pt").images[0])
    assert made[0].min() >= 0
    assert made[0].max() <= 1


@torch.no_grad()
def test_what_divides_once_it_is_enlarged_is_not_padded():
    pipeline = make_pipeline(scale_factor=2)
    image = torch.rand(1, 1, 6, 10)
    expected = pipeline.generator(2 * image - 1).sample.clamp(-1, 1) / 2 + 0.5
    torch.testing.assert_close(pipeline(image, output_type="pt").images, expected)


@pytest.mark.parametrize("scale_factor", [1, 2])
def test_tiles_fade_into_one_image(scale_factor):
    pipeline = make_pipeline(scale_factor=scale_factor)  # its last convolution is random, its receptive field small
    image = torch.rand(1, 40, 56)
    whole = pipeline(image, output_type="pt").images
    tiled = pipeline(image, tile_size=24, output_type="pt").images
    assert tiled.shape == whole.shape
    assert (tiled - whole).abs().mean() < (0.004 if scale_factor == 1 else 0.002), "without fading, twice as much"
    cropped = pipeline(image[:, :24, :24], output_type="pt").images
    torch.testing.assert_close(tiled[..., :4, :4], cropped[..., :4, :4])
    assert pipeline(image, tile_size=64, output_type="pt").images.equal(whole)
    with pytest.raises(ValueError, match="tile_size must be at least 8, not 4"):
        pipeline(image, tile_size=4)


def test_the_noise_is_told_for_each_image():
    pipeline = make_pipeline(noise_level_input=True)
    images = torch.rand(2, 1, 8, 8)
    both = pipeline(images, noise_std=[0.1, 0.5], output_type="pt").images
    torch.testing.assert_close(both[1:], pipeline(images[1:], noise_std=0.5, output_type="pt").images)
    mistakes = (
        (None, "missing"),
        ([0.1] * 3, "one for each of the 2 images"),
        (-1.0, "at least 0"),
        (np.nan, "at least 0"),
    )
    for given, message in mistakes:
        with pytest.raises(ValueError, match=message):
            pipeline(images, noise_std=given)
    with pytest.raises(ValueError, match="not conditioned on noise_std"):
        make_pipeline()(images, noise_std=0.1)
    with pytest.raises(ValueError, match="one direction only"):
        pipeline(images, noise_std=0.1, inverse=True)


# --- a run


def test_a_run_offers_pictures_and_a_model_that_diffusers_loads_alone(translation_run, tmp_path, without_hfgen):
    for name in ("training_curves.png", "training.gif", "input.png"):
        assert (translation_run / "figures" / name).exists()
    assert main(["card", str(translation_run), "--gallery", str(tmp_path / "gallery")]) == 0
    page = tmp_path / "gallery" / translation_run.name
    assert "[figures/input.png](figures/input.png) is an input" in (page / "README.md").read_text()
    cells = json.loads((page / "notebook.ipynb").read_text())["cells"]
    assert f'hf_hub_download("user/{translation_run.name}", "figures/input.png")' in cells[2]["source"]
    with PIL.Image.open(page / "figures" / "input.png") as picture:
        assert picture.size == (8, 8)
    losses = [row["generator/l1"] for row in read_rows(translation_run / METRICS_FILE)]
    assert np.mean(losses[-20:]) < 0.4 * np.mean(losses[:3])
    with PIL.Image.open(max((translation_run / "samples").iterdir())) as picture:
        assert picture.height == 3 * 116
    assert not (translation_run / "discriminator").exists()
    code = (
        "import torch\nfrom diffusers import DiffusionPipeline\n"
        f"pipe = DiffusionPipeline.from_pretrained({str(translation_run)!r}, trust_remote_code=True)\n"
        "print(pipe.config.degradation, pipe(torch.rand(1, 9, 11)).images[0].size)"
    )
    assert "gaussian_noise=0.1..0.5 (11, 9)" in without_hfgen.python(code)


def test_test_images_are_measured_and_the_page_says_so(translation_run, judge_run, tmp_path):
    run = shutil.copytree(translation_run, tmp_path / "run")
    command = ["evaluate", str(run), "--reference_split", "train[80%:]", "--judge", str(judge_run)]
    assert main(command) == 0
    record = json.loads((run / "evaluation.json").read_text())
    assert [setting["title"] for setting in record["restoration"]] == [
        "gaussian_noise=0.1", "gaussian_noise=0.3", "gaussian_noise=0.5",
    ]  # fmt: skip
    for setting in record["restoration"]:
        given, made = setting["given"], setting["made"]
        assert made["psnr"] > given["psnr"] + (1 if setting["title"] != "gaussian_noise=0.1" else -1)
        seen = [found["class_seen"]["digits_judge"]["accuracy"] for found in (given, made)]
        assert seen[1] >= seen[0] - 0.02
    psnrs = [setting["given"]["psnr"] for setting in record["restoration"]]
    assert psnrs[0] > psnrs[1] > psnrs[2]
    first = record["restoration"][0]["given"]["psnr"]
    assert 20 < first < 23, "−20 log10 0.1, but for what is cut off at black and white"
    assert main([*command, "--scheduler", "ddim"]) == 2
    assert main(["card", str(run)]) == 0
    card = ModelCard.load(run / "README.md")
    assert card.data.pipeline_tag == "image-to-image"
    assert {result.metric_type for result in card.data.eval_results} == {"psnr"}
    assert "| gaussian_noise=0.3 |" in card.text
    assert "hfgen translate" in card.text
    assert main(["results", str(run), "--output", str(tmp_path / "RESULTS.md")]) == 0
    assert "## Image to image" in (tmp_path / "RESULTS.md").read_text()


def test_what_is_made_grey_of_colour_and_told_its_noise_is_measured(tmp_path, judge_run):
    degradation = ["tint", "gaussian_noise=0.2"]
    run = train_translation(tmp_path / "run", degradation=degradation, noise_level_input=True, max_train_steps=2)
    command = ["evaluate", str(run), "--reference_split", "train[80%:]", "--judge", str(judge_run)]
    assert main([*command, "--num_images", "20"]) == 0
    (setting,) = json.loads((run / "evaluation.json").read_text())["restoration"]
    assert {"psnr", "class_seen"} <= setting["given"].keys()
    assert main([*command, "--target_reference_split", "train"]) == 2


def test_equal_images_have_an_infinite_psnr():
    near = {"mse": 0.1, "psnr": 10.0, "ssim": 0.5}
    equal = {"mse": 0.0, "ssim": 1.0}
    assert similarity_texts({"given": near, "made": equal}) == ["10.00 → ∞", "0.500 → 1.000"]
    assert similarity_texts({"given": {}, "made": near}) == ["10.00", "0.500"]


def test_the_command_translates_files_and_folders_of_any_size(translation_run, tmp_path, capsys):
    given = tmp_path / "given"
    (given / "more").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, size in (("a.png", (9, 8)), ("more/b.png", (20, 30)), ("a.bmp", (8, 8))):
        PIL.Image.fromarray(generator.integers(256, size=size, dtype=np.uint8)).save(given / name)
    (given / "broken.png").write_bytes(b"no picture")
    before = {path: path.read_bytes() for path in given.rglob("*") if path.is_file()}
    command = ["translate", str(translation_run), "--input"]
    assert main([*command, str(given), "--output", str(tmp_path / "made")]) == 1, "not all could be read"
    printed = capsys.readouterr()
    assert "3 images are in" in printed.out
    assert "skipped" in printed.err
    assert "broken.png" in printed.err
    made = {}
    for path in (tmp_path / "made").rglob("*.png"):
        with PIL.Image.open(path) as picture:
            made[str(path.relative_to(tmp_path / "made"))] = np.array(picture)
    shapes = {name: pixels.shape for name, pixels in made.items()}
    assert shapes == {"a.png": (9, 8), "a.bmp.png": (8, 8), "more/b.png": (20, 30)}
    assert before == {path: path.read_bytes() for path in given.rglob("*") if path.is_file()}
    assert main([*command, str(given / "a.png"), "--output", str(tmp_path / "pair.png")]) == 0
    with PIL.Image.open(tmp_path / "pair.png") as picture:
        assert picture.size[1] == 2 * 130
    (given / "none").mkdir()
    for source, message in (("broken.png", "broken.png cannot be read as an image (cannot"), ("none", "no files in")):
        assert main([*command, str(given / source), "--output", str(tmp_path / "nothing")]) == 2
        assert message in capsys.readouterr().err
    pipeline = load(str(translation_run))
    with PIL.Image.open(given / "more" / "b.png") as picture:
        assert np.array_equal(np.asarray(pipeline(picture).images[0]), made["more/b.png"])


@pytest.mark.parametrize(("options", "message"), [
    (["--task", "denoise"], "is an image-to-image model, which has a single task; leave out --task"),
    (["--strength", "0.5"], "an image-to-image model has no strength"),
    (["--noise_std", "0.1"], "this model is not conditioned on noise_std"),
    (["--inverse"], "one direction only"),
    (["--output", "."], "is an input and would be overwritten"),
    (["--output", "GIVEN"], "could overwrite the input"),
    (["--output", "GIVEN/made"], "could overwrite the input"),
    (["--output", "out.npz"], "the images differ in size"),
])  # fmt: skip
def test_mistakes_get_one_message(translation_run, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    for name, size in (("GIVEN/b", 8), ("b", 9)):
        (tmp_path / "GIVEN" / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("L", (size, size), 200).save(tmp_path / "GIVEN" / f"{name}.png")
    before = (tmp_path / "GIVEN" / "b.png").read_bytes()
    output = [] if "--output" in options else ["--output", "made"]
    assert main(["translate", str(translation_run), "--input", "GIVEN", *output, *options]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == ["b.png", "b.png"]
    assert (tmp_path / "GIVEN" / "b.png").read_bytes() == before


def test_pictures_are_read_as_in_training(translation_run, tmp_path):
    levels = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    PIL.Image.fromarray(levels).save(tmp_path / "deep.png")
    PIL.Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    for name in ("deep", "clear"):
        output = tmp_path / f"{name}_pair.png"
        command = ["translate", str(translation_run), "--input", str(tmp_path / f"{name}.png"), "--output"]
        assert main([*command, str(output)]) == 0
        shown = load_images(str(tmp_path / f"{name}.png"), channels=1).images[0, 0]
        with PIL.Image.open(output) as picture:
            given = np.asarray(picture.convert("L"))[:132, -132:][2:-2:16, 2:-2:16]
        assert np.array_equal(given, shown.numpy())


@pytest.mark.parametrize(("family", "num_processes"), [("translation", 1), ("cyclegan", 2)])
def test_a_killed_run_goes_on_to_the_bit(tmp_path, family, num_processes):
    fields = {"translation": TINY_TRANSLATION, "cyclegan": CYCLE}[family]
    fields = fields | {"max_train_steps": 24, "checkpointing_steps": 6, "cache_dir": str(tmp_path / "cache")}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finish(hfgen("train", family, *flags(**fields, output_dir=whole), num_processes=num_processes))
    command = ["train", family, *flags(**fields, output_dir=parts)]
    process = hfgen(*command, num_processes=num_processes)
    kill_when(process, lambda: (parts / "checkpoints" / "step-000012" / STATE_FILE).exists(), signal.SIGKILL)
    process.communicate()
    finish(hfgen(*command, "--resume_from_checkpoint", "latest", num_processes=num_processes))
    state = ["checkpoints", "step-000024", STATE_FILE]
    assert whole.joinpath(*state).read_bytes() == parts.joinpath(*state).read_bytes()
    assert (whole / METRICS_FILE).read_text() == (parts / METRICS_FILE).read_text()


# --- without pairs


def cycle_config(**fields) -> CycleGANConfig:
    return CycleGANConfig(**CYCLE | {"output_dir": "unused"} | fields)


def test_the_objective_of_a_cycle_is_the_sum_of_its_terms(digits):
    task = CycleGANTask(cycle_config(cycle_weight=3.0, identity_weight=2.0, adversarial_weight=0.5), digits)
    generators, discriminators = task.losses(batch_of(digits))
    terms = generators.terms
    expected = 0.5 * terms["adversarial"] + 3 * terms["cycle"] + 2 * terms["identity"]
    torch.testing.assert_close(generators.value, expected)
    assert discriminators.terms.keys() == {"real", "fake"}
    coloured = CycleGANTask(cycle_config(target_degradation=["tint"]), digits)
    assert coloured.generators.there.config.out_channels == 3
    assert coloured.generators.back.config.in_channels == 3
    assert "identity" not in next(coloured.losses(batch_of(digits))).terms, "a grey image is never a coloured one"


def test_the_default_weights_of_a_cycle_are_those_of_the_paper(digits):
    """E (D(G(x)) − 1)² without a half, and λ = 10, 0.5 λ for the identity (Zhu et al. 2017, sections 4, 5.2)."""
    fields = CYCLE.keys() - {"adversarial_weight", "cycle_weight", "identity_weight"}
    task = CycleGANTask(CycleGANConfig(output_dir="unused", **{name: CYCLE[name] for name in fields}), digits)
    batch = batch_of(digits)
    torch.manual_seed(0)
    loss = next(task.losses(batch)).value
    torch.manual_seed(0)
    second = task.domain_b.draw(len(batch.images), torch.device("cpu"))
    made = task.generators(batch.images, second)
    expected = sum((logits - 1).square().mean() for logits in task.discriminators(made.to_a, made.to_b))
    expected += 10 * ((made.cycled_a - batch.images).abs().mean() + (made.cycled_b - second).abs().mean())
    expected += 5 * ((made.identity_a - batch.images).abs().mean() + (made.identity_b - second).abs().mean())
    torch.testing.assert_close(loss, expected)


def test_there_and_back_are_the_right_way_round(digits):
    class Marked(torch.nn.Module):
        def __init__(self, change):
            super().__init__()
            self.change = change

        def forward(self, images):
            return TranslatorOutput(self.change(images))

    first, second = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    made = Generators(Marked(lambda x: x + 1), Marked(lambda x: x * 3), identity=True)(first, second)
    assert [part.mean().item() for part in made] == [1, 3, 3, 4, 0, 2]


def test_generators_and_discriminators_are_updated_apart(digits):
    task = CycleGANTask(cycle_config(), digits)
    for loss in task.losses(batch_of(digits)):
        for module in task.modules.values():
            module.zero_grad()
        loss.value.backward()
        moved = {name for name, m in task.modules.items() if any(p.grad is not None for p in m.parameters())}
        assert moved == {loss.module}
        if loss.module == "generators":
            assert all(parameter.grad is not None for parameter in task.generators.parameters())


def test_the_pool_returns_former_results():
    torch.manual_seed(0)
    pools = Discriminators(torch.nn.Identity(), torch.nn.Identity(), (1, 1, 1), (2, 1, 1), pool_size=6)
    batches = [torch.full((4, 1, 1, 1), float(number)) for number in range(1, 40)]
    shown = [pools.exchange(batch, batch.expand(-1, 2, -1, -1)) for batch in batches]
    assert shown[0][0].eq(1).all(), "at first there is nothing else"
    current = torch.stack([(first == batch).float().mean() for (first, _), batch in zip(shown, batches, strict=True)])
    assert 0.4 < current[1:].mean() < 0.65
    ages = torch.cat([batch - first for (first, _), batch in zip(shown, batches, strict=True)])
    assert ages.min() == 0
    assert ages.max() >= 3
    assert shown[5][1].shape == (4, 2, 1, 1)
    assert "first_pool" in pools.state_dict(), "so that a checkpoint has it"
    none = Discriminators(torch.nn.Identity(), torch.nn.Identity(), (1, 1, 1), (2, 1, 1), pool_size=0)
    assert none.exchange(batches[3], batches[4].expand(-1, 2, -1, -1))[1].eq(5).all()


def test_second_images_are_mirrored_as_the_first_are(digits):
    kind = TargetDomain(cycle_config(random_flip=True, target_degradation=["invert"]).to_dict(), digits, "train")
    torch.manual_seed(0)
    flipped = kind.draw(200, torch.device("cpu"))
    torch.manual_seed(0)
    indices = torch.randint(len(kind.data), (200,))
    plain = kind.take(indices, torch.device("cpu"))
    same = torch.stack([torch.equal(*pair) * torch.ones(()) for pair in zip(flipped, plain, strict=True)])
    assert 0.4 < same.mean() < 0.6
    assert all(torch.equal(f, p) or torch.equal(f, p.flip(-1)) for f, p in zip(flipped, plain, strict=True))


@pytest.mark.parametrize(("fields", "message"), [
    ({"target_dataset_name": None, "target_degradation": []}, "domain B is missing: set target_dataset_name"),
    ({"target_data_dir": "x"}, "by target_dataset_name or target_data_dir, not both"),
    ({"target_dataset_name": None}, "target_split and target_image_column need target_dataset_name or"),
    ({"cycle_weight": -1.0}, "cycle_weight must be zero or more"),
    ({"adversarial_weight": 0.0}, "adversarial_weight must be positive"),
    ({"pool_size": 8}, "pool_size must be 0 or at least train_batch_size, which is 16, not 8"),
])  # fmt: skip
def test_contradictions_of_cycles_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        cycle_config(**fields)


def test_kinds_of_different_size_are_refused(digits):
    with pytest.raises(UserError, match="must have the same size, not 8×8 and 4×4"):
        CycleGANTask(cycle_config(target_degradation=["downscale=2"]), digits)


def test_a_cycle_learns_to_invert_without_pairs(tmp_path, judge_run):
    fields = {"max_train_steps": 400, "learning_rate": 2e-3, "checkpointing_steps": 400, "identity_weight": 0.0}
    run = train(cycle_config(**fields, output_dir=str(tmp_path / "run")), CycleGANTask)
    with PIL.Image.open(max((run / "samples").iterdir())) as picture:
        assert picture.height == 6 * 132
    command = ["evaluate", str(run), "--reference_split", "train[80%:]", "--judge", str(judge_run)]
    assert main(command) == 0
    back, there, cycle = json.loads((run / "evaluation.json").read_text())["restoration"]
    seen = [found["class_seen"]["digits_judge"]["accuracy"] for found in (back["given"], back["made"], cycle["made"])]
    assert seen[0] < 0.3 < 0.7 < min(seen[1:])
    assert back["made"]["psnr"] > back["given"]["psnr"] + 5
    assert there["made"]["psnr"] > there["given"]["psnr"] + 5
    assert "psnr" not in cycle["given"], "an image is like itself"
    assert "domain B those of the split `train[80%:]` of digits after `invert`" in (run / "evaluation.md").read_text()
    assert main(["card", str(run)]) == 0
    text = (run / "README.md").read_text()
    assert "inverse=True" in text
    assert "1703.10593" in text


def test_kinds_with_other_channels_and_other_classes_are_measured(tmp_path, judge_run, digits):
    images = digits.images[:40, 0].numpy()
    np.savez(tmp_path / "letters.npz", images=images, labels=np.arange(40) % 2, label_names=["a", "b"])
    other = cycle_config(target_dataset_name=str(tmp_path / "letters.npz"), target_split="train", max_train_steps=2,
                         target_degradation=["tint"], output_dir=str(tmp_path / "tint"))  # fmt: skip
    command = ["evaluate", str(train(other, CycleGANTask)), "--reference_split", "train[80%:]", "--num_images", "20"]
    assert main([*command, "--target_reference_split", "train", "--judge", str(judge_run)]) == 0
    back, cycle = json.loads((tmp_path / "tint" / "evaluation.json").read_text())["restoration"]
    assert not back["made"]["class_seen"], "a judge of digits has no letters"
    assert "psnr" not in back["made"]
    assert cycle["made"]["class_seen"]
    pipeline = load(str(tmp_path / "tint"))
    assert pipeline(torch.rand(1, 1, 8, 8), output_type="pt").images.shape == (1, 3, 8, 8)
    assert pipeline(torch.rand(1, 3, 8, 8), inverse=True, output_type="pt").images.shape == (1, 1, 8, 8)
