"""The Python API: what a command does is one call, with the same results and messages."""

import dataclasses
import errno
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import diffusers
import PIL.Image
import pytest
import torch
from conftest import REPOSITORY, TINY, TINY_VAE, flags

import hfgen
from hfgen.api import calls
from hfgen.cli.commands import CALLS
from hfgen.cli.main import main
from hfgen.config import TrainingConfig
from hfgen.families import families
from hfgen.utils.errors import UserError
from hfgen.utils.files import check_output, complete_or_absent, writing

SMALL = TINY_VAE | {"max_train_steps": 5}


def test_the_names_are_those_of_the_stub_and_of_the_commands():
    stub = re.findall(r"^from (\S+) import (\w+) as (\w+)$", (REPOSITORY / "hfgen" / "__init__.pyi").read_text(), re.M)
    assert {name for _, name, alias in stub if name == alias} == set(hfgen.__all__)
    for module, name, _ in stub:
        assert getattr(hfgen, name) is getattr(__import__(module, fromlist=[name]), name)
    assert {call.__name__ for call, _, _ in CALLS.values()} <= set(hfgen.__all__)
    assert set(hfgen.__all__) <= set(dir(hfgen))
    with pytest.raises(AttributeError, match="has no attribute trian"):
        getattr(hfgen, "trian")  # noqa: B009


def test_importing_it_imports_nothing_heavy():
    code = "import sys, hfgen; assert not {'torch', 'diffusers', 'numpy', 'yaml'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


TYPED = """
from pathlib import Path
from typing import Any, assert_type

assert_type(run, hfgen.RunFolder)
assert_type(images, hfgen.Images)
assert_type(edited, hfgen.Edited)
assert_type(hfgen.train(hfgen.VAEConfig(dataset_name="digits", output_dir="runs/vae")), hfgen.RunFolder)
assert_type(hfgen.train("vae", sweep=["latent_dim=2,4"], output_dir="runs/sweep"), list[hfgen.RunFolder])
assert_type(hfgen.sample(hfgen.SampleConfig(run_or_repo="runs/vae")), hfgen.Images)
assert_type(hfgen.sample(run, film=True, output=Path("film.gif")), hfgen.Animation)
assert_type(hfgen.sample(run, film=bool(run)), hfgen.Images | hfgen.Animation)
assert_type(hfgen.tune("vae", search={"latent_dim": [2, 4]}).best_run, hfgen.RunFolder | None)
reports = hfgen.evaluate("runs/sweep")
assert isinstance(reports, list)
for report in reports:
    print(report.page)
hfgen.push(hfgen.PushConfig(run="runs/vae", repo_id="ada/vae"), dry_run=True)
report.recrod
"""


