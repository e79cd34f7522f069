"""Evaluations while training: what they measure, that they change nothing else, and the best model that they keep."""

import contextlib
import json
import math
import re
import shutil
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate import Accelerator
from conftest import (
    TINY,
    TINY_FLOW_MAP,
    TINY_GAN,
    TINY_JUDGE,
    TINY_TRANSLATION,
    TINY_VAE,
    finish,
    flags,
    hfgen,
    kill_when,
)
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import hfgen as api
from hfgen.api.calls import train_configured
from hfgen.config import ClassifierConfig, CycleGANConfig, DDPMConfig, GANConfig, VAEConfig
from hfgen.data.images import load_images
from hfgen.data.loader import Batch
from hfgen.families import families
from hfgen.pipelines.loading import load
from hfgen.runs.folder import METRICS_FILE, RUN_FILE, TIMES_FILE, VALIDATION, VALIDATION_CURVES, RunFolder
from hfgen.runs.record import EVALUATED, read_rows
from hfgen.sampling.sample import sample
from hfgen.training.processes import as_found
from hfgen.training.run import train
from hfgen.training.trainer import BEST_WEIGHTS
from hfgen.training.validation import Validation, metric_of
from hfgen.utils.errors import InterruptedTrainingError, TrainingError, UserError

HELD_OUT = {"train_split": "train", "validation_fraction": 0.2, "checkpointing_steps": 1000}
SHORT = HELD_OUT | {"max_train_steps": 8}
EVALUATING = {"evaluation_steps": 4, "evaluation_images": 100}
CYCLEGAN = {
    "dataset_name": "digits", "block_out_channels": [4, 8], "discriminator_block_out_channels": [4, 8],
    "target_degradation": ["invert"], "train_batch_size": 16, "num_samples": 4, "mixed_precision": "no",
}  # fmt: skip
FAMILIES = {
    "ddpm": (TINY | {"class_conditional": True}, "frechet_distance", "unet/diffusion_pytorch_model.safetensors"),
    "flow_map": (
        TINY_FLOW_MAP | {"class_conditional": True},
        "frechet_distance",
        "unet/diffusion_pytorch_model.safetensors",
    ),
    "vae": (TINY_VAE | {"prior": "mixture"}, "negative_elbo", "vae/diffusion_pytorch_model.safetensors"),
    "vae with a flow": (
        TINY_VAE | {"prior": "flow", "flow_hidden_size": 8, "flow_blocks": 1},
        "negative_elbo",
        "flow/diffusion_pytorch_model.safetensors",
    ),
    "vae as a ladder": (
        TINY_VAE | {"block_out_channels": [8], "ladder_channels": [1], "latent_dim": 20, "use_ema": True},
        "negative_elbo",
        "vae/diffusion_pytorch_model.safetensors",
    ),
    "gan": (TINY_GAN, "frechet_distance", "generator/diffusion_pytorch_model.safetensors"),
    "translation": (TINY_TRANSLATION, "psnr", "generator/diffusion_pytorch_model.safetensors"),
    "cyclegan": (CYCLEGAN, "frechet_distance", "generator/diffusion_pytorch_model.safetensors"),
    "classifier": (TINY_JUDGE | {"test_split": "test", "test_fraction": 0.2}, "accuracy", "model.safetensors"),
}


def evaluations(run) -> list[dict[str, float]]:
    return [row for row in read_rows(run / METRICS_FILE) if any(name.startswith(EVALUATED) for name in row)]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_evaluated_and_trains_as_without(family, tmp_path, capsys):
    fields, metric, weights = FAMILIES[family]
    family = family.split()[0]
    plain = api.train(family, **(fields | SHORT), output_dir=tmp_path / "plain")
    run = api.train(family, **(fields | SHORT | EVALUATING), output_dir=tmp_path / "evaluated")
    assert (run / weights).read_bytes() == (plain / weights).read_bytes()
    assert re.search(r"An evaluation takes about \d+\.\d s, every 4 steps", capsys.readouterr().out)
    rows = evaluations(run)
    assert [row["step"] for row in rows] == [4, 8]
    assert all(math.isfinite(row[f"{EVALUATED}{metric}"]) for row in rows)
    assert [row for row in read_rows(plain / METRICS_FILE) if row["step"] == 8] == [
        {name: value for name, value in rows[1].items() if not name.startswith(EVALUATED)}
    ]
    losses = [name for name in rows[0] if name.startswith(f"{EVALUATED}loss/")]
    assert losses
    assert all(name.replace("/loss/", "/train_loss/") in rows[0] for name in losses)
    protocol = json.loads((run / VALIDATION).read_text())
    assert (protocol["metric"], protocol["split"], protocol["validation_fraction"]) == (metric, "validation", 0.2)
    assert (run / "figures" / VALIDATION_CURVES).is_file()
    assert [path.name for path in run.best()] in (["best-000004"], ["best-000008"])
    if family != "classifier":
        load(str(run.best()[0]), trust_remote_code=True)


