"""Numbers that cannot work are refused before any work, in every field of every command; warm-ups end in time."""

import dataclasses
import math
import typing

import pytest
from conftest import TINY_GAN

from hfgen.config import ClassifierConfig, CycleGANConfig, DDPMConfig, GANConfig, TranslationConfig, VAEConfig
from hfgen.config.commands import AnalyzeConfig, CompareSamplersConfig, EvaluateConfig, SampleConfig, TranslateConfig
from hfgen.config.parser import parse_config
from hfgen.families import families
from hfgen.utils.errors import UserError

RUN = {"dataset_name": "digits", "output_dir": "x"}
SMALLEST = {
    ClassifierConfig: RUN,
    CycleGANConfig: RUN | {"target_degradation": ["invert"]},
    DDPMConfig: RUN,
    GANConfig: RUN,
    TranslationConfig: RUN | {"degradation": ["invert"]},
    VAEConfig: RUN,
    AnalyzeConfig: {"run_or_repo": "x"},
    CompareSamplersConfig: {"runs": ["x"]},
    EvaluateConfig: {"run_or_repo": "x"},
    SampleConfig: {"run_or_repo": "x"},
    TranslateConfig: {"run_or_repo": "x", "input": __file__},
}
LENGTHS = {  # of a run, of which any may be asked for, and how often something happens in it
    "max_train_samples", "num_train_epochs", "max_train_steps", "max_train_seconds", "checkpointing_steps",
    "checkpoints_total_limit", "logging_steps", "sample_steps", "save_images_epochs",
}  # fmt: skip
STRENGTHS = {  # whose effect is seen in the losses
    "learning_rate", "adam_weight_decay", "adam_epsilon", "max_grad_norm", "snr_gamma", "beta", "free_bits",
    "r1_gamma", "r2_gamma", "gradient_penalty_weight", "discriminator_learning_rate", "l1_weight", "mse_weight",
    "psnr_weight", "ssim_weight", "adversarial_weight", "cycle_weight", "identity_weight",
}  # fmt: skip
MAY_BE_NEGATIVE = {"guidance_scale", "logit_mean"}  # away from the class, and towards less noise
MAY_BE_HUGE = LENGTHS | STRENGTHS | {"evaluation_seconds", "evaluation_steps", "seed", "truncation", "tile_size"}
ASKED_OF_THE_MODEL = {"noise_std", "strength", "guidance_interval"}  # which knows what it can do


def numeric_fields(config_class) -> dict[str, bool]:
    """Return the fields that hold numbers, and whether they hold lists."""
    hints = typing.get_type_hints(config_class)
    fields = {}
    for field in dataclasses.fields(config_class):
        parts = {hints[field.name], *typing.get_args(hints[field.name])}
        lists = [part for part in parts if typing.get_origin(part) is list]
        held = {item for part in lists for item in typing.get_args(part)} if lists else parts
        if held & {int, float}:
            fields[field.name] = bool(lists)
    return fields


def message_for(config_class, name: str, value: float, is_list: bool) -> str | None:
    try:
        config_class(**SMALLEST[config_class] | {name: [value] if is_list else value})
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("config_class", SMALLEST, ids=lambda c: c.__name__)
def test_numbers_that_cannot_work_are_refused_by_the_name_of_their_field(config_class):
    fields = numeric_fields(config_class)
    assert len(fields) >= 5
    for name, is_list in fields.items():
        for value in (math.nan, math.inf, -math.inf):
            message = message_for(config_class, name, value, is_list)
            assert message == f"{name} must be a finite number, not {value}"
        message = message_for(config_class, name, -1, is_list)
        assert name in message if message else name in MAY_BE_NEGATIVE | ASKED_OF_THE_MODEL, name
        message = message_for(config_class, name, 10**12, is_list)
        assert name in message if message else name in MAY_BE_HUGE | ASKED_OF_THE_MODEL, name
        message = message_for(config_class, name, 0, is_list)
        assert message is None or name in message


@pytest.mark.parametrize("config_class", SMALLEST, ids=lambda c: c.__name__)
def test_none_is_refused_where_it_has_no_meaning(config_class):
    for field in dataclasses.fields(config_class):
        if field.default is not None and field.name not in SMALLEST[config_class]:
            with pytest.raises(UserError, match=f"{field.name} must have a value"):
                config_class(**SMALLEST[config_class] | {field.name: None})


def test_several_discriminator_steps_bound_the_batch_together():
    fields = {"train_batch_size": 1000, "discriminator_steps": 1001}
    with pytest.raises(UserError, match="discriminator_steps must be at most 1,000, not 1,001"):
        GANConfig(**RUN, **fields)


def test_the_steps_of_one_scheduler_are_bounded_too():
    with pytest.raises(UserError, match="num_inference_steps must be at most 100,000, not 1,000,000"):
        CompareSamplersConfig(runs=["x"], scheduler=["ddpm:1000000"])


def test_a_run_may_be_asked_for_what_never_happens(tmp_path):
    from hfgen.tasks.gan import GANTask
    from hfgen.training.run import train

    huge = {name: 10**12 for name in (*LENGTHS, "seed") if name != "sample_steps"}
    fields = TINY_GAN | huge | {"sample_steps": [10**12], "max_train_steps": 2, "output_dir": str(tmp_path / "run")}
    run = train(GANConfig(**fields), GANTask)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000002"]


def test_the_latent_sizes_of_the_vae_are_swept_unless_another_sweep_is_asked_for():
    def parse(*arguments):
        return parse_config(families()["vae"].config, ["--config", "vae_mnist_mlp", *arguments], prog="")

    assert parse().sweep == ["latent_dim=2,4,16"]
    assert parse("--sweep", "beta=1,2").sweep == ["beta=1,2"]
