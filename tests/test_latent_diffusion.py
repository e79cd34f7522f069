"""Latent diffusion: a VAE with spatial latents, and a diffusion model of them that is one pipeline with it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from conftest import CONDITIONAL, TINY_VAE, train_conditional, train_vae
from safetensors.torch import load_file
from torch import Tensor

import hfgen
from hfgen.cli.main import main
from hfgen.config import DDPMConfig, VAEConfig
from hfgen.data.images import load_images, load_training_images
from hfgen.data.loader import Batch
from hfgen.evaluation.generated import _key, origin_of
from hfgen.families import families
from hfgen.losses.diffusion import alpha_sigma
from hfgen.models.modeling_hfgen_vae import SpatialVAEModel, VAEModel
from hfgen.pipelines.loading import load
from hfgen.pipelines.pipeline_hfgen_class_conditional_diffusion import GuidedModel
from hfgen.publishing.facts import read_run
from hfgen.runs.folder import ANIMATION, FIGURES, run_fields
from hfgen.sampling.sample import check_sampling, default_sampler, film, image_seed, image_shape_of, sample
from hfgen.serving.library import Entry, LoadedModel
from hfgen.serving.trainings import form_of
from hfgen.tasks.diffusion import DiffusionTask, load_vae
from hfgen.tasks.vae import VAETask
from hfgen.training.processes import as_found
from hfgen.training.validation import Validation
from hfgen.utils.errors import UserError

SPATIAL = {
    "spatial_latents": True, "latent_dim": 2 * 4 * 4, "block_out_channels": [16], "layers_per_block": 1,
    "hidden_sizes": [400], "act_fn": "silu", "pixel_distribution": "gaussian_analytic", "optimizer": "muon",
    "max_train_steps": 200, "num_mixture_components": 1,
}  # fmt: skip
LATENT = {
    "prediction_type": "flow_prediction", "random_flip": True, "max_train_steps": 40, "checkpointing_steps": 20,
    "num_inference_steps": 4,
}  # fmt: skip
DRAW = """
import sys, numpy as np, torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
options = {"output_type": "np", "generator": torch.Generator().manual_seed(0)}
asked = {"class_labels": [3, 5]} if "classes" in sys.argv[1] else {"batch_size": 2}
np.save(sys.argv[2], pipe(**asked, **options).images)
"""
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def vae_run(trained_once) -> Path:
    """A small VAE of digits with 2·4·4 latents."""
    return trained_once("spatial_vae", train_vae, **SPATIAL)


@pytest.fixture(scope="module")
def runs(vae_run, trained_once) -> dict[str, Path]:
    """Small diffusion models of these latents, by what they are told of the images."""
    fields = LATENT | {"vae": str(vae_run)}
    clusters = {"class_conditional": False, "num_clusters": 5, "max_train_steps": 3}
    return {
        "classes": trained_once("latent_classes", train_conditional, **fields),
        "clusters": trained_once("latent_clusters", train_conditional, **fields | clusters),
    }


@pytest.fixture
def run(runs) -> Path:
    return runs["classes"]


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Images that were not trained on, uint8 (N, 1, 8, 8)."""
    return load_images("digits", split="train[80%:]").images


def task_of(run: Path, **fields) -> DiffusionTask:
    """Return the task of a latent diffusion model of digits."""
    return DiffusionTask(DDPMConfig(**CONDITIONAL | LATENT | {"vae": str(run), "output_dir": "x"} | fields), digits())


def digits():
    """Return the images of the task."""
    return load_images("digits", split="train[:80%]")


# --- the VAE


def test_each_latent_stands_for_a_place():
    torch.manual_seed(0)
    vae = SpatialVAEModel(16, 1, 3 * 4 * 4, block_out_channels=[8, 8], layers_per_block=0).eval()
    assert vae.latent_shape == (3, 4, 4)
    image = torch.rand(1, 1, 16, 16)
    other = image.clone()
    other[..., :4, :4] += 1
    changed = (vae.encode_map(image) != vae.encode_map(other)).any(1)[0]
    assert changed[:2, :2].all()
    assert not changed[2:].any()
    assert not changed[:, 2:].any()
    latents = vae.encode_map(image)
    moved = latents.clone()
    moved[..., 0, 0] += 1
    changed = (vae.decode_map(latents) != vae.decode_map(moved)).any(1)[0]
    assert changed[:4, :4].all()
    assert not changed[10:].any()
    assert not changed[:, 10:].any()


