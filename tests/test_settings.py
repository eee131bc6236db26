"""examples/settings_table.py: which runs there are, and what becomes of their figures."""

import json
import statistics

import pytest
from safetensors.torch import load_file

import hypernet
import settings_table
import settings_time
from draw import write_images
from hypernet.command_line import options_to_flags, parse_config
from settings_lora import train_lora
from settings_page import effects, write_table
from settings_table import SECTIONS, SEEDS, draw_data, open_section


def test_every_setting_is_a_run_for_each_seed(tmp_path):
    (tmp_path / "data").mkdir()
    settings = {}
    for section, grid in SECTIONS.items():
        runs = open_section(tmp_path, "neon", section)
        configs = [parse_config(options_to_flags(run.options)) for run in runs]
        assert sorted({config.seed for config in configs}) == SEEDS and not any(config.guard for config in configs)
        settings[section] = len(runs) // len(SEEDS)
        assert len({run.name for run in runs}) == len(runs) == len(SEEDS) * settings[section]
        # but for what the section says, they are those that all others are compared with
        shared = {name: value for name, value in settings_table.BASE.items() if name not in grid}
        assert all(run.options[name] == value for run in runs for name, value in shared.items())
    # eight activations at five rates, ...
    assert settings == {
        "rate": 40,
        "structure": 7,
        "layer norm": 2,
        "dropout": 2,
        "initialisation": 5,
        "widths": 2,
        "latents": 2,
        "tags": 2,
        "lora": 3,
    }


def test_tags_say_what_the_captions_say(tmp_path):
    draw_data(tmp_path, "neon")
    for path in (tmp_path / "images").glob("*.txt"):
        caption, tags = path.read_text().split(), (tmp_path / "tags" / path.name).read_text().strip().split(", ")
        assert sorted(" ".join(tags).split()) == sorted(word for word in caption if word not in ("a", "an", "on"))
        assert (path.with_suffix(".png")).read_bytes() == (tmp_path / "tags" / path.name).with_suffix(
            ".png"
        ).read_bytes()
    held_out = {path.read_bytes() for path in (tmp_path / "held_out").glob("*.png")}
    assert len(held_out) == 8 and not held_out & {path.read_bytes() for path in (tmp_path / "images").glob("*.png")}


def row(style, section, seed, loss, half, options):
    shares = {"style_share": 0.5, "subject_share": 1.0, "file_bytes": 2000, "val_loss_base": 1.0, "rank": ""}
    about = {"style": style, "section": section, "seed": seed, "options": json.dumps(options)}
    return {**about, "val_loss": loss, "half_at_step": half, **shares}


def test_a_table_has_mean_and_deviation():
    base, changed = {"activation": "swish", "learning_rate": "3e-3"}, {"dropout_structure": "0,0.1,0"}
    rows = [row("neon", "rate", seed, 0.3 + seed / 10, 25, base) for seed in (0, 1)]
    rows += [row("neon", "dropout", seed, loss, half, changed) for seed, loss, half in [(0, 0.5, 50), (1, 0.6, "")]]
    *_, as_it_was, with_dropout = write_table(
        rows, "dropout", base, {"{}": 1.0, json.dumps(changed): 1.25}
    ).splitlines()
    assert as_it_was == f"| *as it was* | 0.350 ± {statistics.stdev([0.3, 0.4]):.3f} | 25 | 50% | 100% | 1.00 | 2 |"
    assert (
        with_dropout
        == f"| dropout_structure 0,0.1,0 | 0.550 ± {statistics.stdev([0.5, 0.6]):.3f} | 1 of 2 | 50% | 100% | 1.25 | 2 |"
    )


def test_effects_are_compared_within_a_style_and_a_seed():
    base, other = {"activation": "swish", "learning_rate": "3e-3"}, {"activation": "relu", "learning_rate": "3e-3"}
    rows = [row(style, "rate", seed, loss, 25, base) for style, seed, loss in [("neon", 0, 0.2), ("sunset", 0, 0.4)]]
    rows += [row("neon", "rate", 0, 0.3, 25, other), row("sunset", "rate", 0, 0.3, 25, other)]
    rows += [row("neon", "rate", 0, 0.9, 25, {**other, "learning_rate": "3e-5"})]  # another rate
    rows += [
        row("neon", "dropout", seed, 0.1, 25, {"dropout_structure": "0,0.1,0"}) for seed in (0, 1)
    ]  # 1 has no base
    found = effects(rows, base)
    assert {label: dict(dots) for label, dots in found.items()} == {
        "activation relu": {"neon": pytest.approx(1.5), "sunset": pytest.approx(0.75)},
        "dropout_structure 0,0.1,0": {"neon": pytest.approx(0.5)},
    }
    assert len(found["dropout_structure 0,0.1,0"]) == 1


def test_a_step_is_timed_for_every_setting(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    settings = {settings_time.shape(run.options): run.options for run in settings_table.every_setting(tmp_path)}
    # 8 activations, 7 other structures, LayerNorm, two dropouts, two choices of widths; the rest makes the same steps
    assert len(settings) == 20 and not {"learning_rate", "weight_init", "seed"} & set("".join(settings).split('"'))
    monkeypatch.setattr(settings_time, "ROUNDS", 1)
    monkeypatch.setattr(settings_time, "STEPS", 1)
    few = {name: options for name, options in settings.items() if name in ("{}", '{"widths": "80"}')}
    times = settings_time.measure_times({**few, "lora": None}, batch_size=1, size=64)
    assert times["{}"] == 1.0 and set(times) == {*few, "lora"} and all(ratio > 0 for ratio in times.values())


def test_the_lora_is_of_a_hypernetworks_size_and_learns(tmp_path):
    write_images(tmp_path / "images", "neon", 4, seed=1)
    write_images(tmp_path / "held_out", "neon", 2, seed=2)
    options = {**settings_table.BASE, "max_train_steps": 3, "validation_loss_steps": 1, "seed": 0}
    options |= {"train_data_dir": str(tmp_path / "images"), "validation_data_dir": str(tmp_path / "held_out")}
    found = train_lora({**options, "cache_dir": str(tmp_path / "cache")}, tmp_path / "lora")
    weights = load_file(tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    size = sum(weight.numel() for weight in hypernet.Hypernetwork([48, 80, 96, 128]).parameters())
    assert sum(weight.numel() for weight in weights.values()) == pytest.approx(size, rel=0.03)
    assert {weight.shape[0] for name, weight in weights.items() if "lora.down" in name or "lora_A" in name} == {
        found["rank"]
    }
    assert found["val_loss"] < found["val_loss_base"]
