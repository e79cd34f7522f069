"""From a configuration to a finished run folder: checks and setup around the training loop."""

import contextlib
import ctypes
import dataclasses
import hashlib
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    GradientAccumulationPlugin,
    broadcast_object_list,
    gather_object,
)
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from hfgen.config.training import CONFIG_FILE, TrainingConfig, changed_fields, defaults, read_fields
from hfgen.data.images import ImageData, load_training_images
from hfgen.data.sources import placed_folder, placed_source
from hfgen.families import families
from hfgen.runs.checkpoints import MANIFEST, find_checkpoint, list_checkpoints, read_position
from hfgen.runs.folder import CHECKPOINTS, LOCK, RunFolder
from hfgen.runs.record import options_text
from hfgen.tasks.base import Task
from hfgen.training.launcher import decide, refuse_distribution, refuse_sharding
from hfgen.training.processes import PATIENCE, OtherPrograms, as_found, on_all_processes, own_group, report_waiting
from hfgen.training.publisher import Publisher
from hfgen.training.trainer import Trainer, digest_of_classes
from hfgen.training.validation import Evaluation, Validation
from hfgen.utils.devices import forget_peak_memory, training_device
from hfgen.utils.errors import InterruptedTrainingError, PublishingError, TrainingError, UserError, first_line
from hfgen.utils.files import local_path
from hfgen.utils.hashes import sha256_of
from hfgen.utils.seeds import derive_seed, seed_torch

NOWHERE = Publisher()
SHOWN_CHANGES = 5  # differences of configurations in a message


def train(
    config: TrainingConfig,
    make_task: Callable[[TrainingConfig, ImageData], Task],
    publisher: Publisher = NOWHERE,
    on_evaluation: Callable[[Evaluation], None] = lambda evaluation: None,
) -> Path:
    """Train a task and write its run folder.

    The folder holds the model for `from_pretrained`, `config.yaml` (all fields), `metrics.jsonl` (one line per
    optimizer step), `times.jsonl` (seconds of training by step), `run.json` (versions, hardware, time), `samples/`,
    `figures/` and `checkpoints/`. With the same configuration, number of processes and hardware, a run that was killed
    and resumed is bit-identical to an uninterrupted one but for its times, except under `max_train_seconds`; on a GPU
    only with `deterministic`.

    The process state is restored (`hfgen.training.processes.as_found`). Outside the main thread signals cannot be
    received, so they do not save the run.

    Args:
        config: The configuration.
        make_task: Builds the task from the configuration and the training images.
        publisher: Publishes the model.
        on_evaluation: Receives each evaluation while training, on the main process; a TrainingError that it raises
            stops the training.

    Returns:
        The run folder.

    Raises:
        UserError: before any work, if the configuration, the data or the folder do not fit.
        TrainingError: if a loss is not finite, the disk is full, or another process ended; the message says what was
            saved and how to continue.
        InterruptedTrainingError: likewise, if a signal was received.
        PublishingError: if the finished run could not be published.
    """
    with as_found(deterministic=config.deterministic):
        return _train(config, make_task, publisher, on_evaluation)


