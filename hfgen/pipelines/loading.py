"""Load a pipeline from a run, a folder or the Hub, without running untrusted code or pickles."""

import contextlib
import difflib
import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import diffusers.pipelines
import httpx2
import torch
from diffusers import CMStochasticIterativeScheduler, DiffusionPipeline, ModelMixin, SchedulerMixin, UNet2DModel
from diffusers.utils.logging import disable_progress_bar
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hfgen.config.recipes import read_recipes
from hfgen.models.modeling_hfgen_vae import LatentFlowModel, SpatialVAEModel
from hfgen.pipelines.consistency import NAMES, STEPS, ConsistencyModelPipeline
from hfgen.pipelines.pipeline_hfgen_vae import VAEPipeline
from hfgen.pipelines.saving import own_class
from hfgen.runs.checkpoints import newest_complete
from hfgen.runs.folder import suggest_runs
from hfgen.utils.devices import AUTO, computes_in_bfloat16, find_placement
from hfgen.utils.errors import UserError, first_line
from hfgen.utils.untrusted import (
    INDEX,
    check_learnt_steps,
    check_numbers,
    components_of,
    read_index,
    read_json,
    shown,
)

LIBRARIES = {"diffusers", "transformers"}  # components of their classes need no remote code
CONFIGS = ("config.json", "scheduler_config.json")
ZOO = Path(__file__).resolve().parents[2] / "model_cards"  # in a checkout: models of the recipes


def load(
    run_or_repo: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
) -> DiffusionPipeline:
    """Load a pipeline from safetensors, without running code that comes with it.

    A pipeline class of hfgen is saved with a copy of its file, for diffusers. The installed file is used here, not
    that copy.

    Args:
        run_or_repo: A run folder (during training, its newest checkpoint is loaded), a checkpoint, any folder written
            by `DiffusionPipeline.save_pretrained`, a Hub id, or a recipe whose trained model is in this checkout.
        revision: Branch, tag or commit of a Hub id.
        trust_remote_code: Run other Python files that come with the model. Without it, such a model is refused and
            its files are listed.
        device: A device of torch, or `auto` (see `hfgen.utils.devices.find_placement`).
        dtype: Data type of the weights (see `move`).

    Raises:
        UserError: if there is no pipeline or no such device, or loading it requires pickles or remote code that is not
            trusted.
    """
    find_placement(device, dtype)
    source = _source(run_or_repo, revision)
    disable_progress_bar()  # pointless for two components
    try:
        index = _read_index(source, revision)
        pipeline = index["_class_name"]
        own = own_class(*pipeline) if isinstance(pipeline, list) else None
        if own and issubclass(own, DiffusionPipeline):
            loaded = _assemble(own, source, revision, index)
            loaded.register_to_config(_name_or_path=source)  # as `from_pretrained` does
        else:
            loaded = _load_stock(run_or_repo, source, revision, index, trust_remote_code)
            if isinstance(loaded, diffusers.ConsistencyModelPipeline):
                loaded = _with_names(loaded, source, index)
    except (OSError, httpx2.HTTPError) as error:
        raise UserError(f"cannot load a pipeline from {run_or_repo}: {first_line(error)}") from error
    if isinstance(scheduler := loaded.components.get("scheduler"), SchedulerMixin):
        check_learnt_steps(scheduler.config, run_or_repo)
    for name, part in loaded.components.items():
        tensors = part.state_dict() if isinstance(part, torch.nn.Module) else {}
        if missing := [tensor for tensor, value in tensors.items() if value.is_meta]:
            raise UserError(f"cannot load a pipeline from {run_or_repo}: the weights of {name} lack {missing[0]}")
    return move(loaded, device, dtype)


