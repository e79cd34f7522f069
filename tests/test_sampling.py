"""Any fitting scheduler draws from the model; what does not fit is refused; the same seed gives the same images."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel

from hfgen.cli.main import main
from hfgen.config import DDPMConfig
from hfgen.pipelines.pipeline_hfgen_class_conditional_diffusion import start_denoising
from hfgen.sampling.sample import film, sample
from hfgen.sampling.schedulers import (
    SHORT_NAMES,
    OracleDenoiser,
    denoising_states,
    is_compatible,
    make_scheduler,
    suitable_schedulers,
)
from hfgen.tasks.diffusion import make_noise_schedule
from hfgen.utils.errors import UserError
from hfgen.utils.seeds import derive_seed


def make_pipeline(channels=1, prediction_type="epsilon", beta_schedule="linear", size=8) -> DDPMPipeline:
    torch.manual_seed(0)
    unet = UNet2DModel(sample_size=size, in_channels=channels, out_channels=channels, block_out_channels=(8, 8),
                       layers_per_block=1, norm_num_groups=8, down_block_types=("DownBlock2D",) * 2,
                       up_block_types=("UpBlock2D",) * 2)  # fmt: skip
    scheduler = DDPMScheduler(
        prediction_type=prediction_type, beta_schedule=beta_schedule, timestep_spacing="trailing"
    )
    return DDPMPipeline(unet=unet, scheduler=scheduler)


def images_of(pipeline, **options):
    settings = {"num_images": 3, "num_inference_steps": 4, "scheduler": "ddim"} | options
    return torch.cat(list(sample(pipeline, **settings)))


@pytest.mark.parametrize("name", ["ddim", "dpmsolver", "euler_a", "heun", "unipc"])
def test_a_model_is_drawn_from_alike_before_and_after_it_was_saved(name, tmp_path):
    fresh = make_pipeline(prediction_type="v_prediction").scheduler
    fresh.save_pretrained(tmp_path)
    made = [make_scheduler(name, own, 4) for own in (fresh, DDPMScheduler.from_pretrained(tmp_path))]
    assert json.loads(made[0].to_json_string()) == json.loads(made[1].to_json_string())


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("beta_schedule", ["linear", "squaredcos_cap_v2"])
def test_listed_schedulers_work_and_others_are_refused(prediction_type, beta_schedule):
    pipeline = make_pipeline(prediction_type=prediction_type, beta_schedule=beta_schedule)
    listed = suitable_schedulers(pipeline.scheduler, 4)
    solvers = {"dpmsolver", "euler", "heun", "unipc"}
    # where the last level is nothing but noise, a small error in it is a large one in the image
    fragile = (prediction_type, beta_schedule) == ("epsilon", "squaredcos_cap_v2")
    assert {"ddpm", "ddim"} <= set(listed)
    assert solvers & set(listed) == (set() if fragile else solvers)
    for name in listed:
        assert torch.isfinite(images_of(pipeline, scheduler=name, num_images=1).float()).all()
    unfit = sorted(SHORT_NAMES.keys() - set(listed))[:1]  # each refusal tries them all anew
    for name in [*unfit, "EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler"]:
        with pytest.raises(
            UserError, match=f"{name} is not compatible .*{prediction_type} and .*, in 4 steps; these are: .*ddim"
        ):
            make_scheduler(name, pipeline.scheduler, 4)


def test_a_misspelt_scheduler_gets_a_suggestion():
    with pytest.raises(UserError, match=r"no scheduler foo\. Compatible with this model: .*ddim"):
        make_scheduler("foo", make_pipeline().scheduler, 4)
    with pytest.raises(UserError, match=r"no scheduler unipcc; did you mean unipc\? Compatible with this .*ddim"):
        make_scheduler("unipcc", make_pipeline().scheduler, 4)
    with pytest.raises(UserError, match=r"did you mean dpmsolver\?"):
        make_scheduler("dpm", make_pipeline().scheduler, 4)


def test_a_scheduler_that_takes_the_prediction_for_another_kind_is_found_out():
    scheduler = DDPMScheduler(prediction_type="v_prediction")
    assert is_compatible(scheduler, scheduler, 25)
    original = scheduler.step
    scheduler.step = lambda output, *a, **k: original(-output, *a, **k)
    assert not is_compatible(scheduler, scheduler, 25)


@pytest.mark.parametrize("num_train_timesteps", [25, 500, 1000])
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
def test_noise_levels_end_in_noise_and_are_the_same_for_every_scheduler(beta_schedule, num_train_timesteps):
    config = DDPMConfig(dataset_name="digits", output_dir="none", prediction_type="v_prediction",
                        beta_schedule=beta_schedule, num_train_timesteps=num_train_timesteps)  # fmt: skip
    own = make_noise_schedule(config)
    assert len(own.alphas_cumprod) == num_train_timesteps
    assert own.alphas_cumprod[-1].sqrt() < 0.03
    for name in ("ddpm", "unipc", "euler", "heun"):
        made = make_scheduler(name, own, 5)
        torch.testing.assert_close(made.alphas_cumprod, own.alphas_cumprod, msg=name)
        made.set_timesteps(5)
        assert made.timesteps[0] == num_train_timesteps - 1, "the first step is from pure noise"


def test_a_model_without_stated_betas_keeps_its_own_with_every_scheduler():
    own = DDPMScheduler()  # those of Heun are others by default
    assert make_scheduler("heun", own, 5).alphas_cumprod.equal(own.alphas_cumprod)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "unipc"])
def test_a_number_of_steps_that_diffusers_rounds_wrongly_asks_for_no_level_below_the_first(name):
    own = make_pipeline().scheduler
    scheduler, image = make_scheduler(name, own, 61), torch.linspace(-1, 1, 16).view(1, 1, 4, 4)
    asked = []

    def model(x, timestep):
        asked.append(int(timestep))
        return OracleDenoiser(image, own)(x, timestep)

    *_, (made, _) = denoising_states(model, scheduler, 61, image.shape, [0])
    assert min(asked) >= 0
    assert asked == sorted(set(asked), reverse=True)
    torch.testing.assert_close(made, image, atol=0.03, rtol=0)


def test_a_short_name_says_what_kind_of_solver():
    own = make_pipeline().scheduler
    stochastic = make_scheduler("dpmsolver_sde", own, 4)
    assert stochastic.config.algorithm_type == "sde-dpmsolver++"
    assert make_scheduler("dpmsolver", stochastic, 4).config.algorithm_type == "dpmsolver++", "whatever was saved"
    first, second, other = (images_of(make_pipeline(), scheduler="dpmsolver_sde", seed=seed) for seed in (0, 0, 1))
    assert first.equal(second)
    assert not first.equal(other)


def test_too_few_steps_for_a_scheduler_are_refused():
    with pytest.raises(UserError, match="pndm is not compatible .*, in 2 steps; these are: ddim"):
        images_of(make_pipeline(), scheduler="pndm", num_inference_steps=2)


def test_few_steps_along_a_flow_are_of_one_size():
    scheduler = make_scheduler("flow_euler", FlowMatchEulerDiscreteScheduler(), 4)
    start_denoising(scheduler, 4, torch.zeros(1, 1, 8, 8))
    assert scheduler.sigmas.tolist() == [1, 0.75, 0.5, 0.25, 0]


@pytest.mark.parametrize("channels", [1, 3])
def test_ddpm_is_the_stock_pipeline_to_the_bit(channels):
    pipeline = make_pipeline(channels)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(derive_seed("image", 5, i)) for i in range(3)]
    stock = pipeline(3, generator=generators, num_inference_steps=6, output_type="np").images
    ours = images_of(pipeline, scheduler="ddpm", num_inference_steps=6, seed=5)
    assert np.array_equal((stock * 255).round().astype(np.uint8), ours.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("scheduler", ["ddpm", "unipc"])
def test_an_image_depends_on_its_seed_only(scheduler):
    pipeline = make_pipeline()
    together = images_of(pipeline, num_images=5, scheduler=scheduler)
    in_twos = images_of(pipeline, num_images=5, scheduler=scheduler, batch_size=2)
    assert (together.int() - in_twos.int()).abs().max() <= 1
    assert len({image.numpy().tobytes() for image in together}) == 5
    other = images_of(pipeline, num_images=5, seed=1, scheduler=scheduler)
    assert not {image.numpy().tobytes() for image in together} & {image.numpy().tobytes() for image in other}


def test_frames_are_spread_over_the_denoising_and_end_with_the_images():
    pipeline = make_pipeline()
    frames, estimates = film(pipeline, num_images=2, num_inference_steps=20, scheduler="ddim", num_frames=5)
    assert frames.shape == estimates.shape == (5, 2, 1, 8, 8)
    assert frames[-1].equal(images_of(pipeline, num_images=2, num_inference_steps=20))
    assert estimates[-1].equal(frames[-1])
    distances = [(frame.float() - frames[-1].float()).abs().mean() for frame in frames]
    assert distances == sorted(distances, reverse=True)


def test_every_scheduler_yields_what_the_network_sees():
    """Some solvers keep x₀ + σε, with σ in the thousands, of which a film would show nothing but black and white."""
    own = make_pipeline(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2").scheduler
    image = torch.linspace(-1, 1, 256).view(1, 1, 16, 16)
    for name in ("ddim", "euler", "heun", "unipc"):
        scheduler = make_scheduler(name, own, 20)
        pairs = list(denoising_states(OracleDenoiser(image, own), scheduler, 20, image.shape, seeds=[0]))
        states, estimates = zip(*pairs, strict=True)
        assert all((estimate - image).abs().max() < 0.1 for estimate in estimates), "the oracle knows the image"
        assert all(0.4 < state.std() < 1.3 for state in states), name
        assert (states[-1] - image).abs().max() < 0.1, name


def test_many_images_are_denoised_in_parts_on_a_cpu():
    pipeline, shown = make_pipeline(), []
    pipeline.unet.register_forward_pre_hook(lambda _, arguments: shown.append(len(arguments[0])))
    together = images_of(pipeline, num_images=130, batch_size=130, num_inference_steps=1)
    assert shown == [128, 2]
    alone = images_of(pipeline, num_images=130, num_inference_steps=1)
    assert (together.int() - alone.int()).abs().max() <= 1


def test_too_many_steps_are_refused():
    with pytest.raises(UserError, match="from 1 to 1000, not 1001"):
        images_of(make_pipeline(), num_inference_steps=1001)


@pytest.mark.parametrize("channels", [1, 3])
def test_outputs(tmp_path, channels, capsys):
    make_pipeline(channels).save_pretrained(tmp_path / "model")
    arguments = ["sample", str(tmp_path / "model"), "--num_images", "5", "--num_inference_steps", "3", "--output"]
    for name in ("grid.png", "images.npz", "folder"):
        assert main([*arguments, str(tmp_path / name)]) == 0
        assert f"5 images are in {tmp_path / name}" in capsys.readouterr().out
    for name in ("film.gif", "film.png"):
        assert main([*arguments, str(tmp_path / name), "--film"]) == 0
        assert f"The denoising of 5 images is in {tmp_path / name}" in capsys.readouterr().out
    arrays = np.load(tmp_path / "images.npz")["images"]
    assert arrays.shape == ((5, 8, 8) if channels == 1 else (5, 8, 8, 3))
    assert arrays.dtype == np.uint8
    singles = [PIL.Image.open(path) for path in sorted((tmp_path / "folder").iterdir())]
    assert np.array_equal(np.stack([np.asarray(single) for single in singles]), arrays)
    grid = np.asarray(PIL.Image.open(tmp_path / "grid.png").convert("RGB"))
    assert grid.shape == (2 * 132, 3 * 132, 3), "2 rows, 3 columns, 128 pixels each and the gaps"
    first = arrays[0] if channels == 3 else np.repeat(arrays[0][..., None], 3, axis=2)
    assert np.array_equal(grid[2:130:16, 2:130:16], first)
    with PIL.Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames > 1
        assert film.size == (2 * (3 * 68 + 4), 2 * 68 + 4 + 24), "two grids of 64 pixels each, and their names"
    strip = np.asarray(PIL.Image.open(tmp_path / "film.png").convert("RGB"))
    assert strip.shape[0] == 5 * 2 * 132, "two rows for each image"
    for row in (2, 3):
        assert np.array_equal(strip[row * 132 + 2 : row * 132 + 130 : 16, -130:-2:16], grid[2:130:16, 134:262:16]), (
            "the image last"
        )
    assert main([*arguments, str(tmp_path / "film.npz"), "--film"]) == 2
    assert "film needs an output that ends in .gif or .png, not" in capsys.readouterr().err


def test_pickled_weights_are_refused(tmp_path, capsys):
    make_pipeline().save_pretrained(tmp_path, safe_serialization=False)
    assert main(["sample", str(tmp_path)]) == 2
    assert "cannot load a pipeline" in capsys.readouterr().err
