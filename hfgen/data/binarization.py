"""Binarisation of greyscale images, for Bernoulli likelihoods."""

from typing import Literal

import torch
from torch import Tensor

from hfgen.data.images import ImageData
from hfgen.utils.seeds import derive_seed

Binarization = Literal["none", "threshold", "static", "dynamic"]


class Binarizer:
    """Binarises the images of a data set.

    Args:
        method: `none`; `threshold` at one half; `static` samples each pixel once, with its brightness as the
            probability of 1 and a seed derived from the data set, so that it is the same for every model; `dynamic`
            samples anew each time. The static version is not the published binarised MNIST (Larochelle and Murray
            2011), but follows the same distribution.
        data: The data set.
    """

    def __init__(self, method: Binarization, data: ImageData):
        self.method = method
        if method == "static":
            generator = torch.Generator().manual_seed(derive_seed("static binarization", data.fingerprint))
            self.thresholds = torch.randint(0, 255, data.images.shape, generator=generator, dtype=torch.uint8)

    def __call__(self, images: Tensor, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the binarised images, (B, C, H, W) with pixels −1 and 1.

        Args:
            images: Greyscale images (B, C, H, W) in [−1, 1].
            indices: Their indices in the data set, (B,).
            generator: CPU random generator for `dynamic`; by default torch's default one of the images' device.
        """
        match self.method:
            case "none":
                return images
            case "threshold":
                white = images >= 0
            case "static":
                levels = (images * 127.5 + 127.5).round()
                white = levels > self.thresholds[indices.cpu()].to(images.device)
            case "dynamic":
                device = generator.device if generator else images.device
                drawn = torch.rand(images.shape, generator=generator, device=device).to(images.device)
                white = drawn < images / 2 + 0.5
        return 2 * white.to(images.dtype) - 1
