"""Files and words of strangers: nothing is written or published from elsewhere, no code runs, no page is forged."""

import html
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from conftest import REPOSITORY, TINY, flags, train_classifier, train_vae
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from safetensors.torch import load_file, save_file

import hfgen
from hfgen.cli.main import main
from hfgen.config import DDPMConfig
from hfgen.config.commands import EvaluateConfig, SampleConfig, TranslateConfig
from hfgen.config.parser import parse_config
from hfgen.evaluation import report, results
from hfgen.evaluation import samplers as comparison
from hfgen.evaluation.real import default_output
from hfgen.evaluation.vae import _page as analysis_page
from hfgen.figures import curves, grids, plots
from hfgen.judges.judge import load_judge
from hfgen.publishing import hub
from hfgen.runs.record import public_command
from hfgen.sampling.sample import check_sampling
from hfgen.training.sweep import parse_sweep
from hfgen.utils import markdown
from hfgen.utils.errors import UserError
from hfgen.utils.privacy import public_text, without_password

SECRET = "not for anybody"
BAD_NAME = "a|b\n# Heading\n```\n<script>x</script> [link](javascript:x) $\\bad{$ `c` **bold**\x1b[31m\u202e"
WRITTEN = "a|b # Heading ``` <script>x</script> [link](javascript:x) $\\bad{$ `c` **bold** [31m"
WEIGHTS = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return train_vae(tmp_path_factory.mktemp("runs") / "vae", max_train_steps=2, num_mixture_components=1)


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A run that may be spoilt."""
    return shutil.copytree(trained, tmp_path / "place" / "run")


@pytest.fixture(scope="module")
def trained_judge(tmp_path_factory) -> Path:
    return train_classifier(tmp_path_factory.mktemp("judges") / "judge", max_train_steps=2)


@pytest.fixture
def judge(trained_judge, tmp_path) -> Path:
    """A judge that may be spoilt."""
    return shutil.copytree(trained_judge, tmp_path / "judge")


@pytest.fixture
def stock(tmp_path) -> Path:
    """A pipeline of diffusers' own classes."""
    unet = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), norm_num_groups=4,
    )  # fmt: skip
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "stock")
    return tmp_path / "stock"


def change(file: Path, **fields) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def dry_push(run: Path, *arguments: str) -> int:
    return main(["push", str(run), "--repo_id", "ada/x", "--dry_run", *arguments])


# --- publishing: nothing but the run's own files


@pytest.mark.parametrize(
    "name", ["../payload", "/payload", "a/b", "unet\n", "..", "un et", "ünet", "vae.", "-vae", "\\payload", ""]
)
def test_no_name_of_a_component_leads_out_of_a_run(run, tmp_path, capsys, name):
    (run.parent / "payload").mkdir()
    (run.parent / "payload" / "config.json").write_text('{"text": "pwned"}')
    change(run / "model_index.json", **{name: ["diffusers", "UNet2DModel"]})
    before = {path for path in tmp_path.rglob("*") if "run/" not in str(path)}
    for command in (["push", str(run), "--repo_id", "ada/x", "--dry_run"], ["card", str(run)], ["sample", str(run)]):
        assert main(command) == 2
        assert "cannot be the name of a component" in capsys.readouterr().err
    assert {path for path in tmp_path.rglob("*") if "run/" not in str(path)} == before


@pytest.mark.parametrize("module", ["../secret", "/secret", "a/secret", ".", "a..b", ""])
def test_no_name_of_a_module_leads_out_of_a_run(run, capsys, module):
    (run.parent / "secret.py").write_text(SECRET)
    change(run / "model_index.json", _class_name=[module, "VAEPipeline"])
    assert dry_push(run) == 2
    assert "_class_name must be the name of a pipeline class" in capsys.readouterr().err
    change(run / "model_index.json", _class_name="VAEPipeline", vae=[module, "VAEModel"])
    assert dry_push(run) == 2
    assert "vae must be a library and a class" in capsys.readouterr().err


LINKS = [
    "vae/x.safetensors", "vae/config2.json", "samples/step-999999.png", "evaluation.md", "evaluation.json",
    "analysis.md", "figures/training_curves.png", "config.yaml", "run.json", "model_index.json", "vae/config.json",
    "pipeline_hfgen_vae.py", WEIGHTS,
]  # fmt: skip


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("inside", [False, True])
def test_a_link_to_a_file_is_refused_wherever_it_stands(run, tmp_path, capsys, name, inside):
    link = run / name
    target = (run if inside else tmp_path) / "secret"
    target.write_bytes(link.read_bytes() if link.exists() else SECRET.encode())  # what would pass any other check
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    for command in (["push", str(run), "--repo_id", "ada/x", "--dry_run"],
                    ["card", str(run), "--gallery", str(tmp_path / "cards")]):  # fmt: skip
        if command[0] == "card" and name in ("vae/x.safetensors", "vae/config2.json", "pipeline_hfgen_vae.py"):
            continue  # these are no part of a page
        assert main(command) == 2
        assert f"{link} is a symbolic link" in capsys.readouterr().err
    assert not list(tmp_path.glob("cards/*/*"))