def test_a_script_of_the_docs_has_types_where_hfgen_is_installed_editable(tmp_path):
    pytest.importorskip("mypy", reason="only the environment of developers has it")
    project, place = tmp_path / "project", tmp_path / "environment"
    shutil.copytree(REPOSITORY / "hfgen", project / "hfgen", ignore=shutil.ignore_patterns("*.safetensors"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, project)
    build = "from setuptools.build_meta import build_editable; build_editable('.')"
    subprocess.run([sys.executable, "-c", build], cwd=project, check=True, capture_output=True)
    venv.create(place)
    python = place / "bin" / "python"
    site = subprocess.check_output([python, "-c", "import site; print(site.getsitepackages()[0])"], text=True).strip()
    with zipfile.ZipFile(next(project.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    page = (REPOSITORY / "docs" / "python.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "script.py").write_text("".join(snippets) + TYPED)
    (tmp_path / "mypy.ini").write_text("[mypy]\n")
    command = [sys.executable, "-m", "mypy", "--python-executable", python, "script.py"]
    errors = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout.splitlines()
    assert len(errors) == 2, errors
    assert 'Item "Report" of "Report | Any" has no attribute "recrod"' in errors[0]


def test_a_call_trains_and_draws_what_the_command_does(tmp_path, capsys):
    run = hfgen.train("vae", output_dir=tmp_path / "call", **SMALL)
    assert main(["train", "vae", *flags(**SMALL, output_dir=tmp_path / "command")]) == 0
    for name in ("metrics.jsonl", "vae/diffusion_pytorch_model.safetensors", "samples/step-000005.png"):
        assert (run / name).read_bytes() == (tmp_path / "command" / name).read_bytes(), name
    capsys.readouterr()
    images = hfgen.sample(run, num_images=5, output=tmp_path / "call.npz")
    assert main(["sample", str(run), "--num_images", "5", "--output", str(tmp_path / "command.npz")]) == 0
    assert (tmp_path / "call.npz").read_bytes() == (tmp_path / "command.npz").read_bytes()
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"5 images are in {tmp_path / name}" for name in ("call.npz", "command.npz")]
    assert (len(images), images.images.dtype, images[0].size) == (5, torch.uint8, (8, 8))
    assert hfgen.load(run).vae.config.latent_dim == 4


def test_a_configuration_object_does_the_same(tmp_path):
    run = hfgen.train(hfgen.VAEConfig(**SMALL, output_dir=str(tmp_path / "run")), num_samples=1)
    assert run.fields()["num_samples"] == 1
    config = hfgen.SampleConfig(run_or_repo=str(run), num_images=2, output=str(tmp_path / "two.png"))
    drawn = hfgen.sample(config)
    assert len(drawn) == 2
    assert (tmp_path / "two.png").is_file()


def test_a_sweep_returns_its_members(tmp_path):
    fields = {name: value for name, value in SMALL.items() if name != "latent_dim"}
    runs = hfgen.train("vae", output_dir=tmp_path / "sweep", sweep="latent_dim=2,3", **fields)
    assert [run.fields()["latent_dim"] for run in runs] == [2, 3]
    assert (tmp_path / "sweep" / "sweep.md").is_file()
    with pytest.raises(hfgen.UserError, match="latent_dim is swept"):
        hfgen.train("vae", output_dir=tmp_path / "other", sweep="latent_dim=2,3", **SMALL)


def test_without_output_nothing_is_written(tmp_path, vae_run, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert len(hfgen.sample(vae_run, num_images=3)) == 3
    assert not [*tmp_path.iterdir()]
    assert not capsys.readouterr().out


def test_reports_are_records_and_pages(tmp_path, vae_run, judge_run, capsys):
    report = hfgen.evaluate(
        vae_run, judge=judge_run, reference_split="train[80%:]", num_images=60, output_dir=tmp_path
    )
    assert report.record == json.loads((tmp_path / "evaluation.json").read_text())
    assert report.page == tmp_path / "evaluation.md"
    shown = report._repr_markdown_()
    assert shown.startswith("# ")
    assert "data:image/png;base64," in shown
    assert "](evaluation/" not in shown
    assert "## Protocol" not in shown
    assert f"The evaluation is in {report.page}, its pictures in {tmp_path / 'evaluation'}" in capsys.readouterr().out
    analysis = hfgen.analyze(
        vae_run, judge=judge_run, reference_split="train[80%:]", num_importance_samples=2, num_bound_images=4,
        output_dir=tmp_path,
    )  # fmt: skip
    assert analysis.record["protocol"]["latent_dim"] == 4


def test_progress_bars_are_widgets_in_a_notebook():
    code = """
import sys
from types import ModuleType
for name in ("ipykernel.zmqshell", "IPython", "IPython.display", "ipywidgets"):  # as far as tqdm asks a kernel
    sys.modules[name] = ModuleType(name)
sys.modules["IPython"].get_ipython = type("ZMQInteractiveShell", (), {})
sys.modules["IPython.display"].display = print
for name in ("FloatProgress", "HBox", "HTML"):
    setattr(sys.modules["ipywidgets"], name, type(name, (), {}))
import tqdm.notebook
from hfgen.utils.progress import progress_bar
print(isinstance(progress_bar([], disable=True), tqdm.notebook.tqdm_notebook))
"""
    printed = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout == "True\n"


def test_a_notebook_shows_runs_and_images(vae_run, tmp_path):
    from hfgen.runs.folder import RunFolder

    shown = RunFolder(vae_run)._repr_html_()
    assert shown.count("data:image/png;base64,") == 2, "the newest grid and the curves"
    assert "<img" not in RunFolder(tmp_path / "none")._repr_html_()
    assert hfgen.sample(vae_run, num_images=3)._repr_png_().startswith(b"\x89PNG")


def test_the_denoising_is_an_animation(tmp_path):
    run = hfgen.train("ddpm", output_dir=tmp_path / "run", max_train_steps=1, **TINY)
    states = hfgen.sample(run, num_images=2, film=True)
    assert states.noised.shape == states.estimates.shape == (4, 2, 1, 8, 8)
    assert states._repr_png_().startswith(b"\x89PNG")
    hfgen.sample(run, num_images=2, output=tmp_path / "film.gif")
    assert (tmp_path / "film.gif").read_bytes().startswith(b"GIF8")


def test_the_record_has_the_python_call_and_not_the_kernel(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/opt/ipykernel_launcher.py", "-f", "/home/ada/kernel-123.json"])
    private = {"cache_dir": tmp_path / "cache", "hub_model_id": "ada/x", "block_out_channels": []}
    run = hfgen.train("vae", output_dir=tmp_path / "a", **SMALL | private)
    given = ", ".join(f"{name}={value!r}" for name, value in SMALL.items())
    expected = f"hfgen.train('vae', output_dir='a', {given}, block_out_channels=[])"
    assert json.loads((run / "run.json").read_text())["command"] == expected
    assert f"| command | `{expected}` |" in hfgen.card(run).read_text()
    config = hfgen.VAEConfig(**SMALL, output_dir=str(tmp_path / "b"))
    run = hfgen.train(config, seed=4)
    command = json.loads((run / "run.json").read_text())["command"]
    again = eval(command, {"hfgen": SimpleNamespace(train=lambda family, **fields: hfgen.VAEConfig(**fields))})
    assert again == dataclasses.replace(config, seed=4, output_dir="b")
    main(["train", "vae", *flags(**SMALL, output_dir=tmp_path / "c")])
    assert json.loads((tmp_path / "c" / "run.json").read_text())["command"].startswith("ipykernel_launcher.py")
    hfgen.train("vae", output_dir=tmp_path / "sweep", sweep="seed=1", **SMALL)
    assert "sweep='seed=1'" in json.loads((tmp_path / "sweep" / "sweep.json").read_text())["command"]


def test_edited_images_are_returned(translation_run, tmp_path, vae_run):
    hfgen.sample(vae_run, num_images=2, output=tmp_path / "given.npz")
    edited = hfgen.edit(translation_run, input=tmp_path / "given.npz")
    assert (edited.count, len(edited.images), edited.unreadable) == (2, 2, {})
    assert edited[1].size == (8, 8)
    assert edited._repr_png_().startswith(b"\x89PNG")
    written = hfgen.edit(translation_run, input=tmp_path / "given.npz", output=tmp_path / "folder")
    assert (written.count, written.images, len([*(tmp_path / "folder").iterdir()])) == (2, [], 2)


@pytest.mark.parametrize("family", ["vae", "gan", "ddpm"])
def test_threads_share_a_loaded_pipeline_and_draw_what_one_call_does(family, vae_run, gan_run, conditional_run):
    runs = {"vae": vae_run, "gan": gan_run, "ddpm": conditional_run("v_prediction")}
    fields = {"num_images": 3, **({"num_inference_steps": 4} if family == "ddpm" else {})}
    expected = [hfgen.sample(runs[family], seed=seed, dtype="float32", **fields).images for seed in range(4)]
    pipeline = hfgen.load(runs[family])
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda seed: hfgen.sample(pipeline, seed=seed, **fields).images, range(4)))
    assert all(map(torch.equal, drawn, expected))


def test_loaded_pipelines_of_hfgen_and_diffusers_draw_with_the_sampler_of_their_run(tmp_path):
    fields = TINY | {"max_train_steps": 1, "num_inference_steps": 3, "scheduler": "ddim"}
    run = hfgen.train("ddpm", **fields, output_dir=tmp_path / "run")
    expected = hfgen.sample(run, num_images=2, dtype="float32").images
    for pipeline in (hfgen.load(run), diffusers.DDPMPipeline.from_pretrained(run)):
        assert torch.equal(hfgen.sample(pipeline, num_images=2).images, expected)
    with pytest.raises(UserError, match=r"loaded already: dtype belongs to hfgen\.load"):
        hfgen.sample(pipeline, dtype="bfloat16")
    pipeline.__class__ = type("Copy", (type(pipeline),), {"__module__": "diffusers_modules.local.copy"})
    with pytest.raises(UserError, match=r"code that came with the model; load it with hfgen\.load"):
        hfgen.sample(pipeline)


def test_a_sweep_may_be_a_dictionary_and_messages_of_calls_name_fields(tmp_path):
    fields = {name: value for name, value in SMALL.items() if name not in ("latent_dim", "hidden_sizes")}
    fields |= {"output_dir": tmp_path / "runs"}
    runs = hfgen.train("vae", **fields, sweep={"latent_dim": [2, 3], "hidden_sizes": [[8, 8]]})
    assert [run.fields()["latent_dim"] for run in runs] == [2, 3]
    assert {tuple(run.fields()["hidden_sizes"]) for run in runs} == {(8, 8)}
    with pytest.raises(UserError, match="continue it with resume_from_checkpoint='latest', or"):
        hfgen.train("vae", config=runs[0].config)


def test_a_loaded_pipeline_edits(translation_run, tmp_path):
    PIL.Image.new("L", (8, 8), 99).save(tmp_path / "given.png")
    edited = [
        hfgen.edit(model, input=tmp_path / "given.png").images[0]
        for model in (translation_run, hfgen.load(translation_run))
    ]
    assert torch.equal(*edited)


def test_an_output_that_cannot_be_written_is_named_without_its_temporary_name(tmp_path):
    output = tmp_path / "page.html"
    message = f"^{output} cannot be written: No such file"
    with pytest.raises(UserError, match=message), writing(output), complete_or_absent(output) as temporary:
        (temporary / "x").touch()


def test_a_classes_may_be_asked_for_by_number_or_name(gan_run):
    one, other = (hfgen.sample(gan_run, num_images=2, class_labels=labels) for labels in (3, ["3"]))
    assert one.labels == other.labels == [3, 3]
    assert torch.equal(one.images, other.images)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hfgen.train("vea"), "there is no family vea; .*did you mean vae?"),
        (lambda: hfgen.train("vae", latent_dmi=2), "there is no field latent_dmi; did you mean latent_dim?"),
        (lambda: hfgen.train("vae", latent_dim="two"), "latent_dim must be a whole number, not two"),
        (lambda: hfgen.train("vae", hidden_sizes=None), "name the training data"),
        (lambda: hfgen.train("vae", hidden_sizes=True), "each value of hidden_sizes must be a whole number, not True"),
        (lambda: hfgen.train("vae", latent_dim=None), "latent_dim must have a value"),
        (lambda: hfgen.train("vae", lr=1), "there is no field lr; did you mean learning_rate?"),
        (lambda: hfgen.train("diffusion"), "there is no family diffusion; .*did you mean ddpm?"),
        (lambda: hfgen.train("gan", config="vae_mnist_linear"), "vae_mnist_linear is a recipe of hfgen train vae"),
        (lambda: hfgen.train("vae", dataset_name="mnst", output_dir="x"), "did you mean mnist?"),
        (lambda: hfgen.train(hfgen.VAEConfig(**SMALL, output_dir="x"), lr=1), "there is no field lr; did you mean"),
        (lambda: hfgen.sample(hfgen.SampleConfig(run_or_repo="x"), seed="1.5"), "a whole number, not 1.5"),
        (lambda: hfgen.train("vae", dataset_name="digits"), "output_dir is missing"),
        (lambda: hfgen.train(None), "name a family (ddpm, .*not None"),
        (lambda: hfgen.train(3), "name a family (ddpm, .*not 3"),
        (lambda: hfgen.train(hfgen.VAEConfig), "such as hfgen.VAEConfig(…), not the class VAEConfig"),
        (lambda: hfgen.VAEConfig(max_train_steps="q"), "max_train_steps must be a whole number, not q"),
        (lambda: hfgen.VAEConfig(dataset_name=["digits"]), "dataset_name must be text, not ['digits']"),
        (lambda: hfgen.SampleConfig(run_or_repo="x", num_images=[]), "num_images must be a whole number, not []"),
        (lambda: hfgen.train("vae", device="cuda"), "no field device: a training uses this machine's GPU"),
        (lambda: hfgen.train("vae", dtype="bfloat16"), "no field dtype; did you mean mixed_precision?"),
        (lambda: hfgen.train("vae", config="vae_mnist_miip"), "no such recipe"),
        (lambda: hfgen.sample("nowhere/at/all"), "there is no folder nowhere/at/all"),
        (lambda: hfgen.sample("x", num_images=0), "num_images must be positive, not 0"),
        (lambda: hfgen.edit("x", input="nowhere.png"), "there is no image, folder or .npz file nowhere.png"),
        (lambda: hfgen.results("nowhere"), "there is no folder nowhere"),
        (lambda: hfgen.push("nowhere", repo_id="ada/x", dry_run=True), "there is no folder nowhere"),
    ],
)  # fmt: skip
def test_a_mistake_is_an_exception_with_the_message_of_the_command(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(hfgen.UserError, match=re.sub(r"[?()\[\]]", r"\\\g<0>", message)):
        call()
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("call", "fields"),
    [
        (hfgen.sample, {"output": "{}/images"}),
        (hfgen.sample, {"output": "{}/grid.png"}),
        (hfgen.edit, {"output": "{}", "input": str(REPOSITORY / "docs" / "images")}),
        (hfgen.evaluate, {"output_dir": "{}"}),
        (hfgen.analyze, {"output_dir": "{}/report"}),
        (hfgen.compare_samplers, {"output_dir": "{}/report"}),
        (hfgen.results, {"output": "{}/results.md"}),
        (hfgen.card, {"gallery": "{}"}),
    ],
)
def test_an_output_where_a_file_is_in_the_way_is_refused_before_any_work(call, fields, vae_run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"{tmp_path}/file.* is a file"):
        call(vae_run, **{name: text.format(tmp_path / "file") for name, text in fields.items()})


