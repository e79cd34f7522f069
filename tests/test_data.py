"""Any source of images becomes one uint8 tensor, or one clear message."""

import contextlib
import io
import json
import os
import re
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import PIL.EpsImagePlugin
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import REPOSITORY, TINY
from filelock import FileLock

from hfgen.cli.main import main
from hfgen.config import DDPMConfig
from hfgen.data import decoding, sources
from hfgen.data import images as data
from hfgen.data.images import load_images
from hfgen.data.sources import placed_source, public_name
from hfgen.models.modeling_hfgen_translation import ResidualTranslationUNet
from hfgen.pipelines.pipeline_hfgen_image_translation import ImageTranslationPipeline
from hfgen.pipelines.saving import save_pipeline
from hfgen.tasks.diffusion import DiffusionTask
from hfgen.training.run import train
from hfgen.utils.errors import UserError


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
    assert load(folder).splits == load(folder, split="train[:30%]").splits == ("test", "train")
    assert load(folder, validation_fraction=0.2).splits == ("test", "train", "validation")
    assert load("digits").splits == ("train",)
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
    assert "skipped 1 images" in capsys.readouterr().err
    load(folder, on_bad_image="skip")
    assert "skipped 1 images" in capsys.readouterr().err, "also when it comes from the cache"

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
    with pytest.raises(UserError, match="column n of .* must contain images"):
        load(folder, image_column="n")
    with pytest.raises(UserError, match="column n of .* must contain class labels"):
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
        patch.setattr(data, "open_dataset", lambda *_: pytest.fail("decoded again"))
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


# --- what strangers' data may not do


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """Put a `gs` first in the path that leaves a file behind when it is run; return that file."""
    ran = tmp_path / "ran"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {ran}\nexit 0\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.setattr(PIL.EpsImagePlugin, "gs_binary", None)  # where Pillow keeps whether there is one
    return ran


def save_postscript(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture("L", (6, 6)).save(path, format="EPS")


def test_training_starts_no_program_for_a_picture(load, tmp_path, ghostscript, capsys):
    folder = image_folder(tmp_path / "set", {"1.png": picture()})
    save_postscript(folder / "9.png")
    arguments = ["train", "ddpm", "--train_data_dir", str(folder), "--output_dir", str(tmp_path / "run")]
    assert main([*arguments, "--cache_dir", str(tmp_path / "cache")]) == 2
    assert "9.png of" in capsys.readouterr().err
    assert len(load(folder, on_bad_image="skip")) == 1
    with open(folder / "9.png", "rb") as file, PIL.Image.open(file) as opened, contextlib.suppress(Exception):
        assert not ghostscript.exists()
        opened.load()
    assert ghostscript.exists(), "Pillow itself would have started it"


def test_translating_starts_no_program_for_a_picture(tmp_path, ghostscript, capsys):
    pipeline = ImageTranslationPipeline(ResidualTranslationUNet(block_out_channels=(8, 8)))
    save_pipeline(pipeline, tmp_path / "model")
    folder = image_folder(tmp_path / "given", {"1.png": picture(size=(8, 8))})
    save_postscript(folder / "9.png")
    command = ["translate", str(tmp_path / "model"), "--input", str(folder), "--output", str(tmp_path / "made")]
    assert main(command) == 1
    assert "skipped" in (said := capsys.readouterr().err)
    assert "9.png, which cannot be read as an image" in said
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["1.png"]
    assert not ghostscript.exists()


def test_pictures_are_opened_in_one_place_only():
    calls = [
        path.name
        for path in (REPOSITORY / "hfgen").rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"Image\.open\((?!\")", line)  # not the example on a model's page
    ]
    assert calls == ["decoding.py"]


