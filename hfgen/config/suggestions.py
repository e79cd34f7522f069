"""Suggestions at the end of a message: the known word that a mistyped or foreign one probably means."""

import difflib
from collections.abc import Iterable, Mapping
from types import MappingProxyType

OTHER_WORDS = {  # for fields, in other tools; of several fields the first that a command has is suggested
    "dataset_name": "data dataset",
    "train_data_dir": "data_dir image_dir",
    "train_split": "split",
    "reference_split": "split reference",
    "resolution": "image_size size",
    "max_train_samples": "max_samples",
    "random_flip": "flip hflip",
    "num_train_epochs": "epochs num_epochs max_epochs",
    "max_train_steps": "steps num_steps max_steps iterations",
    "num_inference_steps": "steps num_steps sampling_steps timesteps",
    "num_train_timesteps": "timesteps",
    "max_train_seconds": "seconds time",
    "train_batch_size": "batch_size batch bs",
    "batch_size": "batch bs",
    "gradient_accumulation_steps": "accumulation_steps",
    "learning_rate": "lr",
    "lr_scheduler": "lr_schedule",
    "lr_warmup_steps": "warmup warmup_steps",
    "adam_beta1": "beta1 betas",
    "adam_beta2": "beta2",
    "adam_weight_decay": "wd weight_decay",
    "max_grad_norm": "grad_clip clip_grad",
    "use_ema": "ema",
    "ema_max_decay": "ema_decay",
    "latent_dim": "z_dim latent_size",
    "hidden_sizes": "hidden_dim",
    "act_fn": "activation",
    "class_conditional": "conditional",
    "prediction_type": "objective loss",
    "adversarial_loss": "loss",
    "pixel_distribution": "loss likelihood",
    "beta": "kl_weight",
    "beta_schedule": "noise_schedule",
    "guidance_scale": "cfg cfg_scale guidance",
    "scheduler": "sampler",
    "num_images": "n num count num_samples samples",
    "num_samples": "n num count samples",
    "class_labels": "class classes label labels",
    "label_column": "label labels",
    "noise_std": "noise",
    "degradation": "noise",
    "film": "gif animation",
    "inception": "fid",
    "output": "out output_dir",
    "output_dir": "out out_dir save_dir output name run_name",
    "checkpointing_steps": "save_steps",
    "resume_from_checkpoint": "resume",
    "logging_steps": "log_every",
    "report_to": "logger tracker",
    "repo_id": "repo hub_id",
    "hub_model_id": "repo repo_id hub_id",
    "mixed_precision": "precision amp fp16 bf16 dtype",
    "torch_compile": "compile",
}


OTHER_VALUES = {"dpmsolver": "dpm dpm++ dpmpp dpm_solver"}  # likewise for values
DEVICE_WORDS = {"device", "devices", "gpu", "gpus", "num_gpus", "cuda", "cpu"}


def field_suggestion(word: str, fields: Iterable[str], prefix: str = "") -> str:
    """Return the end of a message on an unknown field, or nothing; a training has no field for its device.

    Args:
        word: The unknown field.
        fields: The fields of the command.
        prefix: What stands before fields, `--` for flags.
    """
    fields = list(fields)
    if word in DEVICE_WORDS and "mixed_precision" in fields:
        return (
            ": a training uses this machine's GPU if there is one; the environment variables CUDA_VISIBLE_DEVICES=1 "
            "and ACCELERATE_USE_CPU=1 choose another GPU and the CPU, and accelerate launch several GPUs"
        )
    return suggestion(word, fields, prefix, OTHER_WORDS)


def suggestion(
    word: str, known: Iterable[str], prefix: str = "", other_words: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Return the end of a message that suggests the known word that is meant, or nothing.

    Args:
        word: The unknown word.
        known: The words to choose from.
        prefix: What stands before the known words.
        other_words: Other words for known ones, separated by spaces.
    """
    known, word = list(known), word.lower().replace("-", "_")
    near = [name for name, others in other_words.items() if name in known and word in others.split()]
    near += difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else ""
