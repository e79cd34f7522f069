"""What all tests share: no network, one thread each, a cache of their own, small runs on real digits."""

import contextlib
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "agg"

import psutil
import pytest
import torch
from filelock import FileLock
from forked import Forked
from hub_server import HubServer
from torchmetrics.image import fid

REPOSITORY = Path(__file__).parents[1]
# hfgen flushes each file that it writes to the disk: thousands in all tests, each of which takes some disks 10 ms.
MEMORY, NEEDED = Path("/dev/shm"), 4e9  # bytes
if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > NEEDED:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
# `accelerate launch` starts several CPU processes through MPI only; torchrun does with gloo.
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
WITHOUT_HFGEN = """
import sys

sys.modules["hfgen"] = None  # which cannot be imported now
import torch
from diffusers import DDPMPipeline
from transformers import AutoModelForImageClassification

torch.set_num_threads(1)
"""
TINY = {
    "dataset_name": "digits",
    "prediction_type": "v_prediction",  # which nearly every scheduler fits
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "train_batch_size": 16,
    "num_samples": 4,
    "num_inference_steps": 3,
    "mixed_precision": "no",
}
TINY_FLOW_MAP = {name: value for name, value in TINY.items() if name != "prediction_type"}
TINY_JUDGE = {
    "dataset_name": "digits",
    "train_split": "train[:80%]",
    "test_split": "train[80%:]",
    "embedding_size": 16,
    "hidden_sizes": [16, 16],
    "depths": [1, 1],
    "random_shift": 1,
    "train_batch_size": 64,
    "lr_warmup_steps": 5,
    "learning_rate": 1e-2,
    "max_train_steps": 80,
    "mixed_precision": "no",
}


CONDITIONAL = TINY | {
    "class_conditional": True,
    "add_attention": False,
    "block_out_channels": [16, 32],
    "train_batch_size": 64,
    "learning_rate": 2e-2,
    "train_split": "train[:80%]",
    "num_inference_steps": 8,
    "max_train_steps": 180,
}


GUIDED = {
    "prediction_type": "flow_prediction",
    "guide_step": 20,
    "max_train_steps": 40,
    "checkpointing_steps": 10,
    "checkpoints_total_limit": 9,
}


TINY_VAE = {
    "dataset_name": "digits",
    "train_split": "train[:80%]",
    "hidden_sizes": [64],
    "latent_dim": 4,
    "train_batch_size": 64,
    "max_train_steps": 800,
    "learning_rate": 5e-3,
    "num_samples": 4,
    "num_mixture_components": 10,
    "mixed_precision": "no",
}


TINY_GAN = {
    "dataset_name": "digits",
    "train_split": "train[:80%]",
    "architecture": "fully_connected",
    "hidden_sizes": [64, 128],
    "latent_dim": 2,
    "class_conditional": True,
    "r1_gamma": 0.1,
    "r2_gamma": 0.1,
    "penalty_interval": 1,
    "learning_rate": 3e-3,
    "lr_scheduler": "cosine",
    "adam_beta1": 0.0,
    "adam_beta2": 0.999,
    "train_batch_size": 64,
    "max_train_steps": 400,
    "checkpointing_steps": 200,
    "save_images_epochs": 5,
    "num_samples": 20,
    "mixed_precision": "no",
}


TINY_TRANSLATION = {
    "dataset_name": "digits",
    "train_split": "train[:80%]",
    "degradation": ["gaussian_noise=0.1..0.5"],
    "architecture": "unet",
    "block_out_channels": [16, 32],
    "discriminator_block_out_channels": [8, 16],
    "adversarial_weight": 0.01,
    "train_batch_size": 64,
    "max_train_steps": 300,
    "checkpointing_steps": 100,
    "save_images_epochs": 10,
    "learning_rate": 3e-3,
    "num_samples": 8,
    "mixed_precision": "no",
}