def move(pipeline: DiffusionPipeline, device: str | torch.device, dtype: str | torch.dtype) -> DiffusionPipeline:
    """Move a pipeline to a device and a data type (see `find_placement`), and return it.

    The data type `auto` is bfloat16 for a diffusion model on hardware that computes in it natively, where sampling is
    faster, and float32 otherwise.

    `DiffusionPipeline.to` would warn of half precision on a CPU, and that it cannot keep modules in float32.
    """
    place = find_placement(device, dtype)
    if dtype == AUTO and "unet" in pipeline.components and computes_in_bfloat16(place[0]):
        place = (place[0], torch.bfloat16)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            torch.nn.Module.to(part, *place)
    return pipeline


def file_beside(run_or_repo: str, name: str) -> Path | None:
    """Return the path of a file beside the pipeline that `load` finds, or None if there is none."""
    source = _source(run_or_repo, None)
    return _fetch(source, None, name) if _has(source, None, name) else None


def require_folder(name: str | Path) -> None:
    """Check that a folder exists.

    Raises:
        UserError: suggesting similar names in the same place.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise UserError(f"there is no folder {name}{_similar(folder)}")


def _similar(folder: Path) -> str:
    """Return the end of a message that suggests similar folder names, the most similar first."""
    beside = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
    near = difflib.get_close_matches(folder.name, beside, n=3, cutoff=0.4)
    return f"; did you mean {' or '.join(str(folder.with_name(other)) for other in near)}?" if near else ""


def _source(run_or_repo: str, revision: str | None) -> str:
    """Return the pipeline's folder, or a Hub id unchanged."""
    folder = Path(run_or_repo).expanduser()
    if folder.is_dir():
        if revision:
            raise UserError(f"{run_or_repo} is a folder, and revision ({revision}) needs a Hub id; leave it out")
        if (folder / "preprocessor_config.json").exists():
            raise UserError(f"{run_or_repo} is a classifier, which generates no images")
        if not (folder / INDEX).exists():
            checkpoint = newest_complete(folder / "checkpoints")
            if checkpoint is None:
                raise UserError(
                    f"{folder} contains no pipeline (no {INDEX}) and no complete checkpoint of a run"
                    + suggest_runs(folder)
                )
            folder = checkpoint
        return str(folder)
    first, _, second = run_or_repo.partition("/")
    if folder.exists() or Path(first).is_dir() or first.startswith((".", "~")):
        require_folder(run_or_repo)
    if run_or_repo in read_recipes():
        if revision:
            raise UserError(f"{run_or_repo} is a recipe, and revision ({revision}) needs a Hub id; leave it out")
        return _model_of(run_or_repo)
    if not first or not second or "/" in second:
        raise UserError(f"there is no folder {run_or_repo}, and a Hub id has the form user/name{_similar(folder)}")
    return run_or_repo


def _model_of(recipe: str) -> str:
    """Return the folder of a recipe's model in this checkout, or its Hub id in the namespace `HFGEN_NAMESPACE`.

    Raises:
        UserError: if there is none.
    """
    folder, namespace = ZOO / recipe, os.environ.get("HFGEN_NAMESPACE")
    if not (folder / INDEX).is_file():
        if namespace:
            return f"{namespace}/{recipe}"
        there = [path.parent.name for path in sorted(ZOO.glob(f"*/{INDEX}"))]
        have = f"; there are {', '.join(there)}" if there else ""
        family = read_recipes()[recipe].family
        raise UserError(
            f"the recipe {recipe} has no trained model in {ZOO}{have}. Train it with: hfgen train {family} --config "
            f"{recipe}; or set HFGEN_NAMESPACE to the user or organisation that has published one on the Hub"
        )
    return str(folder)


