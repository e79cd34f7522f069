"""Configurations of the commands other than `hfgen train`, one dataclass per command (see `hfgen.config`)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hfgen.config.training import (
    MAX_BATCH_SIZE,
    MAX_GUIDANCE,
    MAX_IMAGES,
    MAX_LATENTS,
    MAX_NOISE,
    MAX_RESOLUTION,
    MAX_SEED,
    MAX_TILE,
    MAX_TIMESTEPS,
    MAX_TRUNCATION,
    require,
    require_values,
)
from hfgen.utils.errors import UserError
from hfgen.utils.files import local_path


@dataclass(kw_only=True)
class Options:
    """Options of the commands that load a model.

    Args:
        > Model
        revision: Branch, tag or commit of a Hub id.
        trust_remote_code: Run the Python files that come with a model. Without this flag such a model is refused and
            its files are listed.
        device: Device to compute on, such as `cuda`, `cuda:1`, `mps` (Apple GPUs) or `cpu`; `auto` is this machine's
            GPU, or the CPU if there is none.
        dtype: Data type of the model's weights. bfloat16 and float16 change the images slightly; `auto` is bfloat16
            for a diffusion model on hardware that computes in it natively, where it is faster, and float32 otherwise.

        > Images

        > Sampler
    """

    revision: str | None = None
    trust_remote_code: bool = False
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    def __post_init__(self):
        """Validate the fields."""
        require_values(self)

    def loading_options(self) -> dict[str, Any]:
        """Return the keyword arguments of `hfgen.pipelines.loading.load`."""
        return {name: getattr(self, name) for name in Options.__annotations__}


@dataclass(kw_only=True)
class SamplerOptions(Options):
    """Sampler options; the defaults are those of the sample grids of the model's own run.

    Args:
        > Sampler
        num_inference_steps: Denoising steps of a diffusion model (default: as in the run).
        scheduler: ddpm, ddim, deis, dpmsolver, dpmsolver_sde, euler, euler_a, heun, pndm, unipc, for a flow also
            flow_euler and flow_heun, or the class name of any compatible diffusers scheduler (default: as in the run).
        guidance_scale: Classifier-free guidance scale of a diffusion model with classes or clusters. 1 disables
            guidance; larger values trade diversity for fidelity (default: as in the run).
        guidance_interval: Interval of noise levels in which guidance is applied, from 0 (image) to 1 (pure noise)
            (default: as in the run).
        prior: Distribution of a VAE's latents: `normal`, the prior N(0, I), `mixture`, the Gaussian mixture fitted to
            the latents of the training images, or `flow`, the rectified flow trained on them, if there is one
            (default: as in the run).
        truncation: Truncation trick of a GAN (Brock et al. 2019): sample latents from a normal truncated to [−t, t];
            smaller t trades diversity for fidelity (default: as in the run).
        even_steps: Use the scheduler's own, even time steps also where the model has learnt others for this scheduler
            and number of steps (see `hfgen compare-samplers --learn_steps`).
    """

    num_inference_steps: int | None = None
    scheduler: str | None = None
    guidance_scale: float | None = None
    guidance_interval: list[float] = field(default_factory=list)
    prior: Literal["normal", "mixture", "flow"] | None = None
    truncation: float | None = None
    even_steps: bool = False

    def __post_init__(self):
        """Validate the fields."""
        super().__post_init__()
        require(self, "positive", ["num_inference_steps"], at_most=MAX_TIMESTEPS)
        require(self, "any", ["guidance_scale"], at_most=MAX_GUIDANCE)
        require(self, "positive", ["truncation"], at_most=MAX_TRUNCATION)

    def given_sampler(self) -> dict[str, Any]:
        """Return the sampler options that were set."""
        names = [name for name in SamplerOptions.__annotations__ if name != "even_steps"]
        options = {name: value for name in names if (value := getattr(self, name)) not in (None, [])}
        return options | ({"time_steps": None} if self.even_steps else {})


@dataclass(kw_only=True)
class SampleConfig(SamplerOptions):
    """Sample images from a trained model.

    Args:
        > Model
        run_or_repo: A run, a checkpoint, any pipeline folder, a Hub id, or the name of a model in `model_cards`.

        > Images
        num_images: Number of images.
        class_labels: Classes, by name or index, of a class-conditional model; the images cycle through them. By
            default all classes.
        seed: Random seed. Image i depends on the seed and i only, not on the batch size.
        output: Output file: a .png (a grid with a row per class), a .gif, an .npz (uint8 `images`, (N, H, W) or (N, H,
            W, 3), and of a class-conditional model `labels` and `label_names`), or a folder (one PNG per image).
        film: Show the denoising process: x_t and the predicted x₀ at some steps, side by side in a .png or animated in
            a .gif. Always on for a .gif.
        batch_size: Images per batch.

        > Sampler
        negative_class_labels: Negative classes for classifier-free guidance, one for all images or one per image; by
            default the unconditional prediction.

    Examples:
        hfgen sample runs/mnist --num_images 100 --output grid.png
        hfgen sample runs/mnist --class_labels 3 7 --num_inference_steps 50 --output film.gif
    """

    run_or_repo: str
    num_images: int = 64
    class_labels: list[str] = field(default_factory=list)
    negative_class_labels: list[str] = field(default_factory=list)
    seed: int = 0
    batch_size: int = 64
    film: bool = False
    output: str = "samples.png"

    def __post_init__(self):
        """Validate the fields."""
        super().__post_init__()
        require(self, "positive", ["num_images"], at_most=MAX_IMAGES)
        require(self, "positive", ["batch_size"], at_most=MAX_BATCH_SIZE)
        require(self, "zero or more", ["seed"], at_most=MAX_SEED)
        suffix = Path(self.output).suffix.lower()
        if suffix not in {"", ".png", ".gif", ".npz"}:
            raise UserError(f"output must end in .png, .gif or .npz, or be a folder, not {self.output}")
        self.film |= suffix == ".gif"
        if self.film and suffix not in (".gif", ".png"):
            raise UserError(f"film needs an output that ends in .gif or .png, not {self.output}")


@dataclass(kw_only=True)
class EditOptions(Options):
    """What to do with images: the options of an image-to-image model, or of editing with a diffusion model.

    Args:
        > Image-to-image model
        noise_std: Standard deviation of the noise to remove, for pixels in [0, 1]; by default estimated.
            Image-to-image models require it if they were trained with noise_level_input, and refuse it otherwise.
        inverse: Translate in the opposite direction, if the model supports it.
        tile_size: Process larger images in overlapping square tiles of this many pixels (image-to-image models only);
            by default images are processed whole.

        > Diffusion model
        task: Task of a diffusion model: `denoise` (remove Gaussian white noise), `vary` (make similar images),
            `inpaint` (fill in the masked region) or `change_class`. Image-to-image models have a single task.
        strength: Fraction of the noise schedule applied to the input (SDEdit strength), from 0 to 1; by default 0.5 to
            vary an image and 0.8 to change its class.
        class_labels: Target classes, by name or index, of a class-conditional model: one for all images or one per
            image. Required by the task change_class.
        source_class_labels: Classes of the input images for the task change_class, likewise; by default unconditional,
            which needs a model trained with label dropout.
        guidance_scale: Classifier-free guidance scale; by default 2 for the task change_class, else 1.
        num_inference_steps: Denoising steps; by default 1 to denoise (which estimates the posterior mean), 20 to vary,
            else 50.
        seed: Random seed of the noise.
    """

    noise_std: float | None = None
    inverse: bool = False
    tile_size: int | None = None
    task: Literal["denoise", "vary", "inpaint", "change_class"] | None = None
    strength: float | None = None
    class_labels: list[str] = field(default_factory=list)
    source_class_labels: list[str] = field(default_factory=list)
    guidance_scale: float | None = None
    num_inference_steps: int | None = None
    seed: int = 0

    def __post_init__(self):
        """Validate the fields, and that they fit the task."""
        super().__post_init__()
        require(self, "positive", ["num_inference_steps"], at_most=MAX_TIMESTEPS)
        require(self, "any", ["guidance_scale"], at_most=MAX_GUIDANCE)
        require(self, "any", ["noise_std"], at_most=MAX_NOISE)
        require(self, "positive", ["tile_size"], at_most=MAX_TILE)
        require(self, "zero or more", ["seed"], at_most=MAX_SEED)
        own = {
            "noise_std": {"denoise"}, "strength": {"vary", "change_class"}, "source_class_labels": {"change_class"},
        }  # fmt: skip
        for name, tasks in own.items():
            if getattr(self, name) not in (None, []) and self.task is not None and self.task not in tasks:
                raise UserError(f"{name} needs the task {' or '.join(sorted(tasks))}, not {self.task}")
        if self.task == "change_class" and not self.class_labels:
            raise UserError("the task change_class needs --class_labels")


@dataclass(kw_only=True)
class TranslateConfig(EditOptions):
    """Transform images with an image-to-image model, or edit them with a diffusion model.

    Args:
        > Model
        run_or_repo: A run, a checkpoint, any pipeline folder, a Hub id, or the name of a model in `model_cards`.

        > Images
        input: An image, a folder of images, or an .npz file (uint8 `images`, (N, H, W) or (N, H, W, 3)). Unreadable
            files are skipped and listed. An image-to-image model processes each image at its own size. For a diffusion
            model they are resized and converted as in training, except with noise_std.
        output: Output file: a .png (inputs above results), an .npz, or a folder (one PNG per result).
        invert: Invert the input's brightness, for instance a black-on-white drawing for a model trained on
            white-on-black images such as MNIST.

        > Diffusion model
        mask: Image whose white pixels mark the region to inpaint.

    Examples:
        hfgen translate runs/denoiser --input scans --output cleaned
        hfgen translate runs/mnist --input digit.png --task vary --strength 0.4
    """

    run_or_repo: str
    input: str
    invert: bool = False
    mask: str | None = None
    output: str = "translated.png"

    def __post_init__(self):
        """Validate the fields, and that they fit the task."""
        super().__post_init__()
        for name in ("input", "mask"):
            if (value := getattr(self, name)) is not None and not local_path(value).exists():
                raise UserError(f"there is no image, folder or .npz file {value} ({name})")
        if self.mask is not None and self.task not in (None, "inpaint"):
            raise UserError(f"mask needs the task inpaint, not {self.task}")
        if self.task == "inpaint" and not self.mask:
            raise UserError("the task inpaint needs --mask")
        if Path(self.output).suffix.lower() not in {"", ".png", ".npz"}:
            raise UserError(f"output must end in .png or .npz, or be a folder, not {self.output}")
        source, output = (local_path(place).resolve() for place in (self.input, self.output))
        if output.is_relative_to(source) or (self.mask and output == local_path(self.mask).resolve()):
            raise UserError(f"output {self.output} could overwrite the input; choose another path")


@dataclass(kw_only=True)
class TestingOptions(Options):
    """Real images and feature extractors of an evaluation.

    Args:
        > Real images
        dataset_name: Data set of the real images (see `hfgen train ddpm --help`); by default the training data set of
            the run.
        reference_split: Split of the real images, unseen in training: by default the test split, either the data set's
            own or the part held out in training.
        validation_fraction: Hold out this fraction of the data set, as `hfgen train` does; by default as in training.
        test_fraction: Likewise; for images and models that are not from a run.
        resolution: Resolution in pixels to which the real images are resized; by default as in training.
        channels: 1 for greyscale, 3 for RGB; by default as in training.

        > Metrics
        judge: Classifiers whose features and predictions the metrics use: names of shipped ones, or runs of `hfgen
            train classifier`. By default those that ship with hfgen for the data set.
        seed: Random seed.
        batch_size: Images per batch.

        > Report
        output_dir: Folder of the report.
        cache_dir: Folder for decoded images and statistics of the real images; by default `hfgen` in the Hugging Face
            home.
    """

    dataset_name: str | None = None
    reference_split: str = "test"
    validation_fraction: float | None = None
    test_fraction: float | None = None
    resolution: int | None = None
    channels: Literal[1, 3] | None = None
    judge: list[str] = field(default_factory=list)
    seed: int = 0
    batch_size: int = 250
    output_dir: str | None = None
    cache_dir: str | None = None

    def __post_init__(self):
        """Validate the fields."""
        super().__post_init__()
        require(self, "positive", ["batch_size"], at_most=MAX_BATCH_SIZE)
        require(self, "positive", ["resolution"], at_most=MAX_RESOLUTION)
        require(self, "zero or more", ["seed"], at_most=MAX_SEED)
        require(self, "from 0 to below 1", ["validation_fraction", "test_fraction"])


@dataclass(kw_only=True)
class MeasuringOptions(TestingOptions):
    """Options of metrics that compare generated with real images.

    Args:
        > Real images
        train_split: Split that the model was trained on; by default as in training.

        > Metrics
        features: Vision models of `transformers` in whose feature space images are compared, in addition to judges,
            such as facebook/dinov2-small: Hub ids (downloaded if not cached) or folders with safetensors and image
            processor. They need no judge and no labels.
        inception: Also compare images in the features of Inception, whose Fréchet and kernel distance are FID and
            KID, and compute the Inception Score; needs no judge. Needs the package torch-fidelity and its weights,
            which are downloaded.
    """

    train_split: str | None = None
    features: list[str] = field(default_factory=list)
    inception: bool = False

    def __post_init__(self):
        """Validate the fields."""
        super().__post_init__()
        require(self, "positive", ["num_images"], at_most=MAX_IMAGES)


@dataclass(kw_only=True)
class EvaluateConfig(MeasuringOptions, SamplerOptions):
    """Evaluate the images of a model, or any other images, and write a report.

    Args:
        > Model
        run_or_repo: A run, a checkpoint, any pipeline folder, a Hub id, or the folder of a sweep, whose runs are
            evaluated one by one. A run of a classifier is evaluated by its accuracy.

        > Images
        num_images: Number of images to sample and evaluate; by default 10,000, or all of `images`, of which a smaller
            number is chosen at random. 2,000 are quick. Values for different numbers of images are not comparable.
        images: Evaluate these images instead of a model: an .npz file (uint8 `images`, (N, H, W) or (N, H, W, 3), and
            optionally `labels`, int (N,)) or an image folder (one sub-folder per class, or none).
        invert: Invert the brightness of `images` first, if the data set is white on black and they are black on white,
            or vice versa.

        > Real images
        target_reference_split: Reference split of domain B, for an unpaired image-to-image model; by default the split
            with the same name as that of domain A.

        > Metrics
        classification_accuracy_score: Also compute the classification accuracy score: the accuracy on real images of a
            classifier trained on the generated images, which must have labels, beside one trained on as many real
            images.

        > Report
        output_dir: Folder for `evaluation.json`, `evaluation.md` and its figures; by default the run's folder, or for
            a checkpoint or a Hub id a folder in `evaluations`.

    Examples:
        hfgen evaluate runs/mnist --num_images 2000
        hfgen evaluate --images samples.npz --dataset_name mnist --output_dir evaluations/samples
    """

    run_or_repo: str | None = None
    images: str | None = None
    invert: bool = False
    num_images: int | None = None
    classification_accuracy_score: bool = False
    target_reference_split: str | None = None

    def __post_init__(self):
        """Validate the fields."""
        if (self.run_or_repo is None) == (self.images is None):
            both = "both" if self.images else "neither"
            raise UserError(f"name what to evaluate: either a run (or repo), or --images, not {both}")
        if self.invert and not self.images:
            raise UserError("invert needs --images; the images of a model are evaluated unchanged")
        if self.images and self.dtype not in ("auto", "float32"):
            raise UserError("dtype is that of a model's weights and does not apply to --images")
        super().__post_init__()
        problems, images = [], local_path(self.images or "")
        if self.images and not (self.dataset_name and self.output_dir):
            problems.append(
                "--images also needs --dataset_name, the data set to compare with, and --output_dir for the report"
            )
        if not images.is_dir() and not (images.is_file() and images.suffix == ".npz"):
            problems.append(f"there is no folder and no .npz file {self.images} (images)")
        if problems:
            raise UserError("; ".join(problems))


@dataclass(kw_only=True)
class AnalyzeConfig(TestingOptions):
    """Analyse a VAE: reconstructions of test images, likelihood bounds and the latent space.

    Args:
        > Model
        run_or_repo: A run, a checkpoint, a VAE's pipeline folder, a Hub id, or the folder of a sweep, whose runs are
            analysed one by one.

        > Real images
        binarization: Binarise the test images first (see `hfgen train vae --help`); by default as in training.

        > Metrics
        num_importance_samples: Latent samples per image for the importance-weighted bound.
        num_bound_images: Number of test images, chosen at random, over which the gap between that bound and the ELBO
            is averaged.

        > Report
        output_dir: Folder for `analysis.json`, `analysis.md` and its figures; by default the run's folder, or for a
            checkpoint or a Hub id a folder in `evaluations`.

    Examples:
        hfgen analyze runs/vae
    """

    run_or_repo: str
    num_importance_samples: int = 5000
    num_bound_images: int = 1000
    binarization: Literal["none", "threshold", "static", "dynamic"] | None = None

    def __post_init__(self):
        """Validate the fields."""
        super().__post_init__()
        require(self, "positive", ["num_importance_samples"], at_most=MAX_LATENTS)
        require(self, "positive", ["num_bound_images"], at_most=MAX_IMAGES)
        if self.num_bound_images < 2:
            raise UserError(f"num_bound_images must be 2 or more, for a standard error, not {self.num_bound_images}")


@dataclass(kw_only=True)
class CompareSamplersConfig(MeasuringOptions):
    """Compare schedulers, steps and guidance scales of one or more models by quality and cost.

    The distances are those in `features` or of `inception`, if one is set, else those of the first judge. A VAE or GAN
    generates images in one step; it takes part with the options of its own sample grids. A consistency model or a flow
    map takes part with 1, 2 and its own number of steps.

    Args:
        > Model
        runs: Runs, checkpoints, pipeline folders, or Hub ids, of models of the same data set.

        > Images
        num_images: Number of images to sample and evaluate per setting.

        > Sampler
        scheduler: Schedulers to compare, each with every number of steps, or with its own, as in `ddpm:1000`; by
            default those of ddim, flow_euler, dpmsolver, dpmsolver_sde and unipc that are compatible with the model.
        num_inference_steps: Numbers of denoising steps to compare.
        guidance_scale: Guidance scales to compare, for a model with classes or clusters; by default that of its own
            sample grids.
        guidance_interval: See `hfgen sample --help`; by default as in the run's own sample grids.
        learn_steps: Learn the time steps of these numbers of steps, under a minute each for a small model, and compare
            with even ones; those that are better, by more than two standard deviations of the difference of the
            Fréchet distances, are saved with a finished run or a pipeline folder, which then uses them. They are
            learnt for the first of `scheduler`, or that of the run's own sample grids.

        > Report
        output_dir: Folder for `comparison.json`, `comparison.md` and its figures; by default the first run's folder,
            or for a checkpoint or a Hub id a folder in `evaluations`.

    Examples:
        hfgen compare-samplers runs/mnist --scheduler dpmsolver unipc --num_inference_steps 5 10 20
        hfgen compare-samplers runs/mnist --scheduler unipc --num_inference_steps 15 --learn_steps 4 6
    """

    runs: list[str] = field(default_factory=list)
    scheduler: list[str] = field(default_factory=list)
    num_inference_steps: list[int] = field(default_factory=lambda: [5, 10, 15, 20, 50])
    guidance_scale: list[float] = field(default_factory=list)
    guidance_interval: list[float] = field(default_factory=list)
    learn_steps: list[int] = field(default_factory=list)
    num_images: int = 2000

    def __post_init__(self):
        """Validate the fields."""
        super().__post_init__()
        require(self, "any", ["guidance_scale"], at_most=MAX_GUIDANCE)
        if not self.runs:
            raise UserError("name one or more runs whose samplers to compare")
        if len(self.features) + self.inception > 1:
            named = ", ".join([*self.features, *["--inception"] * self.inception])
            raise UserError(f"settings are compared in one feature space; name one of {named}")
        if len(self.judge) > 1:
            raise UserError(f"settings are compared by one judge; name one of {', '.join(self.judge)}")
        require(self, "positive", ["num_inference_steps"])
        if not self.num_inference_steps:
            raise UserError("num_inference_steps must have at least one entry, not none")
        for scheduler in self.scheduler:
            name, colon, steps = scheduler.partition(":")
            if not name or (colon and not (steps.isdecimal() and int(steps))):
                raise UserError(f"scheduler must be a name, or a name and steps as in ddpm:1000, not {scheduler}")
        require(self, "positive", ["learn_steps"], at_most=MAX_TIMESTEPS)
        if any(steps < 2 for steps in self.learn_steps):
            raise UserError(f"learn_steps must be 2 or more, not {min(self.learn_steps)}")
        if self.learn_steps and len(self.guidance_scale) > 1:
            raise UserError("learn_steps learns with one guidance scale; name one")
        asked = [*self.num_inference_steps, *self.learn_steps, *(steps for _, steps in self.settings(self.scheduler))]
        if (most := max(asked)) > MAX_TIMESTEPS:
            raise UserError(f"num_inference_steps must be at most {MAX_TIMESTEPS:,}, not {most:,}")

    def settings(self, schedulers: Sequence[str]) -> list[tuple[str, int]]:
        """Return the pairs of scheduler and number of steps to compare, for entries such as those of `scheduler`."""
        pairs = [scheduler.partition(":") for scheduler in schedulers]
        steps = self.num_inference_steps
        return [(name, n) for name, _, own in pairs for n in ([int(own)] if own else steps)]


@dataclass(kw_only=True)
class ResultsConfig:
    """Put runs of any family side by side on one page.

    Args:
        folders: Runs, or folders to search for runs, evaluations and analyses.
        output: The page to write: a .md with tables of the evaluations and analyses, or an .html with pictures, curves
            and a table of all finished runs to sort and filter in a browser.

    Examples:
        hfgen results runs --output results.html
        hfgen results runs --output RESULTS.md
    """

    folders: list[str] = field(default_factory=lambda: ["runs"])
    output: str = "results.html"

    def __post_init__(self):
        """Validate the fields."""
        require_values(self)
        if Path(self.output).suffix not in (".md", ".html"):
            raise UserError(f"output must end in .md or .html, not {self.output}")


@dataclass(kw_only=True)
class ExportConfig:
    """Write a model as ONNX or torch.export files for other runtimes, with its sampler as numbers.

    Args:
        > Model
        run_or_repo: A run, a checkpoint, any pipeline folder, a Hub id, or the name of a model in `model_cards`.

        > Files
        format: `onnx`, for onnxruntime and browsers, or `torch_export`, for `torch.export.load`.
        dtype: Data type of the weights; inputs and outputs are float32. `int8` is for ONNX only: smaller files, and
            images that may differ.
        output: Folder for the files of the networks, `model.json`, and `README.md` with code that uses them.

        > Sampler
        scheduler: Scheduler of a diffusion model, which may neither add noise nor clip; by default as in the run's own
            sample grids.
        num_inference_steps: Its denoising steps; likewise.

    Examples:
        hfgen export runs/mnist --output exported
    """

    run_or_repo: str
    format: Literal["onnx", "torch_export"] = "onnx"
    dtype: Literal["float32", "float16", "int8"] = "float32"
    output: str
    scheduler: str | None = None
    num_inference_steps: int | None = None

    def __post_init__(self):
        """Validate the fields."""
        require_values(self)
        require(self, "positive", ["num_inference_steps"], at_most=MAX_TIMESTEPS)
        if self.dtype == "int8" and self.format != "onnx":
            raise UserError("dtype int8 needs the format onnx")


@dataclass(kw_only=True)
class DemoConfig:
    """Write a web page on which models draw in the visitor's browser, without a server.

    Args:
        runs: Runs, checkpoints, any pipeline folders, Hub ids, or names of models in `model_cards`.

        > Page
        output: Folder of the page: `index.html`, its script, and the models as ONNX. It can be opened from disk, or
            served as static files.
        title: Title of the page.
        runtime: Where onnxruntime-web comes from: `npm`, which downloads its package once and puts its files (5 MB,
            compressed) beside the page; `cdn`, from where the visitor's browser loads them; or a folder with them.

        > Sampler
        scheduler: Scheduler of all diffusion models, which may neither add noise nor clip; by default as in the sample
            grids of each model's own run.

    Examples:
        hfgen demo ddpm_conditional_mnist_cpu5min runs/vae --output site
    """

    runs: list[str]
    output: str = "site"
    title: str = "Models that draw in your browser"
    runtime: str = "npm"
    scheduler: str | None = None

    def __post_init__(self):
        """Validate the fields."""
        if not self.runs:
            raise UserError("name at least one model")


@dataclass(kw_only=True)
class CardConfig:
    """Write the model card of a run.

    Args:
        run: A finished run.
        gallery: Folder of model cards: write this card to a sub-folder of it and update its overview page. By default
            the card is written to the run.
        weights: Also write the model to the gallery, with weights of this data type, so that the sub-folder is a
            complete repository.
        repo_id: Hub id in the card's usage example; by default the run's `hub_model_id`, or else user/NAME.
        license: Licence of the weights, as a Hub identifier.

    Examples:
        hfgen card runs/mnist --repo_id user/mnist
    """

    run: str
    gallery: str | None = None
    weights: Literal["float32", "float16"] | None = None
    repo_id: str | None = None
    license: str = "apache-2.0"

    def __post_init__(self):
        """Validate the fields."""
        if self.weights and not self.gallery:
            raise UserError("weights needs --gallery; a run has its own weights")


@dataclass(kw_only=True)
class PushConfig:
    """Publish a finished run on the Hub: model, model card and evaluation.

    Args:
        run: A finished run.
        repo_id: `user/name`; created if it does not exist.
        private: Create it as a private repo.
        create_pr: Open a pull request instead of committing.
        revision: Branch to push to, created if it does not exist.
        license: Licence of the weights, as a Hub identifier.
        demo: Also publish the page of `hfgen demo`, on which the model draws in the visitor's browser, as a static
            Space with the same id.
        dry_run: List the files that would be uploaded without contacting the Hub.

    Examples:
        hfgen push runs/mnist --repo_id user/mnist --dry_run
    """

    run: str
    repo_id: str
    private: bool = False
    create_pr: bool = False
    revision: str | None = None
    license: str = "apache-2.0"
    demo: bool = False
    dry_run: bool = False

    def __post_init__(self):
        """Validate the fields."""
        if self.create_pr and self.revision:
            raise UserError("pull requests always target the main branch: use --create_pr or --revision, not both")
        if self.demo and (other := next((name for name in ("create_pr", "revision") if getattr(self, name)), None)):
            raise UserError(f"a demo is published on its main branch; leave out --{other}, or push it later")


@dataclass(kw_only=True)
class PublishAllConfig:
    """Publish every finished run in a folder, each under its own name, and add them to a Hub collection.

    Models of a gallery that have their weights, such as those in `model_cards`, are published as they are.

    Args:
        folder: Folder of runs, or a gallery of models.
        namespace: User or organisation on the Hub.
        private: Create the repos as private ones.
        license: Licence of the weights, as a Hub identifier.
        collection: Title of the collection.
        dry_run: List the files that would be uploaded without sending anything.

    Examples:
        hfgen publish-all runs --namespace user --dry_run
        hfgen publish-all model_cards --namespace user --dry_run
    """

    folder: str = "runs"
    namespace: str
    private: bool = False
    license: str = "apache-2.0"
    collection: str = "hfgen"
    dry_run: bool = False


@dataclass(kw_only=True)
class StudioConfig:
    """Open a local page to train, draw with, edit with and compare models; it is an HTTP endpoint too.

    Args:
        > Models
        runs: Runs, folders of runs, names of models in `model_cards`, or Hub ids; by default the folder `runs` and the
            models in `model_cards`.
        train_dir: Folder of the runs of trainings that are started on the page.
        device: Device to compute on, as for `hfgen sample`.
        dtype: Data type of the models' weights, as for `hfgen sample`.

        > Server
        host: Address to listen on. With the default, only this machine can open the page.
        port: Port to listen on; 0 is any that is free.
        open_browser: Open the page in the default browser.
        max_requests: Requests that are answered at once; others are told to try again later (status 503).

    Examples:
        hfgen studio
        hfgen studio runs/first ddpm_conditional_mnist_cpu5min --port 8000
    """

    runs: list[str] = field(default_factory=list)
    train_dir: str = "runs"
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    host: str = "127.0.0.1"
    port: int = 7860
    open_browser: bool = True
    max_requests: int = 256

    def __post_init__(self):
        """Validate the fields."""
        require_values(self)
        require(self, "zero or more", ["port"], at_most=65_535)
        require(self, "positive", ["max_requests"], at_most=100_000)
        if not self.train_dir.strip():
            raise UserError("train_dir must name a folder")
