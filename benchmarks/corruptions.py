"""What each measure says of real images that are spoilt more and more.

    python benchmarks/corruptions.py --dataset_name mnist

Training images take the place of generated ones: as they are, and then spoilt in five ways, each in steps. They are
measured like any model's (`hfgen.judges.statistics`). Results go to benchmarks/results/corruptions.json and, as a
picture, to docs/images/corruptions.png. `tests/test_measures.py` holds the directions on a smaller set.
"""

import argparse
import json
from pathlib import Path

import torch
from huggingface_hub import constants
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from hfgen.data.images import load_images
from hfgen.evaluation.report import MEASURES
from hfgen.figures.grids import image_grid, save_picture
from hfgen.figures.plots import to_picture
from hfgen.judges.judge import load_judge, shipped_judges
from hfgen.judges.statistics import RealStatistics

REPOSITORY = Path(__file__).parents[1]
STEPS = [0.0, 0.25, 0.5, 0.75, 1.0]


def noise(images: Tensor, labels: Tensor, amount: float) -> Tensor:
    """Add Gaussian noise with a standard deviation of up to 0.4 of the range of values."""
    generator = torch.Generator().manual_seed(0)
    noised = images.float() + 0.4 * 255 * amount * torch.randn(images.shape, generator=generator)
    return noised.clamp(0, 255).round().to(torch.uint8)


def blur(images: Tensor, labels: Tensor, amount: float) -> Tensor:
    """Blur with a Gaussian whose standard deviation is up to 1.3 pixels."""
    sigma = 1.3 * amount
    if sigma == 0:
        return images
    places = torch.arange(-int(3 * sigma) - 1, int(3 * sigma) + 2)
    kernel = torch.exp(-places.square() / (2 * sigma**2))
    kernel /= kernel.sum()
    flat = images.float().flatten(0, 1)[:, None]
    flat = F.conv2d(flat, kernel.view(1, 1, 1, -1), padding=(0, len(places) // 2))
    flat = F.conv2d(flat, kernel.view(1, 1, -1, 1), padding=(len(places) // 2, 0))
    return flat.view(images.shape).round().to(torch.uint8)


def crop(images: Tensor, labels: Tensor, amount: float) -> Tensor:
    """Cut off up to a quarter of the size at each edge and enlarge the rest."""
    height, width = images.shape[-2:]
    top, left = round(amount * height / 4), round(amount * width / 4)
    inner = images[..., top : height - top, left : width - left].float()
    return F.interpolate(inner, (height, width), mode="bilinear").round().to(torch.uint8)


def imbalance(images: Tensor, labels: Tensor, amount: float) -> Tensor:
    """Replace up to all images of half of the classes by images of the other half."""
    generator = torch.Generator().manual_seed(0)
    lost = (labels % 2 == 1) & (torch.rand(len(labels), generator=generator) < amount)
    others = (labels % 2 == 0).nonzero()[:, 0]
    images = images.clone()
    images[lost] = images[others[torch.randint(len(others), (int(lost.sum()),), generator=generator)]]
    return images


def duplicates(images: Tensor, labels: Tensor, amount: float) -> Tensor:
    """Repeat a few images in the place of the others: from none up to 95 %."""
    kept = max(1, round(len(images) * (1 - 0.95 * amount)))
    return images[torch.arange(len(images)) % kept]


# What must happen to each measure from the first step to the last: +1 it rises, −1 it falls. A measure that is not
# named is not made for it: spoilt images can still be varied, and few classes look as real as many.
WORSE_IMAGES = {"frechet_distance": 1, "kernel_distance": 1, "precision": -1, "density": -1, "coverage": -1}
LESS_VARIETY = {"frechet_distance": 1, "recall": -1, "coverage": -1}
CORRUPTIONS = {
    noise: WORSE_IMAGES,
    blur: WORSE_IMAGES,
    crop: WORSE_IMAGES,
    imbalance: LESS_VARIETY | {"kernel_distance": 1},
    duplicates: LESS_VARIETY,  # the kernel distance compares means, which a few hundred images still hit
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", default="mnist")
    parser.add_argument("--num_images", type=int, default=5000)
    options = parser.parse_args()
    train = load_images(options.dataset_name)
    test = load_images(options.dataset_name, split="test")
    generator = torch.Generator().manual_seed(1)
    chosen = torch.randperm(len(train), generator=generator)[: options.num_images]
    images, labels = train.images[chosen], train.labels[chosen]
    judge = load_judge(shipped_judges(options.dataset_name)[0])
    reference = RealStatistics(judge, test, train, Path(constants.HF_HOME, "hfgen"))
    found, examples = {}, []
    for corruption in CORRUPTIONS:
        rows = []
        for amount in STEPS:
            spoilt = corruption(images, labels, amount)
            rows.append({name: m["value"] for name, m in reference.measures(judge.extract(spoilt)[0]).items()})
            examples.append(spoilt[:16])
            print(corruption.__name__, amount, {name: round(value, 4) for name, value in rows[-1].items()}, flush=True)
        found[corruption.__name__] = rows
    record = {
        "dataset": options.dataset_name,
        "num_images": options.num_images,
        "judge": judge.name,
        "judge_sha256": judge.sha256,
        "steps": STEPS,
        "measures": found,
    }
    results = REPOSITORY / "benchmarks" / "results" / "corruptions.json"
    results.write_text(json.dumps(record, indent=1) + "\n")
    save_picture(picture(found, examples), REPOSITORY / "docs" / "images" / "corruptions.png")


def picture(found: dict[str, list[dict[str, float]]], examples: list[Tensor]):
    """Draw a row for each corruption: images at its strongest, then every measure over its steps."""
    figure = Figure(figsize=(2 * (len(MEASURES) + 1), 1.9 * len(found)), layout="constrained")
    panels = figure.subplots(len(found), len(MEASURES) + 1)
    for number, (row, (name, rows)) in enumerate(zip(panels, found.items(), strict=True)):
        row[0].imshow(image_grid(examples[(number + 1) * len(STEPS) - 1]))
        row[0].set_axis_off()
        row[0].set_title(f"{name} (at 1)", fontsize=8)
        for axes, (measure, (title, _)) in zip(row[1:], MEASURES.items(), strict=True):
            axes.plot(STEPS, [values[measure] for values in rows], marker="o", markersize=3)
            axes.set_title(title, fontsize=8)
            axes.set_xticks([0, 0.5, 1])
            if "distance" not in measure:
                axes.set_ylim(0, 1.05)
            axes.tick_params(labelsize=7)
            axes.grid(alpha=0.3)
    return to_picture(figure)


if __name__ == "__main__":
    main()