def test_a_full_disk_is_told_in_one_message(vae_run, judge_run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run = shutil.copytree(vae_run, tmp_path / "run")
    evaluation = {"judge": judge_run, "reference_split": "train[80%:]", "output_dir": tmp_path / "report"}
    monkeypatch.setattr("os.replace", full)
    calls = {
        tmp_path / "grid.png": lambda output: hfgen.sample(run, output=output),
        tmp_path / "report": lambda _: hfgen.analyze(run, **evaluation, num_importance_samples=2, num_bound_images=4),
        tmp_path / "all.html": lambda output: hfgen.results(run, output=output),
        run: hfgen.card,
    }
    for output, call in calls.items():
        with pytest.raises(UserError, match=f"^{output} cannot be written: No space left on device$"):
            call(output)


def test_a_folder_in_which_nothing_may_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    for place, is_folder in ((tmp_path, True), (tmp_path / "a.png", False), (tmp_path / "a" / "b", True)):
        with pytest.raises(UserError, match=f"{place} cannot be written: {tmp_path} is read-only"):
            check_output(place, is_folder=is_folder)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match=r"folder\.png is a folder; choose another output"):
        check_output(tmp_path / "folder.png", is_folder=False)


def test_a_file_is_taken_and_fields_win_over_it(tmp_path):
    config = tmp_path / "small.yaml"
    config.write_text("\n".join(f"{name}: {json.dumps(value)}" for name, value in SMALL.items()))
    run = hfgen.train("vae", config=config, output_dir=tmp_path / "run", max_train_steps=2)
    assert (run.fields()["max_train_steps"], run.fields()["latent_dim"]) == (2, 4)


def test_every_call_documents_itself():
    for name in hfgen.__all__:
        assert inspect.getdoc(getattr(hfgen, name)), name
    assert calls.recipes()["vae_mnist_mlp"]


def test_a_broken_family_of_another_package_is_reported_and_skipped(monkeypatch, capsys):
    @dataclasses.dataclass
    class Point:
        name: str
        found: object
        module: str = "other"
        dist: None = None

        def load(self):
            if isinstance(self.found, Exception):
                raise self.found
            return self.found

    class Config(TrainingConfig):
        family = "mine"

    mine = dataclasses.replace(families()["vae"], config=Config, models={})
    points = [Point("a", ImportError("no module b")), Point("c", families()["vae"]), Point("d", mine)]
    monkeypatch.setattr("hfgen.families.entry_points", lambda group: points)
    found = families.__wrapped__()
    assert list(found) == [*families(), "mine"]
    error = capsys.readouterr().err
    assert "skipped the family a of other: no module b" in error
    assert "skipped the family c of other: the name VAEPipeline is already taken" in error
