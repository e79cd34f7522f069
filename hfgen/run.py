"""From a configuration to a finished run folder: everything that is checked and made before and around the loop."""

import contextlib
import ctypes
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import broadcast_object_list, gather_object
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from hfgen import hub
from hfgen.checkpoints import find_checkpoint, list_checkpoints, read_position
from hfgen.config.training import CONFIG_FILE, TrainingConfig, changed_fields, read_fields
from hfgen.data import ImageData, load_images, placed_source
from hfgen.errors import PublishingError, TrainingError, UserError
from hfgen.files import INCOMPLETE
from hfgen.seeds import derive_seed
from hfgen.tasks import Task
from hfgen.training import Trainer

T = TypeVar("T")


def train(config: TrainingConfig, make_task: Callable[[TrainingConfig, ImageData], Task]) -> Path:
    """Train a task and leave a run folder.

    The folder holds the model as `from_pretrained` takes it, `config.yaml` (every field),
    `metrics.jsonl` (one line an optimizer step), `run.json` (versions, hardware, time), `samples/`, `figures/` and
    `checkpoints/`. With the same configuration, number of processes and hardware, a run that was killed and resumed
    ends with the same bits as one that was not, except under `max_train_seconds`.

    Args:
        config: What to do.
        make_task: Builds the task from the configuration and the training images.

    Returns:
        The run folder.

    Raises:
        UserError: before any work, if the configuration, the data or the folder do not allow it.
        TrainingError: if a loss is no longer finite, the disk is full, or a signal asked to stop; the message says
            what was kept and how to go on.
        PublishingError: under `push_to_hub`, if the finished run could not be uploaded.
    """
    config = dataclasses.replace(
        config,
        mixed_precision=config.mixed_precision or native_precision(),
        **placed_fields(config, config.to_dict()),
    )
    run = Path(config.output_dir).expanduser()
    with _usable(run):
        _check_run_folder(config, run)
    accelerator = _make_accelerator(config)
    keep_freed_memory()
    data = _load_data(config, accelerator)
    torch.manual_seed(derive_seed("initial weights", config.seed))
    task = make_task(config, data)
    if config.push_to_hub:
        _prepare_repo(config, accelerator, task.index_file)
    with _only_training_in(run, accelerator):
        # Again, since another run may have come and gone in it meanwhile.
        checkpoint = _on_all_processes(accelerator, lambda: _check_run_folder(config, run, accelerator.print))
        if config.resume_from_checkpoint and checkpoint is None:
            accelerator.print(f"There is nothing to resume in {run}, so training begins at step 0")
        trainer = Trainer(config, task, data, accelerator, run)
        try:
            if checkpoint:
                trainer.resume(checkpoint)
            if trainer.is_finished():
                accelerator.print(f"{run} is finished: a larger --max_train_steps or --num_train_epochs prolongs it")
            else:
                trainer.prepare_run_folder()
                trainer.run_loop()
                trainer.finish()
        except (OSError, SafetensorError) as error:  # a full disk, mostly; on one process, so wait for no other
            raise TrainingError(f"{error}. Training stopped. {trainer.how_to_go_on()}") from error
        except TrainingError:
            trainer.release()
            raise
        trainer.release()
    accelerator.print(f"The run is in {run}; next: {config.next_command} {run}")
    if config.push_to_hub and accelerator.is_main_process:
        _publish(config, run)
    return run


def _load_data(config: TrainingConfig, accelerator: Accelerator) -> ImageData:
    """Load the images, on the first process of a machine before the others, which then find them decoded."""
    if config.train_data_dir and not Path(config.train_data_dir).expanduser().is_dir():
        raise UserError(f"there is no folder {config.train_data_dir} (train_data_dir)")
    error = None
    with accelerator.local_main_process_first():
        try:
            data = load_images(
                config.dataset_name or str(Path(config.train_data_dir).expanduser().absolute()),
                split=config.train_split,
                max_samples=config.max_train_samples,
                **config.reading_options(),
            )
        except UserError as user_error:  # raised below, where no process waits for this one
            error = user_error
    if error:
        raise error
    return data


def _publishing_options(config: TrainingConfig) -> dict[str, Any]:
    return {"repo_id": config.hub_model_id, "private": config.hub_private_repo, "spdx_license": config.hub_license}


def _publish(config: TrainingConfig, run: Path) -> None:
    try:
        print("Published:", hub.push(run, **_publishing_options(config)))
    except UserError as error:  # what was possible before training no longer is
        again = f"hfgen push {run} --repo_id {config.hub_model_id}"
        raise PublishingError(f"{error}. The run is whole; once that is mended: {again}") from error


def _prepare_repo(config: TrainingConfig, accelerator: Accelerator, index_file: str) -> None:
    """Find out on one process, before training, whether the model can be published after it; tell the others."""
    errors: list[Exception | None] = [None]
    if accelerator.is_main_process:
        try:
            hub.prepare_repo(index_file=index_file, **_publishing_options(config))
        except (UserError, PublishingError) as error:
            errors = [error]
    broadcast_object_list(errors)
    if errors[0]:
        raise errors[0]


@contextlib.contextmanager
def _usable(run: Path) -> Iterator[None]:
    """Say of a folder that cannot be read or made that it cannot."""
    try:
        yield
    except OSError as error:
        raise UserError(f"output_dir {run} cannot be used ({error.strerror}); name another folder") from error


