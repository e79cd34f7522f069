"""Configuration of `hfgen train vae`."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from hfgen.config.training import MAX_DEPTH, MAX_LATENTS, MAX_WIDTH, TrainingConfig, defaults
from hfgen.utils.errors import UserError

MAX_COMPONENTS = 1_000
MAX_LATENT_DIM = 4_096  # each mixture component has a full covariance matrix
MAX_FLOW_BLOCKS = 100
FLOW_FIELDS = ("flow_hidden_size", "flow_blocks", "flow_learning_rate")
NOT_SPATIAL = (
    "ladder_channels", "class_conditional", "hidden_sizes", "decoder_hidden_sizes", "activate_decoder_input",
)  # fmt: skip
PRIORS = ("normal", "mixture", "flow")  # distributions from which latents are sampled


@dataclass(kw_only=True)
class VAEConfig(TrainingConfig):
    """Variational autoencoder (Kingma and Welling 2014).

    Args:
        > Network
        latent_dim: Dimension of the latent space; of a ladder, of all of its layers together; of spatial latents their
            channels times height and width.
        block_out_channels: Channels of the encoder's stride-2 convolutions; empty for a fully connected network.
        hidden_sizes: Hidden layer sizes of the encoder, before the layer that outputs mean and log-variance.
        decoder_block_out_channels: Output channels of the decoder's transposed convolutions, except the last, which
            outputs the image; by default the encoder's, reversed.
        decoder_hidden_sizes: Hidden layer sizes of the decoder; by default the encoder's, reversed.
        ladder_channels: Make a ladder of stochastic layers (Sønderby et al. 2016; see docs/vae.md): channels of the
            latents of each level of block_out_channels, at that level's height and width. A top layer has the rest of
            latent_dim. The decoder mirrors the encoder.
        spatial_latents: Keep height and width in the latents, those after the convolutions of block_out_channels, as
            latent diffusion needs it (Rombach et al. 2022; see docs/vae.md). There are no linear layers then.
        activate_decoder_input: Apply the activation between the decoder's last linear layer and its first transposed
            convolution.
        layers_per_block: Residual blocks after each convolution of the encoder and before each transposed convolution
            of the decoder.
        norm_num_groups: Groups of the group norms in these blocks.
        act_fn: Activation, for instance `relu` or `silu`.
        class_conditional: Condition encoder and decoder on class labels, and the flow of the latents, if there is one.
        flow_hidden_size: Width of the network of the prior `flow`.
        flow_blocks: Residual blocks of that network.

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
        prior: Distribution of the latents of samples: `normal`, the prior N(0, I); `mixture`, the Gaussian mixture; or
            `flow`, a rectified flow (Liu et al. 2023) that is trained on the latents at each step, beside the VAE and
            without changing it (see docs/vae.md).
        flow_learning_rate: Peak learning rate of the flow.

        > Sample grids
        num_mixture_components: Components of the Gaussian mixture fitted to the latents of the training images.

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
    ladder_channels: list[int] = field(default_factory=list)
    spatial_latents: bool = False
    activate_decoder_input: bool = True
    layers_per_block: int = 0
    norm_num_groups: int = 8
    act_fn: str = "relu"
    class_conditional: bool = False
    flow_hidden_size: int = 192
    flow_blocks: int = 4
    pixel_distribution: Literal["bernoulli", "gaussian", "gaussian_analytic", "logistic"] = "bernoulli"
    binarization: Literal["none", "threshold", "static", "dynamic"] = "none"
    reduction: Literal["sum", "mean"] = "sum"
    beta: float = 1.0
    kl_warmup_steps: int = 0
    free_bits: float = 0.0
    num_importance_samples: int = 1
    prior: Literal["normal", "mixture", "flow"] = "normal"
    flow_learning_rate: float = 1e-3
    num_mixture_components: int = 10

    def __post_init__(self):
        """Validate the fields (see `TrainingConfig`)."""
        super().__post_init__()
        self._require("positive", [
            "block_out_channels", "hidden_sizes", "decoder_block_out_channels", "decoder_hidden_sizes",
            "ladder_channels", "norm_num_groups", "flow_hidden_size",
        ], at_most=MAX_WIDTH)  # fmt: skip
        self._require("positive", ["latent_dim"], at_most=MAX_LATENT_DIM)
        self._require("positive", ["num_importance_samples"], at_most=MAX_LATENTS)
        self._require("positive", ["num_mixture_components"], at_most=MAX_COMPONENTS)
        self._require("zero or more", ["layers_per_block"], at_most=MAX_DEPTH)
        self._require("positive", ["flow_blocks"], at_most=MAX_FLOW_BLOCKS)
        self._require("positive", ["flow_learning_rate"])
        usual = defaults(type(self))
        if self.prior != "flow" and (changed := [name for name in FLOW_FIELDS if getattr(self, name) != usual[name]]):
            raise UserError(f"{changed[0]} needs the prior flow, not {self.prior}")
        self._require("zero or more", ["beta", "free_bits"])
        decoder = (self.decoder_block_out_channels, self.decoder_hidden_sizes, self.activate_decoder_input)
        if self.ladder_channels and decoder != (None, None, True):
            raise UserError(
                "the decoder of a ladder mirrors its encoder; leave out decoder_block_out_channels, "
                "decoder_hidden_sizes and activate_decoder_input, or ladder_channels"
            )
        if self.spatial_latents and (changed := [name for name in NOT_SPATIAL if getattr(self, name) != usual[name]]):
            raise UserError(f"spatial_latents go without {changed[0]}; leave out one of the two")
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

    def learning_rate_of(self, module: str) -> float:
        """Return the peak learning rate of the VAE or of the flow."""
        return self.flow_learning_rate if module == "flow" else self.learning_rate
