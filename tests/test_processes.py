"""What a training does to its process and what the environment does to a training: nothing that is not said."""

import gc
import json
import os
import platform
import re
import signal
import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.tracking import TensorBoardTracker
from conftest import REPOSITORY, TINY, TINY_VAE, finish
from filelock import FileLock, SoftFileLock
from forked import Forked

from hfgen.config import DDPMConfig
from hfgen.data.images import load_images
from hfgen.data.loader import ImageBatches
from hfgen.tasks.base import Loss
from hfgen.tasks.diffusion import DiffusionTask
from hfgen.training import launcher
from hfgen.training.processes import as_found, report_waiting
from hfgen.training.run import _agree_on_start, on_all_processes, train
from hfgen.training.trainer import STATE_FILE
from hfgen.utils import devices
from hfgen.utils.errors import TrainingError, UserError
from hfgen.utils.files import complete_or_absent

STATES = (AcceleratorState, GradientState, PartialState)


def run_training(folder: Path, task=DiffusionTask, **fields) -> bytes:
    """Train two steps and return all that they made, as bytes."""
    config = DDPMConfig(**TINY | {"output_dir": str(folder), "max_train_steps": 2, "num_samples": 1} | fields)
    return (train(config, task) / "checkpoints" / "step-000002" / STATE_FILE).read_bytes()


def environment_of_process():
    return {
        name: value for name, value in os.environ.items() if not name.startswith("KMP_")
    }  # scikit-learn sets these


def state_of_process():
    return {
        "accelerate": [dict(one._shared_state) for one in STATES],
        "environment": environment_of_process(),
        "generator": torch.get_rng_state().tolist(),
        "group": torch.distributed.is_initialized(),
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "threads": torch.get_num_threads(),
        "algorithms": (torch.are_deterministic_algorithms_enabled(), torch.get_deterministic_debug_mode()),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "precision": torch.get_float32_matmul_precision(),
    }


class Fails(DiffusionTask):
    def losses(self, batch):
        raise self.error


class Diverges(DiffusionTask):
    def losses(self, batch):
        for name, loss, _ in super().losses(batch):
            yield Loss(name, loss * torch.nan)


FIRST = {"mixed_precision": "no", "seed": 1}
SECOND = {"mixed_precision": "bf16", "seed": 2, "optimizer": "muon", "report_to": ["tensorboard"]}


def test_trainings_in_one_process_do_not_know_of_each_other(tmp_path):
    found = state_of_process()
    made = []
    for number, fields in enumerate((FIRST, SECOND, FIRST, SECOND, SECOND)):
        made.append(run_training(tmp_path / str(number), **fields))
        assert state_of_process() == found
        torch.rand(3)
        found = state_of_process()
    assert made[0] == made[2] != made[1]
    assert made[1] == made[3] == made[4]


@pytest.mark.parametrize(
    "error", [RuntimeError("odd"), OSError("no space left"), KeyboardInterrupt("key"), UserError("no")]
)
def test_a_training_that_fails_leaves_the_process_as_it_was_too(tmp_path, monkeypatch, error):
    found = state_of_process()
    finished, finish = [], TensorBoardTracker.finish
    monkeypatch.setattr(TensorBoardTracker, "finish", lambda tracker: finished.append(finish(tracker)))
    Fails.error = error
    expected = TrainingError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected, match=str(error)):
        run_training(tmp_path / "fails", Fails, report_to=["tensorboard"])
    assert len(finished) == 1
    with pytest.raises(TrainingError, match="became nan"):
        run_training(tmp_path / "diverges", Diverges, report_to=["tensorboard"])
    assert len(finished) == 2
    assert state_of_process() == found
    with FileLock(tmp_path / "fails" / ".lock", timeout=0):
        assert True, "it is free"


def test_the_callers_own_accelerator_goes_on_as_it_was(tmp_path):
    with as_found():  # it is not for the next test
        mine = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=3)
    states = [dict(one._shared_state) for one in STATES]
    assert states == [{}, {}, {}]
    mine = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=3)
    try:
        run_training(tmp_path / "same", mixed_precision="bf16")
        assert (mine.mixed_precision, mine.gradient_accumulation_steps) == ("bf16", 3)
        for fields, message in (
            ({"mixed_precision": "no"}, "mixed_precision bf16, not no"),
            ({"mixed_precision": "bf16", "torch_compile": True}, "torch_compile False, not True"),
        ):
            with pytest.raises(UserError, match=f"an Accelerator with {message}"):
                run_training(tmp_path / "other", **fields)
        assert (mine.mixed_precision, mine.device.type) == ("bf16", "cpu")
    finally:
        for one in STATES:
            one._reset_state()


