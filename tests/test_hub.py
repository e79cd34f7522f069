"""The real client of the Hub against a server on loopback: push, propose, fail, load anywhere, tell the truth."""

import contextlib
import getpass
import json
import math
import os
import platform
import re
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from conftest import (
    REPOSITORY,
    TINY,
    TINY_FLOW_MAP,
    TINY_GAN,
    TINY_VAE,
    WITHOUT_HFGEN,
    Client,
    flags,
    stand_in_runtime,
)
from diffusers import DDPMPipeline
from hub_server import DROP, LOST_ANSWER, SLOW, Repo
from huggingface_hub import ModelCard
from safetensors.torch import load, load_file

import hfgen
from hfgen.config import DDPMConfig, FlowMapConfig, GANConfig, VAEConfig
from hfgen.figures.grids import GAP_PIXELS, sample_grid, save_picture
from hfgen.runtimes.site import MARK, RUNTIME_PARTS, RUNTIME_SCRIPT
from hfgen.sampling.sample import sample
from hfgen.tasks.diffusion import DiffusionTask
from hfgen.tasks.flow_map import FlowMapTask
from hfgen.tasks.gan import GANTask
from hfgen.tasks.vae import VAETask
from hfgen.training.run import train
from hfgen.utils.errors import UserError
from hfgen.utils.markdown import authors_sections, sections_of

PUBLISHED = {
    "README.md", "notebook.ipynb", "model_index.json", "scheduler/scheduler_config.json", "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors", "figures/samples.png", "figures/training_curves.png",
    "figures/film.gif",
}  # fmt: skip
OWN_PIPELINE = "pipeline_hfgen_class_conditional_diffusion.py"
OLDEST = os.environ.get("HFGEN_OLDEST_DIFFUSERS")  # a folder with the oldest supported version, made by `make test`
DRAW = """
import hashlib, torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({arguments})
pipe.set_progress_bar_config(disable=True)
generator = torch.Generator().manual_seed(0)
images = pipe(batch_size=2, num_inference_steps=3, generator=generator, output_type="np").images
print(f"drawn {{type(pipe).__module__}} {{hashlib.sha256(images.tobytes()).hexdigest()}}\\n", end="")
"""
OFFLINE = "import huggingface_hub\nhuggingface_hub.constants.HF_HUB_OFFLINE = True  # as the variable sets it\n"
TWO = """
import os, socket, sys
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
other = os.fork()
rank = "0" if other else "1"
os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
"""  # a group of two processes runs what follows
BOTH = """
if other:
    assert os.waitpid(other, 0)[1] == 0
"""  # the end


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("secret_place")


@pytest.fixture(scope="module")
def run(home):
    """A finished run in a place that nobody should learn of."""
    config = DDPMConfig(
        **TINY | {"output_dir": str(home / "tiny"), "max_train_steps": 2, "cache_dir": str(home / "c")}
    )
    return train(config, DiffusionTask)


@pytest.fixture(autouse=True)
def server(hub):
    hub.reset()
    return hub


@pytest.fixture(scope="module")
def oldest(hub_environment):
    """Runs Python that has the oldest supported diffusers and not hfgen; None where there is none."""
    if not OLDEST:
        yield None
        return
    with contextlib.closing(Client(hub_environment | {"PYTHONPATH": OLDEST}, WITHOUT_HFGEN)) as client:
        yield client


@pytest.fixture
def ask(client):
    def ask(token="hf_writer", **request):
        return client(environment={"HF_TOKEN": token}, **request)

    return ask


@pytest.fixture
def push(ask, run):
    def push(*arguments, status=0, folder=None, token="hf_writer", **options):
        options = flags(**{"repo_id": "ada/tiny"} | options)
        answer = ask(arguments=["push", str(folder or run), *options, *arguments], token=token)
        assert answer["status"] == status, answer["output"]
        return answer["output"]

    return push


def drawn_by(python, *arguments):
    """Load by each of some arguments, in one process without hfgen; say each time what class draws which images."""
    return re.findall("drawn .*", python("".join(DRAW.format(arguments=argument) for argument in arguments)))


@pytest.fixture(scope="module")
def drawn(run, without_hfgen):
    """What class draws which images when the run is loaded from its folder."""
    (drawn,) = drawn_by(without_hfgen.python, repr(str(run)))
    assert drawn.startswith("drawn diffusers.pipelines")
    return drawn


def code_of(page):
    """The Python code of a page, block by block."""
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


def repo_of(folder, **changed):
    """Make a repo of somebody else's from the files of a folder."""
    repo = Repo(private=False)
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    repo.commit("main", files | {name: content.encode() for name, content in changed.items()}, "files")
    return repo


# --- pushing


def test_one_commit_holds_the_model_its_page_and_pictures(push, server):
    output = push()
    repo = server.repos["model", "ada/tiny"]
    assert set(server.model("ada/tiny")) == PUBLISHED
    assert repo.messages == ["initial commit", "Upload tiny"]
    assert f"Published: {server.url}/ada/tiny/commit/{repo.refs['main']}" in output
    assert not repo.private
    requests = len(server.requests)
    assert "Published: nothing, since ada/tiny is up to date" in push()
    assert len(repo.messages) == 2, "nothing has changed, and so there is nothing to commit"
    assert not [r for r in server.requests[requests:] if r.startswith("PUT")]


def test_a_later_push_removes_what_an_earlier_one_left_and_nothing_else(push, server):
    push()
    repo = server.repos["model", "ada/tiny"]
    repo.commit("main", server.model("ada/tiny") | {
        "evaluation/old.png": b"old", "evaluation.json": b"{}", "unet/old.safetensors": b"old", "demo.txt": b"mine",
        "LICENSE": b"mine",
    }, "other files")  # fmt: skip
    push()
    assert set(server.model("ada/tiny")) == PUBLISHED | {"demo.txt", "LICENSE"}


