"""`hfgen compare-samplers`: every setting is measured and costed, the cheapest good one is named, misfits refused."""

import json
import re
from pathlib import Path

import PIL.Image
import pytest
import torch
from conftest import TINY

from hfgen.cli.main import main
from hfgen.config import DDPMConfig
from hfgen.data.images import load_images
from hfgen.evaluation import samplers as comparison
from hfgen.evaluation.samplers import TIMED_IMAGES, TIMINGS, cheapest, compare_with_best
from hfgen.sampling.sample import sample
from hfgen.tasks.diffusion import DiffusionTask
from hfgen.training.run import train
from hfgen.utils.markdown import with_std


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    made = {}
    for name, fields in {"plain": {}, "classes": {"class_conditional": True, "guidance_interval": [0.0, 0.5]}}.items():
        folder = tmp_path_factory.mktemp("runs") / name
        config = DDPMConfig(**TINY | {"output_dir": str(folder), "max_train_steps": 3} | fields)
        made[name] = train(config, DiffusionTask)
    return made


@pytest.fixture
def compare(judge_run, tmp_path):
    def compare(*arguments: str, status: int = 0) -> dict:
        splits = ["--reference_split", "train[:50%]", "--train_split", "train[50%:]"]
        shared = ["--judge", str(judge_run), "--num_images", "40", "--output_dir", str(tmp_path / "report"), *splits]
        assert main(["compare-samplers", *arguments, *shared]) == status
        return {} if status else json.loads((tmp_path / "report" / "comparison.json").read_text())

    return compare


def test_each_setting_has_its_measures_and_its_cost(runs, compare, tmp_path):
    record = compare(str(runs["plain"]), "--scheduler", "unipc", "heun", "ddpm:6", "--num_inference_steps", "4", "5")
    found = {(row["scheduler"], row["num_inference_steps"]): row for row in record["settings"]}
    costs = {setting: row["network_evaluations"] for setting, row in found.items()}
    assert costs == {("unipc", 4): 4, ("unipc", 5): 5, ("heun", 4): 7, ("heun", 5): 9, ("ddpm", 6): 6}
    assert all(row["milliseconds_per_image"] > 0 for row in record["settings"])
    assert all(row["frechet_distance"]["value"] > 0 for row in record["settings"])
    assert len({row["frechet_distance"]["value"] for row in record["settings"]}) == 5
    assert record["cheapest"]["plain"] == cheapest(record["settings"])
    page = (tmp_path / "report" / "comparison.md").read_text()
    chosen = record["cheapest"]["plain"]
    assert page.count("\n| plain |") == 5
    best = min(record["settings"], key=lambda row: row["frechet_distance"]["value"])
    assert best["above_best"] == {"value": 0, "std": 0}
    assert all(row["above_best"]["std"] > 0 for row in record["settings"] if row != best)
    name, cheap = (f"{row['scheduler']}, {row['num_inference_steps']} steps" for row in (best, chosen))
    assert f"The best images come from {name} (Fréchet distance {with_std(best['frechet_distance'])}" in page
    assert (f"as good as the best is {cheap}: {chosen['network_evaluations']:g} network" in page) == (chosen != best)
    for row in record["settings"]:
        is_tie = row != best and row["above_best"]["value"] <= 2 * row["above_best"]["std"]
        assert (f"| {with_std(row['above_best'])} (tie) |" in page) == is_tie
    for picture in re.findall(r"\]\(([^)]+\.png)\)", page):
        with PIL.Image.open(tmp_path / "report" / picture) as image:
            assert min(image.size) > 100, picture


def test_by_default_the_usual_schedulers_that_fit_are_compared(runs, compare, tmp_path):
    config = DDPMConfig(**TINY | {"output_dir": str(tmp_path / "flow"), "prediction_type": "flow_prediction"})
    DiffusionTask(config, load_images("digits")).save(tmp_path / "flow")
    fitting = {
        "plain": {"ddim", "dpmsolver", "dpmsolver_sde", "unipc"},
        "flow": {"flow_euler", "dpmsolver", "dpmsolver_sde", "unipc"},
    }
    for model, expected in fitting.items():
        place = str(runs.get(model, tmp_path / "flow"))
        record = compare(place, "--num_inference_steps", "2", "--dataset_name", "digits")
        assert {row["scheduler"] for row in record["settings"]} == expected


