"""Runs that are killed, stopped or starved go on as if nothing had happened. Real processes, real signals."""

import dataclasses
import json
import re
import resource
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from conftest import TINY, finish, flags, hfgen, kill_when
from forked import Forked

from hfgen.config import DDPMConfig
from hfgen.config.training import changed_fields, read_fields
from hfgen.runs.checkpoints import damage, list_checkpoints, newest_complete
from hfgen.training.trainer import METRICS_FILE, STATE_FILE


def train(run: Path, *extra: str, num_processes: int = 1, fork: bool = True, **fields) -> Forked | subprocess.Popen:
    settings = (
        TINY | {"output_dir": run, "checkpointing_steps": 4, "logging_steps": 1, "max_train_samples": 100} | fields
    )
    return hfgen("train", "ddpm", *flags(**settings), *extra, num_processes=num_processes, fork=fork)


def train_two(runs: tuple[Path, Path], *extra: str, **fields) -> list[Forked]:
    """Start two processes without a launcher, which would end the one when the other ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank, run in enumerate(runs):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (variables | {"MASTER_ADDR": "127.0.0.1"}).items():
                patch.setenv(name, str(value))
            processes.append(train(run, *extra, **fields))
    return processes


def steps_done(run: Path) -> int:
    file = run / METRICS_FILE
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.mark.parametrize(("num_processes", "optimizer"), [(1, "adamw"), (2, "muon")])
def test_a_killed_run_ends_with_the_same_bits(tmp_path, num_processes, optimizer):
    """With accumulation, dropout, flips and EMA; killed in the middle of an epoch (4 or 2 steps) and of a save.

    The whole run is started as by a user (by torchrun, if in two processes), with other hashes than the forked ones.
    """
    settings = {
        "gradient_accumulation_steps": 2,
        "dropout": 0.1,
        "random_flip": True,
        "max_train_steps": 44,
        "num_processes": num_processes,
        "optimizer": optimizer,
        "train_batch_size": 13,
    }
    finish(train(tmp_path / "whole", fork=False, **settings))
    broken = tmp_path / "broken"
    process = train(broken, **settings)
    kill_when(process, lambda: steps_done(broken) >= 10)
    process.communicate()
    assert process.returncode != 0
    process = train(broken, "--resume_from_checkpoint", "latest", **settings)
    kill_when(process, lambda: steps_done(broken) > 14 and list(broken.glob("checkpoints/.incomplete-*-step-*")))
    process.communicate()
    output = finish(train(broken, "--resume_from_checkpoint", "latest", **settings))
    assert "Resuming" in output
    for name in (METRICS_FILE, f"checkpoints/step-000044/{STATE_FILE}", "unet/diffusion_pytorch_model.safetensors"):
        assert (broken / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not list(broken.rglob(".incomplete*"))


GRADIENTS = """
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from hfgen.config import DDPMConfig
from hfgen.data.images import ImageData
from hfgen.runs.folder import RunFolder
from hfgen.training.trainer import Trainer

