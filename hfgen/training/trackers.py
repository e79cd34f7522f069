"""Trackers of a training, through accelerate: TensorBoard, Weights & Biases, trackio and others."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from accelerate import Accelerator

PROJECT = "hfgen"
RUN_NAME = {  # the option of each tracker; the folder of TensorBoard's files tells the run
    "clearml": "task_name",
    "mlflow": "run_name",
    "swanlab": "experiment_name",
    "trackio": "name",
    "wandb": "name",
}
IMAGES = {"aim", "clearml", "swanlab", "tensorboard", "trackio", "wandb"}  # trackers that take images


def start_trackers(accelerator: Accelerator, run: Path, settings: dict[str, Any]) -> None:
    """Start a run's trackers under the name of its folder, with all settings; print where TensorBoard's files are.

    Args:
        accelerator: The accelerator, with the trackers' names.
        run: The run folder.
        settings: The configuration; lists and missing values are sent as text.
    """
    sent = {name: value if isinstance(value, int | float | str) else _text(value) for name, value in settings.items()}
    options = {tracker: {option: run.resolve().name} for tracker, option in RUN_NAME.items()}
    accelerator.init_trackers(PROJECT, config=sent, init_kwargs=options)
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            accelerator.print(f"TensorBoard's files are in {tracker.logging_dir}; see tensorboard --logdir {run}")
        elif tracker.name not in IMAGES:
            accelerator.print(f"hfgen: {tracker.name} gets the metrics, but no sample grids")


def track_picture(accelerator: Accelerator, name: str, picture: PIL.Image.Image, step: int) -> None:
    """Send a picture to the trackers that take images."""
    for tracker in accelerator.trackers:
        match tracker.name:
            case "tensorboard":
                tracker.log_images({name: np.asarray(picture.convert("RGB"))[None]}, step, dataformats="NHWC")
            case "trackio":
                import trackio

                tracker.log({name: trackio.Image(picture)}, step)
            case "swanlab" | "wandb":
                tracker.log_images({name: [picture]}, step)
            case "aim" | "clearml":
                tracker.log_images({name: picture}, step)


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
