"""Images per second of `hfgen train ddpm` against a bare loop and against per-item loading, and peak memory.

    python benchmarks/throughput.py --dataset_name mnist

The contenders train the same network (that of the recipe `ddpm_mnist_cpu5min`) with the same batch, precision,
optimizer, clipping and EMA, in turn, a few seconds each, for several rounds. What counts is the ratio within a round
and its median: one absolute time on a shared machine means little. Results go to benchmarks/results/throughput.json.
"""

import argparse
import contextlib
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.training_utils import EMAModel
from torch.nn import functional as F

from hfgen.config import DDPMConfig
from hfgen.config.parser import parse_config
from hfgen.data.images import load_images
from hfgen.losses.diffusion import alpha_sigma, diffusion_target
from hfgen.runs.folder import RunFolder
from hfgen.tasks.diffusion import DiffusionTask
from hfgen.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results" / "throughput.json"
RECIPE = "ddpm_mnist_cpu5min"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make_hfgen(config: DDPMConfig, data, folder: Path):
    """Return a function that trains some steps in hfgen's loop, metrics file and progress bar included."""
    AcceleratorState._reset_state()
    task = DiffusionTask(config, data)
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    trainer = Trainer(config, task, accelerator, RunFolder(folder))
    trainer.prepare_run_folder()

    def run(steps: int) -> None:
        trainer.max_steps = trainer.step + steps
        trainer.run_loop()

    return run


def make_bare(config: DDPMConfig, data, batches=None):
    """Return a function that trains some steps in a loop with nothing around it, on tensors in memory."""
    task = DiffusionTask(config, data)
    unet, scheduler = task.unet.to(DEVICE), task.scheduler
    images = data.images.clone().to(DEVICE)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=config.learning_rate, weight_decay=0.0, fused=True)
    average = EMAModel(unet.parameters(), decay=config.ema_max_decay, foreach=True)

    def run(steps: int) -> None:
        for _ in range(steps):
            if batches is None:
                chosen = torch.randint(len(images), (config.train_batch_size,), device=DEVICE)
                x = images[chosen].float() / 127.5 - 1
            else:
                x = next(batches).to(DEVICE)
            noise = torch.randn_like(x)
            timesteps = torch.randint(config.num_train_timesteps, (len(x),), device=DEVICE)
            alpha, sigma = alpha_sigma(scheduler, timesteps)
            precise = config.mixed_precision == "no"
            with contextlib.nullcontext() if precise else torch.autocast(DEVICE, torch.bfloat16):
                prediction = unet(alpha * x + sigma * noise, timesteps).sample
            target = diffusion_target(config.prediction_type, x, noise, alpha, sigma)
            F.mse_loss(prediction.float(), target).backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            average.step(unet.parameters())
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return run


def per_item_batches(source: str, batch_size: int):
    """Yield batches as diffusers' `train_unconditional.py` makes them: decode, convert and collate item by item."""
    dataset = datasets.load_dataset(source, split="train")

    def transform(rows):
        arrays = [np.asarray(image, dtype=np.float32) for image in rows["image"]]
        return {"input": [torch.from_numpy(a)[None] / 127.5 - 1 for a in arrays]}

    dataset.set_transform(transform)
    while True:
        for batch in torch.utils.data.DataLoader(dataset, batch_size=batch_size, shuffle=True, drop_last=True):
            yield batch["input"]


def peak_memory(*command: str) -> int:
    """Return the peak resident bytes of a command run as a process of its own."""
    code = (
        "import resource, subprocess, sys\nsubprocess.run(sys.argv[1:], check=True, capture_output=True)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)"
    )
    return int(
        subprocess.run([sys.executable, "-c", code, *command], check=True, capture_output=True, text=True).stdout
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset_name", default="mnist")
    parser.add_argument("--source", help="the same data for `datasets.load_dataset`; default: the dataset_name")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps of a contender in a round")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        flags = ["--config", RECIPE, "--dataset_name", options.dataset_name, "--output_dir", f"{temporary}/run"]
        config = parse_config(DDPMConfig, [*flags, "--mixed_precision", "bf16"], prog="")
        config = dataclasses.replace(config, max_train_seconds=None, max_train_steps=1)
        precise = parse_config(DDPMConfig, [*flags, "--mixed_precision", "no"], prog="")
        data = load_images(config.dataset_name)
        items = per_item_batches(options.source or options.dataset_name, config.train_batch_size)
        contenders = {
            "hfgen": make_hfgen(config, data, Path(temporary, "a")),
            "bare loop": make_bare(config, data),
            "per-item loading": make_bare(config, data, items),
            "bare loop, fp32": make_bare(precise, data),
        }
        seconds = {name: [] for name in contenders}
        for round_ in range(options.rounds + 1):
            for name, run in contenders.items():
                begun = time.perf_counter()
                run(options.steps)
                if round_:  # the first warms up
                    seconds[name].append(time.perf_counter() - begun)
        train = peak_memory(sys.executable, "-m", "hfgen", "train", "ddpm", *flags, "--max_train_steps", "20")
        sampled = peak_memory(
            sys.executable, "-m", "hfgen", "sample", f"{temporary}/run", "--output", f"{temporary}/x.png"
        )

    def ratio(fast: str, slow: str) -> dict[str, float]:
        ratios = [b / a for a, b in zip(seconds[fast], seconds[slow], strict=True)]
        return {
            "median": round(statistics.median(ratios), 3),
            "min": round(min(ratios), 3),
            "max": round(max(ratios), 3),
        }

    images = options.steps * config.train_batch_size
    result = {
        "command": f"python benchmarks/throughput.py --dataset_name {options.dataset_name}",
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "rounds": options.rounds,
        "steps_per_round": options.steps,
        "train_batch_size": config.train_batch_size,
        "images_per_second_median": {n: round(images / statistics.median(s)) for n, s in seconds.items()},
        "hfgen over bare loop": ratio("hfgen", "bare loop"),
        "hfgen over per-item loading": ratio("hfgen", "per-item loading"),
        "per-item loading over bare loop": ratio("per-item loading", "bare loop"),
        "bf16 over fp32": ratio("bare loop", "bare loop, fp32"),
        "peak_memory_bytes": {"train": train, "sample 64 images": sampled},
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
