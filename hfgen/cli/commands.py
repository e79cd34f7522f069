"""What each command does, one short function a command."""

import dataclasses
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hfgen.config import (
    ClassifierConfig,
    CycleGANConfig,
    DDPMConfig,
    GANConfig,
    TrainingConfig,
    TranslationConfig,
    VAEConfig,
)
from hfgen.config.commands import (
    AnalyzeConfig,
    CardConfig,
    CompareSamplersConfig,
    EvaluateConfig,
    PublishAllConfig,
    PushConfig,
    ResultsConfig,
    SampleConfig,
    TranslateConfig,
)
from hfgen.config.parser import RECIPES, parse_config
from hfgen.utils.errors import UserError

FAMILIES = {
    config.family: config
    for config in (DDPMConfig, VAEConfig, GANConfig, TranslationConfig, CycleGANConfig, ClassifierConfig)
}


def train_family(config_class: type[TrainingConfig], arguments: list[str]) -> None:
    """Train a model of a family, or the members of a sweep."""
    parse = functools.partial(parse_config, config_class, prog=f"hfgen train {config_class.family}")
    config = parse(arguments)
    from hfgen.training.run import train

    match config_class.family:
        case "ddpm":
            from hfgen.tasks.diffusion import DiffusionTask as Task
        case "vae":
            from hfgen.tasks.vae import VAETask as Task
        case "gan":
            from hfgen.tasks.gan import GANTask as Task
        case "translation":
            from hfgen.tasks.translation import TranslationTask as Task
        case "cyclegan":
            from hfgen.tasks.cyclegan import CycleGANTask as Task
        case "classifier":
            from hfgen.tasks.classifier import ClassifierTask as Task
    if config.sweep:
        from hfgen.evaluation.sweep_report import write_page
        from hfgen.training.sweep import parse_sweep, train_members

        given = {argument.removeprefix("--").partition("=")[0] for argument in arguments if argument.startswith("--")}
        if both := given & parse_sweep(config.sweep)[0].keys():
            raise UserError(f"{min(both)} is swept, and cannot be given as a flag too")
        folder = train_members(config, lambda flags: parse([*arguments, *flags]), Task)
        print(f"The members of the sweep are side by side in {write_page(folder)}")
    else:
        train(config, Task)


def _sample(arguments: list[str]) -> None:
    config = parse_config(SampleConfig, arguments, prog="hfgen sample", positional="run_or_repo")
    import torch

    from hfgen.evaluation.real import run_fields
    from hfgen.figures.animations import FILM_FRAMES, STRIP_FRAMES, film_strip, save_film
    from hfgen.figures.grids import sample_grid, save_arrays, save_images, save_picture
    from hfgen.pipelines.loading import load
    from hfgen.sampling.sample import default_sampler, film, is_conditional, labels_of, sample
    from hfgen.utils.devices import default_device

    pipeline = load(config.run_or_repo, revision=config.revision, trust_remote_code=config.trust_remote_code).to(
        default_device()
    )
    output = Path(config.output).expanduser()
    suffix = output.suffix.lower()
    own = default_sampler(pipeline, run_fields(Path(config.run_or_repo).expanduser()))
    options = own | config.given_sampler()
    options |= {name: getattr(config, name) for name in ("num_images", "class_labels", "seed")}
    if config.negative_class_labels:
        options["negative_class_labels"] = config.negative_class_labels
    if config.film:
        is_gif = suffix == ".gif"
        _say_if_replaced(output)
        states = film(pipeline, num_frames=FILM_FRAMES if is_gif else STRIP_FRAMES, **options)
        save_film(*states, output) if is_gif else save_picture(film_strip(*states), output)
        print(f"The denoising of {config.num_images} images is in {output}")
        return
    images = torch.cat(list(sample(pipeline, batch_size=config.batch_size, **options)))
    labels, names = None, []
    if is_conditional(pipeline):
        labels = labels_of(pipeline, config.class_labels, range(config.num_images))
        names = [name for _, name in sorted(pipeline.config.id2label.items())]
    _say_if_replaced(output)
    match suffix:
        case ".png":
            save_picture(sample_grid(images, labels, names), output)
        case ".npz":
            others = {} if labels is None else {"labels": labels, "label_names": names}
            save_arrays(images, output, **others)
        case _:
            save_images(images, output)
    print(f"{config.num_images} images are in {output}")


def _say_if_replaced(output: Path) -> None:
    if output.is_file():
        print(f"hfgen: replaces {output}", file=sys.stderr)
    elif output.is_dir() and any(output.iterdir()):
        print(f"hfgen: {output} holds files already; those of the same names are replaced", file=sys.stderr)


def _translate(arguments: list[str]) -> int:
    config = parse_config(TranslateConfig, arguments, prog="hfgen translate", positional="run_or_repo")
    from hfgen.evaluation.real import run_fields
    from hfgen.sampling.edit import translate

    _say_if_replaced(Path(config.output).expanduser())
    count, unreadable = translate(config, run_fields(Path(config.run_or_repo).expanduser()))
    print(f"{count} image{'s are' if count > 1 else ' is'} in {config.output}")
    for file, why in unreadable.items():
        print(f"hfgen: left out {file}, which cannot be read as a picture ({why})", file=sys.stderr)
    return 1 if unreadable else 0


