"""Training and sampling on a device without double precision, as Apple's GPUs are; choice of device and precision."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_GAN, TINY_TRANSLATION, TINY_VAE
from fake_device import fake_device

import hfgen
from hfgen.cli.main import main
from hfgen.config import CycleGANConfig, DDPMConfig, GANConfig, TranslationConfig, VAEConfig
from hfgen.data.images import load_images
from hfgen.data.loader import ImageBatches
from hfgen.tasks.cyclegan import CycleGANTask
from hfgen.tasks.diffusion import DiffusionTask
from hfgen.tasks.gan import GANTask
from hfgen.tasks.translation import TranslationTask
from hfgen.tasks.vae import VAETask
from hfgen.utils.devices import find_placement


def test_the_device_has_no_double_precision():
    with fake_device() as device:
        x = torch.tensor([1.0, 2.0, 3.0], device=device)
        assert (x + x.cpu().double().float().to(device)).sum().item() == 12
        for wrong in (lambda: x.double(), lambda: torch.ones(3, dtype=torch.float64).to(device)):
            with pytest.raises(TypeError, match=r"the device has no torch\.float64"):
                wrong()
        with pytest.raises(AssertionError, match="of tensors of two devices"):
            x + torch.ones(3)


CYCLEGAN = {
    "block_out_channels": [4, 8],
    "discriminator_block_out_channels": [4, 8],
    "target_degradation": ["invert"],
    "dataset_name": "digits",
}
RESIDUAL = {"architecture": "residual", "block_out_channels": [8, 8], "hidden_sizes": []}


@pytest.mark.parametrize(
    ("task_class", "config_class", "fields"),
    [
        (DiffusionTask, DDPMConfig, TINY),
        (DiffusionTask, DDPMConfig, TINY | {"prediction_type": "v_prediction", "loss_weighting": "min_snr"}),
        (DiffusionTask, DDPMConfig, TINY | {"prediction_type": "flow_prediction"}),
        (DiffusionTask, DDPMConfig, TINY | {"class_conditional": True}),
        (DiffusionTask, DDPMConfig, TINY | {"add_attention": True, "attention_levels": [1]}),
        (GANTask, GANConfig, TINY_GAN | {"truncation": 0.7}),
        (GANTask, GANConfig, TINY_GAN | RESIDUAL),
        (VAETask, VAEConfig, TINY_VAE),
        (VAETask, VAEConfig, TINY_VAE | {"prior": "flow"}),
        (VAETask, VAEConfig, TINY_VAE | {"pixel_distribution": "gaussian_analytic"}),
        (TranslationTask, TranslationConfig, TINY_TRANSLATION),
        (CycleGANTask, CycleGANConfig, CYCLEGAN),
    ],
)
def test_steps_and_previews_need_no_double_precision(task_class, config_class, fields, tmp_path, monkeypatch):
    monkeypatch.setattr("hfgen.tasks.base.save_pipeline", lambda pipeline, folder: None)  # its files are the CPU's
    data = load_images("digits")
    task = task_class(config_class(**fields | {"output_dir": str(tmp_path)}), data)
    with fake_device() as device:
        for module in task.modules.values():
            module.to(device)
        for name, loss, _ in task.losses(ImageBatches(data, train_batch_size=8, device=device)(0)):
            loss.backward()
            assert loss.isfinite()
            assert any(p.grad is not None and p.grad.any() for p in task.modules[name].parameters())
        if isinstance(task, VAETask):
            task.save(tmp_path)
        task.preview(4, 0)


@pytest.fixture
def inputs(tmp_path):
    """A file of a few digits."""
    np.savez(tmp_path / "inputs.npz", images=load_images("digits").images[:3, 0].numpy())
    return tmp_path / "inputs.npz"


def test_images_are_sampled_and_edited_on_the_gpu_by_default(
    vae_run, gan_run, conditional_run, translation_run, inputs
):
    diffusion = conditional_run("v_prediction")

    def draw(**options):
        place = options | {"dtype": "float32"}
        runs = (vae_run, gan_run, diffusion)
        drawn = [hfgen.sample(run, num_images=3, **place).images for run in runs]
        vary = {"task": "vary", "num_inference_steps": 3, "class_labels": "3"}
        for run, task in ((translation_run, {}), (diffusion, vary)):
            drawn.append(torch.stack(hfgen.edit(run, input=inputs, **task, **place).images))
        return drawn

    with fake_device() as device:
        by_default = draw()
        assert hfgen.load(vae_run, device="auto").device.type == device
        assert hfgen.load(vae_run).device.type == "cpu", "as in diffusers"
        on_the_cpu = draw(device="cpu")
    for one, other in zip(by_default, on_the_cpu, strict=True):
        assert (one.int() - other.int()).abs().max() <= 1


MEASURED = {"reference_split": "train[80%:]", "num_images": 40}


def test_an_evaluation_is_on_the_gpu_by_default_and_says_so(vae_run, judge_run, tmp_path):
    values = {}
    with fake_device() as device:
        for place in ("auto", "cpu"):
            folder = tmp_path / place
            report = hfgen.evaluate(vae_run, judge=judge_run, output_dir=folder, device=place, **MEASURED)
            protocol = report.record["protocol"]
            assert (protocol["device"], protocol["dtype"]) == (device if place == "auto" else "cpu", "float32")
            values[place] = report.record["measures"]["digits_judge"]["frechet_distance"]["value"]
    assert values["auto"] == pytest.approx(values["cpu"], rel=1e-2)
    keys = [next((tmp_path / place / "evaluation").glob("images-*")).name for place in ("auto", "cpu")]
    assert keys[0] != keys[1], "images of different hardware are not mixed"


@pytest.mark.parametrize("dtype", [torch.bfloat16, "float16"])
def test_images_in_half_precision_are_those_in_float32_but_for_rounding(
    vae_run, gan_run, conditional_run, translation_run, inputs, dtype
):
    diffusion = conditional_run("v_prediction")
    calls = [lambda place, run=run: hfgen.sample(run, num_images=10, **place).images
             for run in (vae_run, gan_run, diffusion)]  # fmt: skip
    calls += [lambda place: hfgen.sample(vae_run, num_images=10, prior="mixture", **place).images]
    for run, task in ((translation_run, {}), (diffusion, {"task": "denoise", "noise_std": 0.1})):
        calls += [lambda place, run=run, task=task: torch.stack(hfgen.edit(run, input=inputs, **task, **place).images)]
    for call in calls:
        exact, rounded = (call({"dtype": each}).float() for each in ("float32", dtype))
        assert 0 < (exact - rounded).abs().mean() < 6, "of 255"
    loaded = hfgen.load(gan_run, dtype=dtype)
    assert {part.dtype for part in (loaded.generator,)} == {find_placement("cpu", dtype)[1]}


def test_diffusion_samples_in_bfloat16_where_the_hardware_has_it(vae_run, conditional_run, monkeypatch):
    run = conditional_run("v_prediction")
    for is_native, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("hfgen.pipelines.loading.computes_in_bfloat16", lambda device, native=is_native: native)
        assert hfgen.load(run, dtype="auto").unet.dtype == dtype
        assert hfgen.load(run).unet.dtype == torch.float32
        chosen, default = (hfgen.sample(run, num_images=4, **given).images for given in ({"dtype": dtype}, {}))
        assert chosen.equal(default)
        assert hfgen.load(vae_run, dtype="auto").vae.dtype == torch.float32


def test_records_name_the_precision_and_the_weights_before_rounding(vae_run, conditional_run, judge_run, tmp_path):
    protocols = {}
    for dtype in ("float32", "bfloat16"):
        fields = {"judge": judge_run, "output_dir": tmp_path / dtype, "dtype": dtype}
        report = hfgen.evaluate(vae_run, **MEASURED, **fields)
        protocols[dtype] = report.record["protocol"]
        analysis = hfgen.analyze(vae_run, reference_split="train[80%:]", num_importance_samples=2,
                                 num_bound_images=20, **fields)  # fmt: skip
        protocols[dtype]["bound"] = analysis.record["bounds"]["negative_elbo"]["value"]
        assert (analysis.record["protocol"]["device"], analysis.record["protocol"]["dtype"]) == ("cpu", dtype)
        assert protocols[dtype].pop("dtype") == dtype
    assert protocols["float32"].pop("bound") == pytest.approx(protocols["bfloat16"].pop("bound"), rel=0.05)
    assert protocols["float32"] == protocols["bfloat16"], "the same weights"
    compared = hfgen.compare_samplers(conditional_run("v_prediction"), scheduler="ddim:2", **fields, **MEASURED)
    assert compared.record["protocol"]["dtype"] == "bfloat16"


def test_what_is_not_here_is_refused_before_any_work(vae_run, judge_run, inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = {
        f"sample {vae_run}", f"translate {vae_run} --input {inputs}", f"evaluate {vae_run}", f"analyze {vae_run}",
        f"compare-samplers {vae_run}", f"evaluate --images {inputs} --dataset_name digits --output_dir a",
        f"evaluate {judge_run}",
    }  # fmt: skip
    monkeypatch.setattr("hfgen.pipelines.loading._read_index", lambda *_: pytest.fail("the model was read"))
    for command in sorted(commands):
        assert main([*command.split(), "--device", "cuda"]) == 2
        assert capsys.readouterr().err == "hfgen: the device cuda is not available; available here: cpu\n"
    assert main(["sample", str(vae_run), "--device", "gpu"]) == 2
    assert "device must be auto or one of cpu, not gpu" in capsys.readouterr().err
    assert main(["sample", str(vae_run), "--dtype", "float64"]) == 2
    assert "dtype" in capsys.readouterr().err
    assert main(["evaluate", str(judge_run), "--dtype", "bfloat16"]) == 2
    assert "is a classifier, which computes in float32; omit dtype" in capsys.readouterr().err
    images = ["--images", str(inputs), "--dataset_name", "digits", "--output_dir", "a", "--dtype", "float16"]
    assert main(["evaluate", *images]) == 2
    assert "dtype is that of a model's weights and does not apply to --images" in capsys.readouterr().err
    with pytest.raises(hfgen.UserError, match="dtype must be auto, float32, bfloat16 or float16, not float64"):
        hfgen.load(vae_run, dtype=torch.float64)
    assert {path.name for path in tmp_path.iterdir()} == {"inputs.npz"}


def test_a_precision_that_the_device_cannot_compute_in_is_refused(vae_run, monkeypatch):
    def conv2d(x, weight):
        raise TypeError("BFloat16 is not supported on MPS")

    monkeypatch.setattr("torch.nn.functional.conv2d", conv2d)
    message = r"the device cpu cannot compute in bfloat16 \(BFloat16 is not supported on MPS\); use float32"
    with pytest.raises(hfgen.UserError, match=message):
        hfgen.sample(vae_run, num_images=1, dtype=torch.bfloat16)


def test_each_process_takes_a_gpu_of_its_own(monkeypatch):
    accelerator = {"current_accelerator": lambda check_available: torch.device("cuda"), "device_count": lambda: 2}
    monkeypatch.setattr("torch.accelerator", SimpleNamespace(**accelerator))
    found = [find_placement(name, "float32")[0] for name in ("auto", "cuda", "cuda:1", "cpu")]
    assert found == [torch.device(name) for name in ("cuda", "cuda", "cuda:1", "cpu")]
    with pytest.raises(
        hfgen.UserError, match="the device cuda:2 is not available; available here: cpu, cuda:0, cuda:1"
    ):
        find_placement("cuda:2", "float32")
    for rank, index in (("0", 0), ("1", 1), ("2", 0)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        found = [find_placement(name, "float32")[0] for name in ("auto", "cuda:1")]
        assert found == [torch.device("cuda", index), torch.device("cuda:1")]
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert find_placement("auto", "float32")[0] == torch.device("cpu"), "as accelerate launch --cpu says"
