"""`hfgen translate`: image-to-image translation, and image editing with diffusion models."""

import collections
import contextlib
import io
import statistics
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from hfgen.config.commands import EditOptions, TranslateConfig
from hfgen.data.decoding import border_brightness, is_inverse, open_picture, to_array
from hfgen.data.images import load_images
from hfgen.data.sources import SHORT_NAMES, placed_folder
from hfgen.families import family_of
from hfgen.figures.grids import comparison_grid, save_arrays, save_picture, to_pil
from hfgen.pipelines.loading import load
from hfgen.pipelines.pipeline_hfgen_image_translation import ImageTranslationPipeline
from hfgen.sampling.editing_pipeline import DiffusionEditingPipeline
from hfgen.sampling.sample import (
    decodes,
    image_shape_of,
    is_conditional,
    require_diffusion,
    require_pixels,
    to_uint8,
    with_hint,
)
from hfgen.utils.errors import UserError, first_line
from hfgen.utils.files import local_path
from hfgen.utils.seeds import derive_seed

BATCH_SIZE = 250
PIXELS_AT_A_TIME = 2**18  # per batch of an image-to-image network
OF_DIFFUSION = ("noise_std", "strength", "guidance_scale", "num_inference_steps")


class Translated(NamedTuple):
    """A batch of inputs and results.

    Attributes:
        names: File names of the results, without suffix.
        given: The inputs after preprocessing, uint8 (C, H, W) each.
        results: The outputs, likewise.
    """

    names: list[str]
    given: list[Tensor]
    results: list[Tensor]


def translate(
    config: TranslateConfig, run: Mapping[str, Any], output: Path | None, pipeline: DiffusionPipeline | None = None
) -> tuple[int, list[Tensor], dict[Path, str]]:
    """Change images and write them: a picture (.png, given above results), arrays (.npz), or a folder of pictures.

    A folder is filled batch by batch. If the inputs have a bright background and the training images a dark one, or
    vice versa, a warning is printed at the end.

    Args:
        config: What to do.
        run: The fields of the model's run, empty where there is none.
        output: Where to write the results, if anywhere; `config.output` is not looked at.
        pipeline: The model, if it is loaded already.

    Returns:
        How many results there are; the results themselves, uint8 (C, H, W), but for those in a folder; the files that
        could not be read, with the reason.

    Raises:
        UserError: if the model or the output format does not support these images or options.
    """
    loaded = load(config.run_or_repo, **config.loading_options()) if pipeline is None else pipeline
    if decodes(loaded):
        family = family_of(type(loaded).__name__).name.upper()
        raise UserError(
            f"{config.run_or_repo} is a {family}, which generates images from latents; translate needs an "
            "image-to-image or diffusion model"
        )
    unreadable: dict[Path, str] = {}
    by_what = _by_network if isinstance(loaded, ImageTranslationPipeline) else _by_diffusion
    borders: list[float] = []
    parts = _watch_borders(by_what(loaded, config, unreadable), borders)
    if output is None or output.suffix:
        results = _save_together(parts, output, config)
        count = len(results)
    else:
        results, count = [], _save_each(parts, output, config)
    if not count:
        raise UserError(_nothing_read(config.input, unreadable))
    usual = None if config.inverse else _usual_border(run)
    if usual is not None and is_inverse(statistics.median(borders), usual):
        print(
            f"hfgen: the border of {config.input} is {'dark' if usual > 0.5 else 'bright'}, but that of the training "
            f"images is {'bright' if usual > 0.5 else 'dark'}; --invert inverts the input",
            file=sys.stderr,
        )
    return count, results, unreadable


def _watch_borders(parts: Iterator[Translated], borders: list[float]) -> Iterator[Translated]:
    """Record the border brightness of the inputs."""
    for part in parts:
        borders += map(border_brightness, part.given)
        yield part


def _usual_border(run: Mapping[str, Any]) -> float | None:
    """Return the border brightness of a model's training inputs, or None if it cannot be found out offline."""
    if run.get("input_column") or run.get("input_data_dir"):
        return None
    folder, source = run.get("train_data_dir"), run.get("dataset_name")
    usual = 0.0  # of handwritten digits and Fashion-MNIST
    if folder or source not in {"digits", "mnist", "fashion_mnist"}:
        source = placed_folder(folder) if folder else source
        if source is None or source in SHORT_NAMES or not local_path(source).exists():
            return None
        names = ("image_column", "label_column", "resolution", "channels", "on_bad_image", "cache_dir")
        options = {name: run[name] for name in names} | {"split": run["train_split"]}
        options |= {name: run.get(name, 0.0) for name in ("validation_fraction", "test_fraction")}
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # notes already printed in training
                data = load_images(
                    source, held_out_of=run["train_split"], max_samples=run["max_train_samples"], **options
                )
        except UserError:  # the images have changed since
            return None
        usual = border_brightness(data.images)
    return 1 - usual if "invert" in run.get("degradation", []) else usual


