"""Flow maps from scratch (SoFlow, Luo et al. 2025): training objective and pipeline."""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from hfgen.config import FlowMapConfig
from hfgen.data.images import ImageData
from hfgen.data.loader import Batch
from hfgen.losses.flow_map import gap, guided_velocity, mean_velocity_target, sample_times, weighted_error
from hfgen.pipelines.pipeline_hfgen_flow_map import FlowMapPipeline, mean_velocity
from hfgen.tasks.base import Loss, Task
from hfgen.tasks.unet import make_unet


class FlowMapTask(Task):
    """A network that jumps from any time of a flow to any earlier one (Luo et al. 2025, arXiv:2512.15657).

    It has no teacher: two points of the straight path between an image and noise must lead to the same end. That takes
    two evaluations of the network, the second without gradients.

    Args:
        config: Network, times, guidance.
        data: The images, with labels if the model is class-conditional.

    Raises:
        UserError: if the network does not fit the images, or labels are missing.
    """

    saved_modules = frozenset({"unet"})

    def __init__(self, config: FlowMapConfig, data: ImageData):
        self.config, self.data = config, data
        if config.class_conditional:
            data.require_labels()
        self.label_names = data.label_names if config.class_conditional else []
        shape = tuple(data.images.shape[1:])
        self.unet = make_unet(
            config,
            shape,
            in_channels=shape[0] + 1,  # the last one is t − s
            num_class_embeds=len(self.label_names) + 1 if self.label_names else None,  # the last is the null label
        )
        self.modules: dict[str, nn.Module] = {"unet": self.unet}

    def losses(self, batch: Batch) -> Iterator[Loss]:
        """Yield the weighted squared error of the mean velocity; `unet/mse` is without the weights."""
        config, images = self.config, batch.images
        noise = torch.randn_like(images)
        start, end = (config.logit_mean, config.logit_std), (config.end_logit_mean, config.end_logit_std)
        t, s = (time.to(images.device) for time in sample_times(len(images), config.flow_fraction, start, end))
        labels = None
        if self.label_names:
            dropped = torch.rand(len(images), device=images.device) < config.class_dropout_prob
            labels = torch.where(dropped, len(self.label_names), batch.labels)
        x = (1 - t) * images + t * noise
        velocity = self._guided(noise - images, x, t, labels)
        rho = gap(batch.progress, config.initial_gap, config.final_gap)
        step = rho * (s - t)
        device = images.device
        with torch.random.fork_rng([device] * (device.type != "cpu"), device_type=device.type):  # the same dropout
            prediction = self._predict(x, t, s, labels)
        with torch.no_grad():
            later = self._predict(x + step * velocity, t + step, s, labels)
        target = mean_velocity_target(velocity, prediction, later, rho)
        loss, mse = weighted_error(prediction, target, config.loss_power)
        yield Loss("unet", loss, {"mse": mse})

    def validate(self, batch: Batch) -> dict[str, Tensor | float]:
        """Return the losses of held-out images as at the end of the training, so that they can be compared."""
        return super().validate(dataclasses.replace(batch, progress=1.0))

    def pipeline(self) -> FlowMapPipeline:
        """Return the pipeline, which loads with diffusers alone."""
        return FlowMapPipeline(self.unet, dict(enumerate(self.label_names)), self.config.num_inference_steps)

    def _predict(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None) -> Tensor:
        return mean_velocity(self.modules["unet"], x, t, s, labels).float()

    @torch.no_grad()
    def _guided(self, velocity: Tensor, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """Return the velocity at x_t, guided where there is a label, within the interval."""
        if self.config.guidance_scale == 1:
            return velocity
        null, (first, last) = len(self.label_names), self.config.guidance_interval
        both, twice = torch.cat([labels, torch.full_like(labels, null)]), torch.cat([t, t])
        conditional, unconditional = self._predict(torch.cat([x, x]), twice, twice, both).chunk(2)
        is_guided = (first <= t) & (t <= last) & (labels != null).view(-1, 1, 1, 1)
        scale = torch.where(is_guided, self.config.guidance_scale, 1.0)
        return guided_velocity(velocity, conditional, unconditional, scale)