def test_a_group_of_processes_of_the_caller_is_not_destroyed(tmp_path):
    file = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=file, rank=0, world_size=1)
    try:
        with pytest.raises(UserError, match="already in a process group"):
            run_training(tmp_path / "run")
        assert torch.distributed.is_initialized()
    finally:
        torch.distributed.destroy_process_group()


def test_processes_of_one_launcher_can_train_several_times(tmp_path, monkeypatch):
    """One is late each time, so that the other finds what the training before left in the launcher's store."""
    script = tmp_path / "script.py"
    script.write_text(
        f"import os, sys, time, hfgen\nfields = {TINY_VAE | {'max_train_steps': 1, 'num_mixture_components': 1}}\n"
        "for name in ('one', 'two', 'three'):\n"
        "    time.sleep(2 * (os.environ['RANK'] == '1'))\n"
        "    hfgen.train('vae', output_dir=name, **fields)\n"
    )
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as in torchrun
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.chdir(tmp_path)
    finish(Forked(str(script), num_processes=2))
    for name in ("one", "two", "three"):
        assert json.loads((tmp_path / name / "run.json").read_text())["num_processes"] == 2


def test_a_thread_can_train_but_not_two_at_once(tmp_path):
    made = []
    thread = threading.Thread(target=lambda: made.append(run_training(tmp_path / "thread")))
    thread.start()
    thread.join()
    assert made == [run_training(tmp_path / "main")]
    with as_found(), pytest.raises(UserError, match="another training is running in this process"):
        run_training(tmp_path / "second")


def test_the_images_do_not_outlive_their_batches():
    batches = ImageBatches(load_images("digits"), train_batch_size=4)
    batches(0)
    reference = weakref.ref(batches)
    del batches
    gc.collect()
    assert reference() is None


class FakeGenerators:
    """The generators of an accelerator, as `torch.cuda` has them."""

    def __init__(self, in_use):
        self.in_use, self.state, self.index = in_use, "theirs", 1

    def is_initialized(self):
        return self.in_use

    def get_rng_state(self):
        assert self.in_use, "which would start it"
        return self.state

    def set_rng_state(self, state):
        self.state = state

    def manual_seed(self, seed):
        self.state = f"seed {seed}"


@pytest.fixture
def fake_accelerator(monkeypatch):
    def make(fake):
        monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available: torch.device("xpu"))
        monkeypatch.setattr("torch.accelerator.current_device_index", lambda: fake.index)
        monkeypatch.setattr("torch.accelerator.set_device_index", lambda index: setattr(fake, "index", index))
        monkeypatch.setattr("torch.get_device_module", lambda device: fake)
        return fake

    return make


def test_the_generators_and_the_index_of_an_accelerator_are_restored(fake_accelerator):
    fake = fake_accelerator(FakeGenerators(in_use=True))
    with as_found():
        fake.state, fake.index = "ours", 0
    assert (fake.state, fake.index) == ("theirs", 1)
    fresh = fake_accelerator(FakeGenerators(in_use=False))
    torch.manual_seed(5)
    fresh.state = "unknown"
    with as_found():
        torch.default_generator.manual_seed(6)
    assert fresh.state == "seed 5"


