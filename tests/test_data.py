"""Any source of images becomes one uint8 tensor, or one clear message."""

import io

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from hfgen import data
from hfgen.data import load_images, placed_source, public_name
from hfgen.errors import UserError


@pytest.fixture
def load(tmp_path):
    """`load_images` with a cache of its own."""
    return lambda source, **options: load_images(str(source), cache_dir=tmp_path / "cache", **options)


@pytest.fixture
def save_parquet(tmp_path):
    """Write columns as the parquet folder of a data set."""

    def save(columns, features=None, split="train"):
        folder = tmp_path / "set"
        folder.mkdir(exist_ok=True)
        datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
        return folder

    return save


def picture(mode="L", size=(6, 6), colour=None) -> PIL.Image.Image:
    return PIL.Image.new(mode, size, colour if colour is not None else (200 if mode == "L" else "red"))


def image_folder(root, files):
    for name, image in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return root


def test_built_in_digits(load):
    digits = load("digits")
    assert digits.images.shape == (1797, 1, 8, 8)
    assert digits.images.dtype == torch.uint8
    assert (digits.images.min(), digits.images.max()) == (0, 255)
    assert digits.labels[:5].tolist() == [0, 1, 2, 3, 4]
    assert digits.label_names == list("0123456789")
    assert len(load("digits", max_samples=10)) == 10
    assert len(load("digits", split="train[:1000]")) == 1000


def test_parquet_with_labels(load, save_parquet):
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])})
    folder = save_parquet({"picture": [picture(), picture("L", colour=3)], "kind": [1, 0]}, features)
    loaded = load(folder)
    assert loaded.images[:, 0, 0, 0].tolist() == [200, 3]
    assert loaded.labels.tolist() == [1, 0]
    assert loaded.label_names == ["cat", "dog"]


def test_a_saved_data_set(load, tmp_path):
    features = datasets.Features({"image": datasets.Image()})
    both = datasets.Dataset.from_dict({"image": [picture()] * 3}, features=features)
    datasets.DatasetDict(train=both, test=both.select([0])).save_to_disk(tmp_path / "saved")
    assert len(load(tmp_path / "saved", split="test")) == 1
    both.save_to_disk(tmp_path / "single")
    assert len(load(tmp_path / "single")) == 3
    assert len(load(tmp_path / "single", split="train[1:]")) == 2
    with pytest.raises(UserError, match="cannot open split test"):
        load(tmp_path / "single", split="test")
    with pytest.raises(UserError, match="cannot open split valid"):
        load(tmp_path / "saved", split="valid")


def test_splits_and_slices(load, save_parquet):
    save_parquet({"image": [picture()] * 10}, datasets.Features({"image": datasets.Image()}))
    folder = save_parquet({"image": [picture()] * 4}, datasets.Features({"image": datasets.Image()}), split="test")
    assert len(load(folder)) == 10
    assert len(load(folder, split="test")) == 4
    assert len(load(folder, split="train[:30%]")) == 3
    with pytest.raises(UserError, match="cannot open split valid"):
        load(folder, split="valid")


def test_image_folders_with_and_without_classes(load, tmp_path):
    classes = image_folder(tmp_path / "a", {"x/1.png": picture(), "x/2.png": picture(), "y/3.jpg": picture("RGB")})
    loaded = load(classes, channels=3)
    assert loaded.images.shape == (3, 3, 6, 6)
    assert loaded.labels.tolist() == [0, 0, 1]
    assert loaded.require_labels().tolist() == [0, 0, 1]
    assert loaded.label_names == ["x", "y"]
    plain = load(image_folder(tmp_path / "b", {"1.png": picture(), "2.png": picture()}))
    assert plain.labels is None
    with pytest.raises(UserError, match="no class labels.*--label_column"):
        plain.require_labels()


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (picture("L", colour=9), [9]),
        (picture("1", colour=1), [255]),
        (picture("RGB", colour=(1, 2, 3)), [1, 2, 3]),
        (picture("P", colour=0), [0, 0, 0]),
        (picture("RGBA", colour=(0, 0, 0, 0)), [255, 255, 255]),
        (picture("RGBA", colour=(1, 2, 3, 255)), [1, 2, 3]),
        (picture("LA", colour=(7, 255)), [7]),
        (picture("I;16", colour=65535), [255]),
        (picture("CMYK", colour=(0, 0, 0, 255)), [0, 0, 0]),
    ],
    ids=lambda value: value.mode if isinstance(value, PIL.Image.Image) else "",
)
def test_modes_are_converted_by_the_stated_rule(load, tmp_path, image, expected):
    file = "1.tiff" if image.mode in ("CMYK", "I;16") else "1.png"
    loaded = load(image_folder(tmp_path / "set", {file: image}))
    assert loaded.images[0, :, 0, 0].tolist() == expected


