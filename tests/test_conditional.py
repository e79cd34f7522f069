"""Models that know classes: trained, guided, sampled, measured; their pipeline travels with the weights."""

import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import CONDITIONAL, TINY
from diffusers import DDPMScheduler, DiffusionPipeline, UNet2DModel
from safetensors.torch import load_file

import hfgen
from hfgen.cli.main import main
from hfgen.config import DDPMConfig
from hfgen.config.commands import EvaluateConfig
from hfgen.data.images import ImageData, load_images
from hfgen.data.loader import Batch
from hfgen.evaluation.evaluate import evaluate
from hfgen.figures.grids import sample_grid
from hfgen.judges.judge import load_judge
from hfgen.pipelines.loading import load
from hfgen.pipelines.pipeline_hfgen_class_conditional_diffusion import ClassConditionalDiffusionPipeline, GuidedModel
from hfgen.pipelines.saving import save_pipeline
from hfgen.sampling.sample import default_sampler, sample
from hfgen.sampling.schedulers import make_scheduler, name_of_scheduler, suitable_schedulers
from hfgen.tasks.diffusion import DiffusionTask
from hfgen.utils.errors import UserError
from hfgen.utils.seeds import derive_seed

CODE_FILE = "pipeline_hfgen_class_conditional_diffusion.py"
NAMES = ["cat", "Dog", "7"]


@pytest.fixture(params=["v_prediction", "flow_prediction"])
def run(request, conditional_run) -> Path:
    return conditional_run(request.param)


@pytest.fixture
def pipeline() -> ClassConditionalDiffusionPipeline:
    torch.manual_seed(0)
    unet = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1,
                       norm_num_groups=8, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
                       add_attention=False, num_class_embeds=4)  # fmt: skip
    pipeline = ClassConditionalDiffusionPipeline(unet, DDPMScheduler(), dict(enumerate(NAMES)))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn(pipeline, *labels, seed=0, **options) -> np.ndarray:
    generator = [torch.Generator().manual_seed(seed + i) for i in range(len(labels))]
    settings = {"num_inference_steps": 3, "output_type": "np"} | options
    return pipeline(class_labels=list(labels), generator=generator, **settings).images


def test_it_draws_the_class_that_is_asked_for(run, judge_run):
    judge = load_judge(str(judge_run))
    wanted = torch.arange(200) % 10
    shares = {}
    for scale in (1.0, 3.0):
        batches = sample(
            load(str(run)), num_images=200, num_inference_steps=8, scheduler="unipc", guidance_scale=scale
        )
        seen = judge.extract(torch.cat(list(batches)))[1].argmax(1)
        shares[scale] = (seen == wanted).float().mean().item()
    assert shares[3.0] > 0.75, shares
    assert shares[3.0] > shares[1.0] > 0.3, "guidance enforces the class"


def test_labels_are_withheld_from_the_network_as_often_as_asked(tmp_path):
    images = torch.zeros(2000, 1, 8, 8, dtype=torch.uint8)
    data = ImageData(images, torch.arange(2000) % 3, NAMES, "test", "fingerprint")
    config = DDPMConfig(**CONDITIONAL | {"output_dir": str(tmp_path), "class_dropout_prob": 0.25})
    task = DiffusionTask(config, data)
    assert task.unet.config.num_class_embeds == 4
    seen = []

    def network(x, timesteps, class_labels):
        seen.append(class_labels)
        return task.unet(x, timesteps, class_labels=class_labels)

    task.modules["unet"] = network
    with torch.no_grad():
        list(task.losses(Batch(images.float() / 127.5 - 1, data.labels, 0, torch.arange(len(data)))))
    withheld = seen[0] == 3
    assert withheld.float().mean().item() == pytest.approx(0.25, abs=0.04)
    assert seen[0][~withheld].equal(data.labels[~withheld])


def test_a_model_of_classes_needs_labels(tmp_path):
    data = ImageData(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), None, None, "test", "fingerprint")
    with pytest.raises(UserError, match="test has no class labels"):
        DiffusionTask(DDPMConfig(**CONDITIONAL | {"output_dir": str(tmp_path)}), data)


