"""The page of a model on the Hub, written from its run, never by hand: what it is, how good, how it was made."""

import json
import math
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open

from hfgen.config import own_sampler
from hfgen.data import public_name
from hfgen.errors import UserError
from hfgen.figures import save_film
from hfgen.files import complete_or_absent
from hfgen.loading import INDEX, load
from hfgen.metrics.judge import UPSCALE
from hfgen.records import CONFIG_FILE, RUN_FILE
from hfgen.report import (
    FLOORS,
    MEASURES,
    PAGE,
    PICTURES,
    RECORD,
    accuracy_text,
    duration,
    number,
    sampler_text,
    table,
    with_std,
)
from hfgen.sampling import SHORT_NAMES, film, is_conditional

README = "README.md"
FIGURES = "figures"
SAMPLES, CURVES, FILM = "samples.png", "training_curves.png", "film.gif"
FILM_IMAGES, FILM_FRAMES = 4, 20  # what keeps it below half a megabyte
WATTS_PER_CORE, WATTS_PER_GPU = 10, 400  # assumed, for the estimate of energy
STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")  # of batch normalisation: no parameters
# What concerns the machine or the publishing, not the model.
NOT_SHOWN = {
    "cache_dir",
    "hub_license",
    "hub_model_id",
    "hub_private_repo",
    "hub_strategy",
    "output_dir",
    "push_to_hub",
    "report_to",
    "resume_from_checkpoint",
}

USE_OF_DDPM = """\
from diffusers import DiffusionPipeline{imports}

pipe = DiffusionPipeline.from_pretrained("{model}")
{scheduler}images = pipe(batch_size=4, num_inference_steps={steps}).images
images[0].save("image.png")"""
USE_OF_CLASS_CONDITIONAL = """\
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{model}", trust_remote_code=True)
guidance = {{"guidance_scale": {guidance_scale}, "guidance_interval": {guidance_interval}}}
images = pipe(class_labels={labels}, num_inference_steps={num_inference_steps}, **guidance).images
images[0].save("image.png")"""
USE_OF_CLASSIFIER = """\
import PIL.Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

processor = AutoImageProcessor.from_pretrained("{model}")
model = AutoModelForImageClassification.from_pretrained("{model}")
inputs = processor(PIL.Image.open("image.png").convert("{mode}"), return_tensors="pt")
print(model.config.id2label[model(**inputs).logits.argmax().item()])"""


@dataclass(frozen=True)
class Kind:
    """What a page says of every model of one kind.

    Attributes:
        library: The library that loads it.
        task: The Hub's name of what it does (`pipeline_tag`).
        tags: Further words to find it by.
        description: One sentence, with the source; `{method}` is one of `METHODS`.
        picture: What its last picture in training shows.
        limits: What it cannot do.
    """

    library: str
    task: str
    tags: tuple[str, ...]
    description: str
    picture: str
    limits: str


DDPM = Kind(
    library="diffusers",
    task="unconditional-image-generation",
    tags=("unconditional",),
    description="An unconditional {method}: it draws images by removing noise step by step.",
    picture="Images that it draws ({sampler}, the first of seed 0), not selected.",
    limits=(
        "It draws {size} images like those of {data}, nothing else, and cannot be told what to draw. It may miss what "
        "is rare in them, and repeats what is wrong or biased."
    ),
)
CLASS_CONDITIONAL = Kind(
    library="diffusers",
    task="unconditional-image-generation",  # what the Hub calls everything that is not told in words what to draw
    tags=("class-conditional", "classifier-free-guidance"),
    description=(
        "A {method} that draws the class it is asked for, by classifier-free guidance ([Ho and Salimans "
        "2022](https://arxiv.org/abs/2207.12598))."
    ),
    picture="Images of each class ({sampler}, the first of seed 0), not selected.",
    limits=(
        "It draws {size} images of the classes of {data}, nothing else. Guidance makes them clearer and less varied. "
        "It may miss what is rare in a class, and repeats what is wrong or biased."
    ),
)
CLASSIFIER = Kind(
    library="transformers",
    task="image-classification",
    tags=("judge",),
    description="An image classifier, in whose features and by whose decisions hfgen judges generated images.",
    picture="What it takes the test images of each class for, and its most confident mistakes.",
    limits="It knows {size} images like those of {data}, and takes whatever else it is shown for one of them.",
)
METHODS = {  # by what is predicted: tags, and the method with its source
    "flow_prediction": (
        ("rectified-flow",),
        "rectified flow ([Liu, Gong and Liu 2023](https://arxiv.org/abs/2209.03003))",
    ),
    "diffusion": (
        ("ddpm", "diffusion"),
        "denoising diffusion model ([Ho, Jain and Abbeel 2020](https://arxiv.org/abs/2006.11239))",
    ),
}
KINDS = {
    "DDPMPipeline": DDPM,
    "ClassConditionalDiffusionPipeline": CLASS_CONDITIONAL,
    "ResNetForImageClassification": CLASSIFIER,
    "RegNetForImageClassification": CLASSIFIER,
}


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
    if facts["evaluation"] and folder != run:
        for name in (RECORD, PAGE):
            _copy(run / name, folder / name)
        for picture in sorted((run / PICTURES).glob("*.png")):
            _copy(picture, folder / PICTURES / picture.name)
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


