"""Learnt time steps: they come closer to many steps than even ones, are saved with the model, and used everywhere."""

import itertools
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import TINY, train_conditional
from diffusers import DDPMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler

import hfgen
from hfgen.cli.main import main
from hfgen.config import DDPMConfig
from hfgen.data.images import load_images
from hfgen.evaluation.samplers import _keep_learnt_steps, _Model, _with_learnt_steps
from hfgen.pipelines.loading import load
from hfgen.publishing.card import write_card
from hfgen.runtimes.site import _denoising
from hfgen.sampling import learnt_steps as learning
from hfgen.sampling.learnt_steps import LearntSteps, learn_steps, save_learnt_steps, steps_file
from hfgen.sampling.sample import default_sampler, sample, sample_steps, say_learnt_steps, with_time_steps
from hfgen.serving.library import Entry, LoadedModel
from hfgen.tasks.diffusion import DiffusionTask
from hfgen.utils.errors import UserError
from hfgen.utils.untrusted import LEARNT_STEPS, check_learnt_steps

STEPS = {"timesteps": [999.0, 620.0, 210.0], "sigmas": [0.999999, 0.62, 0.21, 0.0]}


UNIPC = "UniPCMultistepScheduler:3"
ENTRY = STEPS | {"guidance": {}, "reference_split": "test", "num_images": 100}


@pytest.fixture
def quickly(monkeypatch):
    for name, value in {"NUM_NOISES": 8, "MANY_STEPS": 12, "MOST_TRIALS": 15}.items():
        monkeypatch.setattr(learning, name, value)


@pytest.fixture
def flow(conditional_run, tmp_path) -> Path:
    """A copy of the run of a flow with classes, whose sample grids have 8 steps of unipc."""
    return Path(shutil.copytree(conditional_run("flow_prediction"), tmp_path / "flow"))


def drawn(model: Path | DiffusionPipeline, **options) -> torch.Tensor:
    pipeline = load(str(model)) if isinstance(model, Path) else model
    sampler = default_sampler(pipeline, {}) | {"num_inference_steps": 3, "scheduler": "unipc"} | options
    return torch.cat([*sample(pipeline, num_images=6, **sampler)])


@pytest.mark.parametrize(
    ("prediction_type", "scheduler"),
    [("flow_prediction", "unipc"), ("flow_prediction", "flow_euler"), ("v_prediction", "unipc"), ("epsilon", "euler")],
)
def test_learnt_steps_come_closer_to_many_steps(tmp_path, quickly, conditional_run, prediction_type, scheduler):
    if prediction_type == "epsilon":
        config = DDPMConfig(
            **TINY | {"output_dir": str(tmp_path), "prediction_type": "epsilon", "beta_schedule": "linear"}
        )
        pipeline = DiffusionTask(config, load_images("digits")).pipeline()
    else:
        pipeline = load(str(conditional_run(prediction_type)))
    sampler = default_sampler(pipeline, {}) | {"scheduler": scheduler}
    found = learn_steps(pipeline, sampler, [4], (), seed=0)[4]
    assert found.distance < found.former_distance
    times, sigmas = found.time_steps["timesteps"], found.time_steps["sigmas"]
    assert (len(times), len(sigmas)) == (4, 5)
    assert all(one > other for numbers in (times, sigmas) for one, other in itertools.pairwise(numbers))
    assert times[0] in (999, 1000)
    assert sigmas[-1] == 0
    assert learn_steps(pipeline, sampler, [4], (), seed=0)[4].time_steps == found.time_steps
    assert learn_steps(pipeline, sampler, [4], (), seed=1)[4].distance != found.distance
    levels = torch.tensor(times[1:]) / 1000
    if prediction_type != "flow_prediction":
        alphas = DDPMScheduler.from_config(pipeline.scheduler.config).alphas_cumprod
        nearest = alphas[torch.tensor(times[1:]).round().long()]
        levels = ((1 - nearest) / nearest).sqrt()
    torch.testing.assert_close(torch.tensor(sigmas[1:-1]), levels, rtol=0.02, atol=1e-4)


def test_saved_steps_are_used_for_their_scheduler_and_number(flow, tmp_path):
    even, others = drawn(flow), drawn(flow, num_inference_steps=4)
    save_learnt_steps(steps_file(load(str(flow))), "unipc", 3, ENTRY)
    pipeline = load(str(flow))
    learnt = drawn(pipeline)
    assert not torch.equal(learnt, even)
    assert torch.equal(learnt, drawn(pipeline, time_steps=STEPS))
    assert torch.equal(drawn(pipeline, time_steps=None), even)
    assert torch.equal(drawn(pipeline, num_inference_steps=4), others)
    euler = drawn(pipeline, scheduler="flow_euler")
    assert torch.equal(euler, drawn(pipeline, scheduler="flow_euler", time_steps=None))
    pipeline.save_pretrained(tmp_path / "again")
    assert torch.equal(drawn(tmp_path / "again"), learnt)