def _train(
    config: TrainingConfig,
    make_task: Callable[[TrainingConfig, ImageData], Task],
    publisher: Publisher,
    on_evaluation: Callable[[Evaluation], None],
) -> Path:
    if config.push_to_hub and type(publisher) is Publisher:
        raise UserError("push_to_hub needs a publisher, which hfgen.train and the command line pass")
    refuse_sharding()
    settings = decide(config)
    config = dataclasses.replace(
        config,
        mixed_precision=settings.mixed_precision,
        torch_compile=settings.torch_compile,
        **placed_fields(config, config.to_dict()),
    )
    run, others = local_path(config.output_dir), OtherPrograms()
    with _usable(run):
        _check_run_folder(config, run)
    accelerator = _make_accelerator(config)
    for remark in settings.remarks:
        accelerator.print(remark)
    keep_freed_memory()
    forget_peak_memory(accelerator.device)
    data = on_all_processes(accelerator, lambda: _load_data(config), "reading the images")
    if len(data) == 1:
        accelerator.print(f"hfgen: {data.source} has only one image; a model can only reproduce it", file=sys.stderr)
    seed_torch(derive_seed("initial weights", config.seed), accelerator.device)
    task = on_all_processes(accelerator, lambda: make_task(config, data), "building the networks")
    for remark in on_all_processes(accelerator, task.remarks, "checking the networks"):
        accelerator.print(f"hfgen: {remark}", file=sys.stderr)
    validation = _make_validation(config, make_task, data, accelerator)
    _check_publisher(publisher, accelerator, task.index_file)
    with _only_training_in(run, accelerator), _trackers_finished(accelerator):
        checkpoint = on_all_processes(  # again, since another run may have changed it
            accelerator, lambda: _check_run_folder(config, run, accelerator.print), "checking the run folder"
        )
        if config.resume_from_checkpoint and checkpoint is None:
            accelerator.print(f"There is no checkpoint in {run}; training starts at step 0")
        sources = [task.data, *task.extra_datasets]
        _agree_on_start(config, accelerator, checkpoint, sources, task.fixed_networks())
        trainer = Trainer(config, task, accelerator, RunFolder(run), publisher, validation, on_evaluation)
        try:
            if checkpoint:
                on_all_processes(accelerator, lambda: trainer.resume(checkpoint), "resuming")
            if trainer.is_finished():
                accelerator.print(f"{run} is finished; increase max_train_steps or num_train_epochs to train on")
            else:
                trainer.prepare_run_folder()
                alone_on_cpu = accelerator.device.type == "cpu" and accelerator.num_processes == 1
                if alone_on_cpu and (busy := others.warning(torch.get_num_threads())):
                    accelerator.print(f"hfgen: warning: {busy}", file=sys.stderr)
                trainer.run_loop()
                try:
                    trainer.finish()
                except KeyboardInterrupt as stop:
                    message = f"stopped after step {trainer.step}, the last one. {trainer.how_to_continue()}"
                    raise InterruptedTrainingError(message, signal.SIGINT) from stop
        except (OSError, SafetensorError) as error:  # usually a full disk; on one process, so wait for no other
            raise TrainingError(f"{error}. Training stopped. {trainer.how_to_continue()}") from error
        except (TrainingError, InterruptedTrainingError):
            trainer.release()
            raise
        except RuntimeError as error:
            if why := _why_it_ended(error, config, accelerator):
                raise TrainingError(f"{why}. {trainer.how_to_continue()}") from error
            raise
        trainer.release()
    picture = "".join(f"; newest picture: {grid}" for grid in RunFolder(run).grids()[-1:])
    split = trainer.reference_split()
    accelerator.print(f"The run is in {run}{picture}; next: {', '.join(config.commands_for(run, split))}")
    if split:
        why = ""
        if split == config.train_split:
            why = "; training with test_fraction 0.2 holds some images out"
        elif config.load_best_model_at_end:
            why = ", by which the best model was chosen; training with test_fraction 0.2 holds other images out"
        accelerator.print(f"There is no split test, so these commands measure on the split {split}{why}")
    if accelerator.is_main_process:
        publisher.publish(run)
    return run


def _make_validation(
    config: TrainingConfig,
    make_task: Callable[[TrainingConfig, ImageData], Task],
    data: ImageData,
    accelerator: Accelerator,
) -> Validation | None:
    """Prepare evaluations while training on the main process, if there are any."""

    def make() -> Validation | None:
        needed = config.evaluates and accelerator.is_main_process
        return Validation(config, make_task, data, accelerator) if needed else None

    return on_all_processes(accelerator, make, "preparing the evaluations")


def _load_data(config: TrainingConfig) -> ImageData:
    """Load the images; of several processes on a machine one decodes them while the others wait for its lock."""
    if config.train_data_dir and not Path(config.train_data_dir).is_dir():
        raise UserError(f"there is no folder {config.train_data_dir} (train_data_dir)")
    return load_training_images(config)


def _agree_on_start(
    config: TrainingConfig,
    accelerator: Accelerator,
    checkpoint: Path | None,
    sources: Sequence[ImageData],
    networks: Sequence[torch.nn.Module],
) -> None:
    """Check that all processes start with the same checkpoint, configuration, images and fixed networks.

    They may differ on machines with separate disks. Paths may differ.

    Raises:
        UserError: on all processes, naming what differs.
    """
    places = {"cache_dir", "output_dir", "resume_from_checkpoint"}
    places |= {*config.dataset_fields, *config.folder_fields, *config.model_fields}
    state = {
        "host": platform.node(),
        "checkpoint": checkpoint and checkpoint.name,
        "state": checkpoint and hashlib.sha256((checkpoint / MANIFEST).read_bytes()).hexdigest(),
        "config": {name: value for name, value in config.to_dict().items() if name not in places},
        "images": [images.fingerprint for images in sources],
        "classes": [digest_of_classes(images) for images in sources],
        "networks": [sha256_of(network) for network in networks],
    }
    with report_waiting("the other processes (comparing their initial state)"):
        first, *others = gather_object([state])
    for index, other in enumerate(others, start=1):
        if other == first | {"host": other["host"]}:
            continue
        if other["checkpoint"] != first["checkpoint"]:
            found = " and ".join(
                f"process {number} (on {one['host']}) {one['checkpoint'] or 'none'}"
                for number, one in ((0, first), (index, other))
            )
            why = f"they find different checkpoints, {found}; put the run folder on a shared disk, or copy it"
        elif other["state"] != first["state"]:
            why = f"their checkpoints {first['checkpoint']} differ; copy the run folder of one machine to the others"
        elif other["images"] != first["images"]:
            why = f"process {index} (on {other['host']}) has different images from process 0 (on {first['host']})"
        elif other["classes"] != first["classes"]:
            why = f"process {index} (on {other['host']}) has different labels or clusters from process 0"
        elif other["networks"] != first["networks"]:
            fields = " or ".join(config.model_fields)
            why = f"process {index} (on {other['host']}) has a different model for {fields} from process 0"
        else:
            changed = [
                f"{name} {first['config'][name]} and {value}"
                for name, value in other["config"].items()
                if first["config"][name] != value
            ]
            why = f"processes 0 and {index} have different configurations ({', '.join(changed)})"
        raise UserError(f"the processes cannot train together: {why}")


