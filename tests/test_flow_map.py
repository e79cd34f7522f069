"""Flow maps: trained from scratch, and jumping from noise to images in one or a few steps."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import hfgen
from hfgen.cli.main import main
from hfgen.config import FlowMapConfig
from hfgen.data.images import load_training_images
from hfgen.data.loader import Batch
from hfgen.losses.flow_map import gap, guided_velocity, mean_velocity_target, sample_times, weighted_error
from hfgen.pipelines.loading import load
from hfgen.pipelines.pipeline_hfgen_flow_map import mean_velocity
from hfgen.sampling.sample import film, image_seed, sample, sample_steps
from hfgen.serving.library import Entry, LoadedModel
from hfgen.tasks.flow_map import FlowMapTask
from hfgen.utils.errors import UserError

FLOW_MAP = {
    "dataset_name": "digits",
    "train_split": "train[:80%]",
    "block_out_channels": [16, 32],
    "class_conditional": True,
    "guidance_scale": 1.5,
    "dropout": 0.1,
    "max_train_steps": 100,
    "checkpointing_steps": 50,
    "num_samples": 10,
    "mixed_precision": "no",
}
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
DRAW = """
import sys, numpy as np, torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
for steps in (1, 2):
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    images = pipe(class_labels=["3", 5, 0], num_inference_steps=steps, generator=generators, output_type="np").images
    np.save(f"{sys.argv[2]}/{steps}.npy", images)
