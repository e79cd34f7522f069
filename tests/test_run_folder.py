"""A training touches nothing but what it wrote, finds its run wherever that lies, and says what it does."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from conftest import TINY, TINY_VAE, flags
from safetensors.torch import load_file, save_file

import hfgen
from hfgen.cli.main import main
from hfgen.config import DDPMConfig
from hfgen.runs.checkpoints import MANIFEST, POSITION_FILE, _fingerprints, list_checkpoints
from hfgen.runs.folder import suggest_runs
from hfgen.runs.record import own_commit
from hfgen.tasks.diffusion import DiffusionTask
from hfgen.training import run as running
from hfgen.training.trainer import STATE_FILE
from hfgen.utils.errors import TrainingError
from hfgen.utils.files import complete_or_absent, parts_complete_or_absent, remove_leftovers

FIELDS = TINY | {"max_train_samples": 40, "checkpointing_steps": 2, "logging_steps": 1, "max_train_steps": 4}
RESUME = ("--resume_from_checkpoint", "latest")


def train(run: Path | str, *extra: str, **fields) -> int:
    return main(["train", "ddpm", *flags(**FIELDS | {"output_dir": run} | fields), *extra])


def go_on(run: Path | str, *extra: str) -> int:
    """Continue a run by the command that it names itself."""
    return main(["train", "ddpm", "--config", str(Path(run) / "config.yaml"), *RESUME, *extra])


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run of four steps with checkpoints at 2 and 4."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    assert train(run) == 0
    return run


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def forge(checkpoint: Path, name: str, content: bytes) -> None:
    """Change a file of a checkpoint and its manifest, so that the checkpoint counts as whole."""
    (checkpoint / name).write_bytes(content)
    (checkpoint / MANIFEST).write_text(json.dumps(_fingerprints(checkpoint)))


@pytest.mark.parametrize("resume", [(), RESUME])
@pytest.mark.parametrize(
    "names",
    [
        ["README.md"],
        ["evaluation/results.csv", "evaluation.json"],
        ["unet/my_unet.py"],
        ["checkpoints/step-1000/weights.pt"],
        ["samples/step-9999.png"],
        ["config.json", "model.safetensors"],
        [".git/HEAD", ".gitignore"],
    ],
)
def test_a_folder_that_holds_something_else_is_refused_and_left_alone(tmp_path, capsys, names, resume):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("precious")
    before = contents(tmp_path)
    assert train(tmp_path, *resume) == 2
    assert "output_dir" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_a_folder_is_refused_by_a_sweep_too(tmp_path, capsys):
    (tmp_path / "sweep.md").write_text("precious")
    assert train(tmp_path, "--sweep", "seed=1,2") == 2
    assert "is not empty and holds no sweep" in capsys.readouterr().err
    assert contents(tmp_path) == {"sweep.md": b"precious"}


def test_checkpoints_without_their_configuration_are_not_begun_anew(run, capsys):
    (run / "config.yaml").unlink()
    before = contents(run)
    assert train(run, *RESUME) == 2
    assert "holds checkpoints of a run, but not its config.yaml" in capsys.readouterr().err
    assert contents(run) == before


def test_a_run_that_finished_while_another_got_ready_is_not_overwritten(finished, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    load = running.load_training_images

    def slow_load(config):
        shutil.copytree(finished, run)  # another process trains in it meanwhile
        return load(config)

    monkeypatch.setattr(running, "load_training_images", slow_load)
    assert train(run, seed=7) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert contents(run) == contents(finished)


def test_resuming_with_nothing_to_resume_is_said(tmp_path, capsys):
    assert train(tmp_path / "new", *RESUME, max_train_steps=1) == 0
    assert f"There is no checkpoint in {tmp_path / 'new'}; training starts at step 0" in capsys.readouterr().out


def test_a_run_goes_on_where_it_lies(finished, run, tmp_path, monkeypatch, capsys):
    """Copied, from inside, and by a relative path; the original stays as it is."""
    before = contents(finished)
    assert go_on(run, "--max_train_steps", "5") == 0
    assert f"Resuming {run} from step-000004" in capsys.readouterr().out
    monkeypatch.chdir(run)
    assert go_on(".", "--max_train_steps", "6") == 0
    monkeypatch.chdir(tmp_path)
    run.rename("moved")
    assert go_on("moved", "--max_train_steps", "7") == 0
    assert "Resuming moved from step-000006" in capsys.readouterr().out
    assert [path.name for path in list_checkpoints(Path("moved/checkpoints"))][-1] == "step-000007"
    assert contents(finished) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moved"]


def test_its_configuration_does_not_begin_another_run_in_its_place(run, capsys):
    before = contents(run)
    assert main(["train", "ddpm", "--config", str(run / "config.yaml")]) == 2
    assert f"{run} already holds a run" in capsys.readouterr().err
    assert contents(run) == before


def test_a_sweep_goes_on_where_it_lies(tmp_path, capsys):
    fields = flags(**TINY_VAE | {"max_train_steps": 2, "num_mixture_components": 1})
    arguments = ["train", "vae", *fields, *RESUME, "--sweep", "seed=1,2", "--output_dir"]
    assert main([*arguments, str(tmp_path / "first")]) == 0
    (tmp_path / "first").rename(tmp_path / "second")
    capsys.readouterr()
    assert main([*arguments, str(tmp_path / "second")]) == 0
    printed = capsys.readouterr().out
    assert printed.count("is finished") == 2
    assert "training starts at step 0" not in printed


def test_going_on_from_an_older_checkpoint_puts_the_newer_away(run, capsys):
    (run / "README.md").write_text("my own words")
    (run / "evaluation").mkdir()
    (run / "evaluation" / "notes.txt").write_text("mine")
    newer = contents(run / "checkpoints" / "step-000004")
    assert go_on(run, "--resume_from_checkpoint", "step-000002") == 0
    printed = capsys.readouterr().out
    put_away = run / "outdated" / "1"
    assert f"continues from step 2; outdated files moved to {put_away}" in printed
    assert "checkpoints/step-000004" in printed
    assert contents(put_away / "checkpoints" / "step-000004") == newer
    assert (put_away / "README.md").read_text() == "my own words"
    assert (put_away / "evaluation" / "notes.txt").read_text() == "mine"
    assert (put_away / "samples" / "step-000004.png").exists()
    state = f"checkpoints/step-000004/{STATE_FILE}"
    assert (run / state).read_bytes() == (put_away / state).read_bytes(), "the same four steps again"
    (put_away / "evaluation.json").write_text("{}")
    assert main(["results", str(run), "--output", str(run / "RESULTS.md")]) == 2, "what is put away is not shown"
    assert go_on(run, "--resume_from_checkpoint", "step-000002", "--max_train_steps", "3") == 0
    assert (run / "outdated" / "2" / "checkpoints" / "step-000004").is_dir()
    assert json.loads((run / "run.json").read_text())["optimizer_steps"] == 3


def test_a_finished_run_that_is_asked_for_an_older_step_is_not_called_finished(run, capsys):
    assert go_on(run, "--resume_from_checkpoint", "step-000002", "--max_train_steps", "2") == 0
    assert "is finished" not in capsys.readouterr().out
    assert json.loads((run / "run.json").read_text())["optimizer_steps"] == 2


@pytest.mark.parametrize(
    ("field", "value"), [("learning_rate", 0.05), ("block_out_channels", [16, 16]), ("train_batch_size", 8)]
)
def test_an_edited_configuration_is_not_resumed_with(run, capsys, field, value):
    file = run / "config.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {field: value}))
    before = contents(run)
    assert go_on(run, "--max_train_steps", "6") == 2
    message = capsys.readouterr().err
    assert "config.yaml is not what step-000004 was trained with" in message
    assert field in message
    assert contents(run) == before


@pytest.mark.parametrize("content", ["", "- 1\n", "a: [", "a: b: c", "seed: 1\n1: 2\n", "\xe9".encode("latin-1"), "{"])
def test_a_damaged_configuration_is_named(run, capsys, content):
    (run / "config.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    before = contents(run)
    assert train(run, *RESUME) == 2
    assert str(run / "config.yaml") in capsys.readouterr().err
    assert contents(run) == before
    for command in ("sample", "evaluate", "card"):
        assert main([command, str(run)]) == 2, command
        assert str(run / "config.yaml") in capsys.readouterr().err, command


@pytest.mark.parametrize("name", ["", ".", "..", "checkpoints", "no_such"])
def test_what_is_no_checkpoint_is_not_resumed_from(run, capsys, name):
    assert train(run, "--resume_from_checkpoint", name) == 2
    assert "there is no checkpoint" in (message := capsys.readouterr().err)
    assert "step-000002, step-000004" in message


def test_a_checkpoint_of_another_run_is_not_resumed_from(finished, run, capsys):
    assert train(run, "--resume_from_checkpoint", str(finished / "checkpoints" / "step-000002")) == 2
    assert "belongs to another run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", ["{", "[]", "null", "{}", '{"step": 4}', '{"step": "4", "data": 1}', "of another step"]
)
def test_a_damaged_position_is_named_with_what_would_work(run, capsys, content):
    checkpoint = run / "checkpoints" / "step-000004"
    if content == "of another step":
        content = json.dumps(json.loads((checkpoint / POSITION_FILE).read_text()) | {"step": 3})
    forge(checkpoint, POSITION_FILE, content.encode())
    assert go_on(run, "--max_train_steps", "6") == 2
    message = capsys.readouterr().err
    assert "step-000004, whose state is damaged; try --resume_from_checkpoint step-000002" in message
    assert go_on(run, "--resume_from_checkpoint", "step-000002") == 0


@pytest.mark.parametrize("harm", ["header", "average", "module", "shape"])
def test_a_damaged_state_is_named_with_what_would_work(run, capsys, harm):
    checkpoint = run / "checkpoints" / "step-000004"
    state = load_file(checkpoint / STATE_FILE)
    lost = next(name for name in state if name.startswith("averages." if harm == "average" else "modules."))
    if harm == "shape":
        state[lost] = torch.zeros(3, 3, 3)
    else:
        del state[lost]
    save_file(state, checkpoint / STATE_FILE)
    content = b"\xff" * 100 if harm == "header" else (checkpoint / STATE_FILE).read_bytes()
    forge(checkpoint, STATE_FILE, content)
    assert go_on(run, "--max_train_steps", "6") == 2
    assert "try --resume_from_checkpoint step-000002" in capsys.readouterr().err


def test_lines_of_metrics_that_cannot_be_read_are_left_out_and_told(run, capsys):
    rows = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join([rows[0], "junk\n", '{"loss": 1}\n', "[]\n", *rows[1:], '{"step": 5']))
    assert go_on(run, "--max_train_steps", "5") == 0
    assert "removed 3 lines that cannot be read" in capsys.readouterr().out
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5]


def test_files_of_other_names_among_samples_and_checkpoints_stay(run):
    mine = [
        "samples/step-000010 (copy).png",
        "samples/step-best.png",
        "checkpoints/step-000004-best/x",
        "samples/a.png",
    ]
    for name in mine:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_bytes((run / "samples" / "step-000004.png").read_bytes())
    assert go_on(run, "--max_train_steps", "5", "--checkpoints_total_limit", "1") == 0
    assert all((run / name).exists() for name in mine)


def test_a_part_that_is_a_link_is_replaced_and_not_followed(run, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (run / "unet").rename(elsewhere)
    (run / "unet").symlink_to(elsewhere)
    before = contents(elsewhere)
    assert go_on(run, "--max_train_steps", "5") == 0
    assert not (run / "unet").is_symlink()
    assert contents(elsewhere) == before


def parquet(file: Path, labels: list[int], names: list[str]) -> None:
    import datasets
    import numpy as np
    import PIL.Image

    noise = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8), dtype=np.uint8)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    table = {"image": [PIL.Image.fromarray(image) for image in noise], "label": labels}
    file.parent.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(table, features=features).to_parquet(file)


@pytest.mark.parametrize(
    ("labels", "names"), [([1, 0] * 12, ["cat", "dog"]), ([0, 1] * 12, ["dog", "mouse"])], ids=["labels", "names"]
)
def test_labels_and_names_of_classes_that_changed_are_noticed(tmp_path, capsys, labels, names):
    data = tmp_path / "data" / "train.parquet"
    parquet(data, [0, 1] * 12, ["cat", "dog"])
    fields = {"dataset_name": str(data.parent), "class_conditional": True, "max_train_steps": 2}
    assert train(tmp_path / "run", **fields) == 0
    parquet(data, labels, names)
    assert train(tmp_path / "run", *RESUME, **fields | {"max_train_steps": 3}) == 2
    assert "the labels, clusters or names of the classes" in capsys.readouterr().err


def test_data_that_was_moved_is_resumed_with_and_other_data_is_not(tmp_path, capsys):
    parquet(tmp_path / "data" / "train.parquet", [0, 1] * 12, ["cat", "dog"])
    assert train(tmp_path / "run", dataset_name=str(tmp_path / "data")) == 0
    (tmp_path / "data").rename(tmp_path / "moved")
    capsys.readouterr()
    assert go_on(tmp_path / "run", "--max_train_steps", "5", "--dataset_name", str(tmp_path / "moved")) == 0
    assert "Resuming" in capsys.readouterr().out
    parquet(tmp_path / "other" / "train.parquet", [0, 1] * 13, ["cat", "dog"])
    assert go_on(tmp_path / "run", "--max_train_steps", "6", "--dataset_name", str(tmp_path / "other")) == 2
    assert "the images of" in capsys.readouterr().err


def test_what_a_living_process_writes_is_no_leftover(tmp_path, monkeypatch):
    with complete_or_absent(tmp_path / "page") as temporary:
        temporary.write_text("half")
        of_init = tmp_path / ".incomplete-1-page"
        of_the_dead = tmp_path / ".incomplete-99999999-page"
        for path in (of_init, of_the_dead):
            path.write_text("half")
        monkeypatch.setattr("os.getpid", lambda: -1)
        remove_leftovers(tmp_path)
        monkeypatch.undo()
        assert temporary.exists()
        assert of_init.exists(), "process 1 is always there"
        assert not of_the_dead.exists()


def test_a_folder_with_a_name_that_reads_as_a_pattern_loses_its_leftovers_too(tmp_path):
    folder = tmp_path / "[a]*"
    folder.mkdir()
    (folder / ".incomplete-99999999-[x]").write_text("half")
    (folder / ".incomplete-99999999-other").write_text("half")
    remove_leftovers(folder, "[x]")
    assert [path.name for path in folder.iterdir()] == [".incomplete-99999999-other"]


@pytest.mark.parametrize("name", ["x" * 300, "file/run"])
def test_an_output_folder_that_cannot_be_made_is_named(tmp_path, capsys, name):
    (tmp_path / "file").write_text("mine")
    assert train(tmp_path / name) == 2
    assert f"output_dir {tmp_path / name} cannot be used" in capsys.readouterr().err


def test_a_file_and_all_of_a_folder_are_on_the_disk_before_they_have_their_names(tmp_path, monkeypatch):
    done = []
    flush, rename = os.fsync, os.replace
    monkeypatch.setattr("os.fsync", lambda file: (done.append(os.fstat(file).st_ino), flush(file)))
    monkeypatch.setattr("os.replace", lambda old, new: (done.append("renamed"), rename(old, new)))
    with complete_or_absent(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "file").write_text("a")
    folder = tmp_path / "folder"
    folder_inode, file_inode, parent_inode = (path.stat().st_ino for path in (folder, folder / "file", tmp_path))
    assert done == [folder_inode, file_inode, "renamed", parent_inode]


def test_a_training_of_a_task_of_ones_own_names_no_command_that_would_train_another(tmp_path, monkeypatch):
    def fails(self, batch):
        raise OSError("no space left")

    config = DDPMConfig(**FIELDS | {"output_dir": str(tmp_path / "run")})
    for task in (type("Mine", (DiffusionTask,), {}), DiffusionTask):
        monkeypatch.setattr(task, "losses", fails)
        with pytest.raises(TrainingError) as raised:
            running.train(config, task)
        command = f"Continue with: hfgen train ddpm --config {tmp_path / 'run'}/config.yaml"
        call = "Continue with the same call and resume_from_checkpoint='latest'"
        assert (call if task is not DiffusionTask else command) in str(raised.value)
        shutil.rmtree(tmp_path / "run")


def test_the_index_is_the_last_part_that_is_moved_so_that_it_never_names_what_is_missing(tmp_path, monkeypatch):
    moved = []
    rename = os.replace
    monkeypatch.setattr("os.replace", lambda old, new: (moved.append(Path(new).name), rename(old, new)))
    with parts_complete_or_absent(tmp_path, "model_index.json") as temporary:
        for name in ("config.json", "model_index.json", "weights"):
            (temporary / name).write_text(name)
    assert [name for name in moved if not name.startswith(".")][-1] == "model_index.json"


def test_the_record_names_the_commit_of_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))  # as in a hook of git
    package = tmp_path / "hfgen"
    package.mkdir()
    (package / "code.py").write_text("a = 1")
    assert own_commit(tmp_path) is None, "an installed package"

    def git(*arguments):
        named = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        subprocess.run(["git", "-C", str(tmp_path), *named, *arguments], check=True, env=environment)

    git("init", "-q")
    assert own_commit(tmp_path) is None, "no commit yet"
    git("add", ".")
    git("commit", "-qm", "first")
    (tmp_path / "notes.txt").write_text("not its code")
    found = own_commit(tmp_path)
    assert re.fullmatch("[0-9a-f]{40}", found["sha"])
    assert not found["modified"]
    (package / "code.py").write_text("a = 2")
    assert own_commit(tmp_path) == {"sha": found["sha"], "modified": True}
    monkeypatch.setenv("PATH", "")
    assert own_commit(tmp_path) is None, "no git"


def test_the_commit_is_in_the_record_and_on_the_page(finished, tmp_path):
    record = json.loads((finished / "run.json").read_text())
    assert record.get("hfgen_commit") == own_commit() or record["hfgen_commit"]["sha"]
    run = shutil.copytree(finished, tmp_path / "run")
    texts = {True: " (commit 0123456789, modified)", False: " (commit 0123456789)", None: ""}
    for modified, text in texts.items():
        commit = None if modified is None else {"sha": "0123456789ab", "modified": modified}
        (run / "run.json").write_text(json.dumps(record | {"hfgen_commit": commit}))
        assert f"hfgen {record['versions']['hfgen']}{text}, torch" in hfgen.card(run).read_text()


def test_where_a_folder_of_runs_is_given_the_newest_are_suggested(tmp_path):
    for age, name in enumerate(("e", "sweep/d", "c", "sweep/b", "a")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").touch()
        os.utime(tmp_path / name / "config.yaml", (age, age))
    first, second, third = (tmp_path / name for name in ("a", "sweep/b", "c"))
    assert suggest_runs(tmp_path) == f"; the runs in it, newest first, are {first}, {second}, {third} and 2 others"
    assert suggest_runs(tmp_path, "run.json") == ""