@pytest.mark.parametrize(("fields", "message"), [
    ({"guidance_interval": [0.5]}, r"guidance_interval must be two numbers, .* not \[0.5\]"),
    ({"guidance_interval": [0.8, 0.2]}, r"guidance_interval must be two numbers, .* not \[0.8, 0.2\]"),
    ({"scheduler": "flow_euler"}, "scheduler flow_euler is not compatible .* v_prediction"),
    ({"prediction_type": "flow_prediction", "scheduler": "ddim"}, "ddim is not compat.*flow_prediction, in 8 .*euler"),
])  # fmt: skip
def test_a_sampler_that_does_not_fit_is_refused_before_training(tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        DiffusionTask(DDPMConfig(**CONDITIONAL | {"output_dir": str(tmp_path)} | fields), load_images("digits"))


def test_a_flow_has_no_beta_schedule():
    fields = {"dataset_name": "digits", "output_dir": "x", "beta_schedule": "linear"}
    with pytest.raises(UserError, match="flow_prediction, the default, has no beta_schedule linear"):
        DDPMConfig(**fields)
    DDPMConfig(**fields, prediction_type="epsilon")


@pytest.mark.parametrize("fields", [{"logit_mean": 0.3}, {"logit_std": 2.0}])
def test_what_timesteps_do_not_follow_is_refused(fields):
    shared = {"dataset_name": "digits", "output_dir": "x"}
    for uniform in ({"timestep_sampling": "uniform"}, {"prediction_type": "epsilon"}):
        with pytest.raises(UserError, match="logit_mean and logit_std need timestep_sampling logit_normal"):
            DDPMConfig(**shared, **uniform, **fields)
    for logit_normal in ({}, {"timestep_sampling": "logit_normal", "prediction_type": "epsilon"}):
        DDPMConfig(**shared, **logit_normal, **fields)


@pytest.mark.parametrize("prediction_type", ["epsilon", "flow_prediction"])
def test_zero_terminal_snr_needs_a_prediction_that_says_something_in_pure_noise(tmp_path, prediction_type):
    with pytest.raises(UserError, match=f"needs prediction_type sample or v_prediction, not {prediction_type}"):
        DDPMConfig(dataset_name="digits", output_dir="x", rescale_betas_zero_snr=True, prediction_type=prediction_type)
    config = DDPMConfig(**CONDITIONAL | {"output_dir": str(tmp_path), "rescale_betas_zero_snr": True})
    assert DiffusionTask(config, load_images("digits")).scheduler.alphas_cumprod[-1] == 0


class Answers:
    """A network that answers each class with a constant, and counts the images that it is shown."""

    dtype = torch.float32

    def __init__(self):
        self.shown = []

    def __call__(self, x, timestep, class_labels):
        self.shown.append(len(x))
        sample = torch.tensor([1.0, 10.0, 100.0, 1000.0])[class_labels].view(-1, 1, 1, 1).expand_as(x)
        return type("Output", (), {"sample": sample})


def test_guidance_leads_from_the_negative_class_to_the_class():
    unet, x = Answers(), torch.zeros(2, 1, 2, 2)
    classes, nothing = torch.tensor([0, 1]), torch.tensor([3, 2])
    guided = GuidedModel(unet, classes, nothing, 3.0, (0.2, 0.8), 1000)
    values = guided(x, torch.tensor(500))[:, 0, 0, 0].tolist()
    assert values == pytest.approx([1000 + 3 * (1 - 1000), 100 + 3 * (10 - 100)])
    for timestep in (199, 801):
        assert guided(x, torch.tensor(timestep))[:, 0, 0, 0].tolist() == [1, 10], "outside the interval"
    assert unet.shown == [4, 2, 2], "without guidance the network is asked once"
    assert GuidedModel(unet, classes, nothing, 1.0, (0, 1), 1000)(x, torch.tensor(500))[:, 0, 0, 0].tolist() == [1, 10]
    each = guided(x, torch.tensor([500, 801]))[:, 0, 0, 0].tolist()
    assert each == pytest.approx([values[0], 10]), "images may have timesteps of their own"


def test_timesteps_are_moved_to_the_device_of_the_images():
    seen = []

    class Network(Answers):
        def __call__(self, x, timestep, class_labels):
            seen.append(timestep.device.type)
            return type("Output", (), {"sample": x})

    classes = torch.zeros(2, dtype=torch.long, device="meta")
    guided = GuidedModel(Network(), classes, classes, 1.0, (0, 1), 1000)
    guided(torch.zeros(2, 1, 2, 2, device="meta"), torch.tensor(500))
    assert seen == ["meta"]


def test_many_images_are_denoised_in_parts_on_a_cpu():
    unet, size = Answers(), GuidedModel.CPU_BATCH_SIZE
    classes = torch.arange(size) % 2
    guided = GuidedModel(unet, classes, torch.full_like(classes, 2), 3.0, (0, 1), 1000)
    values = guided(torch.zeros(size, 1, 2, 2), torch.tensor(500))
    assert unet.shown == [size, size]
    assert values[:2, 0, 0, 0].tolist() == pytest.approx([100 + 3 * (1 - 100), 100 + 3 * (10 - 100)])
    assert values[:2].equal(values[-2:])


def test_classes_by_name_and_by_number(pipeline):
    assert pipeline.get_label_ids(["CAT", "dog", 2, "1", "7", None]) == [0, 1, 2, 1, 2, 3]
    assert pipeline.get_label_ids("cat") == [0]
    assert pipeline.get_label_ids([2]) == [2], "a number is no name"
    pipeline.register_to_config(id2label={0: "A", 1: "a", 2: "b"})
    assert pipeline.get_label_ids(["A", "a", "B"]) == [0, 1, 2]
    pipeline.register_to_config(id2label=dict(enumerate(NAMES)))
    by_name, by_number = drawn(pipeline, "dog", "cat"), drawn(pipeline, 1, 0)
    assert np.array_equal(by_name, by_number)
    assert not np.array_equal(by_name, drawn(pipeline, "cat", "dog"))
    for label in ("cow", 3, -1):
        with pytest.raises(ValueError, match=rf"has no class {label}; its classes are cat \(0\), Dog \(1\), 7 \(2\)"):
            pipeline(class_labels=[label])
    assert len(pipeline(num_inference_steps=2).images) == 3, "one of each"


@pytest.mark.parametrize(("options", "message"), [
    ({"num_inference_steps": 0}, "num_inference_steps must be from 1 to 1000, not 0"),
    ({"num_inference_steps": 2000}, "num_inference_steps must be from 1 to 1000, not 2000"),
    ({"output_type": "numpy"}, "output_type must be pil, np or pt, not numpy"),
    ({"class_labels": []}, "class_labels must be one class or more"),
])  # fmt: skip
def test_impossible_requests_are_refused(pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**options)


def test_negative_classes_and_their_number(pipeline):
    plain = drawn(pipeline, "cat", "dog", guidance_scale=5.0)
    other = drawn(pipeline, "cat", "dog", guidance_scale=5.0, negative_class_labels="7")
    assert not np.array_equal(plain, other)
    assert np.array_equal(other, drawn(pipeline, "cat", "dog", guidance_scale=5.0, negative_class_labels=[2, 2]))
    with pytest.raises(ValueError, match="one for each of the 2 images, not 3"):
        drawn(pipeline, "cat", "dog", negative_class_labels=["cat", "cat", "cat"])


def test_the_callback_sees_each_step_and_may_replace_the_sample(pipeline):
    steps = []

    def note(pipe, index, timestep, tensors):
        steps.append((index, int(timestep), tuple(tensors["sample"].shape)))

    plain = drawn(pipeline, "cat")
    assert np.array_equal(plain, drawn(pipeline, "cat", callback_on_step_end=note))
    assert steps == [(i, int(t), (1, 1, 8, 8)) for i, t in enumerate(pipeline.scheduler.timesteps)]
    black = drawn(
        pipeline, "cat", callback_on_step_end=lambda p, i, t, s: {"sample": torch.full_like(s["sample"], -1)}
    )
    assert (black == 0).all()


def test_outputs_of_the_pipeline(pipeline):
    arrays = drawn(pipeline, "cat", "dog")
    assert arrays.shape == (2, 8, 8, 1)
    assert 0 <= arrays.min() <= arrays.max() <= 1
    tensors = drawn(pipeline, "cat", "dog", output_type="pt")
    assert np.array_equal(tensors.permute(0, 2, 3, 1).numpy(), arrays)
    (pictures,) = pipeline(class_labels=["cat"], num_inference_steps=2, return_dict=False)
    assert isinstance(pictures[0], PIL.Image.Image)


def test_hfgen_draws_what_the_pipeline_draws(run):
    pipe = load(str(run))
    pipe.set_progress_bar_config(disable=True)
    ours = next(sample(pipe, num_images=4, num_inference_steps=4, scheduler="unipc", class_labels=["5", 2]))
    generators = [torch.Generator().manual_seed(derive_seed("image", 0, i)) for i in range(4)]
    theirs = pipe(["5", 2, "5", 2], num_inference_steps=4, generator=generators, output_type="np").images
    assert np.array_equal((theirs * 255).round().astype(np.uint8), ours.permute(0, 2, 3, 1).numpy())


def test_negative_classes_are_taken_in_turn_whatever_the_batches(pipeline):
    options = {"num_images": 5, "num_inference_steps": 2, "scheduler": "ddim", "guidance_scale": 4.0}
    options |= {"class_labels": ["cat", "dog"], "negative_class_labels": ["7", "7", "cat"]}
    in_twos, together = (torch.cat(list(sample(pipeline, batch_size=size, **options))) for size in (2, 64))
    assert (in_twos.int() - together.int()).abs().max() <= 1
    options["negative_class_labels"] = ["cow"]
    with pytest.raises(UserError, match="has no class cow"):
        next(sample(pipeline, **options))


def test_a_model_that_never_lacked_its_labels_is_not_guided_by_what_it_never_learnt(pipeline, tmp_path):
    plain = drawn(pipeline, "cat", "dog", guidance_scale=1.0)
    away = drawn(pipeline, "cat", "dog", guidance_scale=2.0, negative_class_labels="7")
    told = ClassConditionalDiffusionPipeline(pipeline.unet, pipeline.scheduler, pipeline.config.id2label, False)
    save_pipeline(told, tmp_path)
    loaded = load(str(tmp_path))
    assert np.array_equal(drawn(loaded, "cat", "dog"), plain), "the default is no guidance"
    assert np.array_equal(drawn(loaded, "cat", "dog", guidance_scale=2.0, negative_class_labels="7"), away)
    for labels, options in ((("cat",), {"guidance_scale": 2.0}), ((None,), {})):
        with pytest.raises(ValueError, match="has no unconditional mode"):
            drawn(loaded, *labels, **options)
    sampler = {"num_images": 2, "num_inference_steps": 2, "scheduler": "unipc"}
    with pytest.raises(UserError, match="has no unconditional mode"):
        next(sample(loaded, guidance_scale=2.0, **sampler))
    assert len(next(sample(loaded, guidance_scale=2.0, negative_class_labels=["7"], **sampler))) == 2


def test_the_saved_defaults_are_those_of_the_training(tmp_path):
    sampler = {"scheduler": "dpmsolver_sde", "num_inference_steps": 5}
    sampler |= {"guidance_scale": 1.3, "guidance_interval": [0.1, 0.8]}
    config = DDPMConfig(**CONDITIONAL | sampler | {"output_dir": str(tmp_path)})
    DiffusionTask(config, load_images("digits")).save(tmp_path / "model")
    loaded = load(str(tmp_path / "model"))
    assert default_sampler(loaded, {}) == sampler
    loaded.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(derive_seed("image", 0, i)) for i in range(2)]
    theirs = loaded([3, 4], generator=generators, output_type="np").images
    ours = next(sample(loaded, num_images=2, class_labels=[3, 4], **sampler))
    assert np.array_equal((theirs * 255).round().astype(np.uint8), ours.permute(0, 2, 3, 1).numpy())


