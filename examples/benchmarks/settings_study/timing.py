"""Time the UNet's training step with each setting, side by side, on the quickstart's model."""

import argparse
import csv
import dataclasses
import json
import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

import hypernet
from examples.benchmarks.settings_study.lora import add_lora
from examples.benchmarks.step import Step
from examples.benchmarks.ways import set_memory_format
from hypernet.cli.training_options import options_to_flags, parse_config
from hypernet.modeling.attachment import attention_layers
from hypernet.utils.atomic_files import atomic_write

TIMES = Path(__file__).with_name("timing.csv")
COST_OPTIONS = ("activation", "layer_structure", "layer_norm", "dropout_structure", "widths")
PLAIN = {"activation": "swish"}  # the baseline
PLAIN_KEY, CONTROL, LORA = "{}", "the same again", "lora"  # in timing.csv, beside the keys of settings
COLUMNS = ("model", "shape", "lower_quartile", "median", "upper_quartile")
ROUNDS, STEPS = 15, 4


def cost_key(options: dict[str, Any]) -> str:
    """Return those of a run's options that determine the time of a step and differ from the baseline's, as JSON."""
    options = {name: options[name] for name in COST_OPTIONS if name in options}
    return json.dumps({name: value for name, value in options.items() if value != PLAIN.get(name)})


@dataclasses.dataclass(frozen=True)
class Attached:
    """Prepares a UNet for steps with a hypernetwork that has the options of a run."""

    options: dict[str, Any]

    def __call__(self, unet: UNet2DConditionModel, dtype: torch.dtype) -> list[torch.nn.Parameter]:
        config = parse_config(options_to_flags(self.options))
        hypernetwork = hypernet.Hypernetwork(config.requested_widths or find_widths(unet), **config.structure()).train()
        set_memory_format(unet)
        hypernet.attach(unet, hypernetwork)
        return list(hypernetwork.parameters())


def attach_lora(unet: UNet2DConditionModel, dtype: torch.dtype) -> list[torch.nn.Parameter]:
    """Prepare a UNet for steps with a LoRA that has as many parameters as the default hypernetwork."""
    set_memory_format(unet)
    size = sum(weight.numel() for weight in hypernet.Hypernetwork(find_widths(unet)).parameters())
    add_lora(unet, size, seed=0)
    return [weight for weight in unet.parameters() if weight.requires_grad]


def find_widths(unet: UNet2DConditionModel) -> list[int]:
    """Return all context widths of a UNet."""
    return sorted({layer.to_k.in_features for layer in attention_layers(unet).values()})


def measure_settings(settings: list[dict[str, Any]], batch_size: int, size: int) -> dict[str, list[float]]:
    """Return the time ratios of each setting, of a LoRA, and of the baseline a second time (see `measure_ratios`)."""
    ways: dict[str, Callable] = {cost_key(options): Attached(options) for options in settings}
    ways |= {CONTROL: ways[PLAIN_KEY], LORA: attach_lora}
    args = argparse.Namespace(model="quickstart", batch_size=batch_size, size=size)
    steps = {name: Step(args, prepare, True, "cpu", torch.float32) for name, prepare in ways.items()}
    return measure_ratios(steps, PLAIN_KEY, time.perf_counter)


def measure_ratios(
    steps: Mapping[str, Callable[[], Any]], plain: str, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Return the time of each step relative to the step `plain`, once per round. In a round all take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name in random.sample(list(steps), len(steps)):  # so that none always runs after the same one
            steps[name]()
            started = clock()
            for _ in range(STEPS):
                steps[name]()
            seconds[name].append(clock() - started)
    return {name: [own / base for own, base in zip(seconds[name], seconds[plain])] for name in steps}


def write_times(ratios: dict[str, list[float]], model: str) -> None:
    """Write median and quartiles of each setting's ratios to timing.csv; lines of other models stay."""
    kept = [line for line in _read_lines() if line["model"] != model]
    with atomic_write(TIMES) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([line[name] for name in COLUMNS] for line in kept)
        for name, values in ratios.items():
            writer.writerow([model, name, *(f"{quartile:.3f}" for quartile in statistics.quantiles(values))])


def read_times(model: str) -> dict[str, float]:
    """Return the medians of a model in timing.csv; empty if it has not been measured."""
    return {line["shape"]: float(line["median"]) for line in _read_lines() if line["model"] == model}


def _read_lines() -> list[dict[str, str]]:
    if not TIMES.is_file():
        return []
    with open(TIMES, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