@pytest.mark.parametrize("name", ["vae", "figures", "samples", "evaluation", "analysis", "vae/more"])
def test_a_link_to_a_folder_is_refused(run, tmp_path, capsys, name):
    shutil.rmtree(run / name, ignore_errors=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    PIL.Image.new("L", (8, 8)).save(elsewhere / "step-1.png")
    (run / name).symlink_to(elsewhere)
    assert dry_push(run) == 2
    assert f"{run / name} is a symbolic link" in capsys.readouterr().err
    if name == "figures":
        assert main(["card", str(run)]) == 2, "the page's pictures would be written there"
        assert [path.name for path in elsewhere.iterdir()] == ["step-1.png"]


def test_no_report_is_written_through_a_link(run, tmp_path):
    (run / "evaluation").symlink_to(tmp_path)
    with pytest.raises(UserError, match=f"{run}/evaluation is a symbolic link"):
        default_output(str(run))


@pytest.mark.parametrize("name", ["evaluation/a\nb.png", "evaluation/a\u202eb.png", "vae/ a.json"])
def test_a_name_that_cannot_be_seen_is_not_published(run, capsys, name):
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_text("{}")
    assert dry_push(run) == 2
    assert "has a name with invisible characters" in capsys.readouterr().err


def test_a_run_may_itself_be_reached_by_a_link(run, tmp_path):
    (tmp_path / "link").symlink_to(run)
    assert dry_push(tmp_path / "link") == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
@pytest.mark.parametrize("name", ["evaluation.md", "vae/more.json", "run.json"])
def test_a_named_pipe_does_not_hang_publishing(run, capsys, name):
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    assert dry_push(run) == 2
    assert f"{run / name} is neither a file nor a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vae/x.safetensors", "is not a safetensors file"),
        (WEIGHTS, "is not a safetensors file"),
        ("vae/x.json", "is not a valid JSON file"),
        ("samples/step-999999.png", "is not a PNG image"),
        ("figures/training.gif", "is not a GIF image"),
        ("evaluation.md", "is not a text file"),
        ("vae/x.bin", "is not a safetensors file and cannot be published"),
        ("vae/id_rsa", "is not a safetensors file and cannot be published"),
        ("vae/diffusers.py", "is code of no installed family of models and cannot be published"),
    ],
)
def test_a_file_must_be_what_its_name_says(run, capsys, name, message):
    (run / name).write_bytes(b"\xff\xfe" + SECRET.encode())
    assert dry_push(run) == 2
    error = capsys.readouterr().err
    assert f"{run / name} {message}" in error
    assert SECRET not in error


@pytest.mark.parametrize("name", ["pipeline_hfgen_vae.py", "vae/modeling_hfgen_vae.py"])
def test_code_that_was_edited_in_a_run_is_not_published(run, tmp_path, capsys, name):
    original = (run / name).read_bytes()
    hub.export(run, tmp_path / "whole", repo_id="ada/x", spdx_license="mit")
    assert "warning" not in capsys.readouterr().err
    for number, change in enumerate((lambda file: file.write_text(SECRET), Path.unlink)):
        change(run / name)
        hub.export(run, tmp_path / str(number), repo_id="ada/x", spdx_license="mit")
        assert f"warning: {run / name} is missing, edited or of another version" in capsys.readouterr().err
        assert (tmp_path / str(number) / name).read_bytes() == original


@pytest.mark.parametrize(("part", "file"), [("_class_name", "evil.py"), ("vae", "vae/evil.py")])
def test_code_of_no_family_is_not_published(run, capsys, part, file):
    index = json.loads((run / "model_index.json").read_text())
    (run / "model_index.json").write_text(json.dumps(index | {part: ["evil", index[part][1]]}))
    (run / file).write_text(SECRET)
    assert dry_push(run) == 2
    assert f"{run / file} is code of no installed family of models" in capsys.readouterr().err


def test_a_huge_page_is_not_read(run, capsys):
    with open(run / "evaluation.md", "wb") as file:
        file.truncate(10**9)  # a hole, which takes no space
    assert dry_push(run) == 2
    assert "evaluation.md has 1,000,000,000 bytes" in capsys.readouterr().err


def test_a_page_that_shows_pictures_of_elsewhere_takes_none_along(run, tmp_path, capsys):
    PIL.Image.new("L", (8, 8)).save(tmp_path / "private.png")
    (run / "evaluation.md").write_text(f"![x](../../private.png) ![y]({tmp_path}/private.png)")
    assert dry_push(run) == 0
    assert "private" not in capsys.readouterr().out


def test_checkpoints_in_the_background_hold_what_their_names_say(run, capsys):
    checkpoint = next((run / "checkpoints").iterdir())
    (checkpoint / "vae" / "x.safetensors").write_text(SECRET)
    uploads = hub.HubPublisher("ada/x", every_save=True)
    uploads.start(checkpoint)
    assert uploads.upload is None
    assert "x.safetensors is not a safetensors file" in capsys.readouterr().out


