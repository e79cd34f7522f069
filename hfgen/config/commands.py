"""What the commands other than `hfgen train` take, one dataclass a command (see `hfgen.config`)."""

from dataclasses import dataclass, field, fields
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
    """What every command takes alike."""

    def __post_init__(self):
        """Refuse numbers that are not finite."""
        require_values(self)


@dataclass(kw_only=True)
class SamplerOptions(Options):
    """How images are drawn from a model; what is not given is as in the sample grids of its own run.

    Args:
        num_inference_steps: Denoising steps of a diffusion.
        scheduler: ddpm, ddim, deis, dpmsolver, dpmsolver_sde, euler, euler_a, heun, pndm, unipc, for a flow also
            flow_euler and flow_heun, or the class name of any diffusers scheduler that fits the model.
        guidance_scale: How strongly a diffusion enforces the class (classifier-free guidance); 1 is the model's own
            distribution, more gives clearer and less varied images.
        guidance_interval: Part of the denoising in which guidance is applied, as two shares of the noise levels, 0 the
            image and 1 pure noise.
        prior: What the latents of a VAE are drawn from: `normal`, or the `mixture` that was fitted to the latents of
            its training images.
        truncation: How far from 0 the latents of a GAN are drawn: less makes images less varied, and nearer to what
            it knows best.
    """

    num_inference_steps: int | None = None
    scheduler: str | None = None
    guidance_scale: float | None = None
    guidance_interval: list[float] = field(default_factory=list)
    prior: Literal["normal", "mixture"] | None = None
    truncation: float | None = None

    def __post_init__(self):
        """Refuse numbers that nothing can be drawn with."""
        super().__post_init__()
        require(self, "positive", ["num_inference_steps"], at_most=MAX_TIMESTEPS)
        require(self, "any", ["guidance_scale"], at_most=MAX_GUIDANCE)
        require(self, "positive", ["truncation"], at_most=MAX_TRUNCATION)

    def given_sampler(self) -> dict[str, Any]:
        """Return what was given."""
        names = [option.name for option in fields(SamplerOptions)]
        return {name: value for name in names if (value := getattr(self, name)) not in (None, [])}


@dataclass(kw_only=True)
class SampleConfig(SamplerOptions):
    """Draw images from a trained model.

    Args:
        run_or_repo: A run, a checkpoint, any folder with a pipeline, or a Hub id.
        revision: Branch, tag or commit of a Hub id.
        trust_remote_code: Run the Python files that come with a model, which its refusal without this flag names.
        num_images: How many images.
        class_labels: Classes to draw in turn, by name or number, of a model that knows classes; by default all.
        negative_class_labels: What guidance leads away from, one class for all images or one for each; by default from
            images of no particular class.
        seed: Image i follows from it and i, whatever the batch size.
        batch_size: Images drawn at a time.
        film: Show the denoising, x_t and what image the model sees in it at some steps, in a .png, or moving in a
            .gif, which is always a film.
        output: What to write: a .png (a grid, with a row for each class), a .gif, a .npz (uint8 `images`, (N, H, W) or
            (N, H, W, 3), and of classes `labels` and `label_names`), or a folder (one PNG an image).
    """

    run_or_repo: str
    revision: str | None = None
    trust_remote_code: bool = False
    num_images: int = 64
    class_labels: list[str] = field(default_factory=list)
    negative_class_labels: list[str] = field(default_factory=list)
    seed: int = 0
    batch_size: int = 64
    film: bool = False
    output: str = "samples.png"

    def __post_init__(self):
        """Refuse values that nothing can be drawn with."""
        super().__post_init__()
        require(self, "positive", ["num_images"], at_most=MAX_IMAGES)
        require(self, "positive", ["batch_size"], at_most=MAX_BATCH_SIZE)
        require(self, "zero or more", ["seed"], at_most=MAX_SEED)
        suffix = Path(self.output).suffix.lower()
        if suffix not in {"", ".png", ".gif", ".npz"}:
            raise UserError(f"output must end in .png, .gif or .npz, or be a folder, not {self.output}")
        self.film |= suffix == ".gif"
        if self.film and suffix not in (".gif", ".png"):
            raise UserError(f"a film is written to a .gif or a .png, not to {self.output}")


