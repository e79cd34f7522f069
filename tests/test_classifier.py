"""Classifiers: trained by the engine, loaded by transformers alone, refused with a message where they cannot work."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import TINY_JUDGE, flags, train_classifier

from hfgen.cli.main import main
from hfgen.config import ClassifierConfig
from hfgen.config.commands import EvaluateConfig
from hfgen.data.images import load_images
from hfgen.evaluation.evaluate import evaluate
from hfgen.judges.judge import load_judge
from hfgen.utils.errors import UserError


def test_a_classifier_learns_and_its_run_is_complete(judge_run):
    losses = [json.loads(line)["loss/classifier"] for line in (judge_run / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] / 2
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "run.json"} <= {
        path.name for path in judge_run.iterdir()
    }
    assert list((judge_run / "samples").glob("*.png"))


def test_transformers_alone_makes_of_an_image_what_the_judge_does(judge_run, tmp_path, without_hfgen):
    data = load_images("digits", split="train[80%:]")
    logits = load_judge(str(judge_run)).extract(data.images[:50])[1]
    assert (logits.argmax(1) == data.labels[:50]).float().mean() > 0.8
    np.savez(tmp_path / "in.npz", images=data.images[:50, 0].numpy())
    code = (
        "import numpy as np, PIL.Image\n"
        "from transformers import AutoImageProcessor, AutoModelForImageClassification\n"
        f"processor, model = (c.from_pretrained({str(judge_run)!r}) for c in "
        "(AutoImageProcessor, AutoModelForImageClassification))\n"
        f"images = [PIL.Image.fromarray(i) for i in np.load({str(tmp_path / 'in.npz')!r})['images']]\n"
        "logits = model(**processor(images, return_tensors='pt')).logits.detach().numpy()\n"
        f"np.save({str(tmp_path / 'out.npy')!r}, logits)"
    )
    without_hfgen.python(code)
    assert np.allclose(np.load(tmp_path / "out.npy"), logits, atol=1e-4)


def test_the_other_architecture_trains_too(tmp_path):
    run = train_classifier(tmp_path / "run", architecture="regnet", max_train_steps=3, random_erase=3)
    assert load_judge(str(run)).extract(load_images("digits").images[:5])[0].shape == (5, 16)


def test_accuracy_and_card_of_a_classifier(judge_run, tmp_path):
    run = shutil.copytree(judge_run, tmp_path / "judge")
    record = json.loads(evaluate(EvaluateConfig(run_or_repo=str(run))).read_text())
    data = load_images("digits", split="train[80%:]")
    right = load_judge(str(judge_run)).extract(data.images)[1].argmax(1) == data.labels
    assert record["accuracy"] == pytest.approx(right.float().mean().item())
    assert record["accuracy_per_class"][3] == pytest.approx(right[data.labels == 3].float().mean().item())
    assert record["protocol"]["reference_images"] == len(data)
    card = (run / "evaluation.md").read_text()
    assert f"{record['accuracy']:.2%}" in card
    assert record["protocol"]["weights_sha256"] in card


@pytest.mark.parametrize("fields", [{"num_images": 20}, {"judge": ["mnist"]}, {"inception": True}])
def test_only_the_accuracy_of_a_classifier_is_measured(judge_run, fields):
    with pytest.raises(UserError, match="is a classifier; only its accuracy on all test images is measured"):
        evaluate(EvaluateConfig(run_or_repo=str(judge_run), **fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depths": [1]}, "must have the same number of entries, one per stage"),
        ({"hidden_sizes": [], "depths": []}, "must have the same number of entries, one per stage"),
        ({"architecture": "regnet", "hidden_sizes": [16, 24]}, "multiples of its group width, 16; .*24. are not"),
        ({"label_smoothing": 1.0}, "label_smoothing must be from 0 to below 1"),
        ({"random_shift": 8}, "random_shift must be below the image size, 8×8, not 8"),
        ({"random_erase": -1}, "random_erase must be zero or more"),
        ({"test_split": "test"}, "cannot open split test of digits.*--test_split"),
    ],
)
def test_bad_fields(tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        train_classifier(tmp_path / "run", **fields)


def test_images_without_labels_are_refused(tmp_path, capsys):
    np.savez(tmp_path / "some.npz", images=np.zeros((20, 8, 8), np.uint8))
    fields = TINY_JUDGE | {"dataset_name": str(tmp_path / "some.npz"), "output_dir": str(tmp_path / "run")}
    assert main(["train", "classifier", *flags(**fields)]) == 2
    assert "has no class labels" in capsys.readouterr().err


def test_test_images_must_fit(tmp_path):
    labels = np.arange(20) % 10
    np.savez(tmp_path / "large.npz", images=np.zeros((20, 9, 9), np.uint8), labels=labels)
    np.savez(tmp_path / "few.npz", images=np.zeros((20, 8, 8), np.uint8), labels=labels % 2)
    for name, message in (("large", "differ in channels or size"), ("few", "have different classes")):
        fields = {"test_dataset_name": str(tmp_path / f"{name}.npz"), "test_split": "train"}
        with pytest.raises(UserError, match=message):
            train_classifier(tmp_path / "run", **fields)


def test_label_smoothing_and_augmentation_are_used():
    config = ClassifierConfig(**(TINY_JUDGE | {"output_dir": "x", "label_smoothing": 0.5, "random_shift": 0}))
    from hfgen.data.loader import Batch
    from hfgen.tasks.classifier import ClassifierTask

    torch.manual_seed(0)
    data = load_images("digits", split="train[:80%]")
    task = ClassifierTask(config, data)
    task.model.eval()
    batch = Batch(data.images[:8].float() / 127.5 - 1, data.labels[:8], 0, torch.arange(8))
    ((name, loss, _),) = task.losses(batch)
    logits = task.model(torch.nn.functional.interpolate(batch.images, (16, 16))).logits
    targets = 0.5 * torch.nn.functional.one_hot(batch.labels, 10) + 0.05
    assert name == "classifier"
    assert loss.item() == pytest.approx(-(targets * logits.log_softmax(1)).sum(1).mean().item(), rel=1e-4)
    for field in ("random_shift", "random_erase"):
        config = ClassifierConfig(
            **(TINY_JUDGE | {"output_dir": "x", "label_smoothing": 0.5, "random_shift": 0, field: 3})
        )
        task.config = config
        assert next(task.losses(batch))[1].item() != pytest.approx(loss.item(), rel=1e-4), field
