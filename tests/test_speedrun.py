"""The speedrun page: the best model of each kind within each time, from the records in the repository."""

import json
import sys

from conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
from speedrun import DATASETS, PAGE, RULES, Entry, entries_of_others, page, rows_of


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


def test_others_enter_with_an_evaluation_and_the_facts_of_the_rules(tmp_path):
    record = json.loads((REPOSITORY / "model_cards" / "gan_mnist_tuned" / "evaluation.json").read_text())
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "evaluation.json").write_text(json.dumps(record))
    facts = RULES.partition("```json")[2].partition("```")[0]
    (tmp_path / "theirs" / "entry.json").write_text(facts)
    (entry,) = entries_of_others(tmp_path, "ylecun/mnist")
    assert (entry.kind, entry.seconds) == ("diffusion, told classes", 299.8)
    assert entry.cells[0].startswith("[theirs](https://")
    assert entry.cells[0].endswith("5 min")
    assert entry.cells[1:4] == ("AVX512, bf16, 2 cores", "290", "2,000")
    assert entry.cells[-1] == "1.9 s"
    assert entries_of_others(tmp_path, "uoft-cs/cifar10") == []
