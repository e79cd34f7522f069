"""What the choices of network and recipe cost and give: equal training time, then the denoising error on test images.

    python benchmarks/choices.py --dataset_name mnist --seconds 25

Each variant differs from the first, whose attention has heads of 8 channels as is diffusers' default, in what its
name says. The first is repeated at the end, and what two equal runs differ by is what the machine's noise amounts to.
All train for the same wall-clock time on the same machine, one after the other.

The error is that of the averaged weights in predicting the noise, (ε − ε̂)² averaged over 20 noise levels with log-SNR
evenly from −5 to 5, on 1,000 test images with the same noise for every variant, so that it compares networks,
prediction types and schedules alike: it is the integrand of the variational bound (Kingma et al. 2021, eq. 17) on that
range. Multiplications are those of one forward pass. Results go to benchmarks/results/choices.json and, as a table,
choices.md.
"""

import argparse
import dataclasses
import json
import os
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import UNet2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from hfgen.config import DDPMConfig
from hfgen.data.images import load_images
from hfgen.runs.folder import RunFolder
from hfgen.tasks.diffusion import DiffusionTask
from hfgen.training.trainer import Trainer
from hfgen.utils.devices import native_precision

RESULTS = Path(__file__).parent / "results"
BASE = {
    "prediction_type": "v_prediction",
    "block_out_channels": [16, 32, 64],
    "layers_per_block": 1,
    "add_attention": True,
    "attention_head_dim": 8,
    "train_batch_size": 64,
    "optimizer": "adamw",
    "learning_rate": 2e-3,
    "logging_steps": 5,
    "checkpointing_steps": 10**9,
}
FIRST = (
    "channels 16-32-64, 1 layer, batch 64, AdamW 2e-3, v, cosine schedule, GroupNorm 8, SiLU, attention in the middle"
)
VARIANTS = {
    FIRST: {},
    "no attention": {"add_attention": False},
    "attention in the middle with one head": {"attention_head_dim": None},
    "attention at 7×7": {"attention_levels": [2]},
    "channels 32-64-96": {"block_out_channels": [32, 64, 96]},
    "channels 32-64-96, 2 layers": {"block_out_channels": [32, 64, 96], "layers_per_block": 2},
    "channels 8-48-96 (fewer at full size)": {"block_out_channels": [8, 48, 96]},
    "channels 32-64 (two levels)": {"block_out_channels": [32, 64]},
    "pixel-unshuffle stem, channels 48-64": {"block_out_channels": [48, 64], "unshuffle": True},
    "ReLU": {"unet": {"act_fn": "relu"}},
    "GroupNorm 1": {"norm_num_groups": 1},
    "batch 32": {"train_batch_size": 32},
    "batch 128": {"train_batch_size": 128},
    "AdamW 1e-3": {"learning_rate": 1e-3},
    "AdamW 4e-3": {"learning_rate": 4e-3},
    "noise prediction": {"prediction_type": "epsilon"},
    "noise prediction, linear schedule": {"prediction_type": "epsilon", "beta_schedule": "linear"},
    "the first again": {},
}


class Unshuffled(nn.Module):
    """A U-Net on 2×2 blocks of pixels as channels, at half the height and width."""

    def __init__(self, unet: UNet2DModel):
        super().__init__()
        self.unet = unet

    def forward(self, x, timestep):
        """Predict like x, (B, C, H, W), H and W even."""
        prediction = self.unet(F.pixel_unshuffle(x, 2), timestep).sample
        return UNet2DOutput(sample=F.pixel_shuffle(prediction, 2))


class VariantTask(DiffusionTask):
    """A diffusion task whose network may differ in what the configuration has no field for."""

    def __init__(self, config: DDPMConfig, data, unet_fields: dict, unshuffle: bool):
        first = F.pixel_unshuffle(data.images[:1], 2) if unshuffle else data.images[:1]
        super().__init__(config, dataclasses.replace(data, images=first))  # of whose shape the network is
        self.data = data
        fields = {key: value for key, value in self.unet.config.items() if not key.startswith("_")}
        self.unet = UNet2DModel(**(fields | unet_fields))
        self.network = Unshuffled(self.unet) if unshuffle else self.unet
        self.modules = {"unet": self.network}


