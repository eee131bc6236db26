"""Set up Accelerate: one process or several, on GPUs or the CPU."""

import contextlib
import datetime
import os
import sys
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import (
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    gather_object,
    parse_flag_from_env,
)
from tqdm.auto import tqdm

from hypernet.config import MixedPrecision, TrainingConfig
from hypernet.data.processes import Processes
from hypernet.training.run_folder import RunFolder
from hypernet.utils.errors import OtherProcessError, UserError

PRECISIONS = typing.get_args(MixedPrecision)
TIMEOUT = datetime.timedelta(hours=1)  # of one communication; it may wait for a save or another process's previews


def choose_mixed_precision(config: TrainingConfig) -> None:
    """Use Accelerate's precision if --mixed_precision is not given.

    Raises:
        UserError: if training does not support the precision, or this machine does not.
    """
    is_option = bool(config.mixed_precision)
    precision = config.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in PRECISIONS:
        raise UserError(f"--mixed_precision {precision}: choose one of {', '.join(PRECISIONS)}")
    config.mixed_precision = typing.cast(MixedPrecision, precision)
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if precision == "fp16" and (not has_gpu or parse_flag_from_env("ACCELERATE_USE_CPU")):
        given = "--mixed_precision fp16" if is_option else "mixed_precision: fp16 (a setting of Accelerate)"
        raise UserError(f"{given}: it needs a GPU; on a CPU, use --mixed_precision no")


def build_accelerator(config: TrainingConfig, folder: RunFolder, trackers: Sequence[str]) -> Accelerator:
    """Return the `Accelerator` of the run."""
    distributed_on_cpu = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available()
    accelerator = Accelerator(
        cpu=distributed_on_cpu,  # otherwise Accelerate treats processes without a GPU as unrelated
        mixed_precision=config.mixed_precision,
        log_with=list(trackers) or None,
        project_config=ProjectConfiguration(project_dir=str(folder.root), logging_dir=str(folder.logs)),
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=config.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)],
    )
    if accelerator.device.type == "cpu":
        set_cpu_threads()
    return accelerator


def set_cpu_threads() -> None:
    """Give this process its share of the cores; `accelerate launch` and torchrun limit it to one thread by default.

    OMP_NUM_THREADS applies if the user has set it, and OMP_THREAD_LIMIT is always an upper bound.
    """
    launched = {"ACCELERATE_MIXED_PRECISION", "LOCAL_WORLD_SIZE"} & set(os.environ)  # set by every launcher
    if launched and torch.get_num_threads() == 1 and not threads_are_chosen():
        cores, limit = os.cpu_count() or 1, os.environ.get("OMP_THREAD_LIMIT", "")
        upper_bound = int(limit) if limit.isdecimal() else cores
        torch.set_num_threads(max(1, min(upper_bound, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))))


def threads_are_chosen() -> bool:
    """Whether the user has chosen the number of threads: in the launcher's environment, or with its option."""
    try:
        launcher = psutil.Process(os.getppid())
        command, environment = " ".join(launcher.cmdline()), launcher.environ()  # as the launcher was started
    except (psutil.Error, OSError):
        return False
    is_launcher = any(name in command for name in ("accelerate", "torchrun", "torch.distributed"))
    return is_launcher and ("OMP_NUM_THREADS" in environment or "--num_cpu_threads_per_process" in command)


def describe_accelerator(accelerator: Accelerator) -> str:
    """Return one line on where and how the run trains. It reveals a launcher that started too few processes."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = f", threads: {torch.get_num_threads()}" if device.type == "cpu" else ""
    processes = f"processes: {accelerator.num_processes}"
    return f"Training on {name}{threads}, {processes}, mixed precision: {accelerator.mixed_precision}"


def check_shared_folder(accelerator: Accelerator, folder: RunFolder, checkpoint: Path | None) -> None:
    """Check that every process sees the folder that the main process created, and the same checkpoint in it.

    Raises:
        UserError: if one does not.
    """
    accelerator.wait_for_everyone()
    seen = gather_object([(folder.holds_run(), checkpoint and checkpoint.name)])
    if len(set(seen)) > 1 or not seen[0][0]:
        problem = "not all processes see the same files there; put it on a disk that all machines share"
        raise UserError(f"--output_dir {folder.root}: {problem}")


def connect_processes(accelerator: Accelerator) -> Processes:
    """Return the processes of the run, which share the work before the first step. All must call this.

    They communicate over gloo, also where training uses NCCL: one of them may do so while it computes on its GPU.
    """
    if accelerator.num_processes == 1:
        return Processes()
    group = torch.distributed.new_group(backend="gloo", timeout=TIMEOUT)

    def exchange(value: object) -> list[object]:
        values: list[object] = [None] * accelerator.num_processes
        torch.distributed.all_gather_object(values, value, group)
        return values

    return Processes(accelerator.process_index, accelerator.num_processes, exchange)


@contextlib.contextmanager
def report_dead_processes() -> Iterator[None]:
    """Report the death of another process in one line.

    Raises:
        OtherProcessError: in place of the communication error that follows from it.
    """
    try:
        yield
    except RuntimeError as error:
        from_communication = isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower()
        if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not from_communication:
            raise
        hint = "the same command resumes from the last checkpoint"
        raise OtherProcessError(f"another process of this run died or stopped responding; {hint}") from None


def print_main(accelerator: Accelerator, *lines: str) -> None:
    """Print on the main process only, above the progress bar if there is one."""
    if accelerator.is_main_process:
        for line in lines:
            tqdm.write(line)


def peak_memory(device: torch.device) -> float:
    """Return the peak memory so far in GiB: tensors on a GPU, else this process's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return psutil.Process().memory_info().peak_wset / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # the unit of getrusage
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
