"""The commands: parse the configuration, then call the Python API."""

from hfgen.api import calls
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
from hfgen.config.parser import parse_config
from hfgen.families import Family
from hfgen.utils.errors import UserError

CALLS = {  # command: API call, configuration, positional field
    "sample": (calls.sample, SampleConfig, "run_or_repo"),
    "translate": (calls.edit, TranslateConfig, "run_or_repo"),
    "evaluate": (calls.evaluate, EvaluateConfig, "run_or_repo"),
    "analyze": (calls.analyze, AnalyzeConfig, "run_or_repo"),
    "compare-samplers": (calls.compare_samplers, CompareSamplersConfig, "runs"),
    "results": (calls.results, ResultsConfig, "folders"),
    "card": (calls.card, CardConfig, "run"),
    "push": (calls.push, PushConfig, "run"),
    "publish-all": (calls.publish_all, PublishAllConfig, "folder"),
}
COMMANDS = (*CALLS, "recipes")


def run_train(family: Family, arguments: list[str]) -> None:
    """Train a model of a family, or the runs of a sweep."""
    config = parse_config(family.config, arguments, prog=f"hfgen train {family.name}")
    flags = {argument.removeprefix("--").partition("=")[0] for argument in arguments if argument.startswith("--")}
    calls.train_configured(config, flags)


def run_command(command: str, arguments: list[str]) -> int:
    """Run a command other than `hfgen train`; return the exit status."""
    if command == "recipes":
        _list_recipes(arguments)
        return 0
    call, config_class, positional = CALLS[command]
    done = call(parse_config(config_class, arguments, prog=f"hfgen {command}", positional=positional))
    return 1 if command == "translate" and done.unreadable else 0


def _list_recipes(arguments: list[str]) -> None:
    if arguments:
        raise UserError("hfgen recipes takes no arguments; it lists the built-in configurations for --config")
    recipes = calls.recipes()
    width = max(map(len, recipes)) + 2
    for name, about in recipes.items():
        print(f"{name:{width}}{about}")
