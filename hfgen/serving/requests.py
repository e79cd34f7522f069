"""What the endpoints of a studio compute: requests are checked first, then become jobs for its thread."""

import base64
import binascii
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import PIL
import torch
from torch import Tensor

from hfgen.config.commands import EditOptions, Options, SampleConfig
from hfgen.config.fields import fields_of
from hfgen.config.parser import make_config
from hfgen.config.suggestions import field_suggestion
from hfgen.data.decoding import open_picture, to_array
from hfgen.data.sources import SHORT_NAMES
from hfgen.judges.judge import Judge, load_judge
from hfgen.pipelines.pipeline_hfgen_vae import VAEPipeline
from hfgen.sampling.edit import check_editing, edit_steps
from hfgen.sampling.sample import (
    check_sampling,
    image_seed,
    labels_of,
    network_of,
    sample_steps,
    to_uint8,
    with_hint,
    with_time_steps,
)
from hfgen.serving.library import LoadedModel
from hfgen.serving.worker import Job, States
from hfgen.utils.errors import UserError, first_line
from hfgen.utils.seeds import derive_seed

MOST_IMAGES = 256  # of a request
MOST_STEPS = 1000  # of denoising
LARGEST_PICTURE = 2048  # pixels on a side of an uploaded picture
LARGEST_TRANSLATED = 512  # likewise, of a picture for an image-to-image model
TOP_CLASSES = 5  # of a judge
LOADING = {*Options.__annotations__}  # options of the server, not of a request
DRAW_FIELDS = {*fields_of(SampleConfig)} - LOADING - {"run_or_repo", "output", "film", "batch_size"}
EDIT_FIELDS = {*fields_of(EditOptions)} - LOADING
LATENT_FIELDS = {"num_images", "seed", "class_labels", "prior", "truncation"}

Body = Mapping[str, Any]


@dataclasses.dataclass
class Answer:
    """A job, and what is known of its images.

    Attributes:
        job: Its states have `images`, uint8 (B, C, H, W), and some other tensors or numbers.
        labels: The class of each image, or None.
        label_names: Class names by index.
    """

    job: Job
    labels: list[int] | None = None
    label_names: Sequence[str] = ()


def draw(model: LoadedModel, body: Body) -> Answer:
    """Sample images: `hfgen sample`, step by step."""
    if model.use == "translate":
        raise UserError(f"{model.entry.name} is an image-to-image model, which draws nothing; give it a picture")
    config = _read(SampleConfig, body, DRAW_FIELDS, {"run_or_repo": model.entry.name}, {"num_images": 1})
    _limit("num_images", config.num_images, MOST_IMAGES)
    _limit("num_inference_steps", config.num_inference_steps or 0, MOST_STEPS)
    sampler = with_time_steps(model.pipeline, model.sampler | config.given_sampler())
    if config.negative_class_labels:
        sampler["negative_class_labels"] = config.negative_class_labels
    check_sampling(model.pipeline, class_labels=config.class_labels, **sampler)
    count = range(config.num_images)
    labels = labels_of(model.pipeline, config.class_labels, count) if model.is_conditional else None
    items = [(image_seed(config.seed, number), labels[number] if labels else None) for number in count]
    # Negative classes belong to the images by their numbers, and a reader of each step may be slow.
    is_alone = bool(config.negative_class_labels) or body.get("format") == "stream"
    key = None if is_alone else ("draw", id(model), repr(sorted(sampler.items())))

    def work(items: Sequence[Any]) -> States:
        classes = [label for _, label in items] if model.is_conditional else []
        states = sample_steps(model.pipeline, seeds=[seed for seed, _ in items], class_labels=classes, **sampler)
        for step, (noised, images) in enumerate(states):
            yield {"images": images, "step": step} | ({"noised": noised} if model.use == "denoise" else {})

    return Answer(Job(work, items, key), labels, model.label_names)