def test_schedulers_that_fit_a_saved_solver_are_listed(run):
    own = load(str(run)).scheduler
    fitting = suitable_schedulers(own, 4)
    assert {"dpmsolver", "unipc"} <= set(fitting)
    assert suitable_schedulers(own, 4, ["ddim", "flow_euler", "unipc"]) == [
        "flow_euler" if "flow_euler" in fitting else "ddim",
        "unipc",
    ]


@pytest.mark.parametrize(("name", "expected"), [("dpmsolver", "dpmsolver"), ("dpmsolver_sde", "dpmsolver_sde"),
    ("heun", "heun"), ("DPMSolverSinglestepScheduler", "DPMSolverSinglestepScheduler")])  # fmt: skip
def test_a_scheduler_has_the_name_that_it_is_built_by(name, expected):
    own = DDPMScheduler(prediction_type="v_prediction")
    assert name_of_scheduler(make_scheduler(name, own, 10)) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(pipeline, dtype):
    pipeline.to(dtype)
    assert np.isfinite(drawn(pipeline, "cat", "dog")).all()
    assert len(next(sample(pipeline, num_images=2, num_inference_steps=2, scheduler="unipc"))) == 2


def test_guidance_needs_labels_that_were_withheld():
    fields = {"dataset_name": "digits", "output_dir": "x", "class_conditional": True, "class_dropout_prob": 0.0}
    with pytest.raises(UserError, match=r"set class_dropout_prob above 0, or guidance_scale to 1, not 2"):
        DDPMConfig(**fields)
    config = DDPMConfig(**fields, guidance_scale=1.0)
    assert not DiffusionTask(config, load_images("digits")).pipeline().config.learnt_no_class


