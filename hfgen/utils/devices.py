"""Compute devices: selection, name, precision and peak memory."""

import contextlib
import os
import platform
import sys

import psutil
import torch
from accelerate.utils import parse_flag_from_env

from hfgen.utils.errors import UserError, first_line

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None

AUTO = "auto"
DTYPES = ("float32", "bfloat16", "float16")
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}  # of accelerate's mixed precision


def default_device() -> torch.device:
    """Return this machine's accelerator (a GPU of any vendor), or else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def training_device() -> torch.device:
    """Return the device that accelerate will use, which the environment may set (`accelerate launch --cpu`)."""
    if parse_flag_from_env("ACCELERATE_USE_CPU"):
        return torch.device("cpu")
    return torch.device(os.environ.get("ACCELERATE_TORCH_DEVICE") or default_device())


def find_placement(device: str | torch.device, dtype: str | torch.dtype) -> tuple[torch.device, torch.dtype]:
    """Find a device and a data type for a model.

    Args:
        device: A device of torch, such as `cuda`, `cuda:1`, `mps` or `cpu`, or `auto`, this machine's accelerator or
            else the CPU. Of several processes on a machine, each takes an accelerator of its own unless one is named.
        dtype: `float32`, `bfloat16` or `float16`; `auto` gives float32, which `hfgen.pipelines.loading.move`
            replaces for diffusion models.

    Raises:
        UserError: if there is no such device here, or it cannot compute in this data type.
    """
    name = "float32" if dtype == AUTO else str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise UserError(f"dtype must be {AUTO}, {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, not {name}")
    place, kind = _find_device(str(device)), getattr(torch, name)
    if kind != torch.float32:
        try:
            x = torch.ones(1, 1, 3, 3, dtype=kind, device=place)
            torch.nn.functional.conv2d(x, x)
        except (RuntimeError, TypeError) as error:
            raise UserError(
                f"the device {place} cannot compute in {name} ({first_line(error)}); use float32"
            ) from error
    return place, kind


def _find_device(name: str) -> torch.device:
    own = default_device()
    count = torch.accelerator.device_count() if own.type != "cpu" else 0
    here = ["cpu", *([own.type] if count == 1 else [f"{own.type}:{index}" for index in range(count)])]
    try:
        device = training_device() if name == "auto" else torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device must be auto or one of {', '.join(here)}, not {name}") from error
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != own.type or (device.index or 0) >= count:
        raise UserError(f"the device {name} is not available; available here: {', '.join(here)}")
    if device.index is None and "LOCAL_RANK" in os.environ:
        return torch.device(device.type, int(os.environ["LOCAL_RANK"]) % count)
    return device


def native_precision() -> str:
    """Return `bf16` if the training device supports it natively, else `no`."""
    return "bf16" if computes_in_bfloat16(training_device()) else "no"


def computes_in_bfloat16(device: torch.device) -> bool:
    """Return whether a device supports bfloat16 natively (not by emulation)."""
    match device.type:
        case "cuda":
            with contextlib.nullcontext() if device.index is None else torch.cuda.device(device):
                return torch.cuda.is_bf16_supported(including_emulation=False)
        case "cpu":
            capabilities = torch.cpu.get_capabilities()
            return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
        case _:
            return False


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
