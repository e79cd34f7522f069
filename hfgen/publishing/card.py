"""Model cards, generated from runs."""

import re
import shutil
from collections.abc import Collection
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import UndefinedError

from hfgen.config.recipes import read_recipes
from hfgen.evaluation.report import measure_title, render_report, sha256_in
from hfgen.families import Model, own_sampler
from hfgen.pipelines.loading import INDEX
from hfgen.publishing.facts import read_run
from hfgen.publishing.licenses import check_license
from hfgen.publishing.snippets import in_code, reproduction, tags_of
from hfgen.runs.checkpoints import list_steps
from hfgen.runs.folder import (
    ANIMATION,
    CARD,
    CLASSES,
    CURVES,
    FIGURES,
    INPUT,
    REPORTS,
    RUN_FILE,
    TIMELAPSE,
    VALIDATION_CURVES,
)
from hfgen.utils.errors import UserError
from hfgen.utils.files import complete_or_absent
from hfgen.utils.markdown import TEMPLATES, authors_sections, json_text, linked_pictures, render, with_sections
from hfgen.utils.untrusted import check_content, one_line, own_file, read_json

WALL = "# Models\n\nMade by `hfgen card`: "  # the beginning of templates/wall.md
SAMPLES_PICTURE = "samples.png"
LATENTS = ("interpolations.png", "truncations.png", "plane.png")
WATTS_PER_CORE, WATTS_PER_GPU = 10, 400  # assumptions of the energy estimate
GRAMS_PER_KWH = 473  # of CO2, the world's average of 2024 (Ember, Global Electricity Review 2025)
PLACEHOLDER = "user"  # the namespace of a model that has no Hub id
NOTEBOOK = "notebook.ipynb"  # which the Hub opens in Colab
NOTEBOOK_MARK = {"generator": "hfgen card"}  # in the metadata of a notebook that hfgen wrote


def write_card(
    run: Path, folder: Path, *, repo_id: str | None = None, spdx_license: str, weights: str | None = None
) -> Path:
    """Write the model card of a finished run, `README.md`, its figures, and a notebook.

    A classifier has no notebook, and a translator one only with an input among its figures.

    Args:
        run: The run folder.
        folder: Output folder; may be the run folder.
        repo_id: Hub id for the usage example; by default that of the run's configuration, or a placeholder.
        spdx_license: Licence of the weights as a lower-case SPDX identifier, such as `apache-2.0`.
        weights: Data type of the weights beside the card, if they were rounded from those of the training.

    Sections (`##`) that others added to an earlier card in one of these folders stay, at the end.

    Returns:
        The path of the model card.

    Raises:
        UserError: if the folder holds no finished run, a file whose content does not fit its name, or a `README.md`
            that hfgen did not write.
    """
    facts = read_run(run)
    elsewhere = folder.resolve() != run.resolve()
    copied = _pictures_of(run) | {name: name for name in _reports_of(run)}
    copied = {target: name for target, name in copied.items() if elsewhere or target != name}
    for name in copied.values():
        check_content(own_file(run, name))
    own_file(run, FIGURES)
    folder.mkdir(parents=True, exist_ok=True)
    for target, name in copied.items():
        copy_whole(run / name, folder / target)
    pictures = {path.name for path in (folder / FIGURES).iterdir()} if (folder / FIGURES).exists() else set()
    model = repo_id or _id_of(run, facts["hub_model_id"])
    pages = [own_file(place, CARD) for place in dict.fromkeys((run, folder)) if (place / CARD).exists()]
    if not elsewhere and pages and not _is_page(pages[0]):
        raise UserError(f"{pages[0]} was not written by hfgen and will not be overwritten; rename it first")
    try:
        metadata = _metadata(facts, model, spdx_license, pictures)
        page = card_text(facts, model, pictures, spdx_license=spdx_license, weights=weights)
        card = ModelCard.from_template(metadata, str(TEMPLATES / "model_card.md"), page=page)
    except (KeyError, TypeError, UndefinedError) as error:  # of a record with missing or malformed entries
        raise UserError(
            f"the records of {run} do not have the format of this hfgen version ({type(error).__name__}: {error}); "
            "train, evaluate or analyse it again"
        ) from error
    sections: dict[str, str] = {}
    for page in pages:
        check_content(page)
        sections = authors_sections(page.read_text(encoding="utf-8"), str(card)) | sections
    for name in linked_pictures("".join(sections.values())) if elsewhere else ():
        if own_file(run, name).is_file():
            check_content(run / name)
            copy_whole(run / name, folder / name)
    with complete_or_absent(folder / CARD) as temporary:
        temporary.write_text(with_sections(str(card), sections), encoding="utf-8")
    if facts["kind"].use in ("denoise", "few_steps", "decode") or INPUT in pictures:
        notebook = own_file(folder, NOTEBOOK)
        if is_own_notebook(notebook):
            with complete_or_absent(notebook) as temporary:
                code = card_text(facts, model, block="use")
                temporary.write_text(_notebook(model, code, INPUT if INPUT in pictures else None), encoding="utf-8")
        else:
            print(f"{notebook} was not written by hfgen and stays as it is")
    if sections:
        print(f"Sections that hfgen did not write stay in the model card: {', '.join(map(one_line, sections))}")
    return folder / CARD