def test_a_vae_with_spatial_latents_learns_digits_and_does_what_others_do(vae_run, images, tmp_path):
    pipeline = load(str(vae_run))
    pixels = images.float() / 255
    again = pipeline.reconstruct(pixels, output_type="pt").images
    assert (again - pixels).square().mean() < 0.3 * (pixels.mean(0) - pixels).square().mean()
    assert len(hfgen.sample(vae_run, num_images=3)) == 3
    options = {"reference_split": "train[98%:]", "num_importance_samples": 2, "num_bound_images": 2}
    assert hfgen.analyze(vae_run, output_dir=tmp_path / "analysis", **options).record["protocol"]["latent_dim"] == 32
    exported = hfgen.export(vae_run, output=tmp_path / "exported")
    assert {"encoder", "decoder"} <= {path.stem for path in exported.iterdir()}


def test_its_latents_are_standardised_by_channel_over_the_training_images(vae_run):
    vae = load(str(vae_run)).vae
    torch.manual_seed(0)
    with torch.no_grad():
        posterior = vae.encode(digits().images.float() / 127.5 - 1)
        z = posterior.sample().unflatten(1, vae.latent_shape)
        maps = (z - vae.latents_mean) / vae.latents_std
        torch.testing.assert_close(maps.mean((0, 2, 3)), torch.zeros(2), atol=0.02, rtol=0)
        torch.testing.assert_close(maps.std((0, 2, 3)), torch.ones(2), atol=0.02, rtol=0)
        assert not torch.allclose(maps, z, atol=0.01), "there is something to standardise"
        x = digits().images[:4].float() / 127.5 - 1
        torch.testing.assert_close(vae.decode_map(vae.encode_map(x)), vae(x).sample)


@pytest.mark.parametrize(("fields", "message"), [
    ({"latent_dim": 30}, "a latent_dim that is a multiple of their height times width, 4·4, not 30"),
    ({"block_out_channels": []}, "spatial latents need block_out_channels"),
    ({"decoder_block_out_channels": [8, 8]}, "decoder_block_out_channels must have as many entries"),
    ({"class_conditional": True}, "spatial_latents go without class_conditional"),
    ({"hidden_sizes": [10]}, "spatial_latents go without hidden_sizes"),
    ({"ladder_channels": [1]}, "spatial_latents go without ladder_channels"),
])  # fmt: skip
def test_spatial_latents_that_cannot_be(fields, message):
    with pytest.raises(UserError, match=message):
        VAETask(VAEConfig(**TINY_VAE | SPATIAL | fields, output_dir="x"), digits())


# --- training


def test_the_network_learns_the_posterior_means(vae_run):
    task, seen = task_of(vae_run, class_dropout_prob=0.0, guidance_scale=1.0), []

    class Zero(torch.nn.Module):
        def forward(self, x, timesteps, class_labels):
            seen.extend((x, timesteps))
            return type("Output", (), {"sample": torch.zeros_like(x)})

    task.modules["unet"] = Zero()
    x = digits().images[:8].float() / 127.5 - 1
    torch.manual_seed(0)
    (loss,) = task.losses(Batch(x, torch.arange(8), 0, torch.arange(8)))
    torch.manual_seed(0)
    noise = torch.randn(8, 2, 4, 4)
    latents = load(str(vae_run)).vae.encode_map(x).detach()
    alpha, sigma = alpha_sigma(task.scheduler, seen[1])
    torch.testing.assert_close(seen[0], alpha * latents + sigma * noise)
    torch.testing.assert_close(loss.value, (noise - latents).square().mean())
    assert not any(parameter.requires_grad for parameter in task.vae.parameters())
    assert task.modules.keys() == {"unet"}


def test_encoding_has_the_precision_of_the_training(vae_run, images):
    x = images.float() / 127.5 - 1
    exact, rounded = (task_of(vae_run, mixed_precision=name)._encoded(x) for name in ("no", "bf16"))
    assert 0 < (rounded - exact).abs().max() < 0.2


