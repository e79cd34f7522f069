"""What an evaluation leaves: `evaluation.json`, `evaluation.md` with pictures, and one table of many of them."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from hfgen.figures.grids import image_grid, save_picture
from hfgen.figures.plots import class_shares_picture, features_picture, measures_picture, neighbors_picture
from hfgen.utils.files import complete_or_absent
from hfgen.utils.markdown import code, code_cell, escaped, fenced, number, table, with_error, with_std

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


def restoration_table(record: dict[str, Any]) -> list[str]:
    """Return the lines of a table of what an image-to-image model was given and what it made of that."""
    judges = list(record["protocol"]["judges"])
    header = ["given", "PSNR (dB)", "SSIM", *(f"class seen by {code_cell(judge)}" for judge in judges)]
    rows = []
    for setting in record["restoration"]:
        seen = [seen_text(setting, judge) for judge in judges]
        rows.append([escaped(setting["title"]), *nearness_texts(setting), *seen])
    return table(header, rows)


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


def _restoration_page(record: dict[str, Any]) -> list[str]:
    protocol = record["protocol"]
    real = ", ".join(f"{code(judge)} of {accuracy_text(found)}" for judge, found in record["judge_accuracy"].items())
    lines = [
        f"# What {escaped(protocol['model'])} makes of images",
        "",
        f"{protocol['reference_images']:,} images of the split {code(protocol['reference_split'])} of "
        f"{escaped(protocol['dataset'])}: what is given → what is made of it, beside what should be. Both are rounded "
        "to 8 bits; what is smaller is enlarged for that (bicubic), what is grey is the same in all channels.",
        *_second_kind(protocol),
        *(["", f"The class is the right one of the images themselves for {real}."] if real else []),
        *careful(record["judge_accuracy"]),
        *restoration_table(record),
    ]
    for index, setting in enumerate(record["restoration"]):
        lines += ["", f"## {escaped(setting['title'])}", ""]
        lines += [f"![what is given and what is made of it]({PICTURES}/restored-{index}.png)"]
    return [*lines, "", "## Protocol", "", *fenced(json.dumps(protocol, indent=1, ensure_ascii=False), "json")]


def _second_kind(protocol: dict[str, Any]) -> list[str]:
    """Say what a model without pairs translates between."""
    if "target_dataset" not in protocol:
        return []
    made = " and ".join(code(degradation) for degradation in protocol["target_degradation"])
    return [
        "",
        f"The first kind are these images, the second those of the split {code(protocol['target_reference_split'])} "
        f"of {escaped(protocol['target_dataset'])}{f' after {made}' if made else ''}. PSNR and SSIM are left out "
        "where nobody knows what an image should become.",
    ]


def save_record(
    record: dict[str, Any], page: list[str], folder: Path, *, record_file: str = RECORD, page_file: str = PAGE
) -> Path:
    """Write a record and its page; return the path of the record."""
    content = {page_file: "\n".join(page), record_file: json.dumps(record, indent=1, ensure_ascii=False)}
    for name, text in content.items():
        with complete_or_absent(folder / name) as temporary:
            temporary.write_text(text + "\n")
    return folder / record_file


def nearer_text(found: dict[str, float]) -> str:
    """Write the share of images that are nearer to a training image, and what chance makes of it, where that is known.

    Reports of earlier versions do not have it.
    """
    std = found.get("nearer_to_training_std")
    return f"{found['nearer_to_training']:.1%}" + ("" if std is None else f" (by chance 50 % ± {std:.1%})")


def nearer_explained(kinds: Iterable[dict[str, float]]) -> str:
    """Say what such shares tell."""
    if any("nearer_to_training_std" not in found for found in kinds):
        return "How far chance alone takes this from 50 % was not measured, so that nothing follows from it."
    return (
        "If nothing is copied, it is 50 % on average over choices of the real images; as a few of those are often "
        "nearest to many images, it may be far from that by chance. Copies raise it."
    )


def weak_judges(accuracies: dict[str, dict[str, Any]]) -> list[str]:
    """Say which judges, of those with `accuracy_of` the real images, are often wrong."""
    return [
        f"The judge {code(judge)} is right on no more than {accuracy_text(found)} of the real images: what it says of "
        "others, and distances in its features, are worth little."
        for judge, found in accuracies.items()
        if found["accuracy"] < WEAK_JUDGE
    ]


def careful(accuracies: dict[str, dict[str, Any]]) -> list[str]:
    """Return the lines that warn of judges that are often wrong."""
    return [line for text in weak_judges(accuracies) for line in ("", f"**Careful**: {text}")]


def accuracy_text(found: dict[str, Any]) -> str:
    """Write an accuracy and its standard deviation in per cent."""
    return f"{found['accuracy']:.2%} ± {found['accuracy_std']:.2%}"


def bounds_table(record: dict[str, Any]) -> list[str]:
    """Return the lines of a table of what `hfgen.evaluation.vae` found of a VAE's bounds."""
    titles = {
        "reconstruction": "−E ln p(x given z)",
        "kl": "divergence of q(z given x) from the prior",
        "negative_elbo": "−ELBO, the sum of these",
        "negative_importance_weighted_bound": "importance-weighted bound on −ln p(x)",
    }
    bounds = record["bounds"]
    return table(["", "nats"], ([title, with_error(bounds[name])] for name, title in titles.items()))