def test_private_branch_and_pull_request(push, server):
    push("--private", repo_id="ada/hidden")
    assert server.repos["model", "ada/hidden"].private
    push("--revision", "v2")
    repo = server.repos["model", "ada/tiny"]
    assert set(repo.files("v2")[1]) == PUBLISHED
    assert not server.model("ada/tiny")
    push("--revision", "v2")
    assert f"{server.url}/ada/tiny/discussions/1" in push("--create_pr", token="hf_bob")
    assert not server.model("ada/tiny")
    assert "This token may only read" in push("--create_pr", token="hf_reader", status=2)
    assert "not both" in push("--create_pr", "--revision", "v2", status=2)


def test_a_dry_run_lists_and_sends_nothing(push, server):
    output = push("--dry_run")
    assert {line.split()[-1] for line in output.splitlines()[1:]} == PUBLISHED
    assert not server.requests


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token": ""}, "no token for the Hub: run hf auth login"),
        ({"token": "hf_wrong"}, "does not accept this token"),
        ({"token": "hf_reader"}, "may not write to ada/tiny: You don't have the rights"),
        ({"repo_id": "eve/tiny"}, "may not write to eve/tiny"),
        ({"license": "apache2"}, r"not 'apache2'; did you mean apache-2\.0\?"),
        ({"license": "MIT"}, r"license must be an identifier of the Hub, not 'MIT'; did you mean mit\?"),
        ({"license": "Apache 2.0"}, r"did you mean apache-2\.0\?"),
        ({"license": "none"}, "not 'none'; such as apache-2.0, mit, cc-by-4.0 or other"),
        ({"repo_id": "tiny"}, "tiny is not a Hub id of the form user/name"),
        ({"repo_id": "ada/not an id"}, "ada/not an id cannot be published: .*Repo id must use alphanumeric chars"),
    ],
)
def test_refusals_are_explained(push, server, options, message):
    assert re.search(message, push(status=2, **options))
    assert not server.repos


def test_refusals_by_what_is_there_come_before_any_upload(push, server):
    push()
    sent = len([request for request in server.requests if request.startswith("PUT")])
    assert "may not write to ada/tiny" in push("--revision", "v3", status=2, token="hf_reader")
    assert "ada/tiny already exists and is public" in push("--private", status=2)
    assert "no repo ada/nothing" in push("--create_pr", status=2, repo_id="ada/nothing")
    assert len([request for request in server.requests if request.startswith("PUT")]) == sent
    assert server.repos["model", "ada/tiny"].refs.keys() == {"main"}


def test_a_recipe_finds_its_model_in_a_namespace_of_the_hub(push, ask):
    push(repo_id="ada/ddpm_mnist_cpu5min")
    code = (
        "import os\nfrom pathlib import Path\nimport hfgen\nfrom hfgen.pipelines import loading\n"
        "loading.ZOO = Path('nowhere')\nos.environ['HFGEN_NAMESPACE'] = 'ada'\n"
        "print(hfgen.load('ddpm_mnist_cpu5min').config._name_or_path)\n"
    )
    answer = ask(code=code)
    assert answer["status"] == 0, answer["output"]
    assert "models--ada--ddpm_mnist_cpu5min" in answer["output"]


@pytest.fixture
def generator(gan_run, tmp_path):
    """A run of a GAN, whose page is written much faster than that of a U-Net."""
    return shutil.copytree(gan_run, tmp_path / "tiny")


def test_a_page_that_draws_becomes_a_static_space(push, server, hub_environment, generator):
    stand_in_runtime(Path(hub_environment["HF_HOME"]))
    assert "/spaces/ada/tiny" in push("--demo", "--private", folder=generator)
    assert server.repos["space", "ada/tiny"].private
    server.repos["space", "ada/tiny"].commit("main", earlier_page(server) | {"files/old.js": b"", "own.txt": b""}, "")
    push("--demo", folder=generator)
    files = server.repos["space", "ada/tiny"].files("main")[1]
    scripts = {"files/tiny-generator.onnx.js", *(f"files/{name}.js" for name in RUNTIME_PARTS)}
    assert files.keys() == {"README.md", "index.html", "demo.js", RUNTIME_SCRIPT, "own.txt", *scripts}
    card = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert (card["sdk"], card["app_file"], card["models"]) == ("static", "index.html", ["ada/tiny"])
    assert "model_index.json" in server.model("ada/tiny")


def earlier_page(server):
    return server.repos["space", "ada/tiny"].files("main")[1]


def test_a_space_of_others_is_left_alone(push, server, hub_environment, generator):
    stand_in_runtime(Path(hub_environment["HF_HOME"]))
    space = server.repos["space", "ada/tiny"] = Repo(private=False)
    space.commit("main", {"app.py": b"", "index.html": b"of others"}, "an application")
    assert "the Space ada/tiny exists and holds no page of hfgen demo" in push("--demo", status=2, folder=generator)
    space.commit("main", {"index.html": MARK.encode()}, "an earlier page")
    assert "the Space ada/tiny exists and is public" in push("--demo", "--private", status=2, folder=generator)
    assert ("model", "ada/tiny") not in server.repos
    server.repos["model", "ada/tiny"] = Repo(private=True)
    server.repos["model", "ada/tiny"].commit("main", {}, "a private model")
    assert "the Space ada/tiny exists and is public" in push("--demo", status=2, folder=generator), (
        "the page has the weights"
    )
    assert earlier_page(server) == {"index.html": MARK.encode()}


def test_a_dry_run_names_the_space(push, server):
    assert "hfgen demo as the static Space ada/tiny" in push("--demo", "--dry_run")
    assert server.requests == []


@pytest.mark.parametrize("option", [{"create_pr": True}, {"revision": "other"}])
def test_a_page_has_one_branch(push, server, option):
    assert "a demo is published on its main branch" in push("--demo", status=2, **option)
    assert server.requests == []


def test_a_repo_of_another_kind_is_left_alone(push, server, ask):
    create = "from huggingface_hub import HfApi; HfApi().create_repo('ada/tiny', repo_type='dataset')"
    assert ask(code=create)["status"] == 0
    assert "ada/tiny is a dataset on the Hub" in push(status=2)
    assert ("model", "ada/tiny") not in server.repos
    push(repo_id="ada/other")
    server.repos["model", "ada/other"].commit("main", {"config.json": b"{}"}, "a classifier")
    assert "ada/other holds a model of another type (config.json)" in push(status=2, repo_id="ada/other")
    assert server.model("ada/other") == {"config.json": b"{}"}


