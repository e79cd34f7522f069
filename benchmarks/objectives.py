"""What objectives, optimizers' settings and networks give a class-conditional model at equal training time.

    python benchmarks/objectives.py --dataset_name mnist --seconds 60

Each variant differs from the first in what its name says; the first is repeated at the end, and what two equal runs
differ by is what the machine's noise amounts to. All train for the same wall-clock time on the same machine, one after
the other, and are then drawn with 15 steps, with and without guidance, and measured as `hfgen compare-samplers` does.
Results go to benchmarks/results/objectives_DATASET.json and, as a table, .md; with `--only`, the other rows stay.
"""

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn.functional import avg_pool2d

from hfgen.config import DDPMConfig
from hfgen.config.commands import CompareSamplersConfig
from hfgen.data.loader import Batch
from hfgen.evaluation.samplers import compare_samplers
from hfgen.tasks.base import Loss
from hfgen.tasks.diffusion import DiffusionTask
from hfgen.training.run import train
from hfgen.utils.markdown import number, with_std

RESULTS = Path(__file__).parent / "results"
BASE = {
    "prediction_type": "v_prediction",
    "class_conditional": True,
    "block_out_channels": [16, 32, 64],
    "layers_per_block": 1,
    "add_attention": False,
    "train_batch_size": 64,
    "optimizer": "adamw",
    "learning_rate": 4e-3,
    "num_inference_steps": 15,
    "num_samples": 1,
    "checkpointing_steps": 10**9,
}
FIRST = "channels 16-32-64, batch 64, AdamW 4e-3, v, cosine schedule, uniform weights"
FLOW = {"prediction_type": "flow_prediction", "timestep_sampling": "logit_normal"}
BEST = FLOW | {"train_batch_size": 32, "optimizer": "muon"}
LARGER = BEST | {"block_out_channels": [32, 64, 104], "learning_rate": 3e-3}


class HalfResolutionFirst(DiffusionTask):
    """Trains on images of half the height and width for the first 40 % of the time."""

    started: float | None = None

    def losses(self, batch: Batch) -> Iterator[Loss]:
        """Yield the loss."""
        self.started = self.started or time.monotonic()
        if time.monotonic() - self.started < 0.4 * self.config.max_train_seconds:
            batch = dataclasses.replace(batch, images=avg_pool2d(batch.images, 2))
        yield from super().losses(batch)


VARIANTS = {
    FIRST: {},
    "noise prediction, linear schedule": {"prediction_type": "epsilon", "beta_schedule": "linear"},
    "image prediction": {"prediction_type": "sample"},
    "flow, uniform times": FLOW | {"timestep_sampling": "uniform"},
    "flow, logit-normal times": FLOW,
    "linear schedule": {"beta_schedule": "linear"},
    "sigmoid schedule": {"beta_schedule": "sigmoid"},
    "zero terminal SNR": {"rescale_betas_zero_snr": True},
    "min-SNR weights": {"loss_weighting": "min_snr"},
    "P2 weights": {"loss_weighting": "p2"},
    "learning rate 2e-3": {"learning_rate": 2e-3},
    "learning rate 8e-3": {"learning_rate": 8e-3},
    "batch 32": {"train_batch_size": 32},
    "label dropout 0.2": {"class_dropout_prob": 0.2},
    "Muon 4e-3": {"optimizer": "muon"},
    "Muon 8e-3": {"optimizer": "muon", "learning_rate": 8e-3},
    "Muon 2e-3": {"optimizer": "muon", "learning_rate": 2e-3},
    "batch 32, Muon 4e-3": {"train_batch_size": 32, "optimizer": "muon"},
    "logit-normal flow, batch 32": FLOW | {"train_batch_size": 32},
    "logit-normal flow, batch 32, Muon 4e-3": BEST,
    "logit-normal flow, batch 32, Muon 3e-3, channels 32-64-104": LARGER,
    "four resolutions, otherwise as before: channels 32-64-128-128": LARGER
    | {"block_out_channels": [32, 64, 128, 128]},
    "half the resolution for 40 % of the time, channels 32-64-104": LARGER | {"task": HalfResolutionFirst},
    "channels 32-64-96, AdamW 2e-3": {"block_out_channels": [32, 64, 96], "learning_rate": 2e-3},
    f"again: {FIRST}": {},
}
GUIDANCE = {"1": 1.0, "1.5": 1.5}


def measure(fields: dict, options: argparse.Namespace, folder: Path) -> dict:
    """Train one variant, and draw from it with each guidance."""
    fields = BASE | fields
    task = fields.pop("task", DiffusionTask)
    config = DDPMConfig(
        **fields,
        dataset_name=options.dataset_name,
        max_train_seconds=options.seconds,
        output_dir=str(folder / "run"),
    )
    run = train(config, task)
    found = {}
    for name, scale in GUIDANCE.items():
        asked = CompareSamplersConfig(
            runs=[str(run)],
            scheduler=["unipc"],
            num_inference_steps=[15],
            guidance_scale=[scale],
            num_images=options.num_images,
            output_dir=str(folder / "report"),
        )
        found[name] = json.loads(compare_samplers(asked).read_text())["settings"][0]
    training = json.loads((run / "run.json").read_text())
    return {"images_per_second": round(training["images_per_second"]), "steps": training["optimizer_steps"], **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset_name", default="mnist")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--num_images", type=int, default=1000)
    parser.add_argument("--only", nargs="*", help="variants whose name begins with one of these; by default all")
    options = parser.parse_args()
    place = RESULTS / f"objectives_{options.dataset_name}.json"
    command = f"python benchmarks/objectives.py --dataset_name {options.dataset_name} --seconds {options.seconds:g}"
    given = {"command": command, "threads": torch.get_num_threads(), "num_images": options.num_images}
    record = given | {"rows": {}}
    if place.exists() and options.only:
        record = json.loads(place.read_text())
        if differing := [name for name, value in given.items() if record[name] != value]:
            raise SystemExit(f"{place} was made with other {', '.join(differing)}")
    for name, fields in VARIANTS.items():
        if options.only and not name.startswith(tuple(options.only)):
            continue
        with tempfile.TemporaryDirectory() as folder:
            record["rows"][name] = measure(fields, options, Path(folder))
        print(name, json.dumps(record["rows"][name]), flush=True)
        place.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        place.with_suffix(".md").write_text(table(record))


def table(record: dict) -> str:
    """Write the record as a page."""
    header = ["variant", "images/s", "steps"]
    header += [f"{what}, guidance {name}" for name in GUIDANCE for what in ("Fréchet", "recall", "right class")]
    lines = [
        f"Each row by `{record['command']} --only` and its name,",
        f"with {record['threads']} threads; {record['num_images']:,} images each, 15 steps of UniPC.",
        "± is the deviation over other samples of the same model, not over other trainings.",
        "",
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
    ]
    for name, row in record["rows"].items():
        cells = [name, str(row["images_per_second"]), str(row["steps"])]
        for guidance in GUIDANCE:
            found = row[guidance]
            cells += [with_std(found["frechet_distance"]), number(found["recall"]["value"])]
            cells.append(f"{found['accuracy']:.1%}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
