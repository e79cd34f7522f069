"""How the images of a student of few steps get better with the length of its training, on one core.

    python benchmarks/student_steps.py consistency_mnist_cpu10min --steps 395 790 1580 3160

A student is trained anew for each number of optimizer steps, since the learning rate falls in the course of one. Its
images in one and in two steps are measured as `hfgen evaluate` does, and beside them those of its teacher, in as many
steps as it follows and in `--teacher_steps`. Results go to benchmarks/results/student_steps_RECIPE.json, with a table
and a picture beside it. What is there already for the same command is not made again.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import PIL.Image
import torch
import yaml
from distillation import quality
from matplotlib.figure import Figure

import hfgen
from hfgen.config.recipes import RECIPES
from hfgen.figures.grids import save_picture
from hfgen.figures.plots import in_style, to_picture
from hfgen.utils.markdown import percent, table, with_std

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a recipe of hfgen train consistency")
    parser.add_argument("--steps", type=int, nargs="+", required=True, help="optimizer steps of the trainings")
    parser.add_argument("--teacher_steps", type=int, default=15)
    parser.add_argument("--num_images", type=int, default=10_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    fields = yaml.safe_load((RECIPES / f"{options.recipe}.yaml").read_text())
    teacher = fields["teacher"]
    place = RESULTS / f"student_steps_{options.recipe}.json"
    command = f"python benchmarks/student_steps.py {options.recipe} --num_images {options.num_images}"
    record: dict[str, Any] = {"command": command, "teacher": {}, "students": {}}
    if place.exists() and (before := json.loads(place.read_text()))["command"] == command:
        record = before

    def keep() -> None:
        place.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")

    for steps in options.steps:
        if str(steps) in record["students"]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            length = {"max_train_seconds": None, "max_train_steps": steps}
            run = hfgen.train("consistency", config=options.recipe, output_dir=f"{folder}/run", **length)
            row = {count: quality(run.path, options.num_images, num_inference_steps=int(count)) for count in "12"}
        record["students"] = dict(sorted((record["students"] | {str(steps): row}).items(), key=lambda e: int(e[0])))
        print(steps, json.dumps(row), flush=True)
        keep()
    for count in (str(fields["teacher_steps"]), str(options.teacher_steps)):
        if count not in record["teacher"]:
            record["teacher"][count] = quality(teacher, options.num_images, num_inference_steps=int(count))
            keep()
    place.with_suffix(".md").write_text(page(record, teacher))
    save_picture(picture(record, options.num_images), place.with_suffix(".png"))
    print(f"The table is in {place.with_suffix('.md')}, the curves in {place.with_suffix('.png')}")


def page(record: dict[str, Any], teacher: str) -> str:
    """Return the table of a record."""
    rows = [
        [f"{int(steps):,} optimizer steps", count, *cells(row[count])]
        for steps, row in record["students"].items()
        for count in "21"
    ]
    rows += [[f"the teacher, {teacher}", count, *cells(found)] for count, found in record["teacher"].items()]
    judges = list(next(iter(record["students"].values()))["1"])
    header = ["training", "steps of a sample", *(f"Fréchet distance, {judge}" for judge in judges)]
    header += ["recall", *(f"right class, {judge}" for judge in judges)]
    return "\n".join([f"Written by `{record['command']}`. Recall is by {judges[0]}.", *table(header, rows)]) + "\n"


def cells(found: dict[str, Any]) -> list[str]:
    """Return the cells of measures by two judges."""
    distances = [with_std(measures["frechet_distance"]) for measures in found.values()]
    accuracies = [percent(measures["accuracy"]) for measures in found.values()]
    return [*distances, f"{next(iter(found.values()))['recall']['value']:.3f}", *accuracies]


@in_style
def picture(record: dict[str, Any], num_images: int) -> PIL.Image.Image:
    """Plot the distances and the share of right classes over the length, with deviations; the teacher's as lines."""
    judges = list(next(iter(record["students"].values()))["1"])
    figure = Figure(figsize=(9, 3.2))
    lengths = [int(steps) for steps in record["students"]]
    panels = [("frechet_distance", f"Fréchet distance, {judge}", judge) for judge in judges]
    panels.append(("accuracy", f"right class, %, {judges[0]}", judges[0]))
    for axes, (measure, title, judge) in zip(figure.subplots(1, 3), panels, strict=True):

        def value(found: dict[str, Any], measure: str = measure, judge: str = judge) -> tuple[float, float]:
            measured = found[judge][measure]
            if measure == "accuracy":
                return 100 * measured, 100 * math.sqrt(measured * (1 - measured) / num_images)
            return measured["value"], measured["std"]

        for number, (count, name) in enumerate({"1": "1 step", "2": "2 steps"}.items()):
            values, deviations = zip(*(value(row[count]) for row in record["students"].values()), strict=True)
            places = [length * (0.98, 1.02)[number] for length in lengths]
            axes.errorbar(places, values, deviations, fmt="o-", label=name)
        for number, (count, found) in enumerate(record["teacher"].items()):
            axes.axhline(value(found)[0], color="black", ls=("--", ":")[number], lw=1, label=f"teacher, {count} steps")
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
        axes.set_xlabel("optimizer steps of the training")
        axes.set_title(title)
    axes.legend()
    return to_picture(figure)


if __name__ == "__main__":
    main()
