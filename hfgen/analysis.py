"""`hfgen analyze`: what a VAE's latents keep of images, how good its bounds are, how its latents are laid out."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from scipy.stats import norm
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor
from tqdm import tqdm

from hfgen.binarization import Binarizer
from hfgen.data import ImageData, public_name
from hfgen.errors import UserError
from hfgen.figures import image_grid, latents_picture, pairs_picture, sample_grid, save_picture
from hfgen.files import complete_or_absent
from hfgen.loading import load
from hfgen.losses import ACTIVE_VARIANCE, count_active_units, importance_weighted_bound, normal_kl, pixel_error
from hfgen.metrics.class_accuracy.class_accuracy import class_accuracy
from hfgen.metrics.image_similarity.image_similarity import image_similarity
from hfgen.metrics.judge import load_judge
from hfgen.options import AnalyzeConfig
from hfgen.pipelines.pipeline_hfgen_vae import VAEPipeline
from hfgen.references import (
    check_size,
    data_source_of,
    default_output,
    load_real,
    name_of,
    run_fields,
    shipped_judges_of,
)
from hfgen.report import ANALYSIS_PAGE as PAGE
from hfgen.report import ANALYSIS_PICTURES as PICTURES
from hfgen.report import ANALYSIS_RECORD as RECORD
from hfgen.report import accuracy_text, bounds_table, bounds_text, number, table
from hfgen.sampling import image_shape_of, labels_of, to_uint8
from hfgen.seeds import derive_seed
from hfgen.subjects import judges_numbers

SIMILARITIES = {"mse": "mean squared error", "psnr": "PSNR (dB)", "ssim": "SSIM"}
PIXELS = {
    "none": "grey",
    "threshold": "black and white, 1 where a grey one is at least a half",
    "static": "black and white, 1 with the probability of the grey one's brightness, drawn once",
    "dynamic": "black and white, 1 with the probability of the grey one's brightness, drawn for this analysis",
}
ROWS_AT_A_TIME = 5000  # latents that are decoded together for the importance-weighted bound
STRIP_STEPS = 10  # equally spaced points of an interpolation or traversal
STRIPS = 4  # interpolations of each kind
PAIRS = 32  # images beside their reconstructions
PLANE_SIDE = 20  # images along each side of the decoded plane
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
    judges = [load_judge(name) for name in config.judge or shipped_judges_of(dataset)]
    for judge in judges:
        check_size(judge.image_shape, f"the judge {judge.name}", test)
    method = config.binarization or run.get("binarization", "none")
    if method != "none" and pipeline.vae.config.pixel_distribution != "bernoulli":
        raise UserError(f"{config.run_or_repo} is no model of black-and-white pixels; leave binarization out")
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
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
    if test.labels is not None:
        for judge in judges:
            record["class_kept"][judge.name] = _class_kept(judge, test, encoded)
    for name, picture in _pictures(pipeline, test, encoded, config.seed).items():
        save_picture(picture, output / PICTURES / f"{name}.png")
    for name, text in (
        (PAGE, "\n".join(_page(record)) + "\n"),
        (RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n"),
    ):
        with complete_or_absent(output / name) as temporary:
            temporary.write_text(text)
    return output / RECORD


@torch.no_grad()
def _encode(pipeline: VAEPipeline, test: ImageData, binarize: Binarizer, config: AnalyzeConfig) -> _Encoded:
    vae = pipeline.vae
    pixels_generator, generator = (
        torch.Generator().manual_seed(derive_seed(purpose, config.seed)) for purpose in ("pixels", "latents")
    )
    noises = torch.randn(len(test), vae.config.latent_dim, generator=generator)
    labels = None
    if pipeline.labels:
        test.require_labels()
        ids = torch.tensor(pipeline.get_label_ids(test.label_names))
        labels = ids[test.labels]
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
            "errors": pixel_error(pixels, images / 2 + 0.5).flatten(1).sum(1),
            "divergences": normal_kl(latent_dist),
        }
        for name, value in found.items():
            parts.setdefault(name, []).append(value.float().cpu())
    return _Encoded(labels=labels, **{name: torch.cat(values) for name, values in parts.items()})


def _pixel_accuracy(encoded: _Encoded) -> float:
    """Return the share of pixels that are on the same side of a half in an image and its reconstruction."""
    return ((encoded.images >= 0.5) == (encoded.reconstructions >= 0.5)).double().mean().item()


def _class_kept(judge: Any, test: ImageData, encoded: _Encoded) -> dict[str, Any]:
    """Return which share of the reconstructions, and of the images, the judge takes for the class that they show."""
    labels = judges_numbers(test.label_names, test.source, judge.label_names)[test.labels]
    found = {}
    for kind, images in (("reconstructions", encoded.reconstructions), ("images", encoded.images)):
        predicted = judge.look_at((images * 255).round().to(torch.uint8))[1].argmax(1)
        accuracy, per_class = class_accuracy(predicted, labels, len(judge.label_names))
        std = math.sqrt(accuracy * (1 - accuracy) / len(labels))
        found[kind] = {"accuracy": accuracy, "accuracy_std": std, "accuracy_per_class": per_class}
    return found


def _bounds(pipeline: VAEPipeline, encoded: _Encoded, config: AnalyzeConfig) -> dict[str, dict[str, float]]:
    """Return the negative bounds on ln p(x), in nats an image, and the two terms of the first."""
    chosen = torch.randperm(
        len(encoded.images), generator=torch.Generator().manual_seed(derive_seed("bound images", config.seed))
    )[: config.num_bound_images]
    divergence = encoded.divergences.sum(1)
    return {
        "reconstruction": _mean(encoded.errors),
        "kl": _mean(divergence),
        "negative_elbo": _mean(encoded.errors + divergence),
        "negative_importance_weighted_bound": _mean(-_importance_weighted(pipeline, encoded, chosen, config)),
    }


def _mean(values: Tensor) -> dict[str, float]:
    return {"value": values.double().mean().item(), "std": (values.double().std() / math.sqrt(len(values))).item()}


@torch.no_grad()
def _importance_weighted(pipeline: VAEPipeline, encoded: _Encoded, chosen: Tensor, config: AnalyzeConfig) -> Tensor:
    """Return the bound of many latents of the chosen images, (N,)."""
    vae = pipeline.vae
    generator = torch.Generator(vae.device).manual_seed(derive_seed("importance samples", config.seed))
    total = config.num_importance_samples
    at_a_time = max(1, ROWS_AT_A_TIME // min(total, ROWS_AT_A_TIME))
    bounds = []
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
            errors = pixel_error(pixels, images.repeat(draws, 1, 1, 1)).flatten(1).sum(1)
            errors = errors.view(draws, len(indices))
            parts.append(importance_weighted_bound(errors, latents, latent_dist) + math.log(draws / total))
        bounds.append(torch.stack(parts).logsumexp(0).cpu())
    return torch.cat(bounds)


def _pictures(pipeline: VAEPipeline, test: ImageData, encoded: _Encoded, seed: int) -> dict[str, Image]:
    images, again = (
        (part[:PAIRS] * 255).round().to(torch.uint8) for part in (encoded.images, encoded.reconstructions)
    )
    pictures = {
        "reconstructions": pairs_picture(images, again, ("image", "again")),
        "latents": latents_picture(_planes(encoded.means[:SCATTERED], seed), test.labels, test.label_names),
        "interpolations": _interpolations(pipeline, encoded, seed),
        "traversals": _traversals(pipeline, encoded),
    }
    if pipeline.vae.config.latent_dim == 2:
        pictures["plane"] = _plane(pipeline)
    return pictures


def _planes(means: Tensor, seed: int) -> dict[str, np.ndarray]:
    """Return latents (N, D) on planes, by name: as they are, or their main directions and their t-SNE."""
    latents = means.double().numpy()
    if latents.shape[1] == 2:
        return {"the two latent dimensions": latents}
    if latents.shape[1] == 1:
        return {"the latent dimension, twice": latents.repeat(2, axis=1)}
    neighbours = TSNE(random_state=seed, init="pca", perplexity=min(30, (len(latents) - 1) / 3))
    return {"principal components": PCA(2).fit_transform(latents), "t-SNE": neighbours.fit_transform(latents)}


def _draw(pipeline: VAEPipeline, latents: Tensor, labels: Any = None) -> Tensor:
    """Decode latents (N, D) to uint8 images; of a model that is told classes, all of the first unless it is said."""
    if pipeline.labels and labels is None:
        labels = labels_of(pipeline, (), [0])
    images = pipeline(latents=latents, class_labels=labels, output_type="pt").images
    return to_uint8(images * 2 - 1)


def _interpolations(pipeline: VAEPipeline, encoded: _Encoded, seed: int) -> Image:
    generator = torch.Generator().manual_seed(derive_seed("interpolations", seed))
    drawn = torch.randn(2 * STRIPS, encoded.means.shape[1], generator=generator)
    shares = torch.linspace(0, 1, STRIP_STEPS)[:, None]
    rows = []
    for latents in (drawn, encoded.means[: 2 * STRIPS]):
        for first, last in latents.view(STRIPS, 2, -1):
            rows.append(_draw(pipeline, torch.lerp(first, last, shares)))
    names = ["random latents"] * STRIPS + ["test images"] * STRIPS
    return sample_grid(torch.cat(rows), [row for row in range(len(rows)) for _ in range(STRIP_STEPS)], names)


def _traversals(pipeline: VAEPipeline, encoded: _Encoded) -> Image:
    divergences = encoded.divergences.mean(0)
    dimensions = divergences.argsort(descending=True)[:TRAVERSED].tolist()
    labels = labels_of(pipeline, (), [0]) if pipeline.labels else None
    images = pipeline.traverse(
        dimensions=dimensions, num_steps=STRIP_STEPS, class_labels=labels, output_type="pt"
    ).images
    names = [f"z{dimension}: {divergences[dimension]:.1f} nats" for dimension in dimensions]
    rows = [row for row in range(len(names)) for _ in range(STRIP_STEPS)]
    return sample_grid(to_uint8(images * 2 - 1), rows, names)


def _plane(pipeline: VAEPipeline) -> Image:
    """Decode points that divide the prior of two dimensions into equal masses (Kingma and Welling 2014, fig. 4)."""
    places = torch.from_numpy(norm.ppf((np.arange(PLANE_SIDE) + 0.5) / PLANE_SIDE)).float()
    latents = torch.cartesian_prod(places.flip(0), places).flip(1)  # z0 to the right, z1 upwards
    return image_grid(_draw(pipeline, latents), PLANE_SIDE)


def _page(record: dict[str, Any]) -> list[str]:
    protocol = record["protocol"]
    active, latent_dim = record["active_units"], protocol["latent_dim"]
    lines = [
        f"# What the latents of {protocol['model']} keep",
        "",
        f"Found on the {protocol['reference_images']:,} images of the split `{protocol['reference_split']}` of "
        f"{protocol['dataset']}. Their pixels are {PIXELS[protocol['pixels']]}.",
        "",
        "## Reconstructions",
        "",
        f"![images above their reconstructions]({PICTURES}/reconstructions.png)",
        *table(
            ["measure", "of an image and its reconstruction"],
            [
                *([title, number(record["similarity"][name])] for name, title in SIMILARITIES.items()
                  if name in record["similarity"]),
                ["pixels on the same side of a half", f"{record['pixel_accuracy']:.2%}"],
            ],
        ),
    ]  # fmt: skip
    if record["class_kept"]:
        lines += table(
            ["judge", "reconstructions taken for the class of their image", "images taken for their class"],
            (
                [f"`{judge}`", accuracy_text(found["reconstructions"]), accuracy_text(found["images"])]
                for judge, found in record["class_kept"].items()
            ),
        )
    lines += [
        "",
        "## Bounds",
        "",
        bounds_text(protocol),
        *bounds_table(record),
        "",
        "## Latents",
        "",
        f"{active} of {latent_dim} dimensions are active: the mean of q(z | x) has a variance above "
        f"{ACTIVE_VARIANCE:g} over the images (Burda et al. 2016)."
        + (" The model has collapsed: its decoder does not look at the latents." if not active else ""),
        "",
        f"![latents of {SCATTERED:,} images by class]({PICTURES}/latents.png)",
    ]
    if latent_dim == 2:
        lines += [
            "",
            f"![images decoded from points that divide the prior into equal masses]({PICTURES}/plane.png)",
        ]
    return [
        *lines,
        "",
        f"![between two latents, through {STRIP_STEPS} equally spaced points]({PICTURES}/interpolations.png)",
        "",
        "One dimension at a time, from −3 to 3, with its divergence; those with most divergence first.",
        "",
        f"![traversals]({PICTURES}/traversals.png)",
        "",
        "## Protocol",
        "",
        "```json",
        json.dumps(protocol, indent=1, ensure_ascii=False),
        "```",
    ]
