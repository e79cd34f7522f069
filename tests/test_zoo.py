"""The zoo: models of the recipes, with their weights, in the checkout."""

import json
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import load_file

import hfgen
from hfgen.cli.main import main
from hfgen.judges.judge import load_judge
from hfgen.pipelines import loading
from hfgen.pipelines.loading import INDEX, ZOO, load
from hfgen.runs.folder import run_fields
from hfgen.sampling.sample import default_sampler, is_conditional, sample
from hfgen.utils.errors import UserError

MODELS = sorted(path.parent.name for path in ZOO.glob(f"*/{INDEX}"))
DRAWING = [name for name in MODELS if not name.startswith("translation")]  # the others are given images
ONE_OF_EACH = {str(json.loads((ZOO / name / INDEX).read_text())["_class_name"]): name for name in DRAWING}.values()
MOST_BYTES, MOST_BYTES_OF_ALL = 4e6, 60e6


def test_the_zoo_is_in_the_checkout_and_small():
    assert ZOO == REPOSITORY / "model_cards"
    listed = re.search(r"^ZOO := ((?:.*\\\n)*.*)", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)[1]
    assert sorted(listed.replace("\\", " ").split()) == MODELS
    sizes = {name: sum(file.stat().st_size for file in (ZOO / name).rglob("*.safetensors")) for name in MODELS}
    assert min(sizes.values()) > 0
    assert max(sizes.values()) <= MOST_BYTES, sizes
    assert sum(sizes.values()) <= MOST_BYTES_OF_ALL


@pytest.mark.parametrize("name", MODELS)
def test_the_code_beside_a_model_is_that_of_the_package(name):
    """A model is a complete repository, whose copies would age unseen."""
    for copy in (ZOO / name).rglob("*.py"):
        folder = "models" if copy.name.startswith("modeling") else "pipelines"
        assert copy.read_bytes() == (REPOSITORY / "hfgen" / folder / copy.name).read_bytes(), copy


@pytest.mark.parametrize("name", DRAWING)
def test_a_model_draws_by_its_name_what_a_judge_recognises(name):
    pipeline = load(name)
    (images,) = sample(pipeline, num_images=40, **default_sampler(pipeline, {}))
    judge = load_judge(next(data for data in ("fashion_mnist", "cifar10", "mnist") if data in name))
    _, logits = judge.extract(images)
    if is_conditional(pipeline):
        record = json.loads((ZOO / name / "evaluation.json").read_text())
        measured = next(iter(record["conditional"].values()))["accuracy"]
        assert (logits.argmax(1) == torch.arange(40) % 10).float().mean() > measured - 0.1
    else:
        assert logits.softmax(1).amax(1).mean() > 0.75, "the judges' labels were smoothed to 0.91"
        assert len(logits.argmax(1).unique()) >= 8, "nearly every class is among them"


@pytest.mark.parametrize("name", sorted({*MODELS} - {*DRAWING}))
def test_a_translator_denoises_what_another_model_draws(name):
    source, translator = load("ddpm_conditional_fashion_mnist_cpu10min"), load(name)
    (garments,) = sample(source, num_images=10, **default_sampler(source, {}))
    clean = garments / 255
    noisy = clean + 0.3 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    (cleaned,) = translator(noisy, output_type="pt", return_dict=False)
    assert (cleaned - clean).square().mean() < 0.2 * (noisy - clean).square().mean()


def test_every_model_draws_its_recorded_images_with_diffusers_alone(without_hfgen):
    """Neither the weights nor what diffusers makes of them has changed."""
    recorded = json.loads((REPOSITORY / "tests" / "zoo_images.json").read_text())
    code = (REPOSITORY / "tests" / "zoo_images.py").read_text()
    output = without_hfgen.python(code, str(ZOO))
    found = json.loads(output[output.index("{") :])
    assert found.keys() == recorded.keys() == set(MODELS)
    for name, numbers in found.items():
        assert np.abs(np.subtract(numbers, recorded[name])).max() < 0.01, name


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_code_of_its_card_makes_its_first_images_with_diffusers_alone(name, tmp_path, without_hfgen):
    card = (ZOO / name / "README.md").read_text()
    code = next(block for block in card.split("```python\n") if "generators" in block).split("```")[0]
    assert f'"user/{name}"' in code
    without_hfgen.python(code.replace(f'"user/{name}"', repr(str(ZOO / name))), folder=tmp_path)
    grid = hfgen.sample(name, num_images=4, seed=0)
    for index, image in enumerate(grid):
        with PIL.Image.open(tmp_path / f"sample-{index}.png") as theirs:
            difference = np.asarray(theirs).astype(int) - np.asarray(image)
            assert abs(difference).mean() < 4, "of 255, as one of them is in bfloat16"


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_its_notebook_runs_with_diffusers_alone(name, tmp_path, without_hfgen):
    cells = json.loads((ZOO / name / "notebook.ipynb").read_text())["cells"]
    sources = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
    assert sources[0].startswith('%pip install -q "diffusers>=')
    code = "\n".join(sources[1:]).replace(f'"user/{name}"', repr(str(ZOO / name)))
    without_hfgen.python(code, folder=tmp_path)
    with PIL.Image.open(tmp_path / "image.png") as image:
        assert image.size in ((28, 28), (32, 32))