def test_a_link_to_a_part_of_a_classifier_is_refused(judge, tmp_path, capsys):
    weights = (judge / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (judge / "model.safetensors").symlink_to(weights)
    assert dry_push(judge) == 2
    assert "model.safetensors is a symbolic link" in capsys.readouterr().err


def test_checkpoints_in_the_background_follow_no_links(run, tmp_path, capsys):
    (tmp_path / "secret").write_bytes((run / WEIGHTS).read_bytes())
    checkpoint = next((run / "checkpoints").iterdir())
    (checkpoint / "vae" / "x.safetensors").symlink_to(tmp_path / "secret")
    uploads = hub.HubPublisher("ada/x", every_save=True)
    uploads.start(checkpoint)
    assert uploads.upload is None
    assert "x.safetensors is a symbolic link" in capsys.readouterr().out


def test_runs_behind_links_are_not_published_together(run, tmp_path, capsys):
    (tmp_path / "runs" / "half").mkdir(parents=True)
    (tmp_path / "runs" / "link").symlink_to(run)
    (tmp_path / "runs" / "half" / "run.json").symlink_to(run / "run.json")
    assert main(["publish-all", str(tmp_path / "runs"), "--namespace", "ada", "--dry_run"]) == 2
    captured = capsys.readouterr()
    assert "holds no finished run" in captured.err
    assert "ada/link" not in captured.out


@pytest.mark.parametrize("owner", ["gallery", "page"])
def test_a_gallery_writes_over_pages_of_its_own_only(run, tmp_path, capsys, owner):
    page = tmp_path / ("README.md" if owner == "gallery" else "run/README.md")
    page.parent.mkdir(exist_ok=True)
    page.write_text("# My own")
    assert main(["card", str(run), "--gallery", str(tmp_path)]) == 2
    assert f"{page} was not written by hfgen" in capsys.readouterr().err
    assert page.read_text() == "# My own"
    page.unlink()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "README.md").write_text("---\na: [\n---\nnotes")
    for _ in range(2):
        assert main(["card", str(run), "--gallery", str(tmp_path)]) == 0
    assert "## [run](run/README.md)" in (tmp_path / "README.md").read_text()
    assert "notes" not in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repo_id", "x"], "x is not a Hub id of the form user/name"),
        (["--repo_id", "a/b/c"], "a/b/c is not a Hub id"),
        (["--repo_id", "ada/not an id"], "Repo id must use alphanumeric chars"),
        (["--repo_id", "ada/--x"], "cannot be published"),
        (["--license", "apache2"], "an identifier of the Hub, not 'apache2'; did you mean apache-2.0?"),
        (["--license", "mit\nx: y"], r"license must be an identifier of the Hub, not 'mit\nx: y'"),
    ],
)
def test_a_dry_run_refuses_the_addresses_that_a_push_refuses(run, capsys, monkeypatch, arguments, message):
    assert dry_push(run, *arguments) == 2
    assert message in capsys.readouterr().err
    monkeypatch.setattr(hub, "_require_token", lambda: pytest.fail("asked for a token first"))
    assert main(["push", str(run), "--repo_id", "ada/x", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["push", "card"])
def test_a_missing_folder_is_said_with_what_is_beside_it(run, capsys, command):
    more = ["--repo_id", "ada/x", "--dry_run"] if command == "push" else []
    assert main([command, str(run.with_name("rum")), *more]) == 2
    assert f"there is no folder {run.with_name('rum')}; did you mean {run}?" in capsys.readouterr().err


# --- no place of this machine


@pytest.mark.parametrize(
    ("given", "public"),
    [
        ("/home/ada/pictures", "pictures"),
        ("/home/ada/pictures/", "pictures"),
        ("/home/ada", ""),
        ("~ada", ""),
        ("~/pictures", "pictures"),
        ("file:///home/ada/pictures", "pictures"),
        ("../../home/ada/pictures", "pictures"),
        ("runs/../../home/ada/pictures", "pictures"),
        ("C:\\Users\\ada\\pictures", "pictures"),
        ("D:/ada/pictures", "pictures"),
        ("\\\\server\\ada\\pictures", "pictures"),
        ("/home/ada/lr=1/tiny", "tiny"),
        ("/home/ada,eve/tiny", "tiny"),
        ("runs/../../ada,eve/tiny", "tiny"),
        ("train_data_dir=/home/ada/a,/home/ada/b", "train_data_dir=a,b"),
        ("train_data_dir=/home/ada/my own/a,~/b,C:\\ada\\c", "train_data_dir=a,b,c"),
        ("train_data_dir=file:/home/ada/a,../ada/b", "train_data_dir=a,b"),
        ('"/home/ada/pictures', '"pictures'),
        ("the judge /home/ada/judge", "the judge judge"),
        ("runs/digits", "runs/digits"),
        ("ylecun/mnist", "ylecun/mnist"),
        ("gaussian_noise=0.1..0.5", "gaussian_noise=0.1..0.5"),
        ("hidden_sizes=400,512 256", "hidden_sizes=400,512 256"),
        ("https://huggingface.co/ada/x", "https://huggingface.co/ada/x"),
        ("train[80%:]", "train[80%:]"),
        ("1/2", "1/2"),
    ],
)
def test_a_path_becomes_its_last_name(given, public):
    assert public_text(given) == public


@pytest.mark.parametrize(
    ("given", "public"),
    [
        ("postgresql+psycopg://ada:secret@host:5432/db", "postgresql+psycopg://ada:***@host:5432/db"),
        ("--storage=mysql://ada:se/cr:et@2@host/db", "--storage=mysql://ada:***@host/db"),
        ("postgresql://host/db?user=ada&password=secret&x=1", "postgresql://host/db?user=ada&password=***&x=1"),
        ("postgresql://ada@host:5432/db", "postgresql://ada@host:5432/db"),
        ("https://huggingface.co/ada/x", "https://huggingface.co/ada/x"),
        ("lr=1e-4..1e-2:log", "lr=1e-4..1e-2:log"),
    ],
)
def test_a_password_in_a_url_is_masked(given, public):
    assert without_password(given) == without_password(public) == public


PRIVATE = [
    "--config /home/ada/private/my.yaml", "--config=/home/ada/private/my.yaml", "--cache_dir /home/ada/private/c",
    "--train_data_dir '/home/ada/private/my own'", "--output_dir ~ada/private/r", "--output_dir ../../private/r",
    "--judge /home/ada/private/j1 /home/ada/private/j2", "--report_to wandb /home/ada/private",
    "--hub_model_id ada/private", "--sweep 'train_data_dir=/home/ada/private/a,/home/ada/private/b' seed=1,2",
    "--sweep cache_dir=/home/ada/private/a,b", "--dataset_name 'C:\\Users\\ada\\private\\d'",
    "--resume_from_checkpoint /home/ada/private/x", "-f /home/ada/private/kernel.json", "'--output_dir' '/home/ada'",
    "--degradation 'mask=/home/ada/private/m'", "--dataset_name file:///home/ada/private/d",
]  # fmt: skip


@pytest.mark.parametrize("words", PRIVATE)
def test_no_word_of_a_command_tells_where_something_lies(words):
    public = public_command(f"hfgen train vae --seed 3 {words} --learning_rate 1e-3")
    assert not re.search(r"\bada\b|private|Users|home", public)
    assert public.startswith("hfgen train vae --seed 3")
    assert public.endswith("--learning_rate 1e-3")


def test_no_exported_file_tells_where_something_lies(run, tmp_path):
    place = "/home/ada/private/thing"
    fields = yaml.safe_load((run / "config.yaml").read_text())
    fields |= {name: place for name, value in fields.items() if value is None or isinstance(value, str)}
    fields |= {
        "prior": "normal",
        "train_data_dir": place,
        "degradation": [f"mask={place},{place}"],
        "more": {"a": place},
    }
    fields |= {"sweep": [f"train_data_dir={place},{place}"], "judge": [place, "mnist"]}
    (run / "config.yaml").write_text(yaml.safe_dump(fields))
    change(
        run / "run.json", command="hfgen train vae " + " ".join(PRIVATE), problems=[f"the judge {place} finds none"]
    )
    hub.export(run, tmp_path / "out", repo_id="eve/x", spdx_license="mit")
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            found = [word for word in (b"/home", b"ada/", b"private", str(tmp_path).encode()) if word in content]
            assert not found, path


# --- pages: names stay names


def rendered(page: str) -> str:
    """Return the page as HTML, its front matter left out."""
    return MarkdownIt("commonmark").enable("table").render(re.sub(r"\A---\n.*?\n---\n", "", page, flags=re.DOTALL))


def assert_names_stay_names(page: str, times: int) -> None:
    """Make sure that a bad name is written as it is, some times at least, and forges nothing."""
    text = rendered(page)
    outside = re.sub(r"<pre>.*?</pre>", "", text, flags=re.DOTALL)
    assert "<script" not in text
    assert "javascript:" not in "".join(re.findall(r'(?:href|src)="[^"]*"', text))
    assert not re.search(r"<h\d>Heading", text)
    assert "<strong>bold" not in text
    assert html.unescape(re.sub(r"<[^>]+>", "", outside)).count(WRITTEN) >= times
    assert "\x1b" not in page
    assert "\u202e" not in outside
    for lines in re.findall(r"(?:^\|.*\n?)+", page, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines.splitlines()}) == 1, lines