def bounds_text(protocol: dict[str, Any]) -> str:
    """Say what kind of bounds these are."""
    notes = {
        "bernoulli": "Pixels are not binarised, so that this is the binary cross-entropy, no likelihood. ",
        "gaussian": "These are densities, which no bound limits and which compare with no probabilities. ",
    }
    note = notes.get(protocol["pixel_distribution"], "") if protocol["pixels"] == "none" else ""
    return (
        f"In nats an image, of {escaped(protocol['pixel_distribution'])} pixels. {note}"
        + f"The importance-weighted bound is the ELBO and what {protocol['num_importance_samples']:,} latents of each "
        f"of {protocol['num_bound_images']:,} images chosen at random gain over it; ± is the standard error over the "
        "images."
    )


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _title(protocol: dict[str, Any]) -> str:
    return protocol.get("model") or protocol["images"]


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


def _page(record: dict[str, Any]) -> list[str]:
    protocol = record["protocol"]
    lines = [
        f"# How good the images of {escaped(_title(protocol))} are",
        "",
        f"{protocol['num_images']:,} images ({escaped(sampler_text(protocol))}) compared with the "
        f"{protocol['reference_images']:,} images of the split {code(protocol['reference_split'])} of "
        f"{escaped(protocol['dataset'])}.",
        *careful(record["judge_accuracy"]),
        "",
        f"![the first images]({PICTURES}/images.png)",
        "",
        "## Distribution",
        "",
        "Measured in the features of classifiers trained on the real data, the judges. These are no Inception "
        "features and the values no FID or KID. ± is the standard deviation over other samples of the same model, "
        "estimated by leaving out a tenth of the images at a time; a recall near 0 has none, as it rests on very few "
        "images. A value means something beside that of real "
        "images, measured in the same way: training images in the place of the generated ones, against the test "
        "images and against other training images.",
    ]
    for judge, measures in record["measures"].items():
        floors = record["floors"][judge]
        rows = [
            [title, with_std(measures[name]), *(number(floor[name]) for floor in floors.values()), better]
            for name, (title, better) in MEASURES.items()
        ]
        header = [f"real: {FLOORS[name]} ({floor['num_images']:,} images)" for name, floor in floors.items()]
        known = record["judge_accuracy"].get(judge)
        lines += [
            "",
            f"### Judge {code(judge)}" + (f", right on {accuracy_text(known)} of the real images" if known else ""),
        ]
        lines += table(["measure", "generated", *header, "better"], rows)
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
    if not record["conditional"]:
        lines += [
            "",
            "The images have no labels, so that nothing can be said of how well they show a class asked for.",
        ]
    for judge, found in record["conditional"].items():
        names = [escaped(name) for name in record["classes"][judge]["label_names"]]
        nothing = [None] * len(names)
        distances = found.get("frechet_distance_per_class", nothing)
        real = record["judge_accuracy"].get(judge, {"accuracy_per_class": nothing})
        lines += [
            "",
            f"### Asked for a class, judge {code(judge)}",
            "",
            f"{accuracy_text(found)} of the images show the class that they are meant to show.",
        ]
        lines += table(
            ["class", "accuracy", "of the real images", "Fréchet distance within the class"],
            (
                [name, *(_share(s) for s in shares), "" if distance is None else number(distance)]
                for name, *shares, distance in zip(
                    names, found["accuracy_per_class"], real["accuracy_per_class"], distances, strict=True
                )
            ),
        )
    if score := record.get("classification_accuracy_score"):
        lines += [
            "",
            "## Classification accuracy score",
            "",
            f"A classifier trained on {score['generated']['training_images']:,} generated images for "
            f"{score['optimizer_steps']:,} steps is right on {accuracy_text(score['generated'])} of the real test "
            f"images; the same one trained on {score['real']['training_images']:,} real images on "
            f"{accuracy_text(score['real'])}. ± is over the test images; another training would differ as well.",
        ]
    lines += [
        "",
        "## Memorisation",
        "",
        f"{record['copies_of_training_images']:,} of the {protocol['num_images']:,} images are training images to the "
        "pixel.",
        "",
        "The generated images (above) that stand nearest to a training image (below), in the first judge's features.",
        "",
        f"![nearest training images]({PICTURES}/neighbours.png)",
    ]
    if record["memorization"]:
        lines += [
            "",
            "Compared with equally many training and test images. A model that copies nothing has gap 0 within its "
            "error, and copies raise it. The last column is the proportion of the images that are nearer to a "
            "training image than to any test image. "
            + nearer_explained(found for kinds in record["memorization"].values() for found in kinds.values()),
        ]
        lines += table(
            ["judge", "images", "memorisation gap (nats per image)", "nearer to a training image"],
            (
                [
                    code_cell(judge),
                    {"generated": "generated", "real": "other training images"}[kind],
                    f"{found['gap']:.2f} ± {found['gap_std']:.2f}",
                    nearer_text(found),
                ]
                for judge, kinds in record["memorization"].items()
                for kind, found in kinds.items()
            ),
        )
    else:
        lines += [
            "",
            f"{protocol['reference_images_in_training']:,} of the {protocol['reference_images']:,} reference images "
            "are among the training images, so that they tell nothing of memorisation.",
        ]
    if scores := record.get("inception"):
        lines += [
            "",
            "## Inception",
            "",
            f"FID {number(scores['fid'])}, KID {number(scores['kid'])} ± {scores['kid_std']:.1g}, "
            f"Inception Score {number(scores['inception_score'])} ± {scores['inception_score_std']:.1g}. "
            "± is over random subsets, and over ten parts of the images.",
        ]
    lines += ["", "## Protocol", "", *fenced(json.dumps(protocol, indent=1, ensure_ascii=False), "json")]
    return lines


def _classifier_card(record: dict[str, Any]) -> list[str]:
    protocol = record["protocol"]
    front = [
        "---",
        "library_name: transformers",
        "pipeline_tag: image-classification",
        *([f"datasets: [{protocol['dataset']}]"] if re.fullmatch(r"[\w.-]+/[\w.-]+", protocol["dataset"]) else []),
        "---",
    ]
    return [
        *front,
        "",
        f"# {escaped(protocol['model'])}",
        "",
        f"A {code(protocol['pipeline'])} with {protocol['num_parameters']:,} parameters and "
        f"{protocol['num_features']} features, trained by `hfgen train classifier` on {escaped(protocol['dataset'])}, "
        "in whose features and by whose decisions hfgen judges generated images. It was made for that, and knows "
        "nothing but images of this kind.",
        "",
        f"Right on {accuracy_text(record)} of the {protocol['reference_images']:,} images of the split "
        f"{code(protocol['reference_split'])}. SHA-256 of the weights: {code(protocol['weights_sha256'])}.",
        *table(
            ["class", "accuracy"],
            (
                [escaped(name), _share(share)]
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