def test_what_is_no_finished_run_or_no_safetensors_is_refused(push, server, run, tmp_path):
    assert "holds no finished run" in push(status=2, folder=tmp_path)
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    assert "diffusion_pytorch_model.bin is not a safetensors file" in push(status=2, folder=copy)
    assert not server.repos


@pytest.mark.parametrize(
    ("request_", "failures"),
    [
        ("POST .*/commit/", [500, 503]),
        ("POST .*/commit/", [409]),
        ("POST .*/preupload/", [429]),
        ("PUT /blobs/", [500, 500]),
        ("POST .*/batch", [DROP]),
        ("POST .*/commit/", [DROP]),
        ("POST .*/commit/", [LOST_ANSWER]),
        ("POST /api/validate-yaml", [502]),
        ("POST /api/repos/create", [503]),
        ("GET .*/auth-check", [DROP]),
    ],
)
def test_failures_that_pass_are_overcome(push, server, request_, failures):
    server.failures[request_] = list(failures)
    push()
    assert not server.failures[request_], "the failure was never met"
    assert set(server.model("ada/tiny")) == PUBLISHED
    assert server.repos["model", "ada/tiny"].messages.count("Upload tiny") == 1


def test_an_upload_that_keeps_failing_says_how_to_do_it_later(push, server, run, ask):
    server.failures["POST .*/create"] = [500] * 3
    assert "the Hub failed for ada/tiny: injected 500. The run is complete; publish it later with: hfgen push" in push(
        status=1
    )
    server.failures["POST .*/commit/"] = [500] * 3
    output = push("--private", "--license", "mit", status=1)
    command = re.search(r"publish it later with: hfgen (.*)", output)[1]
    assert not server.model("ada/tiny")
    assert ask(arguments=command.split())["status"] == 0
    assert set(server.model("ada/tiny")) == PUBLISHED
    assert ModelCard(server.model("ada/tiny")["README.md"].decode()).data.license == "mit"


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize(
    ("flags_", "message"),
    [
        (["--namespace", "not an id"], "not an id/tiny cannot be published: .*Repo id must use alphanumeric chars"),
        (["--namespace", "ada/b"], "ada/b/tiny is not a Hub id of the form user/name"),
        (["--namespace", "ada", "--license", "apache2"], "license must be an identifier of the Hub, not 'apache2'"),
    ],
)  # fmt: skip
def test_all_ids_and_licences_are_checked_before_anything(ask, server, run, tmp_path, flags_, message, dry_run):
    for name in ("a", "tiny"):
        shutil.copytree(run, tmp_path / name)
    (tmp_path / "a" / "unet" / "config.json").unlink()  # which would be refused first
    answer = ask(arguments=["publish-all", str(tmp_path), *flags_, *["--dry_run"] * dry_run])
    assert answer["status"] == 2
    assert re.search(message.replace("/tiny", "/a"), answer["output"])
    assert not server.requests


@pytest.mark.parametrize("option", [{"repo_id": "tiny"}, {"repo_id": "ada/not an id"}, {"license": "apache2"}])
def test_a_dry_run_refuses_what_a_push_refuses(push, server, option):
    dry, real = push("--dry_run", status=2, **option), push(status=2, **option)
    assert dry == real
    assert not server.requests


# --- training


def test_training_pushes_checkpoints_and_in_the_end_the_model(ask, server, home):
    arguments = flags(**TINY, output_dir=home / "pushed", max_train_steps=4, checkpointing_steps=2, push_to_hub=True,
                      hub_model_id="ada/pushed", hub_private_repo=True, hub_strategy="every_save")  # fmt: skip
    answer = ask(arguments=["train", "ddpm", *arguments])
    assert answer["status"] == 0, answer["output"]
    repo = server.repos["model", "ada/pushed"]
    assert repo.private
    assert repo.messages[1] == "Upload step-000002"
    assert repo.messages[-1] == "Upload pushed"
    assert set(repo.files("main")[1]) == PUBLISHED
    assert (home / "pushed" / "index.html").is_file()
    first = next(files for files in repo.commits.values() if files)
    assert "model_index.json" in first
    assert not [name for name in first if "state" in name]


def test_two_processes_push_once(ask, server, home):
    arguments = flags(**TINY, output_dir=home / "two", max_train_steps=2, push_to_hub=True, hub_model_id="ada/two")
    code = f"{TWO}from hfgen.cli.main import main\nassert main(sys.argv[1:]) == 0\n{BOTH}"
    answer = ask(code=code, arguments=["train", "ddpm", *arguments])
    assert answer["status"] == 0, answer["output"]
    assert server.repos["model", "ada/two"].messages == ["initial commit", "Upload two"]
    assert len([request for request in server.requests if "repos/create" in request]) == 2  # before and after training


def test_a_push_that_fails_costs_nothing_of_a_training(ask, server, home):
    run = home / "unlucky"
    arguments = flags(**TINY, output_dir=run, max_train_steps=4, checkpointing_steps=2, push_to_hub=True,
                      hub_model_id="ada/unlucky", hub_strategy="every_save")  # fmt: skip
    assert "no token" in ask(arguments=["train", "ddpm", *arguments], token="")["output"]
    assert "did you mean mit?" in ask(arguments=["train", "ddpm", *arguments, "--hub_license", "MIT"])["output"]
    assert not run.exists()
    server.failures["POST .*/commit/"] = [500] * 9
    answer = ask(arguments=["train", "ddpm", *arguments])
    assert answer["status"] == 1
    assert "step-000002 was not published: the Hub failed for ada/unlucky" in answer["output"]
    assert f"publish it later with: hfgen push {run} --repo_id ada/unlucky" in answer["output"]
    assert (run / "model_index.json").exists()
    server.failures.clear()
    later = ask(arguments=["push", str(run), "--repo_id", "ada/unlucky"])
    assert later["status"] == 0, later["output"]


