"""The models and runs that a studio shows: by name, found in its folders, and loaded when they are needed."""

import contextlib
import math
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from hfgen.config.recipes import RECIPES, read_recipes
from hfgen.config.training import CONFIG_FILE, read_fields
from hfgen.evaluation.real import data_source_of
from hfgen.evaluation.results import read_record
from hfgen.families import Model, family_of, model_of
from hfgen.judges.judge import load_judge, shipped_judges_of
from hfgen.pipelines.consistency import NAMES
from hfgen.pipelines.loading import ZOO, file_beside, load, require_folder
from hfgen.pipelines.pipeline_hfgen_vae import VAEPipeline
from hfgen.runs.checkpoints import list_checkpoints
from hfgen.runs.folder import CHECKPOINTS, EVALUATION, run_fields
from hfgen.runtimes.networks import networks_of
from hfgen.runtimes.site import dimensions_of, kind_of, quality_of
from hfgen.sampling.sample import (
    decoder_of,
    default_sampler,
    image_shape_of,
    is_conditional,
    is_guided,
    require_diffusion,
)
from hfgen.sampling.schedulers import FREE_SOLVERS, SHORT_NAMES, counts_learnt, suitable_schedulers
from hfgen.utils.errors import UserError, first_line
from hfgen.utils.untrusted import INDEX, read_index

MOST_LOADED = 12  # models in memory
RUNS = "runs"  # the folder of runs that is shown by default, and in which trainings of the page are written
FEW_STEPS = (1, 2, 3, 4, 6)  # of a consistency model or a flow map
CLASSIFIER = "preprocessor_config.json"


@dataclass(frozen=True)
class Entry:
    """A model or run by its name.

    Attributes:
        name: As in commands: a path, the name of a recipe, or a Hub id.
        folder: Its folder; None for a Hub id.
        is_run: Whether it is a run, which has a record of its training.
    """

    name: str
    folder: Path | None
    is_run: bool

    @property
    def index(self) -> Path | None:
        """The file that names the parts of its model, of a run in training that of its newest checkpoint, or None."""
        if self.folder is None:
            return None
        checkpoints = list_checkpoints(self.folder / CHECKPOINTS)[-1:]
        return next((place / INDEX for place in (self.folder, *checkpoints) if (place / INDEX).is_file()), None)

    @property
    def state(self) -> tuple[Path, int] | None:
        """What changes when its model does: the index, and when it or the scheduler, which can learn, was written."""
        with contextlib.suppress(OSError):  # a checkpoint that has just been removed
            if index := self.index:
                files = [index, *index.parent.glob("scheduler/*.json")]
                return index, max(file.stat().st_mtime_ns for file in files)
        return None


