"""hfgen beside other packages, all given the same images, the same seconds and the same two cores.

    python -m venv peers && peers/bin/pip install -r benchmarks/peers_requirements.txt
    python benchmarks/peers.py --python peers/bin/python

Each package trains as its documentation does (`peer_training.py` says with what), with its `own` network or a `small`
one of about the size of hfgen's, and draws in 20 steps. hfgen trains the network of `ddpm_conditional_mnist_cpu5min`
twice: without classes like the others, and as the recipe has it, which the others have no part in: they are told no
classes. All images are measured by `hfgen evaluate --images`. Results go to benchmarks/results/peers_DATASET.json and
.md; a row that is there stays unless it is measured again.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from hfgen.data.images import load_images
from hfgen.utils.markdown import table, with_std

RESULTS = Path(__file__).parent / "results"
PEERS = ("smalldiffusion", "denoising-diffusion-pytorch", "diffusers")
RECIPE = "ddpm_conditional_mnist_cpu5min"
HFGEN = {  # flags of training and of drawing
    "hfgen, no classes": (["--no_class_conditional"], []),
    "hfgen, told classes, no guidance": ([], ["--guidance_scale", "1"]),
    "hfgen, told classes, guidance of the recipe": ([], []),
}
MEASURES = {"frechet_distance": "Fréchet distance", "precision": "precision", "recall": "recall"}


def run(*command: object) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


def train_hfgen(flags: list[str], dataset_name: str, seconds: float, output: Path) -> int:
    """Train the recipe, if that has not been done, and return how many images it was shown."""
    if not output.exists():
        run("hfgen", "train", "ddpm", "--config", RECIPE, "--dataset_name", dataset_name, "--max_train_seconds",
            seconds, "--output_dir", output, *flags)  # fmt: skip
    return json.loads((output / "run.json").read_text())["images_seen"]


def measure(images: Path, dataset_name: str, folder: Path) -> dict:
    run("hfgen", "evaluate", "--images", images, "--dataset_name", dataset_name, "--output_dir", folder)
    record = json.loads((folder / "evaluation.json").read_text())
    judge = next(iter(record["measures"]))
    return {name: record["measures"][judge][name] for name in MEASURES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", required=True, help="the interpreter of the environment with the packages")
    parser.add_argument("--dataset_name", default="mnist")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--num_images", type=int, default=2000)
    parser.add_argument("--size", choices=("own", "small"), default="small")
    parser.add_argument("--only", nargs="*", default=[*HFGEN, *PEERS], help="rows to measure; by default all")
    options = parser.parse_args()
    place = RESULTS / f"peers_{options.dataset_name}.json"
    rows = json.loads(place.read_text()) if place.exists() else {}
    given = {"seconds": options.seconds, "num_images": options.num_images}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "train.npz", images=load_images(options.dataset_name, split="train").images[:, 0].numpy())
        for only in options.only:
            drawn = folder / f"{only}.npz"
            if only in HFGEN:
                training, drawing = HFGEN[only]
                model = folder / ("unconditional" if training else "conditional")
                label, trained = only, train_hfgen(training, options.dataset_name, options.seconds, model)
                run("hfgen", "sample", model, "--num_images", options.num_images, "--num_inference_steps", 20,
                    "--output", drawn, *drawing)  # fmt: skip
            else:
                label = f"{only}, {options.size} network"
                script = Path(__file__).with_name("peer_training.py")
                values = (only, options.size, folder / "train.npz", options.seconds, options.num_images, drawn)
                try:
                    printed = run(options.python, script, *values)
                except subprocess.CalledProcessError as error:
                    raise SystemExit(f"{label} failed:\n{error.stderr}") from error
                trained = json.loads(printed.splitlines()[-1])["images_trained"]
            rows[label] = given | {"images_trained": trained, **measure(drawn, options.dataset_name, folder / label)}
            print(label, rows[label], flush=True)
            place.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
            place.with_suffix(".md").write_text(page(options.dataset_name, rows))


def page(dataset_name: str, rows: dict[str, dict]) -> str:
    """Write the rows as a page."""
    lines = [
        f"Written by `python benchmarks/peers.py --python … --dataset_name {dataset_name}`: so many seconds of",
        "training each on two cores, then images in 20 steps of each package's sampler. `own` is the network that the",
        "package's documentation has, `small` one of about the size of hfgen's; `benchmarks/peer_training.py` has all",
        "that was given.",
    ]
    header = ["package", "seconds", "images trained on", "images measured", *MEASURES.values()]
    cells = [
        [name, f"{row['seconds']:g}", f"{row['images_trained']:,}", f"{row['num_images']:,}"]
        + [with_std(row[measure]) for measure in MEASURES]
        for name, row in rows.items()
    ]
    return "\n".join([*lines, *table(header, cells)]) + "\n"


if __name__ == "__main__":
    main()
