"""What the numbers of a record say, in plain sentences: the top of each page."""

import itertools
import math
from collections.abc import Callable, Iterable
from statistics import NormalDist
from typing import Any, NamedTuple

from hfgen.utils.markdown import accuracy_text, number, percent, with_error, with_std

WEAK_JUDGE = 2 / 3  # accuracy on real images below which a judge is unreliable
FEW_IMAGES = 1000  # below it small differences are lost in the noise
MARGIN = 2  # standard deviations of a difference within which two values count as equal
COPIED = 0.2  # proportion of images closer to training images than unseen ones are, above which they seem copied
CHANCE = 0.01  # probability that some class of a faultless model is called too rare or too frequent
SHARES = (0.95, 0.9, 0.75, 0.5)  # of the value of real images: a metric has as many levels as it is below these
RATIOS = (1, 3, 30)  # of the Fréchet distance to that of real images: as many levels as it is above these
EDGE, TYPICAL = 0.6, 1.1  # of the density of real images: below and above it is mentioned
CLOSENESS = (
    "are as close to real images as other real images are",
    "are close to real ones",
    "differ from real ones",
    "are far from real ones",
)
FIDELITY = (  # by the level of the precision
    "They look as real as real images",
    "They look nearly as real as real images",
    "Most of them look real",
    "Many of them do not look real",
    "Few of them look real",
)
VARIETY = (  # by the level of the recall
    "They are as varied as real images",
    "They are nearly as varied as real images",
    "They are less varied than real images",
    "They are clearly less varied than real images",
    "They have little variety",
)
RECONSTRUCTIONS = (  # by the level of the class accuracy
    "Reconstructions are as recognisable as their images",
    "Reconstructions are nearly as recognisable as their images",
    "Some reconstructions lose their class",
    "Many reconstructions lose their class",
    "Most reconstructions lose their class",
)
NONE, FEW, MANY = "next to no images of", "too few images of", "too many images of"


def verdict(record: dict[str, Any]) -> list[str]:
    """Return what a record says, in plain sentences without Markdown, problems first.

    Args:
        record: An `evaluation.json` (of generated images, an image-to-image model or a classifier), an
            `analysis.json` or a `comparison.json`, of this or an earlier version.
    """
    return problems(record) + findings(record)


def problems(record: dict[str, Any]) -> list[str]:
    """Return what went wrong in training, and what makes the numbers of a record unreliable."""
    found = [f"Training reported a problem: {problem}." for problem in record.get("training", {}).get("problems", [])]
    found += weak_judges(record.get("judge_accuracy", {}))
    found += weak_judges({judge: kept["images"] for judge, kept in record.get("class_kept", {}).items()})
    if "measures" in record and not record["memorization"]:
        seen, count = (record["protocol"][name] for name in ("reference_images_in_training", "reference_images"))
        if seen:
            known = f"{seen:,} of the {count:,} reference images are among the training images"
            found.append(f"{known}: the model is judged by images it has seen, and memorisation cannot be measured.")
    return found


def weak_judges(accuracies: dict[str, dict[str, Any]]) -> list[str]:
    """Describe judges with low accuracy on real images, given the results of `accuracy_of`."""
    return [
        f"The judge {judge} has an accuracy of only {accuracy_text(found)} on real images: its predictions and "
        "distances in its feature space are unreliable."
        for judge, found in accuracies.items()
        if found["accuracy"] < WEAK_JUDGE
    ]


def findings(record: dict[str, Any]) -> list[str]:
    """Return what a record says, apart from its problems."""
    kinds: dict[str, Callable[[dict[str, Any]], list[str]]] = {
        "measures": _of_images,
        "accuracy": _of_classifier,
        "restoration": _of_restoration,
        "bounds": _of_analysis,
        "settings": _of_comparison,
    }
    return next((describe(record) for key, describe in kinds.items() if key in record), [])


def judges_disagree(record: dict[str, Any]) -> bool:
    """Return whether the feature spaces of an `evaluation.json` disagree on how good its images are."""
    return any(" disagree on how " in sentence for sentence in findings(record))


