"""`hfgen tune`: a study of trials, each a training of the same wall-clock time, shared by processes and machines."""

import contextlib
import dataclasses
import gc
import json
import math
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import torch
from filelock import FileLock, Timeout
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from safetensors import SafetensorError

from hfgen.config.training import CONFIG_FILE, TrainingConfig, changed_fields, defaults
from hfgen.data.images import load_images
from hfgen.data.sources import placed_folder
from hfgen.families import families
from hfgen.runs.checkpoints import list_checkpoints, step_of
from hfgen.runs.folder import CHECKPOINTS, LOCK, METRICS_FILE, STUDY, TIMES_FILE, TRIALS
from hfgen.runs.record import EVALUATED, read_rows, this_command
from hfgen.training.run import train
from hfgen.training.validation import Evaluation, metric_of
from hfgen.tuning.report import measure_on_test_images, read_study, write_report
from hfgen.tuning.search_space import SearchSpace
from hfgen.tuning.storage import open_storage
from hfgen.utils.errors import InterruptedTrainingError, TrainingError, UserError, first_line
from hfgen.utils.files import INCOMPLETE, complete_or_absent, local_path
from hfgen.utils.privacy import without_password
from hfgen.utils.seeds import derive_seed

JOURNAL = "journal.log"
DEFINITION = "hfgen"  # user attribute of the study in the storage
VALIDATION_FRACTION = 0.1
MOST_DEATHS = 5  # of the process of a trial, without a checkpoint between them
REPLACED = {  # fields of the configuration that a study sets itself
    "checkpoints_total_limit", "evaluation_seconds", "evaluation_share", "evaluation_steps", "load_best_model_at_end",
    "max_train_seconds", "max_train_steps", "num_train_epochs", "sweep",
}  # fmt: skip
SAMPLERS = {
    "tpe": optuna.samplers.TPESampler,
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False),
    "random": optuna.samplers.RandomSampler,
}
PRUNERS = {
    "median": optuna.pruners.MedianPruner,
    "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
    "none": optuna.pruners.NopPruner,
}
FAILURES = (TrainingError, UserError, RuntimeError, ValueError, MemoryError)  # of a trial, which the study survives


class PrunedTrial(TrainingError):  # noqa: N818
    """A trial was stopped early."""


def tune(config: Any) -> Path:
    """Run a study, or continue or join one in the same folder; write its page.

    Args:
        config: A configuration of `hfgen.config.tuning.tuning_config`.

    Returns:
        The path of `study.json`.

    Raises:
        UserError: before any work, if the search space, the configuration, the data or the folder do not fit.
        TrainingError: if no trial succeeded, the disk is full, or the storage was lost.
        InterruptedTrainingError: if a signal was received.
    """
    study = Study(config)
    with _storage_errors(config):
        study.run()
        return study.finish()


@contextlib.contextmanager
def _storage_errors(config: Any) -> Iterator[None]:
    try:
        yield
    except StorageInternalError as error:
        raise TrainingError(
            f"storage {without_password(config.storage)} was lost: {first_line(error.__cause__ or error)}. "
            f"Continue the study with the same command: {this_command()}"
        ) from error


