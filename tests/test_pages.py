"""The page of a run and the page that puts runs side by side, read by a parser and by a real browser."""

import html
import html.parser
import itertools
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote

import PIL.Image
import pytest
import yaml
from conftest import REPOSITORY, TINY_VAE, flags

import hfgen
from hfgen.cli.main import main
from hfgen.publishing.hub import list_published
from hfgen.publishing.overview import overview_page
from hfgen.publishing.pages import curves_of, renew_page, write_page
from hfgen.runs.folder import TIMES_FILE
from hfgen.runs.record import read_rows
from hfgen.utils.errors import UserError

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = "<script>document.title = 'caught'<script> & \"<img src=x>"
SHORT = {"num_importance_samples": 2, "num_bound_images": 4}


@pytest.fixture
def runs(tmp_path, vae_run, gan_run, conditional_run, translation_run, judge_run) -> Path:
    """Copies of a run of each family, each with its page, in a folder `runs`."""
    originals = {
        "vae": vae_run, "gan": gan_run, "ddpm": conditional_run("v_prediction"), "translation": translation_run,
        "classifier": judge_run,
    }  # fmt: skip
    for name, original in originals.items():
        write_page(Path(shutil.copytree(original, tmp_path / "runs" / name)))
    return tmp_path / "runs"


def addresses(page: Path) -> list[str]:
    """Return what a page links to and loads."""
    found = []

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            found.extend(value for name, value in attributes if name in ("href", "src"))

    Reader().feed(page.read_text(encoding="utf-8"))
    return [address for address in found if address != "data:,"]


def test_a_run_of_each_family_has_a_page_whose_links_lead_to_its_files(runs):
    for name, use in {"vae": "sample", "gan": "sample", "ddpm": "sample", "translation": "edit"}.items():
        page = (runs / name / "index.html").read_text()
        assert f'<span class="badge">{name}</span>' in page
        assert f'hfgen.{use}("{runs / name}"' in page
        assert f"hfgen evaluate {runs / name}" in page
    assert "AutoModelForImageClassification" in (runs / "classifier" / "index.html").read_text()
    for page in runs.glob("*/index.html"):
        links = addresses(page)
        assert not [link for link in links if not (page.parent / unquote(link)).exists()]
        newest = sorted((page.parent / "samples").glob("*.png"))[-1]
        assert links[:2] == [f"samples/{newest.name}"] * 2, "the newest grid comes first"
        assert {"config.yaml", "run.json", "metrics.jsonl", "times.jsonl", "checkpoints/"} <= set(links)


def test_commands_end_by_naming_pages_and_pictures_and_renew_the_page(runs, judge_run, capsys):
    measured = {"judge": judge_run, "reference_split": "train[80%:]"}
    run = runs / "vae"
    page = run / "index.html"
    assert "Not evaluated yet" in page.read_text()
    report = hfgen.evaluate(run, num_images=60, **measured)
    printed = capsys.readouterr().out
    assert f"The evaluation is in {run / 'evaluation.md'}, its pictures in {run / 'evaluation'}" in printed
    assert printed.splitlines()[-1] == f"The page of the run is {page}"
    value = report.record["measures"]["digits_judge"]["precision"]["value"]
    floor = report.record["floors"]["digits_judge"]["train_against_test"]["precision"]
    shown = re.search(
        r"<td>precision</td>\s*<td class=\"number\"><b>([\d.]+).*?<td class=\"number\">([\d.]+)", page.read_text()
    )
    assert [float(text) for text in shown.groups()] == pytest.approx([value, floor], abs=1e-3)
    assert "evaluation/neighbours.png" in addresses(page)
    hfgen.analyze(run, **measured, **SHORT)
    hfgen.evaluate(runs / "translation", **measured)
    hfgen.compare_samplers(runs / "ddpm", num_images=60, scheduler=["ddim"], num_inference_steps=[2], **measured)
    hfgen.card(run)
    printed += capsys.readouterr().out
    assert ".json" not in printed
    assert printed.count("The page of the run is ") == 5
    assert page.read_text().count("<b>In short</b>") == 2
    assert "latent dimensions are active" in page.read_text()
    assert {"analysis/latents.png", "README.md"} <= set(addresses(page))
    assert "gaussian_noise=0.3" in (runs / "translation" / "index.html").read_text()
    assert "comparison/curves.png" in addresses(runs / "ddpm" / "index.html")
    for page in runs.glob("*/index.html"):
        assert not [link for link in addresses(page) if not (page.parent / unquote(link)).exists()]


