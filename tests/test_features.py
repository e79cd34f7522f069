"""Features of vision models of transformers and of Inception: what is measured, named and refused with them."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from conftest import TINY, flags
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel

from hfgen.cli.main import main
from hfgen.config import DDPMConfig
from hfgen.config.commands import CompareSamplersConfig, EvaluateConfig
from hfgen.config.parser import parse_config
from hfgen.data.images import load_images
from hfgen.evaluation.evaluate import evaluate
from hfgen.evaluation.report import render_report
from hfgen.evaluation.results import results_page
from hfgen.figures.grids import save_images
from hfgen.judges import pretrained
from hfgen.judges.judge import JUDGES, load_judge
from hfgen.judges.pretrained import load_features, load_inception_extractor
from hfgen.judges.statistics import RealStatistics
from hfgen.metrics.inception_scores.inception_scores import inception_scores
from hfgen.publishing import card
from hfgen.utils.errors import UserError
from hfgen.utils.markdown import number, with_std

SPLITS = {"reference_split": "train[:50%]", "train_split": "train[50%:]"}
MEASURES = ["frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage"]
VISION = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16} | {
    "vocab_size": 9, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SQUARE = {"size": {"height": 28, "width": 28}}


def save_model(folder: Path, family: str, processor: str, kind: str = "Model", size=SQUARE, **fields) -> Path:
    """Save a tiny model of transformers with random weights, and its image processor."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}{kind}")(getattr(transformers, f"{family}Config")(**fields))
    model.save_pretrained(folder)
    getattr(transformers, f"{processor}ImageProcessorPil")(**size).save_pretrained(folder)
    return folder


@pytest.fixture
def bare_file(tmp_path):
    """Digits without labels."""
    np.savez(tmp_path / "bare.npz", images=load_images("digits").images[:, 0].numpy())
    return tmp_path / "bare.npz"


@pytest.fixture
def fields(bare_file, tmp_path):
    """An evaluation of digits among digits, none of them labelled."""
    np.savez(tmp_path / "given.npz", images=load_images("digits", split="train[50%:]").images[:60, 0].numpy())
    places = {"output_dir": str(tmp_path / "report"), "cache_dir": str(tmp_path / "cache")}
    return {"images": str(tmp_path / "given.npz"), "dataset_name": str(bare_file), **places, **SPLITS}


def change(file: Path, **fields) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


# --- extractors


def test_features_are_the_pooled_output_for_whole_resized_images(vision_model, monkeypatch):
    colors = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    extractor = load_features(str(vision_model))
    processor = AutoImageProcessor.from_pretrained(vision_model)
    model = AutoModel.from_pretrained(vision_model).eval()
    for images in (colors, colors[:, :1]):
        pictures = [PIL.Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).numpy()) for image in images]
        inputs = processor(pictures, do_center_crop=False, return_tensors="pt", **SQUARE).pixel_values
        assert torch.allclose(extractor.normalize(images), inputs, atol=0.02), "up to one grey level"
        features, logits = extractor.extract(images)
        assert torch.allclose(features, model(inputs).pooler_output, atol=0.05)
        assert logits is None
        assert features.shape == (6, extractor.num_features)
    monkeypatch.setattr(pretrained, "PIXELS_AT_A_TIME", 2 * 28 * 28)
    sizes = []
    monkeypatch.setattr(extractor, "normalize", lambda batch: (sizes.append(len(batch)), inputs[: len(batch)])[1])
    extractor.extract(colors)
    assert sizes == [2, 2, 2]


def test_what_the_features_of_other_kinds_of_models_are(tmp_path):
    images = load_images("digits").images[:4]
    saved = save_model(tmp_path / "classifier", "ViT", "ViT", "ForImageClassification", **VISION)
    extractor = load_features(str(saved))
    tokens = transformers.ViTForImageClassification.from_pretrained(saved).eval().vit(extractor.normalize(images))
    assert torch.allclose(extractor.extract(images)[0], tokens.last_hidden_state[:, 0], atol=1e-5), "untrained pooler"
    saved = save_model(
        tmp_path / "clip", "CLIP", "CLIP", size=SQUARE | {"crop_size": SQUARE["size"]},
        vision_config=VISION, text_config=TEXT, projection_dim=8,
    )  # fmt: skip
    extractor = load_features(str(saved))
    embeds = AutoModel.from_pretrained(saved).eval().get_image_features(extractor.normalize(images)).pooler_output
    assert torch.allclose(extractor.extract(images)[0], embeds, atol=1e-5)
    convolutional = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"}
    extractor = load_features(str(save_model(tmp_path / "resnet", "ResNet", "ConvNext", **convolutional)))
    assert extractor.extract(images)[0].shape == (4, 12)


