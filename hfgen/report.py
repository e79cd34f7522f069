"""What an evaluation leaves: `evaluation.json`, `evaluation.md` with pictures, and one table of many of them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hfgen.errors import UserError
from hfgen.figures import (
    class_shares_picture,
    features_picture,
    image_grid,
    measures_picture,
    neighbours_picture,
    save_picture,
)
from hfgen.files import complete_or_absent

RECORD = "evaluation.json"
PAGE = "evaluation.md"
PICTURES = "evaluation"  # folder beside them
MEASURES = {
    "frechet_distance": ("Fréchet distance", "lower"),
    "kernel_distance": ("kernel distance", "lower"),
    "precision": ("precision", "higher"),
    "recall": ("recall", "higher"),
    "density": ("density", "near 1"),
    "coverage": ("coverage", "higher"),
}
FLOORS = {"train_against_test": "training against test", "half_against_half": "training, half against half"}


def save_report(record: dict[str, Any], pictures: dict[str, Any], folder: Path) -> Path:
    """Write the record of an evaluation, its pictures and its page.

    Args:
        record: What `hfgen.evaluation` found.
        pictures: `images` to show, uint8 (N, C, H, W); the `closest` ones and their `neighbours` in the training set;
            `features`, a pair of (N, D) and (M, D), of the images and of the test images.
        folder: Where to.

    Returns:
        The path of the record.
    """
    (folder / PICTURES).mkdir(exist_ok=True)
    shown = {
        "images": image_grid(pictures["images"]),
        "measures": measures_picture(record["measures"], record["floors"], MEASURES, FLOORS),
        "classes": class_shares_picture(record["classes"]),
        "features": features_picture(*pictures["features"]),
        "neighbours": neighbours_picture(pictures["closest"], pictures["neighbours"]),
    }
    for name, picture in shown.items():
        save_picture(picture, folder / PICTURES / f"{name}.png")
    _save_text(folder / PAGE, "\n".join(_page(record)) + "\n")
    return _save_record(record, folder)


def save_classifier_report(record: dict[str, Any], folder: Path) -> Path:
    """Write the record of a classifier's accuracy, and its card as `README.md`."""
    _save_text(folder / "README.md", "\n".join(_classifier_card(record)) + "\n")
    return _save_record(record, folder)


def results_page(folders: list[Path]) -> str:
    """Return one Markdown page with a row for each `evaluation.json` below some folders.

    Raises:
        UserError: if there is none.
    """
    files = [file for folder in folders for file in sorted(folder.rglob(RECORD))]
    if not files:
        places = ", ".join(str(folder) for folder in folders)
        raise UserError(f"there is no {RECORD} below {places}; hfgen evaluate writes one")
    records = [(file.parent.name, json.loads(file.read_text())) for file in files]
    models = sorted(
        ((name, record) for name, record in records if "measures" in record),
        key=lambda item: (item[1]["protocol"]["dataset"], item[0]),
    )
    judges = [(name, record) for name, record in records if "accuracy" in record]
    lines = [
        "# Results",
        "",
        f"Written by `hfgen results` from the `{RECORD}` of each model; nothing here is typed by hand.",
    ]
    if models:
        lines += _models_table(models)
    if judges:
        lines += _judges_table(judges)
    return "\n".join(lines) + "\n"