def draw_latents(model: LoadedModel, body: Body) -> Job:
    """Sample the latents from which a VAE or GAN makes the images of `draw`."""
    _require_latents(model)
    config = _read(SampleConfig, body, LATENT_FIELDS, {"run_or_repo": model.entry.name}, {"num_images": 1})
    _limit("num_images", config.num_images, MOST_IMAGES)
    sampler = model.sampler | config.given_sampler()
    check_sampling(model.pipeline, class_labels=config.class_labels, **sampler)
    pipeline, count = model.pipeline, config.num_images

    def work(items: Sequence[Any]) -> States:
        generators = [torch.Generator().manual_seed(image_seed(config.seed, number)) for number in range(count)]
        if isinstance(pipeline, VAEPipeline):
            labels = labels_of(pipeline, config.class_labels, range(count)) if model.is_conditional else None
            classes = None if labels is None else torch.tensor(labels, device=pipeline.device)
            with torch.no_grad():
                latents = pipeline.draw_latents(count, sampler["prior"], generators, classes)
        else:
            latents = pipeline.draw_latents(count, sampler["truncation"], generators)
        yield {"latents": latents.float().cpu().tolist()}

    return Job(work)


def decode(model: LoadedModel, body: Body) -> Answer:
    """Make images of latents."""
    _require_latents(model)
    _only(body, {"latents", "class_labels"})
    size = network_of(model.pipeline).config.latent_dim
    latents = _numbers(body, "latents", size)
    labels = _classes(model, body, len(latents))

    def work(items: Sequence[Any]) -> States:
        classes = [label for _, label in items] if model.is_conditional else None
        together = torch.stack([latent for latent, _ in items])
        images = model.pipeline(latents=together, class_labels=classes, output_type="pt").images
        yield {"images": to_uint8(images * 2 - 1)}

    items = list(zip(latents, labels or [None] * len(latents), strict=True))
    return Answer(Job(work, items, ("decode", id(model))), labels, model.label_names)


def encode(model: LoadedModel, body: Body) -> Job:
    """Encode a picture with a VAE: mean and standard deviation of its latents."""
    image, labels = _for_vae(model, body)

    @torch.no_grad()
    def work(items: Sequence[Any]) -> States:
        classes = None if labels is None else torch.tensor(labels, device=model.pipeline.device)
        pixels = (image[None].float() / 127.5 - 1).to(model.pipeline.device, model.pipeline.vae.dtype)
        found = model.pipeline.vae.encode(pixels, classes)
        yield {"means": found.mean[0].float().tolist(), "stddevs": found.stddev[0].float().tolist()}

    return Job(work)


def reconstruct(model: LoadedModel, body: Body) -> Answer:
    """Encode a picture with a VAE, and decode it again."""
    image, labels = _for_vae(model, body)

    def work(items: Sequence[Any]) -> States:
        made = model.pipeline.reconstruct(image, class_labels=labels, output_type="pt").images
        yield {"images": to_uint8(made * 2 - 1)}

    return Answer(Job(work), labels, model.label_names)


def edit(model: LoadedModel, body: Body) -> Answer:
    """Edit a picture with a diffusion model: `hfgen translate --task …`, step by step."""
    if model.use != "denoise":
        raise UserError(f"{model.entry.name} is no diffusion model, so it cannot edit a picture")
    options = _read(EditOptions, body, EDIT_FIELDS | {"image", "mask"}, {}, {})
    _limit("num_inference_steps", options.num_inference_steps or 0, MOST_STEPS)
    editing = check_editing(model.pipeline, options, model.entry.name)
    shape = model.image_shape
    if options.noise_std is None:
        image = read_picture(_needed(body, "image"), shape[0], shape[1:])
    else:  # resizing would change the noise
        image = read_picture(_needed(body, "image"), shape[0], None)
        if [*image.shape] != [*shape]:
            raise UserError(f"with noise_std the picture must have {shape[2]}×{shape[1]} pixels, as the model has")
    if (options.task == "inpaint") != (body.get("mask") is not None):
        raise UserError("the task inpaint needs a mask, and the others have none")
    mask = None
    if options.task == "inpaint":
        mask = read_picture(body["mask"], 1, shape[1:])[None].float() / 255

    def work(items: Sequence[Any]) -> States:
        for step, images in enumerate(edit_steps(editing, options, image[None], mask)):
            yield {"images": images, "step": step}

    labels = _classes(model, {"class_labels": options.class_labels}, 1) if options.class_labels else None
    return Answer(Job(work), labels, model.label_names)


