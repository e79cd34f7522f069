"""Structural similarity as a loss."""

import torch
from torch import Tensor
from torch.nn import functional

SSIM_PIXELS = 11  # window size
SSIM_STD = 1.5  # of the Gaussian window, in pixels


def structural_similarity(images: Tensor, target: Tensor) -> Tensor:
    """Return the mean SSIM of pairs of images, a differentiable scalar (Wang et al. 2004, eq. 13).

    Equal to torchmetrics' default, but 10 to 100 times as fast on a CPU: the Gaussian window is applied as two matrix
    products instead of a convolution with 121 weights.

    Args:
        images: (B, C, H, W) in [0, 1], H and W at least 11.
        target: Likewise.
    """
    down, across = (_window(size, images.device) for size in images.shape[-2:])
    products = torch.cat([images, target, images * images, target * target, images * target])
    mean, target_mean, square, target_square, product = (down.T @ products @ across).chunk(5)
    both = mean * target_mean
    variance = (square - mean.square()).clamp(min=0)
    target_variance = (target_square - target_mean.square()).clamp(min=0)
    above = (2 * both + 0.01**2) * (2 * (product - both) + 0.03**2)
    below = (mean.square() + target_mean.square() + 0.01**2) * (variance + target_variance + 0.03**2)
    return (above / below).mean()


def _window(size: int, device: torch.device) -> Tensor:
    """Return the matrix (size, size) whose columns are Gaussians around each pixel, reflected at the borders."""
    half = SSIM_PIXELS // 2
    distances = torch.arange(-half, half + 1, device=device)
    gaussian = (-0.5 * (distances / SSIM_STD).square()).softmax(0)
    reflected = functional.pad(torch.eye(size, device=device)[None], (half, half), mode="reflect")[0]
    return reflected.unfold(1, SSIM_PIXELS, 1) @ gaussian