def test_features_are_identified_by_weights_and_inputs(vision_model, tmp_path):
    shutil.copytree(vision_model, tmp_path / "copy")
    first, copy = (load_features(str(folder)).sha256 for folder in (vision_model, tmp_path / "copy"))
    change(tmp_path / "copy" / "preprocessor_config.json", image_std=[1, 1, 1])
    resized = load_features(str(tmp_path / "copy"))
    tensors = load_file(tmp_path / "copy" / "model.safetensors")
    save_file({name: 2 * value for name, value in tensors.items()}, tmp_path / "copy" / "model.safetensors")
    assert first == copy
    assert len({first, resized.sha256, load_features(str(tmp_path / "copy")).sha256}) == 3


@pytest.mark.parametrize(
    ("file", "entries", "message"),
    [
        ("config.json", {"auto_map": {"AutoModel": "evil.Model"}}, "has auto_map, which is not allowed"),
        ("config.json", {"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000, but hfgen allows"),
        ("config.json", {"hidden_size": "x"}, "cannot load .*dinov2"),
        ("config.json", {"num_hidden_layers": 2}, "its weights lack encoder.layer.1"),
        ("config.json", {"model_type": "nope"}, "cannot load .*dinov2"),
        ("config.json", {"num_channels": 1}, "cannot load .*dinov2"),
        ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": "evil.P"}}, "has auto_map"),
        ("preprocessor_config.json", {"size": {"longest_edge": 5}, "do_center_crop": False}, "image processor of"),
        ("preprocessor_config.json", {"crop_size": {"height": 9999, "width": 9}}, "image processor of .* 9999"),
        ("preprocessor_config.json", {"resample": 1}, "uses the filter LANCZOS, which hfgen does not know"),
        ("preprocessor_config.json", {"image_mean": "x"}, "cannot use the image processor of"),
    ],
)
def test_a_model_that_is_not_safe_or_not_whole_is_refused(vision_model, tmp_path, monkeypatch, file, entries, message):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked a question"))
    folder = tmp_path / "dinov2"
    shutil.copytree(vision_model, folder)
    change(folder / file, **entries)
    with pytest.raises(UserError, match=message):
        load_features(str(folder))


def test_what_is_no_vision_model_is_refused(vision_model, tmp_path):
    text = save_model(tmp_path / "text", "Bert", "ViT", **{k: v for k, v in TEXT.items() if not k.endswith("_id")})
    masked = save_model(tmp_path / "masked", "ViTMAE", "ViT", **VISION)
    flipped = save_model(tmp_path / "flipped", "ViT", "MobileViT", size={"size": {"shortest_edge": 28}}, **VISION)
    pickled = tmp_path / "pickled"
    shutil.copytree(vision_model, pickled)
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    (tmp_path / "empty").mkdir()
    for name, message in {
        str(text): "is a BertModel, which takes no images",
        str(masked): "features of the same images differ from call to call",
        str(flipped): "uses do_flip_channel_order, which hfgen does not know",
        str(pickled): "it has no model.safetensors",
        str(tmp_path / "empty"): "cannot read .*config.json",
        "runs/nope": "there is no folder runs/nope, and as a Hub id it could not be downloaded",
        "no such/thing/": "there is no folder no such/thing/, and it is not a valid Hub id",
    }.items():
        with pytest.raises(UserError, match=message):
            load_features(name)


def test_inception_as_an_extractor_gives_fid_kid_and_its_score(small_inception, tmp_path, monkeypatch):
    monkeypatch.setattr("hfgen.metrics.inception_scores.inception_scores.MINIMUM", 100)
    test, train = (load_images("digits", split=split) for split in ("train[:50%]", "train[50%:]"))
    extractor = load_inception_extractor()
    images = train.images[:300]
    features, logits = extractor.extract(images)
    assert logits is None
    found = RealStatistics(extractor, test, train, tmp_path).measures(features)
    expected = inception_scores(images, test.images, subset_size=300)
    assert found["frechet_distance"]["value"] == pytest.approx(expected["fid"], rel=1e-3)
    assert found["kernel_distance"]["value"] == pytest.approx(expected["kid"], abs=3 * expected["kid_std"])
    score = extractor.score(features)
    assert score == {"value": expected["inception_score"], "std": expected["inception_score_std"]}


def test_without_torch_fidelity_inception_says_what_to_install(monkeypatch):
    monkeypatch.setattr("torchmetrics.image.fid._TORCH_FIDELITY_AVAILABLE", False)
    with pytest.raises(UserError, match="pip install torch-fidelity"):
        load_inception_extractor()


# --- evaluations


def test_images_without_labels_are_measured_in_features_alone(vision_model, fields, tmp_path, capsys):
    record = json.loads(evaluate(EvaluateConfig(features=[str(vision_model)], **fields)).read_text())
    assert list(record["measures"]) == ["dinov2-small"]
    found, floors = record["measures"]["dinov2-small"], record["floors"]["dinov2-small"]
    assert list(found) == MEASURES
    assert all(found[name]["std"] > 0 for name in MEASURES if name != "recall")
    assert set(floors) == {"train_against_test", "half_against_half"}
    assert found["frechet_distance"]["value"] < 10 * floors["train_against_test"]["frechet_distance"]
    assert record["memorization"]["dinov2-small"]["generated"]["nearer_to_training"] == 1, "training images"
    assert (record["classes"], record["conditional"], record["judge_accuracy"]) == ({}, {}, {})
    extractor = load_features(str(vision_model))
    assert record["protocol"]["judges"] == {}
    assert record["protocol"]["features"] == {"dinov2-small": {
        "network": "Dinov2Model", "num_features": 16, "sha256": extractor.sha256, "resized_to": [28, 28],
        "filter": "bicubic",
    }}  # fmt: skip
    assert "there is no judge (classifier of these images), so class frequencies" in capsys.readouterr().err
    page = (tmp_path / "report" / "evaluation.md").read_text()
    assert "### Features of `dinov2-small`\n" in page
    assert (
        "`dinov2-small` is a Dinov2Model with 16 features, trained elsewhere; images are resized to 28×28 pixels"
        in page
    )
    assert "so the values are not FID or KID. ±" in page
    assert "There is no judge, a classifier trained on the same data, so class frequencies" in page
    assert "A judge is" not in page
    pictures = re.findall(r"\]\(([^)]+\.png)\)", page)
    assert "evaluation/measures.png" in pictures
    assert "evaluation/classes.png" not in pictures
    assert all((tmp_path / "report" / picture).exists() for picture in pictures)
    row = f"| {with_std(found['frechet_distance'])} |"
    assert f"| Fréchet distance {row}" in page
    table = results_page([tmp_path / "report"], tmp_path)
    assert "Fréchet distance, `dinov2-small` |" in table
    assert row in table
    published = render_report("card_quality.md", evaluation=record | {"protocol": record["protocol"] | {"seed": 0}})
    assert "Images are compared in the 16 features of `dinov2-small`, a network trained elsewhere" in published
    assert str(tmp_path) not in page + json.dumps(record)


def test_judge_features_and_inception_stand_side_by_side(
    judge_run, vision_model, small_inception, fields, tmp_path, capsys
):
    fields |= {"dataset_name": "digits", "judge": [str(judge_run)], "features": [str(vision_model)]}
    record = json.loads(evaluate(EvaluateConfig(**fields, inception=True)).read_text())
    assert list(record["measures"]) == ["digits_judge", "dinov2-small", "Inception"]
    assert all(list(found) == MEASURES for found in record["measures"].values())
    assert set(record["floors"]) == set(record["memorization"]) == set(record["measures"])
    assert list(record["classes"]) == list(record["judge_accuracy"]) == ["digits_judge"]
    assert list(record["protocol"]["judges"]) == ["digits_judge"]
    assert list(record["protocol"]["features"]) == ["dinov2-small", "Inception"]
    assert "left out" not in capsys.readouterr().err
    page = (tmp_path / "report" / "evaluation.md").read_text()
    fid = with_std(record["measures"]["Inception"]["frechet_distance"])
    assert page.count("(FID)") == page.count("(KID)") == 1
    assert page.index("### Features of `Inception`") < page.index(f"| Fréchet distance (FID) | {fid} |")
    assert "Only the distances in the features of Inception are FID and KID. Values in different features" in page
    score = record["inception_score"]
    assert f"Inception Score {with_std(score['generated'])}, of the real images {with_std(score['real'])};" in page
    names = [
        result.metric_name
        for result in card._results(card.Model("generate", "", card="", library="", task="", tags=()), record)
    ]
    assert names[0] == "Fréchet distance (judge digits_judge)"
    assert "Fréchet distance (features dinov2-small)" in names
    assert "Fréchet distance (FID) (features Inception)" in names


def test_records_of_earlier_versions_with_inception_scores_are_shown(judge_run, fields, tmp_path):
    fields |= {"dataset_name": "digits", "judge": [str(judge_run)]}
    record = json.loads(evaluate(EvaluateConfig(**fields)).read_text())
    del record["protocol"]["features"]
    record["inception"] = {"fid": 12.345, "kid": 0.5, "kid_std": 0.1, "inception_score": 3, "inception_score_std": 1}
    page = render_report("evaluation.md", record=record, classes={}, chance_is_known=True)
    assert "FID 12.3, KID 0.5 ± 0.1" in page


def test_with_fewer_images_than_features_all_but_the_frechet_distance_is_measured(tmp_path, fields, capsys):
    wide = save_model(tmp_path / "wide", "ViT", "ViT", **VISION | {"hidden_size": 64})
    record = json.loads(evaluate(EvaluateConfig(features=[str(wide)], **fields)).read_text())
    assert list(record["measures"]["wide"]) == MEASURES[1:]
    assert "frechet_distance" not in record["floors"]["wide"]["train_against_test"]
    said = "64 features of wide needs more than 64 generated and real images each; with 60 and 898 it is left out"
    assert said in capsys.readouterr().err
    page = (tmp_path / "report" / "evaluation.md").read_text()
    assert (
        "The Fréchet distance needs more images than features (64), both generated and real, and is left out." in page
    )
    assert "| Fréchet distance |" not in page
    assert "| kernel distance |" in page
    assert number(record["measures"]["wide"]["precision"]["value"]) in results_page([tmp_path / "report"], tmp_path)
    published = render_report("card_quality.md", evaluation=record | {"protocol": record["protocol"] | {"seed": 0}})
    assert "| kernel distance |" in published
    assert "Fréchet distance" not in published


def test_with_few_images_inception_measures_all_but_fid(small_inception, fields, tmp_path, capsys):
    record = json.loads(evaluate(EvaluateConfig(inception=True, num_images=6, **fields)).read_text())
    assert list(record["measures"]["Inception"]) == MEASURES[1:]
    assert "in the 6 features of Inception needs more than 6 generated and real images each" in capsys.readouterr().err
    page = (tmp_path / "report" / "evaluation.md").read_text()
    assert "| kernel distance (KID) |" in page
    assert "FID)" not in page


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"num_images": 5}, "an evaluation needs more than 5 images; images: 5"),
        ({"reference_split": "train[:4]"}, "an evaluation needs more than 5 images; reference images: 4"),
        ({"features": ["nope/nope"]}, "there is no folder nope/nope"),
        ({"classification_accuracy_score": True}, "the classification accuracy score needs a judge"),
    ],
)
def test_what_features_cannot_measure_is_refused_before_any_work(vision_model, fields, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        evaluate(EvaluateConfig(**{"features": [str(vision_model)]} | fields | more))
    assert not (tmp_path / "report").exists()


def test_features_of_equal_names_are_refused(vision_model, fields, tmp_path):
    shutil.copytree(vision_model, tmp_path / "other" / vision_model.name)
    both = [str(vision_model), str(tmp_path / "other" / vision_model.name)]
    with pytest.raises(UserError, match="must differ in the names of their folders: dinov2-small, dinov2-small"):
        evaluate(EvaluateConfig(features=both, **fields))


def test_a_classifier_and_an_image_to_image_model_have_no_features(judge_run, translation_run, vision_model):
    for run in (judge_run, translation_run):
        with pytest.raises(UserError, match="only its"):
            evaluate(EvaluateConfig(run_or_repo=str(run), features=[str(vision_model)]))


def test_samplers_are_compared_in_features(conditional_run, vision_model, judge_run, tmp_path):
    run = str(conditional_run("v_prediction"))
    output = ["--output_dir", str(tmp_path / "report"), "--scheduler", "ddim", "--num_inference_steps", "2", "3"]
    splits = flags(**SPLITS, judge=[str(judge_run)], num_images=40)
    assert main(["compare-samplers", run, *output, *splits, "--features", str(vision_model)]) == 0
    record = json.loads((tmp_path / "report" / "comparison.json").read_text())
    assert (record["protocol"]["judge"], list(record["protocol"]["features"])) == ("digits_judge", ["dinov2-small"])
    extractor = load_features(str(vision_model))
    files = sorted((tmp_path / "report").glob("comparison/images-*/*.npy"))
    drawn = [torch.from_numpy(np.load(file)) for file in files]
    statistics = RealStatistics(
        extractor, *(load_images("digits", split=split) for split in SPLITS.values()), tmp_path / "cache"
    )
    distances = {statistics.measures(extractor.extract(images)[0])["frechet_distance"]["value"] for images in drawn}
    assert {row["frechet_distance"]["value"] for row in record["settings"]} == distances
    assert all(0 <= row["accuracy"] <= 1 for row in record["settings"]), "by the judge"
    page = (tmp_path / "report" / "comparison.md").read_text()
    assert "Images are compared in the 16 features of `dinov2-small`" in page
    assert "Class accuracy is that of the judge `digits_judge`" in page
    with pytest.raises(UserError, match="settings are compared in one feature space; name one of a, --inception"):
        CompareSamplersConfig(runs=["x"], features=["a"], inception=True)
    with pytest.raises(UserError, match="settings are compared by one judge; name one of a, b"):
        CompareSamplersConfig(runs=["x"], judge=["a", "b"])


def test_samplers_need_more_images_than_features(conditional_run, bare_file, tmp_path, capsys):
    wide = save_model(tmp_path / "wide", "ViT", "ViT", **VISION | {"hidden_size": 64})
    options = flags(**SPLITS, dataset_name=str(bare_file), num_images=40, output_dir=str(tmp_path / "report"))
    assert main(["compare-samplers", str(conditional_run("v_prediction")), *options, "--features", str(wide)]) == 2
    assert (
        "in the 64 features of wide needs more than 64 generated, training and test images each, not 40"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "report").exists()


# --- what is at hand


def test_without_labels_the_flag_that_is_suggested_works(vision_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_images(load_images("digits", max_samples=300).images, Path("own pictures"))
    fields = {name: value for name, value in TINY.items() if name != "dataset_name"}
    fields |= {"train_data_dir": "own pictures", "test_fraction": 0.2, "output_dir": "runs/own", "max_train_steps": 1}
    assert main(["train", "ddpm", *flags(**fields)]) == 0
    for command in (
        ["evaluate", "runs/own", "--num_images", "60", "--num_inference_steps", "2"],
        ["compare-samplers", "runs/own", "--num_images", "60", "--num_inference_steps", "2", "--scheduler", "ddim"],
    ):
        assert main(command) == 2
        message = capsys.readouterr().err
        assert "needs class labels, but own pictures has none" in message.replace(str(tmp_path) + "/", "")
        flag = re.search(r"Repeat this command with (.*)$", message)[1]
        assert flag == "--features facebook/dinov2-small"
        shutil.copytree(vision_model, "facebook/dinov2-small", dirs_exist_ok=True)  # instead of the Hub
        assert main([*command, *shlex.split(flag)]) == 0


def test_the_judge_of_the_digits_is_at_hand_and_was_tested_on_what_the_quickstart_holds_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = parse_config(DDPMConfig, ["--config", "ddpm_digits_quickstart"], prog="")
    test = load_images("digits", split="test", test_fraction=config.test_fraction)
    record = json.loads((JUDGES / "digits" / "evaluation.json").read_text())
    assert record["protocol"]["reference_sha256"] == test.fingerprint
    right = (load_judge("digits").extract(test.images)[1].argmax(1) == test.labels).double().mean().item()
    assert right == pytest.approx(record["accuracy"])
    assert right > 0.98
    quick = flags(
        max_train_steps=1, num_samples=1, num_inference_steps=1, mixed_precision="no", output_dir="runs/digits"
    )
    assert main(["train", "ddpm", "--config", "ddpm_digits_quickstart", *quick]) == 0
    assert main(["evaluate", "runs/digits", "--num_images", "80"]) == 0
    found = json.loads(Path("runs/digits/evaluation.json").read_text())
    assert list(found["measures"]) == ["digits"]
    assert set(found["floors"]["digits"]) == {"train_against_test", "half_against_half"}
    assert found["protocol"]["reference_images_in_training"] == 0
    assert found["judge_accuracy"]["digits"]["accuracy"] == pytest.approx(record["accuracy"])


def test_a_shipped_judge_of_another_size_is_not_at_hand_and_the_command_trains_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fields = TINY | {"resolution": 12, "test_fraction": 0.2, "output_dir": "runs/large", "max_train_steps": 1}
    assert main(["train", "ddpm", *flags(**fields)]) == 0
    assert main(["evaluate", "runs/large", "--num_images", "60"]) == 2
    message = capsys.readouterr().err
    assert "hfgen ships no judge for digits of 12×12 pixels in 1 channel. Train one: hfgen train classifier" in message
    assert "--dataset_name digits --resolution 12" in message