def test_images_measured_without_a_judge_and_few_of_them_are_shown(runs, vision_model, monkeypatch):
    monkeypatch.setattr("hfgen.evaluation.real.shipped_judges_of", lambda dataset: [])
    hfgen.evaluate(runs / "vae", features=vision_model, reference_split="train[80%:]", num_images=12)
    page = (runs / "vae" / "index.html").read_text()
    assert "in the features of dinov2-small;" in page
    assert re.search(r'<td>Fréchet distance</td>\s*<td class="number"></td><td class="number"></td>', page)
    assert re.search(r'<td>precision</td>\s*<td class="number"><b>', page)
    assert "classes.png" not in page
    assert 'data-value="12"' in overview_page([runs / "vae"], runs)


def test_training_names_page_picture_and_next_commands(tmp_path, capsys):
    fields = TINY_VAE | {"max_train_steps": 3, "num_mixture_components": 1}
    assert main(["train", "vae", *flags(**fields, output_dir=tmp_path / "run", sweep="seed=1,2")]) == 0
    run, printed = tmp_path / "run" / "run-seed_1", capsys.readouterr().out
    picture = run / "samples" / "step-000003.png"
    flag = "--reference_split 'train[:80%]'"
    following = f"hfgen sample {run}, hfgen evaluate {run} {flag}, hfgen analyze {run} {flag}"
    assert f"The run is in {run}; newest picture: {picture}; next: {following}\n" in printed
    assert "no split test, so these commands measure on the split train[:80%]; training with test_fraction" in printed
    assert f"The page of the run is {run / 'index.html'}\n" in printed
    assert (tmp_path / "run" / "run-seed_2" / "index.html").is_file()


@pytest.mark.parametrize(
    ("held_out", "split"), [("test", None), ("validation", "validation"), (None, "train")], ids=str
)
def test_the_commands_to_go_on_with_work_whatever_is_held_out(held_out, split, tmp_path, capsys):
    fields = TINY_VAE | {"train_split": "train", "max_train_steps": 3, "num_mixture_components": 1}
    fields |= {f"{held_out}_fraction": 0.2} if held_out else {}
    run = hfgen.train("vae", **fields, output_dir=tmp_path / "run")
    hfgen.card(run, repo_id="ada/own", license="mit")
    (command,) = re.findall(r"hfgen evaluate [^,\n]*", capsys.readouterr().out)
    flag = f" --reference_split {split}" if split else ""
    assert command == f"hfgen evaluate {run}{flag}"
    page, card = (run / "index.html").read_text(), (run / "README.md").read_text()
    assert f"<p>Not evaluated yet: <code>{command}</code>" in page
    assert f"Not evaluated yet; run `hfgen evaluate RUN{flag}`" in card
    assert [("compares with training images" in text) for text in (page, card)] == [split == "train"] * 2
    assert '"KL divergence, nats": {"": ' in page, "a panel of one line has no further name"
    assert main([*shlex.split(command)[1:], "--num_images", "300"]) == 0
    renewed = (run / "README.md").read_text()
    assert f"The model card {run / 'README.md'} is renewed" in capsys.readouterr().out
    assert "Not evaluated yet" not in renewed
    assert "license: mit" in renewed
    assert 'from_pretrained("ada/own"' in renewed


