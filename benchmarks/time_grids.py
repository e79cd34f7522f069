"""Time steps for few denoising steps: even, shifted, of other papers, and learnt (`compare-samplers --learn_steps`).

    python benchmarks/time_grids.py ddpm_conditional_mnist_cpu5min --steps 4 6

First the distance of each grid's images from those of many steps from the same noise, which learning minimises, for
noise that it has not seen; then the Fréchet distance of even and learnt grids, and how far it is above that of
`--reference_steps` even steps. Results go to benchmarks/results/time_grids.json, one entry per model, and a page
beside it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
from diffusers import DiffusionPipeline

from hfgen.data.images import cache_folder, load_images
from hfgen.evaluation.generated import labels_like
from hfgen.judges.judge import find_judge
from hfgen.judges.statistics import RealStatistics, jackknife
from hfgen.pipelines.loading import load
from hfgen.runs.folder import run_fields
from hfgen.sampling.learnt_steps import MANY_STEPS, NUM_NOISES, Drawing, TimeSteps, learn_steps
from hfgen.sampling.sample import default_sampler, labels_of, sample
from hfgen.utils.markdown import number, percent, table, with_std

RESULTS = Path(__file__).parent / "results" / "time_grids.json"
SHIFTS = (0.5, 0.7, 1.5, 2, 3)
SIGMAS = 157.0, 0.01  # ends of Karras' and exponential grids, as diffusers has them: σ = t / (1 − t)
RHO, BETA = 7, 0.6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a class-conditional flow that is sampled with unipc: a run or a recipe's name")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 6])
    parser.add_argument("--num_images", type=int, default=2000, help="0: no Fréchet distances")
    parser.add_argument("--reference_steps", type=int, default=15)
    options = parser.parse_args()
    fields, pipeline = run_fields(Path(options.model)), load(options.model)
    sampler = default_sampler(pipeline, fields)
    test, train = (load_images(fields["dataset_name"], split=split) for split in ("test", "train"))
    classes = labels_like(train, 0)
    drawing, unseen = Drawing(pipeline, sampler, classes, seed=0), range(NUM_NOISES, 2 * NUM_NOISES)
    targets = drawing(unseen, MANY_STEPS)
    learnt = learn_steps(pipeline, sampler, options.steps, classes, seed=0)
    grids: dict[int, dict[str, TimeSteps]] = {}
    rows = []
    for count in options.steps:
        grids[count] = grids_of(count, drawing.own_steps(count)) | {"learnt": learnt[count].time_steps}
        for name, grid in grids[count].items():
            row = {"steps": count, "grid": name, "timesteps": [round(t, 1) for t in grid["timesteps"]]}
            row |= {"network_evaluations": calls(pipeline, sampler, grid)}
            row |= {"distance": drawing.distance(unseen, grid, targets)}
            rows.append(row | ({"seconds": learnt[count].seconds} if name == "learnt" else {}))
            print(options.model, count, name, row["network_evaluations"], number(row["distance"]), flush=True)
    entry = {
        "sampler": sampler,
        "threads": torch.get_num_threads(),
        "num_images": options.num_images,
        "distances": rows,
        "measured": [],
    }
    save(options.model, entry)
    if options.num_images:
        real = RealStatistics(find_judge(None, test), test, train, cache_folder(None))
        entry["real_images"] = real.floors(options.num_images)["train_against_test"]["frechet_distance"]
        asked = torch.tensor(labels_of(pipeline, classes, range(options.num_images)))
        chosen = [("even", options.reference_steps, None)]
        chosen += [(name, count, grids[count][name]) for count in options.steps for name in ("learnt", "even")]
        for name, count, grid in chosen:
            setting = sampler | {"num_inference_steps": count, "time_steps": grid}
            images = torch.cat([*sample(pipeline, num_images=options.num_images, class_labels=classes, **setting)])
            features, logits = real.extractor.extract(images)
            found = real.measures(features)
            distance = found["frechet_distance"]
            distance["without_each_tenth"] = real.frechet_distances_without(features)
            row = {"steps": count, "grid": name, "frechet_distance": distance}
            row |= {"network_evaluations": calls(pipeline, sampler, grid or drawing.own_steps(count))}
            row |= {each: found[each] for each in ("precision", "recall")}
            row["right_class"] = (logits.argmax(1) == asked).double().mean().item()
            entry["measured"].append(row)
            first = entry["measured"][0]["frechet_distance"]
            tenths = zip(distance["without_each_tenth"], first["without_each_tenth"], strict=True)
            std = jackknife([one - other for one, other in tenths])
            row["above_reference"] = {"value": distance["value"] - first["value"], "std": std}
            print(options.model, count, name, number(distance["value"]), flush=True)
            save(options.model, entry)


def save(model: str, entry: dict[str, Any]) -> None:
    """Write the record and its page, with what is known of a model so far."""
    record = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    record[model] = entry
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(page(record))


def grids_of(count: int, own: TimeSteps) -> dict[str, TimeSteps]:
    """Return grids of a flow from t = T to 0 by name, the scheduler's own as `even`."""
    even, ramp = np.linspace(1, 0, count + 1), np.linspace(0, 1, count)
    largest, smallest = SIGMAS
    karras = (largest ** (1 / RHO) + ramp * (smallest ** (1 / RHO) - largest ** (1 / RHO))) ** RHO
    exponential = np.exp(np.linspace(np.log(largest), np.log(smallest), count))
    levels = {f"shift {shift:g}": shift * even / (1 + (shift - 1) * even) for shift in SHIFTS}
    levels["Karras"] = [*karras / (1 + karras), 0]
    levels["exponential"] = [*exponential / (1 + exponential), 0]
    levels["beta"] = scipy.stats.beta.ppf(even, BETA, BETA)
    first, sigma = own["timesteps"][0], own["sigmas"][0]
    total = first / sigma
    grids = {"even": own}
    for name, each in levels.items():
        sigmas = [min(float(level), sigma) for level in each]
        grids[name] = {"timesteps": [total * level for level in sigmas[:-1]], "sigmas": sigmas}
    return grids


