"""`hfgen demo`: a web page on which models draw in the visitor's browser, without a server."""

import base64
import gzip
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from hfgen.config.commands import DemoConfig, ExportConfig
from hfgen.data.images import cache_folder
from hfgen.evaluation.results import read_record
from hfgen.families import family_of, model_of
from hfgen.pipelines.loading import file_beside, load
from hfgen.runs.folder import EVALUATION
from hfgen.runtimes.networks import networks_of
from hfgen.runtimes.sampler_table import sampler_table
from hfgen.runtimes.write import MODEL_FILE, export_pipeline, require_onnx
from hfgen.sampling.edit import editing_pipeline
from hfgen.sampling.latents import first_class
from hfgen.sampling.sample import image_shape_of, network_of, require_pixels
from hfgen.sampling.schedulers import learnt_steps
from hfgen.utils.errors import UserError, first_line
from hfgen.utils.files import complete_or_absent, local_path, parts_complete_or_absent
from hfgen.utils.markdown import TEMPLATES, number, render, with_std

PAGE, SCRIPT, FILES = "index.html", "demo.js", "files"
MARK = '<meta name="generator" content="hfgen demo">'
VERSION = "1.30.0"  # of onnxruntime-web
RUNTIME_SCRIPT = "ort.wasm.min.js"
RUNTIME_PARTS = ("ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
CDN = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{VERSION}/dist/"
STEPS = (2, 4, 8, 16, 32)  # of diffusion models, besides their own
TRAVERSED = 2.0  # latents from −2 to 2, in the order of the dimensions


def write_site(config: DemoConfig, source: str | None = None) -> Path:
    """Write the page of some models; return its path.

    Args:
        config: Models, folder and options.
        source: Name of the only model in commands on the page; by default that in the configuration.

    Raises:
        UserError: before anything is written, if a model cannot be loaded or exported, two have the same name, the
            runtime or a package is missing, or the folder holds anything but an earlier page.
    """
    folder = Path(config.output)
    _check_folder(folder)
    require_onnx("hfgen demo")
    runtime = _runtime_folder(config.runtime)
    with tempfile.TemporaryDirectory() as temporary:
        places = [Path(temporary, str(number)) for number in range(len(config.runs))]
        models = [
            _model(run, source or _public(run), config, place) for run, place in zip(config.runs, places, strict=True)
        ]
        names = [_clean(model["name"]).casefold() for model in models]
        if doubled := next(
            (model["name"] for model, name in zip(models, names, strict=True) if names.count(name) > 1), None
        ):
            raise UserError(f"two of the models are named {doubled}; rename the folder of one of them")
        folder.mkdir(parents=True, exist_ok=True)
        with parts_complete_or_absent(folder, PAGE) as parts:
            (parts / FILES).mkdir()
            for model, place in zip(models, places, strict=True):
                _pack_networks(model, place, parts / FILES)
            site: dict[str, Any] = {"models": models, "runtime_files": None, "runtime_bytes": 0}
            if runtime:
                shutil.copyfile(runtime / RUNTIME_SCRIPT, parts / RUNTIME_SCRIPT)
                packed = {f"{name}.js": _pack(runtime / name, parts / FILES) for name in RUNTIME_PARTS}
                site |= {"runtime_files": [*packed], "runtime_bytes": sum(packed.values())}
            (parts / SCRIPT).write_text("".join((TEMPLATES / name).read_text() for name in ("widgets.js", SCRIPT)))
            script = RUNTIME_SCRIPT if runtime else CDN + RUNTIME_SCRIPT
            page = render("demo.html", mark=MARK, title=config.title, site=site, runtime_script=script)
            (parts / PAGE).write_text(page, encoding="utf-8")
    return folder / PAGE


def _check_folder(folder: Path) -> None:
    """Check that a folder is new, empty, or holds an earlier page.

    Raises:
        UserError: naming the folder, if it is not.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    page = folder / PAGE
    if not page.is_file() or MARK not in page.read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"{folder} is not empty and holds no page of hfgen demo; name a new or empty folder")
    print(f"hfgen: replaces the page in {folder}", file=sys.stderr)


def _model(run: str, source: str, config: DemoConfig, folder: Path) -> dict[str, Any]:
    """Export a model to a folder; return what the page must know of it."""
    pipeline = load(run)
    require_pixels(pipeline, "a web page of hfgen demo")
    known = model_of(type(pipeline).__name__)
    scheduler = config.scheduler if known and known.use == "denoise" else None
    export_pipeline(pipeline, ExportConfig(run_or_repo=run, output=str(folder), scheduler=scheduler))
    model = json.loads((folder / MODEL_FILE).read_text())
    family = family_of(model["pipeline"]).name
    quality = quality_of(run, in_one_step=known is not None and known.use == "few_steps")
    model |= {"family": family, "kind": kind_of(model), "quality": quality, "source": source}
    model["image_shape"] = list(image_shape_of(pipeline))
    match model["use"]:
        case "denoise":
            model |= _denoising(pipeline, model.pop("sampler"))
        case "decode" if known.use == "decode":  # not a consistency model, whose latents are noise
            model["dimensions"] = dimensions_of(pipeline)
        case "translate":
            generator = networks_of(pipeline)["generator"]
            model["image_shape"] = list(generator.module(**generator.inputs).shape[1:])
            model["degradation"] = pipeline.config.degradation
    return model


def kind_of(model: dict[str, Any]) -> str:
    """Name the kind of a model for visitors."""
    known = model_of(model["pipeline"])
    kind = known.noun if known else "diffusion model"
    return f"{kind} with classes" if "classes" in model else kind


def quality_of(run: str, *, in_one_step: bool = False) -> str:
    """Describe how close a model's images are to real ones, or return nothing without an evaluation.

    Args:
        run: The model.
        in_one_step: Whether only an evaluation of images in one step counts.
    """
    file = file_beside(run, EVALUATION)
    record = read_record(file) if file else {}
    if not record.get("measures") or (in_one_step and record["protocol"].get("num_inference_steps") != 1):
        return ""
    space, measures = next(iter(record["measures"].items()))
    if not (distance := measures.get("frechet_distance")):  # of too few images
        return ""
    floor = record["floors"][space].get("train_against_test", {}).get("frechet_distance")
    return f"Fréchet distance {with_std(distance)}" + (f" (real images {number(floor)})" if floor is not None else "")


def _denoising(pipeline: DiffusionPipeline, own: dict[str, Any]) -> dict[str, Any]:
    """Return the tables of samplers by their numbers of steps, and the noise levels for editing."""
    steps, most = own["num_inference_steps"], pipeline.scheduler.config.num_train_timesteps
    counts = sorted({steps, *(count for count in STEPS if count <= most)})
    tables = {}
    for count in counts:
        learnt = learnt_steps(pipeline.scheduler, own["scheduler"], count)
        tables[count] = sampler_table(pipeline.scheduler, own["scheduler"], count, learnt)
    editing = editing_pipeline(pipeline)
    levels = {name: _short(getattr(editing, name)) for name in ("timesteps", "alphas", "sigmas")}
    return {
        "scheduler": own["scheduler"],
        "samplers": tables,
        "num_inference_steps": steps,
        "levels": levels,
        "prediction_type": editing.prediction_type,
    }


def _short(numbers: torch.Tensor) -> list[float]:
    """Return numbers with the digits that float32 has."""
    return [float(f"{value:.8g}") for value in numbers.tolist()]


def dimensions_of(pipeline: DiffusionPipeline) -> list[int]:
    """Order the latent dimensions by how much the image changes along each of them from the centre."""
    size = network_of(pipeline).config.latent_dim
    ends = torch.cat([sign * TRAVERSED * torch.eye(size) for sign in (-1, 1)])
    low, high = pipeline(latents=ends, class_labels=first_class(pipeline), output_type="pt").images.chunk(2)
    return (high - low).abs().mean(dim=(1, 2, 3)).argsort(descending=True).tolist()


def _pack_networks(model: dict[str, Any], folder: Path, files: Path) -> None:
    """Write the networks of a model as scripts, and keep their names and sizes in it."""
    name, model["bytes"] = _clean(model["name"]), 0
    for part in model["files"].values():
        file = (folder / part["file"]).rename(folder / f"{name}-{part['file']}")
        part["file"] = f"{file.name}.js"
        model["bytes"] += _pack(file, files)


def _public(run: str) -> str:
    """Return a run's name in commands on the page, without folders of this machine."""
    path = local_path(run)
    return path.name if path.is_absolute() else run


def _clean(name: str) -> str:
    """Return a name for files and addresses."""
    return re.sub(r"[^\w.-]", "_", name)


def _pack(file: Path, folder: Path) -> int:
    """Write a file as a script, which a page may load from disk too; return its size."""
    name = f"{file.name}.js"
    text = base64.b64encode(gzip.compress(file.read_bytes(), mtime=0)).decode()
    (folder / name).write_text(f"demoFile({json.dumps(name)}, {json.dumps(text)});\n")
    return (folder / name).stat().st_size


def _runtime_folder(runtime: str) -> Path | None:
    """Return the folder of onnxruntime-web's files, or None if browsers get them elsewhere.

    Raises:
        UserError: if they are missing.
    """
    if runtime == "cdn":
        return None
    folder = _from_npm() if runtime == "npm" else local_path(runtime)
    missing = [name for name in (RUNTIME_SCRIPT, *RUNTIME_PARTS) if not (folder / name).is_file()]
    if missing:
        raise UserError(f"runtime must be npm, cdn or a folder with onnxruntime-web; {folder} has no {missing[0]}")
    return folder


def _from_npm() -> Path:
    """Return the cached files of the package, which npm downloads if they are not there."""
    folder = cache_folder(None) / f"onnxruntime-web-{VERSION}"
    if folder.is_dir():
        return folder
    package = f"onnxruntime-web@{VERSION}"
    other = "or choose another --runtime: cdn, or a folder with its files"
    if not (npm := shutil.which("npm")):
        raise UserError(
            f"--runtime npm downloads {package} with the program npm, which is missing; install it, {other}"
        )
    print(f"Downloading {package} (33 MB, once)")
    with tempfile.TemporaryDirectory() as temporary:
        done = subprocess.run([npm, "pack", package], cwd=temporary, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"npm could not download {package} ({first_line(done.stderr)}); try again, {other}")
        with complete_or_absent(folder) as place, tarfile.open(next(Path(temporary).glob("*.tgz"))) as archive:
            place.mkdir()
            for name in (RUNTIME_SCRIPT, *RUNTIME_PARTS):
                (place / name).write_bytes(archive.extractfile(f"package/dist/{name}").read())
    return folder
