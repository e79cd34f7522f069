"""Pictures of what lies between and around latents, of any pipeline that makes images of them."""

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
STRIPS = 4  # interpolations of each kind
TRUNCATIONS = (0.5, 1.0, 2.0, math.inf)


def first_class(pipeline: GANPipeline | VAEPipeline) -> int | None:
    """Return the class whose latents are shown, of a model that is told classes."""
    return next(iter(pipeline.labels.values()), None)


def plane_picture(pipeline: GANPipeline | VAEPipeline) -> Image:
    """Make images of points that divide the prior of two dimensions into equal masses.

    That is figure 4 of Kingma and Welling (2014).
    """
    places = torch.from_numpy(norm.ppf((np.arange(PLANE_SIDE) + 0.5) / PLANE_SIDE)).float()
    latents = torch.cartesian_prod(places.flip(0), places).flip(1)  # z0 to the right, z1 upwards
    images = pipeline(latents=latents, class_labels=first_class(pipeline), output_type="pt").images
    return image_grid(to_uint8(images * 2 - 1), PLANE_SIDE)


def interpolations_picture(pipeline: GANPipeline | VAEPipeline, seed: int) -> Image:
    """Draw strips between random latents, on straight lines and on arcs."""
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
    """Draw the same latents, truncated to less and less narrow parts of the normal distribution."""
    images = [
        torch.cat(list(sample(pipeline, num_images=STRIP_STEPS, seed=seed, truncation=truncation)))
        for truncation in TRUNCATIONS
    ]
    rows = [row for row in range(len(images)) for _ in range(STRIP_STEPS)]
    names = ["whole" if truncation == math.inf else f"within {truncation:g}" for truncation in TRUNCATIONS]
    return sample_grid(torch.cat(images), rows, names)