@contextlib.contextmanager
def validation_of(config) -> Iterator[Validation]:
    with as_found():
        data = load_images("digits", split="train", **config.reading_options())
        yield Validation(config, families()[config.family].task_class(), data, Accelerator(cpu=True))


def test_the_same_weights_are_evaluated_alike_and_on_held_out_images_only(tmp_path):
    fields = TINY | HELD_OUT | EVALUATING | {"prediction_type": "epsilon", "scheduler": "ddim"}
    with validation_of(DDPMConfig(**fields, output_dir=str(tmp_path / "run"))) as validation:
        networks = validation.train_task.modules
        first, second = validation.evaluate(networks, 4), validation.evaluate(networks, 8)
        assert first == second
        held_out, data = validation.held_out, validation.train
        assert held_out.fingerprint == validation.protocol["held_out_sha256"] != data.fingerprint
        assert len(held_out) + len(data) == 1797
        assert 0 < validation.protocol["floors"]["frechet_distance"] < first["frechet_distance"]
        with torch.no_grad():
            for parameter in networks["unet"].parameters():
                parameter.zero_()
        assert validation.evaluate(networks, 12)["loss/unet"] == pytest.approx(1.0, abs=0.05), (
            "of ε² if 0 is predicted"
        )


def test_metrics_are_means_over_images_whatever_the_batch_size_of_the_training(tmp_path):
    fields = TINY_JUDGE | HELD_OUT | {"test_split": "test", "test_fraction": 0.2, "evaluation_steps": 4}
    config = ClassifierConfig(**(fields | {"train_batch_size": 50}), output_dir=str(tmp_path / "run"))
    with validation_of(config) as validation:
        task, data = validation.held_out_task, validation.held_out
        found, chosen = validation._losses(100, 0), validation._chosen(validation.held_out, 100)
        once = task.validate(Batch(data.images[chosen].float() / 127.5 - 1, data.labels[chosen], 0, chosen))
        for name in ("accuracy", "loss/classifier"):
            assert found[name] == pytest.approx(float(once[name]), rel=1e-5)
    fields = TINY | HELD_OUT | EVALUATING
    with validation_of(DDPMConfig(**fields, output_dir=str(tmp_path / "run"))) as validation:
        found = validation._losses(100, 0)
    config = DDPMConfig(**(fields | {"train_batch_size": 7}), output_dir=str(tmp_path / "run"))
    with validation_of(config) as validation:
        assert validation._losses(100, 0) == pytest.approx(found, rel=1e-5), "the same noise"


def test_the_predicted_time_has_all_parts_of_an_evaluation(tmp_path, monkeypatch):
    fields = TINY | HELD_OUT | EVALUATING
    with validation_of(DDPMConfig(**fields, output_dir=str(tmp_path / "run"))) as validation:
        clock = SimpleNamespace(now=0.0)

        def taking(seconds):
            def work(*arguments):
                clock.now += seconds(*arguments)

            return work

        monkeypatch.setattr("time.monotonic", lambda: clock.now)
        monkeypatch.setattr(validation, "_losses", taking(lambda count, step: 0.01 * count))
        monkeypatch.setattr(validation, "_sample", taking(lambda count: 5 + 0.1 * count))
        monkeypatch.setattr(validation, "_floors", taking(lambda: 30))
        monkeypatch.setattr(validation.train_task, "save", taking(lambda folder: 200))
        assert validation._predicted_seconds() == pytest.approx(200 + 30 + (5 + 10) + 1)


