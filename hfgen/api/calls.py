"""The functions of the Python API; configurations are validated before heavy imports."""

import contextlib
import dataclasses
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from hfgen.config import ConsistencyConfig, TrainingConfig
from hfgen.config.commands import (
    AnalyzeConfig,
    CardConfig,
    CompareSamplersConfig,
    DemoConfig,
    EvaluateConfig,
    ExportConfig,
    Options,
    PublishAllConfig,
    PushConfig,
    ResultsConfig,
    SampleConfig,
    StudioConfig,
    TranslateConfig,
)
from hfgen.config.parser import make_config, parse_config
from hfgen.config.recipes import read_recipes
from hfgen.config.training import defaults
from hfgen.config.tuning import tuning_config
from hfgen.families import Family, families, suggest_family
from hfgen.utils.errors import UserError
from hfgen.utils.files import check_output, writing
from hfgen.utils.untrusted import shown

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

    from hfgen.api.outputs import Animation, Edited, Images, Report, Study
    from hfgen.runs.folder import RunFolder

Name = str | PathLike[str]


@overload
def train(family: str | TrainingConfig, *, sweep: None = None, **fields: Any) -> "RunFolder": ...


@overload
def train(
    family: str | TrainingConfig, *, sweep: Mapping[str, Any] | Sequence[str], **fields: Any
) -> "list[RunFolder]": ...


def train(family: str | TrainingConfig, **fields: Any) -> "RunFolder | list[RunFolder]":
    """Train a model, or the runs of a sweep, like `hfgen train`.

    Args:
        family: `ddpm`, `consistency`, `flow_map`, `vae`, `gan`, `translation`, `cyclegan`, `classifier` or a family of
            another package; or a configuration, such as `hfgen.VAEConfig(...)`.
        fields: Configuration fields, as in `hfgen train FAMILY --help`; `config` is a recipe or a YAML file with
            values for the other fields; `sweep` may be a dictionary of fields and lists of values.

    Returns:
        The run folder, or a list of them for a sweep.

    Raises:
        UserError: before any work, if the configuration or data are invalid.
        TrainingError: if training had to stop; the message says how to continue.
        InterruptedTrainingError: likewise, by Ctrl-C or another signal.
        PublishingError: with `push_to_hub`, if the finished run could not be published.
    """
    if isinstance(sweep := fields.get("sweep"), Mapping):
        fields["sweep"] = _entries(sweep)
    given: Mapping[str, Any] = fields
    if isinstance(family, TrainingConfig):
        config = make_config(type(family), fields, prog=f"hfgen train {family.family}", base=vars(family))
        usual = defaults(type(config))
        given = {name: value for name, value in config.to_dict().items() if value != usual[name]}
    else:
        config = make_config(_family(family).config, fields, prog=f"hfgen train {family}")
    from hfgen.runs.record import called_as, python_call

    with called_as(python_call("train", config.family, given)):
        return train_configured(config, set_fields=fields.keys())


def distill(teacher: Name | ConsistencyConfig, **fields: Any) -> "RunFolder | list[RunFolder]":
    """Distil a diffusion model into a student of one or two steps, like `hfgen distill`.

    Args:
        teacher: A run, a folder, a Hub id, or a recipe with a trained model; or a configuration,
            `hfgen.ConsistencyConfig(...)`.
        fields: Configuration fields, as in `hfgen distill --help`.

    Returns:
        The run folder, or a list of them for a sweep.

    Raises:
        UserError: before any work, if the configuration, the teacher or the data are invalid.
        TrainingError, InterruptedTrainingError, PublishingError: see `train`.
    """
    if isinstance(teacher, ConsistencyConfig):
        return train(teacher, **fields)
    return train("consistency", teacher=str(teacher), **fields)


