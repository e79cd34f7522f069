"""Configuration of `hfgen train vae`."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from hfgen.config.training import MAX_DEPTH, MAX_LATENTS, MAX_WIDTH, TrainingConfig
from hfgen.utils.errors import UserError

MAX_COMPONENTS = 1_000
MAX_LATENT_DIM = 4_096  # each mixture component has a full covariance matrix
PRIORS = ("normal", "mixture")  # distributions from which latents are sampled


@dataclass(kw_only=True)
class VAEConfig(TrainingConfig):
    """Variational autoencoder (Kingma and Welling 2014).

    Args:
        > Network
        latent_dim: Dimension of the latent space.
        block_out_channels: Channels of the encoder's stride-2 convolutions; empty for a fully connected network.
        hidden_sizes: Hidden layer sizes of the encoder, before the layer that outputs mean and log-variance.
        decoder_block_out_channels: Output channels of the decoder's transposed convolutions, except the last, which
            outputs the image; by default the encoder's, reversed.
        decoder_hidden_sizes: Hidden layer sizes of the decoder; by default the encoder's, reversed.
        activate_decoder_input: Apply the activation between the decoder's last linear layer and its first transposed
            convolution.
        layers_per_block: Residual blocks after each convolution of the encoder and before each transposed convolution
            of the decoder.
        norm_num_groups: Groups of the group norms in these blocks.
        act_fn: Activation, for instance `relu` or `silu`.
        class_conditional: Condition encoder and decoder on class labels.

        > Objective
        pixel_distribution: Observation model p(x | z) of pixels in [0, 1]: `bernoulli` (on grey pixels this is the
            binary cross-entropy, not a likelihood), `gaussian` with one learnt standard deviation, `gaussian_analytic`
            with the optimal standard deviation of each batch (σ-VAE, Rybkin et al. 2021), or `logistic`, discretised
            to 256 levels (Salimans et al. 2017).
        binarization: Binarise pixels: by a `threshold` of one half, or sampled with their brightness as the
            probability, either once (`static`) or at every step (`dynamic`).
        reduction: `sum` over pixels and latent dimensions gives the ELBO; `mean` averages each term over its own
            dimensions, which scales the KL term up by (pixels / latent dimensions).
        beta: Weight of the KL term (β-VAE, Higgins et al. 2017).
        kl_warmup_steps: Optimizer steps over which that weight grows linearly to `beta`.
        free_bits: Minimum KL divergence of each latent dimension, in nats; the KL term has no gradient below it
            (Kingma et al. 2016).
        num_importance_samples: Latent samples per image; with more than one, the objective is the importance-weighted
            bound (IWAE, Burda et al. 2016).

        > Sample grids
        num_mixture_components: Components of the Gaussian mixture fitted to the latents of the training images.
        prior: Distribution of the latents of sample grids: `normal`, the prior N(0, I), or `mixture`, that Gaussian
            mixture.

    Examples:
        hfgen train vae --config vae_mnist_mlp_cpu20s
        hfgen train vae --dataset_name mnist --latent_dim 2 --num_train_epochs 10 --output_dir runs/plane
    """

    family: ClassVar[str] = "vae"
    next_commands: ClassVar[tuple[str, ...]] = (
        "hfgen sample {run}", "hfgen evaluate {run}{reference}", "hfgen analyze {run}{reference}",
    )  # fmt: skip
    warmup_fields: ClassVar[tuple[str, ...]] = ("lr_warmup_steps", "kl_warmup_steps")

    max_grad_norm: float = 1000.0  # gradients of losses summed over pixels have norms of about 100
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
        """Validate the fields (see `TrainingConfig`)."""
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
            raise UserError(
                "binarization static samples the pixels before random_flip could mirror them; leave out random_flip, "
                "or use binarization dynamic"
            )
        if self.binarization != "none" and self.pixel_distribution != "bernoulli":
            raise UserError(
                f"binarization {self.binarization} needs pixel_distribution bernoulli, not {self.pixel_distribution}"
            )
        if self.num_importance_samples > 1 and (self.reduction, self.beta, self.free_bits) != ("sum", 1, 0):
            raise UserError(
                "num_importance_samples above 1 needs reduction sum, beta 1 and free_bits 0: the importance-weighted "
                "bound has no separate KL term"
            )
        if self.num_importance_samples > 1 and self.kl_warmup_steps:
            raise UserError(
                "num_importance_samples above 1 needs kl_warmup_steps 0: the importance-weighted bound has no "
                f"separate KL term; got {self.kl_warmup_steps}"
            )
        if self.num_importance_samples > 1 and self.pixel_distribution == "gaussian_analytic":
            raise UserError(
                "num_importance_samples above 1 needs a fixed likelihood: pixel_distribution gaussian_analytic would "
                "be fitted to the samples; use gaussian"
            )
