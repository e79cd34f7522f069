"""Whether evaluations while training rank checkpoints as `hfgen evaluate` does, and what share of the time they take.

    python benchmarks/watching.py

Each model is trained twice for as many seconds. First with an evaluation of 500 samples at every checkpoint:
Spearman's rank correlation of their Fréchet distances (to held-out training images) with those of `hfgen evaluate` (of
more samples, to the test images). Then with `--evaluation_seconds` and the default share. The record is
benchmarks/results/watching.json.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from scipy.stats import spearmanr

import hfgen
from hfgen.runs.checkpoints import list_checkpoints
from hfgen.runs.folder import METRICS_FILE, RUN_FILE
from hfgen.runs.record import read_rows

RESULTS = Path(__file__).parent / "results" / "watching.json"
MODELS = {  # family, recipe, steps between checkpoints, images of hfgen evaluate
    "ddpm": ("ddpm_conditional_mnist_cpu5min", 150, 1000),
    "vae": ("vae_mnist_mlp_cpu5min", 400, 2000),
    "gan": ("gan_mnist_tuned", 150, 2000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=list(MODELS))
    parser.add_argument("--measures", nargs="+", choices=("ranking", "cost"), default=["ranking", "cost"])
    parser.add_argument("--seconds", type=float, default=240)
    options = parser.parse_args()
    record = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for family in options.families:
        recipe, steps, num_images = MODELS[family]
        shared = {"config": recipe, "max_train_seconds": options.seconds, "validation_fraction": 0.05}
        with tempfile.TemporaryDirectory() as folder:
            record[recipe] = record.get(recipe, {}) | {
                "seconds": options.seconds,
                "threads": torch.get_num_threads(),
                "vector_instructions": torch.backends.cpu.get_cpu_capability(),
                "num_images": num_images,
            }
            if "ranking" in options.measures:
                record[recipe] |= ranking(family, shared, steps, num_images, Path(folder))
            if "cost" in options.measures:
                record[recipe] |= cost(family, shared, Path(folder))
        RESULTS.write_text(json.dumps(record, indent=1) + "\n")
        print(json.dumps(record[recipe], indent=1), flush=True)


def ranking(family: str, shared: dict, steps: int, num_images: int, folder: Path) -> dict:
    every = {"evaluation_steps": steps, "checkpointing_steps": steps, "checkpoints_total_limit": 1000}
    run = hfgen.train(family, **shared, **every, output_dir=folder / "ranked")
    watched = {
        row["step"]: row["validation/frechet_distance"]
        for row in read_rows(run / METRICS_FILE)
        if "validation/frechet_distance" in row
    }
    measured = {}
    for checkpoint in list_checkpoints(run.checkpoints):
        report = hfgen.evaluate(
            checkpoint, num_images=num_images, output_dir=folder / "report", trust_remote_code=True
        )
        measures = next(iter(report.record["measures"].values()))
        measured[int(checkpoint.name.removeprefix("step-"))] = measures["frechet_distance"]["value"]
    common = sorted(watched.keys() & measured.keys())
    correlation = spearmanr([watched[step] for step in common], [measured[step] for step in common]).statistic
    return {
        "steps": common,
        "while_training": [round(watched[step], 3) for step in common],
        "hfgen_evaluate": [round(measured[step], 3) for step in common],
        "rank_correlation": round(float(correlation), 3),
    }


def cost(family: str, shared: dict, folder: Path) -> dict:
    run = hfgen.train(family, **shared, evaluation_seconds=20, output_dir=folder / "timed")
    record = json.loads((run / RUN_FILE).read_text())
    rows = [row for row in read_rows(run / METRICS_FILE) if "validation/frechet_distance" in row]
    mean = record["evaluation_seconds"] / len(rows)
    share = mean * (len(rows) - 1) / record["train_seconds"]  # the last one is after the training time
    return {"evaluations": len(rows), "seconds_of_one": round(mean, 2), "share_of_time": round(share, 4)}


if __name__ == "__main__":
    main()