def _read_index(source: str, revision: str | None) -> dict[str, object]:
    try:
        return read_index(_fetch(source, revision, INDEX))
    except RevisionNotFoundError as error:
        raise UserError(f"{source} has no revision {revision}") from error
    except RemoteEntryNotFoundError as error:
        raise UserError(f"{source} contains no pipeline (no {INDEX})") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise UserError(
            f"there is no folder {source}, and as a Hub id it is neither in the cache nor can it be reached"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(f"there is no folder {source} and no such Hub repo that this token can access") from error
    except HFValidationError as error:
        raise UserError(f"there is no folder {source}, and it is not a valid Hub id: {first_line(error)}") from error


def _fetch(source: str, revision: str | None, name: str) -> Path:
    """Return the path of a file in a folder, or in a Hub repo (downloaded if not cached)."""
    return Path(source, name) if Path(source).is_dir() else Path(hf_hub_download(source, name, revision=revision))


def _load_stock(
    run_or_repo: str, source: str, revision: str | None, index: dict[str, object], trust_remote_code: bool
) -> DiffusionPipeline:
    """Load a pipeline of a diffusers class, or of remote code if that is trusted."""
    safely = {"use_safetensors": True, "trust_remote_code": trust_remote_code}
    _refuse_code(run_or_repo, source, revision, index, trust_remote_code)
    if not Path(source).is_dir():
        with _explained(run_or_repo):
            source = str(DiffusionPipeline.download(source, revision=revision, **safely))
        _refuse_code(run_or_repo, source, revision, index, trust_remote_code)
    for name, (library, class_name) in components_of(index).items():
        if library in LIBRARIES and not isinstance(getattr(importlib.import_module(library), class_name, None), type):
            raise UserError(f"{run_or_repo}: {library} has no class {class_name}, the class of its {name}")
        for file in (Path(source, name, config) for config in CONFIGS):
            if file.exists():
                check_numbers(read_json(file), file)
    with _explained(run_or_repo):
        return DiffusionPipeline.from_pretrained(source, **safely)


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Convert any error of a library to a UserError, as untrusted files can cause all sorts."""
    try:
        yield
    except Exception as error:
        reason = (
            first_line(error)
            if isinstance(error, OSError | ValueError)
            else f"{type(error).__name__}: {first_line(error)}"
        )
        raise UserError(f"cannot load a pipeline from {what}: {reason}") from error


def _refuse_code(run_or_repo: str, source: str, revision: str | None, index: dict[str, object], trusted: bool) -> None:
    """Refuse a pipeline with classes that are not in diffusers or transformers, unless its code is trusted."""
    if trusted or not (files := _code_files(source, index)):
        return
    if there := [file for file in files if _has(source, revision, file)]:
        raise UserError(
            f"{run_or_repo} comes with its own code, which would run on this machine: {', '.join(there)}. Read it, "
            "and if you trust it, set trust_remote_code"
        )
    raise UserError(
        f"{run_or_repo} needs code that it does not contain: {', '.join(files.values())}. If these modules are "
        "installed and you trust them, set trust_remote_code"
    )


def _code_files(source: str, index: dict[str, object]) -> dict[str, str]:
    """List the Python files that loading would run, with their modules: those of classes of no known library."""
    pipeline = index["_class_name"]
    files = {f"{pipeline[0]}.py": pipeline[0]} if isinstance(pipeline, list) else {}
    for name, (library, _) in components_of(index).items():
        known = library is None or library in LIBRARIES or hasattr(diffusers.pipelines, library)
        if not known or Path(source, name, f"{library}.py").exists():
            files[f"{name}/{library}.py"] = library
    return files


def _has(source: str, revision: str | None, name: str) -> bool:
    """Return whether a folder or a Hub repo has a file."""
    try:
        return _fetch(source, revision, name).is_file()
    except EntryNotFoundError:
        return False


def _assemble(
    pipeline_class: type[DiffusionPipeline], source: str, revision: str | None, index: dict[str, object]
) -> DiffusionPipeline:
    """Load a pipeline of an hfgen class from its weights and configurations, without running its saved code."""
    expected, optional = pipeline_class._get_signature_keys(pipeline_class)
    components = {name: value for name, value in components_of(index).items() if value[0]}
    if not set(expected) - set(pipeline_class._optional_components) <= components.keys() <= set(expected):
        raise UserError(
            f"{source} has the components {', '.join(components)}, but a {pipeline_class.__name__} has "
            f"{', '.join(expected)}; it may come from a newer version of hfgen"
        )
    parts = {}
    for name, (library, class_name) in components.items():
        part_class = own_class(library, class_name) or getattr(diffusers, class_name, object)
        if not isinstance(part_class, type) or not issubclass(part_class, ModelMixin | SchedulerMixin):
            raise UserError(f"{source} has a {class_name} as its {name}, which is neither a model nor a scheduler")
        is_model = issubclass(part_class, ModelMixin)
        options = (
            {"use_safetensors": True, "output_loading_info": True} if is_model else {"return_unused_kwargs": True}
        )
        config = _fetch(source, revision, f"{name}/{part_class.config_name}")
        check_numbers(read_json(config), config)
        with _explained(source):
            part, found = part_class.from_pretrained(source, subfolder=name, revision=revision, **options)
        if missing := found.get("missing_keys"):
            raise UserError(f"cannot load a pipeline from {source}: the weights of {name} lack {missing[0]}")
        parts[name] = part
    known = [
        n for part in parts.values() for n in (part.config.get("num_classes"), part.config.get("num_class_embeds"))
    ]
    if (named := len(index.get("id2label", {}))) > min([n for n in known if n], default=0):
        raise UserError(f"{source}: {INDEX} names {named} classes, but the network has fewer")
    with _explained(source):
        loaded = pipeline_class(**parts, **{name: index[name] for name in optional if name in index})
    if isinstance(loaded, VAEPipeline):
        _check_flow(loaded, source)
    elif (vae := parts.get("vae")) is not None and not isinstance(vae, SpatialVAEModel):
        raise UserError(f"{source}: its vae is a {type(vae).__name__}, but latent diffusion needs a SpatialVAEModel")
    return loaded


def _with_names(
    pipeline: diffusers.ConsistencyModelPipeline, source: str, index: dict[str, object]
) -> ConsistencyModelPipeline:
    """Return the pipeline of a consistency model with the names of its classes, which diffusers does not read."""
    parts = (pipeline.unet, UNet2DModel), (pipeline.scheduler, CMStochasticIterativeScheduler)
    if wrong := [type(part).__name__ for part, expected in parts if not isinstance(part, expected)]:
        raise UserError(f"{source} has a {wrong[0]}, which is no part of a consistency model")
    names, steps, classes = index.get(NAMES) or {}, index.get(STEPS, 1), pipeline.unet.config.num_class_embeds or 0
    numbers = [str(number) for number in range(classes)]
    if not isinstance(names, dict) or (names and sorted(names) != sorted(numbers)):
        raise UserError(
            f"{source}: {NAMES} in {INDEX} must name each of the {classes} classes of the network by index"
        )
    if not all(isinstance(name, str) for name in names.values()) or len({*names.values()}) < len(names):
        raise UserError(f"{source}: {NAMES} in {INDEX} must have a different name for each class")
    most = pipeline.scheduler.config.num_train_timesteps
    if type(steps) is not int or not 1 <= steps <= most:
        raise UserError(f"{source}: {STEPS} in {INDEX} must be from 1 to {most}, not {shown(steps)}")
    named = ConsistencyModelPipeline(pipeline.unet, pipeline.scheduler, names, steps)
    named.register_to_config(_name_or_path=source)
    return named


def _check_flow(pipeline: VAEPipeline, source: str) -> None:
    """Check that a VAE has the flow that it samples with, and that it fits.

    Raises:
        UserError: naming the source, if not.
    """
    flow, vae = pipeline.flow, pipeline.vae
    if flow is None and pipeline.config.prior == "flow":
        raise UserError(f"{source}: {INDEX} names the prior flow, but the model has no flow")
    same = ("latent_dim", "num_classes")
    if flow is not None and not (
        isinstance(flow, LatentFlowModel) and all(flow.config[name] == vae.config[name] for name in same)
    ):
        raise UserError(f"{source}: the flow does not fit the VAE")
