"""From a configuration to a finished run folder: everything that is checked and made before and around the loop."""

import contextlib
import ctypes
import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from hfgen import hub
from hfgen.checkpoints import find_checkpoint
from hfgen.config.training import TrainingConfig, changed_fields
from hfgen.data import ImageData, load_images, placed_folder, placed_source
from hfgen.errors import PublishingError, TrainingError, UserError
from hfgen.records import CONFIG_FILE
from hfgen.seeds import derive_seed
from hfgen.tasks import Task
from hfgen.training import Trainer


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
        **{name: placed_source(value) for name in config.dataset_fields if (value := getattr(config, name))},
        **{name: placed_folder(value) for name in config.folder_fields if (value := getattr(config, name))},
    )
    run = Path(config.output_dir)
    checkpoint = _check_run_folder(config, run)
    accelerator = _make_accelerator(config)
    keep_freed_memory()
    data = _load_data(config, accelerator)
    torch.manual_seed(derive_seed("initial weights", config.seed))
    task = make_task(config, data)
    if config.push_to_hub:
        _prepare_repo(config, accelerator, task.index_file)
    with _only_training_in(run, accelerator):
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
    if config.train_data_dir and not Path(placed_folder(config.train_data_dir)).is_dir():
        raise UserError(f"there is no folder {config.train_data_dir} (train_data_dir)")
    error = None
    with accelerator.local_main_process_first():
        try:
            data = load_images(
                config.dataset_name or placed_folder(config.train_data_dir),
                split=config.train_split,
                max_samples=config.max_train_samples,
                **config.reading_options(),
            )
        except UserError as user_error:  # raised below, where no process waits for this one
            error = user_error
    if error:
        raise error
    if len(data) == 1:
        accelerator.print(f"{data.source} has one image; a model of it can do no more than repeat it")
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
def _only_training_in(run: Path, accelerator: Accelerator) -> Iterator[None]:
    """Keep a second training out of a run folder."""
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


def _check_run_folder(config: TrainingConfig, run: Path) -> Path | None:
    """Return the checkpoint to resume from, if any; refuse to overwrite a run or to resume another one."""
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
        return None
    if config.resume_from_checkpoint is None:
        raise UserError(
            f"{run} already holds a run; continue it with --resume_from_checkpoint latest, "
            "or choose another --output_dir"
        )
    if changed := changed_fields(config, saved):
        raise UserError(
            f"cannot resume {run} with another configuration ({'; '.join(changed)}); use its own, --config {saved}, "
            "or start a new run in another --output_dir"
        )
    return find_checkpoint(run / "checkpoints", config.resume_from_checkpoint)


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
