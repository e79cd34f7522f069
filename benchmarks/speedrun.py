"""The speedrun page: the best small-image models of each kind after 60 s, 5, 10 and 60 minutes of training.

    python benchmarks/speedrun.py

It writes docs/speedrun.md from model_cards/*/evaluation.json, and for packages other than hfgen from
benchmarks/results/peers_DATASET.json (`benchmarks/peers.py`) and the entries in benchmarks/speedrun.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hfgen.config.recipes import RECIPES
from hfgen.families import family_of
from hfgen.judges.judge import load_judge, shipped_judges
from hfgen.utils.markdown import duration, number, percent, table, with_commas, with_std

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "speedrun.md"
PEERS = REPOSITORY / "benchmarks" / "results"
ENTRIES = REPOSITORY / "benchmarks" / "speedrun"
BUDGETS = {60: "60 seconds", 300: "5 minutes", 600: "10 minutes", 3600: "60 minutes"}
OVERRUN = 1.01  # a training ends with the step in which its time is up
NUM_IMAGES = 10_000
FEWER_IMAGES = 2000  # of models that were evaluated before
MOST_CORES = 2
DATASETS = {
    "ylecun/mnist": "MNIST",
    "zalando-datasets/fashion_mnist": "Fashion-MNIST",
    "uoft-cs/cifar10": "CIFAR-10",
}
NAMES = {
    "DDPM": "diffusion",
    "CONSISTENCY": "consistency model",
    "FLOW_MAP": "flow map",
    "VAE": "VAE",
    "GAN": "GAN",
}
CONDITIONAL = ", told classes"
UNKNOWN = "–"
TEXT = """# Speedrun: small images in 60 seconds, 5, 10 and 60 minutes of training

How good a generative model of small images can one train in a minute, or in an hour, on two CPU cores? For each data
set, the best model of each kind within each time, by the Fréchet distance of the first judge; a model that is still
the best after a longer time is listed once. Written by `make results` from the evaluations in
[model_cards](../model_cards), the comparison with [other packages](../benchmarks/results/peers_mnist.md), and the
entries of others.

- **Fréchet distance** (lower is better) between generated images and the test images, in the features of two judges,
  which are classifiers trained on the data set. In brackets that of as many real training images: no model can be
  expected to be better. Fewer **images** have a higher distance, by about as much as the one in brackets.
- **Right class** (higher is better): how often the first judge recognises the class that was asked for; in brackets
  its accuracy on real images. Models that are not told classes have none.
- **Recall** (higher is better): the share of real images that lie among generated ones; in brackets that of real
  images.
- **Training** of a consistency model includes that of the diffusion model from which it was distilled.
- **64 images**: seconds to sample as many, on the hardware of the evaluation, from the time of all of its images.
- –: not measured, or not recorded by the evaluation of that time.

[measuring.md](measuring.md) explains the measures. ± is the deviation over other samples of the same model; trainings
with other seeds differ by more.
"""
RULES = """## Enter

1. Train on at most two CPU cores, and on the training split alone: no pretrained network, no other data, no features
   of a judge for a loss, a discriminator or clusters. Choose settings and checkpoints without the test images, or say
   what was chosen by them: for hfgen's diffusion models steps and guidance were, with `hfgen compare-samplers`,
   for its VAE with a flow β, and for its GANs of ten minutes networks and settings, on MNIST.
2. The clock runs from the first training step to the end of the last one, which may be 1 % late. Reading and decoding
   the images, compiling code and clustering come before it, evaluating and sampling after it. The VAE of latent
   diffusion is trained in the same time.
3. Sample exactly 10,000 images, and save them as one `.npz` file with `images`, uint8 (10000, height, width) or
   (10000, height, width, 3), and `labels`, the numbers of the classes that were asked for, if there were any. Measure
   them with the two judges of the data set:

```bash
hfgen evaluate --images samples_of_others.npz --dataset_name mnist --output_dir my-report
```

4. Open a pull request with a folder `benchmarks/speedrun/NAME` of two files: `evaluation.json` of the report, and
   `entry.json`. The kind is `diffusion`, `GAN`, `VAE` or `other`, followed by `, told classes` if it is:

```json
{
  "kind": "diffusion, told classes",
  "link": "https://example.org/the-code-and-the-command-at-a-commit",
  "hardware": "AVX512, bf16",
  "train_seconds": 299.8,
  "images_seen": 86848,
  "seconds_for_64_images": 1.9
}
```
"""


@dataclass(frozen=True)
class Entry:
    """A model in the speedrun.

    Attributes:
        kind: What it is compared within, such as `diffusion, told classes`.
        seconds: Of training.
        distance: Fréchet distance in the features of the first judge.
        cells: The cells of its row after the time and the kind.
    """

    kind: str
    seconds: float
    distance: float
    cells: tuple[str, ...]


def main() -> None:
    PAGE.write_text(page())
    print(f"The page is {PAGE}")


def page() -> str:
    """Return the page."""
    records = [
        (file.parent.name, json.loads(file.read_text()))
        for file in sorted(REPOSITORY.glob("model_cards/*/evaluation.json"))
    ]
    sections = [TEXT]
    for dataset, title in DATASETS.items():
        own = [
            (name, record)
            for name, record in records
            if "measures" in record and record["protocol"]["dataset"] == dataset and is_eligible(record)
        ]
        judges = list(own[0][1]["measures"])
        entries = [_own_entry(name, record, dict(records)) for name, record in own]
        entries += _peers(dataset.partition("/")[2], len(judges)) + entries_of_others(ENTRIES, dataset)
        header = ["training", "kind", "model", "hardware", "training images/s", "images"]
        header += [f"Fréchet distance, `{judge}`" for judge in judges] + ["right class", "recall", "64 images"]
        sections.append(f"## {title}\n" + "\n".join(table(header, rows_of(entries))) + "\n")
    return "\n".join([*sections, RULES])


def is_eligible(record: dict[str, Any]) -> bool:
    """Return whether a model of hfgen was trained and evaluated by the rules."""
    training = record.get("training")
    return (
        training is not None
        and " with " in training["device"]  # of a CPU, before its vector instructions
        and training["threads"] * training["num_processes"] <= MOST_CORES
        and record["protocol"]["num_images"] in (NUM_IMAGES, FEWER_IMAGES)
    )


def rows_of(entries: Iterable[Entry]) -> list[list[str]]:
    """Return the rows of the best entries of each kind within each time, without repetitions."""
    rows, listed = [], set()
    for budget, title in BUDGETS.items():
        best: dict[str, Entry] = {}
        for entry in sorted(entries, key=lambda entry: entry.distance):
            if entry.seconds <= budget * OVERRUN:
                best.setdefault(entry.kind, entry)
        for entry in best.values():
            if entry not in listed:
                rows.append([title, entry.kind, *entry.cells])
                listed.add(entry)
    return rows


def earlier_seconds(name: str, records: Mapping[str, dict[str, Any]]) -> float:
    """Return how long the models were trained that a training began with: a VAE, or the teacher of a student."""
    recipe = RECIPES / f"{name}.yaml"
    fields = yaml.safe_load(recipe.read_text()) if recipe.exists() else {}
    earlier = [Path(fields[field]).name for field in ("vae", "teacher") if fields.get(field)]
    return sum(records[model]["training"]["train_seconds"] for model in earlier)


def _own_entry(name: str, record: dict[str, Any], records: Mapping[str, dict[str, Any]]) -> Entry:
    """Return the entry of a model of hfgen from its evaluation, given those of all."""
    training, seconds = record["training"], record["seconds"]
    family = NAMES[family_of(record["protocol"]["pipeline"]).name.upper()]
    drawn = seconds.get("images_this_time")
    facts = {
        "kind": family + CONDITIONAL * bool(record["conditional"]),
        "link": f"../model_cards/{name}",
        "hardware": _hardware(training),
        "train_seconds": training["train_seconds"],
        "earlier_seconds": earlier_seconds(name, records),
        "images_seen": training["images_seen"],
        "seconds_for_64_images": 64 * seconds["drawing_this_time"] / drawn if drawn else None,
    }
    return _entry(name, facts, record)


def entries_of_others(folder: Path, dataset: str) -> list[Entry]:
    """Return the entries of others in a folder of folders, for one data set.

    Raises:
        ValueError: naming the entry, if its kind, images, reference or judges are not those of the rules.
    """
    kinds = {kind + condition for kind in (*NAMES.values(), "other") for condition in ("", CONDITIONAL)}
    found = []
    for place in sorted(file.parent for file in folder.glob("*/entry.json")):
        facts, record = (json.loads((place / name).read_text()) for name in ("entry.json", "evaluation.json"))
        protocol = record["protocol"]
        judges = {name: load_judge(name).sha256 for name in shipped_judges() if name in protocol["judges"]}
        rules = {
            f"kind must be one of {', '.join(sorted(kinds))}": facts["kind"] in kinds,
            f"num_images must be {NUM_IMAGES:,}": protocol["num_images"] == NUM_IMAGES,
            "reference_split must be test": protocol["reference_split"] == "test",
            "judges must be the two of the data set": len(judges) == 2 and protocol["judges"] == judges,
        }
        if broken := [rule for rule, holds in rules.items() if not holds]:
            raise ValueError(f"{place}: {broken[0]}")
        if protocol["dataset"] == dataset:
            found.append(_entry(place.name, facts, record))
    return found


def _entry(name: str, facts: dict[str, Any], record: dict[str, Any]) -> Entry:
    """Return an entry from the facts of its training and its evaluation."""
    first = next(iter(record["measures"]))
    accuracy, for_64 = UNKNOWN, facts.get("seconds_for_64_images")
    seconds = facts["train_seconds"] + facts.get("earlier_seconds", 0.0)
    if record["conditional"]:
        real = record["judge_accuracy"][first]["accuracy"]
        accuracy = f"{percent(record['conditional'][first]['accuracy'], 1)} ({percent(real, 1)})"
    cells = (
        f"[{name}]({facts['link']}), {duration(seconds)}",
        facts["hardware"],
        with_commas(round(facts["images_seen"] / facts["train_seconds"])),
        with_commas(record["protocol"]["num_images"]),
        *(_beside_real(record, judge, "frechet_distance", with_std) for judge in record["measures"]),
        accuracy,
        _beside_real(record, first, "recall", lambda measure: number(measure["value"])),
        UNKNOWN if for_64 is None else f"{for_64:.2g} s",
    )
    return Entry(facts["kind"], seconds, record["measures"][first]["frechet_distance"]["value"], cells)


def _beside_real(record: dict[str, Any], judge: str, measure: str, text: Any) -> str:
    real = record["floors"][judge]["train_against_test"][measure]
    return f"{text(record['measures'][judge][measure])} ({number(real)})"


def _hardware(training: dict[str, Any]) -> str:
    precision = "bf16" if training["mixed_precision"] == "bf16" else "fp32"
    device = training["device"].removeprefix("x86_64 with ")
    cores = training["threads"] * training["num_processes"]
    return f"{device}, {precision}" + ("" if cores == 2 else f", {cores} core{'s' if cores > 1 else ''}")


def _peers(dataset: str, num_judges: int) -> list[Entry]:
    """Return the entries of other packages, which were measured by the first judge only."""
    file = PEERS / f"peers_{dataset}.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    return [
        Entry(
            f"diffusion by {name.partition(', ')[0]}",
            peer["seconds"],
            peer["frechet_distance"]["value"],
            (
                f"[{name.partition(', ')[2]}](../benchmarks/results/{file.stem}.md), {duration(peer['seconds'])}",
                UNKNOWN,
                with_commas(round(peer["images_trained"] / peer["seconds"])),
                with_commas(peer["num_images"]),
                with_std(peer["frechet_distance"]),
                *[UNKNOWN] * num_judges,
                number(peer["recall"]["value"]),
                UNKNOWN,
            ),
        )
        for name, peer in found.items()
        if not name.startswith("hfgen")
    ]


if __name__ == "__main__":
    main()