"""


def train(folder: Path, **fields) -> Path:
    return hfgen.train("flow_map", **FLOW_MAP | {"output_dir": str(folder)} | fields).path


@pytest.fixture(scope="session")
def run(trained_once) -> Path:
    return trained_once("flow_map", train)


def task_of(folder: Path, **fields) -> FlowMapTask:
    config = FlowMapConfig(**FLOW_MAP | {"output_dir": str(folder)} | fields)
    return FlowMapTask(config, load_training_images(config))


def batch_of(task: FlowMapTask, count: int = 32, **fields) -> Batch:
    images, labels = task.data.images[:count].float() / 127.5 - 1, task.data.labels[:count]
    return Batch(images, labels, 0, torch.arange(count), **fields)


def noisy(*shape: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)))


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


# --- losses


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_the_loss_of_an_exact_flow_map_is_zero(tmp_path, monkeypatch, progress):
    """With a single image x₀, all paths lead straight to it, so F(x_t, t, s) = (x_t − x₀) / t."""
    task = task_of(tmp_path / "run", guidance_scale=1.0)
    batch = batch_of(task, progress=progress)
    batch.images = batch.images[:1].expand(32, -1, -1, -1)
    monkeypatch.setattr(task, "_predict", lambda x, t, s, labels: (x - batch.images) / t)
    (loss,) = task.losses(batch)
    assert loss.value < 1e-6
    assert loss.terms["mse"] < 1e-9
    monkeypatch.setattr(task, "_predict", lambda x, t, s, labels: 0.9 * (x - batch.images) / t)
    (loss,) = task.losses(batch)
    assert loss.value > 0.01


def test_the_target_is_that_of_the_paper():
    """F + (f(x_t, t, s) − f(x_l, l, s)) / (t − l), by the definition of f."""
    velocity, prediction, later = noisy(2, 1, 4, 4)
    x, t, s, rho = torch.ones(2, 1, 4, 4), 0.9, 0.3, 0.25
    ahead = t + rho * (s - t)
    first = x + (s - t) * prediction
    second = x + (ahead - t) * velocity + (s - ahead) * later
    expected = prediction + (first - second) / (t - ahead)
    assert torch.allclose(mean_velocity_target(velocity, prediction, later, rho), expected, atol=1e-5)


def test_without_a_jump_the_target_is_the_velocity():
    velocity, prediction, later = noisy(2, 1, 4, 4)
    assert mean_velocity_target(velocity, prediction, prediction, 0.1).equal(velocity)
    assert mean_velocity_target(velocity, prediction, later, 1.0).equal(velocity)


def test_the_gap_falls_exponentially():
    assert [gap(progress, 1.0, 0.01) for progress in (0, 0.5, 1)] == pytest.approx([1, 0.1, 0.01])


def test_times_are_logit_normal_and_jumps_go_towards_the_image():
    torch.manual_seed(0)
    t, s = sample_times(4000, 0.25, (0.5, 1.0), (-6.0, 0.5))
    assert t.shape == s.shape == (4000, 1, 1, 1)
    assert s[:1000].equal(t[:1000])
    assert (s[1000:] < t[1000:]).float().mean() > 0.99
    assert (s <= t).all()
    assert (t.logit().mean().item(), t.logit().std().item()) == pytest.approx((0.5, 1.0), abs=0.1)
    assert (s[1000:].logit().mean().item(), s[1000:].logit().std().item()) == pytest.approx((-6.0, 0.5), abs=0.1)


def test_a_guided_velocity_is_its_own_target():
    """With F_c = v_c + (w − 1) (v_c − F_u), the target for the mean velocity v_c is F_c."""
    velocity, unconditional, _ = noisy(2, 1, 4, 4)
    scale = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    guided = velocity + (scale - 1) * (velocity - unconditional)
    assert torch.allclose(guided_velocity(velocity, guided, unconditional, scale), guided, atol=1e-6)
    assert guided[0].equal(velocity[0])


def test_weights_have_no_gradient():
    prediction = torch.tensor([[[[2.0]]], [[[0.5]]]], requires_grad=True)
    loss, error = weighted_error(prediction, torch.zeros(2, 1, 1, 1), 0.5)
    assert error.item() == pytest.approx((4 + 0.25) / 2)
    assert loss.item() == pytest.approx((2 + 0.5) / 2, abs=1e-3)
    loss.backward()
    assert prediction.grad.flatten().tolist() == pytest.approx([1.0, 1.0], abs=0.01)


# --- training


def test_both_evaluations_have_the_same_dropout(tmp_path, monkeypatch):
    """Of the velocity at the same point, they are the same."""
    task, seen = task_of(tmp_path / "run", dropout=0.5, guidance_scale=1.0, flow_fraction=1.0), []
    predict = task._predict
    monkeypatch.setattr(task, "_predict", lambda *inputs: seen.append(predict(*inputs)) or seen[-1])
    next(task.losses(batch_of(task, progress=1.0)))
    assert seen[0].equal(seen[1])
    assert seen[0].requires_grad
    assert not seen[1].requires_grad


def test_guidance_is_for_classes_within_its_interval(tmp_path, monkeypatch):
    task = task_of(tmp_path / "run", guidance_scale=2.0, guidance_interval=[0.2, 0.6])
    monkeypatch.setattr(task, "_predict", lambda x, t, s, labels: (labels != 10).float().view(-1, 1, 1, 1) + 0 * x)
    velocity, t, labels = torch.zeros(4, 1, 2, 2), torch.tensor([0.1, 0.5, 0.5, 0.9]), torch.tensor([3, 3, 10, 3])
    guided = task._guided(velocity, velocity, t.view(-1, 1, 1, 1), labels)
    assert guided[:, 0, 0, 0].tolist() == [0, 0.5, 0, 0]


def test_held_out_losses_are_those_of_the_end_of_the_training(tmp_path, monkeypatch):
    task, seen = task_of(tmp_path / "run"), []
    monkeypatch.setattr("hfgen.tasks.flow_map.gap", lambda *arguments: seen.append(arguments) or 0.5)
    assert task.validate(batch_of(task, progress=0.2)).keys() == {"loss/unet", "unet/mse"}
    assert seen == [(1.0, 1.0, 0.05)]


def test_it_learns_the_classes(run):
    """In 100 steps, the mean of the one-step images of most classes comes closest to the real mean of that class."""
    config = FlowMapConfig(**FLOW_MAP | {"output_dir": "unused"})
    data = load_training_images(config)
    real = torch.stack([data.images[data.labels == label].float().mean(0) for label in range(10)])
    drawn = torch.cat(list(sample(load(str(run)), num_images=200, num_inference_steps=1)))
    means = drawn.float().view(20, 10, *drawn.shape[1:]).mean(0)
    nearest = torch.cdist(means.flatten(1), real.flatten(1)).argmin(1)
    assert (nearest == torch.arange(10)).sum() >= 8


def test_a_run_that_goes_on_from_a_checkpoint_is_the_same(run, tmp_path):
    again = shutil.copytree(run, tmp_path / "again")
    command = ["train", "flow_map", "--config", str(again / "config.yaml"), "--resume_from_checkpoint", "step-000050"]
    assert main(command) == 0
    one, other = load_file(run / WEIGHTS), load_file(again / WEIGHTS)
    assert all(one[name].equal(other[name]) for name in one)
    assert (again / "metrics.jsonl").read_text() == (run / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"initial_gap": 0}, "initial_gap must be positive"),
        ({"final_gap": 1.5}, "final_gap must be at most 1"),
        ({"flow_fraction": -0.1}, "flow_fraction must be zero or more"),
        ({"loss_power": 2}, "loss_power must be at most 1"),
        ({"logit_std": 0}, "logit_std must be positive"),
        ({"end_logit_mean": 11}, "end_logit_mean must be at most 10"),
        ({"num_inference_steps": 1001}, "num_inference_steps must be at most 1,000"),
        ({"guidance_scale": 0}, "guidance_scale must be positive"),
        ({"guidance_interval": [0.7, 0.2]}, "guidance_interval must be two numbers"),
        ({"guidance_interval": [0.5]}, "guidance_interval must be two numbers"),
        ({"class_conditional": False}, "guidance_scale 1.5 needs class_conditional"),
        ({"class_dropout_prob": 0}, "guidance_scale 1.5 needs class_conditional, and class_dropout_prob"),
        ({"flow_fraction": 0}, "and flow_fraction above 0"),
        ({"block_out_channels": [8, 8, 8, 8, 8]}, "8×8 pixels are not divisible"),
        ({"block_out_channels": [12]}, "multiples of norm_num_groups"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_any_work(tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        train(tmp_path / "run", **fields)
    assert not (tmp_path / "run").exists()


# --- the pipeline


def test_diffusers_alone_draws_the_same_images(run, tmp_path, without_hfgen):
    without_hfgen.python(DRAW, str(run), str(tmp_path))
    own = load(str(run))
    for steps in (1, 2):
        options = {"num_inference_steps": steps, "generator": generators(0, 1, 2), "output_type": "np"}
        assert np.array_equal(own(class_labels=["3", 5, "0"], **options).images, np.load(tmp_path / f"{steps}.npy"))


def test_two_steps_are_two_jumps(run):
    """From t = 1 to ½ and from there to 0, each by the mean velocity of the network."""
    own, labels = load(str(run)), torch.tensor([3, 5])
    x = noise = torch.stack([torch.randn(1, 8, 8, generator=generator) for generator in generators(0, 1)])
    for t, s in ((1.0, 0.5), (0.5, 0.0)):
        times = (torch.full((2, 1, 1, 1), time) for time in (t, s))
        with torch.no_grad():
            x = x + (s - t) * mean_velocity(own.unet, x, *times, labels)
    options = {"num_inference_steps": 2, "generator": generators(0, 1), "output_type": "pt"}
    drawn = own(class_labels=[3, 5], **options).images
    assert torch.allclose((x / 2 + 0.5).clamp(0, 1), drawn, atol=1e-6)
    (first, _), _, (last, estimate) = own.states(2, [3, 5], 2, generators(0, 1))
    assert first.equal(noise)
    assert last.equal(estimate)
    assert torch.allclose(last / 2 + 0.5, drawn, atol=1e-6)


def test_an_image_depends_on_its_number_only(run):
    own = load(str(run))
    assert own.labels == {str(number): number for number in range(10)}
    drawn = torch.cat(list(sample(own, num_images=12, seed=5, batch_size=5, num_inference_steps=2)))
    assert drawn.shape == (12, 1, 8, 8)
    again = torch.cat(list(sample(own, num_images=3, seed=5, first_image=9, num_inference_steps=2)))
    assert again.equal(drawn[9:])
    assert not again.equal(torch.cat(list(sample(own, num_images=3, seed=5, first_image=9, num_inference_steps=1))))
    *_, (last, _) = sample_steps(own, seeds=[image_seed(5, 9)], class_labels=["9"], num_inference_steps=2)
    assert last.equal(drawn[9:10])
    assert len(own(4).images) == 4


def test_an_unconditional_flow_map(tmp_path):
    folder = train(tmp_path / "run", class_conditional=False, guidance_scale=1.0, max_train_steps=3)
    own = load(str(folder))
    assert own.labels == {}
    assert own.unet.config.num_class_embeds is None
    assert len(own(3).images) == 3
    with pytest.raises(ValueError, match="unconditional"):
        own(class_labels=["3"])
    with pytest.raises(UserError, match="unconditional"):
        next(sample(own, num_images=1, num_inference_steps=1, class_labels=["3"]))


def test_its_options_are_checked(run):
    own = load(str(run))
    for options, message in (
        ({"num_inference_steps": 1001}, "of this flow map must be from 1 to 1000, not 1001"),
        ({"num_inference_steps": 1, "guidance_scale": 2.0}, "only has the option num_inference_steps"),
        ({"num_inference_steps": 1, "class_labels": ["zebra"]}, "no class zebra"),
    ):
        with pytest.raises(UserError, match=message):
            next(sample(own, num_images=1, **options))


def test_it_neither_edits_nor_films(run, tmp_path):
    own, message = load(str(run)), "a flow map cannot edit images, and has no denoising to film"
    with pytest.raises(UserError, match=message):
        hfgen.edit(own, task="vary", input=str(run / "samples"))
    with pytest.raises(UserError, match=message):
        film(own, num_images=1, num_frames=2, num_inference_steps=2)


def test_what_a_stranger_writes_into_its_index_is_checked(run, tmp_path):
    index = json.loads((run / "model_index.json").read_text())
    for changes, message in (
        ({"id2label": {"0": "a"}}, "must have a different name for each of the 10 classes"),
        ({"id2label": {str(number): "a" for number in range(10)}}, "must have a different name for each"),
        ({"num_inference_steps": 10**9}, "must be from 1 to 1000"),
    ):
        broken = shutil.copytree(run, tmp_path / "broken", dirs_exist_ok=True)
        (broken / "model_index.json").write_text(json.dumps(index | changes))
        with pytest.raises(UserError, match=message):
            load(str(broken))


def test_the_studio_offers_its_steps(run):
    facts = LoadedModel(Entry(str(run), run, is_run=True), load(str(run))).facts
    assert (facts["use"], facts["family"], facts["image_shape"]) == ("few_steps", "flow_map", [1, 8, 8])
    assert facts["steps"] == [1, 2, 3, 4, 6]
    assert facts["sampler"] == {"num_inference_steps": 2}


def test_the_code_of_its_card_draws(run, tmp_path, without_hfgen):
    copy = shutil.copytree(run, tmp_path / "flow")
    hfgen.card(copy, repo_id="ada/flow")
    page = (copy / "README.md").read_text()
    assert "grey 8×8-pixel" in page
    assert "guidance with scale 1.5 is part of what it learnt" in page
    assert "- class-conditional\n" in page
    code = page.partition("```python\n")[2].partition("```")[0].replace('"ada/flow"', repr(str(copy)))
    without_hfgen.python(f"import os; os.chdir({str(tmp_path)!r})\n{code}")
    assert (tmp_path / "image.png").is_file()


def test_an_export_draws_in_one_step(run, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = tmp_path / "export"
    hfgen.export(run, output=folder)
    session = onnxruntime.InferenceSession((folder / "generator.onnx").read_bytes())
    noise = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    given = {"latents": noise.flatten(1).numpy(), "class_labels": np.array([3, 5, 0])}
    generator = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 1, "generator": generator, "output_type": "pt"}
    expected = load(str(run))(class_labels=[3, 5, 0], **options).images
    (images,) = session.run(None, given)
    assert np.allclose((images + 1) / 2, expected.numpy(), atol=1e-4)
