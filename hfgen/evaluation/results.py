"""One table of many evaluations and analyses."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hfgen.evaluation.report import (
    ANALYSIS_RECORD,
    MEASURES,
    RECORD,
    accuracy_text,
    nearness_texts,
    sampler_text,
    seen_text,
)
from hfgen.runs.folder import OUTDATED
from hfgen.utils.errors import UserError, first_line
from hfgen.utils.files import complete_or_absent
from hfgen.utils.markdown import code_cell, duration, escaped, number, table, with_error, with_std
from hfgen.utils.untrusted import read_json


def results_page(folders: list[Path], place: Path) -> str:
    """Return one Markdown page, for the folder `place`, with a row for each `evaluation.json` below some folders.

    Raises:
        UserError: if there is none.
    """
    records, analyses = (
        [
            (_link(file.resolve().parent, place), read_record(file))
            for folder in folders
            for file in sorted(folder.rglob(name))
            if OUTDATED not in file.relative_to(folder).parts
        ]
        for name in (RECORD, ANALYSIS_RECORD)
    )
    if not records and not analyses:
        places = ", ".join(str(folder) for folder in folders)
        raise UserError(f"there is no {RECORD} below {places}; hfgen evaluate writes one")
    models = sorted(
        ((name, record) for name, record in records if "measures" in record),
        key=lambda item: (item[1]["protocol"]["dataset"], item[0]),
    )
    judges = [(name, record) for name, record in records if "accuracy" in record]
    restorers = [(name, record) for name, record in records if "restoration" in record]
    lines = [
        "# Results",
        "",
        f"Written by `hfgen results` from the `{RECORD}` of each model; nothing here is typed by hand.",
    ]
    if models:
        lines += _models_table(models)
    if analyses:
        lines += _latents_table(analyses)
    if restorers:
        lines += _restorers_table(restorers)
    if judges:
        lines += _judges_table(judges)
    return "\n".join(lines) + "\n"


def read_record(file: Path) -> dict[str, Any]:
    """Read the record of an evaluation or an analysis.

    Raises:
        UserError: naming the file, if no row of a table can be written of it.
    """
    record = read_json(file)
    tables = {"measures": _models_table, "accuracy": _judges_table, "restoration": _restorers_table}
    kind = "bounds" if file.name == ANALYSIS_RECORD else next((name for name in tables if name in record), None)
    if kind is None:
        raise UserError(f"{file} is no record of hfgen evaluate: it has none of {', '.join(tables)}")
    try:
        (tables | {"bounds": _latents_table})[kind]([("", record)])
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise UserError(f"{file} is no whole record of hfgen: {type(error).__name__}: {first_line(error)}") from error
    return record


def _link(folder: Path, place: Path) -> str:
    return f"[{escaped(folder.name)}]({quote(Path(os.path.relpath(folder, place.resolve())).as_posix())})"


def _models_table(models: list[tuple[str, dict[str, Any]]]) -> list[str]:
    def distance(record: dict[str, Any], judge: str) -> str:
        floor = record["floors"][judge].get("train_against_test")
        real = f" ({number(floor['frechet_distance'])})" if floor else ""
        return with_std(record["measures"][judge]["frechet_distance"]) + real

    def row(name: str, record: dict[str, Any]) -> list[str]:
        protocol, training = record["protocol"], record.get("training")
        judge, measures = next(iter(record["measures"].items()))
        shares = record["classes"][judge]["shares"]["generated"]
        return [
            name,
            escaped(protocol["dataset"]),
            f"{duration(training['train_seconds'])}, {training['images_seen']:,} images" if training else "",
            escaped(sampler_text(protocol)),
            f"{protocol['num_images']:,}",
            "; ".join(distance(record, judge) for judge in record["measures"]),
            *(with_std(measures[m]) for m in MEASURES if m != "frechet_distance"),
            f"{min(shares):.1%} to {max(shares):.1%}",
            accuracy_text(record["conditional"][judge]) if record["conditional"] else "",
        ]

    header = ["model", "data", "training", "sampler", "images", "Fréchet distance (of real training images)"]
    header += [title for name, (title, _) in MEASURES.items() if name != "frechet_distance"]
    return [
        "",
        "## Models",
        "",
        "Fréchet distances are in the features of each judge, one after the other; the other measures and the classes "
        "are those of the first. They are no FIDs. Each model's page has the protocol.",
        *table([*header, "shares of the classes", "of the class asked for"], (row(*item) for item in models)),
    ]


def _latents_table(analyses: list[tuple[str, dict[str, Any]]]) -> list[str]:
    def row(name: str, record: dict[str, Any]) -> list[str]:
        protocol, similarity = record["protocol"], record["similarity"]
        bound = record["bounds"]["negative_importance_weighted_bound"]
        kept = next(iter(record["class_kept"].values()), None)
        return [
            name,
            escaped(protocol["dataset"]),
            escaped(f"{protocol['pixel_distribution']}, binarised: {protocol['pixels']}"),
            f"{record['active_units']} of {protocol['latent_dim']}",
            with_error(record["bounds"]["negative_elbo"]),
            f"{with_error(bound)} ({protocol['num_importance_samples']:,} latents, {protocol['num_bound_images']:,} "
            "images)",
            number(similarity["mse"]),
            number(similarity["ssim"]) if "ssim" in similarity else "",
            f"{record['pixel_accuracy']:.2%}",
            accuracy_text(kept["reconstructions"]) if kept else "",
        ]

    header = ["model", "data", "pixels", "active latents", "−ELBO (nats)", "importance-weighted", "MSE", "SSIM"]
    return [
        "",
        "## Latents",
        "",
        "What `hfgen analyze` found on the test images. Bounds of pixels that are not binarised are no likelihoods. "
        "MSE, SSIM, the pixels on the same side of a half, and the class that the first judge sees, are of an image "
        "and its reconstruction.",
        *table(
            [*header, "pixels right", "class kept"],
            (row(*item) for item in sorted(analyses, key=lambda item: item[0])),
        ),
    ]


def _restorers_table(restorers: list[tuple[str, dict[str, Any]]]) -> list[str]:
    def rows(name: str, record: dict[str, Any]) -> Iterable[list[str]]:
        protocol, training = record["protocol"], record["training"]
        judge = next(iter(protocol["judges"]), None)
        length = f"{duration(training['train_seconds'])}, {training['images_seen']:,} images" if training else ""
        for setting in record["restoration"]:
            yield [
                name,
                escaped(protocol["dataset"]),
                length,
                escaped(setting["title"]),
                *nearness_texts(setting),
                seen_text(setting, judge) if judge else "",
            ]

    header = ["model", "data", "training", "given", "PSNR (dB)", "SSIM", "class seen by the first judge"]
    return [
        "",
        "## Image to image",
        "",
        "What a model is given → what it makes of that, beside what should be, on test images.",
        *table(header, (row for item in restorers for row in rows(*item))),
    ]


def _judges_table(judges: list[tuple[str, dict[str, Any]]]) -> list[str]:
    return [
        "",
        "## Judges",
        *table(
            ["judge", "data", "network", "parameters", "features", "test accuracy", "SHA-256 of the weights"],
            (
                [
                    name,
                    escaped(record["protocol"]["dataset"]),
                    escaped(record["protocol"]["pipeline"]),
                    f"{record['protocol']['num_parameters']:,}",
                    str(record["protocol"]["num_features"]),
                    accuracy_text(record),
                    code_cell(f"{record['protocol']['weights_sha256'][:16]}…"),
                ]
                for name, record in judges
            ),
        ),
    ]


def write_results(folders: list[Path], output: Path) -> Path:
    """Write the table of some folders to a page.

    Returns:
        The page.

    Raises:
        UserError: if there is no evaluation, or a page that hfgen did not write would be written over.
    """
    if output.is_file() and "`hfgen results`" not in output.read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"{output} is not by hfgen results, and would be written over; name another --output")
    page = results_page(folders, output.parent)
    with complete_or_absent(output) as temporary:
        temporary.write_text(page)
    return output
