"""The page of a model on the Hub, written from its run, never by hand: what it is, how good, how it was made."""

import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hfgen.evaluation.report import (
    ANALYSIS_PAGE,
    ANALYSIS_PICTURES,
    FLOORS,
    MEASURES,
    PAGE,
    REPORTS,
    accuracy_text,
    bounds_table,
    bounds_text,
    careful,
    nearer_explained,
    nearer_text,
    restoration_table,
    sampler_text,
)
from hfgen.families import own_sampler
from hfgen.publishing.facts import read_run
from hfgen.publishing.kinds import TRANSLATOR, Kind, sampler_of, tags_and_description, use_of
from hfgen.runs.checkpoints import list_steps
from hfgen.runs.folder import ANIMATION, CARD, CLASSES, CURVES, FIGURES, TIMELAPSE
from hfgen.utils.errors import UserError
from hfgen.utils.files import complete_or_absent
from hfgen.utils.markdown import code, code_cell, duration, escaped, fenced, number, table, with_std
from hfgen.utils.untrusted import check_content, own_file

WALL = ["# Models", "", "Made by `hfgen card`: "]
SAMPLES_PICTURE = "samples.png"
LATENTS = {  # pictures of the task, and what they show
    "interpolations.png": "Between two random latents, on a straight line and along an arc",
    "truncations.png": "The same latents, drawn from narrower or wider parts of the normal distribution",
    "plane.png": "The plane of the two latent dimensions, at points that divide the distribution into equal masses",
}
WATTS_PER_CORE, WATTS_PER_GPU = 10, 400  # assumed, for the estimate of energy


def write_card(run: Path, folder: Path, *, repo_id: str | None = None, spdx_license: str) -> Path:
    """Write the page of a finished run, `README.md`, and its pictures.

    Args:
        run: The run folder.
        folder: Where to; it may be the run itself.
        repo_id: The Hub id under which the model will be found, for the code that shows its use; by default the one
            that it was trained for, or else a placeholder.
        spdx_license: Of the weights, as an SPDX identifier in lower case, `apache-2.0` for instance.

    Returns:
        The path of the page.

    Raises:
        UserError: if the folder holds no finished run, or a file that is not what its name says.
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
    try:
        metadata, page = _metadata(facts, model, spdx_license).to_yaml(), _page(facts, model, pictures)
    except (KeyError, TypeError) as error:  # of a record that lacks something, or has it otherwise
        raise UserError(
            f"the records of {run} are not as this hfgen writes them ({type(error).__name__}: {error}); train, "
            "evaluate or analyse it again"
        ) from error
    text = "\n".join(["---", metadata, "---", "", *page])
    card = ModelCard(text + "\n")
    with complete_or_absent(folder / CARD) as temporary:
        card.save(temporary)
    return folder / CARD


def _id_of(run: Path, hub_model_id: object) -> str:
    """Return the Hub id that a run was trained for, or a placeholder, which Python and Markdown take for a name."""
    if isinstance(hub_model_id, str) and re.fullmatch(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+", hub_model_id):
        return hub_model_id
    return f"user/{re.sub(r'[^A-Za-z0-9._-]+', '-', run.resolve().name)}"


def gallery_folder(gallery: Path, run: Path) -> Path:
    """Return the folder of a run's page in a gallery.

    Raises:
        UserError: if pages that are none of hfgen's would be written over.
    """
    folder = gallery / run.resolve().name
    for page, is_own in ((gallery / CARD, _is_wall), (folder / CARD, _is_page)):
        if page.exists() and not is_own(page):
            raise UserError(f"{page} is not by hfgen, and would be written over; name another --gallery")
    return folder


def _is_wall(page: Path) -> bool:
    return page.read_text(encoding="utf-8", errors="replace").startswith("\n".join(WALL))


def _is_page(page: Path) -> bool:
    """Tell whether hfgen wrote a page."""
    try:
        card = ModelCard.load(page)
    except (ValueError, OSError, yaml.YAMLError):
        return False
    return "hfgen" in (card.data.tags or [])


def write_gallery(folder: Path) -> Path:
    """Write `README.md` of a folder of pages: a wall of their pictures, each with its first measure.

    Returns:
        The path of the page.
    """
    lines = [
        *WALL[:-1],
        WALL[-1] + "each folder is what the model's page on the Hub shows. The images are the first of "
        "seed 0, not selected.",
    ]
    for page in sorted(folder.glob(f"*/{CARD}")):
        if not _is_page(page):
            continue
        name, place = escaped(page.parent.name), quote(page.parent.name)
        data = ModelCard.load(page).data
        lines += ["", f"## [{name}]({place}/{CARD})"]
        if results := data.eval_results:
            best = results[0]
            measure = f"{best.dataset_name}: {best.metric_name} {number(best.metric_value)}"
            lines += ["", escaped(measure)]
        if (page.parent / FIGURES / SAMPLES_PICTURE).exists():
            lines += ["", f"![images of {name}]({place}/{FIGURES}/{SAMPLES_PICTURE})"]
    with complete_or_absent(folder / CARD) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    return folder / CARD


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file, completely or not at all."""
    with complete_or_absent(target) as temporary:
        shutil.copyfile(source, temporary)


