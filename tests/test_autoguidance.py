"""Autoguidance: an earlier state of the network is saved with the model, and samples are guided away from it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import CONDITIONAL, GUIDED, TINY, train_conditional
from safetensors.torch import load_file

import hfgen
from hfgen.cli.main import main
from hfgen.config import DDPMConfig
from hfgen.data.images import load_images, load_training_images
from hfgen.evaluation.generated import _key, origin_of
from hfgen.pipelines.loading import load
from hfgen.sampling.sample import check_sampling, default_sampler, sample
from hfgen.tasks.diffusion import DiffusionTask
from hfgen.training.processes import as_found
from hfgen.training.validation import Validation
from hfgen.utils.errors import UserError

WEIGHTS = "diffusion_pytorch_model.safetensors"
DRAW = """
import sys, numpy as np, torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
options = {"num_inference_steps": 4, "output_type": "np", "generator": torch.Generator().manual_seed(0)}
asked = {"class_labels": [3, 5]} if "classes" in sys.argv[1] else {"batch_size": 2}
np.save(sys.argv[2], pipe(**asked, **options).images)
"""


@pytest.fixture
def runs(guided_runs) -> dict[str, Path]:
    return guided_runs


@pytest.fixture(params=["classes", "clusters"])
def run(request, guided_runs) -> Path:
    return guided_runs[request.param]


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def same(first, second) -> bool:
    one, other = weights(first), weights(second)
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def test_the_guide_is_the_model_of_its_step(run):
    assert same(run / "guide", run / "checkpoints" / "step-000020" / "unet")
    assert not same(run / "guide", run / "unet")


@pytest.mark.parametrize("step", [10, 20, 30])
def test_a_run_that_goes_on_from_a_checkpoint_has_the_same_guide(runs, tmp_path, step):
    again = shutil.copytree(runs["classes"], tmp_path / "again")
    checkpoint = f"step-{step:06d}"
    assert (again / "checkpoints" / checkpoint / "guide").is_dir() == (step >= 20)
    assert main(["train", "ddpm", "--config", str(again / "config.yaml"), "--resume_from_checkpoint", checkpoint]) == 0
    assert same(again / "guide", runs["classes"] / "guide")
    assert same(again / "unet", runs["classes"] / "unet")


def test_guidance_leads_away_from_the_guide(run):
    pipeline = load(str(run))
    x, timestep, ids = torch.randn(2, 1, 8, 8), torch.tensor(500.0), torch.tensor([1, 3])
    strong, weak = (part(x, timestep, class_labels=ids).sample for part in (pipeline.unet, pipeline.guide))
    assert torch.allclose(pipeline.guided([1, 3], 2.5)(x, timestep), weak + 2.5 * (strong - weak), atol=1e-5)
    assert torch.allclose(pipeline.guided([1, 3], 2.5, (0.6, 1))(x, timestep), strong, atol=1e-5)
    pipeline.guide = None
    free = pipeline.unet(x, timestep, class_labels=torch.full((2,), pipeline.unet.config.num_class_embeds - 1)).sample
    assert torch.allclose(pipeline.guided([1, 3], 2.5)(x, timestep), free + 2.5 * (strong - free), atol=1e-5)


def test_a_negative_class_takes_the_place_of_the_guide(runs):
    pipeline = load(str(runs["classes"]))
    x, timestep = torch.randn(1, 1, 8, 8), torch.tensor(500.0)
    asked, negative = (pipeline.unet(x, timestep, class_labels=torch.tensor([n])).sample for n in (1, 3))
    found = pipeline.guided([1], 2.0, negative_class_labels=[3])(x, timestep)
    assert torch.allclose(found, negative + 2 * (asked - negative), atol=1e-5)


def test_it_loads_with_diffusers_alone(run, tmp_path, without_hfgen):
    without_hfgen.python(DRAW, str(run), str(tmp_path / "theirs.npy"))
    pipeline = load(str(run))
    pipeline.set_progress_bar_config(disable=True)
    asked = {"class_labels": [3, 5]} if "classes" in run.name else {"batch_size": 2}
    generator = torch.Generator().manual_seed(0)
    ours = pipeline(**asked, num_inference_steps=4, output_type="np", generator=generator).images
    assert np.array_equal(ours, np.load(tmp_path / "theirs.npy"))


def test_it_is_sampled_and_published_with_its_guide(run, tmp_path):
    pipeline = load(str(run))
    options = default_sampler(pipeline, {})
    (guided,) = sample(pipeline, num_images=4, **options)
    (other,) = sample(pipeline, num_images=4, **options | {"guidance_scale": 1})
    assert not guided.equal(other)
    assert "own state after 20 steps" in hfgen.card(run, gallery=tmp_path / "cards").read_text()
    again = hfgen.card(run, gallery=tmp_path / "zoo", weights="float16").parent
    assert weights(again / "guide")["conv_in.weight"].dtype == torch.float16


def test_it_is_exported_with_its_guide(runs, tmp_path, without_hfgen):
    folder = hfgen.export(runs["classes"], output=tmp_path / "exported")
    assert (json.loads((folder / "model.json").read_text())["files"]).keys() == {"unet", "guide"}
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert 'run("guide"' in code
    without_hfgen.python(code, folder=folder)
    assert (folder / "images.png").is_file()


@pytest.mark.parametrize(("fields", "message"), [
    ({"guide_step": 5}, "guide_step needs class_conditional or num_clusters"),
    ({"guide_step": 40, "max_train_steps": 40, "class_conditional": True}, "must be below max_train_steps"),
    ({"guide_step": 0, "class_conditional": True}, "guide_step must be positive"),
])  # fmt: skip
def test_misfits_are_refused(tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        DDPMConfig(**TINY | fields | {"output_dir": str(tmp_path)})


def test_a_guide_that_is_not_reached_is_missed(tmp_path, capsys):
    fields = GUIDED | {"guide_step": 50, "max_train_steps": None, "num_train_epochs": 1, "max_train_samples": 128}
    run = train_conditional(tmp_path / "run", **fields)
    assert "guide_step 50 was not reached in 2 steps" in capsys.readouterr().err
    assert json.loads((run / "run.json").read_text())["problems"] == ["guide_step 50 was not reached in 2 steps"]
    assert not (run / "guide").exists()
    assert "own state after" not in hfgen.card(run).read_text()


def test_a_task_takes_the_guide_of_a_folder_and_loses_one_that_is_not_there(runs, tmp_path):
    task = DiffusionTask(DDPMConfig(**CONDITIONAL | {"output_dir": str(tmp_path)}), load_images("digits"))
    task.load_snapshot(runs["classes"])
    expected = weights(runs["classes"] / "guide")
    assert all(tensor.equal(expected[name]) for name, tensor in task.snapshot.state_dict().items())
    assert not any(parameter.requires_grad for parameter in task.snapshot.parameters())
    task.load_snapshot(runs["classes"] / "checkpoints" / "step-000010")
    assert task.snapshot is None


def test_evaluations_while_training_sample_with_the_guide(tmp_path):
    fields = {"output_dir": str(tmp_path), "test_fraction": 0.2, "validation_fraction": 0.2, "evaluation_steps": 10}
    config = DDPMConfig(**CONDITIONAL | fields | {"train_split": "train"})
    task = DiffusionTask(config, load_training_images(config))
    task.take_snapshot()
    with as_found():
        validation = Validation(config, DiffusionTask, task.data, Accelerator(cpu=True))
        validation.evaluate(task.modules, 1, task.snapshot)
    assert validation.train_task.pipeline().guide is task.snapshot


def test_saved_samples_and_records_tell_guides_apart(runs):
    pipeline = load(str(runs["classes"]))
    found = {(_key(pipeline, {}, []), origin_of(pipeline, "x").get("guide_sha256"))}
    pipeline.guide.conv_in.weight.data += 1
    found.add((_key(pipeline, {}, []), origin_of(pipeline, "x").get("guide_sha256")))
    pipeline.guide = None
    found.add((_key(pipeline, {}, []), origin_of(pipeline, "x").get("guide_sha256")))
    assert len({key for key, _ in found}) == len({sha256 for _, sha256 in found}) == 3


def test_a_guide_of_another_model_is_refused(runs):
    pipeline, other = (load(str(runs[name])) for name in ("classes", "clusters"))
    pipeline.guide = other.guide
    with pytest.raises(UserError, match="the guide of this model does not fit its unet"):
        check_sampling(pipeline, **default_sampler(pipeline, {}))