def tied(one: dict[str, float | None], other: dict[str, float | None]) -> bool:
    """Return whether metrics of two models differ by no more than two standard deviations of the difference."""
    stds = [metric["std"] for metric in (one, other)]
    return None not in stds and abs(one["value"] - other["value"]) <= MARGIN * math.hypot(*stds)


def listed(parts: Iterable[str], shown: int = 6) -> str:
    """List at most so many words, and the number of the others."""
    words = list(parts)
    if len(words) > shown:
        words = [*words[: shown - 1], f"{len(words) - shown + 1} others"]
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


class _Space(NamedTuple):
    """The metrics of images in one feature space, and those of real images in their place."""

    name: str
    measures: dict[str, dict[str, float | None]]
    floor: dict[str, float]
    is_judge: bool

    def ratio(self, metric: str) -> float:
        value, floor = self.measures[metric]["value"], self.floor[metric]
        return value / floor if floor > 0 else math.inf if value > 0 else 1.0

    def is_real(self, metric: str) -> bool:
        """Return whether a metric is that of real images, within two of its standard deviations."""
        measure = self.measures[metric]
        return abs(measure["value"] - self.floor[metric]) <= MARGIN * (measure["std"] or 0)

    def level(self, metric: str) -> int:
        """Return how much worse than that of real images a metric is, from 0 (no worse) to 3 or 4."""
        if self.is_real(metric):
            return 0
        ratio = self.ratio(metric)
        return sum(ratio > bound for bound in RATIOS) if metric == "frechet_distance" else _level(ratio)

    def is_at_the_edge(self) -> bool:
        """Return whether images that look real do so because of a few unusual real ones."""
        return self.ratio("density") < EDGE and not self.is_real("density")

    def is_typical(self) -> bool:
        return self.ratio("density") > TYPICAL and not self.is_real("density")


def _level(ratio: float) -> int:
    return sum(ratio < share for share in SHARES)


def _of_images(record: dict[str, Any]) -> list[str]:
    floors = {name: next(iter(found.values()), None) for name, found in record["floors"].items()}
    spaces = [
        _Space(name, measures, floor, name in record["classes"])
        for name, measures in record["measures"].items()
        if (floor := floors.get(name))
    ]
    said = copied = _copied(record)
    if spaces:
        said = [*said, _closeness(spaces), _fidelity(spaces), _variety(spaces)]
    else:
        said = [*said, "There were too few real images to compare with, so the metrics cannot be judged."]
    is_unlike = any(space.level("precision") >= 3 for space in spaces)
    said = said + _classes(record, is_unlike) + _requested(record) + _score(record)
    if any(" disagree on " in sentence for sentence in said):
        said.append(f"Where {_those(spaces).lower()} disagree, the numbers do not decide: look at the images.")
    if record["memorization"] and not copied:
        said.append("There is no clear sign that training images are copied.")
    if (count := record["protocol"]["num_images"]) < FEW_IMAGES:
        said.append(f"Only {count:,} images were measured, so small differences cannot be seen.")
    return said