@dataclass(kw_only=True)
class TranslateConfig(Options):
    """Change given images with an image-to-image model, or with a diffusion model that was trained to draw.

    Args:
        run_or_repo: A run, a checkpoint, any folder with a pipeline, or a Hub id.
        revision: Branch, tag or commit of a Hub id.
        trust_remote_code: Run the Python files that come with a model, which its refusal without this flag names.
        input: A picture, a folder of pictures, or an .npz file (uint8 `images`, (N, H, W) or (N, H, W, 3)). What
            cannot be read is left out and named. An image-to-image model takes each at its own size; for a diffusion
            model they are brought to its size and channels as training images are, but not if noise_std is given.
        invert: Turn the input's black to white and white to black, for a drawing in black on white and a model of
            images that are white on black, such as MNIST.
        task: What a diffusion model is to do, while an image-to-image model does what it was trained for: `denoise`
            (remove white noise), `vary` (make similar images), `inpaint` (fill in what the mask shows) or
            `change_class`.
        noise_std: Standard deviation of the noise to remove, for pixels from 0 to 1; estimated if not given. Of
            image-to-image models, those that were trained with noise_level_input need it, and others have none.
        inverse: Go the other way, with an image-to-image model that can.
        tile_size: Cut what is larger into overlapping squares of so many pixels, for an image-to-image model and large
            pictures; by default they are taken as a whole.
        mask: Picture that is white where the images are to be filled in.
        strength: How much of an image is given up, from 0 to 1: by default 0.5 to vary it, 0.8 to change its class.
        class_labels: Class of the results, by name or number, of a model that knows classes: one for all, or one an
            image. Needed to change the class.
        source_class_labels: Class of what is given, likewise, where the class is changed; by default no particular
            one, which the model has to have learnt.
        guidance_scale: How strongly the class is enforced: by default 2 to change it, else 1.
        num_inference_steps: Denoising steps: by default 1 to denoise (the mean of what the image may have been), 20 to
            vary, 50 for the others.
        seed: The noise follows from it.
        output: What to write: a .png (given images above the results), a .npz, or a folder (one PNG a result).
    """

    run_or_repo: str
    revision: str | None = None
    trust_remote_code: bool = False
    input: str
    invert: bool = False
    task: Literal["denoise", "vary", "inpaint", "change_class"] | None = None
    noise_std: float | None = None
    inverse: bool = False
    tile_size: int | None = None
    mask: str | None = None
    strength: float | None = None
    class_labels: list[str] = field(default_factory=list)
    source_class_labels: list[str] = field(default_factory=list)
    guidance_scale: float | None = None
    num_inference_steps: int | None = None
    seed: int = 0
    output: str = "translated.png"

    def __post_init__(self):
        """Refuse what does not belong to the task, and what it lacks."""
        super().__post_init__()
        require(self, "positive", ["num_inference_steps"], at_most=MAX_TIMESTEPS)
        require(self, "any", ["guidance_scale"], at_most=MAX_GUIDANCE)
        require(self, "any", ["noise_std"], at_most=MAX_NOISE)
        require(self, "positive", ["tile_size"], at_most=MAX_TILE)
        require(self, "zero or more", ["seed"], at_most=MAX_SEED)
        for name in ("input", "mask"):
            if (value := getattr(self, name)) is not None and not local_path(value).exists():
                raise UserError(f"there is no picture, folder or .npz file {value} ({name})")
        own = {
            "noise_std": {"denoise"}, "mask": {"inpaint"}, "strength": {"vary", "change_class"},
            "source_class_labels": {"change_class"},
        }  # fmt: skip
        for name, tasks in own.items():
            if getattr(self, name) not in (None, []) and self.task is not None and self.task not in tasks:
                raise UserError(f"{name} belongs to the task {' or '.join(sorted(tasks))}, not to {self.task}")
        for task, name in (("inpaint", "mask"), ("change_class", "class_labels")):
            if self.task == task and not getattr(self, name):
                raise UserError(f"the task {task} needs --{name}")
        if Path(self.output).suffix.lower() not in {"", ".png", ".npz"}:
            raise UserError(f"output must end in .png or .npz, or be a folder, not {self.output}")
        source, output = (local_path(place).resolve() for place in (self.input, self.output))
        if output.is_relative_to(source) or (self.mask and output == local_path(self.mask).resolve()):
            raise UserError(f"output {self.output} could write over the input; name another place")


@dataclass(kw_only=True)
class TestingOptions(Options):
    """With what real images, and by which judges, a model is tested.

    Args:
        revision: Branch, tag or commit of a Hub id.
        trust_remote_code: Run the Python files that come with a model, which its refusal without this flag names.
        dataset_name: Data set to compare with (see `hfgen train ddpm --help`); by default the one that the run was
            trained on.
        reference_split: Split to compare with: images that the model has not seen, by default the test split, be it
            the data set's own or what was held out in training.
        validation_fraction: Hold this part of the data set out, as `hfgen train` does; by default as in training.
        test_fraction: Likewise; for images and models that are not from a run.
        resolution: Pixels to which the data set is brought; by default as in training.
        channels: 1 for grey, 3 for RGB; by default as in training.
        judge: Classifiers by whose features and decisions images are judged: names of shipped ones, or runs of `hfgen
            train classifier`. By default the two that hfgen ships for the data set.
        seed: What is drawn follows from it.
        batch_size: Images drawn at a time.
        output_dir: Folder for the report.
        cache_dir: Folder for decoded images and reference statistics; by default `hfgen` in the Hugging Face home.
    """

    revision: str | None = None
    trust_remote_code: bool = False
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
        """Refuse values that nothing can be tested with."""
        super().__post_init__()
        require(self, "positive", ["batch_size"], at_most=MAX_BATCH_SIZE)
        require(self, "positive", ["resolution"], at_most=MAX_RESOLUTION)
        require(self, "zero or more", ["seed"], at_most=MAX_SEED)
        require(self, "from 0 to below 1", ["validation_fraction", "test_fraction"])


