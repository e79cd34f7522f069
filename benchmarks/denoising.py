"""How well a diffusion model removes noise from test images, beside classical filters: PSNR and SSIM.

    python benchmarks/denoising.py runs/ddpm_mnist --dataset_name mnist

White noise of standard deviation 0.1, 0.3 and 0.5 (for pixels from 0 to 1) is added to the first test images. The
filters know the noise level like the model does: the width of the Gaussian and of the median filter and the strength
of non-local means are those that are best on as many training images. Results go to
benchmarks/results/denoising_DATASET.json, .md and .png.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, median_filter
from skimage.restoration import denoise_nl_means

from hfgen.data import load_images
from hfgen.figures import sample_grid, save_picture
from hfgen.loading import load
from hfgen.metrics.image_similarity.image_similarity import image_similarity
from hfgen.pipelines.pipeline_hfgen_diffusion_editing import DiffusionEditingPipeline

RESULTS = Path(__file__).parent / "results"
NOISE = (0.1, 0.3, 0.5)
SHOWN = 12


def gaussian(images: np.ndarray, std: float, width: float) -> np.ndarray:
    return gaussian_filter(images, width, axes=(2, 3))


def median(images: np.ndarray, std: float, size: int) -> np.ndarray:
    return median_filter(images, size, axes=(2, 3))


def non_local_means(images: np.ndarray, std: float, strength: float) -> np.ndarray:
    options = {"patch_size": 5, "patch_distance": 6, "sigma": std, "h": strength * std, "channel_axis": 0}
    return np.stack([denoise_nl_means(image, **options) for image in images])


FILTERS = {
    "Gaussian filter": (gaussian, (0.3, 0.5, 0.7, 0.9, 1.1)),
    "median filter": (median, (2, 3, 5)),
    "non-local means": (non_local_means, (0.4, 0.7, 1.0, 1.3)),
}


def noisy(images: torch.Tensor, std: float) -> torch.Tensor:
    return images + std * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))


def scores(results: torch.Tensor, images: torch.Tensor) -> dict[str, float]:
    """Return PSNR and SSIM of images (N, C, H, W) in [0, 1]."""
    found = image_similarity(*((x.clamp(0, 1) * 255).round() / 255 for x in (results, images)))
    return {name: found[name] for name in ("psnr", "ssim")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--dataset_name", default="mnist")
    parser.add_argument("--num_images", type=int, default=1000)
    options = parser.parse_args()
    loaded = load(options.run)
    pipeline = DiffusionEditingPipeline(loaded.unet, loaded.scheduler, loaded.config.get("id2label"))
    images, training = (
        load_images(options.dataset_name, split=split).images[: options.num_images].float() / 255
        for split in ("test", "train")
    )
    rows, shown = [], []
    for std in NOISE:
        given = noisy(images, std)
        results = {"noisy": given}
        for name, (function, settings) in FILTERS.items():
            known = noisy(training, std).numpy()
            tried = [scores(torch.from_numpy(function(known, std, setting)), training)["psnr"] for setting in settings]
            best = settings[int(np.argmax(tried))]
            results[name] = torch.from_numpy(function(given.numpy(), std, best))
        parts = given.split(250)
        for name, steps in (("diffusion model", 1), ("diffusion model, 10 steps", 10)):
            fields = {"noise_std": std, "num_inference_steps": steps, "output_type": "pt"}
            results[name] = torch.cat([pipeline.denoise(part, **fields).images for part in parts])
        rows += [{"noise_std": std, "method": name, **scores(result, images)} for name, result in results.items()]
        shown += [("original", images), *results.items()] if std == 0.3 else []
    record = {"command": f"python benchmarks/denoising.py {options.run} --dataset_name {options.dataset_name}"}
    record |= {"num_images": options.num_images, "rows": rows}
    place = RESULTS / f"denoising_{options.dataset_name}.json"
    place.write_text(json.dumps(record, indent=1) + "\n")
    place.with_suffix(".md").write_text(table(record))
    pictures = torch.cat([(x[:SHOWN].clamp(0, 1) * 255).round().to(torch.uint8) for _, x in shown])
    labels = [row for row in range(len(shown)) for _ in range(SHOWN)]
    save_picture(sample_grid(pictures, labels, [name for name, _ in shown]), place.with_suffix(".png"))


def table(record: dict) -> str:
    """Write the record as a page."""
    lines = [
        f"Written by `{record['command']}`: the first {record['num_images']:,} test images, with noise of",
        "standard deviation 0.1, 0.3 and 0.5 for pixels from 0 to 1. PSNR in dB, and SSIM.",
        "",
        "| method | " + " | ".join(f"noise {std}" for std in NOISE) + " |",
        "|---|" + "---|" * len(NOISE),
    ]
    for name in dict.fromkeys(row["method"] for row in record["rows"]):
        found = [row for row in record["rows"] if row["method"] == name]
        lines.append(f"| {name} | " + " | ".join(f"{row['psnr']:.1f}, {row['ssim']:.3f}" for row in found) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