def record_of(*place: str) -> dict:
    return json.loads(REPOSITORY.joinpath(*place).read_text())


def spoil(record, keys):
    """Put a bad name in the place of each of some texts of a record, whether they are values or keys."""
    if isinstance(record, dict):
        spoilt = {BAD_NAME if key in keys else key: spoil(value, keys) for key, value in record.items()}
        names = {"model", "dataset", "reference_split", "scheduler", "title", "label_names", "pipeline", "images",
                 "class_shown", "judge", "prior", "target_dataset"}  # fmt: skip
        for key in names & spoilt.keys():
            value = spoilt[key]
            if isinstance(value, str):
                spoilt[key] = BAD_NAME
            elif isinstance(value, list):
                spoilt[key] = [BAD_NAME] * len(value)
        return spoilt
    return [spoil(value, keys) for value in record] if isinstance(record, list) else record


RECORDS = {
    "evaluation": ("model_cards", "ddpm_conditional_mnist_cpu5min", "evaluation.json"),
    "restoration": ("model_cards", "translation_fashion_mnist", "evaluation.json"),
    "classifier": ("model_cards", "classifier_mnist", "evaluation.json"),
    "analysis": ("model_cards", "vae_cifar10", "analysis.json"),
    "comparison": ("benchmarks", "results", "samplers_fashion_mnist", "comparison.json"),
}


@pytest.mark.parametrize("kind", RECORDS)
def test_a_page_writes_bad_names_as_they_are(kind):
    record = record_of(*RECORDS[kind])
    if kind == "comparison":  # what the records of earlier versions do not have
        record["judge_accuracy"] = {}
        for row in (*record["settings"], *record["cheapest"].values()):
            row["above_best"] = {"value": 0.1, "std": 0.1}
    judges = record["protocol"].get("judges", {})
    record = spoil(record, set(list(judges)[:1]))
    pages = {
        "evaluation": report._page, "restoration": report._restoration_page, "classifier": report._classifier_card,
        "analysis": analysis_page, "comparison": comparison._page,
    }  # fmt: skip
    assert_names_stay_names(pages[kind](record), 3)


def test_the_table_of_results_writes_bad_names_as_they_are(tmp_path):
    for kind in ("evaluation", "restoration", "classifier", "analysis"):
        folder = tmp_path / f"{kind} |[x](y)`<b>"
        folder.mkdir()
        name = "analysis.json" if kind == "analysis" else "evaluation.json"
        (folder / name).write_text(json.dumps(spoil(record_of(*RECORDS[kind]), set())))
    page = results.results_page([tmp_path], tmp_path)
    assert_names_stay_names(page, 4)
    assert page.count("(analysis%20%7C%5Bx%5D%28y%29%60%3Cb%3E)") == 1


@pytest.mark.parametrize("content", ["{}", "[]", "null", "{", '{"protocol": 5, "measures": 3}', '{"accuracy": 1}'])
@pytest.mark.parametrize("name", ["evaluation.json", "analysis.json"])
def test_a_record_that_is_none_is_named(run, tmp_path, capsys, name, content):
    (run / name).write_text(content)
    commands = [["results", str(run), "--output", str(tmp_path / "R.md")], ["card", str(run)],
                ["push", str(run), "--repo_id", "ada/x", "--dry_run"]]  # fmt: skip
    for command in commands:
        assert main(command) == 2
        assert str(run / name) in capsys.readouterr().err


def test_a_record_without_what_a_page_shows_is_one_message(run, capsys):
    record = record_of(*RECORDS["evaluation"])
    del record["copies_of_training_images"]
    (run / "evaluation.json").write_text(json.dumps(record))
    assert main(["card", str(run)]) == 2
    assert "evaluation.json is an incomplete record of hfgen: KeyError: 'copies_of" in capsys.readouterr().err