@dataclass(kw_only=True)
class MeasuringOptions(TestingOptions):
    """What generated images are compared with, and how.

    Args:
        train_split: Split that the model was trained on.
    """

    train_split: str | None = None

    def __post_init__(self):
        """Refuse values that nothing can be measured with."""
        super().__post_init__()
        require(self, "positive", ["num_images"], at_most=MAX_IMAGES)


@dataclass(kw_only=True)
class EvaluateConfig(MeasuringOptions, SamplerOptions):
    """Measure how good a model's images are, or images from anywhere, and write a report.

    Args:
        run_or_repo: A run, a checkpoint, any folder with a pipeline, or a Hub id. Of a classifier's run, the accuracy
            is measured.
        images: Images to measure instead of a model: an .npz file (uint8 `images`, (N, H, W) or (N, H, W, 3), and
            optionally `labels`, int (N,)) or a folder of pictures (one sub-folder a class, or none).
        invert: Turn black to white and white to black in `images` first, where the data set is white on black and they
            are not, or the other way round.
        num_images: How many images to draw and measure; by default 10,000, or all of `images`; a smaller number of
            those is chosen at random. 2,000 are quick; values of different numbers cannot be compared.
        classification_accuracy_score: Also train a classifier on the images, which must have labels, and another on
            as many real ones, and test both on real images.
        target_reference_split: Of a model that translates between two sets without pairs, the split of the second set;
            by default called like that of the first.
        inception: Also measure FID, KID and Inception Score. Needs the package torch-fidelity and its weights, which
            are downloaded.
        output_dir: Where to write `evaluation.json`, `evaluation.md` and its pictures; by default the run's folder,
            for a checkpoint or a Hub id a folder in `evaluations`.
    """

    run_or_repo: str | None = None
    images: str | None = None
    invert: bool = False
    num_images: int | None = None
    classification_accuracy_score: bool = False
    target_reference_split: str | None = None
    inception: bool = False

    def __post_init__(self):
        """Refuse values that nothing can be measured with."""
        if (self.run_or_repo is None) == (self.images is None):
            both = "both" if self.images else "neither"
            raise UserError(f"name what to measure: either a run (or repo), or --images, not {both}")
        if self.images and not (self.dataset_name and self.output_dir):
            raise UserError(
                "--images also needs --dataset_name, the data set to compare with, and --output_dir for the report"
            )
        if self.invert and not self.images:
            raise UserError("invert is for --images; what a model draws is measured as it is")
        super().__post_init__()
        images = local_path(self.images or "")
        if not images.is_dir() and not (images.is_file() and images.suffix == ".npz"):
            raise UserError(f"there is no folder and no .npz file {self.images} (images)")


@dataclass(kw_only=True)
class AnalyzeConfig(TestingOptions):
    """Look into the latents of a VAE: what they keep of test images, how good its bounds are, how they are laid out.

    Args:
        run_or_repo: A run, a checkpoint, any folder with a VAE's pipeline, a Hub id; or the folder of a sweep, whose
            members are analysed one after the other.
        num_importance_samples: Latents drawn of each image for the importance-weighted bound.
        num_bound_images: Test images, chosen at random, over which what that bound gains over the ELBO is averaged.
        binarization: Make the test images black and white before anything else (see `hfgen train vae --help`); by
            default as in training.
        output_dir: Where to write `analysis.json`, `analysis.md` and its pictures; by default the run's folder, for a
            checkpoint or a Hub id a folder in `evaluations`.
    """

    run_or_repo: str
    num_importance_samples: int = 5000
    num_bound_images: int = 1000
    binarization: Literal["none", "threshold", "static", "dynamic"] | None = None

    def __post_init__(self):
        """Refuse values that nothing can be found out with."""
        super().__post_init__()
        require(self, "positive", ["num_importance_samples"], at_most=MAX_LATENTS)
        require(self, "positive", ["num_bound_images"], at_most=MAX_IMAGES)
        if self.num_bound_images < 2:
            raise UserError(f"num_bound_images must be two or more, for a standard error, not {self.num_bound_images}")