def test_an_id_is_needed_before_anything_is_done():
    with pytest.raises(UserError, match="push_to_hub needs the Hub id"):
        DDPMConfig(**TINY, output_dir="x", push_to_hub=True)


# --- the page


def test_the_page_is_a_valid_card_and_its_code_runs(push, server, online, tmp_path):
    push()
    page = server.model("ada/tiny")["README.md"].decode()
    card = ModelCard(page)
    assert (card.data.library_name, card.data.license) == ("diffusers", "apache-2.0")
    assert card.data.pipeline_tag == "unconditional-image-generation"
    assert "POST /api/validate-yaml" in server.requests
    assert card.data.thumbnail == "https://huggingface.co/ada/tiny/resolve/main/figures/samples.png"
    assert card.data.widget[0]["output"]["url"] in server.model("ada/tiny")
    assert "notebook.ipynb" in server.model("ada/tiny")
    assert "Not evaluated yet" in page
    for picture in re.findall(r"\]\((figures/[^)]+)\)", page):
        assert picture in server.model("ada/tiny")
    code = code_of(page)[0]
    online.python(code.replace("num_inference_steps=100", "num_inference_steps=3"), folder=tmp_path)
    assert (tmp_path / "image.png").exists()
    configuration = yaml.safe_load(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])
    assert DDPMConfig(**configuration, output_dir="again") == DDPMConfig(
        **{name: TINY[name] for name in TINY}, max_train_steps=2, torch_compile=False, output_dir="again"
    )


@pytest.mark.parametrize("scheduler", ["dpmsolver", "ddim", "ddpm"])
def test_the_code_in_the_page_fits_the_sampler_of_its_picture(ask, run, tmp_path, scheduler):
    copy = shutil.copytree(run, tmp_path / "copy")
    config = yaml.safe_load((run / "config.yaml").read_text()) | {"scheduler": scheduler}
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    answer = ask(arguments=["card", str(copy), "--repo_id", str(copy)])
    assert answer["status"] == 0, answer["output"]
    page = (copy / "README.md").read_text()
    code = code_of(page)[0]
    assert ask(code=f"import os; os.chdir({str(tmp_path)!r})\n" + code)["status"] == 0
    assert (
        f"`hfgen sample {copy} --scheduler {scheduler} --num_inference_steps {config['num_inference_steps']} --"
        in page
    )
    assert ("DPMSolverMultistepScheduler" in code, "DDIMScheduler" in code) == (
        scheduler == "dpmsolver",
        scheduler == "ddim",
    )


def test_the_page_of_a_flow_says_so_and_its_code_runs(ask, home, tmp_path, without_hfgen):
    folder = tmp_path / "flow"
    fields = TINY | {"output_dir": str(folder), "max_train_steps": 2, "cache_dir": str(home / "c")}
    train(DDPMConfig(**fields | {"prediction_type": "flow_prediction"}), DiffusionTask)
    answer = ask(arguments=["card", str(folder), "--repo_id", str(folder)])
    assert answer["status"] == 0, answer["output"]
    card = ModelCard.load(folder / "README.md")
    assert "unconditional rectified flow" in card.text
    assert "rectified-flow" in card.data.tags
    assert not {"ddpm", "diffusion"} & set(card.data.tags)
    code = code_of(card.text)[0]
    assert "num_inference_steps=3" in code
    without_hfgen.python(code, folder=tmp_path)
    assert (tmp_path / "image.png").exists()


def tiles_of(grid, count, by_class):
    """The first four images of a grid of digits: from left to right, or with a row per class from the top."""
    columns = math.ceil(count / 10 if by_class else math.sqrt(count))
    rows = min(count, 10) if by_class else math.ceil(count / columns)
    pixels = np.array(PIL.Image.open(grid).convert("RGB"))
    side = pixels.shape[0] // rows
    scale = (side - 2 * GAP_PIXELS) // 8
    margin = pixels.shape[1] - columns * side
    places = [(index, 0) if by_class else divmod(index, columns) for index in range(4)]
    corners = [(row * side + GAP_PIXELS, margin + column * side + GAP_PIXELS) for row, column in places]
    return [pixels[top : top + 8 * scale : scale, left : left + 8 * scale : scale] for top, left in corners]


def require_same_images(run, python, folder, by_class=False):
    """Check that the second code of a run's card makes the images of its grid, to the bit."""
    hfgen.card(run, repo_id=str(run))
    python(code_of((run / "README.md").read_text())[1], folder=folder)
    grid = sorted((run / "samples").glob("*.png"))[-1]
    count = yaml.safe_load((run / "config.yaml").read_text())["num_samples"]
    for index, image in enumerate(tiles_of(grid, count, by_class)):
        assert image.std() > 0
        made = PIL.Image.open(folder / f"sample-{index}.png").convert("RGB")
        assert np.array_equal(np.array(made), image), index


@pytest.mark.parametrize(
    "name", ["vae", "gan", "classes", "bf16", "bf16 gan", "bf16 classes", "bf16 vae", "bf16 flow map"]
)
def test_the_code_in_the_page_makes_the_images_of_its_grid(
    name, vae_run, gan_run, conditional_run, without_hfgen, tmp_path
):
    classes = TINY | {"class_conditional": True, "num_samples": 10}
    short = {
        "bf16": (DDPMConfig, TINY, DiffusionTask),
        "bf16 gan": (GANConfig, TINY_GAN | {"class_conditional": False}, GANTask),
        "bf16 classes": (DDPMConfig, classes, DiffusionTask),
        "bf16 vae": (VAEConfig, TINY_VAE, VAETask),
        "bf16 flow map": (FlowMapConfig, TINY_FLOW_MAP | {"class_conditional": True, "num_samples": 10}, FlowMapTask),
    }
    if name in short:
        config_class, fields, task = short[name]
        fields = fields | {"output_dir": str(tmp_path / "run"), "max_train_steps": 2, "mixed_precision": "bf16"}
        run = train(config_class(**fields), task)
    else:
        source = {"vae": vae_run, "gan": gan_run, "classes": conditional_run("v_prediction")}[name]
        run = shutil.copytree(source, tmp_path / "run")
    require_same_images(
        run, without_hfgen.python, tmp_path, by_class=name in ("gan", "classes", "bf16 classes", "bf16 flow map")
    )


