"""The training loop, shared by all families."""

import contextlib
import hashlib
import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters
from tqdm import tqdm

from hfgen.config import TrainingConfig
from hfgen.data.images import ImageData
from hfgen.data.loader import ImageBatches
from hfgen.families import families
from hfgen.figures.animations import save_slides
from hfgen.figures.curves import save_class_shares, save_training_curves, save_validation_curves
from hfgen.figures.grids import save_picture
from hfgen.runs.checkpoints import (
    POSITION_FILE,
    list_checkpoints,
    newest_complete,
    pack_state,
    read_position,
    save_best,
    save_checkpoint,
    step_of,
    unpack_state,
    unusable,
)
from hfgen.runs.folder import (
    CLASSES,
    CLASSES_FILE,
    CURVES,
    METRICS_FILE,
    ROWS,
    RUN_FILE,
    TIMELAPSE,
    TIMES_FILE,
    VALIDATION,
    VALIDATION_CURVES,
    RunFolder,
)
from hfgen.runs.record import (
    EVALUATED,
    MetricsFile,
    add_row,
    append_row,
    describe_run,
    forget_rows,
    losses_of,
    options_text,
    own_commit,
    read_rows,
    this_command,
    training_call,
)
from hfgen.tasks.base import Diagnosis, Loss, Task
from hfgen.training.optimizers import Muon
from hfgen.training.processes import SpeedWatch
from hfgen.training.publisher import Publisher
from hfgen.training.trackers import start_trackers, track_picture
from hfgen.training.validation import Evaluation, Validation
from hfgen.utils.errors import InterruptedTrainingError, TrainingError, UserError, first_line
from hfgen.utils.files import complete_or_absent, parts_complete_or_absent
from hfgen.utils.hashes import sha256_of
from hfgen.utils.progress import progress_bar
from hfgen.utils.seeds import derive_seed, seed_torch

STATE_FILE = "training_state.safetensors"
BEST_WEIGHTS = "best_weights.safetensors"  # of all modules, beside the best model
PREVIEW_SEED = 0
AGREEMENT_SECONDS = 3  # between synchronisations of stop signals across processes


def learning_rate_factor(config: TrainingConfig, step: int, progress: float) -> float:
    """Return the learning-rate factor (fraction of the peak) of an optimizer step.

    Args:
        config: Holds schedule and warm-up, whose factors multiply.
        step: Completed optimizer steps.
        progress: Completed fraction of the run, from 0 to 1, in steps or time.
    """
    warm_up = min(1.0, (step + 1) / (config.lr_warmup_steps + 1))
    decay = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}
    return warm_up * decay[config.lr_scheduler]


def endless_warmups(config: TrainingConfig, steps: int) -> list[str]:
    """Describe warm-ups longer than a run of `steps` optimizer steps."""
    longer = {name: value for name in config.warmup_fields if (value := getattr(config, name)) > steps}
    return [f"{name} {value:,} is more than the {steps:,} steps of the run" for name, value in longer.items()]


