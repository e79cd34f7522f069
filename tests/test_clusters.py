"""Diffusion models that are conditioned on clusters of unlabelled images."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CONDITIONAL

import hfgen
from hfgen.config import DDPMConfig
from hfgen.data import clusters as module
from hfgen.data.clusters import with_clusters
from hfgen.data.images import ImageData, load_images
from hfgen.pipelines.loading import load
from hfgen.pipelines.pipeline_hfgen_cluster_conditional_diffusion import ClusterConditionalDiffusionPipeline
from hfgen.sampling.sample import clusters_of, default_sampler, is_conditional, is_guided, sample
from hfgen.tasks.diffusion import DiffusionTask
from hfgen.utils.errors import UserError

FIELDS = CONDITIONAL | {
    "max_train_steps": 120,
    "class_conditional": False, "num_clusters": 12, "train_split": "train", "test_fraction": 0.2,
    "validation_fraction": 0.2, "guidance_scale": 1.7,
    "guidance_interval": [0.1, 0.9],
}  # fmt: skip
CODE_FILE = "pipeline_hfgen_cluster_conditional_diffusion.py"


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_images("digits")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A small model of digits, trained on clusters, and evaluated while it trained."""
    folder = tmp_path_factory.mktemp("clusters") / "run"
    options = {"evaluation_steps": 120, "evaluation_images": 200, "output_dir": folder}
    return hfgen.train("ddpm", **FIELDS | options).path


def test_images_of_a_cluster_are_mostly_of_one_class(digits):
    found = with_clusters(digits, digits, 20, seed=0)
    assert found.label_names == [str(number) for number in range(20)]
    counts = torch.zeros(20, 10).index_put_((found.labels, digits.labels), torch.ones(len(digits)), accumulate=True)
    assert counts.sum(1).min() > 10
    assert counts.max(1).values.sum() / len(digits) > 0.8


def test_clusters_follow_from_images_and_seed(digits, monkeypatch):
    def found(seed=0):
        monkeypatch.setattr(module, "_fitted", {})  # of an earlier training in this process
        return with_clusters(digits, digits, 10, seed).labels

    first = found()
    assert first.equal(found())
    assert not first.equal(found(seed=1))
    some = dataclasses.replace(digits, images=digits.images[100:200], labels=None)
    assert with_clusters(some, digits, 10, 1).labels.equal(found(seed=1)[100:200]), "of images that are held out"


def test_large_images_are_clustered_by_their_average_pixels():
    images = torch.zeros(40, 3, 64, 64, dtype=torch.uint8)
    images[::2, 1, :32] = 200
    data = ImageData(images, None, None, "test", "large")
    assert module._reduced(images).shape == (40, 3 * 16 * 16)
    labels = with_clusters(data, data, 2, 0).labels
    assert labels[::2].unique().tolist() == [labels[0]]
    assert labels[1::2].unique().tolist() == [1 - labels[0]]


def test_the_network_is_told_clusters_and_the_pipeline_their_sizes(run):
    pipeline = load(str(run))
    assert type(pipeline) is ClusterConditionalDiffusionPipeline
    assert pipeline.unet.config.num_class_embeds == 13
    config = DDPMConfig(**FIELDS, output_dir=str(run))
    training = load_images("digits", **config.reading_options())
    labels = with_clusters(training, training, 12, 0).labels
    shares = labels.bincount(minlength=12) / len(labels)
    assert pipeline.config.cluster_shares == pytest.approx(dict(enumerate(shares.tolist())))
    drawn = torch.tensor(clusters_of(shares.tolist(), range(4000))).bincount(minlength=12) / 4000
    assert drawn.numpy() == pytest.approx(shares.numpy(), abs=0.025)
    together = (
        torch.tensor(pipeline.draw_clusters(4000, torch.Generator().manual_seed(0))).bincount(minlength=12) / 4000
    )
    assert together.numpy() == pytest.approx(shares.numpy(), abs=0.025)
    assert is_guided(pipeline)
    assert not is_conditional(pipeline)


