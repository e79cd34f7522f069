"""Hash what hfgen makes of every family, and compare it with what it made before a change that must not change it.

    make golden

Trains each family for 20 steps from seed 0, killed and resumed once, then draws, translates, evaluates, analyses,
compares samplers, writes cards and tables, and takes every `--help`. The first call keeps all of it in `runs/golden`;
each later one compares with that, draws from the models kept there too, with hfgen and with diffusers alone, and exits
with status 1 if anything differs. Times are left out. The bits depend on the processor and the libraries, so that a
record is only good on the machine that made it, and none is committed.
"""

import argparse
import difflib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import yaml
from huggingface_hub import constants
from kills import CLOCKED, FAMILIES, SHARED
from sklearn.datasets import load_digits

from hfgen.cli.main import main
from hfgen.runs.checkpoints import list_checkpoints

STEPS = 20
DATA = {"train_split": "train[:80%]", "max_train_samples": None}  # the rest is for the evaluation
TIMES = {  # and what else differs between two versions, in place of the real values
    "train_seconds": 100.0, "images_per_second": 100.0, "peak_memory_bytes": 10**8, "hfgen_commit": None,
}  # fmt: skip
TEXTS = {".json", ".jsonl", ".md", ".txt", ".yaml", ".py"}  # files whose differing lines are shown
DRAWN = ("ddpm", "vae", "gan")
TRANSLATING = ("translation", "cyclegan")
COMMANDS = (
    "train", *(f"train {family}" for family in FAMILIES), "sample", "translate", "evaluate", "analyze",
    "compare-samplers", "results", "card", "push", "publish-all",
)  # fmt: skip
ALONE = """
import sys
import numpy, torch
from diffusers import DiffusionPipeline
family, folder, output = sys.argv[1:]
pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
pipeline.set_progress_bar_config(disable=True)
options = {"generator": torch.Generator().manual_seed(0), "output_type": "np"}
if family == "ddpm":
    images = pipeline(class_labels=[0, 1], num_inference_steps=2, **options).images
elif family in ("vae", "gan"):
    images = pipeline(batch_size=2, **options).images
else:
    images = pipeline(torch.linspace(0, 1, 128).reshape(2, 1, 8, 8), output_type="np").images
assert "hfgen" not in sys.modules
numpy.savez(output, images=images)
"""


def train_all() -> None:
    """Train a run of each family, killed once on its way, and a sweep of two."""
    shared = SHARED | DATA | {"max_train_steps": STEPS}
    for family, fields in FAMILIES.items():
        save_fields(family, shared | fields | {"output_dir": family})
        process = in_process(f"train_{family}_killed", "train", family, "--config", f"{family}.yaml")
        while process.is_alive() and len(list_checkpoints(Path(family, "checkpoints"))) < 2:
            time.sleep(0.005)
        process.kill()
        process.join()
        run("train", family, "--config", f"{family}.yaml")
    sweep = {"output_dir": "sweep", "sweep": ["latent_dim=2,3"], "resume_from_checkpoint": None}
    save_fields("sweep", shared | FAMILIES["vae"] | sweep)
    run("train", "vae", "--config", "sweep.yaml")
    for record in Path().rglob("run.json"):
        record.write_text(json.dumps(json.loads(record.read_text()) | TIMES, indent=1))


def use_all() -> None:
    """Run every other command on the runs."""
    tested = ["--reference_split", "train[80%:]", "--judge", "classifier"]
    run("evaluate", "classifier", "--reference_split", "train[80%:]")
    for family in DRAWN:
        run("evaluate", family, *tested, "--num_images", "60")
        run("sample", family, "--num_images", "8", "--output", f"drawn/{family}.png")
    for name in ("vae", "sweep"):
        run("analyze", name, *tested, "--num_importance_samples", "10", "--num_bound_images", "20")
    run("sample", "ddpm", "--num_images", "4", "--output", "drawn/film.gif")
    samplers = ["--scheduler", "ddim", "unipc", "--num_inference_steps", "2", "3", "--output_dir", "samplers"]
    run("compare-samplers", "ddpm", *tested, "--num_images", "60", *samplers)
    for task, flags in {
        "denoise": [],
        "vary": [],
        "inpaint": ["--mask", os.path.abspath("mask.png")],
        "change_class": ["--class_labels", "3"],
    }.items():
        run("translate", "ddpm", "--task", task, "--input", "digits.npz", "--output", f"drawn/{task}.npz",
            "--num_inference_steps", "4", *flags)  # fmt: skip
    for family in TRANSLATING:
        run("evaluate", family, *tested)
    for family in FAMILIES:
        run("card", family, "--gallery", "gallery")
        run("push", family, "--repo_id", f"user/{family}", "--dry_run")
    run("results", "gallery", "--output", "RESULTS.md")
    run("recipes")
    for command in ("", *COMMANDS):
        run(*command.split(), "--help")