class Study:
    """A study: its storage, which all processes share, and its folder, which those of one disk share.

    A process that begins a trial holds a lock in the trial's folder until the trial has ended. A trial that is running
    in the storage while its lock is free is that of a process that was killed; whoever finds it continues it. Trials
    of other folders, on other disks, are left alone.

    Args:
        config: A configuration of `hfgen.config.tuning.tuning_config`.
    """

    def __init__(self, config: Any):
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(
                "a trial is trained in one process; to use several, start the same command several times, each by "
                "itself"
            )
        if config.push_to_hub:
            raise UserError("a study cannot be pushed; push the run of its best trial with hfgen push")
        if config.resume_from_checkpoint:
            raise UserError("a study continues by itself; leave resume_from_checkpoint out")
        self.config, self.family = config, families()[config.family]
        self.folder = local_path(config.output_dir)
        self.base = self._base()
        self.space = SearchSpace(config.search, self.family.config)
        remark = self.space.check(lambda values: dataclasses.replace(self.base, **values))
        self.start, outside = self.space.starting_point(self.base)
        self._read_folder()
        self._load_data()
        self.metric, self.higher_is_better = metric_of(self.base)
        self.space.require_comparable(self.metric)
        self.lock = FileLock(self.folder / LOCK)
        self._say_what_is_replaced()
        if remark:
            print(f"hfgen: {remark}")
        if outside:
            self.start = None
            values = ", ".join(f"{name} {getattr(self.base, name)}" for name in outside)
            print(f"The starting configuration is outside of the search space ({values}) and is not tried")
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.lock:
            self.record = self._read_folder() or self._new_record()
        self.study = self._open()

    def _base(self) -> TrainingConfig:
        """Return the starting configuration, as each trial trains it."""
        config = self.config
        fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(self.family.config)}
        return self.family.config(
            **fields
            | {
                "checkpoints_total_limit": 1,
                "evaluation_seconds": config.trial_seconds / config.num_rungs,
                "evaluation_share": 1.0,
                "evaluation_steps": None,
                "max_train_seconds": config.trial_seconds,
                "max_train_steps": None,
                "load_best_model_at_end": False,
                "sweep": [],
            }
        )

    def _say_what_is_replaced(self) -> None:
        usual = defaults(self.family.config)
        if replaced := sorted(
            name for name in REPLACED if getattr(self.config, name) not in (usual[name], getattr(self.base, name))
        ):
            print(
                f"Each trial trains for {self.config.trial_seconds:g} s and is evaluated {self.config.num_rungs} "
                f"times; not used: {', '.join(replaced)}"
            )
        if self.base.validation_fraction != self.config.validation_fraction:
            print(f"A tenth of each class is held out to select by (validation_fraction {VALIDATION_FRACTION})")

    def _load_data(self) -> None:
        """Decode the images, so that no trial's time is spent on it; hold some out if there is no validation split."""
        source = self.base.dataset_name or placed_folder(self.base.train_data_dir)
        if not self.base.validation_fraction:
            try:
                load_images(source, split="validation", **self.base.reading_options())
            except UserError as error:
                if "cannot open split" not in str(error):
                    raise
                self.base = dataclasses.replace(self.base, validation_fraction=VALIDATION_FRACTION)
        splits = {
            "training": self.base.train_split,
            "held-out": "validation",
            "test": getattr(self.base, "test_split", "test"),
        }
        try:
            self.images = {
                name: load_images(source, split=split, **self.base.reading_options()).fingerprint
                for name, split in splits.items()
            }
        except UserError as error:
            if f"cannot open split {splits['test']}" not in str(error):
                raise
            raise UserError(
                f"{source} has no split {splits['test']}, on which the best trial is measured in the end; hold out a "
                f"part of {self.base.train_split} with --test_fraction 0.2"
            ) from error

    def _read_folder(self) -> dict[str, Any] | None:
        """Return the record of the study in the folder, if there is one.

        Raises:
            UserError: if the folder holds something else.
        """
        if (self.folder / STUDY).is_file():
            return read_study(self.folder)
        if self.folder.is_file():
            raise UserError(f"output_dir {self.folder} is a file; name a folder")
        others = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        if others := sorted(name for name in others if not name.startswith((LOCK, JOURNAL, INCOMPLETE))):
            what = "a run" if CONFIG_FILE in others else f"no study ({', '.join(others[:3])})"
            raise UserError(f"output_dir {self.folder} is not empty and holds {what}; name a new or empty folder")
        return None

    def _new_record(self) -> dict[str, Any]:
        name = self.config.study_name or (self.folder.resolve().name if self.config.storage else "study")
        record = {"folder": uuid.uuid4().hex, "study_name": name, "command": this_command()}
        with complete_or_absent(self.folder / STUDY) as temporary:
            temporary.write_text(json.dumps(record) + "\n")
        return record

    def _open(self) -> optuna.Study:
        """Open or create the study in the storage; refuse one that was defined otherwise."""
        config = self.config
        study = optuna.create_study(
            storage=open_storage(config.storage or str(self.folder / JOURNAL)),
            study_name=config.study_name or self.record["study_name"],
            direction="maximize" if self.higher_is_better else "minimize",
            pruner=PRUNERS[config.pruner](),
            load_if_exists=True,
        )
        definition = {
            "family": config.family,
            "search": sorted(config.search),
            "metric": self.metric,
            "trial_seconds": config.trial_seconds,
            "num_rungs": config.num_rungs,
            "evaluation_images": config.evaluation_images,
            "evaluation_judge": config.evaluation_judge,
            "images": self.images,
            "fields": self.base.to_dict() | {"output_dir": None},
        }
        if DEFINITION not in study.user_attrs:
            study.set_user_attr(DEFINITION, definition)
        earlier = study.user_attrs[DEFINITION]  # another process may have been first
        names = [n for n in definition if n not in ("images", "fields") and definition[n] != earlier[n]]
        changed = [f"{name}: {earlier[name]} → {definition[name]}" for name in names]
        if definition["family"] == earlier["family"]:
            changed += changed_fields(self.base, earlier["fields"])
        if changed:
            raise UserError(
                f"the study {study.study_name} was begun otherwise ({'; '.join(changed)}); continue it as it was, or "
                "begin another in a new --output_dir"
            )
        if others := [name for name, fingerprint in self.images.items() if fingerprint != earlier["images"][name]]:
            raise UserError(
                f"the {' and '.join(others)} images are not those with which the study {study.study_name} was begun; "
                "continue it with the same images, or begin another in a new --output_dir"
            )
        return study

    def run(self) -> None:
        """Train trials until the budget is spent."""
        while claimed := self._claim():
            frozen, lock = claimed
            try:
                self._run_trial(frozen)
            finally:
                lock.release()
            self._write_report()

    def _claim(self) -> tuple[FrozenTrial, FileLock] | None:
        """Return a trial whose process was killed, or else a new one, and its lock; None if the budget is spent."""
        with self.lock:
            if claimed := self._claim_existing():
                return claimed
            if not self._may_begin():
                return None
            is_first = self.start is not None and not self.study.get_trials(deepcopy=False)
            self.study.add_trial(
                create_trial(  # with its folder, in one step, so that it cannot be lost
                    state=TrialState.RUNNING,
                    params=self.start if is_first else {},
                    distributions=self.space.distributions() if is_first else {},
                    user_attrs={"folder": self.record["folder"], "is_start": is_first},
                )
            )
            return self._claim_existing()

    def _claim_existing(self) -> tuple[FrozenTrial, FileLock] | None:
        for trial in self._running():
            folder = self._run_of(trial)
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / f"{LOCK}-trial", timeout=0)
            try:
                lock.acquire()
            except Timeout:  # a living process has it
                continue
            return trial, lock
        return None

    def _running(self) -> list[FrozenTrial]:
        """Return the trials of this folder that have not ended."""
        trials = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [trial for trial in trials if trial.user_attrs.get("folder") == self.record["folder"]]

    def _may_begin(self) -> bool:
        """Return whether the budget has room for another trial."""
        trials = self.study.get_trials(deepcopy=False)
        limit, most = self.config.max_total_seconds, self.config.trial_seconds
        used = sum(min(most, trial.user_attrs.get("seconds", most)) for trial in trials)
        return len(trials) < self.config.num_trials and (limit is None or used + most <= limit * (1 + 1e-9))

    def _run_of(self, trial: FrozenTrial) -> Path:
        return self.folder / TRIALS / f"{trial.number:04d}"

    def _run_trial(self, frozen: FrozenTrial) -> None:
        """Train a trial, from its last checkpoint if there is one, and record how it ended."""
        number, run = frozen.number, self._run_of(frozen)
        seed = derive_seed("tuning", self.config.seed, number) % 2**32
        self.study.sampler = SAMPLERS[self.config.sampler](seed=seed)
        trial = Trial(self.study, frozen._trial_id)
        values = self.space.suggest(trial)
        texts = ", ".join(f"{name} {_text(value)}" for name, value in values.items())
        print(f"Trial {number} of {self.config.num_trials}: {texts}")
        if deaths := self._count_deaths(frozen, trial, run):
            self._end(trial, run, TrialState.FAIL, why=f"its process was killed {deaths} times at the same step")
            return
        reported, seconds = set(frozen.intermediate_values), 0.0  # of training, until the last report

        def report(evaluation: Evaluation) -> None:
            value = _finite(self.metric, evaluation.metrics[self.metric])
            rung = round(evaluation.seconds / self.base.evaluation_seconds)
            if 1 <= rung < self.config.num_rungs:
                if rung not in reported:
                    trial.report(value, rung)
                    reported.add(rung)
                nonlocal seconds
                seconds = evaluation.seconds + evaluation.took
                if trial.should_prune():
                    raise PrunedTrial(f"stopped early after {evaluation.seconds:.0f} s")

        state, value, why = TrialState.COMPLETE, None, None
        try:
            resume = "latest" if (run / CONFIG_FILE).exists() else None
            config = dataclasses.replace(self.base, **values, output_dir=str(run), resume_from_checkpoint=resume)
            train(config, self.family.task_class(), on_evaluation=report)
            value = _finite(self.metric, _last(run / METRICS_FILE, f"{EVALUATED}{self.metric}"))
        except PrunedTrial as stop:
            state, why = TrialState.PRUNED, str(stop)
        except KeyboardInterrupt as stop:
            trial.set_user_attr("begun", None)  # it was not killed
            number_of_signal = getattr(stop, "signal_number", signal.SIGINT)
            raise InterruptedTrainingError(
                f"stopped by {signal.Signals(number_of_signal).name} in trial {number}. Continue the study with the "
                f"same command: {this_command()}",
                number_of_signal,
            ) from stop
        except FAILURES as error:
            if isinstance(error.__cause__, OSError | SafetensorError):  # a full disk is no fault of the trial
                with contextlib.suppress(OSError):  # of the same disk
                    trial.set_user_attr("begun", None)
                raise TrainingError(
                    f"trial {number}: {first_line(error.__cause__)}. Continue the study with the same command: "
                    f"{this_command()}"
                ) from error
            if frozen.user_attrs["is_start"] and isinstance(error, UserError):
                raise
            state, why = TrialState.FAIL, first_line(error)
        self._end(trial, run, state, value, why, seconds)

    def _count_deaths(self, frozen: FrozenTrial, trial: Trial, run: Path) -> int:
        """Return how often the process of a trial was killed since its last checkpoint, if this is too often, or 0.

        A trial that takes too much memory may be killed by the system each time.
        """
        step = max(map(step_of, list_checkpoints(run / CHECKPOINTS)), default=0)
        begun = frozen.user_attrs.get("begun")
        times = begun["times"] + 1 if begun and begun["step"] == step else 1
        if times > MOST_DEATHS:
            return MOST_DEATHS
        trial.set_user_attr("begun", {"step": step, "times": times})
        return 0

    def _end(
        self,
        trial: Trial,
        run: Path,
        state: TrialState,
        value: float | None = None,
        why: str | None = None,
        seconds: float = 0.0,
    ) -> None:
        """Record how a trial ended, after at least so many seconds of training."""
        if state == TrialState.FAIL:
            _free_memory()
            trial.set_user_attr("reason", why)
        trial.set_user_attr("seconds", max(seconds, _last(run / TIMES_FILE, "seconds") or 0.0))
        told = self.study.tell(trial, value, state)
        result = f"{self.metric} {told.value:.4g}" if told.value is not None else "no result"
        print(f"Trial {trial.number}: {result}" + (f", {why}" if why else ""))

    def _write_report(self) -> None:
        with FileLock(self.folder / f"{LOCK}-report"):
            self._report()

    def _report(self, problems: dict[str, str] | None = None) -> dict[str, Any]:
        settings = {
            "family": self.config.family,
            "sampler": self.config.sampler,
            "pruner": self.config.pruner,
            "search": self.config.search,
            "num_trials": self.config.num_trials,
            "trial_seconds": self.config.trial_seconds,
            "num_rungs": self.config.num_rungs,
            "evaluation_images": self.config.evaluation_images,
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "test_problems": problems or {},
        }
        return write_report(self.folder, self.record | settings, self.study, self.space, self.base)

    def finish(self) -> Path:
        """Measure the best trial and the starting configuration on test images, and write the page.

        Raises:
            TrainingError: if no trial succeeded.
        """
        with FileLock(self.folder / f"{LOCK}-report"):
            record = self._report()
            if running := [str(trial.number) for trial in self._running()]:
                print(f"Other processes are training trial {', '.join(running)}; the last of them finishes the study")
            elif record["best"] is None:
                reasons = "; ".join(sorted({trial["reason"] for trial in record["trials"] if trial["reason"]}))
                raise TrainingError(f"no trial succeeded: {reasons or 'none has ended'}; see {self.folder}")
            else:
                self._measure(record)
        return self.folder / STUDY

    def _measure(self, record: dict[str, Any]) -> None:
        problems = {}
        for number in {record["best"]: None, record["start"]: None}:
            run = self.folder / TRIALS / f"{number:04d}" if number is not None else None
            if run and run.is_dir():
                if problem := measure_on_test_images(run, self.base, self.config.num_test_images):
                    problems[str(number)] = problem
            elif run:
                problems[str(number)] = (
                    "its run is not in this folder; if it was trained elsewhere, repeat the command there"
                )
        self._report(problems)


def _last(file: Path, name: str) -> float | None:
    """Return the last value of a column of a file of rows, or None."""
    values = [row[name] for row in read_rows(file) if name in row] if file.is_file() else []
    return values[-1] if values else None


def _finite(metric: str, value: float | None) -> float:
    if value is None or not math.isfinite(value):
        raise TrainingError(f"{metric} is {value}")
    return value


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _free_memory() -> None:
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