def test_labels_of_the_batch_are_clusters_of_its_images(run):
    config = DDPMConfig(**FIELDS, output_dir=str(run))
    data = load_images("digits", **config.reading_options())
    held_out = load_images("digits", split="validation", **config.reading_options())
    for images in (data, held_out):
        task = DiffusionTask(config, images)
        assert task.data.images is images.images
        assert task.data.labels.equal(with_clusters(images, data, 12, 0).labels)


def test_images_without_labels_are_trained_on_and_evaluated(tmp_path):
    with np.load(np_digits(tmp_path)) as file:
        assert "labels" not in file
    fields = FIELDS | {"dataset_name": str(tmp_path / "digits.npz"), "train_split": "train", "max_train_steps": 4}
    run = hfgen.train("ddpm", **fields, evaluation_steps=2, evaluation_images=100, output_dir=tmp_path / "run")
    assert (run / "model_index.json").is_file()


def np_digits(folder: Path) -> Path:
    np.savez(folder / "digits.npz", images=load_images("digits").images[:, 0].numpy())
    return folder / "digits.npz"


def test_the_loop_is_given_clusters_in_the_place_of_labels(tmp_path, monkeypatch):
    given, losses = [], DiffusionTask.losses

    def spy(task, batch):
        given.append(batch.labels.equal(task.data.labels[batch.indices]))
        assert len(task.data.label_names) == 12
        return losses(task, batch)

    monkeypatch.setattr(DiffusionTask, "losses", spy)
    hfgen.train("ddpm", **FIELDS | {"max_train_steps": 2}, output_dir=tmp_path / "run")
    assert given == [True] * 2


def test_the_guidance_of_the_pipeline_is_that_of_its_training(run):
    pipeline = load(str(run))
    sampler = default_sampler(pipeline, {})
    assert (sampler["guidance_scale"], sampler["guidance_interval"]) == (1.7, [0.1, 0.9])
    guided, steps = pipeline.guided([0, 1]), pipeline.scheduler.config.num_train_timesteps
    assert (guided.guidance_scale, guided.first, guided.last) == (1.7, 0.1 * steps, 0.9 * steps)


def test_shares_that_are_not_of_the_clusters_are_refused(run):
    pipeline = load(str(run))
    shares = pipeline.config.cluster_shares
    parts = {"unet": pipeline.unet, "scheduler": pipeline.scheduler}
    text = {str(number): shares[number] for number in sorted(shares, key=str)}  # as a JSON file may sort them
    assert [*ClusterConditionalDiffusionPipeline(**parts, cluster_shares=text).config.cluster_shares.items()] == [
        *shares.items()
    ]
    with pytest.raises(ValueError, match="cluster_shares must have the clusters 0 to 11 of the network"):
        ClusterConditionalDiffusionPipeline(**parts, cluster_shares={0: 0.5, 1: 0.5})
    for interval in ({"first": 0.1}, {"first": "a", "last": 1}, {"first": 0.5, "last": 0.1}, {"first": 0, "end": 1}):
        with pytest.raises(ValueError, match="guidance_interval must have two numbers"):
            ClusterConditionalDiffusionPipeline(**parts, guidance_interval=interval)
    for name, value in (("guidance_scale", "a"), ("num_inference_steps", 0), ("num_inference_steps", "a")):
        with pytest.raises(ValueError, match=f"{name} must be"):
            ClusterConditionalDiffusionPipeline(**parts, **{name: value})
    earlier = ClusterConditionalDiffusionPipeline(**parts)  # saved before there was an interval
    assert default_sampler(earlier, {})["guidance_interval"] == [0.0, 1.0]


def test_guided_clusters_are_better_than_none(run, tmp_path):
    """It is what they are for; the class is not told, so that no accuracy is measured."""
    found = {}
    for scale in (0.0, 1.0, 2.0):  # 0: as without clusters
        report = hfgen.evaluate(run, num_images=300, guidance_scale=scale, output_dir=tmp_path / str(scale))
        measures = next(iter(report.record["measures"].values()))
        found[scale] = measures["frechet_distance"]["value"]
        assert not report.record["conditional"]
    assert found[2.0] < found[1.0] < found[0.0]


