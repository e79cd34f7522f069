"""`hfgen tune`: typed search spaces, trials of equal time, kills, several processes and machines, the page."""

import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import psycopg
import pytest
import yaml
from conftest import finish, flags, hfgen, kill_when
from forked import Forked
from optuna.exceptions import StorageInternalError
from optuna.study import StudyDirection

import hfgen as package
from hfgen.cli.main import main
from hfgen.config import ClassifierConfig, DDPMConfig, VAEConfig
from hfgen.runs.record import read_training
from hfgen.training.validation import Evaluation
from hfgen.tuning import study as module
from hfgen.tuning.report import measure_on_test_images
from hfgen.tuning.search_space import SearchSpace
from hfgen.tuning.storage import open_storage
from hfgen.utils.errors import InterruptedTrainingError, TrainingError, UserError

TINY = {
    "dataset_name": "digits", "test_fraction": 0.3, "validation_fraction": 0.1, "hidden_sizes": [16], "latent_dim": 2,
    "num_samples": 4, "num_mixture_components": 1, "checkpointing_steps": 10, "train_batch_size": 64,
    "mixed_precision": "no", "num_test_images": 300,
}  # fmt: skip
SEARCH = {"learning_rate": "1e-3..1e-1:log", "adam_epsilon": [1e-8, 1e-30], "hidden_sizes": [[16], [24, 16]]}


def numbers(folder: Path) -> list[int]:
    return [trial["number"] for trial in json.loads((folder / "study.json").read_text())["trials"]]


# The search space


def space(*search: str, family=VAEConfig) -> SearchSpace:
    return SearchSpace(search, family)


def test_values_have_the_types_of_their_fields():
    parameters = space(
        "learning_rate=1e-4..1e-2:log", "latent_dim=2..32", "use_ema=true,false", "hidden_sizes=400,512 256",
        "optimizer=adamw,muon", "decoder_hidden_sizes=null,64 32", "adam_beta1=0.8,0.9",
    ).parameters  # fmt: skip
    assert parameters["learning_rate"].ends == {"0.0001": 1e-4, "0.01": 1e-2}
    assert parameters["learning_rate"].log
    assert list(parameters["latent_dim"].ends.values()) == [2, 32]
    assert all(isinstance(end, int) for end in parameters["latent_dim"].ends.values())
    assert parameters["use_ema"].ends == {"true": True, "false": False}
    assert list(parameters["hidden_sizes"].ends.values()) == [[400], [512, 256]]
    assert parameters["decoder_hidden_sizes"].ends == {"null": None, "64 32": [64, 32]}
    assert parameters["adam_beta1"].ends == {"0.8": 0.8, "0.9": 0.9}


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ("learning_rate", "must be a field and its values, such as learning_rate=1e-4..1e-2:log"),
        ("lr=1e-4..1e-2", "there is no field lr; did you mean learning_rate?"),
        ("latent_dims=2,4", "there is no field latent_dims; did you mean latent_dim?"),
        ("learning_rate=1e-2..1e-4", "the lower end must be below the upper one"),
        ("learning_rate=0..1:log", "a logarithmic range must be above 0"),
        ("learning_rate=1..2:exp", "a range may end in :log, not :exp"),
        ("latent_dim=2.5..4", "latent_dim must be a whole number, not 2.5"),
        ("optimizer=adamw,sgd", "optimizer must be one of adamw, muon, not sgd"),
        ("use_ema=true,maybe", "use_ema must be true or false, not maybe"),
        ("latent_dim=2,2", "has a value twice"),
        ("latent_dim=2", "has a single value; set it with --latent_dim"),
        ("latent_dim=0,2", "search latent_dim=0: latent_dim must be positive, not 0"),
        ("train_split=train,test", "train_split cannot be searched: trials have the same data"),
        ("max_train_steps=10,20", "max_train_steps cannot be searched"),
        ("pixel_distribution=bernoulli,gaussian", "trials are compared by the −ELBO, which means something else"),
        ("class_conditional=true,false", "trials are compared by the −ELBO, which means something else"),
    ],
)
def test_a_wrong_search_is_one_message_before_any_work(search, message, tmp_path, capsys):
    arguments = ["tune", "vae", *flags(**TINY), "--search", search, "--trial_seconds", "1", "--output_dir"]
    assert main([*arguments, str(tmp_path / "study")]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_values_whose_losses_do_not_compare_are_refused():
    with pytest.raises(UserError, match="prediction_type cannot be searched: it may change the loss function"):
        space("prediction_type=epsilon,v_prediction", family=DDPMConfig).require_comparable("loss/unet")
    space("prediction_type=epsilon,v_prediction", family=DDPMConfig).require_comparable("frechet_distance")
    space("learning_rate=1e-4..1e-3", family=DDPMConfig).require_comparable("loss/unet")


def test_combinations_that_are_invalid_are_reported():
    def build(values):
        return VAEConfig(dataset_name="digits", output_dir="x", **values)

    found = space("num_importance_samples=1,5", "reduction=sum,mean").check(build)
    assert found.startswith("1 of 4 combinations of values are invalid, and their trials will fail: num_importance_")
    assert space("latent_dim=2..4").check(build) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "set trial_seconds, the wall-clock budget of a trial, or max_total_seconds"),
        ({"trial_seconds": 9, "max_total_seconds": 5}, "trial_seconds 9 is more than max_total_seconds 5"),
        ({"trial_seconds": 1, "push_to_hub": True, "hub_model_id": "ada/x"}, "a study cannot be pushed"),
        ({"trial_seconds": 1, "resume_from_checkpoint": "latest"}, "a study continues by itself"),
        ({"trial_seconds": 1, "sampler": "tpee"}, "did you mean tpe?"),
        ({"trial_seconds": 1, "storage": "oracel://ada:secret@host/x"}, "storage oracel://ada:***@host/x cannot be"),
        (
            {"trial_seconds": 1, "test_fraction": 0.0},
            "has no split test, on which the best trial is measured in the end; hold",
        ),
        ({"trial_seconds": 1, "evaluation_images": 9}, "not 9; raise evaluation_images"),
    ],
)
def test_a_wrong_option_is_one_message(fields, message, tmp_path):
    with pytest.raises(UserError) as error:
        package.tune("vae", search=SEARCH, output_dir=tmp_path / "study", **TINY | fields)
    assert message in str(error.value)
    assert "secret" not in str(error.value)
    assert not (tmp_path / "study" / "trials").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"is not empty and holds no study \(thesis.tex\)"):
        package.tune("vae", search=SEARCH, trial_seconds=1, output_dir=tmp_path, **TINY)