def _copied(record: dict[str, Any]) -> list[str]:
    """Tell whether training images are copied: then both the gap and the proportion nearer to them are raised."""
    said, protocol = [], record["protocol"]
    if copies := record.get("copies_of_reference_images"):  # missing in records of earlier versions
        said.append(
            f"Exact copies of reference images make up {copies:,} of the {protocol['num_images']:,} images, so the "
            "metrics do not show how good a model is."
        )
    if copies := record["copies_of_training_images"]:
        also = protocol["reference_images_in_training"]
        real = f", as are {also:,} of the {protocol['reference_images']:,} reference images" if also else ""
        count = f"{copies:,} of the {protocol['num_images']:,}"
        said.append(f"Exact copies of training images make up {count} images{real}.")
    for sets in record["memorization"].values():
        if not (found := sets.get("generated")) or (std := found.get("nearer_to_training_std")) is None:
            continue  # of too few images, or a record of an earlier version
        real_gap = sets.get("real", {"gap": 0.0, "gap_std": 0.0})
        excess = found["gap"] - max(0.0, real_gap["gap"])
        is_raised = excess > 3 * math.hypot(found["gap_std"], real_gap["gap_std"])
        if is_raised and found["nearer_to_training"] - 0.5 > 3 * std:
            nearer, gap = _share(found["nearer_to_training"]), f"{found['gap']:.1f} ± {found['gap_std']:.1f}"
            said += [
                f"Training images seem to be copied: {nearer} of the images are nearer to a training image than to "
                f"any unseen one (by chance 50% ± {percent(std, 0)}), and the memorisation gap is {gap}.",
                "Good values below therefore do not show that the model makes new images.",
            ]
            return said
    found = [sets.get("generated", {}) for sets in record["memorization"].values()]
    closer = min((one.get("closer_than_unseen", 0.0) for one in found), default=0.0)  # newer than some records
    if closer > COPIED and not said:
        said = [
            f"Training images seem to be copied: {_share(closer)} of the images are closer to a training image than "
            "99% of unseen images are.",
            "Good values below therefore do not show that the model makes new images.",
        ]
    return said


def _closeness(spaces: list[_Space]) -> str:
    spaces = [space for space in spaces if "frechet_distance" in space.measures.keys() & space.floor.keys()]
    if not spaces:
        return "There are too few images for a Fréchet distance in these features."
    levels, numbers = _levels(spaces, "frechet_distance"), _numbers(spaces, "frechet_distance", "Fréchet distance")
    if _is_disputed(levels):
        return f"{_those(spaces)} disagree on how close the images are to real ones ({numbers})."
    level, is_unreal = max(levels), min(_levels(spaces, "precision")) >= 3
    said = f"The images {CLOSENESS[3 if is_unreal and level == 2 else level]} ({numbers})."
    is_beyond = is_unreal and min(levels) == 3
    return said + " At such distances, a smaller one need not mean better images." * is_beyond


def _fidelity(spaces: list[_Space]) -> str:
    levels, numbers, density = _levels(spaces, "precision"), _numbers(spaces, "precision"), _numbers(spaces, "density")
    if _is_disputed(levels):
        return f"{_those(spaces)} disagree on how many of them look real ({numbers})."
    if not any(space.measures["precision"]["value"] for space in spaces):
        return f"None of them looks real ({numbers})."
    if max(levels) < 3 and all(space.is_at_the_edge() for space in spaces):
        return f"{FIDELITY[2]} ({numbers}), but like unusual images ({density})."
    if max(levels) < 2 and all(space.is_typical() for space in spaces):
        return f"{FIDELITY[max(levels)]} ({numbers}), and more typical ({density})."
    return f"{FIDELITY[max(levels)]} ({numbers})."


def _variety(spaces: list[_Space]) -> str:
    levels, recall, coverage = _levels(spaces, "recall"), _numbers(spaces, "recall"), _numbers(spaces, "coverage")
    if _is_disputed(levels):
        return f"{_those(spaces)} disagree on how varied they are ({recall}; {coverage})."
    if max(levels) < 2 and min(_levels(spaces, "precision")) >= 3:
        return f"The recall of images that do not look real does not show that they are varied ({recall}; {coverage})."
    text, is_edge = VARIETY[max(levels)], all(space.is_at_the_edge() for space in spaces)
    if max(_levels(spaces, "coverage")) < 2:
        return f"{text} ({recall}; {coverage})."
    if is_edge and max(levels) >= 3:  # where few look real, low numbers do not show that all look alike
        usual = "as is usual for blurred, noisy, deformed or repeated images"
        return f"They reach far fewer of the real images than other real images do ({coverage}; {recall}), {usual}."
    reason = ", as is usual for blurred, noisy or deformed images" if is_edge else ""
    return f"{text} ({recall}), {'and' if max(levels) > 1 else 'but'} reach fewer of them ({coverage}){reason}."


def _levels(spaces: list[_Space], metric: str) -> list[int]:
    return [space.level(metric) for space in spaces]


def _is_disputed(levels: list[int]) -> bool:
    return max(levels) > 2 and max(levels) - min(levels) > 1