def test_times_stand_beside_the_metrics_and_are_forgotten_with_them(vae_run, tmp_path):
    times = read_rows(vae_run / TIMES_FILE)
    assert [row["step"] for row in times][-1] == 800
    assert all(a["step"] < b["step"] and a["seconds"] <= b["seconds"] for a, b in itertools.pairwise(times))
    assert "seconds" not in read_rows(vae_run / "metrics.jsonl")[-1]
    fields = TINY_VAE | {"num_mixture_components": 1, "checkpointing_steps": 2, "logging_steps": 1}
    run = hfgen.train("vae", **fields | {"max_train_steps": 5}, output_dir=tmp_path / "run")
    shutil.rmtree(run.checkpoints / "step-000005")
    before = [row["seconds"] for row in read_rows(run / TIMES_FILE)]
    hfgen.train("vae", config=run.config, resume_from_checkpoint="latest")
    after = read_rows(run / TIMES_FILE)
    assert [row["step"] for row in after] == [1, 2, 3, 4, 5]
    assert [row["seconds"] for row in after][:4] == before[:4]
    assert after[4]["seconds"] >= before[3]


def test_curves_are_means_over_steps_and_minutes(tmp_path):
    rows = [{"step": step, "loss/unet": float(step), "grad_norm/unet": float("inf")} for step in range(1, 602)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    curves = curves_of(tmp_path)
    assert (curves["steps_per_point"], curves["minutes"], len(curves["steps"])) == (4, None, 151)
    assert curves["steps"][:2] == curves["values"]["loss/unet"][:2] == [2.5, 6.5]
    assert curves["steps"][-1] == 601
    assert set(curves["values"]["grad_norm/unet"]) == {None}
    times = [{"step": 100, "seconds": 60.0}, {"step": 601, "seconds": 180.0}]
    (tmp_path / TIMES_FILE).write_text("".join(json.dumps(row) + "\n" for row in times))
    minutes = curves_of(tmp_path)["minutes"]
    assert minutes[0] == pytest.approx(0.025)
    assert minutes[-1] == 3
    assert curves_of(tmp_path / "nothing") == {}


def test_a_run_of_an_older_version_has_curves_over_steps_only(runs):
    (runs / "vae" / TIMES_FILE).unlink()
    page = write_page(runs / "vae").read_text()
    assert 'name="axis"' not in page
    assert '"minutes": null' in page


def test_a_page_that_hfgen_did_not_write_is_kept(runs, capsys):
    run = runs / "vae"
    (run / "index.html").write_text("my own")
    assert renew_page(run) is None
    assert f"the page {run / 'index.html'} was not written" in capsys.readouterr().err
    hfgen.train("vae", config=run / "config.yaml", resume_from_checkpoint="latest", max_train_steps=801)
    assert (run / "index.html").read_text() == "my own"


def test_the_page_of_an_older_model_is_gone_while_the_run_goes_on(runs, monkeypatch):
    run = runs / "vae"
    shutil.copytree(run / "samples", run / "comparison")
    for name in ("comparison.json", "comparison.md"):
        (run / name).write_text("{}")

    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr("hfgen.training.trainer.Trainer.run_loop", stop)
    with pytest.raises(KeyboardInterrupt):
        hfgen.train("vae", config=run / "config.yaml", resume_from_checkpoint="latest", max_train_steps=801)
    assert not [*run.glob("index.html"), *run.glob("comparison*")]
    assert sorted(path.name for path in (run / "outdated" / "1").iterdir()) == [
        "comparison", "comparison.json", "comparison.md",
    ]  # fmt: skip


def test_a_run_that_cannot_have_a_page_is_told_and_nothing_more(runs, capsys):
    run = runs / "gan"
    (run / "config.yaml").rename(run / "real.yaml")
    (run / "config.yaml").symlink_to(run / "real.yaml")
    assert renew_page(run) is None
    assert "is a symbolic link" in capsys.readouterr().err
    assert renew_page(runs) is None
    assert not capsys.readouterr().err


def test_neither_page_nor_times_are_published(runs):
    names = {name.partition("/")[0] for name, _ in list_published(runs / "vae", "ada/vae", "mit")}
    assert "model_index.json" in names
    assert not names & {"index.html", "times.jsonl", "metrics.jsonl"}


def test_the_code_on_the_page_runs_without_hfgen(runs, without_hfgen, tmp_path):
    page = write_page(runs / "vae").read_text()
    (code,) = re.findall(r"diffusers alone</h3>\s*<pre><code>(.*?)</code>", page, re.DOTALL)
    without_hfgen.python(html.unescape(code), folder=tmp_path)
    with PIL.Image.open(tmp_path / "image.png") as image:
        assert image.size == (8, 8)


def test_the_suffix_decides_what_results_writes(runs, tmp_path, capsys):
    page = hfgen.results(runs, output=tmp_path / "all.html")
    assert f"The results are in {page}" in capsys.readouterr().out
    assert {f"runs/{name}/index.html" for name in ("vae", "gan", "ddpm", "translation", "classifier")} <= {
        *addresses(page)
    }
    assert hfgen.results(runs, runs / "vae", output=page) == page, "its own page is replaced"
    assert page.read_text().count("<tr data-family") == 5
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.yaml").touch()
    capsys.readouterr()
    hfgen.results(runs, begun, output=page)
    assert f"left out, since they are not finished: {begun}" in capsys.readouterr().err
    (runs / "gan" / "run.json").write_text("[" * 9)
    hfgen.results(runs, output=page)
    assert f"left out: {runs / 'gan' / 'run.json'} is not a valid JSON file" in capsys.readouterr().err
    assert page.read_text().count("<tr data-family") == 4
    page.write_text("<title>my own</title>")
    for output, message in (
        (page, "was not written by hfgen results"),
        (tmp_path / "R.txt", "must end in .md or .html"),
    ):
        with pytest.raises(UserError, match=message):
            hfgen.results(runs, output=output)
    with pytest.raises(UserError, match="there is no finished run"):
        hfgen.results(runs / "vae" / "samples", output=tmp_path / "none.html")


def test_a_training_of_no_time_has_no_speed(runs, tmp_path):
    record = runs / "vae" / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"train_seconds": 0.0}))
    page = hfgen.results(runs / "vae", output=tmp_path / "all.html")
    assert "inf" not in re.findall(r"<td[^>]*>([^<]*)", page.read_text())