def test_latents_are_not_clipped_to_the_range_of_pixels(vae_run):
    task = task_of(vae_run, prediction_type="v_prediction", scheduler="ddim")
    assert not task.scheduler.config.clip_sample
    assert not task.pipeline().scheduler.config.clip_sample


def test_a_resumed_run_ends_with_the_same_bits_whatever_became_of_the_vae(run, vae_run, tmp_path):
    again, vae = shutil.copytree(run, tmp_path / "again"), shutil.copytree(vae_run, tmp_path / "vae")
    shutil.copyfile(train_vae(tmp_path / "other", **SPATIAL | {"seed": 1, "max_train_steps": 2}) / "vae" / WEIGHTS,
                    vae / "vae" / WEIGHTS)  # fmt: skip
    flags = ["--resume_from_checkpoint", "step-000020", "--vae", str(vae)]
    assert main(["train", "ddpm", "--config", str(again / "config.yaml"), *flags]) == 0
    for part in ("unet", "vae"):
        assert (again / part / WEIGHTS).read_bytes() == (run / part / WEIGHTS).read_bytes()


def test_a_resumed_run_has_the_vae_of_its_checkpoint_also_where_its_own_is_gone(run, tmp_path):
    vae = task_of(tmp_path / "gone", output_dir=str(run), resume_from_checkpoint="latest").vae
    expected = load_file(run / "vae" / WEIGHTS)
    assert all(tensor.equal(expected[name]) for name, tensor in vae.state_dict().items())
    assert not any(parameter.requires_grad for parameter in vae.parameters())


def test_processes_compare_the_vae(vae_run):
    task = task_of(vae_run)
    assert task.fixed_networks() == [task.vae]


def test_images_held_out_may_have_trained_the_vae(vae_run):
    assert task_of(vae_run).remarks() == []
    (remark,) = task_of(vae_run, validation_fraction=0.2).remarks()
    assert "trained with validation_fraction 0.0, not 0.2, so images held out here may have trained it" in remark


def test_evaluations_while_training_decode(vae_run, tmp_path):
    fields = {"vae": str(vae_run), "validation_fraction": 0.2, "evaluation_steps": 10, "output_dir": str(tmp_path)}
    config = DDPMConfig(**CONDITIONAL | LATENT | fields | {"train_split": "train"})
    task = DiffusionTask(config, load_training_images(config))
    with as_found():
        validation = Validation(config, DiffusionTask, task.data, Accelerator(cpu=True))
        metrics = validation.evaluate(task.modules, 1)
    assert metrics["frechet_distance"] > 0
    assert metrics["loss/unet"] > 0


# --- one pipeline


def test_the_vae_is_saved_with_the_model(run, vae_run):
    assert load_file(run / "vae" / WEIGHTS).keys() == load_file(vae_run / "vae" / WEIGHTS).keys()
    expected = load_file(vae_run / "vae" / WEIGHTS)
    assert all(tensor.equal(expected[name]) for name, tensor in load_file(run / "vae" / WEIGHTS).items())
    pipeline = load(str(run))
    assert image_shape_of(pipeline) == (1, 8, 8)
    assert pipeline.unet.config.in_channels == 2
    assert pipeline.unet.config.sample_size == 4


@pytest.mark.parametrize("name", ["classes", "clusters"])
def test_it_loads_with_diffusers_alone_and_draws_the_same_images(runs, name, tmp_path, without_hfgen):
    without_hfgen.python(DRAW, str(runs[name]), str(tmp_path / "theirs.npy"))
    pipeline = load(str(runs[name]))
    pipeline.set_progress_bar_config(disable=True)
    asked = {"class_labels": [3, 5]} if name == "classes" else {"batch_size": 2}
    ours = pipeline(**asked, output_type="np", generator=torch.Generator().manual_seed(0)).images
    assert np.array_equal(ours, np.load(tmp_path / "theirs.npy"))
    assert ours.shape == (2, 8, 8, 1)