def _nothing_read(source: str, unreadable: dict[Path, str]) -> str:
    if not unreadable:
        return f"there are no files in {source}"
    file, why = next(iter(unreadable.items()))
    if len(unreadable) == 1:
        return f"{file} cannot be read as an image ({why})"
    return f"none of the {len(unreadable)} files in {source} can be read as an image; the first is {file} ({why})"


def _save_each(parts: Iterator[Translated], folder: Path, config: TranslateConfig) -> int:
    """Save each result to a folder as it is computed; return their number."""
    protected = {file.resolve() for file in _files(config)}
    count = 0
    for part in parts:
        for name, image in zip(part.names, part.results, strict=True):
            target = folder / f"{name}.png"
            if target.resolve() in protected:
                raise UserError(f"{target} is an input and would be overwritten; choose another output")
            save_picture(to_pil(image), target)
            count += 1
    return count


def _save_together(parts: Iterator[Translated], output: Path | None, config: TranslateConfig) -> list[Tensor]:
    """Write all results into one file, if any; return them."""
    given: list[Tensor] = []
    results: list[Tensor] = []
    for part in parts:
        given, results = given + part.given, results + part.results
        if output and len({image.shape for image in results}) > 1:
            raise UserError(f"the images differ in size, so that {output} cannot hold them; name a folder as output")
    if results and output and output.suffix.lower() == ".npz":
        save_arrays(torch.stack(results), output)
    elif results and output:
        rows = {"input": torch.stack(given), config.task or "output": torch.stack(results)}
        save_picture(comparison_grid(rows), output)
    return results


def _files(config: TranslateConfig) -> list[Path]:
    """Return the input files, PNGs before others of the same stem, so that these keep the stem in the output."""
    source = local_path(config.input)
    if not source.is_dir():
        return [source]
    files = (path for path in source.rglob("*") if path.is_file())
    return sorted(files, key=lambda path: (path.with_suffix(""), path.suffix.lower() != ".png", path.suffix))


def _by_network(
    pipeline: ImageTranslationPipeline, config: TranslateConfig, unreadable: dict[Path, str]
) -> Iterator[Translated]:
    """Translate images of any size in batches with an image-to-image model; collect unreadable files."""
    if config.task:
        raise UserError(f"{config.run_or_repo} is an image-to-image model, which has a single task; leave out --task")
    of_diffusion = (
        "mask", "strength", "guidance_scale", "num_inference_steps", "class_labels", "source_class_labels"
    )  # fmt: skip
    if unused := [name for name in of_diffusion if getattr(config, name) not in (None, [])]:
        raise UserError(f"an image-to-image model has no {unused[0]}")
    network = pipeline.inverse_generator if config.inverse else pipeline.generator
    if network is None:
        raise UserError(f"{config.run_or_repo} translates in one direction only; leave out --inverse")
    options = {name: getattr(config, name) for name in ("noise_std", "inverse", "tile_size")}
    for part in _at_a_time(_pictures(config, network.config.in_channels, None, unreadable)):
        given = [image for _, image in part]
        try:
            made = pipeline(given, **options, batch_size=len(given), output_type="pt").images
        except ValueError as error:
            raise UserError(str(error)) from error
        yield Translated([name for name, _ in part], given, [to_uint8(image * 2 - 1) for image in made])


def _pictures(
    config: TranslateConfig, channels: int, resolution: int | None, unreadable: dict[Path, str]
) -> Iterator[tuple[str, Tensor]]:
    """Yield names and images, uint8 (C, H, W), of image files or an .npz file, decoded as in training."""
    source = local_path(config.input)
    if source.suffix == ".npz":
        for number, image in enumerate(load_images(str(source), channels=channels, resolution=resolution).images):
            yield f"{number:05d}", 255 - image if config.invert else image
        return
    names: set[str] = set()
    for file in _files(config):
        try:
            with open_picture(file) as opened:
                image = torch.from_numpy(to_array(opened, resolution, channels).copy())
        except Exception as error:  # Pillow's readers raise any kind for a damaged file
            unreadable[file] = first_line(error)
            continue
        name = str(file.relative_to(source).with_suffix("")) if source.is_dir() else file.stem
        name = f"{name}{file.suffix}" if name in names else name  # a.png and a.jpg
        names.add(name)
        yield name, 255 - image if config.invert else image


def _at_a_time(images: Iterator[tuple[str, Tensor]]) -> Iterator[list[tuple[str, Tensor]]]:
    """Batch images until they have `PIXELS_AT_A_TIME`."""
    part: list[tuple[str, Tensor]] = []
    for named in images:
        part.append(named)
        if sum(image[0].numel() for _, image in part) >= PIXELS_AT_A_TIME:
            yield part
            part = []
    if part:
        yield part


