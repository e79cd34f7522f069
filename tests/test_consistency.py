"""Consistency models: distilled from a diffusion model, and drawn by diffusers' own pipeline."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import contents, train_conditional
from safetensors.torch import load_file, save_file

import hfgen
from hfgen.cli.main import main
from hfgen.config import ConsistencyConfig
from hfgen.data.images import load_training_images
from hfgen.data.loader import Batch
from hfgen.losses.adversarial import squared_gradient_norms
from hfgen.losses.consistency import error_in_range, estimate, pseudo_huber, tuning_levels
from hfgen.pipelines.consistency import SIGMA_MAX, noise_levels
from hfgen.pipelines.loading import load
from hfgen.sampling.sample import sample
from hfgen.tasks.consistency import ConsistencyTask
from hfgen.utils.errors import UserError

STUDENT = {
    "train_batch_size": 32,
    "trajectories": 256,
    "trajectory_uses": 2,
    "teacher_steps": 4,
    "max_train_steps": 30,
    "checkpointing_steps": 10,
    "num_samples": 10,
    "mixed_precision": "no",
}
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
DRAW = """
import sys, numpy as np, torch
from diffusers import ConsistencyModelPipeline, DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1])
assert type(pipe) is ConsistencyModelPipeline
pipe.set_progress_bar_config(disable=True)
for steps in (1, 2):
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    images = pipe(3, class_labels=[3, 5, 0], num_inference_steps=steps, generator=generators, output_type="np").images
    np.save(f"{sys.argv[2]}/{steps}.npy", images)
"""


def distil(teacher: Path, folder: Path, **fields) -> Path:
    return hfgen.distill(str(teacher), **STUDENT | {"output_dir": str(folder)} | fields).path


@pytest.fixture(scope="session")
def teacher(conditional_run) -> Path:
    return conditional_run("flow_prediction")


@pytest.fixture(scope="session")
def student(trained_once, teacher) -> Path:
    return trained_once("student", lambda folder: distil(teacher, folder, consistency_fraction=0.3))


def task_of(teacher: Path, folder: Path, **fields) -> ConsistencyTask:
    config = ConsistencyConfig(teacher=str(teacher), **STUDENT | {"output_dir": str(folder)} | fields)
    return ConsistencyTask(config, load_training_images(config))


def batch_of(task: ConsistencyTask, count: int = 32, **fields) -> Batch:
    indices = torch.arange(count)
    return Batch(task.data.images[:count].float() / 127.5 - 1, task.data.labels[:count], 0, indices, **fields)


def test_diffusers_alone_draws_the_same_images(student, tmp_path, without_hfgen):
    without_hfgen.python(DRAW, str(student), str(tmp_path))
    own = load(str(student))
    for steps in (1, 2):
        generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
        options = {"num_inference_steps": steps, "generator": generators, "output_type": "np"}
        assert np.array_equal(own(class_labels=["3", 5, "0"], **options).images, np.load(tmp_path / f"{steps}.npy"))


def test_sampling_and_the_pipeline_agree(student, tmp_path):
    own = load(str(student))
    assert own.labels == {str(number): number for number in range(10)}
    drawn = torch.cat(list(sample(own, num_images=12, seed=5, batch_size=5, num_inference_steps=2)))
    assert drawn.shape == (12, 1, 8, 8)
    again = torch.cat(list(sample(own, num_images=3, seed=5, first_image=9, num_inference_steps=2)))
    assert again.equal(drawn[9:])
    assert not again.equal(torch.cat(list(sample(own, num_images=3, seed=5, first_image=9, num_inference_steps=1))))
    assert len(own(4).images) == 4
    assert main(["sample", str(student), "--class_labels", "3", "--output", str(tmp_path / "three.npz")]) == 0
    assert np.load(tmp_path / "three.npz")["label_names"].tolist() == list(own.labels)
    with pytest.raises(ValueError, match="no class"):
        own(class_labels=["zebra"])
    for options, message in (
        ({"num_inference_steps": 0}, "from 1 to 6, not 0"),
        ({"output_type": "x"}, "output_type"),
        ({"batch_size": 0}, "batch_size must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            own(**options)


def test_an_unconditional_student(trained_once, tmp_path):
    run = trained_once("unconditional", train_conditional, class_conditional=False, max_train_steps=20)
    folder = distil(run, tmp_path / "student", max_train_steps=3)
    own = load(str(folder))
    assert own.labels == {}
    assert own.unet.config.num_class_embeds is None
    assert len(own(3).images) == 3
    with pytest.raises(ValueError, match="unconditional"):
        own(class_labels=["3"])
    with pytest.raises(UserError, match="unconditional"):
        next(sample(own, num_images=1, num_inference_steps=1, class_labels=["3"]))


def test_a_student_starts_as_its_teacher(conditional_run, tmp_path):
    """With v-prediction both networks predict the same, once the times of the student give the same embeddings."""
    task = task_of(conditional_run("v_prediction"), tmp_path / "run", guidance_scale=1.0)
    assert task.fixed_networks() == [task.teacher.unet]
    batch = batch_of(task)
    sigma = torch.logspace(-1, 1, 32).view(-1, 1, 1, 1)
    x = batch.images + sigma * torch.randn(batch.images.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own, teachers = (f(x, sigma, batch.labels) for f in (task._student, task._teachers_image))
    assert (own - teachers).square().mean() < 0.01 * teachers.square().mean()


def test_trajectories_lead_to_the_teachers_images(teacher, tmp_path):
    """The points of a trajectory are those of the teacher's own sampler, from noise to its image."""
    task = task_of(teacher, tmp_path / "run")
    labels = torch.tensor([3, 5, 0])
    solved = task._solve([7, 8, 9], labels, torch.device("cpu"))
    noise = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(8))
    assert torch.allclose(solved.points[1, 0], SIGMA_MAX * noise, rtol=2e-3)  # the solver starts at t = 999
    assert solved.points.shape == (3, 4, 1, 8, 8)
    assert solved.sigmas[0] == SIGMA_MAX
    assert (solved.sigmas.diff() < 0).all()
    generators = [torch.Generator().manual_seed(seed) for seed in (7, 8, 9)]
    drawn = task.teacher(labels.tolist(), num_inference_steps=4, generator=generators, output_type="pt").images
    assert torch.allclose((solved.images / 2 + 0.5).clamp(0, 1), drawn, atol=1e-4)


