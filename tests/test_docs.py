"""Every command and Python snippet of the docs runs, in order, at a tiny size; every link leads somewhere."""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
from conftest import REPOSITORY, Client, stand_in_runtime
from studio import RunningStudio

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
SHRUNK = "--max_train_steps 2 --max_train_samples 200 --num_samples 2"
SHRUNK_MODEL = f"{SHRUNK} --num_inference_steps 2 --block_out_channels 8 --checkpointing_steps 1"
SHRUNK_VAE = f"{SHRUNK} --num_mixture_components 1"
SHRUNK_GAN = f"{SHRUNK} --hidden_sizes 8 --block_out_channels 8 8 --discriminator_block_out_channels 8 8"
SHRUNK_TRANSLATION = f"{SHRUNK} --block_out_channels 4 8 --discriminator_block_out_channels 4"
SHRUNK_CLASSIFIER = f"{SHRUNK} --embedding_size 8 --hidden_sizes 16 --depths 1"
SHRUNK_FAMILIES = {
    "classifier": SHRUNK_CLASSIFIER,
    "cyclegan": SHRUNK_TRANSLATION,
    "gan": SHRUNK_GAN,
    "translation": SHRUNK_TRANSLATION,
    "vae": SHRUNK_VAE,
}
BIN = Path(sys.executable).parent
GARMENTS = [
    "T - shirt / top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.fixture
def environment(hub_environment, workplace) -> dict[str, str]:
    """The variables of a user of the Hub on loopback in the workplace."""
    return hub_environment | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "HFGEN_DATA_DIR": str(workplace / "data"),
    }


class Studio:
    """The studio that a page opens, on a free port instead of the usual one."""

    USUAL = "localhost:7860"

    def __init__(self) -> None:
        self.running: RunningStudio | None = None

    def open(self, command: str) -> None:
        self.running = RunningStudio(*shlex.split(command)[2:])

    def addressed(self, text: str) -> str:
        return text.replace(self.USUAL, self.running.address.removeprefix("http://")) if self.running else text

    def close(self) -> None:
        if self.running:
            self.running.close()


@pytest.fixture
def studio():
    with contextlib.closing(Studio()) as studio:
        yield studio


@pytest.fixture
def workplace(tmp_path, hub, hub_environment, vision_model) -> Path:
    """A folder like the repository, with small stand-ins for the data, and an empty Hub."""
    hub.reset()
    stand_in_runtime(Path(hub_environment["HF_HOME"]))
    folder = tmp_path
    for name in ("hfgen", "scripts"):
        (folder / name).symlink_to(REPOSITORY / name)
    (folder / "facebook").mkdir()
    (folder / "facebook" / "dinov2-small").symlink_to(vision_model)
    for name in ("my_pictures", "my_scans"):
        (folder / name).mkdir()
        for number in range(10):
            PIL.Image.new("RGB", (40, 50 + number), (20 * number, 0, 99)).save(folder / name / f"{number}.png")
    for name, names in {"mnist": list("0123456789"), "fashion_mnist": GARMENTS}.items():
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        (folder / "data" / name).mkdir(parents=True)
        for split in ("train", "test"):
            pixels = np.random.default_rng(0).integers(0, 256, (150, 28, 28), dtype=np.uint8)
            rows = {"image": [PIL.Image.fromarray(image) for image in pixels], "label": [i % 10 for i in range(150)]}
            path = folder / "data" / name / f"{split}-00000-of-00001.parquet"
            datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    np.savez(folder / "samples_of_others.npz", images=pixels, labels=np.arange(150) % 10)
    return folder


def shrink(command: str) -> str:
    """Make a documented command cheap, and keep what it shows."""
    command = re.sub(r"\buser\b", "ada", command)
    if command == "make quickstart":
        flags = f"{SHRUNK_MODEL} --block_out_channels 8 8"
        made = f"VENV={sys.prefix} --old-file {sys.prefix}/.installed"  # this environment counts as made
        return f'make -C {REPOSITORY} {made} QUICKSTART_RUN=$PWD/quickstart QUICKSTART_FLAGS="{flags}" quickstart'
    if command.startswith("make "):
        return f"make -C {REPOSITORY} --dry-run {command.removeprefix('make ')}"
    if " train " in command and "/config.yaml" in command:
        return command + " --max_train_steps 2"
    command = re.sub(r"--guide_step \d+", "--guide_step 1", command)
    if " train " in command or "scripts/train" in command:
        # of 150 stand-ins, more must be held out than a judge has features
        fraction = 0.7 if "--test_fraction" in command else 0.9
        command = re.sub(r"--validation_fraction [\d.]+", f"--validation_fraction {fraction}", command)
        shrunk = SHRUNK_MODEL
        for family, flags in SHRUNK_FAMILIES.items():
            shrunk = flags if re.search(rf"train[ _]{family}", command) else shrunk
        return f"{command} {shrunk}"
    if " distill " in command:
        return f"{command} {SHRUNK} --checkpointing_steps 1 --trajectories 128 --teacher_steps 2"
    if " tune " in command:
        family = re.search(r"tune (\w+)", command)[1]
        shrunk = SHRUNK_FAMILIES.get(family, SHRUNK_MODEL).replace("--max_train_steps 2 ", "")
        held_out = "" if "digits" in command else "--validation_fraction 0.9"  # see below
        return f"{command} {shrunk} {held_out} --num_trials 2 --trial_seconds 1 --num_test_images 140"
    if "evaluate" in command and "digits" in command:
        return command + " --num_images 300 --num_inference_steps 2"
    if "evaluate" in command:
        return re.sub(r"--num_images \d+", "--num_images 140", command)
    if "hfgen analyze" in command:
        return command + " --num_importance_samples 2 --num_bound_images 5"
    if "hfgen compare-samplers" in command:
        few = " --learn_steps 2" if "--learn_steps" in command else ""
        return command + " --num_images 140 --scheduler unipc --num_inference_steps 2" + few
    if "hfgen translate" in command and "--task" in command:
        return command + " --num_inference_steps 2"
    if re.search("hfgen sample runs/(vae|gan)", command):
        return command + " --num_images 4"
    if "hfgen sample" in command:
        return re.sub(r"step-\d{6}", "step-000001", command) + " --num_images 4 --num_inference_steps 2"
    return command