class LoadedModel:
    """A model in memory, and what the page must know of it."""

    def __init__(self, entry: Entry, pipeline: DiffusionPipeline):
        self.entry, self.pipeline = entry, pipeline
        self.fields = run_fields(entry.folder) if entry.folder and entry.is_run else run_fields(Path(entry.name))
        self.kind: Model | None = model_of(type(pipeline).__name__)
        if self.kind is None:
            require_diffusion(pipeline)
        self.label_names = sorted(pipeline.labels, key=pipeline.labels.get) if self.is_conditional else []

    @property
    def is_conditional(self) -> bool:
        """Whether it takes classes."""
        return is_conditional(self.pipeline)

    @property
    def use(self) -> str:
        """`denoise`, `few_steps`, `decode` or `translate`, as in `hfgen.families.Model`."""
        return self.kind.use if self.kind else "denoise"

    @cached_property
    def sampler(self) -> dict[str, Any]:
        """The sampler options of its own sample grids."""
        return default_sampler(self.pipeline, self.fields)

    @cached_property
    def image_shape(self) -> list[int]:
        """Shape (C, H, W) of the images that it draws, or of those that it is given."""
        if self.use == "translate":
            return list(networks_of(self.pipeline)["generator"].inputs["sample"].shape[1:])
        return list(image_shape_of(self.pipeline))

    @property
    def judges(self) -> list[str]:
        """Names of the judges of its data set."""
        dataset = data_source_of(self.fields)
        return shipped_judges_of(dataset) if dataset else []

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What the page must know of it."""
        pipeline, family = self.pipeline, family_of(type(self.pipeline).__name__)
        facts: dict[str, Any] = {
            "name": self.entry.name,
            "use": self.use,
            "family": family.name if family else "ddpm",
            "classes": self.label_names,
            "dataset": data_source_of(self.fields),
            "image_shape": self.image_shape,
            "has_judge": any(load_judge(name, "cpu").image_shape == tuple(self.image_shape) for name in self.judges),
        }
        match self.use:
            case "denoise":
                own = self.sampler["scheduler"]
                suitable = suitable_schedulers(pipeline.scheduler, self.sampler["num_inference_steps"], [*SHORT_NAMES])
                facts |= {
                    "sampler": self.sampler,
                    "schedulers": list(dict.fromkeys([own, *suitable])),
                    "learnt_steps": {name: counts_learnt(pipeline.scheduler, name) for name in FREE_SOLVERS},
                    "num_train_timesteps": pipeline.scheduler.config.num_train_timesteps,
                    "has_guidance": is_guided(pipeline) and _has_guidance(pipeline),
                    "learnt_no_class": bool(pipeline.config.get("learnt_no_class", True)),
                    "edits": decoder_of(pipeline) is None,
                }
            case "few_steps":
                steps = {*FEW_STEPS, self.sampler["num_inference_steps"]}
                facts |= {"sampler": self.sampler, "steps": sorted(n for n in steps if n <= pipeline.most_steps)}
            case "decode":
                encodes = isinstance(pipeline, VAEPipeline)
                facts |= {
                    "sampler": {option: value for option, value in self.sampler.items() if value != math.inf},
                    "priors": ["normal", "mixture", *["flow"] * (pipeline.flow is not None)] if encodes else [],
                    "dimensions": dimensions_of(pipeline),
                    "encodes": encodes,
                }
            case "translate":
                facts |= {
                    "degradation": pipeline.config.degradation,
                    "takes_noise_std": bool(pipeline.generator.config.get("noise_level_input")),
                    "has_inverse": pipeline.inverse_generator is not None,
                }
        return facts


def _has_guidance(pipeline: DiffusionPipeline) -> bool:
    return getattr(pipeline, "guide", None) is not None or bool(pipeline.config.get("learnt_no_class"))


class Library:
    """The models and runs of a studio.

    Args:
        sources: Runs, folders of runs, names of recipes with a model, and Hub ids; empty for the folder `runs` and the
            models in `model_cards`.
        train_dir: Folder of the trainings that are started on the page, whose runs are shown too.
        device: Where to compute, see `hfgen.pipelines.loading.load`.
        dtype: Likewise.

    Raises:
        UserError: if a source is none of these.
    """

    def __init__(self, sources: list[str], train_dir: Path, *, device: str, dtype: str):
        self.device, self.dtype, self.train_dir = device, dtype, train_dir
        self.sources = [*sources] or [*[RUNS] * Path(RUNS).is_dir(), *_zoo()]
        for source in sources:
            _check_source(source)
        self.known: dict[str, Entry] = {}  # as last found
        self.loaded: OrderedDict[str, tuple[Any, LoadedModel]] = OrderedDict()
        self.lock = threading.Lock()
        self.loading: dict[str, threading.Lock] = {}

    def entries(self) -> dict[str, Entry]:
        """Return what there is now, by name: the sources in their order, in folders the newest first."""
        found: dict[str, Entry] = {}
        trained = [str(self.train_dir)] * self.train_dir.is_dir()
        for source in dict.fromkeys([*self.sources, *trained]):
            for entry in _entries_of(source):
                found.setdefault(entry.name, entry)
        self.known = found
        return found

    def find(self, name: str) -> Entry:
        """Return an entry, or that of a checkpoint of one, `NAME/checkpoints/step-000500`.

        Raises:
            UserError: if there is none of this name.
        """
        entries = self.known
        if (known := entries.get(name)) is None or (known.folder and not known.folder.is_dir()):
            entries = self.entries()  # looks for what is new; it reads many folders
        if name in entries:
            return entries[name]
        run, _, checkpoint = name.partition(f"/{CHECKPOINTS}/")
        if run in entries and entries[run].is_run and re.fullmatch(r"step-\d+", checkpoint):
            folder = entries[run].folder / CHECKPOINTS / checkpoint
            if (folder / INDEX).is_file():
                return Entry(name, folder, is_run=True)
        raise UserError(f"there is no model or run {name} in this studio")

    def folder(self, name: str) -> Path:
        """Return the folder of an entry.

        Raises:
            UserError: if there is none of this name, or it has no folder.
        """
        entry = self.find(name)
        if entry.folder is None:
            raise UserError(f"{name} is on the Hub and has no folder here")
        return entry.folder

    def models(self) -> list[dict[str, Any]]:
        """List the models for the page, without loading them."""
        return [facts for entry in self.entries().values() if (facts := _facts_without_loading(entry))]

    def held(self, name: str) -> LoadedModel | None:
        """Return a model if it is in memory and has not changed since."""
        entry = self.find(name)
        with self.lock:
            state, model = self.loaded.get(name, (None, None))
            if model is None or state != entry.state:
                return None
            self.loaded.move_to_end(name)
            return model

    def load(self, name: str) -> LoadedModel:
        """Return a model, loaded if it is not in memory yet; the one that was used least recently is dropped.

        Raises:
            UserError: if there is none of this name, or it cannot be loaded.
        """
        entry = self.find(name)
        with self.lock:
            loading = self.loading.setdefault(name, threading.Lock())
        with loading:  # of two visitors one loads it, and the other waits for that
            if held := self.held(name):
                return held
            state = entry.state
            pipeline = load(str(entry.folder or name), device=self.device, dtype=self.dtype)
            model = LoadedModel(entry, pipeline)
        with self.lock:
            self.loaded[name] = (state, model)
            while len(self.loaded) > MOST_LOADED:
                self.loaded.popitem(last=False)
        return model


def _zoo() -> list[str]:
    """List the models of the zoo: the one with the lowest Fréchet distance first, those without any last."""

    def distance(name: str) -> tuple[float, str]:
        with contextlib.suppress(UserError, OSError):
            measures = read_record(ZOO / name / EVALUATION).get("measures", {})
            if found := next(iter(measures.values()), {}).get("frechet_distance"):
                return found["value"], name
        return math.inf, name

    return sorted((path.parent.name for path in ZOO.glob(f"*/{INDEX}")), key=distance)


def _check_source(source: str) -> None:
    """Check that a source can be found: a folder, a model of the zoo, a recipe's model, or perhaps a Hub id."""
    folder = Path(source).expanduser()
    if folder.is_dir() or (ZOO / source / INDEX).is_file():
        return
    if source in read_recipes():
        file_beside(source, INDEX)  # says what is missing, or finds it on the Hub
    elif source.count("/") != 1 or folder.parent.is_dir():
        require_folder(source)


