"""Autoguidance (Karras et al. 2024): a diffusion model guided by an earlier checkpoint of its own training.

    hfgen train ddpm --config ddpm_fashion_mnist_clusters_cpu10min --checkpoints_total_limit 99
    python benchmarks/autoguidance.py runs/ddpm_fashion_mnist_clusters_cpu10min

D(x) = G(x) + w (M(x) − G(x)), where M is the model, G the checkpoint and w the weight, with the same class or cluster
for both. The same model is measured without guidance and with the classifier-free guidance of its recipe, from the
same noise. The record is benchmarks/results/autoguidance_RUN.json, with a table in Markdown beside it.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from hfgen.data.images import cache_folder, load_images
from hfgen.evaluation.real import name_of
from hfgen.judges.judge import find_judge
from hfgen.judges.statistics import RealStatistics
from hfgen.pipelines.loading import load
from hfgen.runs.checkpoints import list_checkpoints, step_of
from hfgen.runs.folder import run_fields
from hfgen.sampling.sample import (
    clusters_of,
    default_sampler,
    image_shape_of,
    is_conditional,
    is_guided,
    labels_of,
    sample,
    to_uint8,
)
from hfgen.sampling.schedulers import denoising_states, make_scheduler
from hfgen.utils.markdown import number, table, with_std
from hfgen.utils.seeds import derive_seed

RESULTS = Path(__file__).parent / "results"
BATCH_SIZE = 64
MEASURES = ("precision", "recall", "density", "coverage")
Network = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run of `hfgen train ddpm` with all of its checkpoints")
    parser.add_argument("--shares", type=float, nargs="+", default=[1 / 8, 1 / 4, 1 / 2], help="of the steps")
    parser.add_argument("--weights", type=float, nargs="+", default=[1.5, 2.0, 3.0])
    parser.add_argument("--num_images", type=int, default=2000)
    options = parser.parse_args()
    fields = run_fields(Path(options.run))
    test, train = (load_images(fields["dataset_name"], split=split) for split in ("test", "train"))
    real = RealStatistics(find_judge(None, test), test, train, cache_folder(None))
    pipeline = load(options.run, dtype="auto")
    sampler = default_sampler(pipeline, fields)
    rows = []

    def add(guide: str, weight: float, images: Tensor) -> None:
        found = real.measures(real.extractor.extract(images)[0])
        rows.append(
            {"guide": guide, "weight": weight} | {name: found[name] for name in ("frechet_distance", *MEASURES)}
        )
        print(guide, weight, number(found["frechet_distance"]["value"]), flush=True)

    if is_guided(pipeline):
        own = torch.cat([*sample(pipeline, num_images=options.num_images, **sampler)])
        interval = sampler["guidance_interval"]
        add(f"the model without its condition, in the interval {interval}", sampler["guidance_scale"], own)
    steps = sampler["num_inference_steps"]
    add("none", 1.0, guided_images(pipeline, pipeline, 1.0, options.num_images, steps))
    checkpoints = {step_of(path): path for path in list_checkpoints(Path(options.run, "checkpoints"))}
    last = max(checkpoints)
    for share in options.shares:
        step = min(checkpoints, key=lambda step, wanted=share * last: abs(step - wanted))
        guide = load(str(checkpoints[step]), dtype="auto")
        for weight in options.weights:
            images = guided_images(pipeline, guide, weight, options.num_images, steps)
            add(f"the model after {step:,} of {last:,} steps", weight, images)
    record = {
        "command": f"python benchmarks/autoguidance.py runs/{name_of(options.run)}",
        "num_images": options.num_images,
        "sampler": sampler,
        "real": real.floors(options.num_images)["train_against_test"],
        "rows": rows,
    }
    file = RESULTS / f"autoguidance_{name_of(options.run)}.json"
    file.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    file.with_suffix(".md").write_text(page(record))
    print(f"The table is in {file.with_suffix('.md')}")


def guided_images(
    pipeline: DiffusionPipeline, guide: DiffusionPipeline, weight: float, num_images: int, steps: int
) -> Tensor:
    """Return images of a model with a guide, from the same noise and conditions as those of `sample`."""
    solver, images = make_scheduler("unipc", pipeline.scheduler, steps), []
    for first in range(0, num_images, BATCH_SIZE):
        numbers = range(first, min(first + BATCH_SIZE, num_images))
        seeds = [derive_seed("image", 0, number) for number in numbers]
        strong, weak = network(pipeline, numbers, seeds), network(guide, numbers, seeds)
        model = strong if weight == 1 else guided(strong, weak, weight)
        *_, (x, _) = denoising_states(model, solver, steps, (1, *image_shape_of(pipeline)), seeds)
        images.append(to_uint8(x))
    return torch.cat(images)


def network(pipeline: DiffusionPipeline, numbers: range, seeds: list[int]) -> Network:
    """Return the network of a pipeline with the classes or clusters of these images, if it has any."""
    condition = {}
    if is_conditional(pipeline):
        condition = {"class_labels": torch.tensor(labels_of(pipeline, (), numbers))}
    elif is_guided(pipeline):
        condition = {"class_labels": torch.tensor(clusters_of([*pipeline.config.cluster_shares.values()], seeds))}
    return lambda x, timestep: pipeline.unet(x.to(pipeline.unet.dtype), timestep, **condition).sample.to(x.dtype)


def guided(strong: Network, weak: Network, weight: float) -> Network:
    """Return the prediction that leads away from the weak one."""
    return lambda x, timestep: torch.lerp(weak(x, timestep), strong(x, timestep), weight)


def page(record: dict[str, Any]) -> str:
    """Return the table of a record."""
    real, sampler = record["real"], record["sampler"]
    rows = [
        [row["guide"], f"{row['weight']:g}", with_std(row["frechet_distance"])]
        + [number(row[name]["value"]) for name in MEASURES]
        for row in record["rows"]
    ]
    rows.append(["real images", "", *(number(real[name]) for name in ("frechet_distance", *MEASURES))])
    lines = [
        f"Written by `{record['command']}`; {record['num_images']:,} images from the same noise in each row, "
        f"{sampler['num_inference_steps']} steps of {sampler['scheduler']}.",
        "Autoguidance is applied at all noise levels.",
        *table(["guide", "weight", "Fréchet distance", *MEASURES], rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
