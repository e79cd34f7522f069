"""Search spaces, typed by the fields of a configuration: `learning_rate=1e-4..1e-2:log`, `optimizer=adamw,muon`."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from hfgen.config.fields import Field, fields_of
from hfgen.config.suggestions import field_suggestion
from hfgen.config.training import TrainingConfig
from hfgen.config.vae import FLOW_FIELDS
from hfgen.evaluation.sweep_report import SAME_LOSS
from hfgen.utils.errors import UserError

EXAMPLE = "such as learning_rate=1e-4..1e-2:log or optimizer=adamw,muon"
MOST_CORNERS = 2000  # of which each is tried
FIXED_GROUPS = {"Data", "Training length", "Evaluation while training", "Saving", "Publishing"}
NOT_FIXED = {"random_flip", "random_shift", "random_erase", "train_batch_size", "gradient_accumulation_steps"}
CHANGES_LIKELIHOOD = {"pixel_distribution", "binarization", "class_conditional"}
NOT_IN_LIKELIHOOD = {"prior", "num_mixture_components", *FLOW_FIELDS}  # only of the samples


@dataclass(frozen=True)
class Range:
    """The numbers between two ends, both included.

    Attributes:
        low: The smallest.
        high: The largest.
        log: Whether the logarithm is uniform.
    """

    low: float
    high: float
    log: bool

    @property
    def distribution(self) -> BaseDistribution:
        """The distribution, for Optuna."""
        kind = IntDistribution if isinstance(self.low, int) else FloatDistribution
        return kind(self.low, self.high, log=self.log)

    @property
    def ends(self) -> dict[str, Any]:
        """The values to check, by their texts."""
        return {f"{end:g}": end for end in (self.low, self.high)}

    def suggest(self, trial: Trial, name: str) -> Any:
        """Return the value of a trial."""
        suggest = trial.suggest_int if isinstance(self.low, int) else trial.suggest_float
        return suggest(name, self.low, self.high, log=self.log)

    def suggested(self, value: Any) -> Any:
        """Return what Optuna would suggest for a value of the field, or None if it is outside."""
        return value if value is not None and self.low <= value <= self.high else None


@dataclass(frozen=True)
class Choice:
    """Some values.

    Attributes:
        ends: The values, by their texts, which are what Optuna has.
    """

    ends: Mapping[str, Any]

    @property
    def distribution(self) -> BaseDistribution:
        """The distribution, for Optuna."""
        return CategoricalDistribution(list(self.ends))

    def suggest(self, trial: Trial, name: str) -> Any:
        """Return the value of a trial."""
        return self.ends[trial.suggest_categorical(name, list(self.ends))]

    def suggested(self, value: Any) -> Any:
        """Return what Optuna would suggest for a value of the field, or None if it is no choice."""
        return next((text for text, choice in self.ends.items() if choice == value), None)


class SearchSpace:
    """The fields that a study searches.

    Args:
        search: Its entries.
        config_class: The configuration whose fields they are.

    Raises:
        UserError: for a malformed entry, an unknown field (with a suggestion), one that cannot be searched, or a value
            of a wrong type.
    """

    def __init__(self, search: Sequence[str], config_class: type[TrainingConfig]):
        fields = fields_of(config_class)
        self.parameters: dict[str, Range | Choice] = {}
        for entry in search:
            name, equals, text = entry.partition("=")
            if not equals or not name or not text:
                raise UserError(f"a search entry must be a field and its values, {EXAMPLE}, not {entry}")
            if name not in fields:
                raise UserError(f"search: there is no field {name}" + field_suggestion(name, fields))
            if name in self.parameters:
                raise UserError(f"search has {name} twice")
            if fields[name].group in FIXED_GROUPS and name not in NOT_FIXED:
                raise UserError(f"{name} cannot be searched: trials have the same data, budget and evaluation")
            self.parameters[name] = _parse(fields[name], text)

    def __iter__(self):
        return iter(self.parameters)

    def require_comparable(self, metric: str) -> None:
        """Check that the values of a metric compare between all points of the space.

        Raises:
            UserError: naming a field that changes what the metric measures.
        """
        for name in self.parameters:
            if metric == "negative_elbo" and name in CHANGES_LIKELIHOOD:
                raise UserError(
                    f"{name} cannot be searched: trials are compared by the −ELBO, which means something else for "
                    "each of its values"
                )
            if metric == "negative_elbo" and name in NOT_IN_LIKELIHOOD:
                raise UserError(
                    f"{name} cannot be searched: trials are compared by the −ELBO, which does not depend on it"
                )
            if metric.startswith("loss/") and name not in SAME_LOSS:
                raise UserError(
                    f"{name} cannot be searched: it may change the loss function, and {metric} selects the best trial"
                )

    def check(self, build: Callable[[dict[str, Any]], Any]) -> str | None:
        """Build the configuration of each corner of the space.

        Args:
            build: Builds it from the searched fields.

        Returns:
            A remark on combinations that are invalid, or None.

        Raises:
            UserError: if a value is invalid in every corner.
        """
        valid: set[tuple[str, str]] = set()
        errors: dict[tuple[str, str], UserError] = {}
        ends = [[(name, text) for text in part.ends] for name, part in self.parameters.items()]
        invalid = 0
        for count, corner in enumerate(itertools.islice(itertools.product(*ends), MOST_CORNERS), 1):  # noqa: B007
            try:
                build({name: self.parameters[name].ends[text] for name, text in corner})
                valid.update(corner)
            except UserError as error:
                invalid += 1
                errors |= {end: error for end in corner if end not in errors}
        for name, text in errors.keys() - valid:
            raise UserError(f"search {name}={text}: {errors[name, text]}")
        if not errors:
            return None
        why = next(iter(errors.values()))
        return f"{invalid} of {count} combinations of values are invalid, and their trials will fail: {why}"

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """Return the values of a trial; those that it already has stay."""
        return {name: part.suggest(trial, name) for name, part in self.parameters.items()}

    def starting_point(self, config: TrainingConfig) -> tuple[dict[str, Any], list[str]]:
        """Return a configuration as a point of the space, and the fields of which its value is outside."""
        values = {name: part.suggested(getattr(config, name)) for name, part in self.parameters.items()}
        return values, [name for name, value in values.items() if value is None]

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the distributions by field."""
        return {name: part.distribution for name, part in self.parameters.items()}

    def logarithmic(self) -> dict[str, bool]:
        """Return whether the range of each field is logarithmic."""
        return {name: isinstance(part, Range) and part.log for name, part in self.parameters.items()}