def stop_after(count, found):
    def stop(evaluation):
        found.append(evaluation)
        if len(found) == count:
            raise TrainingError("enough")

    return stop


def test_a_listener_stops_the_training_which_then_goes_on(tmp_path):
    fields = TINY_VAE | SHORT | EVALUATING | {"checkpointing_steps": 2, "logging_steps": 1}
    config = VAEConfig(**fields, output_dir=str(tmp_path / "run"))
    task, found = families()["vae"].task_class(), []
    with pytest.raises(TrainingError, match="enough"):
        train(config, task, on_evaluation=stop_after(1, found))
    config.resume_from_checkpoint = "latest"
    run = RunFolder(train(config, task, on_evaluation=found.append))
    assert [evaluation.step for evaluation in found] == [4, 4, 8]
    assert found[0].metrics == found[1].metrics
    assert found[0].seconds > 0
    assert [row["step"] for row in evaluations(run)] == [4, 8]
    *_, times = read_rows(run / TIMES_FILE)
    assert times["seconds"] <= found[-1].seconds + 0.001, "the last evaluation is not part of the training"
    (run / RUN_FILE).unlink()
    train(config, task)
    *_, times = read_rows(run / TIMES_FILE)
    assert round(times["seconds"], 1) == json.loads((run / RUN_FILE).read_text())["train_seconds"]
    config.evaluation_images = 120
    with pytest.raises(UserError, match="evaluation_images: 100 → 120"):
        train(config, task)


def test_an_evaluation_that_cannot_end_in_time_is_left_to_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(Validation, "_predicted_seconds", lambda validation: 100.0)
    run = api.train("vae", **(TINY_VAE | HELD_OUT | EVALUATING), max_train_seconds=1, output_dir=tmp_path / "run")
    assert [row["step"] for row in evaluations(run)] == [read_rows(run / METRICS_FILE)[-1]["step"]]


def test_a_training_that_is_stopped_in_its_last_evaluation_is_saved(tmp_path, monkeypatch):
    def stop(validation, networks, step, snapshot):
        raise KeyboardInterrupt

    fields = TINY_VAE | SHORT | EVALUATING | {"evaluation_steps": 8, "output_dir": tmp_path / "run"}
    monkeypatch.setattr(Validation, "evaluate", stop)
    with pytest.raises(InterruptedTrainingError, match=r"after step 8, the last one. .*hfgen.train\('vae"):
        api.train("vae", **fields)
    monkeypatch.undo()
    run = api.train("vae", **fields, resume_from_checkpoint="latest")
    assert [row["step"] for row in evaluations(run)] == [8]
    plain = api.train("vae", **(TINY_VAE | SHORT), output_dir=tmp_path / "plain")
    weights = "vae/diffusion_pytorch_model.safetensors"
    assert (run / weights).read_bytes() == (plain / weights).read_bytes()


def test_evaluations_with_other_images_are_refused_on_resuming(tmp_path):
    for split, seed in (("train", 0), ("validation", 1), ("test", 2)):
        (tmp_path / "data" / split).mkdir(parents=True)
        for number, image in enumerate(np.random.default_rng(seed).integers(0, 256, (100, 8, 8), np.uint8)):
            PIL.Image.fromarray(image).save(tmp_path / "data" / split / f"{number}.png")
    fields = TINY_VAE | EVALUATING | {
        "dataset_name": str(tmp_path / "data"), "train_split": "train", "output_dir": tmp_path / "run",
        "class_conditional": False,
    }  # fmt: skip
    api.train("vae", **fields | {"max_train_steps": 8})
    PIL.Image.new("L", (8, 8)).save(tmp_path / "data" / "validation" / "7.png")
    more = fields | {"max_train_steps": 12, "resume_from_checkpoint": "latest"}
    with pytest.raises(
        UserError, match="not compare with the earlier ones, which had other held-out images; leave out"
    ):
        api.train("vae", **more)
    api.train("vae", **more | {"evaluation_steps": None})


