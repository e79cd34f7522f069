"""Load a pipeline from a run, a folder or the Hub, without running code or pickles of strangers."""

import importlib.util
import json
from pathlib import Path

import diffusers.pipelines
import httpx2
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.utils.logging import disable_progress_bar
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hfgen.checkpoints import newest_complete
from hfgen.code_files import own_class
from hfgen.errors import UserError, first_line

INDEX = "model_index.json"


def load(run_or_repo: str, *, revision: str | None = None, trust_remote_code: bool = False) -> DiffusionPipeline:
    """Load a pipeline from safetensors, without running code that came with it.

    A pipeline of a class of hfgen's comes with a copy of its file, for diffusers; here not that copy runs, but the
    installed file.

    Args:
        run_or_repo: A run folder (while it is still training, its newest checkpoint is taken), a checkpoint, any
            folder that `DiffusionPipeline.save_pretrained` wrote, or a Hub id.
        revision: Branch, tag or commit of a Hub id.
        trust_remote_code: Allow other Python files that come with the model, and that the message names without this,
            to run on this machine.

    Raises:
        UserError: if there is no pipeline, or it could only be loaded by running pickles or remote code.
    """
    source = _source(run_or_repo)
    disable_progress_bar()  # there are two components
    try:
        index = _read_index(source, revision)
        pipeline = index.get("_class_name")
        if isinstance(pipeline, list) and (own := own_class(*pipeline)):
            return _assemble(own, source, revision, index)
        if not trust_remote_code and (files := _code_files(source, index)):
            raise UserError(
                f"{run_or_repo} comes with code of its own, which would run on this machine: {', '.join(files)}. Read "
                "it, and if you trust it, allow it with trust_remote_code"
            )
        return DiffusionPipeline.from_pretrained(
            source, revision=revision, use_safetensors=True, trust_remote_code=trust_remote_code
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


def _code_files(source: str, index: dict[str, object]) -> list[str]:
    """Name the Python files that loading would run: those of classes that no installed library has."""
    pipeline = index.get("_class_name")
    files = [f"{pipeline[0]}.py"] if isinstance(pipeline, list) else []
    for name, (library, _) in _components(index).items():
        known = hasattr(diffusers.pipelines, library) or importlib.util.find_spec(library.partition(".")[0])
        if not known or Path(source, name, f"{library}.py").exists():
            files.append(f"{name}/{library}.py")
    return files


def _components(index: dict[str, object]) -> dict[str, tuple[str, str]]:
    """Return library and class of each component of a pipeline."""
    return {
        name: tuple(value)
        for name, value in index.items()
        if not name.startswith("_") and isinstance(value, list) and value[0]
    }


def _assemble(
    pipeline_class: type[DiffusionPipeline], source: str, revision: str | None, index: dict[str, object]
) -> DiffusionPipeline:
    """Build a pipeline of a class of hfgen's from what was saved of it, running no code that was saved with it."""
    expected, optional = pipeline_class._get_signature_keys(pipeline_class)
    components = _components(index)
    if not set(expected) - set(pipeline_class._optional_components) <= components.keys() <= set(expected):
        raise UserError(
            f"{source} has the parts {', '.join(components)} where a {pipeline_class.__name__} has "
            f"{', '.join(expected)}; a newer hfgen may have made it"
        )
    parts = {}
    for name, (library, class_name) in components.items():
        part_class = own_class(library, class_name) or getattr(diffusers, class_name, object)
        if not issubclass(part_class, ModelMixin | SchedulerMixin):
            raise UserError(f"{source} has a {class_name} as its {name}, which is neither a model nor a scheduler")
        safely = {"use_safetensors": True} if issubclass(part_class, ModelMixin) else {}
        parts[name] = part_class.from_pretrained(source, subfolder=name, revision=revision, **safely)
    return pipeline_class(**parts, **{name: index[name] for name in optional if name in index})
