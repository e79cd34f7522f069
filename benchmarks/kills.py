"""Kill trainings of every family at random moments and compare what they end with, to the bit.

    python benchmarks/kills.py --kills 100

A run of each family trains undisturbed. Others of the same configuration are killed (SIGKILL) at moments drawn at
random from all of the time that they take, the start, the saves and the end included, five times each, and resumed.
Then each file that does not depend on the clock has to be the same: weights, optimizer state, averages, metrics,
pictures. Results go to benchmarks/results/kills.json; the exit status is 1 if anything differed.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import torch
import yaml

from hfgen.cli.main import main
from hfgen.evaluation import evaluate  # noqa: F401

# Imported before the processes are forked, so that they need not import them again.
from hfgen.runs.checkpoints import list_checkpoints, step_of
from hfgen.tasks import classifier, cyclegan, diffusion, gan, translation, vae  # noqa: F401
from hfgen.training import run  # noqa: F401
from hfgen.utils.files import INCOMPLETE

RESULTS = Path(__file__).parent / "results" / "kills.json"
STEPS = 60
KILLS_PER_RUN = 5
SHARED = {
    "dataset_name": "digits", "max_train_samples": 200, "max_train_steps": STEPS, "checkpointing_steps": 5,
    "logging_steps": 2, "num_samples": 8, "mixed_precision": "no", "resume_from_checkpoint": "latest",
}  # fmt: skip
FAMILIES = {
    "ddpm": {
        "block_out_channels": [8, 16], "layers_per_block": 1, "train_batch_size": 16, "num_inference_steps": 2,
        "dropout": 0.1, "random_flip": True, "gradient_accumulation_steps": 2, "class_conditional": True,
    },
    "vae": {"hidden_sizes": [32], "latent_dim": 2, "kl_warmup_steps": 10, "binarization": "dynamic"},
    "gan": {
        "architecture": "convolutional", "block_out_channels": [16, 8], "latent_dim": 4, "dropout": 0.2,
        "augmentation": ["shift"], "discriminator_steps": 2, "train_batch_size": 16,
    },
    "translation": {
        "degradation": ["gaussian_noise=0.1..0.5"], "architecture": "unet", "block_out_channels": [8, 16],
        "discriminator_block_out_channels": [8], "train_batch_size": 16,
    },
    "cyclegan": {
        "target_degradation": ["invert"], "block_out_channels": [8], "layers_per_block": 1,
        "discriminator_block_out_channels": [8], "train_batch_size": 8, "pool_size": 16,
    },
    "classifier": {
        "train_split": "train[:80%]", "test_split": "train[80%:]", "embedding_size": 8, "hidden_sizes": [8],
        "depths": [1], "random_shift": 1, "train_batch_size": 32,
    },
}  # fmt: skip
CLOCKED = {
    "run.json", "times.jsonl", "index.html", "config.yaml", "training_position.json", "manifest.json", ".lock",
}  # files with times and places  # fmt: skip


def train(family: str, folder: Path) -> multiprocessing.Process:
    """Start or resume a training in a process of its own."""

    def work() -> None:
        os.setsid()
        torch.set_num_threads(1)
        with open(folder.with_suffix(".log"), "a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        fields = folder.with_suffix(".yaml")
        fields.write_text(yaml.safe_dump(SHARED | FAMILIES[family] | {"output_dir": str(folder)}))
        status = main(["train", family, "--config", str(fields)])
        sys.stdout.flush()
        os._exit(status)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def finish(process: multiprocessing.Process, folder: Path) -> None:
    """Wait for a training, and fail with its output if it did."""
    process.join(600)
    if process.exitcode != 0:
        raise RuntimeError(f"{folder.name} ended with {process.exitcode}:\n{folder.with_suffix('.log').read_text()}")


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a run that do not depend on the clock."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in CLOCKED)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def phase(folder: Path) -> str:
    """Name what a run is doing, as its folder shows it."""
    if not (folder / "config.yaml").exists():
        return "start"
    if any(path.name.startswith(INCOMPLETE) for path in folder.rglob("*")):
        return "writing"
    steps = max(map(step_of, list_checkpoints(folder / "checkpoints")), default=0)
    return "end" if steps == STEPS else "steps"


def kill_and_compare(family: str, folder: Path, whole: dict[str, bytes], seconds: float, limit: int) -> dict:
    """Kill a run at random moments, let it finish in the end, and compare; return what happened."""
    phases: list[str] = []
    while len(phases) < limit:
        done = max(map(step_of, list_checkpoints(folder / "checkpoints")), default=0)
        process = train(family, folder)
        process.join(random.uniform(0, seconds * (1.2 - done / STEPS)))
        if process.exitcode is not None:
            break
        phases.append(phase(folder))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    else:
        process = train(family, folder)
    finish(process, folder)
    found = contents(folder)
    differing = sorted(name for name in whole.keys() | found.keys() if whole.get(name) != found.get(name))
    return {"phases": phases, "differing": differing}


def main_program() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    random.seed(options.seed)
    result = {
        "command": f"python benchmarks/kills.py --kills {options.kills} --seed {options.seed}",
        "processor": f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}",
        "versions": {name: version(name) for name in ("hfgen", "torch", "accelerate", "diffusers")},
        "kills": 0,
        "families": {name: {"kills": 0, "runs": 0, "differing": []} for name in FAMILIES},
        "killed while": Counter(),
    }
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        stack.callback(os.chdir, os.getcwd())
        os.chdir(place)
        whole, seconds = {}, {}
        for family in FAMILIES:
            finish(train(family, Path(f"cache-{family}")), Path(f"cache-{family}"))  # decodes the digits
            begun = time.monotonic()
            finish(train(family, Path(family)), Path(family))
            whole[family], seconds[family] = contents(Path(family)), time.monotonic() - begun
        for number, family in enumerate(itertools.cycle(FAMILIES)):
            if result["kills"] >= options.kills:
                break
            limit = min(KILLS_PER_RUN, options.kills - result["kills"])
            outcome = kill_and_compare(family, Path(f"{family}-{number}"), whole[family], seconds[family], limit)
            entry = result["families"][family]
            entry["runs"] += 1
            entry["kills"] += len(outcome["phases"])
            entry["differing"] += outcome["differing"]
            result["kills"] += len(outcome["phases"])
            result["killed while"].update(outcome["phases"])
            print(f"{result['kills']} kills; {family}: {len(outcome['phases'])}, differing: {outcome['differing']}")
    for family, entry in result["families"].items():
        entry["files compared"] = len(whole[family])
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(f"The record is in {RESULTS}")
    return int(any(entry["differing"] for entry in result["families"].values()))


if __name__ == "__main__":
    sys.exit(main_program())