def test_a_damaged_best_model_is_named(overfitted, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(overfitted[0].path, copy)
    (copy / RUN_FILE).unlink()
    weights = RunFolder(copy).best()[-1] / BEST_WEIGHTS
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(TrainingError, match="best-.*best_weights.safetensors cannot be read .* Without .*best-"):
        api.train("vae", config=copy / "config.yaml", output_dir=copy, resume_from_checkpoint="latest")


def test_the_best_model_at_the_end_has_its_own_discriminator(tmp_path, monkeypatch):
    monkeypatch.setattr(Validation, "best", lambda validation: validation.history[0])
    fields = TINY_GAN | SHORT | EVALUATING | {"save_discriminator": True, "load_best_model_at_end": True}
    run = api.train("gan", **fields, output_dir=tmp_path / "run")
    for name in ("generator", "discriminator"):
        weights = [
            load_file(place / name / "diffusion_pytorch_model.safetensors") for place in (run.path, run.best()[0])
        ]
        assert all(weights[1][key].equal(tensor) for key, tensor in weights[0].items()), name


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_killed_run_has_the_same_evaluations_and_best_model(tmp_path, num_processes):
    fields = TINY_VAE | HELD_OUT | {
        "max_train_steps": 60, "evaluation_steps": 5, "evaluation_images": 100, "checkpointing_steps": 8,
        "logging_steps": 1, "load_best_model_at_end": True,
    }  # fmt: skip
    runs = [RunFolder(tmp_path / name) for name in ("whole", "broken")]
    words = [["train", "vae", *flags(**fields), "--output_dir", str(run)] for run in runs]
    finish(hfgen(*words[0], num_processes=num_processes))
    process = hfgen(*words[1], num_processes=num_processes)
    kill_when(process, lambda: (runs[1] / METRICS_FILE).exists() and len(read_rows(runs[1] / METRICS_FILE)) > 31)
    process.communicate()
    assert process.returncode != 0
    finish(hfgen(*words[1], "--resume_from_checkpoint", "latest", num_processes=num_processes))
    metrics = [(run / METRICS_FILE).read_bytes() for run in runs]
    assert metrics[0] == metrics[1]
    best = [run.best()[-1] for run in runs]
    assert best[0].name == best[1].name
    assert load_file(best[0] / BEST_WEIGHTS).keys() == load_file(best[1] / BEST_WEIGHTS).keys()
    for name, tensor in load_file(best[0] / BEST_WEIGHTS).items():
        assert load_file(best[1] / BEST_WEIGHTS)[name].equal(tensor), name
    records = [json.loads((run / RUN_FILE).read_text()) for run in runs]
    assert records[0]["best"] == records[1]["best"]
    assert not [path for run in runs for path in run.path.rglob("outdated/*/checkpoints/best-*")]


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory):
    """A VAE of 30 images, trained long after its validation loss turned."""
    fields = TINY_VAE | HELD_OUT | {
        "max_train_samples": 30, "max_train_steps": 700, "evaluation_steps": 50, "evaluation_images": 300,
        "load_best_model_at_end": True, "checkpointing_steps": 350, "report_to": ["tensorboard"],
    }  # fmt: skip
    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO

    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as errors:
        run = api.train("vae", **fields, output_dir=tmp_path_factory.mktemp("overfitted") / "run")
    return run, out.getvalue(), errors.getvalue()


def test_overfitting_is_told_once_and_kept(overfitted):
    run, _, errors = overfitted
    record = json.loads((run / RUN_FILE).read_text())
    told = re.findall(r"hfgen: warning at step \d+: (overfitting since step (\d+): .*)", errors)
    assert len(told) == 1
    assert int(told[0][1]) == record["best"]["step"] < 700
    assert record["problems"] == [told[0][0]]
    losses = {row["step"]: row["validation/loss/vae"] for row in evaluations(run)}
    assert min(losses, key=losses.get) == record["best"]["step"]
    assert "overfitting" in (run / "index.html").read_text()


