"""Flags, files and recipes become a configuration, or one message and exit status 2."""

import dataclasses

import pytest
import yaml
from conftest import flags

from hfgen.cli.main import main
from hfgen.config import DDPMConfig
from hfgen.config.commands import SampleConfig
from hfgen.config.parser import RECIPES, parse_config
from hfgen.families import families
from hfgen.utils.errors import UserError


def parse(*arguments, **fields):
    needed = {"dataset_name": "digits", "output_dir": "run"}
    return parse_config(DDPMConfig, [*arguments, *flags(**(needed | fields))], prog="hfgen train ddpm")


def test_flags_of_every_kind():
    config = parse("--random_flip", "--no_use_ema", learning_rate=3e-4, sample_steps=[469, 6097], seed=5)
    assert (config.random_flip, config.use_ema, config.learning_rate, config.seed) == (True, False, 3e-4, 5)
    assert config.sample_steps == [469, 6097]
    assert config.mixed_precision is None
    assert config == DDPMConfig(dataset_name="digits", output_dir="run", random_flip=True, use_ema=False,
                                learning_rate=3e-4, sample_steps=[469, 6097], seed=5)  # fmt: skip


def test_a_file_wins_over_defaults_and_flags_over_the_file(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("learning_rate: 0.5\nseed: 3\nblock_out_channels: [8, 8]\nmax_train_steps: null\n")
    config = parse("--config", str(file), seed=9)
    assert (config.learning_rate, config.seed, config.block_out_channels) == (0.5, 9, [8, 8])


def test_a_saved_configuration_can_be_used_again(tmp_path):
    config = parse(sample_steps=[3], max_train_seconds=5.5)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    again = parse_config(DDPMConfig, ["--config", str(tmp_path / "config.yaml")], prog="hfgen train ddpm")
    assert again == config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lerning_rate", "1"], "no flag --lerning_rate; did you mean --learning_rate?"),
        (["--learning-rate=1"], "no flag --learning-rate; did you mean --learning_rate?"),
        (["--learning_rate", "fast"], "learning_rate.*float.*fast"),
        (["--learning_rate"], "learning_rate"),
        (["--seed", "1.5"], "seed.*int.*1.5"),
        (["--lr_scheduler", "step"], "lr_scheduler.*constant.*step"),
        (["--learning_rate", "0"], "learning_rate must be positive, not 0"),
        (["--sample_steps", "3", "-1"], "sample_steps must be positive, not -1"),
        (["--ema_max_decay", "1"], "ema_max_decay must be from 0 to below 1, not 1"),
        (["--seed", "-1"], "seed must be zero or more"),
        (["--num_inference_steps", "2000"], "num_inference_steps must be at most num_train_timesteps, which is 1000"),
        (["--num_train_timesteps", "20"], "num_train_timesteps must be 25 or more, not 20"),
        (["--block_out_channels", "12"], r"multiples of norm_num_groups, which is 8; \[12\] are not"),
        (["--attention_levels", "3"], "attention_levels must be from 0 to 2"),
        (["--train_data_dir", "x"], "not both"),
        (["--config", "ddpm_digits_quikstart"], "did you mean ddpm_digits_quickstart?"),
        (["stray"], "stray"),
    ],
)
def test_bad_flags(arguments, message):
    with pytest.raises(UserError, match=message):
        parse(*arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate: 1", "unknown field lerning_rate; did you mean learning_rate?"),
        ("learning_rate: fast", "learning_rate.*fast"),
        ("- 1", "must contain one `field: value` per line"),
        ("a: [", "not valid YAML"),
    ],
)
def test_bad_files(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        parse("--config", str(tmp_path / "bad.yaml"))


def test_data_and_output_must_be_named():
    with pytest.raises(UserError, match="--dataset_name mnist.*neither"):
        DDPMConfig(output_dir="x")
    with pytest.raises(UserError, match="output_dir is missing"):
        DDPMConfig(dataset_name="digits")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_images": 0}, "num_images must be positive"),
        ({"seed": -1}, "seed must be zero or more"),
        ({"output": "x.jpeg"}, "must end in .png, .gif or .npz"),
    ],
)
def test_bad_sample_fields(fields, message):
    with pytest.raises(UserError, match=message):
        SampleConfig(run_or_repo="x", **fields)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smaple"], "did you mean sample?"),
        (["train"], "needs a family first"),
        (["train", "dppm"], "did you mean ddpm?"),
        (["sample", "no-such-run"], "there is no folder no-such-run"),
        (["sample", "no/such-repo"], "no folder no/such-repo, and as a Hub id it is neither in the cache nor"),
    ],
)
def test_a_mistake_is_one_message_and_status_2(arguments, message, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_help_names_every_field(capsys):
    for name, family in families().items():
        with pytest.raises(SystemExit, match="0"):
            main(["train", name, "--help"])
        text = capsys.readouterr().out
        assert all(f"--{field.name}" in text for field in dataclasses.fields(family.config))
    assert main(["--help"]) == 0
    assert "sample" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_recipes_open_with_command_cost_and_result_and_are_valid(path, capsys):
    lines = path.read_text().splitlines()
    header = "\n".join(line for line in lines if line.startswith("#"))
    assert f"--config {path.stem}" in header
    assert "measured" in header.lower()
    assert "expected" in header.lower()
    assert "pending" not in header
    family = path.stem.split("_")[0]
    config = parse_config(families()[family].config, ["--config", path.stem], prog="")
    assert config.output_dir == f"runs/{path.stem}"
    assert main(["recipes"]) == 0
    assert path.stem in capsys.readouterr().out
