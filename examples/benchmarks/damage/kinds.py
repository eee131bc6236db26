"""The kinds of files that scripts read: how to make a damaged one, and every way in which scripts open it."""

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

from examples.benchmarks.damage import data, hypernetworks, models, runs


@dataclasses.dataclass
class Kind:
    """A kind of file.

    Attributes:
        make: puts damaged files into a folder: make(rng, samples, folder, marker), where `marker` is the path that
            hostile code creates.
        open: returns the calls that open them, in order.
    """

    make: Callable[[random.Random, Path, Path, Path], None]
    open: Callable[[Path], list[Callable[[], object]]]


KINDS = {
    "pt": Kind(hypernetworks.make_pt, hypernetworks.open_hypernetwork),
    "weights": Kind(hypernetworks.make_safetensors, hypernetworks.open_hypernetwork),
    "stack": Kind(hypernetworks.make_stack, hypernetworks.open_stack),
    "optimizer": Kind(hypernetworks.make_optimizer, hypernetworks.open_optimizer),
    "ckpt": Kind(models.make_ckpt, models.open_model_file),
    "model": Kind(models.make_model_file, models.open_model_file),
    "folder": Kind(models.make_model_folder, models.open_model_folder),
    "lora": Kind(models.make_lora, models.open_lora),
    "run": Kind(runs.make_run_folder, runs.open_run_folder),
    "yaml": Kind(runs.make_yaml, runs.open_yaml),
    "metadata": Kind(data.make_metadata, data.open_data),
    "captions": Kind(data.make_captions, data.open_data),
    "images": Kind(data.make_images, data.open_data),
}