def _pictures_of(run: Path) -> dict[str, str]:
    """Return the pictures of a page that a run holds, each with the name that it has in the run."""
    samples = list_steps(own_file(run, "samples"), ".png")
    found = {f"{FIGURES}/{SAMPLES_PICTURE}": f"samples/{samples[-1].name}"} if samples else {}
    names = [f"{FIGURES}/{name}" for name in (CURVES, CLASSES, ANIMATION, TIMELAPSE, *LATENTS)]
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


def _metadata(facts: dict[str, Any], model: str, spdx_license: str) -> ModelCardData:
    kind, evaluation = facts["kind"], facts["evaluation"]
    return ModelCardData(
        model_name=model.rpartition("/")[2] if evaluation else None,  # which belongs to the results
        library_name=kind.library,
        pipeline_tag=kind.task,
        tags=["hfgen", *tags_and_description(facts)[0]],
        license=spdx_license,
        datasets=[facts["data"]] if "/" in facts["data"] else None,
        eval_results=_results(kind, evaluation) if evaluation else None,
    )


def _results(kind: Kind, evaluation: dict[str, Any]) -> list[EvalResult]:
    """Return the measures as the Hub's `model-index` has them, each with the protocol by which it was measured."""
    protocol = evaluation["protocol"]
    shared = {
        "task_type": kind.task,
        "dataset_type": protocol["dataset"],
        "dataset_name": protocol["dataset"],
        "dataset_split": protocol["reference_split"],
    }
    if "accuracy" in evaluation:
        asked = {key: protocol[key] for key in ("reference_images", "weights_sha256")}
        accuracy = {"metric_type": "accuracy", "metric_name": "accuracy", "metric_value": evaluation["accuracy"]}
        return [EvalResult(**shared, **accuracy, metric_args=asked)]
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
        "truncation",
    )  # fmt: skip
    asked = {name: protocol[name] for name in names if protocol.get(name) is not None}
    return [
        EvalResult(
            **shared,
            metric_type=name,
            metric_name=f"{title} (judge {judge})",
            metric_value=measures[name]["value"],
            metric_args=asked | {"judge_sha256": protocol["judges"][judge]},
        )
        for judge, measures in evaluation["measures"].items()
        for name, (title, _) in MEASURES.items()
    ]


def _page(facts: dict[str, Any], model: str, pictures: set[str]) -> list[str]:
    kind = facts["kind"]
    lines = [
        f"# {escaped(model.rpartition('/')[2])}",
        "",
        f"{tags_and_description(facts)[1]} Trained on {escaped(facts['data'])} with hfgen: "
        f"{facts['size']} images, {facts['parameters']:,} parameters.",
    ]
    if SAMPLES_PICTURE in pictures:
        caption = kind.picture.format(sampler=escaped(sampler_of(facts)))
        lines += ["", f"![{caption}]({FIGURES}/{SAMPLES_PICTURE})", "", f"*{caption}*"]
    lines += ["", "## Use", "", *fenced(use_of(facts, model), "python")]
    if kind.library == "diffusers":
        lines += ["", _command(facts, model)]
    lines += ["", "## How good it is", *_quality(facts)]
    if facts["analysis"]:
        lines += ["", "## What its latents keep", *_latents(facts["analysis"])]
    if ANIMATION in pictures:
        lines += ["", "## From noise to images", "", f"![the denoising film]({FIGURES}/{ANIMATION})"]
    if shown := [name for name in LATENTS if name in pictures]:
        lines += ["", "## Between and around latents"]
        for name in shown:
            lines += ["", f"{LATENTS[name]}:", "", f"![{LATENTS[name]}]({FIGURES}/{name})"]
    lines += ["", "## How it was trained", *_training(facts)]
    if CURVES in pictures:
        lines += ["", f"![losses and gradient norms]({FIGURES}/{CURVES})"]
    if CLASSES in pictures:
        lines += ["", f"![share of the images that a judge takes for each class, by step]({FIGURES}/{CLASSES})"]
    if TIMELAPSE in pictures:
        lines += ["", f"![samples in the course of training]({FIGURES}/{TIMELAPSE})"]
    return [*lines, "", "## Limits", "", kind.limits.format(size=facts["size"], data=escaped(facts["data"]))]


def _command(facts: dict[str, Any], model: str) -> str:
    if facts["kind"] is TRANSLATOR:
        noise = " --noise_std 0.1" if facts["config"].get("noise_level_input") else ""
        return (
            f"`hfgen translate {model} --input pictures --output made{noise}` takes a folder of pictures of any size."
        )
    sampler = own_sampler(facts["class_name"], facts["config"])
    flags = "".join(
        f" --{name} {sampler[name]}"  # the others are saved with the model
        for name in ("scheduler", "num_inference_steps", "guidance_scale")
        if name in sampler
    )
    return f"`hfgen sample {model}{flags} --output grid.png` draws a grid."


