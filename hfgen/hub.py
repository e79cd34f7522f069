"""From a run, a checkpoint, a folder or a Hub id to a pipeline in memory."""

from pathlib import Path

from diffusers import DiffusionPipeline

from hfgen.checkpoints import newest_complete
from hfgen.errors import UserError


def load(run_or_repo: str) -> DiffusionPipeline:
    """Load a pipeline for sampling.

    Args:
        run_or_repo: A run folder (while it is still training, its newest checkpoint is taken), a checkpoint, any
            folder that `DiffusionPipeline.save_pretrained` wrote, or a Hub id.

    Raises:
        UserError: if there is no pipeline, or it could only be loaded by running pickles or remote code.
    """
    folder = Path(run_or_repo).expanduser()
    if folder.is_dir():
        if (folder / "config.json").exists() and (folder / "preprocessor_config.json").exists():
            raise UserError(f"{run_or_repo} is a classifier, which draws no images")
        if not (folder / "model_index.json").exists():
            checkpoint = newest_complete(folder / "checkpoints")
            if checkpoint is None:
                raise UserError(
                    f"{folder} holds no pipeline (no model_index.json) and no complete checkpoint of a run"
                )
            folder = checkpoint
        source = str(folder)
    elif run_or_repo.count("/") == 1 and not run_or_repo.startswith((".", "/", "~")):
        source = run_or_repo
    else:
        raise UserError(f"there is no folder {run_or_repo}, and a Hub id has the form user/name")
    try:
        return DiffusionPipeline.from_pretrained(source, use_safetensors=True)
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        absent = "" if folder.is_dir() else f"there is no folder {run_or_repo}, and as a Hub id "
        raise UserError(f"{absent}cannot load a pipeline from {run_or_repo}: {first_line}") from error