def train_configured(config: TrainingConfig, set_fields: Any) -> "RunFolder | list[RunFolder]":
    """Train from a configuration; see `train`.

    Args:
        config: The configuration.
        set_fields: Names of the fields that were set explicitly.
    """
    from hfgen.publishing.hub import publisher_of
    from hfgen.runs.folder import RunFolder
    from hfgen.training.run import train as train_run

    task = families()[config.family].task_class()
    if not config.sweep:
        return RunFolder(train_run(config, task, publisher_of(config)))
    from hfgen.evaluation.sweep_report import write_page
    from hfgen.training.sweep import parse_sweep, read_sweep, train_members

    if both := set(set_fields) & parse_sweep(config.sweep)[0].keys():
        raise UserError(f"{min(both)} is swept and cannot be set as well")

    def parse(flags: list[str]) -> TrainingConfig:
        return parse_config(type(config), flags, prog=f"hfgen train {config.family}", base=config.to_dict())

    folder = train_members(config, parse, task, publisher_of(config))
    print(f"The runs of the sweep are compared in {write_page(folder)}")
    return [RunFolder(folder / name) for name in read_sweep(folder)["members"]]


def tune(family: str, *, search: Mapping[str, Any] | Sequence[str], **fields: Any) -> "Study":
    """Tune hyper-parameters, like `hfgen tune`; continue or join the study that is in the folder.

    Args:
        family: See `train`.
        search: The fields to search: entries as in `hfgen tune FAMILY --help`, or a dictionary of fields and ranges
            (`"1e-4..1e-2:log"`) or lists of values.
        fields: Other configuration fields, as in `hfgen tune FAMILY --help`.

    Returns:
        The study.

    Raises:
        UserError: before any work, if the search space, the configuration or the data are invalid.
        TrainingError: if no trial succeeded or the study had to stop; the message says how to continue.
        InterruptedTrainingError: likewise, by Ctrl-C or another signal.
    """
    entries = _entries(search) if isinstance(search, Mapping) else list(search)
    fields = {"search": entries, **fields}
    config = make_config(tuning_config(_family(family).config), fields, prog=f"hfgen tune {family}")
    from hfgen.runs.record import called_as, python_call

    with called_as(python_call("tune", family, fields)):
        return tune_configured(config)


def tune_configured(config: Any) -> "Study":
    """Tune from a configuration of `hfgen.config.tuning.tuning_config`; see `tune`."""
    from hfgen.tuning.study import tune as run_study

    path = run_study(config)
    from hfgen.api.outputs import Study

    study = Study(path)
    print(f"The study is in {study.page}, its best configuration in {study.best_config}")
    return study


def load(
    run_or_repo: Name,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    device: "str | torch.device" = "cpu",
    dtype: "str | torch.dtype" = "float32",
) -> Any:
    """Load a pipeline, whose class depends on the model; see `hfgen.pipelines.loading.load`."""
    from hfgen.pipelines.loading import load as load_pipeline

    return load_pipeline(
        str(run_or_repo), revision=revision, trust_remote_code=trust_remote_code, device=device, dtype=dtype
    )


@overload
def sample(
    run_or_repo: "Name | DiffusionPipeline | SampleConfig",
    *,
    output: Name | None = None,
    film: Literal[False] = False,
    **fields: Any,
) -> "Images": ...


@overload
def sample(
    run_or_repo: "Name | DiffusionPipeline | SampleConfig",
    *,
    output: Name | None = None,
    film: Literal[True],
    **fields: Any,
) -> "Animation": ...


@overload
def sample(
    run_or_repo: "Name | DiffusionPipeline | SampleConfig", *, output: Name | None = None, film: bool, **fields: Any
) -> "Images | Animation": ...


def sample(
    run_or_repo: "Name | DiffusionPipeline | SampleConfig", *, output: Name | None = None, **fields: Any
) -> "Images | Animation":
    """Sample images from a trained model, like `hfgen sample`.

    Args:
        run_or_repo: A run, a checkpoint, any pipeline folder, or a Hub id; or a loaded pipeline, which stays on its
            device; or a configuration.
        output: Output file or folder, as in `hfgen sample --help`; by default nothing is written.
        fields: Other configuration fields, as in `hfgen sample --help`.

    Returns:
        The images, or with `film` or a .gif their denoising process.

    Raises:
        UserError: if the options do not fit the model.
    """
    model, pipeline = _loaded(run_or_repo, fields)
    config, output = _with_output(SampleConfig, model, output, fields, "hfgen sample")
    from hfgen.api.outputs import generate, warn_if_replaced

    if output is not None:
        check_output(output, is_folder=not output.suffix)
    result = generate(config, pipeline)
    if output is not None:
        warn_if_replaced(output)
        with writing(output):
            result.save(output)
        what = "The denoising of {} images is" if config.film else "{} images are"
        print(f"{what.format(config.num_images)} in {output}")
    return result


