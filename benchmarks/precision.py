"""What the precision of weights and of sampling does to the images of diffusion models: measures from the same noise.

    python benchmarks/precision.py runs/ddpm_conditional_mnist_cpu5min runs/ddpm_conditional_fashion_mnist_cpu10min

Each model draws the same images in float32, in bfloat16, and, unless its weights are stored in float16 already, in
both from weights rounded to float16. The record is benchmarks/results/precision.json, with a table in Markdown beside
it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from hfgen.data.images import cache_folder, load_images
from hfgen.evaluation.generated import labels_like
from hfgen.evaluation.real import name_of
from hfgen.judges.judge import find_judge
from hfgen.judges.statistics import RealStatistics, jackknife
from hfgen.pipelines.loading import load, move
from hfgen.runs.folder import run_fields
from hfgen.sampling.sample import default_sampler, is_conditional, labels_of, network_of, sample
from hfgen.utils.markdown import number, percent, table, with_std

RESULTS = Path(__file__).parent / "results" / "precision.json"
FIRST = "float32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--num_images", type=int, default=2000)
    options = parser.parse_args()
    rows = [row for run in options.runs for row in rows_of(run, options.num_images)]
    command = f"python benchmarks/precision.py {' '.join(options.runs)}"
    record = {"command": command, "num_images": options.num_images, "rows": rows}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(page(record))
    print(f"The table is in {RESULTS.with_suffix('.md')}")


def rows_of(run: str, num_images: int) -> list[dict[str, Any]]:
    """Measure the images of a run in each precision."""
    fields = run_fields(Path(run))
    test, train = (load_images(fields["dataset_name"], split=split) for split in ("test", "train"))
    real = RealStatistics(find_judge(None, test), test, train, cache_folder(None))
    rows, first, without = [], None, None
    classes = labels_like(train, 0)  # in random order, as the standard errors leave out every tenth image
    for name, pipeline in precisions(run).items():
        options = {"class_labels": classes} if is_conditional(pipeline) else {}
        images = torch.cat([*sample(pipeline, num_images=num_images, **default_sampler(pipeline, fields), **options)])
        features, logits = real.extractor.extract(images)
        measures, tenths = real.measures(features), real.frechet_distances_without(features)
        row = {"run": name_of(run), "precision": name, "frechet_distance": measures["frechet_distance"]}
        row["recall"] = measures["recall"]["value"]
        if is_conditional(pipeline):
            asked = torch.tensor(labels_of(pipeline, classes, range(num_images)))
            row["right_class"] = (logits.argmax(1) == asked).double().mean().item()
        if name == FIRST:
            first, without = images, tenths
        else:
            row["pixel_difference"] = (images.float() - first.float()).abs().mean().item()
            distances = [row["frechet_distance"]["value"], rows[0]["frechet_distance"]["value"]]
            differences = [own - other for own, other in zip(tenths, without, strict=True)]
            row["above_float32"] = {"value": distances[0] - distances[1], "std": jackknife(differences)}
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def precisions(run: str) -> dict[str, DiffusionPipeline]:
    """Return the pipeline of a run in each precision."""
    found = {FIRST: load(run), "bfloat16": load(run, dtype="bfloat16")}
    weights = [*network_of(found[FIRST]).parameters()]
    if all(part.equal(part.half().float()) for part in weights):  # as those of model_cards are
        return found
    for name in (FIRST, "bfloat16"):
        pipeline = load(run)
        with torch.no_grad():
            for weights in network_of(pipeline).parameters():
                weights.copy_(weights.half())
        found[f"{name}, weights stored in float16"] = move(pipeline, "cpu", name)
    return found


def page(record: dict[str, Any]) -> str:
    """Return the table of a record."""
    rows = [
        [
            row["run"],
            row["precision"],
            with_std(row["frechet_distance"]),
            with_std(row["above_float32"]) if "above_float32" in row else "",
            number(row["recall"]),
            percent(row["right_class"], 1) if "right_class" in row else "–",
            f"{row['pixel_difference']:.2f}" if "pixel_difference" in row else "",
        ]
        for row in record["rows"]
    ]
    header = ["model", "precision", "Fréchet distance", "above float32", "recall", "right class", "pixels differ by"]
    lines = [
        f"Written by `{record['command']}`; {record['num_images']:,} images from the same noise in each row.",
        "The difference from float32 has a paired standard error; pixels are from 0 to 255.",
        *table(header, rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
