"""Flat training configurations, one dataclass a family, with the flags of diffusers' training scripts.

`hfgen.cli` turns each field into a flag and takes its help text from the docstrings here. The same names are the
keys of a recipe (`hfgen/recipes/*.yaml`) and of the `config.yaml` that every run keeps.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml

from hfgen.errors import UserError

# What may differ when a run is resumed: where to, what is shown and kept, and how long, which stretches the rest of
# the learning-rate schedule. Changing anything else half-way would make a model that no configuration describes.
CHANGEABLE_ON_RESUME = {
    "cache_dir",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "hub_license",
    "hub_model_id",
    "hub_private_repo",
    "hub_strategy",
    "logging_steps",
    "max_train_seconds",
    "max_train_steps",
    "num_samples",
    "num_train_epochs",
    "output_dir",
    "push_to_hub",
    "report_to",
    "resume_from_checkpoint",
    "sample_steps",
    "save_images_epochs",
    "sweep",
}

GUIDANCE = ("guidance_scale", "guidance_interval")
PRIORS = ("normal", "mixture")  # from which the latents of a VAE are drawn
REGNET_GROUP_WIDTH = 16  # channels that one grouped convolution of a regnet mixes


@dataclass(kw_only=True)
class TrainingConfig:
    """What every family shares: data, run length, optimizer, checkpoints.

    Args:
        dataset_name: Data set: a Hub id, `mnist`, `fashion_mnist`, `cifar10`, the built-in `digits`, or a local
            folder of parquet or arrow files.
        train_data_dir: Folder of images (one sub-folder a class, or none) to train on instead of a data set.
        train_split: Split to train on; slices such as `train[:90%]` work.
        image_column: Column with the images; found by its type if not named.
        label_column: Column with the class labels; found by its type if not named.
        resolution: Height and width in pixels: the shorter side is resized to it, then the centre is cropped.
            Not given, the images keep their size, which must be the same for all.
        channels: 1 for grey, 3 for RGB; not given, as the first image.
        max_train_samples: Use the first so many images only.
        random_flip: Mirror each training image left to right with probability one half.
        on_bad_image: What a file that cannot be read as an image does: end with an `error` that names it, or
            `skip` it and report the count.
        cache_dir: Folder for the decoded images; by default `hfgen` in the Hugging Face home.
        output_dir: Folder of the run: pipeline, configuration, metrics, samples, checkpoints.
        seed: Every random choice follows from it.
        train_batch_size: Images per process and forward pass.
        gradient_accumulation_steps: Forward passes per optimizer step.
        num_train_epochs: Passes over the data; the default length of a run.
        max_train_steps: Optimizer steps, instead of `num_train_epochs`.
        max_train_seconds: Wall-clock budget in seconds, to which the learning-rate schedule is fitted. With
            `max_train_steps` too, whichever is reached first ends the run. Such a run can be resumed, but where
            it ends depends on the machine's speed.
        optimizer: `adamw`, or `muon`, which orthogonalises the updates of convolutions and linear layers and leaves
            the rest to AdamW (Jordan et al. 2024).
        learning_rate: Peak learning rate.
        lr_scheduler: Decay over the whole run, from the peak to zero unless constant.
        lr_warmup_steps: Optimizer steps of linear warm-up, which multiplies the decay.
        adam_beta1: Decay of AdamW's first moment.
        adam_beta2: Decay of AdamW's second moment.
        adam_weight_decay: AdamW's decoupled weight decay; with 0 it is Adam.
        adam_epsilon: AdamW's epsilon.
        max_grad_norm: Gradients are clipped to this norm, per module.
        mixed_precision: Precision of the forward passes. Not given, bf16 where the hardware computes in it, else
            no.
        torch_compile: Compile the networks (inductor). Pays on a GPU, seldom on a CPU.
        use_ema: Average the weights exponentially; the average is what is sampled and published.
        ema_max_decay: Upper bound of the average's decay, which starts at (1 + step) / (10 + step).
        checkpointing_steps: Optimizer steps between checkpoints.
        checkpoints_total_limit: Keep only the newest so many checkpoints; not given, all.
        resume_from_checkpoint: `latest`, or the path of a checkpoint of this run.
        sample_steps: Optimizer steps after which a sample grid is drawn, besides the one at the end.
        save_images_epochs: Epochs between two further sample grids, of the same latents, noise or given images, of
            which a film is made in the end.
        num_samples: Images in a sample grid.
        logging_steps: Optimizer steps between two updates of metrics file, progress bar and trackers.
        sweep: Train one run for each value of a field, such as `latent_dim=2,4,16`, in folders below `output_dir`, and
            write a page that puts them side by side. The words of a list are parted by spaces
            (`"hidden_sizes=400,512 256"`); of several fields, every combination is trained.
        report_to: Trackers to log to, for instance tensorboard, wandb, trackio.
        push_to_hub: Publish the finished model on the Hub, as `hfgen push` does.
        hub_model_id: The Hub id to publish it under, `user/name`.
        hub_private_repo: Make that repo private, if it is not there yet.
        hub_license: Licence of the weights, as the Hub spells it.
        hub_strategy: Publish the model at the `end` only, or also in the background at `every_save` of a checkpoint.
    """

    family: ClassVar[str]
    next_command: ClassVar[str]  # what a finished run is for
    dataset_fields: ClassVar[tuple[str, ...]] = ("dataset_name",)  # that name what images are read from
    folder_fields: ClassVar[tuple[str, ...]] = ("train_data_dir",)  # likewise folders of images

    dataset_name: str | None = None
    train_data_dir: str | None = None
    train_split: str = "train"
    image_column: str | None = None
    label_column: str | None = None
    resolution: int | None = None
    channels: Literal[1, 3] | None = None
    max_train_samples: int | None = None
    random_flip: bool = False
    on_bad_image: Literal["error", "skip"] = "error"
    cache_dir: str | None = None

    output_dir: str | None = None
    seed: int = 0
    train_batch_size: int = 128
    gradient_accumulation_steps: int = 1
    num_train_epochs: int = 10
    max_train_steps: int | None = None
    max_train_seconds: float | None = None

    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    lr_scheduler: Literal["constant", "linear", "cosine"] = "linear"
    lr_warmup_steps: int = 50
    adam_beta1: float = 0.9
    adam_beta2: float = 0.99
    adam_weight_decay: float = 0.0
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    torch_compile: bool = False
    use_ema: bool = True
    ema_max_decay: float = 0.9999

    checkpointing_steps: int = 500
    checkpoints_total_limit: int | None = None
    resume_from_checkpoint: str | None = None
    sample_steps: list[int] = field(default_factory=list)
    save_images_epochs: int | None = None
    num_samples: int = 64
    logging_steps: int = 10
    sweep: list[str] = field(default_factory=list)
    report_to: list[str] = field(default_factory=list)

    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_private_repo: bool = False
    hub_license: str = "apache-2.0"
    hub_strategy: Literal["end", "every_save"] = "end"

    def __post_init__(self):
        """Refuse values that no run can work with.

        Raises:
            UserError: naming the field, its value and what would work.
        """
        if (self.dataset_name is None) == (self.train_data_dir is None):
            raise UserError(
                "name the training data by either dataset_name (for instance --dataset_name mnist) or train_data_dir "
                f"(a folder of images), not {'both' if self.dataset_name else 'neither'}"
            )
        if not self.output_dir:
            raise UserError("output_dir is missing: name the folder for the run, for instance --output_dir runs/first")
        if self.push_to_hub and not self.hub_model_id:
            raise UserError("push_to_hub needs the id to publish under, for instance --hub_model_id user/name")
        self._require("positive", [
            "resolution", "max_train_samples", "train_batch_size", "gradient_accumulation_steps", "num_train_epochs",
            "max_train_steps", "max_train_seconds", "learning_rate", "adam_epsilon", "max_grad_norm",
            "checkpointing_steps", "checkpoints_total_limit", "num_samples", "logging_steps", "sample_steps",
            "save_images_epochs",
        ])  # fmt: skip
        self._require("zero or more", ["seed", "lr_warmup_steps", "adam_weight_decay"])
        self._require("from 0 to below 1", ["adam_beta1", "adam_beta2", "ema_max_decay"])

    def _require(self, kind: str, names: list[str]):
        holds = {
            "positive": lambda v: v > 0,
            "zero or more": lambda v: v >= 0,
            "from 0 to below 1": lambda v: 0 <= v < 1,
        }
        for name in names:
            value = getattr(self, name)
            for number in value if isinstance(value, list) else [value]:
                if number is not None and not holds[kind](number):
                    raise UserError(f"{name} must be {kind}, not {number}")

    @property
    def images_per_batch(self) -> int:
        """How many images a process takes at a time."""
        return self.train_batch_size

    def learning_rate_of(self, module: str) -> float:
        """Return the peak learning rate of a module."""
        return self.learning_rate

    def reading_options(self) -> dict[str, Any]:
        """Return how images are read, as `hfgen.data.load_images` takes it, whatever the split."""
        names = ("image_column", "label_column", "resolution", "channels", "on_bad_image", "cache_dir")
        return {name: getattr(self, name) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain YAML types."""
        return dataclasses.asdict(self)


