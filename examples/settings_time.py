"""What a training step costs with each setting, beside the others of the same round; on the quickstart's model."""

import argparse
import csv
import json
import random
import statistics
import time
from pathlib import Path

import torch

import hypernet
from benchmark import Step
from hypernet.attention import attention_layers
from hypernet.command_line import options_to_flags, parse_config
from hypernet.replacing import replacing
from settings_lora import add_lora

TIMES = Path(__file__).with_name("settings_time.csv")
SHAPING = ("activation", "layer_structure", "layer_norm", "dropout_structure", "widths")  # what a step's work hangs on
PLAIN = {"activation": "swish"}  # that with which all others are compared
ROUNDS, STEPS = 15, 4


def shape(options: dict) -> str:
    """That of a run's options on which the time of a step hangs; nothing of what all others are compared with."""
    own = {name: options[name] for name in SHAPING if name in options and options[name] != PLAIN.get(name)}
    return json.dumps(own)


def prepare(options: dict | None):
    """What makes a UNet ready for steps with these options, or with a LoRA of a hypernetwork's size if None."""

    def attach(unet, dtype):
        widths = sorted({layer.to_k.in_features for layer in attention_layers(unet).values()})
        if options is None:
            size = sum(weight.numel() for weight in hypernet.Hypernetwork(widths).parameters())
            add_lora(unet, size, seed=0)
            return [weight for weight in unet.parameters() if weight.requires_grad]
        config = parse_config(options_to_flags(options))
        hypernetwork = hypernet.Hypernetwork(config.widths_numbers or widths, **config.structure()).train()
        hypernet.attach(unet, hypernetwork)
        return list(hypernetwork.parameters())

    return attach


def measure_times(settings: dict[str, dict | None], batch_size: int, size: int) -> dict[str, float]:
    """For each shape the time of a step as a ratio to that of `{}`: the median of rounds in which all take turns."""
    about = argparse.Namespace(model="quickstart", batch_size=batch_size, size=size)
    ways = {name: Step(about, prepare(options), True, "cpu", torch.float32) for name, options in settings.items()}
    seconds = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name in random.sample(list(ways), len(ways)):  # or one would always follow the same
            ways[name]()
            started = time.perf_counter()
            for _ in range(STEPS):
                ways[name]()
            seconds[name].append(time.perf_counter() - started)
    plain = seconds[json.dumps({})]
    return {name: statistics.median(mine / base for mine, base in zip(seconds[name], plain)) for name in ways}


def write_times(times: dict[str, float]):
    with replacing(TIMES) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["shape", "time_ratio"])
        writer.writerows([name, f"{ratio:.3f}"] for name, ratio in times.items())


def read_times() -> dict[str, float]:
    if not TIMES.is_file():
        return {}
    with open(TIMES, newline="", encoding="utf-8") as file:
        return {row["shape"]: float(row["time_ratio"]) for row in csv.DictReader(file)}
