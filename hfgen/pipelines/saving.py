"""Saving pipelines with their custom code (diffusers' remote code)."""

import importlib
import inspect
import json
import shutil
from pathlib import Path

from diffusers import DiffusionPipeline

PLACES = [Path(__file__).parents[1] / name for name in ("models", "pipelines")]


def save_pipeline(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Save a pipeline in safetensors, so that diffusers can load it without hfgen.

    For a class that is not diffusers' own, `save_pretrained` records the module it was imported from, which is missing
    elsewhere. Therefore its file is copied to where diffusers looks for remote code, and recorded instead.
    """
    pipeline.save_pretrained(folder, safe_serialization=True)
    index_file = folder / pipeline.config_name
    index = json.loads(index_file.read_text())
    for name, part in {"_class_name": pipeline, **pipeline.components}.items():
        if type(part).__module__.partition(".")[0] in {"hfgen", "diffusers_modules"}:  # the latter is remote code
            file = Path(inspect.getfile(type(part)))
            place = folder if part is pipeline else folder / name
            shutil.copyfile(file, place / file.name)
            index[name] = [file.stem, type(part).__name__]
    index_file.write_text(json.dumps(index, indent=2) + "\n")


def own_class(module: str, name: str) -> type | None:
    """Return the installed hfgen class whose file `save_pipeline` saved, or None for a class of another origin."""
    for place in PLACES:
        if module in {file.stem for file in place.glob("*_hfgen_*.py")}:
            found = getattr(importlib.import_module(f"hfgen.{place.name}.{module}"), name, None)
            return found if isinstance(found, type) else None
    return None
