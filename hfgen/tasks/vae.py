"""Variational autoencoders (Kingma and Welling 2014): training objective and pipeline."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.distributions import Normal

from hfgen.config import VAEConfig
from hfgen.data.binarization import Binarizer
from hfgen.data.images import ImageData
from hfgen.data.loader import Batch
from hfgen.data.sources import public_name
from hfgen.losses.vae import (
    count_active_units,
    free_bits_kl,
    iwae_bound,
    kl_to_standard_normal,
    latent_flow_loss,
    optimal_sigma_gaussian,
    reconstruction_nll,
)
from hfgen.models.modeling_hfgen_vae import (
    GaussianMixtureModel,
    LadderVAEModel,
    LatentFlowModel,
    SpatialVAEModel,
    VAEModel,
    VAEModelOutput,
)
from hfgen.pipelines.pipeline_hfgen_vae import VAEPipeline
from hfgen.tasks.base import Diagnosis, Loss, Task
from hfgen.utils.errors import TrainingError, UserError
from hfgen.utils.privacy import public_text
from hfgen.utils.seeds import derive_seed

FITTED_IMAGES = 5_000  # maximum, for the mixture and the analytic standard deviation


class VAETask(Task):
    """A VAE, a Gaussian mixture fitted to the latents of its training images, and for the prior `flow` a flow of them.

    Args:
        config: Network, observation model, objective.
        data: The training images, with labels if the model is class-conditional.

    Raises:
        UserError: if the network does not fit the images, or labels are missing.
    """

    saved_modules = frozenset({"vae", "flow"})
    metric = "negative_elbo"

    def __init__(self, config: VAEConfig, data: ImageData):
        self.config, self.data = config, data
        if len(data) < 2:
            raise UserError(f"a VAE needs at least two images, but {data.source} has {len(data)}")
        if config.class_conditional:
            data.require_labels()
        self.label_names = data.label_names if config.class_conditional else []
        channels, height, width = data.images.shape[1:]
        fields = {
            "sample_size": height if height == width else (height, width),
            "in_channels": channels,
            "latent_dim": config.latent_dim,
            "block_out_channels": config.block_out_channels,
            "layers_per_block": config.layers_per_block,
            "norm_num_groups": config.norm_num_groups,
            "act_fn": config.act_fn,
            "pixel_distribution": config.pixel_distribution.removesuffix("_analytic"),
            "num_classes": len(self.label_names) or None,
        }
        self.vae: VAEModel | LadderVAEModel | SpatialVAEModel
        try:
            if config.ladder_channels:
                linear = {"hidden_sizes": config.hidden_sizes}
                self.vae = LadderVAEModel(**fields, **linear, ladder_channels=config.ladder_channels)
            elif config.spatial_latents:
                decoder = config.decoder_block_out_channels
                names = [public_text(public_name(data.source))]
                self.vae = SpatialVAEModel(**fields, decoder_block_out_channels=decoder, trained_on=names)
            else:
                self.vae = VAEModel(
                    **fields,
                    hidden_sizes=config.hidden_sizes,
                    decoder_block_out_channels=config.decoder_block_out_channels,
                    decoder_hidden_sizes=config.decoder_hidden_sizes,
                    activate_decoder_input=config.activate_decoder_input,
                )
        except ValueError as error:
            raise UserError(str(error)) from error
        if config.pixel_distribution == "gaussian_analytic":
            self.vae.log_std.requires_grad_(False)  # computed from the reconstruction error instead
        self.binarize = Binarizer(config.binarization, data)
        self.mixture = GaussianMixtureModel(config.latent_dim, config.num_mixture_components)
        self.modules: dict[str, nn.Module] = {"vae": self.vae}
        self.flow = None
        if config.prior == "flow":
            sizes = (config.latent_dim, config.flow_hidden_size, config.flow_blocks)
            self.flow = LatentFlowModel(*sizes, num_classes=len(self.label_names) or None)
            self.modules["flow"] = self.flow

    def losses(self, batch: Batch) -> Iterator[Loss]:
        """Yield the loss of the VAE, then that of the flow, if there is one, on the same latents."""
        loss, output = self._vae_loss(batch)
        yield loss
        if self.flow is not None:
            labels = batch.labels.repeat(self.config.num_importance_samples) if self.label_names else None
            yield Loss("flow", latent_flow_loss(self.modules["flow"], output.latents.detach(), labels))

    def _vae_loss(self, batch: Batch) -> tuple[Loss, VAEModelOutput]:
        """Return the negative ELBO or its configured variant, with reconstruction and KL terms, and the output."""
        config = self.config
        labels = batch.labels if config.class_conditional else None
        inputs = self.binarize(batch.images, batch.indices)
        output: VAEModelOutput = self.modules["vae"](inputs, labels, config.num_importance_samples)
        images = inputs.repeat(config.num_importance_samples, 1, 1, 1) / 2 + 0.5
        analytic = config.pixel_distribution == "gaussian_analytic"
        pixels = optimal_sigma_gaussian(output.pixels.mean, images) if analytic else output.pixels
        error = reconstruction_nll(pixels, images).flatten(1)
        divergence = kl_to_standard_normal(output.latent_dist).flatten(0, -2)
        terms = {"reconstruction": error.sum(1).mean(), "kl": divergence.sum(1).mean()}
        if config.num_importance_samples > 1:
            shape = (config.num_importance_samples, len(batch.images))
            latents = output.latents.unflatten(0, shape)
            bound = iwae_bound(error.sum(1).view(shape), latents, output.latent_dist)
            return Loss("vae", -bound.mean(), terms), output
        warm_up = min(1.0, (batch.step + 1) / (config.kl_warmup_steps + 1))
        kl = free_bits_kl(divergence, config.free_bits) * (config.beta * warm_up)
        if config.reduction == "mean":
            return Loss("vae", error.mean() + kl / config.latent_dim, terms), output
        return Loss("vae", error.sum(1).mean() + kl, terms), output

    def pipeline(self) -> VAEPipeline:
        """Return the pipeline, which is saved with its remote code."""
        names = dict(enumerate(self.label_names))
        return VAEPipeline(self.vae, self.mixture, names, self.config.prior, self.config.binarization, self.flow)

    def save(self, folder: Path) -> None:
        """Fit the mixture to the latents of training images, and save the pipeline."""
        self._fit()
        super().save(folder)

    @torch.no_grad()
    def diagnose(self) -> Diagnosis:
        """Check for posterior collapse."""
        if count_active_units(torch.cat([latent_dist.mean for _, _, latent_dist in self._encoded()])):
            return Diagnosis()
        return Diagnosis([
            "posterior collapse: no latent dimension is active and the decoder ignores the latents; a smaller "
            "beta, reduction sum, kl_warmup_steps or free_bits may help"
        ])  # fmt: skip

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses and their terms, and the negative ELBO in nats per image, with one latent per image."""
        metrics = self._vae_loss(batch)[0].values()  # without the flow's, which changes with the encoder
        return metrics | {"negative_elbo": metrics["vae/reconstruction"] + metrics["vae/kl"]}

    def sample(self, num_images: int, seed: int, class_labels: Sequence[int] = ()) -> Tensor:
        """Sample images (see `Task`); for the prior `mixture`, fit it first."""
        if self.config.prior == "mixture":
            self._fit()
        return super().sample(num_images, seed, class_labels)

    def _encoded(self) -> Iterator[tuple[Tensor, Tensor | None, Normal]]:
        """Yield batches of a fixed subset of training images in [−1, 1], with labels and q(z | x)."""
        config, device = self.config, self.vae.device
        generator = torch.Generator().manual_seed(derive_seed("fit", config.seed))
        chosen = torch.randperm(len(self.data), generator=generator)[:FITTED_IMAGES]
        for indices in chosen.split(500):
            images = self.data.images[indices].to(device).float() / 127.5 - 1
            images = self.binarize(images, indices, generator)
            labels = self.data.labels[indices].to(device) if config.class_conditional else None
            yield images, labels, self.vae.encode(images, labels)

    @torch.no_grad()
    def _fit(self) -> None:
        """Fit the mixture, and the analytic standard deviation, to training images."""
        config = self.config
        generator = torch.Generator().manual_seed(derive_seed("latents", config.seed))
        samples, squared_errors = [], []
        for images, labels, latent_dist in self._encoded():
            noise = torch.randn(latent_dist.mean.shape, generator=generator).to(images.device)
            samples.append(latent_dist.mean + latent_dist.stddev * noise)
            difference = self.vae.decode(samples[-1], labels).sample - images
            squared_errors.append(difference.square().flatten(1).mean(1) / 4)  # of pixels in [0, 1]
        if config.pixel_distribution == "gaussian_analytic":
            self.vae.log_std.fill_(torch.cat(squared_errors).mean().sqrt().log())
        if isinstance(self.vae, SpatialVAEModel):
            self.vae.set_statistics(torch.cat(samples))
        latents = torch.cat(samples).cpu().double().numpy()
        if not np.isfinite(latents).all():
            raise TrainingError("the latents are no longer finite; a lower --learning_rate may help")
        components = min(config.num_mixture_components, len(latents))
        state = derive_seed("mixture", config.seed) % 2**32
        fitted = GaussianMixture(components, reg_covar=1e-4, random_state=state).fit(latents)
        self.mixture = GaussianMixtureModel(config.latent_dim, components).to(self.vae.device)
        parameters = (fitted.weights_, fitted.means_, fitted.covariances_)
        self.mixture.set_parameters(*(torch.from_numpy(values) for values in parameters))
