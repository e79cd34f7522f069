"""Figures of the latent space of VAEs and GANs: decoded planes, interpolations and truncations."""

import math

import numpy as np
import torch
from PIL.Image import Image
from scipy.stats import norm

from hfgen.figures.grids import image_grid, labelled_rows, sample_grid, signed
from hfgen.pipelines.pipeline_hfgen_gan import GANPipeline
from hfgen.pipelines.pipeline_hfgen_vae import VAEPipeline
from hfgen.sampling.sample import network_of, sample, to_uint8
from hfgen.utils.seeds import derive_seed

STRIP_STEPS = 10  # equally spaced points of an interpolation or traversal
PLANE_SIDE = 20  # images along each side of the decoded plane
STRIPS = 4  # interpolations between each kind of ends
STRIP_NAMES = [f"{100 * step / (STRIP_STEPS - 1):.0f} %" for step in range(STRIP_STEPS)]
TRUNCATIONS = (0.5, 1.0, 2.0, math.inf)


def first_class(pipeline: GANPipeline | VAEPipeline) -> int | None:
    """Return the class shown in these figures for a class-conditional model, else None."""
    return next(iter(pipeline.labels.values()), None)


def plane_picture(pipeline: GANPipeline | VAEPipeline) -> Image:
    """Decode a grid of equally spaced quantiles of a two-dimensional prior (Kingma and Welling 2014, figure 4)."""
    quantiles = torch.from_numpy(norm.ppf((np.arange(PLANE_SIDE) + 0.5) / PLANE_SIDE)).float()
    latents = torch.cartesian_prod(quantiles.flip(0), quantiles).flip(1)  # z0 to the right, z1 upwards
    images = to_uint8(pipeline(latents=latents, class_labels=first_class(pipeline), output_type="pt").images * 2 - 1)
    names = [signed(quantile, 2) for quantile in quantiles.tolist()]
    rows = [
        (name, image_grid(part, PLANE_SIDE)) for name, part in zip(names[::-1], images.split(PLANE_SIDE), strict=True)
    ]
    return labelled_rows(
        rows, names, "z0 from left to right, z1 from bottom to top: equally probable values of N(0, 1)"
    )


def interpolations_picture(pipeline: GANPipeline | VAEPipeline, seed: int) -> Image:
    """Decode spherical interpolations between random latents, one per row."""
    generator = torch.Generator().manual_seed(derive_seed("interpolations", seed))
    ends = torch.randn(2 * STRIPS, 2, network_of(pipeline).config.latent_dim, generator=generator)
    options = {"num_steps": STRIP_STEPS, "mode": "spherical", "class_labels": first_class(pipeline)}
    strips = [pipeline.interpolate(start, end, **options, output_type="pt").images for start, end in ends]
    rows = [row for row in range(len(strips)) for _ in range(STRIP_STEPS)]
    title = "From one random latent (0 %) to another (100 %)"
    return sample_grid(to_uint8(torch.cat(strips) * 2 - 1), rows, [""] * len(strips), STRIP_NAMES, title)


def truncations_picture(pipeline: GANPipeline, seed: int) -> Image:
    """Decode the same latents at increasing truncation thresholds, one per row."""
    images = [
        torch.cat(list(sample(pipeline, num_images=STRIP_STEPS, seed=seed, truncation=truncation)))
        for truncation in TRUNCATIONS
    ]
    rows = [row for row in range(len(images)) for _ in range(STRIP_STEPS)]
    names = ["not truncated" if truncation == math.inf else f"truncation {truncation:g}" for truncation in TRUNCATIONS]
    return sample_grid(torch.cat(images), rows, names, title="The same latents in each column")