def _evaluate(arguments: list[str]) -> None:
    config = parse_config(EvaluateConfig, arguments, prog="hfgen evaluate", positional="run_or_repo")
    from hfgen.evaluation.evaluate import evaluate

    for member in _members(config):
        print(f"The measures are in {evaluate(member)}")


def _analyze(arguments: list[str]) -> None:
    config = parse_config(AnalyzeConfig, arguments, prog="hfgen analyze", positional="run_or_repo")
    from hfgen.evaluation.vae import analyze

    for member in _members(config):
        print(f"The analysis is in {analyze(member)}")


def _members(config: Any) -> Iterator[Any]:
    """Yield the configuration for each member of a sweep, whose page is renewed in the end; of a run, as it is."""
    from hfgen.evaluation.sweep_report import write_page
    from hfgen.training.sweep import members_of

    runs = members_of(config.run_or_repo) if config.run_or_repo else [None]
    if runs == [config.run_or_repo]:
        yield config
        return
    if config.output_dir:
        raise UserError("of a sweep, the reports go into the folders of its members; leave output_dir out")
    for run in runs:
        yield dataclasses.replace(config, run_or_repo=run)
    write_page(Path(config.run_or_repo).expanduser())


def _compare_samplers(arguments: list[str]) -> None:
    config = parse_config(CompareSamplersConfig, arguments, prog="hfgen compare-samplers", positional="runs")
    from hfgen.evaluation.samplers import compare_samplers

    print(f"The comparison is in {compare_samplers(config)}")


def _results(arguments: list[str]) -> None:
    config = parse_config(ResultsConfig, arguments, prog="hfgen results", positional="folders")
    from hfgen.evaluation.results import results_page
    from hfgen.utils.files import complete_or_absent

    output = Path(config.output)
    if output.is_file() and "`hfgen results`" not in output.read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"{output} is not by hfgen results, and would be written over; name another --output")
    page = results_page([Path(folder) for folder in config.folders], output.parent)
    with complete_or_absent(output) as temporary:
        temporary.write_text(page)
    print(f"The table is in {config.output}")


def _card(arguments: list[str]) -> None:
    config = parse_config(CardConfig, arguments, prog="hfgen card", positional="run")
    from hfgen.pipelines.loading import require_folder
    from hfgen.publishing.card import gallery_folder, write_card, write_gallery
    from hfgen.publishing.hub import check_license

    require_folder(config.run)
    check_license(config.license)
    run = Path(config.run)
    folder = gallery_folder(Path(config.gallery), run) if config.gallery else run
    print(f"The page is in {write_card(run, folder, repo_id=config.repo_id, spdx_license=config.license)}")
    if config.gallery:
        print(f"The wall of pictures is in {write_gallery(Path(config.gallery))}")


def _push(arguments: list[str]) -> None:
    config = parse_config(PushConfig, arguments, prog="hfgen push", positional="run")
    from hfgen.publishing import hub

    if config.dry_run:
        _list_published(Path(config.run), config.repo_id, config.license)
        return
    address = hub.push(
        Path(config.run),
        config.repo_id,
        private=config.private,
        create_pr=config.create_pr,
        revision=config.revision,
        spdx_license=config.license,
    )
    print(f"Published: {address}")


def _list_published(run: Path, repo_id: str, spdx_license: str) -> None:
    from hfgen.publishing import hub

    files = hub.list_published(run, repo_id, spdx_license)
    print(f"{run} would be published as {repo_id}:")
    for name, size in files:
        print(f"{size:>12,} {name}")


def _publish_all(arguments: list[str]) -> None:
    config = parse_config(PublishAllConfig, arguments, prog="hfgen publish-all", positional="folder")
    from hfgen.pipelines.loading import require_folder
    from hfgen.publishing import hub
    from hfgen.runs.record import RUN_FILE

    require_folder(config.folder)
    runs = [file.parent for file in sorted(Path(config.folder).rglob(RUN_FILE))]
    if not runs:
        raise UserError(f"there is no finished run in {config.folder}; hfgen push publishes a single one")
    names = [run.name for run in runs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"several runs in {config.folder} are called {min(twice)}, and would be published as one")
    if config.dry_run:
        for run in runs:
            _list_published(run, f"{config.namespace}/{run.name}", config.license)
        return
    address = hub.publish_all(
        runs, config.namespace, private=config.private, spdx_license=config.license, collection=config.collection
    )
    print(f"The collection: {address}")


def _list_recipes(arguments: list[str]) -> None:
    if arguments:
        raise UserError("hfgen recipes takes no arguments; it lists the ready-made configurations for --config")
    recipes = sorted(RECIPES.glob("*.yaml"))
    width = max(len(path.stem) for path in recipes) + 2
    for path in recipes:
        about = path.read_text().splitlines()[0].lstrip("# ")
        print(f"{path.stem:{width}}{about}")


COMMANDS = {
    "sample": _sample,
    "translate": _translate,
    "evaluate": _evaluate,
    "analyze": _analyze,
    "compare-samplers": _compare_samplers,
    "results": _results,
    "card": _card,
    "push": _push,
    "publish-all": _publish_all,
    "recipes": _list_recipes,
}