SCHEDULERS = [
    "ddpm", "ddim", "unipc", "dpmsolver_sde", "euler_a", "heun", "KDPM2DiscreteScheduler", "flow_euler", "flow_heun",
    "flow unipc",
]  # fmt: skip


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_code_in_the_page_makes_the_images_of_any_scheduler(scheduler, run, home, without_hfgen, tmp_path):
    copy = tmp_path / "run"
    if "flow" in scheduler:
        fields = TINY | {"output_dir": str(copy), "max_train_steps": 1, "prediction_type": "flow_prediction"}
        train(DDPMConfig(**fields, cache_dir=str(home / "c")), DiffusionTask)
    else:
        shutil.copytree(run, copy)
    sampler = {"scheduler": scheduler.removeprefix("flow "), "num_inference_steps": 4}
    config = yaml.safe_load((copy / "config.yaml").read_text()) | sampler
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    (grid,) = (copy / "samples").glob("*.png")
    images = next(sample(hfgen.load(copy), num_images=4, **sampler))
    save_picture(sample_grid(images), grid)
    require_same_images(copy, without_hfgen.python, tmp_path)


def test_there_is_no_such_code_where_hfgen_corrects_the_steps(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    config = yaml.safe_load((copy / "config.yaml").read_text()) | {"num_inference_steps": 61}
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    hfgen.card(copy)
    assert len(code_of((copy / "README.md").read_text())) == 1


def test_an_evaluation_is_in_the_page_and_travels_with_it(push, server, run, tmp_path, judge_run, ask):
    measured = shutil.copytree(run, tmp_path / "measured")
    arguments = flags(dataset_name="digits", train_split="train[:80%]", reference_split="train[80%:]", num_images=40,
                      num_inference_steps=2, judge=str(judge_run))  # fmt: skip
    answer = ask(arguments=["evaluate", str(measured), *arguments])
    assert answer["status"] == 0, answer["output"]
    push(folder=measured)
    files = server.model("ada/tiny")
    record = json.loads(files["evaluation.json"])
    (judge,) = record["measures"]
    results = ModelCard(files["README.md"].decode()).data.eval_results
    distance = next(result for result in results if result.metric_type == "frechet_distance")
    assert distance.metric_value == record["measures"][judge]["frechet_distance"]["value"]
    assert distance.metric_args["num_images"] == 40
    assert distance.metric_args["judge_sha256"] == record["protocol"]["judges"][judge]
    assert "Memorisation" in files["README.md"].decode()
    assert {"evaluation.md", "evaluation/images.png", "evaluation/neighbours.png"} <= set(files)
    for name in ("evaluation.md", "evaluation.json", "README.md"):
        assert str(tmp_path).encode() not in files[name]
    longer = flags(
        config=measured / "config.yaml", output_dir=measured, resume_from_checkpoint="latest", max_train_steps=3
    )
    answer = ask(arguments=["train", "ddpm", *longer])
    assert answer["status"] == 0, answer["output"]
    assert not list(measured.glob("evaluation*")), "it was that of another model"


def test_nothing_private_travels(push, server, run, home, hub_environment, tmp_path):
    elsewhere = shutil.copytree(run, tmp_path / "tiny")
    record = json.loads((run / "run.json").read_text())
    record["command"] = (
        "hfgen train ddpm --hub_model_id ada/x --push_to_hub --train_data_dir file:///home/ada/pictures "
        "--hub_license=mit --output_dir=/home/ada/lr=1/tiny"
    )
    (elsewhere / "run.json").write_text(json.dumps(record))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config |= {"dataset_name": None, "train_data_dir": "/home/ada/pictures", "cache_dir": "/home/ada/cache"}
    (elsewhere / "config.yaml").write_text(yaml.safe_dump(config))
    push(folder=elsewhere, repo_id="ada/elsewhere")
    page = server.model("ada/elsewhere")["README.md"].decode()
    assert "`hfgen train ddpm --train_data_dir pictures --output_dir=tiny`" in page
    assert "train_data_dir: pictures" in page
    push()
    places = [str(home), hub_environment["HF_HOME"], str(tmp_path), str(REPOSITORY), os.path.expanduser("~")]
    places += ["/home/ada", "hf_writer"]
    names = [platform.node(), getpass.getuser()]
    for repo_id in ("ada/tiny", "ada/elsewhere"):
        for name, content in server.model(repo_id).items():
            assert not re.search("optimizer|training_state|metrics|arrow|npy|lock", name)
            assert not [place for place in places if place.encode() in content], name
            if name.endswith((".md", ".json")):
                assert not [word for word in names if re.search(rf"\b{word}\b", content.decode())], name
        tensors = load(server.model(repo_id)["unet/diffusion_pytorch_model.safetensors"])
        assert tensors.keys() == DDPMPipeline.from_pretrained(run).unet.state_dict().keys()


def test_a_gallery_has_a_page_for_each_and_a_wall(ask, run, tmp_path, judge_run):
    for folder in (run, judge_run):
        answer = ask(arguments=["card", str(folder), "--gallery", str(tmp_path / "cards")])
        assert answer["status"] == 0, answer["output"]
    wall = (tmp_path / "cards" / "README.md").read_text()
    for folder in (run, judge_run):
        assert f"[{folder.name}]({folder.name}/README.md)" in wall
        assert (tmp_path / "cards" / folder.name / "README.md").exists()
    assert not list((tmp_path / "cards").rglob("*.safetensors"))
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", wall):
        assert (tmp_path / "cards" / picture).exists()


def test_a_gallery_of_models_becomes_a_collection(ask, server, run, tmp_path, without_hfgen):
    cards = tmp_path / "cards"
    assert ask(arguments=["card", str(run), "--gallery", str(cards), "--weights", "float16"])["status"] == 0
    assert ask(arguments=["card", str(run), "--repo_id", "eve/other"])["status"] == 0
    (cards / "tiny" / "notes.txt").write_text("not a part of the model")
    (cards / "only_a_card").mkdir()
    (cards / "only_a_card" / "README.md").write_text((cards / "tiny" / "README.md").read_text())
    arguments = ["publish-all", str(cards), "--namespace", "ada", "--collection", "zoo"]
    answer = ask(arguments=arguments)
    assert answer["status"] == 0, answer["output"]
    assert server.collections == {"ada/zoo-1": ["ada/tiny"]}
    files = server.model("ada/tiny")
    assert set(files) == PUBLISHED
    assert {tensor.dtype for tensor in load(files["unet/diffusion_pytorch_model.safetensors"]).values()} == {
        torch.float16
    }
    for name in ("README.md", "notebook.ipynb"):
        assert b"ada/tiny" in files[name]
        assert b"user/tiny" not in files[name]
    answer = ask(arguments=[*arguments, "--license", "mit"])
    assert answer["status"] == 1
    assert "has the license apache-2.0, not mit" in answer["output"]


def test_all_runs_below_a_folder_become_a_collection(ask, server, run, online, tmp_path, judge_run):
    for source in (run, judge_run):
        shutil.copytree(source, tmp_path / "runs" / source.name)
    (tmp_path / "runs" / "half_done").mkdir()
    arguments = ["publish-all", str(tmp_path / "runs"), "--namespace", "ada", "--collection", "zoo"]
    assert ask(arguments=[*arguments, "--dry_run"])["status"] == 0
    assert not server.repos
    answer = ask(arguments=arguments)
    assert answer["status"] == 0, answer["output"]
    assert server.collections == {"ada/zoo-1": ["ada/digits_judge", "ada/tiny"]}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} <= set(
        server.model("ada/digits_judge")
    )
    (tmp_path / "image.png").write_bytes((run / "samples" / "step-000002.png").read_bytes())
    page = server.model("ada/digits_judge")["README.md"].decode()
    (code,) = code_of(page)
    assert online.python(code, folder=tmp_path).split()[-1] in set("0123456789")
    server.failures["POST .*/ada/tiny/commit/"] = [500] * 3
    server.repos["model", "ada/tiny"].commit("main", {}, "emptied")
    answer = ask(arguments=arguments)
    assert answer["status"] == 1
    assert "hfgen push" in answer["output"]
    assert server.collections == {"ada/zoo-1": ["ada/digits_judge", "ada/tiny"]}
    (tmp_path / "runs" / "tiny" / "model_index.json").unlink()
    answer = ask(arguments=arguments)
    assert answer["status"] == 1
    assert "tiny holds no finished run" in answer["output"]
    assert "Published: nothing, since ada/digits_judge is up to date" in answer["output"]