def test_without_optuna_one_message_names_the_command(tmp_path):
    code = (
        "import sys\nsys.modules['optuna'] = None\nfrom hfgen.cli.main import main\n"
        "sys.exit(main(['tune', 'vae', '--dataset_name', 'digits', '--output_dir', 'x', '--trial_seconds', '1',"
        " '--search', 'latent_dim=2,4']))"
    )
    finished = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (finished.returncode, finished.stderr) == (
        2,
        "hfgen: hfgen tune needs the package optuna: pip install 'hfgen[tune]'\n",
    )


# A real study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study in which some trials diverge."""
    folder = tmp_path_factory.mktemp("studies") / "digits"
    fields = TINY | {"learning_rate": 1e-2, "latent_dim": 4, "sweep": ["latent_dim=2,4"]}
    search = {"learning_rate": [1e-2, 1e30], "hidden_sizes": [[16], [24, 16]]}
    study = package.tune("vae", search=search, num_trials=5, trial_seconds=0.6, output_dir=folder, **fields)
    return study, search, fields


def test_trials_are_runs_of_equal_time_and_failures_are_survived(study):
    study, _, _ = study
    states = [trial["state"] for trial in study.trials]
    assert [trial["number"] for trial in study.trials] == list(range(5))
    assert set(states) <= {"complete", "pruned", "failed"}
    assert states.count("failed") >= 1
    assert states.count("complete") >= 2
    for trial in study.trials:
        if trial["state"] == "failed":
            assert trial["params"]["learning_rate"] == "1e+30"
            assert re.match("loss/vae became (nan|inf) at step", trial["reason"])
        else:
            assert 0.6 <= trial["seconds"] < 3
            fields = yaml.safe_load((study.path.parent / trial["run"] / "config.yaml").read_text())
            assert fields["max_train_seconds"] == 0.6
            assert " ".join(map(str, fields["hidden_sizes"])) == trial["params"]["hidden_sizes"]
            assert fields["latent_dim"] == 4


def test_the_first_trial_is_the_starting_configuration(study):
    study, _, _ = study
    assert study.trials[0]["params"] == {"learning_rate": "0.01", "hidden_sizes": "16"}
    assert [trial["is_start"] for trial in study.trials] == [True, False, False, False, False]


