"""Generative adversarial networks (Goodfellow et al. 2014): training objective and diagnostics."""

import functools
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from hfgen.config import GANConfig
from hfgen.data.augmentation import random_color, random_erase, random_shift
from hfgen.data.images import ImageData
from hfgen.data.loader import Batch
from hfgen.figures.grids import save_picture
from hfgen.judges.judge import find_judge, judges_numbers
from hfgen.losses.adversarial import (
    discriminator_loss,
    discriminator_scores,
    frozen,
    generator_loss,
    gradient_penalty,
    squared_gradient_norms,
)
from hfgen.models.modeling_hfgen_gan import (
    ConvolutionalDiscriminator,
    ConvolutionalGenerator,
    FullyConnectedDiscriminator,
    FullyConnectedGenerator,
    ResidualDiscriminator,
    ResidualGenerator,
)
from hfgen.pipelines.pipeline_hfgen_gan import GANPipeline
from hfgen.sampling.latents import interpolations_picture, plane_picture, truncations_picture
from hfgen.sampling.sample import sample
from hfgen.tasks.base import Diagnosis, Loss, Task
from hfgen.utils.errors import UserError
from hfgen.utils.seeds import derive_seed

CHECKED_IMAGES = 1000  # sampled for the checks
RELIABLE = 0.9  # minimum accuracy of a judge on training images
AHEAD = 0.98  # fraction of real images with higher outputs than a generated one, above which it is too far ahead
NO_DIFFERENCE = 0.02  # of the discriminator's mean outputs, below which the generator gets no useful gradient
VANISHED = 0.1  # fraction of a class's frequency in training images below which it counts as missing
AUGMENTATIONS = {
    "color": random_color,
    "shift": lambda images: random_shift(images, min(images.shape[-2:]) // 8),
    "erase": lambda images: random_erase(images, min(images.shape[-2:]) // 2),
}


class GANTask(Task):
    """A generator and a discriminator.

    Args:
        config: Networks, objective.
        data: The training images, with labels if the model is class-conditional.

    Raises:
        UserError: if the networks or the judge do not fit the images or their classes, or labels are missing.
    """

    saved_modules = frozenset({"generator"})

    def __init__(self, config: GANConfig, data: ImageData):
        self.config, self.data = config, data
        if config.class_conditional:
            data.require_labels()
        self.label_names = data.label_names if config.class_conditional else []
        try:
            self.generator, self.discriminator = _make_networks(config, tuple(data.images.shape[1:]), self.label_names)
        except ValueError as error:
            raise UserError(str(error)) from error
        self.judge = find_judge(config.judge, data)
        if self.judge and data.labels is not None:
            self._judge_indices()  # fail now if the classes do not match
        self.modules: dict[str, nn.Module] = {"discriminator": self.discriminator, "generator": self.generator}

    def losses(self, batch: Batch) -> Iterator[Loss]:
        """Yield the discriminator's loss for each part of the batch, then the generator's."""
        size = self.config.train_batch_size
        for first in range(0, len(batch.images), size):
            real = batch.images[first : first + size]
            labels = batch.labels[first : first + size] if self.config.class_conditional else None
            yield self._discriminator_loss(real, labels, penalised=batch.step % self.config.penalty_interval == 0)
        with frozen(self.discriminator):
            yield self._generator_loss(real, labels)

    @torch.no_grad()
    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Return the discriminator's loss without penalties and augmentation, and its mean outputs."""
        name, labels = self.config.adversarial_loss, batch.labels if self.config.class_conditional else None
        fake = self._generate(labels, len(batch.images))
        scores = self._discriminate(torch.cat([batch.images, fake]), labels).chunk(2)
        return Loss("discriminator", discriminator_loss(name, *scores), discriminator_scores(name, *scores)).values()

    def _discriminator_loss(self, real: Tensor, labels: Tensor | None, penalised: bool) -> Loss:
        """Return the loss, with R1 and R2 if it is `penalised`."""
        config = self.config
        penalised = penalised and bool(config.r1_gamma or config.r2_gamma)
        with torch.no_grad():
            fake = self._generate(labels, len(real))
        images = self._augment(torch.cat([real, fake]))
        if penalised:
            images.requires_grad_()
        scores = self._discriminate(images, labels)
        loss = discriminator_loss(config.adversarial_loss, *scores.chunk(2))
        terms = discriminator_scores(config.adversarial_loss, *scores.chunk(2))
        if penalised:
            at_real, at_fake = squared_gradient_norms(scores, images).chunk(2)
            terms |= {"r1": at_real.mean(), "r2": at_fake.mean()}
            penalties = 0.5 * (config.r1_gamma * terms["r1"] + config.r2_gamma * terms["r2"])
            loss = loss + config.penalty_interval * penalties
        if config.gradient_penalty_weight:
            penalty = gradient_penalty(
                lambda interpolated: self._discriminate(interpolated, labels), *images.detach().chunk(2)
            )
            terms["gradient_penalty"] = penalty
            loss = loss + config.gradient_penalty_weight * penalty
        return Loss("discriminator", loss, terms)

    def _generator_loss(self, real: Tensor, labels: Tensor | None) -> Loss:
        fake = self._generate(labels, len(real))
        if self.config.adversarial_loss == "relativistic":
            scores = self._discriminate(self._augment(torch.cat([real, fake])), labels)
            real_scores, fake_scores = scores.chunk(2)
        else:
            real_scores = fake_scores = self._discriminate(self._augment(fake), labels)
        return Loss("generator", generator_loss(self.config.adversarial_loss, real_scores, fake_scores))

    def _generate(self, labels: Tensor | None, count: int) -> Tensor:
        latents = torch.randn(count, self.config.latent_dim, device=self.generator.device)
        return self.modules["generator"](latents, labels).sample

    def _discriminate(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """Return the logits of images: one or more batches with the same labels."""
        if labels is not None:
            labels = labels.repeat(len(images) // len(labels))
        return self.modules["discriminator"](images, labels).logits

    def _augment(self, images: Tensor) -> Tensor:
        for name in self.config.augmentation:
            images = AUGMENTATIONS[name](images)
        return images

    def pipeline(self) -> GANPipeline:
        """Return the pipeline, which is saved with its remote code."""
        discriminator = self.discriminator if self.config.save_discriminator else None
        return GANPipeline(
            self.generator, discriminator, dict(enumerate(self.label_names)), truncation=self.config.truncation
        )

    @torch.no_grad()
    def diagnose(self) -> Diagnosis:
        """Compare samples with training images: the discriminator's outputs, and the classes that the judge finds.

        The reference is a random sample of training images; a class-conditional model is given their labels.
        """
        labels = self.data.labels[self._reference].tolist() if self.label_names else ()
        options = {"num_images": CHECKED_IMAGES, "seed": self.config.seed, "class_labels": labels}
        generated = torch.cat(list(sample(self.pipeline(), **options, truncation=math.inf)))
        problems = self._imbalances(generated)
        if self.judge is None:
            return Diagnosis(problems)
        real, unreliable = self._real_classes
        fake = self._frequencies(self._classes_of(generated))
        problems += unreliable
        if vanished := [name for name, frequency in fake.items() if frequency < VANISHED * real[name]]:
            found = f"classifier {self.judge.name} finds almost no samples of {', '.join(vanished)}"
            problems.append(f"possible mode collapse, or too short a training: {found} among {CHECKED_IMAGES:,}")
        return Diagnosis(problems, fake, real)

    def _imbalances(self, generated: Tensor) -> list[str]:
        """Return whether one of the networks is too far ahead, by the discriminator's outputs, and what to change.

        Args:
            generated: Samples for the labels of the reference, uint8 (N, C, H, W).
        """
        config = self.config
        if config.adversarial_loss == "wasserstein":  # whose discriminator should be ahead, with outputs of any scale
            return []
        real, fake = self._scores(self.data.images[self._reference]), self._scores(generated)
        if (real > fake).float().mean() > AHEAD:
            found = "the discriminator tells nearly all generated images from real ones"
            return [f"{found}: raise r1_gamma and r2_gamma, or lower discriminator_learning_rate"]
        if (real.mean() - fake.mean()).abs() < NO_DIFFERENCE:
            found = "the outputs of the discriminator for real and generated images hardly differ"
            lower = "lower r1_gamma and r2_gamma, or " if config.r1_gamma or config.r2_gamma else ""
            return [f"{found}: {lower}raise discriminator_learning_rate"]
        return []

    def _scores(self, images: Tensor) -> Tensor:
        """Return the discriminator's outputs, (N,), for images uint8 (N, C, H, W) with the labels of the reference."""
        labels = self.data.labels[self._reference] if self.label_names else None
        self.discriminator.eval()
        scores = []
        for part in torch.arange(len(images)).split(self.config.train_batch_size):
            pixels = images[part].to(self.discriminator.device).float() / 127.5 - 1
            of_part = None if labels is None else labels[part].to(pixels.device)
            scores.append(self.discriminator(pixels, of_part).logits.float())
        self.discriminator.train()
        return torch.cat(scores)

    @functools.cached_property
    def _reference(self) -> Tensor:
        """Indices of the training images with which samples are compared, int64 (N,)."""
        generator = torch.Generator().manual_seed(derive_seed("diagnosis", self.config.seed))
        return torch.randint(len(self.data), (CHECKED_IMAGES,), generator=generator)

    @functools.cached_property
    def _real_classes(self) -> tuple[dict[str, float], list[str]]:
        """The predicted class frequencies of these images, and problems of the judge."""
        found = self._classes_of(self.data.images[self._reference])
        problems = []
        if self.data.labels is not None:
            accuracy = (found == self._judge_indices()[self.data.labels[self._reference]]).float().mean().item()
            if accuracy < RELIABLE:
                known = f"the judge {self.judge.name} has an accuracy of only {100 * accuracy:.0f} % on real images"
                problems = [f"{known}, so its results are unreliable"]
        return self._frequencies(found), problems

    def _judge_indices(self) -> Tensor:
        return judges_numbers(self.data.label_names, self.data.source, self.judge.label_names)

    def _classes_of(self, images: Tensor) -> Tensor:
        """Return the judge's predicted classes, int64 (N,), of images, uint8 (N, C, H, W)."""
        return self.judge.extract(images)[1].argmax(1)

    def _frequencies(self, classes: Tensor) -> dict[str, float]:
        counts = classes.bincount(minlength=len(self.judge.label_names))
        return dict(zip(self.judge.label_names, (counts / len(classes)).tolist(), strict=True))

    def save_figures(self, folder: Path) -> None:
        """Save interpolations, samples at several truncations, and the latent plane of a 2-D model."""
        pipeline = self.pipeline()
        save_picture(interpolations_picture(pipeline, self.config.seed), folder / "interpolations.png")
        save_picture(truncations_picture(pipeline, self.config.seed), folder / "truncations.png")
        if self.config.latent_dim == 2:
            save_picture(plane_picture(pipeline), folder / "plane.png")


def _make_networks(
    config: GANConfig, image_shape: tuple[int, int, int], label_names: list[str]
) -> tuple[nn.Module, nn.Module]:
    """Build generator and discriminator for images (C, H, W)."""
    channels, height, width = image_shape
    shared = {"sample_size": height if height == width else (height, width), "num_classes": len(label_names) or None}
    generator = shared | {"out_channels": channels, "latent_dim": config.latent_dim}
    discriminator = shared | {
        "in_channels": channels,
        "dropout": config.dropout,
        "spectral_norm": config.spectral_norm,
    }
    if config.architecture != "residual":
        generator["hidden_sizes"] = config.hidden_sizes
        discriminator["hidden_sizes"] = config.discriminator_hidden_sizes
    if config.architecture == "fully_connected":
        return FullyConnectedGenerator(**generator), FullyConnectedDiscriminator(**discriminator)
    generator["block_out_channels"] = config.block_out_channels
    discriminator["block_out_channels"] = config.discriminator_block_out_channels
    if config.architecture == "convolutional":
        options = {"pixel_shuffle": config.pixel_shuffle, "batch_norm": config.batch_norm}
        return ConvolutionalGenerator(**generator, **options), ConvolutionalDiscriminator(**discriminator)
    blocks = {"layers_per_block": config.layers_per_block}
    return ResidualGenerator(**generator, **blocks), ResidualDiscriminator(**discriminator, **blocks)
