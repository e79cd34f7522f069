"""Learnt time steps of a solver, for few steps (after LD3, Tong et al. 2024), and saving them with the model."""

import json
import operator
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import DiffusionPipeline
from scipy.optimize import minimize
from torch import Tensor

from hfgen.losses.diffusion import FLOW_PREDICTION, alpha_sigma, prediction_type_of
from hfgen.pipelines.pipeline_hfgen_class_conditional_diffusion import start_denoising
from hfgen.sampling.sample import decoded, denoiser, sample_shape_of
from hfgen.sampling.schedulers import FREE_SOLVERS, LearntEntry, denoising_states, learnt_key, make_scheduler
from hfgen.utils.errors import UserError
from hfgen.utils.files import complete_or_absent
from hfgen.utils.progress import progress_bar
from hfgen.utils.seeds import derive_seed
from hfgen.utils.untrusted import LEARNT_STEPS, are_time_steps, own_file, read_json

NUM_NOISES = 48  # to learn from, and as many others to check
MANY_STEPS = 30  # of the images that few steps should come to; fewer if the model has fewer timesteps
FIRST_CHANGE, LAST_CHANGE, MOST_TRIALS = 0.4, 0.03, 40  # of the logits
SHIFTS = (1, 1.5, 2, 3)  # of the scheduler's own time steps, to start from
TimeSteps = dict[str, list[float]]  # see `hfgen.sampling.schedulers.learnt_steps`


class LearntSteps(NamedTuple):
    """What was learnt for a number of steps.

    Attributes:
        time_steps: See `hfgen.sampling.schedulers.learnt_steps`.
        distance: Distance of the images of unseen noise from those of many steps: root mean square of the differences
            of an image's pixels in [−1, 1], averaged over the images.
        former_distance: That of the scheduler's own time steps.
        many_steps: Number of those many steps.
        seconds: How long it took.
    """

    time_steps: TimeSteps
    distance: float
    former_distance: float
    many_steps: int
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
    fall whatever its logits are. The distance (see `LearntSteps`) of a few images is minimised over the logits without
    gradients (COBYLA, Powell 1994), from the best of a few shifted grids, and the best that was tried is taken. Tong
    et al. (arXiv:2405.15506) backpropagate through the solver; such a gradient does not see where the interval of
    guidance begins and ends, and the fast waves in the embedding of the timestep can dominate it.

    Args:
        pipeline: A diffusion model.
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
    draw = Drawing(pipeline, sampler, class_labels, seed)
    seen, unseen = range(NUM_NOISES), range(NUM_NOISES, 2 * NUM_NOISES)
    many = min(MANY_STEPS, pipeline.scheduler.config.num_train_timesteps)
    targets = {numbers: draw(numbers, many) for numbers in (seen, unseen)}
    found = {}
    for count in progress_bar(counts, "learning time steps", unit="grid"):
        started = time.monotonic()
        own = draw.own_steps(count)
        learnt = _closest(draw, own, seen, targets[seen])
        distances = [draw.distance(unseen, steps, targets[unseen]) for steps in (learnt, own)]
        found[count] = LearntSteps(learnt, *distances, many, round(time.monotonic() - started, 1))
    return found


def _closest(draw: "Drawing", own: TimeSteps, numbers: range, targets: Tensor) -> TimeSteps:
    """Return the time steps with the least distance of all that are tried, from the scheduler's own ones."""
    tried = []

    def distance(logits: Tensor) -> float:
        steps = draw.between(own, logits)
        found = draw.distance(numbers, steps, targets)
        if are_time_steps(steps["timesteps"], steps["sigmas"], len(logits) + 1, draw.pipeline.scheduler.config):
            tried.append((found, steps))  # others have equal neighbours, for logits that are far apart
        return found

    start = min((_shifted(own["timesteps"], shift) for shift in SHIFTS), key=distance)
    options = {"rhobeg": FIRST_CHANGE, "tol": LAST_CHANGE, "maxiter": MOST_TRIALS}
    minimize(lambda x: distance(torch.from_numpy(x).float()), start, method="COBYLA", options=options)
    return min(tried, key=operator.itemgetter(0))[1]


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


def save_learnt_steps(file: Path, name: str, num_inference_steps: int, entry: LearntEntry) -> None:
    """Add learnt time steps to the configuration of a saved scheduler (see `steps_file`)."""
    config = read_json(file)
    config[LEARNT_STEPS] = config.get(LEARNT_STEPS, {}) | {learnt_key(name, num_inference_steps): entry}
    with complete_or_absent(file) as temporary:
        temporary.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class Drawing:
    """Draw the same images with a model and other time steps."""

    def __init__(
        self, pipeline: DiffusionPipeline, sampler: dict[str, Any], class_labels: Sequence[str | int], seed: int
    ):
        self.pipeline, self.sampler, self.class_labels, self.seed = pipeline, sampler, class_labels, seed

    def __call__(self, numbers: range, count: int, steps: TimeSteps | None = None) -> Tensor:
        """Return the images (B, C, H, W) in [−1, 1] of the noises with these indices."""
        seeds = [derive_seed("learnt steps", self.seed, number) for number in numbers]
        model = denoiser(self.pipeline, self.class_labels, self.sampler, numbers, seeds)
        scheduler = make_scheduler(self.sampler["scheduler"], self.pipeline.scheduler, count, steps)
        shape = (1, *sample_shape_of(self.pipeline.unet))
        *_, (images, _) = denoising_states(model, scheduler, count, shape, seeds, self.pipeline.device)
        return decoded(self.pipeline, images).clamp(-1, 1)

    def distance(self, numbers: range, steps: TimeSteps, targets: Tensor) -> float:
        """Return the distance of the images from those of many steps (see `LearntSteps`)."""
        difference = self(numbers, len(steps["timesteps"]), steps) - targets
        return difference.square().mean((1, 2, 3)).sqrt().mean().item()

    def own_steps(self, count: int) -> TimeSteps:
        """Return the scheduler's own time steps."""
        scheduler = make_scheduler(self.sampler["scheduler"], self.pipeline.scheduler, count)
        start_denoising(scheduler, count, torch.zeros(1))
        return {"timesteps": scheduler.timesteps.float().tolist(), "sigmas": scheduler.sigmas.tolist()}

    def between(self, own: TimeSteps, logits: Tensor) -> TimeSteps:
        """Return time steps that begin and end like the scheduler's own, from the logits (K − 1,) of the falls."""
        first = own["timesteps"][0]
        falls = torch.cat([logits, logits.new_zeros(1)]).softmax(0)
        times = first * (1 - falls.cumsum(0)[:-1])
        alpha, sigma = (level.flatten() for level in alpha_sigma(self.pipeline.scheduler, times))
        is_flow = prediction_type_of(self.pipeline.scheduler) == FLOW_PREDICTION
        levels = sigma if is_flow else sigma / alpha
        ends = own["sigmas"][:1], own["sigmas"][-1:]
        return {"timesteps": [first, *times.tolist()], "sigmas": [*ends[0], *levels.tolist(), *ends[1]]}


def _shifted(times: list[float], shift: float) -> Tensor:
    """Return the logits (K - 1,) of shifted timesteps: a shift above 1 raises them (Esser et al. 2024, eq. 23)."""
    levels = torch.tensor([*times, 0]) / times[0]
    shifted = shift * levels / (1 + (shift - 1) * levels)
    logits = (-shifted.diff()).log()
    return logits[:-1] - logits[-1]
