"""Draw the first images of each model in model_cards with diffusers alone, and describe them by a few numbers.

    python tests/zoo_images.py model_cards > tests/zoo_images.json

keeps them for test_zoo after the models have changed.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import ConsistencyModelPipeline, DiffusionPipeline

COUNT, BLOCKS = 4, 4


def describe(folder: Path) -> list[float]:
    """Return the mean brightness of 4×4 blocks of the first four images, which small errors hardly change."""
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    generator = [torch.Generator().manual_seed(seed) for seed in range(COUNT)]
    if "generator" in pipe.components and hasattr(pipe.generator.config, "in_channels"):
        size = pipe.generator.config.sample_size
        ramp = np.linspace(0, 1, size * size, dtype="float32").reshape(size, size, 1)
        images = pipe([ramp.repeat(pipe.generator.config.in_channels, 2)] * COUNT, output_type="np").images
    else:
        asked = {"class_labels": [*range(COUNT)]} if getattr(pipe, "labels", {}) else {"batch_size": COUNT}
        if isinstance(pipe, ConsistencyModelPipeline):  # which draws random classes by default
            asked["class_labels"] = [*range(COUNT)]
        images = pipe(**asked, generator=generator, output_type="np").images
    height, width = (size // BLOCKS * BLOCKS for size in images.shape[1:3])
    blocks = images[:, :height, :width].mean(axis=3).reshape(COUNT, BLOCKS, height // BLOCKS, BLOCKS, width // BLOCKS)
    return blocks.mean(axis=(2, 4), dtype="float64").round(3).flatten().tolist()


if __name__ == "__main__":
    folders = [index.parent for index in sorted(Path(sys.argv[1]).glob("*/model_index.json"))]
    found = {folder.name: describe(folder) for folder in folders}
    print("{" + ",\n ".join(f"{json.dumps(name)}: {numbers}" for name, numbers in found.items()) + "}")