def contents(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return what is in a folder, and when each file was last written."""
    stats = {path: path.stat() for path in folder.rglob("*") if path.name != ".lock"}
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory):
    """A function that makes a folder, such as a run, once for all workers; a test that changes it copies it."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "shared"
    folder.mkdir(exist_ok=True)
    found = {}

    def make(name: str, train, **fields) -> Path:
        if name not in found:
            with FileLock(folder / f"{name}.lock"):
                if not (folder / f"{name}.done").exists():
                    train(folder / name, **fields)
                    (folder / f"{name}.done").touch()
            found[name] = contents(folder / name)
        return folder / name

    yield make
    for name, before in found.items():
        assert contents(folder / name) == before, f"a test changed the shared run {name}"


def train_conditional(folder: Path, **fields) -> Path:
    """Train a small model of digits that knows classes, in this process."""
    from hfgen.config import DDPMConfig
    from hfgen.tasks.diffusion import DiffusionTask
    from hfgen.training.run import train

    return train(DDPMConfig(**(CONDITIONAL | fields | {"output_dir": str(folder)})), DiffusionTask)


def train_translation(folder: Path, **fields) -> Path:
    """Train a small image-to-image model of digits, in this process."""
    from hfgen.config import TranslationConfig
    from hfgen.tasks.translation import TranslationTask
    from hfgen.training.run import train

    return train(TranslationConfig(**(TINY_TRANSLATION | fields | {"output_dir": str(folder)})), TranslationTask)


@pytest.fixture(scope="session")
def translation_run(trained_once) -> Path:
    """The run of a small denoiser of digits."""
    return trained_once("denoiser", train_translation)


def train_classifier(folder: Path, **fields) -> Path:
    """Train a small judge of digits, in this process."""
    from hfgen.config import ClassifierConfig
    from hfgen.tasks.classifier import ClassifierTask
    from hfgen.training.run import train

    return train(ClassifierConfig(**(TINY_JUDGE | fields | {"output_dir": str(folder)})), ClassifierTask)


def train_vae(folder: Path, **fields) -> Path:
    """Train a small VAE of digits, in this process."""
    from hfgen.config import VAEConfig
    from hfgen.tasks.vae import VAETask
    from hfgen.training.run import train

    return train(VAEConfig(**(TINY_VAE | fields | {"output_dir": str(folder)})), VAETask)


def train_gan(folder: Path, **fields) -> Path:
    """Train a small GAN of digits, in this process."""
    from hfgen.config import GANConfig
    from hfgen.tasks.gan import GANTask
    from hfgen.training.run import train

    return train(GANConfig(**(TINY_GAN | fields | {"output_dir": str(folder)})), GANTask)


@pytest.fixture(scope="session")
def gan_run(judge_run, trained_once) -> Path:
    """The run of a small GAN of digits that is told classes."""
    return trained_once("gan", train_gan, judge=str(judge_run))


@pytest.fixture(scope="session")
def judge_run(trained_once) -> Path:
    """The run of a small judge of digits."""
    return trained_once("digits_judge", train_classifier)


@pytest.fixture(scope="session")
def vae_run(trained_once) -> Path:
    """The run of a small VAE of digits."""
    return trained_once("vae", train_vae)


@pytest.fixture(scope="session")
def flow_vae_run(trained_once) -> Path:
    """The run of a small VAE of digits with a flow of its latents."""
    return trained_once("vae_flow", train_vae, prior="flow", flow_hidden_size=64, flow_blocks=2)


@pytest.fixture(scope="session")
def short_flow_vae(flow_vae_run, trained_once) -> Path:
    """The same with a flow of three steps, each of which is a part of an exported graph."""

    def shorten(folder: Path) -> None:
        config = shutil.copytree(flow_vae_run, folder) / "flow" / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"num_steps": 3}))

    return trained_once("vae_short_flow", shorten)


