"""Configuration of `hfgen train gan`."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from hfgen.config.training import MAX_BATCH_SIZE, MAX_DEPTH, MAX_PENALTY_INTERVAL, MAX_WIDTH, TrainingConfig
from hfgen.utils.errors import UserError


@dataclass(kw_only=True)
class GANConfig(TrainingConfig):
    """Generative adversarial network (Goodfellow et al. 2014).

    Args:
        > Network
        architecture: `fully_connected`, `convolutional` (linear layers, then stride-2 transposed convolutions, DCGAN,
            Radford et al. 2016) or `residual` (residual blocks without normalisation, similar to R3GAN, Huang et al.
            2024).
        latent_dim: Dimension of the latent space.
        hidden_sizes: Hidden layer sizes of a fully connected generator, or of the linear layers before the
            convolutions of a convolutional one.
        discriminator_hidden_sizes: Hidden layer sizes of its discriminator, after its convolutions if it has any; by
            default the generator's, reversed.
        block_out_channels: Channels of a convolutional or residual generator at each resolution, from coarse to fine.
        discriminator_block_out_channels: Channels of its discriminator, from fine to coarse; by default the
            generator's, reversed, and for a convolutional one after half of the first of these.
        pixel_shuffle: Let a convolutional generator compute its pixels from features of half the resolution, in place
            of its last transposed convolution: a fraction of the cost.
        layers_per_block: Residual blocks per resolution.
        batch_norm: Batch normalisation in a convolutional generator (Ioffe and Szegedy 2015).
        dropout: Dropout probability in the discriminator.
        spectral_norm: Spectral normalisation of the discriminator's weights (Miyato et al. 2018).
        class_conditional: Condition generator and discriminator on class labels (projection discriminator, Miyato and
            Koyama 2018).

        > Objective
        adversarial_loss: `minimax` (saturating), `non_saturating` (both Goodfellow et al. 2014), `least_squares` (Mao
            et al. 2017), `hinge` (Lim and Ye 2017), `wasserstein` (Arjovsky et al. 2017) or `relativistic`
            (Jolicoeur-Martineau 2019).
        r1_gamma: Weight γ of the R1 penalty, γ/2 ‖∇D‖² on real images (Mescheder et al. 2018); by default 0.1 with the
            loss `relativistic` (R3GAN, Huang et al. 2024), else 0.
        r2_gamma: Weight γ of the R2 penalty, the same on generated images; defaults likewise.
        penalty_interval: Optimizer steps between these two penalties, whose weights are multiplied by it (lazy
            regularisation, Karras et al. 2020), since they need second derivatives, which take long.
        gradient_penalty_weight: Weight of the gradient penalty (‖∇D‖ − 1)² between real and generated images (WGAN-GP,
            Gulrajani et al. 2017).
        discriminator_steps: Discriminator updates per generator update, each on its own batch.
        discriminator_learning_rate: Peak learning rate of the discriminator; by default that of the generator.
        augmentation: Differentiable augmentations of real and generated images before the discriminator (DiffAugment,
            Zhao et al. 2020): `color`, `shift` by up to an eighth of the image, `erase` a square of half its side.

        > Sample grids
        truncation: Truncation trick for the sample grids (Brock et al. 2019): latents are sampled from a normal
            truncated to [−t, t]; by default not truncated.
        judge: Classifier that monitors the classes of generated images during training: the name of a shipped one or a
            run of `hfgen train classifier`; by default the first shipped for the data set, if any.

        > Saving
        save_discriminator: Include the discriminator in the saved pipeline. Checkpoints always have it.

    Examples:
        hfgen train gan --config gan_mnist_cpu10min
        hfgen train gan --train_data_dir my_pictures --resolution 32 --augmentation shift erase --output_dir runs/mine
    """

    family: ClassVar[str] = "gan"

    train_batch_size: int = 64
    learning_rate: float = 2e-3
    lr_scheduler: Literal["constant", "linear", "cosine"] = "cosine"
    lr_warmup_steps: int = 0
    adam_beta1: float = 0.0
    adam_beta2: float = 0.99
    max_grad_norm: float = 1000.0
    checkpointing_steps: int = 1000
    save_images_epochs: int | None = 1
    ema_max_decay: float = 0.999
    architecture: Literal["fully_connected", "convolutional", "residual"] = "convolutional"
    latent_dim: int = 32
    hidden_sizes: list[int] = field(default_factory=lambda: [256])
    discriminator_hidden_sizes: list[int] | None = None
    block_out_channels: list[int] = field(default_factory=lambda: [64, 32])
    discriminator_block_out_channels: list[int] | None = None
    pixel_shuffle: bool = True
    layers_per_block: int = 1
    batch_norm: bool = False
    dropout: float = 0.0
    spectral_norm: bool = False
    class_conditional: bool = False
    adversarial_loss: Literal["minimax", "non_saturating", "least_squares", "hinge", "wasserstein", "relativistic"] = (
        "relativistic"
    )
    r1_gamma: float | None = None
    r2_gamma: float | None = None
    penalty_interval: int = 8
    gradient_penalty_weight: float = 0.0
    discriminator_steps: int = 1
    discriminator_learning_rate: float | None = None
    augmentation: list[Literal["color", "shift", "erase"]] = field(default_factory=list)
    save_discriminator: bool = False
    judge: str | None = None
    truncation: float | None = None

    def __post_init__(self):
        """Validate the fields (see `TrainingConfig`)."""
        super().__post_init__()
        if self.discriminator_hidden_sizes is None:
            self.discriminator_hidden_sizes = self.hidden_sizes[::-1]
        if self.discriminator_block_out_channels is None:
            mirrored = self.block_out_channels[::-1]
            if self.architecture == "convolutional":
                mirrored = [max(1, channels // 2) for channels in mirrored[:1]] + mirrored
            self.discriminator_block_out_channels = mirrored
        for name in ("r1_gamma", "r2_gamma"):
            if getattr(self, name) is None:
                setattr(self, name, 0.1 if self.adversarial_loss == "relativistic" else 0.0)
        self._require("positive", [
            "latent_dim", "hidden_sizes", "discriminator_hidden_sizes", "block_out_channels",
            "discriminator_block_out_channels",
        ], at_most=MAX_WIDTH)  # fmt: skip
        self._require("positive", ["layers_per_block"], at_most=MAX_DEPTH)
        self._require("positive", ["penalty_interval"], at_most=MAX_PENALTY_INTERVAL)
        self._require("positive", ["discriminator_steps"], at_most=MAX_BATCH_SIZE // self.train_batch_size)
        self._require("positive", ["discriminator_learning_rate", "truncation"])
        self._require("zero or more", ["r1_gamma", "r2_gamma", "gradient_penalty_weight"])
        self._require("from 0 to below 1", ["dropout"])
        for name in ("block_out_channels", "discriminator_block_out_channels"):
            if getattr(self, name) == []:
                raise UserError(f"{name} must have at least one entry, not none")
        if self.batch_norm and self.architecture != "convolutional":
            raise UserError(f"batch_norm needs the architecture convolutional, not {self.architecture}")
        if self.batch_norm and self.use_ema:
            raise UserError("batch_norm's running statistics are not part of the EMA; add --no_use_ema")
        penalties = ("r1_gamma", "r2_gamma", "gradient_penalty_weight")
        penalised = [name for name in penalties if getattr(self, name)]
        if self.adversarial_loss == "wasserstein" and not self.gradient_penalty_weight and not self.spectral_norm:
            raise UserError(
                "the loss wasserstein needs a Lipschitz constraint: gradient_penalty_weight above 0, or spectral_norm"
            )
        if self.optimizer == "muon" and self.spectral_norm:
            raise UserError("optimizer muon orthogonalises the updates, which conflicts with spectral_norm; use adamw")
        if self.torch_compile and penalised:
            raise UserError(
                f"{penalised[0]} needs second-order gradients, which torch_compile does not support; leave one out"
            )
        if self.mixed_precision == "fp16" and penalised:
            raise UserError(f"{penalised[0]} needs gradients that overflow in mixed_precision fp16; use bf16")
        if self.discriminator_steps > 1 and self.gradient_accumulation_steps > 1:
            raise UserError(
                "discriminator_steps above 1 need gradient_accumulation_steps 1, not "
                f"{self.gradient_accumulation_steps}"
            )

    @property
    def images_per_batch(self) -> int:
        """Images per process and step: a batch for each discriminator update."""
        return self.train_batch_size * self.discriminator_steps

    def learning_rate_of(self, module: str) -> float:
        """Return the peak learning rate of the generator or of the discriminator."""
        own = self.discriminator_learning_rate if module == "discriminator" else None
        return own or self.learning_rate
