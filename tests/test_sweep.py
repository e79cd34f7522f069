"""`--sweep`: one run for each value, side by side on one page, which later reports complete."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import yaml
from conftest import REPOSITORY, TINY, TINY_JUDGE, TINY_VAE, flags

from hfgen.cli.main import main
from hfgen.evaluation.sweep_report import write_page
from hfgen.training.sweep import parse_sweep
from hfgen.utils.errors import UserError
from hfgen.utils.markdown import number, with_error

SHARED = {name: value for name, value in TINY_VAE.items() if name not in ("latent_dim", "hidden_sizes")}
VAE = flags(**SHARED | {"max_train_steps": 60})


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    arguments = ["train", "vae", *VAE, "--output_dir", str(folder), "--sweep", "latent_dim=2,4", "hidden_sizes=32 16"]
    assert main(arguments) == 0
    return folder


REPORTS = ["--reference_split", "train[90%:]"]
QUICK = ["--num_importance_samples", "5", "--num_bound_images", "20"]
NAMES = ["digits-latent_dim_2-hidden_sizes_32_16", "digits-latent_dim_4-hidden_sizes_32_16"]


def test_each_member_is_a_run_of_its_own(sweep):
    for name, latent_dim in zip(NAMES, (2, 4), strict=True):
        fields = yaml.safe_load((sweep / name / "config.yaml").read_text())
        assert (fields["latent_dim"], fields["hidden_sizes"], fields["sweep"]) == (latent_dim, [32, 16], [])
        assert (sweep / name / "model_index.json").exists()
    assert list(json.loads((sweep / "sweep.json").read_text())["members"]) == NAMES


def test_the_page_puts_them_side_by_side(sweep):
    page = (sweep / "sweep.md").read_text()
    header, _, *rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("|")]
    titles = [title.strip() for title in header]
    assert titles == ["run", "latent_dim", "hidden_sizes", "training", "loss/vae", "vae/reconstruction", "vae/kl"]
    assert [row[1].strip() for row in rows] == ["2", "4"]
    for name, row in zip(NAMES, rows, strict=True):
        metrics = [json.loads(line) for line in (sweep / name / "metrics.jsonl").read_text().splitlines()]
        epoch = json.loads((sweep / name / "run.json").read_text())["steps_per_epoch"]
        mean = np.mean([line["vae/kl"] for line in metrics[-epoch:]])
        assert float(row[6]) == pytest.approx(mean, rel=0.01)
    for picture in ("curves", "samples"):
        assert f"sweep/{picture}.png" in page
        assert np.array(PIL.Image.open(sweep / "sweep" / f"{picture}.png")).std() > 10
    assert str(sweep.parent) not in page
    assert "Runs that differ in `latent_dim` may differ in loss function or images" in page


@pytest.fixture(scope="module")
def measured(sweep, judge_run, tmp_path_factory) -> Path:
    """Return a copy with reports of all members; the page of the other is without."""
    folder = Path(shutil.copytree(sweep, tmp_path_factory.mktemp("measured") / sweep.name))
    assert main(["analyze", str(folder), *REPORTS, "--judge", str(judge_run), *QUICK]) == 0
    assert main(["evaluate", str(folder), *REPORTS, "--judge", str(judge_run), "--num_images", "100"]) == 0
    return folder


def test_reports_are_made_of_all_members_and_complete_the_page(measured, capsys):
    assert main(["analyze", str(measured), *REPORTS, *QUICK, "--output_dir", "x"]) == 2
    assert "leave output_dir out" in capsys.readouterr().err
    page = (measured / "sweep.md").read_text()
    bounds = {
        name: json.loads((measured / name / "analysis.json").read_text())["bounds"]["negative_elbo"] for name in NAMES
    }
    assert all(f"| {with_error(bound)} |" in page for bound in bounds.values())
    assert "| Fréchet distance |" in page
    best = min(NAMES, key=lambda name: bounds[name]["value"])
    assert f"{best} has the lowest −ELBO on the test images. Selecting a run by test images" in page


def test_members_whose_numbers_do_not_compare_are_not_ranked_by_them(measured, tmp_path):
    folder = Path(shutil.copytree(measured, tmp_path / "digits"))

    def page_with(member: str, file: str, **fields) -> str:
        record = json.loads((folder / member / file).read_text())
        record["protocol"] |= fields
        (folder / member / file).write_text(json.dumps(record))
        write_page(folder)
        return (folder / "sweep.md").read_text()

    page = page_with(NAMES[0], "analysis.json", pixel_distribution="logistic")
    distances = {
        name: json.loads((folder / name / "evaluation.json").read_text())["measures"]["digits_judge"] for name in NAMES
    }
    best = min(NAMES, key=lambda name: distances[name]["frechet_distance"]["value"])
    assert f"{best} has the lowest Fréchet distance on the test images." in page
    page = page_with(NAMES[1], "evaluation.json", num_images=99)
    assert "The values of −ELBO and of Fréchet distance are not comparable" in page
    assert "has the lowest" not in page


def test_members_within_the_error_of_the_difference_are_named_too(measured, tmp_path):
    folder = Path(shutil.copytree(measured, tmp_path / "digits"))
    for distance, name in enumerate(NAMES, 1):
        (folder / name / "analysis.json").unlink()
        record = json.loads((folder / name / "evaluation.json").read_text())
        record["measures"]["digits_judge"]["frechet_distance"] = {"value": distance, "std": 0.5}
        (folder / name / "evaluation.json").write_text(json.dumps(record))
    write_page(folder)
    first, second = NAMES
    page = (folder / "sweep.md").read_text()
    tie = f"{second} ties with it: the difference is within two of its standard deviations."
    assert page.splitlines()[2].startswith(f"{first} has the lowest Fréchet distance on the test images. {tie}")
    assert f"| [{first}]({first}) (best) |" in page
    assert f"| [{second}]({second}) (tie) |" in page


def test_what_image_to_image_members_make_is_on_the_page(sweep, tmp_path):
    folder = Path(shutil.copytree(sweep, tmp_path / "digits"))
    record = REPOSITORY / "model_cards" / "translation_fashion_mnist_cpu10min" / "evaluation.json"
    for name in NAMES:
        shutil.copy(record, folder / name / "evaluation.json")
    write_page(folder)
    setting = json.loads(record.read_text())["restoration"][0]
    page = (folder / "sweep.md").read_text()
    assert f"PSNR, {setting['title']}" in page
    assert f"| {number(setting['made']['psnr'])} |" in page


def test_its_members_can_be_published(sweep, capsys):
    assert main(["publish-all", str(sweep.parent), "--namespace", "ada", "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert all(f"as ada/{name}:" in printed for name in NAMES)


def test_a_sweep_goes_on_where_it_stopped(sweep, tmp_path, capsys):
    arguments = ["train", "vae", *VAE, "--output_dir", str(tmp_path / "digits"), "--sweep", "latent_dim=2,4"]
    (first, second) = (tmp_path / "digits" / f"digits-latent_dim_{size}" for size in (2, 4))
    assert main([*arguments[:-1], "latent_dim=2"]) == 0
    model = (first / "vae" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    assert main(arguments) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert not second.exists()
    assert main([*arguments, "--resume_from_checkpoint", "latest"]) == 0
    assert (second / "model_index.json").exists()
    assert (first / "vae" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns == model, "is left as it is"


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (["latent_dim"], "such as latent_dim=2,4,16, not latent_dim"),
        (["latent_dim=2,,4"], "not latent_dim=2,,4"),
        (["latent_dim=2", "latent_dim=4"], "a sweep entry must be a new field"),
        (["output_dir=a,b"], "output_dir cannot be swept"),
        (["latent_dims=2,4"], "no flag --latent_dims; did you mean --latent_dim?"),
        (["latent_dim=2,0"], "latent_dim must be positive, not 0"),
        (["latent_dim=two"], "two"),
        (["max_train_steps=3,4"], "max_train_steps is swept and cannot be set as well"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_any_work(tmp_path, capsys, sweep, message):
    assert main(["train", "vae", *VAE, "--output_dir", str(tmp_path / "run"), "--sweep", *sweep]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_several_fields_multiply_and_lists_are_parted_by_spaces():
    assert parse_sweep(["a=1,2", "b=3 4,5"]) == [
        {"a": ["1"], "b": ["3", "4"]}, {"a": ["1"], "b": ["5"]},
        {"a": ["2"], "b": ["3", "4"]}, {"a": ["2"], "b": ["5"]},
    ]  # fmt: skip
    with pytest.raises(UserError, match="mixed_precision cannot be swept"):
        parse_sweep(["mixed_precision=no,bf16"])


def test_true_false_and_lists_that_may_be_none_are_swept(tmp_path):
    sweep = ["decoder_hidden_sizes=8,8 16", "use_ema=true,false"]
    fields = TINY_VAE | {"max_train_steps": 2, "output_dir": tmp_path / "v"}
    assert main(["train", "vae", *flags(**fields), "--sweep", *sweep]) == 0
    made = [yaml.safe_load(path.read_text()) for path in sorted((tmp_path / "v").glob("*/config.yaml"))]
    assert sorted((each["decoder_hidden_sizes"], each["use_ema"]) for each in made) == [
        ([8], False), ([8], True), ([8, 16], False), ([8, 16], True),
    ]  # fmt: skip


def test_a_sweep_runs_in_one_process(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "vae", *VAE, "--output_dir", str(tmp_path / "x"), "--sweep", "latent_dim=2,4"]) == 2
    assert "a sweep runs in one process" in capsys.readouterr().err


def test_runs_of_one_name_are_not_published_as_one(sweep, tmp_path, capsys):
    for folder in ("a", "b"):
        (tmp_path / folder / "vae").mkdir(parents=True)
        (tmp_path / folder / "vae" / "run.json").write_text("{}")
    assert main(["publish-all", str(tmp_path), "--namespace", "ada", "--dry_run"]) == 2
    assert "are called vae and would be published as one" in capsys.readouterr().err


def test_classifiers_are_swept_and_tested(tmp_path):
    fields = TINY_JUDGE | {"output_dir": tmp_path / "judge", "max_train_steps": 20}
    del fields["learning_rate"]
    assert main(["train", "classifier", *flags(**fields), "--sweep", "learning_rate=1e-3,1e-2"]) == 0
    assert main(["evaluate", str(tmp_path / "judge")]) == 0
    page = (tmp_path / "judge" / "sweep.md").read_text()
    assert "| accuracy |" in page
    assert "judge-learning_rate_1e-2 has the highest accuracy on the test images." in page


def test_other_families_are_swept_too(tmp_path):
    fields = TINY | {"output_dir": tmp_path / "ddpm", "max_train_steps": 3}
    assert main(["train", "ddpm", *flags(**fields), "--sweep", "learning_rate=1e-3,2e-3"]) == 0
    page = (tmp_path / "ddpm" / "sweep.md").read_text()
    assert len(re.findall(r"^\| \[ddpm-learning_rate_", page, re.M)) == 2
    assert re.search(r"^ddpm-learning_rate_\S+ has the lowest training loss", page, re.M)
