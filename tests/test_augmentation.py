"""Random changes of training images: each image its own, nothing lost but what is meant to be."""

import pytest
import torch

from hfgen.data.augmentation import random_color, random_erase, random_shift


def test_a_shift_moves_each_image_as_a_whole():
    torch.manual_seed(0)
    images = torch.zeros(200, 3, 8, 9)
    images[:, :, 4, 5] = torch.tensor([1.0, 2.0, 3.0])
    moved = random_shift(images, 2)
    assert moved.shape == images.shape
    inside = moved[:, :, 2:7, 3:8]
    assert inside.flatten(2).sum(2).eq(torch.tensor([1.0, 2.0, 3.0])).all(), "each image shows its pixel once"
    places = {tuple(place[1:].tolist()) for place in (moved[:, 0] == 1).nonzero()}
    assert {(row, column) for row in range(2, 7) for column in range(3, 8)} <= places


def test_what_a_shift_uncovers_is_the_reflected_edge():
    torch.manual_seed(0)
    ramp = torch.arange(6.0).expand(50, 1, 6, 6)
    rows = {tuple(row.tolist()) for row in random_shift(ramp, 1)[:, 0, 0]}
    assert rows == {(1, 0, 1, 2, 3, 4), (0, 1, 2, 3, 4, 5), (1, 2, 3, 4, 5, 4)}


def test_an_erased_square_is_grey_and_nothing_else_changes():
    torch.manual_seed(0)
    images = torch.ones(300, 2, 7, 7)
    erased = random_erase(images, 3)
    assert erased[:, 0].equal(erased[:, 1]), "in all channels alike"
    counts = {int(count) for count in (erased[:, 0] == 0).sum((1, 2))}
    assert counts == {4, 6, 9}, "cut off at edges and corners"
    assert (erased[:, 0].sum(0) < 300).all(), "every pixel is erased now and then"


@pytest.mark.parametrize("change", [random_shift, random_erase])
def test_zero_leaves_images_alone_and_the_seed_decides(change):
    images = torch.rand(4, 1, 8, 8)
    assert change(images, 0).equal(images)
    torch.manual_seed(3)
    first = change(images, 3)
    torch.manual_seed(3)
    assert first.equal(change(images, 3))
    assert not first.equal(change(images, 3))
    assert images.max() <= 1, "nothing is changed in place"


def test_colours_change_image_by_image_and_leave_what_is_where():
    torch.manual_seed(0)
    images = torch.rand(1, 3, 5, 5).expand(400, -1, -1, -1)
    changed = random_color(images)
    assert len(changed.flatten(1).mean(1).unique()) > 390
    brightness = changed.mean((1, 2, 3)) - images.mean((1, 2, 3))
    assert -0.5 <= brightness.min() < -0.45
    assert 0.45 < brightness.max() <= 0.5
    grey = changed.mean(1).flatten(1)
    contrast = grey.std(1) / images.mean(1).flatten(1).std(1)
    assert 0.5 <= contrast.min() < 0.55
    assert 1.45 < contrast.max() <= 1.5
    saturation = (changed - changed.mean(1, keepdim=True)).std((1, 2, 3)) / contrast
    own = (images - images.mean(1, keepdim=True)).std((1, 2, 3))
    assert (saturation / own).min() < 0.05
    assert 1.9 < (saturation / own).max() <= 2.001