@dataclass(kw_only=True)
class DDPMConfig(TrainingConfig):
    """Denoising diffusion: the network (diffusers' `UNet2DModel`), the noise schedule, what is predicted.

    Args:
        block_out_channels: Channels of the U-Net at each resolution, the finest first; each further entry halves
            height and width.
        layers_per_block: Residual blocks at each resolution.
        attention_levels: Levels of the U-Net with self-attention, 0 the finest.
        add_attention: Self-attention in the middle block. On a CPU it costs far more time than its multiplications
            suggest (`benchmarks/results/choices.md`).
        attention_head_dim: Channels of an attention head. Not given, there is one head; more heads take longer.
        norm_num_groups: Groups of the group norms; each entry of block_out_channels must be a multiple.
        dropout: Dropout probability in the residual blocks.
        class_conditional: Tell the network the class of each image, so that it can be asked for one.
        class_dropout_prob: Share of the labels that are withheld from it in training, so that it also learns images
            of no particular class, which classifier-free guidance needs (Ho and Salimans 2022).
        num_train_timesteps: Noise levels of the diffusion process, T.
        beta_schedule: Noise schedule: `linear` (Ho et al. 2020), `squaredcos_cap_v2` (the cosine schedule of
            Nichol and Dhariwal 2021), or diffusers' others. A flow has none.
        rescale_betas_zero_snr: Let the noise schedule end in pure noise (Lin et al. 2024).
        prediction_type: What the network predicts: the noise, the image (`sample`), v = √ᾱ ε − √(1−ᾱ) x₀
            (Salimans and Ho 2022), or `flow_prediction`, ε − x₀, on straight lines between image and noise (rectified
            flow, Liu et al. 2023).
        timestep_sampling: How often each noise level is trained on: all alike, or `logit_normal`, the middle ones more
            (Esser et al. 2024).
        loss_weighting: How much an error counts by noise level: `uniform`, `min_snr` (Hang et al. 2023) or `p2`
            (Choi et al. 2022).
        snr_gamma: The bound γ of `min_snr`.
        num_inference_steps: Denoising steps of the sample grids drawn during training; `num_train_timesteps`, with
            the scheduler ddpm, is the DDPM paper's algorithm 2.
        scheduler: diffusers scheduler of those grids (see `hfgen sample --help`).
        guidance_scale: Classifier-free guidance of those grids, if the model is class-conditional; 1 is none.
        guidance_interval: Part of the denoising in which it is applied, as two shares of the noise levels, 0 the image
            and 1 pure noise (Kynkäänniemi et al. 2024).
    """

    family: ClassVar[str] = "ddpm"
    next_command: ClassVar[str] = "hfgen sample"

    block_out_channels: list[int] = field(default_factory=lambda: [32, 64, 96])
    layers_per_block: int = 2
    attention_levels: list[int] = field(default_factory=list)
    add_attention: bool = True
    attention_head_dim: int | None = None
    norm_num_groups: int = 8
    dropout: float = 0.0
    class_conditional: bool = False
    class_dropout_prob: float = 0.1
    num_train_timesteps: int = 1000
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = "squaredcos_cap_v2"
    rescale_betas_zero_snr: bool = False
    prediction_type: Literal["epsilon", "sample", "v_prediction", "flow_prediction"] = "v_prediction"
    timestep_sampling: Literal["uniform", "logit_normal"] = "uniform"
    loss_weighting: Literal["uniform", "min_snr", "p2"] = "uniform"
    snr_gamma: float = 5.0
    optimizer: Literal["adamw", "muon"] = "muon"
    learning_rate: float = 4e-3
    num_inference_steps: int = 20
    scheduler: str = "unipc"
    guidance_scale: float = 2.0
    guidance_interval: list[float] = field(default_factory=lambda: [0.0, 1.0])

    def __post_init__(self):
        """Refuse values that no network or noise schedule can be built from (see `TrainingConfig`)."""
        super().__post_init__()
        self._require("positive", [
            "block_out_channels", "layers_per_block", "attention_head_dim", "norm_num_groups", "num_train_timesteps",
            "num_inference_steps", "snr_gamma",
        ])  # fmt: skip
        self._require("from 0 to below 1", ["dropout", "class_dropout_prob"])
        if self.class_conditional and self.class_dropout_prob == 0 and self.guidance_scale != 1:
            raise UserError(
                "guidance leads away from images of no particular class, which are learnt with class_dropout_prob "
                f"above 0 only; without it guidance_scale must be 1, not {self.guidance_scale:g}"
            )
        if self.rescale_betas_zero_snr and self.prediction_type not in ("sample", "v_prediction"):
            raise UserError(
                f"rescale_betas_zero_snr needs prediction_type sample or v_prediction, not {self.prediction_type}"
            )
        if self.num_inference_steps > self.num_train_timesteps:
            raise UserError(
                f"num_inference_steps must be at most num_train_timesteps, which is {self.num_train_timesteps}, "
                f"not {self.num_inference_steps}"
            )
        levels = len(self.block_out_channels)
        if not levels:
            raise UserError("block_out_channels must have an entry for each resolution, not none")
        if any(not 0 <= level < levels for level in self.attention_levels):
            raise UserError(
                f"attention_levels must be from 0 to {levels - 1} for block_out_channels {self.block_out_channels}, "
                f"not {self.attention_levels}"
            )
        attended = [self.block_out_channels[level] for level in self.attention_levels]
        attended += [self.block_out_channels[-1]] if self.add_attention else []
        if self.attention_head_dim and (misfits := [c for c in attended if c % self.attention_head_dim]):
            raise UserError(
                "channels with attention must be multiples of attention_head_dim, "
                f"which is {self.attention_head_dim}; {misfits} are not"
            )
        if misfits := [c for c in self.block_out_channels if c % self.norm_num_groups]:
            raise UserError(
                f"block_out_channels must be multiples of norm_num_groups, which is {self.norm_num_groups}; "
                f"{misfits} are not"
            )