def translate(model: LoadedModel, body: Body) -> Answer:
    """Translate a picture with an image-to-image model, after noise was added to it if that is wanted."""
    if model.use != "translate":
        raise UserError(f"{model.entry.name} is no image-to-image model; a diffusion model edits pictures instead")
    options = _read(EditOptions, body, {"noise_std", "inverse", "seed", "image", "noise"}, {}, {})
    noise = body.get("noise") or 0.0
    if not isinstance(noise, int | float) or not 0 <= noise <= 1:
        raise UserError(f"noise must be a number from 0 to 1, not {noise}")
    network = model.pipeline.inverse_generator if options.inverse else model.pipeline.generator
    if network is None:
        raise UserError(f"{model.entry.name} translates in one direction only; leave out inverse")
    image = read_picture(_needed(body, "image"), network.config.in_channels, None)
    for side in image.shape[1:]:
        _limit("the width and height of image", side, LARGEST_TRANSLATED)
    generator = torch.Generator().manual_seed(derive_seed("translate", "noise", options.seed, 0))
    given = image.float() / 255 + noise * torch.randn(image.shape, generator=generator)

    def work(items: Sequence[Any]) -> States:
        named = {name: getattr(options, name) for name in ("noise_std", "inverse")}
        try:
            made = model.pipeline([given], **named, output_type="pt").images
        except ValueError as error:
            raise UserError(str(error)) from error
        yield {"noised": to_uint8(given[None] * 2 - 1), "images": to_uint8(made[0][None] * 2 - 1)}

    return Answer(Job(work))


class Judges:
    """The classifiers that say what they see in a picture, kept after their first use."""

    def __init__(self) -> None:
        self.loaded: dict[str, Judge] = {}

    def predict(self, names: list[str], image: Tensor) -> list[dict[str, Any]]:
        """Return what these judges see in an image, uint8 (C, H, W), if it has their size: the likeliest classes."""
        found = []
        for name in names:
            judge = self.loaded.setdefault(name, self.loaded.get(name) or load_judge(name))
            if judge.image_shape == tuple(image.shape):
                _, logits = judge.extract(image[None])
                chances, classes = logits[0].softmax(0).sort(descending=True)
                pairs = zip(chances[:TOP_CLASSES].tolist(), classes[:TOP_CLASSES].tolist(), strict=True)
                seen = [{"class": judge.label_names[number], "probability": chance} for chance, number in pairs]
                found.append({"judge": name, "classes": seen})
        return found


def judge(model: LoadedModel, body: Body, judges: Judges) -> Job:
    """Ask the judges of a model's data set what they see in a picture."""
    _only(body, {"image"})
    if not model.judges:
        known = ", ".join(["digits", *SHORT_NAMES])
        raise UserError(f"there is no judge for the images of {model.entry.name}, only for {known}")
    image = read_picture(_needed(body, "image"), model.image_shape[0], model.image_shape[1:])
    return Job(lambda items: iter([{"judges": judges.predict(model.judges, image)}]))


