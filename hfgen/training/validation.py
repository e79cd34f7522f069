"""Evaluation of a model while it trains: losses on held-out images, and samples in the feature space of a judge."""

import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hfgen.config.training import TrainingConfig
from hfgen.data.images import ImageData, cache_folder, load_images
from hfgen.data.loader import Batch
from hfgen.data.sources import placed_folder, public_name
from hfgen.families import families
from hfgen.judges.judge import Judge, find_judge
from hfgen.judges.statistics import RealStatistics
from hfgen.runs.record import EVALUATED
from hfgen.sampling.sample import is_conditional
from hfgen.tasks.base import Task
from hfgen.utils.errors import UserError
from hfgen.utils.seeds import derive_seed, seed_torch

SPLIT = "validation"
HIGHER_IS_BETTER = {"accuracy", "psnr", "ssim", "precision", "recall", "density", "coverage"}
BATCH_SIZE = 64  # not that of the training, so that losses of trainings with other batch sizes compare
ONLY_AT_THE_END = ". The training is shorter, so the only one is at its end"
TIMED_IMAGES = 32  # to predict the duration of an evaluation
TURNED = 0.01  # relative rise of a validation loss above its minimum that counts as overfitting
TURNED_FOR = 2  # evaluations in a row


class Evaluation(NamedTuple):
    """The result of an evaluation while training.

    Attributes:
        step: Optimizer steps before it.
        seconds: Seconds of training before it.
        took: Seconds of the evaluation itself.
        metrics: Metrics by name, without the prefix that they have in `metrics.jsonl`.
    """

    step: int
    seconds: float
    took: float
    metrics: Mapping[str, float]


def load_held_out(config: TrainingConfig) -> ImageData:
    """Load the held-out images of a configuration.

    Raises:
        UserError: if there are none.
    """
    source = config.dataset_name or placed_folder(config.train_data_dir)
    try:
        return load_images(source, split=SPLIT, **config.reading_options())
    except UserError as error:
        if config.validation_fraction or "cannot open split" not in str(error):
            raise
        raise UserError(
            f"{source} has no split {SPLIT} for evaluations while training; hold out a part of {config.train_split} "
            "with --validation_fraction 0.05"
        ) from error


def metric_of(config: TrainingConfig) -> tuple[str, bool]:
    """Return the metric by which evaluations of a configuration choose, and whether higher is better.

    Raises:
        UserError: if there is none, or not enough held-out images.
    """
    task = families()[config.family].task_class()(config, load_held_out(config))
    reference = task.reference()
    judge = find_judge(config.evaluation_judge, reference)
    if judge and task.generates:
        _check_numbers(config, judge, len(reference))
    return _metric(task, judge)


def _check_numbers(config: TrainingConfig, judge: Judge, held_out: int) -> None:
    """Check that samples and held-out images are more than the features of a judge."""
    for count, advice in (
        (config.evaluation_images, "raise evaluation_images"),
        (held_out, "raise validation_fraction"),
    ):
        if count <= judge.num_features:
            raise UserError(
                f"evaluations in the {judge.num_features} features of the judge {judge.name} need more than "
                f"{judge.num_features} samples and held-out images each, not {count}; {advice}"
            )


def _metric(task: Task | type[Task], judge: Judge | None) -> tuple[str, bool]:
    name = task.metric if judge or task.metric != "frechet_distance" else task.loss_metric
    if name is None:
        raise UserError(
            "evaluating this model while it trains needs a judge, as its losses do not measure its samples; train one "
            "with hfgen train classifier and name it with --evaluation_judge"
        )
    return name, name in HIGHER_IS_BETTER


