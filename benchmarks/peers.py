"""hfgen beside other packages, all given the same images, the same seconds and the same two cores.

    python -m venv peers && peers/bin/pip install -r benchmarks/peers_requirements.txt
    python benchmarks/peers.py --python peers/bin/python --run runs/ddpm_conditional_mnist_cpu5min

Each package trains as its documentation does (`peer_training.py` says with what), once with its own network and once
with one of about the size of hfgen's, draws in 20 steps, and its images are measured by `hfgen evaluate --images`, as
are those of hfgen's run, without guidance, which the others do not have. Results go to
benchmarks/results/peers_DATASET.json and .md.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from hfgen.data import load_images
from hfgen.report import table, with_std

RESULTS = Path(__file__).parent / "results"
PEERS = ("smalldiffusion", "denoising-diffusion-pytorch", "diffusers")
MEASURES = {"frechet_distance": "Fréchet distance", "precision": "precision", "recall": "recall"}


def measure(images: Path, dataset_name: str, folder: Path) -> dict:
    command = ["hfgen", "evaluate", "--images", images, "--dataset_name", dataset_name, "--output_dir", folder]
    subprocess.run([str(part) for part in command], check=True)
    record = json.loads((folder / "evaluation.json").read_text())
    judge = next(iter(record["measures"]))
    return {name: record["measures"][judge][name] for name in MEASURES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", required=True, help="the interpreter of the environment with the packages")
    parser.add_argument("--run", required=True, help="hfgen's run, trained for as many seconds")
    parser.add_argument("--dataset_name", default="mnist")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--num_images", type=int, default=2000)
    parser.add_argument("--size", choices=("own", "small"), nargs="*", default=["own", "small"])
    options = parser.parse_args()
    place = RESULTS / f"peers_{options.dataset_name}.json"
    record = {"command": "", "rows": {}}
    if place.exists():
        record = json.loads(place.read_text())
    record["command"] = f"python benchmarks/peers.py --python … --run runs/{Path(options.run).name}"
    record |= {"seconds": options.seconds, "num_images": options.num_images}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = load_images(options.dataset_name, split="train").images
        np.savez(folder / "train.npz", images=images[:, 0].numpy())
        drawn = folder / "hfgen.npz"
        subprocess.run(
            ["hfgen", "sample", options.run, "--num_images", str(options.num_images), "--guidance_scale", "1",
             "--num_inference_steps", "20", "--output", str(drawn)],
            check=True,
        )  # fmt: skip
        trained = json.loads((Path(options.run) / "run.json").read_text())
        record["rows"]["hfgen"] = {
            "images_trained": trained["images_seen"],
            **measure(drawn, options.dataset_name, folder / "hfgen"),
        }
        for peer in PEERS:
            for size in options.size:
                drawn = folder / f"{peer}-{size}.npz"
                command = [options.python, Path(__file__).with_name("peer_training.py"), peer, size]
                command += [folder / "train.npz", options.seconds, options.num_images, drawn]
                done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
                found = json.loads(done.stdout.splitlines()[-1])
                found |= measure(drawn, options.dataset_name, folder / drawn.stem)
                record["rows"][f"{peer}, {size} network"] = found
                print(peer, size, found, flush=True)
                place.write_text(json.dumps(record, indent=1) + "\n")
                place.with_suffix(".md").write_text(page(record))


def page(record: dict) -> str:
    """Write the record as a page."""
    lines = [
        f"Written by `{record['command']}`: {record['seconds']:g} s of training each on two cores,",
        f"then {record['num_images']:,} images in 20 steps of each package's sampler. `own` is the network that the",
        "package's documentation has, `small` one of about the size of hfgen's; `benchmarks/peer_training.py` has all",
        "that was given.",
    ]
    header = ["package", "images trained on", *MEASURES.values()]
    cells = [
        [name, f"{row['images_trained']:,}", *(with_std(row[measure]) for measure in MEASURES)]
        for name, row in record["rows"].items()
    ]
    return "\n".join([*lines, *table(header, cells)]) + "\n"


if __name__ == "__main__":
    main()