@pytest.mark.parametrize(
    ("data", "text", "datasets"),
    [
        ({"dataset_name": "digits"}, "The training data, digits, are under `cc-by-4.0` ([source](https://arch", None),
        ({"dataset_name": "mnist"}, "ylecun/mnist, are under `cc-by-sa-3.0` ([source](https://k", ["ylecun/mnist"]),
        ({"dataset_name": "fashion_mnist"}, "are under `mit` ([sou", ["zalando-datasets/fashion_mnist"]),
        ({"dataset_name": "cifar10"}, "uoft-cs/cifar10, have no stated licence ([source](", ["uoft-cs/cifar10"]),
        ({"dataset_name": "eve/cats"}, "eve/cats, are under `odbl` ([source](https://huggingface.co/datasets/eve/cats))",
         ["eve/cats"]),
        ({"dataset_name": "eve/dogs"}, "The licence of the training data, eve/dogs, is not known.", ["eve/dogs"]),
        ({"dataset_name": None, "train_data_dir": "/home/ada/pictures"}, "data, pictures, is not known.", None),
        ({"dataset_name": "mnist", "target_dataset_name": "eve/cats"}, "eve/cats, are under `odbl`",
         ["ylecun/mnist", "eve/cats"]),
    ],
)  # fmt: skip
def test_the_licence_of_the_data_stands_beside_that_of_the_weights(run, tmp_path, monkeypatch, data, text, datasets):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for age, stated in enumerate(("odbl", "cc0-1.0")):
        card = tmp_path / "hub" / "datasets--eve--cats" / "snapshots" / stated / "README.md"
        card.parent.mkdir(parents=True)
        card.write_text(f"---\nlicense: {stated}\n---\n")
        os.utime(card, (1000 - age, 1000 - age))
    copy = shutil.copytree(run, tmp_path / "copy")
    config = yaml.safe_load((copy / "config.yaml").read_text()) | data
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    card = ModelCard(hfgen.card(copy, license="mit").read_text())
    (section,) = re.findall(r"## Licence\n\n(.*)\n", card.text)
    assert section.startswith("The weights are under `mit`. The ")
    assert text in section
    assert (card.data.license, card.data.datasets) == ("mit", datasets)


OWN_SECTION = """## Training data

Collected by me.

```python
## Not a heading
```

### Licence

![a picture](figures/mine.png)
"""


def edited(page, section=OWN_SECTION):
    """A model card with a section of its author's in the middle, and words in a section of hfgen's."""
    before, after = page.split("## Evaluation\n")
    return f"{before}{section}\n## Evaluation\n\nMy words.\n{after}"


def test_sections_of_the_author_stay_when_the_page_is_written_again(push, server, run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "copy")
    page = hfgen.card(copy)
    first = page.read_text()
    assert "Sections (##) that you add stay" in first
    page.write_text(edited(first))
    PIL.Image.new("RGB", (2, 2)).save(copy / "figures" / "mine.png")
    hfgen.card(copy)
    renewed = page.read_text()
    assert renewed == first.rstrip("\n") + "\n\n" + OWN_SECTION
    assert "Sections that hfgen did not write stay in the model card: Training data" in capsys.readouterr().out
    assert hfgen.card(copy).read_text() == renewed
    assert hfgen.card(copy, gallery=tmp_path / "cards").read_text().endswith(OWN_SECTION)
    assert (tmp_path / "cards" / "copy" / "figures" / "mine.png").exists()
    push(folder=copy)
    files = server.model("ada/tiny")
    assert set(files) == PUBLISHED | {"figures/mine.png"}
    assert files["README.md"].decode().endswith(OWN_SECTION)
    assert ModelCard(files["README.md"].decode()).data.license == "apache-2.0"