@dataclass
class Trainer:
    """A training run: task, state, outputs.

    The weights depend only on the checkpoint and (seed, step, process); see `_optimizer_step`.
    """

    config: TrainingConfig
    task: Task
    accelerator: Accelerator
    run: RunFolder
    publisher: Publisher = field(default_factory=Publisher)
    validation: Validation | None = None  # on the main process
    on_evaluation: Callable[[Evaluation], None] = lambda evaluation: None

    def __post_init__(self):
        config, accelerator, task = self.config, self.accelerator, self.task
        self.step = 0  # completed optimizer steps
        self.seconds_before = 0.0  # of training before this process started
        self.command = this_command()  # that started the run
        self.commit = own_commit()  # now, since the code may change while this process runs
        self.started = time.monotonic()
        self.agreed = 0, 0.0  # step and seconds of the last synchronisation
        self.seconds_per_step = 0.0  # between the last two synchronisations
        self.next_agreement = 1  # step of the next synchronisation, at the latest
        self.tracked = 0, 0.0  # step and seconds of the last values sent to trackers
        self.evaluated: dict[str, float] = {}  # the last evaluation, for the progress bar
        self.untracked: dict[str, float] = {}  # the last evaluation, until it is sent to trackers
        self.batches = ImageBatches(
            task.data,
            train_batch_size=config.images_per_batch,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            num_processes=accelerator.num_processes,
            process_index=accelerator.process_index,
            seed=config.seed,
            random_flip=config.random_flip,
            device=accelerator.device,
        )
        self.max_steps = self._max_steps()
        self.fixed_networks = [sha256_of(network) for network in task.fixed_networks()]
        self.problems: list[str] = []  # reported by the task at the last checkpoint
        self.metrics = MetricsFile(self.run / METRICS_FILE, accelerator)
        self.unwrapped = dict(task.modules)
        self.optimizers = {}
        for name, module in self.unwrapped.items():
            task.modules[name] = accelerator.prepare(module)
            self.optimizers[name] = accelerator.prepare(self._make_optimizer(name, module))
        self.ema_models = {
            name: EMAModel(module.parameters(), decay=config.ema_max_decay, foreach=True)
            for name, module in self.unwrapped.items()
            if config.use_ema and name in task.saved_modules
        }

    def _max_steps(self) -> int | None:
        if self.config.max_train_steps is None and self.config.max_train_seconds is None:
            return self.config.num_train_epochs * self.batches.steps_per_epoch
        return self.config.max_train_steps

    def _make_optimizer(self, name: str, module: torch.nn.Module) -> torch.optim.Optimizer:
        config = self.config
        options = {
            "lr": config.learning_rate,
            "betas": (config.adam_beta1, config.adam_beta2),
            "weight_decay": config.adam_weight_decay,
            "eps": config.adam_epsilon,
        }
        if config.optimizer_of(name) == "muon":
            return Muon(module, **options)
        return torch.optim.AdamW(module.parameters(), **options, fused=True)

    def is_finished(self) -> bool:
        """Return whether the run folder already holds the finished run."""
        has_model = (self.run / self.task.index_file).exists() and (self.run / RUN_FILE).exists()
        newest = max(map(step_of, list_checkpoints(self.run.checkpoints)), default=0)
        return self._progress(self.seconds_before) >= 1 and has_model and newest == self.step

    def prepare_run_folder(self) -> None:
        """Save the configuration, create folders, and move away outputs after the resumed step."""
        if self.accelerator.is_main_process:
            self.run.begin(self._fields())
            for file in ROWS:
                forget_rows(self.run / file, self.step)
            (self.run / self.task.index_file).unlink(missing_ok=True)  # until a newer model is saved
            self.run.remove_page()
            place, outdated = self.run.put_away(self.step)
            if outdated:
                names = ", ".join(outdated)
                self.accelerator.print(
                    f"The run continues from step {self.step}; outdated files moved to {place}: {names}"
                )
            if self.validation:
                with complete_or_absent(self.run / VALIDATION) as temporary:
                    temporary.write_text(json.dumps(self.validation.protocol, indent=1) + "\n")
                self.accelerator.print(self.validation.cost())
        if self.config.report_to:
            start_trackers(self.accelerator, self.run.path, self._fields())
        self.accelerator.wait_for_everyone()

    def _fields(self) -> dict[str, Any]:
        """Return the configuration fields to save, with an absolute output_dir."""
        return self.config.to_dict() | {"output_dir": str(self.run.path.absolute()), "resume_from_checkpoint": None}

    def run_loop(self) -> None:
        """Train until the step or time limit."""
        config, alone = self.config, self.accelerator.num_processes == 1
        seconds = self.seconds_before
        stop_signal, speed = 0, SpeedWatch(self.step)
        for endless in endless_warmups(config, self.max_steps) if self.max_steps else ():
            self.accelerator.print(f"hfgen: warning: {endless}, which ends before the warm-up", file=sys.stderr)
        with _stop_signals() as stop_signals, self._progress_bar() as bar:
            while (progress := self._progress(seconds)) < 1:
                values = self._optimizer_step(progress)
                self.step += 1
                if self.step == self.task.snapshot_step:
                    with self._published_weights():
                        self.task.take_snapshot()
                if self._is_evaluation_due() and _is_finite(values):
                    values |= self._evaluate()
                    speed.begin(self.step)
                self.metrics.add(self.step, values)
                save = self.step % config.checkpointing_steps == 0
                preview = self.step in config.sample_steps or self._is_preview_epoch()
                seconds = self._clock()
                due = save or preview or self.step % config.logging_steps == 0 or self._progress(seconds) >= 1
                if due or (stop_signals if alone else self.step >= self.next_agreement):
                    seconds, stop_signal = self._agree(self.seconds(), stop_signals)
                if due or stop_signal or self._progress(seconds) >= 1:
                    if (slower := speed.slower(self.step)) and self.accelerator.is_main_process:
                        tqdm.write(f"hfgen: {slower}", file=sys.stderr)
                    latest = self._write_metrics(seconds)
                    self._show(bar, latest, seconds)
                    if preview:
                        self.save_preview()
                    if save or stop_signal:
                        checkpoint = self.save_checkpoint()
                        if self.accelerator.is_main_process and not stop_signal:
                            self.publisher.start(checkpoint)
                    if stop_signal:
                        name = signal.Signals(stop_signal).name
                        message = f"stopped by {name} after step {self.step}, which is saved. {self.how_to_continue()}"
                        raise InterruptedTrainingError(message, stop_signal)
                    speed.begin(self.step)

    def _is_evaluation_due(self) -> bool:
        """Return whether to evaluate now, not if it could not end in time: the one at the end has time of its own."""
        if self.validation is None or self._progress(self._clock() + self.validation.seconds) >= 1:
            return False
        return self.validation.is_due(self.step, self._clock())

    def _is_preview_epoch(self) -> bool:
        epochs = self.config.save_images_epochs
        return bool(epochs) and self.step % (epochs * self.batches.steps_per_epoch) == 0

    def _write_metrics(self, seconds: float) -> dict[str, float]:
        row = self.metrics.write()
        if bad := self.metrics.not_finite(row):
            latest = newest_complete(self.run.checkpoints)
            raise TrainingError(
                f"{bad[0]} became {row[bad[0]]} at step {row['step']}. "
                + (f"The last good checkpoint is {latest}. " if latest else "There is no checkpoint yet. ")
                + "A lower --learning_rate, a longer --lr_warmup_steps or --mixed_precision no may help"
            )
        if self.accelerator.is_main_process:
            append_row(self.run / TIMES_FILE, self._time_row(seconds))
        return row

    def _time_row(self, seconds: float) -> dict[str, float]:
        """Return a row of `times.jsonl`: the seconds of training until this step, and the completed fraction."""
        return {"step": self.step, "seconds": round(seconds, 3), "progress": round(self._progress(seconds), 5)}

    def _progress(self, seconds: float) -> float:
        """Return the completed fraction of the run, in steps or time, whichever is larger."""
        steps = self.step / self.max_steps if self.max_steps else 0.0
        time_used = seconds / self.config.max_train_seconds if self.config.max_train_seconds else 0.0
        return min(1.0, max(steps, time_used))

    def _optimizer_step(self, progress: float) -> dict[str, Tensor | float]:
        """Take one optimizer step of every module and return what to log.

        All random numbers of the step derive from (seed, step, process), independent of earlier steps, so resuming is
        exact.
        """
        config, accelerator = self.config, self.accelerator
        seed_torch(derive_seed("step", config.seed, self.step, accelerator.process_index), accelerator.device)
        factor = learning_rate_factor(config, self.step, progress)
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = factor * config.learning_rate_of(name)
        values: dict[str, list[Tensor]] = {}
        passes = [self._gradients(micro_step, progress) for micro_step in range(config.gradient_accumulation_steps)]
        with self._reducing_once():
            for losses in zip(*passes, strict=True):  # each loss over all passes before the next loss
                name = losses[0].module
                for loss in losses:
                    for key, value in loss.values().items():
                        values.setdefault(key, []).append(value)
                values.setdefault(f"grad_norm/{name}", []).append(self._update(name))
        for name, ema_model in self.ema_models.items():
            ema_model.step(self.unwrapped[name].parameters())
        means = {key: each[0] if len(each) == 1 else torch.stack(each).mean() for key, each in values.items()}
        rates = {name: factor * config.learning_rate_of(name) for name in self.optimizers}
        if len(set(rates.values())) == 1:
            return means | {"learning_rate": next(iter(rates.values()))}
        return means | {f"learning_rate/{name}": rate for name, rate in rates.items()}

    def _gradients(self, micro_step: int, progress: float) -> Iterator[Loss]:
        """Accumulate the gradients of each loss of a forward pass, then yield it."""
        for loss in self.task.losses(self.batches(self.step, micro_step, progress)):
            self.accelerator.backward(loss.value)
            yield loss

    @contextlib.contextmanager
    def _reducing_once(self) -> Iterator[None]:
        """With accumulation, reduce gradients across processes in `_update` only.

        DDP assumes that a backward pass belongs to the preceding forward pass, which does not hold here. Under
        `no_sync` it does not broadcast buffers either, so this is done here.
        """
        with contextlib.ExitStack() as stack:
            if self.config.gradient_accumulation_steps > 1:
                for name, module in self.unwrapped.items():
                    stack.enter_context(self.accelerator.no_sync(self.task.modules[name]))
                    broadcast(list(module.buffers()))
            yield

    def _update(self, name: str) -> Tensor:
        """Update a module with clipped gradients; return their norm before clipping, a scalar."""
        accelerator, optimizer = self.accelerator, self.optimizers[name]
        parameters = list(self.unwrapped[name].parameters())
        if self.config.gradient_accumulation_steps > 1 and accelerator.num_processes > 1:
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            mean = accelerator.reduce(parameters_to_vector(gradients), "mean")
            vector_to_parameters(mean, gradients)
        accelerator.unscale_gradients(optimizer)
        norm = clip_grad_norm_(parameters, self.config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return norm.detach()

    def seconds(self) -> float:
        """Return the wall-clock seconds of training so far, including those before a resume."""
        return self.seconds_before + time.monotonic() - self.started

    def _clock(self) -> float:
        """Return the seconds of training so far, equal on all processes without synchronising them at each step.

        Those of several processes are extrapolated from the last synchronisation.
        """
        if self.accelerator.num_processes == 1:
            return self.seconds()
        step, seconds = self.agreed
        return seconds + (self.step - step) * self.seconds_per_step

    def _agree(self, seconds: float, stop_signals: list[int]) -> tuple[float, int]:
        """Synchronise the clock and the stop signal (0 for none) of all processes, and schedule the next time."""
        state = torch.tensor([seconds, float(stop_signals[0] if stop_signals else 0)], device=self.accelerator.device)
        seconds, stop_signal = self.accelerator.gather(state).view(-1, 2).max(0).values.tolist()
        steps, elapsed = self.step - self.agreed[0], max(seconds - self.agreed[1], 1e-3)
        self.agreed, self.seconds_per_step = (self.step, seconds), elapsed / steps
        self.next_agreement = self.step + max(1, int(steps / elapsed * AGREEMENT_SECONDS))
        return seconds, int(stop_signal)

    def how_to_continue(self) -> str:
        """Return how to continue the run: by the command if `hfgen train` trains such a task."""
        family = families().get(self.config.family)
        if not family or type(self.task) is not family.task_class():
            return "Continue with the same call and resume_from_checkpoint='latest'"
        options = {"config": str(self.run.config), "resume_from_checkpoint": "latest"}
        if self.accelerator.num_processes > 1:
            return f"Continue with the same launcher, number of processes and script, and {options_text(options)}"
        return f"Continue with: {training_call(self.config.family, options)}"

    def _progress_bar(self) -> tqdm:
        main = self.accelerator.is_main_process
        if self.max_steps:
            return progress_bar(total=self.max_steps, initial=self.step, unit="step", disable=not main)
        return progress_bar(
            total=round(self.config.max_train_seconds),
            initial=round(self.seconds_before),
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} s{postfix}",
            disable=not main,
        )

    def _show(self, bar: tqdm, latest: dict[str, float], seconds: float) -> None:
        images_per_second = self.step * self.batches.images_per_step / seconds
        losses = {name: f"{loss:.4f}" for name, loss in losses_of(latest).items()}
        shown = self._shown_metrics()
        evaluated = {f"val {name}": f"{value:.4g}" for name, value in self.evaluated.items() if name.startswith(shown)}
        progress = {"step": self.step, "images/s": f"{images_per_second:.0f}"}
        bar.set_postfix(losses | evaluated | progress, refresh=False)
        bar.update((self.step if self.max_steps else min(round(seconds), bar.total)) - bar.n)
        if self.config.report_to:
            steps, elapsed = self.step - self.tracked[0], seconds - self.tracked[1]
            speed = {"images_per_second": steps * self.batches.images_per_step / max(elapsed, 1e-3)}
            self.accelerator.log(latest | self.untracked | speed, step=self.step)
            self.tracked, self.untracked = (self.step, seconds), {}

    def _shown_metrics(self) -> tuple[str, ...]:
        """Return the beginnings of the names of metrics of evaluations that the progress bar shows."""
        if not self.validation:
            return ()
        metric = self.validation.metric
        return (metric, "loss/") if metric == "frechet_distance" else (metric,)

    @contextlib.contextmanager
    def _published_weights(self) -> Iterator[None]:
        """Swap the EMA weights into the networks, in evaluation mode."""
        for name, module in self.unwrapped.items():
            module.eval()
            if name in self.ema_models:
                self.ema_models[name].store(module.parameters())
                self.ema_models[name].copy_to(module.parameters())
        try:
            yield
        finally:
            for name, module in self.unwrapped.items():
                module.train()
                if name in self.ema_models:
                    self.ema_models[name].restore(module.parameters())

    def _evaluate(self) -> dict[str, float]:
        """Evaluate the averaged weights, keep the best model, and return the metrics as `metrics.jsonl` names them."""
        validation, seconds, started = self.validation, self.seconds(), time.monotonic()
        with self._published_weights():
            metrics = validation.evaluate(self.unwrapped, self.step, self.task.snapshot)
            if (best := validation.best()) and best["step"] == self.step:
                save_best(self.run.checkpoints, self.step, self._save_best)
        took = time.monotonic() - started
        validation.note(took, self.seconds())
        self._report(list(dict.fromkeys([*self.problems, *validation.problems()])))
        self.evaluated = metrics
        self.untracked = {f"{EVALUATED}{name}": value for name, value in metrics.items()}
        self.on_evaluation(Evaluation(self.step, seconds, took, metrics))
        return dict(self.untracked)

    def _save_best(self, folder: Path) -> None:
        self.task.save(folder)
        weights = {
            f"{name}.{key}": tensor.contiguous()
            for name, module in self.unwrapped.items()
            for key, tensor in module.state_dict().items()
        }
        save_file(weights, folder / BEST_WEIGHTS)

    def save_preview(self) -> None:
        """Save `samples/step-….png` from the EMA weights."""
        if self.accelerator.is_main_process:
            with self._published_weights():
                picture = self.task.preview(self.config.num_samples, PREVIEW_SEED)
            save_picture(picture, self._preview_file())
            track_picture(self.accelerator, "samples", picture, self.step)

    def _preview_file(self) -> Path:
        return self.run.samples / f"step-{self.step:06d}.png"

    def save_checkpoint(self) -> Path:
        """Save a checkpoint: the loadable model and the training state; return its folder."""

        def write(folder: Path) -> None:
            self._save_model(folder)
            save_file(pack_state(self.unwrapped, self.optimizers, self.ema_models), folder / STATE_FILE)
            (folder / POSITION_FILE).write_text(json.dumps(self._position()))

        if self.accelerator.is_main_process:
            with self._published_weights():
                self._note(self.task.diagnose())
            save_checkpoint(self.run.checkpoints, self.step, write, self.config.checkpoints_total_limit)
        return self.run.checkpoints / f"step-{self.step:06d}"

    def _note(self, diagnosis: Diagnosis) -> None:
        self._report([*diagnosis.problems, *(self.validation.problems() if self.validation else ())])
        if diagnosis.class_shares:
            shares = {"shares": dict(diagnosis.class_shares), "real_shares": dict(diagnosis.real_class_shares)}
            add_row(self.run / CLASSES_FILE, {"step": self.step} | shares)

    def _report(self, problems: list[str]) -> None:
        """Print the problems that are new, and keep all."""
        for problem in set(problems) - set(self.problems):
            tqdm.write(f"hfgen: warning at step {self.step}: {problem}", file=sys.stderr)
        self.problems = problems

    def finish(self) -> None:
        """Write the final outputs: model, samples, curves, run record."""
        seconds = self.seconds()
        if self.accelerator.is_main_process:  # later than that of the last step, if it was resumed there
            add_row(self.run / TIMES_FILE, self._time_row(seconds))
        self.save_checkpoint()
        if self.validation:
            self._evaluate_last()
            self._tell_best()
        if not self.max_steps:  # with them it was told at the beginning
            self._report([*self.problems, *endless_warmups(self.config, self.step)])
        missed = {name: step for name in self.config.single_steps if (step := getattr(self.config, name))}
        told = [
            f"{name} {step:,} was not reached in {self.step:,} steps"
            for name, step in missed.items()
            if step > self.step
        ]
        self._report([*self.problems, *told])
        is_best = self.validation is not None and self.config.load_best_model_at_end and self._load_best()
        if is_best or not self._preview_file().exists():
            self.save_preview()
        if self.accelerator.is_main_process:
            describe_run(
                self.run / RUN_FILE,
                self.accelerator,
                self.command,
                self.step,
                self.batches.images_per_step,
                self.batches.steps_per_epoch,
                seconds,
                self.problems,
                self.commit,
                self._evaluations(is_best),
                self.reference_split(),
            )
            self._save_figures()
            # The run folder itself is the model folder.
            with parts_complete_or_absent(self.run.path, last=self.task.index_file) as temporary:
                self._save_model(temporary)

    def _evaluate_last(self) -> None:
        """Evaluate at the end, unless that was done before a resume, and add the metrics to the row of the step."""
        *_, row = read_rows(self.run / METRICS_FILE)
        if not any(name.startswith(EVALUATED) for name in row):
            tqdm.write(f"The last evaluation takes about {self.validation.seconds:.0f} s", file=sys.stderr)
            add_row(self.run / METRICS_FILE, row | self._evaluate())
            if self.config.report_to:
                self.accelerator.log(self.untracked, step=self.step)

    def _tell_best(self) -> None:
        """Print which evaluation was the best, and where its model is."""
        metric, best = self.validation.metric, self.validation.best()
        place = f"its model is in {self.run.best()[-1]}" if self.run.best() else "its model was not kept"
        found = f"{metric} {best[metric]:.4g} after {best['step']:,} steps"
        self.accelerator.print(f"The best evaluation: {found}; {place}")

    def _load_best(self) -> bool:
        """Load the best model into the networks and their averages, if it is not the last one; say which it is."""
        best = self.run.best()[-1] if self.run.best() else None
        if best is None or step_of(best) == self.step:
            return False
        try:
            weights = load_file(best / BEST_WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"{best / BEST_WEIGHTS} cannot be read ({first_line(error)}). Without {best}, the last model becomes "
                f"that of the run. {self.how_to_continue()}"
            ) from error
        for name, module in self.unwrapped.items():
            prefix = f"{name}."
            own = {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
            module.load_state_dict(own)
            if name in self.ema_models:
                self.ema_models[name].shadow_params = [parameter.detach().clone() for parameter in module.parameters()]
        self.task.load_snapshot(best)
        self.accelerator.print(f"The model of the run is the best one, of step {step_of(best):,}, not the last")
        return True

    def _evaluations(self, is_best: bool) -> dict[str, Any]:
        """Return the entries of `run.json` on evaluations while training."""
        if not self.validation:
            return {}
        best = self.validation.best()
        return {
            "evaluation_seconds": round(self.validation.spent, 1),
            "best": {name: best[name] for name in ("step", self.validation.metric)},
            "model_step": best["step"] if is_best else self.step,
        }

    def _save_figures(self) -> None:
        figures = self.run.figures
        if self.validation:
            rows = self.validation.history
            save_validation_curves(rows, self.validation.protocol, figures / VALIDATION_CURVES)
        save_training_curves(self.run / METRICS_FILE, figures / CURVES, self.batches.steps_per_epoch)
        if (self.run / CLASSES_FILE).exists():
            save_class_shares(self.run / CLASSES_FILE, figures / CLASSES)
        if self.config.save_images_epochs:
            save_slides(self.run.grids(), figures / TIMELAPSE)
        with self._published_weights():
            self.task.save_figures(figures)

    def release(self) -> None:
        """Release the module wrappers, then the other processes; the reverse order can hang at exit."""
        self.task.modules.update(self.unwrapped)
        self.accelerator.free_memory()
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        self.accelerator.trackers.clear()
        self.publisher.wait()

    def _save_model(self, folder: Path) -> None:
        with self._published_weights():
            self.task.save(folder)

    def _position(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "step": self.step,
            "command": self.command,
            "seconds": self.seconds(),
            "evaluation_seconds": self.validation.spent if self.validation else 0.0,
            "num_processes": self.accelerator.num_processes,
            "threads": torch.get_num_threads(),
            "scaler": scaler.state_dict() if scaler else None,
            "data": self._fingerprint(),
            "classes": [digest_of_classes(images) for images in self._sources()],
            "fixed_networks": self.fixed_networks,
            "config": self._fields(),
        }

    def _sources(self) -> list[ImageData]:
        return [self.task.data, *self.task.extra_datasets]

    def reference_split(self) -> str | None:
        """Return the split on which to measure the model, or None if all training data have a split `test`."""
        return self.config.reference_split(set.intersection(*(set(images.splits) for images in self._sources())))

    def _fingerprint(self) -> str:
        return "+".join(images.fingerprint for images in self._sources())

    def _check_protocol(self) -> None:
        """Check that evaluations compare with those before the resume, if there were any.

        Raises:
            UserError: naming what differs.
        """
        if not (self.run / VALIDATION).is_file():
            return
        earlier, now = json.loads((self.run / VALIDATION).read_text()), self.validation.protocol
        names = {"held_out_sha256": "held-out images", "judge_sha256": "judge", "metric": "metric"}
        if changed := [text for name, text in names.items() if earlier.get(name) != now.get(name)]:
            raise UserError(
                f"cannot resume {self.run}: its evaluations would not compare with the earlier ones, which had "
                f"other {' and '.join(changed)}; leave out evaluation_seconds and evaluation_steps, or train anew"
            )

    def resume(self, checkpoint: Path) -> None:
        """Resume from a checkpoint.

        Raises:
            UserError: if images, classes or fixed networks differ from those of the checkpoint, or its state is
                damaged.
        """
        position = read_position(checkpoint)
        sources = " and ".join(images.source for images in self._sources())
        if position["data"] != self._fingerprint():
            raise UserError(f"cannot resume {self.run}: the images of {sources} are not those of {checkpoint.name}")
        now = [digest_of_classes(images) for images in self._sources()]
        if position.get("classes", now) != now:  # missing in older checkpoints
            raise UserError(
                f"cannot resume {self.run}: the labels, clusters or names of the classes of {sources} are not those "
                f"of {checkpoint.name}"
            )
        if position.get("fixed_networks", self.fixed_networks) != self.fixed_networks:  # missing in older checkpoints
            named = " and ".join(f"{name} {getattr(self.config, name)}" for name in self.config.model_fields)
            raise UserError(
                f"cannot resume {self.run}: the weights of its {named} are not those with which {checkpoint.name} was "
                "trained"
            )
        try:
            unpack_state(load_file(checkpoint / STATE_FILE), self.unwrapped, self.optimizers, self.ema_models)
        except (KeyError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{unusable(checkpoint)} ({STATE_FILE}: {first_line(error)})") from error
        self.task.load_snapshot(checkpoint)
        self.step, self.seconds_before = position["step"], position["seconds"]
        self.agreed, self.next_agreement = (self.step, self.seconds_before), self.step + 1
        self.tracked = self.agreed
        self.command = position["command"]
        if self.validation:
            self._check_protocol()
            rows = [row for row in read_rows(self.run / METRICS_FILE) if row["step"] <= self.step]
            self.validation.resume(rows, position.get("evaluation_seconds", 0.0), self.seconds_before)
        for ema_model in self.ema_models.values():
            ema_model.to(self.accelerator.device)
            ema_model.optimization_step = self.step
        if position["scaler"]:
            self.accelerator.scaler.load_state_dict(position["scaler"])
        if position["num_processes"] != self.accelerator.num_processes:
            self.accelerator.print(
                f"The run had {position['num_processes']} processes and continues with "
                f"{self.accelerator.num_processes}: batches and noise differ from those of an uninterrupted run"
            )
        threads = torch.get_num_threads()
        before = position.get("threads", threads)  # missing in older checkpoints
        if self.accelerator.device.type == "cpu" and before != threads:
            self.accelerator.print(
                f"The run had {before} threads and continues with {threads}: sums have another order, so the weights "
                "differ in their last bits from those of an uninterrupted run"
            )
        self.accelerator.print(f"Resuming {self.run} from {checkpoint.name}")


def _is_finite(values: dict[str, Tensor | float]) -> bool:
    """Return whether the losses of a step are finite; networks after another step cannot be evaluated."""
    return all(math.isfinite(value) for name, value in values.items() if name.startswith("loss/"))


def digest_of_classes(images: ImageData) -> str | None:
    """Return the SHA-256 of labels and class names, or None without labels."""
    if images.labels is None:
        return None
    return hashlib.sha256(repr((images.label_names, images.labels.tolist())).encode()).hexdigest()


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Yield a list that collects stop signals; a second signal has its default effect.

    SIGHUP (terminal closed) and SIGUSR1 (cluster time limit) are left alone if they are ignored, as with nohup, or
    handled. Signals are received in the main thread only.
    """
    received: list[int] = []
    before = {}

    def receive(number: int, frame: Any) -> None:
        received.append(number)
        for other, handler in before.items():
            signal.signal(other, handler)

    if threading.current_thread() is threading.main_thread():
        further = [number for name in ("SIGHUP", "SIGUSR1") if (number := getattr(signal, name, None))]
        unhandled = [number for number in further if signal.getsignal(number) is signal.SIG_DFL]
        for number in (signal.SIGINT, signal.SIGTERM, *unhandled):
            before[number] = signal.signal(number, receive)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
