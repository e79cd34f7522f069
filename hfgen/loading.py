"""Load a pipeline from a run, a folder or the Hub, without running code or pickles of strangers."""

import importlib.util
import json
from pathlib import Path

import diffusers.pipelines
import httpx2
from diffusers import DiffusionPipeline
from diffusers.utils.logging import disable_progress_bar
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hfgen.checkpoints import newest_complete
from hfgen.code_files import is_own
from hfgen.errors import UserError, first_line

INDEX = "model_index.json"


def load(run_or_repo: str, *, revision: str | None = None, trust_remote_code: bool = False) -> DiffusionPipeline:
    """Load a pipeline from safetensors, without running code that came with it and that hfgen does not have too.

    Args:
        run_or_repo: A run folder (while it is still training, its newest checkpoint is taken), a checkpoint, any
            folder that `DiffusionPipeline.save_pretrained` wrote, or a Hub id.
        revision: Branch, tag or commit of a Hub id.
        trust_remote_code: Allow the Python files that come with the model, and that the message names without this,
            to run on this machine.

    Raises:
        UserError: if there is no pipeline, or it could only be loaded by running pickles or remote code.
    """
    source = _source(run_or_repo)
    disable_progress_bar()  # there are two components
    try:
        files = _code_files(source, revision)
        strange = [name for name, place in files.items() if place is None or not is_own(place)]
        if strange and not trust_remote_code:
            raise UserError(
                f"{run_or_repo} comes with code of its own, which would run on this machine: {', '.join(strange)}. "
                "Read it, and if you trust it, allow it with trust_remote_code"
            )
        return DiffusionPipeline.from_pretrained(
            source, revision=revision, use_safetensors=True, trust_remote_code=bool(files)
        )
    except (OSError, ValueError, httpx2.HTTPError) as error:
        raise UserError(f"cannot load a pipeline from {run_or_repo}: {first_line(error)}") from error


def _source(run_or_repo: str) -> str:
    """Find the folder, or accept a Hub id."""
    folder = Path(run_or_repo).expanduser()
    if folder.is_dir():
        if (folder / "preprocessor_config.json").exists():
            raise UserError(f"{run_or_repo} is a classifier, which draws no images")
        if not (folder / INDEX).exists():
            checkpoint = newest_complete(folder / "checkpoints")
            if checkpoint is None:
                raise UserError(f"{folder} holds no pipeline (no {INDEX}) and no complete checkpoint of a run")
            folder = checkpoint
        return str(folder)
    if run_or_repo.count("/") == 1 and not run_or_repo.startswith((".", "/", "~")):
        return run_or_repo
    raise UserError(f"there is no folder {run_or_repo}, and a Hub id has the form user/name")


def _read_index(source: str, revision: str | None) -> dict[str, object]:
    if Path(source).is_dir():
        return json.loads(Path(source, INDEX).read_text())
    try:
        return json.loads(Path(hf_hub_download(source, INDEX, revision=revision)).read_text())
    except RevisionNotFoundError as error:
        raise UserError(f"{source} has no revision {revision}") from error
    except RemoteEntryNotFoundError as error:
        raise UserError(f"{source} holds no pipeline (no {INDEX})") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise UserError(
            f"there is no folder {source}, and as a Hub id it is neither in the cache nor can it be reached"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(f"there is no folder {source} and no such repo on the Hub that this token may see") from error


def _code_files(source: str, revision: str | None) -> dict[str, Path | None]:
    """Find the Python files that loading would run: those beside the model, and those of classes that are nowhere."""
    index = _read_index(source, revision)
    pipeline = index.get("_class_name")
    names = [f"{pipeline[0]}.py"] if isinstance(pipeline, list) else []
    unknown = set(names)
    for part, value in index.items():
        if not part.startswith("_") and isinstance(value, list) and value[0]:
            names.append(f"{part}/{value[0]}.py")
            if not hasattr(diffusers.pipelines, value[0]) and not importlib.util.find_spec(value[0].partition(".")[0]):
                unknown.add(names[-1])
    found = {name: _find(source, name, revision) for name in names}
    return {name: place for name, place in found.items() if place or name in unknown}


def _find(source: str, name: str, revision: str | None) -> Path | None:
    """Find a file of a folder or, downloading it, of a Hub id."""
    if Path(source).is_dir():
        return place if (place := Path(source, name)).is_file() else None
    try:
        return Path(hf_hub_download(source, name, revision=revision))
    except EntryNotFoundError:  # neither there nor, without a network, in the cache
        return None