@dataclass(kw_only=True)
class VAEConfig(TrainingConfig):
    """A variational autoencoder (Kingma and Welling 2014): encoder, decoder, what pixels are taken for, the objective.

    Args:
        latent_dim: Numbers in a latent.
        block_out_channels: Channels of the encoder's convolutions of stride 2; none for a fully connected network.
        hidden_sizes: Features of the encoder's linear layers, but for the last, which gives mean and log-variance.
        decoder_block_out_channels: Channels after each of the decoder's transposed convolutions but the last, which
            makes the image; by default the encoder's, reversed.
        decoder_hidden_sizes: Features of the decoder's linear layers; by default the encoder's, reversed.
        layers_per_block: Residual blocks after each convolution of the encoder and before each of the decoder.
        norm_num_groups: Groups of the group norms in these blocks.
        act_fn: Activation, `relu` or `silu` for instance.
        class_conditional: Tell encoder and decoder the class of each image.
        pixel_distribution: What a pixel from 0 to 1 is taken for: `bernoulli` (on grey pixels this is the binary
            cross-entropy, no likelihood), `gaussian` with one standard deviation, which is learnt, `gaussian_analytic`
            with the best standard deviation for each batch (σ-VAE, Rybkin et al. 2021), or `logistic`, discretised to
            the 256 levels (Salimans et al. 2017).
        binarization: Train on black-and-white pixels, 1 where a grey one is at least a half (`threshold`), or with the
            probability of its brightness, drawn once (`static`) or at every step (`dynamic`).
        reduction: `sum` over pixels and latent dimensions, which is the evidence lower bound, or `mean` over each of
            them, which weighs the divergence as often more as there are more pixels than latent dimensions.
        beta: Weight of the divergence (β-VAE, Higgins et al. 2017).
        kl_warmup_steps: Optimizer steps in which that weight grows to `beta`.
        free_bits: Nats of divergence of each latent dimension that cost nothing (Kingma et al. 2016).
        num_importance_samples: Latents drawn for each image; with more than one the objective is the
            importance-weighted bound (Burda et al. 2016).
        num_mixture_components: Normal distributions in the mixture that is fitted to the latents of training images.
        prior: What the latents of sample grids are drawn from: `normal`, the prior of the bound, or that `mixture`.
    """

    family: ClassVar[str] = "vae"
    next_command: ClassVar[str] = "hfgen sample"

    max_grad_norm: float = 1000.0  # sums over pixels have norms of a hundred
    checkpointing_steps: int = 2000
    latent_dim: int = 20
    block_out_channels: list[int] = field(default_factory=list)
    hidden_sizes: list[int] = field(default_factory=lambda: [400])
    decoder_block_out_channels: list[int] | None = None
    decoder_hidden_sizes: list[int] | None = None
    layers_per_block: int = 0
    norm_num_groups: int = 8
    act_fn: str = "relu"
    class_conditional: bool = False
    pixel_distribution: Literal["bernoulli", "gaussian", "gaussian_analytic", "logistic"] = "bernoulli"
    binarization: Literal["none", "threshold", "static", "dynamic"] = "none"
    reduction: Literal["sum", "mean"] = "sum"
    beta: float = 1.0
    kl_warmup_steps: int = 0
    free_bits: float = 0.0
    num_importance_samples: int = 1
    num_mixture_components: int = 10
    prior: Literal["normal", "mixture"] = "normal"

    def __post_init__(self):
        """Refuse values that no network or objective can be built from (see `TrainingConfig`)."""
        super().__post_init__()
        self._require("positive", [
            "latent_dim", "block_out_channels", "hidden_sizes", "decoder_block_out_channels", "decoder_hidden_sizes",
            "norm_num_groups", "num_importance_samples", "num_mixture_components",
        ])  # fmt: skip
        self._require("zero or more", ["layers_per_block", "beta", "kl_warmup_steps", "free_bits"])
        if self.binarization == "static" and self.random_flip:
            raise UserError("pixels that are drawn once cannot be mirrored; leave out random_flip, or draw them anew")
        if self.binarization != "none" and self.pixel_distribution != "bernoulli":
            raise UserError(f"black-and-white pixels are bernoulli, not {self.pixel_distribution}; see binarization")
        if self.num_importance_samples > 1 and (self.reduction, self.beta, self.free_bits) != ("sum", 1, 0):
            raise UserError(
                "num_importance_samples above 1 needs reduction sum, beta 1 and free_bits 0: the importance-weighted "
                "bound has no divergence that could be weighed by itself"
            )
        if self.num_importance_samples > 1 and self.kl_warmup_steps:
            raise UserError("num_importance_samples above 1 leaves nothing for kl_warmup_steps to weigh")
        if self.num_importance_samples > 1 and self.pixel_distribution == "gaussian_analytic":
            raise UserError(
                "num_importance_samples above 1 needs a likelihood; gaussian_analytic fits its own to the draws"
            )


