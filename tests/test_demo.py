"""`hfgen demo`: what the page is made of, and refusals. tests/browser has what it does in a browser."""

import base64
import gzip
import json
import re
import shutil
from pathlib import Path

import onnxruntime
import pytest
from conftest import stand_in_runtime

import hfgen
from hfgen.cli.main import main
from hfgen.runtimes import site
from hfgen.runtimes.site import CDN, MARK, RUNTIME_PARTS, RUNTIME_SCRIPT, VERSION
from hfgen.utils.errors import UserError


@pytest.fixture
def runtime(tmp_path) -> Path:
    """A folder with stand-ins for the files of onnxruntime-web."""
    stand_in_runtime(tmp_path)
    return tmp_path / "hfgen" / f"onnxruntime-web-{VERSION}"


def facts_of(page: Path) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="site">(.*?)</script>', page.read_text(), re.DOTALL)
    return json.loads(text)


def unpacked(script: Path) -> bytes:
    name, text = re.fullmatch(r'demoFile\("([^"]+)", "([^"]+)"\);\n', script.read_text()).groups()
    assert name == script.name
    return gzip.decompress(base64.b64decode(text))


def test_a_page_has_its_models_and_the_runtime(gan_run, conditional_run, runtime, tmp_path):
    runs = gan_run, conditional_run("flow_prediction")
    page = hfgen.demo(
        *runs, output=tmp_path / "site", runtime=str(runtime), scheduler="flow_euler", title="<Digits> & all"
    )
    assert "<title>&lt;Digits&gt; &amp; all</title>" in page.read_text()
    found = facts_of(page)
    assert [model["name"] for model in found["models"]] == [run.name for run in runs]
    assert [model["scheduler"] for model in found["models"] if model["use"] == "denoise"] == ["flow_euler"]
    for model in found["models"]:
        for part in model["files"].values():
            session = onnxruntime.InferenceSession(unpacked(page.parent / "files" / part["file"]))
            assert {each.name for each in session.get_inputs()} == part["inputs"].keys()
        sizes = [(page.parent / "files" / part["file"]).stat().st_size for part in model["files"].values()]
        assert model["bytes"] == sum(sizes)
    assert (page.parent / RUNTIME_SCRIPT).read_text() == RUNTIME_SCRIPT
    for name in RUNTIME_PARTS:
        assert unpacked(page.parent / "files" / f"{name}.js").decode() == name
    assert str(tmp_path) not in page.read_text(), "folders of this machine are not told"


def test_a_page_is_replaced_and_nothing_else(gan_run, runtime, tmp_path, capsys):
    options = {"output": tmp_path / "site", "runtime": str(runtime)}
    hfgen.demo(gan_run, shutil.copytree(gan_run, tmp_path / "other"), **options)
    page = hfgen.demo(gan_run, **options)
    assert f"replaces the page in {tmp_path / 'site'}" in capsys.readouterr().err
    assert not [file.name for file in (page.parent / "files").iterdir() if "other" in file.name]
    page.write_text("another page")
    with pytest.raises(UserError, match="is not empty and holds no page of hfgen demo"):
        hfgen.demo(gan_run, **options)
    assert page.read_text() == "another page"


def test_a_page_may_load_the_runtime_from_a_cdn(gan_run, tmp_path):
    page = hfgen.demo(gan_run, output=tmp_path / "site", runtime="cdn")
    assert f'<script src="{CDN}{RUNTIME_SCRIPT}"></script>' in page.read_text()
    assert MARK in page.read_text()
    assert not (page.parent / RUNTIME_SCRIPT).exists()


def test_models_of_the_same_name_are_refused(gan_run, runtime, tmp_path):
    for place in ("a b", "c/a_b"):
        shutil.copytree(gan_run, tmp_path / place)
    with pytest.raises(UserError, match="two of the models are named a b"):
        hfgen.demo(tmp_path / "a b", tmp_path / "c" / "a_b", output=tmp_path / "site", runtime=str(runtime))
    assert not (tmp_path / "site").exists()


def test_a_missing_runtime_is_explained(gan_run, runtime, tmp_path, monkeypatch, capsys):
    (runtime / RUNTIME_SCRIPT).unlink()
    assert main(["demo", str(gan_run), "--output", str(tmp_path / "site"), "--runtime", str(runtime)]) == 2
    assert f"{runtime} has no {RUNTIME_SCRIPT}" in capsys.readouterr().err
    monkeypatch.setattr(site, "cache_folder", lambda folder: tmp_path / "empty")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="with the program npm, which is missing; install it, or"):
        hfgen.demo(gan_run, output=tmp_path / "site")
    (tmp_path / "npm").write_text("#!/bin/sh\necho 'npm error: no network' >&2\nexit 1\n")
    (tmp_path / "npm").chmod(0o755)
    with pytest.raises(UserError, match=r"npm could not download onnxruntime-web@.* \(npm error: no network\)"):
        hfgen.demo(gan_run, output=tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_npm_downloads_the_runtime_once(gan_run, tmp_path, monkeypatch, capsys):
    package = tmp_path / "package" / "dist"
    package.mkdir(parents=True)
    for name in (RUNTIME_SCRIPT, *RUNTIME_PARTS):
        (package / name).write_text(f"of npm: {name}")
    (tmp_path / "npm").write_text(f"#!/bin/sh\n[ \"$1 $2\" = \"pack onnxruntime-web@{VERSION}\" ] && "
                                  f"/bin/tar czf x.tgz -C {tmp_path} package\n")  # fmt: skip
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setattr(site, "cache_folder", lambda folder: tmp_path / "cache")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for number in range(2):
        page = hfgen.demo(gan_run, output=tmp_path / f"site{number}")
        assert ("Downloading" in capsys.readouterr().out) == (number == 0)
        assert (page.parent / RUNTIME_SCRIPT).read_text() == f"of npm: {RUNTIME_SCRIPT}"


def test_an_evaluation_is_shown(gan_run, runtime, tmp_path):
    run = shutil.copytree(gan_run, tmp_path / "run")
    assert facts_of(hfgen.demo(run, output=tmp_path / "site", runtime=str(runtime)))["models"][0]["quality"] == ""
    page = hfgen.demo("gan_conditional_mnist_cpu10min", output=tmp_path / "site", runtime=str(runtime))
    (model,) = facts_of(page)["models"]
    assert re.fullmatch(r"Fréchet distance 0\.0\d+ ± 0\.\d+ \(real images 0\.0109\)", model["quality"])
    assert model["source"] == "gan_conditional_mnist_cpu10min"


def test_dimensions_are_ordered_by_what_they_change(vae_run):
    pipeline = hfgen.load(vae_run)
    pipeline.vae.from_latents[0].weight.data[:, 2] *= 100
    pipeline.vae.from_latents[0].weight.data[:, 0] = 0
    order = site.dimensions_of(pipeline)
    assert (order[0], order[-1]) == (2, 0)
