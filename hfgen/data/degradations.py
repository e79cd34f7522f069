"""Composable image degradations (noise, blur, masks, downscaling, JPEG, …).

Functions take images (B, C, H, W) in [−1, 1], and most an amount per image, (B, 1, 1, 1).
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from hfgen.utils.errors import UserError

JPEG_BLOCK = 8
# The quantisation tables of the JPEG standard (ITU-T T.81, tables K.1 and K.2).
JPEG_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
JPEG_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))  # JFIF


def add_gaussian_noise(images: Tensor, std: Tensor) -> Tensor:
    """Add Gaussian white noise, with its standard deviation given for pixels in [0, 1]; the result is not clipped."""
    return images + 2 * std * torch.randn_like(images)


def add_salt_and_pepper(images: Tensor, fraction: Tensor) -> Tensor:
    """Set a random fraction of the pixels to black or white, in all channels."""
    uniform = torch.rand_like(images[:, :1])
    images = torch.where(uniform < fraction / 2, -1.0, images)
    return torch.where(uniform > 1 - fraction / 2, 1.0, images)


def blur(images: Tensor, std: Tensor) -> Tensor:
    """Gaussian blur with a standard deviation in pixels and replicate padding."""
    radius = max(1, math.ceil(3 * std.max().item()))
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    kernels = torch.exp(-offsets.square() / (2 * std.view(-1, 1).clamp(min=1e-3).square()))
    kernels = kernels / kernels.sum(1, keepdim=True)  # one per image
    padded = functional.pad(images, [radius] * 4, mode="replicate")
    rows = torch.einsum("bchwk,bk->bchw", padded.unfold(3, 2 * radius + 1, 1), kernels)
    return torch.einsum("bchwk,bk->bchw", rows.unfold(2, 2 * radius + 1, 1), kernels)


def mask(images: Tensor, pixels: Tensor) -> Tensor:
    """Mask (with 0) one square of `pixels` by `pixels` at a random position inside each image."""
    count, _, height, width = images.shape
    pixels = pixels.round()
    top = (torch.rand(count, 1, 1, 1, device=images.device) * (height - pixels + 1)).floor()
    left = (torch.rand(count, 1, 1, 1, device=images.device) * (width - pixels + 1)).floor()
    rows = torch.arange(height, device=images.device)[:, None]
    columns = torch.arange(width, device=images.device)
    inside = (rows >= top) & (rows < top + pixels) & (columns >= left) & (columns < left + pixels)
    return images.masked_fill(inside, 0.0)


def downscale(images: Tensor, factor: int) -> Tensor:
    """Downscale by averaging blocks of `factor` by `factor` pixels."""
    return functional.avg_pool2d(images, factor)


def to_gray(images: Tensor) -> Tensor:
    """Convert RGB to luma (ITU-R BT.601): (B, 1, H, W)."""
    weights = torch.tensor(TO_YCBCR[0], device=images.device)[:, None, None]
    return (weights * images).sum(1, keepdim=True)


def jpeg(images: Tensor, quality: Tensor) -> Tensor:
    """Apply JPEG compression artefacts of a quality from 1 to 100, without chroma subsampling.

    The DCT coefficients of 8×8 blocks are quantised with the standard's tables, scaled by quality as in libjpeg. The
    entropy coding is lossless and left out.
    """
    height, width = images.shape[-2:]
    padding = (0, -width % JPEG_BLOCK, 0, -height % JPEG_BLOCK)
    pixels = functional.pad(images * 127.5 + 127.5, padding, mode="replicate").round().clamp(0, 255)
    is_color = images.shape[1] == 3
    to_ycbcr = torch.tensor(TO_YCBCR, device=images.device)
    if is_color:
        pixels = torch.einsum("yc,bchw->byhw", to_ycbcr, pixels).round()
    centre = torch.tensor([128.0, 0.0, 0.0], device=images.device)[: images.shape[1], None, None]
    place = torch.arange(JPEG_BLOCK, device=images.device)
    cosines = torch.cos((2 * place + 1) * place[:, None] * math.pi / (2 * JPEG_BLOCK)) / 2  # (frequency, place)
    cosines[0] /= math.sqrt(2)
    blocks = (pixels - centre).unflatten(3, (-1, JPEG_BLOCK)).unflatten(2, (-1, JPEG_BLOCK))
    waves = (8 * torch.einsum("ui,bcnimj,vj->bcnumv", cosines, blocks, cosines)).round() / 8  # libjpeg's precision
    quality = quality.round()
    scale = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality)[:, :, :, :, None, None]
    tables = torch.tensor([JPEG_LUMINANCE, JPEG_CHROMINANCE, JPEG_CHROMINANCE], device=images.device)
    steps = ((tables[: images.shape[1], None, :, None] * scale + 50) / 100).floor().clamp(1, 255)
    levels = waves.sign() * (waves.abs() / steps + 0.5).floor()
    blocks = torch.einsum("ui,bcnumv,vj->bcnimj", cosines, levels * steps, cosines)
    pixels = blocks.flatten(4, 5).flatten(2, 3).round().clamp(-128, 127) + centre
    if is_color:
        pixels = torch.einsum("cy,byhw->bchw", to_ycbcr.inverse(), pixels)
    return pixels[..., :height, :width].round().clamp(0, 255) / 127.5 - 1


def invert(images: Tensor) -> Tensor:
    """Invert brightness."""
    return -images


def thicken(images: Tensor, pixels: Tensor) -> Tensor:
    """Dilate bright regions by `pixels` (grey-scale dilation with a 3×3 window, repeated)."""
    times = pixels.round()
    for done in range(int(times.max())):
        grown = functional.max_pool2d(images, 3, stride=1, padding=1)
        images = torch.where(done < times, grown, images)
    return images


def tint(images: Tensor) -> Tensor:
    """Tint greyscale images with a random colour each: black stays black, white becomes the colour."""
    hues = torch.rand(len(images), 1, device=images.device) + torch.tensor([0, 1 / 3, 2 / 3], device=images.device)
    colors = 0.5 + 0.5 * torch.cos(2 * math.pi * hues)[:, :, None, None]
    return (images + 1) * colors - 1


class Amount(NamedTuple):
    """Valid amounts of a degradation.

    Attributes:
        low, high: Range of the amount.
        unit: Description of the amount.
    """

    low: float
    high: float
    unit: str


FUNCTIONS: dict[str, tuple[Callable[..., Tensor], Amount | None]] = {
    "gaussian_noise": (add_gaussian_noise, Amount(0, 10, "standard deviation for pixels in [0, 1]")),
    "salt_and_pepper": (add_salt_and_pepper, Amount(0, 1, "fraction of the pixels")),
    "blur": (blur, Amount(0, 100, "standard deviation in pixels")),
    "mask": (mask, Amount(0, 10_000, "side of the square in pixels")),
    "downscale": (downscale, Amount(2, 16, "whole number")),
    "jpeg": (jpeg, Amount(1, 100, "quality")),
    "thicken": (thicken, Amount(1, 100, "pixels")),
    "grey": (to_gray, None),
    "invert": (invert, None),
    "tint": (tint, None),
}


class Degraded(NamedTuple):
    """Degraded images and their noise level.

    Attributes:
        images: float32 (B, C', H', W') in [−1, 1], or beyond if noisy.
        noise_std: Standard deviation of the Gaussian white noise in each image for pixels in [0, 1], (B,); 0 if
            another degradation follows the noise.
    """

    images: Tensor
    noise_std: Tensor


@dataclass(frozen=True)
class Degradation:
    """A degradation with its amount.

    Attributes:
        name: A key of `FUNCTIONS`.
        low, high: Range from which the amount is sampled uniformly for each image; they may be equal.
    """

    name: str
    low: float = 0.0
    high: float = 0.0

    def at(self, fraction: float) -> "Degradation":
        """Return this degradation with a fixed amount, at a fraction of the range from low to high."""
        amount = round(self.low + fraction * (self.high - self.low), 6)
        return Degradation(self.name, amount, amount)

    def __str__(self) -> str:
        if FUNCTIONS[self.name][1] is None:
            return self.name
        return f"{self.name}={self.low:g}" + (f"..{self.high:g}" if self.high > self.low else "")


def parse_degradations(texts: Sequence[str]) -> list[Degradation]:
    """Parse degradations such as `gaussian_noise=0.1..0.5`, `jpeg=20` or `grey`.

    Raises:
        UserError: for an unknown name, listing the known ones, or an invalid amount.
    """
    return [_parse(text) for text in texts]


def _parse(text: str) -> Degradation:
    name, equals, amount = text.partition("=")
    if name not in FUNCTIONS:
        raise UserError(f"there is no degradation {name}; choose from {', '.join(FUNCTIONS)}")
    expected = FUNCTIONS[name][1]
    if expected is None:
        if equals:
            raise UserError(f"the degradation {name} takes no amount; leave out ={amount}")
        return Degradation(name)
    words = f"{name}=… needs a number from {expected.low:g} to {expected.high:g}, or two as in low..high: the " + (
        expected.unit
    )
    number = r"(-?\d*\.?\d+(?:e-?\d+)?)"
    found = re.fullmatch(rf"{number}(?:\.\.{number})?", amount)
    if not found:
        raise UserError(f"{words}; not {amount or 'nothing'}")
    low, high = float(found[1]), float(found[2] or found[1])
    if not expected.low <= low <= high <= expected.high:
        raise UserError(f"{words}; not {amount}")
    if name == "downscale" and (low != high or low != int(low)):
        raise UserError(f"downscale=… needs one whole number from 2 to 16 for all images; not {amount}")
    return Degradation(name, low, high)


def degrade(images: Tensor, degradations: Sequence[Degradation]) -> Degraded:
    """Apply degradations in order, with random numbers of torch's default generator.

    Args:
        images: float32 (B, C, H, W) in [−1, 1].
        degradations: The degradations.
    """
    variance = images.new_zeros(len(images))
    for degradation in degradations:
        function, expected = FUNCTIONS[degradation.name]
        drawn = torch.rand(len(images), 1, 1, 1, device=images.device)
        amount = degradation.low + drawn * (degradation.high - degradation.low)
        if expected is None:
            images = function(images)
        elif degradation.name == "downscale":
            images = function(images, int(degradation.low))
        else:
            images = function(images, amount)
        is_noise = degradation.name == "gaussian_noise"
        variance = variance + amount.flatten().square() if is_noise else torch.zeros_like(variance)
    return Degraded(images, variance.sqrt())


def check_degradations(degradations: Sequence[Degradation], shape: tuple[int, int, int]) -> tuple[int, int]:
    """Check that degradations apply to images of a shape (C, H, W).

    Returns:
        The number of channels and the downscaling factor of the degraded images.

    Raises:
        UserError: if they do not.
    """
    channels, height, width = shape
    scale = 1
    for degradation in degradations:
        if degradation.name == "downscale":
            scale *= int(degradation.low)
            if height % scale or width % scale:
                raise UserError(f"{degradation} does not divide images of {width}×{height} pixels")
        if degradation.name == "mask" and degradation.high > min(height, width) / scale:
            raise UserError(f"{degradation} does not fit into images of {width // scale}×{height // scale} pixels")
        wanted = {"grey": 3, "tint": 1}.get(degradation.name, channels)
        if channels != wanted:
            raise UserError(f"{degradation} needs images with {wanted} channels, not {channels}")
        channels = {"grey": 1, "tint": 3}.get(degradation.name, channels)
    return channels, scale
