"""Images from a `MaskedPixelsModel`. This file travels with the weights, so it imports nothing of hfgen."""

import math

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor


class MaskedPixelsPipeline(DiffusionPipeline):
    """Unmasks images step by step, the most confident pixels first (Chang et al. 2022, section 3.2).

    Args:
        network: A `MaskedPixelsModel`.
        num_inference_steps: Steps, unless the call says otherwise.
    """

    def __init__(self, network: ModelMixin, num_inference_steps: int = 16):
        super().__init__()
        self.register_modules(network=network)
        self.register_to_config(num_inference_steps=num_inference_steps)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Draw images.

        Args:
            batch_size: How many.
            num_inference_steps: Steps of decoding.
            generator: One torch generator for all images, or one for each.
            output_type: `pil`, `np` (B, H, W, C) or `pt` (B, C, H, W), in [0, 1].
            return_dict: Return an `ImagePipelineOutput` instead of a tuple.
        """
        config, steps = self.network.config, num_inference_steps or self.config.num_inference_steps
        shape = (batch_size, config.in_channels, config.sample_size, config.sample_size)
        levels = torch.full(shape, config.num_levels, device=self.device)
        for step in range(steps):
            noise = randn_tensor((batch_size, config.num_levels, *shape[1:]), generator=generator, device=self.device)
            gumbel = -torch.log(-torch.log(torch.special.ndtr(noise).clamp(1e-6, 1 - 1e-6)))
            scores = self.network(levels).logits.float().log_softmax(1)
            drawn = (scores + gumbel).argmax(1)
            confidence = scores.gather(1, drawn[:, None])[:, 0].flatten(1)
            confidence[levels.flatten(1) < config.num_levels] = math.inf  # unmasked before
            levels = torch.where(levels < config.num_levels, levels, drawn)
            masked = int(math.cos(math.pi / 2 * (step + 1) / steps) * confidence.shape[1])
            if masked:
                least = confidence.topk(masked, largest=False).indices
                levels = levels.flatten(1).scatter(1, least, config.num_levels).view(shape)
        images = levels.float() / (config.num_levels - 1) * 2 - 1
        images = VaeImageProcessor(vae_scale_factor=1).postprocess(images, output_type=output_type)
        return ImagePipelineOutput(images) if return_dict else (images,)
