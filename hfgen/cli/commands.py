"""The commands: parse the configuration, then call the Python API."""

import itertools
import os
import sys
import textwrap

from hfgen.api import calls
from hfgen.config.commands import (
    AnalyzeConfig,
    CardConfig,
    CompareSamplersConfig,
    DemoConfig,
    EvaluateConfig,
    ExportConfig,
    PublishAllConfig,
    PushConfig,
    ResultsConfig,
    SampleConfig,
    StudioConfig,
    TranslateConfig,
)
from hfgen.config.parser import parse_config
from hfgen.config.recipes import Recipe, read_recipes
from hfgen.config.suggestions import suggestion
from hfgen.config.training import SHORT_NAMES
from hfgen.config.tuning import tuning_config
from hfgen.families import Family, families, suggest_family
from hfgen.utils.errors import UserError

CALLS = {  # command: API call, configuration, positional field
    "sample": (calls.sample, SampleConfig, "run_or_repo"),
    "translate": (calls.edit, TranslateConfig, "run_or_repo"),
    "evaluate": (calls.evaluate, EvaluateConfig, "run_or_repo"),
    "analyze": (calls.analyze, AnalyzeConfig, "run_or_repo"),
    "compare-samplers": (calls.compare_samplers, CompareSamplersConfig, "runs"),
    "results": (calls.results, ResultsConfig, "folders"),
    "export": (calls.export, ExportConfig, "run_or_repo"),
    "demo": (calls.demo, DemoConfig, "runs"),
    "studio": (calls.studio, StudioConfig, "runs"),
    "card": (calls.card, CardConfig, "run"),
    "push": (calls.push, PushConfig, "run"),
    "publish-all": (calls.publish_all, PublishAllConfig, "folder"),
}
ON_ALL_PROCESSES = {"evaluate", "compare-samplers"}  # of a launcher; other commands run on the main one
COMMANDS = (*CALLS, "recipes")
RECIPES_HEADER = """Start here: hfgen train ddpm --config ddpm_digits_quickstart (two and a half minutes, no download)

A recipe marked * is a good first one of its family. Below each are the measured training time and the main result; the
header of its file in hfgen/recipes has the details. Fréchet distances are in the feature space of the first judge, a
classifier of the data set: lower is better (docs/measuring.md)."""


def run_train(family: Family, arguments: list[str], *, prog: str | None = None, positional: str | None = None) -> None:
    """Train a model of a family, or the runs of a sweep.

    Args:
        family: The family.
        arguments: The command line after the command.
        prog: The command; by default `hfgen train` with the family.
        positional: A field that is given without a flag.
    """
    config = parse_config(family.config, arguments, prog=prog or f"hfgen train {family.name}", positional=positional)
    flags = {argument.removeprefix("--").partition("=")[0] for argument in arguments if argument.startswith("--")}
    calls.train_configured(config, flags)


def run_tune(family: Family, arguments: list[str]) -> None:
    """Tune the hyper-parameters of a family."""
    calls.tune_configured(parse_config(tuning_config(family.config), arguments, prog=f"hfgen tune {family.name}"))


def run_command(command: str, arguments: list[str]) -> int:
    """Run a command other than `hfgen train`; return the exit status."""
    if command == "recipes":
        _list_recipes(arguments)
        return 0
    call, config_class, positional = CALLS[command]
    if command not in ON_ALL_PROCESSES and (size := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        if os.environ.get("RANK", "0") != "0":
            return 0
        print(f"hfgen: {command} runs in one of the {size} processes; the others end", file=sys.stderr)
    done = call(parse_config(config_class, arguments, prog=f"hfgen {command}", positional=positional))
    return 1 if command == "translate" and done.unreadable else 0


def _list_recipes(arguments: list[str]) -> None:
    """Print the recipes by data set and family, classifiers last, each with its time and result.

    Args:
        arguments: Families and data sets to list; without a family all of them, and likewise without a data set.
    """
    names, datasets = list(families()), ["digits", *SHORT_NAMES]
    asked = [word for word in arguments if word not in ("-h", "--help")]
    if unknown := next((word for word in asked if word not in (*names, *datasets)), None):
        near = suggest_family(unknown) or suggestion(unknown, [*names, *datasets])
        raise UserError(
            f"hfgen recipes lists those of a family ({', '.join(names)}) or a data set ({', '.join(datasets)}), or "
            f"all, not of {unknown}{near}"
        )
    print(RECIPES_HEADER)

    def place(recipe: Recipe) -> tuple[bool, int, int]:
        return recipe.family == "classifier", datasets.index(recipe.dataset), names.index(recipe.family)

    def is_asked(recipe: Recipe) -> bool:
        return all(
            set(asked).isdisjoint(kinds) or kind in asked
            for kind, kinds in (
                (recipe.family, names),
                (recipe.dataset, datasets),
            )
        )

    chosen = filter(is_asked, read_recipes().values())
    recipes = sorted(chosen, key=lambda r: (*place(r), not r.is_first, not r.is_trained))
    for _, group in itertools.groupby(recipes, key=place):
        for position, recipe in enumerate(group):
            if not position:
                print(f"\n{recipe.dataset}: hfgen train {recipe.family}")
            print(f"{'*' if recipe.is_first else ' '} {recipe.name}")
            for text in (recipe.about, recipe.summary):
                print(textwrap.fill(text, 100, initial_indent=" " * 6, subsequent_indent=" " * 6))
