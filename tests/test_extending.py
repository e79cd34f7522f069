"""The example of `docs/extending.md`: a family of another package is installed, and does what hfgen's own do."""

import contextlib
import os
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY, WITHOUT_HFGEN, Client, flags
from hub_server import HubServer

EXAMPLE = REPOSITORY / "examples" / "masked_pixels"
TRAIN = flags(
    dataset_name="digits", train_split="train[:80%]", max_train_steps=4, checkpointing_steps=2, num_samples=4,
    hidden_channels=8, num_layers=1, num_inference_steps=2, lr_scheduler="constant", mixed_precision="no",
)  # fmt: skip
ALONE = """
import sys
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
assert pipe(batch_size=2, output_type="np").images.shape == (2, 8, 8, 1)
assert "masked_pixels" not in sys.modules
"""


@pytest.fixture
def environment(tmp_path):
    """An environment into which the example is installed, and a Hub on loopback."""
    source = shutil.copytree(EXAMPLE, tmp_path / "source")
    install = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", tmp_path / "site"]
    subprocess.run([sys.executable, "-m", "pip", *install, source], check=True)
    server = HubServer()
    yield os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(REPOSITORY)]),
        "HF_ENDPOINT": server.url,
        "HF_TOKEN": "hf_writer",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(tmp_path / "home"),
        "OMP_NUM_THREADS": "1",
    }
    server.shutdown()
    server.server_close()


@pytest.fixture
def client(environment):
    with contextlib.closing(Client(environment)) as client:
        yield client


@pytest.fixture
def client_without_hfgen(environment):
    with contextlib.closing(Client(environment | {"PYTHONPATH": ""}, WITHOUT_HFGEN)) as client:
        yield client


def test_a_family_of_another_package_does_what_those_of_hfgen_do(client, client_without_hfgen, tmp_path, judge_run):
    def hfgen(*arguments: str, status: int = 0) -> str:
        answer = client(arguments=arguments, folder=str(tmp_path))
        assert answer["status"] == status, answer["output"]
        return answer["output"]

    assert "masked_pixels" in hfgen("--help")
    hfgen("train", "masked_pixels", *TRAIN, "--output_dir", "whole")
    hfgen("train", "masked_pixels", *TRAIN, "--output_dir", "run", "--max_train_steps", "2")
    hfgen("train", "masked_pixels", "--config", "run/config.yaml", "--resume_from_checkpoint", "latest",
          "--max_train_steps", "4")  # fmt: skip
    weights = [tmp_path / run / "network" / "diffusion_pytorch_model.safetensors" for run in ("whole", "run")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    hfgen("sample", "run", "--num_images", "4", "--output", "grid.png")
    hfgen("evaluate", "run", "--judge", str(judge_run), "--reference_split", "train[80%:]", "--num_images", "60")
    refusal = hfgen("sample", "run", "--truncation", "1", status=2)
    assert "only has the option num_inference_steps, no truncation" in refusal
    assert "Published: " in hfgen("push", "run", "--repo_id", "ada/masked")
    card = tmp_path / "run" / "README.md"
    hfgen("card", "run")
    assert "A `MaskedPixelsPipeline`, an image generator." in card.read_text()
    assert "masked-generative-model" in card.read_text()
    client_without_hfgen.python(ALONE, "ada/masked")
