"""What `accelerate launch`, `accelerate config` and the environment ask for, against what the configuration says."""

import os
from typing import NamedTuple

from accelerate import DistributedType

from hfgen.config.training import TrainingConfig
from hfgen.utils.devices import default_device, native_precision, training_device
from hfgen.utils.errors import UserError

PRECISION = "ACCELERATE_MIXED_PRECISION"
COMPILER = "ACCELERATE_DYNAMO_BACKEND"
ACCUMULATION = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
SPLITTING = {  # what splits one network over several processes
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor, context or sequence parallelism",
}
INSTEAD = (
    "Each process of hfgen trains a whole copy of the network: use accelerate launch --multi_gpu, "
    "torchrun --nproc_per_node N, or accelerate config anew without it"
)


class Settings(NamedTuple):
    """What the configuration leaves open and the environment decides.

    Attributes:
        mixed_precision, torch_compile: The fields of that name.
        remarks: What is to be told of the environment, as one sentence each.
    """

    mixed_precision: str
    torch_compile: bool
    remarks: list[str]


def refuse_split_networks() -> None:
    """Refuse what the environment asks for and the engine does not do, before accelerate looks for the packages.

    Raises:
        UserError: naming it, and what to use instead.
    """
    for variable, name in SPLITTING.items():
        if os.environ.get(variable, "").lower() == "true":
            raise UserError(f"{name} is asked for ({variable}), which hfgen cannot do. {INSTEAD}")


def refuse_distribution(kind: DistributedType) -> None:
    """Refuse a kind of distributed training that is neither one process nor copies of the network in several.

    Raises:
        UserError: naming it, and what to use instead.
    """
    if kind != DistributedType.NO and not kind.value.startswith("MULTI_"):
        raise UserError(f"accelerate distributes the training by {kind.value}, which hfgen cannot do. {INSTEAD}")


def decide(config: TrainingConfig) -> Settings:
    """Decide what the configuration leaves open: it wins, then the environment, then what the hardware does best.

    `accelerate launch` always sets precision and compiler, to `no` where nobody chose, which cannot be told from a
    choice; so it is obeyed, and the remark says what the hardware could do.

    Raises:
        UserError: if the environment asks for what hfgen cannot do, or for other steps of accumulation.
    """
    steps = os.environ.get(ACCUMULATION)
    if steps and steps != str(config.gradient_accumulation_steps):
        raise UserError(
            f"gradient_accumulation_steps is {config.gradient_accumulation_steps}, and {steps} in the environment "
            f"({ACCUMULATION}): say --gradient_accumulation_steps {steps}, or unset the variable"
        )
    remarks = []
    if training_device().type != default_device().type:
        remarks.append(f"Training on the {training_device().type}, as the environment says (ACCELERATE_USE_CPU)")
    precision = _precision(config.mixed_precision, remarks)
    return Settings(precision, _compiler(config.torch_compile, remarks), remarks)


def _precision(chosen: str | None, remarks: list[str]) -> str:
    asked = os.environ.get(PRECISION, "").lower()
    if chosen:
        if asked not in ("", chosen):
            remarks.append(f"mixed_precision is {chosen}, whatever the launcher says ({PRECISION}={asked})")
        return chosen
    native = native_precision()
    if not asked:
        return native
    if asked not in ("no", "fp16", "bf16"):
        raise UserError(f"the launcher asks for {PRECISION}={asked}; hfgen trains in no, fp16 or bf16")
    better = (
        f"; --mixed_precision {native} is what this hardware computes in" if (asked, native) == ("no", "bf16") else ""
    )
    remarks.append(f"mixed_precision is {asked}, as the launcher says ({PRECISION}){better}")
    return asked


def _compiler(chosen: bool | None, remarks: list[str]) -> bool:
    asked = os.environ.get(COMPILER, "no").lower()
    if chosen is None:
        if asked not in ("no", "inductor"):
            raise UserError(f"the launcher asks for {COMPILER}={asked}; hfgen compiles with inductor, or not at all")
        if asked == "inductor":
            remarks.append(f"The networks are compiled, as the launcher says ({COMPILER})")
        return asked == "inductor"
    if asked not in ("no", "inductor" if chosen else "no"):
        remarks.append(f"torch_compile is {str(chosen).lower()}, whatever the launcher says ({COMPILER}={asked})")
    return chosen