def test_the_cards_of_the_repository_are_on_one_page():
    """Which have records of all kinds, by earlier versions too, and no run."""
    page = overview_page([REPOSITORY / "model_cards"], REPOSITORY)
    rows = re.findall(r'<tr data-family="(\w+)" data-data="([\w/-]+)">', page)
    records = [
        file.parent for name in ("evaluation", "analysis") for file in REPOSITORY.glob(f"model_cards/*/{name}.json")
    ]
    assert len(rows) == len({*records})
    assert {family for family, _ in rows} >= {"classifier", "cyclegan", "ddpm", "gan", "translation", "vae"}
    assert "gaussian_noise=0.3: 12.81 → 22.72" in page


def browse(page: Path, script: str, profile: Path, *options: str) -> dict:
    """Open a page in a browser, run a script in it, and return what this makes of `found`.

    `found` has the errors, the requests, and the pictures that do not load.
    """
    if CHROMIUM is None:
        pytest.skip("there is no chromium in the PATH")
    watch = """<script>
      const found = {errors: [], requests: [], broken: []};
      addEventListener("error", event => found.errors.push(event.message ?? event.target.outerHTML), true);
    </script>"""
    act = """<script>addEventListener("load", () => {
      found.broken = [...document.images].filter(image => !image.naturalWidth).map(image => image.src);
      try { %s } catch (error) { found.errors.push(String(error)); }
      found.requests = performance.getEntriesByType("resource").map(entry => entry.name);
      const result = document.createElement("pre");
      result.id = "found";
      result.textContent = JSON.stringify(found);
      document.body.append(result);
    });</script>"""
    text = page.read_text(encoding="utf-8").replace("<head>", "<head>" + watch).replace('loading="lazy"', "")
    copy = page.with_name("watched.html")
    copy.write_text(text.replace("</body>", act % script + "</body>"), encoding="utf-8")
    settings = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={profile}", *options]
    wanted = ["--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom", copy.as_uri()]
    done = subprocess.run([CHROMIUM, "--headless", *settings, *wanted], capture_output=True, text=True, timeout=120)
    copy.unlink()
    result = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert result, done.stderr
    assert "CONSOLE" not in done.stderr
    found = json.loads(html.unescape(result[1]))
    assert (found["errors"], found["broken"]) == ([], [])
    assert not [address for address in found["requests"] if not address.startswith(("file:", "data:"))]
    return found