def _numbers(spaces: list[_Space], metric: str, title: str = "") -> str:
    """Write a metric beside that of real images: in the first feature space, or in all if their levels differ."""

    def text(measure: dict[str, float | None]) -> str:
        return with_std(measure) if metric == "frechet_distance" else f"{measure['value']:.2f}"

    values = {space.name: text(space.measures[metric]) for space in spaces}
    real = {space.name: text({"value": space.floor[metric], "std": None}) for space in spaces}
    if len(set(_levels(spaces, metric))) == 1 or len(set(values.values())) == 1:
        return f"{title or metric} {values[spaces[0].name]}, real images {real[spaces[0].name]}"
    each = listed(f"{value} by {name}" for name, value in values.items())
    return f"{title or metric} {each}, real images {listed(dict.fromkeys(real.values()))}"


def _those(spaces: list[_Space]) -> str:
    return "The judges" if all(space.is_judge for space in spaces) else "The networks"


def _classes(record: dict[str, Any], is_unlike: bool) -> list[str]:
    """Name the classes that all judges find too rare or too frequent, and tell how far the judges agree."""
    if not record["classes"]:
        return []
    names = next(iter(record["classes"].values()))["label_names"]
    shares = {judge: found["shares"] for judge, found in record["classes"].items()}
    tops = {judge: max(zip(found["generated"], names, strict=True)) for judge, found in shares.items()}
    if all(top > 0.9 and max(shares[judge]["real"]) < 0.5 for judge, (top, _) in tops.items()):
        each = dict.fromkeys(name for _, name in tops.values())
        if len(each) == 1:
            return [f"Nearly all of them are taken for one class ({listed(each)})."]
        taken = listed(f"{name} by {judge}" for judge, (_, name) in tops.items())
        return [f"Nearly all of them are taken for one class, but the judges disagree on which ({taken})."]
    pairs = list(itertools.combinations(shares.values(), 2))
    apart, usual = (max((_apart(*pair, kind) for pair in pairs), default=0.0) for kind in ("generated", "real"))
    doubt = f"The judges disagree on the class of at least {_share(apart)} of them"
    if apart > 0.5:
        return [f"{doubt}, so their classes cannot be counted."]
    if is_unlike and not pairs:
        return ["They are so unlike real images that a judge cannot count their classes."]
    counts = record["protocol"]["num_images"], record["protocol"]["reference_images"]
    marks = zip(*(_marks(found["generated"], found["real"], *counts) for found in shares.values()), strict=True)
    found: dict[str, list[str]] = {NONE: [], FEW: [], MANY: []}
    for name, of_name in zip(names, map(set, marks), strict=True):
        if "" not in of_name and (of_name <= {NONE, FEW} or of_name == {MANY}):
            found[NONE if of_name == {NONE} else FEW if FEW in of_name else MANY].append(name)
    text = "; ".join(f"{words} {listed(those)}" for words, those in found.items() if those)
    doubtful = "As far as judges recognise images so unlike real ones: "
    said = [f"{doubtful}{text}." if is_unlike else f"{text[0].upper()}{text[1:]}."] if text else []
    if apart > usual + 0.1:
        said.append(f"{doubt}, so the frequencies of the classes are uncertain.")
    return said or ["No class is clearly too rare or too frequent."]


def _apart(one: dict[str, list[float]], other: dict[str, list[float]], kind: str) -> float:
    """Return the least proportion of images that two judges classify differently."""
    return sum(abs(a - b) for a, b in zip(one[kind], other[kind], strict=True)) / 2


def _marks(generated: list[float], real: list[float], num_images: int, num_real: int) -> list[str]:
    """Describe frequencies of classes that differ from those of real images beyond chance (z test, Bonferroni)."""
    bound, marks = NormalDist().inv_cdf(1 - CHANCE / (2 * len(real))), []
    for found, expected in zip(generated, real, strict=True):
        pooled = (found * num_images + expected * num_real) / (num_images + num_real)
        std = math.sqrt(pooled * (1 - pooled) * (1 / num_images + 1 / num_real))
        low = NONE if found < 0.1 * expected else FEW
        marks.append("" if abs(found - expected) <= bound * std else low if found < expected else MANY)
    return marks