def test_the_best_model_is_that_of_the_run(overfitted, tmp_path):
    run, out, _ = overfitted
    step = json.loads((run / RUN_FILE).read_text())["model_step"]
    assert f"The model of the run is the best one, of step {step}, not the last" in out
    assert "measure on the split validation, by which the best model was chosen; training with test_fraction" in out
    best = next(row for row in evaluations(run) if row["step"] == step)["validation/negative_elbo"]
    place = run.best()[-1]
    assert f"The best evaluation: negative_elbo {best:.4g} after {step} steps; its model is in {place}\n" in out
    assert [path.name for path in run.best()] == [f"best-{step:06d}"]
    weights = [folder / "vae/diffusion_pytorch_model.safetensors" for folder in (run, run.best()[-1])]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    last = load_file(run.checkpoints / "step-000700" / "vae/diffusion_pytorch_model.safetensors")
    assert not all(last[name].equal(tensor) for name, tensor in load_file(weights[0]).items())
    told = f"that of step {step}, the best of the evaluations while training"
    page = (run / "index.html").read_text()
    assert told in page
    assert re.search(rf'after <span id="grid-step">{step}</span> steps', page)
    card = api.card(run, gallery=tmp_path / "gallery").read_text()
    assert told in card
    assert "](figures/validation.png)" in card
    assert (tmp_path / "gallery" / run.path.name / "figures" / VALIDATION_CURVES).is_file()
    pipeline = load(str(run), trust_remote_code=True)
    shown = torch.cat(list(sample(pipeline, num_images=4, seed=0, prior="normal")))

    from hfgen.figures.grids import sample_grid

    with PIL.Image.open(run.grids()[-1]) as picture:
        assert picture.tobytes() == sample_grid(shown).convert(picture.mode).tobytes(), "the last grid shows it"