@dataclass(kw_only=True)
class GANConfig(TrainingConfig):
    """A generative adversarial network (Goodfellow et al. 2014): generator, discriminator, what each is to do.

    Args:
        architecture: `fully_connected`, `convolutional` (transposed convolutions of stride 2, Radford et al. 2016) or
            `residual` (residual blocks without normalisation, like those of R3GAN, Huang et al. 2024).
        latent_dim: Numbers in a latent.
        hidden_sizes: Features of a fully connected generator's inner layers.
        discriminator_hidden_sizes: Of its discriminator; by default the generator's, reversed.
        block_out_channels: Channels of a convolutional generator's transposed convolutions, or of a residual one at
            each resolution, the coarsest first.
        discriminator_block_out_channels: Of its discriminator, the finest first; by default the generator's, reversed.
        layers_per_block: Residual blocks at each resolution.
        batch_norm: Normalise the layers of a convolutional generator over the batch (Ioffe and Szegedy 2015).
        dropout: Share of the discriminator's features that are left out in training.
        spectral_norm: Divide each weight of the discriminator by its largest singular value (Miyato et al. 2018).
        class_conditional: Tell the generator which class to show, and the discriminator which class is meant
            (projection, Miyato and Koyama 2018).
        adversarial_loss: `minimax` (saturating), `non_saturating` (both Goodfellow et al. 2014), `least_squares` (Mao
            et al. 2017), `hinge` (Lim and Ye 2017), `wasserstein` (Arjovsky et al. 2017) or `relativistic`
            (Jolicoeur-Martineau 2019).
        r1_gamma: Weight γ of the penalty γ/2 ‖∇D‖² at real images (Mescheder et al. 2018).
        r2_gamma: Weight of the same penalty at generated images.
        gradient_penalty_weight: Weight of the penalty (‖∇D‖ − 1)² between real and generated images (Gulrajani et al.
            2017).
        discriminator_steps: Optimizer steps of the discriminator, on so many batches, for each of the generator.
        discriminator_learning_rate: Peak learning rate of the discriminator; by default that of the generator.
        augmentation: Change real and generated images alike before the discriminator sees them (DiffAugment, Zhao et
            al. 2020): `color`, `shift` by up to an eighth, `erase` a square of half the size.
        save_discriminator: Also put the discriminator into the model that is published. Checkpoints always have it.
        judge: Classifier that tells during training which classes are drawn: the name of a shipped one or a run of
            `hfgen train classifier`; by default the first that hfgen ships for the data set, if any.
        truncation: How far from 0 the latents of sample grids are drawn (Brock et al. 2019); not given, however far.
    """

    family: ClassVar[str] = "gan"
    next_command: ClassVar[str] = "hfgen sample"

    learning_rate: float = 2e-4
    lr_scheduler: Literal["constant", "linear", "cosine"] = "constant"
    lr_warmup_steps: int = 0
    adam_beta1: float = 0.5
    adam_beta2: float = 0.999
    max_grad_norm: float = 1000.0
    checkpointing_steps: int = 1000
    save_images_epochs: int | None = 1
    ema_max_decay: float = 0.999
    architecture: Literal["fully_connected", "convolutional", "residual"] = "residual"
    latent_dim: int = 64
    hidden_sizes: list[int] = field(default_factory=lambda: [256, 512])
    discriminator_hidden_sizes: list[int] | None = None
    block_out_channels: list[int] = field(default_factory=lambda: [128, 64, 32])
    discriminator_block_out_channels: list[int] | None = None
    layers_per_block: int = 1
    batch_norm: bool = False
    dropout: float = 0.0
    spectral_norm: bool = False
    class_conditional: bool = False
    adversarial_loss: Literal["minimax", "non_saturating", "least_squares", "hinge", "wasserstein", "relativistic"] = (
        "relativistic"
    )
    r1_gamma: float = 0.1
    r2_gamma: float = 0.1
    gradient_penalty_weight: float = 0.0
    discriminator_steps: int = 1
    discriminator_learning_rate: float | None = None
    augmentation: list[Literal["color", "shift", "erase"]] = field(default_factory=list)
    save_discriminator: bool = False
    judge: str | None = None
    truncation: float | None = None

    def __post_init__(self):
        """Refuse values that no networks or objective can be built from (see `TrainingConfig`)."""
        super().__post_init__()
        self._require("positive", [
            "latent_dim", "hidden_sizes", "discriminator_hidden_sizes", "block_out_channels",
            "discriminator_block_out_channels", "layers_per_block", "discriminator_steps",
            "discriminator_learning_rate", "truncation",
        ])  # fmt: skip
        self._require("zero or more", ["r1_gamma", "r2_gamma", "gradient_penalty_weight"])
        self._require("from 0 to below 1", ["dropout"])
        for name in ("block_out_channels", "discriminator_block_out_channels"):
            if getattr(self, name) == []:
                raise UserError(f"{name} must have at least one entry, not none")
        if self.batch_norm and self.architecture != "convolutional":
            raise UserError(f"batch_norm is of the architecture convolutional, not {self.architecture}")
        if self.batch_norm and self.use_ema:
            raise UserError("batch_norm keeps means of past batches, which use_ema does not average; add --no_use_ema")
        penalties = ("r1_gamma", "r2_gamma", "gradient_penalty_weight")
        penalised = [name for name in penalties if getattr(self, name)]
        if self.adversarial_loss == "wasserstein" and not self.gradient_penalty_weight and not self.spectral_norm:
            raise UserError("the loss wasserstein bounds nothing without a gradient_penalty_weight, or spectral_norm")
        if self.optimizer == "muon" and self.spectral_norm:
            raise UserError("spectral_norm needs the optimizer adamw; muon decides on the singular values itself")
        if self.torch_compile and penalised:
            raise UserError(f"{penalised[0]} needs gradients of gradients, which torch_compile cannot; leave one out")
        if self.mixed_precision == "fp16" and penalised:
            raise UserError(f"{penalised[0]} needs gradients that fp16 cannot hold; use bf16")
        if self.discriminator_steps > 1 and self.gradient_accumulation_steps > 1:
            raise UserError(
                "discriminator_steps above 1 need gradient_accumulation_steps 1, so that each of them is one step"
            )

    @property
    def images_per_batch(self) -> int:
        """How many images a process takes at a time: a batch for each step of the discriminator."""
        return self.train_batch_size * self.discriminator_steps

    def learning_rate_of(self, module: str) -> float:
        """Return the peak learning rate of the generator or of the discriminator."""
        own = self.discriminator_learning_rate if module == "discriminator" else None
        return own or self.learning_rate