def _requested(record: dict[str, Any]) -> list[str]:
    """Compare the class accuracy of images of given classes with that of real images."""
    pairs = {judge: (made, record["judge_accuracy"].get(judge)) for judge, made in record["conditional"].items()}
    if not pairs:
        return []
    made, real = ([_percent(found) for found in part if found] for part in zip(*pairs.values(), strict=True))
    orders = [_order(*pair) for pair in pairs.values() if pair[1]]
    if not orders:
        return [f"{made[0]} of them show the requested class."]
    numbers, baselines = made[0], real[0]
    if len(set(orders)) > 1:
        numbers = listed(f"{found} by {judge}" for found, judge in zip(made, pairs, strict=True))
        baselines = listed(real)
    if {"less often than", "more often than"} <= set(orders):
        how = "The judges disagree on how often they show the requested class"
    else:  # the most cautious of the judges counts
        order = min(orders, key=["less often than", "as often as", "more often than"].index)
        how = f"They show the requested class {order} real images do"
    return [f"{how} ({numbers}, real images {baselines})."]


def _order(one: dict[str, Any], other: dict[str, Any]) -> str:
    """Compare accuracies; they are equal within two standard deviations of their difference."""
    difference = one["accuracy"] - other["accuracy"]
    if abs(difference) <= MARGIN * math.hypot(one["accuracy_std"], other["accuracy_std"]):
        return "as often as"
    return "more often than" if difference > 0 else "less often than"


def _score(record: dict[str, Any]) -> list[str]:
    if not (score := record.get("classification_accuracy_score")):
        return []
    made, real = score["generated"], score["real"]
    order, numbers = _order(made, real), f"{_percent(made)}; {_percent(real)}"
    return [f"A classifier trained on them is right {order} one trained on real images ({numbers})."]


def _percent(found: dict[str, Any]) -> str:
    return percent(found["accuracy"], 1)


def _share(value: float) -> str:
    """Write a proportion in per cent, without rounding it to none or all."""
    if 0 < value < 0.005:
        return "under 1%"
    return "over 99%" if 0.995 <= value < 1 else percent(value, 0)


def _span(values: Iterable[float]) -> str:
    """Write the range of some proportions."""
    found = [f"{value:.1%}" for value in sorted(values)]
    return found[0] if found[0] == found[-1] else f"{found[0]} to {found[-1]}"


def _of_classifier(record: dict[str, Any]) -> list[str]:
    named = zip(record["accuracy_per_class"], record["label_names"], strict=True)
    worst, name = min(pair for pair in named if pair[0] is not None)
    said = [f"It classifies {accuracy_text(record)} of the test images correctly, least often {name} ({worst:.1%})."]
    return said + ["That is too little for a judge."] * (record["accuracy"] < WEAK_JUDGE)


def _of_restoration(record: dict[str, Any]) -> list[str]:
    said, settings = [], record["restoration"]
    changes = {True: [], False: []}  # by whether the output is better
    for one in settings:
        if "psnr" in one["given"] and "psnr" in one["made"]:
            before, after = one["given"]["psnr"], one["made"]["psnr"]
            changes[after > before].append(f"{before:.1f} → {after:.1f} dB for {one['title']}")
    for is_better, texts in changes.items():
        if texts:
            words = "closer to the targets" if is_better else "no closer to the targets"
            said.append(f"The outputs are {words} than the inputs are (PSNR {listed(texts)}).")
    made, given = (
        [found["accuracy"] for one in settings for found in one[part]["class_seen"].values()]
        for part in ("made", "given")
    )
    if made and given:
        real = _span(found["accuracy"] for found in record["judge_accuracy"].values())
        shares = f"{_span(made)} of the outputs, {_span(given)} of the inputs and {real} of the test images"
        said.append(f"Judges recognise the class of {shares}.")
    return said