def _save_record(record: dict[str, Any], folder: Path) -> Path:
    _save_text(folder / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return folder / RECORD


def _save_text(path: Path, text: str) -> None:
    with complete_or_absent(path) as temporary:
        temporary.write_text(text)


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _with_std(measure: dict[str, float | None]) -> str:
    return _number(measure["value"]) + (f" ± {measure['std']:.1g}" if measure["std"] is not None else "")


def _table(header: list[str], rows: Iterable[list[str]]) -> list[str]:
    return ["", "| " + " | ".join(header) + " |", "|---" * len(header) + "|"] + [f"| {' | '.join(r)} |" for r in rows]


def _title(protocol: dict[str, Any]) -> str:
    return protocol.get("model") or protocol["images"]


def _sampler(protocol: dict[str, Any]) -> str:
    if "scheduler" not in protocol:
        return "given as images"
    return f"{protocol['scheduler']}, {protocol['num_inference_steps']} steps"


def _page(record: dict[str, Any]) -> list[str]:
    protocol = record["protocol"]
    lines = [
        f"# How good the images of {_title(protocol)} are",
        "",
        f"{protocol['num_images']:,} images ({_sampler(protocol)}) compared with the "
        f"{protocol['reference_images']:,} images of the split `{protocol['reference_split']}` of "
        f"{protocol['dataset']}.",
        "",
        f"![the first images]({PICTURES}/images.png)",
        "",
        "## Distribution",
        "",
        "Measured in the features of classifiers trained on the real data, the judges. These are no Inception "
        "features and the values no FID or KID. ± is the standard deviation over disjoint parts of the images, "
        "divided by the square root of their number. A value means something beside that of real images, measured in "
        "the same way with as many of them: training images in the place of the generated ones, against the test "
        "images and against other training images.",
    ]
    for judge, measures in record["measures"].items():
        floors = record["floors"][judge]
        rows = [
            [title, _with_std(measures[name]), *(_number(floors[floor][name]) for floor in FLOORS), better]
            for name, (title, better) in MEASURES.items()
        ]
        lines += ["", f"### Judge `{judge}`"]
        lines += _table(["measure", "generated", *(f"real: {name}" for name in FLOORS.values()), "better"], rows)
    lines += [
        "",
        f"![measures beside those of real images]({PICTURES}/measures.png)",
        "",
        f"![the two main directions of the first judge's features]({PICTURES}/features.png)",
        "",
        "## Classes",
        "",
        "What the judges take the images for, beside what they take the test images for.",
        "",
        f"![shares of the classes]({PICTURES}/classes.png)",
    ]
    for judge, found in record.get("conditional", {}).items():
        names = record["classes"][judge]["label_names"]
        distances = found["frechet_distance_per_class"] or [None] * len(names)
        lines += [
            "",
            f"### Asked for a class, judge `{judge}`",
            "",
            f"{found['accuracy']:.2%} of the images show the class that they are meant to show.",
        ]
        if why := found.get("why_no_frechet_distance_per_class"):
            lines += ["", f"No Fréchet distance within each class: {why}."]
        lines += _table(
            ["class", "accuracy", "Fréchet distance within the class"],
            (
                [name, *("" if v is None else text(v) for v, text in ((share, "{:.2%}".format), (distance, _number)))]
                for name, share, distance in zip(names, found["accuracy_per_class"], distances, strict=True)
            ),
        )
    if score := record.get("classification_accuracy_score"):
        lines += [
            "",
            "## Classification accuracy score",
            "",
            f"A classifier trained on {score['training_images']:,} generated images for {score['optimizer_steps']:,} "
            f"steps is right on {score['generated']['accuracy']:.2%} of the real test images; the same one trained on "
            f"as many real images on {score['real']['accuracy']:.2%}.",
        ]
    lines += [
        "",
        "## Memorisation",
        "",
        "The generated images (above) that stand nearest to a training image (below), in the first judge's features.",
        "",
        f"![nearest training images]({PICTURES}/neighbours.png)",
    ]
    if record["memorization"]:
        lines += [
            "",
            "Compared with equally many training and test images. A model that copies nothing has gap 0 and share "
            "50 %, within the errors; copies raise both.",
        ]
        lines += _table(
            ["judge", "images", "memorisation gap (nats per image)", "nearer to a training image"],
            (
                [
                    f"`{judge}`",
                    {"generated": "generated", "real": "other training images"}[kind],
                    f"{found['gap']:.2f} ± {found['gap_std']:.2f}",
                    f"{found['nearer_to_training']:.1%} ± {found['nearer_to_training_std']:.1%}",
                ]
                for judge, kinds in record["memorization"].items()
                for kind, found in kinds.items()
            ),
        )
    else:
        lines += ["", "There is no split that the model has not seen, so that no gap can be measured."]
    if scores := record.get("inception"):
        lines += [
            "",
            "## Inception",
            "",
            f"FID {_number(scores['fid'])}, KID {_number(scores['kid'])} ± {scores['kid_std']:.1g}, "
            f"Inception Score {_number(scores['inception_score'])} ± {scores['inception_score_std']:.1g}.",
        ]
    lines += ["", "## Protocol", "", "```json", json.dumps(protocol, indent=1, ensure_ascii=False), "```"]
    return lines


def _classifier_card(record: dict[str, Any]) -> list[str]:
    protocol = record["protocol"]
    front = [
        "---",
        "library_name: transformers",
        "pipeline_tag: image-classification",
        "license: apache-2.0",
        *([f"datasets: [{protocol['dataset']}]"] if "/" in protocol["dataset"] else []),
        "---",
    ]
    return [
        *front,
        "",
        f"# {protocol['model']}",
        "",
        f"A `{protocol['pipeline']}` with {protocol['num_parameters']:,} parameters and {protocol['num_features']} "
        f"features, trained by `hfgen train classifier` on {protocol['dataset']}, in whose features and by whose "
        "decisions hfgen judges generated images. It was made for that, and knows nothing but images of this kind.",
        "",
        f"Right on {record['accuracy']:.2%} of the {protocol['num_images']:,} images of the split "
        f"`{protocol['split']}`. SHA-256 of the weights: `{protocol['weights_sha256']}`.",
        *_table(
            ["class", "accuracy"],
            (
                [name, "" if share is None else f"{share:.2%}"]
                for name, share in zip(record["label_names"], record["accuracy_per_class"], strict=True)
            ),
        ),
        "",
        "```python",
        "from transformers import AutoImageProcessor, AutoModelForImageClassification",
        "",
        'processor = AutoImageProcessor.from_pretrained("path of this folder")',
        'model = AutoModelForImageClassification.from_pretrained("path of this folder")',
        "```",
    ]


def _models_table(models: list[tuple[str, dict[str, Any]]]) -> list[str]:
    def row(name: str, record: dict[str, Any]) -> list[str]:
        protocol, training = record["protocol"], record.get("training")
        first, *others = record["measures"].items()
        judge, measures = first
        floor = record["floors"][judge]["train_against_test"]["frechet_distance"]
        distances = [_with_std(measures["frechet_distance"]) + f" ({_number(floor)})"]
        for other, found in others:
            real = record["floors"][other]["train_against_test"]["frechet_distance"]
            distances.append(_with_std(found["frechet_distance"]) + f" ({_number(real)})")
        shares = record["classes"][judge]["shares"]["generated"]
        return [
            name,
            protocol["dataset"],
            f"{training['train_seconds'] / 60:.0f} min, {training['images_seen']:,} images" if training else "",
            _sampler(protocol),
            f"{protocol['num_images']:,}",
            "; ".join(distances),
            *(_with_std(measures[m]) for m in MEASURES if m != "frechet_distance"),
            f"{min(shares):.1%} to {max(shares):.1%}",
        ]

    header = ["model", "data", "training", "sampler", "images", "Fréchet distance (of real training images)"]
    header += [title for name, (title, _) in MEASURES.items() if name != "frechet_distance"]
    return [
        "",
        "## Models",
        "",
        "Fréchet distances are in the features of the data set's two judges, one after the other; the other measures "
        "and the classes are those of the first. They are no FIDs. Each model's page has the protocol.",
        *_table([*header, "shares of the classes"], (row(*item) for item in models)),
    ]


def _judges_table(judges: list[tuple[str, dict[str, Any]]]) -> list[str]:
    return [
        "",
        "## Judges",
        *_table(
            ["judge", "data", "network", "parameters", "features", "test accuracy", "SHA-256 of the weights"],
            (
                [
                    name,
                    record["protocol"]["dataset"],
                    record["protocol"]["pipeline"],
                    f"{record['protocol']['num_parameters']:,}",
                    str(record["protocol"]["num_features"]),
                    f"{record['accuracy']:.2%}",
                    f"`{record['protocol']['weights_sha256'][:16]}…`",
                ]
                for name, record in judges
            ),
        ),
    ]