def test_weights_and_drawn_timesteps_are_those_of_the_configuration(tmp_path):
    data = load_images("digits")
    batch = Batch(data.images[:1000].float() / 127.5 - 1, data.labels[:1000], 0, torch.arange(1000))
    losses, times = [], []
    flow = {"prediction_type": "flow_prediction"}
    for fields in ({}, {"loss_weighting": "min_snr"}, flow, flow | {"logit_mean": 3.0, "logit_std": 0.5}):
        torch.manual_seed(0)
        task = DiffusionTask(DDPMConfig(**CONDITIONAL | {"output_dir": str(tmp_path)} | fields), data)
        task.modules["unet"].register_forward_hook(lambda _, arguments, output: times.append(arguments[1]))
        torch.manual_seed(1)
        with torch.no_grad():
            ((_, loss, _),) = task.losses(batch)
        losses.append(loss)
    assert losses[1] < 0.9 * losses[0], "min(SNR, 5) σ² is below 1 in the noise"
    middle = [((t > 250) & (t < 750)).float().mean().item() for t in times]
    assert middle == pytest.approx([0.5, 0.5, 0.73, 0.0], abs=0.06)


def test_a_model_without_classes_cannot_be_asked_for_one(tmp_path, capsys):
    config = DDPMConfig(**TINY | {"output_dir": str(tmp_path)})
    DiffusionTask(config, load_images("digits")).save(tmp_path / "model")
    for flags in (["--class_labels", "3"], ["--guidance_scale", "2"], ["--guidance_interval", "0", "1"]):
        assert main(["sample", str(tmp_path / "model"), "--output", str(tmp_path / "x.png"), *flags]) == 2
        assert "this model is unconditional" in capsys.readouterr().err


