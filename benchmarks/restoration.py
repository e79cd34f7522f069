r"""How well test images are freed from noise, filled in and enlarged: networks beside classical filters and others.

    python benchmarks/restoration.py \
        --denoisers runs/translation_fashion_mnist runs/translation_fashion_mnist_l1 \
            runs/translation_fashion_mnist_cpu10min \
        --inpainter runs/translation_fashion_mnist_inpaint_cpu10min \
        --upscaler runs/translation_fashion_mnist_upscale_cpu10min \
        --diffusion runs/ddpm_fashion_mnist --vae runs/vae_fashion_mnist

The tasks: `noise`, white, of standard deviation 0.1, 0.3 and 0.5 (for pixels from 0 to 1); `square`, one of 14 pixels
missing; `half` the resolution. The filters know the noise level like the diffusion model does: their strengths
are those that are best on as many training images. Results of each task go to
benchmarks/results/restoration_DATASET_TASK.json, .md and .png; those of tasks that are not asked for (`--tasks`) stay.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, median_filter
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle, inpaint_biharmonic
from torch import Tensor
from torch.nn import functional

from hfgen.data.degradations import Degraded, degrade, parse_degradations
from hfgen.data.images import ImageData, load_images
from hfgen.evaluation.restoration import image_metrics, label_accuracy, run_model
from hfgen.figures.grids import sample_grid, save_picture
from hfgen.judges.judge import load_judge, shipped_judges_of
from hfgen.pipelines.loading import load
from hfgen.runs.record import this_command
from hfgen.sampling.edit import editing_pipeline
from hfgen.sampling.sample import to_uint8
from hfgen.utils.seeds import derive_seed, seed_torch

RESULTS = Path(__file__).parent / "results"
NOISE = (0.1, 0.3, 0.5)
SHOWN_NOISE = "noise of 0.3"
SHOWN = 12
CPU = torch.device("cpu")


def gaussian(images: np.ndarray, std: float, width: float) -> np.ndarray:
    return gaussian_filter(images, width, axes=(2, 3))


def median(images: np.ndarray, std: float, size: int) -> np.ndarray:
    return median_filter(images, size, axes=(2, 3))


def of_scikit_image(function: Callable[..., np.ndarray], image: np.ndarray, *arguments, **options) -> np.ndarray:
    """Filter one image (C, H, W); scikit-image takes a grey one for a row of others unless it has no channels."""
    if len(image) == 1:
        return function(image[0], *arguments, **options)[None]
    return function(image, *arguments, **options, channel_axis=0)


def non_local_means(images: np.ndarray, std: float, strength: float) -> np.ndarray:
    options = {"patch_size": 5, "patch_distance": 6, "sigma": std, "h": strength * std}
    return np.stack([of_scikit_image(denoise_nl_means, image, **options) for image in images])


def total_variation(images: np.ndarray, std: float, strength: float) -> np.ndarray:
    return np.stack([of_scikit_image(denoise_tv_chambolle, image, strength * std) for image in images])


FILTERS: dict[str, tuple[Callable[..., np.ndarray], tuple[float, ...]]] = {
    "Gaussian filter": (gaussian, (0.3, 0.5, 0.7, 0.9, 1.1)),
    "median filter": (median, (2, 3, 5)),
    "non-local means": (non_local_means, (0.4, 0.7, 1.0, 1.3)),
    "total variation": (total_variation, (0.3, 0.5, 0.7, 1.0, 1.4)),
}


def degraded(images: Tensor, text: str, purpose: str = "test") -> Degraded:
    """Return what images, uint8 (N, C, H, W), become; the same each time."""
    seed_torch(derive_seed("benchmark", purpose, text), CPU)
    return degrade(images.float() / 127.5 - 1, parse_degradations([text]))


def in_parts(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return torch.cat([function(part) for part in images.split(250)])


def denoised(options: argparse.Namespace, std: float, images: Tensor, training: Tensor) -> dict[str, Tensor]:
    """Return by method what becomes of noisy images, uint8 (N, C, H, W)."""
    text = f"gaussian_noise={std}"
    given, known = degraded(images, text), degraded(training, text, "train").images / 2 + 0.5
    pixels = given.images / 2 + 0.5
    results = {"noisy": to_uint8(given.images)}
    for name, (function, strengths) in FILTERS.items():
        tried = [
            image_metrics(to_uint8(torch.from_numpy(function(known.numpy(), std, strength)) * 2 - 1), training)["psnr"]
            for strength in strengths
        ]
        best = strengths[int(np.argmax(tried))]
        results[name] = to_uint8(torch.from_numpy(function(pixels.numpy(), std, best)) * 2 - 1)
    if options.vae:
        vae = load(options.vae)
        results[Path(options.vae).name] = to_uint8(
            in_parts(lambda part: vae.reconstruct(part.clamp(0, 1), output_type="pt").images, pixels) * 2 - 1
        )
    if options.diffusion:
        editing = editing_pipeline(load(options.diffusion, dtype="auto"))
        for steps in (1, 10):
            fields = {"noise_std": std, "num_inference_steps": steps, "output_type": "pt"}
            made = in_parts(lambda part, fields=fields: editing.denoise(part, **fields).images, pixels)
            results[f"{Path(options.diffusion).name}, {steps} step{'s' * (steps > 1)}"] = to_uint8(made * 2 - 1)
    for run in options.denoisers:
        results[Path(run).name] = run_model(load(run), given)
    return results


def filled_in(options: argparse.Namespace, images: Tensor) -> dict[str, Tensor]:
    """Return by method what becomes of images of which a square is missing, uint8 (N, C, H, W)."""
    given = degraded(images, "mask=14")
    missing = degraded(torch.full_like(images, 255), "mask=14").images[:, :1] == 0
    results = {"with the square": to_uint8(given.images)}
    pairs = zip(given.images.numpy(), missing.numpy(), strict=True)
    smooth = np.stack([of_scikit_image(inpaint_biharmonic, image, hole[0]) for image, hole in pairs])
    results["biharmonic equation"] = to_uint8(torch.from_numpy(smooth))
    if options.diffusion:
        editing = editing_pipeline(load(options.diffusion, dtype="auto"))
        parts = [
            editing.inpaint(image, hole.float(), num_inference_steps=20, num_resamples=3, output_type="pt",
                            generator=torch.Generator().manual_seed(number)).images
            for number, (image, hole) in enumerate(
                zip((given.images / 2 + 0.5).split(250), missing.split(250), strict=True)
            )
        ]  # fmt: skip
        results[f"{Path(options.diffusion).name}, RePaint"] = to_uint8(torch.cat(parts) * 2 - 1)
    if options.inpainter:
        made = run_model(load(options.inpainter), given)
        results[Path(options.inpainter).name] = torch.where(missing, made, images)
    return results


def enlarged(options: argparse.Namespace, images: Tensor) -> dict[str, Tensor]:
    """Return by method what becomes of images at half their resolution, uint8 (N, C, H, W)."""
    given = degraded(images, "downscale=2")
    results = {
        name: to_uint8(functional.interpolate(given.images, scale_factor=2, mode=mode))
        for name, mode in (("repeated pixels", "nearest"), ("bilinear", "bilinear"), ("bicubic", "bicubic"))
    }
    if options.upscaler:
        results[Path(options.upscaler).name] = run_model(load(options.upscaler), given)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--denoisers", nargs="*", default=[])
    parser.add_argument("--inpainter")
    parser.add_argument("--upscaler")
    parser.add_argument("--diffusion")
    parser.add_argument("--vae")
    parser.add_argument("--dataset_name", default="fashion_mnist")
    parser.add_argument("--num_images", type=int, default=1000)
    parser.add_argument("--tasks", nargs="+", choices=("noise", "square", "half"), default=["noise", "square", "half"])
    options = parser.parse_args()
    test = load_images(options.dataset_name, split="test")
    images = test.images[: options.num_images]
    training = load_images(options.dataset_name, split="train").images[: options.num_images]
    judge = load_judge(shipped_judges_of(options.dataset_name)[0])
    for task in options.tasks:
        match task:
            case "noise":
                results = {f"noise of {std}": denoised(options, std, images, training) for std in NOISE}
            case "square":
                results = {"a square of 14 pixels missing": filled_in(options, images)}
            case "half":
                results = {"half the resolution": enlarged(options, images)}
        record = {
            "command": f"python benchmarks/{this_command()}",
            "num_images": len(images),
            "judge": judge.name,
            "judge_accuracy": label_accuracy(images, test, judge)["accuracy"],
            "results": {
                setting: {method: measured(made, images, test, judge) for method, made in found.items()}
                for setting, found in results.items()
            },
        }
        place = RESULTS / f"restoration_{options.dataset_name}_{task}.json"
        place.write_text(json.dumps(record, indent=1) + "\n")
        place.with_suffix(".md").write_text(page(record))
        shown = {"original": images, **results.get(SHOWN_NOISE, next(iter(results.values())))}
        numbers = [row for row in range(len(shown)) for _ in images[:SHOWN]]
        picture = sample_grid(torch.cat([part[:SHOWN] for part in shown.values()]), numbers, [*shown])
        save_picture(picture, place.with_suffix(".png"))


def measured(made: Tensor, images: Tensor, test: ImageData, judge) -> dict[str, float]:
    found = image_metrics(made, images)
    return {"psnr": found["psnr"], "ssim": found["ssim"], "class_seen": label_accuracy(made, test, judge)["accuracy"]}


def page(record: dict) -> str:
    """Write the record as a page."""
    results = record["results"]
    lines = [
        f"Written by `{record['command']}`: the first {record['num_images']:,} test images. PSNR in dB, SSIM, and the",
        f"share of the images whose class the judge `{record['judge']}` sees, which is right on",
        f"{record['judge_accuracy']:.1%} of the images themselves.",
        "",
        "| method | " + " | ".join(results) + " |",
        "|---|" + "---|" * len(results),
    ]
    for method in next(iter(results.values())):
        found = [setting[method] for setting in results.values()]
        cells = [f"{cell['psnr']:.2f}, {cell['ssim']:.3f}, {cell['class_seen']:.1%}" for cell in found]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
