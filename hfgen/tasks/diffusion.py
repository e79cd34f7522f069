"""Denoising diffusion (Ho et al. 2020): predict from a noised image what was mixed into it."""

from collections.abc import Iterator
from pathlib import Path

import PIL.Image
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from hfgen.batches import Batch
from hfgen.config import DDPMConfig
from hfgen.data import ImageData
from hfgen.errors import UserError
from hfgen.figures import image_grid
from hfgen.losses import diffusion_target
from hfgen.sampling import make_scheduler, sample


class DiffusionTask:
    """An unconditional DDPM of stock diffusers classes: `UNet2DModel`, `DDPMScheduler`, `DDPMPipeline`.

    Args:
        config: Network, noise schedule, prediction type.
        data: The training images.

    Raises:
        UserError: if the network cannot take such images, or the preview's scheduler does not fit the model.
    """

    published = frozenset({"unet"})
    index_file = DDPMPipeline.config_name

    def __init__(self, config: DDPMConfig, data: ImageData):
        self.config = config
        channels, height, width = data.images.shape[1:]
        levels = len(config.block_out_channels)
        if height % 2 ** (levels - 1) or width % 2 ** (levels - 1):
            fitting = [size - size % 2 ** (levels - 1) for size in (height, height + 2 ** (levels - 1))]
            raise UserError(
                f"a U-Net with {levels} entries in block_out_channels halves the images {levels - 1} times, which "
                f"{height}×{width} pixels do not allow; use fewer entries, or a --resolution such as "
                + " or ".join(str(size) for size in fitting if size)
            )
        attention = [level in config.attention_levels for level in range(levels)]
        self.unet = UNet2DModel(
            sample_size=height if height == width else (height, width),
            in_channels=channels,
            out_channels=channels,
            block_out_channels=tuple(config.block_out_channels),
            layers_per_block=config.layers_per_block,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
            add_attention=config.add_attention,
            attention_head_dim=config.attention_head_dim,
            norm_num_groups=config.norm_num_groups,
            dropout=config.dropout,
            act_fn="silu",
        )
        self.scheduler = DDPMScheduler(
            num_train_timesteps=config.num_train_timesteps,
            beta_schedule=config.beta_schedule,
            prediction_type=config.prediction_type,
            timestep_spacing="trailing",  # begins at pure noise whatever the number of steps
        )
        make_scheduler(config.scheduler, self.scheduler)  # refuse a misfit now, not at the first grid
        self.modules: dict[str, nn.Module] = {"unet": self.unet}

    def losses(self, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Yield the mean squared error of the prediction at uniformly drawn timesteps (Ho et al. 2020, eq. 14)."""
        images = batch.images
        noise = torch.randn_like(images)
        timesteps = torch.randint(self.config.num_train_timesteps, (len(images),), device=images.device)
        noised = self.scheduler.add_noise(images, noise, timesteps)
        prediction = self.modules["unet"](noised, timesteps).sample
        yield (
            "unet",
            F.mse_loss(prediction.float(), diffusion_target(self.scheduler, images, noise, timesteps)),
        )

    def pipeline(self) -> DDPMPipeline:
        """Return the stock pipeline, which loads anywhere with diffusers alone."""
        return DDPMPipeline(unet=self.unet, scheduler=self.scheduler)

    def save(self, folder: Path) -> None:
        """Save the pipeline."""
        self.pipeline().save_pretrained(folder, safe_serialization=True)

    def preview(self, num_images: int, seed: int) -> PIL.Image.Image:
        """Draw a grid of samples."""
        batches = sample(
            self.pipeline(),
            num_images=num_images,
            num_inference_steps=self.config.num_inference_steps,
            scheduler=self.config.scheduler,
            seed=seed,
        )
        return image_grid(torch.cat([states[-1] for states in batches]))
