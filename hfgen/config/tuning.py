"""Configuration of `hfgen tune`: the options of a study, and every field of the family that it trains."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from hfgen.config.fields import sections_of
from hfgen.config.training import MAX_IMAGES, TrainingConfig, require
from hfgen.utils.errors import UserError

MAX_TRIALS = 100_000


@dataclass(kw_only=True)
class TuningOptions:
    """Options of a study of hyper-parameters.

    Args:
        > Search
        search: Fields to search and their values: `learning_rate=1e-4..1e-2:log` (a range; `:log` searches its
            logarithm), `optimizer=adamw,muon` (a choice), `"hidden_sizes=400,512 256"` (a choice of lists).
        sampler: How values are chosen: `tpe` (tree-structured Parzen estimator, Bergstra et al. 2011), `gp` (Gaussian
            process) or `random`.
        pruner: Which trials are stopped early: `median` (worse than the median of the earlier trials at the same
            time), `halving` (asynchronous successive halving, Li et al. 2020: worse than the better half) or `none`.

        > Budget
        num_trials: Number of trials, including the first one, which trains the starting configuration, and those that
            were stopped early or failed.
        trial_seconds: Wall-clock budget of each trial in seconds; by default max_total_seconds / num_trials.
        max_total_seconds: Sum of the training times of all trials in seconds, over restarts and processes: no trial
            begins that could exceed it.
        num_rungs: Evaluations of a trial on held-out images, at equal intervals of time; after each the pruner
            decides.

        > Test
        num_test_images: Number of images to sample when the best trial and the starting configuration are measured on
            test images.

        > Sharing a study
        storage: Where the study is recorded: a file, or the URL of a database as SQLAlchemy takes it, such as
            postgresql+psycopg://user@host/name; by default `journal.log` in output_dir.
        study_name: Name of the study in the storage; by default that of output_dir.
    """

    search: list[str]
    sampler: Literal["tpe", "gp", "random"] = "tpe"
    pruner: Literal["median", "halving", "none"] = "median"
    num_trials: int = 30
    trial_seconds: float | None = None
    max_total_seconds: float | None = None
    num_rungs: int = 4
    num_test_images: int = 2000
    storage: str | None = None
    study_name: str | None = None

    def __post_init__(self):
        """Validate the options.

        Raises:
            UserError: naming the field, its value and a valid one.
        """
        require(self, "positive", ["trial_seconds", "max_total_seconds", "num_rungs"])
        require(self, "positive", ["num_trials"], at_most=MAX_TRIALS)
        require(self, "positive", ["num_test_images"], at_most=MAX_IMAGES)
        if not self.search:
            raise UserError("search needs a field and its values, such as --search learning_rate=1e-4..1e-2:log")
        if self.trial_seconds is None and self.max_total_seconds is None:
            raise UserError("set trial_seconds, the wall-clock budget of a trial, or max_total_seconds, that of all")
        if self.trial_seconds is None:
            self.trial_seconds = self.max_total_seconds / self.num_trials
        if self.max_total_seconds is not None and self.trial_seconds > self.max_total_seconds:
            raise UserError(
                f"trial_seconds {self.trial_seconds:g} is more than max_total_seconds {self.max_total_seconds:g}"
            )


def tuning_config(config_class: type[TrainingConfig]) -> Any:
    """Return the configuration of `hfgen tune FAMILY`, with the fields of the family and of `TuningOptions`."""

    def validate(self: Any) -> None:
        config_class.__post_init__(self)
        TuningOptions.__post_init__(self)

    family = config_class.family
    about = sections_of(config_class)[""].splitlines()[0]
    examples = (
        f"hfgen tune {family} --config my.yaml --search learning_rate=1e-4..1e-2:log --max_total_seconds 3600",
        f"hfgen tune {family} --config my.yaml --search optimizer=adamw,muon train_batch_size=32..256:log \\",
        "    --num_trials 20 --trial_seconds 60 --pruner halving",
    )
    text = (
        f"Tune hyper-parameters: {about}\n\n"
        "    Trains one configuration after the other for the same time and selects the best on held-out images. The\n"
        "    same command continues a study that was stopped; started several times, it shares the trials.\n\n"
        "    Examples:\n" + "\n".join(f"        {line}" for line in examples) + "\n    "
    )
    names = {"__post_init__": validate, "__doc__": text}
    return dataclasses.make_dataclass(
        f"Tune{config_class.__name__}", [], bases=(config_class, TuningOptions), namespace=names, kw_only=True
    )
