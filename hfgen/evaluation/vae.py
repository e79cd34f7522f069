"""`hfgen analyze`: what a VAE's latents keep of images, how good its bounds are, how its latents are laid out."""

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
from tqdm import tqdm

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
from hfgen.evaluation.report import ANALYSIS_PAGE as PAGE
from hfgen.evaluation.report import ANALYSIS_PICTURES as PICTURES
from hfgen.evaluation.report import ANALYSIS_RECORD as RECORD
from hfgen.evaluation.report import render_report, save_record
from hfgen.evaluation.statistics import accuracy_of
from hfgen.figures.grids import comparison_grid, sample_grid, save_picture
from hfgen.figures.plots import latents_picture
from hfgen.judges.judge import Judge, judges_numbers
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
from hfgen.runs.folder import run_fields
from hfgen.sampling.latents import STRIP_STEPS, STRIPS, first_class, plane_picture
from hfgen.sampling.sample import image_shape_of
from hfgen.utils.devices import default_device
from hfgen.utils.errors import UserError
from hfgen.utils.seeds import derive_seed

ROWS_AT_A_TIME = 5000  # latents that are decoded together for the importance-weighted bound
PAIRS = 32  # images beside their reconstructions
TRAVERSED = 16  # dimensions at most, those with most divergence
SCATTERED = 2000  # points of latents that are drawn


@dataclass
class _Encoded:
    """Test images and what a VAE makes of them.

    Attributes:
        images: As it is shown them, float (N, C, H, W) in [0, 1].
        labels: Their classes as the VAE numbers them, int64 (N,), or None if it is told none.
        means, stddevs: Of q(z | x), each (N, D).
        reconstructions: Decoded from the means, float (N, C, H, W) in [0, 1].
        errors: −ln p(x | z) of one z drawn from q(z | x), in nats, (N,).
        divergences: Of each latent dimension, in nats, (N, D).
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
        The path of `analysis.json`; `analysis.md` and its pictures are beside it.

    Raises:
        UserError: before any work, if the model is no VAE, or the data and judges do not fit it.
    """
    pipeline = load(config.run_or_repo, revision=config.revision, trust_remote_code=config.trust_remote_code)
    if not isinstance(pipeline, VAEPipeline):
        raise UserError(f"{config.run_or_repo} is a {type(pipeline).__name__}; latents are analysed of a VAEPipeline")
    run = run_fields(Path(config.run_or_repo).expanduser())
    dataset = config.dataset_name or data_source_of(run)
    if dataset is None:
        raise UserError(f"{config.run_or_repo} does not say what it was trained on; name it with --dataset_name")
    test = load_real(config, run, dataset, config.reference_split)
    check_size(image_shape_of(pipeline), config.run_or_repo, test)
    judges = judges_of(config, dataset, test)
    labels = {judge.name: _labels(judge, test) for judge in judges if test.labels is not None}
    known = {judge.name: judge for judge in judges if judge.name in labels}
    warn_of_weak_judges({name: _right(judge, test.images, labels[name]) for name, judge in known.items()})
    if len(test) < 2:
        raise UserError(f"an analysis needs two images or more, and {test.source} has {len(test)}")
    method = config.binarization or pipeline.config.binarization
    if method != "none" and pipeline.vae.config.pixel_distribution != "bernoulli":
        raise UserError(f"{config.run_or_repo} is no model of black-and-white pixels; leave binarization out")
    pipeline.to(default_device())
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
        numbers = test.require_labels()
        try:
            labels = torch.tensor(pipeline.get_label_ids(test.label_names))[numbers]
        except ValueError as error:
            raise UserError(str(error)) from error
    parts: dict[str, list[Tensor]] = {}
    for indices in tqdm(torch.arange(len(test)).split(config.batch_size), desc="encoding", unit="batch", disable=None):
        images = test.images[indices].to(vae.device).float() / 127.5 - 1
        images = binarize(images, indices, pixels_generator)
        classes = None if labels is None else labels[indices].to(vae.device)
        latent_dist = vae.encode(images, classes)
        pixels = vae.pixels(latent_dist.mean + latent_dist.stddev * noises[indices].to(vae.device), classes)
        found = {
            "images": images / 2 + 0.5,
            "means": latent_dist.mean,
            "stddevs": latent_dist.stddev,
            "reconstructions": vae.decode(latent_dist.mean, classes).sample / 2 + 0.5,
            "errors": reconstruction_nll(pixels, images / 2 + 0.5).flatten(1).sum(1),
            "divergences": kl_to_standard_normal(latent_dist),
        }
        for name, value in found.items():
            parts.setdefault(name, []).append(value.float().cpu())
    return _Encoded(labels=labels, **{name: torch.cat(values) for name, values in parts.items()})


def _pixel_accuracy(encoded: _Encoded) -> float:
    """Return the share of pixels that are on the same side of a half in an image and its reconstruction."""
    return ((encoded.images >= 0.5) == (encoded.reconstructions >= 0.5)).double().mean().item()


def _labels(judge: Judge, test: ImageData) -> Tensor:
    """Return the classes of the test images as a judge numbers them, int64 (N,)."""
    return judges_numbers(test.label_names, test.source, judge.label_names)[test.labels]


def _class_kept(judge: Judge, labels: Tensor, encoded: _Encoded) -> dict[str, Any]:
    """Return which share of the reconstructions, and of the images, the judge takes for the class that they show."""
    shown = {"reconstructions": encoded.reconstructions, "images": encoded.images}
    return {kind: _right(judge, _uint8(images), labels) for kind, images in shown.items()}