def test_the_best_is_selected_on_held_out_images_and_measured_on_test_images(study):
    study, _, _ = study
    complete = [trial for trial in study.trials if trial["state"] == "complete"]
    assert study.best == min(complete, key=lambda trial: trial["value"])
    rows = [json.loads(line) for line in (study.best_run / "metrics.jsonl").read_text().splitlines()]
    held_out = [row["validation/negative_elbo"] for row in rows if "validation/negative_elbo" in row]
    assert study.best["value"] == held_out[-1]
    for trial in study.trials:
        is_measured = trial["number"] in (study.best["number"], 0)
        for record in ("evaluation.json", "analysis.json"):
            file = study.path.parent / "trials" / f"{trial['number']:04d}" / record
            assert file.exists() == is_measured
            if is_measured:
                protocol = json.loads(file.read_text())["protocol"]
                assert protocol["reference_split"] == "test"


def test_the_page_shows_what_was_found(study):
    study, _, _ = study
    page = study.page.read_text()
    assert f"Trial {study.best['number']} is the best: −ELBO (nats)" in page
    assert f"| {study.best['number']} (best)" in page
    assert re.search(r"^\| 0 .*\(start\) \|", page, re.M)
    assert re.search(r"^- Trial \d failed: loss/vae became", page, re.M)
    for name in ("history", "rungs", "fields", *["importances"] * bool(study.record["importances"])):
        assert f"study/{name}.png" in page
        assert np.array(PIL.Image.open(study.path.parent / "study" / f"{name}.png")).std() > 5
    assert str(study.path.parent.parent) not in page
    assert "data:image/png;base64" in study._repr_markdown_()


def test_the_pages_show_the_python_call(study):
    study, _, fields = study
    search = ["learning_rate=0.01,1e+30", "hidden_sizes=16,24 16"]
    shown = {"search": search, "num_trials": 5, "trial_seconds": 0.6, "output_dir": "digits", **fields}
    command = f"hfgen.tune('vae', {', '.join(f'{name}={value!r}' for name, value in shown.items())})"
    assert f"Command: `{command}`\n" in study.page.read_text()
    assert read_training(study.best_run / "run.json")["command"] == command


def test_the_best_configuration_trains(study, tmp_path):
    study, _, _ = study
    fields = yaml.safe_load(study.best_config.read_text())
    assert fields["max_train_seconds"] == 0.6
    assert "output_dir" not in fields
    run = package.train("vae", config=study.best_config, output_dir=tmp_path / "run", max_train_steps=2)
    trained = yaml.safe_load((run / "config.yaml").read_text())
    kept = yaml.safe_load((study.best_run / "config.yaml").read_text())
    for name in ("learning_rate", "hidden_sizes", "latent_dim", "validation_fraction", "test_fraction"):
        assert trained[name] == kept[name]


def test_a_finished_study_is_left_as_it_is_and_can_be_made_longer(study, tmp_path, capsys):
    study, search, fields = study
    folder = shutil.copytree(study.path.parent, tmp_path / "moved")

    def measured():
        return {file: file.stat().st_mtime_ns for file in folder.rglob("evaluation.json")}

    before = measured()
    options = {"search": search, "trial_seconds": 0.6, "output_dir": folder, **fields}
    assert package.tune("vae", num_trials=5, **options).trials == study.trials
    assert measured() == before
    assert "Trial " not in capsys.readouterr().out.replace("Trial 0:", "")
    longer = package.tune("vae", num_trials=6, **options)
    assert longer.trials[:5] == study.trials
    assert numbers(folder) == list(range(6))
    assert measured().items() >= before.items()
    with pytest.raises(UserError, match=r"was begun otherwise \(trial_seconds: 0.6 → 0.5\)"):
        package.tune("vae", num_trials=6, **options | {"trial_seconds": 0.5})
    with pytest.raises(UserError, match=r"was begun otherwise \(latent_dim: 4 → 3\)"):
        package.tune("vae", num_trials=6, **options | {"latent_dim": 3})


# The rules of a study, with trainings that only pretend


@pytest.fixture
def pretend(monkeypatch):
    """Let trials end at once, with the values that a function of the configuration returns."""

    def install(values_of, seconds=1.0):
        def train(config, make_task, on_evaluation):
            run = Path(config.output_dir)
            values = values_of(config)
            rows, times = [], []
            for rung, value in enumerate(values, 1):
                if isinstance(value, BaseException):
                    raise value
                rows.append({"step": rung, "validation/negative_elbo": value})
                times.append({"step": rung, "seconds": seconds * rung / len(values)})
                for name, written in (("metrics.jsonl", rows), ("times.jsonl", times)):
                    (run / name).write_text("".join(json.dumps(row) + "\n" for row in written))
                at = config.max_train_seconds * rung / len(values)
                on_evaluation(Evaluation(rung, at, 0.25, {"negative_elbo": value}))

        monkeypatch.setattr(module, "train", train)
        monkeypatch.setattr(module, "measure_on_test_images", lambda *arguments: None)
        monkeypatch.setattr(module.Study, "_write_report", lambda study: None)  # only at the end, to save time

    return install


