"""Compute devices: selection, name, precision and peak memory."""

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
    """Return this machine's accelerator (a GPU of any vendor), or else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def training_device() -> torch.device:
    """Return the device that accelerate will use, which the environment may set (`accelerate launch --cpu`)."""
    if parse_flag_from_env("ACCELERATE_USE_CPU"):
        return torch.device("cpu")
    return torch.device(os.environ.get("ACCELERATE_TORCH_DEVICE") or default_device())


def native_precision() -> str:
    """Return `bf16` if the training device supports it natively (not by emulation), else `no`."""
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
    """Return the hardware's name, such as `NVIDIA H100`; for a CPU its instruction set as used by torch."""
    if device.type == "cpu":
        return f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"
    module = torch.get_device_module(device)
    return module.get_device_name() if hasattr(module, "get_device_name") else f"{platform.machine()} ({device.type})"


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory of tensors on a GPU since `forget_peak_memory`.

    On a CPU, and on GPUs without such a counter (Apple's, which share the CPU's memory), it is the peak memory of the
    whole process since its start.
    """
    module = torch.get_device_module(device)
    if device.type != "cpu" and hasattr(module, "max_memory_allocated"):
        return module.max_memory_allocated()
    if resource is None:
        return psutil.Process().memory_info().peak_wset
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak_memory(device: torch.device) -> None:
    """Reset a GPU's peak memory counter, which an earlier training in this process may have raised."""
    module = torch.get_device_module(device)
    if device.type != "cpu" and hasattr(module, "reset_peak_memory_stats"):
        module.reset_peak_memory_stats()