def test_the_page_of_a_model_writes_bad_names_as_they_are(run, tmp_path, capsys):
    place = run.rename(run.with_name('a|b <x> "q"'))
    change(place / "run.json", command=f"hfgen train vae --dataset_name '{BAD_NAME}'", device=BAD_NAME,
           problems=[BAD_NAME], versions={BAD_NAME: BAD_NAME})  # fmt: skip
    change(place / "model_index.json", id2label={"0": BAD_NAME, "1": '"); import os #'})
    fields = yaml.safe_load((place / "config.yaml").read_text()) | {"dataset_name": BAD_NAME, "note": BAD_NAME}
    (place / "config.yaml").write_text(yaml.safe_dump(fields))
    (place / "evaluation.json").write_text(json.dumps(spoil(record_of(*RECORDS["evaluation"]), set())))
    assert main(["card", str(place)]) == 0
    page = (place / "README.md").read_text()
    assert_names_stay_names(page, 2)
    assert "# a-b-x-q-" in page
    ModelCard(page)
    codes = re.findall(r"^(`{3,})python\n(.*?)^\1$", page, re.DOTALL | re.MULTILINE)
    assert len(codes) == 2
    for _, code in codes:
        compile(code, "page", "exec")


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("run.json", {"device_type": 'cpu"); import os #'}),
        ("config.yaml", {"num_samples": "4); import os #"}),
        ("config.yaml", {"scheduler": "UNet2DModel"}),
        ("config.yaml", {"num_inference_steps": 0}),
    ],
)
def test_values_that_would_break_the_code_of_a_page_are_left_out_or_refused(tmp_path, file, changed, capsys):
    run = tmp_path / "run"
    assert main(["train", "ddpm", *flags(**TINY, output_dir=run, max_train_steps=1)]) == 0
    read, write = (json.loads, json.dumps) if file == "run.json" else (yaml.safe_load, yaml.safe_dump)
    (run / file).write_text(write(read((run / file).read_text()) | changed))
    if main(["card", str(run)]) == 2:
        assert f"{file}: num_samples cannot be" in capsys.readouterr().err
        return
    page = (run / "README.md").read_text()
    assert len(re.findall("```python", page)) == 1, "no code of the grid"
    assert "import os" not in page.partition("## Training")[0]


def test_a_message_holds_no_escapes_for_the_terminal(run, capsys):
    change(run / "model_index.json", **{"a\x1b[31m": ["diffusers", "UNet2DModel"]})
    assert main(["sample", str(run)]) == 2
    assert main(["sample", "nothing\x1b[31m"]) == 2
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert r"nothing\x1b[31m" in error


# --- pictures


NAMES = ["price $\\bad{x$", "_hidden", "two\nlines", "$", "x" * 500, "\x00\ud800"]


def pictures():
    images, labels = torch.zeros(6, 1, 8, 8, dtype=torch.uint8), torch.arange(6)
    shares = dict.fromkeys(NAMES, 1 / 6)
    found = {name: {"value": 1.0, "std": 0.1} for name in report.MEASURES}
    floor = {"train_against_test": dict.fromkeys(report.MEASURES, 1.0)}
    row = {"network_evaluations": 5, **found}
    yield lambda: grids.sample_grid(images, labels, NAMES)
    yield lambda: grids.comparison_grid(dict.fromkeys(NAMES, images))
    yield lambda: plots.confusion_picture(images, labels, torch.eye(6).flip(0), NAMES, 3)
    yield lambda: plots.class_shares_picture(
        {name: {"label_names": NAMES, "shares": {"generated": [*shares.values()], "real": [*shares.values()]}}
         for name in NAMES[:2]},
        {"generated": 9, "real": 9},
    )  # fmt: skip
    yield lambda: plots.measures_picture(
        dict.fromkeys(NAMES[:2], found),
        dict.fromkeys(NAMES[:2], floor),
        {"recall": ("recall", "higher")},
        report.FLOORS,
    )
    yield lambda: plots.curves_picture([row] * 2, {}, [f"{name}, 5 steps" for name in NAMES[:2]], 9)
    plane = plots.Plane("z", ("z0", "z1"), np.random.default_rng(0).normal(size=(6, 2)))
    yield lambda: plots.latents_picture([plane], labels, NAMES)
    yield lambda: grids.comparison_grid({"a": images}, names=NAMES)
    yield lambda: curves.members_curves_picture({name: {"loss": ([1.0, 2.0], [1.0, 2.0])} for name in NAMES})


@pytest.mark.parametrize("draw", [*pictures()])
def test_a_picture_shows_any_name(draw):
    picture = draw()
    assert max(picture.size) < 3000
    assert np.array(picture).std() > 0


def test_class_shares_and_members_show_any_name(tmp_path):
    rows = [{"step": step, "shares": dict.fromkeys(NAMES[:5], 0.2)} for step in (1, 2)]
    (tmp_path / "classes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    curves.save_class_shares(tmp_path / "classes.jsonl", tmp_path / "classes.png")
    assert grids.labelled_row(dict.fromkeys(NAMES, PIL.Image.new("L", (8, 8)))).height < 100


def test_a_name_with_a_leading_underscore_is_in_the_legend():
    axes = plots.Figure().subplots()
    axes.plot([0], [0], label=plots.mathless_label("_hidden"))
    assert axes.get_legend_handles_labels()[1] == [" _hidden"]


def test_a_block_of_code_ends_where_it_ends():
    page = rendered(markdown.fenced("note: |\n```\n# Heading", "yaml"))
    assert page.count("<pre>") == 1
    assert "<h1>" not in page


def test_a_name_with_a_formula_is_shown_as_it_is():
    label = plots.Figure().text(0, 0, plots.mathless_label("$x$ and $\\bad{y$"))
    assert label._preprocess_math(label.get_text()) == ("$x$ and $\\bad{y$", False)


# --- loading


INDEXES = [
    ("[]", "must contain a JSON object"), ("null", "must contain a JSON object"), ("{}", "_class_name must be"),
    ("[" * 100_000, "is not a valid JSON file"), ("\xff", "is not a valid JSON file"),
    ("", "is not a valid JSON file"),
    ('{"_class_name": 5}', "_class_name must be"), ('{"_class_name": ["a"]}', "_class_name must be"),
    ('{"_class_name": "DDPMPipeline"}', "names no component"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), INDEXES, ids=range(len(INDEXES)))
def test_an_index_that_is_none_is_named(stock, capsys, content, message):
    (stock / "model_index.json").write_bytes(content.encode("latin-1"))
    assert main(["sample", str(stock)]) == 2
    assert re.search(rf"{stock}/model_index.json:? {message}", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"unet": ["diffusers"]}, "unet must be a library and a class"),
        ({"unet": [1, 2]}, "unet must be a library and a class"),
        ({"unet": [None, "UNet2DModel"]}, "unet must be a library and a class"),
        ({"unet": ["transformers", "pipeline"]}, "transformers has no class pipeline, the class of its unet"),
        ({"unet": ["diffusers", "NoSuchModel"]}, "diffusers has no class NoSuchModel"),
        ({"unet": ["diffusers", "OnnxRuntimeModel"]}, "cannot load a pipeline from .*stock.*(?i:onnxruntime)"),
        ({"unet": ["diffusers", "ModelMixin"]}, "cannot load a pipeline from .*stock: AttributeError"),
        ({"unet": ["os", "system"]}, "needs code that it does not contain: os"),
        ({"unet": ["antigravity", "fly"]}, "needs code that it does not contain: antigravity"),
        ({"_class_name": "NoSuchPipeline"}, "cannot load a pipeline from .*stock"),
        ({"_class_name": "UNet2DModel"}, "cannot load a pipeline from .*stock: AttributeError"),
        ({"_class_name": ["pipeline_hfgen_vae", "Tensor"]}, "needs code that it does not contain: pipeline_hfgen_vae"),
        ({"id2label": "x"}, "id2label must map class indices to names"),
        ({"id2label": {"a": "b"}}, "id2label must map class indices to names"),
        ({"id2label": {"0": 5}}, "id2label must map class indices to names"),
    ],
)
def test_an_index_that_no_pipeline_can_be_loaded_from_is_one_message(stock, fields, message):
    change(stock / "model_index.json", **fields)
    with pytest.raises(UserError, match=message):
        hfgen.load(str(stock))