def test_sections_that_were_written_on_the_hub_stay_too(push, ask, server, run, tmp_path):
    push()
    repo, page = server.repos["model", "ada/tiny"], server.model("ada/tiny")["README.md"].decode()
    repo.commit("main", server.model("ada/tiny") | {
        "README.md": edited(page).encode(), "figures/mine.png": b"on the Hub", "figures/old.png": b"old",
    }, "edited")  # fmt: skip
    push()
    assert set(server.model("ada/tiny")) == PUBLISHED | {"figures/mine.png"}
    assert server.model("ada/tiny")["README.md"].decode() == page.rstrip("\n") + "\n\n" + OWN_SECTION
    assert "Published: nothing, since ada/tiny is up to date" in push()
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "README.md").write_text(edited(page, "## News\n\nNone.\n"))
    push(folder=copy)
    merged = server.model("ada/tiny")["README.md"].decode()
    assert merged == page.rstrip("\n") + "\n\n## News\n\nNone.\n\n" + OWN_SECTION
    fields = TINY | {"output_dir": copy, "push_to_hub": True, "hub_model_id": "ada/tiny", "hub_strategy": "every_save"}
    longer = flags(**fields, max_train_steps=4, checkpointing_steps=3, resume_from_checkpoint="latest")
    answer = ask(arguments=["train", "ddpm", *longer])
    assert answer["status"] == 0, answer["output"]
    commits = [files["README.md"].decode() for files in list(repo.commits.values())[-2:]]
    assert commits[0] == "---\ntags:\n- hfgen\n---\n\n## News\n\nNone.\n\n" + OWN_SECTION, "of a checkpoint"
    assert commits[1].endswith("## News\n\nNone.\n\n" + OWN_SECTION)
    assert "Not evaluated yet" in commits[1]
    assert "My words." not in commits[0] + commits[1]


def test_a_page_of_others_is_not_overwritten(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "README.md").write_text("# My own page")
    with pytest.raises(UserError, match=r"README\.md was not written by hfgen and will not be overwritten"):
        hfgen.card(copy)
    assert (copy / "README.md").read_text() == "# My own page"


