"""`hfgen analyze`: reconstructions, likelihood bounds and latent space of a VAE."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor

from hfgen.config.commands import AnalyzeConfig
from hfgen.data.binarization import Binarizer
from hfgen.data.images import ImageData
from hfgen.data.sources import public_name
from hfgen.evaluation.real import (
    check_size,
    data_source_of,
    default_output,
    judges_of,
    load_real,
    name_of,
    warn_of_weak_judges,
)
from hfgen.evaluation.report import render_report, save_record
from hfgen.figures.grids import comparison_grid, sample_grid, save_picture, signed
from hfgen.figures.plots import Plane, latents_picture
from hfgen.judges.judge import Judge, judges_numbers
from hfgen.judges.statistics import accuracy_of
from hfgen.losses.vae import (
    ACTIVE_VARIANCE,
    count_active_units,
    kl_to_standard_normal,
    log_importance_weights,
    reconstruction_nll,
)
from hfgen.metrics.image_similarity.image_similarity import image_similarity
from hfgen.metrics.likelihood_bounds.likelihood_bounds import likelihood_bounds
from hfgen.pipelines.loading import load
from hfgen.pipelines.pipeline_hfgen_vae import VAEPipeline
from hfgen.runs.folder import ANALYSIS as RECORD
from hfgen.runs.folder import ANALYSIS_PAGE as PAGE
from hfgen.runs.folder import ANALYSIS_PICTURES as PICTURES
from hfgen.runs.folder import run_fields
from hfgen.sampling.latents import STRIP_NAMES, STRIP_STEPS, STRIPS, first_class, plane_picture
from hfgen.sampling.sample import dtype_of, image_shape_of
from hfgen.utils.errors import UserError
from hfgen.utils.progress import progress_bar
from hfgen.utils.seeds import derive_seed

DECODED_TOGETHER = 5000  # latents per batch for the importance-weighted bound
PAIRS = 32  # images with their reconstructions
TRAVERSED = 16  # dimensions at most, those with the largest KL divergence
SCATTERED = 2000  # latents in the scatter plots


@dataclass
class _Encoded:
    """Test images with their latents and reconstructions.

    Attributes:
        images: The inputs, float (N, C, H, W) in [0, 1].
        labels: The VAE's class indices, int64 (N,), or None if it is unconditional.
        means, stddevs: Of q(z | x), each (N, D); of a ladder, along the path of the means.
        reconstructions: Decoded from the means, float (N, C, H, W) in [0, 1].
        errors: −ln p(x | z) of one sample z of q(z | x), in nats, (N,).
        divergences: KL divergence of each latent dimension, in nats, (N, D); of a ladder, along the path of that z.
    """

    images: Tensor
    labels: Tensor | None
    means: Tensor
    stddevs: Tensor
    reconstructions: Tensor
    errors: Tensor
    divergences: Tensor


def analyze(config: AnalyzeConfig) -> Path:
    """Analyse a VAE on test images and write the report.

    Returns:
        The path of `analysis.json`; `analysis.md` and its figures are in the same folder.

    Raises:
        UserError: before any work, if the model is not a VAE, or the data or judges do not fit.
    """
    pipeline = load(config.run_or_repo, **config.loading_options())
    if not isinstance(pipeline, VAEPipeline):
        raise UserError(f"{config.run_or_repo} is a {type(pipeline).__name__}, not a VAE; use hfgen evaluate")
    run = run_fields(Path(config.run_or_repo).expanduser())
    dataset = config.dataset_name or data_source_of(run)
    if dataset is None:
        raise UserError(f"{config.run_or_repo} does not record its training data; set --dataset_name")
    test = load_real(config, run, dataset, config.reference_split)
    check_size(image_shape_of(pipeline), config.run_or_repo, test)
    judges = judges_of(config, dataset, test)
    labels = {judge.name: _labels(judge, test) for judge in judges if test.labels is not None}
    known = {judge.name: judge for judge in judges if judge.name in labels}
    warn_of_weak_judges({name: _accuracy(judge, test.images, labels[name]) for name, judge in known.items()})
    if len(test) < 2:
        raise UserError(f"an analysis needs at least two images, but {test.source} has {len(test)}")
    method = config.binarization or pipeline.config.binarization
    if method != "none" and pipeline.vae.config.pixel_distribution != "bernoulli":
        raise UserError(f"{config.run_or_repo} does not model binary pixels; omit binarization")
    encoded = _encode(pipeline, test, Binarizer(method, test), config)
    output = Path(config.output_dir) if config.output_dir else default_output(config.run_or_repo)
    (output / PICTURES).mkdir(parents=True, exist_ok=True)
    vae = pipeline.vae.config
    record: dict[str, Any] = {
        "protocol": {
            "model": name_of(config.run_or_repo),
            "dataset": public_name(test.source),
            "reference_split": config.reference_split,
            "reference_images": len(test),
            "reference_sha256": test.fingerprint,
            "pixels": method,
            "pixel_distribution": vae.pixel_distribution,
            "latent_dim": vae.latent_dim,
            "class_shown": next(iter(pipeline.labels), None),
            "seed": config.seed,
            "num_importance_samples": config.num_importance_samples,
            "num_bound_images": min(config.num_bound_images, len(test)),
            "device": str(pipeline.device),
            "dtype": dtype_of(pipeline),
        },
        "similarity": image_similarity(encoded.reconstructions, encoded.images),
        "pixel_accuracy": _pixel_accuracy(encoded),
        "class_kept": {},
        "bounds": _bounds(pipeline, encoded, config),
        "active_units": count_active_units(encoded.means),
        "divergence_per_dimension": encoded.divergences.mean(0).tolist(),
        "variance_of_means": encoded.means.var(0).tolist(),
    }
    for name, judge in known.items():
        record["class_kept"][name] = _class_kept(judge, labels[name], encoded)
    for name, picture in _pictures(pipeline, test, encoded, config.seed).items():
        save_picture(picture, output / PICTURES / f"{name}.png")
    return save_record(record, _page(record), output, record_file=RECORD, page_file=PAGE)


@torch.no_grad()
def _encode(pipeline: VAEPipeline, test: ImageData, binarize: Binarizer, config: AnalyzeConfig) -> _Encoded:
    vae = pipeline.vae
    pixels_generator, generator = (
        torch.Generator().manual_seed(derive_seed(purpose, config.seed)) for purpose in ("pixels", "latents")
    )
    noises = torch.randn(len(test), vae.config.latent_dim, generator=generator)
    labels = None
    if pipeline.labels:
        indices = test.require_labels()
        try:
            labels = torch.tensor(pipeline.get_label_ids(test.label_names))[indices]
        except ValueError as error:
            raise UserError(str(error)) from error
    parts: dict[str, list[Tensor]] = {}
    for indices in progress_bar(torch.arange(len(test)).split(config.batch_size), desc="encoding", unit="batch"):
        images = test.images[indices].to(vae.device).float() / 127.5 - 1
        images = binarize(images, indices, pixels_generator)
        classes = None if labels is None else labels[indices].to(vae.device)
        latent_dist = vae.encode(images, classes)
        sampled = vae(images, classes, noise=noises[indices][None].to(vae.device))
        outputs = {
            "images": images / 2 + 0.5,
            "means": latent_dist.mean,
            "stddevs": latent_dist.stddev,
            "reconstructions": vae.decode(latent_dist.mean, classes).sample / 2 + 0.5,
            "errors": reconstruction_nll(sampled.pixels, images / 2 + 0.5).flatten(1).sum(1),
            "divergences": kl_to_standard_normal(sampled.latent_dist).flatten(0, -2),
        }
        for name, value in outputs.items():
            parts.setdefault(name, []).append(value.float().cpu())
    return _Encoded(labels=labels, **{name: torch.cat(values) for name, values in parts.items()})


def _pixel_accuracy(encoded: _Encoded) -> float:
    """Return the fraction of pixels that agree between images and reconstructions after thresholding at 0.5."""
    return ((encoded.images >= 0.5) == (encoded.reconstructions >= 0.5)).double().mean().item()


def _labels(judge: Judge, test: ImageData) -> Tensor:
    """Return the labels of the test images as a judge's class indices, int64 (N,)."""
    return judges_numbers(test.label_names, test.source, judge.label_names)[test.labels]


