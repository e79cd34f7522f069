"""What settings of hfgen distill give at equal numbers of optimizer steps, on one core.

    python benchmarks/distillation.py --teacher ddpm_conditional_mnist_cpu5min --steps 600

Each variant differs from the first in what its name says. Their images in one and in two steps are compared with the
test images, as `hfgen evaluate` does; beside them stand those of the teacher in its own steps, and in as few steps as
the student. The time is the processor time of the training, which other programs on the machine do not change. Results
go to benchmarks/results/distillation_TEACHER.json and, as a table, .md; with `--only`, the other rows stay.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import hfgen
import hfgen.tasks.consistency
from hfgen.losses.consistency import pseudo_huber
from hfgen.utils.markdown import table, with_std

RESULTS = Path(__file__).parent / "results"
FIRST = "the default"
TEACHER = "the teacher"
SQUARED, LIMITED = "squared error", "no pixels beyond the range that is clipped"
OUTPUT = {"num_samples": 1, "checkpointing_steps": 10**9}
VARIANTS: dict[str, dict[str, Any]] = {
    FIRST: {},
    "no discriminator": {"adversarial_weight": 0.0},
    "guidance 2.25": {"guidance_scale": 2.25},
    "guidance 3": {"guidance_scale": 3.0},
    "the discriminator's part five times as large": {"adversarial_weight": 0.1},
    "the last fifth consistency tuning": {"consistency_fraction": 0.2},
    "each trajectory used 4 times": {"trajectory_uses": 4},
    "each trajectory used 64 times": {"trajectory_uses": 64},
    "AdamW, learning rate 1e-3": {"optimizer": "adamw", "learning_rate": 1e-3},
    "trajectories of 15 steps": {"teacher_steps": 15},
    SQUARED: {},
    LIMITED: {},
}
REPLACED: dict[str, tuple[str, Any]] = {  # functions of hfgen.tasks.consistency, for these variants
    SQUARED: ("pseudo_huber", lambda difference, width: difference.square().mean()),
    LIMITED: ("error_in_range", torch.sub),
}


def quality(model: str | Path, num_images: int, **sampler: Any) -> dict[str, Any]:
    """Return measures of `hfgen evaluate` by the first two judges."""
    with tempfile.TemporaryDirectory() as folder:
        record = hfgen.evaluate(model, num_images=num_images, output_dir=folder, **sampler).record
    return {
        judge: {
            "frechet_distance": measures["frechet_distance"],
            "recall": measures["recall"],
            "accuracy": record["conditional"][judge]["accuracy"] if record["conditional"] else None,
        }
        for judge, measures in list(record["measures"].items())[:2]
    }


def measure(teacher: str, variant: str, steps: int, num_images: int) -> dict[str, Any]:
    """Distil one variant, and measure its images."""
    fields = OUTPUT | VARIANTS[variant]
    name, function = REPLACED.get(variant, ("pseudo_huber", pseudo_huber))
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(hfgen.tasks.consistency, name, function):
        before = time.process_time()
        run = hfgen.distill(teacher, max_train_steps=steps, output_dir=folder + "/run", **fields)
        seconds = time.process_time() - before
        return {"processor_seconds": round(seconds)} | {
            f"{count} step{'s' if count > 1 else ''}": quality(run.path, num_images, num_inference_steps=count)
            for count in (1, 2)
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="ddpm_conditional_mnist_cpu5min")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--num_images", type=int, default=5000)
    parser.add_argument("--only", nargs="*", help="variants whose name begins with one of these; by default all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    place = RESULTS / f"distillation_{options.teacher}.json"
    command = f"python benchmarks/distillation.py --teacher {options.teacher} --steps {options.steps}"
    command += f" --num_images {options.num_images}"
    record: dict[str, Any] = {"command": command, "rows": {}}
    if place.exists() and options.only:
        before = json.loads(place.read_text())
        if before["command"] != command:
            raise SystemExit(f"{place} was made by {before['command']}")
        record = before
    for name in (TEACHER, *VARIANTS):
        if options.only and not name.startswith(tuple(options.only)):
            continue
        if name == TEACHER:
            counts = {"its own steps": {}, "2 steps": {"num_inference_steps": 2}, "1 step": {"num_inference_steps": 1}}
            row = {count: quality(options.teacher, options.num_images, **sampler) for count, sampler in counts.items()}
        else:
            row = measure(options.teacher, name, options.steps, options.num_images)
        print(name, json.dumps(row), flush=True)
        record["rows"][name] = row
        record["rows"] = {name: record["rows"][name] for name in (TEACHER, *VARIANTS) if name in record["rows"]}
        place.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        place.with_suffix(".md").write_text(page(record))
    print(f"The table is in {place.with_suffix('.md')}")


def page(record: dict[str, Any]) -> str:
    """Return the table of a record."""
    rows, judges = [], []
    for name, row in record["rows"].items():
        for count, found in row.items():
            if count == "processor_seconds":
                continue
            judges = list(found)
            first = found[judges[0]]
            cells = [with_std(each["frechet_distance"]) for each in found.values()]
            seconds = str(row.get("processor_seconds", ""))
            recall, accuracy = first["recall"]["value"], 100 * (first["accuracy"] or math.nan)
            rows.append([name, seconds, count, *cells, f"{recall:.3f}", f"{accuracy:.2f} %"])
    distances = [f"Fréchet distance, {judge}" for judge in judges]
    lines = [
        f"Written by `{record['command']}`. Recall and class accuracy are by {judges[0]}.",
        *table(["variant", "processor seconds", "steps of a sample", *distances, "recall", "class accuracy"], rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
