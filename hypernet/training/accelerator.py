"""One process or several, on GPUs or not: Accelerate as this trainer uses it."""

import contextlib
import datetime
import os

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs, ProjectConfiguration, gather_object

from hypernet.config import TrainingConfig
from hypernet.utils.errors import OtherProcessError, UserError
from hypernet.cli.option_checks import PRECISIONS
from hypernet.training.run_folder import OutputFolder


def build_accelerator(config: TrainingConfig, output: OutputFolder, trackers) -> Accelerator:
    if config.mixed_precision == "fp16" and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise UserError("--mixed_precision fp16: it needs a GPU; on a CPU leave it at no")
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" and _launched_alone():
        started = "Accelerate has started one process, for it leaves several on a CPU to mpirun (--mpirun_hostfile)"
        hint = "for N on this machine write --multi_gpu --num_processes N, which serves CPUs, too"
        raise UserError(f"accelerate launch --cpu --num_processes: {started}; {hint}")
    several_on_cpu = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available()
    accelerator = Accelerator(
        cpu=several_on_cpu,  # unless told, Accelerate takes processes without a GPU for unrelated ones
        mixed_precision=config.mixed_precision,
        log_with=trackers or None,
        project_config=ProjectConfiguration(project_dir=str(output.root), logging_dir=str(output.logs)),
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=config.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        # the others wait for the main process while it encodes a large folder, or draws many previews
        kwargs_handlers=[InitProcessGroupKwargs(timeout=datetime.timedelta(hours=6))],
    )
    if accelerator.device.type == "cpu":
        use_cores()
    return accelerator


def use_cores():
    """Let this process have its share of the cores, where `accelerate launch` or torchrun gives it one thread, unasked.

    OpenMP's own OMP_THREAD_LIMIT says how many at most (beside other runs). Without a launcher OMP_NUM_THREADS counts.
    """
    launched = {"ACCELERATE_MIXED_PRECISION", "LOCAL_WORLD_SIZE"} & set(os.environ)  # what the two always set
    if launched and torch.get_num_threads() == 1:
        cores, limit = os.cpu_count() or 1, os.environ.get("OMP_THREAD_LIMIT", "")
        most = int(limit) if limit.isdecimal() else cores
        torch.set_num_threads(max(1, min(most, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))))


def _launched_alone() -> bool:
    """Whether `accelerate launch --cpu` was told of several processes: it then names a meeting point, but starts one."""
    ranks = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    meets = os.environ.get("MASTER_ADDR") == "127.0.0.1" and "MASTER_PORT" in os.environ
    return meets and not any(rank in os.environ for rank in ranks)


def check_shared(accelerator: Accelerator, output: OutputFolder, state):
    """Raises: UserError if the processes do not all see the folder that the main one has made, and the same state in it."""
    accelerator.wait_for_everyone()
    seen = gather_object([(output.is_begun(), state and state.name)])
    if len(set(seen)) > 1 or not seen[0][0]:
        problem = "not all processes see the same files there; put it on a disk that all machines share"
        raise UserError(f"--output_dir {output.root}: {problem}")


def choose_precision(config: TrainingConfig):
    """Let the configuration have the precision that Accelerate is set to, unless it asks for one."""
    config.mixed_precision = config.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if config.mixed_precision not in PRECISIONS:
        raise UserError(f"--mixed_precision {config.mixed_precision}: choose one of {', '.join(PRECISIONS)}")


@contextlib.contextmanager
def others_watched(accelerator: Accelerator):
    """Turn the error that one process gets when another has died into one line."""
    try:
        yield
    except RuntimeError as error:
        is_theirs = isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower()
        if accelerator.num_processes == 1 or not is_theirs:
            raise
        hint = "the same command goes on from the last training state"
        raise OtherProcessError(f"another process of this run has died or hangs; {hint}") from None
