"""Autoguidance (Karras et al. 2024): a diffusion model guided by an earlier checkpoint of its own training.

    OMP_NUM_THREADS=1 python benchmarks/autoguidance.py --seconds 300

D(x) = G(x) + w (M(x) − G(x)), where M is the model, G the checkpoint and w the weight, with the same class or cluster
for both. For comparison, the same model is measured without guidance and with classifier-free guidance. The record is
benchmarks/results/autoguidance_DATASET.json, with a table in Markdown beside it; further models are added to it.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

import hfgen
from hfgen.data.images import cache_folder, load_images
from hfgen.judges.judge import find_judge
from hfgen.judges.statistics import RealStatistics
from hfgen.pipelines.loading import load
from hfgen.runs.checkpoints import list_checkpoints, step_of
from hfgen.sampling.sample import clusters_of, image_shape_of, is_conditional, labels_of, to_uint8
from hfgen.sampling.schedulers import denoising_states, make_scheduler
from hfgen.utils.markdown import number, with_std
from hfgen.utils.seeds import derive_seed

RESULTS = Path(__file__).parent / "results"
RECIPE = "ddpm_conditional_mnist_cpu5min"
CONDITIONS: dict[str, dict[str, Any]] = {
    "none": {"class_conditional": False},
    "100 clusters": {"class_conditional": False, "num_clusters": 100},
    "classes": {},
}
STEPS, BATCH_SIZE, CHECKPOINTS = 15, 64, 16
MEASURES = ("frechet_distance", "precision", "recall", "density", "coverage")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", default="mnist")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--conditions", choices=CONDITIONS, nargs="+", default=list(CONDITIONS))
    parser.add_argument("--shares", type=float, nargs="+", default=[1 / 16, 1 / 8, 1 / 4, 1 / 2], help="of the steps")
    parser.add_argument("--weights", type=float, nargs="+", default=[1.5, 2.0, 3.0])
    parser.add_argument("--num_images", type=int, default=1000)
    options = parser.parse_args()
    file = RESULTS / f"autoguidance_{options.dataset_name}.json"
    record = json.loads(file.read_text()) if file.exists() else {"rows": []}
    test, train = (load_images(options.dataset_name, split=split) for split in ("test", "train"))
    real = RealStatistics(find_judge(None, test), test, train, cache_folder(None))
    record["real"] = real.floors(options.num_images)["train_against_test"]
    for condition in options.conditions:
        for row in rows_of(condition, options, real):
            record["rows"].append(row)
            print(json.dumps(row), flush=True)
            file.write_text(json.dumps(record, indent=1) + "\n")
            file.with_suffix(".md").write_text(page(options.dataset_name, record))
    print(f"The table is in {file.with_suffix('.md')}")


def rows_of(condition: str, options: argparse.Namespace, real: RealStatistics) -> Iterator[dict[str, Any]]:
    """Train a model, then measure it with each guidance."""
    with tempfile.TemporaryDirectory() as folder:
        steps = round(options.seconds * 8 / CHECKPOINTS)  # optimizer steps between checkpoints: about 8 a second
        run = hfgen.train(
            "ddpm",
            config=RECIPE,
            dataset_name=options.dataset_name,
            max_train_seconds=options.seconds,
            sample_steps=[],
            checkpointing_steps=steps,
            checkpoints_total_limit=1000,
            output_dir=Path(folder, "run"),
            **CONDITIONS[condition],
        )
        pipeline = load(str(run), dtype="auto")
        checkpoints = {step_of(path): path for path in list_checkpoints(run / "checkpoints")}
        last = max(checkpoints)
        facts = {"condition": condition, "seconds": options.seconds, "num_images": options.num_images, "steps": last}
        yield facts | {"guide": "none", "weight": 1.0} | measure(pipeline, None, 1.0, options.num_images, real)
        for weight in options.weights:
            if condition != "none":
                own = measure(pipeline, pipeline, weight, options.num_images, real)
                yield facts | {"guide": "the model without a condition", "weight": weight} | own
            for share in options.shares:
                step = min(checkpoints, key=lambda step, share=share: abs(step - share * last))
                guide = load(str(checkpoints[step]), dtype="auto")
                own = measure(pipeline, guide, weight, options.num_images, real)
                yield facts | {"guide": f"step {step}", "weight": weight} | own


def measure(
    pipeline: DiffusionPipeline, guide: DiffusionPipeline | None, weight: float, num_images: int, real: RealStatistics
) -> dict[str, Any]:
    """Measure images of a model with a guide; the model itself as the guide has no condition."""
    solver, images = make_scheduler("unipc", pipeline.scheduler, STEPS), []
    for first in range(0, num_images, BATCH_SIZE):
        numbers = range(first, min(first + BATCH_SIZE, num_images))
        seeds = [derive_seed("image", 0, number) for number in numbers]
        strong = network(pipeline, numbers, seeds, has_condition=True)
        weak = network(guide, numbers, seeds, has_condition=guide is not pipeline) if guide else strong
        model = strong if guide is None else guided(strong, weak, weight)
        *_, (x, _) = denoising_states(model, solver, STEPS, (1, *image_shape_of(pipeline)), seeds)
        images.append(to_uint8(x))
    found = real.measures(real.extractor.extract(torch.cat(images))[0])
    return {name: found[name] for name in MEASURES}


def network(
    pipeline: DiffusionPipeline, numbers: range, seeds: list[int], has_condition: bool
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the network of a pipeline with the classes or clusters of these images, or without."""
    count = pipeline.unet.config.num_class_embeds
    if not count:
        condition = {}
    elif not has_condition:
        condition = {"class_labels": torch.full((len(numbers),), count - 1)}
    elif is_conditional(pipeline):
        condition = {"class_labels": torch.tensor(labels_of(pipeline, (), numbers))}
    else:
        condition = {"class_labels": torch.tensor(clusters_of([*pipeline.config.cluster_shares.values()], seeds))}
    return lambda x, timestep: pipeline.unet(x.to(pipeline.unet.dtype), timestep, **condition).sample.to(x.dtype)


def guided(
    strong: Callable[[Tensor, Tensor], Tensor], weak: Callable[[Tensor, Tensor], Tensor], weight: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the prediction that leads away from the weak one."""
    return lambda x, timestep: torch.lerp(weak(x, timestep), strong(x, timestep), weight)


def page(dataset_name: str, record: dict[str, Any]) -> str:
    """Return the table of a record."""
    real = record["real"]
    lines = [
        f"# Autoguidance of {dataset_name}: an earlier checkpoint as the guide",
        "",
        f"Written by `benchmarks/autoguidance.py`; {STEPS} steps of UniPC. Lower Fréchet distances are better; real "
        f"images have {number(real['frechet_distance'])}, precision {number(real['precision'])}, recall "
        f"{number(real['recall'])}. The weight is 1 without guidance; that of classifier-free guidance is its scale.",
        "",
        "| condition | training (s) | steps | guide | weight | Fréchet distance | precision | recall | density | "
        "coverage |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        others = " | ".join(number(row[name]["value"]) for name in MEASURES[1:])
        lines.append(
            f"| {row['condition']} | {row['seconds']:g} | {row['steps']:,} | {row['guide']} | {row['weight']:g} | "
            f"{with_std(row['frechet_distance'])} | {others} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
