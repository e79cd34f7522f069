"""Settings of `accelerate launch`, `accelerate config` and the environment, reconciled with the configuration."""

import os
from typing import NamedTuple

from accelerate import DistributedType

from hfgen.config.training import TrainingConfig
from hfgen.utils.devices import default_device, native_precision, training_device
from hfgen.utils.errors import UserError

PRECISION = "ACCELERATE_MIXED_PRECISION"
COMPILER = "ACCELERATE_DYNAMO_BACKEND"
ACCUMULATION = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
SHARDING = {  # settings that shard one network over several processes
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor, context or sequence parallelism",
}
INSTEAD = (
    "hfgen supports data parallelism only: use accelerate launch --multi_gpu, "
    "torchrun --nproc_per_node N, or run accelerate config again without it"
)


class Settings(NamedTuple):
    """Settings that the environment decides if the configuration leaves them open.

    Attributes:
        mixed_precision, torch_compile: The configuration fields of the same name.
        remarks: Notes on the environment to print, one sentence each.
    """

    mixed_precision: str
    torch_compile: bool
    remarks: list[str]


def refuse_sharding() -> None:
    """Refuse unsupported sharding before accelerate imports its packages.

    Raises:
        UserError: naming the setting and an alternative.
    """
    for variable, name in SHARDING.items():
        if os.environ.get(variable, "").lower() == "true":
            raise UserError(f"{name} ({variable}) is not supported. {INSTEAD}")


def refuse_distribution(distributed_type: DistributedType) -> None:
    """Refuse distributed training other than data parallelism.

    Raises:
        UserError: naming it and an alternative.
    """
    if distributed_type != DistributedType.NO and not distributed_type.value.startswith("MULTI_"):
        raise UserError(f"distributed training by {distributed_type.value} is not supported. {INSTEAD}")


def decide(config: TrainingConfig) -> Settings:
    """Resolve settings: the configuration takes precedence, then the environment, then the hardware's defaults.

    `accelerate launch` always sets precision and compiler, to `no` by default, which looks like an explicit choice. So
    it is respected, and a remark names the hardware's native precision.

    Raises:
        UserError: if the environment sets an unsupported value, or contradicts gradient_accumulation_steps.
    """
    steps = os.environ.get(ACCUMULATION)
    if steps and steps != str(config.gradient_accumulation_steps):
        raise UserError(
            f"gradient_accumulation_steps is {config.gradient_accumulation_steps}, but {steps} in the environment "
            f"({ACCUMULATION}): set --gradient_accumulation_steps {steps}, or unset the variable"
        )
    remarks = []
    if training_device().type != default_device().type:
        remarks.append(f"Training on the {training_device().type}, as set in the environment (ACCELERATE_USE_CPU)")
    precision = _precision(config.mixed_precision, remarks)
    return Settings(precision, _compiler(config.torch_compile, remarks), remarks)


def _precision(chosen: str | None, remarks: list[str]) -> str:
    requested = os.environ.get(PRECISION, "").lower()
    if chosen:
        if requested not in ("", chosen):
            remarks.append(f"mixed_precision is {chosen}; the launcher's {PRECISION}={requested} is ignored")
        return chosen
    native = native_precision()
    if not requested:
        return native
    if requested not in ("no", "fp16", "bf16"):
        raise UserError(f"the launcher sets {PRECISION}={requested}; hfgen supports no, fp16 and bf16")
    better = f"; this hardware supports --mixed_precision {native}" if (requested, native) == ("no", "bf16") else ""
    remarks.append(f"mixed_precision is {requested}, as set by the launcher ({PRECISION}){better}")
    return requested


def _compiler(chosen: bool | None, remarks: list[str]) -> bool:
    requested = os.environ.get(COMPILER, "no").lower()
    if chosen is None:
        if requested not in ("no", "inductor"):
            raise UserError(f"the launcher sets {COMPILER}={requested}; hfgen supports inductor and no")
        if requested == "inductor":
            remarks.append(f"The networks are compiled, as set by the launcher ({COMPILER})")
        return requested == "inductor"
    if requested not in ("no", "inductor" if chosen else "no"):
        remarks.append(f"torch_compile is {str(chosen).lower()}; the launcher's {COMPILER}={requested} is ignored")
    return chosen