def _quality(facts: dict[str, Any]) -> list[str]:
    evaluation = facts["evaluation"]
    if evaluation is None:
        return ["", "It has not been measured. `hfgen evaluate` does."]
    protocol = evaluation["protocol"]
    if "restoration" in evaluation:
        return [
            "",
            f"What it is given → what it makes of that, of {protocol['reference_images']:,} images of the split "
            f"{code(protocol['reference_split'])} of {escaped(protocol['dataset'])} ([pictures]({PAGE})).",
            *careful(evaluation["judge_accuracy"]),
            *restoration_table(evaluation),
        ]
    if "accuracy" in evaluation:
        return [
            "",
            f"Right on {accuracy_text(evaluation)} of the {protocol['reference_images']:,} images of the split "
            f"{code(protocol['reference_split'])} of {escaped(protocol['dataset'])}. "
            f"[The accuracy of each class]({PAGE}).",
        ]
    judge, measures = next(iter(evaluation["measures"].items()))
    floors = evaluation["floors"][judge]
    header = ["measure", "generated", *(f"real: {FLOORS[name]}" for name in floors), "better"]
    rows = [
        [title, with_std(measures[name]), *(number(floor[name]) for floor in floors.values()), better]
        for name, (title, better) in MEASURES.items()
    ]
    lines = [
        "",
        f"{protocol['num_images']:,} images ({escaped(sampler_text(protocol))}, seed {protocol['seed']}) compared "
        f"with the {protocol['reference_images']:,} images of the split "
        f"{code(protocol['reference_split'])} of {escaped(protocol['dataset'])}, in the features of the classifier "
        f"{code(judge)}, "
        f"beside what real images reach. These are no Inception features, and no FID. "
        f"[The whole report]({PAGE}) has the protocol, the classes and pictures.",
        *careful(evaluation["judge_accuracy"]),
        *table(header, rows),
        "",
        *_conditional(evaluation, judge),
        f"**Memorisation**: {evaluation['copies_of_training_images']:,} of the images are training images to the "
        "pixel.",
    ]
    if found := evaluation["memorization"].get(judge):
        share = found["generated"]
        lines[-1] += (
            f" {nearer_text(share)} are nearer to a training image than to any of as many test images. "
            + nearer_explained([share])
        )
    else:
        lines[-1] += " The reference images were seen in training, so that nothing more can be said."
    return lines


def _conditional(evaluation: dict[str, Any], judge: str) -> list[str]:
    """Say how many of the images show the class that they were asked for, where they were asked for one."""
    if judge not in evaluation["conditional"]:
        return []
    shown, real = accuracy_text(evaluation["conditional"][judge]), evaluation["judge_accuracy"].get(judge)
    beside = f", and is right on {accuracy_text(real)} of the real ones" if real else ""
    return [f"**The class asked for**: {code(judge)} finds it in {shown} of the images{beside}.", ""]


def _latents(analysis: dict[str, Any]) -> list[str]:
    protocol = analysis["protocol"]
    return [
        "",
        f"![images above their reconstructions]({ANALYSIS_PICTURES}/reconstructions.png)",
        "",
        f"Images of the split {code(protocol['reference_split'])} of {escaped(protocol['dataset'])} above their "
        f"reconstructions. {bounds_text(protocol)} {analysis['active_units']} of {protocol['latent_dim']} latent "
        "dimensions are active. "
        f"[The whole analysis]({ANALYSIS_PAGE}) has interpolations and the layout of the latents.",
        *bounds_table(analysis),
    ]


def _training(facts: dict[str, Any]) -> list[str]:
    training = facts["training"]
    on_cpu = training["device_type"] == "cpu"
    cores = training["threads"] * training["num_processes"]
    units, watts, unit = (
        (cores, WATTS_PER_CORE, "core") if on_cpu else (training["num_processes"], WATTS_PER_GPU, "GPU")
    )
    energy = [f"about {units * watts * training['train_seconds'] / 3.6e6:.2g} kWh, if it is {watts} W a {unit}"]
    known = training["device_type"] in ("cpu", "cuda")  # of others, such as a laptop's, nobody here knows the power
    machine = escaped(training["device"]) + (f", {cores} thread" + "s" * (cores > 1) if on_cpu else "")
    rows = [
        ["command", code_cell(training["command"])],
        ["hardware", f"{machine}, {training['num_processes']} process" + "es" * (training["num_processes"] > 1)],
        ["precision", escaped({"no": "float32"}.get(training["mixed_precision"], training["mixed_precision"]))],
        ["time", f"{duration(training['train_seconds'])}, {training['images_per_second']:,} images a second"],
        ["length", f"{training['optimizer_steps']:,} optimizer steps, {training['images_seen']:,} images"],
        *([["energy", *energy]] if known else []),
        ["seed", escaped(facts["config"]["seed"])],
        ["versions", escaped(", ".join(f"{name} {version}" for name, version in training["versions"].items()))],
    ]
    return [
        *(
            line
            for problem in training.get("problems", [])
            for line in ("", f"**Something went wrong**: {escaped(problem)}.")
        ),
        *table(["", ""], rows),
        "",
        "<details><summary>The configuration</summary>",
        "",
        *fenced(yaml.safe_dump(facts["config"], sort_keys=False), "yaml"),
        "",
        "</details>",
    ]
