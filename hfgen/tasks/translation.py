"""Paired image-to-image translation (pix2pix, Isola et al. 2017)."""

from collections.abc import Iterator
from pathlib import Path

import PIL.Image
import torch
from torch import Tensor, nn
from torch.nn import functional

from hfgen.config import TranslationConfig
from hfgen.data.degradations import Degraded
from hfgen.data.images import ImageData
from hfgen.data.loader import Batch
from hfgen.data.paired import PairedInputs
from hfgen.figures.grids import comparison_grid, save_picture, to_pil
from hfgen.losses.adversarial import discriminator_loss, discriminator_scores, frozen, generator_loss
from hfgen.losses.similarity import SSIM_PIXELS, structural_similarity
from hfgen.metrics.image_similarity.image_similarity import image_similarity
from hfgen.pipelines.pipeline_hfgen_image_translation import ImageTranslationPipeline
from hfgen.runs.folder import INPUT
from hfgen.sampling.sample import to_uint8
from hfgen.tasks.base import Loss, Task
from hfgen.tasks.image_to_image import make_patch_discriminator, make_translator
from hfgen.utils.errors import UserError
from hfgen.utils.seeds import derive_seed, seed_torch


class TranslationTask(Task):
    """A translation network, and with an adversarial loss a patch discriminator.

    Args:
        config: Inputs, networks, objective.
        data: The target images.

    Raises:
        UserError: if the networks do not fit the images, or the inputs do not match them.
    """

    saved_modules = frozenset({"generator"})
    generates = False
    metric = "psnr"

    def __init__(self, config: TranslationConfig, data: ImageData):
        self.config, self.data = config, data
        self.inputs = PairedInputs(config.to_dict(), data)
        self.extra_datasets = [] if self.inputs.data is None else [self.inputs.data]
        channels, height, width = data.images.shape[1:]
        if config.ssim_weight and min(height, width) < SSIM_PIXELS:
            raise UserError(
                f"ssim_weight needs images of at least {SSIM_PIXELS}×{SSIM_PIXELS} pixels, not {width}×{height}"
            )
        self.generator = make_translator(
            config,
            self.inputs.channels,
            (channels, height, width),
            scale_factor=self.inputs.scale_factor,
            noise_level_input=config.noise_level_input,
            predict_residual=config.predict_residual,
        )
        self.modules: dict[str, nn.Module] = {"generator": self.generator}
        if config.adversarial_weight:
            in_channels = channels + (self.inputs.channels if config.conditional_discriminator else 0)
            self.discriminator = make_patch_discriminator(config, in_channels, (channels, height, width))
            self.modules = {"discriminator": self.discriminator, "generator": self.generator}

    def losses(self, batch: Batch) -> Iterator[Loss]:
        """Yield the discriminator's loss if there is one, then the generator's."""
        inputs = self.inputs(batch.images, batch.indices)
        outputs = self._translate(inputs)
        if not self.config.adversarial_weight:
            yield Loss("generator", *self._reconstruction_loss(outputs, batch.images))
            return
        real, fake = self._discriminate(batch.images, inputs), self._discriminate(outputs.detach(), inputs)
        loss = discriminator_loss(self.config.adversarial_loss, real, fake)
        yield Loss("discriminator", loss, discriminator_scores(self.config.adversarial_loss, real, fake))
        with frozen(self.discriminator):
            loss, terms = self._reconstruction_loss(outputs, batch.images)
            fake = self._discriminate(outputs, inputs)
            real = self._discriminate(batch.images, inputs) if self.config.adversarial_loss == "relativistic" else fake
            terms["adversarial"] = generator_loss(self.config.adversarial_loss, real, fake)
            yield Loss("generator", loss + self.config.adversarial_weight * terms["adversarial"], terms)

    def validate(self, batch: Batch) -> dict[str, Tensor | float]:
        """Return the losses and their terms, and the similarity of outputs and targets: PSNR in dB, SSIM."""
        metrics = super().validate(batch)
        outputs = to_uint8(self._translate(self.inputs(batch.images, batch.indices)))
        return metrics | image_similarity(outputs.float() / 255, to_uint8(batch.images).float() / 255)

    def _translate(self, inputs: Degraded) -> Tensor:
        noise_std = inputs.noise_std if self.config.noise_level_input else None
        return self.modules["generator"](inputs.images, noise_std).sample

    def _discriminate(self, images: Tensor, inputs: Degraded) -> Tensor:
        """Return the patch logits of images, with their inputs if the discriminator is conditional."""
        if self.config.conditional_discriminator:
            upscaled = functional.interpolate(inputs.images, images.shape[-2:])
            images = torch.cat([images, upscaled], 1)
        return self.modules["discriminator"](images).logits

    def _reconstruction_loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted reconstruction loss of outputs, and its terms."""
        config, outputs = self.config, outputs.float()
        terms = {}
        if config.l1_weight:
            terms["l1"] = functional.l1_loss(outputs, targets)
        if config.mse_weight:
            terms["mse"] = functional.mse_loss(outputs, targets)
        if config.psnr_weight:
            errors = (outputs - targets).square().flatten(1).mean(1) / 4  # of pixels in [0, 1]
            terms["psnr"] = 10 * (errors + 1e-8).log10().mean()
        if config.ssim_weight:
            terms["ssim"] = 1 - structural_similarity(outputs / 2 + 0.5, targets / 2 + 0.5)
        weighted = [getattr(config, f"{name}_weight") * term for name, term in terms.items()]
        return sum(weighted, outputs.new_zeros(())), terms

    def pipeline(self) -> ImageTranslationPipeline:
        """Return the pipeline, which is saved with its remote code."""
        return ImageTranslationPipeline(self.generator, degradation=" ".join(self.config.degradation))

    @torch.no_grad()
    def preview(self, num_images: int, seed: int) -> PIL.Image.Image:
        """Return training targets, their inputs and the outputs."""
        images, inputs = self._examples(num_images, seed)
        outputs = self.generator(inputs.images, inputs.noise_std if self.config.noise_level_input else None).sample
        return comparison_grid({"target": images, "input": to_uint8(inputs.images), "output": to_uint8(outputs)})

    def save_figures(self, folder: Path) -> None:
        """Save an input, for those who want to try the model."""
        _, inputs = self._examples(1, self.config.seed)
        save_picture(to_pil(to_uint8(inputs.images)[0]), folder / INPUT)

    def _examples(self, num_images: int, seed: int) -> tuple[Tensor, Degraded]:
        """Return random training targets, uint8 (N, C, H, W), and their inputs."""
        chosen = self.example_indices(num_images, seed)
        images, device = self.data.images[chosen], self.generator.device
        seed_torch(derive_seed("preview", seed), device)
        return images, self.inputs(images.to(device).float() / 127.5 - 1, chosen)
