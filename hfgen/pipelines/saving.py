"""Saving pipelines with their custom code (diffusers' remote code)."""

import importlib
import inspect
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from hfgen.families import families
from hfgen.utils.untrusted import components_of

LIBRARIES = {"diffusers", "transformers"}  # whose classes load without a file beside the weights
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
        if part is not None and type(part).__module__.partition(".")[0] not in LIBRARIES:
            file = Path(inspect.getfile(type(part)))
            place = folder if part is pipeline else folder / name
            shutil.copyfile(file, place / file.name)
            index[name] = [file.stem, type(part).__name__]
    index_file.write_text(json.dumps(index, indent=2) + "\n")


def code_files(index: Mapping[str, Any]) -> dict[Path, Path]:
    """Return the code that belongs to the model of an index: relative paths in its folder, and the installed files."""
    places = {Path(name): value for name, value in components_of(index).items() if value[0]}
    if isinstance(index["_class_name"], list):
        places[Path()] = index["_class_name"]
    own = {place / f"{module}.py": own_class(module, name) for place, (module, name) in places.items()}
    return {path: Path(inspect.getfile(found)) for path, found in own.items() if found}


def own_class(module: str, name: str) -> type | None:
    """Return the installed class of which `save_pipeline` saved the file, or None for what is of no known family."""
    own = [f"hfgen.{place.name}.{file.stem}" for place in PLACES for file in place.glob("*_hfgen_*.py")]
    others = [other for family in families().values() for other in family.modules]
    full_name = next((each for each in (*own, *others) if each.rpartition(".")[2] == module), None)
    found = getattr(importlib.import_module(full_name), name, None) if full_name else None
    return found if isinstance(found, type) else None