def test_deterministic_is_so_while_it_lasts(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    before = state_of_process()
    with as_found(deterministic=True):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    assert state_of_process() == before
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    with as_found(deterministic=True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with (
        pytest.raises(UserError, match="needs CUBLAS_WORKSPACE_CONFIG=:4096:8 .* not :0:0"),
        as_found(deterministic=True),
    ):
        pass
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    with pytest.raises(UserError, match="cannot be enabled"), as_found(deterministic=True):
        pass
    assert state_of_process() == before | {"environment": environment_of_process()}


def test_an_operation_that_is_not_deterministic_ends_with_a_message(tmp_path, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")

    class Scatters(DiffusionTask):
        def losses(self, batch):
            raise RuntimeError("reflection_pad2d_backward_cuda does not have a deterministic implementation")
            yield

    with pytest.raises(
        TrainingError, match="deterministic is not supported here: reflection_pad2d.* Start again without it"
    ):
        run_training(tmp_path / "run", Scatters, deterministic=True)
    with pytest.raises(RuntimeError, match="^reflection_pad2d"):
        run_training(tmp_path / "other", Scatters)


@pytest.fixture
def environment(monkeypatch):
    """A function that sets ACCELERATE_… variables, on hardware that computes in bf16."""
    for name in os.environ:
        if name.startswith("ACCELERATE_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(launcher, "native_precision", lambda: "bf16")
    return lambda **variables: [monkeypatch.setenv(f"ACCELERATE_{name}", value) for name, value in variables.items()]


def config(**fields):
    return DDPMConfig(**TINY | {"output_dir": "run", "mixed_precision": None} | fields)


@pytest.mark.parametrize(
    ("variables", "fields", "decided", "remark"),
    [
        ({}, {}, ("bf16", False), None),
        ({}, {"mixed_precision": "no", "torch_compile": True}, ("no", True), None),
        (
            {"MIXED_PRECISION": "no"},
            {},
            ("no", False),
            "is no, as set by the launcher .* this hardware supports --mixed_precision bf16",
        ),
        ({"MIXED_PRECISION": "fp16"}, {}, ("fp16", False), "mixed_precision is fp16, as set by the launcher"),
        (
            {"MIXED_PRECISION": "no"},
            {"mixed_precision": "bf16"},
            ("bf16", False),
            "is bf16; the launcher's",
        ),
        ({"MIXED_PRECISION": "bf16"}, {"mixed_precision": "bf16"}, ("bf16", False), None),
        ({"DYNAMO_BACKEND": "INDUCTOR"}, {}, ("bf16", True), "networks are compiled, as set by the launcher"),
        (
            {"DYNAMO_BACKEND": "INDUCTOR"},
            {"torch_compile": False},
            ("bf16", False),
            "compile is false; the launcher's .*inductor is ignored",
        ),
        (
            {"DYNAMO_BACKEND": "EAGER"},
            {"torch_compile": True},
            ("bf16", True),
            "torch_compile is true; the launcher's .*eager is ignored",
        ),
        ({"DYNAMO_BACKEND": "NO"}, {"torch_compile": True}, ("bf16", True), None),
        ({"GRADIENT_ACCUMULATION_STEPS": "4"}, {"gradient_accumulation_steps": 4}, ("bf16", False), None),
    ],
)
def test_what_is_asked_for_wins_then_the_launcher_which_is_said(environment, variables, fields, decided, remark):
    environment(**variables)
    settings = launcher.decide(config(**fields))
    assert (settings.mixed_precision, settings.torch_compile) == decided
    if remark is None:
        assert settings.remarks == []
    else:
        assert re.search(remark, *settings.remarks), settings.remarks


@pytest.mark.parametrize(("has_bf16", "precision"), [(True, "bf16"), (False, "no")])
def test_the_device_that_is_trained_on_decides_the_precision(monkeypatch, environment, has_bf16, precision):
    monkeypatch.setattr(launcher, "native_precision", devices.native_precision)
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"amx_bf16": has_bf16})
    assert launcher.decide(config()) == ("bf16", False, [])
    environment(USE_CPU="true")
    said = "Training on the cpu, as set in the environment (ACCELERATE_USE_CPU)"
    assert launcher.decide(config()) == (precision, False, [said])
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available: torch.device("mps"))
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    assert launcher.decide(config()) == ("no", False, []), "an Apple GPU, whose processor does not matter"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"MIXED_PRECISION": "fp8"}, "sets ACCELERATE_MIXED_PRECISION=fp8; hfgen supports no, fp16 and bf16"),
        ({"DYNAMO_BACKEND": "EAGER"}, "sets ACCELERATE_DYNAMO_BACKEND=eager; hfgen supports inductor"),
        ({"GRADIENT_ACCUMULATION_STEPS": "4"}, "set --gradient_accumulation_steps 4, or unset the variable"),
        ({"USE_DEEPSPEED": "true"}, r"DeepSpeed \(.* is not supported\. .* use accelerate launch --multi_gpu"),
        ({"USE_FSDP": "true"}, r"FSDP \(.* is not supported"),
        ({"USE_MEGATRON_LM": "true"}, r"Megatron-LM \(.* is not supported"),
        ({"USE_PARALLELISM_CONFIG": "true"}, r"parallelism \(.* is not supported"),
        ({"MIXED_PRECISION": "fp16"}, "fp16 needs a GPU"),
    ],
)
def test_what_the_environment_asks_for_in_vain_is_refused_before_any_work(tmp_path, environment, variables, message):
    environment(**variables)
    before = dict(os.environ)
    with pytest.raises(UserError, match=message):
        run_training(tmp_path / "run", mixed_precision=None)
    assert not (tmp_path / "run").exists()
    assert dict(os.environ) == before


