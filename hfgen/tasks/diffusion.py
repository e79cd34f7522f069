"""Denoising diffusion (Ho et al. 2020) and rectified flow (Liu et al. 2023): training objective and pipeline."""

import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import (
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    SchedulerMixin,
)
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import nn

from hfgen.config import DDPMConfig
from hfgen.data.clusters import with_clusters
from hfgen.data.images import ImageData, load_training_images
from hfgen.data.loader import Batch
from hfgen.figures.animations import save_film
from hfgen.losses.diffusion import FLOW_PREDICTION, alpha_sigma, diffusion_target, loss_weights, sample_timesteps
from hfgen.pipelines.pipeline_hfgen_class_conditional_diffusion import ClassConditionalDiffusionPipeline
from hfgen.pipelines.pipeline_hfgen_cluster_conditional_diffusion import ClusterConditionalDiffusionPipeline
from hfgen.runs.folder import ANIMATION
from hfgen.sampling.sample import check_sampling, film
from hfgen.sampling.schedulers import make_scheduler
from hfgen.tasks.base import Loss, Task
from hfgen.tasks.unet import make_unet

FILM_IMAGES, FILM_FRAMES = 4, 20  # keeps the file below 0.5 MB


class DiffusionTask(Task):
    """A diffusion model: `UNet2DModel`, a diffusers scheduler, and `DDPMPipeline` if without classes and clusters.

    Args:
        config: Network, noise schedule, prediction type.
        data: The images, with labels if the model is class-conditional.

    Raises:
        UserError: if the network does not fit the images, labels are missing, or the preview's scheduler or guidance
            does not fit the model.
    """

    saved_modules = frozenset({"unet"})
    loss_metric = "loss/unet"

    def __init__(self, config: DDPMConfig, data: ImageData):
        if config.num_clusters:
            training = data if data.split == config.train_split else load_training_images(config)
            data = with_clusters(data, training, config.num_clusters, config.seed)
        self.config, self.data = config, data
        if config.class_conditional:
            data.require_labels()
        self.label_names = data.label_names if config.class_conditional or config.num_clusters else []
        self.unet = make_unet(
            config,
            tuple(data.images.shape[1:]),
            num_class_embeds=len(self.label_names) + 1 if self.label_names else None,  # the last is the null label
        )
        self.snapshot_step = config.guide_step
        self.scheduler = make_noise_schedule(config)
        check_sampling(self.pipeline(), **self.sampler())  # fail now, not at the first preview
        self.modules: dict[str, nn.Module] = {"unet": self.unet}

    def losses(self, batch: Batch) -> Iterator[Loss]:
        """Yield the weighted mean squared error of the prediction at sampled timesteps (Ho et al. 2020, eq. 14)."""
        config, images = self.config, batch.images
        noise = torch.randn_like(images)
        timesteps = sample_timesteps(
            config.timestep_density, self.scheduler, len(images), config.logit_mean, config.logit_std
        )
        alpha, sigma = (level.to(images.device) for level in alpha_sigma(self.scheduler, timesteps))
        classes = {}
        if self.label_names:
            dropped = torch.rand(len(images), device=images.device) < config.class_dropout_prob
            classes = {"class_labels": torch.where(dropped, len(self.label_names), batch.labels)}
        x = alpha * images + sigma * noise
        prediction = self.modules["unet"](x, timesteps.to(images.device), **classes).sample
        target = diffusion_target(config.prediction_type, images, noise, alpha, sigma)
        weights = loss_weights(config.loss_weighting, config.prediction_type, alpha, sigma, config.snr_gamma)
        yield Loss("unet", (weights * (prediction.float() - target).square()).mean())

    def pipeline(self) -> DiffusionPipeline:
        """Return the pipeline, which loads with diffusers alone."""
        if not self.label_names:
            return DDPMPipeline(unet=self.unet, scheduler=self.scheduler)
        # so that the pipeline samples well by default
        solver = make_scheduler(self.config.scheduler, self.scheduler, self.config.num_inference_steps)
        defaults = {
            "guidance_scale": self.config.guidance_scale,
            "guidance_interval": dict(zip(("first", "last"), self.config.guidance_interval, strict=True)),
            "num_inference_steps": self.config.num_inference_steps,
            "guide": self.snapshot,
        }
        if self.config.class_conditional:
            names, learnt_no_class = dict(enumerate(self.label_names)), self.config.class_dropout_prob > 0
            return ClassConditionalDiffusionPipeline(self.unet, solver, names, learnt_no_class, **defaults)
        sizes = self.data.labels.bincount(minlength=self.config.num_clusters)
        shares = dict(enumerate((sizes.double() / len(self.data)).tolist()))
        return ClusterConditionalDiffusionPipeline(self.unet, solver, shares, **defaults)

    def take_snapshot(self) -> None:
        """Keep the network as the guide of autoguidance."""
        self.snapshot = copy.deepcopy(self.unet).eval().requires_grad_(False)

    def load_snapshot(self, folder: Path) -> None:
        """Load the guide of a saved model, if it has one."""
        self.snapshot, file = None, folder / "guide" / SAFETENSORS_WEIGHTS_NAME
        if file.is_file():
            self.take_snapshot()  # which computes in the same precision as the network
            self.snapshot.load_state_dict(load_file(file))

    def save_figures(self, folder: Path) -> None:
        """Save an animation of the denoising process."""
        states = film(self.pipeline(), num_images=FILM_IMAGES, num_frames=FILM_FRAMES, **self.sampler())
        save_film(*states, folder / ANIMATION)


def make_noise_schedule(config: DDPMConfig) -> SchedulerMixin:
    """Build the scheduler of the training noise levels.

    Beta schedules range from 1e-4 to 0.02 for 1,000 timesteps (Ho et al. 2020, section 4). For T timesteps both are
    scaled by 1,000/T, so that x_T is close to pure noise for small T too (Nichol and Dhariwal 2021).
    """
    if config.prediction_type == FLOW_PREDICTION:
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=config.num_train_timesteps)
    levels = {
        "num_train_timesteps": config.num_train_timesteps,
        "beta_schedule": config.beta_schedule,
        "beta_start": 1e-4 * 1000 / config.num_train_timesteps,
        "beta_end": 0.02 * 1000 / config.num_train_timesteps,
    }
    if config.beta_schedule == "sigmoid":  # other schedulers do not support it by name
        levels["trained_betas"] = DDPMScheduler(**levels).betas.tolist()
    return DDPMScheduler(
        **levels,
        rescale_betas_zero_snr=config.rescale_betas_zero_snr,
        prediction_type=config.prediction_type,
        timestep_spacing="trailing",  # sampling starts at the last timestep for any number of steps
    )