def _by_diffusion(
    loaded: DiffusionPipeline, config: TranslateConfig, unreadable: dict[Path, str]
) -> Iterator[Translated]:
    """Edit images with a diffusion model, resized and converted for it."""
    editing = check_editing(loaded, config, config.run_or_repo)
    channels, height, width = image_shape_of(loaded)
    resolution = height if height == width and config.noise_std is None else None
    pictures = dict(_pictures(config, channels, resolution, unreadable))
    for name, picture in pictures.items():
        if picture.shape[1:] != (height, width):
            raise UserError(
                f"{name} has {picture.shape[2]}×{picture.shape[1]} pixels, the model needs {width}×{height}"
                + ("" if config.noise_std is None else "; resizing would change noise_std")
            )
    if not pictures:
        return
    names, given = [*pictures], torch.stack([*pictures.values()])
    for field in ("class_labels", "source_class_labels"):
        if len(labels := getattr(config, field)) not in (0, 1, len(given)):
            raise UserError(
                f"{field} must be one for all or one for each of the {len(given)} images, not {len(labels)}"
            )
    masks = _masks(config.mask, height, width, len(given)) if config.mask else None
    for first in range(0, len(given), BATCH_SIZE):
        part = slice(first, first + BATCH_SIZE)
        mask = masks[part] if masks is not None and len(masks) == len(given) else masks
        made = collections.deque(edit_steps(editing, config, given[part], mask, first), maxlen=1).pop()
        yield Translated(names[part], [*given[part]], [*made])


def check_editing(loaded: DiffusionPipeline, options: EditOptions, name: str) -> DiffusionEditingPipeline:
    """Check that a diffusion model can do what the options say, and return its editing pipeline.

    Raises:
        UserError: naming the model or the option, if not.
    """
    if unused := [option for option in ("inverse", "tile_size") if getattr(options, option)]:
        raise UserError(f"{unused[0]} needs an image-to-image model, and {name} is a diffusion model")
    if options.task is None:
        raise UserError("a diffusion model needs --task: denoise, vary, inpaint or change_class")
    if not is_conditional(loaded) and (options.task == "change_class" or options.class_labels):
        raise UserError("this model is unconditional: it has no classes")
    return editing_pipeline(loaded)


def edit_steps(
    editing: DiffusionEditingPipeline, options: EditOptions, images: Tensor, mask: Tensor | None, first: int = 0
) -> Iterator[Tensor]:
    """Edit images with a diffusion model in one batch, step by step.

    Args:
        editing: See `check_editing`.
        options: What to do. Several labels are those of the images from number 0 on.
        images: uint8 (B, C, H, W), of the model's size.
        mask: Of the task `inpaint`: float (1 or B, 1, H, W) in [0, 1].
        first: Number of the first image, which its noise depends on.

    Yields:
        Intermediate images, and at last the result; uint8 (B, C, H, W) each.

    Raises:
        UserError: if options or images do not fit the model.
    """
    numbers = range(first, first + len(images))
    given: dict[str, Any] = {name: value for name in OF_DIFFUSION if (value := getattr(options, name)) is not None}
    for name in ("class_labels", "source_class_labels"):
        if labels := getattr(options, name):
            given[name] = labels * len(images) if len(labels) == 1 else labels[first : numbers.stop]
    if options.task in ("vary", "inpaint"):
        # Unlike in `sample`: the inputs may be its images, and this noise must be independent of theirs.
        seeds = [derive_seed("translate", options.task, options.seed, i) for i in numbers]
        given["generator"] = [torch.Generator().manual_seed(seed) for seed in seeds]
    if mask is not None:
        given["mask_image"] = mask
    try:
        for step in getattr(editing, f"{options.task}_steps")(images.float() / 255, **given):
            yield to_uint8(step)
    except ValueError as error:
        raise UserError(with_hint(str(error), [*options.class_labels, *options.source_class_labels])) from error


def editing_pipeline(loaded: DiffusionPipeline) -> DiffusionEditingPipeline:
    """Return an editing pipeline with the components of a diffusion pipeline.

    Raises:
        UserError: if it is not a diffusion pipeline, or one of latents.
    """
    require_diffusion(loaded)
    require_pixels(loaded, "image editing")
    of_classes = {name: loaded.config[name] for name in ("id2label", "learnt_no_class") if name in loaded.config}
    return DiffusionEditingPipeline(loaded.unet, loaded.scheduler, **of_classes)


def _masks(source: str, height: int, width: int, count: int) -> Tensor:
    """Load one mask for all images or one per image, resized: float (N, 1, H, W) in [0, 1]."""
    masks = load_images(source, channels=1, resolution=height if height == width else None).images
    if masks.shape[2:] != (height, width):
        raise UserError(f"the mask has {masks.shape[3]}×{masks.shape[2]} pixels, but the images {width}×{height}")
    if len(masks) not in (1, count):
        raise UserError(f"mask must be one image, or one for each of the {count} images, not {len(masks)}")
    return masks.float() / 255