@contextlib.contextmanager
def _only_training_in(run: Path, accelerator: Accelerator) -> Iterator[None]:
    """Keep a second training out of a run folder."""
    with _usable(run):
        run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / ".lock", timeout=0)
    taken = torch.zeros(1, device=accelerator.device)
    if accelerator.is_main_process:
        try:
            lock.acquire()
        except Timeout:
            taken += 1
    if accelerator.gather(taken).any():
        raise UserError(f"another process is training in {run}; choose another --output_dir")
    try:
        yield
    finally:
        lock.release()


def native_precision() -> str:
    """Return `bf16` if the hardware computes in it (not merely accepts it), else `no`."""
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        native = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bf16" if native else "no"


def keep_freed_memory() -> None:
    """Let glibc keep the memory of a step's tensors for the next step, on a CPU.

    By default it returns large blocks to the system, which then fills them with zeros page by page at every step.
    See mallopt(3); 32 MiB is the largest threshold. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt:
        mmap_threshold, trim_threshold = -3, -1
        mallopt(mmap_threshold, 2**25)
        mallopt(trim_threshold, 2**31 - 1)


def placed_fields(config: TrainingConfig, fields: Mapping[str, Any]) -> dict[str, str]:
    """Return the fields that name places on this machine, so that they mean the same in whatever folder."""
    data = {name: placed_source(fields[name]) for name in config.dataset_fields if fields.get(name)}
    folders = {name: fields[name] for name in config.folder_fields if fields.get(name)}
    return data | {name: str(Path(folder).expanduser().absolute()) for name, folder in folders.items()}


def _check_run_folder(
    config: TrainingConfig, run: Path, report: Callable[[str], None] = lambda message: None
) -> Path | None:
    """Find the checkpoint to resume from, if any.

    Raises:
        UserError: if something else than a run is in the folder, or a run that is not to be resumed or is another one.
    """
    saved = run / CONFIG_FILE
    if run.exists() and not run.is_dir():
        raise UserError(f"output_dir {run} is a file; name a folder")
    for name in config.folder_fields:
        folder = getattr(config, name)
        if folder and run.resolve().is_relative_to(Path(folder).resolve()):
            raise UserError(f"output_dir {run} is inside {name}, whose images it would add to; name another folder")
    if not saved.exists():
        if config.resume_from_checkpoint not in (None, "latest"):
            raise UserError(f"cannot resume: {run} holds no run (no {CONFIG_FILE})")
        if list_checkpoints(run / "checkpoints"):
            raise UserError(
                f"{run} holds checkpoints of a run, but not its {CONFIG_FILE}; bring that back to resume it, "
                "or choose another --output_dir"
            )
        if others := _files_in(run):
            raise UserError(
                f"output_dir {run} is not empty and holds no run ({', '.join(others[:3])}"
                f"{', …' * (len(others) > 3)}); name a new or empty folder, and nothing there is touched"
            )
        return None
    if config.resume_from_checkpoint is None:
        raise UserError(
            f"{run} already holds a run; continue it with --resume_from_checkpoint latest, "
            "or choose another --output_dir"
        )
    before = read_fields(saved)
    if changed := changed_fields(config, before | placed_fields(config, before)):
        raise UserError(
            f"cannot resume {run} with another configuration ({'; '.join(changed)}); use its own, --config {saved}, "
            "or start a new run in another --output_dir"
        )
    checkpoint = find_checkpoint(run / "checkpoints", config.resume_from_checkpoint, report)
    trained = read_position(checkpoint).get("config") if checkpoint else None  # older ones do not have it
    if trained and (changed := changed_fields(config, trained)):
        raise UserError(
            f"cannot resume {run}: {saved} is not what {checkpoint.name} was trained with ({'; '.join(changed)}); "
            "undo the change, or start a new run in another --output_dir"
        )
    return checkpoint


def _files_in(folder: Path) -> list[str]:
    """Name what is in a folder, but for empty folders and what a training leaves before it begins."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    ours = (".lock", INCOMPLETE)
    full = (entry for entry in entries if entry.is_symlink() or not entry.is_dir() or any(entry.iterdir()))
    return [entry.name for entry in full if not entry.name.startswith(ours)]


def _on_all_processes(accelerator: Accelerator, action: Callable[[], T]) -> T:
    """Do something on each process; where it fails on one, the error is raised on all, so that none waits for another.

    Raises:
        UserError: the first one.
    """
    result, error = None, None
    try:
        result = action()
    except UserError as user_error:
        error = user_error
    if errors := [error for error in gather_object([error]) if error]:
        raise errors[0]
    return result


def _make_accelerator(config: TrainingConfig) -> Accelerator:
    if missing := set(config.report_to) - {str(tracker) for tracker in get_available_trackers()}:
        available = ", ".join(sorted(str(tracker) for tracker in get_available_trackers())) or "none"
        raise UserError(
            f"report_to {', '.join(sorted(missing))}: no such tracker is installed; installed: {available}"
        )
    if config.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise UserError("mixed_precision fp16 needs a GPU; use bf16 or no")
    return Accelerator(
        cpu=not torch.accelerator.is_available(),  # or several CPU processes would not find each other
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        dynamo_backend="inductor" if config.torch_compile else "no",
        log_with=config.report_to or None,
        project_dir=config.output_dir,
    )
