"""Similarity of pairs of images: mean squared error, PSNR, SSIM, multi-scale SSIM."""

import datasets
import evaluate
import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

_CITATION = """\
@article{wang2004image, title={Image quality assessment: from error visibility to structural similarity}, author={Wang,
  Zhou and Bovik, Alan C. and Sheikh, Hamid R. and Simoncelli, Eero P.}, journal={IEEE TIP}, year={2004}}
@inproceedings{wang2003multiscale, title={Multiscale structural similarity for image quality assessment},
  author={Wang, Zhou and Simoncelli, Eero P. and Bovik, Alan C.}, booktitle={Asilomar}, year={2003}}"""

_DESCRIPTION = """\
Mean squared error, peak signal-to-noise ratio and structural similarity (Gaussian window of 11 pixels, σ = 1.5,
over the whole image, reflected at its edges) of pairs of images, each averaged over the pairs. Multi-scale SSIM
halves the images four times and needs more than 160 pixels."""

_INPUTS = """\
Args:
    predictions: Images of the same size: PIL, or uint8 arrays (H, W) or (H, W, 3).
    references: Target images of the same size, in the same order.
Returns:
    mse: Of pixels in [0, 1].
    psnr: In dB; for identical images (infinite PSNR), as if one value were off by one of 255 levels.
    ssim: From −1 to 1, 1 for identical images; only if H, W ≥ 11.
    ms_ssim: From 0 to 1; only if H, W > 160.
Examples:
    >>> module = evaluate.load("hfgen/image_similarity")
    >>> black, grey = np.zeros((8, 8), np.uint8), np.full((8, 8), 51, np.uint8)
    >>> results = module.compute(predictions=[grey], references=[black])
    >>> {name: round(value, 2) for name, value in results.items()}
    {'mse': 0.04, 'psnr': 13.98}
"""

_SSIM_PIXELS = 11  # window size
_MS_SSIM_PIXELS = 160  # must be exceeded: four halvings, and a window of 11


def image_similarity(predictions: Tensor, references: Tensor) -> dict[str, float]:
    """Return the metrics of pairs of images, float (N, C, H, W) in [0, 1].

    Raises:
        ValueError: if the shapes differ.
    """
    if predictions.shape != references.shape:
        raise ValueError(f"pairs must have the same shape, not {tuple(predictions.shape)}, {tuple(references.shape)}")
    errors = (predictions - references).square().flatten(1).mean(1)
    results = {
        "mse": errors.mean().item(),
        "psnr": (-10 * errors.clamp(min=1 / 255**2 / predictions[0].numel()).log10()).mean().item(),
    }
    if min(predictions.shape[-2:]) >= _SSIM_PIXELS:
        results["ssim"] = structural_similarity_index_measure(predictions, references, data_range=1.0).item()
    if min(predictions.shape[-2:]) > _MS_SSIM_PIXELS:
        results["ms_ssim"] = multiscale_structural_similarity_index_measure(
            predictions, references, data_range=1.0, normalize="relu"
        ).item()
    return results


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class ImageSimilarity(evaluate.Metric):
    """The `evaluate` module."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()}),
        )

    def compute(self, *, predictions=None, references=None, **options):
        """Compute as usual, but refuse images that the table of `add_batch` would round to 8 bits."""
        for images in (predictions, references):
            for image in images if images is not None else []:
                if not isinstance(image, PIL.Image.Image) and np.asarray(image).dtype != np.uint8:
                    raise ValueError(f"images must be PIL or uint8 arrays, not {np.asarray(image).dtype}")
        return super().compute(predictions=predictions, references=references, **options)

    def _compute(self, predictions, references):
        return image_similarity(*(_to_tensor(images) for images in (predictions, references)))


def _to_tensor(images) -> Tensor:
    arrays = [np.asarray(image) for image in images]
    if shapes := {array.shape for array in arrays[1:]} - {arrays[0].shape}:
        raise ValueError(f"images must have the same size and channels, not {arrays[0].shape} and {shapes.pop()}")
    stacked = torch.from_numpy(np.stack(arrays)).float() / 255
    return stacked[:, None] if stacked.ndim == 3 else stacked.permute(0, 3, 1, 2)
