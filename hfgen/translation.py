"""`hfgen translate`: given images, changed by an image-to-image model or by a diffusion model."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from hfgen.data import load_images
from hfgen.errors import UserError
from hfgen.figures import counterparts_picture, save_arrays, save_picture, to_pil
from hfgen.loading import load
from hfgen.options import TranslateConfig
from hfgen.pipelines.pipeline_hfgen_diffusion_editing import DiffusionEditingPipeline
from hfgen.pipelines.pipeline_hfgen_image_translation import ImageTranslationPipeline
from hfgen.sampling import image_shape_of, require_diffusion, to_uint8
from hfgen.seeds import derive_seed

BATCH_SIZE = 250
OF_DIFFUSION = ("noise_std", "strength", "guidance_scale", "num_inference_steps")


class Translated(NamedTuple):
    """Images before and after.

    Attributes:
        names: What to call the results.
        given: uint8 (C, H, W) each, as the model was shown them.
        results: Likewise.
        unreadable: The files that could not be read, and why.
    """

    names: list[str]
    given: list[Tensor]
    results: list[Tensor]
    unreadable: dict[Path, str]


def translate(config: TranslateConfig) -> Translated:
    """Change images.

    Raises:
        UserError: if the model cannot do this to these images.
    """
    loaded = load(config.run_or_repo, revision=config.revision, trust_remote_code=config.trust_remote_code)
    loaded.to("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(loaded, ImageTranslationPipeline):
        return _by_network(loaded, config)
    if unused := [name for name in ("inverse", "tile_size") if getattr(config, name)]:
        raise UserError(f"{unused[0]} belongs to image-to-image models, which {config.run_or_repo} is not")
    if config.task is None:
        raise UserError("a diffusion model needs --task: denoise, vary, inpaint or change_class")
    given, results = _by_diffusion(loaded, config)
    return Translated([f"{number:05d}" for number in range(len(given))], [*given], [*results], {})


def save_translated(translated: Translated, title: str, output: Path) -> None:
    """Write results as a picture (.png, the given images above them), as arrays (.npz), or one by one into a folder.

    Raises:
        UserError: for images of different sizes where only one size fits.
    """
    if not output.suffix:
        for name, image in zip(translated.names, translated.results, strict=True):
            save_picture(to_pil(image), output / f"{name}.png")
        return
    if len({image.shape for image in translated.results}) > 1:
        raise UserError(f"the images differ in size, so that {output} cannot hold them; name a folder as output")
    given, results = torch.stack(translated.given), torch.stack(translated.results)
    if output.suffix == ".npz":
        save_arrays(results, output)
    else:
        save_picture(counterparts_picture({"given": given, title: results}), output)


def _by_network(pipeline: ImageTranslationPipeline, config: TranslateConfig) -> Translated:
    """Let an image-to-image model translate images of any size."""
    if config.task:
        raise UserError(f"{config.run_or_repo} does what it was trained for, so that there is no task to name")
    unused = [name for name in ("mask", "strength", "guidance_scale", "num_inference_steps") if getattr(config, name)]
    if unused or config.class_labels:
        raise UserError(f"an image-to-image model has no {(unused or ['class_labels'])[0]}")
    pictures, unreadable = _read(Path(config.input).expanduser())
    if not pictures:
        raise UserError(f"none of the {len(unreadable)} files of {config.input} can be read as a picture")
    options = {name: getattr(config, name) for name in ("noise_std", "inverse", "tile_size")}
    try:
        results = pipeline([*pictures.values()], **options, output_type="pt").images
    except ValueError as error:
        raise UserError(str(error)) from error
    network = pipeline.inverse_generator if config.inverse else pipeline.generator
    mode = "L" if network.config.in_channels == 1 else "RGB"
    shown = [np.array(picture.convert(mode)) for picture in pictures.values()]
    given = [torch.from_numpy(image if image.ndim == 3 else image[..., None]).permute(2, 0, 1) for image in shown]
    return Translated([*pictures], given, [to_uint8(image * 2 - 1) for image in results], unreadable)


def _read(source: Path) -> tuple[dict[str, PIL.Image.Image], dict[Path, str]]:
    """Read a picture, a folder of pictures or an .npz file: the images by their names, and what cannot be read."""
    if source.suffix == ".npz":
        images = load_images(str(source)).images
        return {f"{number:05d}": to_pil(image) for number, image in enumerate(images)}, {}
    files = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
    pictures: dict[str, PIL.Image.Image] = {}
    unreadable: dict[Path, str] = {}
    for file in files:
        try:
            with PIL.Image.open(file) as opened:
                picture = PIL.ImageOps.exif_transpose(opened).convert("RGB" if opened.mode not in "1L" else "L")
        except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
            unreadable[file] = str(error)
            continue
        name = str(file.relative_to(source).with_suffix("")) if source.is_dir() else file.stem
        pictures[name if name not in pictures else f"{name}{file.suffix}"] = picture
    return pictures, unreadable


def _by_diffusion(loaded: DiffusionPipeline, config: TranslateConfig) -> tuple[Tensor, Tensor]:
    """Let a diffusion model change images, brought to its size and channels, uint8 (N, C, H, W)."""
    require_diffusion(loaded)
    of_classes = {name: loaded.config[name] for name in ("id2label", "learnt_no_class") if name in loaded.config}
    pipeline = DiffusionEditingPipeline(loaded.unet, loaded.scheduler, **of_classes)
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
        options |= {name: value for name in OF_DIFFUSION if (value := getattr(config, name)) is not None}
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
