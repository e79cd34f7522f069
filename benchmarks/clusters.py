"""Clusters in the place of labels, for diffusion without labels: how many, and how much guidance.

    OMP_NUM_THREADS=1 python benchmarks/clusters.py --dataset_name mnist --seconds 400 --num_clusters 0 30 100

Each model is trained for as many seconds, with the settings of the class-conditional recipe and the same seed, and
measured with each guidance scale; 0 clusters are an unconditional model. The record is
benchmarks/results/clusters_NAME.json, with a table in Markdown beside it; further models are added to it.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

import hfgen
from hfgen.runs.folder import RUN_FILE

RESULTS = Path(__file__).parent / "results"
RECIPES = {"mnist": "ddpm_conditional_mnist_cpu5min", "fashion_mnist": "ddpm_conditional_fashion_mnist_cpu10min"}
MEASURES = ("frechet_distance", "precision", "recall", "coverage")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", choices=RECIPES, default="mnist")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--num_clusters", type=int, nargs="+", default=[0, 10, 30, 100])
    parser.add_argument("--guidance_scales", type=float, nargs="+", default=[1.0, 1.5, 2.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--num_images", type=int, default=1000)
    options = parser.parse_args()
    file = RESULTS / f"clusters_{options.dataset_name}.json"
    record = json.loads(file.read_text()) if file.exists() else {"rows": []}
    for seed in options.seeds:
        for count in options.num_clusters:
            record["rows"] += rows_of(options, count, seed)
            record["threads"] = torch.get_num_threads()
            record["vector_instructions"] = torch.backends.cpu.get_cpu_capability()
            file.write_text(json.dumps(record, indent=1) + "\n")
            file.with_suffix(".md").write_text(page(options.dataset_name, record))
    print(f"The table is in {file.with_suffix('.md')}")


def rows_of(options: argparse.Namespace, count: int, seed: int) -> list[dict[str, Any]]:
    """Train a model and measure it with each guidance scale."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        run = hfgen.train(
            "ddpm",
            config=RECIPES[options.dataset_name],
            class_conditional=False,
            num_clusters=count or None,
            max_train_seconds=options.seconds,
            seed=seed,
            output_dir=Path(folder, "run"),
        )
        training = json.loads((run / RUN_FILE).read_text())
        for scale in options.guidance_scales if count else [None]:
            guidance = {} if scale is None else {"guidance_scale": scale}
            out = Path(folder, f"report-{scale}")
            report = hfgen.evaluate(run, num_images=options.num_images, output_dir=out, **guidance)
            for judge, measures in report.record["measures"].items():
                rows.append({
                    "num_clusters": count,
                    "guidance_scale": scale,
                    "seed": seed,
                    "seconds": options.seconds,
                    "num_images": options.num_images,
                    "optimizer_steps": training["optimizer_steps"],
                    "judge": judge,
                    **{name: {key: round(value, 4) for key, value in measures[name].items()} for name in MEASURES},
                    "real": round(report.record["floors"][judge]["train_against_test"]["frechet_distance"], 4),
                })  # fmt: skip
                print(json.dumps(rows[-1]), flush=True)
    return rows


def page(dataset_name: str, record: dict[str, Any]) -> str:
    """Return the table of a record."""
    lines = [
        f"# Diffusion of {dataset_name} without labels, by the number of clusters",
        "",
        f"CPU cores: {record['threads']} ({record['vector_instructions']}). Written by `benchmarks/clusters.py`. 0 "
        "clusters are an unconditional model. Lower Fréchet distances are better.",
        "",
        "| clusters | guidance | seed | training (s) | steps | judge | Fréchet distance (real images) | precision | "
        "recall | coverage |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        frechet = row["frechet_distance"]
        distance = f"{frechet['value']:.3g} ± {frechet['std']:.1g} ({row['real']:.3g})"
        others = " | ".join(f"{row[name]['value']:.3f}" for name in MEASURES[1:])
        lines.append(
            f"| {row['num_clusters']} | {row['guidance_scale'] or ''} | {row['seed']} | {row['seconds']:g} | "
            f"{row['optimizer_steps']:,} | {row['judge']} | {distance} | {others} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
