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
from torch import Tensor, nn

from hfgen.config import DDPMConfig
from hfgen.config.recipes import read_recipes
from hfgen.config.training import TrainingConfig
from hfgen.data.clusters import with_clusters
from hfgen.data.images import ImageData, load_training_images
from hfgen.data.loader import Batch
from hfgen.figures.animations import save_film
from hfgen.losses.diffusion import FLOW_PREDICTION, alpha_sigma, diffusion_target, loss_weights, sample_timesteps
from hfgen.models.modeling_hfgen_vae import SpatialVAEModel
from hfgen.pipelines.loading import load
from hfgen.pipelines.pipeline_hfgen_class_conditional_diffusion import ClassConditionalDiffusionPipeline
from hfgen.pipelines.pipeline_hfgen_cluster_conditional_diffusion import ClusterConditionalDiffusionPipeline
from hfgen.pipelines.pipeline_hfgen_vae import VAEPipeline
from hfgen.runs.checkpoints import find_checkpoint
from hfgen.runs.folder import ANIMATION, CHECKPOINTS, run_fields
from hfgen.sampling.sample import check_sampling, decoder_of, film, image_shape_of, size_of
from hfgen.sampling.schedulers import make_scheduler
from hfgen.tasks.base import Loss, Task
from hfgen.tasks.unet import make_unet
from hfgen.utils.devices import AUTOCAST
from hfgen.utils.errors import UserError
from hfgen.utils.files import local_path

FILM_IMAGES, FILM_FRAMES = 4, 20  # keeps the file below 0.5 MB


class DiffusionTask(Task):
    """A diffusion model: `UNet2DModel`, a diffusers scheduler, and `DDPMPipeline` if without classes and clusters.

    In latent diffusion (Rombach et al. 2022), a VAE encodes each batch, and the network learns the posterior means,
    shifted and scaled by channel by the statistics of sampled latents (`SpatialVAEModel.set_statistics`).

    Args:
        config: Network, noise schedule, prediction type.
        data: The images, with labels if the model is class-conditional.

    Raises:
        UserError: if the network or the VAE does not fit the images, labels are missing, or the preview's scheduler or
            guidance does not fit the model.
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
        shape = tuple(data.images.shape[1:])
        self.vae = _own_vae(config, shape) if config.vae else None
        self.unet = make_unet(
            config,
            self.vae.latent_shape if self.vae else shape,
            of="latents" if self.vae else "pixels",
            num_class_embeds=len(self.label_names) + 1 if self.label_names else None,  # the last is the null label
        )
        self.snapshot_step = config.guide_step
        self.scheduler = make_noise_schedule(config)
        check_sampling(self.pipeline(), **self.sampler())  # fail now, not at the first preview
        self.modules: dict[str, nn.Module] = {"unet": self.unet}

    def fixed_networks(self) -> list[nn.Module]:
        """Return the VAE, if there is one."""
        return [self.vae] if self.vae else []

    def remarks(self) -> list[str]:
        """Warn of held-out images that the VAE may have been trained on, as far as its run tells."""
        config = self.config
        theirs = run_fields(Path(config.vae).expanduser()) if config.vae else {}
        own_data = (config.dataset_name, config.train_data_dir)
        if (theirs.get("dataset_name"), theirs.get("train_data_dir")) != own_data:
            return []
        names = ["train_split"]
        if config.validation_fraction or config.test_fraction:
            names += ["validation_fraction", "test_fraction"]
        used = {name: (theirs.get(name, getattr(TrainingConfig, name)), getattr(config, name)) for name in names}
        others = [f"{name} {before}, not {now}" for name, (before, now) in used.items() if before != now]
        if not others:
            return []
        return [
            f"warning: the VAE was trained with {' and '.join(others)}, so images held out here may have trained it"
        ]

    def losses(self, batch: Batch) -> Iterator[Loss]:
        """Yield the weighted mean squared error of the prediction at sampled timesteps (Ho et al. 2020, eq. 14)."""
        config, images = self.config, self._encoded(batch.images)
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
            "vae": self._placed_vae(),
        }
        if self.config.class_conditional:
            names, learnt_no_class = dict(enumerate(self.label_names)), self.config.class_dropout_prob > 0
            return ClassConditionalDiffusionPipeline(self.unet, solver, names, learnt_no_class, **defaults)
        sizes = self.data.labels.bincount(minlength=self.config.num_clusters)
        shares = dict(enumerate((sizes.double() / len(self.data)).tolist()))
        return ClusterConditionalDiffusionPipeline(self.unet, solver, shares, **defaults)

    def _placed_vae(self) -> SpatialVAEModel | None:
        """Return the VAE, if there is one, on the device of the network, which the training loop moves."""
        return self.vae and self.vae.to(self.unet.device)

    @torch.no_grad()
    def _encoded(self, images: Tensor) -> Tensor:
        """Return images (B, C, H, W) in [−1, 1] as they are, or their latents (B, c, h, w)."""
        if self.vae is None:
            return images
        dtype = AUTOCAST.get(self.config.mixed_precision)
        with torch.autocast(images.device.type, dtype, enabled=dtype is not None):
            return self._placed_vae().encode_map(images)

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


def _own_vae(config: DDPMConfig, image_shape: tuple[int, int, int]) -> SpatialVAEModel:
    """Return the VAE of the checkpoint that a run is resumed from, or else the one that the configuration names.

    Raises:
        UserError: see `load_vae`.
    """
    name, checkpoints = config.resume_from_checkpoint, local_path(config.output_dir) / CHECKPOINTS
    checkpoint = find_checkpoint(checkpoints, name, lambda problem: None) if name else None
    if checkpoint is None:
        return load_vae(config.vae, image_shape)
    if (vae := decoder_of(load(str(checkpoint)))) is None:
        raise UserError(f"{checkpoint} has no VAE, so it is of another run; start a new one in another output_dir")
    return vae.eval().requires_grad_(False)


def load_vae(name: str, image_shape: tuple[int, int, int]) -> SpatialVAEModel:
    """Load the VAE of a latent diffusion model of images (C, H, W), from a run, a folder, the Hub or a recipe.

    Raises:
        UserError: if there is none, it has no spatial latents, or is for other images.
    """
    try:
        pipeline = load(name)
    except UserError as error:
        recipe = Path(name).name
        if name == recipe or recipe not in read_recipes() or Path(name).expanduser().exists():
            raise
        raise UserError(f"{error}; train this VAE first: hfgen train vae --config {recipe}") from error
    vae = pipeline.components.get("vae")
    if not isinstance(pipeline, VAEPipeline) or not isinstance(vae, SpatialVAEModel):
        raise UserError(f"{name} is no VAE with spatial latents; train one with hfgen train vae --spatial_latents")
    if (own := image_shape_of(pipeline)) != image_shape:
        raise UserError(f"the VAE {name} is for images of {size_of(own)}, but these have {size_of(image_shape)}")
    return vae.eval().requires_grad_(False)


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
    if config.vae:
        levels["clip_sample"] = False  # latents are not limited to [−1, 1]
    if config.beta_schedule == "sigmoid":  # other schedulers do not support it by name
        levels["trained_betas"] = DDPMScheduler(**levels).betas.tolist()
    return DDPMScheduler(
        **levels,
        rescale_betas_zero_snr=config.rescale_betas_zero_snr,
        prediction_type=config.prediction_type,
        timestep_spacing="trailing",  # sampling starts at the last timestep for any number of steps
    )