@dataclass(kw_only=True)
class TranslationConfig(TrainingConfig):
    """Image-to-image translation with pairs (Isola et al. 2017): what images are made of, the network, the objective.

    The images of the data set are what the network is to make. What it is given is made of them by `degradation`, or
    is a second column or folder of images.

    Args:
        degradation: What is done to images, in this order: `gaussian_noise=0.1` (standard deviation, for pixels from 0
            to 1), `salt_and_pepper=0.1` (share of the pixels), `blur=1` (standard deviation in pixels), `mask=14`
            (side of a grey square somewhere), `downscale=2` (then the network enlarges), `jpeg=20` (quality), `grey`
            (of colour, which the network then guesses), `invert`, `thicken=1`, `tint`. Two numbers, as in
            `gaussian_noise=0.1..0.5`, draw the amount for each image.
        input_column: Column of the data set with the images that the network is given.
        input_data_dir: Folder with them, with the same names as in train_data_dir.
        architecture: `unet` (plain convolutions, tanh) or `residual_unet` (residual blocks, Zhang et al. 2021).
        block_out_channels: Channels at each level, the finest first; each further one halves height and width.
        layers_per_block: Residual blocks at each level of a residual_unet, downwards and upwards.
        predict_residual: Let the network make what is to be added to the image that it is given.
        noise_level_input: Tell the network the standard deviation of the noise; gaussian_noise must be the last
            degradation.
        l1_weight: Weight of the mean absolute error, of pixels from −1 to 1.
        mse_weight: Weight of the mean squared error, which favours the mean of what an image may have been.
        psnr_weight: Weight of minus the PSNR in dB, the mean over images (Chen et al. 2021): the squared error of each
            counts in proportion to itself, so that images that are easy to restore matter as much as hard ones.
        ssim_weight: Weight of 1 − SSIM (Wang et al. 2004).
        adversarial_weight: Weight of the generator's adversarial loss; with 0 there is no discriminator.
        adversarial_loss: See `hfgen train gan --help`; of each patch.
        discriminator_block_out_channels: Channels of the discriminator's convolutions of stride 2.
        conditional_discriminator: Show the discriminator also what the image was made of.
    """

    family: ClassVar[str] = "translation"
    next_command: ClassVar[str] = "hfgen evaluate"
    folder_fields: ClassVar[tuple[str, ...]] = ("train_data_dir", "input_data_dir")

    checkpointing_steps: int = 1000
    save_images_epochs: int | None = 1
    degradation: list[str] = field(default_factory=list)
    input_column: str | None = None
    input_data_dir: str | None = None
    architecture: Literal["unet", "residual_unet"] = "residual_unet"
    block_out_channels: list[int] = field(default_factory=lambda: [32, 64, 128])
    layers_per_block: int = 2
    predict_residual: bool = False
    noise_level_input: bool = False
    l1_weight: float = 1.0
    mse_weight: float = 0.0
    psnr_weight: float = 0.0
    ssim_weight: float = 0.0
    adversarial_weight: float = 0.0
    adversarial_loss: Literal["minimax", "non_saturating", "least_squares", "hinge", "relativistic"] = "non_saturating"
    discriminator_block_out_channels: list[int] = field(default_factory=lambda: [32, 64])
    conditional_discriminator: bool = False

    def __post_init__(self):
        """Refuse values that no network or objective can be built from (see `TrainingConfig`)."""
        super().__post_init__()
        weights = ["l1_weight", "mse_weight", "psnr_weight", "ssim_weight", "adversarial_weight"]
        self._require("positive", ["block_out_channels", "layers_per_block", "discriminator_block_out_channels"])
        self._require("zero or more", weights)
        for name in ("block_out_channels", "discriminator_block_out_channels"):
            if not getattr(self, name):
                raise UserError(f"{name} must have at least one entry, not none")
        if not any(getattr(self, name) for name in weights):
            raise UserError(f"one of {', '.join(weights)} must be above 0, or there is nothing to learn")
        given = [name for name in ("degradation", "input_column", "input_data_dir") if getattr(self, name)]
        if len(given) != 1:
            raise UserError(
                "say what the network is given by one of degradation (for instance --degradation gaussian_noise=0.3), "
                f"input_column and input_data_dir, not by {' and '.join(given) or 'none'}"
            )
        if self.input_data_dir and not self.train_data_dir:
            raise UserError("input_data_dir belongs to train_data_dir, the folder with the images that are to be made")
        if not self.degradation and (self.random_flip or self.on_bad_image == "skip"):
            name = "random_flip" if self.random_flip else "on_bad_image skip"
            raise UserError(f"{name} would part the pairs of input_column or input_data_dir; leave it out")
        if self.noise_level_input and not (self.degradation and self.degradation[-1].startswith("gaussian_noise=")):
            raise UserError("noise_level_input needs a degradation of which the last is gaussian_noise=…")


