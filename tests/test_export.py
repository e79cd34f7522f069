"""`hfgen export`: every family runs elsewhere, without hfgen or torch, and makes the same images."""

import json
import shutil

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from conftest import TINY, TINY_FLOW_MAP, TINY_VAE
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

import hfgen
from hfgen.cli.main import main
from hfgen.config import CycleGANConfig, DDPMConfig, FlowMapConfig, VAEConfig
from hfgen.data.images import load_images
from hfgen.pipelines.loading import load
from hfgen.pipelines.pipeline_hfgen_class_conditional_diffusion import start_denoising
from hfgen.runtimes.networks import networks_of
from hfgen.runtimes.sampler_table import denoise_by_table, sampler_table
from hfgen.sampling.sample import sample, to_uint8
from hfgen.sampling.schedulers import denoising_states, make_scheduler
from hfgen.tasks.cyclegan import CycleGANTask
from hfgen.tasks.diffusion import DiffusionTask
from hfgen.tasks.flow_map import FlowMapTask
from hfgen.tasks.vae import VAETask
from hfgen.utils.errors import UserError
from hfgen.utils.seeds import derive_seed

FAMILIES = [
    "classes",
    "unconditional",
    "clusters",
    "vae",
    "vae with a mixture",
    "vae with a flow",
    "ladder vae",
    "flow map",
    "gan",
    "translation",
]
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory, conditional_run, vae_run, short_flow_vae, gan_run, translation_run) -> dict:
    """A model of each family by name."""
    folder = tmp_path_factory.mktemp("models")
    flow = TINY | {"prediction_type": "flow_prediction", "guidance_interval": [0.0, 0.7]}
    for name, fields in {
        "unconditional": {"add_attention": True, "attention_levels": [1]},
        "clusters": {"num_clusters": 5},
    }.items():
        config = DDPMConfig(**flow | fields | {"output_dir": str(folder)})
        DiffusionTask(config, load_images("digits")).save(folder / name)
    task = FlowMapTask(FlowMapConfig(**TINY_FLOW_MAP, output_dir=str(folder)), load_images("digits"))
    task.save(folder / "flow_map")
    ladder = {"block_out_channels": [8], "ladder_channels": [1], "latent_dim": 20}
    for name, fields in {"ladder": ladder, "mixture": {"prior": "mixture"}}.items():
        VAETask(VAEConfig(**TINY_VAE | fields, output_dir=str(folder)), load_images("digits")).save(folder / name)
    return {
        "classes": conditional_run("flow_prediction"),
        "unconditional": folder / "unconditional",
        "clusters": folder / "clusters",
        "vae": vae_run,
        "vae with a mixture": folder / "mixture",
        "vae with a flow": short_flow_vae,
        "ladder vae": folder / "ladder",
        "flow map": folder / "flow_map",
        "gan": gan_run,
        "translation": translation_run,
    }


@pytest.fixture(scope="module")
def exported(models, tmp_path_factory):
    """A function that exports a model once."""
    done = {}

    def export(name: str, **options):
        key = (name, *options.items())
        if key not in done:
            done[key] = hfgen.export(models[name], output=tmp_path_factory.mktemp(name), **options)
        return done[key]

    return export


