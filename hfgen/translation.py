"""`hfgen translate`: given images, changed by a diffusion model that was trained to draw."""

from typing import Any

import torch
from torch import Tensor

from hfgen.data import load_images
from hfgen.errors import UserError
from hfgen.loading import load
from hfgen.options import TranslateConfig
from hfgen.pipelines.pipeline_hfgen_diffusion_editing import DiffusionEditingPipeline
from hfgen.sampling import image_shape_of, require_diffusion, to_uint8
from hfgen.seeds import derive_seed

BATCH_SIZE = 250
PASSED_ON = ("noise_std", "strength", "guidance_scale", "num_inference_steps")


def translate(config: TranslateConfig) -> tuple[Tensor, Tensor]:
    """Change images.

    Returns:
        The given images, brought to the model's size and channels, and the results, each uint8 (N, C, H, W).

    Raises:
        UserError: if the model cannot do this to these images.
    """
    loaded = load(config.run_or_repo, revision=config.revision, trust_remote_code=config.trust_remote_code)
    require_diffusion(loaded)
    of_classes = {name: loaded.config[name] for name in ("id2label", "learnt_no_class") if name in loaded.config}
    pipeline = DiffusionEditingPipeline(loaded.unet, loaded.scheduler, **of_classes)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    shape = image_shape_of(loaded)
    given = _load(config.input, shape)
    labels = _one_an_image(config.class_labels, len(given))
    masks = _load(config.mask, (1, *shape[1:])).float() / 255 if config.mask else None
    if masks is not None and len(masks) not in (1, len(given)):
        raise UserError(f"mask must be one picture, or one for each of the {len(given)} images, not {len(masks)}")
    results = []
    for first in range(0, len(given), BATCH_SIZE):
        images = given[first : first + BATCH_SIZE].float() / 255
        numbers = range(first, first + len(images))
        options: dict[str, Any] = {"output_type": "pt", "class_labels": labels[first : numbers.stop] or None}
        options |= {name: value for name in PASSED_ON if (value := getattr(config, name)) is not None}
        if config.task in ("vary", "inpaint"):
            options["generator"] = [
                torch.Generator().manual_seed(derive_seed("image", config.seed, i)) for i in numbers
            ]
        if masks is not None:
            options["mask_image"] = masks[numbers] if len(masks) == len(given) else masks
        function = pipeline if config.task == "vary" else getattr(pipeline, config.task)
        try:
            results.append(function(images, **options).images)
        except ValueError as error:
            raise UserError(str(error)) from error
    return given, to_uint8(torch.cat(results) * 2 - 1)


def _load(source: str, shape: tuple[int, int, int]) -> Tensor:
    """Load images, brought to a shape (C, H, W)."""
    channels, height, width = shape
    images = load_images(source, channels=channels, resolution=height if height == width else None).images
    if tuple(images.shape[1:]) != shape:
        raise UserError(
            f"{source} has images of {images.shape[3]}×{images.shape[2]} pixels, the model {width}×{height}"
        )
    return images


def _one_an_image(labels: list[str], count: int) -> list[str]:
    if len(labels) not in (0, 1, count):
        raise UserError(f"class_labels must be one for all or one for each of the {count} images, not {len(labels)}")
    return labels * count if len(labels) == 1 else labels