@dataclass(kw_only=True)
class CycleGANConfig(TrainingConfig):
    """Image-to-image translation without pairs (Zhu et al. 2017): two sets of images, two networks, there and back.

    The images of the data set are of the first kind.

    Args:
        target_dataset_name: Data set with the images of the second kind; not given, it is that of the first.
        target_data_dir: Folder with them, instead of a data set.
        target_split: Split of it.
        target_image_column: Its column with the images; found by its type if not named.
        target_degradation: What is done to them, as in `hfgen train translation --help`; `invert` and `thicken=1` for
            instance make a second kind out of the first.
        architecture: See `hfgen train translation --help`; of both networks.
        block_out_channels: Likewise.
        layers_per_block: Likewise.
        adversarial_loss: See `hfgen train gan --help`; of each patch.
        adversarial_weight: Weight of the generators' adversarial losses.
        cycle_weight: Weight of the mean absolute error of what went there and back again.
        identity_weight: Weight of the mean absolute change of images that are already of the kind wanted; only of
            kinds with equally many channels.
        discriminator_block_out_channels: Channels of the discriminators' convolutions of stride 2.
        pool_size: Results of former steps among which half of those that a discriminator sees are drawn (Shrivastava
            et al. 2017); with 0 it sees the newest only.
    """

    family: ClassVar[str] = "cyclegan"
    next_command: ClassVar[str] = "hfgen evaluate"
    dataset_fields: ClassVar[tuple[str, ...]] = ("dataset_name", "target_dataset_name")
    folder_fields: ClassVar[tuple[str, ...]] = ("train_data_dir", "target_data_dir")

    train_batch_size: int = 32
    learning_rate: float = 2e-4
    lr_warmup_steps: int = 0
    adam_beta1: float = 0.5
    adam_beta2: float = 0.999
    max_grad_norm: float = 1000.0
    checkpointing_steps: int = 1000
    save_images_epochs: int | None = 1
    ema_max_decay: float = 0.999
    target_dataset_name: str | None = None
    target_data_dir: str | None = None
    target_split: str = "train"
    target_image_column: str | None = None
    target_degradation: list[str] = field(default_factory=list)
    architecture: Literal["unet", "residual_unet"] = "residual_unet"
    block_out_channels: list[int] = field(default_factory=lambda: [32, 64])
    layers_per_block: int = 2
    adversarial_loss: Literal["minimax", "non_saturating", "least_squares", "hinge", "relativistic"] = "least_squares"
    adversarial_weight: float = 1.0
    cycle_weight: float = 10.0
    identity_weight: float = 5.0
    discriminator_block_out_channels: list[int] = field(default_factory=lambda: [32, 64])
    pool_size: int = 50

    def __post_init__(self):
        """Refuse values that no networks or objective can be built from (see `TrainingConfig`)."""
        super().__post_init__()
        self._require("positive", [
            "block_out_channels", "layers_per_block", "discriminator_block_out_channels", "adversarial_weight",
        ])  # fmt: skip
        self._require("zero or more", ["cycle_weight", "identity_weight", "pool_size"])
        if 0 < self.pool_size < self.train_batch_size:
            raise UserError(
                f"pool_size must be 0 or at least train_batch_size, which is {self.train_batch_size}, "
                f"not {self.pool_size}"
            )
        for name in ("block_out_channels", "discriminator_block_out_channels"):
            if not getattr(self, name):
                raise UserError(f"{name} must have at least one entry, not none")
        if self.target_dataset_name and self.target_data_dir:
            raise UserError("name the second images by target_dataset_name or by target_data_dir, not by both")
        if not (self.target_dataset_name or self.target_data_dir or self.target_degradation):
            raise UserError(
                "say what the second kind of images is: target_dataset_name, target_data_dir, or target_degradation"
            )


