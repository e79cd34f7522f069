"""Given images are denoised, varied, filled in and turned into other classes: the pipeline and `hfgen translate`."""

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from scipy.ndimage import gaussian_filter

from hfgen.cli.main import main
from hfgen.config import TranslationConfig
from hfgen.data.images import load_images
from hfgen.figures.grids import save_images
from hfgen.judges.judge import load_judge
from hfgen.losses.diffusion import diffusion_target
from hfgen.models.modeling_hfgen_vae import GaussianMixtureModel, VAEModel
from hfgen.pipelines.loading import load
from hfgen.pipelines.pipeline_hfgen_vae import VAEPipeline
from hfgen.pipelines.saving import save_pipeline
from hfgen.sampling.edit import _usual_border
from hfgen.sampling.editing_pipeline import DiffusionEditingPipeline, estimate_noise_std

KINDS = ["epsilon", "sample", "v_prediction", "flow_prediction"]


def make_pipeline(kind="v_prediction", num_class_embeds=None) -> DiffusionEditingPipeline:
    torch.manual_seed(0)
    unet = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1,
                       norm_num_groups=8, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
                       add_attention=False, num_class_embeds=num_class_embeds)  # fmt: skip
    flow = kind == "flow_prediction"
    scheduler = FlowMatchEulerDiscreteScheduler() if flow else DDPMScheduler(prediction_type=kind)
    names = {number: f"class {number}" for number in range((num_class_embeds or 1) - 1)}
    return DiffusionEditingPipeline(unet, scheduler, names)


def digits(count=20) -> torch.Tensor:
    """Return digits that the models have not seen, (N, 1, 8, 8) in [0, 1]."""
    return load_images("digits", split="train[80%:]").images[:count].float() / 255


def noise_like(images, seed=1) -> torch.Tensor:
    return torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))


def knows(pipeline, kind, images):
    """Put a network into the pipeline that knows the images, as a function of x and timestep."""

    def model(x, timestep):
        level = (pipeline.timesteps == timestep).nonzero().item()
        alpha, sigma = pipeline.alphas[level], pipeline.sigmas[level]
        return diffusion_target(kind, 2 * images - 1, (x - alpha * (2 * images - 1)) / sigma, alpha, sigma)

    pipeline._model = lambda *_: model
    return pipeline


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_that_knows_the_image_gives_it_back(kind):
    images = digits(1)
    pipeline = knows(make_pipeline(kind), kind, images)
    options = {"output_type": "pt", "num_inference_steps": 7}
    noisy = images + 0.3 * noise_like(images)
    for result in (
        pipeline.denoise(noisy, noise_std=0.3, **options),
        pipeline.denoise(noisy, **options | {"num_inference_steps": 1}),
        pipeline(images, strength=0.9, **options),
        pipeline.inpaint(1 - images, torch.ones(1, 1, 8, 8), **options),
    ):
        torch.testing.assert_close(result.images, images, atol=1e-3, rtol=0)


def test_what_the_mask_leaves_is_kept_to_the_bit():
    pipeline, images = make_pipeline(), digits(3)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1
    options = {"num_inference_steps": 4, "num_resamples": 2, "output_type": "pt"}
    filled = [
        pipeline.inpaint(images, mask, generator=torch.Generator().manual_seed(s), **options).images for s in (0, 0, 1)
    ]
    assert (filled[0][..., :4] - images[..., :4]).abs().max() < 1e-6
    assert filled[0].equal(filled[1])
    assert not filled[0][..., 4:].equal(filled[2][..., 4:])
    with pytest.raises(ValueError, match=r"mask_image must have the images' size, \(8, 8\), not \(4, 4\)"):
        pipeline.inpaint(images, mask[..., :4, :4])


