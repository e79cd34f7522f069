"""From digits to a run folder that diffusers alone can load, and every mistake that is refused before training."""

import io
import json
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import PIL.Image
import pytest
import safetensors.torch
import torch
import yaml
from conftest import TINY, finish, flags, hfgen
from diffusers import DDPMPipeline, DiffusionPipeline
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hfgen.cli.main import main
from hfgen.config import DDPMConfig
from hfgen.pipelines.loading import load
from hfgen.tasks.diffusion import DiffusionTask
from hfgen.training.publisher import Publisher
from hfgen.training.run import train
from hfgen.training.trackers import start_trackers, track_picture
from hfgen.training.trainer import STATE_FILE
from hfgen.utils.errors import InterruptedTrainingError, TrainingError, UserError


def run_training(**fields) -> Path:
    return train(DDPMConfig(**(TINY | fields)), DiffusionTask)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    fields = {"checkpointing_steps": 20, "checkpoints_total_limit": 2, "sample_steps": [7, 30], "max_train_steps": 90}
    return run_training(output_dir=str(folder), learning_rate=3e-3, **fields)


def test_the_loss_falls(run):
    losses = [json.loads(line)["loss/unet"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 90
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_a_training_within_its_warmup_is_a_problem(tmp_path, capsys):
    run = run_training(output_dir=str(tmp_path / "run"), max_train_seconds=0.3, lr_warmup_steps=100_000)
    (problem,) = json.loads((run / "run.json").read_text())["problems"]
    assert problem.startswith("lr_warmup_steps 100,000 is more than the ")
    assert problem in capsys.readouterr().err


def test_another_number_of_threads_is_told_on_resuming(tmp_path, capsys):
    fields = {"output_dir": str(tmp_path / "run"), "num_samples": 1}
    run_training(**fields, max_train_steps=1)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        run_training(**fields, max_train_steps=2, resume_from_checkpoint="latest")
    finally:
        torch.set_num_threads(threads)
    assert f"The run had {threads} threads and continues with {threads + 1}: sums" in capsys.readouterr().out


def test_a_run_folder_is_complete(run):
    assert {path.name for path in run.iterdir() if path.name != ".lock"} == {
        "model_index.json", "unet", "scheduler", "config.yaml", "metrics.jsonl", "times.jsonl", "run.json",
        "samples", "figures", "checkpoints",
    }  # fmt: skip
    assert sorted(p.name for p in (run / "samples").iterdir()) == [f"step-{s:06d}.png" for s in (7, 30, 90)]
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-000080", "step-000090"]
    with PIL.Image.open(run / "figures" / "training_curves.png") as curves:
        assert curves.size[0] > 300
    record = json.loads((run / "run.json").read_text())
    assert (record["optimizer_steps"], record["images_seen"]) == (90, 90 * 16)
    assert record["images_per_second"] > 0
    assert not [path for path in run.rglob("*") if path.suffix in {".bin", ".pt", ".pkl", ".ckpt", ".pth"}]


@pytest.mark.parametrize("error", [TrainingError("diverged"), InterruptedTrainingError("stopped", signal.SIGTERM)])
def test_a_training_that_stops_waits_for_its_uploads(tmp_path, error):
    publisher = mock.Mock(Publisher, **{"start.side_effect": error})
    config = DDPMConfig(**TINY | {"output_dir": str(tmp_path), "max_train_steps": 2, "checkpointing_steps": 1})
    with pytest.raises(type(error), match=str(error)):
        train(config, DiffusionTask, publisher)
    publisher.wait.assert_called_once()


def test_diffusers_alone_loads_a_run_and_a_checkpoint(run, without_hfgen):
    code = (
        "import sys\nfrom diffusers import DiffusionPipeline\n"
        "for folder in sys.argv[1:]:\n"
        "    pipe = DiffusionPipeline.from_pretrained(folder)\n"
        "    assert type(pipe).__name__ == 'DDPMPipeline'\n"
        "    image = pipe(num_inference_steps=2).images[0]\n"
        "    assert image.size == (8, 8) and image.mode == 'L'\n"
    )
    folders = [str(run), str(run / "checkpoints" / "step-000090")]
    without_hfgen.python(code, *folders)


def test_the_pipeline_holds_the_averaged_weights(run):
    state = safetensors.torch.load_file(run / "checkpoints" / "step-000090" / STATE_FILE)
    pipeline = DiffusionPipeline.from_pretrained(run)
    trained = [key for key in state if key.startswith("modules.unet.")]
    names = [name for name, _ in pipeline.unet.named_parameters()]
    assert len(trained) == len(names)
    for index, parameter in enumerate(pipeline.unet.parameters()):
        assert parameter.equal(state[f"averages.unet.{index}"])
    assert any(not state[f"averages.unet.{i}"].equal(state[f"modules.unet.{n}"]) for i, n in enumerate(names))


def test_without_averaging_the_pipeline_holds_the_trained_weights(tmp_path):
    run = run_training(output_dir=str(tmp_path), max_train_steps=3, use_ema=False)
    state = safetensors.torch.load_file(run / "checkpoints" / "step-000003" / STATE_FILE)
    assert not [key for key in state if key.startswith("averages")]
    for name, parameter in DiffusionPipeline.from_pretrained(run).unet.named_parameters():
        assert parameter.equal(state[f"modules.unet.{name}"])


def test_a_saved_pipeline_gives_the_same_images(run, tmp_path):
    pipeline = load(str(run))
    pipeline.save_pretrained(tmp_path)
    again = load(str(tmp_path))
    assert isinstance(again, DDPMPipeline)
    images = [
        p(2, generator=torch.manual_seed(0), num_inference_steps=5, output_type="np").images for p in (pipeline, again)
    ]
    assert np.array_equal(*images)


def test_a_run_that_is_still_training_is_sampled_from_its_newest_checkpoint(run, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-000090").symlink_to(run / "checkpoints" / "step-000090")
    assert load(str(tmp_path)).unet.config.sample_size == 8
    with pytest.raises(UserError, match="contains no pipeline"):
        load(str(run / "samples"))


def test_the_seed_decides_everything(tmp_path):
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(len(name))
        run_training(output_dir=str(tmp_path / name), max_train_steps=3, seed=seed)
        weights.append((tmp_path / name / "checkpoints" / "step-000003" / STATE_FILE).read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_a_finished_run_can_be_prolonged(tmp_path):
    short = {"output_dir": str(tmp_path / "short"), "lr_scheduler": "constant"}
    run_training(max_train_steps=4, **short)
    run_training(max_train_steps=8, resume_from_checkpoint="latest", **short)
    run_training(max_train_steps=8, output_dir=str(tmp_path / "long"), lr_scheduler="constant")
    states = [(tmp_path / n / "checkpoints" / "step-000008" / STATE_FILE).read_bytes() for n in ("short", "long")]
    assert states[0] == states[1]


def test_resuming_an_earlier_checkpoint_forgets_what_came_after(tmp_path):
    fields = {"output_dir": str(tmp_path), "checkpointing_steps": 3}
    run_training(**fields, max_train_steps=9)
    whole = (tmp_path / "checkpoints" / "step-000009" / STATE_FILE).read_bytes()
    run_training(**fields, max_train_steps=6, resume_from_checkpoint="step-000003")
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000003", "step-000006"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 6
    assert [p.name for p in (tmp_path / "samples").iterdir()] == ["step-000006.png"], "not that of step 9"
    run_training(**fields, max_train_steps=9, resume_from_checkpoint="latest")
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 9
    assert (tmp_path / "checkpoints" / "step-000009" / STATE_FILE).read_bytes() != whole, "another schedule"


def test_finishing_again_spares_what_is_there(tmp_path, capsys):
    run_training(output_dir=str(tmp_path), max_train_steps=2)
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    before = [file.stat().st_ino for file in (checkpoint, tmp_path / "run.json")]
    run_training(output_dir=str(tmp_path), max_train_steps=2, resume_from_checkpoint="latest")
    assert "is finished" in capsys.readouterr().out
    assert [file.stat().st_ino for file in (checkpoint, tmp_path / "run.json")] == before
    (tmp_path / "model_index.json").unlink()  # as if killed while it finished
    run_training(output_dir=str(tmp_path), max_train_steps=2, resume_from_checkpoint="latest")
    assert checkpoint.stat().st_ino == before[0]
    assert load(str(tmp_path)).unet.config.sample_size == 8


def test_a_run_is_not_resumed_on_other_images_or_from_ruins(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(3):
        PIL.Image.new("L", (8, 8), 50 * number).save(pictures / f"{number}.png")
    fields = {"dataset_name": None, "train_data_dir": str(pictures)}
    folder = str(tmp_path / "run")
    run = run_training(max_train_steps=2, output_dir=folder, **fields)
    PIL.Image.new("L", (8, 8), 9).save(pictures / "1.png")
    with pytest.raises(UserError, match="the images of .*pictures are not those of step-000002"):
        run_training(max_train_steps=3, output_dir=folder, resume_from_checkpoint="latest", **fields)
    (run / "checkpoints" / "step-000002" / STATE_FILE).unlink()
    with pytest.raises(UserError, match="every checkpoint in .* is damaged"):
        run_training(max_train_steps=3, output_dir=folder, resume_from_checkpoint="latest", **fields)
    with pytest.raises(UserError, match="inside the image folder train_data_dir"):
        run_training(output_dir=str(pictures / "run"), **fields)


def test_bf16_trains_almost_as_fp32_does(tmp_path):
    for precision in ("no", "bf16"):
        run_training(output_dir=str(tmp_path / precision), max_train_steps=20, mixed_precision=precision)
    last = [
        json.loads((tmp_path / p / "metrics.jsonl").read_text().splitlines()[-1])["loss/unet"] for p in ("no", "bf16")
    ]
    assert last[0] != last[1]
    assert last[1] == pytest.approx(last[0], rel=0.05)


def test_colour_images_of_another_size(tmp_path):
    (tmp_path / "pictures").mkdir()
    for number in range(4):
        PIL.Image.new("RGB", (20, 14), (60 * number, 0, 200)).save(tmp_path / "pictures" / f"{number}.png")
    source = {"dataset_name": None, "train_data_dir": str(tmp_path / "pictures")}
    source |= {"resolution": 12, "random_flip": True}
    run = run_training(output_dir=str(tmp_path / "run"), max_train_steps=2, **source)
    image = load(str(run))(num_inference_steps=2).images[0]
    assert (image.size, image.mode) == ((12, 12), "RGB")


def test_tensorboard_gets_metrics_speed_grids_and_settings_and_its_folder_is_told(tmp_path, capsys):
    run = run_training(output_dir=str(tmp_path / "mine"), max_train_steps=4, report_to=["tensorboard"],
                       logging_steps=2, sample_steps=[2])  # fmt: skip
    folder = run / "hfgen"
    assert f"TensorBoard's files are in {folder}; see tensorboard --logdir {run}" in capsys.readouterr().out
    found = EventAccumulator(str(folder), {"images": 0, "scalars": 0}).Reload()
    assert {"loss/unet", "grad_norm/unet", "learning_rate", "images_per_second"} <= set(found.Tags()["scalars"])
    assert [one.step for one in found.Scalars("images_per_second")] == [2, 4]
    assert min(one.value for one in found.Scalars("images_per_second")) > 1
    assert [one.step for one in found.Images("samples")] == [2, 4], "the one at the end too"
    sent = PIL.Image.open(io.BytesIO(found.Images("samples")[-1].encoded_image_string))
    assert np.array_equal(np.array(sent), np.array(PIL.Image.open(run / "samples" / "step-000004.png")))
    settings = yaml.safe_load(next(folder.rglob("hparams.yml")).read_text())
    assert settings.keys() == yaml.safe_load((run / "config.yaml").read_text()).keys()
    assert (settings["block_out_channels"], settings["resolution"], settings["seed"]) == ("8 16", "None", 0)


@pytest.mark.parametrize(
    ("name", "option", "image"),
    [
        ("wandb", "name", lambda picture: [picture]),
        ("swanlab", "experiment_name", lambda picture: [picture]),
        ("clearml", "task_name", lambda picture: picture),
        ("trackio", "name", lambda picture: ("shown by trackio", picture)),
        ("mlflow", "run_name", None),
    ],
)
def test_each_tracker_gets_the_name_of_the_run_its_settings_and_grids(
    name, option, image, tmp_path, monkeypatch, capsys
):
    sent = []
    record = {"log": lambda values, step: sent.append(values), "log_images": lambda values, step: sent.append(values)}
    started = mock.Mock()
    accelerator = SimpleNamespace(trackers=[SimpleNamespace(name=name, **record)], init_trackers=started, print=print)
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(Image=lambda picture: ("shown by trackio", picture)))
    start_trackers(accelerator, tmp_path / "mine", {"seed": 3, "hidden_sizes": [8, 16]})
    project, options = started.call_args
    assert (project, options["config"]) == (("hfgen",), {"seed": 3, "hidden_sizes": "8 16"})
    assert options["init_kwargs"][name] == {option: "mine"}
    picture = PIL.Image.new("RGB", (4, 4))
    track_picture(accelerator, "samples", picture, 2)
    assert sent == ([{"samples": image(picture)}] if image else [])
    assert (f"{name} gets the metrics, but no sample grids" in capsys.readouterr().out) == (image is None)


def test_compiled_networks_train(tmp_path):
    tiny = {name: TINY[name] for name in ("dataset_name", "train_batch_size", "num_samples", "mixed_precision")}
    fields = {"hidden_sizes": [8], "num_mixture_components": 1, "max_train_steps": 2, "output_dir": tmp_path}
    fields |= {"prior": "flow", "flow_hidden_size": 4, "flow_blocks": 1}
    finish(hfgen("train", "vae", "--torch_compile", *flags(**tiny, **fields)))
    assert load(str(tmp_path)).vae.config.hidden_sizes == [8]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"block_out_channels": [8] * 5},
            "8×8 pixels are not divisible so often; use fewer entries, or a --resolution such as 16",
        ),
        ({"prediction_type": "sample", "scheduler": "pndm"}, "scheduler pndm is not compatible .* sample"),
        ({"report_to": ["wandb"]}, "report_to wandb: no such tracker is installed; installed: .*tensorboard"),
        ({"dataset_name": None, "train_data_dir": "mnist"}, "there is no folder .*mnist"),
        ({"block_out_channels": []}, "must have an entry"),
        (
            {"block_out_channels": [8, 16], "attention_head_dim": 12, "add_attention": True},
            r"attention_head_dim, which is 12; \[16\] are not",
        ),
        ({"attention_head_dim": 8}, "attention_head_dim needs attention: set attention_levels or add_attention"),
        ({"mixed_precision": "fp16"}, "fp16 needs a GPU"),
        ({"dataset_name": "ylecun/mnist"}, "ylecun/mnist is not in the local cache"),
        ({"train_split": "test"}, "cannot open split test of digits"),
        ({"resume_from_checkpoint": "step-000003"}, "cannot resume: .* holds no run"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path, fields, message):
    if "fp16" in message and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match=message):
        run_training(output_dir=str(tmp_path / "run"), **fields)
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten_and_not_resumed_as_another(run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(UserError, match="already holds a run; continue it with --resume_from_checkpoint latest"):
        run_training(output_dir=str(run))
    with pytest.raises(UserError, match=r"another configuration \(learning_rate: 0.003 → 0.1\)"):
        run_training(output_dir=str(run), learning_rate=0.1, resume_from_checkpoint="latest")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_mistake_is_told_by_the_command_line(tmp_path, capsys):
    assert (
        main(["train", "ddpm", "--dataset_name", "digits", "--resolution", "9", "--output_dir", str(tmp_path / "r")])
        == 2
    )
    captured = capsys.readouterr()
    assert "hfgen: a U-Net with 3 entries in block_out_channels halves the images 2 times" in captured.err
    assert "Traceback" not in captured.err
    assert not (tmp_path / "r").exists()


def test_real_mnist_trains(tmp_path, real_data):
    run = run_training(dataset_name="mnist", output_dir=str(tmp_path), max_train_steps=20, train_batch_size=32)
    losses = [json.loads(line)["loss/unet"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    assert load(str(run)).unet.config.sample_size == 28


def test_what_is_to_be_published_needs_a_publisher(tmp_path):
    with pytest.raises(UserError, match="push_to_hub needs a publisher"):
        run_training(output_dir=str(tmp_path / "run"), push_to_hub=True, hub_model_id="ada/x")
    assert not (tmp_path / "run").exists()
