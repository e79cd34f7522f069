"""The networks of a pipeline as plain modules, from float32 tensors to float32 tensors, for export."""

import math
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from hfgen.families import model_of
from hfgen.losses.consistency import estimate, input_scale, network_time
from hfgen.pipelines.consistency import ConsistencyModelPipeline
from hfgen.pipelines.pipeline_hfgen_flow_map import FlowMapPipeline, mean_velocity
from hfgen.sampling.sample import image_shape_of, network_of, require_diffusion, require_pixels
from hfgen.utils.errors import UserError

EXAMPLES = 2  # images of the example inputs; other numbers are possible with what is exported


class _Wrapped(nn.Module):
    """Base of the wrappers of a network that may compute in another precision."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def _given(self, x: Tensor) -> Tensor:
        return x.to(self.network.dtype)


class Denoiser(_Wrapped):
    """The prediction of a diffusion model at `sample` (B, C, H, W) and `timestep` (1,), a float."""

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Return the prediction, (B, C, H, W)."""
        options = {} if class_labels is None else {"class_labels": class_labels}
        return self.network(self._given(sample), timestep, **options).sample.float()


class Encoder(_Wrapped):
    """The posterior of a VAE: means and standard deviations of the latents of `images` (B, C, H, W) in [−1, 1]."""

    def forward(self, images: Tensor, class_labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return two tensors (B, latent_dim)."""
        posterior = self.network.encode(images, class_labels)
        return posterior.mean.float(), posterior.stddev.float()


class Decoder(_Wrapped):
    """The pixel means of a VAE for `latents` (B, latent_dim)."""

    def forward(self, latents: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Return images (B, C, H, W) in [−1, 1]."""
        return self.network.decode(latents, class_labels).sample.float()


class Mixture(_Wrapped):
    """The Gaussian mixture of a VAE: latents from `noise` (B, latent_dim) and `uniform` numbers (B,)."""

    def forward(self, noise: Tensor, uniform: Tensor) -> Tensor:
        """Return latents (B, latent_dim)."""
        return self.network(noise, uniform).sample.float()


class Flow(_Wrapped):
    """The flow of a VAE: latents from `noise` (B, latent_dim)."""

    def forward(self, noise: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Return latents (B, latent_dim)."""
        return self.network.draw(noise, class_labels).sample


class Generator(_Wrapped):
    """The generator of a GAN for `latents` (B, latent_dim)."""

    def forward(self, latents: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Return images (B, C, H, W) in [−1, 1]."""
        return self.network(self._given(latents), class_labels).sample.float()


class ConsistencyStep(_Wrapped):
    """A consistency model in one step, for `latents` (B, C · H · W): standard normal noise."""

    def __init__(self, pipeline: ConsistencyModelPipeline):
        super().__init__(pipeline.unet)
        self.scheduler, self.shape = pipeline.scheduler, image_shape_of(pipeline)
        self.sigma = torch.full((1, 1, 1, 1), float(pipeline.scheduler.config.sigma_max))

    def forward(self, latents: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Return images (B, C, H, W) in [−1, 1]."""
        x = self.sigma * latents.unflatten(1, self.shape)
        inputs = self._given(input_scale(self.scheduler, self.sigma) * x)
        options = {} if class_labels is None else {"class_labels": class_labels}
        prediction = self.network(inputs, network_time(self.sigma), **options).sample.float()
        return estimate(self.scheduler, prediction, x, self.sigma).clamp(-1, 1)


class FlowMapStep(_Wrapped):
    """A flow map in one step, for `latents` (B, C · H · W): standard normal noise."""

    def __init__(self, pipeline: FlowMapPipeline):
        super().__init__(pipeline.unet)
        self.shape = image_shape_of(pipeline)

    def forward(self, latents: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Return images (B, C, H, W) in [−1, 1]."""
        x = latents.unflatten(1, self.shape)
        t = torch.ones_like(latents[:, :1, None, None])
        velocity = mean_velocity(self.network, self._given(x), t, torch.zeros_like(t), class_labels)
        return (x - velocity.float()).clamp(-1, 1)


class Translator(_Wrapped):
    """An image-to-image network for `sample` (B, C, H, W) in [−1, 1], and the noise of each image if it takes it."""

    def forward(self, sample: Tensor, noise_std: Tensor | None = None) -> Tensor:
        """Return images (B, C', H', W') in [−1, 1]."""
        return self.network(self._given(sample), noise_std).sample.float()


@dataclass(frozen=True)
class ExportedNetwork:
    """A network to export.

    Attributes:
        module: Its wrapper.
        inputs: Example inputs by name, of `EXAMPLES` images.
        outputs: Names of the outputs.
        per_call: Names of the inputs that are the same for all images of a call.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    per_call: tuple[str, ...] = ()


def networks_of(pipeline: DiffusionPipeline) -> dict[str, ExportedNetwork]:
    """Return the networks of a pipeline by the names of their files.

    Raises:
        UserError: for a pipeline that hfgen does not know.
    """
    model = model_of(type(pipeline).__name__)
    if model is None:
        raise UserError(f"hfgen cannot export a {type(pipeline).__name__}, which is of none of its families")
    network = network_of(pipeline)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.eval()
    labels = getattr(pipeline, "labels", {})
    classes = {"class_labels": torch.arange(EXAMPLES) % len(labels)} if labels else {}
    if model.network == "vae":
        latents = torch.randn(EXAMPLES, network.config.latent_dim)
        found = {
            "encoder": ExportedNetwork(Encoder(network), {"images": _images(pipeline)} | classes, ("means", "stds")),
            "decoder": ExportedNetwork(Decoder(network), {"latents": latents} | classes, ("images",)),
        }
        if pipeline.config.prior == "mixture":
            drawn = {"noise": latents, "uniform": torch.rand(EXAMPLES)}
            found["mixture"] = ExportedNetwork(Mixture(pipeline.mixture), drawn, ("latents",))
        if pipeline.config.prior == "flow":
            found["flow"] = ExportedNetwork(Flow(pipeline.flow), {"noise": latents} | classes, ("latents",))
        return found
    if model.use == "decode":
        latents = torch.randn(EXAMPLES, network.config.latent_dim)
        return {"generator": ExportedNetwork(Generator(network), {"latents": latents} | classes, ("images",))}
    if model.use == "few_steps":
        step = FlowMapStep(pipeline) if isinstance(pipeline, FlowMapPipeline) else ConsistencyStep(pipeline)
        latents = torch.randn(EXAMPLES, math.prod(image_shape_of(pipeline)))
        return {"generator": ExportedNetwork(step, {"latents": latents} | classes, ("images",))}
    if model.use == "translate":
        return {
            name: ExportedNetwork(Translator(part), {"sample": _given_to(part)} | _noise(part), ("images",))
            for name, part in pipeline.components.items()
            if part is not None
        }
    require_diffusion(pipeline)
    require_pixels(pipeline, "export")
    if network.config.num_class_embeds:
        classes = {"class_labels": torch.arange(EXAMPLES)}
    inputs = {"sample": _images(pipeline), "timestep": torch.tensor([500.0])} | classes
    parts = {"unet": network} | ({"guide": pipeline.guide} if getattr(pipeline, "guide", None) else {})
    outputs = ("prediction",), ("timestep",)
    return {name: ExportedNetwork(Denoiser(part), inputs, *outputs) for name, part in parts.items()}


def _images(pipeline: DiffusionPipeline) -> Tensor:
    return torch.rand(EXAMPLES, *image_shape_of(pipeline)) * 2 - 1


def _given_to(translator: nn.Module) -> Tensor:
    """Return example inputs of an image-to-image network, which takes smaller images if it enlarges them."""
    config = translator.config
    size = config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    shape = (EXAMPLES, config.in_channels, height // config.scale_factor, width // config.scale_factor)
    return torch.rand(shape) * 2 - 1


def _noise(translator: nn.Module) -> dict[str, Tensor]:
    return {"noise_std": torch.full((EXAMPLES,), 0.3)} if translator.config.noise_level_input else {}
