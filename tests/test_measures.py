"""What the measures say of real images, spoilt and not; what is kept on disk."""

import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import REPOSITORY

from hfgen.data.images import ImageData, load_images
from hfgen.judges.judge import load_judge
from hfgen.judges.statistics import RealStatistics, count_in, nearest
from hfgen.metrics.memorization_gap.memorization_gap import memorization_gap

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
from corruptions import CORRUPTIONS


@pytest.fixture(scope="module")
def reference(judge_run, tmp_path_factory) -> RealStatistics:
    test, train = (load_images("digits", split=split) for split in ("train[:50%]", "train[50%:]"))
    return RealStatistics(load_judge(str(judge_run)), test, train, tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize(
    ("corruption", "directions"), CORRUPTIONS.items(), ids=lambda value: getattr(value, "__name__", "")
)
def test_every_measure_moves_the_right_way(reference, corruption, directions):
    images, labels = reference.train.images, reference.train.labels
    assert corruption(images, labels, 0.0).equal(images)
    rows = [
        reference.measures(reference.extractor.extract(corruption(images, labels, amount))[0])
        for amount in (0.0, 0.5, 1.0)
    ]
    for measure, direction in directions.items():
        values = [direction * row[measure]["value"] for row in rows]
        assert values == sorted(values), f"{measure}: {[row[measure]['value'] for row in rows]}"
        assert values[2] > values[0], measure


def test_real_images_reach_their_floors(reference):
    features = reference.features(reference.train)
    floors = reference.floors(len(features))
    values = {name: measure["value"] for name, measure in reference.measures(features).items()}
    floor = floors["train_against_test"]
    assert floor.pop("num_images") == len(features)
    assert floor == pytest.approx(values, rel=1e-3, abs=1e-3)
    assert floors["half_against_half"]["num_images"] == len(features) // 2
    assert floors["half_against_half"]["precision"] > 0.7
    assert reference.floors(100)["train_against_test"]["num_images"] == 100
    seen = RealStatistics(reference.extractor, reference.train, reference.train, reference.cache)
    assert set(seen.floors(len(features))) == {"half_against_half"}


class Drawn(RealStatistics):
    """Real images as points of a known distribution."""

    def __init__(self, features, cache):
        self.drawn, self.cache = features, cache
        self.extractor = SimpleNamespace(sha256="")
        self.test = SimpleNamespace(fingerprint="drawn")

    def features(self, data):
        return self.drawn


@pytest.mark.parametrize("spread", [1.0, 0.7])
def test_deviations_are_about_those_of_other_samples(spread, tmp_path):
    generator = torch.Generator().manual_seed(0)
    reference = Drawn(torch.randn(600, 6, generator=generator), tmp_path)
    found = [reference.measures(spread * torch.randn(600, 6, generator=generator)) for _ in range(12)]
    for measure in found[0]:
        true = torch.tensor([one[measure]["value"] for one in found]).std()
        stated = torch.tensor([one[measure]["std"] for one in found]).mean()
        assert 0.4 < stated / true < 3, f"{measure}: {stated} stated, {true} over repeated draws"


def test_deviations_need_enough_samples(reference):
    few = reference.measures(reference.features(reference.train)[:40])
    assert few["kernel_distance"]["std"] is None, "a tenth has too few"
    assert few["precision"]["std"] is not None
    assert reference.measures(reference.features(reference.train)[:17])["frechet_distance"]["std"] is None


def test_copies_of_training_images_are_noticed(reference):
    honest = reference.features(load_images("digits", split="train[:50%]"))
    train = reference.features(reference.train)

    def memorization(features):
        return reference.memorization(features, nearest(features, train)[0])["generated"]

    found = memorization(torch.cat([honest[:300], train[:300]]))
    assert found["gap"] == pytest.approx(0, abs=5 * found["gap_std"]), "as many copies of either set"
    copied = memorization(train[:300])
    assert copied["gap"] > 4 * copied["gap_std"]
    assert copied["nearer_to_training"] > 0.9
    assert (found["closer_than_unseen"], copied["closer_than_unseen"]) == (pytest.approx(0.5, abs=0.03), 1)


def test_statistics_are_kept_by_judge_and_data(reference, monkeypatch):
    reference.features(reference.test)
    again = RealStatistics(reference.extractor, reference.test, reference.train, reference.cache)
    monkeypatch.setattr(type(reference.extractor), "extract", lambda *_: pytest.fail("looked at the images again"))
    assert again.features(reference.test).equal(reference.features(reference.test))
    part = load_images("digits", split="train[:40%]")
    with pytest.raises(pytest.fail.Exception, match="looked at the images again"):
        RealStatistics(reference.extractor, part, reference.train, reference.cache).features(part)


def test_nearest_is_what_a_search_finds():
    torch.manual_seed(0)
    a, b = torch.randn(700, 3), torch.randn(40, 3)
    distances, numbers = nearest(a, b)
    every = (a[:, None] - b).square().sum(2)
    assert numbers.equal(every.argmin(1))
    assert torch.allclose(distances, every.min(1).values.sqrt(), atol=1e-4)


def test_the_deviation_of_nearer_to_training_is_that_over_choices_of_the_real_images(tmp_path):
    """Let few real images be nearest to many samples, none of them copied, in many random halves of one set."""
    generator = torch.Generator().manual_seed(1)
    real, samples = torch.randn(400, 24, generator=generator), 0.6 * torch.randn(500, 24, generator=generator)
    found = []
    for _ in range(60):
        train, test = real[torch.randperm(400, generator=generator)].chunk(2)
        found.append(Halves(train, test, tmp_path).memorization(samples, nearest(samples, train)[0])["generated"])
    shares = torch.tensor([one["nearer_to_training"] for one in found])
    stated = torch.tensor([one["nearer_to_training_std"] for one in found])
    assert shares.mean() == pytest.approx(0.5, abs=3 * shares.std().item() / 60**0.5)
    assert shares.std() > 3 * 0.5 / 500**0.5, "more than of independent coins"
    assert stated.mean() == pytest.approx(shares.std().item(), rel=0.25)


class Halves(Drawn):
    """Training and test images as points."""

    def __init__(self, train, test, cache):
        super().__init__(None, cache)
        self.train, self.test = train, test

    def features(self, data):
        return data

    def _close(self):
        return 0.0


def test_a_small_recall_has_no_deviation(tmp_path):
    generator = torch.Generator().manual_seed(0)
    reference = Drawn(torch.randn(600, 12, generator=generator), tmp_path)
    recall = reference.measures(0.3 * torch.randn(600, 12, generator=generator))["recall"]
    assert 0 < recall["value"] < 0.1
    assert recall["std"] is None


def test_features_far_from_zero_are_compared_as_well(reference, tmp_path):
    """Float32 has no digits left for distances of 1 between vectors of length 10,000, unless they are centred."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(300, 30, generator=generator) for _ in range(2))
    near, far = (Drawn(b + shift, tmp_path / str(shift)) for shift in (0, 2048))
    for name in ("precision", "recall", "density", "coverage"):
        assert far.measures(a + 2048)[name]["value"] == pytest.approx(near.measures(a)[name]["value"], abs=0.02), name
    assert nearest(a + 2048, b + 2048)[1].eq(nearest(a, b)[1]).double().mean() > 0.99
    gaps = [memorization_gap(a + shift, b[:150] + shift, b[150:] + shift)[0] for shift in (0, 2048)]
    assert gaps[1] == pytest.approx(gaps[0], abs=0.02)


def test_damaged_statistics_are_named_and_made_anew(reference, tmp_path, capsys):
    def measure():
        real = RealStatistics(reference.extractor, reference.test, reference.train, tmp_path)
        return real.measures(real.features(real.train)[:40]), real.floors(40)

    before = measure()
    files = {file: file.read_bytes() for file in tmp_path.iterdir()}
    assert len(files) == 4, "the features of two sets, radii, floors"
    for file, content in files.items():
        file.write_bytes(content[:-20])
    assert measure() == before
    printed = capsys.readouterr().err
    assert all(f"{file} is damaged and will be recreated" in printed for file in files)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == files


def test_equal_images_are_counted_by_their_pixels():
    images = torch.arange(40, dtype=torch.uint8).view(10, 1, 2, 2)
    data = ImageData(images, None, None, "", "")
    assert count_in(data, torch.cat([images[:3], images[3:] + 100, images[:1]])) == 4