def test_a_student_comes_near_its_teacher(teacher, tmp_path):
    """In 300 steps, the distance of its one-step images from those of the teacher falls to a third."""
    run = distil(teacher, tmp_path / "run", max_train_steps=300, trajectories=1024, trajectory_uses=16)
    task = task_of(teacher, tmp_path / "other")
    before = task.validate(batch_of(task))["loss/unet"]
    task.unet.load_state_dict(load_file(run / WEIGHTS))
    assert task.validate(batch_of(task))["loss/unet"] < before / 3


def test_a_run_that_goes_on_from_a_checkpoint_is_the_same(student, tmp_path):
    """Also where it goes on within a block of trajectories, and in the last part of the training."""
    for step in ("step-000010", "step-000020"):
        again = shutil.copytree(student, tmp_path / step)
        command = ["train", "consistency", "--config", str(again / "config.yaml"), "--resume_from_checkpoint", step]
        assert main(command) == 0
        one, other = load_file(student / WEIGHTS), load_file(again / WEIGHTS)
        assert all(one[name].equal(other[name]) for name in one)
        assert (again / "metrics.jsonl").read_text() == (student / "metrics.jsonl").read_text()


def test_a_run_goes_on_with_the_same_teacher_only(student, teacher, tmp_path, capsys):
    again, moved = shutil.copytree(student, tmp_path / "again"), shutil.copytree(teacher, tmp_path / "moved")
    command = ["train", "consistency", "--config", str(again / "config.yaml"), "--teacher", str(moved)]
    command += ["--resume_from_checkpoint", "step-000020"]
    save_file({name: 2 * weight for name, weight in load_file(teacher / WEIGHTS).items()}, moved / WEIGHTS)
    before = contents(again / "checkpoints")
    assert main(command) == 2
    assert f"the weights of its teacher {moved} are not those with which step-000020 was" in capsys.readouterr().err
    assert contents(again / "checkpoints") == before
    moved.rename(tmp_path / "away")
    assert main(command) == 2
    assert "a run resumes with its teacher only; set teacher to its new place" in capsys.readouterr().err
    (tmp_path / "away").rename(moved)
    shutil.copy(teacher / WEIGHTS, moved / WEIGHTS)
    assert main(command) == 0
    assert load_file(again / WEIGHTS)["conv_in.weight"].equal(load_file(student / WEIGHTS)["conv_in.weight"])


