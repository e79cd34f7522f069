"""Image-to-image translation with pairs (Isola et al. 2017): a network makes each image of what became of it."""

from collections.abc import Iterator

import PIL.Image
import torch
from torch import Tensor, nn
from torch.nn import functional

from hfgen.config import TranslationConfig
from hfgen.data.degradations import Degraded
from hfgen.data.images import ImageData
from hfgen.data.loader import Batch
from hfgen.data.paired import PairedInputs
from hfgen.figures.grids import comparison_grid
from hfgen.losses.adversarial import discriminator_loss, discriminator_scores, frozen, generator_loss
from hfgen.losses.similarity import SSIM_PIXELS, structural_similarity
from hfgen.pipelines.pipeline_hfgen_image_translation import ImageTranslationPipeline
from hfgen.sampling.sample import to_uint8
from hfgen.tasks.base import Loss, Task
from hfgen.tasks.image_to_image import make_patch_discriminator, make_translator
from hfgen.utils.errors import UserError
from hfgen.utils.seeds import derive_seed, seed_torch


class TranslationTask(Task):
    """A network that translates images, and with an adversarial loss a discriminator of its results.

    Args:
        config: What images are made of, networks, objective.
        data: The images that are to be made.

    Raises:
        UserError: if the networks cannot take such images, or there is nothing to make them of.
    """

    saved_modules = frozenset({"generator"})

    def __init__(self, config: TranslationConfig, data: ImageData):
        self.config, self.data = config, data
        self.inputs = PairedInputs(config.to_dict(), data, config.train_split)
        self.extra_datasets = [] if self.inputs.data is None else [self.inputs.data]
        channels, height, width = data.images.shape[1:]
        if config.ssim_weight and min(height, width) < SSIM_PIXELS:
            raise UserError(f"ssim_weight needs images of {SSIM_PIXELS} pixels or more, not of {width}×{height}")
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
            shown = channels + (self.inputs.channels if config.conditional_discriminator else 0)
            self.discriminator = make_patch_discriminator(config, shown, (channels, height, width))
            self.modules = {"discriminator": self.discriminator, "generator": self.generator}

    def losses(self, batch: Batch) -> Iterator[Loss]:
        """Yield the discriminator's loss if there is one, then the generator's."""
        given = self.inputs(batch.images, batch.indices)
        made = self._translate(given)
        if not self.config.adversarial_weight:
            yield Loss("generator", *self._errors(made, batch.images))
            return
        real, fake = self._discriminate(batch.images, given), self._discriminate(made.detach(), given)
        loss = discriminator_loss(self.config.adversarial_loss, real, fake)
        yield Loss("discriminator", loss, discriminator_scores(self.config.adversarial_loss, real, fake))
        with frozen(self.discriminator):
            loss, terms = self._errors(made, batch.images)
            fake = self._discriminate(made, given)
            real = self._discriminate(batch.images, given) if self.config.adversarial_loss == "relativistic" else fake
            terms["adversarial"] = generator_loss(self.config.adversarial_loss, real, fake)
            yield Loss("generator", loss + self.config.adversarial_weight * terms["adversarial"], terms)

    def _translate(self, given: Degraded) -> Tensor:
        noise_std = given.noise_std if self.config.noise_level_input else None
        return self.modules["generator"](given.images, noise_std).sample

    def _discriminate(self, images: Tensor, given: Degraded) -> Tensor:
        """Return D of the patches of images, and of what they were made of where it is shown that."""
        if self.config.conditional_discriminator:
            enlarged = functional.interpolate(given.images, images.shape[-2:])
            images = torch.cat([images, enlarged], 1)
        return self.modules["discriminator"](images).logits

    def _errors(self, made: Tensor, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of what is wrong with images, and its terms."""
        config, made = self.config, made.float()
        terms = {}
        if config.l1_weight:
            terms["l1"] = functional.l1_loss(made, images)
        if config.mse_weight:
            terms["mse"] = functional.mse_loss(made, images)
        if config.psnr_weight:
            errors = (made - images).square().flatten(1).mean(1) / 4  # of pixels from 0 to 1
            terms["psnr"] = 10 * (errors + 1e-8).log10().mean()
        if config.ssim_weight:
            terms["ssim"] = 1 - structural_similarity(made / 2 + 0.5, images / 2 + 0.5)
        weighted = [getattr(config, f"{name}_weight") * term for name, term in terms.items()]
        return sum(weighted, made.new_zeros(())), terms

    def pipeline(self) -> ImageTranslationPipeline:
        """Return the pipeline, whose files travel with the weights."""
        return ImageTranslationPipeline(self.generator, degradation=" ".join(self.config.degradation))

    @torch.no_grad()
    def preview(self, num_images: int, seed: int) -> PIL.Image.Image:
        """Draw training images, what the network is given, and what it makes of that."""
        device = self.generator.device
        generator = torch.Generator().manual_seed(derive_seed("preview", seed))
        chosen = torch.randperm(len(self.data), generator=generator)[:num_images]
        images = self.data.images[chosen]
        seed_torch(derive_seed("preview", seed), device)
        given = self.inputs(images.to(device).float() / 127.5 - 1, chosen)
        made = self.generator(given.images, given.noise_std if self.config.noise_level_input else None).sample
        return comparison_grid({"original": images, "given": to_uint8(given.images), "made": to_uint8(made)})