def test_what_is_filled_in_is_made_beside_what_is_kept_at_the_same_noise_level():
    """RePaint: at each level the network sees the kept pixels as noisy as that level, and each step several times."""
    pipeline, shown = make_pipeline(), []
    image = torch.cat([torch.ones(1, 1, 8, 4), torch.zeros(1, 1, 8, 4)], dim=3).expand(200, -1, -1, -1)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1

    def model(x, timestep):
        shown.append((int(timestep), x))
        return pipeline.unet(x, timestep).sample

    pipeline._model = lambda *_: model
    options = {"num_inference_steps": 4, "num_resamples": 3, "generator": torch.Generator().manual_seed(0)}
    pipeline.inpaint(image, mask, **options)
    timesteps = [timestep for timestep, _ in shown]
    assert timesteps == sorted([*timesteps[:9:3]] * 3, reverse=True) + timesteps[-1:], "each step but the last 3 times"
    assert len(set(timesteps)) == 4
    for timestep, x in shown[1:]:
        level = (pipeline.timesteps == timestep).nonzero().item()
        kept = x[..., :4]  # white
        assert kept.mean().item() == pytest.approx(pipeline.alphas[level].item(), abs=0.05)
        assert kept.std().item() == pytest.approx(pipeline.sigmas[level].item(), abs=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_colour_and_other_shapes_than_squares(dtype):
    unet = UNet2DModel(sample_size=(8, 12), in_channels=3, out_channels=3, block_out_channels=(8, 8),
                       layers_per_block=1, norm_num_groups=8, down_block_types=("DownBlock2D",) * 2,
                       up_block_types=("UpBlock2D",) * 2, num_class_embeds=3)  # fmt: skip
    pipeline = DiffusionEditingPipeline(unet, DDPMScheduler(), {0: "cat", 1: "dog"}).to(dtype)
    pictures = [PIL.Image.new("RGB", (12, 8), (200, 50, 0))] * 2
    mask = PIL.Image.new("1", (12, 8), 1)
    results = [
        pipeline(pictures, num_inference_steps=2),
        pipeline.denoise(pictures, noise_std=0.2),
        pipeline.inpaint(pictures, mask, num_inference_steps=2),
        pipeline.change_class(pictures, ["cat", "dog"], num_inference_steps=2),
    ]
    for result in results:
        assert [picture.size for picture in result.images] == [(12, 8)] * 2
        assert result.images[0].mode == "RGB"
        assert result.images[0].tobytes() != pictures[0].tobytes()


def test_each_image_is_denoised_by_its_own_noise_level():
    pipeline, images = make_pipeline(), digits(2)
    noisy = images + torch.tensor([0.05, 0.5]).view(-1, 1, 1, 1) * noise_like(images)
    together = pipeline.denoise(noisy, output_type="pt").images
    for index in range(2):
        alone = pipeline.denoise(noisy[index : index + 1], output_type="pt").images
        torch.testing.assert_close(together[index : index + 1], alone)


def test_noise_that_is_added_again_reaches_the_level_above():
    pipeline = make_pipeline("epsilon")
    generator = torch.Generator().manual_seed(0)
    x = pipeline.sigmas[300] * torch.randn(10_000, 1, 2, 2, generator=generator)
    assert pipeline._noise_again(x, 300, 600, generator).std().item() == pytest.approx(
        pipeline.sigmas[600].item(), rel=0.02
    )
    ones = pipeline.alphas[300] * torch.ones(10_000, 1, 2, 2)
    assert pipeline._noise_again(ones, 300, 600, generator).mean().item() == pytest.approx(
        pipeline.alphas[600].item(), rel=0.05
    )


def test_the_noise_of_an_image_is_estimated():
    smooth = torch.linspace(0, 1, 64).view(1, 1, 1, 64).expand(2, 1, 64, 64)
    for std in (0.05, 0.3):
        estimates = estimate_noise_std((smooth + std * noise_like(smooth))[..., :63, :63])
        assert estimates.tolist() == pytest.approx([std] * 2, rel=0.1)


@pytest.mark.parametrize(("call", "message"), [
    (lambda p, x: p(x, strength=0), "strength must be above 0 and at most 1, not 0"),
    (lambda p, x: p(x, class_labels=["cow"] * len(x)), r"no class cow; its classes are class 0 \(0\), class"),
    (lambda p, x: p(x, num_inference_steps=0), "num_inference_steps must be from 1 to 1000, not 0"),
    (lambda p, x: p.inpaint(x, 0 * x), "mask_image has no white pixels"),
    (lambda p, x: p.inpaint(x, x, num_inference_steps=1), "num_inference_steps must be 2 or more, not 1"),
    (lambda p, x: p(x, class_labels=[0]), "one for each of the 20 images"),
    (lambda p, x: p.denoise(x, noise_std=1e9), r"noise_std must be from 0 to .* for this model, not 1e\+09"),
    (lambda p, x: p.denoise(x, noise_std=-1), "noise_std must be from 0"),
    (lambda p, x: p(x, guidance_scale=2.0), "guidance_scale needs class_labels"),
    (lambda p, x: p.inpaint(x, torch.ones(2, 1, 8, 8)), "mask_image must be one, or one for each .* not 2"),
    (lambda p, x: DiffusionEditingPipeline(p.unet, EDMEulerScheduler()), "an? EDMEulerScheduler are not supported"),
    (lambda p, x: make_pipeline().change_class(x, [0] * len(x)), "is unconditional: it has no classes to"),
    (lambda p, x: make_pipeline()(x, class_labels=[0] * len(x)), "is unconditional: class_labels do not"),
])  # fmt: skip
def test_impossible_requests_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(make_pipeline(num_class_embeds=4), digits())


def test_classes_by_name_and_number():
    pipeline, images = make_pipeline(num_class_embeds=4), digits(3)

    def varied(*labels):
        options = {"generator": torch.Generator().manual_seed(0), "num_inference_steps": 2, "output_type": "pt"}
        return pipeline(images, class_labels=labels, **options).images

    assert varied("class 2", "1", None).equal(varied(2, 1, None))
    options = {"noise_std": 0.3, "output_type": "pt"}
    for label in ("class 2", 2):
        each = pipeline.denoise(images, class_labels=[2] * 3, **options).images
        assert pipeline.denoise(images, class_labels=label, **options).images.equal(each)
    assert not varied(2, 1, None).equal(varied(2, 1, 1))


@pytest.fixture(params=["v_prediction", "flow_prediction"])
def run(request, conditional_run):
    return conditional_run(request.param)


@pytest.fixture
def editing(run):
    loaded = load(str(run))
    return DiffusionEditingPipeline(loaded.unet, loaded.scheduler, loaded.config.id2label)


def test_a_model_that_never_lacked_its_labels_is_always_told_the_class():
    pipeline = make_pipeline(num_class_embeds=4)
    told = DiffusionEditingPipeline(pipeline.unet, pipeline.scheduler, pipeline.config.id2label, learnt_no_class=False)
    options = {"noise_std": 0.3, "output_type": "pt"}
    by_class = told.denoise(digits(1), class_labels=[1], **options).images
    assert by_class.equal(pipeline.denoise(digits(1), class_labels=[1], **options).images)
    with pytest.raises(ValueError, match="no unconditional mode and needs class_labels"):
        told.denoise(digits(1), **options)
    with pytest.raises(ValueError, match="no unconditional mode and needs source_class_labels"):
        told.change_class(digits(1), [2])
    assert told.change_class(digits(1), 2, 1, output_type="pt").images.shape == (1, 1, 8, 8)


def test_a_trained_model_denoises_better_than_a_filter(editing):
    images = digits(200)
    for std in (0.2, 0.5):
        noisy = images + std * noise_like(images)
        error = (editing.denoise(noisy, noise_std=std, output_type="pt").images - images).square().mean()
        filtered = [gaussian_filter(noisy, width, axes=(2, 3)) for width in (0.3, 0.5, 0.7, 1.0)]
        assert error < 0.6 * min((torch.from_numpy(f).clamp(0, 1) - images).square().mean() for f in filtered)
    steps = editing.denoise(noisy, noise_std=0.5, num_inference_steps=10, output_type="pt").images
    assert error < (steps - images).square().mean(), "where much is unknown, one step has the smaller error"


def test_an_image_followed_to_its_noise_and_back_is_the_same(editing):
    images, labels = digits(50), load_images("digits", split="train[80%:]").labels[:50]
    options = {"source_class_labels": labels.tolist(), "guidance_scale": 1.0, "strength": 0.8, "output_type": "pt"}
    same = editing.change_class(images, labels.tolist(), num_inference_steps=100, **options).images
    other = editing.change_class(images, ((labels + 5) % 10).tolist(), num_inference_steps=100, **options).images
    error, change = ((x - images).abs().mean().item() for x in (same, other))
    assert error < 0.03
    assert change > 3 * error


def test_a_trained_model_changes_the_class(editing, judge_run):
    images, judge = digits(100), load_judge(str(judge_run))
    seen = judge.extract((images * 255).to(torch.uint8))[1].argmax(1)
    wanted = (seen + 5) % 10
    changed = editing.change_class(images, wanted.tolist(), seen.tolist(), guidance_scale=3.0, output_type="pt").images
    now = judge.extract((changed * 255).to(torch.uint8))[1].argmax(1)
    assert (now == wanted).float().mean() > 0.6


def test_the_command_changes_files_and_folders(run, tmp_path, capsys):
    images = (digits(3) * 255).to(torch.uint8)
    save_images(images, tmp_path / "given")
    mask = PIL.Image.fromarray(np.uint8([[0, 255]])).resize((8, 8), PIL.Image.Resampling.NEAREST)
    mask.save(tmp_path / "mask.png")
    flags = {
        "denoise": ["--noise_std", "0.1"],
        "vary": ["--strength", "0.3", "--num_inference_steps", "3"],
        "inpaint": ["--mask", str(tmp_path / "mask.png"), "--num_inference_steps", "3"],
        "change_class": ["--class_labels", "3", "--num_inference_steps", "3"],
    }
    results = {}
    for task, options in flags.items():
        command = ["translate", str(run), "--task", task, "--input", str(tmp_path / "given"), *options]
        for name in (f"{task}.npz", f"{task}.png", task):
            assert main([*command, "--output", str(tmp_path / name)]) == 0, capsys.readouterr().err
        results[task] = torch.from_numpy(np.load(tmp_path / f"{task}.npz")["images"])[:, None]
        singles = [np.asarray(PIL.Image.open(path)) for path in sorted((tmp_path / task).iterdir())]
        assert np.array_equal(np.stack(singles), results[task][:, 0].numpy())
        with PIL.Image.open(tmp_path / f"{task}.png") as picture:
            assert picture.size[1] == 2 * 132
            assert picture.size[0] > 3 * 132, "the names of the rows"
    assert results["inpaint"][..., :4].equal(images[..., :4])
    assert not any(results[task].equal(images) for task in flags)
    inverted = ["--task", "change_class", "--class_labels", "3", "--num_inference_steps", "3"]
    from_one = ["translate", str(run), *inverted, "--source_class_labels", "1", "--input", str(tmp_path / "given")]
    assert main([*from_one, "--output", str(tmp_path / "from_one.npz")]) == 0
    assert not np.array_equal(np.load(tmp_path / "from_one.npz")["images"], results["change_class"][:, 0].numpy())
    single = ["translate", str(run), "--task", "denoise", "--input", str(tmp_path / "given" / "00000.png")]
    assert main([*single, "--noise_std", "0.1", "--output", str(tmp_path / "single.npz")]) == 0
    assert np.array_equal(np.load(tmp_path / "single.npz")["images"], results["denoise"][:1, 0].numpy())


@pytest.mark.parametrize("task", ["vary", "inpaint"])
def test_images_of_hfgen_sample_are_changed_by_noise_other_than_their_own(run, tmp_path, task):
    """Mixed again with the noise that they were drawn from, they would hardly change."""
    PIL.Image.new("L", (8, 8), 255).save(tmp_path / "mask.png")
    options = {"vary": ["--strength", "0.9"], "inpaint": ["--mask", str(tmp_path / "mask.png")]}[task]
    drawn = ["sample", str(run), "--num_images", "20", "--scheduler", "ddim" if "v_pred" in run.name else "flow_euler"]
    assert main([*drawn, "--output", str(tmp_path / "drawn.npz")]) == 0
    given = np.load(tmp_path / "drawn.npz")
    options += ["--num_inference_steps", "8", "--class_labels", *(str(label) for label in given["labels"])]
    command = ["translate", str(run), "--task", task, *options]
    changes = []
    for seed in ([], ["--seed", "1"]):
        output = tmp_path / f"{len(seed)}.npz"
        assert main([*command, "--input", str(tmp_path / "drawn.npz"), *seed, "--output", str(output)]) == 0
        difference = np.load(output)["images"] / 255 - given["images"] / 255
        changes.append(np.square(difference).mean())
    assert changes[0] == pytest.approx(changes[1], rel=0.2)


def test_what_cannot_be_read_is_left_out_and_named(conditional_run, tmp_path, capsys):
    save_images((digits(2) * 255).to(torch.uint8), tmp_path / "given")
    (tmp_path / "given" / "00000.png").rename(tmp_path / "given" / "seven.png")
    (tmp_path / "given" / "broken.png").write_bytes(b"no picture")
    command = ["translate", str(conditional_run("v_prediction")), "--input", str(tmp_path / "given")]
    assert main([*command, "--task", "vary", "--num_inference_steps", "2", "--output", str(tmp_path / "made")]) == 1
    assert "broken.png" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["00001.png", "seven.png"]


def test_noise_is_not_resized(conditional_run, tmp_path, capsys):
    PIL.Image.new("L", (16, 16), 128).save(tmp_path / "larger.png")
    command = ["translate", str(conditional_run("v_prediction")), "--input", str(tmp_path / "larger.png")]
    options = ["--num_inference_steps", "2", "--output", str(tmp_path / "out.png")]
    assert main([*command, "--task", "denoise", "--noise_std", "0.2", *options]) == 2
    assert "larger has 16×16 pixels, the model needs 8×8; resizing would change noise_std" in capsys.readouterr().err
    assert main([*command, "--task", "denoise", *options]) == 0, "estimated after it"


@pytest.mark.parametrize("options", [[], ["--task", "denoise"]])
def test_a_model_that_changes_no_images_is_refused(options, tmp_path, capsys):
    model = VAEPipeline(VAEModel(8, latent_dim=2, hidden_sizes=[4]), GaussianMixtureModel(2, 1))
    save_pipeline(model, tmp_path / "vae")
    PIL.Image.new("L", (8, 8)).save(tmp_path / "a.png")
    command = ["translate", str(tmp_path / "vae"), "--input", str(tmp_path / "a.png"), *options]
    assert main([*command, "--output", str(tmp_path / "b.png")]) == 2
    assert "is a VAE, which generates images from latents; translate needs" in capsys.readouterr().err


@pytest.mark.parametrize(("options", "message"), [
    (["--task", "inpaint"], "the task inpaint needs --mask"),
    (["--task", "change_class"], "the task change_class needs --class_labels"),
    (["--task", "vary", "--noise_std", "1"], "noise_std needs the task denoise, not vary"),
    (["--task", "denoise", "--strength", "1"], "strength needs the task change_class or vary, not denoise"),
    (["--task", "vary", "--class_labels", "1", "2"], "one for each of the 3 images, not 2"),
    (["--task", "vary", "--class_labels", "cow"], "has no class cow; its classes are 0, 1, 2"),
    (["--task", "vary", "--source_class_labels", "1"], "source_class_labels needs the task change_class, not"),
    (["--task", "denoise", "--noise_std", "-1"], "noise_std must be from 0 to"),
    (["--task", "vary", "--strength", "2"], "strength must be above 0 and at most 1, not 2"),
    (["--task", "vary", "--num_inference_steps", "0"], "num_inference_steps must be positive, not 0"),
    (["--task", "vary", "--output", "x.gif"], "output must end in .png or .npz, or be a folder, not x.gif"),
])  # fmt: skip
def test_mistakes_get_one_message(conditional_run, tmp_path, capsys, options, message):
    save_images((digits(3) * 255).to(torch.uint8), tmp_path / "given")
    output = [] if "--output" in options else ["--output", str(tmp_path / "out.png")]
    command = ["translate", str(conditional_run("v_prediction")), "--input", str(tmp_path / "given"), *output]
    assert main([*command, *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()


def test_drawings_in_black_on_white_are_mentioned_and_can_be_inverted(conditional_run, tmp_path, capsys):
    images = (digits(2) * 255).to(torch.uint8)
    save_images(images, tmp_path / "usual")
    save_images(255 - images, tmp_path / "drawn")
    np.savez(tmp_path / "drawn.npz", images=255 - images[:, 0].numpy())
    command = ["translate", str(conditional_run("v_prediction")), "--task", "vary", "--num_inference_steps", "2"]
    made, warned = {}, {}
    for name, source in {
        "usual": ["usual"], "drawn": ["drawn"], "inverted": ["drawn", "--invert"], "npz": ["drawn.npz", "--invert"],
    }.items():  # fmt: skip
        source[0] = str(tmp_path / source[0])
        assert main([*command, "--input", *source, "--output", str(tmp_path / f"{name}-made.npz")]) == 0
        made[name] = np.load(tmp_path / f"{name}-made.npz")["images"]
        warned[name] = "--invert inverts the input" in capsys.readouterr().err
    assert warned == {"usual": False, "drawn": True, "inverted": False, "npz": False}
    assert np.array_equal(made["usual"], made["inverted"])
    assert np.array_equal(made["usual"], made["npz"])
    assert not np.array_equal(made["usual"], made["drawn"])


def test_what_models_are_usually_given_is_known_without_a_network(tmp_path, monkeypatch):
    save_images(torch.full((3, 1, 8, 8), 204, dtype=torch.uint8), tmp_path / "bright")
    fields = {"dataset_name": None, "train_data_dir": str(tmp_path / "bright"), "cache_dir": str(tmp_path / "cache")}
    bright = TranslationConfig(output_dir="x", degradation=["blur=1"], **fields).to_dict()
    assert _usual_border(bright) == pytest.approx(0.8)
    assert _usual_border(bright | {"degradation": ["invert"]}) == pytest.approx(0.2)
    assert _usual_border(bright | {"input_column": "other"}) is None
    assert _usual_border(bright | {"train_data_dir": str(tmp_path / "gone")}) is None
    monkeypatch.setattr("hfgen.sampling.edit.load_images", lambda *_, **__: pytest.fail("asked for the images"))
    assert _usual_border({"dataset_name": "mnist"}) == 0
    assert [_usual_border(run) for run in ({}, {"dataset_name": "cifar10"}, {"dataset_name": "user/set"})] == [
        None
    ] * 3