def _parse(field: Field, text: str) -> Range | Choice:
    """Return the values of an entry, in the type of the field."""
    if ".." in text and field.kind in (int, float) and not field.is_list:
        return _range(field, text)
    texts = text.split(",")
    choices = {text.strip(): _read(field, text.strip()) for text in texts}
    if len(choices) < len(texts):
        raise UserError(f"search {field.name}={text} has a value twice")
    if len(choices) < 2:
        raise UserError(f"search {field.name}={text} has a single value; set it with --{field.name}")
    return Choice(choices)


def _range(field: Field, text: str) -> Range:
    ends, colon, scale = text.partition(":")
    low, high = (_read(field, end) for end in ends.split("..", 1))
    if low is None or high is None or low >= high:
        raise UserError(f"search {field.name}={text}: the lower end must be below the upper one")
    if colon and scale != "log":
        raise UserError(f"search {field.name}={text}: a range may end in :log, not :{scale}")
    if colon and low <= 0:
        raise UserError(f"search {field.name}={text}: a logarithmic range must be above 0")
    return Range(low, high, bool(colon))


def _read(field: Field, text: str) -> Any:
    if field.kind is bool:
        return field.read({"true": True, "false": False}.get(text, text))
    if field.is_list and not (field.is_optional and text == "null"):
        return field.read(text.split())
    return field.read(text)