def test_the_last_part_of_the_training_is_consistency_tuning(teacher, tmp_path):
    task = task_of(teacher, tmp_path / "run", consistency_fraction=0.25)
    seeds = []
    task._solve = lambda *arguments: seeds.append(arguments) or pytest.fail("no trajectory is needed")
    with pytest.raises(pytest.fail.Exception):
        next(task.losses(batch_of(task, progress=0.74)))
    (loss,) = task.losses(batch_of(task, progress=0.76))
    assert loss.value.isfinite()
    assert len(seeds) == 1


@pytest.mark.parametrize("kind", ["null label", "guide"])
def test_the_teachers_image_is_that_of_its_guided_prediction(conditional_run, guided_runs, tmp_path, kind):
    run = guided_runs["classes"] if kind == "guide" else conditional_run("flow_prediction")
    task = task_of(run, tmp_path / "run", guidance_scale=2.5)
    task.guidance["guidance_interval"] = [0.0, 0.7]
    images, labels = torch.rand(2, 1, 8, 8) * 2 - 1, torch.tensor([3, 5])
    for sigma in (1.5, 9.0):  # t = 0.6, guided, and 0.9, not guided
        x, timestep = images * sigma, 1000 * sigma / (1 + sigma)
        model = task.teacher.guided([3, 5], **task.guidance)
        x_t = x / (1 + sigma)
        with torch.no_grad():
            expected = x_t - timestep / 1000 * model(x_t, torch.tensor(timestep))
        found = task._teachers_image(x, torch.full((2, 1, 1, 1), sigma), labels)
        assert torch.allclose(found, expected, atol=0.02)


def test_a_consistent_student_has_no_tuning_loss(teacher, tmp_path, monkeypatch):
    """It and its teacher see the same image behind every noise; the loss grows with the difference of neighbours."""
    task = task_of(teacher, tmp_path / "run")
    batch, image = batch_of(task), torch.rand(1, 1, 8, 8) - 1
    monkeypatch.setattr(task, "_teachers_image", lambda x, sigma, labels: image.expand_as(x))
    monkeypatch.setattr(task, "_student", lambda x, sigma, labels: image.expand_as(x))
    monkeypatch.setattr(
        "hfgen.tasks.consistency.tuning_levels", lambda *_: (torch.full((32, 1, 1, 1), 2.0), torch.ones(32, 1, 1, 1))
    )
    assert task._tuning_loss(batch) == 0
    monkeypatch.setattr(task, "_student", lambda x, sigma, labels: image.expand_as(x) + 0.5 * sigma)
    assert task._tuning_loss(batch).item() == pytest.approx(0.5 * 8, rel=1e-5), "0.5 (t − r) per pixel, over t − r"


def test_the_loss_is_square_near_zero_and_absolute_beyond():
    assert pseudo_huber(torch.tensor([0.001]), 0.1).item() == pytest.approx(0.001**2 / 0.2, rel=1e-2)
    assert pseudo_huber(torch.tensor([-10.0]), 0.1).item() == pytest.approx(9.9, rel=1e-2)


