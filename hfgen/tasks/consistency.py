"""Consistency models (Song et al. 2023), distilled from a diffusion model: training objective and pipeline."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import PartialState
from diffusers import DDPMPipeline, DiffusionPipeline, SchedulerMixin, UNet2DModel
from torch import Tensor, nn

from hfgen.config import ConsistencyConfig
from hfgen.data.images import ImageData
from hfgen.data.loader import Batch
from hfgen.families import GUIDANCE
from hfgen.losses.adversarial import (
    discriminator_loss,
    discriminator_scores,
    frozen,
    generator_loss,
    squared_gradient_norms,
)
from hfgen.losses.consistency import error_in_range, estimate, input_scale, network_time, pseudo_huber, tuning_levels
from hfgen.losses.diffusion import FLOW_PREDICTION, alpha_sigma, predict_x0, prediction_type_of
from hfgen.models.modeling_hfgen_gan import ConvolutionalDiscriminator
from hfgen.pipelines.consistency import SIGMA_MAX, SIGMA_MIN, ConsistencyModelPipeline, noise_levels
from hfgen.pipelines.loading import load, move
from hfgen.pipelines.pipeline_hfgen_class_conditional_diffusion import ClassConditionalDiffusionPipeline
from hfgen.runs.folder import run_fields
from hfgen.sampling.sample import (
    default_sampler,
    denoiser,
    image_shape_of,
    is_conditional,
    require_diffusion,
    require_pixels,
    size_of,
)
from hfgen.sampling.schedulers import denoising_states, make_scheduler
from hfgen.tasks.base import Loss, Task
from hfgen.utils.devices import AUTOCAST
from hfgen.utils.errors import UserError
from hfgen.utils.seeds import derive_seed

BLOCK = 128  # trajectories that are computed together
MOST_STEPS = 30  # of trajectories by default, where the teacher's sample grids have more
NEARNESS = 80  # of the two noise levels of consistency tuning, see `tuning_levels`; constant, not raised in stages
HUBER_WIDTH = 0.1  # of pixels in [−1, 1], 13 grey levels
START_FRACTION = 0.5  # of the points that are starts of trajectories, as in the first step of a sample
SECOND_FRACTION = 0.25  # of the points that are nearest to the noise level of the second one of two steps
DISCRIMINATOR = {"block_out_channels": [16, 32, 64], "hidden_sizes": [256]}
ADVERSARIAL, PENALTY, PENALTY_INTERVAL = "relativistic", 0.1, 8  # as in the recipes of GANs
EMBEDDING_STEPS, EMBEDDING_RATE, EMBEDDED_LEVELS = 1000, 3e-3, 256  # to fit the time embedding


@dataclasses.dataclass
class Trajectories:
    """Trajectories of the teacher, from noise to images.

    Attributes:
        points: x_σ, float32 (N, S, C, H, W).
        sigmas: σ of the points, float32 (S,), falling.
        images: Their ends, float32 (N, C, H, W) in [−1, 1] up to prediction errors.
        labels: Classes, int64 (N,), or None.
    """

    points: Tensor
    sigmas: Tensor
    images: Tensor
    labels: Tensor | None


class ConsistencyTask(Task):
    """A student of one or a few steps that maps each point of a teacher's trajectories to its end.

    At first the student learns the ends of the teacher's own trajectories, which are solved on the way (consistency
    mid-training, Hu et al. 2025, arXiv:2509.24526, with the pseudo-Huber loss as distance). A discriminator that tells
    its images from training images adds its part (adversarial diffusion distillation, Sauer et al. 2023,
    arXiv:2311.17042, here of pixels and with the losses of R3GAN, Huang et al. 2024). Then, for
    `consistency_fraction` of the training, it learns to agree with itself at neighbouring points (consistency tuning,
    Geng et al. 2024, arXiv:2406.14548): a training image with noise, and where the teacher's guided prediction leads
    from there.

    Args:
        config: Teacher, objective.
        data: The training images, with labels if the teacher is class-conditional.

    Raises:
        UserError: if the teacher cannot be distilled, or its images or classes are not those of the data.
    """

    saved_modules = frozenset({"unet"})
    loss_metric = "loss/unet"

    def __init__(self, config: ConsistencyConfig, data: ImageData):
        self.config, self.data = config, data
        try:
            self.teacher = load(config.teacher)
        except UserError as error:
            if not config.resume_from_checkpoint:
                raise
            raise UserError(f"{error}; a run resumes with its teacher only; set teacher to its new place") from error
        _check_teacher(self.teacher, config, data)
        self.label_names = list(self.teacher.labels) if is_conditional(self.teacher) else []
        sampler = default_sampler(self.teacher, run_fields(Path(config.teacher).expanduser()))
        self.teacher_steps = config.teacher_steps or min(sampler["num_inference_steps"], MOST_STEPS)
        self.guidance = {name: sampler[name] for name in GUIDANCE if name in sampler}
        if config.guidance_scale is not None:
            self.guidance["guidance_scale"] = config.guidance_scale
        own = self.teacher.scheduler
        if "timestep_spacing" in own.config:  # trajectories start from pure noise
            own = type(own).from_config(own.config, timestep_spacing="trailing")
        self.solver = make_scheduler("unipc", own, self.teacher_steps)
        self.scheduler = noise_levels()
        self.unet = make_student(self.teacher.unet, self.teacher.scheduler, len(self.label_names))
        self.modules: dict[str, nn.Module] = {"unet": self.unet}
        if config.adversarial_weight:
            size, num_classes = tuple(data.images.shape[2:]), len(self.label_names) or None
            networks = {"sample_size": size, "in_channels": data.images.shape[1], "num_classes": num_classes}
            self.discriminator = ConvolutionalDiscriminator(**networks, **DISCRIMINATOR)
            self.modules["discriminator"] = self.discriminator
        self.pool: dict[int, Trajectories] = {}  # the newest blocks
        self.times_and_levels = times_and_levels(self.teacher.scheduler)

    def losses(self, batch: Batch) -> Iterator[Loss]:
        """Yield the error of the images, with the discriminator's part, or at last that of consistency tuning."""
        if batch.progress >= 1 - self.config.consistency_fraction:
            yield Loss("unet", self._tuning_loss(batch))
            return
        x, sigma, labels, ends = self._points(len(batch.images), batch.step, batch.images.device)
        images = self._student(x, sigma, labels)
        error = pseudo_huber(error_in_range(images, ends), HUBER_WIDTH)
        if not self.config.adversarial_weight:
            yield Loss("unet", error)
            return
        both = torch.cat([batch.images, images.clamp(-1, 1)])
        classes = None if labels is None else torch.cat([batch.labels, labels])
        with frozen(self.discriminator):
            adversarial = generator_loss(ADVERSARIAL, *self.modules["discriminator"](both, classes).logits.chunk(2))
            terms = {"error": error, "adversarial": adversarial}
            yield Loss("unet", error + self.config.adversarial_weight * adversarial, terms)
        yield self._discriminator_loss(both.detach(), classes, penalised=batch.step % PENALTY_INTERVAL == 0)

    def remarks(self) -> list[str]:
        """Tell how the teacher is followed."""
        scale = self.guidance.get("guidance_scale", 1)
        interval = self.guidance.get("guidance_interval", (0, 1))
        guidance = "no guidance" if scale == 1 else "guidance {:g} from {:g} to {:g} of T".format(scale, *interval)
        return [
            f"the teacher, {self.config.teacher}, is followed in {self.teacher_steps} steps with {guidance}; "
            f"the training images are {self.data.source}"
        ]

    def fixed_networks(self) -> list[nn.Module]:
        """Return the networks of the teacher."""
        return [part for part in self.teacher.components.values() if isinstance(part, nn.Module)]

    @torch.no_grad()
    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Return the error of one-step samples against the teacher's, for the classes of held-out images."""
        seeds = [derive_seed("validation", self.config.seed, index) for index in batch.indices.tolist()]
        solved = self._solve(seeds, batch.labels if self.label_names else None, batch.images.device)
        sigma = solved.sigmas[:1].expand(len(seeds)).reshape(-1, 1, 1, 1)
        images = self._student(solved.points[:, 0], sigma, solved.labels)
        return {self.loss_metric: pseudo_huber(error_in_range(images, solved.images), HUBER_WIDTH)}

    def pipeline(self) -> ConsistencyModelPipeline:
        """Return the pipeline, which is saved as diffusers' own."""
        names = dict(enumerate(self.label_names))
        return ConsistencyModelPipeline(self.unet, self.scheduler, names, self.config.num_inference_steps)

    def _student(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """Return the student's images, (B, C, H, W), for x_σ (B, C, H, W) and σ (B, 1, 1, 1)."""
        inputs = input_scale(self.scheduler, sigma) * x
        prediction = self.modules["unet"](inputs, network_time(sigma), class_labels=labels).sample
        return estimate(self.scheduler, prediction.float(), x, sigma)

    def _points(self, count: int, step: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Return random points of the trajectories in the pool: x_σ, σ, classes, and the images they lead to."""
        pool = list(self._pool_at(step, count, device).values())
        block, row = torch.randint(len(pool), (count,)), torch.randint(BLOCK, (count,))
        point, chance = torch.randint(self.teacher_steps, (count,)), torch.rand(count)
        point[chance < START_FRACTION + SECOND_FRACTION] = _nearest_to_second_step(pool[0].sigmas)
        point[chance < START_FRACTION] = 0
        x = torch.stack([pool[b].points[r, p] for b, r, p in zip(block, row, point, strict=True)])
        images = torch.stack([pool[b].images[r] for b, r in zip(block, row, strict=True)])
        labels = (
            torch.stack([pool[b].labels[r] for b, r in zip(block, row, strict=True)]) if self.label_names else None
        )
        return x, pool[0].sigmas[point.to(device)].view(-1, 1, 1, 1), labels, images

    def _pool_at(self, step: int, count: int, device: torch.device) -> dict[int, Trajectories]:
        """Return the pool, blocks by number, at an optimizer step that uses `count` points."""
        uses = self.config.trajectory_uses * BLOCK // (count * self.config.gradient_accumulation_steps)
        newest = step // max(1, uses)
        kept = math.ceil(self.config.trajectories / BLOCK)
        blocks = range(max(0, newest + 1 - kept), newest + 1)
        random = derive_seed("trajectories", self.config.seed, PartialState().process_index)
        self.pool = {number: self.pool.get(number) or self._block(random, number, device) for number in blocks}
        return self.pool

    def _block(self, random: int, number: int, device: torch.device) -> Trajectories:
        """Solve a block of the teacher's trajectories, of the classes of random training images."""
        generator = torch.Generator().manual_seed(derive_seed("block", random, number))
        seeds = torch.randint(2**62, (BLOCK,), generator=generator).tolist()
        labels = None
        if self.label_names:
            labels = self.data.labels[torch.randint(len(self.data), (BLOCK,), generator=generator)].to(device)
        return self._solve(seeds, labels, device)

    def _solve(self, seeds: list[int], labels: Tensor | None, device: torch.device) -> Trajectories:
        """Follow the teacher from the noise of these seeds to images."""
        move(self.teacher, device, "float32")
        predict = self._predict(labels, seeds)

        def model(x: Tensor, timestep: Tensor) -> Tensor:
            with self._precision(device):
                return predict(x, timestep).float()

        shape = (1, *image_shape_of(self.teacher))
        states = list(denoising_states(model, self.solver, self.teacher_steps, shape, seeds, device))
        *visited, (images, _) = states
        alpha, sigma = alpha_sigma(self.teacher.scheduler, self.solver.timesteps.cpu())
        levels = (sigma / alpha).clamp(max=SIGMA_MAX)  # infinite where there is only noise
        scales = (levels / sigma).to(device)
        points = torch.stack([x for x, _ in visited], dim=1) * scales.view(1, -1, 1, 1, 1)
        return Trajectories(points, levels.flatten().to(device), images, labels)

    def _teachers_image(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """Return the teacher's guided estimates of x₀, (B, C, H, W), for x_σ (B, C, H, W) and σ (B, 1, 1, 1)."""
        move(self.teacher, x.device, "float32")
        scheduler = self.teacher.scheduler
        times, levels = self.times_and_levels
        timesteps = times[torch.searchsorted(levels, sigma.flatten().cpu()).clamp(max=len(times) - 1)].to(x.device)
        alpha, noise = alpha_sigma(scheduler, timesteps)
        with torch.no_grad(), self._precision(x.device):
            prediction = self._predict(labels, [0] * len(x))(alpha * x, timesteps).float()
        return predict_x0(prediction_type_of(scheduler), prediction, alpha * x, alpha, noise)

    def _predict(self, labels: Tensor | None, seeds: list[int]) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the teacher's guided prediction at x_t, (B, C, H, W), and timesteps."""
        classes = [] if labels is None else labels.tolist()
        return denoiser(self.teacher, classes, self.guidance, range(len(seeds)), seeds)

    def _precision(self, device: torch.device) -> torch.autocast:
        """Return the precision of the training, for the teacher."""
        precision = AUTOCAST.get(self.config.mixed_precision)
        return torch.autocast(device.type, precision, enabled=precision is not None)

    def _discriminator_loss(self, images: Tensor, labels: Tensor | None, penalised: bool) -> Loss:
        """Return the discriminator's loss for as many real images as the student's, with R1 and R2 if `penalised`."""
        images.requires_grad_(penalised)
        scores = self.modules["discriminator"](images, labels).logits
        loss = discriminator_loss(ADVERSARIAL, *scores.chunk(2))
        if penalised:  # the mean over both halves is that of R1 and R2
            loss = loss + PENALTY_INTERVAL * PENALTY * squared_gradient_norms(scores, images).mean()
        return Loss("discriminator", loss, discriminator_scores(ADVERSARIAL, *scores.chunk(2)))

    def _tuning_loss(self, batch: Batch) -> Tensor:
        """Return the distance of the student's images at neighbouring points of the teacher's trajectories."""
        device, labels = batch.images.device, batch.labels if self.label_names else None
        t, r = (level.to(device) for level in tuning_levels(len(batch.images), NEARNESS))
        x = batch.images + t * torch.randn_like(batch.images)
        towards = self._teachers_image(x, t, labels)
        nearer = x + (r - t) * (x - towards) / t
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # the same dropout
            images = self._student(x, t, labels)
        with torch.no_grad():
            target = torch.where(r > SIGMA_MIN, self._student(nearer, r.clamp_min(SIGMA_MIN), labels), nearer)
        return (error_in_range(images, target).square().flatten(1).sum(1).sqrt() / (t - r).flatten()).mean()


def make_student(teacher: UNet2DModel, scheduler: SchedulerMixin, num_classes: int) -> UNet2DModel:
    """Build a student with the weights of its teacher, as far as they fit.

    A student is given other times than its teacher, 250 ln σ. So its time embedding is fitted to give the same
    embeddings at the same noise levels. It predicts −v = (σ x₀ − ε) / √(1 + σ²) (Salimans and Ho 2022), so the last
    layer's sign is changed where the teacher predicts v, the velocity or the noise. The null label is left out.
    """
    student = UNet2DModel.from_config({**teacher.config, "num_class_embeds": num_classes or None})
    weights = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    if num_classes:
        weights["class_embedding.weight"] = weights["class_embedding.weight"][:num_classes]
    if prediction_type_of(scheduler) != "sample":
        weights |= {name: -weights[name] for name in ("conv_out.weight", "conv_out.bias")}
    student.load_state_dict(weights)
    _fit_time_embedding(student, teacher, scheduler)
    return student


def _fit_time_embedding(student: UNet2DModel, teacher: UNet2DModel, scheduler: SchedulerMixin) -> None:
    """Fit the student's time embedding at each noise level to the teacher's, from its weights, by least squares."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(student.time_embedding.parameters(), lr=EMBEDDING_RATE)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, EMBEDDING_STEPS)
    times, levels = times_and_levels(scheduler)
    inside = ((levels >= SIGMA_MIN) & (levels <= SIGMA_MAX)).nonzero().flatten()
    with torch.no_grad():
        wanted = teacher.time_embedding(teacher.time_proj(times))
    for _ in range(EMBEDDING_STEPS):
        chosen = inside[torch.randint(len(inside), (EMBEDDED_LEVELS,), generator=generator)]
        found = student.time_embedding(student.time_proj(network_time(levels[chosen])))
        (found - wanted[chosen]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        decay.step()


def times_and_levels(scheduler: SchedulerMixin) -> tuple[Tensor, Tensor]:
    """Return times of a diffusion model from 0 to T, and σ_t / α_t there, which rises: float32 (N,) each."""
    times = torch.linspace(0, scheduler.config.num_train_timesteps, 16 * 1024 + 1)
    if prediction_type_of(scheduler) != FLOW_PREDICTION:
        times = times.clamp(max=scheduler.config.num_train_timesteps - 1)
    alpha, sigma = alpha_sigma(scheduler, times)
    return times, (sigma / alpha).flatten()


def _check_teacher(teacher: DiffusionPipeline, config: ConsistencyConfig, data: ImageData) -> None:
    """Check that a teacher can be distilled with these images.

    Raises:
        UserError: if not.
    """
    name = config.teacher
    if not isinstance(teacher, DDPMPipeline | ClassConditionalDiffusionPipeline):
        raise UserError(
            f"{name} is a {type(teacher).__name__}; an unconditional or class-conditional diffusion model can be "
            "distilled"
        )
    require_diffusion(teacher)
    require_pixels(teacher, "distillation")
    shape, images = image_shape_of(teacher), tuple(data.images.shape[1:])
    if shape != images:
        raise UserError(f"{name} draws images of {size_of(shape)}, but those of {data.source} have {size_of(images)}")
    if shape[1] != shape[2]:
        raise UserError(f"{name} draws images of {shape[2]}×{shape[1]} pixels; diffusers' pipeline draws squares only")
    if is_conditional(teacher):
        data.require_labels()
        if (names := list(teacher.labels)) != list(data.label_names):
            raise UserError(
                f"the classes of {name} ({', '.join(names)}) are not those of {data.source} "
                f"({', '.join(data.label_names)})"
            )
        if config.guidance_scale not in (None, 1) and not teacher.config.learnt_no_class and teacher.guide is None:
            raise UserError(f"{name} was trained without label dropout, so its guidance_scale must be 1")
    elif config.guidance_scale not in (None, 1):
        raise UserError(f"{name} is unconditional, so guidance_scale does not apply")


def _nearest_to_second_step(sigmas: Tensor) -> int:
    """Return the index of the point, of σ (S,), whose noise level is nearest to that of the second of two steps."""
    scheduler = noise_levels()
    scheduler.set_timesteps(2)
    return int((sigmas.cpu().log() - scheduler.sigmas[1].log()).abs().argmin())