def test_sections_of_the_author_stay_when_a_run_goes_on(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    page = hfgen.card(copy)
    page.write_text(edited(page.read_text()))
    for steps, moved in ((3, True), (4, False)):
        config = DDPMConfig(**yaml.safe_load((copy / "config.yaml").read_text()) | {
            "max_train_steps": steps, "output_dir": str(copy), "resume_from_checkpoint": "latest",
        })  # fmt: skip
        train(config, DiffusionTask)
        assert page.read_text() == "---\ntags:\n- hfgen\n---\n\n" + OWN_SECTION
        assert (copy / "outdated" / str(steps - 2) / "README.md").exists() == moved
    assert hfgen.card(copy).read_text().endswith(OWN_SECTION)


def test_sections_of_earlier_versions_are_not_the_authors():
    page = "# a\n\n## Limits\n\nold\n\n## How good it is\n\nold\n\n## Mine\n\nnew\n\n# b\n\nlost\n"
    assert authors_sections(page) == {"Mine": "## Mine\n\nnew\n\n"}
    assert authors_sections(page, "## Mine\n\nby a template of another package") == {}
    assert sections_of("## A\n````\n```\n## x\n````\n## B\n~~~\n# y\n~~~\n") == {
        "A": "## A\n````\n```\n## x\n````\n", "B": "## B\n~~~\n# y\n~~~\n"
    }  # fmt: skip


# --- loading


def test_loads_with_diffusers_alone_from_anywhere(push, server, run, online, tmp_path, drawn):
    push()
    push("--revision", "v2")
    again = tmp_path / "again"
    DDPMPipeline.from_pretrained(run).save_pretrained(again)
    places = ["'ada/tiny'", "'ada/tiny', trust_remote_code=True", "'ada/tiny', revision='v2'", repr(str(again))]
    assert drawn_by(online.python, *places) == [drawn] * len(places)
    asked = len(server.requests)
    assert drawn_by(lambda code: online.python(OFFLINE + code), "'ada/tiny'") == [drawn]
    assert len(server.requests) == asked


def test_loads_in_two_processes_at_once(push, online, tmp_path):
    push()
    empty = f"'ada/tiny', cache_dir={str(tmp_path / 'empty')!r}"
    code = f"{TWO}from accelerate import Accelerator\naccelerator = Accelerator(cpu=True)\n"
    code += DRAW.format(arguments=empty) + "accelerator.wait_for_everyone()\naccelerator.end_training()\n" + BOTH
    drawn = re.findall(r"drawn \S+ \w{64}", online.python(code))
    assert len(drawn) == 2
    assert len(set(drawn)) == 1


@pytest.mark.skipif(not OLDEST, reason="HFGEN_OLDEST_DIFFUSERS names no folder; make test makes one")
def test_loads_with_the_oldest_supported_diffusers(run, drawn, oldest):
    declared = re.search(r'"diffusers>=([\d.]+)"', (REPOSITORY / "pyproject.toml").read_text())[1]
    assert oldest.python("import diffusers; print(diffusers.__version__)").strip() == declared
    assert drawn_by(oldest.python, repr(str(run))) == [drawn]


def test_hfgen_draws_the_same_as_diffusers_alone(push, ask, drawn):
    push()
    code = DRAW.format(arguments="'ada/tiny'").replace("DiffusionPipeline.from_pretrained", "hfgen.load")
    answer = ask(code="import hfgen" + code)
    assert answer["status"] == 0, answer["output"]
    assert drawn in answer["output"]


def test_hfgen_samples_a_repo_and_a_revision(push, ask, tmp_path):
    push("--revision", "v2")
    output = tmp_path / "images.npz"
    sample = ["sample", "ada/tiny", "--num_images", "2", "--num_inference_steps", "2", "--output", str(output)]
    answer = ask(arguments=sample)
    assert (answer["status"], "ada/tiny contains no pipeline (no model_index.json)" in answer["output"]) == (2, True)
    assert "ada/tiny has no revision v3" in ask(arguments=[*sample, "--revision", "v3"])["output"]
    assert not output.exists()
    answer = ask(arguments=[*sample, "--revision", "v2"])
    assert answer["status"] == 0, answer["output"]
    assert np.load(output)["images"].shape == (2, 8, 8)


@pytest.fixture(scope="module")
def class_run(home):
    """A finished run of a model that knows classes, whose pipeline is a file of its own."""
    fields = {"output_dir": str(home / "classes"), "class_conditional": True, "max_train_steps": 2}
    return train(DDPMConfig(**TINY | fields), DiffusionTask)


def test_a_pipeline_of_hfgens_own_travels_with_its_weights(push, ask, server, class_run, online, oldest, tmp_path):
    push(folder=class_run, repo_id="ada/classes")
    files = server.model("ada/classes")
    assert set(files) == PUBLISHED | {OWN_PIPELINE}
    assert files[OWN_PIPELINE] == (REPOSITORY / "hfgen" / "pipelines" / OWN_PIPELINE).read_bytes()
    arguments = "'ada/classes', trust_remote_code=True"
    draw = DRAW.format(arguments=arguments).replace("batch_size=2", "class_labels=['3', 5]")
    outputs = [online.python(draw)]
    outputs += [oldest.python(draw)] if oldest else []
    lines = {output.splitlines()[-1] for output in outputs}
    assert len(lines) == 1
    answer = ask(code="import hfgen" + draw.replace("DiffusionPipeline.from_pretrained", "hfgen.load"))
    assert answer["output"].splitlines()[-1].split()[-1] == lines.pop().split()[-1], "the same images"
    code = code_of(files["README.md"].decode())[0]
    assert ask(code=f"import os; os.chdir({str(tmp_path)!r})\n" + code)["status"] == 0
    unasked = ask(code="import hfgen; print(hfgen.load('ada/classes').labels['3'])")
    assert unasked["output"].splitlines()[-1] == "3", "hfgen does not run this code, but its own"


def test_a_student_is_drawn_by_diffusers_alone(push, ask, server, class_run, home, online):
    """By its repo id, without remote code, and bit for bit as hfgen draws it."""
    student = hfgen.distill(str(class_run), max_train_steps=2, trajectories=128, output_dir=str(home / "student"))
    push(folder=student.path, repo_id="ada/student")
    files = server.model("ada/student")
    assert not [name for name in files if name.endswith(".py")]
    draw = DRAW.format(arguments="'ada/student'").replace("batch_size=2", "batch_size=2, class_labels=[3, 5]")
    found = online.python(draw).splitlines()[-1]
    own = ask(
        code="import hfgen"
        + draw.replace("DiffusionPipeline.from_pretrained", "hfgen.load").replace("batch_size=2, ", "")
    )
    assert own["output"].splitlines()[-1].split()[-1] == found.split()[-1]


# --- safety


@pytest.fixture
def foreign(run, server, tmp_path):
    """A repo with a pipeline of its own, whose code leaves a trace when it runs."""
    trace = tmp_path / "trace"
    code = f"from diffusers import DDPMPipeline\nopen({str(trace)!r}, 'w')\nclass Own(DDPMPipeline):\n    pass\n"
    index = json.loads((run / "model_index.json").read_text()) | {"_class_name": ["own_pipeline", "Own"]}
    server.repos["model", "eve/own"] = repo_of(run, **{"model_index.json": json.dumps(index), "own_pipeline.py": code})
    return trace


def test_code_of_a_repo_runs_only_when_it_is_asked_for(foreign, ask, tmp_path):
    sample = [
        "sample",
        "eve/own",
        "--num_images",
        "1",
        "--num_inference_steps",
        "2",
        "--output",
        str(tmp_path / "a.png"),
    ]
    answer = ask(arguments=sample)
    assert answer["status"] == 2
    assert "its own code, which would run on this machine: own_pipeline.py" in answer["output"]
    assert not foreign.exists()
    answer = ask(arguments=[*sample, "--trust_remote_code"])
    assert answer["status"] == 0, answer["output"]
    assert foreign.exists()


def test_code_of_a_component_is_named_too(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    index = json.loads((copy / "model_index.json").read_text()) | {"unet": ["own_unet", "OwnModel"]}
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"needs code that it does not contain: own_unet\. If these modules"):
        hfgen.load(str(copy))
    (copy / "unet" / "own_unet.py").touch()
    with pytest.raises(UserError, match=r"would run on this machine: unet/own_unet\.py\. Read it"):
        hfgen.load(str(copy))


def test_pickles_are_refused(run, server, ask, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    server.repos["model", "eve/pickled"] = repo_of(copy)
    for source in (str(copy), "eve/pickled"):
        answer = ask(code=f"import hfgen; hfgen.load({source!r})")
        assert answer["status"] == "traceback"
        assert "UserError" in answer["output"]
        assert "safetensors" in answer["output"]


def test_a_cached_model_loads_although_the_hub_is_slow(push, ask, server):
    push()
    for _ in range(2):
        answer = ask(code="import hfgen; hfgen.load('ada/tiny')")
        assert answer["status"] == 0, answer["output"]
        server.failures["HEAD .*"] = [SLOW] * 20  # longer than the client waits


def test_a_repo_that_is_not_there_is_said(ask, tmp_path):
    answer = ask(arguments=["sample", "ada/nothing", "--output", str(tmp_path / "a.png")])
    assert answer["status"] == 2
    assert "no folder ada/nothing and no such Hub repo that this token can access" in answer["output"]