@pytest.mark.parametrize(
    ("part", "fields", "message"),
    [
        ("unet", {"quantization_config": {"load_in_4bit": True}}, "cannot load a pipeline from .*bitsandbytes"),
        (
            "unet",
            {"layers_per_block": 10**6},
            "config.json: layers_per_block is 1000000, but hfgen allows 100",
        ),
        ("unet", {"block_out_channels": [8] * 10**5}, "block_out_channels has 100000 entries"),
        ("unet", {"block_out_channels": [10**8, 8]}, "block_out_channels is 100000000, but hfgen allows 1,000,000"),
        ("unet", {"block_out_channels": [10**6, 10**6]}, "cannot load a pipeline from .*allocate"),
        ("unet", {"sample_size": 10**6}, "sample_size is 1000000, but hfgen allows 4,096 at most"),
        ("unet", {"in_channels": "x"}, "cannot load a pipeline from .*TypeError"),
        ("unet", {"norm_num_groups": 0}, "cannot load a pipeline from .*ZeroDivisionError"),
        ("scheduler", {"num_train_timesteps": 10**9}, "scheduler_config.json: num_train_timesteps is 1000000000"),
        ("scheduler", {"num_train_timesteps": "x"}, "cannot load a pipeline from .*TypeError"),
    ],
)
def test_a_configuration_that_nothing_can_be_built_from_is_one_message(stock, part, fields, message):
    change(next((stock / part).glob("*config.json")), **fields)
    with pytest.raises(UserError, match=message):
        hfgen.load(str(stock))


@pytest.mark.parametrize("content", ["[]", "null", "{"])
def test_a_configuration_that_is_none_is_named(stock, run, content):
    for file in (stock / "unet" / "config.json", run / "vae" / "config.json"):
        file.write_text(content)
        with pytest.raises(UserError, match=str(file)):
            hfgen.load(str(file.parents[1]))


def test_numbers_of_own_models_are_bounded_too(run):
    change(run / "vae" / "config.json", latent_dim=10**9)
    with pytest.raises(UserError, match="vae/config.json: latent_dim is 1000000000"):
        hfgen.load(str(run))


@pytest.mark.filterwarnings("ignore:.*")
def test_weights_that_lack_a_tensor_are_refused(stock, run):
    for weights, name in (
        (stock / "unet" / "diffusion_pytorch_model.safetensors", "conv_in.bias"),
        (run / WEIGHTS, "from_latents.0.bias"),
        (run / "mixture" / "diffusion_pytorch_model.safetensors", "means"),
    ):
        before = weights.read_bytes()
        save_file({key: value for key, value in load_file(weights).items() if key != name}, weights)
        with pytest.raises(UserError, match=f"the weights of {weights.parent.name} lack {name}"):
            hfgen.load(str(weights.parents[1]))
        weights.write_bytes(before)


def test_code_beside_a_stock_component_does_not_run(stock, tmp_path):
    code = f"open({str(tmp_path / 'trace')!r}, 'w')\nfrom diffusers import UNet2DModel\n"
    (stock / "unet" / "diffusers.py").write_text(code)
    with pytest.raises(UserError, match=r"would run on this machine: unet/diffusers\.py"):
        hfgen.load(str(stock))
    assert not (tmp_path / "trace").exists()


def test_a_mistyped_path_is_no_hub_id(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "c10").mkdir(parents=True)
    monkeypatch.setattr("hfgen.pipelines.loading.hf_hub_download", lambda *_, **__: pytest.fail("asked the Hub"))
    assert main(["sample", "runs/c1"]) == 2
    assert "there is no folder runs/c1; did you mean runs/c10?" in capsys.readouterr().err


def test_a_revision_of_a_folder_is_refused(run, capsys):
    assert main(["sample", str(run), "--revision", "v2"]) == 2
    assert "is a folder, and revision (v2) needs a Hub id" in capsys.readouterr().err


