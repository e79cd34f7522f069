"""The speedrun page: the best model of each kind within each time, from the records in the repository."""

import sys

from conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
from speedrun import DATASETS, PAGE, Entry, page, rows_of


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