@contextlib.contextmanager
def _trackers_finished(accelerator: Accelerator) -> Iterator[None]:
    """Finish the trackers of a training that fails; otherwise `Trainer.release` does."""
    try:
        yield
    except BaseException:
        for tracker in accelerator.trackers:
            with contextlib.suppress(Exception):  # the original error matters more
                tracker.finish()
        raise


def _why_it_ended(error: RuntimeError, config: TrainingConfig, accelerator: Accelerator) -> str | None:
    """Explain an error of torch that hfgen does not cause, or return None."""
    if config.deterministic and "deterministic" in str(error):
        return f"deterministic is not supported here: {first_line(error)}. Start again without it"
    lost = isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
    if accelerator.num_processes > 1 and lost:
        return f"Another process of this training ended ({first_line(error)[:100]}), so this one stopped too"
    return None


def _check_publisher(publisher: Publisher, accelerator: Accelerator, index_file: str) -> None:
    """Check on one process, before training, that the model can be published; raise on all."""
    errors: list[Exception | None] = [None]
    if accelerator.is_main_process:
        try:
            publisher.check(index_file)
        except (UserError, PublishingError) as error:
            errors = [error]
    broadcast_object_list(errors)
    if errors[0]:
        raise errors[0]


@contextlib.contextmanager
def _usable(run: Path) -> Iterator[None]:
    """Raise UserError for a folder that cannot be read or created."""
    try:
        yield
    except OSError as error:
        raise UserError(f"output_dir {run} cannot be used ({error.strerror}); name another folder") from error


@contextlib.contextmanager
def _only_training_in(run: Path, accelerator: Accelerator) -> Iterator[None]:
    """Keep a second training out of a run folder."""
    with _usable(run):
        run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / LOCK, timeout=0)

    def take() -> None:
        try:
            lock.acquire()
        except Timeout as error:
            raise UserError(
                f"another process is training in {run}; choose another --output_dir. If none is (possible only "
                f"after a crash on a network disk), remove {lock.lock_file}"
            ) from error
        except OSError as error:
            raise UserError(f"{lock.lock_file} cannot be locked ({error.strerror}); use another disk") from error

    on_all_processes(accelerator, take if accelerator.is_main_process else lambda: None, "locking the run folder")
    try:
        yield
    finally:
        lock.release()