@pytest.fixture(scope="session")
def conditional_run(trained_once):
    """A function that returns the run of a small model of digits that knows classes, by its prediction type."""
    return lambda prediction_type: trained_once(prediction_type, train_conditional, prediction_type=prediction_type)


@pytest.fixture(scope="session")
def guided_runs(trained_once) -> dict[str, Path]:
    """The runs of two small models with a guide, by what they are told of the images."""
    clusters = {"class_conditional": False, "num_clusters": 5}
    return {
        "classes": trained_once("guided_classes", train_conditional, **GUIDED),
        "clusters": trained_once("guided_clusters", train_conditional, **GUIDED | clusters),
    }


@pytest.fixture(scope="session", autouse=True)
def _environment(tmp_path_factory):
    import preloaded  # noqa: F401  collections of garbage, as after each training, then leave imported objects out

    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("huggingface")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(home))
        patch.setattr("huggingface_hub.constants.HF_HOME", str(home))
        patch.setattr("datasets.config.HF_DATASETS_CACHE", home / "datasets")
        yield


@pytest.fixture(scope="module", autouse=True)
def _no_garbage() -> None:
    """Leave what was made before a module's tests out of the collections of garbage, one after each training."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def vision_model(tmp_path_factory) -> Path:
    """The folder of a DINOv2 with small layers and random weights, with its image processor."""
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    layers = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 1}
    crop = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}}
    folder = tmp_path_factory.mktemp("models") / "dinov2-small"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Dinov2Model(Dinov2Config(image_size=28, patch_size=14, **layers)).save_pretrained(folder)
    BitImageProcessorPil(**crop).save_pretrained(folder)
    return folder


@pytest.fixture
def small_inception(monkeypatch) -> None:
    """Let torchmetrics' own class, whose forward is under test, have small layers instead of downloaded ones."""

    def make_layers(network, name, features_list, weights_path):
        torch.nn.Module.__init__(network)
        assert name == "inception-v3-compat"
        network.features_list, network.INPUT_IMAGE_SIZE = list(features_list), 8
        names = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
        mixed = [f"Mixed_{block}" for block in ["5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"]]
        for layer in (*names, "MaxPool_2", *mixed):
            setattr(network, layer, torch.nn.Identity())
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network.Conv2d_1a_3x3 = torch.nn.Conv2d(3, 6, 3, stride=2)
            network.fc = torch.nn.Linear(6, 5)
            torch.nn.init.normal_(network.fc.weight, std=5)
        network.AvgPool = torch.nn.AdaptiveAvgPool2d(1)

    monkeypatch.setattr(fid, "_TORCH_FIDELITY_AVAILABLE", True)
    monkeypatch.setattr(fid, "vassert", lambda condition, message: None, raising=False)
    monkeypatch.setattr(fid._FeatureExtractorInceptionV3, "__init__", make_layers)


@pytest.fixture
def real_data(monkeypatch) -> Path:
    """The folder of the real MNIST, Fashion-MNIST and CIFAR-10; the test is skipped where there is none."""
    if not (folder := os.environ.get("HFGEN_DATA_DIR")):
        pytest.skip("HFGEN_DATA_DIR does not name a folder with mnist, fashion_mnist and cifar10")
    return Path(folder)


def stand_in_runtime(home: Path) -> None:
    """Put stand-ins for onnxruntime-web where `hfgen demo` keeps it; tests/browser has the real one."""
    from hfgen.runtimes.site import RUNTIME_PARTS, RUNTIME_SCRIPT, VERSION

    folder = home / "hfgen" / f"onnxruntime-web-{VERSION}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in (RUNTIME_SCRIPT, *RUNTIME_PARTS):
        (folder / name).write_text(name)


def flags(**fields) -> list[str]:
    """Write configuration fields as command-line flags."""
    words = []
    for name, value in fields.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no_{name}")
        else:
            words += [f"--{name}", *(str(v) for v in (value if isinstance(value, list) else [value]))]
    return words