PLAIN = """
import json, torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(".", trust_remote_code=True)
visited = []
see = lambda pipe, index, timestep, found: visited.append(float(timestep))
images = pipe(class_labels=[0], num_inference_steps=3, generator=[torch.Generator().manual_seed(5)],
              output_type="pt", callback_on_step_end=see).images
torch.save(images, "drawn.pt")
json.dump(visited, open("visited.json", "w"))
"""


def test_diffusers_alone_uses_them(flow, without_hfgen):
    save_learnt_steps(steps_file(load(str(flow))), "unipc", 3, ENTRY)
    without_hfgen.python(PLAIN, folder=flow)
    assert json.loads((flow / "visited.json").read_text()) == STEPS["timesteps"]
    pipeline = load(str(flow))
    sampler = default_sampler(pipeline, {}) | {"num_inference_steps": 3}
    *_, (images, _) = sample_steps(pipeline, seeds=[5], class_labels=["0"], **sampler)
    assert ((torch.load(flow / "drawn.pt") * 255).round() - images).abs().max() <= 1


def test_commands_say_that_they_use_them(flow, judge_run, tmp_path, capsys):
    save_learnt_steps(steps_file(load(str(flow))), "unipc", 3, ENTRY)
    text = "uses the learnt time steps of the model (unipc, 3 steps)"
    few = ["--num_inference_steps", "3"]
    for flags, uses in ([], False), (few, True), ([*few, "--even_steps"], False):
        assert main(["sample", str(flow), "--num_images", "4", "--output", str(tmp_path / "a.png"), *flags]) == 0
        assert (text in capsys.readouterr().err) == uses
        splits = ["--reference_split", "train[:50%]", "--train_split", "train[50%:]", "--judge", str(judge_run)]
        report = ["--num_images", "40", "--output_dir", str(tmp_path / "report")]
        assert main(["evaluate", str(flow), *splits, *report, *flags]) == 0
        assert (text in capsys.readouterr().err) == uses
        record = json.loads((tmp_path / "report" / "evaluation.json").read_text())
        assert (record["protocol"].get("time_steps") == STEPS) == uses
        assert ("3 steps, learnt time steps" in (tmp_path / "report" / "evaluation.md").read_text()) == uses


def test_the_comparison_learns_them_and_saves_the_better_ones(flow, judge_run, vae_run, quickly, tmp_path, capsys):
    splits = ["--reference_split", "train[:50%]", "--train_split", "train[50%:]", "--judge", str(judge_run)]
    shared = ["--num_images", "100", "--output_dir", str(tmp_path / "report"), *splits]
    settings = ["--scheduler", "unipc", "--num_inference_steps", "8", "--learn_steps", "2", "3"]
    assert main(["compare-samplers", str(flow), str(vae_run), *settings, *shared]) == 0
    record = json.loads((tmp_path / "report" / "comparison.json").read_text())
    *rows, vae = record["settings"]
    assert [(row["num_inference_steps"], bool(row.get("time_steps"))) for row in rows] == [
        (8, False), (2, False), (2, True), (3, False), (3, True),
    ]  # fmt: skip
    assert vae["model"] == "vae"
    assert vae["prior"] == "normal"
    assert vae["network_evaluations"] == 1
    assert vae["frechet_distance"]["value"] > 0
    pipeline = load(str(flow))
    saved = pipeline.scheduler.config.get(LEARNT_STEPS, {})
    for (even, learnt), found in zip((rows[1:3], rows[3:5]), record["learnt_steps"], strict=True):
        is_better = found["saved"] == "yes"
        assert not is_better or learnt["frechet_distance"]["value"] < even["frechet_distance"]["value"]
        assert (f"UniPCMultistepScheduler:{found['num_inference_steps']}" in saved) == is_better
        assert found["time_steps"] == learnt["time_steps"]
    best = min(record["settings"], key=lambda row: row["frechet_distance"]["value"])
    for row in record["settings"]:
        above = row["frechet_distance"]["value"] - best["frechet_distance"]["value"]
        assert row["above_best_of_all"]["value"] == pytest.approx(above)
    page = (tmp_path / "report" / "comparison.md").read_text()
    assert "| vae | normal prior | 1 |" in page
    assert "Of all models, the cheapest setting" in page
    assert f"| flow | unipc | 2 | {', '.join(str(round(t)) for t in rows[2]['time_steps']['timesteps'])} |" in page


