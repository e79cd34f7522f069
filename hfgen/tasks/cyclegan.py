"""Unpaired image-to-image translation (CycleGAN, Zhu et al. 2017)."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import PIL.Image
import torch
from torch import Tensor, nn
from torch.nn import functional

from hfgen.config import CycleGANConfig
from hfgen.data.images import ImageData
from hfgen.data.loader import Batch
from hfgen.data.paired import TargetDomain
from hfgen.figures.grids import comparison_grid, save_picture, to_pil
from hfgen.losses.adversarial import discriminator_loss, discriminator_scores, frozen, generator_loss
from hfgen.pipelines.pipeline_hfgen_image_translation import ImageTranslationPipeline
from hfgen.runs.folder import INPUT
from hfgen.sampling.sample import to_uint8
from hfgen.tasks.base import Loss, Task
from hfgen.tasks.image_to_image import make_patch_discriminator, make_translator
from hfgen.utils.errors import UserError
from hfgen.utils.seeds import derive_seed, seed_torch

CPU = torch.device("cpu")
TRANSLATED_TOGETHER = 250  # images per batch


class Translations(NamedTuple):
    """Outputs of both generators for a batch of each domain, each (B, C, H, W).

    Attributes:
        to_b, to_a: Translations of the images of domain A, and of domain B.
        cycled_a, cycled_b: Cycle reconstructions.
        identity_a, identity_b: Identity mappings (images of the output domain as inputs), or None.
    """

    to_b: Tensor
    to_a: Tensor
    cycled_a: Tensor
    cycled_b: Tensor
    identity_a: Tensor | None
    identity_b: Tensor | None


class Generators(nn.Module):
    """The generators A → B (`there`) and B → A (`back`), updated together."""

    def __init__(self, there: nn.Module, back: nn.Module, identity: bool):
        super().__init__()
        self.there, self.back, self.identity = there, back, identity

    def forward(self, a: Tensor, b: Tensor) -> Translations:
        """Translate images of both domains, and translate them back."""
        to_b, to_a = self.there(a).sample, self.back(b).sample
        return Translations(
            to_b,
            to_a,
            self.back(to_b).sample,
            self.there(to_a).sample,
            self.back(a).sample if self.identity else None,
            self.there(b).sample if self.identity else None,
        )


class Discriminators(nn.Module):
    """The discriminators of both domains, updated together, and image pools of earlier translations.

    The pools are buffers, so that checkpoints include them and resuming is exact. Processes share the pools of the
    first one, as buffers are broadcast before each forward pass.

    Args:
        first, second: The discriminators of domain A and B.
        first_shape, second_shape: (C, H, W) of the images.
        pool_size: Images per pool.
    """

    def __init__(
        self,
        first: nn.Module,
        second: nn.Module,
        first_shape: tuple[int, int, int],
        second_shape: tuple[int, int, int],
        pool_size: int,
    ):
        super().__init__()
        self.first, self.second = first, second
        self.register_buffer("first_pool", torch.zeros(pool_size, *first_shape))
        self.register_buffer("second_pool", torch.zeros(pool_size, *second_shape))
        self.register_buffer("filled", torch.zeros(1))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return the patch logits of images of both domains."""
        return self.first(a).logits, self.second(b).logits

    def exchange(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Replace about half of the images by earlier ones from the pools (Shrivastava et al. 2017)."""
        pools = (self.first_pool, self.second_pool)
        if not self.filled:
            for pool, images in zip(pools, (a, b), strict=True):
                pool.copy_(images[torch.arange(len(pool)) % len(images)])
            self.filled.fill_(1)
        return tuple(_exchange(pool, images) for pool, images in zip(pools, (a, b), strict=True))


def _exchange(pool: Tensor, images: Tensor) -> Tensor:
    """Swap each image with one of the pool, with probability ½."""
    count = min(len(images), len(pool))
    places = torch.randperm(len(pool), device=pool.device)[:count]
    chosen = (torch.rand(count, device=pool.device) < 0.5).nonzero()[:, 0]
    mixed = images.clone()
    mixed[chosen] = pool[places[chosen]].to(images)
    pool[places[chosen]] = images[chosen].to(pool)
    return mixed


class CycleGANTask(Task):
    """Two generators that translate between two domains, and a discriminator of each domain.

    Args:
        config: Domain B, networks, objective.
        data: The images of domain A.

    Raises:
        UserError: if there are no images of domain B, or the networks do not fit the images.
    """

    saved_modules = frozenset({"generators"})
    loss_metric = "loss/generators"

    def __init__(self, config: CycleGANConfig, data: ImageData):
        self.config, self.data = config, data
        held_out = data.split != config.train_split
        self.domain_b = TargetDomain(config.to_dict(), data, data.split if held_out else config.target_split)
        self.extra_datasets = [self.domain_b.data]
        a, b = tuple(data.images.shape[1:]), self.domain_b.shape
        if a[1:] != b[1:]:
            raise UserError(
                f"the images of both domains must have the same size, not {a[2]}×{a[1]} and {b[2]}×{b[1]}; "
                "resize them with --resolution"
            )
        identity = config.identity_weight > 0 and a[0] == b[0]
        there, back = make_translator(config, a[0], b), make_translator(config, b[0], a)
        self.generators = Generators(there, back, identity)
        discriminators = (make_patch_discriminator(config, shape[0], shape) for shape in (a, b))
        self.discriminators = Discriminators(*discriminators, a, b, config.pool_size)
        self.modules: dict[str, nn.Module] = {"generators": self.generators, "discriminators": self.discriminators}

    def losses(self, batch: Batch) -> Iterator[Loss]:
        """Yield the generators' loss, then the discriminators'."""
        config, name = self.config, self.config.adversarial_loss
        a, b = batch.images, self.domain_b.draw(len(batch.images), batch.images.device)
        with frozen(self.discriminators):
            outputs: Translations = self.modules["generators"](a, b)
            fakes = self.modules["discriminators"](outputs.to_a, outputs.to_b)
            reals = self.modules["discriminators"](a, b) if name == "relativistic" else fakes
            terms = {
                "adversarial": sum(generator_loss(name, *pair) for pair in zip(reals, fakes, strict=True)),
                "cycle": functional.l1_loss(outputs.cycled_a, a) + functional.l1_loss(outputs.cycled_b, b),
            }
            loss = config.adversarial_weight * terms["adversarial"] + config.cycle_weight * terms["cycle"]
            if outputs.identity_a is not None:
                terms["identity"] = functional.l1_loss(outputs.identity_a, a)
                terms["identity"] = terms["identity"] + functional.l1_loss(outputs.identity_b, b)
                loss = loss + config.identity_weight * terms["identity"]
            yield Loss("generators", loss, terms)
        pooled = self.discriminators.exchange(outputs.to_a.detach(), outputs.to_b.detach())
        real_and_fake = (torch.cat(pair) for pair in zip((a, b), pooled, strict=True))
        scores = [logits.chunk(2) for logits in self.modules["discriminators"](*real_and_fake)]
        loss = sum(discriminator_loss(name, *pair) for pair in scores)
        means = [discriminator_scores(name, *pair) for pair in scores]
        terms = {term: (means[0][term] + means[1][term]) / 2 for term in ("real", "fake")}
        yield Loss("discriminators", loss, terms)

    def pipeline(self) -> ImageTranslationPipeline:
        """Return the pipeline, which is saved with its remote code."""
        return ImageTranslationPipeline(
            self.generators.there, self.generators.back, " ".join(self.config.target_degradation)
        )

    @torch.no_grad()
    def sample(self, num_images: int, seed: int, class_labels: Sequence[int] = ()) -> Tensor:
        """Translate images of domain A, randomly chosen by the seed, to domain B, uint8 (N, C, H, W)."""
        generator = torch.Generator().manual_seed(derive_seed("translated", seed))
        chosen = torch.randint(len(self.data), (num_images,), generator=generator)
        device = self.generators.there.device
        parts = (self.data.images[part].to(device).float() / 127.5 - 1 for part in chosen.split(TRANSLATED_TOGETHER))
        return torch.cat([to_uint8(self.generators.there(part).sample) for part in parts])

    def reference(self) -> ImageData:
        """Return the images of domain B, after their degradations, which are always the same."""
        seed_torch(derive_seed("reference"), CPU)
        indices = torch.arange(len(self.domain_b.data)).split(TRANSLATED_TOGETHER)
        images = torch.cat([to_uint8(self.domain_b.take(part, CPU)) for part in indices])
        fingerprint = hashlib.sha256(images.numpy().tobytes()).hexdigest()
        return ImageData(images, None, None, self.domain_b.data.source, fingerprint)

    def save_figures(self, folder: Path) -> None:
        """Save an image of domain A, for those who want to try the model."""
        save_picture(to_pil(self.data.images[self.example_indices(1, self.config.seed)][0]), folder / INPUT)

    @torch.no_grad()
    def preview(self, num_images: int, seed: int) -> PIL.Image.Image:
        """Return images of each domain, their translations and their cycle reconstructions."""
        device = self.generators.there.device
        seed_torch(derive_seed("preview", seed), device)
        a = self.data.images[self.example_indices(num_images, seed)].to(device).float() / 127.5 - 1
        b = self.domain_b.draw(len(a), device)
        outputs = self.generators(a, b)
        rows = {"A": a, "A to B": outputs.to_b, "A to B to A": outputs.cycled_a,
                "B": b, "B to A": outputs.to_a, "B to A to B": outputs.cycled_b}  # fmt: skip
        return comparison_grid({name: to_uint8(images) for name, images in rows.items()})