def start(*arguments: str) -> subprocess.Popen:
    """Start a Python of this environment as a process of its own, with one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error::ResourceWarning", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def hfgen(*arguments: str, num_processes: int = 1, fork: bool = True) -> Forked | subprocess.Popen:
    """Start the command line in one or two processes, which import everything anew unless they are forked."""
    if fork:
        return Forked("-m", "hfgen", *arguments, num_processes=num_processes)
    return start(*(TORCHRUN if num_processes == 2 else []), "-m", "hfgen", *arguments)


def finish(process: Forked | subprocess.Popen, expected_status: int = 0) -> str:
    """Wait for a process, check how it ended, and return what it printed."""
    output, _ = process.communicate(timeout=240)
    assert process.returncode == expected_status, output
    return output


class Client:
    """Runs command lines or Python, each in a process forked from one that has imported what they need.

    Args:
        environment: Variables, also for the imports.
        preload: Python that is run before the first fork.
    """

    def __init__(self, environment: dict[str, str], preload: str = "import preloaded"):
        command = [sys.executable, str(REPOSITORY / "tests" / "client.py"), preload]
        path = {"PYTHONPATH": os.pathsep.join(filter(None, [environment.get("PYTHONPATH"), str(REPOSITORY)]))}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment | path | {"OMP_NUM_THREADS": "1"}, **pipes)

    def __call__(self, **request) -> dict:
        """Ask for `arguments` (of hfgen) or `code`; return the status and what was printed."""
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def python(self, code: str, *arguments: str, folder: Path | None = None) -> str:
        """Run Python, which must not fail, and return what it printed."""
        answer = self(code=code, arguments=arguments, folder=str(folder or "."))
        assert answer["status"] == 0, answer["output"]
        return answer["output"]

    def close(self) -> None:
        """End the process."""
        self.process.communicate(timeout=30)


@pytest.fixture(scope="session")
def without_hfgen(_environment) -> Iterator[Client]:
    """Runs Python where hfgen cannot be imported."""
    with contextlib.closing(Client(os.environ, WITHOUT_HFGEN)) as client:
        yield client


@pytest.fixture(scope="session")
def hub() -> Iterator[HubServer]:
    """A Hub on loopback, for which all tests of a worker share the clients; a test begins with `reset`."""
    server = HubServer()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def hub_environment(hub, tmp_path_factory) -> dict[str, str]:
    """The variables of a user of that Hub, who is ada, with a home that nobody should learn of."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return kept | {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path_factory.mktemp("secret_place") / "hf"),
        "HF_TOKEN": "hf_writer", "HF_HUB_DISABLE_XET": "1", "HF_HUB_ETAG_TIMEOUT": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip


@pytest.fixture(scope="session")
def client(hub_environment) -> Iterator[Client]:
    """Runs hfgen as that user, without the pauses between attempts to reach the Hub."""
    preload = "import preloaded, hfgen.publishing.hub\nhfgen.publishing.hub.PAUSE_SECONDS = 0"
    with contextlib.closing(Client(hub_environment, preload)) as client:
        yield client


@pytest.fixture(scope="session")
def online(hub_environment) -> Iterator[Client]:
    """Runs Python of that user that has the Hub and not hfgen."""
    with contextlib.closing(Client(hub_environment, WITHOUT_HFGEN)) as client:
        yield client


def signal_all(process: Forked | subprocess.Popen, number: int) -> None:
    """Send a signal to a process and all that it started."""
    for parent in map(psutil.Process, getattr(process, "pids", [process.pid])):
        for one in [*parent.children(recursive=True), parent]:
            one.send_signal(number)


def kill_when(process: Forked | subprocess.Popen, condition, number: int = signal.SIGKILL) -> None:
    """Send a signal to a process and its children once a condition holds, and make sure that it was not too late."""
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.002)
    assert process.poll() is None, "the run ended before it could be killed"
    signal_all(process, number)