def test_samples_are_those_of_the_pipeline(run):
    pipeline = load(str(run))
    options = default_sampler(pipeline, {})
    (ours,) = sample(pipeline, num_images=2, class_labels=[3], **options)
    generators = [torch.Generator().manual_seed(image_seed(0, i)) for i in range(2)]
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline([3, 3], generator=generators, output_type="pt").images
    assert (ours.float() - theirs * 255).abs().max() <= 0.5001
    noised, estimates = film(pipeline, num_images=2, num_frames=3, class_labels=[3], **options)
    assert noised.shape == estimates.shape == (3, 2, 1, 8, 8)
    assert noised[-1].equal(ours)


def test_a_cpu_decodes_in_parts(run, monkeypatch):
    pipeline, sizes = load(str(run)), []
    options = {"num_images": 3, "class_labels": [3]} | default_sampler(pipeline, {})
    (whole,) = sample(pipeline, **options)
    monkeypatch.setattr(GuidedModel, "CPU_BATCH_SIZE", 2)
    pipeline.vae.up.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    (parts,) = sample(pipeline, **options)
    assert sizes == [2, 1]
    assert (parts.int() - whole.int()).abs().max() <= 1


def test_the_number_of_parameters_has_no_statistics(run):
    pipeline = load(str(run))
    networks = (pipeline.unet, pipeline.vae)
    assert read_run(run)["parameters"] == sum(p.numel() for network in networks for p in network.parameters())


def test_it_is_previewed_measured_compared_and_published(run, tmp_path, capsys):
    assert list((run / "samples").glob("*.png"))
    assert (run / FIGURES / ANIMATION).is_file()
    options = {"output_dir": tmp_path / "evaluation", "reference_split": "train[80%:]"}
    record = hfgen.evaluate(run, num_images=150, **options).record
    assert record["protocol"]["vae_sha256"]
    flags = ["--num_inference_steps", "2", "--scheduler", "unipc", "--num_images", "150"]
    flags += ["--reference_split", "train[80%:]", "--output_dir", str(tmp_path / "comparison")]
    assert main(["compare-samplers", str(run), *flags]) == 0
    assert main(["push", str(run), "--repo_id", "ada/latent", "--dry_run"]) == 0
    assert "vae/modeling_hfgen_vae.py" in capsys.readouterr().out
    card = hfgen.card(run, gallery=tmp_path / "cards", weights="float16")
    text = card.read_text()
    assert "latent diffusion" in text
    assert "- latent-diffusion" in text
    assert "grey 8×8-pixel" in text
    assert load_file(card.parent / "vae" / WEIGHTS)["to_latents.weight"].dtype == torch.float16
    assert len(hfgen.sample(card.parent, num_images=2)) == 2


def test_a_card_names_the_data_of_the_vae(run, tmp_path):
    model = shutil.copytree(run, tmp_path / "model")
    config = json.loads((model / "vae" / "config.json").read_text())
    assert config["trained_on"] == ["digits"]
    assert "Its VAE was trained on digits." in hfgen.card(model).read_text()
    (model / "vae" / "config.json").write_text(json.dumps(config | {"trained_on": ["uoft-cs/cifar10"]}))
    text = hfgen.card(model).read_text()
    assert "The training data, uoft-cs/cifar10, have no stated licence" in text
    assert "- uoft-cs/cifar10" in text
    (model / "vae" / "config.json").write_text(json.dumps(config | {"trained_on": []}))
    assert "Its VAE was trained on digits." in hfgen.card(model).read_text(), "as its run tells"
    fields = yaml.safe_load((model / "config.yaml").read_text())
    (model / "config.yaml").write_text(yaml.safe_dump(fields | {"vae": "alice/vae"}))
    assert "It is not known what its VAE was trained on." in hfgen.card(model).read_text()


def test_saved_samples_and_records_tell_vaes_apart(run):
    pipeline = load(str(run))
    found = {(_key(pipeline, {}, []), origin_of(pipeline, "x")["vae_sha256"])}
    pipeline.vae.latents_mean += 1
    found.add((_key(pipeline, {}, []), origin_of(pipeline, "x")["vae_sha256"]))
    assert len({key for key, _ in found}) == len({sha256 for _, sha256 in found}) == 2