@torch.no_grad()
def denoising_error(task: VariantTask, images: torch.Tensor, per_pass: int = 100) -> float:
    """Return the mean of (ε − ε̂)² over noise levels and images (uint8 (N, C, H, W)); see the module's docstring."""
    alphas_cumprod = task.scheduler.alphas_cumprod.double()
    log_snr = torch.log(alphas_cumprod / (1 - alphas_cumprod))
    levels = torch.stack([(log_snr - level).abs().argmin() for level in torch.linspace(-5, 5, 20)])
    generator = torch.Generator().manual_seed(0)
    errors = []
    for part in (images.float() / 127.5 - 1).split(per_pass):
        timesteps = levels.repeat(len(part) // len(levels))
        noise = torch.randn(part.shape, generator=generator)
        noised = task.scheduler.add_noise(part, noise, timesteps)
        prediction = task.network(noised, timesteps).sample
        alpha = alphas_cumprod[timesteps].sqrt().float().view(-1, 1, 1, 1)
        sigma = (1 - alpha**2).sqrt()
        if task.config.prediction_type == "v_prediction":
            prediction = alpha * prediction + sigma * noised
        errors.append((prediction - noise).square().mean().item())
    return sum(errors) / len(errors)


def measure(name: str, fields: dict, options, train_images, test_images, folder: Path) -> dict:
    AcceleratorState._reset_state()
    fields = BASE | fields
    unet_fields, unshuffle = fields.pop("unet", {}), fields.pop("unshuffle", False)
    config = DDPMConfig(
        dataset_name=options.dataset_name,
        output_dir=str(folder),
        max_train_seconds=options.seconds,
        mixed_precision=native_precision(),
        **fields,
    )
    torch.manual_seed(0)
    task = VariantTask(config, train_images, unet_fields, unshuffle)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        task.network(torch.zeros(1, *train_images.images.shape[1:]), torch.zeros(1))
    accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=not torch.accelerator.is_available())
    trainer = Trainer(config, task, accelerator, RunFolder(folder))
    trainer.prepare_run_folder()
    trainer.started = time.monotonic()
    trainer.run_loop()
    with trainer._published_weights():
        error = denoising_error(task, test_images.images[:1000])
    return {
        "variant": name,
        "million_multiplications": round(counter.get_total_flops() / 2e6, 1),
        "thousand_parameters": round(sum(p.numel() for p in task.network.parameters()) / 1e3),
        "optimizer_steps": trainer.step,
        "images_per_second": round(trainer.step * config.train_batch_size / trainer.seconds()),
        "denoising_error": round(error, 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset_name", default="mnist")
    parser.add_argument("--seconds", type=float, default=25.0)
    options = parser.parse_args()
    train_images = load_images(options.dataset_name)
    test_images = load_images(options.dataset_name, split="test")
    rows = []
    for name, fields in VARIANTS.items():
        with tempfile.TemporaryDirectory() as temporary:
            rows.append(measure(name, fields, options, train_images, test_images, Path(temporary)))
        print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    command = f"python benchmarks/choices.py --dataset_name {options.dataset_name} --seconds {options.seconds:g}"
    record = {"command": command, "threads": torch.get_num_threads(), "cores": os.cpu_count(), "rows": rows}
    (RESULTS / "choices.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    write_table(record)


def write_table(record: dict) -> None:
    keys = list(record["rows"][0])
    table = [
        f"Written by `{record['command']}` with {record['threads']} threads; each trained for as many seconds.",
        "The attention of the first row has 8 heads of 8 channels each, diffusers' default; each other row differs",
        "from the first in what it says. The docstring of `benchmarks/choices.py` defines the denoising error.",
        "",
        "| " + " | ".join(key.replace("_", " ") for key in keys) + " |",
        "|" + "---|" * len(keys),
        *("| " + " | ".join(str(row[key]) for key in keys) + " |" for row in record["rows"]),
    ]
    (RESULTS / "choices.md").write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    main()
