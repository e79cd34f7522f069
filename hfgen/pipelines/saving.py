"""Saving pipelines with their custom code (diffusers' remote code)."""

import importlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from hfgen.families import families
from hfgen.pipelines.consistency import ConsistencyModelPipeline
from hfgen.pipelines.pipeline_hfgen_vae import save_code
from hfgen.utils.untrusted import components_of

PLACES = [Path(__file__).parents[1] / name for name in ("models", "pipelines")]


def save_pipeline(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Save a pipeline in safetensors and with the code of its classes, so that diffusers loads it without hfgen."""
    pipeline.save_pretrained(folder, safe_serialization=True)
    if not isinstance(pipeline, ConsistencyModelPipeline):  # saved as the class of diffusers
        save_code(pipeline, folder)
    for file in folder.glob("*/config.json"):  # of a network that was loaded, with the folder it was loaded from
        config = json.loads(file.read_text())
        if config.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


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
