"""Training on a device that has no double precision, as Apple's GPUs have none."""

import pytest
import torch
from conftest import TINY, TINY_GAN, TINY_TRANSLATION, TINY_VAE
from fake_device import fake_device

from hfgen.config import CycleGANConfig, DDPMConfig, GANConfig, TranslationConfig, VAEConfig
from hfgen.data.images import load_images
from hfgen.data.loader import ImageBatches
from hfgen.tasks.cyclegan import CycleGANTask
from hfgen.tasks.diffusion import DiffusionTask
from hfgen.tasks.gan import GANTask
from hfgen.tasks.translation import TranslationTask
from hfgen.tasks.vae import VAETask


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
        (GANTask, GANConfig, TINY_GAN | {"truncation": 0.7}),
        (GANTask, GANConfig, TINY_GAN | RESIDUAL),
        (VAETask, VAEConfig, TINY_VAE),
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
