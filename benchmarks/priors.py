r"""Priors of a VAE, by the weight β of the KL term: latents from N(0, I), the Gaussian mixture and the flow.

    hfgen train vae --config vae_mnist_flow_cpu5min --max_train_seconds 90 --sweep beta=1,0.5,0.25,0.1 \
        --output_dir runs/betas
    python benchmarks/priors.py runs/betas/betas-* runs/vae_mnist_flow_cpu5min

Each run is measured with each of the three priors, and by its reconstructions of test images from samples of q(z | x),
which is what a perfect prior would come to. The record is benchmarks/results/priors.json, with a table in Markdown.
"""

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from hfgen.config.vae import PRIORS
from hfgen.data.images import cache_folder, load_images
from hfgen.judges.judge import find_judge
from hfgen.judges.statistics import RealStatistics
from hfgen.pipelines.loading import load
from hfgen.runs.folder import run_fields
from hfgen.sampling.sample import sample, to_uint8
from hfgen.utils.markdown import number, table, with_std

RESULTS = Path(__file__).parent / "results" / "priors.json"
MEASURES = ("frechet_distance", "precision", "recall")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="runs of `hfgen train vae --prior flow` of one data set")
    parser.add_argument("--num_images", type=int, default=2000)
    options = parser.parse_args()
    dataset = run_fields(Path(options.runs[0]))["dataset_name"]
    test, train = (load_images(dataset, split=split) for split in ("test", "train"))
    real = RealStatistics(find_judge(None, test), test, train, cache_folder(None))
    rows: list[dict[str, Any]] = []
    for run in options.runs:
        pipeline, fields = load(run), run_fields(Path(run))
        images = {
            prior: torch.cat([*sample(pipeline, num_images=options.num_images, prior=prior)]) for prior in PRIORS
        } | {"reconstructions": reconstructions(pipeline, test.images[: options.num_images])}
        for prior, drawn in images.items():
            found = real.measures(real.extractor.extract(drawn)[0])
            training = {"beta": fields["beta"], "seconds": fields["max_train_seconds"], "prior": prior}
            rows.append(training | {name: found[name] for name in MEASURES})
            print(run, prior, number(found["frechet_distance"]["value"]), flush=True)
    record = {
        "command": shlex.join(["python", "benchmarks/priors.py", *options.runs]),
        "num_images": options.num_images,
        "real": real.floors(options.num_images)["train_against_test"],
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    RESULTS.with_suffix(".md").write_text(page(record))
    print(f"The table is in {RESULTS.with_suffix('.md')}")


@torch.no_grad()
def reconstructions(pipeline: DiffusionPipeline, images: Tensor) -> Tensor:
    """Decode a sample of q(z | x) of each image, uint8 (N, C, H, W)."""
    torch.manual_seed(0)
    return to_uint8(pipeline.vae.decode(pipeline.vae.encode(images.float() / 127.5 - 1).sample()).sample)


def page(record: dict[str, Any]) -> str:
    """Return the table of a record."""
    rows = [
        [f"{row['beta']:g}", f"{row['seconds']:g}", row["prior"], with_std(row["frechet_distance"])]
        + [number(row[name]["value"]) for name in ("precision", "recall")]
        for row in record["rows"]
    ]
    rows.append(["", "", "real images", *(number(record["real"][name]) for name in MEASURES)])
    lines = [
        f"Written by `{record['command']}`; {record['num_images']:,} images each.",
        "Reconstructions are of test images, from samples of q(z given x): what the best prior would come to.",
        *table(["beta", "seconds of training", "latents from", "Fréchet distance", "precision", "recall"], rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