def _class_kept(judge: Judge, labels: Tensor, encoded: _Encoded) -> dict[str, Any]:
    """Return the judge's accuracy on the reconstructions and on the images."""
    inputs = {"reconstructions": encoded.reconstructions, "images": encoded.images}
    return {name: _accuracy(judge, _uint8(images), labels) for name, images in inputs.items()}


def _accuracy(judge: Judge, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return a judge's accuracy on images, uint8 (N, C, H, W) (see `accuracy_of`)."""
    return accuracy_of(judge.extract(images)[1].argmax(1), labels, len(judge.label_names))


def _uint8(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8)


def _bounds(pipeline: VAEPipeline, encoded: _Encoded, config: AnalyzeConfig) -> dict[str, dict[str, float]]:
    """Return the negative bounds on ln p(x) in nats per image, and the two terms of the ELBO."""
    generator = torch.Generator().manual_seed(derive_seed("bound images", config.seed))
    chosen = torch.randperm(len(encoded.images), generator=generator)[: config.num_bound_images]
    found = likelihood_bounds(_log_weights(pipeline, encoded, chosen, config))
    divergence = encoded.divergences.sum(1)
    negative_elbo = _mean(encoded.errors + divergence)
    return {
        "reconstruction": _mean(encoded.errors),
        "kl": _mean(divergence),
        "negative_elbo": negative_elbo,
        "negative_importance_weighted_bound": {
            "value": negative_elbo["value"] - found["gain"],
            "std": negative_elbo["std"] + found["gain_std"],  # an upper bound, whatever their correlation
        },
    }


def _mean(values: Tensor) -> dict[str, float]:
    """Return the mean and its standard error."""
    return {"value": values.double().mean().item(), "std": (values.double().std() / math.sqrt(len(values))).item()}


@torch.no_grad()
def _log_weights(pipeline: VAEPipeline, encoded: _Encoded, chosen: Tensor, config: AnalyzeConfig) -> Tensor:
    """Return the log importance weights of K latents of each chosen image, (N, K)."""
    vae = pipeline.vae
    generator = torch.Generator(vae.device).manual_seed(derive_seed("importance samples", config.seed))
    total = config.num_importance_samples
    images_per_batch = max(1, DECODED_TOGETHER // total)
    weights = []
    for indices in progress_bar(chosen.split(images_per_batch), desc="importance sampling", unit="batch"):
        images = encoded.images[indices].to(vae.device)
        labels = None if encoded.labels is None else encoded.labels[indices].to(vae.device)
        parts = []
        for start in range(0, total, DECODED_TOGETHER):
            draws = min(DECODED_TOGETHER, total - start)
            shape = (draws, len(images))
            noise = torch.randn(*shape, vae.config.latent_dim, generator=generator, device=vae.device)
            output = vae(images * 2 - 1, labels, noise=noise)
            errors = reconstruction_nll(output.pixels, images.repeat(draws, 1, 1, 1)).flatten(1).sum(1).view(shape)
            latents = output.latents.unflatten(0, shape)
            parts.append(log_importance_weights(errors, latents, output.latent_dist).cpu())
        weights.append(torch.cat(parts).T)
    return torch.cat(weights)


def _pictures(pipeline: VAEPipeline, test: ImageData, encoded: _Encoded, seed: int) -> dict[str, Image]:
    """Return the figures of the page, for randomly chosen images."""
    generator = torch.Generator().manual_seed(derive_seed("shown images", seed))
    chosen = torch.randperm(len(test), generator=generator)
    pairs = {"image": encoded.images, "reconstruction": encoded.reconstructions}
    scattered = chosen[:SCATTERED]
    labels = None if test.labels is None else test.labels[scattered]
    planes = _planes(encoded.means[scattered], encoded.stddevs[scattered], seed)
    pictures = {
        "reconstructions": comparison_grid({name: _uint8(part[chosen[:PAIRS]]) for name, part in pairs.items()}),
        "latents": latents_picture(planes, labels, test.label_names),
        "interpolations": _interpolations(pipeline, encoded, chosen, generator),
        "traversals": _traversals(pipeline, encoded),
    }
    if pipeline.vae.config.latent_dim == 2:
        pictures["plane"] = plane_picture(pipeline)
    return pictures


def _planes(means: Tensor, stddevs: Tensor, seed: int) -> list[Plane]:
    """Return 2-D projections of q(z | x), (N, D) each: of its means, by PCA and t-SNE if there are more dimensions."""
    latents, title = means.double().numpy(), f"latents of {len(means):,} test images"
    if latents.shape[1] == 1:
        spread = np.concatenate([latents, stddevs.double().numpy()], axis=1)
        return [Plane(title, ("z0, mean of q(z | x)", "its standard deviation"), spread)]
    if latents.shape[1] == 2 or not latents.std(axis=0).any():
        return [Plane(title, ("z0, mean of q(z | x)", "z1, mean of q(z | x)"), latents[:, :2])]
    state = derive_seed("t-SNE", seed) % 2**32
    neighbours = TSNE(random_state=state, init="pca", perplexity=min(30, (len(latents) - 1) / 3))
    components = ("first principal component", "second principal component")
    return [
        Plane(f"{title}, PCA", components, PCA(2).fit_transform(latents)),
        Plane(f"{title}, t-SNE", ("first dimension", "second dimension"), neighbours.fit_transform(latents)),
    ]


def _interpolations(pipeline: VAEPipeline, encoded: _Encoded, chosen: Tensor, generator: torch.Generator) -> Image:
    """Return interpolations between random latents, and between test images, shown at both ends.

    Classes switch half-way.
    """
    drawn = torch.randn(2 * STRIPS, encoded.means.shape[1], generator=generator)
    ends = {"random latents": (drawn, None), "test images": (encoded.means[chosen[: 2 * STRIPS]], encoded.labels)}
    rows, names = [], []
    for name, (latents, labels) in ends.items():
        for first in range(0, len(latents) - 1, 2):
            classes = first_class(pipeline)
            if labels is not None:
                pair = labels[chosen[first : first + 2]].tolist()
                classes = [pair[step >= STRIP_STEPS / 2] for step in range(STRIP_STEPS)]
            options = {"num_steps": STRIP_STEPS, "mode": "linear", "class_labels": classes, "output_type": "pt"}
            strip = pipeline.interpolate(latents[first], latents[first + 1], **options).images
            given = encoded.images[chosen[first : first + 2]] if name == "test images" else torch.ones_like(strip[:2])
            rows.append(torch.cat([given[:1], strip, given[1:]]))
            names.append(name)
    indices = [row for row in range(len(rows)) for _ in rows[0]]
    return sample_grid(_uint8(torch.cat(rows)), indices, names, ["test image", *STRIP_NAMES, "test image"])


def _traversals(pipeline: VAEPipeline, encoded: _Encoded) -> Image:
    divergences = encoded.divergences.mean(0)
    dimensions = divergences.argsort(descending=True)[:TRAVERSED].tolist()
    options = {"num_steps": STRIP_STEPS, "class_labels": first_class(pipeline), "output_type": "pt"}
    images = pipeline.traverse(dimensions=dimensions, **options).images
    names = [f"z{dimension}: {divergences[dimension]:.1f} nats" for dimension in dimensions]
    rows = [row for row in range(len(names)) for _ in range(STRIP_STEPS)]
    values = [signed(value, 1) for value in np.linspace(-3, 3, STRIP_STEPS)]
    return sample_grid(_uint8(images), rows, names, values, "Value of one latent dimension, the others 0")


def _page(record: dict[str, Any]) -> str:
    return render_report(
        "analysis.md",
        record=record,
        active_variance=ACTIVE_VARIANCE,
        strip_steps=STRIP_STEPS,
    )