def class_name_of(folder: Path) -> str | None:
    """Return the name of the class that a folder's model is of, or None if it holds no model."""
    for file, key in ((INDEX, "_class_name"), ("config.json", "architectures")):
        if (folder / file).is_file():
            named = json.loads((folder / file).read_text()).get(key)
            return named[-1] if isinstance(named, list) else named
    return None


def read_run(run: Path) -> dict[str, Any]:
    """Collect what a page says of a run; nothing in it names a place on this machine.

    Raises:
        UserError: if the folder holds no finished run, or one that no page can be written of.
    """
    class_name = class_name_of(run)
    if class_name is None or not (run / RUN_FILE).is_file() or not (run / CONFIG_FILE).is_file():
        raise UserError(f"{run} holds no finished run of hfgen train")
    if class_name not in KINDS:
        raise UserError(f"{run} holds a {class_name}, of which hfgen can write no page")
    config = yaml.safe_load((run / CONFIG_FILE).read_text())
    folder = config["train_data_dir"]
    training = json.loads((run / RUN_FILE).read_text())
    shown = {name: value for name, value in config.items() if name not in NOT_SHOWN and value not in (None, [])}
    evaluation = json.loads((run / RECORD).read_text()) if (run / RECORD).is_file() else None
    return {
        "class_name": class_name,
        "hub_model_id": config["hub_model_id"],
        "kind": KINDS[class_name],
        "config": {name: _public(value) for name, value in shown.items()},
        "data": Path(folder).name if folder else public_name(config["dataset_name"]),
        "training": training | {"command": _public_command(training["command"])},
        "evaluation": evaluation,
        **_network(run, class_name),
    }


def _network(run: Path, class_name: str) -> dict[str, Any]:
    """Return the number of parameters, the size and channels of the images, and the classes if there are any."""
    labels: list[str] = []
    if KINDS[class_name].library == "diffusers":
        config = json.loads((run / "unet" / "config.json").read_text())
        size, channels = config["sample_size"], config["in_channels"]
        height, width = (size, size) if isinstance(size, int) else size
        weights = run / "unet" / "diffusion_pytorch_model.safetensors"
        labels = list(json.loads((run / INDEX).read_text()).get("id2label", {}).values())
    else:
        size = json.loads((run / "preprocessor_config.json").read_text())["size"]
        channels = json.loads((run / "config.json").read_text())["num_channels"]
        height, width = size["height"] // UPSCALE, size["width"] // UPSCALE
        weights = run / "model.safetensors"
    with safe_open(weights, "pt") as file:
        names = [name for name in file.keys() if not name.endswith(STATISTICS)]  # noqa: SIM118
        parameters = sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    kind = "grey" if channels == 1 else "RGB"
    return {"parameters": parameters, "size": f"{kind} {height}×{width}-pixel", "channels": channels, "labels": labels}


def _public(value: Any) -> Any:
    """Take the place on this machine from a path, and leave everything else as it is."""
    if not isinstance(value, str):
        return value
    path = Path(value.removeprefix("file://"))
    return path.name if path.is_absolute() or value.startswith("~") or ".." in path.parts else value


def _public_command(command: str) -> str:
    words: list[str] = []
    left_out = False
    for word in shlex.split(command):
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if flag:
            left_out = flag.removeprefix("--") in NOT_SHOWN - {"output_dir"}
        if not left_out:
            words.append(f"{flag}{equals}{_public(value)}")
    return shlex.join(words)