def edit(
    run_or_repo: "Name | DiffusionPipeline | TranslateConfig", *, output: Name | None = None, **fields: Any
) -> "Edited":
    """Transform images, like `hfgen translate`.

    Args:
        run_or_repo: An image-to-image model or a diffusion model: a run, a checkpoint, any pipeline folder, or a Hub
            id; or a loaded pipeline, which stays on its device; or a configuration.
        output: Output file or folder, as in `hfgen translate --help`; by default nothing is written.
        fields: Other configuration fields, as in `hfgen translate --help`: `input`, `task` and so on.

    Returns:
        The results, except those written to a folder one by one, and the unreadable files.

    Raises:
        UserError: if the options do not fit the model or the images, or the output is invalid.
    """
    model, pipeline = _loaded(run_or_repo, fields)
    config, output = _with_output(TranslateConfig, model, output, fields, "hfgen translate")
    from hfgen.api.outputs import Edited, warn_if_replaced
    from hfgen.runs.folder import run_fields
    from hfgen.sampling.edit import translate

    if output is not None:
        check_output(output, is_folder=not output.suffix)
        warn_if_replaced(output)
    with writing(output) if output else contextlib.nullcontext():
        edited = Edited(*translate(config, run_fields(Path(config.run_or_repo).expanduser()), output, pipeline))
    if output is not None:
        print(f"{edited.count} image{'s are' if edited.count > 1 else ' is'} in {output}")
    for file, why in edited.unreadable.items():
        print(f"hfgen: skipped {file}, which cannot be read as an image ({why})", file=sys.stderr)
    return edited


def evaluate(run_or_repo: Name | EvaluateConfig | None = None, **fields: Any) -> "Report | Any":
    """Evaluate a model's samples, a classifier or given images, like `hfgen evaluate`.

    Args:
        run_or_repo: A run, a checkpoint, any model folder, a Hub id or a sweep folder; or a configuration; or
            None, with `images`.
        fields: Other configuration fields, as in `hfgen evaluate --help`.

    Returns:
        The report, or a list of them for a sweep (typed as Any, since only the folder shows which).

    Raises:
        UserError: before sampling, if model, data, judges or number of images do not fit.
    """
    from hfgen.evaluation.evaluate import evaluate as evaluate_run

    config = _configuration(EvaluateConfig, run_or_repo, fields, "hfgen evaluate")
    return _reports(config, evaluate_run, "The evaluation is in")


def analyze(run_or_repo: Name | AnalyzeConfig, **fields: Any) -> "Report | Any":
    """Analyse a VAE, like `hfgen analyze`.

    Args:
        run_or_repo: A run, a checkpoint, any VAE folder, a Hub id or a sweep folder; or a configuration.
        fields: Other configuration fields, as in `hfgen analyze --help`.

    Returns:
        The report, or a list of them for a sweep (typed as Any, since only the folder shows which).

    Raises:
        UserError: if it is not a VAE, or the data do not fit.
    """
    from hfgen.evaluation.vae import analyze as analyze_run

    config = _configuration(AnalyzeConfig, run_or_repo, fields, "hfgen analyze")
    return _reports(config, analyze_run, "The analysis is in")


def compare_samplers(*runs: Name | CompareSamplersConfig, **fields: Any) -> "Report":
    """Compare models, schedulers, steps and guidance by image quality and cost, like `hfgen compare-samplers`.

    Args:
        runs: Runs, pipeline folders or Hub ids; or one configuration.
        fields: Other configuration fields, as in `hfgen compare-samplers --help`.

    Raises:
        UserError: before sampling, if a model, a setting, the data or the judges do not fit.
    """
    given = runs[0] if runs and isinstance(runs[0], CompareSamplersConfig) else runs
    config = _configuration(CompareSamplersConfig, given, fields, "hfgen compare-samplers", "runs")
    from hfgen.api.outputs import Report
    from hfgen.evaluation.processes import is_main_process
    from hfgen.evaluation.real import default_output
    from hfgen.evaluation.samplers import compare_samplers as compare

    output = Path(config.output_dir or default_output(config.runs[0]))
    check_output(output, is_folder=True)
    with writing(output):
        report = Report(compare(config))
    if is_main_process():
        _print_verdict(report.record)
        _name_page("The comparison is in", report.page)
    return report


