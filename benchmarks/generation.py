"""How many images a second models draw, each with the sampler of its own run.

    python benchmarks/generation.py runs/gan_mnist_cpu10min runs/ddpm_mnist_cpu5min runs/vae_mnist_mlp_cpu5min

Rounds in which each draws the same number of images, and the ratios to the first within a round. How good what they
draw is stands beside it, where `hfgen evaluate` has measured it. Results go to benchmarks/results/generation.json and
.md.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from hfgen import load
from hfgen.evaluation.report import RECORD, sampler_text
from hfgen.runs.folder import run_fields
from hfgen.sampling.sample import default_sampler, sample
from hfgen.utils.markdown import number, table

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--num_images", type=int, default=256)
    options = parser.parse_args()
    torch.set_num_threads(2)
    models = {}
    for run in options.runs:
        pipeline = load(str(run), dtype="auto")
        models[run.name] = (pipeline, default_sampler(pipeline, run_fields(run)))
    rounds = []
    for _ in range(options.rounds):
        seconds = {}
        for name, (pipeline, sampler) in models.items():
            started = time.monotonic()
            for _ in sample(pipeline, num_images=options.num_images, **sampler):
                pass
            seconds[name] = time.monotonic() - started
        rounds.append(seconds)
        print(seconds, flush=True)
    first = options.runs[0].name
    ratios = {name: statistics.median(row[name] / row[first] for row in rounds) for name in models}
    rates = {name: options.num_images / statistics.median(row[name] for row in rounds) for name in models}
    rows = []
    for run in options.runs:
        report = json.loads((run / RECORD).read_text()) if (run / RECORD).exists() else None
        distance = next(iter(report["measures"].values()))["frechet_distance"]["value"] if report else None
        images = f" ({report['protocol']['num_images']:,} images)" if report else ""
        rows.append([
            run.name, sampler_text(models[run.name][1]), f"{rates[run.name]:,.0f}", f"{ratios[run.name]:.2f}",
            (number(distance) if report else "not measured") + images,
        ])  # fmt: skip
    record = {"num_images": options.num_images, "rounds": rounds, "ratios": ratios, "images_per_second": rates}
    (RESULTS / "generation.json").write_text(json.dumps(record, indent=1) + "\n")
    lines = [
        f"Written by `benchmarks/generation.py`: {options.num_images} images a round in batches of 64, two CPU cores, "
        f"medians of {options.rounds} rounds.",
        *table(["run", "sampler", "images a second", f"times as long as {first}", "Fréchet distance"], rows),
    ]
    (RESULTS / "generation.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