def test_a_browser_shows_the_page_of_a_run(runs, tmp_path):
    run = Path(shutil.move(runs / "gan", runs / "<script>a&b"))
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"problems": [EVIL], "device": EVIL}))
    fields = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(fields | {"dataset_name": EVIL}))
    script = """
      const paths = () => [...document.querySelectorAll(".panel path")].map(path => path.getAttribute("d"));
      found.titles = [...document.querySelectorAll(".panel b")].map(title => title.textContent);
      found.legends = [...document.querySelectorAll(".panel .legend")].map(legend => legend.textContent);
      const overSteps = paths();
      document.querySelector("input[value=minutes]").click();
      found.lines = overSteps.length;
      found.moved = paths().filter((path, index) => path !== overSteps[index]).length;
      found.axis = document.querySelector(".panel").textContent;
      const range = document.getElementById("grid-range");
      range.value = 0;
      range.dispatchEvent(new Event("input"));
      found.first = document.getElementById("grid").src;
      found.title = document.title;
      found.problem = document.querySelector(".warn").textContent;
      found.wide = document.documentElement.scrollWidth - innerWidth;
    """
    found = browse(write_page(run), script, tmp_path / "profile", "--window-size=500,900")
    assert found["title"] == "<script>a&b"
    assert found["problem"] == f"Problem: Training reported a problem: {EVIL}."
    assert found["titles"][0] == "loss"
    assert found["titles"][-1] == "learning rate"
    assert {"discriminatorgenerator", "real imagesgenerated images", ""} <= set(found["legends"])
    assert found["moved"] == found["lines"] > len(found["titles"])
    assert "minutes" in found["axis"]
    assert found["first"].endswith(min((run / "samples").glob("*.png")).name)
    assert found["wide"] <= 0, "a telephone need not scroll sideways"


def test_the_metrics_in_three_feature_spaces_fit_into_a_browser_of_usual_width(runs, tmp_path):
    record = json.loads(
        (REPOSITORY / "model_cards" / "ddpm_conditional_mnist_cpu5min" / "evaluation.json").read_text()
    )
    names = {"fashion_mnist": "mnist", "fashion_mnist_regnet": "mnist_regnet", "dinov2-small-of-another": "mnist"}
    for key in ("measures", "floors", "classes", "conditional", "judge_accuracy"):
        record[key] = {name: record[key][original] for name, original in names.items()}
    record["protocol"]["judges"] = dict.fromkeys(names, "0" * 64)
    (runs / "ddpm" / "evaluation.json").write_text(json.dumps(record))
    script = """
      const boxes = [...document.querySelectorAll(".scroll")];
      found.hidden = boxes.map(box => box.scrollWidth - box.clientWidth);
      found.meaning = document.querySelector(".metrics tr").lastElementChild.clientWidth;
    """
    found = browse(write_page(runs / "ddpm"), script, tmp_path / "profile", "--window-size=1200,900")
    assert found["hidden"] == [0, 0], "the metrics, and the files"
    assert found["meaning"] > 200