def test_a_run_loads_where_there_is_no_hfgen(conditional_run, without_hfgen):
    run = conditional_run("flow_prediction")
    code = (
        "from diffusers import DiffusionPipeline\n"
        f"pipe = DiffusionPipeline.from_pretrained({str(run)!r}, trust_remote_code=True)\n"
        "image = pipe(class_labels=['3'], guidance_scale=1.5, guidance_interval=(0.2, 0.8), num_inference_steps=3)\n"
        "assert image.images[0].size == (8, 8), image\n"
    )
    without_hfgen.python(code)
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(run)


def test_saved_again_after_it_was_loaded_with_its_own_code_it_still_loads(run, tmp_path):
    loaded = DiffusionPipeline.from_pretrained(run, trust_remote_code=True)
    assert type(loaded).__module__.startswith("diffusers_modules.")
    save_pipeline(loaded, tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == [CODE_FILE.removesuffix(".py"), "ClassConditionalDiffusionPipeline"]
    again = DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    again.set_progress_bar_config(disable=True)
    loaded.set_progress_bar_config(disable=True)
    assert np.array_equal(drawn(again, "3"), drawn(loaded, "3"))


def test_hfgen_runs_its_own_version_of_the_code_not_that_of_the_folder(run, tmp_path):
    (tmp_path / "model" / "unet").mkdir(parents=True)
    save_pipeline(hfgen.load(str(run)), tmp_path / "model")
    for name in (CODE_FILE, "unet/diffusers.py"):
        (tmp_path / "model" / name).write_text(f"open({str(tmp_path / 'trace')!r}, 'w')\n")
    pipe = hfgen.load(str(tmp_path / "model"), trust_remote_code=True)
    assert type(pipe) is ClassConditionalDiffusionPipeline
    assert np.array_equal(drawn(pipe, "3"), drawn(hfgen.load(str(run)), "3"))
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(("changes", "message"), [
    ({"_class_name": [CODE_FILE.removesuffix(".py"), "Newer"]}, "comes with its own code"),
    ({"unet": ["diffusers", "NoSuchModel"]}, "a NoSuchModel as its unet, which is neither a model nor a scheduler"),
    ({"unet": ["diffusers", "DDPMPipeline"]}, "has a DDPMPipeline as its unet"),
    ({"unet": [None, None]}, "has the components scheduler, but a ClassConditionalDiffusionPipeline has"),
    ({"text_encoder": ["diffusers", "AutoencoderKL"]}, "it may come from a newer version of hfgen"),
])  # fmt: skip
def test_an_index_that_does_not_fit_is_refused(conditional_run, tmp_path, changes, message):
    folder = shutil.copytree(conditional_run("v_prediction"), tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | changes))
    with pytest.raises(UserError, match=message):
        hfgen.load(str(folder))