def save_table(folder, columns, features):
    """Write columns as a parquet folder as they are; `datasets` would check labels and put files into the rows."""
    folder.mkdir(exist_ok=True)
    types = features.arrow_schema
    table = pa.table([pa.array(columns[name], types.field(name).type) for name in features], schema=types)
    pq.write_table(table, folder / "train-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("name", ["{secret}", "../secret.png", "set/../../secret.png", "link.png", "none.png", ""])
def test_a_table_reads_no_picture_of_this_machine(load, tmp_path, monkeypatch, name):
    picture(colour=77).save(tmp_path / "secret.png")
    monkeypatch.chdir(tmp_path)
    rows = [{"bytes": None, "path": name.format(secret=tmp_path / "secret.png")}]
    folder = save_table(tmp_path / "set", {"image": rows}, datasets.Features({"image": datasets.Image()}))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(UserError, match="cannot be read as an image"):
        load(folder)
    with pytest.raises(UserError, match="none of the 1 images"):
        load(folder, on_bad_image="skip")


def test_a_table_may_name_pictures_that_lie_beside_it(load, tmp_path):
    rows = [{"bytes": None, "path": str(tmp_path / "set" / "own.bin")}, {"bytes": None, "path": "own.bin"}]
    folder = save_table(tmp_path / "set", {"image": rows}, datasets.Features({"image": datasets.Image()}))
    picture(colour=77).save(folder / "own.bin", format="PNG")
    assert load(folder).images.flatten().unique().tolist() == [77]


def test_the_page_of_an_image_folder_reads_no_picture_of_this_machine(load, tmp_path):
    image_folder(tmp_path / "private", {"secret.png": picture(colour=77)})
    folder = image_folder(tmp_path / "set", {"1.png": picture()})
    page = f'---\nconfigs:\n- config_name: default\n  data_files: "{tmp_path}/private/*.png"\n---\n'
    (folder / "README.md").write_text(page)
    with pytest.raises(UserError, match=r"secret\.png of .*refers to a file outside the data set"):
        load(folder)


def test_links_in_a_folder_of_pictures_are_followed_and_mentioned(load, tmp_path, capsys):
    elsewhere = image_folder(tmp_path / "elsewhere", {"a.png": picture(colour=77)})
    folder = image_folder(tmp_path / "set", {"b.png": picture(colour=5)})
    (folder / "a.png").symlink_to(elsewhere / "a.png")
    (folder / "c.png").symlink_to(folder / "b.png")
    assert load(folder).images[:, 0, 0, 0].tolist() == [77, 5, 5]
    assert f"1 images are links out of the folder; {folder / 'a.png'} points to {elsewhere / 'a.png'}" in (
        capsys.readouterr().err
    )
    (tmp_path / "shortcut").symlink_to(folder)
    assert len(load(tmp_path / "shortcut")) == 3, "the folder itself may be a link"


def test_files_of_a_data_set_from_the_hub_are_those_in_its_part_of_the_cache(tmp_path):
    repo = tmp_path / "datasets--user--set"
    (repo / "blobs").mkdir(parents=True)
    (repo / "snapshots" / "main").mkdir(parents=True)
    picture(colour=9).save(repo / "blobs" / "abc", format="PNG")
    (repo / "snapshots" / "main" / "1.png").symlink_to("../../blobs/abc")
    picture().save(tmp_path / "secret.png")
    open_own = decoding.OwnFiles(repo, follow=False)
    assert open_own({"bytes": None, "path": str(repo / "snapshots/main/1.png")})
    with pytest.raises(ValueError, match="outside the data set"):
        open_own({"bytes": None, "path": str(tmp_path / "secret.png")})
    with pytest.raises(ValueError, match="contains no image"):
        decoding.OwnFiles(None, follow=False)({"bytes": None, "path": str(tmp_path / "secret.png")})


def test_arrays_are_never_unpickled(load, tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    images = np.zeros((2, 4, 4), np.uint8)
    for name, arrays in {
        "images": {"images": np.array([Payload()], dtype=object)},
        "labels": {"images": images, "labels": np.array([Payload()] * 2, dtype=object)},
        "names": {"images": images, "labels": np.zeros(2, int), "label_names": np.array([Payload()], dtype=object)},
    }.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(UserError, match="cannot be read as an .npz file of plain arrays"):
            load(tmp_path / f"{name}.npz")
    assert not (tmp_path / "ran").exists()


# --- the cache of decoded images


def cached(tmp_path):
    """Return the one decoded set that is in the cache."""
    (folder,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    return folder


def zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


def as_if_untouched(change):
    """Change a file and give it its old time again."""

    def changed(path):
        time = path.stat().st_mtime_ns
        change(path)
        os.utime(path, ns=(time, time))

    return changed


def shorten(path):
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize("name", ["images.bin", "labels.npy", "data.json"])
@pytest.mark.parametrize("change", [zeros, shorten, as_if_untouched(shorten), lambda path: path.unlink(),
                                    lambda path: path.write_text("[]")], ids=range(5))  # fmt: skip
def test_a_damaged_cache_is_named_and_made_anew(load, tmp_path, capsys, name, change):
    whole = load("digits", max_samples=20)
    pixels = whole.images.clone()
    change(cached(tmp_path) / name)
    again = load("digits", max_samples=20)
    assert again.images.equal(pixels)
    assert again.labels.equal(whole.labels)
    assert re.search(rf"digits: the decoded images in {cached(tmp_path)} are damaged \(.+\)", capsys.readouterr().err)
    load("digits", max_samples=20)
    assert capsys.readouterr().err == ""


def test_absurd_numbers_in_a_cache_are_not_believed(load, tmp_path, capsys):
    load("digits", max_samples=20)
    record = json.loads((file := cached(tmp_path) / "data.json").read_text())
    record["record"]["shape"][0] = 10**12
    file.write_text(json.dumps(record))
    assert len(load("digits", max_samples=20)) == 20
    assert "data.json was changed" in capsys.readouterr().err


def test_a_copied_cache_is_read_once_more_and_then_trusted(load, tmp_path, monkeypatch, capsys):
    load("digits", max_samples=20)
    os.utime(cached(tmp_path) / "images.bin")
    with monkeypatch.context() as patch:
        patch.setattr(data, "open_dataset", lambda *_: pytest.fail("decoded again"))
        load("digits", max_samples=20)
        patch.setattr(data, "_sha256_of", lambda *_: pytest.fail("read again"))
        load("digits", max_samples=20)
    assert capsys.readouterr().err == ""


def test_a_cache_that_can_only_be_read_is_used_and_a_place_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    load_images("digits", max_samples=20, cache_dir=cache)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")  # to root, everything is permitted

    monkeypatch.setattr(data, "FileLock", refuse)
    assert len(load_images("digits", max_samples=20, cache_dir=cache)) == 20
    with pytest.raises(UserError, match=r"cannot be cached in .*cache \(Permission denied\).*--cache_dir"):
        load_images("digits", max_samples=30, cache_dir=cache)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be cached in .*file"):
        load_images("digits", max_samples=30, cache_dir=tmp_path / "file")


def test_an_interrupted_decoding_leaves_nothing(load, tmp_path, monkeypatch):
    class Interrupted(BaseException):
        pass

    def interrupt(*_):
        raise Interrupted

    monkeypatch.setattr(data, "to_array", interrupt)
    with pytest.raises(Interrupted):
        load("digits", max_samples=20)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_two_who_want_the_same_images_decode_them_once(load, monkeypatch):
    decode, begun = data._decode, []

    def slowly(*arguments):
        begun.append(arguments)
        time.sleep(0.5)
        decode(*arguments)

    monkeypatch.setattr(data, "_decode", slowly)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(load, "digits", max_samples=20) for _ in range(2)]
        assert [len(each.result()) for each in both] == [20, 20]
    assert len(begun) == 1


def test_waiting_for_another_process_is_mentioned(load, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "WAIT_SECONDS", 0.1)
    load("digits", max_samples=20)
    (lock,) = (tmp_path / "cache").glob(".*.lock")
    (cached(tmp_path) / "data.json").unlink()
    other = FileLock(lock)
    with ThreadPoolExecutor(1) as pool:
        with other:
            waiting = pool.submit(load, "digits", max_samples=20)
            time.sleep(0.6)
            said = capsys.readouterr().err
            assert "waiting for another process to decode these images" in said
            assert f"delete {lock}" in said
            assert not waiting.done()
        assert len(waiting.result()) == 20


def test_a_picture_that_changed_under_the_same_name_is_noticed(load, tmp_path):
    folder = image_folder(tmp_path / "set", {"1.bmp": picture(colour=1)})
    assert load(folder).images.max() == 1
    size = (folder / "1.bmp").stat().st_size
    image_folder(folder, {"1.bmp": picture(colour=2)})
    assert (folder / "1.bmp").stat().st_size == size
    assert load(folder).images.max() == 2


def test_a_long_or_odd_name_fits_into_the_cache(load, tmp_path):
    np.savez(file := tmp_path / ("ü x[*]\n" + "y" * 200 + ".npz"), images=np.zeros((2, 4, 4), np.uint8))
    for _ in range(2):
        assert len(load(file)) == 2
    assert re.fullmatch(r"[\w.-]{1,110}", cached(tmp_path).name)


# --- mistakes


def test_a_stray_picture_beside_class_folders_is_named(load, tmp_path, capsys):
    files = {f"{kind}/{number}.png": picture() for kind in "ab" for number in range(3)}
    folder = image_folder(tmp_path / "set", files | {"cover.png": picture()})
    for _ in range(2):
        loaded = load(folder)
        assert loaded.labels is None
        said = r"1 of 7 images are outside the class folders \(such as cover\.png\), so `datasets` drops"
        assert re.search(said, capsys.readouterr().err)
    with pytest.raises(UserError, match=said):
        loaded.require_labels()
    load(image_folder(tmp_path / "plain", {"1.png": picture(), "x/2.png": picture(), "x/3.png": picture()}))
    assert "hfgen:" not in capsys.readouterr().err, "one folder within another makes no classes"


def test_folders_of_splits_without_class_folders_have_no_labels(load, tmp_path, capsys):
    files = {f"train/{number}.png": picture(colour=number) for number in range(3)} | {"test/1.png": picture(colour=9)}
    folder = image_folder(tmp_path / "set", files)
    for split, colours in {"train": [0, 1, 2], "test": [9]}.items():
        loaded = load(folder, split=split)
        assert loaded.labels is None
        assert loaded.images[:, 0, 0, 0].tolist() == colours
    assert len(load(folder, validation_fraction=0.4)) == 2
    assert "class" not in capsys.readouterr().err
    with pytest.raises(UserError, match="test and train are splits.* one sub-folder per class, as in train/cat/1.png"):
        loaded.require_labels()
    with pytest.raises(UserError, match="row 0 of .* has no label in column label"):
        load(folder, label_column="label")


def test_images_that_are_in_no_split_are_counted(load, tmp_path, capsys):
    names = ("ok", "train", "two\nlines", "__old", ".hidden")
    load(image_folder(tmp_path / "set", {f"{name}/{number}.png": picture() for name in names for number in range(2)}))
    assert "only 2 of the 8 images in the folder are read" in capsys.readouterr().err
    load(
        image_folder(
            tmp_path / "splits", {f"{name}/{kind}/1.png": picture() for name in ("train", "test") for kind in "ab"}
        )
    )
    assert "hfgen:" not in capsys.readouterr().err


def test_whole_numbers_that_are_no_class_labels_are_mentioned(load, save_parquet):
    features = datasets.Features({"png": datasets.Image(), "cls": datasets.Value("int64")})
    loaded = load(save_parquet({"png": [picture()], "cls": [3]}, features))
    with pytest.raises(UserError, match=r"column cls contains integers.*cast_column\('cls', ClassLabel"):
        loaded.require_labels()
    two = datasets.Features({name: datasets.ClassLabel(num_classes=2) for name in "ab"} | {"png": datasets.Image()})
    loaded = load(save_parquet({"png": [picture()], "a": [0], "b": [1]}, two))
    with pytest.raises(UserError, match="name one of its columns a, b with --label_column"):
        loaded.require_labels()


@pytest.mark.parametrize("label", [-1, 2, 10**9])
def test_labels_that_are_no_class_are_named(load, tmp_path, label):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    picture().save(content := io.BytesIO(), format="PNG")
    rows = {"image": [{"bytes": content.getvalue(), "path": None}] * 3, "label": [0, 1, label]}
    folder = save_table(tmp_path / "set", rows, features)
    with pytest.raises(UserError, match=f"row 2 of .* has the label {label} in column label.* only 2 classes"):
        load(folder)


def test_damaged_files_of_any_format_are_named(load, tmp_path):
    """Pillow's reader of AVIF raises RuntimeError, others what they like."""
    image_folder(tmp_path / "set", {"1.png": picture(size=(40, 40))})
    noise = PIL.Image.fromarray(np.random.default_rng(0).integers(256, size=(40, 40), dtype=np.uint8))
    for kind in ("avif", "webp", "tiff", "jpeg2000", "blp"):
        (noise.convert("P") if kind == "blp" else noise).save(written := io.BytesIO(), format=kind)
        content = written.getvalue()
        damaged = content[: len(content) // 2]
        if kind == "avif":
            damaged = next(damaged for damaged in flipped(content) if fails(damaged, RuntimeError))
        (tmp_path / "set" / "2.png").write_bytes(damaged)
        with pytest.raises(UserError, match=r"2\.png of .* cannot be read as an image"):
            load(tmp_path / "set")
        assert len(load(tmp_path / "set", on_bad_image="skip")) == 1


def flipped(content):
    """Yield a file with each of its bytes changed."""
    for place in range(len(content)):
        yield content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :]


def fails(content, error):
    """Tell whether Pillow raises this error for a file."""
    try:
        PIL.Image.open(io.BytesIO(content)).load()
    except Exception as found:
        return type(found) is error
    return False


def test_what_datasets_cannot_open_is_named(load, tmp_path):
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "script.py").write_text("raise SystemExit('was run')")
    with pytest.raises(UserError, match="cannot open split train .*scripts are no longer supported"):
        load(tmp_path / "script")
    for name in ("[x]", "**", "a?"):
        with pytest.raises(UserError, match=r"as a pattern; rename the folder"):
            load(image_folder(tmp_path / name, {"1.png": picture()}))
    for source in ("", " ", "~nouser/x"):
        with pytest.raises(UserError, match=f"there is no data set {source or '“”'}"):
            load(source)


def test_a_data_folder_that_is_not_there_is_named(load, monkeypatch, tmp_path):
    monkeypatch.setenv("HFGEN_DATA_DIR", str(tmp_path / "nonexistent"))
    with pytest.raises(UserError, match="HFGEN_DATA_DIR is set to .*nonexistent, which is not a folder"):
        load("mnist")


def test_a_data_folder_without_the_data_set_is_named(load, monkeypatch, tmp_path):
    monkeypatch.setenv("HFGEN_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=rf"HFGEN_DATA_DIR, {tmp_path}, has no folder cifar10"):
        load("cifar10")


def test_arrays_that_no_images_can_be_made_of_are_refused(load, tmp_path, monkeypatch):
    def save(**arrays):
        np.savez_compressed(tmp_path / "a.npz", **arrays)
        return tmp_path / "a.npz"

    images = np.zeros((3, 4, 4), np.uint8)
    for shape in ((0, 4, 4), (3, 0, 4), (3, 4, 0), (3, 4, 4, 1)):
        with pytest.raises(UserError, match="no images in its split|must have an array images"):
            load(save(images=np.zeros(shape, np.uint8)))
    with pytest.raises(UserError, match="labels of .* must be below 100,000 without label_names"):
        load(save(images=images, labels=np.array([0, 1, 10**12])))
    bomb = save(images=np.zeros((1000, 100, 100), np.uint8))
    monkeypatch.setattr(sources, "_memory", lambda: 39_000_000)
    with pytest.raises(UserError, match=r"declares 0\.0 GB of arrays, too much for this machine's memory"):
        load(bomb)
    monkeypatch.undo()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**14, 4, 4)})
    with zipfile.ZipFile(tmp_path / "lie.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue() + b"few")
    with pytest.raises(UserError, match="cannot be read as an .npz file of plain arrays"):
        load(tmp_path / "lie.npz")


def test_one_image_is_mentioned(tmp_path, capsys):
    folder = image_folder(tmp_path / "set", {"1.png": picture(size=(8, 8))})
    run = TINY | {"dataset_name": None, "train_data_dir": str(folder), "max_train_steps": 1, "sample_steps": [5]}
    train(DDPMConfig(**run, output_dir=str(tmp_path / "run")), DiffusionTask)
    assert "has only one image; a model can only reproduce it" in capsys.readouterr().err
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["train_data_dir"] == str(folder)


def test_a_picture_may_be_named_from_the_folder_that_it_is_in(load, tmp_path, monkeypatch):
    picture(size=(8, 8)).save(tmp_path / "one.png")
    monkeypatch.chdir(tmp_path)
    assert len(load("one.png")) == 1
