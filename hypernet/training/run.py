"""A run, its images and what it trains, as `hypernet.training.setup` prepares them."""

import dataclasses
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

from hypernet.config import TrainingConfig
from hypernet.data.batch_sampler import EpochBatchSampler
from hypernet.data.image_index import ImageRecord
from hypernet.data.image_source import ImageSource
from hypernet.data.processes import Processes
from hypernet.generation.preview_prompts import PreviewPrompt
from hypernet.modeling.attachment import HypernetworkUNet
from hypernet.modeling.hypernetwork import Hypernetwork
from hypernet.stable_diffusion.base_model import BaseModel
from hypernet.stable_diffusion.model import weight_dtype
from hypernet.training.ema import EMA
from hypernet.training.failures import Failures
from hypernet.training.init_from import InitialHypernetwork
from hypernet.training.run_folder import RunFolder
from hypernet.training.run_options import Orders
from hypernet.training.time_forecast import Stopwatch
from hypernet.training.trackers import Trackers


@dataclasses.dataclass
class Run:
    """A run whose options have been checked against the machine and the files they name."""

    config: TrainingConfig
    accelerator: Accelerator
    processes: Processes
    folder: RunFolder
    base: BaseModel
    widths: list[int]  # context widths to train
    initial: InitialHypernetwork | None  # from --init_from
    source: ImageSource
    validation_source: ImageSource | None  # of --validation_data_dir
    trackers: Trackers
    failures: Failures
    orders: Orders
    checkpoint: Path | None  # to resume from
    notes: list[str]  # on the checkpoint
    state_ratio: float  # bytes of the optimizer's state per byte of the weights
    stopwatch: Stopwatch
    previews: list[PreviewPrompt]

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the frozen UNet."""
        return weight_dtype(self.accelerator.mixed_precision)


@dataclasses.dataclass
class RunImages:
    """The images of a run, indexed but not encoded."""

    records: list[ImageRecord]
    batches: EpochBatchSampler
    validation_source: ImageSource | None
    validation_records: list[ImageRecord]
    description: str  # what the run prints about them


@dataclasses.dataclass
class Trainee:
    """The hypernetwork and everything that trains it."""

    hypernetwork: Hypernetwork
    bare_model: HypernetworkUNet  # the UNet with the hypernetwork attached
    model: torch.nn.Module  # the same, prepared by Accelerate
    optimizer: AcceleratedOptimizer
    ema: EMA
