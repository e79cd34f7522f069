"""Label-preserving random augmentations, sampled independently for each image of a batch."""

import torch
from torch import Tensor
from torch.nn import functional as F


def random_shift(images: Tensor, max_pixels: int) -> Tensor:
    """Shift each image by up to `max_pixels` in each direction, with reflection padding.

    Args:
        images: (B, C, H, W), H and W larger than `max_pixels`.
        max_pixels: Largest shift; 0 disables it.
    """
    count, _, height, width = images.shape
    padded = F.pad(images, [max_pixels] * 4, mode="reflect")
    rows, columns = torch.randint(2 * max_pixels + 1, (2, count, 1), device=images.device)
    rows = rows + torch.arange(height, device=images.device)
    columns = columns + torch.arange(width, device=images.device)
    every = torch.arange(count, device=images.device)
    # Advanced indices that are separated by a slice put the channels last.
    return padded[every[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def random_erase(images: Tensor, size: int) -> Tensor:
    """Erase (to 0) one square in each image, centred at a random pixel (Cutout, DeVries and Taylor 2017).

    Args:
        images: (B, C, H, W).
        size: Side of the square in pixels; 0 disables it.
    """
    count, _, height, width = images.shape
    top = torch.randint(height, (count, 1), device=images.device) - size // 2
    left = torch.randint(width, (count, 1), device=images.device) - size // 2
    rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    in_rows = (rows >= top) & (rows < top + size)
    in_columns = (columns >= left) & (columns < left + size)
    return images.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0.0)


def random_color(images: Tensor) -> Tensor:
    """Jitter brightness, saturation and contrast of each image (DiffAugment, Zhao et al. 2020).

    Brightness is shifted by up to 0.5, saturation scaled by 0 to 2 and contrast by 0.5 to 1.5.

    Args:
        images: (B, C, H, W); the result is not clipped to their range.
    """
    brightness, saturation, contrast = torch.rand(3, len(images), 1, 1, 1, device=images.device)
    images = images + (brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = torch.lerp(grey, images, 2 * saturation)
    return torch.lerp(images.mean((1, 2, 3), keepdim=True), images, 0.5 + contrast)