def test_an_older_checkpoint_puts_later_best_models_away(overfitted, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(overfitted[0].path, copy)
    step = int(RunFolder(copy).best()[-1].name.removeprefix("best-"))
    assert step < 350, "which the checkpoint resumes"
    shutil.copytree(RunFolder(copy).best()[-1], copy / "checkpoints" / "best-000600")
    again = ["--config", str(copy / "config.yaml"), "--output_dir", str(copy), "--max_train_steps", "360"]
    finish(hfgen("train", "vae", *again, "--resume_from_checkpoint", "step-000350"))
    assert [path.name for path in RunFolder(copy).best()] == [f"best-{step:06d}"]
    assert (copy / "outdated" / "1" / "checkpoints" / "best-000600").is_dir()
    assert json.loads((copy / RUN_FILE).read_text())["best"]["step"] == step


def test_trackers_get_the_evaluations(overfitted):
    run = overfitted[0]
    folder = next(run.path.rglob("events.out.tfevents*")).parent
    found = EventAccumulator(str(folder), {"scalars": 0}).Reload()
    sent = {event.step: event.value for event in found.Scalars("validation/negative_elbo")}
    expected = {row["step"]: row["validation/negative_elbo"] for row in evaluations(run)}
    assert sent == pytest.approx(expected, rel=1e-5)


def test_evaluations_by_time_keep_to_their_share(tmp_path):
    fields = TINY | HELD_OUT | {"evaluation_seconds": 10, "evaluation_images": 100}
    with validation_of(DDPMConfig(**fields, output_dir=str(tmp_path / "run"))) as validation:
        validation.seconds = 1.2
        validation.plan(0.0)
        assert validation.cost() == (
            "An evaluation takes about 1.2 s; evaluations take at most 3 % of the training time (evaluation_share), "
            "so there is one about every 40 s, not 10 s"
        )
        validation.config.max_train_seconds = 41
        assert validation.cost().endswith("not 10 s. The training is shorter, so the only one is at its end")
        validation.config.max_train_seconds, validation.config.evaluation_share = 42, 1.0
        assert validation.cost() == "An evaluation takes about 1.2 s, every 10 s"
        validation.config.evaluation_share = 0.03
        assert [validation.is_due(1, seconds) for seconds in (10, 39.9, 40)] == [False, False, True]
        validation.note(0.6, 40.6)
        assert validation.spent == 0.6
        assert [validation.is_due(2, seconds) for seconds in (49.9, 50)] == [False, True], "1.2 of 50 s are below 3 %"
        validation.note(2.4, 52.4)
        assert [validation.is_due(3, seconds) for seconds in (179.9, 180.1)] == [False, True], "5.4 s of 180 s are 3 %"
        validation.resume([], 3.0, 90.0)
        assert [validation.is_due(3, seconds) for seconds in (179.9, 180.1)] == [False, True]


def test_the_time_of_evaluations_is_recorded_and_part_of_the_training(tmp_path):
    run = api.train("ddpm", **(TINY | HELD_OUT), max_train_seconds=3, evaluation_seconds=1, evaluation_share=0.5,
                    evaluation_images=100, output_dir=tmp_path / "run")  # fmt: skip
    record = json.loads((run / RUN_FILE).read_text())
    *during, last = evaluations(run)
    assert during
    assert last["step"] == record["optimizer_steps"], "there is one at the end in any case"
    assert 0 < record["evaluation_seconds"] < record["train_seconds"]
    assert record["train_seconds"] < 6


@pytest.mark.parametrize(("config", "message"), [
    (lambda out: DDPMConfig(**(TINY | EVALUATING), output_dir=out),
     "digits has no split validation for evaluations while training; hold out a part of train with "
     "--validation_fraction 0.05"),
    (lambda out: DDPMConfig(**(TINY | HELD_OUT | EVALUATING | {"evaluation_images": 20}), output_dir=out),
     "need more than 64 samples and held-out images each, not 20; raise evaluation_images"),
    (lambda out: DDPMConfig(**(TINY | HELD_OUT | EVALUATING | {"validation_fraction": 0.01}), output_dir=out),
     "each, not 20; raise validation_fraction"),
    (lambda out: GANConfig(**(TINY_GAN | HELD_OUT | EVALUATING | {"resolution": 16}), output_dir=out),
     "needs a judge, as its losses do not measure its samples; .* name it with --evaluation_judge"),
    (lambda out: DDPMConfig(**(TINY | HELD_OUT | EVALUATING | {"evaluation_seconds": 1}), output_dir=out),
     "set evaluation_seconds or evaluation_steps, not both"),
    (lambda out: DDPMConfig(**(TINY | HELD_OUT | {"load_best_model_at_end": True}), output_dir=out),
     "load_best_model_at_end needs evaluations"),
    (lambda out: DDPMConfig(**(TINY | HELD_OUT | EVALUATING | {"evaluation_images": 1001}), output_dir=out),
     "evaluation_images must be at most 1,000"),
    (lambda out: DDPMConfig(**(TINY | HELD_OUT | {"evaluation_share": 1.5, "evaluation_seconds": 1}), output_dir=out),
     "evaluation_share must be at most 1"),
])  # fmt: skip
def test_wrong_settings_are_refused_before_any_work(config, message, tmp_path):
    out = str(tmp_path / "run")
    with pytest.raises(UserError, match=message):
        train_configured(config(out), ())
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_the_metric_depends_on_the_family_and_the_judge(tmp_path):
    out = {"output_dir": str(tmp_path / "run")}
    assert metric_of(DDPMConfig(**(TINY | HELD_OUT), **out)) == ("frechet_distance", False)
    assert metric_of(DDPMConfig(**(TINY | HELD_OUT), resolution=16, **out)) == ("loss/unet", False)
    assert metric_of(VAEConfig(**(TINY_VAE | HELD_OUT), **out)) == ("negative_elbo", False)
    assert metric_of(CycleGANConfig(**(CYCLEGAN | HELD_OUT), **out)) == ("frechet_distance", False)
    assert metric_of(CycleGANConfig(**(CYCLEGAN | HELD_OUT), resolution=16, **out)) == ("loss/generators", False)


def test_a_loss_turns_if_it_rises_twice_while_that_of_training_images_falls():
    def problems(held_out, training, higher_is_better=False):
        history = [
            {"step": number, "loss/unet": a, "train_loss/unet": b}
            for number, (a, b) in enumerate(zip(held_out, training, strict=True))
        ]
        return Validation.problems(SimpleNamespace(history=history))

    falling = [1.0, 0.9, 0.8, 0.7]
    assert problems([1.0, 0.8, 0.82, 0.83], falling) == [
        "overfitting since step 1: loss/unet of held-out images, 0.8 there, has risen, while that of training images "
        "has fallen"
    ]
    assert not problems([1.0, 0.8, 0.79, 0.83], falling), "once"
    assert not problems([1.0, 0.8, 0.803, 0.807], falling), "by less than a hundredth"
    assert not problems([1.0, 0.8, 0.82, 0.83], [1.0, 0.7, 0.72, 0.73]), "both rise"
    assert not problems([], [])
