"""What the UNet's training step costs with each setting, beside the others of the same round; on the quickstart's model."""

import argparse
import csv
import dataclasses
import json
import random
import statistics
import time
from pathlib import Path

import torch

import hypernet
from examples.benchmarks.settings_study.lora import add_lora
from examples.benchmarks.step import Step
from examples.benchmarks.ways import lay_out
from hypernet.cli.training_options import options_to_flags, parse_config
from hypernet.modeling.attachment import attention_layers
from hypernet.utils.atomic_files import atomic_write

TIMES = Path(__file__).with_name("timing.csv")
SHAPING = ("activation", "layer_structure", "layer_norm", "dropout_structure", "widths")  # what a step's work hangs on
PLAIN = {"activation": "swish"}  # that with which all others are compared
PLAIN_SHAPE, CONTROL, LORA = "{}", "the same again", "lora"
ROUNDS, STEPS = 15, 4


def shape(options: dict) -> str:
    """That of a run's options on which the time of a step hangs; nothing of what all others are compared with."""
    return json.dumps({name: options[name] for name in SHAPING if name in options and options[name] != PLAIN.get(name)})


@dataclasses.dataclass(frozen=True)
class Attached:
    """Makes a UNet ready for steps with a hypernetwork of these options of a run."""

    options: dict

    def __call__(self, unet, dtype):
        config = parse_config(options_to_flags(self.options))
        hypernetwork = hypernet.Hypernetwork(config.widths_numbers or widths_of(unet), **config.structure()).train()
        lay_out(unet)
        hypernet.attach(unet, hypernetwork)
        return list(hypernetwork.parameters())


def lora_of_that_size(unet, dtype):
    lay_out(unet)
    size = sum(weight.numel() for weight in hypernet.Hypernetwork(widths_of(unet)).parameters())
    add_lora(unet, size, seed=0)
    return [weight for weight in unet.parameters() if weight.requires_grad]


def widths_of(unet) -> list[int]:
    return sorted({layer.to_k.in_features for layer in attention_layers(unet).values()})


def measure_settings(every_options: list[dict], batch_size: int, size: int) -> dict[str, list[float]]:
    """For each shape of these runs, for a LoRA and for the plain one once more: the ratios, as below."""
    ways = {shape(options): Attached(options) for options in every_options}
    ways |= {CONTROL: ways[PLAIN_SHAPE], LORA: lora_of_that_size}
    about = argparse.Namespace(model="quickstart", batch_size=batch_size, size=size)
    steps = {name: Step(about, prepare, True, "cpu", torch.float32) for name, prepare in ways.items()}
    return measure_ratios(steps, PLAIN_SHAPE, time.perf_counter)


def measure_ratios(steps: dict, plain: str, clock) -> dict[str, list[float]]:
    """For each step its time over that of `plain`, once for every round in which all take turns."""
    seconds = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name in random.sample(list(steps), len(steps)):  # or one would always follow the same
            steps[name]()
            started = clock()
            for _ in range(STEPS):
                steps[name]()
            seconds[name].append(clock() - started)
    return {name: [mine / base for mine, base in zip(seconds[name], seconds[plain])] for name in steps}


def write_times(ratios: dict[str, list[float]]):
    """Median and quartiles of each."""
    with atomic_write(TIMES) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["shape", "lower_quartile", "median", "upper_quartile"])
        writer.writerows([name, *(f"{q:.3f}" for q in statistics.quantiles(found))] for name, found in ratios.items())


def read_times() -> dict[str, float]:
    """The medians; none if nothing was measured."""
    if not TIMES.is_file():
        return {}
    with open(TIMES, newline="", encoding="utf-8") as file:
        return {row["shape"]: float(row["median"]) for row in csv.DictReader(file)}
