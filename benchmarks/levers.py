"""What raises the quality of guided diffusion at equal training time: one change at a time to its recipe.

    OMP_NUM_THREADS=1 python benchmarks/levers.py --dataset_name mnist --seconds 100 --only "logit mean"

Each variant is trained for as many seconds with the same seed, then measured with each guidance. The record is
benchmarks/results/levers_NAME.json, with a table in Markdown beside it; further variants are added to it.
"""

import argparse
import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from diffusers import SchedulerMixin
from torch import Tensor

import hfgen
from hfgen.config.commands import CompareSamplersConfig
from hfgen.evaluation.samplers import compare_samplers
from hfgen.runs.folder import RUN_FILE
from hfgen.utils.markdown import number, with_std

RESULTS = Path(__file__).parent / "results"
RECIPES = {"mnist": "ddpm_conditional_mnist_cpu5min", "fashion_mnist": "ddpm_conditional_fashion_mnist_cpu10min"}
RANDN_LIKE = torch.randn_like
VARIANTS: dict[str, dict[str, Any]] = {
    **{f"logit mean {mean:g}": {"logit_mean": mean} for mean in (0.0, 0.3, 0.6, 1.0)},
    "logit mean 0.6, deviation 1.3": {"logit_mean": 0.6, "logit_std": 1.3},
    "batch 16": {"train_batch_size": 16},
    "batch 16, learning rate 2.8e-3": {"train_batch_size": 16, "learning_rate": 2.8e-3},
    "learning rate 6e-3": {"learning_rate": 6e-3},
    "weight decay 0.1": {"adam_weight_decay": 0.1},
    "warm-up 15": {"lr_warmup_steps": 15},
    "label dropout 0.2": {"class_dropout_prob": 0.2},
    "channels 16-32-96": {"block_out_channels": [16, 32, 96]},
    "channels 16-48-64": {"block_out_channels": [16, 48, 64]},
    "stratified timesteps": {},
    "nearest of 8 noises": {},
}


def stratified_timesteps(
    density: str, scheduler: SchedulerMixin, batch_size: int, logit_mean: float, logit_std: float
) -> Tensor:
    """Sample logit-normal timesteps, one from each of as many equally likely intervals."""
    shares = (torch.randperm(batch_size) + torch.rand(batch_size, dtype=torch.float64)) / batch_size
    logits = logit_mean + logit_std * torch.special.ndtri(shares.clamp(1e-6, 1 - 1e-6))
    return torch.sigmoid(logits).float() * scheduler.config.num_train_timesteps


def nearest_noise(images: Tensor) -> Tensor:
    """Return the nearest of 8 noise images to each image (immiscible diffusion, Li et al. 2024, arXiv:2406.12303)."""
    noise = torch.stack([RANDN_LIKE(images) for _ in range(8)])
    nearest = (noise - images).square().flatten(2).sum(2).argmin(0)
    return noise[nearest, torch.arange(len(images))]


MEASURES = ("guidance_scale", "frechet_distance", "precision", "recall", "density", "coverage", "accuracy")
PATCHES = {
    "stratified timesteps": ("hfgen.tasks.diffusion.sample_timesteps", stratified_timesteps),
    "nearest of 8 noises": ("torch.randn_like", nearest_noise),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", choices=RECIPES, default="mnist")
    parser.add_argument("--seconds", type=float, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_images", type=int, default=1000)
    parser.add_argument("--guidance_scales", type=float, nargs="+", default=[1.5])
    parser.add_argument("--only", nargs="*", help="variants whose name begins with one of these; by default all")
    options = parser.parse_args()
    file = RESULTS / f"levers_{options.dataset_name}.json"
    for name in VARIANTS:
        if options.only and not name.startswith(tuple(options.only)):
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows = measure(name, options, Path(folder))
        record = json.loads(file.read_text()) if file.exists() else {"rows": []}  # another process may add rows too
        record["rows"] += rows
        file.write_text(json.dumps(record, indent=1) + "\n")
        file.with_suffix(".md").write_text(page(options.dataset_name, record))
    print(f"The table is in {file.with_suffix('.md')}")


def measure(name: str, options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Train a variant, and measure it with each guidance scale."""
    with patch(*PATCHES[name]) if name in PATCHES else contextlib.nullcontext():
        run = hfgen.train(
            "ddpm",
            config=RECIPES[options.dataset_name],
            max_train_seconds=options.seconds,
            seed=options.seed,
            output_dir=folder / "run",
            sample_steps=[],
            num_samples=1,
            checkpointing_steps=10**9,
            **VARIANTS[name],
        )
    training = json.loads((run / RUN_FILE).read_text())
    config = CompareSamplersConfig(
        runs=[str(run)],
        scheduler=["unipc"],
        num_inference_steps=[15],
        guidance_scale=options.guidance_scales,
        num_images=options.num_images,
        output_dir=str(folder / "report"),
    )
    record = json.loads(compare_samplers(config).read_text())
    facts = {
        "variant": name,
        "seconds": options.seconds,
        "threads": torch.get_num_threads(),
        "seed": options.seed,
        "num_images": options.num_images,
        "images_per_second": round(training["images_per_second"]),
        "optimizer_steps": training["optimizer_steps"],
        "real": record["real_images"]["frechet_distance"],
    }
    rows = [facts | {key: setting[key] for key in MEASURES} for setting in record["settings"]]
    print(*map(json.dumps, rows), sep="\n", flush=True)
    return rows


def page(dataset_name: str, record: dict[str, Any]) -> str:
    """Return the table of a record."""
    lines = [
        f"# One change at a time to the class-conditional diffusion of {dataset_name}, at equal training time",
        "",
        "Written by `benchmarks/levers.py`. Lower Fréchet distances are better; ± is the deviation over other samples "
        "of the same model, not over other trainings.",
        "",
        "| variant | seed | threads | training (s) | images/s | steps | guidance | Fréchet distance (real images) | "
        "precision | recall | density | coverage | right class |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        others = " | ".join(number(row[name]["value"]) for name in ("precision", "recall", "density", "coverage"))
        lines.append(
            f"| {row['variant']} | {row['seed']} | {row['threads']} | {row['seconds']:g} | {row['images_per_second']} "
            f"| {row['optimizer_steps']:,} | {row['guidance_scale']:g} | {with_std(row['frechet_distance'])} "
            f"({number(row['real'])}) | {others} | {row['accuracy']:.1%} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