@pytest.mark.parametrize("name", sorted({*MODELS} - {*DRAWING}))
def test_the_notebook_of_a_translator_takes_the_input_beside_it(name, tmp_path, without_hfgen):
    cells = json.loads((ZOO / name / "notebook.ipynb").read_text())["cells"]
    _, fetch, *others = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
    download = "from huggingface_hub import hf_hub_download"
    assert download in fetch
    code = fetch.replace(download, "import os.path\nhf_hub_download = os.path.join") + "\n" + "\n".join(others)
    without_hfgen.python(code.replace(f'"user/{name}"', repr(str(ZOO / name))), folder=tmp_path)
    pixels = []
    for picture in ("input.png", "output.png"):
        with PIL.Image.open(tmp_path / picture) as image:
            pixels.append(np.asarray(image).astype(float))
    assert pixels[0].shape == pixels[1].shape == (28, 28)
    roughness = [np.abs(np.diff(each)).mean() for each in pixels]
    assert roughness[1] < 0.7 * roughness[0], "without noise"


def test_a_recipe_without_a_model_is_named_with_its_training(tmp_path, monkeypatch, capsys):
    assert main(["sample", "vae_cifar10", "--output", str(tmp_path / "x.png")]) == 2
    assert "has no trained model" in capsys.readouterr().err
    monkeypatch.setattr(loading, "ZOO", tmp_path)
    with pytest.raises(UserError, match="hfgen train ddpm --config ddpm_mnist_clusters_cpu5min"):
        load("ddpm_mnist_clusters_cpu5min")
    with pytest.raises(UserError, match="is a recipe, and revision"):
        load("ddpm_mnist_clusters_cpu5min", revision="main")


def test_a_stock_pipeline_is_drawn_as_its_recipe_says(tmp_path):
    assert run_fields(Path("ddpm_mnist_cpu5min"))["num_inference_steps"] == 15
    assert run_fields(tmp_path) == {}


def test_a_card_does_not_leave_other_weights_beside_it(conditional_run, tmp_path):
    run = conditional_run("flow_prediction")
    hfgen.card(run, gallery=tmp_path, weights="float32")
    with pytest.raises(UserError, match="holds a model; set weights to renew it with its card"):
        hfgen.card(run, gallery=tmp_path)


def test_a_notebook_of_the_author_stays(conditional_run, tmp_path, capsys):
    own = hfgen.card(conditional_run("flow_prediction"), gallery=tmp_path).parent / "notebook.ipynb"
    own.write_text(json.dumps({"cells": [], "metadata": {}}))
    hfgen.card(conditional_run("flow_prediction"), gallery=tmp_path)
    assert json.loads(own.read_text())["cells"] == []
    assert "was not written by hfgen and stays as it is" in capsys.readouterr().out


def test_a_folder_comes_before_a_recipe_of_its_name(conditional_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ddpm_mnist_clusters_cpu5min").symlink_to(conditional_run("v_prediction"))
    assert is_conditional(load("ddpm_mnist_clusters_cpu5min"))


def test_a_gallery_takes_the_model_in_half_precision(conditional_run, tmp_path):
    run = conditional_run("flow_prediction")
    with pytest.raises(UserError, match="weights needs --gallery"):
        hfgen.card(run, weights="float16")
    folder = hfgen.card(run, gallery=tmp_path, weights="float16").parent
    weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert (folder / "pipeline_hfgen_class_conditional_diffusion.py").is_file()
    ours, theirs = (next(sample(load(str(place)), num_images=8, num_inference_steps=4, scheduler="unipc")).int()
                    for place in (run, folder))  # fmt: skip
    assert (ours - theirs).abs().float().mean() < 1
