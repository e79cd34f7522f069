"""What computes: the accelerator of this machine or its CPU, its name and its memory."""

import os
import platform
import sys

import psutil
import torch
from accelerate.utils import parse_flag_from_env

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None


def default_device() -> torch.device:
    """Return the accelerator of this machine (a GPU of whatever maker), or its CPU if it has none."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def training_device() -> torch.device:
    """Return the device that accelerate will train on, which the environment may name (`accelerate launch --cpu`)."""
    if parse_flag_from_env("ACCELERATE_USE_CPU"):
        return torch.device("cpu")
    return torch.device(os.environ.get("ACCELERATE_TORCH_DEVICE") or default_device())


def native_precision() -> str:
    """Return `bf16` if the device of a training computes in it (not merely accepts it), else `no`."""
    match training_device().type:
        case "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        case "cpu":
            capabilities = torch.cpu.get_capabilities()
            native = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
        case _:
            native = False
    return "bf16" if native else "no"


def device_name(device: torch.device) -> str:
    """Name the hardware, such as `NVIDIA H100`; of a CPU the instructions that torch uses."""
    if device.type == "cpu":
        return f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"
    module = torch.get_device_module(device)
    return module.get_device_name() if hasattr(module, "get_device_name") else f"{platform.machine()} ({device.type})"


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory that tensors took on a GPU since `forget_peak_memory`.

    On a CPU, and where a GPU does not tell (Apple's, which shares the memory of the CPU), it is the most that the
    process has taken since it began, libraries included.
    """
    module = torch.get_device_module(device)
    if device.type != "cpu" and hasattr(module, "max_memory_allocated"):
        return module.max_memory_allocated()
    if resource is None:
        return psutil.Process().memory_info().peak_wset
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak_memory(device: torch.device) -> None:
    """Begin anew with the peak of a GPU's memory, which a former training in this process may have set."""
    module = torch.get_device_module(device)
    if device.type != "cpu" and hasattr(module, "reset_peak_memory_stats"):
        module.reset_peak_memory_stats()
