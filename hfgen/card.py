"""The page of a model on the Hub, written from its run, never by hand: what it is, how good, how it was made."""

import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hfgen.config.samplers import own_sampler
from hfgen.figures import save_film
from hfgen.files import complete_or_absent
from hfgen.loading import load
from hfgen.model_kinds import CLASS_CONDITIONAL, DDPM, TRANSLATOR, Kind, sampler_of, tags_and_description, use_of
from hfgen.report import (
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
    duration,
    nearer_explained,
    nearer_text,
    number,
    restoration_table,
    sampler_text,
    table,
    with_std,
)
from hfgen.run_facts import read_run
from hfgen.sampling import film

README = "README.md"
FIGURES = "figures"
SAMPLES, CURVES, FILM = "samples.png", "training_curves.png", "film.gif"
CLASSES, TRAINING_FILM = "classes.png", "training.gif"
LATENTS = {  # pictures of the task, and what they show
    "interpolations.png": "Between two random latents, on a straight line and along an arc",
    "truncations.png": "The same latents, drawn from narrower or wider parts of the normal distribution",
    "plane.png": "The plane of the two latent dimensions, at points that divide the distribution into equal masses",
}
FILM_IMAGES, FILM_FRAMES = 4, 20  # what keeps it below half a megabyte
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
        UserError: if the folder holds no finished run.
    """
    facts = read_run(run)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = _collect_pictures(run, folder, facts)
    if folder != run:
        for name in REPORTS:
            for file in sorted((run / name).glob("*.png")) if (run / name).is_dir() else [run / name]:
                if file.exists():
                    _copy(file, folder / file.relative_to(run))
    model = repo_id or facts["hub_model_id"] or f"user/{run.resolve().name}"
    text = "\n".join(
        ["---", _metadata(facts, model, spdx_license).to_yaml(), "---", "", *_page(facts, model, pictures)]
    )
    card = ModelCard(text + "\n")
    with complete_or_absent(folder / README) as temporary:
        card.save(temporary)
    return folder / README


def write_gallery(folder: Path) -> Path:
    """Write `README.md` of a folder of pages: a wall of their pictures, each with its first measure.

    Returns:
        The path of the page.
    """
    lines = [
        "# Models",
        "",
        "Made by `hfgen card`: each folder is what the model's page on the Hub shows. The images are the first of "
        "seed 0, not selected.",
    ]
    for page in sorted(folder.glob(f"*/{README}")):
        name, place = page.parent.name, quote(page.parent.name)
        data = ModelCard.load(page).data
        lines += ["", f"## [{name}]({place}/{README})"]
        if results := data.eval_results:
            best = results[0]
            lines += ["", f"{best.dataset_name}: {best.metric_name} {number(best.metric_value)}"]
        if (page.parent / FIGURES / SAMPLES).exists():
            lines += ["", f"![images of {name}]({place}/{FIGURES}/{SAMPLES})"]
    with complete_or_absent(folder / README) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    return folder / README


def _collect_pictures(run: Path, folder: Path, facts: dict[str, Any]) -> set[str]:
    """Put the pictures of a page beside it, and return their names."""
    samples = sorted((run / "samples").glob("step-*.png"))
    if samples:
        _copy(samples[-1], folder / FIGURES / SAMPLES)
    if facts["kind"] in (DDPM, CLASS_CONDITIONAL):
        _draw_film(run, facts["config"], folder / FIGURES / FILM)
    for name in (CURVES, CLASSES, TRAINING_FILM, *LATENTS):
        if folder != run and (run / FIGURES / name).exists():
            _copy(run / FIGURES / name, folder / FIGURES / name)
    return {path.name for path in (folder / FIGURES).iterdir()} if (folder / FIGURES).exists() else set()


def _draw_film(run: Path, config: dict[str, Any], path: Path) -> None:
    pipeline = load(str(run))
    sampler = own_sampler(type(pipeline).__name__, config)
    save_film(*film(pipeline, num_images=FILM_IMAGES, num_frames=FILM_FRAMES, **sampler), path)


def _copy(source: Path, target: Path) -> None:
    with complete_or_absent(target) as temporary:
        shutil.copyfile(source, temporary)


def _metadata(facts: dict[str, Any], model: str, spdx_license: str) -> ModelCardData:
    kind, evaluation = facts["kind"], facts["evaluation"]
    return ModelCardData(
        model_name=model.rpartition("/")[2],
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
        f"# {model.rpartition('/')[2]}",
        "",
        f"{tags_and_description(facts)[1]} Trained on {facts['data']} with hfgen: "
        f"{facts['size']} images, {facts['parameters']:,} parameters.",
    ]
    if SAMPLES in pictures:
        caption = kind.picture.format(sampler=sampler_of(facts))
        lines += ["", f"![{caption}]({FIGURES}/{SAMPLES})", "", f"*{caption}*"]
    lines += ["", "## Use", "", "```python", *use_of(facts, model).splitlines(), "```"]
    if kind.library == "diffusers":
        lines += ["", _command(facts, model)]
    lines += ["", "## How good it is", *_quality(facts)]
    if facts["analysis"]:
        lines += ["", "## What its latents keep", *_latents(facts["analysis"])]
    if FILM in pictures:
        lines += ["", "## From noise to images", "", f"![the denoising film]({FIGURES}/{FILM})"]
    if shown := [name for name in LATENTS if name in pictures]:
        lines += ["", "## Between and around latents"]
        for name in shown:
            lines += ["", f"{LATENTS[name]}:", "", f"![{LATENTS[name]}]({FIGURES}/{name})"]
    lines += ["", "## How it was trained", *_training(facts)]
    if CURVES in pictures:
        lines += ["", f"![losses and gradient norms]({FIGURES}/{CURVES})"]
    if CLASSES in pictures:
        lines += ["", f"![share of the images that a judge takes for each class, by step]({FIGURES}/{CLASSES})"]
    if TRAINING_FILM in pictures:
        lines += ["", f"![samples in the course of training]({FIGURES}/{TRAINING_FILM})"]
    return [*lines, "", "## Limits", "", kind.limits.format(size=facts["size"], data=facts["data"])]


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
            f"`{protocol['reference_split']}` of {protocol['dataset']} ([pictures]({PAGE})).",
            *careful(evaluation["judge_accuracy"]),
            *restoration_table(evaluation),
        ]
    if "accuracy" in evaluation:
        return [
            "",
            f"Right on {accuracy_text(evaluation)} of the {protocol['reference_images']:,} images of the split "
            f"`{protocol['reference_split']}` of {protocol['dataset']}. [The accuracy of each class]({PAGE}).",
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
        f"{protocol['num_images']:,} images ({sampler_text(protocol)}, seed {protocol['seed']}) compared with "
        f"the {protocol['reference_images']:,} images of the split "
        f"`{protocol['reference_split']}` of {protocol['dataset']}, in the features of the classifier `{judge}`, "
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
    return [f"**The class asked for**: `{judge}` finds it in {shown} of the images{beside}.", ""]


def _latents(analysis: dict[str, Any]) -> list[str]:
    protocol = analysis["protocol"]
    return [
        "",
        f"![images above their reconstructions]({ANALYSIS_PICTURES}/reconstructions.png)",
        "",
        f"Images of the split `{protocol['reference_split']}` of {protocol['dataset']} above their reconstructions. "
        f"{bounds_text(protocol)} {analysis['active_units']} of {protocol['latent_dim']} latent dimensions are "
        "active. "
        f"[The whole analysis]({ANALYSIS_PAGE}) has interpolations and the layout of the latents.",
        *bounds_table(analysis),
    ]


def _training(facts: dict[str, Any]) -> list[str]:
    training = facts["training"]
    on_gpu = training["device_type"] != "cpu"
    cores = training["threads"] * training["num_processes"]
    watts = training["num_processes"] * WATTS_PER_GPU if on_gpu else cores * WATTS_PER_CORE
    energy = watts * training["train_seconds"] / 3.6e6
    assumed = f"{WATTS_PER_GPU} W a GPU" if on_gpu else f"{WATTS_PER_CORE} W a core"
    machine = training["device"] if on_gpu else f"{training['device']}, {cores} thread" + "s" * (cores > 1)
    rows = [
        ["command", f"`{training['command']}`"],
        ["hardware", f"{machine}, {training['num_processes']} process" + "es" * (training["num_processes"] > 1)],
        ["precision", {"no": "float32"}.get(training["mixed_precision"], training["mixed_precision"])],
        ["time", f"{duration(training['train_seconds'])}, {training['images_per_second']:,} images a second"],
        ["length", f"{training['optimizer_steps']:,} optimizer steps, {training['images_seen']:,} images"],
        ["energy", f"about {energy:.2g} kWh, if it is {assumed}"],
        ["seed", str(facts["config"]["seed"])],
        ["versions", ", ".join(f"{name} {version}" for name, version in training["versions"].items())],
    ]
    return [
        *(line for problem in training.get("problems", []) for line in ("", f"**Something went wrong**: {problem}.")),
        *table(["", ""], rows),
        "",
        "<details><summary>The configuration</summary>",
        "",
        "```yaml",
        *yaml.safe_dump(facts["config"], sort_keys=False).splitlines(),
        "```",
        "",
        "</details>",
    ]
