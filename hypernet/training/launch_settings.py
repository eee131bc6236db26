"""Refuse the settings of `accelerate config` and `accelerate launch` that training does not support."""

import os

import psutil
from accelerate.utils import is_torch_xla_available, parse_flag_from_env

from hypernet.utils.errors import UserError

# Variables that `accelerate launch` sets, and the settings that they stand for
SPLITTING = {
    "ACCELERATE_USE_FSDP": "distributed_type: FSDP",
    "ACCELERATE_USE_DEEPSPEED": "distributed_type: DEEPSPEED",
    "ACCELERATE_USE_MEGATRON_LM": "distributed_type: MEGATRON_LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "parallelism_config",
}
WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # of torchrun; of MPI


def check_launch_settings() -> None:
    """Check what Accelerate would do besides starting processes and choosing a device and a precision.

    Raises:
        UserError: if that would fail or change the training; it names the setting.
    """
    for variable, setting in SPLITTING.items():
        if parse_flag_from_env(variable):
            remedy = "use MULTI_GPU (NO on one GPU); to save memory, use --gradient_checkpointing or --quantize"
            problem = "it shards the trained weights, and a hypernetwork is too small to gain from that"
            raise _refusal(setting, f"{problem}; {remedy}")
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend != "no":
        raise _refusal(f"dynamo_backend: {backend}", "leave it out and use --compile")
    if os.environ.get("ACCELERATE_MIXED_PRECISION") == "fp8":
        raise _refusal("mixed_precision: fp8", "choose no, fp16 or bf16; for a smaller UNet, use --quantize int8")
    if is_torch_xla_available():
        remedy = "use a GPU; if torch_xla is installed beside one, set USE_TORCH_XLA=0"
        raise _refusal("distributed_type: XLA", f"training does not run on TPUs; {remedy}")
    if _is_one_of_several():
        remedy = "leave out --cpu, and use `accelerate launch --multi_gpu --num_processes N`, also on CPUs"
        raise _refusal("num_processes", f"Accelerate has started one process instead of several; {remedy}")


def _refusal(setting: str, problem: str) -> UserError:
    return UserError(f"{setting} (a setting of Accelerate): {problem}")


def _is_one_of_several() -> bool:
    """Whether `accelerate launch` was to start several processes, but has started only this one.

    On CPUs it does so without MPI or --multi_gpu. For several processes it sets an address, not always their number.
    """
    is_launched = "ACCELERATE_MIXED_PRECISION" in os.environ  # which `accelerate launch` always sets
    if not is_launched or "MASTER_ADDR" not in os.environ or any(name in os.environ for name in WORLD_SIZES):
        return False
    try:
        return "MASTER_ADDR" not in psutil.Process(os.getppid()).environ()  # otherwise, the user has set it
    except (psutil.Error, OSError):
        return False