def test_a_kind_of_distribution_that_is_none_of_copies_is_refused():
    for kind in DistributedType:
        if kind in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
            launcher.refuse_distribution(kind)
    for kind in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.XLA):
        with pytest.raises(UserError, match=f"distributed training by {kind.value}"):
            launcher.refuse_distribution(kind)


@pytest.fixture
def alone():
    """The only process, as accelerate has it."""
    with as_found():
        yield Accelerator(cpu=True)


def own_start(alone, tmp_path, monkeypatch, other):
    """Let a process find out how another one would begin, which differs from it by `other`."""
    checkpoint = tmp_path / "step-000010"
    checkpoint.mkdir()
    (checkpoint / "manifest.json").write_text("{}")
    monkeypatch.setattr("hfgen.training.run.gather_object", lambda own: [*own, own[0] | {"host": "b"} | other(own[0])])
    _agree_on_start(config(), alone, checkpoint, [load_images("digits")], [])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"checkpoint": None, "state": None},
            r"process 0 \(on .*\) step-000010 and process 1 \(on b\) none; put",
        ),
        ({"state": "other"}, "their checkpoints step-000010 differ; copy the run folder"),
        ({"images": ["other"]}, r"process 1 \(on b\) has different images from process 0"),
        ({"classes": ["other"]}, r"process 1 \(on b\) has different labels or clusters from process 0"),
        ({"networks": ["other"]}, r"process 1 \(on b\) has a different model for vae from process 0"),
        ({"config": {"seed": 1}}, r"processes 0 and 1 have different configurations \(seed 0 and 1\)"),
    ],
)
def test_processes_that_would_begin_differently_do_not_begin(alone, tmp_path, monkeypatch, other, message):
    def differ(own):
        return {name: own[name] | value if name == "config" else value for name, value in other.items()}

    with pytest.raises(UserError, match=f"cannot train together: .*{message}"):
        own_start(alone, tmp_path, monkeypatch, differ)


def test_processes_whose_files_lie_elsewhere_begin(alone, tmp_path, monkeypatch):
    own_start(alone, tmp_path, monkeypatch, lambda own: {})
    monkeypatch.setattr("hfgen.training.run.gather_object", lambda own: own)
    gathered = []
    for folder in ("a", "b"):
        monkeypatch.setattr("hfgen.training.run.gather_object", lambda own: gathered.extend(own) or own)
        _agree_on_start(config(output_dir=folder, cache_dir=folder), alone, None, [], [])
    assert gathered[0] == gathered[1]
    assert gathered[0]["host"] == platform.node()


def test_a_mistake_on_another_process_ends_this_one_too(alone, monkeypatch):
    assert on_all_processes(alone, lambda: 7, "who count") == 7
    with pytest.raises(OSError, match="mine"):
        on_all_processes(alone, lambda: (_ for _ in ()).throw(OSError("mine")), "who count")
    monkeypatch.setattr("hfgen.training.processes.gather_object", lambda own: [*own, "process 1: theirs"])
    with pytest.raises(UserError, match="process 1: theirs"):
        on_all_processes(alone, lambda: 7, "who count")


def test_a_long_wait_says_what_it_is_for(capsys):
    with report_waiting("a short thing", 0.2):
        pass
    with report_waiting("the others", 0.01):
        time.sleep(0.3)
    assert capsys.readouterr().err == "hfgen: waiting for the others\n"


def test_processes_wait_for_hours_for_one_that_decodes(tmp_path, monkeypatch):
    asked = []

    def watched(**options):
        asked.append(options["timeout"])
        return PartialState(**options)

    monkeypatch.setattr("hfgen.training.run.PartialState", watched)
    run_training(tmp_path / "run")
    assert asked[0].total_seconds() >= 3600


