"""Save the picture of `make quickstart`, digits of the data beside the model's: `python scripts/quickstart.py RUN`."""

import sys
from pathlib import Path

import hfgen
from hfgen.data.images import load_images
from hfgen.figures.grids import image_grid, labelled_row, save_picture

SHOWN_IMAGES = 64

if __name__ == "__main__":
    run = Path(sys.argv[1])
    grids = {
        "training images": image_grid(load_images("digits").images[:SHOWN_IMAGES]),
        "images of the model": hfgen.sample(run, num_images=SHOWN_IMAGES).grid(),
    }
    save_picture(labelled_row(grids), run / "quickstart.png")
