"""What an evaluation leaves: `evaluation.json`, `evaluation.md` with pictures, and one table of many of them."""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from hfgen.figures.grids import image_grid, save_picture
from hfgen.figures.plots import class_shares_picture, features_picture, measures_picture, neighbors_picture
from hfgen.utils.files import complete_or_absent
from hfgen.utils.markdown import accuracy_text, code, json_text, render

RECORD = "evaluation.json"
PAGE = "evaluation.md"
PICTURES = "evaluation"  # folder beside them
ANALYSIS_RECORD, ANALYSIS_PAGE, ANALYSIS_PICTURES = "analysis.json", "analysis.md", "analysis"
REPORTS = (RECORD, PAGE, PICTURES, ANALYSIS_RECORD, ANALYSIS_PAGE, ANALYSIS_PICTURES)  # all that is said of a model
MEASURES = {
    "frechet_distance": ("Fréchet distance", "lower"),
    "kernel_distance": ("kernel distance", "lower"),
    "precision": ("precision", "higher"),
    "recall": ("recall", "higher"),
    "density": ("density", "near 1"),
    "coverage": ("coverage", "higher"),
}
WEAK_JUDGE = 2 / 3  # a judge that is right on fewer of the real images is named as such
FLOORS = {"train_against_test": "training against test", "half_against_half": "training, half against half"}


def save_pictures(
    record: dict[str, Any],
    images: Tensor,
    pairs: tuple[Tensor, Tensor],
    features: tuple[Tensor, Tensor],
    folder: Path,
) -> None:
    """Draw the pictures of an evaluation's page.

    Args:
        record: What `hfgen.evaluation.evaluate` found.
        images: Some of the images, uint8 (N, C, H, W).
        pairs: Images and their nearest neighbours in the training set, each uint8 (N, C, H, W).
        features: Of the images, (N, D), and of the test images, (M, D).
        folder: Where to.
    """
    (folder / PICTURES).mkdir(exist_ok=True)
    shown = {
        "images": image_grid(images),
        "measures": measures_picture(record["measures"], record["floors"], MEASURES, FLOORS),
        "classes": class_shares_picture(record["classes"]),
        "features": features_picture(*features),
        "neighbours": neighbors_picture(*pairs),
    }
    for name, picture in shown.items():
        save_picture(picture, folder / PICTURES / f"{name}.png")


def save_report(record: dict[str, Any], folder: Path) -> Path:
    """Write the record of an evaluation and its page; return the path of the record."""
    return save_record(record, _page(record), folder)


def save_classifier_report(record: dict[str, Any], folder: Path) -> Path:
    """Write the record of a classifier's accuracy and its page; return the path of the record."""
    return save_record(record, _classifier_card(record), folder)


def save_restoration_report(record: dict[str, Any], folder: Path) -> Path:
    """Write the record of what a model makes of test images, and its page; return the path of the record."""
    return save_record(record, _restoration_page(record), folder)


def seen_text(setting: dict[str, Any], judge: str) -> str:
    """Say how often a judge sees the class in what was given, and in what was made of it."""
    before, after = (setting[kind]["class_seen"].get(judge) for kind in ("given", "made"))
    return f"{before['accuracy']:.1%} → {after['accuracy']:.1%}" if after else ""


def nearness_texts(setting: dict[str, Any]) -> list[str]:
    """Say how near what was given comes to what should be, in PSNR and SSIM, and what was made of it."""
    compared = [part for part in (setting["given"], setting["made"]) if "mse" in part]
    psnrs = [f"{part['psnr']:.2f}" if "psnr" in part else "∞" for part in compared]  # of earlier versions: equal
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
            temporary.write_text(text)
    return folder / record_file


def weak_judges(accuracies: dict[str, dict[str, Any]]) -> list[str]:
    """Say which judges, of those with `accuracy_of` the real images, are often wrong."""
    return [
        f"The judge {code(judge)} is right on no more than {accuracy_text(found)} of the real images: what it says of "
        "others, and distances in its features, are worth little."
        for judge, found in accuracies.items()
        if found["accuracy"] < WEAK_JUDGE
    ]


def sampler_text(sampler: dict[str, Any]) -> str:
    """Write how images were drawn, from a protocol or from the options of `hfgen.sampling.sample.sample`."""
    if "prior" in sampler:
        return f"{sampler['prior']} prior"
    if "truncation" in sampler:
        truncation = sampler["truncation"]
        return "one step" if truncation is None else f"one step, latents within {truncation:g}"
    if "scheduler" not in sampler:
        return "given as images"
    text = f"{sampler['scheduler']}, {sampler['num_inference_steps']} steps"
    if (scale := sampler.get("guidance_scale")) is None:
        return text
    first, last = sampler["guidance_interval"]
    return f"{text}, guidance {scale:g}" + (f" from {first:g} to {last:g}" if (first, last) != (0, 1) else "")


def render_report(template: str, **values: Any) -> str:
    """Return a page that shows records: beside its values, the template may use the names and functions below."""
    return render(
        template,
        measure_titles=MEASURES,
        floor_titles=FLOORS,
        sampler_text=sampler_text,
        weak_judges=weak_judges,
        nearness_texts=nearness_texts,
        seen_text=seen_text,
        **values,
    )


def _page(record: dict[str, Any]) -> str:
    classes = {}
    for judge, found in record["conditional"].items():
        names = record["classes"][judge]["label_names"]
        nothing = [None] * len(names)
        real = record["judge_accuracy"].get(judge, {"accuracy_per_class": nothing})
        distances = found.get("frechet_distance_per_class", nothing)
        columns = names, found["accuracy_per_class"], real["accuracy_per_class"], distances
        classes[judge] = list(zip(*columns, strict=True))
    compared = [found for kinds in record["memorization"].values() for found in kinds.values()]
    chance_is_known = all("nearer_to_training_std" in found for found in compared)  # not to earlier versions
    return render_report("evaluation.md", record=record, classes=classes, chance_is_known=chance_is_known)


def _classifier_card(record: dict[str, Any]) -> str:
    return render_report(
        "classifier.md",
        record=record,
        classes=list(zip(record["label_names"], record["accuracy_per_class"], strict=True)),
        dataset_is_hub_id=bool(re.fullmatch(r"[\w.-]+/[\w.-]+", record["protocol"]["dataset"])),
    )
