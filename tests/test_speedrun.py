"""The speedrun page: the best model of each kind within each time, from the records in the repository."""

import functools
import json
import sys

import pytest
from conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
from speedrun import DATASETS, PAGE, RULES, Entry, earlier_seconds, entries_of_others, is_eligible, page, rows_of


def test_the_page_in_the_repository_is_that_of_its_records():
    text = PAGE.read_text()
    assert text == page()
    assert all(f"\n## {title}\n" in text for title in DATASETS.values())


def test_each_time_has_the_best_of_each_kind_once():
    entries = [
        Entry("GAN", 59.0, 5.0, ("early",)),
        Entry("GAN", 60.4, 4.0, ("one step over",)),
        Entry("GAN", 61.0, 1.0, ("a minute and a second",)),
        Entry("GAN", 299.0, 2.0, ("worse and later",)),
        Entry("VAE", 500.0, 3.0, ("another kind",)),
        Entry("VAE", 9000.0, 0.1, ("too late",)),
    ]
    assert rows_of(entries) == [
        ["60 seconds", "GAN", "one step over"],
        ["5 minutes", "GAN", "a minute and a second"],
        ["10 minutes", "VAE", "another kind"],
    ]


def test_the_training_of_a_vae_or_a_teacher_counts_too():
    seconds = {"vae_cifar10_spatial_cpu8min": 480.1, "ddpm_conditional_mnist_cpu5min": 300.0}
    records = {name: {"training": {"train_seconds": each}} for name, each in seconds.items()}
    assert earlier_seconds("ddpm_conditional_cifar10_latent_cpu45min", records) == 480.1
    assert earlier_seconds("consistency_mnist_cpu10min", records) == 300.0
    assert earlier_seconds("ddpm_conditional_cifar10_cpu60min", records) == 0


@pytest.fixture
def theirs(tmp_path):
    """A folder with the entry of the rules, and its two files."""
    place = tmp_path / "theirs"
    place.mkdir()
    record = json.loads((REPOSITORY / "model_cards" / "gan_mnist_tuned" / "evaluation.json").read_text())
    record["protocol"]["num_images"] = 10_000
    (place / "evaluation.json").write_text(json.dumps(record))
    (place / "entry.json").write_text(RULES.partition("```json")[2].partition("```")[0])
    return place


def test_others_enter_with_an_evaluation_and_the_facts_of_the_rules(theirs):
    (entry,) = entries_of_others(theirs.parent, "ylecun/mnist")
    assert (entry.kind, entry.seconds) == ("diffusion, told classes", 299.8)
    assert entry.cells[0].startswith("[theirs](https://")
    assert entry.cells[0].endswith("5 min")
    assert entry.cells[1:4] == ("AVX512, bf16", "290", "10,000")
    assert entry.cells[-1] == "1.9 s"
    assert entries_of_others(theirs.parent, "uoft-cs/cifar10") == []


@pytest.mark.parametrize(
    ("file", "names", "value", "message"),
    [
        ("entry.json", ["kind"], "of its own", "kind must be one of GAN"),
        ("evaluation.json", ["protocol", "num_images"], 2000, "num_images must be 10,000"),
        ("evaluation.json", ["protocol", "reference_split"], "train", "reference_split must be test"),
        ("evaluation.json", ["protocol", "judges", "mnist"], "0" * 64, "judges must be the two of the data set"),
    ],
)
def test_an_entry_against_the_rules_is_refused(theirs, file, names, value, message):
    content = json.loads((theirs / file).read_text())
    *outer, last = names
    functools.reduce(dict.get, outer, content)[last] = value
    (theirs / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"theirs: {message}"):
        entries_of_others(theirs.parent, "ylecun/mnist")


def test_models_of_more_cores_a_gpu_or_other_numbers_of_images_are_left_out():
    record = json.loads((REPOSITORY / "model_cards" / "gan_mnist_tuned" / "evaluation.json").read_text())
    assert is_eligible(record)
    assert is_eligible(record | {"protocol": record["protocol"] | {"num_images": 10_000}})
    for part, changes in (
        ("training", {"threads": 8}),
        ("training", {"num_processes": 4}),
        ("training", {"device": "NVIDIA H100"}),
        ("protocol", {"num_images": 1000}),
    ):
        assert not is_eligible(record | {part: record[part] | changes})