def _collect_pictures(run: Path, folder: Path, facts: dict[str, Any]) -> set[str]:
    """Put the pictures of a page beside it, and return their names."""
    samples = sorted((run / "samples").glob("step-*.png"))
    if samples:
        _copy(samples[-1], folder / FIGURES / SAMPLES)
    if facts["kind"].library == "diffusers":
        _draw_film(run, facts["config"], folder / FIGURES / FILM)
    if folder != run and (run / FIGURES / CURVES).exists():
        _copy(run / FIGURES / CURVES, folder / FIGURES / CURVES)
    return {path.name for path in (folder / FIGURES).iterdir()} if (folder / FIGURES).exists() else set()


def _draw_film(run: Path, config: dict[str, Any], path: Path) -> None:
    pipeline = load(str(run))
    sampler = own_sampler(config, is_conditional(pipeline))
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
        tags=["hfgen", *kind.tags, *(_method(facts)[0] if kind.library == "diffusers" else ())],
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
    names = ("num_images", "scheduler", "num_inference_steps", "seed", "guidance_scale", "guidance_interval")
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
        f"{kind.description.format(method=_method(facts)[1])} Trained on {facts['data']} with hfgen: "
        f"{facts['size']} images, {facts['parameters']:,} parameters.",
    ]
    if SAMPLES in pictures:
        caption = kind.picture.format(sampler=_sampler(facts))
        lines += ["", f"![{caption}]({FIGURES}/{SAMPLES})", "", f"*{caption}*"]
    lines += ["", "## Use", "", "```python", *_use(facts, model).splitlines(), "```"]
    if kind.library == "diffusers":
        lines += ["", f"`hfgen sample {model} --output grid.png` draws a grid, with any scheduler that fits."]
    lines += ["", "## How good it is", *_quality(facts)]
    if FILM in pictures:
        lines += ["", "## From noise to images", "", f"![the denoising film]({FIGURES}/{FILM})"]
    lines += ["", "## How it was trained", *_training(facts)]
    if CURVES in pictures:
        lines += ["", f"![losses and gradient norms]({FIGURES}/{CURVES})"]
    return [*lines, "", "## Limits", "", kind.limits.format(size=facts["size"], data=facts["data"])]


def _use(facts: dict[str, Any], model: str) -> str:
    if facts["kind"] is CLASSIFIER:
        return USE_OF_CLASSIFIER.format(model=model, mode="L" if facts["channels"] == 1 else "RGB")
    config = facts["config"]
    if facts["kind"] is CLASS_CONDITIONAL:
        sampler = own_sampler(config, conditional=True)
        return USE_OF_CLASS_CONDITIONAL.format(
            model=model, labels=json.dumps(facts["labels"][:2], ensure_ascii=False), **sampler
        )
    if _method(facts) is METHODS["flow_prediction"]:  # its own scheduler is the one for it
        imports, scheduler, steps = "", "", config["num_inference_steps"]
    elif config["scheduler"] in ("ddim", "dpmsolver"):  # `DDPMPipeline` takes no others but its own
        class_name, steps = SHORT_NAMES[config["scheduler"]], config["num_inference_steps"]
        imports = f", {class_name}"
        scheduler = f"pipe.scheduler = {class_name}.from_config(pipe.scheduler.config)\n"
    else:
        imports, scheduler = "", ""
        steps = min(max(config["num_inference_steps"], 100), config["num_train_timesteps"])
    return USE_OF_DDPM.format(model=model, imports=imports, scheduler=scheduler, steps=steps)


def _method(facts: dict[str, Any]) -> tuple[tuple[str, ...], str]:
    return METHODS.get(facts["config"].get("prediction_type"), METHODS["diffusion"])


def _sampler(facts: dict[str, Any]) -> str:
    return sampler_text(own_sampler(facts["config"], facts["kind"] is CLASS_CONDITIONAL))


def _quality(facts: dict[str, Any]) -> list[str]:
    evaluation = facts["evaluation"]
    if evaluation is None:
        return ["", "It has not been measured. `hfgen evaluate` does."]
    protocol = evaluation["protocol"]
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
        *table(header, rows),
        "",
        *_conditional(evaluation, judge),
        f"**Memorisation**: {evaluation['copies_of_training_images']:,} of the images are training images to the "
        "pixel.",
    ]
    if found := evaluation["memorization"].get(judge):
        share = found["generated"]
        lines[-1] += (
            f" {share['nearer_to_training']:.1%} ± {share['nearer_to_training_std']:.1%} are nearer to a training "
            "image than to a test image; 50 % or less is no sign of copying."
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