# --- judges


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"auto_map": {"AutoModelForImageClassification": "evil.Model"}}, "config.json has auto_map"),
        ({"attn_implementation": "eve/kernel"}, "config.json has attn_implementation"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "config.json has quantization_config"),
        ({"architectures": ["ViTForImageClassification"]}, "a judge must be a ResNetForImageClassification or"),
        ({"architectures": []}, "a judge must be a ResNetForImageClassification or"),
        ({"depths": [10**6, 1]}, "depths is 1000000, but hfgen allows 100"),
        ({"hidden_sizes": "x"}, "cannot load the judge"),
        ({"hidden_act": "nope"}, "cannot load the judge .*KeyError"),
    ],
)
def test_a_judge_that_is_none_is_one_message(judge, monkeypatch, fields, message):
    monkeypatch.setattr(sys, "stdin", None)  # whoever asks gets no answer
    change(judge / "config.json", **fields)
    with pytest.raises(UserError, match=message):
        load_judge(str(judge))


def test_a_judge_brings_no_code(judge, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked a question"))
    (judge / "evil.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')\n")
    change(judge / "config.json", auto_map={"AutoModelForImageClassification": "evil.Model"}, model_type="evil")
    with pytest.raises(UserError, match="auto_map"):
        load_judge(str(judge))
    assert not (tmp_path / "trace").exists()


def test_a_judge_with_damaged_parts_is_refused(judge):
    weights = judge / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: value for name, value in tensors.items() if name != "classifier.1.bias"}, weights)
    with pytest.raises(UserError, match=r"its weights lack classifier\.1\.bias"):
        load_judge(str(judge))
    save_file(tensors, weights)
    (judge / "preprocessor_config.json").write_text('{"size": 5}')
    with pytest.raises(UserError, match="size must have height and width, not 5"):
        load_judge(str(judge))


# --- sweeps


@pytest.mark.parametrize("name", ["../victim", "/victim", "a/b", "..", "", "a\\b"])
@pytest.mark.parametrize("command", ["analyze", "evaluate"])
def test_a_member_of_a_sweep_lies_in_its_folder(run, tmp_path, capsys, name, command):
    (tmp_path / "sweep").mkdir()
    run.rename(tmp_path / "victim")
    before = sorted((tmp_path / "victim").rglob("*"))
    name = str(tmp_path / "victim") if name == "/victim" else name
    record = {"command": "hfgen train vae", "members": {name: {"seed": "1"}}}
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps(record))
    assert main([command, str(tmp_path / "sweep")]) == 2
    assert "a member must be the name of a folder beside it" in capsys.readouterr().err
    assert sorted((tmp_path / "victim").rglob("*")) == before


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"members": [], "command": "x"}', '{"members": {"../a": {}}, "command": "x"}']
)
def test_a_record_that_is_no_sweep_is_named(tmp_path, capsys, content):
    (tmp_path / "sweep.json").write_text(content)
    assert main(["analyze", str(tmp_path)]) == 2
    assert str(tmp_path / "sweep.json") in capsys.readouterr().err


def test_a_sweep_that_is_not_finished_is_named(tmp_path, capsys):
    (tmp_path / "sweep.json").write_text('{"members": {"a": {"seed": "1"}}, "command": "x"}')
    assert main(["analyze", str(tmp_path)]) == 2
    assert f"is not finished: there is no {tmp_path / 'a'}" in capsys.readouterr().err


def test_members_are_called_by_the_last_part_of_a_path(tmp_path, monkeypatch, capsys):
    made = []
    monkeypatch.setattr("hfgen.training.sweep.train", lambda config, *_: made.append(Path(config.output_dir).name))
    monkeypatch.setattr("hfgen.evaluation.sweep_report.write_page", lambda folder: None)
    sweep = [f"train_data_dir={tmp_path}/a,{tmp_path}/b"]
    assert (
        main(["train", "vae", "--output_dir", str(tmp_path / "s"), "--dataset_name", "digits", "--sweep", *sweep]) == 2
    )
    arguments = ["train", "vae", "--output_dir", str(tmp_path / "s"), "--train_data_dir", "x", "--sweep"]
    file = tmp_path / "v.yaml"
    file.write_text(f"train_data_dir: x\noutput_dir: {tmp_path / 's'}\n")
    assert main(["train", "vae", "--config", str(file), "--sweep", *sweep]) == 0
    assert made == ["s-train_data_dir_a", "s-train_data_dir_b"]
    assert list(json.loads((tmp_path / "s" / "sweep.json").read_text())["members"]) == made
    assert main([*arguments[:4], "--config", str(file), "--sweep", f"train_data_dir={tmp_path}/a,/other/a"]) == 2
    assert "two runs of the sweep would be called s-train_data_dir_a" in capsys.readouterr().err


def test_a_value_twice_is_no_sweep():
    with pytest.raises(UserError, match="sweep has seed 1 twice"):
        parse_sweep(["seed=1,2,1"])


# --- the page's own facts


@pytest.mark.parametrize(
    ("device_type", "energy"), [("cpu", "10 W per core"), ("cuda", "400 W per GPU"), ("mps", None)]
)
def test_energy_is_estimated_where_the_power_is_known(run, device_type, energy):
    change(run / "run.json", device_type=device_type)
    assert main(["card", str(run)]) == 0
    page = (run / "README.md").read_text()
    assert (energy in page) if energy else "kWh" not in page
    emissions = (ModelCard(page).data.get("co2_eq_emissions") or {}).get("source", "")
    assert f"{energy} and the world's average of 473 g" in emissions if energy else not emissions


def test_a_page_without_results_has_no_name_of_a_model(run):
    assert main(["card", str(run)]) == 0
    assert "model_name" not in (run / "README.md").read_text()
    (run / "evaluation.json").write_text(json.dumps(record_of(*RECORDS["evaluation"])))
    assert main(["card", str(run)]) == 0
    assert ModelCard.load(run / "README.md").data.model_name == "run"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", "[]"), ("run.json", "{}"), ("run.json", "{"), ("config.yaml", ""), ("config.yaml", "- 1"),
        ("config.yaml", "a: ["), ("config.yaml", "\xff"), ("config.yaml", "1: 2"), ("config.yaml", "seed: 1"),
        ("config.yaml", "seed: 1\ndataset_name: 5"),
        ("config.yaml", "seed: 1\ndataset_name: x\nprior: '\")'"), ("preprocessor_config.json", "x"),
    ],
)  # fmt: skip
def test_a_broken_file_of_a_run_is_named(run, judge, capsys, name, content):
    folder = judge if name == "preprocessor_config.json" else run
    (folder / name).write_bytes(content.encode("latin-1"))
    assert main(["card", str(folder)]) == 2
    assert str(folder / name) in capsys.readouterr().err