def test_the_card_makes_its_first_images_again(run, tmp_path, without_hfgen):
    card = hfgen.card(run, gallery=tmp_path / "gallery").read_text()
    assert "12 clusters of the images in the place of labels" in card
    assert "classifier-free-guidance" in card
    code = next(block for block in card.split("```python\n") if "generators" in block).split("```")[0]
    without_hfgen.python(code.replace(f'"user/{run.name}"', repr(str(run))), folder=tmp_path)
    grid = hfgen.sample(run, num_images=4, seed=0, dtype="float32")
    import PIL.Image

    for index, image in enumerate(grid):
        with PIL.Image.open(tmp_path / f"sample-{index}.png") as again:
            assert np.array_equal(np.asarray(again), np.asarray(image)), index


def test_diffusers_alone_draws(run, tmp_path, without_hfgen):
    code = (
        "from diffusers import DiffusionPipeline\n"
        f"pipe = DiffusionPipeline.from_pretrained({str(run)!r}, trust_remote_code=True)\n"
        "print([image.size for image in pipe(batch_size=3, num_inference_steps=2).images])\n"
    )
    assert "[(8, 8), (8, 8), (8, 8)]" in without_hfgen.python(code, folder=tmp_path)
    index = json.loads((run / "model_index.json").read_text())
    assert index["_class_name"] == [CODE_FILE.removesuffix(".py"), "ClusterConditionalDiffusionPipeline"]
    assert (run / CODE_FILE).is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be positive, not 0"),
        ({"batch_size": 2, "clusters": [1]}, "clusters must be one for each of the 2 images, not 1"),
        ({"clusters": [12]}, "clusters must be from 0 to 11, not 12"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number"),
        ({"guidance_interval": (0.5, 0.2)}, "guidance_interval must be two numbers"),
        ({"num_inference_steps": 1001}, "num_inference_steps must be from 1 to 1000"),
    ],
)
def test_a_wrong_call_of_the_pipeline_is_refused(run, options, message):
    with pytest.raises(ValueError, match=message):
        load(str(run))(**{"num_inference_steps": 2} | options)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"class_conditional": True}, "conditioned on classes or clusters: set class_conditional or num_clusters"),
        ({"guidance_interval": [0.5]}, "guidance_interval must be two numbers"),
        ({"num_clusters": 1}, "num_clusters must be 2 or more, not 1"),
        ({"num_clusters": 100, "max_train_samples": 90}, "at most the number of training images, 90, not 100"),
        ({"class_dropout_prob": 0.0}, "num_clusters needs class_dropout_prob above 0"),
    ],
)
def test_wrong_settings_are_refused_before_any_work(fields, message, tmp_path):
    with pytest.raises(UserError, match=message):
        hfgen.train("ddpm", **FIELDS | fields, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_classes_do_not_apply(run, tmp_path):
    with pytest.raises(UserError, match="unconditional: class_labels do not apply"):
        hfgen.sample(run, num_images=2, class_labels=["3"])
    picture = hfgen.sample(run, num_images=1)[0]
    picture.save(tmp_path / "digit.png")
    for options in ({"task": "change_class", "class_labels": ["3"]}, {"task": "vary", "class_labels": ["3"]}):
        with pytest.raises(UserError, match="this model is unconditional: it has no classes"):
            hfgen.edit(run, input=str(tmp_path / "digit.png"), **options)
    assert len(hfgen.edit(run, input=str(tmp_path / "digit.png"), task="vary", num_inference_steps=2).images) == 1


def test_an_image_depends_on_its_own_seed_only(run):
    options = {"num_inference_steps": 2, "scheduler": "ddim", "guidance_scale": 2.0}
    pipeline = load(str(run))
    together = torch.cat(list(sample(pipeline, num_images=8, batch_size=3, **options)))
    later = torch.cat(list(sample(pipeline, num_images=3, first_image=5, batch_size=3, **options)))
    assert (together[5:].int() - later.int()).abs().max() <= 1