def run(command: str, folder: Path, environment: dict[str, str], client: Client) -> tuple[int, str]:
    """Run a command line in a shell, or, if it is hfgen's, in a process that has imported all that this needs."""
    words = shlex.split(command)
    place = {"folder": str(folder), "environment": {"HFGEN_DATA_DIR": environment["HFGEN_DATA_DIR"]}}
    if words[0] == "hfgen":
        answer = client(arguments=words[1:], **place)
        return answer["status"], answer["output"]
    if words[:4] == ["accelerate", "launch", "-m", "hfgen"]:  # test_processes and test_evaluation have the launcher
        answer = client(arguments=words[4:], **place)
        return answer["status"], answer["output"]
    if words[:2] == ["accelerate", "launch"] and words[2] != "-m":  # the launcher is the same for each family
        code = f"import runpy\nrunpy.run_path({words[2]!r}, run_name='__main__')"
        answer = client(code=code, arguments=words[3:], **place)
        return answer["status"], answer["output"]
    finished = subprocess.run(
        command, shell=True, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=300,
    )  # fmt: skip
    return finished.returncode, finished.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands(page, workplace, environment, client, online, studio, monkeypatch):
    monkeypatch.chdir(workplace)
    commands = [line for block in blocks(page, "bash") for line in block.splitlines() if line]
    for command in commands:
        if command.startswith("hfgen studio"):
            studio.open(command)
            continue
        status, output = run(studio.addressed(shrink(command)), workplace, environment, client)
        assert status == 0, f"{command}\n{output}"
        for output in re.findall(r"--output(?:_dir)? (\S+)", command):
            assert (workplace / output).exists(), command
    for snippet in blocks(page, "python"):
        uses_hfgen = re.search("^(import|from) hfgen", snippet, re.MULTILINE)
        python = client.python if uses_hfgen else online.python
        python(studio.addressed(snippet.replace("user/", "ada/")), folder=workplace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_are_there(page):
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_tree_names_every_room():
    (tree,) = re.findall(r"```\n(hfgen/\n.*?)```", PAGES[0].read_text(), re.DOTALL)
    rooms = {file.parent.name for file in (REPOSITORY / "hfgen").glob("[a-z]*/*.*") if file.is_file()}
    assert sorted(re.findall(r"^  (\w+)/ ", tree, re.MULTILINE)) == sorted(rooms)
    assert not [name for name in re.findall(r"^(\w+)/", tree, re.MULTILINE) if not (REPOSITORY / name).is_dir()]


def test_speeds_in_the_readme_are_those_of_the_record():
    record = json.loads((REPOSITORY / "benchmarks" / "results" / "throughput.json").read_text())
    rows = dict(re.findall(r"\| ([^|]+) \| ([0-9.]+) \|", PAGES[0].read_text()))
    ratios = {
        name: str(value["median"]) for name, value in record.items() if isinstance(value, dict) and "median" in value
    }
    assert ratios
    assert ratios.items() <= rows.items()


def test_the_time_of_scoring_in_the_docs_is_that_of_the_record():
    record = json.loads((REPOSITORY / "benchmarks" / "results" / "scoring.json").read_text())
    page = " ".join((REPOSITORY / "docs" / "measuring.md").read_text().split())
    assert f"took {record['seconds']['all']['median']} seconds" in page
    assert f"which took {record['reference_statistics_seconds']} and are kept" in page


def test_the_comparison_of_families_has_the_numbers_of_the_evaluations():
    page = (REPOSITORY / "docs" / "families.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    names = re.findall(r"\[(\w+)\]", " ".join(next(row for row in rows if row[0] == "recipe")))
    records = [json.loads((REPOSITORY / "model_cards" / name / "evaluation.json").read_text()) for name in names]
    judge = "mnist"
    for metric in ("Fréchet distance", "precision", "recall", "coverage"):
        (cells,) = [row[1:] for row in rows if row[0].startswith(f"*{metric}*")]
        key = {"Fréchet distance": "frechet_distance"}.get(metric, metric)
        assert [cell.split(" ±")[0] for cell in cells[:3]] == [
            f"{r['measures'][judge][key]['value']:.3g}" for r in records
        ]
        floors = {f"{record['floors'][judge]['train_against_test'][key]:.3g}" for record in records}
        assert floors == set(re.findall(r"0\.\d+", cells[3]))
    (shares,) = [row[1:4] for row in rows if row[0].startswith("frequency")]
    for cell, record in zip(shares, records, strict=True):
        found = record["classes"][judge]["shares"]["generated"]
        assert cell == f"{min(found):.1%} to {max(found):.1%}".replace("%", " %")
