"""Train and draw with another package, as its own documentation does it; called by `peers.py` in their environment.

    python benchmarks/peer_training.py denoising-diffusion-pytorch small images.npz 300 2000 drawn.npz

`own` has the network, batch size and learning rate of the package's documentation (but for diffusers, whose example
has six levels for images of 64 pixels and more: three here), `small` a network of about the size of hfgen's
five-minute recipe, batches of 32 and a rate of 3e-3. Both keep the package's training loop, objective, average and
sampler, and diffusers' decay of the learning rate, over the seconds that it has. Digits are not mirrored, whatever the
package's default.
"""

import json
import math
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import torch

STEPS = 20  # of each sampler
BATCH = 250  # images drawn at a time
Draw = Callable[[int], torch.Tensor]  # from a number of images to images (N, 1, H, W) in [0, 1]


def smalldiffusion(size: str, images: torch.Tensor, seconds: float) -> tuple[Draw, int]:
    """Do as `examples/fashion_mnist_unet.py` of smalldiffusion 0.5."""
    from smalldiffusion import Scaled, ScheduleLogLinear, Unet, samples, training_loop
    from torch_ema import ExponentialMovingAverage

    own = size == "own"
    layout = {"ch": 64, "ch_mult": (1, 1, 2)} if own else {"ch": 32, "ch_mult": (1, 1, 2), "num_res_blocks": 1}
    model = Scaled(Unet)(images.shape[-1], 1, 1, attn_resolutions=(14,) if own else (), **layout)
    schedule = ScheduleLogLinear(sigma_min=0.01, sigma_max=20, N=800)
    batch, rate = (1024, 7e-4) if own else (32, 3e-3)
    loader = torch.utils.data.DataLoader(images * 2 - 1, batch_size=batch, shuffle=True)
    average = ExponentialMovingAverage(model.parameters(), decay=0.999)
    begun, trained = time.monotonic(), 0
    for step in training_loop(loader, model, schedule, epochs=10**6, lr=rate):
        average.update()
        trained += len(step.x0)
        if time.monotonic() - begun > seconds:
            break

    def draw(number: int) -> torch.Tensor:
        with average.average_parameters():
            *_, drawn = samples(model, schedule.sample_sigmas(STEPS), gam=1.6, batchsize=number)
        return drawn / 2 + 0.5

    return draw, trained


def denoising_diffusion_pytorch(size: str, images: torch.Tensor, seconds: float) -> tuple[Draw, int]:
    """Do as the README of denoising-diffusion-pytorch 2.3."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet

    own = size == "own"
    unet = Unet(dim=64 if own else 16, dim_mults=(1, 2, 4), channels=1)
    diffusion = GaussianDiffusion(unet, image_size=images.shape[-1], timesteps=1000, sampling_timesteps=STEPS)
    batch, rate = (32, 8e-5) if own else (32, 3e-3)
    with tempfile.TemporaryDirectory() as folder:
        for index, image in enumerate(images):
            PIL.Image.fromarray((image[0] * 255).round().byte().numpy()).save(Path(folder, f"{index:05}.png"))
        trainer = Trainer(
            diffusion,
            folder,
            train_batch_size=batch,
            train_lr=rate,
            train_num_steps=10**9,
            gradient_accumulate_every=2 if own else 1,
            save_and_sample_every=10**9,
            augment_horizontal_flip=False,
            calculate_fid=False,
            results_folder=f"{folder}/results",
        )
        stop = threading.Timer(seconds, lambda: setattr(trainer, "train_num_steps", 0))
        stop.start()
        trainer.train()
    average = trainer.ema.ema_model.eval()
    trained = trainer.step * batch * trainer.gradient_accumulate_every
    return lambda number: average.sample(batch_size=number), trained


def diffusers_example(size: str, images: torch.Tensor, seconds: float) -> tuple[Draw, int]:
    """Do as diffusers' `train_unconditional.py` on grey images of their own size, and draw by DPM-Solver++."""
    from diffusers import DDPMPipeline, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel

    own = size == "own"
    layout = {"block_out_channels": (128, 128, 256), "layers_per_block": 2} if own else {
        "block_out_channels": (16, 32, 64), "layers_per_block": 1, "norm_num_groups": 8, "add_attention": False,
    }  # fmt: skip
    attention = ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D") if own else ("DownBlock2D",) * 3
    model = UNet2DModel(
        sample_size=images.shape[-1],
        in_channels=1,
        out_channels=1,
        down_block_types=attention,
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(attention)),
        **layout,
    )
    batch, rate = (16, 1e-4) if own else (32, 3e-3)
    schedule = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    warm_up = 500 if own else 50  # steps
    average = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    loader = torch.utils.data.DataLoader(images * 2 - 1, batch_size=batch, shuffle=True)
    begun, trained, steps = time.monotonic(), 0, 0
    while time.monotonic() - begun < seconds:
        for clean in loader:
            decay = 0.5 * (1 + math.cos(math.pi * min(1.0, (time.monotonic() - begun) / seconds)))
            optimizer.param_groups[0]["lr"] = rate * min(1.0, steps / warm_up) * decay
            noise = torch.randn_like(clean)
            timesteps = torch.randint(0, 1000, (len(clean),))
            predicted = model(schedule.add_noise(clean, noise, timesteps), timesteps).sample
            torch.nn.functional.mse_loss(predicted, noise).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            average.step(model.parameters())
            trained += len(clean)
            steps += 1
            if time.monotonic() - begun > seconds:
                break
    average.copy_to(model.parameters())
    solver = DPMSolverMultistepScheduler.from_config(schedule.config, timestep_spacing="trailing")
    pipeline = DDPMPipeline(model.eval(), solver)
    pipeline.set_progress_bar_config(disable=True)

    def draw(number: int) -> torch.Tensor:
        drawn = pipeline(batch_size=number, num_inference_steps=STEPS, output_type="np").images
        return torch.from_numpy(drawn).permute(0, 3, 1, 2)

    return draw, trained


PEERS = {
    "smalldiffusion": smalldiffusion,
    "denoising-diffusion-pytorch": denoising_diffusion_pytorch,
    "diffusers": diffusers_example,
}


def main() -> None:
    peer, size, source, seconds, number, output = sys.argv[1:]
    torch.manual_seed(0)
    torch.set_num_threads(2)
    images = torch.from_numpy(np.load(source)["images"])[:, None].float() / 255
    draw, trained = PEERS[peer](size, images, float(seconds))
    with torch.no_grad():
        drawn = torch.cat([draw(BATCH) for _ in range(int(number) // BATCH)])
    np.savez(output, images=(drawn[:, 0].clamp(0, 1) * 255).round().byte().numpy())
    print(json.dumps({"images_trained": trained}))


if __name__ == "__main__":
    main()
