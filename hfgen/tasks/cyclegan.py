"""Image-to-image translation without pairs (CycleGAN, Zhu et al. 2017): two networks that undo each other."""

from collections.abc import Iterator
from typing import NamedTuple

import PIL.Image
import torch
from torch import Tensor, nn
from torch.nn import functional

from hfgen.config import CycleGANConfig
from hfgen.data.images import ImageData
from hfgen.data.loader import Batch
from hfgen.data.paired import TargetDomain
from hfgen.figures.grids import comparison_grid
from hfgen.losses.adversarial import discriminator_loss, discriminator_scores, frozen, generator_loss
from hfgen.pipelines.pipeline_hfgen_image_translation import ImageTranslationPipeline
from hfgen.sampling.sample import to_uint8
from hfgen.tasks.base import Loss, Task
from hfgen.tasks.image_to_image import make_patch_discriminator, make_translator
from hfgen.utils.errors import UserError
from hfgen.utils.seeds import derive_seed, seed_torch


class Translations(NamedTuple):
    """What two networks make of images of both kinds, each (B, C, H, W).

    Attributes:
        second, first: Images of the other kind made of the first, and of the second.
        first_again, second_again: What these become on the way back.
        first_kept, second_kept: What a network makes of images that are already of the kind that it makes, or None.
    """

    second: Tensor
    first: Tensor
    first_again: Tensor
    second_again: Tensor
    first_kept: Tensor | None
    second_kept: Tensor | None


class Generators(nn.Module):
    """Two networks, one for each direction, which are updated together."""

    def __init__(self, there: nn.Module, back: nn.Module, keep: bool):
        super().__init__()
        self.there, self.back, self.keep = there, back, keep

    def forward(self, first: Tensor, second: Tensor) -> Translations:
        """Translate images of both kinds, and translate them back."""
        made_second, made_first = self.there(first).sample, self.back(second).sample
        return Translations(
            made_second,
            made_first,
            self.back(made_second).sample,
            self.there(made_first).sample,
            self.back(first).sample if self.keep else None,
            self.there(second).sample if self.keep else None,
        )


class Discriminators(nn.Module):
    """A discriminator for each kind, which are updated together, and results of former steps.

    The results are buffers, so that a checkpoint has them and a run that was killed goes on with the same. Several
    processes share those of the first, since before each pass the buffers are made alike.

    Args:
        first, second: The discriminators.
        first_shape, second_shape: (C, H, W) of the images.
        pool_size: How many results of each kind are kept.
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

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of the patches of images of both kinds."""
        return self.first(first).logits, self.second(second).logits

    def exchange(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Keep half of the images and return former ones in their place (Shrivastava et al. 2017)."""
        pools = (self.first_pool, self.second_pool)
        if not self.filled:
            for pool, images in zip(pools, (first, second), strict=True):
                pool.copy_(images[torch.arange(len(pool)) % len(images)])
            self.filled.fill_(1)
        return tuple(_exchange(pool, images) for pool, images in zip(pools, (first, second), strict=True))


def _exchange(pool: Tensor, images: Tensor) -> Tensor:
    """Exchange each image with probability one half for one in the pool."""
    count = min(len(images), len(pool))
    places = torch.randperm(len(pool), device=pool.device)[:count]
    chosen = (torch.rand(count, device=pool.device) < 0.5).nonzero()[:, 0]
    shown = images.clone()
    shown[chosen] = pool[places[chosen]].to(images)
    pool[places[chosen]] = images[chosen].to(pool)
    return shown


class CycleGANTask(Task):
    """Two networks that translate between two kinds of images, and a discriminator of each kind.

    Args:
        config: The second kind, networks, objective.
        data: The images of the first kind.

    Raises:
        UserError: if there are no images of the second kind, or the networks cannot take such images.
    """

    saved_modules = frozenset({"generators"})

    def __init__(self, config: CycleGANConfig, data: ImageData):
        self.config, self.data = config, data
        self.second_kind = TargetDomain(config.to_dict(), data, config.target_split)
        self.extra_datasets = [self.second_kind.data]
        first, second = tuple(data.images.shape[1:]), self.second_kind.shape
        if first[1:] != second[1:]:
            raise UserError(
                f"the images of the two kinds must be of one size, not {first[2]}×{first[1]} and "
                f"{second[2]}×{second[1]}; bring them to one with --resolution"
            )
        keep = config.identity_weight > 0 and first[0] == second[0]
        there, back = make_translator(config, first[0], second), make_translator(config, second[0], first)
        self.generators = Generators(there, back, keep)
        judges = (make_patch_discriminator(config, shape[0], shape) for shape in (first, second))
        self.discriminators = Discriminators(*judges, first, second, config.pool_size)
        self.modules: dict[str, nn.Module] = {"generators": self.generators, "discriminators": self.discriminators}

    def losses(self, batch: Batch) -> Iterator[Loss]:
        """Yield the generators' loss, then the discriminators'."""
        config, name = self.config, self.config.adversarial_loss
        first, second = batch.images, self.second_kind.draw(len(batch.images), batch.images.device)
        with frozen(self.discriminators):
            made: Translations = self.modules["generators"](first, second)
            fakes = self.modules["discriminators"](made.first, made.second)
            reals = self.modules["discriminators"](first, second) if name == "relativistic" else fakes
            terms = {
                "adversarial": sum(generator_loss(name, *pair) for pair in zip(reals, fakes, strict=True)),
                "cycle": functional.l1_loss(made.first_again, first) + functional.l1_loss(made.second_again, second),
            }
            loss = config.adversarial_weight * terms["adversarial"] + config.cycle_weight * terms["cycle"]
            if made.first_kept is not None:
                terms["identity"] = functional.l1_loss(made.first_kept, first)
                terms["identity"] = terms["identity"] + functional.l1_loss(made.second_kept, second)
                loss = loss + config.identity_weight * terms["identity"]
            yield Loss("generators", loss, terms)
        shown = self.discriminators.exchange(made.first.detach(), made.second.detach())
        real_and_fake = (torch.cat(pair) for pair in zip((first, second), shown, strict=True))
        scores = [logits.chunk(2) for logits in self.modules["discriminators"](*real_and_fake)]
        loss = sum(discriminator_loss(name, *pair) for pair in scores)
        found = [discriminator_scores(name, *pair) for pair in scores]
        terms = {kind: (found[0][kind] + found[1][kind]) / 2 for kind in ("real", "fake")}
        yield Loss("discriminators", loss, terms)

    def pipeline(self) -> ImageTranslationPipeline:
        """Return the pipeline, whose files travel with the weights."""
        return ImageTranslationPipeline(
            self.generators.there, self.generators.back, " ".join(self.config.target_degradation)
        )

    @torch.no_grad()
    def preview(self, num_images: int, seed: int) -> PIL.Image.Image:
        """Draw images of each kind, what they become, and that on the way back."""
        device = self.generators.there.device
        generator = torch.Generator().manual_seed(derive_seed("preview", seed))
        chosen = torch.randperm(len(self.data), generator=generator)[:num_images]
        seed_torch(derive_seed("preview", seed), device)
        first = self.data.images[chosen].to(device).float() / 127.5 - 1
        second = self.second_kind.draw(len(first), device)
        made = self.generators(first, second)
        rows = {"first": first, "to second": made.second, "and back": made.first_again,
                "second": second, "to first": made.first, "back again": made.second_again}  # fmt: skip
        return comparison_grid({name: to_uint8(images) for name, images in rows.items()})
