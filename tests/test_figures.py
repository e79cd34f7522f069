"""Figures: training curves, grids, animations, and what they show to a reader."""

import numpy as np
import PIL.Image
import pytest
import torch

from hfgen.figures import animations, curves, grids, plots
from hfgen.judges.statistics import smallest_of_each_class

GAN = (
    "loss/discriminator", "discriminator/real", "discriminator/fake", "discriminator/r1", "discriminator/r2",
    "grad_norm/discriminator", "loss/generator", "grad_norm/generator", "learning_rate",
)  # fmt: skip


def draw(**metrics):
    """Plot metrics, one value a step; return the axes by the keys of their lines."""
    values = [dict(zip(metrics, row, strict=True)) for row in zip(*metrics.values(), strict=True)]
    figure = curves.training_curves([{"step": step + 1} | row for step, row in enumerate(values)], 10)
    figure.canvas.draw()
    named = {}
    for axes in figure.axes:
        labels = [line.get_label() for line in axes.lines if not line.get_label().startswith("_")]
        named |= {label.split("(")[-1].rstrip(")"): axes for label in [axes.get_title(loc="right"), *labels] if label}
    return named


def test_the_learning_rate_is_drawn_as_it_was():
    rates = [*np.linspace(0.1, 1, 100), *np.linspace(1, 0, 900)]
    (line,) = draw(learning_rate=rates)["learning_rate"].lines
    assert line.get_ydata().tolist() == rates


def test_related_curves_of_a_gan_share_a_panel():
    axes = draw(**{name: np.linspace(1, 2, 200) for name in GAN})
    for first, second in (GAN[0::6], GAN[1:3], GAN[3:5], ("grad_norm/discriminator", "grad_norm/generator")):
        assert axes[first] is axes[second]
    assert len(set(axes.values())) == 5
    figure = axes["learning_rate"].figure
    assert figure.get_figheight() * figure.dpi < 800
    assert axes["loss/generator"].get_title(loc="left") == "loss\n"
    assert axes["learning_rate"].get_title(loc="left") == "learning rate"


def test_a_panel_is_named_in_words_and_by_its_key():
    axes = draw(**{"loss/unet": [1.0, 2.0], "grad_norm/unet": [1.0, 2.0]})
    assert axes["loss/unet"].get_title(loc="left") == "loss of the U-Net"
    assert axes["grad_norm/unet"].get_title(loc="left") == "gradient norm of the U-Net"


def test_first_steps_do_not_flatten_the_rest():
    losses = [*np.linspace(500, 110, 40), *np.linspace(105, 101, 960)]
    axes = draw(**{"loss/vae": losses})["loss/vae"]
    assert axes.get_ylim()[1] < 110
    assert "first 5 % may lie outside" in axes.figure.get_supxlabel()
    assert "outside" not in draw(**{"loss/vae": [1.0, 2.0]})["loss/vae"].figure.get_supxlabel()


def test_logarithmic_axes_have_plain_numbers():
    axis = draw(**{"loss/unet": np.geomspace(5, 0.1, 200)})["loss/unet"].yaxis
    assert {"0.2", "0.5", "1", "2"} <= {text.get_text() for text in axis.get_ticklabels()}


def test_infinite_gradient_norms_are_left_out():
    axes = draw(**{"grad_norm/unet": [float("inf"), *[1.0, 2.0] * 20], "loss/unet": [float("nan")] * 41})
    assert axes["grad_norm/unet"].get_ylim()[1] < 3