# --- mistakes


@pytest.mark.parametrize(("fields", "message"), [
    ({"class_conditional": False}, "vae needs class_conditional or num_clusters"),
    ({"block_out_channels": [8, 8, 8, 8]}, "4×4 latents are not divisible so often; use fewer entries$"),
    ({"vae": "no_such_folder"}, "there is no folder no_such_folder"),
    ({"vae": "nowhere/vae_cifar10_spatial_cpu8min"}, "train this VAE first: hfgen train vae --config vae_cifar10_spa"),
])  # fmt: skip
def test_latent_diffusion_that_cannot_be(vae_run, fields, message):
    with pytest.raises(UserError, match=message):
        task_of(vae_run, **{"guidance_scale": 1.0} | fields)


def test_a_vae_on_the_hub_may_have_the_name_of_a_recipe(vae_run, monkeypatch):
    monkeypatch.setattr("hfgen.tasks.diffusion.load", lambda name: load(str(vae_run)))
    assert load_vae("alice/vae_cifar10_spatial_cpu8min", (1, 8, 8)).latent_shape == (2, 4, 4)


def test_a_stored_vae_of_another_class_is_refused(run, tmp_path):
    model = shutil.copytree(run, tmp_path / "model")
    VAEModel(8, 1, 32).save_pretrained(model / "vae")
    index = json.loads((model / "model_index.json").read_text())
    index["vae"][1] = "VAEModel"
    (model / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="its vae is a VAEModel, but latent diffusion needs a SpatialVAEModel"):
        load(str(model))


def test_vaes_that_do_not_fit_are_refused(vae_run, run, tmp_path):
    other = train_vae(tmp_path / "other", max_train_steps=1)
    for model in (other, run):
        with pytest.raises(
            UserError, match="is no VAE with spatial latents; train one with hfgen train vae --spatial_"
        ):
            task_of(vae_run, vae=str(model))
    config = DDPMConfig(**CONDITIONAL | LATENT | {"vae": str(vae_run), "resolution": 16, "output_dir": "x"})
    message = "is for images of 8×8 pixels in 1 channel, but these have 16×16 pixels in 1 channel"
    with pytest.raises(UserError, match=message):
        DiffusionTask(config, load_training_images(config))


def test_what_latent_diffusion_cannot_do_is_refused(run, tmp_path):
    picture = tmp_path / "digit.png"
    hfgen.sample(run, num_images=1, output=picture)
    with pytest.raises(UserError, match="image editing needs a diffusion model of pixels"):
        hfgen.edit(run, input=picture, task="vary")
    with pytest.raises(UserError, match="export needs a diffusion model of pixels"):
        hfgen.export(run, output=tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
    with pytest.raises(UserError, match="hfgen demo needs a diffusion model of pixels"):
        hfgen.demo(str(run), output=tmp_path / "page", runtime="cdn")
    pipeline = load(str(run))
    pipeline.vae = SpatialVAEModel(8, 1, 32, block_out_channels=[8, 8])
    with pytest.raises(UserError, match="the vae of this model does not fit its unet"):
        check_sampling(pipeline, **default_sampler(pipeline, {}))


def test_the_studio_has_no_field_for_the_folder_of_a_vae():
    assert "vae" not in {field["name"] for field in form_of(families()["ddpm"])}


def test_the_studio_knows_that_it_edits_no_picture(run):
    facts = LoadedModel(Entry(str(run), run, True), load(str(run))).facts
    assert facts["image_shape"] == [1, 8, 8]
    assert facts["edits"] is False


def test_a_run_records_where_its_vae_is_and_its_card_does_not(vae_run, tmp_path, monkeypatch):
    monkeypatch.chdir(vae_run.parent)
    run = train_conditional(tmp_path / "run", **LATENT | {"vae": vae_run.name, "max_train_steps": 1})
    assert run_fields(run)["vae"] == str(vae_run)
    assert str(vae_run.parent) not in hfgen.card(run).read_text()


def test_the_saved_vae_does_not_tell_where_it_was(runs):
    assert "_name_or_path" not in (runs["classes"] / "vae" / "config.json").read_text()
