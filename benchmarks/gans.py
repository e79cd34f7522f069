"""What networks, losses and settings give a GAN at equal training time, on one core.

    python benchmarks/gans.py --dataset_name mnist --seconds 60

Each variant differs from the first, the networks and settings of the recipe gan_mnist_cpu10min, in what its name says;
the first is repeated with another seed, and what these two differ by is what the seed amounts to. All train for the
same wall-clock time, `--processes` at once with one thread each. Their samples are measured in the features of the
data set's first judge. Results go to benchmarks/results/gans_DATASET.json and, as a table, .md; with `--only`, the
other rows stay.
"""

import argparse
import json
import math
import multiprocessing
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from hfgen.config import GANConfig
from hfgen.config.recipes import RECIPES
from hfgen.data.images import cache_folder, load_images
from hfgen.data.loader import Batch
from hfgen.evaluation.generated import labels_like
from hfgen.judges.judge import find_judge
from hfgen.judges.statistics import RealStatistics
from hfgen.models import modeling_hfgen_gan
from hfgen.models.modeling_hfgen_gan import LEAKY_SLOPE, leaky
from hfgen.pipelines.loading import load
from hfgen.sampling.sample import sample
from hfgen.tasks.base import Loss
from hfgen.tasks.gan import GANTask
from hfgen.training.run import train
from hfgen.utils.markdown import number, table, with_std

RESULTS = Path(__file__).parent / "results"
MEASURES = ("frechet_distance", "precision", "recall")
BASE = yaml.safe_load((RECIPES / "gan_mnist_cpu10min.yaml").read_text()) | {
    "num_samples": 1,
    "save_images_epochs": 1000,
    "checkpointing_steps": 10**9,
}
FIRST = "convolutions 64-32 against 16-32-64 with linear layers of 256, relativistic, penalties of 0.1 every 8 steps"
GROUPED, FADING = "R3GAN's blocks, learning rate 2e-3", "penalties from 1 to 0.1"
SPECIFIED = {
    "block_out_channels": [128, 128],
    "discriminator_block_out_channels": [64, 64],
    "hidden_sizes": [],
    "pixel_shuffle": False,
}
RESIDUAL = {
    "architecture": "residual",
    "block_out_channels": [64, 32],
    "discriminator_block_out_channels": [16, 32, 64],
    "learning_rate": 2e-3,
}
VARIANTS: dict[str, dict[str, Any]] = {
    FIRST: {},
    f"again, seed 1: {FIRST}": {"seed": 1},
    "fully connected 256-512 of gan_mnist_tuned": {
        "architecture": "fully_connected",
        "hidden_sizes": [256, 512],
        "adversarial_loss": "non_saturating",
        "train_batch_size": 91,
        "r1_gamma": 0.112,
        "r2_gamma": 0.409,
        "penalty_interval": 1,
        "learning_rate": 1.35e-3,
        "lr_scheduler": "constant",
    },
    "networks of gan_mnist_conv_cpu10min": SPECIFIED,
    "residual networks, learning rate 2e-3": RESIDUAL,
    "residual networks, learning rate 2e-3, Muon": RESIDUAL | {"optimizer": "muon"},
    "no linear layers": {"hidden_sizes": []},
    "no pixel shuffle": {"pixel_shuffle": False},
    "generator 128-64": {"block_out_channels": [128, 64]},
    "discriminator 32-64": {"discriminator_block_out_channels": [32, 64]},
    "discriminator 24-48-96": {"discriminator_block_out_channels": [24, 48, 96]},
    "penalties at each step": {"penalty_interval": 1},
    "penalties of 1": {"r1_gamma": 1.0, "r2_gamma": 1.0},
    "penalties of 0.01": {"r1_gamma": 0.01, "r2_gamma": 0.01},
    "R1 alone": {"r2_gamma": 0.0},
    "no penalties": {"r1_gamma": 0.0, "r2_gamma": 0.0},
    "non-saturating": {"adversarial_loss": "non_saturating"},
    "hinge": {"adversarial_loss": "hinge"},
    "learning rate 1e-3": {"learning_rate": 1e-3},
    "learning rate 2e-3": {"learning_rate": 2e-3},
    "learning rate 8e-3": {"learning_rate": 8e-3},
    "batch 32": {"train_batch_size": 32},
    "batch 128": {"train_batch_size": 128},
    "latents of 64": {"latent_dim": 64},
    "Muon": {"optimizer": "muon"},
    "shifted images": {"augmentation": ["shift"]},
    "Adam's second beta 0.9": {"adam_beta2": 0.9},
    FADING: {},
    GROUPED: RESIDUAL,
    "told classes": {"class_conditional": True},
}