def results(*folders: Name | ResultsConfig, **fields: Any) -> Path:
    """Put the runs below some folders side by side, like `hfgen results`; return the path of the page."""
    given = folders[0] if folders and isinstance(folders[0], ResultsConfig) else folders or None
    config = _configuration(ResultsConfig, given, fields, "hfgen results", "folders")
    from hfgen.evaluation.results import results_page, write_results
    from hfgen.pipelines.loading import require_folder
    from hfgen.publishing.overview import overview_page

    for folder in config.folders:
        require_folder(folder)
    output = Path(config.output)
    check_output(output, is_folder=False)
    make = overview_page if output.suffix == ".html" else results_page
    with writing(output):
        write_results(make, [Path(folder) for folder in config.folders], output)
    print(f"The results are in {output}")
    return output


def export(run_or_repo: Name | ExportConfig, **fields: Any) -> Path:
    """Write a model as ONNX or torch.export files, like `hfgen export`; return their folder."""
    config = _configuration(ExportConfig, run_or_repo, fields, "hfgen export", "run_or_repo")
    from hfgen.runtimes.write import export as write_export

    check_output(Path(config.output), is_folder=True)
    with writing(Path(config.output)):
        folder = write_export(config)
    print(f"The exported model is in {folder}; its README.md has code that uses it")
    return folder


def demo(*runs: Name | DemoConfig, **fields: Any) -> Path:
    """Write a web page on which models draw in the browser, like `hfgen demo`; return the path of the page."""
    given = runs[0] if runs and isinstance(runs[0], DemoConfig) else runs or None
    config = _configuration(DemoConfig, given, fields, "hfgen demo", "runs")
    from hfgen.runtimes.site import write_site

    check_output(Path(config.output), is_folder=True)
    with writing(Path(config.output)):
        page = write_site(config)
    print(f"The page is {page}; open it in a browser, from disk or from any web server")
    return page


def studio(*runs: Name | StudioConfig, **fields: Any) -> None:
    """Serve a page to train, draw with, edit with and compare models, like `hfgen studio`, until Ctrl-C.

    Args:
        runs: Runs, folders of runs, names of models in `model_cards`, or Hub ids; or one configuration.
        fields: Other configuration fields, as in `hfgen studio --help`.

    Raises:
        UserError: if there is no such model, the port is taken, or the packages of hfgen[studio] are missing.
    """
    given = runs[0] if runs and isinstance(runs[0], StudioConfig) else runs or None
    config = _configuration(StudioConfig, given, fields, "hfgen studio", "runs")
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"hfgen studio needs the package {missing[0]}: pip install 'hfgen[studio]'")
    print("Opening the studio…", flush=True)
    from hfgen.serving.server import serve

    serve(config)


def card(run: Name | CardConfig, **fields: Any) -> Path:
    """Write a model card, like `hfgen card`; return its path."""
    config = _configuration(CardConfig, run, fields, "hfgen card", "run")
    from hfgen.pipelines.loading import require_folder
    from hfgen.publishing.card import gallery_folder, write_card, write_gallery
    from hfgen.publishing.licenses import check_license
    from hfgen.utils.untrusted import INDEX

    require_folder(config.run)
    check_license(config.license)
    folder = gallery_folder(Path(config.gallery), Path(config.run)) if config.gallery else Path(config.run)
    check_output(folder, is_folder=True)
    if config.gallery and not config.weights and (folder / INDEX).exists():
        raise UserError(f"{folder} holds a model; set weights to renew it with its card, or delete it first")
    with writing(folder):
        if config.weights:
            import torch

            from hfgen.publishing.facts import require_run
            from hfgen.publishing.hub import copy_model

            require_run(Path(config.run))
            copy_model(Path(config.run), folder, getattr(torch, config.weights))
            print(f"The model is in {folder}, with weights in {config.weights}")
        rounded = config.weights if config.weights != "float32" else None
        page = write_card(
            Path(config.run), folder, repo_id=config.repo_id, spdx_license=config.license, weights=rounded
        )
    print(f"The model card is in {page}")
    if config.gallery:
        with writing(Path(config.gallery)):
            print(f"The gallery is in {write_gallery(Path(config.gallery))}")
    _renew_page(page.parent)
    return page


