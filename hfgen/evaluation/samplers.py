"""`hfgen compare-samplers`: image quality and cost by model, scheduler, steps and guidance."""

import functools
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from hfgen.config.commands import CompareSamplersConfig
from hfgen.config.training import defaults
from hfgen.data.sources import public_name
from hfgen.evaluation.generated import generate, labels_like
from hfgen.evaluation.processes import together
from hfgen.evaluation.real import check_size, default_output, load_references, name_of
from hfgen.evaluation.report import render_report, save_record
from hfgen.evaluation.verdict import MARGIN, is_tie, sampler_text
from hfgen.families import GUIDANCE
from hfgen.figures.grids import sample_grid, save_picture
from hfgen.figures.plots import curves_picture
from hfgen.judges.judge import judges_numbers
from hfgen.judges.statistics import RealStatistics, jackknife
from hfgen.pipelines.loading import load
from hfgen.runs.checkpoints import MANIFEST
from hfgen.runs.folder import COMPARISON, COMPARISON_PAGE, COMPARISON_PICTURES, run_fields
from hfgen.sampling.learnt_steps import (
    LearntSteps,
    learn_steps,
    require_free_solver,
    save_learnt_steps,
    steps_file,
)
from hfgen.sampling.sample import (
    check_sampling,
    decodes,
    default_sampler,
    dtype_of,
    image_shape_of,
    is_conditional,
    is_guided,
    network_of,
    require_diffusion,
    sample,
    takes_few_steps,
    with_time_steps,
)
from hfgen.sampling.schedulers import LearntEntry, learnt_steps, suitable_schedulers
from hfgen.utils.errors import UserError
from hfgen.utils.files import check_output, remove_leftovers
from hfgen.utils.progress import progress_bar

TOLERANCE = 0.05  # a setting is as good as the best if it ties with it, or exceeds the lowest Fréchet distance by no
# more than this fraction
USUAL_SCHEDULERS = ("ddim", "flow_euler", "dpmsolver", "dpmsolver_sde", "unipc")
OF_ALL = "above_best_of_all"  # the difference from the best setting of all models
FEW_STEPS = (1, 2)  # of models for it, beside their own number
SHOWN_IMAGES = 12
TIMED_IMAGES = 50
TIMINGS = 3  # per setting, interleaved with the others


def compare_samplers(config: CompareSamplersConfig) -> Path:
    """Sample each model with each setting, with all processes, evaluate the images, and write the report.

    Returns:
        The path of `comparison.json`; `comparison.md` and its figures are in the same folder.

    Raises:
        UserError: before sampling, if a model, a setting, the data or the judges do not fit.
    """
    return together(functools.partial(_compare, config))


def _compare(config: CompareSamplersConfig) -> Path:
    names = [name_of(run) for run in config.runs]
    if len(set(names)) < len(names):
        raise UserError(f"runs must differ in the names of their folders: {', '.join(names)}")
    models = [_load_model(config, run) for run in config.runs]
    _require_diffusion_model(config, models)
    references = load_references(config, models[0].fields, config.runs[0], config.num_images)
    judged = references[0] if references[0].extractor.label_names else None
    reference = references[-1] if config.features or config.inception else references[0]
    fewest = min(config.num_images, len(reference.test), len(reference.train))
    if fewest <= (needed := reference.extractor.num_features):
        raise UserError(
            f"settings are compared by the Fréchet distance, which in the {needed:,} features of "
            f"{reference.extractor.name} needs more than {needed:,} generated, training and test images "
            f"each, not {fewest:,}; set a larger --num_images or other --features"
        )
    for run, model in zip(config.runs, models, strict=True):
        check_size(image_shape_of(model.pipeline), run, reference.test)
        if is_conditional(model.pipeline):
            model.labels = labels_like(reference.train, config.seed)
            if judged:
                judges_numbers(sorted(set(model.labels)), run, judged.extractor.label_names)
    asked = [(model, sampler) for model in models for sampler in _samplers(config, model)]
    for model, sampler in asked:
        check_sampling(model.pipeline, class_labels=sorted(set(model.labels)), **sampler)
    output = Path(config.output_dir) if config.output_dir else default_output(config.runs[0])
    output.mkdir(parents=True, exist_ok=True)
    remove_leftovers(output)
    for model in models:
        _learn(config, model)
    settings = [(model, each) for model, sampler in asked for each in _with_learnt_steps(model, sampler)]
    rows, shown = [], []
    costs = _costs(settings)
    for (model, sampler), cost in zip(progress_bar(settings, "settings", unit="setting"), costs, strict=True):
        row, images = _try_setting(config, model, sampler, reference, judged, output)
        rows.append({"model": model.name, **sampler, **cost, **row})
        shown.append(images)
    learnt = [_keep_learnt_steps(config, model, rows, count) for model in models for count in model.learnt]
    return _save(config, dtype_of(models[0].pipeline), rows, learnt, torch.cat(shown), reference, judged, output)