class GroupedBlock(nn.Module):
    """R3GAN's residual block: a grouped 3×3 convolution between 1×1 convolutions to twice the channels and back."""

    def __init__(self, channels: int, num_blocks: int):
        super().__init__()
        wide = 2 * channels
        first, middle, last = (
            nn.Conv2d(channels, wide, 1, bias=False),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide // 16, bias=False),
            nn.Conv2d(wide, channels, 1, bias=False),
        )
        self.layers = nn.Sequential(first, leaky(), middle, leaky(), last)
        for layer in (first, middle):
            nn.init.kaiming_normal_(layer.weight, LEAKY_SLOPE)
            layer.weight.data *= num_blocks**-0.25
        nn.init.zeros_(last.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Add the residual."""
        return x + self.layers(x)


class FadingPenalties(GANTask):
    """A GAN whose penalties fall from a weight of 1 to one of 0.1, along a cosine."""

    def losses(self, batch: Batch) -> Iterator[Loss]:
        """Set the weights, then yield the losses."""
        fade = 0.5 + 0.5 * math.cos(math.pi * batch.progress)
        self.config.r1_gamma = self.config.r2_gamma = 0.1 + fade * 0.9
        yield from super().losses(batch)


def measure(name: str, dataset: str, seconds: float, num_images: int) -> dict[str, Any]:
    """Train one variant with one thread, and measure its samples."""
    torch.set_num_threads(1)
    fields = VARIANTS[name]
    if name == GROUPED:
        modeling_hfgen_gan.ResidualBlock = GroupedBlock  # type: ignore[misc, assignment]
    with tempfile.TemporaryDirectory() as folder:
        asked = {"dataset_name": dataset, "max_train_seconds": seconds, "output_dir": folder + "/run"}
        run = train(GANConfig(**BASE | fields | asked), FadingPenalties if name == FADING else GANTask)
        test, training = (load_images(dataset, split=split) for split in ("test", "train"))
        real = RealStatistics(find_judge(None, test), test, training, cache_folder(None))
        labels = labels_like(training, 0) if fields.get("class_conditional") else ()
        samples = torch.cat([*sample(load(str(run)), num_images=num_images, class_labels=labels)])
        found = real.measures(real.extractor.extract(samples)[0])
        record = json.loads((run / "run.json").read_text())
    return {
        "images_per_second": round(record["images_per_second"]),
        "steps": record["optimizer_steps"],
        **{name: found[name] for name in MEASURES},
        "problems": record["problems"],
        "floor": real.floors(num_images)["train_against_test"]["frechet_distance"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset_name", default="mnist")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--num_images", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=2, help="trainings at once, at most as many as cores")
    parser.add_argument("--only", nargs="*", help="variants whose name begins with one of these; by default all")
    options = parser.parse_args()
    place = RESULTS / f"gans_{options.dataset_name}.json"
    command = (
        f"python benchmarks/gans.py --dataset_name {options.dataset_name} --seconds {options.seconds:g} "
        f"--processes {options.processes}"
    )
    record: dict[str, Any] = {"command": command, "num_images": options.num_images, "rows": {}}
    if place.exists() and options.only:
        before = json.loads(place.read_text())
        if any(before[name] != record[name] for name in ("command", "num_images")):
            raise SystemExit(f"{place} was made by {before['command']} with {before['num_images']} images")
        record = before
    chosen = [name for name in VARIANTS if not options.only or name.startswith(tuple(options.only))]
    with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        asked = {
            pool.submit(measure, name, options.dataset_name, options.seconds, options.num_images): name
            for name in chosen
        }
        for done in as_completed(asked):
            record["rows"][asked[done]] = done.result()
            print(asked[done], json.dumps(done.result(), ensure_ascii=False), flush=True)
            record["rows"] = {name: record["rows"][name] for name in VARIANTS if name in record["rows"]}
            place.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
            place.with_suffix(".md").write_text(page(record))
    print(f"The table is in {place.with_suffix('.md')}")


def page(record: dict[str, Any]) -> str:
    """Return the table of a record."""
    rows = [
        [name, str(row["images_per_second"]), f"{row['steps']:,}", with_std(row["frechet_distance"])]
        + [number(row[measure]["value"]) for measure in ("precision", "recall")]
        + [str(len(row["problems"]) or "")]
        for name, row in record["rows"].items()
    ]
    floor = next(iter(record["rows"].values()))["floor"]
    lines = [
        f"Written by `{record['command']}`: {record['num_images']:,} images each. Real training",
        f"images have a Fréchet distance of {number(floor)}. ± is the deviation over other samples of the same model,",
        "not over other trainings. Problems are those that the training itself reported.",
        *table(["variant", "images/s", "steps", "Fréchet distance", "precision", "recall", "problems"], rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
