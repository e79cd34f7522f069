"""Figures of the latent space of VAEs and GANs: decoded planes, interpolations and truncations."""

import math

import numpy as np
import torch
from PIL.Image import Image
from scipy.stats import norm

from hfgen.figures.grids import image_grid, sample_grid
from hfgen.pipelines.pipeline_hfgen_gan import GANPipeline
from hfgen.pipelines.pipeline_hfgen_vae import VAEPipeline
from hfgen.sampling.sample import network_of, sample, to_uint8
from hfgen.utils.seeds import derive_seed

STRIP_STEPS = 10  # equally spaced points of an interpolation or traversal
PLANE_SIDE = 20  # images along each side of the decoded plane
STRIPS = 4  # interpolations per mode
TRUNCATIONS = (0.5, 1.0, 2.0, math.inf)


def first_class(pipeline: GANPipeline | VAEPipeline) -> int | None:
    """Return the class shown in these figures for a class-conditional model, else None."""
    return next(iter(pipeline.labels.values()), None)


def plane_picture(pipeline: GANPipeline | VAEPipeline) -> Image:
    """Decode a grid of equally spaced quantiles of a two-dimensional prior (Kingma and Welling 2014, figure 4)."""
    quantiles = torch.from_numpy(norm.ppf((np.arange(PLANE_SIDE) + 0.5) / PLANE_SIDE)).float()
    latents = torch.cartesian_prod(quantiles.flip(0), quantiles).flip(1)  # z0 to the right, z1 upwards
    images = pipeline(latents=latents, class_labels=first_class(pipeline), output_type="pt").images
    return image_grid(to_uint8(images * 2 - 1), PLANE_SIDE)


def interpolations_picture(pipeline: GANPipeline | VAEPipeline, seed: int) -> Image:
    """Decode linear and spherical interpolations between random latents, one per row."""
    generator = torch.Generator().manual_seed(derive_seed("interpolations", seed))
    ends = torch.randn(STRIPS, 2, network_of(pipeline).config.latent_dim, generator=generator)
    strips, modes = [], ("linear", "spherical")
    for mode in modes:
        for start, end in ends:
            options = {"num_steps": STRIP_STEPS, "mode": mode, "class_labels": first_class(pipeline)}
            strips.append(pipeline.interpolate(start, end, **options, output_type="pt").images)
    rows = [row for row in range(len(strips)) for _ in range(STRIP_STEPS)]
    names = [mode for mode in modes for _ in ends]
    return sample_grid(to_uint8(torch.cat(strips) * 2 - 1), rows, names)


def truncations_picture(pipeline: GANPipeline, seed: int) -> Image:
    """Decode the same latents at increasing truncation thresholds, one per row."""
    images = [
        torch.cat(list(sample(pipeline, num_images=STRIP_STEPS, seed=seed, truncation=truncation)))
        for truncation in TRUNCATIONS
    ]
    rows = [row for row in range(len(images)) for _ in range(STRIP_STEPS)]
    names = ["whole" if truncation == math.inf else f"within {truncation:g}" for truncation in TRUNCATIONS]
    return sample_grid(torch.cat(images), rows, names)