def repositories_of(gallery: Path) -> list[Path]:
    """Return the folders of a gallery that have models beside their cards; none if the folder is no gallery."""
    if not (gallery / CARD).is_file() or not _is_wall(gallery / CARD):
        return []
    return sorted(page.parent for page in gallery.glob(f"*/{CARD}") if is_repository(page.parent))


def is_repository(folder: Path) -> bool:
    """Return whether a folder is a complete repository, a model with its card, but without the run."""
    has_model = any((folder / name).is_file() for name in (INDEX, "config.json"))
    page = folder / CARD
    return has_model and not (folder / RUN_FILE).exists() and page.is_file() and _is_page(page)


def copy_card(repository: Path, folder: Path, *, repo_id: str, spdx_license: str) -> None:
    """Copy the card of a repository, its pictures, reports and notebook, with another Hub id in the code.

    Raises:
        UserError: if its licence is another one, or a file is a symbolic link or does not fit its name.
    """
    card = ModelCard.load(own_file(repository, CARD))
    if card.data.license != spdx_license:
        raise UserError(f"{repository / CARD} has the license {one_line(card.data.license)}, not {spdx_license}")
    figures = sorted(own_file(repository, FIGURES).glob("*"))
    names = [f"{FIGURES}/{file.name}" for file in figures if file.suffix in (".png", ".gif")]
    names += [name for name in linked_pictures(card.text) if name not in names]
    for name in (CARD, NOTEBOOK, *names, *_reports_of(repository)):
        if (file := own_file(repository, name)).is_file():
            check_content(file)
            copy_whole(file, folder / name)
    former = _named_id(card)
    for page in (folder / CARD, folder / NOTEBOOK):
        if former and page.exists():
            text = re.sub(rf"(?<![\w./-]){re.escape(former)}(?![\w.-])", repo_id, page.read_text(encoding="utf-8"))
            namespace = repo_id.partition("/")[0]  # in which the teacher of a student is expected too
            text = text.replace(f"base_model: {PLACEHOLDER}/", f"base_model: {namespace}/")
            page.write_text(text, encoding="utf-8")


def _named_id(card: ModelCard) -> str | None:
    """Return the Hub id in the code of a card."""
    named = re.search(r'from_pretrained\("([A-Za-z0-9._-]+/[A-Za-z0-9._-]+)"', card.text)
    return named and named[1]


def renew_card(run: Path) -> Path | None:
    """Write the model card of a finished run again if hfgen wrote one there, for the same Hub id and licence.

    Returns:
        The path of the model card, or None if there is none.

    Raises:
        UserError: see `write_card`.
    """
    page = run / CARD
    if not (run / RUN_FILE).is_file() or not page.is_file() or not _is_page(page):
        return None
    card = ModelCard.load(page)
    check_license(str(card.data.license))
    return write_card(run, run, repo_id=_named_id(card), spdx_license=card.data.license)


