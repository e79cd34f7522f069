"""What a page says in words: right for real images that are spoilt in known ways, and readable for old records."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, train_classifier

from hfgen.cli.main import main
from hfgen.config.commands import EvaluateConfig
from hfgen.data.images import load_images
from hfgen.evaluation.evaluate import evaluate
from hfgen.evaluation.real import training_of
from hfgen.evaluation.report import render_report, save_report
from hfgen.evaluation.results import results_page
from hfgen.evaluation.verdict import findings, judges_disagree, listed, problems, tied, verdict
from hfgen.judges.statistics import accuracy_of
from hfgen.publishing.overview import overview_page

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
from corruptions import blur, duplicates, noise

TRAIN, OTHER = "train[40%:70%]", "train[70%:]"
SAYS = {  # what a verdict may say of images, and how it says it
    "as close": "are as close to real images as other real images are",
    "differ": "The images differ from real ones",
    "far": "are far from real ones",
    "look real": "They look as real as real images",
    "look nearly real": "They look nearly as real as real images",
    "look unusual": ", but like unusual images",
    "look unreal": "Many of them do not look real",
    "varied": "They are as varied as real images (",
    "alike": "They have little variety",
    "missed": " fewer of ",
    "blurred or noisy": ", as is usual for blurred, noisy",
    "classes are there": "No class is clearly too rare or too frequent",
    "classes are missing": "Next to no images of ",
    "classes are in their place": "; too many images of 0, 1 and 2.",
    "classes are unknown": "so unlike real images that a judge cannot count their classes",
    "too few": "Too few images of",
    "copies": "Exact copies of training images make up",
    "copied": "Training images seem to be copied",
    "not copied": "There is no clear sign that training images are copied",
    "few images": "images were measured, so small differences cannot be seen",
}


def made() -> dict[str, tuple[torch.Tensor, set[str]]]:
    """Return images whose faults are known, and what is to be said of them, which is all that may be said."""
    train, other = (load_images("digits", split=split) for split in (TRAIN, OTHER))
    images, labels = other.images, other.labels
    good, always = {"varied", "classes are there"}, {"few images"}
    near = noise(train.images[:300], train.labels[:300], 0.1)
    return {
        "perfect": (images, {"as close", "look nearly real", "not copied"} | good | always),
        "copied": (train.images[:300], {"as close", "look real", "copies", "copied"} | good | always),
        "nearly copied": (near, {"as close", "look real", "copied"} | good | always),
        "noisy": (
            noise(images, labels, 0.6),
            {"differ", "look unusual", "missed", "blurred or noisy", "not copied"} | good | always,
        ),
        "blurred": (
            blur(images, labels, 0.8),
            {"far", "look unreal", "missed", "blurred or noisy", "classes are unknown", "not copied"} | always,
        ),
        "three classes": (
            images[labels < 3],
            {
                "differ",
                "look real",
                "alike",
                "missed",
                "classes are missing",
                "classes are in their place",
                "not copied",
            }
            | always,
        ),
        "repeated": (
            duplicates(images, labels, 1.0),
            {"differ", "look real", "alike", "missed", "too few", "not copied"} | always,
        ),
    }


@pytest.fixture(scope="module")
def measure(judge_run, tmp_path_factory):
    """A function that measures images of digits, and returns the record and the page."""
    folder = tmp_path_factory.mktemp("measured")

    def measure(name: str, images: torch.Tensor, *judges: str, labels=None, **options) -> tuple[dict, str]:
        labelled = {} if labels is None else {"labels": labels.numpy()}
        np.savez(folder / f"{name}.npz", images=images[:, 0].numpy(), **labelled)
        fields = {"reference_split": "train[:40%]", "train_split": TRAIN, "dataset_name": "digits"} | options
        fields |= {"judge": [str(judge_run), *judges], "cache_dir": str(folder / "cache")}
        config = EvaluateConfig(images=str(folder / f"{name}.npz"), output_dir=str(folder / name), **fields)
        record = evaluate(config)
        return json.loads(record.read_text()), record.with_name("evaluation.md").read_text()

    return measure


@pytest.mark.parametrize(
    "name", ["perfect", "copied", "nearly copied", "noisy", "blurred", "three classes", "repeated"]
)
def test_images_with_known_faults_are_described_by_these_and_no_others(measure, name):
    images, expected = made()[name]
    record, page = measure(name, images)
    text = " ".join(verdict(record))
    assert {key for key, words in SAYS.items() if words in text} == expected, text
    assert page.index("**In short**") < page.index("generated images (loaded from files)")


def test_judges_that_disagree_are_said_to(measure, tmp_path):
    second = train_classifier(tmp_path / "second_judge", seed=1, max_train_steps=100)
    data = load_images("digits", split=OTHER)
    record, _ = measure("by two", blur(data.images, data.labels, 0.8), str(second))
    one, two = (found["shares"]["generated"] for found in record["classes"].values())
    text = " ".join(verdict(record))
    assert sum(map(abs, np.subtract(one, two))) / 2 > 0.5
    assert "The judges disagree on the class of at least" in text
    assert not any(words in text for words in ("images of", "one class"))
    advice = "Where the judges disagree, the numbers do not decide: look at the images."
    assert verdict(record).count(advice) == 1
    assert verdict(record).index(advice) > [" disagree on " in sentence for sentence in verdict(record)].index(True)
    assert advice not in verdict(measure("by one", data.images)[0])
    measures = record["measures"]["second_judge"]
    measures["precision"]["value"] = record["floors"]["second_judge"]["train_against_test"]["precision"]
    text = " ".join(verdict(record))
    first = record["measures"]["digits_judge"]["precision"]["value"]
    assert f"The judges disagree on how many of them look real (precision {first:.2f} by digits_judge and" in text
    assert judges_disagree(record)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "evaluation.json").write_text(json.dumps(record))
    assert "| [two](two) † |" in results_page([tmp_path], tmp_path)
    assert "judges disagree: look at the images" in overview_page([tmp_path], tmp_path)
    record["classes"].pop("second_judge")  # what has no classes is no judge
    assert "The networks disagree on how many of them look real" in " ".join(verdict(record))


def test_variety_is_not_claimed_of_images_that_do_not_look_real(measure):
    record, _ = measure("young", load_images("digits", split=OTHER).images)
    measures, floor = record["measures"]["digits_judge"], record["floors"]["digits_judge"]["train_against_test"]
    for metric, ratio in {"precision": 0.6, "recall": 1.0, "coverage": 1.0, "frechet_distance": 20}.items():
        measures[metric] = {"value": ratio * floor[metric], "std": 0.0}
    said = " ".join(verdict(record))
    assert "The images are far from real ones" in said
    assert "The recall of images that do not look real does not show that they are varied (recall " in said
    assert "need not mean better" not in said
    measures["frechet_distance"]["value"] = 40 * floor["frechet_distance"]
    assert "At such distances, a smaller one need not mean better images." in " ".join(verdict(record))


def test_judges_that_take_all_for_different_classes_disagree(measure, tmp_path):
    second = train_classifier(tmp_path / "another_judge", seed=2, max_train_steps=100)
    record, _ = measure("of one class", load_images("digits", split=OTHER).images, str(second))
    for number, found in enumerate(record["classes"].values()):
        found["shares"]["generated"] = [float(index == number) for index in range(10)]
    said = verdict(record)
    taken = "but the judges disagree on which (0 by digits_judge and 1 by another_judge)."
    assert f"Nearly all of them are taken for one class, {taken}" in said
    assert "Where the judges disagree, the numbers do not decide: look at the images." in said


def test_the_requested_class_is_compared_with_real_images(measure):
    data = load_images("digits", split=OTHER)
    for name, labels, order in (("right", data.labels, "as"), ("wrong", (data.labels + 1) % 10, "less")):
        record, _ = measure(name, data.images, labels=labels)
        assert f"They show the requested class {order} often" in " ".join(verdict(record))


def test_of_few_images_all_of_the_requested_class_are_not_more_than_of_real_ones():
    labels = torch.arange(200) % 10
    found = accuracy_of(labels, labels, 10)
    assert found["accuracy"] == 1
    record = record_of("model_cards", "ddpm_conditional_mnist_cpu5min", "evaluation.json")
    record["conditional"] = {"mnist": found}
    assert "They show the requested class as often as real images do (100.0%, real images 99.7%)." in verdict(record)


def test_copies_of_reference_images_show_nothing(measure):
    record, _ = measure("leaked", load_images("digits", split="train[:40%]").images[:300])
    said = verdict(record)[0]
    assert said.startswith(
        "Exact copies of reference images make up 300 of the 300 images, so the metrics do not show"
    )


def test_slightly_changed_copies_are_noticed_among_few(measure):
    """Also where the gap and the proportion do not show them, as for few images and a large training set."""
    record, page = measure("changed", noise(load_images("digits", split=TRAIN).images[:300], None, 0.02))
    (found,) = record["memorization"].values()
    assert found["generated"]["closer_than_unseen"] > 0.9
    assert "of the images are closer to one of all training images than 99 % of the test images are" in page
    found["generated"] |= {"gap": 0.0, "nearer_to_training": 0.5}
    assert "of the images are closer to a training image than 99% of unseen images are." in " ".join(verdict(record))
    found["generated"]["closer_than_unseen"] = 0.05
    assert "There is no clear sign that training images are copied." in verdict(record)


def test_problems_stand_at_the_top(measure, tmp_path):
    data = load_images("digits", split=TRAIN)
    record, page = measure("seen", data.images, reference_split=TRAIN)
    seen = "539 of the 539 reference images are among the training images"
    assert [problem[: len(seen)] for problem in problems(record)] == [seen]
    assert page.splitlines()[2].startswith(f"**Warning**: {seen}")
    assert "no clear sign" not in page
    collapse = "possible mode collapse: classifier mnist finds almost no samples of 4 among 1,000"
    page = (
        save_report(record | {"training": {"problems": [collapse]}}, tmp_path).with_name("evaluation.md").read_text()
    )
    assert page.splitlines()[2] == f"**Warning**: Training reported a problem: {collapse}."


def test_problems_of_the_training_reach_the_evaluation_and_the_top_of_the_card(judge_run, tmp_path):
    run = Path(shutil.copytree(judge_run, tmp_path / "run"))
    assert "problems" not in training_of(run)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"problems": ["it collapsed"]}))
    assert training_of(run)["problems"] == ["it collapsed"]
    assert main(["card", str(run)]) == 0
    page = (run / "README.md").read_text()
    assert page.count("**Warning**: Training reported a problem: it collapsed.") == 1
    assert page.index("**Warning**") < page.index("## Use")


def test_without_real_images_to_compare_with_nothing_is_judged(measure):
    record, _ = measure("bare", load_images("digits", split=OTHER).images)
    record["floors"] = {"digits_judge": {}}
    assert findings(record)[0].startswith("There were too few real images to compare with")


RECORDS = sorted(
    file
    for folder in ("model_cards/*", "benchmarks/results/*", "hfgen/judges/*")
    for name in ("evaluation", "analysis", "comparison")
    for file in REPOSITORY.glob(f"{folder}/{name}.json")
)


@pytest.mark.parametrize("file", RECORDS, ids=lambda file: "-".join(file.parts[-2:]))
def test_every_record_in_the_repository_has_a_verdict_in_plain_sentences(file):
    sentences = verdict(json.loads(file.read_text()))
    assert sentences
    for sentence in sentences:
        assert sentence.endswith(".")
        assert not set("`*|[]\n") & set(sentence), "no Markdown"
        assert "nan" not in sentence.split()
        assert "None" not in sentence.replace("None of them", "")


def record_of(*place: str) -> dict:
    return json.loads(REPOSITORY.joinpath(*place).read_text())


def test_outputs_further_from_their_targets_are_said_to_be():
    record = record_of("model_cards", "translation_fashion_mnist", "evaluation.json")
    first, *others = record["restoration"]
    first["given"], first["made"] = first["made"], first["given"]
    better, worse, recognised = verdict(record)
    assert better.startswith("The outputs are closer to the targets than the inputs are (PSNR 12.8 → 21.0 dB for")
    assert (
        worse
        == "The outputs are no closer to the targets than the inputs are (PSNR 24.5 → 21.6 dB for gaussian_noise=0.1)."
    )
    assert recognised.startswith("Judges recognise the class of 60.5% to 85.3% of the outputs, 14.0% to 87.3% of the")
    assert len(others) == 2


@pytest.mark.parametrize(
    ("name", "kept", "active"),
    [
        ("vae_mnist_conv", "Most reconstructions lose their class", "The posterior has collapsed"),
        ("vae_mnist_conv_static", "Reconstructions are as recognisable as their images", "24 of 32"),
        ("vae_mnist_linear", "Reconstructions are nearly as recognisable as their images", "20 of 20"),
    ],
)
def test_an_analysis_tells_what_is_kept_and_which_latents_are_used(name, kept, active):
    first, second, third = verdict(record_of("model_cards", name, "analysis.json"))
    assert first.startswith(kept)
    assert second.startswith(active)
    assert "the others carry no information" in second or active != "24 of 32"
    assert third.startswith("The importance-weighted bound is")


def test_settings_within_the_deviation_of_their_difference_tie():
    record = record_of("benchmarks", "results", "samplers_fashion_mnist", "comparison.json")
    assert len(verdict(record)) == 1, "a record of an earlier version has no differences"
    for row in record["settings"]:
        value = row["frechet_distance"]["value"] - 1.3492
        row["above_best"] = {"value": max(0, value), "std": 0.1 if value > 0.001 else 0.0}
    best, ties = verdict(record)
    assert best.startswith("The best images come from dpmsolver_sde, 15 steps (Fréchet distance 1.35 ± 0.1")
    assert ties == "A tie, within two standard deviations of the difference: dpmsolver_sde, 10 steps."
    one = record["cheapest"]
    record["cheapest"] = {name: row for name in ("ours", "theirs") for row in one.values()}
    assert {text.split(":")[0] for text in verdict(record)} == {"ours", "theirs"}, "each says of which model it is"
    record["cheapest"] = one
    page = render_report("comparison.md", record=record, tolerance=0.05)
    assert page.count("(tie) |") == 1
    assert page.count("| best |") == 1


def test_ties_need_deviations_and_share_a_rank(tmp_path):
    one, near, far, unknown = ({"value": v, "std": s} for v, s in ((1.0, 0.1), (1.28, 0.1), (1.29, 0.1), (1.0, None)))
    assert [tied(one, other) for other in (near, far, unknown)] == [True, False, False]
    record = record_of("model_cards", "ddpm_mnist", "evaluation.json")
    for name, metric in {"far": far, "near": near, "one": one}.items():
        record["measures"]["mnist"]["frechet_distance"] = metric
        (tmp_path / name).mkdir()
        (tmp_path / name / "evaluation.json").write_text(json.dumps(record))
    page = results_page([tmp_path], tmp_path)
    assert "- ylecun/mnist, 10,000 images: [one](one), 1 ± 0.1 (real images 0.0109), tied with [near](near)" in page
    rows = [line.split(" | ")[:2] for line in page.splitlines() if line.startswith("| ") and "](" in line]
    assert rows == [["| 1", "[one](one)"], ["| 1", "[near](near)"], ["| 3", "[far](far)"]]
    assert page.count("| real images |") == 1


def test_words_are_listed_up_to_a_number():
    assert [listed("abcde"[:count], shown=4) for count in range(6)] == [
        "", "a", "a and b", "a, b and c", "a, b, c and d", "a, b, c and 2 others",
    ]  # fmt: skip
