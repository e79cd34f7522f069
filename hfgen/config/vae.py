"""What `hfgen train vae` takes."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from hfgen.config.training import MAX_DEPTH, MAX_LATENTS, MAX_WIDTH, TrainingConfig
from hfgen.utils.errors import UserError

MAX_COMPONENTS = 1_000
MAX_LATENT_DIM = 4_096  # each component of the mixture has a covariance of that times that
PRIORS = ("normal", "mixture")  # from which latents are drawn


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
        activate_decoder_input: Apply the activation between the decoder's last linear layer and its first transposed
            convolution.
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
    warmup_fields: ClassVar[tuple[str, ...]] = ("lr_warmup_steps", "kl_warmup_steps")

    max_grad_norm: float = 1000.0  # sums over pixels have norms of a hundred
    checkpointing_steps: int = 2000
    latent_dim: int = 20
    block_out_channels: list[int] = field(default_factory=list)
    hidden_sizes: list[int] = field(default_factory=lambda: [400])
    decoder_block_out_channels: list[int] | None = None
    decoder_hidden_sizes: list[int] | None = None
    activate_decoder_input: bool = True
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
            "block_out_channels", "hidden_sizes", "decoder_block_out_channels", "decoder_hidden_sizes",
            "norm_num_groups",
        ], at_most=MAX_WIDTH)  # fmt: skip
        self._require("positive", ["latent_dim"], at_most=MAX_LATENT_DIM)
        self._require("positive", ["num_importance_samples"], at_most=MAX_LATENTS)
        self._require("positive", ["num_mixture_components"], at_most=MAX_COMPONENTS)
        self._require("zero or more", ["layers_per_block"], at_most=MAX_DEPTH)
        self._require("zero or more", ["beta", "free_bits"])
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
