"""What storing weights in float16 changes: the models of the zoo, measured again as they are in model_cards.

    python benchmarks/half_precision.py gan_mnist_cpu10min vae_mnist_flow_cpu5min

Each is sampled and evaluated with the protocol of the evaluation beside it, which is that of the float32 weights of
its training: the same seeds, classes, sampler and number of images. Results go to
benchmarks/results/half_precision.json and, as a table, .md; models that are not named keep their rows.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import hfgen
from hfgen.pipelines.loading import ZOO
from hfgen.utils.markdown import number, table, with_std

RESULTS = Path(__file__).parent / "results" / "half_precision.json"
DTYPES = ("float32", "float16")
SAMPLER = ("scheduler", "num_inference_steps", "guidance_scale", "guidance_interval", "truncation", "prior")


def measure(name: str) -> dict[str, Any]:
    """Evaluate a model of the zoo, and return its measures by the first judge, before and after the rounding."""
    record = json.loads((ZOO / name / "evaluation.json").read_text())
    protocol = record["protocol"]
    sampler = {option: protocol[option] for option in SAMPLER if protocol.get(option) is not None}
    number = {"num_images": protocol["num_images"]} if "num_images" in protocol else {}
    with tempfile.TemporaryDirectory() as folder:
        hfgen.evaluate(
            name,
            dataset_name=protocol["dataset"].partition("/")[2],
            seed=protocol["seed"],
            dtype=protocol["dtype"],
            output_dir=folder,
            **number,
            **sampler,
        )
        found = json.loads((Path(folder) / "evaluation.json").read_text())
    return {"float32": _measures(record), "float16": _measures(found), **number}


def _measures(record: dict[str, Any]) -> dict[str, Any]:
    if settings := record.get("restoration"):
        return {"restoration": {setting["title"]: setting["made"]["psnr"] for setting in settings}}
    judge = next(iter(record["measures"]))
    measures = {name: record["measures"][judge][name] for name in ("frechet_distance", "recall")}
    accuracy = record["conditional"][judge]["accuracy"] if record.get("conditional") else None
    return measures | {"accuracy": accuracy}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="names of models in model_cards")
    options = parser.parse_args()
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in options.models:
        rows[name] = measure(name)
        print(name, json.dumps(rows[name]), flush=True)
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
        RESULTS.with_suffix(".md").write_text(page(rows))
    print(f"The table is in {RESULTS.with_suffix('.md')}")


def page(rows: dict[str, Any]) -> str:
    """Return the table of the measured models."""
    cells, restored = [], []
    for name, row in sorted(rows.items()):
        if "restoration" in row["float32"]:
            for setting, ratio in row["float32"]["restoration"].items():
                after = row["float16"]["restoration"][setting]
                restored.append([name, setting, f"{ratio:.3f}", f"{after:.3f}"])
            continue
        distances = [with_std(row[dtype]["frechet_distance"]) for dtype in DTYPES]
        recalls = [number(row[dtype]["recall"]["value"]) for dtype in DTYPES]
        accuracies = [row[dtype]["accuracy"] for dtype in DTYPES]
        named = ["" if accuracy is None else f"{accuracy:.2%}" for accuracy in accuracies]
        cells.append([name, f"{row['num_images']:,}", *distances, *recalls, *named])
    measures = [f"{name}, {dtype}" for name in ("Fréchet distance", "recall", "right class") for dtype in DTYPES]
    lines = [
        "Written by `python benchmarks/half_precision.py` and the names of models: weights of the training, in",
        "float32, and those in model_cards, in float16, with the same seeds, classes and sampler, by the first judge.",
        *table(["model", "images", *measures], cells),
        *table(["model", "input", *(f"PSNR (dB), {dtype}" for dtype in DTYPES)], restored),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