def _of_analysis(record: dict[str, Any]) -> list[str]:
    said = []
    if pairs := [(kept["reconstructions"], kept["images"]) for kept in record["class_kept"].values()]:
        is_lost = any(_order(*pair) == "less often than" for pair in pairs)
        level = max(_level(made["accuracy"] / (images["accuracy"] or 1)) for made, images in pairs)
        made, images = (_span(found["accuracy"] for found in part) for part in zip(*pairs, strict=True))
        text = RECONSTRUCTIONS[max(1, level) if is_lost else 0]
        said.append(f"{text} (judges are right on {made} of them and {images} of the images).")
    active, total, bounds = record["active_units"], record["protocol"]["latent_dim"], record["bounds"]
    if active:
        others = "" if active == total else "; the others carry no information"
        said.append(f"{active} of {total} latent dimensions are active{others}.")
    else:
        said.append("The posterior has collapsed: no latent dimension is active, so the decoder ignores the latents.")
    bound = bounds["negative_importance_weighted_bound"]
    gain = number(bounds["negative_elbo"]["value"] - bound["value"])
    return [
        *said,
        f"The importance-weighted bound is {with_error(bound)} nats per image (lower is better), {gain} tighter than "
        "the ELBO.",
    ]


def _of_comparison(record: dict[str, Any]) -> list[str]:
    said: list[str] = []
    for model, cheap in record["cheapest"].items():
        of_it = []
        rows = [row for row in record["settings"] if row["model"] == cheap["model"]]
        best = min(rows, key=lambda row: row["frechet_distance"]["value"])
        reached = f", real images {number(real['frechet_distance'])}" if (real := record["real_images"]) else ""
        distance = f"Fréchet distance {with_std(best['frechet_distance'])}{reached}"
        of_it.append(f"The best images come from {sampler_text(best)} ({distance}).")
        if ties := [sampler_text(row) for row in rows if row is not best and is_tie(row)]:
            of_it.append(f"A tie, within two standard deviations of the difference: {listed(ties, shown=4)}.")
        if cheap["network_evaluations"] < best["network_evaluations"]:
            of_it.append(f"The cheapest setting as good as the best is {sampler_text(cheap)}: {_cost(cheap)}.")
        several = len(record["cheapest"]) > 1
        said += [f"{model}: {text[0].lower()}{text[1:]}" if several else text for text in of_it]
    if cheap := record.get("cheapest_of_all"):
        said.append(
            f"Of all models, the cheapest setting as good as the best is {cheap['model']} with {sampler_text(cheap)}: "
            f"{_cost(cheap)}, Fréchet distance {with_std(cheap['frechet_distance'])}."
        )
    return said


def _cost(setting: dict[str, Any]) -> str:
    count = number(setting["network_evaluations"])
    return f"{count} network evaluation{'s' if count != '1' else ''} per image"


def is_tie(row: dict[str, Any], name: str = "above_best") -> bool:
    """Return whether a setting of a comparison is within two standard deviations of its difference from the best."""
    above = row.get(name, {"value": math.inf, "std": None})  # missing in records of earlier versions
    return above["std"] is not None and above["value"] <= MARGIN * above["std"]


def sampler_text(sampler: dict[str, Any]) -> str:
    """Describe a sampler, from a protocol or the options of `hfgen.sampling.sample.sample`."""
    if "prior" in sampler:
        return f"{sampler['prior']} prior"
    if "truncation" in sampler:
        truncation = sampler["truncation"]
        return "one step" if truncation is None else f"one step, latents within {truncation:g}"
    if "scheduler" not in sampler:
        steps = sampler.get("num_inference_steps")  # of a consistency model
        return f"{steps} step{'s' if steps > 1 else ''}" if steps else "loaded from files"
    text = f"{sampler['scheduler']}, {sampler['num_inference_steps']} steps"
    if sampler.get("time_steps"):
        text += ", learnt time steps"
    if (scale := sampler.get("guidance_scale")) is None:
        return text
    first, last = sampler["guidance_interval"]
    return f"{text}, guidance {scale:g}" + (f" from {first:g} to {last:g}" if (first, last) != (0, 1) else "")