def test_more_classes_than_the_network_knows_are_refused(run):
    change(run / "model_index.json", id2label={"0": "a"})
    with pytest.raises(UserError, match="model_index.json names 1 classes, but the network has fewer"):
        hfgen.load(str(run))


def test_a_table_of_results_writes_over_its_like_only(tmp_path, capsys):
    (tmp_path / "evaluation.json").write_text(json.dumps(record_of(*RECORDS["evaluation"])))
    results = ["results", str(tmp_path), "--output", str(tmp_path / "R.md")]
    assert main(results) == main(results) == 0
    (tmp_path / "R.md").write_text("# My own")
    assert main(results) == 2
    assert "R.md was not written by hfgen results" in capsys.readouterr().err


def test_a_run_that_was_trained_for_no_id_forges_no_code(run):
    fields = yaml.safe_load((run / "config.yaml").read_text()) | {"hub_model_id": 'a/b"); import os; ("'}
    (run / "config.yaml").write_text(yaml.safe_dump(fields))
    assert main(["card", str(run)]) == 0
    assert "import os" not in (run / "README.md").read_text()


def test_a_command_that_is_none_is_named(run, capsys):
    change(run / "run.json", command="hfgen 'train")
    assert main(["card", str(run)]) == 2
    assert 'run.json: command is "hfgen \'train", which is not a command' in capsys.readouterr().err


# --- words and numbers of a command line


@pytest.mark.parametrize("value", [1e30, -1e4, float("nan"), float("inf")])
def test_absurd_guidance_is_refused(value):
    for config in (SampleConfig, TranslateConfig, EvaluateConfig):
        with pytest.raises(UserError, match="guidance_scale must be (at most 1,000|a finite number)"):
            config(run_or_repo="x", guidance_scale=value, **({"input": __file__} if config is TranslateConfig else {}))
    with pytest.raises(UserError, match="guidance_scale must be"):
        DDPMConfig(dataset_name="digits", output_dir="x", guidance_scale=value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("truncation", float("nan")), ("num_images", 10**12), ("batch_size", 10**9), ("seed", 2**70),
     ("num_inference_steps", 10**9)],
)  # fmt: skip
def test_absurd_numbers_are_refused(name, value):
    with pytest.raises(UserError, match=f"{name} must be (at most|a finite number)"):
        SampleConfig(run_or_repo="x", **{name: value})


def test_numbers_that_are_not_finite_are_refused_in_training():
    for value in (float("nan"), float("inf")):
        with pytest.raises(UserError, match="learning_rate must be a finite number"):
            DDPMConfig(dataset_name="digits", output_dir="x", learning_rate=value)


def test_absurd_numbers_are_refused_from_python_too(run, conditional_like):
    with pytest.raises(UserError, match="guidance_scale must be a number of at most 1000"):
        check_sampling(conditional_like, num_inference_steps=3, scheduler="ddim", guidance_scale=float("nan"))


@pytest.fixture
def conditional_like(stock):
    return hfgen.load(str(stock))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1: 2", "has an unknown field 1"),
        ("~: 2", "has an unknown field None"),
        ("a: " + "[" * 2000 + "]" * 2000, "is not valid YAML"),
        ("learning_rate: null", "learning_rate must have a value, not null"),
        ("block_out_channels: '8 16'", r"must be a list, as in block_out_channels: \[8, 16\], not '8 16'"),
        ("sample_steps: 3", r"must be a list, as in sample_steps: \[3\], not 3"),
        ("learning_rate: {a: 1}", "learning_rate must be a value or a list"),
        ("\xff\x00", "is not valid YAML"),
        ("a: 1\n" * 300_000, "has 1,500,000 bytes"),
    ],
    ids=range(9),
)
def test_a_configuration_file_that_cannot_be_is_one_message(tmp_path, text, message):
    file = tmp_path / "c.yaml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=message):
        parse_config(DDPMConfig, ["--config", str(file)], prog="x")


def test_an_unquoted_no_is_the_word_where_that_is_meant(tmp_path):
    (tmp_path / "c.yaml").write_text(
        f"dataset_name: digits\noutput_dir: {tmp_path}\nmixed_precision: no\nuse_ema: no\n"
    )
    config = parse_config(DDPMConfig, ["--config", str(tmp_path / "c.yaml")], prog="x")
    assert (config.mixed_precision, config.use_ema) == ("no", False)


def test_a_folder_is_no_configuration_file(run):
    with pytest.raises(UserError, match="is a folder; did you mean .*config.yaml"):
        parse_config(DDPMConfig, ["--config", str(run)], prog="x")


def test_a_home_of_nobody_is_refused(capsys):
    assert main(["sample", "~nobody-of-that-name/x"]) == 2
    assert "there is no user of that name here" in capsys.readouterr().err


def test_endings_in_capitals_count_and_what_is_replaced_is_said(run, tmp_path, capsys):
    sample = ["sample", str(run), "--num_images", "2", "--output"]
    assert main([*sample, str(tmp_path / "a.PNG")]) == 0
    with PIL.Image.open(tmp_path / "a.PNG") as picture:
        assert picture.format == "PNG"
    assert "replaces" not in capsys.readouterr().err
    assert main([*sample, str(tmp_path / "a.PNG")]) == 0
    assert f"replaces {tmp_path / 'a.PNG'}" in capsys.readouterr().err
    assert main([*sample, str(tmp_path / "b.NPZ")]) == 0
    with np.load(tmp_path / "b.NPZ") as arrays:
        assert arrays["images"].shape == (2, 8, 8)