@dataclass
class _Model:
    """A model to sample, the configuration of its run, its class labels if any, and what it has learnt here."""

    name: str
    source: str
    pipeline: DiffusionPipeline
    fields: dict[str, Any]
    labels: list[str] = field(default_factory=list)
    learnt: dict[int, LearntSteps] = field(default_factory=dict)
    solver: str = ""  # for which it has learnt


def _load_model(config: CompareSamplersConfig, run: str) -> _Model:
    pipeline = load(run, **config.loading_options())
    model = _Model(name_of(run), run, pipeline, run_fields(Path(run).expanduser()))
    if not _is_denoised(pipeline):
        return model
    require_diffusion(pipeline)
    if (config.guidance_scale or config.guidance_interval) and not is_guided(pipeline):
        raise UserError(f"{run} is unconditional, so guidance does not apply")
    if config.learn_steps:
        named = [name for name, _ in config.settings(config.scheduler)]
        model.solver = [*named, default_sampler(pipeline, model.fields)["scheduler"]][0]
        require_free_solver(model.solver)
        if file := _steps_file(model):
            check_output(file, is_folder=False)
    return model


def _is_denoised(pipeline: DiffusionPipeline) -> bool:
    """Return whether a pipeline denoises with a scheduler that can be chosen."""
    return not decodes(pipeline) and not takes_few_steps(pipeline)


def _require_diffusion_model(config: CompareSamplersConfig, models: list[_Model]) -> None:
    """Check that there is a model for the options of diffusion models."""
    options = ("scheduler", "num_inference_steps", "guidance_scale", "guidance_interval", "learn_steps")
    usual = defaults(CompareSamplersConfig)
    given = [name for name in options if getattr(config, name) != usual[name]]
    if given and not any(_is_denoised(model.pipeline) for model in models):
        raise UserError(f"{given[0]} applies to diffusion models only, and none of the runs is one")


def _samplers(config: CompareSamplersConfig, model: _Model) -> list[dict[str, Any]]:
    """List the samplers to compare: each scheduler and number of steps with each guidance scale, or the only one."""
    own = default_sampler(model.pipeline, model.fields)
    if decodes(model.pipeline):
        return [own]
    if takes_few_steps(model.pipeline):
        return [{"num_inference_steps": count} for count in sorted({*FEW_STEPS, own["num_inference_steps"]})]
    guidance = {name: own[name] for name in GUIDANCE if name in own}
    if guidance and config.guidance_interval:
        guidance["guidance_interval"] = config.guidance_interval
    settings = config.settings(config.scheduler) or _usual_settings(config, model)
    settings = list(dict.fromkeys([*settings, *((model.solver, steps) for steps in config.learn_steps)]))
    guidances = [guidance | {"guidance_scale": scale} for scale in config.guidance_scale] or [guidance]
    return [
        {"scheduler": name, "num_inference_steps": steps} | chosen for chosen in guidances for name, steps in settings
    ]


def _usual_settings(config: CompareSamplersConfig, model: _Model) -> list[tuple[str, int]]:
    """Return the usual schedulers with each number of steps with which they fit a model, and say which do not."""
    own, fitting = model.pipeline.scheduler, []
    for steps in config.num_inference_steps:
        possible = min(steps, own.config.num_train_timesteps)  # more are refused later
        fitting += [(name, steps) for name in suitable_schedulers(own, possible, USUAL_SCHEDULERS)]
    if left_out := [name for name in USUAL_SCHEDULERS if name not in dict(fitting)]:
        print(f"hfgen: {model.name} does not fit {', '.join(left_out)}, which are left out", file=sys.stderr)
    if not fitting:
        raise UserError(f"{model.name} fits none of {', '.join(USUAL_SCHEDULERS)}; set scheduler")
    return fitting


def _learn(config: CompareSamplersConfig, model: _Model) -> None:
    """Learn time steps with the guidance that is compared."""
    if not model.solver:
        return
    sampler = _samplers(config, model)[0] | {"scheduler": model.solver}
    model.learnt = learn_steps(model.pipeline, sampler, config.learn_steps, model.labels, config.seed)