def _right(judge: Judge, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return how often a judge takes images, uint8 (N, C, H, W), for what they show."""
    return accuracy_of(judge.extract(images)[1].argmax(1), labels, len(judge.label_names))


def _uint8(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8)


def _bounds(pipeline: VAEPipeline, encoded: _Encoded, config: AnalyzeConfig) -> dict[str, dict[str, float]]:
    """Return the negative bounds on ln p(x), in nats an image, and the two terms of the first."""
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
            "std": negative_elbo["std"] + found["gain_std"],  # at most, whatever the two have to do with each other
        },
    }


def _mean(values: Tensor) -> dict[str, float]:
    """Return the mean and its standard error."""
    return {"value": values.double().mean().item(), "std": (values.double().std() / math.sqrt(len(values))).item()}


@torch.no_grad()
def _log_weights(pipeline: VAEPipeline, encoded: _Encoded, chosen: Tensor, config: AnalyzeConfig) -> Tensor:
    """Return the logarithms of the importance weights of many latents of the chosen images, (N, K)."""
    vae = pipeline.vae
    generator = torch.Generator(vae.device).manual_seed(derive_seed("importance samples", config.seed))
    total = config.num_importance_samples
    at_a_time = max(1, ROWS_AT_A_TIME // total)
    weights = []
    for indices in tqdm(chosen.split(at_a_time), desc="importance sampling", unit="batch", disable=None):
        images = encoded.images[indices].to(vae.device)
        means, stddevs = encoded.means[indices].to(vae.device), encoded.stddevs[indices].to(vae.device)
        latent_dist = torch.distributions.Normal(means, stddevs, validate_args=False)
        labels = None if encoded.labels is None else encoded.labels[indices].to(vae.device)
        parts = []
        for start in range(0, total, ROWS_AT_A_TIME):
            draws = min(ROWS_AT_A_TIME, total - start)
            noise = torch.randn(draws, *means.shape, generator=generator, device=vae.device)
            latents = means + stddevs * noise
            pixels = vae.pixels(latents.flatten(0, 1), None if labels is None else labels.repeat(draws))
            errors = reconstruction_nll(pixels, images.repeat(draws, 1, 1, 1)).flatten(1).sum(1).view(draws, -1)
            parts.append(log_importance_weights(errors, latents, latent_dist).cpu())
        weights.append(torch.cat(parts).T)
    return torch.cat(weights)


def _pictures(pipeline: VAEPipeline, test: ImageData, encoded: _Encoded, seed: int) -> dict[str, Image]:
    """Draw the pictures of the page, of images chosen at random."""
    generator = torch.Generator().manual_seed(derive_seed("shown images", seed))
    chosen = torch.randperm(len(test), generator=generator)
    pairs = {"image": encoded.images, "again": encoded.reconstructions}
    scattered = chosen[:SCATTERED]
    labels = None if test.labels is None else test.labels[scattered]
    planes = _planes(encoded.means[scattered], seed)
    pictures = {
        "reconstructions": comparison_grid({name: _uint8(part[chosen[:PAIRS]]) for name, part in pairs.items()}),
        "latents": latents_picture(planes, labels, test.label_names),
        "interpolations": _interpolations(pipeline, encoded, chosen, generator),
        "traversals": _traversals(pipeline, encoded),
    }
    if pipeline.vae.config.latent_dim == 2:
        pictures["plane"] = plane_picture(pipeline)
    return pictures


def _planes(means: Tensor, seed: int) -> dict[str, np.ndarray]:
    """Return latents (N, D) on planes, by name: as they are, or their main directions and their t-SNE."""
    latents = means.double().numpy()
    if latents.shape[1] == 2:
        return {"the two latent dimensions": latents}
    if latents.shape[1] == 1:
        return {"the latent dimension, twice": latents.repeat(2, axis=1)}
    if not latents.std(axis=0).any():
        return {"the latents, all alike": latents[:, :2]}
    state = derive_seed("t-SNE", seed) % 2**32
    neighbours = TSNE(random_state=state, init="pca", perplexity=min(30, (len(latents) - 1) / 3))
    return {"principal components": PCA(2).fit_transform(latents), "t-SNE": neighbours.fit_transform(latents)}


def _interpolations(pipeline: VAEPipeline, encoded: _Encoded, chosen: Tensor, generator: torch.Generator) -> Image:
    """Draw strips between random latents, and between test images; of a model of classes, each end has its own."""
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
            rows.append(pipeline.interpolate(latents[first], latents[first + 1], **options).images)
            names.append(name)
    numbers = [row for row in range(len(rows)) for _ in range(STRIP_STEPS)]
    return sample_grid(_uint8(torch.cat(rows)), numbers, names)


def _traversals(pipeline: VAEPipeline, encoded: _Encoded) -> Image:
    divergences = encoded.divergences.mean(0)
    dimensions = divergences.argsort(descending=True)[:TRAVERSED].tolist()
    options = {"num_steps": STRIP_STEPS, "class_labels": first_class(pipeline), "output_type": "pt"}
    images = pipeline.traverse(dimensions=dimensions, **options).images
    names = [f"z{dimension}: {divergences[dimension]:.1f} nats" for dimension in dimensions]
    rows = [row for row in range(len(names)) for _ in range(STRIP_STEPS)]
    return sample_grid(_uint8(images), rows, names)


def _page(record: dict[str, Any]) -> str:
    return render_report(
        "analysis.md",
        record=record,
        images_taken_for_their_class={judge: found["images"] for judge, found in record["class_kept"].items()},
        active_variance=ACTIVE_VARIANCE,
        strip_steps=STRIP_STEPS,
    )