def test_pickled_weights_beside_a_pipeline_of_hfgens_own_are_refused(conditional_run, tmp_path):
    folder = shutil.copytree(conditional_run("v_prediction"), tmp_path / "model")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(UserError, match="cannot load a pipeline"):
        hfgen.load(str(folder))


def test_sample_writes_a_row_for_each_class_and_arrays_with_labels(run, tmp_path):
    asked = ["sample", str(run), "--num_images", "5", "--num_inference_steps", "2", "--class_labels", "8", "3"]
    asked += [
        "--guidance_scale",
        "1.5",
        "--guidance_interval",
        "0.2",
        "0.8",
        "--negative_class_labels",
        "1",
        "--output",
    ]
    for name in ("grid.png", "film.gif", "images.npz", "folder"):
        assert main([*asked, str(tmp_path / name)]) == 0
    with np.load(tmp_path / "images.npz") as arrays:
        assert arrays["labels"].tolist() == [8, 3, 8, 3, 8]
        assert arrays["label_names"].tolist() == [str(number) for number in range(10)]
        images = torch.from_numpy(arrays["images"])[:, None]
    names = [str(number) for number in range(10)]
    grid = np.asarray(sample_grid(images, [8, 3, 8, 3, 8], names))
    assert np.array_equal(grid, np.asarray(PIL.Image.open(tmp_path / "grid.png").convert("RGB")))
    left = grid.shape[1] - 3 * 132
    for row, column, index in ((0, 0, 1), (0, 1, 3), (1, 0, 0), (1, 1, 2), (1, 2, 4)):
        tile = grid[row * 132 + 2 : row * 132 + 130 : 16, left + column * 132 + 2 : left + column * 132 + 130 : 16, 0]
        assert np.array_equal(tile, images[index, 0].numpy()), (row, column)
    assert len({tuple(pixel) for pixel in grid[:132, :left].reshape(-1, 3)}) > 1, "the name of the class"


def test_an_evaluation_asks_for_classes_as_often_as_they_are_in_training(run, judge_run, tmp_path):
    options = {"judge": [str(judge_run)], "num_images": 60, "reference_split": "train[80%:]"}
    config = EvaluateConfig(run_or_repo=str(run), output_dir=str(tmp_path), guidance_scale=3.0, **options)
    record = json.loads(evaluate(config).read_text())
    assert record["conditional"]["digits_judge"]["accuracy"] > 0.6
    protocol = record["protocol"]
    assert protocol["guidance_scale"] == 3.0
    assert protocol["guidance_interval"] == [0.0, 1.0]
    assert protocol["class_labels"] == "in the proportions of the training images"
    assert f"unipc, 8 steps, guidance 3, {protocol['dtype']})" in (tmp_path / "evaluation.md").read_text()
