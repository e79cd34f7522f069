"""Learnt time steps of a solver, for few steps (LD3, Tong et al. 2024), and saving them with the model."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hfgen.losses.diffusion import FLOW_PREDICTION, alpha_sigma, prediction_type_of
from hfgen.pipelines.pipeline_hfgen_class_conditional_diffusion import denoising_step, start_denoising
from hfgen.sampling.sample import denoiser, image_shape_of
from hfgen.sampling.schedulers import FREE_SOLVERS, LEARNT_STEPS, learnt_entry, make_scheduler
from hfgen.utils.errors import UserError
from hfgen.utils.files import complete_or_absent
from hfgen.utils.progress import progress_bar
from hfgen.utils.seeds import derive_seed
from hfgen.utils.untrusted import own_file, read_json

NUM_NOISES = 48  # to learn from, and as many others to check
MANY_STEPS = 30  # of the images that few steps should come to
EPOCHS, BATCH_SIZE, LEARNING_RATE = 6, 8, 0.1
SHIFTS = (1, 1.5, 2, 3)  # of the scheduler's own time steps, to start from


class LearntSteps(NamedTuple):
    """What was learnt for a number of steps.

    Attributes:
        time_steps: See `hfgen.sampling.schedulers.learnt_steps`.
        distance: Distance of the images of unseen noise from those of `MANY_STEPS` steps: root mean square of the
            differences of an image's pixels in [−1, 1], averaged over the images.
        former_distance: That of the scheduler's own time steps.
        seconds: How long it took.
    """

    time_steps: dict[str, list[float]]
    distance: float
    former_distance: float
    seconds: float


def learn_steps(
    pipeline: DiffusionPipeline,
    sampler: dict[str, Any],
    counts: Sequence[int],
    class_labels: Sequence[str | int],
    seed: int,
) -> dict[int, LearntSteps]:
    """Learn the time steps with which few steps come closest to the images of many steps from the same noise.

    The times t₁ > … > tₖ₋₁ between the scheduler's first one and its end are the cumulative sums of a softmax, so they
    fall whatever its logits are. Adam minimises the distance (see `LearntSteps`) by backpropagation through the solver
    and the frozen network. The gradient does not see where the interval of guidance begins and ends, so the best of a
    few shifted grids is the start, and the best of all epochs the result. Tong et al. minimise a perceptual distance,
    also learn how far the times of the network are off those of the solver, and let the noise change a little
    (arXiv:2405.15506).

    Args:
        pipeline: A diffusion model; its networks are frozen.
        sampler: The options of `hfgen.sampling.sample.sample` to learn with; the number of steps is ignored.
        counts: Numbers of steps, 2 or more.
        class_labels: See `sample`.
        seed: Seed of the noise, which is not that of `sample`.

    Returns:
        What was learnt, by number of steps.

    Raises:
        UserError: if the scheduler does not take other time steps, or adds noise.
    """
    require_free_solver(sampler["scheduler"])
    for network in pipeline.components.values():
        if isinstance(network, torch.nn.Module):
            network.requires_grad_(False)
    solve = _Solver(pipeline, sampler, class_labels, seed)
    seen, unseen = range(NUM_NOISES), range(NUM_NOISES, 2 * NUM_NOISES)
    with torch.no_grad():
        targets = torch.cat([solve(seen, MANY_STEPS), solve(unseen, MANY_STEPS)])
    found = {}
    for count in counts:
        started = time.monotonic()
        own = solve.own_steps(count)
        learnt = solve.between(own, _fit(solve, own, targets[: len(seen)]))
        with torch.no_grad():
            distances = [_distance(solve(unseen, count, each), targets[len(seen) :]).item() for each in (learnt, own)]
        time_steps = {"timesteps": learnt[0].tolist(), "sigmas": learnt[1].tolist()}
        found[count] = LearntSteps(time_steps, *distances, round(time.monotonic() - started, 1))
    return found


def require_free_solver(name: str) -> None:
    """Check that a scheduler takes any time steps and adds no noise.

    Raises:
        UserError: naming those that do.
    """
    if name not in FREE_SOLVERS:
        named = f"{', '.join(FREE_SOLVERS[:-1])} or {FREE_SOLVERS[-1]}"
        raise UserError(f"time steps are learnt for the scheduler {named}, not {name}; set --scheduler")


def steps_file(pipeline: DiffusionPipeline) -> Path:
    """Return the file in which a pipeline, loaded from a folder, keeps its learnt time steps."""
    return own_file(Path(pipeline.config._name_or_path), f"scheduler/{pipeline.scheduler.config_name}")


def save_learnt_steps(
    file: Path, name: str, num_inference_steps: int, time_steps: Mapping[str, Sequence[float]]
) -> None:
    """Add learnt time steps to the configuration of a saved scheduler (see `steps_file`)."""
    config = read_json(file)
    entry = learnt_entry(name, time_steps)
    config[LEARNT_STEPS] = config.get(LEARNT_STEPS, {}) | {str(num_inference_steps): entry}
    with complete_or_absent(file) as temporary:
        temporary.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class _Solver:
    """Denoise noise with a model and a scheduler, with gradients to the time steps."""

    def __init__(
        self, pipeline: DiffusionPipeline, sampler: dict[str, Any], class_labels: Sequence[str | int], seed: int
    ):
        self.pipeline, self.sampler, self.class_labels, self.seed = pipeline, sampler, class_labels, seed

    def __call__(self, numbers: Sequence[int], count: int, steps: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return the images (B, C, H, W) in [−1, 1] of the noises with these indices."""
        seeds = [derive_seed("learnt steps", self.seed, number) for number in numbers]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = randn_tensor((len(seeds), *image_shape_of(self.pipeline)), generators, self.pipeline.device)
        model = denoiser(self.pipeline, self.class_labels, self.sampler, numbers, seeds)
        scheduler = self._scheduler(count)
        x = start_denoising(scheduler, count, noise)
        if steps:
            scheduler.timesteps, scheduler.sigmas = steps
        for timestep in scheduler.timesteps:
            x, _ = denoising_step(model, scheduler, x, timestep, None)
        return x.clamp(-1, 1)

    def own_steps(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the scheduler's own timesteps (K,) and noise levels (K + 1,)."""
        scheduler = self._scheduler(count)
        start_denoising(scheduler, count, torch.zeros(1))
        return scheduler.timesteps.float(), scheduler.sigmas

    def between(self, own: tuple[Tensor, Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return timesteps and noise levels that begin and end like the scheduler's own ones."""
        times = own[0][0] * (1 - logits.softmax(0).cumsum(0)[:-1])
        alpha, sigma = (level.flatten() for level in alpha_sigma(self.pipeline.scheduler, times))
        is_flow = prediction_type_of(self.pipeline.scheduler) == FLOW_PREDICTION
        levels = sigma if is_flow else sigma / alpha
        return torch.cat([own[0][:1], times]), torch.cat([own[1][:1], levels, own[1][-1:]])

    def _scheduler(self, count: int) -> SchedulerMixin:
        return make_scheduler(self.sampler["scheduler"], self.pipeline.scheduler, count)


def _fit(solve: _Solver, own: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    """Return the logits (K,) of the steps, the best of all epochs."""
    count, numbers = len(own[0]), torch.arange(NUM_NOISES)

    def distance(logits: Tensor, batch: Tensor = numbers) -> Tensor:
        return _distance(solve(batch.tolist(), count, solve.between(own, logits)), targets[batch])

    @torch.no_grad()
    def state(logits: Tensor) -> tuple[float, Tensor]:
        return distance(logits).item(), logits.detach().clone()

    states = [state(_shifted(own[0], shift)) for shift in SHIFTS]
    logits = _best(states).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=LEARNING_RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * NUM_NOISES // BATCH_SIZE)
    for epoch in progress_bar(range(EPOCHS), f"learning {count} steps", unit="epoch"):
        order = torch.Generator().manual_seed(derive_seed("order", solve.seed, epoch))
        for batch in numbers[torch.randperm(NUM_NOISES, generator=order)].split(BATCH_SIZE):
            optimizer.zero_grad()
            distance(logits, batch).backward()
            optimizer.step()
            schedule.step()
        states.append(state(logits))
    return _best(states)


def _best(states: list[tuple[float, Tensor]]) -> Tensor:
    """Return the logits with the lowest distance."""
    return min(states, key=lambda state: state[0])[1].clone()


def _shifted(times: Tensor, shift: float) -> Tensor:
    """Return the logits (K,) of shifted timesteps: a shift above 1 raises them (Esser et al. 2024, eq. 23)."""
    levels = times / times[0]
    shifted = shift * levels / (1 + (shift - 1) * levels)
    return (-torch.diff(shifted, append=shifted.new_zeros(1))).log()


def _distance(images: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over images of the root mean square of the differences of their pixels."""
    return (images - targets).flatten(1).norm(dim=1).mean() / targets[0].numel() ** 0.5