def _id_of(run: Path, hub_model_id: object) -> str:
    """Return the configured Hub id of a run, or a placeholder that is safe in Python and Markdown."""
    if isinstance(hub_model_id, str) and re.fullmatch(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+", hub_model_id):
        return hub_model_id
    return f"{PLACEHOLDER}/{re.sub(r'[^A-Za-z0-9._-]+', '-', run.resolve().name)}"


def gallery_folder(gallery: Path, run: Path) -> Path:
    """Return the folder of a run's model card in a gallery.

    Raises:
        UserError: if a page that hfgen did not write would be overwritten.
    """
    folder = gallery / run.resolve().name
    for page, is_own in ((gallery / CARD, _is_wall), (folder / CARD, _is_page)):
        if page.exists() and not is_own(page):
            raise UserError(f"{page} was not written by hfgen and will not be overwritten; set another --gallery")
    return folder


def _is_wall(page: Path) -> bool:
    return page.read_text(encoding="utf-8", errors="replace").startswith(WALL)


def _is_page(page: Path) -> bool:
    """Return whether hfgen wrote a model card."""
    try:
        card = ModelCard.load(page)
    except (ValueError, OSError, yaml.YAMLError):
        return False
    return "hfgen" in (card.data.tags or [])


def write_gallery(folder: Path) -> Path:
    """Write `README.md` of a gallery: sample grids of the models, each with its first metric.

    Returns:
        The path of the page.
    """
    pages = [page for page in sorted(folder.glob(f"*/{CARD}")) if _is_page(page)]
    models = [
        {
            "name": page.parent.name,
            "results": ModelCard.load(page).data.eval_results,
            "has_samples": (page.parent / FIGURES / SAMPLES_PICTURE).exists(),
        }
        for page in pages
    ]
    with complete_or_absent(folder / CARD) as temporary:
        temporary.write_text(render("wall.md", models=models), encoding="utf-8")
    return folder / CARD


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file atomically."""
    with complete_or_absent(target) as temporary:
        shutil.copyfile(source, temporary)


def _pictures_of(run: Path) -> dict[str, str]:
    """Return the figures of a run's model card, by target name, with their names in the run."""
    samples = list_steps(own_file(run, "samples"), ".png")
    found = {f"{FIGURES}/{SAMPLES_PICTURE}": f"samples/{samples[-1].name}"} if samples else {}
    names = [
        f"{FIGURES}/{name}" for name in (CURVES, VALIDATION_CURVES, CLASSES, ANIMATION, TIMELAPSE, INPUT, *LATENTS)
    ]
    return found | {name: name for name in names if _is_there(run / name)}


def _reports_of(run: Path) -> list[str]:
    """List the files of a run's evaluation and analysis."""
    names = []
    for name in filter(lambda name: _is_there(run / name), REPORTS):
        place = own_file(run, name)
        names += [f"{name}/{file.name}" for file in sorted(place.glob("*.png"))] if place.is_dir() else [name]
    return names


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def is_own_notebook(file: Path) -> bool:
    """Return whether there is no such file, or a notebook that hfgen wrote."""
    return not file.exists() or read_json(file).get("metadata") == NOTEBOOK_MARK


def _notebook(model: str, code: str, picture: str | None) -> str:
    """Return a notebook that installs diffusers, runs the code of the card, and shows the first image enlarged.

    Args:
        model: The Hub id.
        code: The code of the card.
        picture: The name of the picture among the figures that the code takes, if it takes one.
    """
    diffusers = next(package for package in requires("hfgen") if package.startswith("diffusers"))
    shown = "output.png" if picture else "image.png"
    sources = [
        f'%pip install -q "{diffusers}"',
        code.strip(),
        f'from PIL import Image\n\nImage.open("{shown}").resize((280, 280), Image.Resampling.NEAREST)',
    ]
    if picture:
        download = f'shutil.copy(hf_hub_download("{model}", "{FIGURES}/{picture}"), "{picture}")'
        sources.insert(1, f"import shutil\n\nfrom huggingface_hub import hf_hub_download\n\n{download}")
    cells = [{"cell_type": "markdown", "id": "title", "metadata": {}, "source": f"# {model}"}]
    for number, source in enumerate(sources):
        shared = {"cell_type": "code", "id": f"code-{number}", "metadata": {}}
        cells.append(shared | {"execution_count": None, "outputs": [], "source": source})
    return json_text({"cells": cells, "metadata": NOTEBOOK_MARK, "nbformat": 4, "nbformat_minor": 5})


def _metadata(facts: dict[str, Any], model: str, spdx_license: str, pictures: Collection[str]) -> ModelCardData:
    kind, evaluation = facts["kind"], facts["evaluation"]
    shown: dict[str, Any] = {}
    if SAMPLES_PICTURE in pictures:
        place = f"{FIGURES}/{SAMPLES_PICTURE}"
        shown["widget"] = [{"text": "samples, not selected", "output": {"url": place}}]
        if not model.startswith(f"{PLACEHOLDER}/"):
            shown["thumbnail"] = f"https://huggingface.co/{model}/resolve/main/{place}"
    if teacher := facts["teacher"]:
        if "/" not in teacher and teacher in read_recipes():  # published beside it, as the zoo is
            teacher = f"{model.partition('/')[0]}/{teacher}"
        if "/" in teacher:
            shown |= {"base_model": teacher, "base_model_relation": "finetune"}
    return ModelCardData(
        model_name=model.rpartition("/")[2] if evaluation else None,  # required with results
        library_name=kind.library,
        pipeline_tag=kind.task,
        tags=["hfgen", *tags_of(facts)],
        license=spdx_license,
        datasets=[data["name"] for data in facts["data_licenses"] if "/" in data["name"]] or None,
        eval_results=_results(kind, evaluation) if evaluation else None,
        co2_eq_emissions=_emissions(facts["training"]),
        **shown,
    )


def _results(kind: Model, evaluation: dict[str, Any]) -> list[EvalResult]:
    """Return the metrics for the Hub's `model-index`, each with its protocol."""
    protocol = evaluation["protocol"]
    shared = {
        "task_type": kind.task,
        "dataset_type": protocol["dataset"],
        "dataset_name": protocol["dataset"],
        "dataset_split": protocol["reference_split"],
    }
    if "accuracy" in evaluation:
        settings = {key: protocol[key] for key in ("reference_images", "weights_sha256")}
        accuracy = {"metric_type": "accuracy", "metric_name": "accuracy", "metric_value": evaluation["accuracy"]}
        return [EvalResult(**shared, **accuracy, metric_args=settings)]
    if "restoration" in evaluation:
        return [
            EvalResult(
                **shared,
                metric_type=name,
                metric_name=f"{name.upper()} ({setting['title']})",
                metric_value=setting["made"][name],
                metric_args={"reference_images": protocol["reference_images"], "seed": protocol["seed"]},
            )
            for setting in evaluation["restoration"]
            for name in ("psnr", "ssim")
            if name in setting["made"]
        ]
    names = (
        "num_images", "scheduler", "num_inference_steps", "seed", "guidance_scale", "guidance_interval", "prior",
        "truncation", "dtype",
    )  # fmt: skip
    settings = {name: protocol[name] for name in names if protocol.get(name) is not None}
    kind_of = {name: "judge" if name in protocol["judges"] else "features" for name in evaluation["measures"]}
    return [
        EvalResult(
            **shared,
            metric_type=name,
            metric_name=f"{measure_title(protocol, extractor, name)} ({kind_of[extractor]} {extractor})",
            metric_value=measure["value"],
            metric_args=settings | {f"{kind_of[extractor]}_sha256": sha256_in(protocol, extractor)},
        )
        for extractor, measures in evaluation["measures"].items()
        for name, measure in measures.items()
    ]


def card_text(
    facts: dict[str, Any],
    model: str,
    pictures: Collection[str] = (),
    *,
    spdx_license: str | None = None,
    weights: str | None = None,
    block: str | None = None,
) -> str:
    """Return a model card without its metadata, or only a block of it, such as `description` or `use`.

    Args:
        facts: From `hfgen.publishing.facts.read_run`.
        model: What the example code loads: a Hub id, or a folder.
        pictures: Names of the figures to show.
        spdx_license: Licence of the weights; needed by the whole card.
        weights: See `write_card`.
        block: The name of the block.
    """
    training = facts["training"]
    return render_report(
        facts["kind"].card,
        block=block,
        **facts,
        **in_code(facts),
        again=reproduction(facts),
        model=model,
        pictures=pictures,
        license=spdx_license,
        weights=weights,
        sampler=own_sampler(facts["class_name"], facts["config"]),
        cores=training["threads"] * training["num_processes"],
        energy=_energy(training),
        configuration=yaml.safe_dump(facts["config"], sort_keys=False),
    )


def _emissions(training: dict[str, Any]) -> dict[str, Any] | None:
    """Return the Hub's `co2_eq_emissions`, or None for devices of unknown power."""
    energy = _energy(training)
    return energy and {
        "emissions": float(f"{energy['kwh'] * GRAMS_PER_KWH:.2g}"),
        "source": (
            f"estimated from the training time, {energy['watts']} W per {energy['unit']} and the world's average of "
            f"{GRAMS_PER_KWH} g of CO2 per kWh"
        ),
        "training_type": "pre-training",
        "hardware_used": one_line(training["device"]),
    }


def _energy(training: dict[str, Any]) -> dict[str, Any] | None:
    """Estimate the energy of a training, or None for devices of unknown power."""
    processes = training["num_processes"]
    units = {
        "cpu": (training["threads"] * processes, WATTS_PER_CORE, "core"),
        "cuda": (processes, WATTS_PER_GPU, "GPU"),
    }
    if training["device_type"] not in units:
        return None
    count, watts, unit = units[training["device_type"]]
    return {"kwh": count * watts * training["train_seconds"] / 3.6e6, "watts": watts, "unit": unit}
