"""The fully connected VAE of MNIST in hfgen, in plain loops and in pythae: time of an epoch, time to a bound.

    python -m venv peers && peers/bin/pip install -r benchmarks/peers_requirements.txt
    python benchmarks/vae_speed.py --python peers/bin/python

The same network, float32 and batches of 128 everywhere for the time of an epoch: rounds in which each trains for two
epochs, and the ratios to hfgen within a round. For the time to −ELBO 105.0, hfgen has its recipe, once with its GELU
and once with the ReLU of the others; the loops have Adam at 1e-3 and batches of 128, pythae once that and once its
defaults: this compares recipes, of which only hfgen's was sought for the purpose. `vae_training.py` has what runs.
Results go to benchmarks/results/vae_speed.json and .md.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from hfgen.data.images import load_images
from hfgen.utils.markdown import table

RESULTS = Path(__file__).parent / "results"
RECIPE = "vae_mnist_mlp_cpu20s"
TARGET = 105.0  # nats
WAYS = {"loop": "a plain loop, a DataLoader of single images", "bare": "a bare loop in memory", "pythae": "pythae"}


def run(*command: object) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


def hfgen_run(folder: Path, *flags: object) -> dict:
    run("hfgen", "train", "vae", "--config", RECIPE, "--output_dir", folder, *flags)
    return json.loads((folder / "run.json").read_text())


def hfgen_epoch(folder: Path, images: int) -> float:
    flags = ("--train_batch_size", 128, "--max_train_steps", 2 * -(-images // 128), "--mixed_precision", "no")
    flags += ("--act_fn", "relu")
    training = hfgen_run(folder, *flags)
    return training["train_seconds"] / training["images_seen"] * images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", required=True, help="the interpreter of the environment with pythae")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=120.0, help="that the others have to reach the target")
    options = parser.parse_args()
    script = Path(__file__).with_name("vae_training.py")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = {split: load_images("mnist", split=split).images[:, 0].numpy() for split in ("train", "test")}
        np.savez(folder / "images.npz", **images)

        def other(way: str, batch: int, rate: float, seconds: float, epochs: int = 1) -> list[dict[str, float]]:
            python = options.python if way == "pythae" else sys.executable
            return json.loads(
                run(python, script, way, folder / "images.npz", batch, rate, seconds, epochs, TARGET).splitlines()[-1]
            )

        rounds = []
        for number in range(options.rounds):
            seconds = {"hfgen": hfgen_epoch(folder / f"epochs-{number}", len(images["train"]))}
            for way in WAYS:
                epochs = other(way, 128, 1e-3, 1e-9, 2)
                seconds[way] = epochs[-1]["seconds"] / 2
            rounds.append(seconds)
            print(seconds, flush=True)
        ratios = {way: statistics.median(row[way] / row["hfgen"] for row in rounds) for way in WAYS}
        to_target = {}
        for title, flags in {"hfgen, its recipe": (), "hfgen, its recipe with ReLU": ("--act_fn", "relu")}.items():
            training = hfgen_run(folder / title, *flags)
            run("hfgen", "analyze", folder / title, "--num_importance_samples", 1, "--num_bound_images", 2)
            bound = json.loads((folder / title / "analysis.json").read_text())["bounds"]["negative_elbo"]["value"]
            to_target[title] = {"seconds": training["train_seconds"], "negative_elbo": bound}
        for title, (way, batch, rate) in {
            WAYS["loop"]: ("loop", 128, 1e-3),
            WAYS["bare"]: ("bare", 128, 1e-3),
            "pythae, batches of 128, Adam 1e-3": ("pythae", 128, 1e-3),
            "pythae, its defaults": ("pythae", 64, 1e-4),
        }.items():
            to_target[title] = other(way, batch, rate, options.seconds)[-1]
            print(title, to_target[title], flush=True)
    record = {
        "command": "python benchmarks/vae_speed.py --python …", "target": TARGET, "rounds": rounds, "ratios": ratios,
        "to_target": to_target,
    }  # fmt: skip
    (RESULTS / "vae_speed.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    (RESULTS / "vae_speed.md").write_text(page(record))


def page(record: dict) -> str:
    """Write the record as a page."""
    hfgen = record["to_target"]["hfgen, its recipe"]["seconds"]
    rows = [
        [
            title,
            f"{found['seconds']:.1f}",
            f"{found['negative_elbo']:.2f}",
            f"{found['seconds'] / hfgen:.2f}"
            + ("" if found["negative_elbo"] <= record["target"] else ", not reached"),
        ]
        for title, found in record["to_target"].items()
    ]
    return "\n".join(
        [
            f"Written by `{record['command']}`: the network 784-400-20 on MNIST, two cores.",
            "",
            f"Time of an epoch in batches of 128, as a multiple of hfgen's, the median of {len(record['rounds'])}",
            "rounds:",
            *table(["", "times hfgen's"], ([WAYS[way], f"{ratio:.2f}"] for way, ratio in record["ratios"].items())),
            "",
            f"Time to −ELBO ≤ {record['target']:g} on the test images, seen after each epoch, of hfgen at its end:",
            *table(["", "seconds", "−ELBO then", "times hfgen's"], rows),
        ]
    ) + "\n"  # fmt: skip


if __name__ == "__main__":
    main()