def test_a_lock_that_a_machine_left_behind_is_named(tmp_path, monkeypatch):
    """Where the file system has no locks, the file is the lock, and stays after a power cut."""
    (tmp_path / "run").mkdir()
    monkeypatch.setattr("hfgen.training.run.FileLock", SoftFileLock)
    (tmp_path / "run" / ".lock").write_text("1\nanother-machine\n")
    with pytest.raises(UserError, match=f"remove {tmp_path / 'run' / '.lock'}$"):
        run_training(tmp_path / "run")

    class Broken(FileLock):
        def acquire(self):
            raise OSError(37, "No locks available")

    monkeypatch.setattr("hfgen.training.run.FileLock", Broken)
    with pytest.raises(UserError, match=r"\.lock cannot be locked \(No locks available\); use another disk"):
        run_training(tmp_path / "run")


def test_every_module_imports_without_what_windows_lacks(tmp_path):
    files = [*(REPOSITORY / "hfgen").glob("*.py"), *(REPOSITORY / "hfgen").glob("*/*.py")]
    named = [path.relative_to(REPOSITORY).with_suffix("") for path in files if not path.stem.startswith("__")]
    modules = [".".join(path.parts) for path in named]
    script = tmp_path / "script.py"
    script.write_text(
        "import builtins, signal, sys\n"
        "for name in [name for name in sys.modules if name.partition('.')[0] == 'hfgen']:\n"
        "    del sys.modules[name]\n"
        "imported = builtins.__import__\n"
        "def as_windows(name, names=None, *further, **named):\n"
        "    if (names or {}).get('__name__', '').startswith('hfgen'):\n"
        "        if name in ('resource', 'fcntl', 'pwd', 'grp', 'termios'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "    return imported(name, names, *further, **named)\n"
        "builtins.__import__ = as_windows\n"
        f"import {', '.join(modules)}\n"
        "assert hfgen.utils.devices.resource is None\n"
        "del signal.SIGHUP, signal.SIGUSR1\n"
        "with hfgen.training.trainer._stop_signals() as received:\n    assert received == []\n"
    )
    finish(Forked(str(script)))


def test_files_are_complete_on_windows_which_opens_no_folders(tmp_path, monkeypatch):
    opened = os.open

    def open_as_windows_does(path, flags, *further):
        if Path(path).is_dir():
            raise PermissionError(path)
        assert flags & os.O_RDWR, "or it cannot be flushed"
        return opened(path, flags, *further)

    monkeypatch.setattr(
        "hfgen.utils.files.os", SimpleNamespace(**vars(os) | {"name": "nt", "open": open_as_windows_does})
    )
    with complete_or_absent(tmp_path / "file") as temporary:
        temporary.write_text("a")
    with complete_or_absent(tmp_path / "folder") as temporary:
        (temporary / "deep").mkdir(parents=True)
        (temporary / "deep" / "file").write_text("b")
    assert (tmp_path / "file").read_text() + (tmp_path / "folder" / "deep" / "file").read_text() == "ab"


def test_memory_is_told_by_the_gpu_or_the_process(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("xpu")
    by_unix = devices.peak_memory_bytes(cpu)
    assert by_unix > 2**20
    monkeypatch.setattr(devices, "resource", None)
    monkeypatch.setattr("psutil.Process.memory_info", lambda self: SimpleNamespace(peak_wset=5))
    assert devices.peak_memory_bytes(cpu) == 5
    forgotten = []
    named = {"get_device_name": lambda: "X", "max_memory_allocated": lambda: 6}
    named["reset_peak_memory_stats"] = lambda: forgotten.append(1)
    monkeypatch.setattr("torch.get_device_module", lambda device: SimpleNamespace(**named))
    assert (devices.peak_memory_bytes(gpu), devices.device_name(gpu)) == (6, "X")
    devices.forget_peak_memory(gpu)
    devices.forget_peak_memory(cpu)
    assert forgotten == [1]
    monkeypatch.setattr("torch.get_device_module", lambda device: SimpleNamespace())  # as `torch.mps`
    devices.forget_peak_memory(torch.device("mps"))
    assert devices.peak_memory_bytes(torch.device("mps")) == 5
    assert devices.device_name(torch.device("mps")) == f"{platform.machine()} (mps)"


def test_every_command_computes_where_the_machine_does(monkeypatch):
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available: torch.device("mps"))
    assert devices.default_device() == torch.device("mps")
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available: None)
    assert devices.default_device() == torch.device("cpu")
    for path in (REPOSITORY / "hfgen").rglob("*.py"):
        assert path.stem == "devices" or "cuda.is_available()" not in path.read_text(), f"{path} knows one maker only"