def test_one_step_models_are_compared_without_a_diffusion_model(vae_run, gan_run, judge_run, tmp_path, capsys):
    splits = ["--reference_split", "train[:50%]", "--train_split", "train[50%:]", "--judge", str(judge_run)]
    runs = ["compare-samplers", str(vae_run), str(gan_run), "--num_images", "40", "--output_dir", str(tmp_path)]
    assert main([*runs, *splits]) == 0
    record = json.loads((tmp_path / "comparison.json").read_text())
    assert [row["network_evaluations"] for row in record["settings"]] == [1, 1]
    assert "accuracy" in record["settings"][1]
    for option in ("learn_steps", "num_inference_steps"):
        assert main([*runs, *splits, f"--{option}", "4"]) == 2
        assert f"{option} applies to diffusion models only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learn_steps", "1"], "learn_steps must be 2 or more, not 1"),
        (["--learn_steps", "4", "--guidance_scale", "1", "2"], "learn_steps learns with one guidance scale"),
        (
            ["--learn_steps", "4", "--scheduler", "dpmsolver_sde"],
            "learnt for the scheduler unipc, euler or flow_euler",
        ),
    ],
)
def test_what_cannot_be_learnt_is_refused(flow, judge_run, tmp_path, capsys, flags, message):
    splits = ["--reference_split", "train[:50%]", "--train_split", "train[50%:]", "--judge", str(judge_run)]
    output = ["--num_images", "40", "--output_dir", str(tmp_path / "report")]
    assert main(["compare-samplers", str(flow), *splits, *output, *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    "learnt",
    [
        [ENTRY],
        {UNIPC: STEPS},
        {"os.system:3": ENTRY},
        {"DDIMScheduler:3": ENTRY},
        {"UniPCMultistepScheduler:4": ENTRY},
        {"UniPCMultistepScheduler:03": ENTRY},
        {"UniPCMultistepScheduler:٣": ENTRY},
        {"UniPCMultistepScheduler:" + "3" * 5000: ENTRY},
        {UNIPC: ENTRY | {"timesteps": [999, 210, 620]}},
        {UNIPC: ENTRY | {"timesteps": [2000, 620, 210]}},
        {UNIPC: ENTRY | {"sigmas": [1, 0.62, float("nan"), 0]}},
        {UNIPC: ENTRY | {"sigmas": [1, 0.62, 0.21, -1]}},
        {UNIPC: ENTRY | {"sigmas": [1, "0.62", 0.21, 0]}},
        {UNIPC: ENTRY | {"sigmas": [True, 0.62, 0.21, 0]}},
        {UNIPC: ENTRY | {"sigmas": [1.5, 0.62, 0.21, 0]}},
        {UNIPC: ENTRY | {"guidance": {"guidance_scale": "2"}}},
        {UNIPC: ENTRY | {"num_images": "many"}},
    ],
)
def test_untrusted_steps_are_checked(learnt):
    flow = {"num_train_timesteps": 1000, LEARNT_STEPS: learnt}
    with pytest.raises(UserError, match="K falling timesteps and K \\+ 1 falling sigmas"):
        check_learnt_steps(flow, "it")


def test_good_steps_pass_for_the_models_that_they_fit():
    high = {UNIPC: ENTRY | {"sigmas": [80.0, 0.62, 0.21, 0.0]}}
    check_learnt_steps({"num_train_timesteps": 1000, LEARNT_STEPS: {UNIPC: ENTRY}}, "it")
    check_learnt_steps({"num_train_timesteps": 1000, "prediction_type": "epsilon", LEARNT_STEPS: high}, "it")
    check_learnt_steps({"sigma_max": 80}, "a scheduler without a number of timesteps")
    with pytest.raises(UserError, match="falling timesteps"):
        check_learnt_steps({"num_train_timesteps": None, LEARNT_STEPS: {UNIPC: ENTRY}}, "it")


def stub(folder: Path, config: dict) -> _Model:
    """Return a model that has a scheduler only, in a folder, and has learnt 3 steps of unipc."""
    (folder / "scheduler").mkdir(parents=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    pipeline = SimpleNamespace(scheduler=scheduler, config=SimpleNamespace(_name_or_path=str(folder)))
    learnt = {3: LearntSteps(STEPS, 0.1, 0.2, 30, 1.0)}
    return _Model("flow", str(folder), pipeline, {}, learnt=learnt, solver="unipc")


def row(distance: float, deviation: float) -> dict:
    tenths = [distance + deviation * (-1) ** tenth for tenth in range(10)]
    return {
        "model": "flow", "scheduler": "unipc", "num_inference_steps": 3, "guidance_scale": 2.0,
        "guidance_interval": [0.0, 1.0], "frechet_distance": {"value": distance, "without_each_tenth": tenths},
    }  # fmt: skip


OLD = {UNIPC: ENTRY, "FlowMatchEulerDiscreteScheduler:3": ENTRY}


@pytest.mark.parametrize(
    ("config", "distances", "saved"),
    [
        ({}, [10, 8], "yes"),
        ({}, [10, 9.9], "no, a tie with even steps"),
        ({}, [8, 10], "no, even steps are better"),
        ({LEARNT_STEPS: OLD}, [10, 7, 8], "no, those saved before are better; those saved before stay"),
        ({LEARNT_STEPS: OLD}, [10, 9, 8], "yes"),
    ],
)
def test_what_is_better_beyond_chance_is_saved(tmp_path, config, distances, saved):
    model, asked = stub(tmp_path / "flow", config), SimpleNamespace(reference_split="test", num_images=100)
    rows = [row(distance, 0.0 if index < len(distances) - 1 else 0.05) for index, distance in enumerate(distances)]
    found = _keep_learnt_steps(asked, model, [{"model": "vae"}, *rows], 3)
    assert found["saved"] == saved
    kept = json.loads((tmp_path / "flow" / "scheduler" / "scheduler_config.json").read_text()).get(LEARNT_STEPS, {})
    guidance = {"guidance_scale": 2.0, "guidance_interval": [0.0, 1.0]}
    new = {UNIPC: ENTRY | {"guidance": guidance}} if saved == "yes" else {}
    assert kept == config.get(LEARNT_STEPS, {}) | new
    check_learnt_steps({"num_train_timesteps": 1000, LEARNT_STEPS: kept}, "what was saved")


def test_a_checkpoint_stays_as_its_manifest_describes_it(tmp_path):
    model, asked = stub(tmp_path / "step-1", {}), SimpleNamespace(reference_split="test", num_images=100)
    (tmp_path / "step-1" / "manifest.json").write_text("{}")
    found = _keep_learnt_steps(asked, model, [row(10, 0), row(8, 0.05)], 3)
    assert found["saved"] == "no, only a finished run or a folder of a pipeline can keep them"
    assert (tmp_path / "step-1" / "scheduler" / "scheduler_config.json").read_text() == "{}"


def test_even_saved_and_new_steps_are_all_compared(tmp_path):
    model, other = stub(tmp_path, {LEARNT_STEPS: OLD}), STEPS | {"timesteps": [999.0, 500.0, 210.0]}
    model.learnt[3] = model.learnt[3]._replace(time_steps=other)
    sampler = {"scheduler": "unipc", "num_inference_steps": 3}
    compared = [each["time_steps"] for each in _with_learnt_steps(model, sampler)]
    assert compared == [None, STEPS, other]
    euler = _with_learnt_steps(model, sampler | {"scheduler": "flow_euler"})
    assert [each["time_steps"] for each in euler] == [None, STEPS]


def test_another_guidance_than_learnt_is_said(tmp_path, capsys):
    guidance = {"guidance_scale": 2.0, "guidance_interval": [0.0, 1.0]}
    model = stub(tmp_path, {LEARNT_STEPS: {UNIPC: ENTRY | {"guidance": guidance}}})
    sampler = {"scheduler": "unipc", "num_inference_steps": 3, "time_steps": STEPS}
    say_learnt_steps(model.pipeline, sampler | guidance)
    assert "another" not in capsys.readouterr().err
    say_learnt_steps(model.pipeline, sampler | guidance | {"guidance_scale": 4.0})
    assert "learnt with guidance 2 from 0 to 1, and may not fit another" in capsys.readouterr().err


def test_the_best_valid_grid_of_all_that_were_tried_is_taken(monkeypatch):
    """The optimiser may end at a worse point, or at one whose neighbours are equal in float32."""

    class Stub:
        pipeline = SimpleNamespace(scheduler=FlowMatchEulerDiscreteScheduler())

        def between(self, own, logits):
            first = logits[0].item()
            times = [1000.0, 600.0, 200.0] if first < 50 else [1000.0, 600.0, 600.0]
            return {"timesteps": times, "sigmas": [1.0, 0.6, 0.2, 0.0], "mark": first}

        def distance(self, numbers, steps, targets):
            return {7.0: 0.1, 60.0: 0.0, 8.0: 0.5}.get(steps["mark"], 1.0)

    def minimize(function, start, **options):
        for first in (7.0, 60.0, 8.0):
            function(np.array([first, 0.0]))

    monkeypatch.setattr(learning, "minimize", minimize)
    own = {"timesteps": [1000.0, 667.0, 333.0], "sigmas": [1.0, 0.667, 0.333, 0.0]}
    assert learning._closest(Stub(), own, range(1), torch.zeros(1))["mark"] == 7


def test_an_export_has_them_in_its_table(flow, tmp_path):
    save_learnt_steps(steps_file(load(str(flow))), "unipc", 3, ENTRY)
    folder = hfgen.export(flow, output=tmp_path / "exported", format="torch_export", num_inference_steps=3)
    assert json.loads((folder / "model.json").read_text())["sampler"]["timesteps"] == STEPS["timesteps"]
    pipeline = load(str(flow))
    assert sorted(_denoising(pipeline, default_sampler(pipeline, {}))["samplers"]) == [2, 4, 8, 16, 32]
    save_learnt_steps(steps_file(pipeline), "unipc", 8, even_eight := ENTRY | {
        "timesteps": [999.0 - 100 * step for step in range(8)],
        "sigmas": [0.999 - 0.1 * step for step in range(8)] + [0.0],
    })  # fmt: skip
    pipeline = load(str(flow))
    tables = _denoising(pipeline, default_sampler(pipeline, {}))["samplers"]
    assert tables[8]["timesteps"] == even_eight["timesteps"]


def test_the_studio_names_them_and_loads_the_model_again(flow):
    before = Entry("flow", flow, is_run=True).state
    save_learnt_steps(steps_file(load(str(flow))), "unipc", 3, ENTRY)
    assert Entry("flow", flow, is_run=True).state != before
    entry = Entry("flow", flow, is_run=True)
    model = LoadedModel(entry, load(str(flow)))
    assert model.facts["learnt_steps"] == {"unipc": [3], "euler": [], "flow_euler": []}


def test_the_card_tells_of_them(flow, tmp_path, without_hfgen):
    save_learnt_steps(steps_file(load(str(flow))), "unipc", 8, ENTRY | {
        "timesteps": [999.0 - 100 * step for step in range(8)],
        "sigmas": [0.999 - 0.1 * step for step in range(8)] + [0.0],
    })  # fmt: skip
    page = write_card(flow, flow, spdx_license="apache-2.0").read_text()
    assert "With the scheduler of the model and `num_inference_steps` 8, the pipeline uses them" in page
    assert "pipe.scheduler.register_to_config(_learnt_steps={})" in page, "the sample grid was made without them"


def test_the_code_in_the_card_of_a_stock_pipeline_uses_them(trained_once, tmp_path, without_hfgen):
    run = trained_once("plain_flow", train_conditional, class_conditional=False, prediction_type="flow_prediction",
                       max_train_steps=20)  # fmt: skip
    flow = Path(shutil.copytree(run, tmp_path / "flow"))
    save_learnt_steps(steps_file(load(str(flow))), "unipc", 3, ENTRY)
    assert not torch.equal(drawn(flow), drawn(flow, time_steps=None))
    page = write_card(flow, flow, spdx_license="apache-2.0").read_text()
    (code,) = (part for part in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "_learnt_steps" in part)
    code = re.sub(r'from_pretrained\("[^"]+"', 'from_pretrained("."', code)
    code = code.replace("torch.randn(4, 1, 8, 8)", "torch.load('noise.pt')")
    noise = torch.cat([torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(4)])
    torch.save(noise, flow / "noise.pt")
    without_hfgen.python(code, folder=flow)
    pipeline = load(str(flow))
    sampler = default_sampler(pipeline, {}) | {"num_inference_steps": 3, "scheduler": "unipc"}
    *_, (images, _) = sample_steps(pipeline, seeds=[0], **sampler)
    with PIL.Image.open(flow / "image.png") as image:
        assert (torch.from_numpy(np.array(image)).int() - images[0, 0].int()).abs().max() <= 1


def test_a_model_without_time_steps_names_the_flag_that_does_not_apply():
    vae = type("VAEPipeline", (), {})()
    with pytest.raises(UserError, match="even_steps applies to diffusion models only"):
        with_time_steps(vae, {"prior": "normal", "time_steps": None})