def test_what_clipping_removes_is_no_error(teacher, tmp_path, monkeypatch):
    images = torch.tensor([-1.5, -0.9, 1.2, 1.2, -1.5, 0.2])
    targets = torch.tensor([-1.0, -1.1, 0.999, 0.5, 0.5, 0.1])
    assert error_in_range(images, targets).tolist() == pytest.approx([0, 0.1, 0, 0.7, -2, 0.1])
    task = task_of(teacher, tmp_path / "run", adversarial_weight=0.0)
    monkeypatch.setattr(task, "_student", lambda x, *_: torch.full_like(x, -2))
    for black, expected in ((-1.0, 0), (-0.9, 1)):
        ends = torch.full((4, 1, 8, 8), black)
        monkeypatch.setattr(task, "_points", lambda *_, ends=ends: (ends, torch.ones(4, 1, 1, 1), None, ends))
        (loss,) = task.losses(batch_of(task, progress=0.0))
        assert loss.value.item() == pytest.approx(expected, abs=0.01)


def test_a_discriminator_learns_along_with_the_student(teacher, tmp_path):
    plain, task = (task_of(teacher, tmp_path / "run", adversarial_weight=weight) for weight in (0.0, 0.5))
    assert plain.modules.keys() == {"unet"}
    assert task.modules.keys() == {"unet", "discriminator"}
    assert task.saved_modules == {"unet"}
    assert (task.config.optimizer_of("unet"), task.config.optimizer_of("discriminator")) == ("muon", "adamw")
    assert task.config.learning_rate_of("discriminator") == 2e-3
    batch = batch_of(task, progress=0.0)
    torch.manual_seed(0)
    (error,) = plain.losses(batch)
    torch.manual_seed(0)
    losses = task.losses(batch)
    student = next(losses)
    assert student.module == "unet"
    assert student.terms["error"].equal(error.value)
    assert student.value.item() == pytest.approx((error.value + 0.5 * student.terms["adversarial"]).item())
    student.value.backward()
    assert all(parameter.grad is None for parameter in task.discriminator.parameters())
    (adversarial,) = torch.autograd.grad(next(iter(task.losses(batch))).terms["adversarial"], task.unet.conv_out.bias)
    assert adversarial.abs().max() > 0
    own = next(losses)
    assert own.module == "discriminator"
    own.value.backward()
    assert all(parameter.grad is not None for parameter in task.discriminator.parameters())
    assert list(losses) == []


def test_the_discriminator_is_penalised_at_some_steps(teacher, tmp_path, monkeypatch):
    task = task_of(teacher, tmp_path / "run", adversarial_weight=0.5)
    images, labels = torch.rand(8, 1, 8, 8), torch.arange(8)
    plain, penalised = (task._discriminator_loss(images.clone(), labels, there).value for there in (False, True))
    norms = squared_gradient_norms(task.discriminator(images.requires_grad_(), labels).logits, images)
    r1, r2 = (half.mean() for half in norms.chunk(2))
    assert penalised.item() == pytest.approx((plain + 8 * 0.1 / 2 * (r1 + r2)).item(), rel=1e-5)
    seen = []
    monkeypatch.setattr(task, "_discriminator_loss", lambda *_, penalised: seen.append(penalised))
    for step in (7, 8):
        list(task.losses(dataclasses.replace(batch_of(task), step=step)))
    assert seen == [False, True]


def test_it_is_said_how_the_teacher_is_followed(teacher, tmp_path):
    for fields, guidance in (({"guidance_scale": 1.0}, "no guidance"), ({}, "guidance 2 from 0 to 1 of T")):
        (remark,) = task_of(teacher, tmp_path / "run", **fields).remarks()
        assert (
            remark == f"the teacher, {teacher}, is followed in 4 steps with {guidance}; the training images are digits"
        )


def test_half_of_the_points_are_starts_and_a_quarter_those_of_the_second_step(teacher, tmp_path):
    task = task_of(teacher, tmp_path / "run", teacher_steps=8)
    _, sigma, _, _ = task._points(2000, 0, torch.device("cpu"))
    levels = task.pool[0].sigmas
    shares = [(sigma.flatten() == level).float().mean().item() for level in levels]
    assert shares[0] == pytest.approx(0.5 + 0.25 / 8, abs=0.04)
    assert shares[4] == pytest.approx(0.25 + 0.25 / 8, abs=0.04), "of σ = 1.0, nearest to 0.97"


