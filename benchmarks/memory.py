"""What keeping freed memory (`hfgen.training.run.keep_freed_memory`) gives on a CPU: images a second and peak memory.

    python benchmarks/memory.py --dataset_name mnist

Processes with it and without it train in turn, a few steps each, for several rounds, each of a recipe's network and
batch. What counts is the ratio within a round and its median. Results go to benchmarks/results/memory.json.
"""

import argparse
import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from hfgen.config import DDPMConfig
from hfgen.config.parser import parse_config
from hfgen.data.images import load_images
from hfgen.runs.folder import RunFolder
from hfgen.tasks.diffusion import DiffusionTask
from hfgen.training.run import keep_freed_memory
from hfgen.training.trainer import Trainer
from hfgen.utils.devices import native_precision

RESULTS = Path(__file__).parent / "results" / "memory.json"
RECIPES = ["ddpm_mnist", "ddpm_mnist_cpu5min"]
WARM_UP_STEPS = 5


def measure(recipe: str, dataset_name: str, steps: int) -> dict[str, float]:
    """Train some steps in this process; return images per second and the peak of resident bytes."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--config", recipe, "--dataset_name", dataset_name, "--output_dir", folder]
        config = parse_config(DDPMConfig, [*flags, "--mixed_precision", native_precision()], prog="")
        config = dataclasses.replace(config, max_train_seconds=None, max_train_steps=WARM_UP_STEPS, sample_steps=[])
        data = load_images(dataset_name)
        accelerator = Accelerator(cpu=True, mixed_precision=config.mixed_precision)
        trainer = Trainer(config, DiffusionTask(config, data), accelerator, RunFolder(Path(folder)))
        trainer.prepare_run_folder()
        trainer.run_loop()
        trainer.max_steps += steps
        begun = time.perf_counter()
        trainer.run_loop()
        speed = steps * config.train_batch_size / (time.perf_counter() - begun)
    return {"images_per_second": speed, "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset_name", default="mnist")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps in a round")
    parser.add_argument("--one", nargs=2, metavar=("RECIPE", "WAY"), help="one measurement: kept or returned")
    options = parser.parse_args()
    if options.one:
        recipe, way = options.one
        if way == "kept":
            keep_freed_memory()
        print(json.dumps(measure(recipe, options.dataset_name, options.steps)))
        return

    result = {
        "command": f"python benchmarks/memory.py --dataset_name {options.dataset_name}",
        "device": f"CPU, {torch.get_num_threads()} threads, {native_precision().replace('no', 'fp32')}",
        "rounds": options.rounds,
        "steps_per_round": options.steps,
    }
    for recipe in RECIPES:
        found = {"kept": [], "returned": []}
        for _ in range(options.rounds):
            for way, results in found.items():
                flags = ["--dataset_name", options.dataset_name, "--steps", str(options.steps), "--one", recipe, way]
                finished = subprocess.run([sys.executable, __file__, *flags], check=True, stdout=subprocess.PIPE)
                results.append(json.loads(finished.stdout.splitlines()[-1]))
        pairs = zip(found["kept"], found["returned"], strict=True)
        ratios = [kept["images_per_second"] / returned["images_per_second"] for kept, returned in pairs]
        result[recipe] = {
            "kept over returned": {
                "median": round(statistics.median(ratios), 3),
                "min": round(min(ratios), 3),
                "max": round(max(ratios), 3),
            },
            "peak_memory_bytes": {way: max(r["bytes"] for r in results) for way, results in found.items()},
        }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