def python_of(folder) -> str:
    return (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_onnx_makes_what_torch_makes(exported, name):
    model = json.loads((exported(name) / "model.json").read_text())
    assert model["files"]
    for file in model["files"].values():
        assert file["difference_from_torch"] < 1e-4
        assert file["bytes"] == (exported(name) / file["file"]).stat().st_size


@pytest.mark.parametrize("name", FAMILIES)
def test_the_code_of_the_page_draws_with_onnxruntime_alone(exported, name, without_hfgen):
    folder = exported(name)
    without_hfgen.python(WITHOUT_TORCH + python_of(folder), folder=folder)
    with PIL.Image.open(folder / "images.png") as image:
        assert image.size == (80, 8)
        assert np.asarray(image).std() > 10
    (folder / "images.png").unlink()


@pytest.mark.parametrize("name", ["classes", "vae with a flow", "ladder vae"])
def test_the_code_of_the_page_draws_with_torch_export(exported, name, without_hfgen):
    folder = exported(name, format="torch_export")
    without_hfgen.python(python_of(folder), folder=folder)
    with PIL.Image.open(folder / "images.png") as image:
        assert image.size == (80, 8)
    model = json.loads((folder / "model.json").read_text())
    assert all(file["difference_from_torch"] < 1e-4 for file in model["files"].values())


def test_the_images_are_those_of_hfgen(exported, models):
    """The same noise, the sampler's table and the guidance of model.json, and the network in onnxruntime."""
    import onnxruntime

    folder = exported("classes")
    model = json.loads((folder / "model.json").read_text())
    session = onnxruntime.InferenceSession(folder / "unet.onnx")
    noise = [
        torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(derive_seed("image", 0, i))) for i in range(10)
    ]
    first, last = model["guidance_interval"]

    def ask(x, timestep, labels):
        inputs = {"sample": x.numpy(), "timestep": timestep.float().reshape(1).numpy(), "class_labels": labels}
        return torch.from_numpy(session.run(None, inputs)[0])

    def predict(x, timestep):
        asked = ask(x, timestep, np.arange(10))
        if not first <= timestep / model["num_train_timesteps"] <= last:
            return asked
        return torch.lerp(ask(x, timestep, np.full(10, model["null_label"])), asked, model["guidance_scale"])

    images = to_uint8(denoise_by_table(model["sampler"], torch.cat(noise), predict))
    options = {name: model[name] for name in ("guidance_scale", "guidance_interval")}
    options |= {name: model["sampler"][name] for name in ("scheduler", "num_inference_steps")}
    (expected,) = sample(load(str(models["classes"])), num_images=10, **options)
    assert (images.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("name", ["ddim", "dpmsolver", "unipc", "euler", "heun"])
@pytest.mark.parametrize("prediction", ["v_prediction", "flow"])
def test_a_table_is_its_sampler(name, prediction):
    if prediction == "flow":
        own = FlowMatchEulerDiscreteScheduler()
        name = {"euler": "flow_euler", "heun": "flow_heun", "ddim": "unipc"}.get(name, name)
    else:
        own = DDPMScheduler(prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing")
    noise = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(3))

    def model(x, timestep):
        return torch.cos(x * 2) - 0.3 * x

    scheduler = make_scheduler(name, own, 7)
    *_, (expected, _) = denoising_states(model, scheduler, 7, (1, 1, 4, 4), [3])
    assert (denoise_by_table(sampler_table(own, name, 7), noise, model) - expected).abs().max() < 1e-4
    assert start_denoising(scheduler, 7, noise).shape == noise.shape


@pytest.mark.parametrize("steps", [10, 20, 50])
def test_a_sampler_that_clips_has_no_table(steps):
    own = DDPMScheduler(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing")
    with pytest.raises(UserError, match="scheduler ddim cannot be exported as a table"):
        sampler_table(own, "ddim", steps)


@pytest.mark.parametrize("name", ["dpmsolver_sde", "ddpm", "euler_a"])
def test_a_sampler_that_adds_noise_has_no_table(name):
    own = DDPMScheduler(prediction_type="v_prediction", timestep_spacing="trailing")
    with pytest.raises(UserError, match=f"scheduler {name} cannot be exported as a table"):
        sampler_table(own, name, 10)


def test_half_precision_halves_the_files(exported):
    whole, half = (json.loads((exported("gan", **options) / "model.json").read_text())["files"]["generator"]
                   for options in ({}, {"dtype": "float16"}))  # fmt: skip
    assert half["bytes"] < 0.8 * whole["bytes"]
    assert 0 < half["difference_from_torch"] < 0.05


def test_a_flow_in_half_precision(exported):
    files = json.loads((exported("vae with a flow", dtype="float16") / "model.json").read_text())["files"]
    assert files.keys() == {"encoder", "decoder", "flow"}
    assert 0 < files["flow"]["difference_from_torch"] < 0.05


def test_int8_is_smaller(exported):
    whole, small = (json.loads((exported("gan", **options) / "model.json").read_text())["files"]["generator"]
                    for options in ({}, {"dtype": "int8"}))  # fmt: skip
    assert small["bytes"] < 0.5 * whole["bytes"]


def test_both_directions_of_an_unpaired_translator(tmp_path):
    config = CycleGANConfig(
        dataset_name="digits", target_dataset_name="digits", output_dir=str(tmp_path), block_out_channels=[8, 16]
    )
    CycleGANTask(config, load_images("digits")).save(tmp_path / "model")
    networks = networks_of(load(str(tmp_path / "model")))
    assert networks.keys() == {"generator", "inverse_generator"}
    there, back = (network.module(**network.inputs) for network in networks.values())
    assert there.shape == back.shape == (2, 1, 8, 8)
    assert not there.equal(back)


@pytest.mark.parametrize(("name", "flags", "message"), [
    ("classes", ["--num_inference_steps", "5000"], "num_inference_steps must be from 1 to"),
    ("vae", ["--num_inference_steps", "5"], "has no denoising steps; leave out num_inference_steps"),
    ("gan", ["--dtype", "int8", "--format", "torch_export"], "dtype int8 needs the format onnx"),
])  # fmt: skip
def test_misfits_are_refused_before_a_file_is_written(models, tmp_path, capsys, name, flags, message):
    assert main(["export", str(models[name]), "--output", str(tmp_path / "out"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_only_an_export_in_the_same_format_is_replaced(models, exported, tmp_path, capsys):
    run = shutil.copytree(models["gan"], tmp_path / "run")
    with pytest.raises(UserError, match="is not empty and holds no export in onnx"):
        hfgen.export(run, output=run)
    again = shutil.copytree(exported("gan"), tmp_path / "again")
    with pytest.raises(UserError, match="is not empty and holds no export in torch_export"):
        hfgen.export(run, output=again, format="torch_export")
    hfgen.export(run, output=again)
    assert f"replaces the export in {again}" in capsys.readouterr().err


def test_what_is_of_no_family_is_refused(models):
    pipeline = load(str(models["unconditional"]))
    with pytest.raises(UserError, match="hfgen cannot export a DDIMPipeline"):
        networks_of(DDIMPipeline(pipeline.unet, DDIMScheduler()))


def test_an_exported_gan_keeps_its_truncation(models, tmp_path, without_hfgen):
    run = shutil.copytree(models["gan"], tmp_path / "run")
    index = json.loads((run / "model_index.json").read_text()) | {"truncation": 0.5}
    (run / "model_index.json").write_text(json.dumps(index))
    config = yaml.safe_load((run / "config.yaml").read_text()) | {"truncation": 0.5}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    folder = hfgen.export(run, output=tmp_path / "exported")
    code = WITHOUT_TORCH + python_of(folder) + "\nassert 0 < abs(latents).max() <= 0.5"
    without_hfgen.python(code, folder=folder)


def test_a_missing_package_is_named(models, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"needs the package onnxscript: pip install 'hfgen\[export\]'"):
        hfgen.export(models["vae"], output=tmp_path / "out")


def test_an_export_that_fails_leaves_nothing(vae_run, tmp_path, monkeypatch):
    found = iter([0.0, 1.0])  # the second network differs
    monkeypatch.setattr("hfgen.runtimes.write._difference", lambda network, run: next(found))
    with pytest.raises(UserError, match="differs from torch by 1"):
        hfgen.export(vae_run, output=tmp_path / "model")
    assert not any((tmp_path / "model").iterdir())