folder, tests = sys.argv[1:]
sys.path.insert(0, tests)
from test_engine import PROPORTIONAL, Game

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
config = DDPMConfig(
    dataset_name="digits",
    output_dir=folder,
    gradient_accumulation_steps=2,
    train_batch_size=8 // accelerator.num_processes,
    learning_rate=0.1,
    lr_warmup_steps=0,
    max_train_steps=9,
    **PROPORTIONAL,
)
images = torch.arange(0, 96, 3, dtype=torch.uint8).view(-1, 1, 1, 1)
task = Game()
task.data = ImageData(images, None, None, "test", "fingerprint")
trainer = Trainer(config, task, accelerator, RunFolder(Path(folder)))
trainer.prepare_run_folder()
trainer.run_loop()
weights = torch.cat([module.weight.detach().flatten() for module in trainer.unwrapped.values()])
everyones = accelerator.gather(weights[None])
assert everyones.shape == (accelerator.num_processes, 2) and (everyones == weights).all(), everyones
remembered = accelerator.gather(torch.tensor(task.remembered[::2])[None])  # before the first pass of each step
assert remembered.shape == (accelerator.num_processes, 9) and (remembered == remembered[0]).all(), remembered
accelerator.print("weights", *weights.tolist())
trainer.release()
"""


def test_two_processes_do_what_one_does_with_twice_the_batch(tmp_path):
    """On a game without noise, gradients averaged over two halves are those of the whole batch, and buffers alike."""
    script = tmp_path / "gradients.py"
    script.write_text(GRADIENTS)
    weights = {}
    for number, name in enumerate(("one", "two"), 1):
        process = Forked(str(script), str(tmp_path / name), str(Path(__file__).parent), num_processes=number)
        weights[name] = [float(w) for w in re.search("^weights (.*) (.*)$", finish(process), re.MULTILINE).groups()]
    assert weights["two"] == pytest.approx(weights["one"], rel=1e-5)
    assert all(abs(weight) > 0.01 for weight in weights["one"])


def test_the_number_of_processes_is_recorded_and_a_change_is_told(tmp_path):
    finish(train(tmp_path, max_train_steps=4, num_processes=2))
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["num_processes"], record["images_seen"]) == (2, 4 * 32)
    output = finish(train(tmp_path, "--resume_from_checkpoint", "latest", max_train_steps=6))
    assert "The run had 2 processes and continues with 1" in output


def test_of_two_processes_one_signal_stops_both_and_one_death_ends_the_other(tmp_path):
    """They do not speak to each other in the metrics, which come once in 100,000 steps."""
    fields = {
        "max_train_steps": 100_000,
        "checkpointing_steps": 100_000,
        "logging_steps": 100_000,
        "sample_steps": [2],
    }
    first, second = train_two((tmp_path, tmp_path), **fields)
    kill_when(second, lambda: (tmp_path / "samples" / "step-000002.png").exists(), signal.SIGUSR1)
    for process in (first, second):
        assert "stopped by SIGUSR1 after step" in finish(process, 128 + signal.SIGUSR1)
    (checkpoint,) = list_checkpoints(tmp_path / "checkpoints")
    fields["sample_steps"] = [int(checkpoint.name.removeprefix("step-")) + 2]
    first, second = train_two((tmp_path, tmp_path), "--resume_from_checkpoint", "latest", **fields)
    kill_when(second, lambda: len(list((tmp_path / "samples").iterdir())) == 2)
    output = finish(first, 1)
    assert "Another process of this training ended" in output
    assert "Traceback" not in output
    second.communicate()


def test_machines_that_hold_different_runs_do_not_train_together(finished_run, tmp_path):
    """The one has a checkpoint, the other nothing; without agreement both would train, the one from the beginning."""
    before = (finished_run / METRICS_FILE).read_bytes()
    for process in train_two((finished_run, tmp_path), "--resume_from_checkpoint", "latest", max_train_steps=12):
        output = finish(process, 2)
        assert re.search(r"process 0 \(on .*\) step-000008 and process 1 \(on .*\) none", output), output
        assert "Traceback" not in output
    assert (finished_run / METRICS_FILE).read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_signal_saves_and_says_how_to_go_on(tmp_path, number):
    process = train(tmp_path, max_train_steps=100_000, checkpointing_steps=100_000)
    kill_when(process, lambda: steps_done(tmp_path) >= 3, number)
    output = finish(process, 128 + number)
    (checkpoint,) = list_checkpoints(tmp_path / "checkpoints")
    assert damage(checkpoint) is None
    assert steps_done(tmp_path) == int(checkpoint.name.removeprefix("step-"))
    advice = output.strip().splitlines()[-1]
    command = advice.split("Continue with: hfgen ")[1].split()
    assert command[-2:] == ["--resume_from_checkpoint", "latest"]
    assert "Traceback" not in output
    resumed = finish(hfgen(*command, "--max_train_steps", str(steps_done(tmp_path) + 2)))
    assert f"Resuming {tmp_path} from {checkpoint.name}" in resumed


def test_a_full_disk_ends_the_run_and_spares_what_was_there(tmp_path):
    """The limit on file size lets metrics through and fails the first checkpoint after it was lowered."""
    process = train(tmp_path, max_train_steps=100_000)
    kill_when(process, lambda: list_checkpoints(tmp_path / "checkpoints"), signal.SIGSTOP)
    limit = max(path.stat().st_size for path in tmp_path.rglob("*.safetensors")) // 2
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    before = list_checkpoints(tmp_path / "checkpoints")
    process.send_signal(signal.SIGCONT)
    output = finish(process, 1)
    assert "Training stopped. Continue with: hfgen train ddpm --config" in output
    assert "Traceback" not in output
    after = list_checkpoints(tmp_path / "checkpoints")
    assert set(before) <= set(after)
    assert [damage(checkpoint) for checkpoint in after] == [None] * len(after)
    assert not list(tmp_path.rglob(".incomplete*"))


def test_a_second_process_may_not_train_in_the_same_folder(tmp_path):
    first = train(tmp_path, max_train_steps=100_000)
    try:
        deadline = time.monotonic() + 60
        while not steps_done(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.05)
        first.send_signal(signal.SIGSTOP)  # it does not give up its place, but leaves the processor to the second
        output = finish(train(tmp_path, "--resume_from_checkpoint", "latest", max_train_steps=100_000), 2)
        assert f"another process is training in {tmp_path}" in output
    finally:
        first.kill()
        first.communicate()


def test_a_save_that_is_killed_leaves_only_whole_checkpoints(tmp_path):
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom hfgen.runs.checkpoints import save_checkpoint\n"
        "def write(folder):\n    for i in range(20):\n        (folder / str(i)).write_bytes(os.urandom(20_000))\n"
        "for step in range(1, 10**6):\n    save_checkpoint(Path(sys.argv[1]), step, write, limit=3)\n"
    )
    script = tmp_path / "save.py"
    script.write_text(code)
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        process = Forked(str(script), str(folder))
        while len(list_checkpoints(folder)) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.013 * attempt)
        process.kill()
        process.wait()
        checkpoints = list_checkpoints(folder)
        assert 1 < len(checkpoints) <= 4
        assert [damage(checkpoint) for checkpoint in checkpoints] == [None] * len(checkpoints)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A run of two checkpoints."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    finish(train(run, max_train_steps=8))
    return run


@pytest.mark.parametrize("harm", ["truncate", "flip", "delete", "manifest"])
def test_a_damaged_checkpoint_is_reported_and_passed_over(finished_run, tmp_path, harm):
    shutil.copytree(finished_run, tmp_path, dirs_exist_ok=True)
    older, newest = list_checkpoints(tmp_path / "checkpoints")
    victim = newest / ("manifest.json" if harm == "manifest" else STATE_FILE)
    content = bytearray(victim.read_bytes())
    if harm == "flip":
        content[-1] ^= 1
    victim.write_bytes(content if harm == "flip" else content[: len(content) // 2])
    if harm == "delete":
        victim.unlink()
    reports = []
    assert newest_complete(tmp_path / "checkpoints", reports.append) == older
    assert "step-000008 is damaged" in reports[0]
    if harm == "flip":
        output = finish(train(tmp_path, "--resume_from_checkpoint", "latest", max_train_steps=8))
        assert "step-000008 is damaged" in output
        assert "from step-000004" in output
        assert damage(newest) is None
        refused = finish(train(tmp_path, "--resume_from_checkpoint", "step-000099", max_train_steps=8), 2)
        assert "there is no checkpoint step-000099; checkpoints in" in refused


def test_a_field_that_is_newer_than_the_run_is_what_it_was_trained_with(tmp_path):
    config = DDPMConfig(**TINY | {"output_dir": str(tmp_path)})
    fields = config.to_dict()
    saved = tmp_path / "config.yaml"
    saved.write_text(yaml.safe_dump(fields))
    assert changed_fields(config, read_fields(saved)) == []
    for newer in ("optimizer", "timestep_sampling"):
        del fields[newer]
    saved.write_text(yaml.safe_dump(fields))
    assert changed_fields(config, read_fields(saved)) == ["optimizer: adamw → muon"]
    assert changed_fields(dataclasses.replace(config, optimizer="adamw"), read_fields(saved)) == []