def keep_freed_memory() -> None:
    """Let glibc reuse the memory of a step's tensors in the next step, on a CPU.

    By default it returns large blocks to the system, which zeroes their pages again in every step. See mallopt(3);
    32 MiB is the largest threshold. Other C libraries are unaffected. The setting lasts until the process ends, since
    the previous thresholds cannot be read.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt:
        mmap_threshold, trim_threshold = -3, -1
        mallopt(mmap_threshold, 2**25)
        mallopt(trim_threshold, 2**31 - 1)


def placed_fields(config: TrainingConfig, fields: Mapping[str, Any]) -> dict[str, str]:
    """Return the fields with local paths, made independent of the working directory."""
    sources = (*config.dataset_fields, *config.model_fields)
    data = {name: placed_source(fields[name]) for name in sources if fields.get(name)}
    folders = {name: fields[name] for name in config.folder_fields if fields.get(name)}
    return data | {name: placed_folder(folder) for name, folder in folders.items()}


def _check_run_folder(
    config: TrainingConfig, run: Path, report: Callable[[str], None] = lambda message: None
) -> Path | None:
    """Find the checkpoint to resume from, if any.

    Raises:
        UserError: if the folder holds other files, or a run that is not to be resumed or has another configuration.
    """
    saved = run / CONFIG_FILE
    if run.exists() and not run.is_dir():
        raise UserError(f"output_dir {run} is a file; name a folder")
    for name in config.folder_fields:
        folder = getattr(config, name)
        if folder and run.resolve().is_relative_to(Path(folder).resolve()):
            raise UserError(f"output_dir {run} is inside the image folder {name}; choose a folder outside it")
    if not saved.exists():
        if config.resume_from_checkpoint not in (None, "latest"):
            raise UserError(f"cannot resume: {run} holds no run (no {CONFIG_FILE})")
        if list_checkpoints(run / CHECKPOINTS):
            raise UserError(
                f"{run} holds checkpoints of a run, but not its {CONFIG_FILE}; restore it to resume the run, "
                "or choose another --output_dir"
            )
        if others := RunFolder(run).foreign_files():
            raise UserError(
                f"output_dir {run} is not empty and holds no run ({', '.join(others[:3])}"
                f"{', …' * (len(others) > 3)}); choose a new or empty folder"
            )
        return None
    before = read_fields(saved)
    if (family := _family_of(before)) not in (config.family, None):
        raise UserError(f"{run} already holds a run of hfgen train {family}; choose another output_dir")
    if config.resume_from_checkpoint is None:
        raise UserError(
            f"{run} already holds a run; continue it with {options_text({'resume_from_checkpoint': 'latest'})}, "
            "or choose another output_dir"
        )
    if changed := changed_fields(config, before | placed_fields(config, before)):
        more = f"; and {len(changed) - SHOWN_CHANGES} more" if len(changed) > SHOWN_CHANGES else ""
        own = options_text({"config": str(saved)})
        raise UserError(
            f"cannot resume {run} with another configuration ({'; '.join(changed[:SHOWN_CHANGES])}{more}); use its "
            f"own, {own}, or start a new run in another output_dir"
        )
    checkpoint = find_checkpoint(run / CHECKPOINTS, config.resume_from_checkpoint, report)
    trained = read_position(checkpoint).get("config") if checkpoint else None  # missing in older checkpoints
    if trained and (changed := changed_fields(config, trained)):
        raise UserError(
            f"cannot resume {run}: {saved} is not what {checkpoint.name} was trained with ({'; '.join(changed)}); "
            "undo the change, or start a new run in another --output_dir"
        )
    return checkpoint


def _family_of(fields: Mapping[str, Any]) -> str | None:
    """Return the family whose configuration has most of the fields of a run, and fewest others; None for a tie."""
    differing = {name: len(defaults(family.config).keys() ^ fields.keys()) for name, family in families().items()}
    first, second = sorted(differing, key=differing.get)[:2]
    return first if differing[first] < differing[second] else None


def _make_accelerator(config: TrainingConfig) -> Accelerator:
    if missing := set(config.report_to) - {str(tracker) for tracker in get_available_trackers()}:
        available = ", ".join(sorted(str(tracker) for tracker in get_available_trackers())) or "none"
        raise UserError(
            f"report_to {', '.join(sorted(missing))}: no such tracker is installed; installed: {available}"
        )
    device = training_device().type
    if config.mixed_precision == "fp16" and device != "cuda":
        raise UserError("mixed_precision fp16 needs a GPU; use bf16 or no")
    _refuse_another_state(config, device)
    cpu = device == "cpu"  # needed to connect several CPU processes
    PartialState(cpu=cpu, timeout=PATIENCE, **own_group())  # which the accelerator shares
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=config.mixed_precision,
        # A plugin, since the environment overrides a number.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=config.gradient_accumulation_steps),
        dynamo_backend="inductor" if config.torch_compile else "no",
        log_with=config.report_to or None,
        project_dir=config.output_dir,
    )
    refuse_distribution(accelerator.distributed_type)
    return accelerator


def _refuse_another_state(config: TrainingConfig, device: str) -> None:
    """Refuse to train if the caller's own `Accelerator` has other settings, since a process shares them."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise UserError(
            "this process is already in a process group, its own or that of a training that failed, but hfgen creates "
            "one for each training; destroy it first (torch.distributed.destroy_process_group)"
        )
    if not AcceleratorState._shared_state:
        return
    theirs = AcceleratorState()
    own = {
        "mixed_precision": (theirs.mixed_precision, config.mixed_precision),
        "torch_compile": (theirs.dynamo_plugin.backend.value != "NO", config.torch_compile),
        "device": (theirs.device.type, device),
    }
    if differing := [f"{name} {a}, not {b}" for name, (a, b) in own.items() if a != b]:
        raise UserError(
            f"this process has an Accelerator with {'; '.join(differing)}, and accelerate shares settings in "
            "a process; use the same ones, or train in a separate process"
        )