def run(folder: Path, **fields) -> "package.api.outputs.Study":
    options = TINY | {"search": {"learning_rate": "1e-3..1e-1:log"}, "trial_seconds": 1, "output_dir": folder}
    return package.tune("vae", **options | fields)


@pytest.mark.parametrize(("pruner", "expected"), [("median", True), ("halving", True), ("none", False)])
def test_poor_trials_are_stopped_early(pruner, expected, tmp_path, pretend):
    pretend(lambda config: [config.learning_rate] * 4)
    study = run(tmp_path, pruner=pruner, num_trials=12)
    pruned = [trial for trial in study.trials if trial["state"] == "pruned"]
    assert bool(pruned) == expected
    for trial in pruned:
        assert trial["value"] > study.best["value"]
        assert len(trial["rungs"]) < 4
        assert trial["seconds"] == len(trial["rungs"]) / 4 + 0.25, "until its last evaluation, and with that"
    assert all(len(trial["rungs"]) == 3 for trial in study.trials if trial["state"] == "complete")


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_the_sampler_learns_and_follows_from_the_seed(sampler, tmp_path, pretend):
    pretend(lambda config: [abs(np.log10(config.learning_rate) + 2.3)] * 4)
    first, second, other = (
        run(tmp_path / name, sampler=sampler, num_trials=20, seed=seed, pruner="none")
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert [trial["params"] for trial in first.trials] == [trial["params"] for trial in second.trials]
    assert [trial["params"] for trial in first.trials[1:]] != [trial["params"] for trial in other.trials[1:]]
    values = [trial["value"] for trial in first.trials]
    assert np.mean(values[10:]) < np.mean(values[:10])


def test_higher_is_better_for_an_accuracy(tmp_path, pretend, monkeypatch):
    monkeypatch.setattr(module, "metric_of", lambda config: ("negative_elbo", True))
    pretend(lambda config: [config.learning_rate] * 4)
    study = run(tmp_path, num_trials=6, pruner="none")
    assert study.best["value"] == max(trial["value"] for trial in study.trials)
    assert "(higher is better)" in study.page.read_text()


def test_no_trial_begins_that_could_exceed_the_whole_time(tmp_path, pretend):
    pretend(lambda config: [1.0, 1.0], seconds=1.02)  # trials end a little late
    study = run(tmp_path, max_total_seconds=5, trial_seconds=None, num_trials=5)
    assert len(study.trials) == 5
    study = run(tmp_path, max_total_seconds=5.5, num_trials=9)
    assert len(study.trials) == 5


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (TrainingError("loss/vae became nan at step 3. Lower it"), "loss/vae became nan at step 3. Lower it"),
        (RuntimeError("can't allocate memory\nstack"), "can't allocate memory"),
        (MemoryError(), "MemoryError"),
        (UserError("norm_num_groups 8 does not divide 12"), "norm_num_groups 8 does not divide 12"),
        (float("nan"), "negative_elbo is nan"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_trial_that_fails_is_recorded_and_survived(failure, reason, tmp_path, pretend):
    pretend(lambda config: [failure] if config.learning_rate != 1e-2 else [1.0])
    study = run(tmp_path, num_trials=3, learning_rate=1e-2)
    assert [trial["state"] for trial in study.trials] == ["complete", "failed", "failed"]
    assert [trial["reason"] for trial in study.trials] == [None, reason, reason]


def test_a_study_in_which_all_fail_says_why(tmp_path, pretend):
    pretend(lambda config: [TrainingError("loss/vae became nan at step 3")])
    with pytest.raises(TrainingError, match="no trial succeeded: loss/vae became nan at step 3; see"):
        run(tmp_path, num_trials=3)
    assert "No trial has succeeded yet." in (tmp_path / "study.md").read_text()


def test_a_full_disk_stops_the_study_and_loses_no_trial(tmp_path, pretend):
    full = TrainingError("Training stopped")
    full.__cause__ = OSError(28, "No space left on device")
    pretend(lambda config: [1.0, full])
    for _ in range(6):  # more often than the process of a trial may die
        with pytest.raises(
            TrainingError, match="trial 0: .*No space left on device. Continue the study with the same"
        ):
            run(tmp_path, num_trials=3)
    pretend(lambda config: [1.0])
    assert [trial["state"] for trial in run(tmp_path, num_trials=3).trials] == ["complete"] * 3


def test_the_page_says_why_the_best_trial_was_not_measured(tmp_path, pretend, monkeypatch):
    pretend(lambda config: [1.0])
    shared = {"storage": str(tmp_path / "shared.log"), "study_name": "both"}
    monkeypatch.setattr(module, "measure_on_test_images", lambda *arguments: "no judge fits the images")
    page = run(tmp_path / "a", num_trials=1, **shared).page.read_text()
    assert "Trial 0 was not measured completely on test images: no judge fits the images." in page
    pretend(lambda config: [2.0])
    page = run(tmp_path / "b", num_trials=2, **shared).page.read_text()
    assert "Trial 0 was not measured completely on test images: its run is not in this folder" in page


def test_a_line_that_another_process_could_not_complete_is_removed(tmp_path):
    journal = tmp_path / "journal.log"
    first, second = (open_storage(str(journal)) for _ in range(2))
    numbers = [first.create_new_study([StudyDirection.MINIMIZE], "a")]
    with journal.open("a") as file:
        file.write('{"op_code": 8, "worker')  # as on a full disk
    numbers.append(second.create_new_study([StudyDirection.MINIMIZE], "b"))
    assert [first.get_study_name_from_id(number) for number in numbers] == ["a", "b"]
    assert len(open_storage(str(journal)).get_all_studies()) == 2


def test_values_that_are_too_far_apart_for_importances_leave_them_out(tmp_path, pretend):
    pretend(lambda config: [1.0 + (config.adam_epsilon > 1)])
    study = run(tmp_path, num_trials=6, pruner="none", search={"adam_epsilon": "1e-60..1e60:log"})
    assert not study.record["importances"]


def test_a_classifier_is_measured_on_its_test_images(judge_run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(judge_run, copy)
    (copy / "evaluation.json").unlink(missing_ok=True)
    config = ClassifierConfig(dataset_name="digits", output_dir=str(copy))
    assert measure_on_test_images(copy, config, 300) is None
    assert 0.5 < json.loads((copy / "evaluation.json").read_text())["accuracy"] < 1


def test_a_mistake_in_the_starting_configuration_is_raised(tmp_path, pretend):
    pretend(lambda config: [UserError("the judge does not fit")])
    with pytest.raises(UserError, match="the judge does not fit"):
        run(tmp_path, num_trials=3)


def test_a_signal_stops_the_study_and_the_trial_goes_on_later(tmp_path, pretend):
    pretend(lambda config: [1.0, 1.0, InterruptedTrainingError("stopped", signal.SIGTERM)])
    with pytest.raises(InterruptedTrainingError, match=r"stopped by SIGTERM in trial 0. .* hfgen.tune\('vae'"):
        run(tmp_path, num_trials=2)
    pretend(lambda config: [1.0] * 4)
    assert [trial["state"] for trial in run(tmp_path, num_trials=2).trials] == ["complete"] * 2


def test_none_is_a_value_to_search(tmp_path, pretend):
    pretend(lambda config: [2.0 if config.decoder_hidden_sizes is None else 1.0])
    study = run(tmp_path, num_trials=5, search={"decoder_hidden_sizes": [None, [64]]}, sampler="random")
    values = {trial["params"]["decoder_hidden_sizes"]: trial["value"] for trial in study.trials}
    assert values == {"null": 2.0, "64": 1.0}


def test_a_starting_configuration_outside_of_the_space_is_reported(tmp_path, pretend, capsys):
    pretend(lambda config: [config.learning_rate])
    study = run(tmp_path, num_trials=2, learning_rate=0.5)
    assert "outside of the search space (learning_rate 0.5) and is not tried" in capsys.readouterr().out
    assert not any(trial["is_start"] for trial in study.trials)
    assert "The starting configuration is not in the search space" in study.page.read_text()


def test_a_tenth_is_held_out_unless_it_is_set(tmp_path, pretend, capsys):
    pretend(lambda config: [config.validation_fraction])
    assert run(tmp_path / "a", num_trials=1, validation_fraction=0.0).best["value"] == 0.1
    assert "A tenth of each class is held out to select by (validation_fraction 0.1)" in capsys.readouterr().out
    assert run(tmp_path / "b", num_trials=1, validation_fraction=0.2).best["value"] == 0.2


def test_a_validation_split_of_the_data_selects_and_must_be_readable(tmp_path, pretend, capsys):
    folder = tmp_path / "data"
    for split in ("train", "validation", "test"):
        (folder / split).mkdir(parents=True)
        for number in range(20):
            PIL.Image.new("L", (8, 8), number).save(folder / split / f"{number}.png")
    data = {"dataset_name": str(folder), "validation_fraction": 0.0, "test_fraction": 0.0, "num_trials": 1}
    pretend(lambda config: [1.0 + config.validation_fraction])
    assert run(tmp_path / "a", **data).best["value"] == 1.0
    assert "A tenth of each class is held out" not in capsys.readouterr().out
    (folder / "validation" / "7.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="7.png of .* cannot be read as an image"):
        run(tmp_path / "b", **data)


def test_a_study_is_not_continued_with_other_images(tmp_path, pretend):
    for name, seed in (("a", 0), ("copy", 0), ("b", 1)):
        images = np.random.default_rng(seed).integers(0, 256, (60, 8, 8), np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images)
    pretend(lambda config: [1.0])
    shared = {"storage": str(tmp_path / "shared.log"), "study_name": "both", "num_trials": 2}
    run(tmp_path / "first", dataset_name=tmp_path / "a.npz", **shared)
    with pytest.raises(
        UserError, match="the training and held-out and test images are not those with which the study"
    ):
        run(tmp_path / "second", dataset_name=tmp_path / "b.npz", **shared)
    with pytest.raises(UserError, match=r"was begun otherwise \(validation_fraction: 0.1 → 0.2\); continue it"):
        run(tmp_path / "third", dataset_name=tmp_path / "a.npz", validation_fraction=0.2, **shared)
    assert not [*tmp_path.glob("*/trials/0002")]
    assert len(run(tmp_path / "second", dataset_name=tmp_path / "copy.npz", **shared | {"num_trials": 3}).trials) == 3


def test_several_processes_of_one_training_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="start the same command several times"):
        run(tmp_path)


def test_a_journal_cut_off_by_a_failure_of_the_power_is_read(tmp_path, pretend):
    pretend(lambda config: [1.0])
    run(tmp_path, num_trials=2)
    with open(tmp_path / "journal.log", "ab") as file:
        file.write(b'{"op_code":4,"work')
    assert len(run(tmp_path, num_trials=3).trials) == 3


# Kills, processes, machines


def arguments(folder: Path, num_trials: int = 3, **fields) -> list[str]:
    """A study whose trials are short."""
    options = TINY | {"trial_seconds": 0.7, "num_trials": num_trials, "output_dir": str(folder), "pruner": "none"}
    search = ["--search", "learning_rate=1e-3..1e-1:log", "hidden_sizes=16,24 16"]
    return ["tune", "vae", *flags(**options | fields), *search]


def has_checkpoint(folder: Path, number: int) -> bool:
    return any((folder / "trials" / f"{number:04d}" / "checkpoints").glob("step-*"))


def test_a_killed_study_goes_on_where_it_was(tmp_path):
    process = hfgen(*arguments(tmp_path))
    kill_when(process, lambda: has_checkpoint(tmp_path, 1))
    process.communicate()
    before = (tmp_path / "trials" / "0001" / "config.yaml").read_text()
    process = hfgen(*arguments(tmp_path))
    kill_when(process, lambda: has_checkpoint(tmp_path, 2), signal.SIGTERM)
    output = finish(process, 128 + signal.SIGTERM)
    assert f"Resuming {tmp_path}/trials/0001 from step-" in output
    assert "Trial 0" not in output
    assert re.search(r"by SIGTERM in trial 2. Continue the study with the same command: hfgen tune vae", output)
    output = finish(hfgen(*arguments(tmp_path)))
    assert f"Resuming {tmp_path}/trials/0002 from step-" in output
    trials = json.loads((tmp_path / "study.json").read_text())["trials"]
    assert [(trial["number"], trial["state"]) for trial in trials] == [(n, "complete") for n in range(3)]
    assert (tmp_path / "trials" / "0001" / "config.yaml").read_text() == before


def test_a_study_that_is_killed_while_it_is_created_can_be_started_again(tmp_path, pretend):
    script, folder = tmp_path / "script.py", tmp_path / "study"
    script.write_text(
        "import os, signal, sys\nfrom pathlib import Path\nfrom hfgen.cli.main import main\n"
        "def replace(old, new, replace=os.replace):\n"
        "    if Path(new).name == 'study.json':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    replace(old, new)\n"
        "os.replace = replace\nmain(sys.argv[1:])\n"
    )
    finish(Forked(str(script), *arguments(folder)), -signal.SIGKILL)
    assert len([*folder.glob(".incomplete-*-study.json")]) == 1
    pretend(lambda config: [1.0])
    assert len(run(folder, num_trials=1).trials) == 1


def test_two_processes_share_a_study_in_a_folder(tmp_path):
    processes = [hfgen(*arguments(tmp_path, 4)) for _ in range(2)]
    outputs = [finish(process) for process in processes]
    began = [re.findall(r"^Trial (\d+) of 4:", output, re.M) for output in outputs]
    assert all(began), "each trains some"
    assert sorted(began[0] + began[1]) == list("0123")
    trials = json.loads((tmp_path / "study.json").read_text())["trials"]
    assert [(trial["number"], trial["state"]) for trial in trials] == [(n, "complete") for n in range(4)]
    assert sum(trial["is_start"] for trial in trials) == 1
    assert "## On test images" in (tmp_path / "study.md").read_text()


def test_a_machine_with_another_disk_leaves_a_running_trial_alone(tmp_path, pretend):
    storage = str(tmp_path / "shared.log")
    pretend(lambda config: [InterruptedTrainingError("stopped", signal.SIGTERM)])
    with pytest.raises(InterruptedTrainingError):
        run(tmp_path / "a", storage=storage, study_name="both", num_trials=3)
    pretend(lambda config: [config.learning_rate])
    other = run(tmp_path / "b", storage=storage, study_name="both", num_trials=3)
    assert [trial["state"] for trial in other.trials] == ["running", "complete", "complete"]
    first = run(tmp_path / "a", storage=storage, study_name="both", num_trials=3)
    assert [trial["state"] for trial in first.trials] == ["complete"] * 3
    assert (tmp_path / "a" / "trials" / "0000" / "metrics.jsonl").exists()


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory):
    """The URL of a database of a PostgreSQL server, which is started here."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    found = shutil.which("initdb") or (folders and folders[-1] / "initdb")
    if not found:
        pytest.skip("PostgreSQL is not installed")
    programs = Path(found).parent
    place = tmp_path_factory.mktemp("postgresql")
    as_owner = {}
    if os.getuid() == 0:  # as whom it refuses to run
        try:
            owner = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        as_owner = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
        place = Path("/tmp", f"hfgen-postgresql-{os.getpid()}")  # where this user may go
        place.mkdir()
        os.chown(place, owner.pw_uid, owner.pw_gid)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def command(name: str, *words: str) -> None:
        subprocess.run([programs / name, *words], check=True, cwd=place, stdout=subprocess.DEVNULL, **as_owner)

    data = str(place / "data")
    command("initdb", "--auth=trust", "--username=ada", "--no-sync", data)
    settings = f"-p {port} -k {place} -c listen_addresses=127.0.0.1 -c fsync=off"
    command("pg_ctl", "--wait", "--log", str(place / "log"), "--options", settings, "--pgdata", data, "start")
    try:
        yield f"postgresql+psycopg://ada:secret@127.0.0.1:{port}/postgres"
    finally:
        command("pg_ctl", "--wait", "--mode", "immediate", "--pgdata", data, "stop")
        shutil.rmtree(place)


def test_processes_with_folders_of_their_own_share_a_database(postgresql, tmp_path):
    shared = {"storage": postgresql, "study_name": "shared"}
    first = hfgen(*arguments(tmp_path / "a", 4, **shared))
    kill_when(first, lambda: has_checkpoint(tmp_path / "a", 0))
    first.communicate()
    processes = [hfgen(*arguments(tmp_path / name, 4, **shared)) for name in ("a", "b")]
    outputs = [finish(process) for process in processes]
    began = [re.findall(r"^Trial (\d+) of 4:", output, re.M) for output in outputs]
    assert "0" in began[0], "only its own folder can go on with it"
    assert all(began)
    assert len(began[0] + began[1]) == len(set(began[0] + began[1]))
    output = finish(hfgen(*arguments(tmp_path / "a", 4, **shared)))
    assert "Trial " not in output.replace("Trial 0:", "")
    trials = json.loads((tmp_path / "a" / "study.json").read_text())["trials"]
    assert {trial["state"] for trial in trials} == {"complete"}
    assert [trial["number"] for trial in trials] in (list(range(4)), list(range(5)))
    assert "postgresql+psycopg://ada:***@127.0.0.1" in (tmp_path / "a" / "study.md").read_text()
    assert not any("secret" in printed for printed in [*outputs, output])
    for file in tmp_path.rglob("*"):
        assert file.is_dir() or b"secret" not in file.read_bytes(), file


def test_machines_that_start_together_share_an_empty_database(postgresql, tmp_path):
    with psycopg.connect(postgresql.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("CREATE DATABASE empty")
    empty = postgresql.replace("/postgres", "/empty")
    with psycopg.connect(empty.replace("+psycopg", "")) as connection:
        connection.execute("LOCK TABLE pg_class IN SHARE MODE")  # so that both find no tables and wait to create them
        shared = {"storage": empty, "study_name": "together"}
        processes = [hfgen(*arguments(tmp_path / name, 3, **shared)) for name in ("a", "b")]
        deadline = time.monotonic() + 120
        while connection.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()[0] < 2:
            assert time.monotonic() < deadline, "they never waited"
            time.sleep(0.01)
    began = [re.findall(r"^Trial (\d+) of 3:", finish(process), re.M) for process in processes]
    assert sorted(began[0] + began[1]) in (list("012"), list("0123"))


def test_a_password_is_in_no_file_and_no_message(tmp_path, pretend, monkeypatch, capsys):
    storage = f"sqlite:///file:{tmp_path}/study.db?uri=true&password=secret"  # which SQLite ignores
    pretend(lambda config: [InterruptedTrainingError("stopped", signal.SIGTERM)])
    with pytest.raises(InterruptedTrainingError, match=r"same command: hfgen.tune\(.*password=\*\*\*'") as error:
        run(tmp_path / "a", storage=storage)
    options = flags(**TINY, trial_seconds=1, storage=storage, output_dir=tmp_path / "b")
    monkeypatch.setattr(sys, "argv", ["hfgen", "tune", "vae", *options, "--search", "learning_rate=1e-3..1e-1:log"])
    assert main() == 128 + signal.SIGTERM
    printed = capsys.readouterr()
    assert re.search(r"same command: hfgen tune vae .*password=\*\*\*' --output_dir", printed.err)
    assert "secret" not in f"{error.value}{printed}"
    pretend(lambda config: [1.0])
    run(tmp_path / "a", storage=storage, num_trials=1)
    assert "password=***" in (tmp_path / "a" / "study.md").read_text()
    for folder in ("a", "b"):
        for file in (tmp_path / folder).rglob("*"):
            assert file.is_dir() or b"secret" not in file.read_bytes(), file


def test_a_trial_that_is_killed_again_and_again_fails(tmp_path, pretend):
    """As by a system whose memory it exhausts."""
    pretend(lambda config: [SystemExit()])  # which nothing handles
    for _ in range(module.MOST_DEATHS):
        with pytest.raises(SystemExit):
            run(tmp_path, num_trials=2)
    pretend(lambda config: [1.0])
    first, second = run(tmp_path, num_trials=2).trials
    assert (first["state"], first["reason"]) == ("failed", "its process was killed 5 times at the same step")
    assert second["state"] == "complete"


def test_trials_are_not_published_with_other_runs(study, capsys):
    study, _, _ = study
    folder = study.path.parent
    with pytest.raises(UserError, match="there is no finished run"):
        package.publish_all(folder, namespace="ada", dry_run=True)
    done = sum(trial["run"] is not None for trial in study.trials)
    assert f"Trials of studies are left out ({done}); hfgen push publishes a single one" in capsys.readouterr().out


def test_a_storage_that_is_lost_stops_the_study_with_a_message(tmp_path, pretend, monkeypatch):
    def tell(*arguments):
        raise StorageInternalError("the server closed the connection")

    pretend(lambda config: [1.0])
    monkeypatch.setattr("optuna.Study.tell", tell)
    storage = f"sqlite:///{tmp_path}/study.db"
    with pytest.raises(
        TrainingError, match=r"study.db was lost: the server closed the connection. Continue the study"
    ):
        run(tmp_path / "study", storage=storage)


def test_a_database_that_cannot_be_reached_is_one_message(tmp_path):
    with pytest.raises(UserError, match=r"storage postgresql\+psycopg://ada:\*\*\*@127.0.0.1:1/x cannot be used: "):
        run(tmp_path, storage="postgresql+psycopg://ada:secret@127.0.0.1:1/x")