class Validation:
    """Evaluates the networks of a training on held-out images, without any effect on the training.

    Two copies of the task receive the weights: one of the held-out images, the other of the training images. Random
    numbers (noise, timesteps, latents) are the same in each evaluation.

    Attributes:
        protocol: What is measured how, for `validation.json`.
        history: Step and metrics of each evaluation.

    Args:
        config: The configuration.
        make_task: Builds a task from the configuration and images.
        data: The training images.
        accelerator: The accelerator of the training.

    Raises:
        UserError: if there are no held-out images, or not enough, or no metric to choose by.
    """

    def __init__(
        self,
        config: TrainingConfig,
        make_task: Callable[[TrainingConfig, ImageData], Task],
        data: ImageData,
        accelerator: Accelerator,
    ):
        self.config, self.accelerator = config, accelerator
        self.held_out_task, self.train_task = make_task(config, load_held_out(config)), make_task(config, data)
        self.held_out, self.train = self.held_out_task.data, self.train_task.data
        for task in (self.held_out_task, self.train_task):
            for module in task.modules.values():
                module.to(accelerator.device).eval().requires_grad_(False)
        reference = self.held_out_task.reference() if self.train_task.generates else self.held_out
        judge = find_judge(config.evaluation_judge, reference, str(accelerator.device))
        self.metric, self.higher_is_better = _metric(self.train_task, judge)
        self.real = None
        if judge and self.train_task.generates:
            _check_numbers(config, judge, len(reference))
            real = self.train_task.reference()
            self.real = RealStatistics(judge, reference, real, cache_folder(config.cache_dir))
        self.protocol = self._describe()
        self.history: list[dict[str, float]] = []
        self.spent = 0.0  # seconds of evaluations
        self.seconds = self._predicted_seconds()  # of one evaluation
        self.next_seconds = 0.0  # of training, until the next evaluation
        self.plan(0.0)

    def _predicted_seconds(self) -> float:
        """Predict the duration of an evaluation after which the model is kept, from its parts."""
        count = self.config.evaluation_images
        self._losses(TIMED_IMAGES, 0)  # slower than later ones
        seconds = _seconds_of(lambda: self._losses(TIMED_IMAGES, 0)) * count / TIMED_IMAGES
        with tempfile.TemporaryDirectory() as folder:
            seconds += _seconds_of(lambda: self.train_task.save(Path(folder)))
        if self.real:
            self._sample(1)
            one, several = (_seconds_of(lambda n=number: self._sample(n)) for number in (1, TIMED_IMAGES))
            seconds += one + max(0.0, several - one) * (count - 1) / (TIMED_IMAGES - 1)
            seconds += _seconds_of(self._floors)
        return seconds

    def _describe(self) -> dict[str, Any]:
        """Return the protocol of the evaluations, and the metrics of as many training images as a baseline."""
        judge = {}
        if self.real:
            extractor = self.real.extractor
            judge = {"judge": extractor.name, "judge_sha256": extractor.sha256, "floors": self._floors()}
        return {
            "dataset": public_name(self.held_out.source),
            "split": SPLIT,
            "validation_fraction": self.config.validation_fraction,
            "held_out_images": len(self.held_out),
            "held_out_sha256": self.held_out.fingerprint,
            "num_images": self.config.evaluation_images,
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
        } | judge

    def _floors(self) -> dict[str, float]:
        """Return the metrics of as many training images as are sampled."""
        chosen = self._chosen(self.real.train, self.config.evaluation_images)
        return self.real.quick_measures(self.real.extractor.extract(self.real.train.images[chosen])[0])

    def cost(self) -> str:
        """Describe the duration of the evaluations, and how often they run."""
        config = self.config
        text = f"An evaluation takes about {self.seconds:.1f} s"
        if config.evaluation_steps:
            only = config.max_train_steps and config.evaluation_steps >= config.max_train_steps
            return f"{text}, every {config.evaluation_steps:,} steps" + ONLY_AT_THE_END * bool(only)
        interval = max(config.evaluation_seconds, self.seconds / config.evaluation_share)
        if interval > config.evaluation_seconds:
            limit = f"at most {100 * config.evaluation_share:g} % of the training time (evaluation_share)"
            text += f"; evaluations take {limit}, so there is one about every {interval:.0f} s"
            text += f", not {config.evaluation_seconds:g} s"
        else:
            text += f", every {interval:g} s"
        only = config.max_train_seconds and interval + self.seconds >= config.max_train_seconds
        return text + ONLY_AT_THE_END * bool(only)

    def resume(self, rows: list[dict[str, float]], spent: float, seconds: float) -> None:
        """Continue after the evaluations in rows of `metrics.jsonl`.

        Args:
            rows: The rows until the resumed step.
            spent: Seconds of the evaluations until then.
            seconds: Seconds of training until then.
        """
        self.history = [
            {
                name.removeprefix(EVALUATED): value
                for name, value in row.items()
                if name == "step" or name.startswith(EVALUATED)
            }
            for row in rows
            if any(name.startswith(EVALUATED) for name in row)
        ]
        self.spent = spent
        self.plan(seconds)

    def is_due(self, step: int, seconds: float) -> bool:
        """Return whether to evaluate after an optimizer step, at some seconds of training."""
        if self.config.evaluation_steps:
            return step % self.config.evaluation_steps == 0
        return seconds >= self.next_seconds

    def plan(self, seconds: float) -> None:
        """Set the time of the next evaluation after `evaluation_seconds`, within `evaluation_share`."""
        if interval := self.config.evaluation_seconds:
            due = (math.floor(seconds / interval) + 1) * interval
            self.next_seconds = max(due, (self.spent + self.seconds) / self.config.evaluation_share)

    def note(self, took: float, seconds: float) -> None:
        """Count the seconds that an evaluation took, and plan the next one at some seconds of training."""
        self.spent += took
        self.seconds = took
        self.plan(seconds)

    def evaluate(
        self, networks: Mapping[str, nn.Module], step: int, snapshot: nn.Module | None = None
    ) -> dict[str, float]:
        """Return the metrics of networks, by name, after an optimizer step, and keep them in the history.

        A task that keeps a `snapshot` samples with it.
        """
        for task in (self.held_out_task, self.train_task):
            task.snapshot = snapshot
            for name, module in task.modules.items():
                module.load_state_dict(networks[name].state_dict())
        metrics = self._losses(self.config.evaluation_images, step)
        if self.real:
            features, _ = self.real.extractor.extract(self._sample(self.config.evaluation_images))
            metrics |= self.real.quick_measures(features)
        self.history.append({"step": step} | metrics)
        return metrics

    def _sample(self, count: int) -> Tensor:
        labels: list[int] = []
        if is_conditional(self.train_task.pipeline()):
            labels = self.held_out.labels[self._chosen(self.held_out, count)].tolist()
        with self.accelerator.autocast():
            return self.train_task.sample(count, derive_seed("evaluation", self.config.seed), labels)

    def _losses(self, count: int, step: int) -> dict[str, float]:
        """Return the metrics of held-out images, and the losses of as many training images (`train_loss/…`)."""
        metrics = self._means(self.held_out_task, self.held_out, count, step)
        on_training_images = self._means(self.train_task, self.train, count, step)
        losses = {f"train_{name}": value for name, value in on_training_images.items() if name.startswith("loss/")}
        return metrics | losses

    def _means(self, task: Task, data: ImageData, count: int, step: int) -> dict[str, float]:
        sums: defaultdict[str, float] = defaultdict(float)
        indices = self._chosen(data, min(count, len(self.held_out)))
        for number, part in enumerate(indices.split(BATCH_SIZE)):
            seed_torch(derive_seed("validation", self.config.seed, number), self.accelerator.device)
            images = data.images[part].to(self.accelerator.device).float() / 127.5 - 1
            labels = None if data.labels is None else data.labels[part].to(self.accelerator.device)
            with self.accelerator.autocast():
                values = task.validate(Batch(images, labels, step, part))
            for name, value in values.items():
                sums[name] += float(value) * len(part)
        return {name: total / len(indices) for name, total in sums.items()}

    def _chosen(self, data: ImageData, count: int) -> Tensor:
        """Return the indices of a fixed random subset of a data set."""
        generator = torch.Generator().manual_seed(derive_seed("validation images", self.config.seed))
        return torch.randperm(len(data), generator=generator)[:count]

    def best(self) -> dict[str, float] | None:
        """Return the step and metrics of the best evaluation so far, the first one of equals; None before any."""
        sign = -1 if self.higher_is_better else 1
        return min(self.history, key=lambda row: sign * row[self.metric], default=None)

    def problems(self) -> list[str]:
        """Describe losses that have risen above their minimum on held-out images and fallen on training images."""
        found = []
        for name in (name for name in (self.history or [{}])[-1] if name.startswith("loss/")):
            losses = [row[name] for row in self.history]
            lowest = min(range(len(losses)), key=losses.__getitem__)
            later = losses[lowest + 1 :][-TURNED_FOR:]
            limit = losses[lowest] + TURNED * abs(losses[lowest])
            then, now = (self.history[place][f"train_{name}"] for place in (lowest, -1))
            if len(later) == TURNED_FOR and min(later) > limit and now < then:
                found.append(
                    f"overfitting since step {self.history[lowest]['step']:,}: {name} of held-out images, "
                    f"{losses[lowest]:.4g} there, has risen, while that of training images has fallen"
                )
        return found


def _seconds_of(work: Callable[[], Any]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started
