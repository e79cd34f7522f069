"""What networks and settings give a ladder VAE at equal training time, on one core.

    python benchmarks/ladder.py --dataset_name mnist --seconds 210

Each variant differs from the ladder named first in what its name says; the recipe vae_mnist_conv_static is there to
compare with. All train for the same wall-clock time with one thread, one after the other, on the statically binarised
training images without the last 3,000; on those the −ELBO is measured, with one latent per image. Results go to
benchmarks/results/ladder_DATASET.json and, as a table, .md; with `--only`, the other rows stay.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

from hfgen.config import VAEConfig
from hfgen.config.recipes import RECIPES
from hfgen.data.binarization import Binarizer
from hfgen.data.images import load_images
from hfgen.losses.vae import kl_to_standard_normal, reconstruction_nll
from hfgen.pipelines.loading import load
from hfgen.tasks.vae import VAETask
from hfgen.training.run import train
from hfgen.utils.markdown import table

RESULTS = Path(__file__).parent / "results"
HELD_OUT = 3_000  # last images of the training split
OUTPUT = {"num_samples": 1, "checkpointing_steps": 10**9, "num_mixture_components": 1}
ONE_LAYER = yaml.safe_load((RECIPES / "vae_mnist_conv_static.yaml").read_text()) | {
    "ladder_channels": [],
    "optimizer": "adamw",
    "lr_warmup_steps": 0,
}
FIRST = "ladder of 32 + 7·7·4 + 14·14·1 latents, channels 32-64, one block, Muon, learning rate 2e-3, batch 64"
BASE: dict[str, Any] = {
    "binarization": "static",
    "train_batch_size": 64,
    "block_out_channels": [32, 64],
    "ladder_channels": [1, 4],
    "latent_dim": 424,
    "layers_per_block": 1,
    "hidden_sizes": [256],
    "act_fn": "silu",
    "optimizer": "muon",
    "learning_rate": 2e-3,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 100,
    "kl_warmup_steps": 500,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "one layer of latents: vae_mnist_conv_static": ONE_LAYER,
    FIRST: {},
    "learning rate 4e-3": {"learning_rate": 4e-3},
    "learning rate 8e-3": {"learning_rate": 8e-3},
    "channels 32-64, two blocks": {"layers_per_block": 2},
    "channels 16-48, two blocks": {"block_out_channels": [16, 48], "layers_per_block": 2},
    "channels 16-48, two blocks, learning rate 4e-3": {
        "block_out_channels": [16, 48],
        "layers_per_block": 2,
        "learning_rate": 4e-3,
    },
}


@torch.no_grad()
def negative_elbo(run: Path, dataset: str) -> list[float]:
    """Return the reconstruction term and the KL divergence of each layer in nats per held-out image."""
    vae = load(str(run)).vae
    held_out = load_images(dataset, split=f"train[-{HELD_OUT}:]")
    binarize = Binarizer("static", held_out)
    generator = torch.Generator().manual_seed(0)
    terms = []
    for indices in torch.arange(len(held_out)).split(500):
        images = binarize(held_out.images[indices].float() / 127.5 - 1, indices)
        output = vae(images, noise=torch.randn(1, len(images), vae.config.latent_dim, generator=generator))
        divergence = kl_to_standard_normal(output.latent_dist).flatten(0, -2)
        layers = divergence.split(getattr(vae, "latent_sizes", [vae.config.latent_dim]), dim=1)
        error = reconstruction_nll(output.pixels, images / 2 + 0.5).flatten(1)
        terms.append(torch.stack([part.sum(1) for part in (error, *layers)]))
    return torch.cat(terms, dim=1).double().mean(1).tolist()


def measure(fields: dict[str, Any], dataset: str, seconds: float) -> dict[str, Any]:
    """Train one variant, and measure it on the held-out images."""
    with tempfile.TemporaryDirectory() as folder:
        data = {"dataset_name": dataset, "train_split": f"train[:-{HELD_OUT}]"}
        output = {"max_train_seconds": seconds, "output_dir": folder + "/run"}
        run = train(VAEConfig(**BASE | fields | OUTPUT | data | output), VAETask)
        terms = negative_elbo(run, dataset)
        record = json.loads((run / "run.json").read_text())
    return {
        "images_per_second": round(record["images_per_second"]),
        "steps": record["optimizer_steps"],
        "reconstruction": terms[0],
        "kl_by_layer": terms[1:],
        "negative_elbo": sum(terms),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset_name", default="mnist")
    parser.add_argument("--seconds", type=float, default=210.0)
    parser.add_argument("--only", nargs="*", help="variants whose name begins with one of these; by default all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    place = RESULTS / f"ladder_{options.dataset_name}.json"
    command = f"python benchmarks/ladder.py --dataset_name {options.dataset_name} --seconds {options.seconds:g}"
    record: dict[str, Any] = {"command": command, "rows": {}}
    if place.exists() and options.only:
        before = json.loads(place.read_text())
        if before["command"] != command:
            raise SystemExit(f"{place} was made by {before['command']}")
        record = before
    for name, fields in VARIANTS.items():
        if options.only and not name.startswith(tuple(options.only)):
            continue
        record["rows"][name] = measure(fields, options.dataset_name, options.seconds)
        print(name, json.dumps(record["rows"][name]), flush=True)
        record["rows"] = {name: record["rows"][name] for name in VARIANTS if name in record["rows"]}
        place.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        place.with_suffix(".md").write_text(page(record))
    print(f"The table is in {place.with_suffix('.md')}")


def page(record: dict[str, Any]) -> str:
    """Return the table of a record."""
    rows = [
        [
            name,
            str(row["images_per_second"]),
            f"{row['steps']:,}",
            f"{row['reconstruction']:.1f}",
            " + ".join(f"{part:.1f}" for part in row["kl_by_layer"]),
            f"{row['negative_elbo']:.2f}",
        ]
        for name, row in record["rows"].items()
    ]
    lines = [
        f"Written by `{record['command']}`: {HELD_OUT:,} held-out images, in nats per image.",
        "The KL divergence is by layer, top first.",
        *table(["variant", "images/s", "steps", "reconstruction", "KL divergence", "−ELBO"], rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