def test_a_teacher_on_even_steps_from_less_noise_is_followed_from_pure_noise(conditional_run, tmp_path, monkeypatch):
    pipeline = load(str(conditional_run("v_prediction")))
    pipeline.scheduler.register_to_config(timestep_spacing="leading")
    monkeypatch.setattr("hfgen.tasks.consistency.load", lambda name: pipeline)
    task = task_of(conditional_run("v_prediction"), tmp_path / "run")
    assert task._solve([1], torch.tensor([3]), torch.device("cpu")).sigmas[0] > 70


def test_blocks_of_trajectories_follow_from_the_step(teacher, tmp_path, monkeypatch):
    """A new one every 8 steps; the two newest are kept; those of another process are others."""
    task, made = task_of(teacher, tmp_path / "run"), []
    monkeypatch.setattr(task, "_solve", lambda seeds, labels, device: made.append(seeds) or object())
    device = torch.device("cpu")
    assert [list(task._pool_at(step, 32, device)) for step in (0, 7, 8, 17)] == [[0], [0], [0, 1], [1, 2]]
    assert len(made) == 3
    assert len({*map(tuple, made)}) == 3
    task.pool.clear()
    assert list(task._pool_at(17, 32, device)) == [1, 2]
    assert made[3:] == made[1:3]
    monkeypatch.setattr("hfgen.tasks.consistency.PartialState", lambda: type("State", (), {"process_index": 1}))
    task.pool.clear()
    task._pool_at(0, 32, device)
    assert made[-1] != made[0]


def test_at_the_smallest_noise_level_the_image_is_the_input():
    scheduler = noise_levels()
    x, prediction = torch.randn(2, 2, 1, 4, 4)
    assert estimate(scheduler, prediction, x, torch.full((2, 1, 1, 1), 0.002)).equal(x)
    far = estimate(scheduler, prediction, 80 * x, torch.full((2, 1, 1, 1), 80.0))
    assert torch.allclose(far, prediction, atol=0.05), "and at the largest, that of the network"


def test_tuning_levels_are_neighbours():
    torch.manual_seed(0)
    t, r = tuning_levels(1000, 80.0)
    assert (r >= 0).all()
    assert (r < t).all()
    assert t.log().mean().item() == pytest.approx(-1.1, abs=0.2)
    assert t.log().std().item() == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"teacher": None}, "teacher is missing"),
        ({"num_inference_steps": 7}, "num_inference_steps must be at most 6"),
        ({"consistency_fraction": 1.5}, "consistency_fraction must be from 0 to 1"),
        ({"guidance_scale": -1.0}, "guidance_scale must be zero or more"),
        ({"adversarial_weight": -1.0}, "adversarial_weight must be zero or more"),
        ({"torch_compile": True}, "second-order gradients, which torch_compile does not support"),
        ({"mixed_precision": "fp16"}, "overflow in mixed_precision fp16; use bf16, or set adversarial_weight to 0"),
        (
            {"dataset_name": "digits", "resolution": 16},
            "images of 8×8 pixels in 1 channel, but those of digits have",
        ),
        ({"teacher": "nowhere/at_all", "dataset_name": "digits"}, "nowhere/at_all"),
        (
            {"teacher": "nowhere/at_all"},
            "there is no folder nowhere/at_all, and a model on the Hub does not record its",
        ),
    ],
)
def test_what_cannot_be_distilled_is_refused_before_any_work(teacher, tmp_path, fields, message):
    given = {"teacher": str(teacher), "output_dir": str(tmp_path / "run")} | STUDENT | fields
    with pytest.raises(UserError, match=message):
        hfgen.train("consistency", **given)
    assert not (tmp_path / "run").exists()


def test_teachers_of_other_kinds_are_refused(guided_runs, vae_run, trained_once, tmp_path):
    unconditional = trained_once("unconditional", train_conditional, class_conditional=False, max_train_steps=20)
    for run, fields, message in (
        (guided_runs["clusters"], {}, "ClusterConditionalDiffusionPipeline"),
        (vae_run, {}, "VAEPipeline"),
        (unconditional, {"guidance_scale": 3}, "unconditional, so guidance_scale does not apply"),
    ):
        with pytest.raises(UserError, match=message):
            distil(run, tmp_path / "run", **fields)