def draw_all(models: Path) -> None:
    """Draw from each model in a folder, with hfgen and with diffusers alone."""
    for family in DRAWN:
        run("sample", str(models / family), "--num_images", "4", "--output", f"drawn/{family}.npz", "--seed", "1")
    for family in TRANSLATING:
        run("translate", str(models / family), "--input", "digits.npz", "--output", f"drawn/{family}.npz")
    for family in (*DRAWN, *TRANSLATING):
        output = f"drawn/{family}_diffusers_alone.npz"
        environment = os.environ | {"HF_HOME": constants.HF_HOME}
        subprocess.run(
            [sys.executable, "-c", ALONE, family, str(models / family), output], env=environment, check=True
        )


def run(*arguments: str) -> None:
    """Run a command line, and wait for it; what it prints goes to a file."""
    process = in_process("_".join(arguments).replace("/", "-")[-80:], *arguments)
    process.join(600)
    if process.exitcode:
        raise SystemExit(f"hfgen {' '.join(arguments)} ended with {process.exitcode}; see {os.getcwd()}/printed")


def in_process(name: str, *arguments: str) -> multiprocessing.Process:
    """Start a command line in a process of its own, for which each look at the clock finds it a second later."""

    def work() -> None:
        if arguments[0] != "train":
            ticks = iter(range(10**9))
            time.monotonic = lambda: float(next(ticks))
        with open(Path("printed", f"{name}.txt"), "w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            try:
                status = main(list(arguments))
            except SystemExit as ended:
                status = ended.code
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status or 0)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def save_fields(name: str, fields: dict) -> None:
    Path(f"{name}.yaml").write_text(yaml.safe_dump(fields))


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a record that do not depend on the clock."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {
        name: path.read_bytes()
        for name, path in files.items()
        if path.name not in CLOCKED - {"config.yaml"} and not name.startswith(("home/", "models/", "printed/train_"))
    }


def compare(before: dict[str, bytes], after: dict[str, bytes]) -> int:
    """Print what differs between two records; return the number of such files."""
    differing = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    for name in differing:
        print(f"{name}: {'new' if name not in before else 'gone' if name not in after else 'differs'}")
        if name in before and name in after and Path(name).suffix in TEXTS:
            lines = (content[name].decode(errors="replace").splitlines() for content in (before, after))
            print("\n".join(list(difflib.unified_diff(*lines, "before", "after", n=0, lineterm=""))[2:20]))
    return len(differing)


def prepare(folder: Path) -> None:
    """Make the folder in which everything happens, with images to translate, and a cache of its own."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("printed", "drawn"):
        (folder / name).mkdir(parents=True)
    os.chdir(folder)
    constants.HF_HOME = str(folder / "home")
    torch.set_num_threads(1)
    images = np.uint8(load_digits().images[:4] * 255 / 16)
    np.savez("digits.npz", images=images)
    PIL.Image.fromarray(np.uint8(255 * (np.arange(64) % 8 > 3)).reshape(8, 8)).save("mask.png")


def main_program() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path, help="folder of the record; written if it is not there, else compared")
    record = parser.parse_args().record.resolve()
    folder = record.with_name(f"{record.name}-now")  # always the same, since paths stand in what is printed
    prepare(folder)
    train_all()
    use_all()
    Path("models").symlink_to(record if record.exists() else folder)
    draw_all(Path("models"))
    after = contents(folder)
    if not record.exists():
        shutil.copytree(folder, record, symlinks=True)
        print(f"The record is in {record}: {len(after)} files to compare with")
        return 0
    count = compare(contents(record), after)
    print(f"{len(after)} files in {folder} compared with {record}: {f'{count} differ' if count else 'all are alike'}")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main_program())