def test_small_images_are_upscaled_by_a_whole_factor_to_a_comfortable_size():
    images = torch.randint(0, 256, (64, 1, 28, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    grid = np.asarray(grids.image_grid(images))
    assert grid.shape == (928, 928, 3)
    assert np.array_equal(grid[2:114:4, 118:230:4, 0], images[1, 0].numpy())
    assert max(grids.comparison_grid({"input": images[:1]}).size) > 140
    assert grids.image_grid(torch.zeros(100, 1, 256, 256, dtype=torch.uint8)).width == 2600


def test_blocks_of_a_comparison_have_one_scale():
    images = torch.tensor([200, 7, 9], dtype=torch.uint8).view(1, 3, 1, 1).expand(5, 3, 8, 8)
    grid = np.asarray(grids.comparison_grid({"": images}, columns=4, names=[*"abcde"]))
    red = (grid == [200, 7, 9]).all(-1)
    assert red.sum() == 5 * red[: grid.shape[0] // 2].sum() / 4


def test_pictures_have_one_background():
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    pictures = {
        "grid": grids.sample_grid(images, [0, 0, 0, 1], ["a", "b"]),
        "row": grids.labelled_row({"a": PIL.Image.new("L", (9, 9)), "b": PIL.Image.new("RGB", (9, 20))}),
        "strip": animations.film_strip(images[None], images[None]),
        "plot": plots.features_picture(torch.randn(9, 4), torch.randn(9, 4)),
    }
    for name, picture in pictures.items():
        assert np.asarray(picture)[0, 0].tolist() == [255, 255, 255], name
        assert np.asarray(picture)[-1, -1].tolist() == [255, 255, 255], name


def test_columns_and_title_are_written_above():
    picture = PIL.Image.new("RGB", (90, 30), "white")
    plain, titled = (grids.labelled_rows([("", picture)], [*"ab"], title) for title in ("", "title"))
    dark = (np.asarray(plain) < 99).any((0, 2)).nonzero()[0]
    assert {place // 45 for place in dark} == {0, 1}, "over the middle of its column each"
    assert titled.height == plain.height + grids.LINE_PIXELS


def test_an_animation_names_both_halves(tmp_path):
    black = torch.zeros(3, 4, 1, 8, 8, dtype=torch.uint8)
    animations.save_film(black, black, tmp_path / "film.gif")
    with PIL.Image.open(tmp_path / "film.gif") as film:
        heading = np.asarray(film.convert("L"))[: grids.LINE_PIXELS]
    left, right = np.array_split(heading, 2, axis=1)
    assert left.min() < 99 > right.min()
    assert heading.max() > 250


def test_a_timelapse_names_the_steps(tmp_path):
    files = [tmp_path / f"step-{step:06d}.png" for step in (5, 10)]
    for file in files:
        PIL.Image.new("RGB", (960, 960), "white").save(file)
    animations.save_slides(files, tmp_path / "training.gif")
    with PIL.Image.open(tmp_path / "training.gif") as film:
        assert film.size == (480, 240 + grids.LINE_PIXELS)
        first = np.asarray(film.convert("L")).copy()
        film.seek(1)
        assert not np.array_equal(first, np.asarray(film.convert("L"))), "the step"


@pytest.mark.parametrize(("count", "expected"), [(3, [3, 2, 4]), (6, [3, 0, 2, 1, 4]), (2, [3, 4])])
def test_each_class_has_its_smallest_values(count, expected):
    values = torch.tensor([5.0, 4.0, 3.0, 1.0, 2.0])
    assert smallest_of_each_class(values, torch.tensor([0, 1, 1, 0, 2]), count).tolist() == expected


def test_class_frequencies_stand_beside_those_of_real_images(tmp_path, monkeypatch):
    figures, make = [], curves.Figure
    monkeypatch.setattr(curves, "Figure", lambda **options: figures.append(make(**options)) or figures[-1])
    (tmp_path / "classes.jsonl").write_text(
        '{"step": 9, "shares": {"a": 0.25, "b": 0.75}, "real_shares": {"a": 1, "b": 0}}'
    )
    curves.save_class_shares(tmp_path / "classes.jsonl", tmp_path / "classes.png")
    texts = [text.get_text() for text in figures[0].axes[0].texts]
    assert texts == ["25.0", "100.0", "75.0", "0.0", "real"]