def calls(pipeline: DiffusionPipeline, sampler: dict[str, Any], grid: TimeSteps) -> int:
    """Count the network evaluations of an image: two where guidance applies."""
    first, last = (edge * pipeline.scheduler.config.num_train_timesteps for edge in sampler["guidance_interval"])
    return sum(2 if first <= timestep <= last else 1 for timestep in grid["timesteps"])


def page(record: dict[str, Any]) -> str:
    """Return the page of a record."""
    lines = ["Written by `python benchmarks/time_grids.py MODEL`."]
    for model, entry in record.items():
        counts = list(dict.fromkeys(row["steps"] for row in entry["distances"]))
        by_grid: dict[str, dict[int, dict[str, Any]]] = {}
        for row in entry["distances"]:
            by_grid.setdefault(row["grid"], {})[row["steps"]] = row
        lines += ["", f"## {model}", "", f"Distance from the images of {MANY_STEPS} steps (network evaluations):"]
        lines += table(
            ["grid", *(f"{count} steps" for count in counts)],
            [
                [name, *(f"{number(row['distance'])} ({row['network_evaluations']})" for row in found.values())]
                for name, found in by_grid.items()
            ],
        )
        for row in by_grid["learnt"].values():
            times = ", ".join(f"{t:.0f}" for t in row["timesteps"])
            lines += ["", f"Learnt for {row['steps']} steps in {row['seconds']:.0f} s of a shared core: {times}."]
        if not entry["measured"]:
            continue
        lines += ["", f"{entry['num_images']:,} images each; real images: {number(entry['real_images'])}."]
        header = ["steps", "evaluations", "Fréchet distance", "above the first", "precision", "recall", "right class"]
        lines += table(
            header,
            [
                [
                    f"{row['steps']}, {row['grid']}",
                    str(row["network_evaluations"]),
                    with_std(row["frechet_distance"]),
                    with_std(row["above_reference"]) if row["above_reference"]["value"] else "",
                    number(row["precision"]["value"]),
                    number(row["recall"]["value"]),
                    percent(row["right_class"]),
                ]
                for row in entry["measured"]
            ],
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