def test_a_browser_sorts_and_filters_the_results(runs, tmp_path):
    (runs / "vae").rename(runs / EVIL.replace("/", ""))
    write_page(runs / EVIL)
    record = json.loads((REPOSITORY / "model_cards" / "ddpm_mnist_cpu5min" / "evaluation.json").read_text())
    (runs / "other").mkdir()
    (runs / "other" / "evaluation.json").write_text(json.dumps(record))
    for key in ("measures", "floors"):
        record[key][EVIL] = record[key]["mnist_regnet"].copy()
    record["measures"]["mnist"]["frechet_distance"]["value"] = 0.5
    record["measures"]["mnist_regnet"] |= {"frechet_distance": {"value": 9, "std": 0.5}}
    (runs / "second").mkdir()
    (runs / "second" / "evaluation.json").write_text(json.dumps(record))
    script = """
      const all = selector => [...document.querySelectorAll(selector)];
      const textOf = id => document.getElementById(id).textContent;
      const click = title => all("th button").find(button => button.textContent === title).click();
      const shown = () => all("tbody tr").filter(row => !row.hidden).map(row => row.cells[1].textContent);
      const set = (id, value) => {
        document.getElementById(id).value = value;
        document.getElementById(id).dispatchEvent(new Event("change"));
      };
      for (const title of ["run", "parameters", "Fréchet distance"]) {
        click(title);
        found[title] = [shown()];
        click(title);
        found[title].push(shown());
      }
      const lines = () => document.querySelectorAll("#chart path").length;
      set("metric", "loss/discriminator");
      found.both = lines();
      document.querySelector("input[value=minutes]").click();
      found.axis = textOf("chart");
      set("family", "gan");
      found.gan = [shown(), lines(), textOf("legend"), textOf("count")];
      set("family", "");
      const column = all("thead th").findIndex(head => head.textContent.startsWith("Fréchet distance"));
      const columns = [1, column - 1, column];
      const texts = row => columns.map(index => row.cells[index].textContent);
      found.features = all("#features option").map(option => option.value);
      found.spaces = found.features.map(space => {
        set("features", space);
        return all("tbody tr").filter(row => row.cells[column].dataset.value).map(texts);
      });
      set("features", "");
      set("data", "ylecun/mnist");
      found.mnist = shown();
      found.hidden = all("th").filter(head => head.hidden).map(head => head.textContent);
      found.title = document.title;
    """
    page = tmp_path / "results.html"
    hfgen.results(runs, output=page)
    found = browse(page, script, tmp_path / "profile")
    names = ["ddpm", "gan", "translation", "classifier", "other", "second", EVIL]
    for title in ("run", "parameters", "Fréchet distance"):
        assert sorted(found[title][0]) == sorted(names), title
    assert found["run"][0] == found["run"][1][::-1]
    assert found["run"][1][0] == "translation"
    assert [set(names[-2:]) for names in found["parameters"]] == [{"other", "second"}] * 2, "no value: last"
    assert found["parameters"][0][:-2] == found["parameters"][1][:-2][::-1]
    assert found["Fréchet distance"][0][0] == "second"
    assert found["both"] == 2
    assert "minutes" in found["axis"]
    assert found["gan"] == [["gan"], 1, "gan", "1 of 7 runs"]
    assert found["features"] == ["", EVIL, "mnist", "mnist_regnet"]
    first = [["other", "mnist", "0.777 ± 0.02real 0.0109"], ["second", "mnist", "0.5 ± 0.02real 0.0109"]]
    assert found["spaces"] == [
        first,
        [["second", EVIL, "0.268 ± 0.007real 0.0251"]],
        first,
        [["second", "mnist_regnet", "9 ± 0.5real 0.0251"], ["other", "mnist_regnet", "0.268 ± 0.007real 0.0251"]],
    ], "rows stay sorted"
    assert found["mnist"] == ["other", "second"]
    assert "parameters" in found["hidden"]
    assert "Fréchet distance" not in found["hidden"]
    assert found["title"] == "Results of 7 runs"