def push(run: Name | PushConfig, **fields: Any) -> str | None:
    """Publish a finished run on the Hub, like `hfgen push`.

    Args:
        run: The run folder; or a configuration.
        fields: Other configuration fields, as in `hfgen push --help`: `repo_id`, `private` and so on.

    Returns:
        The URL of the commit or the pull request, or None with `dry_run`, which lists the files.

    Raises:
        UserError: if the run, the token or the repo do not allow it; nothing was uploaded.
        PublishingError: if the upload failed; the message has the command to retry.
    """
    config = _configuration(PushConfig, run, fields, "hfgen push", "run")
    from hfgen.publishing import hub

    if config.dry_run:
        _list_published(Path(config.run), config.repo_id, config.license, demo=config.demo)
        return None
    options = {"private": config.private, "spdx_license": config.license}
    if config.demo:
        with hub.demo_page(Path(config.run), config.repo_id, **options) as page:
            address = hub.push(Path(config.run), config.repo_id, demo=True, **options)
            print(f"Published: {address}")
            print(f"Published: {hub.push_demo(page, config.repo_id)}")
        return address
    branch = {"create_pr": config.create_pr, "revision": config.revision}
    address = hub.push(Path(config.run), config.repo_id, **options, **branch)
    print(f"Published: {address}")
    return address


def publish_all(folder: Name | PublishAllConfig, **fields: Any) -> str | None:
    """Publish all runs, or all models of a gallery, as a collection, like `hfgen publish-all`; return its URL."""
    config = _configuration(PublishAllConfig, folder, fields, "hfgen publish-all", "folder")
    from hfgen.pipelines.loading import require_folder
    from hfgen.publishing import hub
    from hfgen.publishing.card import repositories_of
    from hfgen.runs.folder import RUN_FILE, is_trial

    require_folder(config.folder)
    found = [file.parent for file in sorted(Path(config.folder).rglob(RUN_FILE))]
    found += repositories_of(Path(config.folder))
    runs = [run for run in found if not is_trial(run)]
    if trials := len(found) - len(runs):
        print(f"Trials of studies are left out ({trials}); hfgen push publishes a single one")
    if not runs:
        raise UserError(f"there is no finished run in {config.folder}; to publish a single run, use hfgen push")
    names = [run.name for run in runs]
    if duplicates := {name for name in names if names.count(name) > 1}:
        raise UserError(f"several runs in {config.folder} are called {min(duplicates)} and would be published as one")
    for run in runs:
        hub.check_address(f"{config.namespace}/{run.name}", config.license)
    if config.dry_run:
        for run in runs:
            _list_published(run, f"{config.namespace}/{run.name}", config.license)
        return None
    address = hub.publish_all(
        runs, config.namespace, private=config.private, spdx_license=config.license, collection=config.collection
    )
    print(f"The collection: {address}")
    return address


def recipes() -> dict[str, str]:
    """Return the built-in configurations by name, each with a description."""
    return {name: recipe.about for name, recipe in read_recipes().items()}


def _family(name: Any) -> Family:
    names = families()
    if not isinstance(name, str):
        given = f"the class {name.__name__}" if isinstance(name, type) else shown(name)
        raise UserError(
            f"name a family ({', '.join(names)}), or pass hfgen.train a configuration such as hfgen.VAEConfig(…), "
            f"not {given}"
        )
    if name not in names:
        raise UserError(f"there is no family {name}; there are {', '.join(names)}" + suggest_family(name))
    return names[name]


def _loaded(given: Any, fields: Mapping[str, Any]) -> "tuple[Any, DiffusionPipeline | None]":
    """Return what names a model, and the pipeline if a loaded one was given.

    Raises:
        UserError: for a pipeline whose class is a copy that came with the model, or with fields that concern loading.
    """
    diffusers = sys.modules.get("diffusers")  # imported wherever there is a pipeline
    if diffusers is None or not isinstance(given, diffusers.DiffusionPipeline):
        return given, None
    if type(given).__module__.startswith("diffusers_modules."):
        raise UserError("the class of this pipeline is code that came with the model; load it with hfgen.load")
    if unused := sorted(Options.__annotations__.keys() & fields.keys()):
        raise UserError(f"the pipeline is loaded already: {unused[0]} belongs to hfgen.load")
    return given.name_or_path or type(given).__name__, given