def _entries_of(source: str) -> Iterator[Entry]:
    folder = Path(source).expanduser()
    if not folder.is_dir():
        zoo = ZOO / source
        yield Entry(source, zoo if (zoo / INDEX).is_file() else None, is_run=False)
        return
    if _is_model(folder):
        yield Entry(source, folder, _is_run(folder))
        return
    below = [path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.is_dir() and _is_model(path)]
    inside = [path for path in below if not _is_part(path, below)]
    for path in sorted(inside, key=_modified, reverse=True):
        yield Entry(f"{source.rstrip('/')}/{path.relative_to(folder).as_posix()}", path, _is_run(path))


def _modified(path: Path) -> float:
    with contextlib.suppress(OSError):  # it has just been removed
        return path.stat().st_mtime
    return 0.0


def _is_part(path: Path, others: Iterable[Path]) -> bool:
    """Tell whether a folder is inside of another model's."""
    return any(path.parent == other for other in others)


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file()


def _is_model(folder: Path) -> bool:
    return _is_run(folder) or (folder / INDEX).is_file()


def _facts_without_loading(entry: Entry) -> dict[str, Any] | None:
    """Return what is known of a model from its files, None for a classifier or a run without a model yet."""
    if entry.folder is None:
        return {"name": entry.name, "use": None, "kind": "on the Hub", "quality": "", "dataset": None, "problem": ""}
    if (entry.folder / CLASSIFIER).is_file() or (file := entry.index) is None:
        return None
    facts: dict[str, Any] = {"name": entry.name, "dataset": None, "problem": ""}
    try:
        recipe = RECIPES / f"{entry.name}.yaml"
        facts["dataset"] = data_source_of(
            read_fields(recipe) if not entry.is_run and recipe.is_file() else run_fields(entry.folder)
        )
        index = read_index(file)
        name = index["_class_name"]
        class_name = name[1] if isinstance(name, list) else name
        known = model_of(class_name)
        classes = "classes" if index.get("id2label") or index.get(NAMES) else None
        use = known.use if known else "denoise"
        about = {"use": use, "pipeline": class_name} | ({"classes": classes} if classes else {})
        facts |= {"use": use, "kind": kind_of(about), "quality": quality_of(str(entry.folder))}
    except (UserError, OSError) as error:
        facts |= {"use": None, "kind": "damaged", "quality": "", "problem": first_line(error)}
    return facts