def test_the_data_are_those_of_the_teacher(teacher, student, tmp_path, monkeypatch):
    config = hfgen.RunFolder(student).fields()
    assert (config["dataset_name"], config["train_split"]) == ("digits", "train[:80%]")
    assert config["teacher"] == str(teacher)
    held = ConsistencyConfig(teacher=str(teacher), validation_fraction=0.1, output_dir=str(tmp_path))
    assert (held.validation_fraction, held.train_split) == (0.1, "train[:80%]")
    of_checkpoint = ConsistencyConfig(teacher=str(teacher / "checkpoints" / "step-000180"), output_dir=str(tmp_path))
    assert of_checkpoint.train_split == "train[:80%]"
    monkeypatch.chdir(teacher)  # whose config.yaml is none of a teacher on the Hub
    with pytest.raises(UserError, match="does not record its training data"):
        ConsistencyConfig(teacher="ada/digits", output_dir=str(tmp_path))
    other = ConsistencyConfig(teacher=str(teacher), dataset_name="mnist", output_dir=str(tmp_path))
    assert (other.dataset_name, other.train_split) == ("mnist", "train")


def test_its_options_are_checked(student, tmp_path):
    own = load(str(student))
    for options, message in (
        ({"num_inference_steps": 7}, "from 1 to 6, not 7"),
        ({"num_inference_steps": 1, "guidance_scale": 2.0}, "only has the option num_inference_steps"),
        ({"num_inference_steps": 1, "class_labels": ["zebra"]}, "no class zebra"),
    ):
        with pytest.raises(UserError, match=message):
            next(sample(own, num_images=1, **options))
    PIL.Image.new("L", (8, 8)).save(tmp_path / "digit.png")
    with pytest.raises(UserError, match="a consistency model cannot edit"):
        hfgen.edit(str(student), task="vary", input=str(tmp_path / "digit.png"))


def test_what_a_stranger_writes_into_its_index_is_checked(student, tmp_path):
    index = json.loads((student / "model_index.json").read_text())
    for changes, message in (
        ({"_id2label": {"0": "a"}}, "must name each of the 10 classes"),
        ({"_id2label": {str(number): "a" for number in range(10)}}, "a different name for each class"),
        ({"_id2label": {"0": 5}}, "must map class indices to names"),
        ({"_num_inference_steps": 10**9}, "must be from 1 to 6"),
        ({"scheduler": ["diffusers", "EulerDiscreteScheduler"]}, "EulerDiscreteScheduler, which is no part"),
    ):
        broken = shutil.copytree(student, tmp_path / "broken", dirs_exist_ok=True)
        (broken / "model_index.json").write_text(json.dumps(index | changes))
        with pytest.raises(UserError, match=message):
            load(str(broken))


def test_its_card_names_its_teacher(student, tmp_path, without_hfgen):
    run = shutil.copytree(student, tmp_path / "student")
    hfgen.card(run, repo_id="ada/student")
    page = (run / "README.md").read_text()
    assert "base_model" not in page, "which is not on the Hub"
    assert "_name_or_path" not in (run / "unet" / "config.json").read_text(), "the place of the teacher"
    assert "distilled from the diffusion model `flow_prediction`" in page
    assert "trust_remote_code" not in page
    code = page.partition("```python\n")[2].partition("```")[0].replace('"ada/student"', repr(str(run)))
    without_hfgen.python(f"import os; os.chdir({str(tmp_path)!r})\n{code}")
    assert (tmp_path / "image.png").is_file()


def test_an_export_draws_in_one_step(student, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = tmp_path / "export"
    hfgen.export(student, output=folder)
    session = onnxruntime.InferenceSession((folder / "generator.onnx").read_bytes())
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    given = {"latents": noise.flatten(1).numpy(), "class_labels": np.array([3, 5])}
    own = load(str(student))
    generator = torch.Generator().manual_seed(0)
    expected = own(class_labels=[3, 5], num_inference_steps=1, generator=generator, output_type="pt").images
    (images,) = session.run(None, given)
    assert np.allclose((images + 1) / 2, expected.numpy(), atol=1e-4)