@dataclass(kw_only=True)
class ClassifierConfig(TrainingConfig):
    """An image classifier, whose features and decisions judge generated images (`hfgen evaluate`).

    Args:
        test_dataset_name: Data set with the test images, where it is not the one that is trained on.
        test_split: Split on which the accuracy is measured.
        architecture: `resnet` (He et al. 2016, basic blocks) or `regnet` (Radosavovic et al. 2020, x blocks), as
            `transformers` has them.
        embedding_size: Channels of the first convolution.
        hidden_sizes: Channels of each stage; each but the first (of a resnet) halves height and width. The last one is
            the number of features.
        depths: Residual blocks of each stage.
        label_smoothing: Share of each label that is spread over all classes (Szegedy et al. 2016).
        random_shift: Move each training image by up to so many pixels.
        random_erase: Grey out a square of so many pixels in each training image (DeVries and Taylor 2017).
    """

    family: ClassVar[str] = "classifier"
    next_command: ClassVar[str] = "hfgen evaluate"

    test_dataset_name: str | None = None
    test_split: str = "test"
    architecture: Literal["resnet", "regnet"] = "resnet"
    embedding_size: int = 64
    hidden_sizes: list[int] = field(default_factory=lambda: [64, 128, 128])
    depths: list[int] = field(default_factory=lambda: [1, 1, 1])
    label_smoothing: float = 0.1
    random_shift: int = 2
    random_erase: int = 0
    adam_weight_decay: float = 0.05
    learning_rate: float = 3e-3
    lr_warmup_steps: int = 200
    use_ema: bool = False

    def __post_init__(self):
        """Refuse values that no network can be built from (see `TrainingConfig`)."""
        super().__post_init__()
        self._require("positive", ["embedding_size", "hidden_sizes", "depths"])
        self._require("zero or more", ["random_shift", "random_erase"])
        self._require("from 0 to below 1", ["label_smoothing"])
        if not self.hidden_sizes or len(self.hidden_sizes) != len(self.depths):
            raise UserError(
                "hidden_sizes and depths must have an entry for each stage, and so equally many, not "
                f"{self.hidden_sizes} and {self.depths}"
            )
        if self.architecture == "regnet" and (misfits := [c for c in self.hidden_sizes if c % REGNET_GROUP_WIDTH]):
            raise UserError(
                f"hidden_sizes of a regnet must be multiples of {REGNET_GROUP_WIDTH}, the width of its groups; "
                f"{misfits} are not"
            )


