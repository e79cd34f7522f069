"""Configuration of `hfgen train ddpm`."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from hfgen.config.training import MAX_CLUSTERS, MAX_GUIDANCE, MAX_LOGIT, MAX_TIMESTEPS
from hfgen.config.unet import UNetConfig
from hfgen.utils.errors import UserError


@dataclass(kw_only=True)
class DDPMConfig(UNetConfig):
    """Denoising diffusion (Ho et al. 2020) and rectified flow (Liu et al. 2023) with diffusers' `UNet2DModel`.

    Args:
        > Network
        vae: Train on the latents of this VAE instead of on pixels: latent diffusion (Rombach et al. 2022). A run of
            `hfgen train vae --spatial_latents`, a folder with its model, a Hub id, or a recipe with a trained model.
            It is saved with the model. Needs class_conditional or num_clusters.
        num_clusters: Condition the network on this many clusters of the training images, found by k-means, so that
            images without labels can be guided (Adaloglou et al. 2025, arXiv 2403.00570). Samples are unconditional:
            each is of a random cluster.

        > Objective
        prediction_type: Prediction target of the network: `epsilon` (the noise), `sample` (the image x₀),
            `v_prediction`, v = √ᾱ ε − √(1−ᾱ) x₀ (Salimans and Ho 2022), or `flow_prediction`, the velocity ε − x₀ of
            rectified flow (Liu et al. 2023).
        num_train_timesteps: Number T of diffusion timesteps, 25 or more.
        beta_schedule: Noise schedule: `linear` (Ho et al. 2020), `squaredcos_cap_v2` (the cosine schedule of Nichol
            and Dhariwal 2021), or another of diffusers'. A flow has none.
        rescale_betas_zero_snr: Rescale the noise schedule to zero terminal SNR (Lin et al. 2024).
        timestep_sampling: Distribution of training timesteps: `uniform`, or `logit_normal`, which favours intermediate
            noise levels (Esser et al. 2024). By default logit_normal for flow_prediction, uniform for the others.
        logit_mean: Mean of the logit of t / T under `logit_normal`; above 0 favours more noise.
        logit_std: Standard deviation of that logit.
        loss_weighting: Weighting of the loss by noise level: `uniform`, `min_snr` (Hang et al. 2023) or `p2` (Choi et
            al. 2022).
        snr_gamma: SNR clipping value γ of `min_snr`.
        guide_step: Optimizer step whose averaged weights are saved with the model as a guide: a weaker network, from
            which samples of the finished model are guided away instead of from the prediction without a class or
            cluster (autoguidance, Karras et al. 2024, arXiv 2406.02507). A tenth of the training is a good start.
        class_dropout_prob: Probability of replacing the label by the null label during training, as classifier-free
            guidance requires (Ho and Salimans 2022).

        > Sample grids
        num_inference_steps: Denoising steps of the sample grids rendered during training; `num_train_timesteps` steps
            of the scheduler ddpm are ancestral sampling (Ho et al. 2020, algorithm 2).
        scheduler: diffusers scheduler of those grids (see `hfgen sample --help`).
        guidance_scale: Guidance scale of those grids, if the model has classes or clusters; 1 disables
            guidance.
        guidance_interval: Interval of noise levels in which guidance is applied, from 0 (image) to 1 (pure noise)
            (Kynkäänniemi et al. 2024).

    Examples:
        hfgen train ddpm --config ddpm_digits_quickstart
        hfgen train ddpm --dataset_name mnist --class_conditional --max_train_seconds 600 --output_dir runs/mnist
    """

    family: ClassVar[str] = "ddpm"
    single_steps: ClassVar[tuple[str, ...]] = ("guide_step",)
    model_fields: ClassVar[tuple[str, ...]] = ("vae",)

    num_clusters: int | None = None
    vae: str | None = None
    class_dropout_prob: float = 0.1
    guide_step: int | None = None
    num_train_timesteps: int = 1000
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = "squaredcos_cap_v2"
    rescale_betas_zero_snr: bool = False
    prediction_type: Literal["epsilon", "sample", "v_prediction", "flow_prediction"] = "flow_prediction"
    timestep_sampling: Literal["uniform", "logit_normal"] | None = None
    logit_mean: float = 0.0
    logit_std: float = 1.0
    loss_weighting: Literal["uniform", "min_snr", "p2"] = "uniform"
    snr_gamma: float = 5.0
    optimizer: Literal["adamw", "muon"] = "muon"
    learning_rate: float = 4e-3
    num_inference_steps: int = 20
    scheduler: str = "unipc"
    guidance_scale: float = 2.0
    guidance_interval: list[float] = field(default_factory=lambda: [0.0, 1.0])

    @property
    def timestep_density(self) -> Literal["uniform", "logit_normal"]:
        """Return the distribution of training timesteps."""
        return self.timestep_sampling or ("logit_normal" if self.prediction_type == "flow_prediction" else "uniform")

    def __post_init__(self):
        """Validate the fields (see `UNetConfig`)."""
        super().__post_init__()
        self._require("positive", ["num_clusters"], at_most=MAX_CLUSTERS)
        self._require("positive", ["guide_step"])
        if self.guide_step and not (self.class_conditional or self.num_clusters):
            raise UserError("guide_step needs class_conditional or num_clusters: other models have no guidance")
        if self.guide_step and self.max_train_steps and self.guide_step >= self.max_train_steps:
            raise UserError(
                f"guide_step must be below max_train_steps, which is {self.max_train_steps}, not {self.guide_step}"
            )
        self._require("positive", ["num_train_timesteps", "num_inference_steps"], at_most=MAX_TIMESTEPS)
        self._require("positive", ["snr_gamma"])
        self._require("positive", ["logit_std"], at_most=MAX_LOGIT)
        self._require("any", ["logit_mean"], at_most=MAX_LOGIT)
        if self.prediction_type == "flow_prediction" and self.beta_schedule != "squaredcos_cap_v2":
            raise UserError(
                f"flow_prediction, the default, has no beta_schedule {self.beta_schedule}; set prediction_type too, "
                "such as v_prediction"
            )
        if self.timestep_density == "uniform" and (self.logit_mean, self.logit_std) != (0, 1):
            raise UserError("logit_mean and logit_std need timestep_sampling logit_normal")
        self._require("any", ["guidance_scale"], at_most=MAX_GUIDANCE)
        self._require("from 0 to below 1", ["class_dropout_prob"])
        if abs(self.guidance_scale) > 1000:
            raise UserError(f"guidance_scale must be at most 1,000, not {self.guidance_scale:g}")
        if self.class_conditional and self.num_clusters:
            raise UserError("the network is conditioned on classes or clusters: set class_conditional or num_clusters")
        interval = self.guidance_interval
        if len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= 1:
            raise UserError(f"guidance_interval must be two numbers, 0 ≤ first ≤ last ≤ 1, not {interval}")
        if self.vae and not (self.class_conditional or self.num_clusters):
            raise UserError(
                "vae needs class_conditional or num_clusters: without, a model is saved in diffusers' own pipeline, "
                "which does not decode latents"
            )
        if self.num_clusters == 1:
            raise UserError("num_clusters must be 2 or more, not 1")
        if self.num_clusters and self.class_dropout_prob == 0:
            raise UserError(
                "num_clusters needs class_dropout_prob above 0: guidance and editing use the network without a cluster"
            )
        if self.class_conditional and self.class_dropout_prob == 0 and self.guidance_scale != 1:
            raise UserError(
                "classifier-free guidance needs an unconditional model: set class_dropout_prob above 0, or "
                f"guidance_scale to 1, not {self.guidance_scale:g}"
            )
        if self.rescale_betas_zero_snr and self.prediction_type not in ("sample", "v_prediction"):
            raise UserError(
                f"rescale_betas_zero_snr needs prediction_type sample or v_prediction, not {self.prediction_type}"
            )
        if self.num_train_timesteps < 25:
            raise UserError(f"num_train_timesteps must be 25 or more, not {self.num_train_timesteps}")
        if self.num_inference_steps > self.num_train_timesteps:
            raise UserError(
                f"num_inference_steps must be at most num_train_timesteps, which is {self.num_train_timesteps}, "
                f"not {self.num_inference_steps}"
            )
