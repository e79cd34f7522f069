"""Flags, files and recipes become a configuration, or one message and exit status 2."""

import dataclasses
import os
import re
import shlex
import signal
import subprocess
import sys

import pytest
import yaml
from conftest import flags

from hfgen.cli.commands import CALLS, COMMANDS
from hfgen.cli.main import main
from hfgen.config import ConsistencyConfig, DDPMConfig, TrainingConfig
from hfgen.config.commands import SampleConfig
from hfgen.config.fields import sections_of
from hfgen.config.parser import parse_config
from hfgen.config.recipes import RECIPES, read_recipes
from hfgen.config.suggestions import OTHER_WORDS
from hfgen.families import families, suggest_family
from hfgen.utils.errors import UserError

TRAINED = {f"train {name}": (family.config, None) for name, family in families().items()}
PARSED = {name.replace("train consistency", "distill"): entry for name, entry in TRAINED.items()} | {
    command: (config_class, positional) for command, (_, config_class, positional) in CALLS.items()
}
PARSED["distill"] = (ConsistencyConfig, "teacher")


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
        (["--learning_rate", "fast"], "learning_rate must be a number, not fast"),
        (["--learning_rate"], "--learning_rate needs a value"),
        (["--seed", "1.5"], "seed must be a whole number, not 1.5"),
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


