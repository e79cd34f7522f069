"""What makes images worse: each degradation by its definition, their text, what they refuse."""

import io
import re

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import REPOSITORY
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_sample_image

from hfgen.config import TranslationConfig
from hfgen.data.degradations import FUNCTIONS, Degradation, check_degradations, degrade, parse_degradations
from hfgen.utils.errors import UserError


def photograph() -> torch.Tensor:
    """Return a part of a photograph, (1, 3, 40, 44) in [−1, 1]."""
    pixels = load_sample_image("flower.jpg")[200:240, 300:344]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def apply(text: str, images: torch.Tensor) -> torch.Tensor:
    return degrade(images, parse_degradations([text])).images


def test_noise_has_the_standard_deviation_that_is_asked_for_and_told():
    images = torch.zeros(2000, 1, 8, 8)
    noisy = degrade(images, parse_degradations(["gaussian_noise=0.1..0.5"]))
    assert 0.1 <= noisy.noise_std.min() < 0.12
    assert 0.48 < noisy.noise_std.max() <= 0.5
    assert (noisy.images / 2 / noisy.noise_std[:, None, None, None]).std().item() == pytest.approx(1, abs=0.01)
    twice = degrade(images[:2], parse_degradations(["gaussian_noise=0.3", "gaussian_noise=0.4"]))
    assert twice.noise_std.tolist() == pytest.approx([0.5, 0.5])
    blurred = degrade(images[:2], parse_degradations(["gaussian_noise=0.3", "blur=2", "gaussian_noise=0.4"]))
    assert blurred.noise_std.tolist() == pytest.approx([0.4, 0.4])


def test_salt_and_pepper_takes_whole_pixels():
    spoilt = apply("salt_and_pepper=0.2", torch.zeros(50, 3, 20, 20))
    assert (spoilt == 1).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert (spoilt == -1).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert spoilt.amax(1).equal(spoilt.amin(1)), "all channels of a pixel alike"


def test_blur_is_a_gaussian_filter_for_each_image_its_own():
    images = photograph().repeat(2, 1, 1, 1)
    both = degrade(images, [Degradation("blur", 1.5, 1.5)]).images
    expected = gaussian_filter(images.numpy(), 1.5, axes=(2, 3), mode="nearest", truncate=10)
    np.testing.assert_allclose(both.numpy(), expected, atol=0.01)
    torch.manual_seed(0)
    drawn = degrade(images, [Degradation("blur", 0.5, 3.0)]).images
    assert not torch.allclose(drawn[0], drawn[1], atol=0.01)


def test_a_mask_is_one_grey_square_that_lies_inside():
    images = -torch.ones(300, 1, 10, 12)
    masked = apply("mask=4", images) == 0
    assert masked.sum((1, 2, 3)).tolist() == [16] * 300
    assert masked.any(3).sum(2).unique().tolist() == [4]
    assert masked.flatten(1).any(0).all(), "it may be anywhere"


def test_downscaling_averages_and_grey_is_brightness():
    image = photograph()
    small = apply("downscale=2", image)
    torch.testing.assert_close(small[0, 1, 3, 5], image[0, 1, 6:8, 10:12].mean())
    pixels = ((image[0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    grey = np.asarray(PIL.Image.fromarray(pixels).convert("L"), dtype=np.float32)
    np.testing.assert_allclose((apply("grey", image)[0, 0] + 1) * 127.5, grey, atol=1.01)


@pytest.mark.parametrize("quality", [5, 30, 75, 95])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_what_a_file_does(quality, channels):
    image = photograph()[:, :channels]
    pixels = ((image[0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    picture = PIL.Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    picture.save(file, "JPEG", quality=quality, subsampling=0)
    expected = np.asarray(PIL.Image.open(file), dtype=np.float32).reshape(pixels.shape)
    found = ((apply(f"jpeg={quality}", image)[0] + 1) * 127.5).permute(1, 2, 0).numpy()
    assert np.abs(found - expected).mean() < 0.6, "rounding, which a decoder does in whole numbers"
    assert np.abs(found - expected).mean() < 0.25 * np.abs(found - pixels).mean()


def test_jpeg_cuts_off_what_no_file_can_hold():
    noisy = degrade(photograph(), parse_degradations(["gaussian_noise=0.6"])).images
    torch.testing.assert_close(apply("jpeg=30", noisy), apply("jpeg=30", noisy.clamp(-1, 1)))


def test_thickening_inverting_and_tinting():
    images = -torch.ones(1, 1, 9, 9)
    images[0, 0, 4, 4] = 1.0
    thick = apply("thicken=2", images)
    assert (thick == 1).sum() == 25
    both = degrade(images.repeat(2, 1, 1, 1), [Degradation("thicken", 1.6, 1.6)]).images
    assert (both == 1).sum((1, 2, 3)).tolist() == [25, 25]
    assert apply("invert", images).equal(-images)
    tinted = apply("tint", images.repeat(5, 1, 1, 1))
    assert (tinted[:, :, 0, 0] == -1).all()
    assert len(tinted[:, :, 4, 4].unique(dim=0)) == 5


def test_degradations_are_written_as_they_are_read():
    texts = ["blur=1.5", "gaussian_noise=0.1..0.5", "grey", "jpeg=20"]
    found = parse_degradations(texts)
    assert [str(degradation) for degradation in found] == texts
    assert [str(degradation.at(0.5)) for degradation in found] == ["blur=1.5", "gaussian_noise=0.3", "grey", "jpeg=20"]
    assert parse_degradations(["gaussian_noise=1e-3"]) == [Degradation("gaussian_noise", 0.001, 0.001)]


@pytest.mark.parametrize(("text", "message"), [
    ("noise=1", "there is no degradation noise; choose from gaussian_noise, salt_and_pepper"),
    ("gaussian_noise", "needs a number from 0 to 10, .* the standard deviation for pixels in .0, 1.; not nothing"),
    ("gaussian_noise=-1", "not -1"),
    ("gaussian_noise=0.5..0.1", r"not 0.5..0.1"),
    ("jpeg=0", "needs a number from 1 to 100"),
    ("blur=-1..1", "needs a number from 0 to 100, .*; not -1..1"),
    ("grey=1", "the degradation grey takes no amount; leave out =1"),
    ("downscale=2.5", "needs one whole number"),
    ("downscale=2..3", "needs one whole number"),
])  # fmt: skip
def test_texts_that_mean_nothing_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        parse_degradations([text])


@pytest.mark.parametrize(("texts", "shape", "message"), [
    (["downscale=3"], (1, 28, 28), "downscale=3 does not divide images of 28×28 pixels"),
    (["downscale=2", "mask=15"], (1, 28, 28), "mask=15 does not fit into images of 14×14"),
    (["grey"], (1, 28, 28), "grey needs images with 3 channels, not 1"),
    (["tint", "tint"], (1, 28, 28), "tint needs images with 1 channels, not 3"),
])  # fmt: skip
def test_images_that_cannot_be_degraded_so_are_refused(texts, shape, message):
    with pytest.raises(UserError, match=message):
        check_degradations(parse_degradations(texts), shape)


def test_each_is_in_the_help_and_in_the_docs():
    page = (REPOSITORY / "docs" / "translation.md").read_text()
    for name in FUNCTIONS:
        assert re.search(rf"`{name}\b", TranslationConfig.__doc__), name
        assert re.search(rf"^\|.*`{name}\b", page, re.MULTILINE), name


def test_the_shape_afterwards():
    assert check_degradations(parse_degradations(["downscale=2", "grey", "downscale=2"]), (3, 32, 32)) == (1, 4)