def _with_learnt_steps(model: _Model, sampler: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a sampler with even steps, those that the model has saved for it, and those that it has learnt here."""
    grids = [with_time_steps(model.pipeline, sampler).get("time_steps")]
    if sampler.get("scheduler") == model.solver and (found := model.learnt.get(sampler["num_inference_steps"])):
        grids.append(found.time_steps)
    different = [grid for index, grid in enumerate(grids) if grid and grid not in grids[:index]]
    return [sampler | {"time_steps": grid} for grid in (None, *different)] if different else [sampler]


def _keep_learnt_steps(
    config: CompareSamplersConfig, model: _Model, rows: list[dict[str, Any]], count: int
) -> dict[str, Any]:
    """Save the time steps that were learnt for a number of steps if they are better, and return what was learnt."""
    setting, found = (model.name, model.solver, count), model.learnt[count]
    names = ("model", "scheduler", "num_inference_steps")
    *rivals, learnt = [row for row in rows if tuple(map(row.get, names)) == setting]
    others = dict(zip(("even steps", "those saved before"), rivals, strict=False))
    saved, file = _verdict(learnt, others), _steps_file(model)
    if saved == "yes" and file is None:
        saved = "no, only a finished run or a folder of a pipeline can keep them"
    if saved == "yes":
        guidance = {name: learnt[name] for name in GUIDANCE if name in learnt}
        origin = {"reference_split": config.reference_split, "num_images": config.num_images}
        save_learnt_steps(file, model.solver, count, LearntEntry(**found.time_steps, guidance=guidance, **origin))
    elif learnt_steps(model.pipeline.scheduler, model.solver, count):
        saved += "; those saved before stay"
    return {
        "model": model.name,
        "scheduler": model.solver,
        "num_inference_steps": count,
        **found._asdict(),
        "frechet_distance": {name: _distance(row) for name, row in (others | {"learnt": learnt}).items()},
        "saved": saved,
    }


def _verdict(learnt: dict[str, Any], others: dict[str, dict[str, Any]]) -> str:
    """Tell whether a setting has a lower Fréchet distance than others, by more than two standard deviations."""
    for name, other in others.items():
        value, std = _difference(learnt, other).values()
        if std is None:
            return "no, of too few images for a standard deviation"
        if value > MARGIN * std:
            return f"no, {name} are better"
        if value >= -MARGIN * std:
            return f"no, a tie with {name}"
    return "yes"


def _steps_file(model: _Model) -> Path | None:
    """Return the file in which a model keeps learnt time steps.

    It is None for the name of a recipe, a Hub id, and a checkpoint, whose manifest would no longer fit.
    """
    file = steps_file(model.pipeline)
    is_own = Path(model.source).expanduser().is_dir() and not (file.parents[1] / MANIFEST).exists()
    return file if is_own else None


def _try_setting(
    config: CompareSamplersConfig,
    model: _Model,
    sampler: dict[str, Any],
    reference: RealStatistics,
    judged: RealStatistics | None,
    output: Path,
) -> tuple[dict[str, Any], torch.Tensor]:
    generated = generate(
        model.pipeline,
        model.source,
        config.loading_options(),
        {"model": model.name},
        sampler | {"seed": config.seed},
        config.num_images,
        config.batch_size,
        output / COMPARISON_PICTURES,
        model.labels,
        judged.extractor.label_names if judged else [],
    )
    features, logits = reference.extractor.extract(generated.images)
    row: dict[str, Any] = reference.measures(features)
    row["frechet_distance"]["without_each_tenth"] = reference.frechet_distances_without(features)
    if generated.labels is not None:
        if logits is None:
            _, logits = judged.extractor.extract(generated.images)
        row["accuracy"] = (logits.argmax(1) == generated.labels).double().mean().item()
    return row, generated.images[:SHOWN_IMAGES]


def _costs(settings: list[tuple[_Model, dict[str, Any]]]) -> list[dict[str, float]]:
    """Count the network evaluations per image, and time the sampling of a batch.

    The machine's load varies and a first batch is slow, so each model samples an untimed batch first, the timings of
    the settings are interleaved, and the fastest counts.
    """
    for model, sampler in {model.name: (model, sampler) for model, sampler in settings}.values():
        _sample_batch(model, sampler)
    rounds = [
        [_sample_batch(model, sampler) for model, sampler in settings]
        for _ in progress_bar(range(TIMINGS), "timing", unit="round")
    ]
    return [
        {"network_evaluations": timings[0][0], "milliseconds_per_image": round(1000 * min(t for _, t in timings), 3)}
        for timings in zip(*rounds, strict=True)
    ]


def _sample_batch(model: _Model, sampler: dict[str, Any]) -> tuple[float, float]:
    """Sample a batch; return the network evaluations and the seconds per image."""
    evaluated: list[int] = []
    networks = [network_of(model.pipeline), getattr(model.pipeline, "guide", None)]
    hooks = [
        network.register_forward_hook(lambda network, arguments, output: evaluated.append(len(arguments[0])))
        for network in networks
        if network is not None
    ]
    started = time.monotonic()
    options = {"num_images": TIMED_IMAGES, "batch_size": TIMED_IMAGES, "class_labels": model.labels, **sampler}
    for _ in sample(model.pipeline, **options):
        pass
    for hook in hooks:
        hook.remove()
    calls = 1 if decodes(model.pipeline) else sum(evaluated) / TIMED_IMAGES
    return calls, (time.monotonic() - started) / TIMED_IMAGES


def compare_with_best(rows: list[dict[str, Any]], name: str = "above_best") -> None:
    """Add to each row the difference of its Fréchet distance from the lowest, as `name`, with value and std.

    Its standard error is a paired jackknife over tenths of the images, since image i of a model starts from the same
    noise in both; it is None if there are too few images.
    """
    best = min(rows, key=_distance)
    for row in rows:
        row[name] = _difference(row, best)


def _difference(row: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return the difference of two Fréchet distances, with value and std (see `compare_with_best`)."""
    pairs = zip(*(each["frechet_distance"]["without_each_tenth"] for each in (row, other)), strict=True)
    differences = [one - another for one, another in pairs]
    return {"value": _distance(row) - _distance(other), "std": jackknife(differences) if differences else None}


def cheapest(rows: list[dict[str, Any]], name: str = "above_best") -> dict[str, Any]:
    """Return the row with the fewest network evaluations that is as good as the best (see `compare_with_best`)."""
    best = min(map(_distance, rows))
    good = [row for row in rows if is_tie(row, name) or row[name]["value"] <= TOLERANCE * best]
    return min(good, key=lambda row: (row["network_evaluations"], _distance(row)))


def _distance(row: dict[str, Any]) -> float:
    return row["frechet_distance"]["value"]


def _save(
    config: CompareSamplersConfig,
    dtype: str,
    rows: list[dict[str, Any]],
    learnt: list[dict[str, Any]],
    images: torch.Tensor,
    reference: RealStatistics,
    judged: RealStatistics | None,
    output: Path,
) -> Path:
    extractor = reference.extractor
    floor = reference.floors(config.num_images).get("train_against_test", {})
    by_model: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_model.setdefault(row["model"], []).append(row)
    for group in by_model.values():
        compare_with_best(group)
    of_all = {}
    if len(by_model) > 1:
        compare_with_best(rows, OF_ALL)
        of_all = {"cheapest_of_all": cheapest(rows, OF_ALL)}
    record = {
        "protocol": {
            "num_images": config.num_images,
            "seed": config.seed,
            "dataset": public_name(reference.test.source),
            "reference_split": config.reference_split,
            **({"judge": judged.extractor.name, "judge_sha256": judged.extractor.sha256} if judged else {}),
            "features": {} if reference is judged else {extractor.name: extractor.facts()},
            "device": str(extractor.device),
            "dtype": dtype,
            "threads": torch.get_num_threads(),
        },
        "judge_accuracy": {judged.extractor.name: judged.accuracy} if judged and judged.accuracy else {},
        "real_images": floor,
        "settings": rows,
        "cheapest": {name: cheapest(group) for name, group in by_model.items()},
        **of_all,
        **({"learnt_steps": learnt} if learnt else {}),
    }
    labels = [(f"{row['model']}: " if len(by_model) > 1 else "") + sampler_text(row) for row in rows]
    (output / COMPARISON_PICTURES).mkdir(exist_ok=True)
    save_picture(curves_picture(rows, floor, labels, config.num_images), output / COMPARISON_PICTURES / "curves.png")
    numbers = [index for index in range(len(rows)) for _ in range(SHOWN_IMAGES)]
    save_picture(sample_grid(images, numbers, labels), output / COMPARISON_PICTURES / "images.png")
    return save_record(record, _page(record), output, record_file=COMPARISON, page_file=COMPARISON_PAGE)


def _page(record: dict[str, Any]) -> str:
    return render_report("comparison.md", record=record, tolerance=TOLERANCE)