def help_of(command: str, capsys) -> str:
    with pytest.raises(SystemExit, match="0"):
        main([*command.split(), "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("command", PARSED)
def test_help_is_short_grouped_and_in_plain_words(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    config_class, positional = PARSED[command]
    text = help_of(command, capsys)
    usage, about, *groups = text.split("\n\n")
    assert usage.startswith(f"usage: hfgen {command} ")
    assert len(usage.splitlines()) == 1
    assert positional is None or positional.upper() in usage
    assert about
    assert not [word for word in ("default: null", "type:", "None", "Optional", "Literal", "==") if word in text]
    shown = [group for group in groups if ":\n  " in group]
    for field in dataclasses.fields(config_class):
        flag = positional.upper() if field.name == positional else f"--{field.name}"
        assert len(re.findall(rf"^  {flag}\b", "\n\n".join(shown), re.MULTILINE)) == 1, flag
    assert positional is None or shown[0].splitlines()[1].startswith(f"  {positional.upper()} ")
    assert shown[-1].startswith("Examples:\n")


@pytest.mark.parametrize("command", PARSED)
def test_examples_in_the_help_are_valid(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("scans", "digit.png"):
        (tmp_path / name).mkdir()
    (tmp_path / "samples.npz").touch()
    config_class, positional = PARSED[command]
    examples = sections_of(config_class)["Examples"].strip().splitlines()
    for example in examples:
        words = shlex.split(example)
        assert words[: 1 + len(command.split())] == ["hfgen", *command.split()]
        parse_config(config_class, words[1 + len(command.split()) :], prog="hfgen", positional=positional)


def test_help_of_a_training_has_the_groups_of_the_docstrings(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = help_of("train ddpm", capsys)
    assert re.findall(r"^(\w.*):$", text, re.MULTILINE) == [
        "Data", "Training length", "Optimizer", "Network", "Objective", "Sample grids",
        "Evaluation while training", "Saving", "Publishing",
        "Hardware", "Configuration", "Examples",
    ]  # fmt: skip
    network = text.partition("\nNetwork:\n")[2].partition("\n\n")[0]
    assert "--block_out_channels INT [INT ...]\n" in network
    assert "(default: 32 64 96)" in network
    assert "(default: on; --no_use_ema turns it off)" in " ".join(text.split())
    assert "--prediction_type {epsilon,sample,v_prediction,flow_prediction}" in text
    assert "--class_conditional " in text
    assert "--no_class_conditional" not in text
    assert "A recipe (see `hfgen recipes`) or YAML file" in text
    assert "recipe" not in help_of("sample", capsys)
    assert (
        help_of("sample", capsys).count("(default: as in the run)") + help_of("sample", capsys).count("as in\n") >= 5
    )


def test_help_of_another_family_has_its_fields_in_a_group_of_their_own(capsys):
    @dataclasses.dataclass(kw_only=True)
    class Mine(TrainingConfig):
        """Mine.

        Args:
            width: Width in %.
        """

        family = "mine"
        width: int = 3
        secret: float = 1e-3

    with pytest.raises(SystemExit):
        parse_config(Mine, ["--help"], prog="hfgen train mine")
    options = capsys.readouterr().out.partition("\nOptions:\n")[2].partition("\n\n")[0]
    assert re.findall(r"--(\w+) (\w+) +(.*)", options) == [
        ("width", "INT", "Width in %. (default: 3)"), ("secret", "FLOAT", "(default: 0.001)"),
    ]  # fmt: skip


def test_the_first_screens_say_where_to_start(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "hfgen train ddpm --config ddpm_digits_quickstart" in text.partition("Commands:")[0]
    assert "README.md" in text
    assert all(f"\n  {command}" in text for command in ("train", *COMMANDS))
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    for name, family in families().items():
        assert re.search(rf"^  {name} +{re.escape(family.config.__doc__.splitlines()[0])}$", text, re.MULTILINE), name


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("train_batch_size", "1e2", 100), ("train_batch_size", "32.0", 32), ("seed", str(2**62 + 1), 2**62 + 1),
        ("max_train_steps", "null", None), ("learning_rate", "1", 1.0), ("channels", "3", 3),
        ("hub_license", "5", "5"),
    ],
)  # fmt: skip
def test_numbers_may_be_written_in_any_way(name, text, value, tmp_path):
    (tmp_path / "my.yaml").write_text(f"{name}: {text}")
    for read in (getattr(parse(**{name: text}), name), getattr(parse("--config", str(tmp_path / "my.yaml")), name)):
        assert (read, type(read)) == (value, type(value))


def test_other_words_for_fields_lead_to_fields_that_there_are():
    known = {field.name for config_class, _ in PARSED.values() for field in dataclasses.fields(config_class)}
    assert OTHER_WORDS.keys() <= known
    for name, family in families().items():
        assert all(suggest_family(word) == f"; did you mean {name}?" for word in family.synonyms.split())


def test_the_positional_argument_may_stand_anywhere():
    for words in (["x", "--seed", "3"], ["--seed", "3", "x"], ["--film", "x", "--seed", "3"]):
        config = parse_config(SampleConfig, words, prog="hfgen sample", positional="run_or_repo")
        assert (config.run_or_repo, config.seed) == ("x", 3)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_recipes_open_with_command_cost_and_result_and_are_valid(path, capsys):
    lines = path.read_text().splitlines()
    header = "\n".join(line for line in lines if line.startswith("#"))
    assert f"--config {path.stem}" in header
    assert "measured" in header.lower()
    assert "expected" in header.lower()
    assert "pending" not in header
    recipe = read_recipes()[path.stem]
    config = parse_config(families()[recipe.family].config, ["--config", path.stem], prog="")
    assert config.output_dir == f"runs/{path.stem}"
    assert config.dataset_name == recipe.dataset
    if recipe.family == "ddpm":  # whose defaults follow from measurements, and change
        assert {"train_batch_size", "layers_per_block", "add_attention"} <= yaml.safe_load(path.read_text()).keys()
    assert main(["recipes"]) == 0
    printed = capsys.readouterr().out
    assert f"\n{recipe.dataset}: hfgen train {recipe.family}\n" in printed
    entry = printed.partition(f" {path.stem}\n")[2]
    assert " ".join(entry.split()).startswith(f"{recipe.about} {recipe.summary}")
    if recipe.is_trained:
        assert re.match(r"(about )?[\d.]+ (s|min|h)\b.* on (one|two).* cores?\b.*: .", recipe.summary), recipe.summary
    else:
        assert recipe.summary == "not trained yet"


@pytest.mark.parametrize(("command", "unbuffered"), [("recipes", ""), ("recipes", "1"), ("sample --help", "")])
def test_a_reader_that_ends_first_is_no_error(command, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "hfgen", *command.split()]
    run = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environment)
    os.close(writer)
    assert (run.returncode, run.stderr) == (128 + signal.SIGPIPE, b"")


def test_recipes_are_listed_by_data_set_and_family_with_judges_last(capsys):
    for arguments in (["recipes"], ["recipes", "--help"]):
        assert main(arguments) == 0
        printed = capsys.readouterr().out
        groups = re.findall(r"^(\w+): hfgen train (\w+)$", printed, re.MULTILINE)
        assert groups[0] == ("digits", "ddpm")
        assert groups[-3:] == [(name, "classifier") for name in ("mnist", "fashion_mnist", "cifar10")]
        assert len(set(groups)) == len(groups)
    marked = re.findall(r"^\* (\w+)$", printed, re.MULTILINE)
    assert marked == [
        name for name in re.findall(r"^[* ] (\w+)$", printed, re.MULTILINE) if read_recipes()[name].is_first
    ]
    assert {name.split("_")[0] for name in marked} == {"ddpm", "vae", "gan", "cyclegan", "translation"}
    assert printed.count("not trained yet") == 5


def test_recipes_of_a_family_or_a_data_set(capsys):
    for words, expected in {
        "vae": {(dataset, "vae") for dataset in ("mnist", "fashion_mnist", "cifar10")},
        "digits": {("digits", "ddpm"), ("digits", "classifier")},
        "gan mnist": {("mnist", "gan")},
        "gan vae fashion_mnist": {("fashion_mnist", "gan"), ("fashion_mnist", "vae")},
    }.items():
        assert main(["recipes", *words.split()]) == 0
        found = set(re.findall(r"^(\w+): hfgen train (\w+)$", capsys.readouterr().out, re.MULTILINE))
        assert found == expected, words


def test_only_the_main_process_of_a_launcher_samples(vae_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    output = tmp_path / "made.png"
    for rank in ("1", "0"):
        assert not output.exists()
        monkeypatch.setenv("RANK", rank)
        assert main(["sample", str(vae_run), "--num_images", "1", "--output", str(output)]) == 0
    assert output.exists()
    assert capsys.readouterr().err == "hfgen: sample runs in one of the 2 processes; the others end\n"