def _entries(search: Mapping[str, Any]) -> list[str]:
    """Write a search or a sweep as on the command line."""

    def text(value: Any) -> str:
        if isinstance(value, list | tuple):
            return " ".join(map(text, value))
        return json.dumps(value) if value is None or isinstance(value, bool) else str(value)

    return [
        f"{name}={values if isinstance(values, str) else ','.join(map(text, values))}"
        for name, values in search.items()
    ]


def _list_published(run: Path, repo_id: str, spdx_license: str, demo: bool = False) -> None:
    from hfgen.publishing import hub

    files = hub.list_published(run, repo_id, spdx_license)
    print(f"{run} would be published as {repo_id}:")
    for name, size in files:
        print(f"{size:>12,} {name}")
    if demo:
        print(f"and the page of hfgen demo as the static Space {repo_id}")


def _configuration(
    config_class: type, first: Any, fields: Mapping[str, Any], prog: str, positional: str = "run_or_repo"
) -> Any:
    """Return the given configuration with other values for some fields, or create one from fields."""
    if isinstance(first, config_class):
        return make_config(config_class, fields, prog=prog, base=vars(first))
    values = {} if first is None else {positional: first}
    return make_config(config_class, values | dict(fields), prog=prog, positional=positional)


def _with_output(
    config_class: type, first: Any, output: Name | None, fields: Mapping[str, Any], prog: str
) -> tuple[Any, Path | None]:
    """Return a configuration and the output path: None without an output and a configuration."""
    if output is not None:
        fields = {"output": str(output), **fields}
    config = _configuration(config_class, first, fields, prog)
    is_written = output is not None or isinstance(first, config_class)
    return config, Path(config.output).expanduser() if is_written else None


def _name_page(what: str, page: Path) -> None:
    """Print where a report and its pictures are, and renew the card and the page of the run that it is part of."""
    pictures = page.with_suffix("")
    print(f"{what} {page}" + (f", its pictures in {pictures}" if pictures.is_dir() else ""))
    _renew_card(page.parent)
    _renew_page(page.parent)


def _renew_card(run: Path) -> None:
    from hfgen.publishing.card import renew_card

    try:
        if card := renew_card(run):
            print(f"The model card {card} is renewed")
    except (UserError, OSError) as error:
        print(f"hfgen: the model card of {run} was not renewed: {error}", file=sys.stderr)


def _print_verdict(record: dict[str, Any]) -> None:
    from hfgen.evaluation.verdict import verdict

    print("In short:", *verdict(record), sep="\n- ")


def _renew_page(run: Path) -> None:
    from hfgen.publishing.pages import PageWriter

    PageWriter().publish(run)


def _reports(config: Any, write: Callable[[Any], Path], what: str) -> "Report | list[Report]":
    """Write the report of a run, or of each run of a sweep and then the page of the sweep."""
    from hfgen.api.outputs import Report
    from hfgen.evaluation.processes import is_main_process
    from hfgen.evaluation.real import default_output
    from hfgen.evaluation.sweep_report import write_page
    from hfgen.training.sweep import members_of

    runs: list[Any] = members_of(config.run_or_repo) if config.run_or_repo else [None]
    if runs != [config.run_or_repo] and config.output_dir:
        raise UserError("the reports of a sweep are written to its runs' folders; leave output_dir out")
    reports = []
    outputs = [Path(config.output_dir or default_output(run)) for run in runs]
    for output in outputs:
        check_output(output, is_folder=True)
    for run, output in zip(runs, outputs, strict=True):
        with writing(output):
            reports.append(Report(write(dataclasses.replace(config, run_or_repo=run))))
        if is_main_process():
            _print_verdict(reports[-1].record)
            _name_page(what, reports[-1].page)
    if runs == [config.run_or_repo]:
        return reports[0]
    if is_main_process():
        folder = Path(config.run_or_repo).expanduser()
        with writing(folder):
            write_page(folder)
    return reports
