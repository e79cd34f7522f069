"""Black-and-white images from grey ones, for likelihoods of binary pixels."""

from typing import Literal

import torch
from torch import Tensor

from hfgen.data.images import ImageData
from hfgen.utils.seeds import derive_seed

Binarization = Literal["none", "threshold", "static", "dynamic"]


class Binarizer:
    """Makes the pixels of a data set 0 or 1.

    Args:
        method: `none` leaves them grey; `threshold` makes those of at least a half 1; `static` draws each pixel once,
            1 with the probability of its brightness, which follows from the data set alone, so that every model of it
            sees the same; `dynamic` draws them anew each time. The static drawing is not the file that is known as
            binarised MNIST (Larochelle and Murray 2011), but one like it.
        data: The data set.
    """

    def __init__(self, method: Binarization, data: ImageData):
        self.method = method
        if method == "static":
            generator = torch.Generator().manual_seed(derive_seed("static binarization", data.fingerprint))
            self.thresholds = torch.randint(0, 255, data.images.shape, generator=generator, dtype=torch.uint8)

    def __call__(self, images: Tensor, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return images (B, C, H, W) in [−1, 1], of these indices (B,) in the data set, with pixels −1 and 1.

        Args:
            images: Grey ones.
            indices: Which they are.
            generator: What draws under `dynamic`, on the CPU; by default torch's own, where the images are.
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