def test_channels_are_converted_on_demand(load, tmp_path):
    folder = image_folder(
        tmp_path / "set", {"1.png": picture("L", colour=9), "2.png": picture("RGB", colour=(9, 9, 9))}
    )
    assert load(folder).images.shape == (2, 1, 6, 6), "the first image decides"
    assert load(folder, channels=3).images[:, :, 0, 0].tolist() == [[9, 9, 9]] * 2


def test_resolution_resizes_the_shorter_side_and_crops_the_centre(load, tmp_path):
    wide = np.zeros((4, 12), dtype=np.uint8)
    wide[:, 4:8] = 100
    folder = image_folder(tmp_path / "set", {"1.png": PIL.Image.fromarray(wide), "2.png": picture(size=(5, 9))})
    loaded = load(folder, resolution=4)
    assert loaded.images.shape == (2, 1, 4, 4)
    assert (loaded.images[0] == 100).all()
    with pytest.raises(UserError, match=r"differ in size: .*2\.png has 5×9 pixels, the first one 12×4.*--resolution"):
        load(folder)


def test_a_photograph_is_turned_upright(load, tmp_path):
    image = PIL.Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    exif = image.getexif()
    exif[0x0112] = 6  # shown turned by 90° clockwise
    (tmp_path / "set").mkdir()
    image.save(tmp_path / "set/1.png", exif=exif)
    assert load(tmp_path / "set").images[0, 0].tolist() == [[3, 0], [4, 1], [5, 2]]


