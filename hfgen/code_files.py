"""The files of `hfgen/models` and `hfgen/pipelines` travel with weights: saved beside them, known again by content."""

import inspect
import json
import shutil
from pathlib import Path

from diffusers import DiffusionPipeline

PLACES = [Path(__file__).parent / name for name in ("models", "pipelines")]


def save_pipeline(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Save a pipeline in safetensors, so that diffusers loads it where there is no hfgen.

    What is a class of diffusers needs no more. Of any other, `save_pretrained` records the module that it was imported
    from, which elsewhere is missing; so its file is put where diffusers looks for remote code, and recorded.
    """
    pipeline.save_pretrained(folder, safe_serialization=True)
    index_file = folder / pipeline.config_name
    index = json.loads(index_file.read_text())
    for name, part in {"_class_name": pipeline, **pipeline.components}.items():
        if type(part).__module__.partition(".")[0] in {"hfgen", "diffusers_modules"}:  # the latter: remote code
            file = Path(inspect.getfile(type(part)))
            place = folder if part is pipeline else folder / name
            shutil.copyfile(file, place / file.name)
            index[name] = [file.stem, type(part).__name__]
    index_file.write_text(json.dumps(index, indent=2) + "\n")


def is_own(file: Path) -> bool:
    """Tell whether a code file is, byte for byte, one of this installation's, which may run unasked."""
    own = (place / file.name for place in PLACES)
    return any(path.is_file() and path.read_bytes() == file.read_bytes() for path in own)
