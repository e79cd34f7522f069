"""A data set with one split is divided into parts: each with all classes, the same for everyone who asks."""

import dataclasses
import json
import random

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from conftest import TINY, train_classifier

from hfgen.cli.main import main
from hfgen.config import ClassifierConfig, DDPMConfig, TranslationConfig
from hfgen.config.commands import TestingOptions as Options
from hfgen.config.training import changed_fields
from hfgen.data.images import load_images
from hfgen.data.paired import PairedInputs, TargetDomain
from hfgen.data.parts import divide
from hfgen.evaluation.real import load_real
from hfgen.tasks.classifier import load_test_images
from hfgen.training.run import placed_fields
from hfgen.utils.errors import UserError

FRACTIONS = {"validation_fraction": 0.1, "test_fraction": 0.2}


@pytest.fixture
def load(tmp_path):
    """`load_images` with a cache of its own."""
    return lambda source, **options: load_images(str(source), cache_dir=tmp_path / "cache", **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with one sub-folder a class, of 20, 10 and 30 pictures, each of which has a brightness of its own."""
    root = tmp_path_factory.mktemp("pictures")
    brightness = iter(range(256))
    for name, count in (("cats", 20), ("dogs", 10), ("owls", 30)):
        (root / name).mkdir()
        for number in range(count):
            PIL.Image.new("L", (8, 8), next(brightness)).save(root / name / f"{number:02d}.png")
    return root


def brightness_of(data) -> set[int]:
    return {int(image.flatten()[0]) for image in data.images}


def test_each_part_has_its_fraction_of_each_class():
    labels = [0] * 100 + [1] * 30 + [2] * 10
    parts = divide(140, labels, **FRACTIONS)
    counts = {part: [sum(labels[row] == c for row in rows) for c in range(3)] for part, rows in parts.items()}
    assert counts == {"train": [70, 21, 7], "validation": [10, 3, 1], "test": [20, 6, 2]}
    assert sorted(parts["train"] + parts["validation"] + parts["test"]) == list(range(140))
    assert all(rows == sorted(rows) for rows in parts.values())


@pytest.mark.parametrize(("size", "expected"), [
    (1, {"train": 1, "validation": 0, "test": 0}),
    (2, {"train": 1, "validation": 0, "test": 1}),
    (3, {"train": 1, "validation": 1, "test": 1}),
    (4, {"train": 2, "validation": 1, "test": 1}),
])  # fmt: skip
def test_small_classes_keep_an_image_to_train_on_and_then_give_one_to_each_part(size, expected):
    parts = divide(size + 50, [7] * size + [0] * 50, **FRACTIONS)
    assert {part: sum(row < size for row in rows) for part, rows in parts.items()} == expected


def test_the_parts_follow_from_the_rows_alone():
    assert divide(12, None, validation_fraction=0.25, test_fraction=0.25) == {
        "train": [0, 4, 5, 7, 8, 11], "validation": [3, 6, 10], "test": [1, 2, 9],
    }, "what was once trained on must never be tested with: these rows may not change"  # fmt: skip
    random.seed(1), torch.manual_seed(1), np.random.seed(1)
    others = divide(12, None, validation_fraction=0.25, test_fraction=0.25)
    assert others == divide(12, None, validation_fraction=0.25, test_fraction=0.25)
    assert divide(12, None, validation_fraction=0.5, test_fraction=0.25)["test"] == others["test"]


def test_a_folder_of_classes_is_divided(load, folder):
    whole = load(folder)
    parts = {split: load(folder, split=split, **FRACTIONS) for split in ("test", "train", "validation")}
    assert {split: data.labels.bincount().tolist() for split, data in parts.items()} == {
        "train": [14, 7, 21], "validation": [2, 1, 3], "test": [4, 2, 6],
    }  # fmt: skip
    shown = [brightness_of(data) for data in parts.values()]
    assert set.union(*shown) == brightness_of(whole)
    assert sum(map(len, shown)) == len(whole)
    assert parts["test"].label_names == ["cats", "dogs", "owls"]
    assert load(folder, split="test", test_fraction=0.2).fingerprint == parts["test"].fingerprint
    assert load(folder, **FRACTIONS, max_samples=5).images.equal(parts["train"].images[:5])
    assert load(folder).fingerprint == whole.fingerprint


def test_a_split_of_its_own_is_never_divided_again_and_other_names_work(load, tmp_path):
    features = datasets.Features({"image": datasets.Image()})
    images = [PIL.Image.new("L", (4, 4), value) for value in range(20)]
    sets = datasets.DatasetDict(
        train=datasets.Dataset.from_dict({"image": images}, features=features),
        test=datasets.Dataset.from_dict({"image": images[:3]}, features=features),
    )
    sets.save_to_disk(tmp_path / "saved")
    for split in ("train", "test"):
        sets[split].to_parquet(tmp_path / "parquet" / f"{split}.parquet")
    for source in ("saved", "parquet"):
        with pytest.raises(UserError, match="already has a split test; leave out test_fraction"):
            load(tmp_path / source, test_fraction=0.2)
        assert len(load(tmp_path / source, validation_fraction=0.2)) == 16
        assert len(load(tmp_path / source, split="validation", validation_fraction=0.2)) == 4
        own = load(tmp_path / source, split="test", validation_fraction=0.2)
        assert own.images[:, 0, 0, 0].tolist() == [0, 1, 2]
    datasets.DatasetDict(all=sets["train"]).save_to_disk(tmp_path / "all")
    test = load(tmp_path / "all", split="test", held_out_of="all", test_fraction=0.2)
    train = load(tmp_path / "all", split="all", held_out_of="all", test_fraction=0.2)
    assert brightness_of(test) | brightness_of(train) == set(range(20))


@pytest.mark.parametrize(("options", "message"), [
    ({"split": "train[:50%]", "test_fraction": 0.2}, r"train\[:50%\] would overlap the parts.*use train, test"),
    ({"split": "test+train", "test_fraction": 0.2}, "would overlap the parts"),
    ({"held_out_of": "train[:50%]", "test_fraction": 0.2}, r"need a whole split .* not train\[:50%\]"),
    ({"held_out_of": "test", "test_fraction": 0.2}, "need a whole split .* not test"),
    ({"split": "validation", "test_fraction": 0.2}, "cannot open split validation"),
])  # fmt: skip
def test_slices_and_parts_do_not_mix(load, folder, options, message):
    with pytest.raises(UserError, match=message):
        load(folder, **options)


def test_classes_that_are_too_small_for_a_part_are_named(load, tmp_path, capsys):
    for name, count in (("many", 9), ("one", 1), ("two", 2)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(count):
            PIL.Image.new("L", (4, 4)).save(tmp_path / "set" / name / f"{number}.png")
    load(tmp_path / "set", **FRACTIONS)
    said = capsys.readouterr().err
    assert "the test part has no images of one, as there are too few" in said
    assert "the validation part has no images of one, two, as there are too few" in said
    (tmp_path / "single").mkdir()
    PIL.Image.new("L", (4, 4)).save(tmp_path / "single" / "1.png")
    with pytest.raises(UserError, match="has too few images, 1, for a test part"):
        load(tmp_path / "single", split="test", test_fraction=0.2)


def test_a_slice_that_loses_classes_is_refused(load, folder):
    with pytest.raises(UserError, match=r"train\[:50%\] of .* has no images of owls.*--test_fraction 0\.2"):
        load(folder, split="train[:50%]")
    with pytest.raises(UserError, match="has no images of cats, dogs"):
        load(folder, split="train[30:]")
    assert len(load(folder, split="train[:50%]+train[50%:]")) == 60
    assert len(load("digits", split="train[:80%]")) == 1438, "sets in random order lose nothing"


def test_images_in_order_that_lose_classes_or_may_are_mentioned(load, folder, tmp_path, capsys):
    assert len(load(folder, max_samples=25)) == 25
    assert "the first 25 images, which are used, have none of owls" in capsys.readouterr().err
    for _ in range(2):
        load(folder / "cats", split="train[:50%]")
        assert "without labels, it is unknown whether they are representative" in capsys.readouterr().err
    load("digits", max_samples=100), load(folder / "cats"), load(folder / "cats", test_fraction=0.5)
    assert capsys.readouterr().err == ""


def test_model_judge_and_evaluation_have_the_same_parts_whatever_their_seeds(load, folder, tmp_path):
    fields = {"train_data_dir": str(folder), "cache_dir": str(tmp_path / "cache"), "output_dir": "x", **FRACTIONS}
    parts = {split: load(folder, split=split, **FRACTIONS).fingerprint for split in ("train", "validation", "test")}
    for seed in (0, 7):
        judge = ClassifierConfig(**fields, seed=seed)
        assert load_test_images(judge, str(folder)).fingerprint == parts["test"]
        assert load_images(str(folder), **judge.reading_options()).fingerprint == parts["train"]
        run = DDPMConfig(**fields, seed=seed).to_dict()
        for split, fingerprint in parts.items():
            options = Options(reference_split=split, cache_dir=str(tmp_path / "cache"))
            assert load_real(options, run, str(folder), split).fingerprint == fingerprint
    stranger = Options(**FRACTIONS, cache_dir=str(tmp_path / "cache"))
    assert load_real(stranger, {}, str(folder), "test").fingerprint == parts["test"]
    with pytest.raises(
        UserError, match=r"trained with test_fraction 0\.2; 0\.3 would mix training and held-out images"
    ):
        load_real(Options(test_fraction=0.3), run, str(folder), "test")
    plain = DDPMConfig(**fields | {"test_fraction": 0.0, "validation_fraction": 0.0}).to_dict()
    with pytest.raises(UserError, match=r"cannot open split test .*--test_fraction 0\.2"):
        load_real(Options(cache_dir=str(tmp_path / "cache")), plain, str(folder), "test")


def test_a_judge_is_measured_on_what_was_held_out_and_images_are_compared_with_it(tmp_path):
    """Of images that are sorted by class, as those of a folder are."""
    digits, images = load_images("digits"), tmp_path / "others.npz"
    order = digits.labels[:600].argsort(stable=True)
    np.savez(tmp_path / "sorted.npz", images=digits.images[order, 0].numpy(), labels=digits.labels[order].numpy())
    shape = {"dataset_name": str(tmp_path / "sorted.npz"), "train_split": "train", "test_split": "test"}
    judge = train_classifier(tmp_path / "judge", **shape, test_fraction=0.2, max_train_steps=3, hidden_sizes=[8, 8])
    assert main(["evaluate", str(judge)]) == 0
    assert json.loads((judge / "evaluation.json").read_text())["protocol"]["reference_images"] == 120
    named = ["--dataset_name", shape["dataset_name"]]
    assert main(["evaluate", str(judge), *named, "--reference_split", "train"]) == 0, "its own data, so its own parts"
    assert json.loads((judge / "evaluation.json").read_text())["protocol"]["reference_images"] == 480
    assert main(["evaluate", str(judge), *named, "--test_fraction", "0.2"]) == 2
    np.savez(images, images=digits.images[600:700, 0].numpy())
    command = ["evaluate", "--images", str(images), "--dataset_name", shape["dataset_name"], "--judge", str(judge)]
    assert main([*command, "--output_dir", str(tmp_path / "report"), "--test_fraction", "0.2"]) == 0
    protocol = json.loads((tmp_path / "report" / "evaluation.json").read_text())["protocol"]
    assert (protocol["reference_images"], protocol["training_images"], protocol["test_fraction"]) == (120, 480, 0.2)
    assert protocol["reference_images_in_training"] == 0


def test_pairs_are_divided_alike(folder, load, tmp_path):
    given = tmp_path / "given"
    for path in folder.rglob("*.png"):
        (given / path.parent.name).mkdir(parents=True, exist_ok=True)
        with PIL.Image.open(path) as picture:
            PIL.Image.eval(picture, lambda value: 255 - value).save(given / path.relative_to(folder))
    run = TranslationConfig(
        train_data_dir=str(folder), input_data_dir=str(given), cache_dir=str(tmp_path / "cache"), output_dir="x",
        **FRACTIONS,
    ).to_dict()  # fmt: skip
    for split in ("train", "validation", "test"):
        wanted = load(folder, split=split, **FRACTIONS)
        assert PairedInputs(run, wanted).data.images.equal(255 - wanted.images)


def test_the_second_kind_is_divided_too(folder, tmp_path):
    run = {
        "target_degradation": [], "target_data_dir": str(folder), "target_dataset_name": None, "resolution": None,
        "channels": None, "on_bad_image": "error", "cache_dir": str(tmp_path / "cache"), "target_image_column": None,
        "max_train_samples": None, "target_split": "train", "random_flip": False, **FRACTIONS,
    }  # fmt: skip
    first = load_images("digits", cache_dir=tmp_path / "cache")
    assert [len(TargetDomain(run, first, split).data) for split in ("train", "validation", "test")] == [42, 6, 12]


@pytest.mark.parametrize(("fields", "message"), [
    ({"test_fraction": 1.0}, "test_fraction must be from 0 to below 1, not 1.0"),
    ({"validation_fraction": -0.1}, "validation_fraction must be from 0 to below 1"),
    ({"validation_fraction": 0.5, "test_fraction": 0.5}, "must leave images to train on"),
    ({"resolution": 100_000}, "resolution must be at most 4,096, not 100,000"),
    ({"train_batch_size": 10**9}, "train_batch_size must be at most 1,000,000"),
    ({"dataset_name": ""}, "dataset_name must not be empty"),
    ({"dataset_name": None, "train_data_dir": " "}, "train_data_dir must not be empty"),
])  # fmt: skip
def test_numbers_and_names_that_no_data_have_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        DDPMConfig(**{"dataset_name": "digits", "output_dir": "x"} | fields)


def test_test_images_are_named_or_held_out_not_both():
    with pytest.raises(UserError, match="test_dataset_name already provides the test images"):
        ClassifierConfig(dataset_name="digits", output_dir="x", test_dataset_name="mnist", test_fraction=0.2)
    other = ClassifierConfig(
        dataset_name="digits", output_dir="x", test_dataset_name="digits", test_split="train", validation_fraction=0.2
    )
    assert len(load_test_images(other, "x")) == 1797


def test_fractions_cannot_change_on_resume_and_folders_may_have_been_kept_as_typed(tmp_path, monkeypatch):
    (tmp_path / "pictures").mkdir()
    monkeypatch.chdir(tmp_path)
    fields = TINY | {"dataset_name": None, "output_dir": "x"}
    older = DDPMConfig(**fields, train_data_dir="pictures").to_dict()
    del older["test_fraction"], older["validation_fraction"]
    now = DDPMConfig(**fields, train_data_dir=str(tmp_path / "pictures"))
    saved = older | placed_fields(now, older)
    assert changed_fields(now, saved) == []
    assert changed_fields(dataclasses.replace(now, test_fraction=0.2), saved) == ["test_fraction: 0.0 → 0.2"]
