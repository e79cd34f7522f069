"""Reports of an evaluation: `evaluation.json`, `evaluation.md` and its figures."""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from hfgen.evaluation.verdict import findings, is_tie, judges_disagree, problems, sampler_text
from hfgen.figures.grids import comparison_grid, image_grid, save_picture
from hfgen.figures.plots import class_shares_picture, features_picture, measures_picture
from hfgen.runs.folder import EVALUATION as RECORD
from hfgen.runs.folder import EVALUATION_PAGE as PAGE
from hfgen.runs.folder import EVALUATION_PICTURES as PICTURES
from hfgen.utils.files import complete_or_absent
from hfgen.utils.markdown import json_text, render

MEASURES = {
    "frechet_distance": ("Fréchet distance", "lower"),
    "kernel_distance": ("kernel distance", "lower"),
    "precision": ("precision", "higher"),
    "recall": ("recall", "higher"),
    "density": ("density", "near 1"),
    "coverage": ("coverage", "higher"),
}
INCEPTION_MEASURES = {"frechet_distance": "FID", "kernel_distance": "KID"}  # what these are in Inception's features
FLOORS = {"train_against_test": "training against test", "half_against_half": "training, half against half"}


def save_pictures(
    record: dict[str, Any],
    images: Tensor,
    pairs: tuple[Tensor, Tensor],
    classes: list[str],
    features: tuple[Tensor, Tensor],
    folder: Path,
) -> None:
    """Save the figures of an evaluation's page.

    Args:
        record: The record of `hfgen.evaluation.evaluate`.
        images: Some of the images, uint8 (N, C, H, W).
        pairs: Images and their nearest neighbours in the training set, each uint8 (N, C, H, W).
        classes: Their predicted classes, N names, or none without a judge.
        features: Of the images, (N, D), and of the test images, (M, D).
        folder: Output folder.
    """
    (folder / PICTURES).mkdir(exist_ok=True)
    counts = {"generated": record["protocol"]["num_images"], "real": record["protocol"]["reference_images"]}
    figures = {
        "images": image_grid(images),
        "measures": measures_picture(record["measures"], record["floors"], MEASURES, FLOORS),
        "features": features_picture(*features),
        "neighbours": comparison_grid(dict(zip(("generated", "training"), pairs, strict=True)), 10, classes),
    }
    if record["classes"]:
        figures["classes"] = class_shares_picture(record["classes"], counts)
    for name, picture in figures.items():
        save_picture(picture, folder / PICTURES / f"{name}.png")


def save_report(record: dict[str, Any], folder: Path) -> Path:
    """Write the record of an evaluation and its page; return the path of the record."""
    return save_record(record, _page(record), folder)


def save_classifier_report(record: dict[str, Any], folder: Path) -> Path:
    """Write the record of a classifier's accuracy and its page; return the path of the record."""
    return save_record(record, _classifier_card(record), folder)


def save_restoration_report(record: dict[str, Any], folder: Path) -> Path:
    """Write the record of an image-to-image evaluation and its page; return the path of the record."""
    return save_record(record, _restoration_page(record), folder)


def class_accuracy_text(setting: dict[str, Any], judge: str) -> str:
    """Format a judge's class accuracy on inputs and outputs."""
    before, after = (setting[part]["class_seen"].get(judge) for part in ("given", "made"))
    return f"{before['accuracy']:.1%} → {after['accuracy']:.1%}" if after else ""


def similarity_texts(setting: dict[str, Any]) -> list[str]:
    """Format PSNR and SSIM of inputs and outputs against their targets."""
    compared = [part for part in (setting["given"], setting["made"]) if "mse" in part]
    psnrs = [
        f"{part['psnr']:.2f}" if "psnr" in part else "∞" for part in compared
    ]  # written by earlier versions for equal images
    ssims = [f"{part['ssim']:.3f}" for part in compared if "ssim" in part]
    return [" → ".join(psnrs), " → ".join(ssims)]


def _restoration_page(record: dict[str, Any]) -> str:
    return render_report("restoration.md", record=record)


def save_record(
    record: dict[str, Any], page: str, folder: Path, *, record_file: str = RECORD, page_file: str = PAGE
) -> Path:
    """Write a record and its page; return the path of the record."""
    for name, text in {page_file: page, record_file: json_text(record, indent=1) + "\n"}.items():
        with complete_or_absent(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return folder / record_file


def is_inception(protocol: dict[str, Any], name: str) -> bool:
    """Return whether a feature extractor of a record is Inception."""
    return protocol.get("features", {}).get(name, {}).get("network") == "NoTrainInceptionV3"


def sha256_in(protocol: dict[str, Any], name: str) -> str:
    """Return the SHA-256 that identifies a judge or another feature extractor of a record."""
    return protocol["judges"].get(name) or protocol["features"][name]["sha256"]


def measure_title(protocol: dict[str, Any], name: str, measure: str) -> str:
    """Return the title of a metric in the features of an extractor."""
    special = f" ({INCEPTION_MEASURES[measure]})" if measure in INCEPTION_MEASURES else ""
    return MEASURES[measure][0] + (special if is_inception(protocol, name) else "")


def fewer_references(protocol: dict[str, Any], floor: str) -> str:
    """Return the number of reference images of a baseline, in words, if they are fewer than those of the model."""
    training = protocol["training_images"]
    count = training - training // 2
    is_fewer = floor == "half_against_half" and count < protocol["reference_images"]
    return f"only {count:,} reference images" if is_fewer else ""


def render_report(template: str, **values: Any) -> str:
    """Render a page of records; its template may use the values and the names and functions below."""
    return render(
        template,
        measure_titles=MEASURES,
        floor_titles=FLOORS,
        fewer_references=fewer_references,
        is_inception=is_inception,
        measure_title=measure_title,
        sampler_text=sampler_text,
        problems=problems,
        findings=findings,
        judges_disagree=judges_disagree,
        is_tie=is_tie,
        similarity_texts=similarity_texts,
        class_accuracy_text=class_accuracy_text,
        **values,
    )


def _page(record: dict[str, Any]) -> str:
    classes = {}
    for judge, found in record["conditional"].items():
        names = record["classes"][judge]["label_names"]
        unknown = [None] * len(names)
        real = record["judge_accuracy"].get(judge, {"accuracy_per_class": unknown})
        distances = found.get("frechet_distance_per_class", unknown)
        columns = names, found["accuracy_per_class"], real["accuracy_per_class"], distances
        classes[judge] = list(zip(*columns, strict=True))
    compared = [found for sets in record["memorization"].values() for found in sets.values()]
    chance_is_known = all(
        "nearer_to_training_std" in found for found in compared
    )  # missing in records of earlier versions
    return render_report("evaluation.md", record=record, classes=classes, chance_is_known=chance_is_known)


def _classifier_card(record: dict[str, Any]) -> str:
    return render_report(
        "classifier.md",
        record=record,
        classes=list(zip(record["label_names"], record["accuracy_per_class"], strict=True)),
        dataset_is_hub_id=bool(re.fullmatch(r"[\w.-]+/[\w.-]+", record["protocol"]["dataset"])),
    )
