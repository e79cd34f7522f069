"""The command line, which imports nothing heavy before it knows the command."""

import dataclasses
import difflib
import functools
import re
import sys
import typing
from argparse import ArgumentError
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from docstring_parser import parse as parse_docstring
from jsonargparse import ActionYesNo, ArgumentParser

import hfgen
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
from hfgen.config.training import CONFIG_FILE
from hfgen.utils.errors import InterruptedTrainingError, PublishingError, TrainingError, UserError

LARGEST_CONFIG = 10**6  # bytes
RECIPES = Path(__file__).parents[1] / "recipes"
FAMILIES = {
    config.family: config
    for config in (DDPMConfig, VAEConfig, GANConfig, TranslationConfig, CycleGANConfig, ClassifierConfig)
}
USAGE = f"""usage: hfgen COMMAND …

Train, measure and publish small-image generative models.

commands:
  train FAMILY   train a model; FAMILY is {" or ".join(FAMILIES)}
  sample RUN     draw images from a run, a checkpoint, a folder or a Hub id
  translate RUN  change given images: what the model was trained for, or denoise, vary, fill in, change the class
  evaluate RUN   measure how good its images are, or a classifier, or --images from anywhere
  analyze RUN    look into the latents of a VAE: reconstructions, bounds, interpolations
  compare-samplers RUN  find the cheapest scheduler, steps and guidance that draw as well as the best
  results        make one table of all evaluations
  card RUN       write the page that a model has on the Hub
  push RUN       publish a model on the Hub
  publish-all    publish every model in a folder of runs, as a collection
  recipes        list the ready-made configurations for --config

hfgen COMMAND --help says more; hfgen --version prints the version."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return the exit status: 0 done, 1 not all of it could be, 2 the input cannot work."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(arguments)
    except UserError as error:
        _print_error(error)
        return 2
    except TrainingError as error:
        _print_error(error)
        return 128 + error.signal_number if isinstance(error, InterruptedTrainingError) else 1
    except (OSError, PublishingError) as error:
        _print_error(error)
        return 1
    except KeyboardInterrupt:
        print("hfgen: interrupted", file=sys.stderr)
        return 130


def _print_error(error: Exception) -> None:
    """Print a message, in which names from files of strangers may stand, without what a terminal would obey."""
    text = "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in str(error))
    print(f"hfgen: {text}", file=sys.stderr)


def _run(arguments: list[str]) -> int:
    match arguments:
        case [] | ["-h" | "--help"]:
            print(USAGE)
        case ["--version"]:
            print(f"hfgen {hfgen.__version__}")
        case ["train", family, *rest] if family in FAMILIES:
            _train(FAMILIES[family], rest)
        case ["train", "-h" | "--help"]:
            print(
                f"usage: hfgen train FAMILY …; FAMILY is {' or '.join(FAMILIES)}. hfgen train FAMILY --help says more."
            )
        case ["train", *rest]:
            raise UserError(
                f"hfgen train needs a family first ({', '.join(FAMILIES)})" + _suggestion(rest[:1], FAMILIES)
            )
        case [command, *rest] if command in COMMANDS:
            return COMMANDS[command](rest) or 0
        case [command, *_]:
            raise UserError(
                f"there is no command {command}" + _suggestion([command], ["train", *COMMANDS]) + "\n\n" + USAGE
            )
    return 0


def _train(config_class: type[TrainingConfig], arguments: list[str]) -> None:
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
        from hfgen.training.sweep import parse_sweep, train_members

        given = {argument.removeprefix("--").partition("=")[0] for argument in arguments if argument.startswith("--")}
        if both := given & parse_sweep(config.sweep)[0].keys():
            raise UserError(f"{min(both)} is swept, and cannot be given as a flag too")
        page = train_members(config, lambda flags: parse([*arguments, *flags]), Task)
        print(f"The members of the sweep are side by side in {page}")
    else:
        train(config, Task)


def _sample(arguments: list[str]) -> None:
    config = parse_config(SampleConfig, arguments, prog="hfgen sample", positional="run_or_repo")
    import torch

    from hfgen.evaluation.real import run_fields
    from hfgen.figures import pictures as figures
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
        states = film(pipeline, num_frames=figures.FILM_FRAMES if is_gif else figures.STRIP_FRAMES, **options)
        figures.save_film(*states, output) if is_gif else figures.save_picture(figures.film_strip(*states), output)
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
            figures.save_picture(figures.sample_grid(images, labels, names), output)
        case ".npz":
            others = {} if labels is None else {"labels": labels, "label_names": names}
            figures.save_arrays(images, output, **others)
        case _:
            figures.save_images(images, output)
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
    from hfgen.training.sweep import members_of, write_page

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
    from hfgen.evaluation.report import results_page
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


def parse_config(config_class: type, arguments: list[str], *, prog: str, positional: str | None = None) -> Any:
    """Build a configuration from the defaults, the file that `--config` names, and flags, each winning over the last.

    Args:
        config_class: A flat dataclass; its docstring says what each field means.
        arguments: The command line after the command.
        prog: The command, for messages.
        positional: The field that is given without a flag.

    Raises:
        UserError: for an unknown flag or key (with a suggestion), or a value of a wrong type.
        SystemExit: after printing help.
    """
    parser = _make_parser(config_class, prog, positional)
    known = {field.name for field in dataclasses.fields(config_class)}
    flags = known - {positional} | {"config", "help"}
    for argument in arguments:
        name = argument.removeprefix("--").partition("=")[0]
        if argument.startswith("--") and name not in flags and name.removeprefix("no_") not in flags:
            raise UserError(f"there is no flag --{name}" + _suggestion([name], sorted(flags), "--"))
    try:
        file = parser.parse_args(arguments).config
        if file is not None:
            values = _read_config_file(file)
            if folder := _run_of(file):
                values["output_dir"] = folder
            _check_fields(values, file, known, typing.get_type_hints(config_class))
            parser.set_defaults(parser.parse_object(values, defaults=False).as_dict())
        namespace = parser.parse_args(arguments)
    except (ArgumentError, TypeError, ValueError) as error:  # TypeError: of words in the place of a list's entries
        message = re.sub(r'Parser key "(\w+)":|<class \'(\w+)\'>|typing\.', r"\1\2", " ".join(str(error).split()))
        raise UserError(f"{message}; see {prog} --help") from error
    fields = {name: namespace[name] for name in known}
    for name, value in fields.items():
        for text in value if isinstance(value, list) else [value]:
            _require_home(name, text)
    return config_class(**fields)


def _require_home(name: str, value: Any) -> None:
    if isinstance(value, str) and value.startswith("~"):
        try:
            Path(value).expanduser()
        except RuntimeError as error:
            raise UserError(f"{name} is {value}, and there is no user of that name here") from error


def _make_parser(config_class: type, prog: str, positional: str | None) -> ArgumentParser:
    ancestry = [parse_docstring(c.__doc__) for c in config_class.__mro__[:-1]]
    help_texts = {p.arg_name: p.description for documented in reversed(ancestry) for p in documented.params}
    hints = typing.get_type_hints(config_class)
    parser = ArgumentParser(prog=prog, description=ancestry[0].short_description, exit_on_error=False)
    parser.add_argument("--config", help="Recipe (see hfgen recipes) or YAML file to take values from; flags win.")
    for field in dataclasses.fields(config_class):
        hint, default = hints[field.name], field.default
        options: dict[str, Any] = {"help": " ".join(help_texts[field.name].split())}
        if hint in (bool, bool | None):
            options["action"] = ActionYesNo(no_prefix="no_")
        elif item := _item_type(hint):
            options |= {"nargs": "*" if field.name == positional else "+", "type": item}
            default = default if field.default_factory is dataclasses.MISSING else field.default_factory()
        else:
            options |= {"type": hint} | ({"nargs": "?"} if field.name == positional else {})
        if field.name != positional and default is dataclasses.MISSING and not options.get("nargs"):
            parser.add_argument(f"--{field.name}", required=True, **options)
        elif field.name != positional:
            parser.add_argument(f"--{field.name}", default=default, **options)
        elif default is dataclasses.MISSING:
            parser.add_argument(field.name, type=hint, help=options["help"])
        else:
            parser.add_argument(field.name, default=default, **options)
    return parser


def _item_type(hint: Any) -> type | None:
    """Return what a field of lists, or of lists or None, holds; of another field None."""
    lists = [part for part in (hint, *typing.get_args(hint)) if typing.get_origin(part) is list]
    return typing.get_args(lists[0])[0] if lists else None


def _check_fields(values: dict[Any, Any], file: str, known: set[str], hints: dict[str, Any]) -> None:
    """Refuse fields of a file that are unknown, or of no kind that a field has; take `no` as the word that it is."""
    for key, value in values.items():
        if key not in known:
            raise UserError(f"{file} has an unknown field {key}" + _suggestion([str(key)], sorted(known)))
        words = [word for part in (hints[key], *typing.get_args(hints[key])) for word in typing.get_args(part)]
        if value is False and "no" in words:  # what YAML makes of an unquoted no
            values[key] = "no"
        if value is None and type(None) not in typing.get_args(hints[key]):
            raise UserError(f"{file}: {key} must have a value, not null; leave the line out for the default")
        if _item_type(hints[key]) and not isinstance(value, list | None):
            entries = ", ".join(str(value).split())
            raise UserError(f"{file}: {key} must be a list, as in {key}: [{entries}], not {value!r}")
        if isinstance(value, dict):
            raise UserError(f"{file}: {key} must be a value or a list, not further fields")


def _read_config_file(name: str) -> dict[str, Any]:
    recipe = RECIPES / f"{name}.yaml"
    path = recipe if recipe.exists() else Path(name)
    if path.is_dir():
        inside = path / "config.yaml"
        raise UserError(f"{name} is a folder" + (f"; did you mean {inside}?" if inside.is_file() else ""))
    if not path.is_file():
        recipes = sorted(p.stem for p in RECIPES.glob("*.yaml"))
        raise UserError(
            f"there is no configuration file {name} and no such recipe ({', '.join(recipes)})"
            + _suggestion([name], recipes)
        )
    if (size := path.stat().st_size) > LARGEST_CONFIG:
        raise UserError(f"{path} has {size:,} bytes, and a configuration has {LARGEST_CONFIG:,} at most")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold fields and their values, one `field: value` a line")
    return values


def _run_of(file: str) -> str | None:
    """Return the folder of the run whose configuration a file is: there it goes on, wherever it was begun."""
    path = Path(file)
    of_run = path.name == CONFIG_FILE and any((path.parent / name).exists() for name in ("checkpoints", ".lock"))
    return str(path.parent) if of_run else None


def _suggestion(words: Sequence[str], known: Iterable[str], prefix: str = "") -> str:
    near = [match for word in words for match in difflib.get_close_matches(word.replace("-", "_"), list(known), n=1)]
    return f"; did you mean {prefix}{near[0]}?" if near else ""