def read_picture(text: Any, channels: int | None, size: Sequence[int] | None) -> Tensor:
    """Decode a picture of a request by the rules of training.

    Args:
        text: An image file as base64, with or without `data:image/png;base64,` before it.
        channels: 1 or 3; None for those of the file.
        size: Height and width to which the picture is resized, after it was cropped; None for its own.

    Returns:
        uint8 (C, H, W).

    Raises:
        UserError: if it is none, or too large.
    """
    if not isinstance(text, str):
        raise UserError("a picture must be the text of a file in base64, as in data:image/png;base64,iVBOR…")
    try:
        content = base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"the picture is not valid base64: {first_line(error)}") from error
    try:
        with open_picture(io.BytesIO(content)) as opened:
            if max(opened.size) > LARGEST_PICTURE:
                raise UserError(
                    f"the picture has {opened.size[0]}×{opened.size[1]} pixels; at most {LARGEST_PICTURE} on a side"
                )
            resolution = size[0] if size and size[0] == size[1] else None
            image = torch.from_numpy(to_array(opened, resolution, channels).copy())
    except UserError:
        raise
    except PIL.UnidentifiedImageError as error:
        raise UserError("the file cannot be read as an image (its format is not one of those known here)") from error
    except Exception as error:  # Pillow's readers raise any kind for a damaged file
        raise UserError(f"the file cannot be read as an image ({first_line(error)})") from error
    if size and tuple(image.shape[1:]) != tuple(size):
        raise UserError(
            f"the picture has {image.shape[2]}×{image.shape[1]} pixels, the model needs {size[1]}×{size[0]}"
        )
    return image


def open_upload(model: LoadedModel, body: Body) -> dict[str, Tensor]:
    """Decode an uploaded picture for a model, as the pixels of its canvas."""
    _only(body, {"image"})
    return {"images": read_picture(_needed(body, "image"), model.image_shape[0], model.image_shape[1:])[None]}


def _for_vae(model: LoadedModel, body: Body) -> tuple[Tensor, list[int] | None]:
    """Return the picture of a request for a VAE, and its class."""
    if not isinstance(model.pipeline, VAEPipeline):
        raise UserError(f"{model.entry.name} is no VAE, so it cannot encode a picture")
    _only(body, {"image", "class_labels"})
    shape = model.image_shape
    return read_picture(_needed(body, "image"), shape[0], shape[1:]), _classes(model, body, 1)


def _classes(model: LoadedModel, body: Body, count: int) -> list[int] | None:
    """Return the classes of a request as indices, one for each image; None for a model without classes."""
    given = body.get("class_labels") or []
    given = given if isinstance(given, list) else [given]
    if not model.is_conditional:
        if given:
            raise UserError("this model is unconditional: class_labels do not apply")
        return None
    if len(given) not in (1, count):
        raise UserError(f"class_labels must be one, or one for each of the {count} images, not {len(given)}")
    try:
        return (model.pipeline.get_label_ids(given) * count)[:count]
    except (ValueError, TypeError) as error:
        raise UserError(with_hint(str(error), given)) from error


def _numbers(body: Body, name: str, size: int) -> Tensor:
    """Return the vectors of a request, float32 (B, size)."""
    try:
        found = torch.tensor(_needed(body, name), dtype=torch.float32)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise UserError(f"{name} must be lists of {size} numbers") from error
    if found.ndim != 2 or found.shape[1] != size or not len(found) or not found.isfinite().all():
        raise UserError(f"{name} must be one or more lists of {size} numbers, not of shape {tuple(found.shape)}")
    _limit(f"the number of {name}", len(found), MOST_IMAGES)
    return found


def _require_latents(model: LoadedModel) -> None:
    if model.use != "decode":
        raise UserError(f"{model.entry.name} is neither a VAE nor a GAN, so it has no latents")


def _read(config_class: type, body: Body, allowed: set[str], known: Body, usual: Body) -> Any:
    """Build a configuration from the fields of a request; those that are no fields are only allowed."""
    _only(body, allowed)
    values = usual | {name: value for name, value in body.items() if name in fields_of(config_class)} | known
    given = {name: value for name, value in values.items() if value is not None}
    return make_config(config_class, given, prog="the request", positional="run_or_repo")


def _only(body: Body, allowed: set[str]) -> None:
    if unknown := body.keys() - allowed - {"model", "format"}:
        name = min(unknown)
        near = field_suggestion(name, allowed) or f"; there are {', '.join(sorted({'model', *allowed}))}"
        raise UserError(f"there is no field {name}{near}")


def _needed(body: Body, name: str) -> Any:
    if body.get(name) is None:
        raise UserError(f"the request has no {name}")
    return body[name]


def _limit(what: str, value: int, most: int) -> None:
    if value > most:
        raise UserError(f"{what} must be at most {most:,} in a request, not {value:,}")