def own_sampler(pipeline: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Return how a run draws its own grids, as `hfgen.sampling.sample` takes it.

    Args:
        pipeline: The name of its pipeline's class.
        fields: Those of the run's configuration; where one is missing, its default holds.
    """
    config_class, names = {
        "ClassConditionalDiffusionPipeline": (DDPMConfig, ("scheduler", "num_inference_steps", *GUIDANCE)),
        "VAEPipeline": (VAEConfig, ("prior",)),
        "GANPipeline": (GANConfig, ("truncation",)),
    }.get(pipeline, (DDPMConfig, ("scheduler", "num_inference_steps")))
    known = _defaults(config_class) | fields
    return {name: known[name] for name in names}


def changed_fields(config: TrainingConfig, saved: Path) -> list[str]:
    """Say which fields differ from a saved `config.yaml` in a way that a resumed run must not.

    A field that is not in the file is newer than the run, which was trained as `TrainingConfig` has it, or else as the
    field's default does.
    """
    before, now = (
        _defaults(type(config)) | _defaults(TrainingConfig) | yaml.safe_load(saved.read_text()),
        config.to_dict(),
    )
    names = (before.keys() | now.keys()) - CHANGEABLE_ON_RESUME
    return [f"{n}: {before.get(n)} → {now.get(n)}" for n in sorted(names) if before.get(n) != now.get(n)]


def _defaults(config_class: type[TrainingConfig]) -> dict[str, Any]:
    return {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in dataclasses.fields(config_class)
    }