def test_guidance_is_swept_and_costs_a_second_evaluation_within_its_interval(runs, compare):
    settings = ["--scheduler", "ddim", "--num_inference_steps", "4", "--guidance_scale", "1", "3"]
    record = compare(str(runs["classes"]), *settings)
    plain, guided = record["settings"]
    assert (plain["guidance_scale"], plain["network_evaluations"]) == (1, 4)
    assert (guided["guidance_scale"], guided["guidance_interval"], guided["network_evaluations"]) == (3, [0, 0.5], 6)
    assert 0 <= guided["accuracy"] <= 1


def test_two_models_are_compared_and_timed_in_turn(runs, compare, monkeypatch):
    timed = []

    def record_batch(pipeline, num_images, batch_size, **options):
        if num_images == TIMED_IMAGES:
            timed.append((type(pipeline).__name__, batch_size))
        return sample(pipeline, num_images=num_images, batch_size=batch_size, **options)

    monkeypatch.setattr(comparison, "sample", record_batch)
    record = compare(str(runs["plain"]), str(runs["classes"]), "--scheduler", "ddim", "--num_inference_steps", "3")
    assert [row["model"] for row in record["settings"]] == ["plain", "classes"]
    assert set(record["cheapest"]) == {"plain", "classes"}
    pair = [("DDPMPipeline", TIMED_IMAGES), ("ClassConditionalDiffusionPipeline", TIMED_IMAGES)]
    assert timed == pair * (1 + TIMINGS), "each once before it counts"


def test_models_of_one_name_are_refused(runs, compare, capsys):
    compare(str(runs["plain"]), str(runs["plain"]), status=2)
    assert "runs must differ in the names of their folders: plain, plain" in capsys.readouterr().err


def test_the_cheapest_is_the_one_with_the_fewest_evaluations_among_the_good():
    def row(evaluations: int, distance: float, without: tuple[float, ...] = ()) -> dict:
        found = {"value": distance, "without_each_tenth": list(without)}
        return {"network_evaluations": evaluations, "frechet_distance": found}

    def chosen(*rows: dict) -> dict:
        compare_with_best(rows)
        return cheapest(rows)

    rows = [row(5, 2.0), row(10, 1.06), row(15, 1.04), row(20, 1.02), row(50, 1.0)]
    assert chosen(*rows) == rows[2]
    assert chosen(*rows, row(15, 1.01))["frechet_distance"]["value"] == 1.01
    noise = torch.randn(10, generator=torch.Generator().manual_seed(0)) / 50
    best, alike, apart = (each.tolist() for each in (1.0 + noise, 1.2 + noise, 1.2 - noise))
    assert chosen(row(10, 1.2, apart), row(50, 1.0, best))["network_evaluations"] == 10
    assert chosen(row(10, 1.2, alike), row(50, 1.0, best))["network_evaluations"] == 50, "noise that both have"


@pytest.mark.parametrize(("arguments", "message"), [
    (["--scheduler", "unipc", "flow_euler"], "scheduler flow_euler is not compatible"),
    (["--scheduler", "pndm", "--num_inference_steps", "15", "2"], "scheduler pndm is not compatible"),
    (["--num_inference_steps", "5", "2000"], "num_inference_steps must be from 1 to 1000, not 2000"),
    (["--scheduler", "ddpm:x"], "scheduler must be a name, or a name and steps as in ddpm:1000, not ddpm:x"),
    (["--guidance_scale", "2"], "is unconditional, so guidance does not apply"),
    (["--guidance_interval", "0", "1"], "is unconditional, so guidance does not apply"),
])  # fmt: skip
def test_misfits_are_refused_before_anything_is_drawn(runs, compare, tmp_path, capsys, arguments, message):
    compare(str(runs["plain"]), *arguments, status=2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "report").exists()
    assert main(["compare-samplers"]) == 2
    assert "name one or more runs" in capsys.readouterr().err