@dataclass(kw_only=True)
class CompareSamplersConfig(MeasuringOptions):
    """Find out with which scheduler, steps and guidance a model draws best, and what that costs; or compare models.

    Args:
        runs: Runs, checkpoints, folders with a pipeline, or Hub ids, of models of the same data.
        scheduler: Schedulers to try, each with each number of steps; or, as in `ddpm:1000`, with one of its own.
        num_inference_steps: Numbers of denoising steps to try.
        guidance_scale: Guidance scales to try, of a model that knows classes; by default that of its own sample grids.
        guidance_interval: See `hfgen sample --help`; by default as in the run's own sample grids.
        num_images: How many images to draw and measure for each setting.
        output_dir: Where to write `comparison.json`, `comparison.md` and its pictures; by default the first run's
            folder, for a checkpoint or a Hub id a folder in `evaluations`.
    """

    runs: list[str] = field(default_factory=list)
    scheduler: list[str] = field(default_factory=lambda: ["ddim", "dpmsolver", "dpmsolver_sde", "unipc"])
    num_inference_steps: list[int] = field(default_factory=lambda: [5, 10, 15, 20, 50])
    guidance_scale: list[float] = field(default_factory=list)
    guidance_interval: list[float] = field(default_factory=list)
    num_images: int = 2000

    def __post_init__(self):
        """Refuse values that nothing can be compared with."""
        super().__post_init__()
        require(self, "any", ["guidance_scale"], at_most=MAX_GUIDANCE)
        if not self.runs:
            raise UserError("name the runs to compare the samplers of")
        require(self, "positive", ["num_inference_steps"])
        for name in ("scheduler", "num_inference_steps"):
            if not getattr(self, name):
                raise UserError(f"{name} must have at least one entry, not none")
        for scheduler in self.scheduler:
            name, colon, steps = scheduler.partition(":")
            if not name or (colon and not (steps.isdecimal() and int(steps))):
                raise UserError(f"scheduler must be a name, or a name and steps as in ddpm:1000, not {scheduler}")
        if most := max((steps for _, steps in self.settings() if steps > MAX_TIMESTEPS), default=0):
            raise UserError(f"num_inference_steps must be at most {MAX_TIMESTEPS:,}, not {most:,}")

    def settings(self) -> list[tuple[str, int]]:
        """Return the schedulers with the numbers of steps to try."""
        pairs = [scheduler.partition(":") for scheduler in self.scheduler]
        steps = self.num_inference_steps
        return [(name, n) for name, _, own in pairs for n in ([int(own)] if own else steps)]


@dataclass(kw_only=True)
class ResultsConfig:
    """Make one page of all evaluations and analyses below some folders.

    Args:
        folders: Where to look for `evaluation.json` and `analysis.json`; by default `runs`.
        output: The Markdown file to write.
    """

    folders: list[str] = field(default_factory=lambda: ["runs"])
    output: str = "RESULTS.md"


@dataclass(kw_only=True)
class CardConfig:
    """Write the page that a model has on the Hub, from its run.

    Args:
        run: A finished run.
        gallery: Folder of such pages: write this one into a folder of its own there, and renew the wall of pictures.
            Without it, the page goes into the run.
        repo_id: The Hub id that the page shows the use of; by default the run's `hub_model_id`, or else user/NAME.
        license: Licence of the weights, as the Hub spells it.
    """

    run: str
    gallery: str | None = None
    repo_id: str | None = None
    license: str = "apache-2.0"


@dataclass(kw_only=True)
class PushConfig:
    """Publish a finished run on the Hub: its model, its page, its evaluation.

    Args:
        run: A finished run.
        repo_id: `user/name`; it is made if it is not there.
        private: Make it private, if it is made.
        create_pr: Propose the change as a pull request.
        revision: Branch to push to, made if it is not there.
        license: Licence of the weights, as the Hub spells it.
        dry_run: List what would be uploaded, without asking the Hub whether it may be, and send nothing.
    """

    run: str
    repo_id: str
    private: bool = False
    create_pr: bool = False
    revision: str | None = None
    license: str = "apache-2.0"
    dry_run: bool = False

    def __post_init__(self):
        """Refuse what the Hub cannot do."""
        if self.create_pr and self.revision:
            raise UserError("a pull request is always for the main branch: give --create_pr or --revision, not both")


@dataclass(kw_only=True)
class PublishAllConfig:
    """Publish every finished run that lies in a folder, each under its own name, and gather them in a collection.

    Args:
        folder: The folder with the runs.
        namespace: User or organisation on the Hub.
        private: Make repos private, if they are made.
        license: Licence of the weights, as the Hub spells it.
        collection: Title of the collection.
        dry_run: List what would be uploaded, and send nothing.
    """

    folder: str = "runs"
    namespace: str
    private: bool = False
    license: str = "apache-2.0"
    collection: str = "hfgen"
    dry_run: bool = False