def test_broken_images_are_named_or_skipped(load, tmp_path, save_parquet, capsys):
    folder = image_folder(tmp_path / "a", {"x/1.png": picture(), "y/3.png": picture(colour=1)})
    (folder / "x/2.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"x/2\.png of .* cannot be read as an image .*--on_bad_image skip"):
        load(folder)
    loaded = load(folder, on_bad_image="skip")
    assert loaded.images[:, 0, 0, 0].tolist() == [200, 1]
    assert loaded.labels.tolist() == [0, 1]
    assert "left out 1 images" in capsys.readouterr().out
    load(folder, on_bad_image="skip")
    assert "left out 1 images" in capsys.readouterr().out, "also when it comes from the cache"

    truncated = io.BytesIO()
    picture(size=(40, 40)).save(truncated, "PNG")
    rows = [{"bytes": truncated.getvalue()[:-30], "path": None}]
    broken = save_parquet({"image": rows}, datasets.Features({"image": datasets.Image()}))
    with pytest.raises(UserError, match="row 0 of .* cannot be read"):
        load(broken)
    with pytest.raises(UserError, match="none of the 1 images"):
        load(broken, on_bad_image="skip")
    missing = {"image": [picture(), None], "label": [0, 0]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=1)})
    with pytest.raises(UserError, match="row 1 of .* cannot be read"):
        load(save_parquet(missing, features))
    with pytest.raises(UserError, match="row 0 of .* has no label in column label"):
        load(save_parquet({"image": [picture()], "label": [None]}, features))
    (tmp_path / "set" / "train-00000-of-00001.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="cannot open split train"):
        load(tmp_path / "set")


def test_columns_that_cannot_be_used_are_named(load, save_parquet):
    features = datasets.Features({"a": datasets.Image(), "b": datasets.Image(), "n": datasets.Value("int64")})
    folder = save_parquet({"a": [picture()], "b": [picture(colour=1)], "n": [5]}, features)
    with pytest.raises(UserError, match=r"2 image columns a, b; name the one to use with --image_column"):
        load(folder)
    assert load(folder, image_column="b").images[0, 0, 0, 0] == 1
    with pytest.raises(UserError, match="no column c; it has a, b, n"):
        load(folder, image_column="c")
    with pytest.raises(UserError, match="column n of .* holds no images"):
        load(folder, image_column="n")
    with pytest.raises(UserError, match="column n of .* holds no class labels"):
        load(folder, image_column="a", label_column="n")


def test_sources_that_are_not_there(load, tmp_path):
    with pytest.raises(UserError, match="there is no data set mnits.*digits, mnist"):
        load("mnits")
    with pytest.raises(UserError, match="there is no data set ./nowhere"):
        load("./nowhere")
    with pytest.raises(UserError, match=r"no/such is not in the local cache and the Hub cannot be reached.*digits"):
        load("no/such")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot open split train"):
        load(tmp_path / "empty")
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": []}, features=features).save_to_disk(tmp_path / "none")
    with pytest.raises(UserError, match="no images in its split train"):
        load(tmp_path / "none")
    with pytest.raises(UserError, match="cannot open split test of digits"):
        load("digits", split="test")


def test_short_names_are_found_in_the_named_folder(load, save_parquet, monkeypatch, tmp_path):
    save_parquet({"image": [picture()]}, datasets.Features({"image": datasets.Image()})).rename(tmp_path / "mnist")
    monkeypatch.setenv("HFGEN_DATA_DIR", str(tmp_path))
    assert len(load("mnist")) == 1


def test_decoding_happens_once_and_again_when_the_files_change(load, tmp_path, monkeypatch):
    folder = image_folder(tmp_path / "set", {"1.png": picture()})
    load(folder)
    with monkeypatch.context() as patch:
        patch.setattr(data, "_load_dataset", lambda *_: pytest.fail("decoded again"))
        assert len(load(folder)) == 1
    image_folder(folder, {"2.png": picture()})
    assert len(load(folder)) == 2


def test_a_set_of_many_chunks_keeps_its_order(load, save_parquet, monkeypatch):
    monkeypatch.setattr(data, "_DECODE_CHUNK", 3)
    images = [picture(colour=value) for value in range(10)]
    loaded = load(save_parquet({"image": images}, datasets.Features({"image": datasets.Image()})))
    assert loaded.images[:, 0, 0, 0].tolist() == list(range(10))


def test_pixels_are_mapped_from_the_disk_not_copied(load):
    def resident_bytes():
        with open("/proc/self/smaps_rollup") as file:
            return sum(int(line.split()[1]) for line in file if line.startswith("Anonymous")) * 1024

    load("digits")
    before = resident_bytes()
    copies = [load("digits") for _ in range(200)]
    assert sum(int(copy.images.sum()) for copy in copies) > 0
    assert resident_bytes() - before < 0.5 * sum(copy.images.nbytes for copy in copies)


def test_real_sets(load, real_data):
    for name, shape in {"mnist": (1, 28, 28), "fashion_mnist": (1, 28, 28), "cifar10": (3, 32, 32)}.items():
        loaded = load(real_data / name, split="test")
        assert loaded.images.shape == (10_000, *shape)
        assert loaded.labels.bincount().max() < 1200
        assert len(loaded.label_names) == 10


def test_a_local_set_means_the_same_everywhere_and_is_named_without_its_place(tmp_path, monkeypatch):
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    placed = placed_source("photos/cats")
    assert placed == str(tmp_path / "photos" / "cats")
    assert [placed_source(name) for name in ("digits", "mnist", "user/set")] == ["digits", "mnist", "user/set"]
    monkeypatch.chdir("/")
    (tmp_path / "photos" / "cats").rmdir()
    assert [public_name(name) for name in (placed, "mnist", "user/set")] == ["cats", "ylecun/mnist", "user/set"]
