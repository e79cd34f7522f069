"""Autoguidance (Karras et al. 2024): a diffusion model guided by an earlier checkpoint of its own training.

    hfgen train ddpm --config ddpm_fashion_mnist_clusters_cpu10min --checkpoints_total_limit 99
    python benchmarks/autoguidance.py runs/ddpm_fashion_mnist_clusters_cpu10min

D(x) = G(x) + s (M(x) − G(x)), where M is the model, G the checkpoint and s the scale, with the same class or cluster
for both. The same model is measured without guidance and with classifier-free guidance, below the noise levels of
`--classifier_free SCALE:LEVEL …`, from the same noise. The record is benchmarks/results/autoguidance_RUN.json, with a
table in Markdown beside it.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from hfgen.data.images import cache_folder, load_images
from hfgen.evaluation.generated import labels_like
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
from hfgen.utils.markdown import number, percent, table, with_std
from hfgen.utils.seeds import derive_seed

RESULTS = Path(__file__).parent / "results"
BATCH_SIZE = 64
MEASURES = ("precision", "recall", "density", "coverage")
Network = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run of `hfgen train ddpm` with all of its checkpoints")
    parser.add_argument("--shares", type=float, nargs="+", default=[1 / 8, 1 / 4, 1 / 2], help="of the steps")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.5, 2.0, 3.0])
    parser.add_argument("--classifier_free", nargs="+", default=["2.5:0.75"], metavar="SCALE:LEVEL")
    parser.add_argument("--num_images", type=int, default=2000)
    options = parser.parse_args()
    fields = run_fields(Path(options.run))
    test, train = (load_images(fields["dataset_name"], split=split) for split in ("test", "train"))
    real = RealStatistics(find_judge(None, test), test, train, cache_folder(None))
    pipeline = load(options.run, dtype="auto")
    pipeline.guide = None
    sampler = default_sampler(pipeline, fields)
    setting = sampler["scheduler"], sampler["num_inference_steps"]
    classes = labels_like(train, 0) if is_conditional(pipeline) else []
    asked = torch.tensor(labels_of(pipeline, classes, range(options.num_images))) if classes else None
    rows = []

    def add(guide: str, scale: float, images: Tensor) -> None:
        features, logits = real.extractor.extract(images)
        found = real.measures(features)
        row = {"guide": guide, "scale": scale} | {name: found[name] for name in ("frechet_distance", *MEASURES)}
        if asked is not None:
            row["right_class"] = (logits.argmax(1) == asked).double().mean().item()
        rows.append(row)
        print(guide, scale, number(found["frechet_distance"]["value"]), flush=True)

    for entry in options.classifier_free:
        scale, last = map(float, entry.split(":"))
        guidance = {"guidance_scale": scale, "guidance_interval": [0.0, last], "class_labels": classes}
        images = torch.cat([*sample(pipeline, num_images=options.num_images, **sampler | guidance)])
        add(f"the model without its condition, up to noise level {last:g}", scale, images)
    add("none", 1.0, guided_images(pipeline, pipeline, 1.0, options.num_images, classes, *setting))
    checkpoints = {step_of(path): path for path in list_checkpoints(Path(options.run, "checkpoints"))}
    last = max(checkpoints)
    for share in options.shares:
        step = min(checkpoints, key=lambda step, wanted=share * last: abs(step - wanted))
        guide = load(str(checkpoints[step]), dtype="auto")
        for scale in options.scales:
            images = guided_images(pipeline, guide, scale, options.num_images, classes, *setting)
            add(f"the model after {step:,} of {last:,} steps", scale, images)
    record = {
        "command": shlex.join(["python", "benchmarks/autoguidance.py", f"runs/{name_of(options.run)}", *sys.argv[2:]]),
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
    pipeline: DiffusionPipeline,
    guide: DiffusionPipeline,
    scale: float,
    num_images: int,
    classes: list[str],
    scheduler: str,
    steps: int,
) -> Tensor:
    """Return images of a model with a guide, from the same noise and conditions as those of `sample`."""
    solver, images = make_scheduler(scheduler, pipeline.scheduler, steps), []
    for first in range(0, num_images, BATCH_SIZE):
        numbers = range(first, min(first + BATCH_SIZE, num_images))
        seeds = [derive_seed("image", 0, number) for number in numbers]
        strong, weak = (network(each, numbers, seeds, classes) for each in (pipeline, guide))
        model = strong if scale == 1 else guided(strong, weak, scale)
        *_, (x, _) = denoising_states(model, solver, steps, (1, *image_shape_of(pipeline)), seeds)
        images.append(to_uint8(x))
    return torch.cat(images)


def network(pipeline: DiffusionPipeline, numbers: range, seeds: list[int], classes: list[str]) -> Network:
    """Return the network of a pipeline with the classes or clusters of these images, if it has any."""
    condition = {}
    if is_conditional(pipeline):
        condition = {"class_labels": torch.tensor(labels_of(pipeline, classes, numbers))}
    elif is_guided(pipeline):
        condition = {"class_labels": torch.tensor(clusters_of([*pipeline.config.cluster_shares.values()], seeds))}
    return lambda x, timestep: pipeline.unet(x.to(pipeline.unet.dtype), timestep, **condition).sample.to(x.dtype)


def guided(strong: Network, weak: Network, scale: float) -> Network:
    """Return the prediction that leads away from the weak one."""
    return lambda x, timestep: torch.lerp(weak(x, timestep), strong(x, timestep), scale)


def page(record: dict[str, Any]) -> str:
    """Return the table of a record."""
    real, sampler = record["real"], record["sampler"]
    has_classes = "right_class" in record["rows"][0]
    rows = [
        [row["guide"], f"{row['scale']:g}", with_std(row["frechet_distance"])]
        + [number(row[name]["value"]) for name in MEASURES]
        + ([percent(row["right_class"], 1)] if has_classes else [])
        for row in record["rows"]
    ]
    floors = [number(real[name]) for name in ("frechet_distance", *MEASURES)]
    rows.append(["real images", "", *floors, *[""] * has_classes])
    header = ["guided away from", "scale", "Fréchet distance", *MEASURES, *["right class"] * has_classes]
    lines = [
        f"Written by `{record['command']}`; {record['num_images']:,} images from the same noise in each row, "
        f"{sampler['num_inference_steps']} steps of {sampler['scheduler']}.",
        "Autoguidance is applied at all noise levels.",
        *table(header, rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
