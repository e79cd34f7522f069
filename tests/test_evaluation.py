"""`hfgen evaluate` from a run, from images of anywhere, interrupted; the report; what is refused; shipped judges."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from conftest import REPOSITORY, TINY, TORCHRUN, finish, flags, hfgen, start
from forked import Forked

from hfgen.cli.main import main
from hfgen.config import DDPMConfig
from hfgen.config.commands import EvaluateConfig
from hfgen.data.images import ImageData, load_images
from hfgen.data.sources import SHORT_NAMES
from hfgen.evaluation import evaluate as evaluation
from hfgen.evaluation import processes
from hfgen.evaluation.evaluate import evaluate
from hfgen.evaluation.generated import load_generated, missing_batches
from hfgen.evaluation.report import render_report, save_report
from hfgen.evaluation.results import results_page
from hfgen.figures.grids import save_images
from hfgen.judges.judge import JUDGES, load_judge, shipped_judges
from hfgen.sampling.sample import sample
from hfgen.tasks.diffusion import DiffusionTask
from hfgen.training.run import train
from hfgen.utils.errors import UserError
from hfgen.utils.markdown import accuracy_text

SPLITS = {"reference_split": "train[:50%]", "train_split": "train[50%:]"}


@pytest.fixture(scope="module")
def model_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny_model"
    return train(DDPMConfig(**TINY, output_dir=str(folder), max_train_steps=3), DiffusionTask)


@pytest.fixture
def options(judge_run, tmp_path):
    return {"judge": [str(judge_run)], "cache_dir": str(tmp_path / "cache"), "num_images": 40, **SPLITS}


@pytest.fixture
def digits_file(tmp_path):
    data = load_images("digits", split="train[50%:]")
    path = tmp_path / "digits.npz"
    np.savez(path, images=data.images[:300, 0].numpy(), labels=data.labels[:300].numpy())
    return path


def test_a_run_is_drawn_measured_and_reported(model_run, options, tmp_path):
    output = tmp_path / "report"
    record = evaluate(EvaluateConfig(run_or_repo=str(model_run), output_dir=str(output), batch_size=16, **options))
    found = json.loads(record.read_text())
    (judge,) = found["measures"]
    assert judge == "digits_judge"
    assert set(found["measures"][judge]) == {
        "frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage",
    }  # fmt: skip
    assert found["measures"][judge]["frechet_distance"]["value"] > (
        3 * found["floors"][judge]["train_against_test"]["frechet_distance"]
    ), "three steps of training draw no digits"
    assert sum(found["classes"][judge]["shares"]["generated"]) == pytest.approx(1)
    protocol = found["protocol"]
    assert (protocol["scheduler"], protocol["num_inference_steps"], protocol["seed"]) == ("unipc", 3, 0)
    assert protocol["judges"][judge] == load_judge(options["judge"][0]).sha256
    assert found["training"]["images_seen"] == 48
    page = (output / "evaluation.md").read_text()
    assert "| Fréchet distance |" in page
    assert (protocol["training_images"], protocol["reference_images"]) == (899, 898)
    assert (
        "| real: training against test (40 images) "
        "| real: training, half against half (40 images, only 450 reference images) |"
    ) in page
    nearer = found["memorization"][judge]["generated"]
    share, chance = nearer["nearer_to_training"], nearer["nearer_to_training_std"]
    assert f"| {share:.1%} (by chance 50 % ± {chance:.1%}) |" in page
    assert "Without copying, the expected proportion is 50 %" in page
    for one in found["memorization"][judge].values():
        del one["nearer_to_training_std"]  # as in records of earlier versions
    older = save_report(found, tmp_path / "older").with_name("evaluation.md").read_text()
    assert f"| {share:.1%} |" in older
    assert "was not measured, so no conclusion can be drawn" in older
    for picture in re.findall(r"\]\(([^)]+\.png)\)", page):
        with PIL.Image.open(output / picture) as image:
            assert min(image.size) > 50, picture
    assert str(tmp_path.parent) not in page + record.read_text(), "no path of this machine in what may be published"


def test_the_images_measured_are_those_that_sample_draws(model_run, options, tmp_path):
    output = tmp_path / "report"
    evaluate(EvaluateConfig(run_or_repo=str(model_run), output_dir=str(output), batch_size=16, **options))
    files = sorted(output.glob("evaluation/images-*/*.npy"))
    assert [file.name for file in files] == ["000000.npy", "000016.npy", "000032.npy"]
    drawn = torch.cat([torch.from_numpy(np.load(file)) for file in files])
    pipeline = evaluation.load(str(model_run), dtype="auto")
    expected = sample(pipeline, num_images=40, num_inference_steps=3, scheduler="unipc", batch_size=40)
    assert drawn.equal(next(expected))


def test_an_interrupted_evaluation_goes_on_and_a_larger_one_draws_the_rest(
    model_run, options, tmp_path, monkeypatch, capsys
):
    config = EvaluateConfig(run_or_repo=str(model_run), output_dir=str(tmp_path / "a"), batch_size=16, **options)
    whole = json.loads(evaluate(config).read_text())
    files = sorted((tmp_path / "a").glob("evaluation/images-*/*.npy"))
    files[-1].unlink()
    (files[0].parent / ".incomplete-99999999-000032.npy").write_text("half a file")
    asked = []
    original = processes.sample
    monkeypatch.setattr(processes, "sample", lambda *a, **k: (asked.append(k), original(*a, **k))[1])
    again = json.loads(evaluate(config).read_text())
    assert (asked[0]["first_image"], asked[0]["num_images"]) == (32, 8)
    assert again["measures"] == whole["measures"]
    assert [file.name for file in sorted(files[0].parent.iterdir())] == [file.name for file in files]
    content = files[1].read_bytes()
    files[1].write_bytes(content[:-20])
    assert json.loads(evaluate(config).read_text())["measures"] == whole["measures"]
    assert (asked[1]["first_image"], files[1].read_bytes()) == (16, content)
    assert f"{files[1]} is damaged and will be recreated" in capsys.readouterr().err
    config.num_images = 50
    evaluate(config)
    assert (asked[2]["first_image"], asked[2]["num_images"]) == (40, 10)


def drawn_in(folder):
    """The images of an evaluation, by the file that has them."""
    return {file.name: np.load(file) for file in sorted(folder.glob("evaluation/images-*/*.npy"))}


def test_two_processes_draw_the_images_of_one(model_run, options, tmp_path):
    def evaluated(name, num_processes, **changed):
        fields = flags(**options | {"output_dir": tmp_path / name, "batch_size": 8} | changed)
        process = hfgen("evaluate", str(model_run), *fields, num_processes=num_processes)
        return finish(process), json.loads((tmp_path / name / "evaluation.json").read_text())

    _, alone = evaluated("alone", 1)
    output, shared = evaluated("shared", 2)
    images = [drawn_in(tmp_path / name) for name in ("alone", "shared")]
    assert [*images[0]] == [*images[1]] == ["000000.npy", "000008.npy", "000016.npy", "000024.npy", "000032.npy"]
    assert all(np.array_equal(images[0][name], images[1][name]) for name in images[0])
    assert all(f"hfgen: process {rank} of 2 samples on cpu" in output for rank in (0, 1))
    assert output.count("The evaluation is in") == 1
    for record in (alone, shared):
        del record["seconds"]
    assert shared == alone
    for name in ("000008.npy", "000024.npy"):
        next((tmp_path / "shared").glob(f"evaluation/images-*/{name}")).unlink()
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "shared").glob("evaluation/images-*/*.npy")}
    evaluated("shared", 2, num_images=50)
    assert [*drawn_in(tmp_path / "shared")] == [*images[0], "000040.npy", "000048.npy"]
    assert all(np.array_equal(drawn_in(tmp_path / "shared")[name], images[0][name]) for name in images[0])
    assert {file: file.stat().st_mtime_ns for file in before} == before, "what was there was not drawn again"


def test_a_launcher_starts_the_processes_of_evaluations(model_run, options, tmp_path):
    script = tmp_path / "twice.py"
    script.write_text(
        "import sys, hfgen\n"
        f"fields = dict({SPLITS}, judge=sys.argv[2], num_images=40, batch_size=8)\n"
        "reports = [hfgen.evaluate(sys.argv[1], output_dir=f'{sys.argv[3]}/{name}', **fields) for name in 'ab']\n"
        "assert reports[0].record['measures'] == reports[1].record['measures'], 'on each process'\n"
    )
    finish(start(*TORCHRUN, str(script), str(model_run), *options["judge"], str(tmp_path)))
    images = [drawn_in(tmp_path / name) for name in "ab"]
    assert len(images[0]) == 5
    assert all(np.array_equal(images[0][name], images[1][name]) for name in images[0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_images": 8}, "the Fréchet distance in the 16 features of these judges needs more than 16 images"),
        ({"classification_accuracy_score": True}, "the classification accuracy score trains in one process"),
        ({"device": "cuda"}, "the device cuda is not available"),
    ],
)
def test_a_mistake_ends_all_processes_of_an_evaluation(model_run, options, tmp_path, changed, message):
    fields = flags(**options | {"output_dir": tmp_path / "report"} | changed)
    output = finish(hfgen("evaluate", str(model_run), *fields, num_processes=2), expected_status=2)
    assert f"hfgen: process 0: {message}" in output
    assert "Traceback" not in output
    assert not (tmp_path / "report").exists()


def test_a_process_that_cannot_draw_ends_the_evaluation(model_run, options, tmp_path):
    script = tmp_path / "fails.py"
    script.write_text(
        "import os, sys\n"
        "from hfgen.cli.main import main\n"
        "from hfgen.evaluation import processes\n"
        "original = processes.SamplingJob._sample\n"
        "def sample(job, pipeline, index, count):\n"
        "    if index:\n"
        "        raise MemoryError('no memory')\n"
        "    original(job, pipeline, index, count)\n"
        "processes.SamplingJob._sample = sample\n"
        "try:\n"
        "    sys.exit(main(['evaluate', *sys.argv[1:]]))\n"
        "except MemoryError as error:\n"
        "    sys.exit(f'it ended by {error}')\n"
    )
    fields = flags(**options | {"output_dir": tmp_path / "report", "batch_size": 8})
    output = finish(Forked(str(script), str(model_run), *fields, num_processes=2), expected_status=2)
    assert "hfgen: process 1: no memory" in output
    assert "it ended by no memory" in output


@pytest.mark.parametrize(
    ("saved", "num_images", "expected"),
    [
        ({}, 5, [(0, 2), (2, 4), (4, 5)]),
        ({0: 2, 2: 2}, 4, []),
        ({0: 3, 6: 2}, 9, [(3, 5), (5, 6), (8, 9)]),
        ({1: 4, 4: 3}, 8, [(0, 1), (5, 7), (7, 8)]),
    ],
)
def test_what_is_missing_among_saved_images_is_drawn(saved, num_images, expected):
    lengths = {first: range(length) for first, length in saved.items()}
    assert missing_batches(lengths, num_images, 2) == [range(*ends) for ends in expected]


def test_other_weights_are_not_measured_by_images_of_earlier_ones(model_run, options, tmp_path):
    output = str(tmp_path / "report")
    for folder in (model_run, model_run / "checkpoints" / "step-000003"):
        evaluate(EvaluateConfig(run_or_repo=str(folder), dataset_name="digits", output_dir=output,
                                scheduler="unipc", num_inference_steps=3, **options))  # fmt: skip
    assert len(list((tmp_path / "report").glob("evaluation/images-*"))) == 1, "the same weights"
    pipeline = evaluation.load(str(model_run))
    with torch.no_grad():
        next(pipeline.unet.parameters()).add_(0.1)
    pipeline.save_pretrained(tmp_path / "other")
    evaluate(EvaluateConfig(run_or_repo=str(tmp_path / "other"), dataset_name="digits", output_dir=output,
                            scheduler="unipc", num_inference_steps=3, **options))  # fmt: skip
    assert len(list((tmp_path / "report").glob("evaluation/images-*"))) == 2


def test_images_with_labels_from_a_file_and_from_a_folder(digits_file, options, tmp_path):
    data = load_images("digits", split="train[50%:]")
    for label in range(10):
        save_images(data.images[:300][data.labels[:300] == label], tmp_path / "folder" / str(label))
    records = []
    for source in (digits_file, tmp_path / "folder"):
        fields = options | {"num_images": None, "output_dir": str(tmp_path / f"report of {source.name}")}
        records.append(
            json.loads(evaluate(EvaluateConfig(images=str(source), dataset_name="digits", **fields)).read_text())
        )
    first, second = (record["conditional"]["digits_judge"] for record in records)
    assert first["accuracy"] > 0.8
    assert first["accuracy"] == pytest.approx(second["accuracy"])
    assert len(first["frechet_distance_per_class"]) == 10
    assert first["accuracy_per_class"] == pytest.approx(second["accuracy_per_class"])
    assert "### Class accuracy, judge" in (tmp_path / "report of folder" / "evaluation.md").read_text()
    for name, measure in records[0]["measures"]["digits_judge"].items():
        if name != "kernel_distance":  # which draws subsets, from another order here
            assert records[1]["measures"]["digits_judge"][name]["value"] == pytest.approx(measure["value"], rel=1e-3)


def test_images_in_black_on_white_are_mentioned_and_can_be_inverted(options, tmp_path, capsys):
    images = load_images("digits", split="train[50%:]").images[:200, 0].numpy()
    np.savez(tmp_path / "usual.npz", images=images)
    np.savez(tmp_path / "drawn.npz", images=255 - images)
    found = []
    for name, invert in (("usual", False), ("drawn", True), ("drawn", False)):
        fields = options | {"images": str(tmp_path / f"{name}.npz"), "dataset_name": "digits", "invert": invert}
        output = str(tmp_path / f"{name} {invert}")
        record = json.loads(evaluate(EvaluateConfig(**fields | {"output_dir": output})).read_text())
        warned = "--invert inverts the images" in capsys.readouterr().err
        found.append((record["measures"], record["protocol"]["images"], warned))
    assert [part[1:] for part in found] == [
        ("usual.npz", False), ("drawn.npz, inverted", False), ("drawn.npz", True),
    ]  # fmt: skip
    assert found[0][0] == found[1][0] != found[2][0]
    with pytest.raises(UserError, match="invert needs --images"):
        EvaluateConfig(run_or_repo="x", invert=True)


def test_images_sorted_by_class_are_measured_in_another_order(options, tmp_path):
    data = load_images("digits", split="train[50%:]")
    order = data.labels.argsort()
    np.savez(tmp_path / "sorted.npz", images=data.images[order, 0].numpy(), labels=data.labels[order].numpy())
    np.savez(tmp_path / "mixed.npz", images=data.images[:, 0].numpy(), labels=data.labels.numpy())
    found = {}
    for name in ("sorted", "mixed"):
        fields = {
            "images": str(tmp_path / f"{name}.npz"),
            "output_dir": str(tmp_path / name),
            "dataset_name": "digits",
        }
        record = json.loads(evaluate(EvaluateConfig(**(options | fields | {"num_images": 400}))).read_text())
        found[name] = record["measures"]["digits_judge"]
        assert min(record["classes"]["digits_judge"]["shares"]["generated"]) > 0.05, name
    for measure in ("frechet_distance", "precision"):
        assert found["sorted"][measure]["std"] < 4 * found["mixed"][measure]["std"], measure


def test_labels_are_matched_by_name(tmp_path):
    images = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)

    def labels_of(names, known):
        data = ImageData(images, torch.arange(len(names)), names, "", "")
        return load_generated(data, "some images", 3, known).labels.sort().values.tolist()

    assert labels_of(["bag", "coat", "shirt"], ["shirt", "hat", "coat", "bag"]) == [0, 2, 3]
    assert labels_of(["0", "3", "7"], [str(n) for n in range(10)]) == [0, 3, 7]
    assert labels_of(["0", "1", "2"], ["shirt", "hat", "coat", "bag"]) == [0, 1, 2]
    with pytest.raises(UserError, match="classes that the judges do not have, such as cat"):
        labels_of(["bag", "cat", "shirt"], ["shirt", "hat", "coat", "bag"])


def test_what_a_run_was_trained_on_is_what_it_is_compared_with(options, tmp_path):
    folder = tmp_path / "few"
    train(DDPMConfig(**TINY, output_dir=str(folder), max_train_steps=1, max_train_samples=100), DiffusionTask)
    fields = options | {"train_split": None, "reference_split": "train[60%:]"}
    protocol = json.loads(evaluate(EvaluateConfig(run_or_repo=str(folder), **fields)).read_text())["protocol"]
    assert (protocol["training_images"], protocol["reference_images_in_training"]) == (100, 0)
    assert protocol["train_split"] == "train"


def test_reference_images_from_the_training_set_are_no_unseen_ones(model_run, options, tmp_path):
    fields = options | {"train_split": "train", "output_dir": str(tmp_path / "report")}
    record = json.loads(evaluate(EvaluateConfig(run_or_repo=str(model_run), **fields)).read_text())
    assert record["protocol"]["reference_images_in_training"] == record["protocol"]["reference_images"]
    assert record["memorization"] == {}
    assert set(record["floors"]["digits_judge"]) == {"half_against_half"}
    assert "so memorisation cannot be measured" in (tmp_path / "report" / "evaluation.md").read_text()


def test_a_checkpoint_is_measured_by_its_runs_settings_and_not_into_the_run(model_run, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = evaluate(EvaluateConfig(run_or_repo=str(model_run / "checkpoints" / "step-000003"), **options))
    assert record == Path("evaluations/tiny_model-step-000003/evaluation.json")
    protocol = json.loads(record.read_text())["protocol"]
    assert (protocol["model"], protocol["num_inference_steps"]) == ("tiny_model-step-000003", 3)


def test_a_data_set_may_number_its_classes_in_another_order_than_the_judge(
    digits_file, options, judge_run, tmp_path, monkeypatch
):
    monkeypatch.setattr(evaluation, "SCORE_STEPS", 60)
    data = load_images("digits")
    names = [str(digit) for digit in reversed(range(10))]
    np.savez(tmp_path / "other.npz", images=data.images[:, 0].numpy(), labels=9 - data.labels, label_names=names)
    with np.load(digits_file) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    swapped = np.where(labels < 2, 1 - labels, labels)
    np.savez(tmp_path / "swapped.npz", images=images, labels=swapped)
    config = EvaluateConfig(
        images=str(tmp_path / "swapped.npz"), dataset_name=str(tmp_path / "other.npz"),
        output_dir=str(tmp_path / "report"), classification_accuracy_score=True, **(options | {"num_images": 300}),
    )  # fmt: skip
    record = json.loads(evaluate(config).read_text())
    assert record["judge_accuracy"]["digits_judge"]["accuracy"] > 0.8
    distances = record["conditional"]["digits_judge"]["frechet_distance_per_class"]
    assert max(distances[2:]) < min(distances[:2])
    score = record["classification_accuracy_score"]
    assert score["generated"]["accuracy"] > 0.5
    assert max(score["generated"]["accuracy_per_class"][:2]) < 0.3, "learnt from the labels that were given"
    assert score["real"]["accuracy"] > 0.5
    assert (score["generated"]["training_images"], score["real"]["training_images"]) == (300, 300)
    assert "classification accuracy score" in (tmp_path / "report" / "evaluation.md").read_text().lower()
    run = yaml.safe_load((judge_run / "config.yaml").read_text())
    fields = {"dataset_name": str(tmp_path / "other.npz"), "reference_split": run["test_split"]}
    judged = evaluate(EvaluateConfig(run_or_repo=str(judge_run), output_dir=str(tmp_path / "judge"), **fields))
    assert json.loads(judged.read_text())["accuracy"] > 0.8


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_images": 16}, "needs more than 16 images; images: 16"),
        ({"reference_split": "train[:10]"}, "needs more than 16 images; reference images: 10"),
        ({"reference_split": "nope"}, "--test_fraction 0.2 to hold out test images, or set --reference_split"),
        ({"judge": ["nope"]}, "there is no judge nope"),
        ({"judge": [], "resolution": 12}, "hfgen ships no judge for digits of 12×12 pixels in 1 channel. Train one: "),
        ({"resolution": 12}, "was trained on images of 8×8 pixels in 1 channel, but digits has 12×12"),
        ({"judge": [], "num_images": 64}, "in the 64 features of these judges needs more than 64 images; images: 64"),
        ({"num_images": 400}, "num_images is 400, but .* has 300 images"),
        ({"images": "nope.npz"}, "there is no folder and no .npz file nope.npz"),
        ({"judge": ["nope", "none"], "reference_split": "no"}, "3 problems:\n- .*nope.*\n- .*none.*\n- .*split no "),
        (
            {"resolution": 12, "num_images": 400, "reference_split": "train[:10]"},
            "4 problems:\n- .* reference images: 10\n- the judge .*\n- .*digits.npz has 8×8.*\n- .*is 400",
        ),
        (
            {"images": "unlabelled.npz", "num_images": 3, "classification_accuracy_score": True},
            "2 problems:\n- .*images: 3\n- the classification accuracy score needs labels",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_work(
    digits_file, options, tmp_path, monkeypatch, fields, message
):
    monkeypatch.chdir(tmp_path)
    np.savez("unlabelled.npz", images=load_images("digits", max_samples=30).images[:, 0].numpy())
    config = {"images": str(digits_file), "dataset_name": "digits", "output_dir": str(tmp_path / "report")}
    with pytest.raises(UserError, match=message):
        evaluate(EvaluateConfig(**(config | options | fields)))
    assert not (tmp_path / "report" / "evaluation.json").exists()


def test_without_a_judge_the_commands_that_are_suggested_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = load_images("digits", max_samples=300)
    for label in range(10):
        save_images(data.images[data.labels == label], Path("own pictures", str(label)))
    fields = {name: value for name, value in TINY.items() if name != "dataset_name"}
    fields |= {"train_data_dir": "own pictures", "test_fraction": 0.3, "output_dir": "runs/own", "max_train_steps": 1}
    assert main(["train", "ddpm", *flags(**fields)]) == 0
    evaluation = ["evaluate", "runs/own", "--num_images", "60"]
    assert main(evaluation) == 2
    message = capsys.readouterr().err
    command, judge = re.search(r"Train one: hfgen (.*)\. Then repeat this command with (.*)$", message).groups()
    assert "--test_fraction 0.3 --hidden_sizes 32 32 32 --output_dir runs/judge" in command
    assert main(shlex.split(command)) == 0
    assert main([*evaluation, *shlex.split(judge)]) == 0
    record = json.loads(Path("runs/own/evaluation.json").read_text())
    assert record["judge_accuracy"]["judge"]["accuracy"] > 0.85
    assert main(["compare-samplers", "runs/own", "--num_images", "60"]) == 2
    assert "--output_dir runs/judge-2. Then repeat" in capsys.readouterr().err


def test_a_judge_that_is_often_wrong_is_named_where_it_cannot_be_missed(digits_file, options, tmp_path, capsys):
    data = load_images("digits")
    labels = (data.labels + torch.arange(len(data)) % 2) % 10  # half of them are wrong
    np.savez(tmp_path / "half.npz", images=data.images[:, 0].numpy(), labels=labels.numpy())
    config = options | {"images": str(digits_file), "output_dir": str(tmp_path / "report")}
    record = json.loads(evaluate(EvaluateConfig(**config, dataset_name=str(tmp_path / "half.npz"))).read_text())
    found = accuracy_text(record["judge_accuracy"]["digits_judge"])
    weak = f"The judge digits_judge has an accuracy of only {found} on real images"
    assert weak in capsys.readouterr().err
    page = (tmp_path / "report" / "evaluation.md").read_text()
    assert page.splitlines()[2].startswith(f"**Warning**: {weak}"), "right below the title"
    published = json.loads((REPOSITORY / "model_cards" / "vae_cifar10" / "evaluation.json").read_text())
    assert "**Warning**" not in render_report("verdict.md", record=published)
    published["judge_accuracy"] = record["judge_accuracy"]
    assert f"**Warning**: {weak}" in render_report("verdict.md", record=published)


def test_misfitting_images_and_missing_labels(options, tmp_path):
    np.savez(tmp_path / "wide.npz", images=np.zeros((40, 8, 9), np.uint8))
    np.savez(tmp_path / "colour.npz", images=np.zeros((40, 8, 8, 3), np.uint8))
    np.savez(tmp_path / "bare.npz", images=np.zeros((40, 8, 8), np.uint8))
    for name, fields, message in (
        ("wide", {}, "wide.npz has 9×8 pixels in 1 channel, and digits 8×8 pixels in 1 channel"),
        ("bare", {"judge": [], "dataset_name": str(tmp_path / "bare.npz")}, "needs class labels, but .* has none"),
        ("bare", {"judge": [options["judge"][0]] * 2}, "must differ in the names of their folders"),
        ("colour", {}, "8×8 pixels in 3 channels, and digits 8×8 pixels in 1 channel"),
        ("bare", {"classification_accuracy_score": True}, "score needs labels of both the images and the data set"),
    ):
        config = {"images": str(tmp_path / f"{name}.npz"), "dataset_name": "digits", "output_dir": str(tmp_path / "o")}
        with pytest.raises(UserError, match=message):
            evaluate(EvaluateConfig(**(config | options | fields)))


def test_a_run_that_is_not_there_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "runs/mnsit"]) == 2
    assert "there is no folder runs/mnsit" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "not neither"),
        ({"run_or_repo": "a", "images": "b"}, "not both"),
        ({"images": "b", "dataset_name": "digits"}, "and --output_dir for the report"),
        ({"run_or_repo": "a", "num_images": 0}, "num_images must be positive"),
        ({"run_or_repo": "a", "seed": -1}, "seed must be zero or more"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(UserError, match=message):
        EvaluateConfig(**fields)


def test_the_commands_and_the_table_of_all_evaluations(model_run, judge_run, tmp_path):
    options = ["--reference_split", "train[:50%]", "--judge", str(judge_run), "--num_images", "40"]
    output = finish(hfgen("evaluate", str(model_run), *options, "--output_dir", str(tmp_path / "all" / "tiny")))
    assert "The evaluation is in" in output
    evaluate(EvaluateConfig(run_or_repo=str(judge_run), output_dir=str(tmp_path / "all" / "judge")))
    folders = [str(tmp_path / "all" / name) for name in ("tiny", "judge")]
    assert main(["results", *folders, "--output", str(tmp_path / "RESULTS.md")]) == 0
    page = (tmp_path / "RESULTS.md").read_text()
    record = json.loads((tmp_path / "all" / "tiny" / "evaluation.json").read_text())
    recall = record["measures"]["digits_judge"]["recall"]["value"]
    assert re.search(rf"\| 1 \| \[tiny\]\(all/tiny\) \| .* \| {recall:.3g}", page)
    assert re.search(r"\| \[judge\]\(all/judge\) \| digits \| ResNetForImageClassification \|", page)
    with pytest.raises(UserError, match="there is no evaluation.json"):
        results_page([tmp_path / "nothing"], tmp_path)


def test_the_table_in_the_repository_is_that_of_its_records():
    page = (REPOSITORY / "RESULTS.md").read_text()
    assert page == results_page([REPOSITORY / "model_cards"], REPOSITORY)


def test_the_judges_have_the_pages_of_their_runs():
    for name in shipped_judges():
        record = (REPOSITORY / "model_cards" / f"classifier_{name}" / "evaluation.json").read_text()
        assert json.loads(record) == json.loads((JUDGES / name / "evaluation.json").read_text())


def test_each_data_set_has_two_judges():
    assert {name: len(shipped_judges(name)) for name in SHORT_NAMES} == {"mnist": 2, "fashion_mnist": 2, "cifar10": 2}
    accuracies = {
        name: json.loads((JUDGES / name / "evaluation.json").read_text())["accuracy"] for name in shipped_judges()
    }
    assert accuracies["mnist"] >= 0.995
    assert accuracies["fashion_mnist"] >= 0.935


@pytest.mark.parametrize("name", shipped_judges())
def test_shipped_judges_are_small_and_whole(name):
    judge = load_judge(name)
    record = json.loads((JUDGES / name / "evaluation.json").read_text())
    assert judge.num_features <= 128
    assert (JUDGES / name / "model.safetensors").stat().st_size <= 3_000_000
    assert record["protocol"]["weights_sha256"] in (JUDGES / name / "README.md").read_text()


def test_a_damaged_shipped_judge_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("hfgen.judges.judge.JUDGES", tmp_path)
    name = "mnist"
    shutil.copytree(JUDGES / name, tmp_path / name)
    load_judge(name)
    content = bytearray((tmp_path / name / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / name / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        load_judge(name)


@pytest.mark.parametrize("name", [name for name in shipped_judges() if name != "digits"])  # for that see test_features
def test_shipped_judges_are_as_good_as_they_say(name, real_data):
    dataset = max((d for d in ("mnist", "fashion_mnist", "cifar10") if name.startswith(d)), key=len)
    record = json.loads((JUDGES / name / "evaluation.json").read_text())
    data = load_images(dataset, split="test", max_samples=2000)
    right = (load_judge(name).extract(data.images)[1].argmax(1) == data.labels).double().mean().item()
    assert right == pytest.approx(record["accuracy"], abs=0.015)
