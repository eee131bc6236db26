"""examples/benchmarks/settings_study/run.py: which runs there are, and what becomes of their figures."""

import itertools
import json
import statistics

import pytest
from safetensors.torch import load_file

import hypernet
from examples.benchmarks.settings_study import page as settings_page
from examples.benchmarks.settings_study import rows as settings_rows
from examples.benchmarks.settings_study import run as settings_table
from examples.benchmarks.settings_study import timing as settings_time
from examples.benchmarks.settings_study.lora import train_lora
from examples.benchmarks.settings_study.page import write_changes, write_table
from examples.benchmarks.settings_study.plots import draw_effects, draw_rates, effects, seed_deviation
from examples.benchmarks.settings_study.run import SECTIONS, SEEDS, draw_data, open_section
from examples.quickstart.tools.draw import write_images
from hypernet.cli.training_options import options_to_flags, parse_config


def test_every_setting_is_a_run_for_each_seed(tmp_path):
    settings = {}
    for section, grid in SECTIONS.items():
        runs = open_section(tmp_path, "neon", section)
        configs = [parse_config(options_to_flags(run.options)) for run in runs]
        seeds = grid.get("seed", SEEDS)
        assert sorted({config.seed for config in configs}) == seeds and not any(config.guard for config in configs)
        settings[section] = len(runs) // len(seeds)
        assert len({run.name for run in runs}) == len(runs) == len(seeds) * settings[section]
        # but for what the section says, they are those that all others are compared with
        shared = {name: value for name, value in settings_table.BASE.items() if name not in grid}
        assert all(run.options[name] == value for run in runs for name, value in shared.items())
    # eight activations at five rates, ...
    assert settings == {
        "rate": 40,
        "baseline": 1,
        "structure": 7,
        "layer norm": 2,
        "dropout": 2,
        "initialisation": 5,
        "widths": 2,
        "latents": 2,
        "tags": 2,
        "lora": 3,
    }


def test_the_committed_table_has_every_run_once(tmp_path):
    rows = [(row["style"], row["section"], row["run"]) for row in settings_rows.read_rows()]
    expected = [
        (style, section, run.name)
        for style in settings_table.STYLES
        for section in SECTIONS
        for run in open_section(tmp_path, style, section)
    ]
    assert sorted(rows) == sorted(expected)
    assert f"; {len(rows)} runs." in settings_page.PAGE.read_text()


def test_what_has_failed_is_not_measured(tmp_path, monkeypatch, capsys):
    """Its folder may hold an older run, whose figures are not its own."""
    args = settings_table.parse_arguments(["--output_dir", str(tmp_path)])
    names = [run.name for run in open_section(tmp_path, "neon", "latents") if run.options["seed"] == 0]
    monkeypatch.setattr(settings_rows, "TABLE", tmp_path / "settings.csv")
    monkeypatch.setattr(settings_table, "run_all", lambda runs, *_: {runs[0].name: "it holds another run"})
    for name in ("load_pipeline", "load_classifier"):
        monkeypatch.setattr(settings_table, name, lambda *_: None)
    figures = {"val_loss": 0.5, "val_loss_base": 1.0, "half_at_step": 25, "file_bytes": 9}
    monkeypatch.setattr(settings_table, "measure", lambda *_: figures)  # what lies in the folder
    settings_table.make_section(args, "neon", "latents", 0)
    assert [row["run"] for row in settings_rows.read_rows()] == names[1:]
    assert f"{names[0]}: it holds another run" in capsys.readouterr().out


def test_tags_say_what_the_captions_say(tmp_path):
    draw_data(tmp_path, "neon")
    pictures = {}
    for name, count in (("images", 32), ("held_out", 8)):
        paths = sorted((tmp_path / name).glob("*.txt"))
        assert len(paths) == count
        for path in paths:
            tagged = tmp_path / f"{name}_tags" / path.name
            caption, tags = path.read_text().split(), tagged.read_text().strip().split(", ")
            assert sorted(" ".join(tags).split()) == sorted(word for word in caption if word not in ("a", "an", "on"))
            assert path.with_suffix(".png").read_bytes() == tagged.with_suffix(".png").read_bytes()
        pictures[name] = {path.with_suffix(".png").read_bytes() for path in paths}
    assert not pictures["images"] & pictures["held_out"]
    for section, ending in (("tags", "_tags"), ("latents", "")):
        options = open_section(tmp_path, "neon", section)[0].options
        assert options["train_data_dir"].endswith(f"images{ending}")
        assert options["validation_data_dir"].endswith(f"held_out{ending}")


def row(style, section, seed, loss, half, options):
    shares = {"style_share": 0.5, "subject_share": 1.0, "file_bytes": 2000, "val_loss_base": 1.0, "rank": ""}
    about = {"style": style, "section": section, "seed": seed, "options": json.dumps(options)}
    return {**about, "val_loss": loss, "half_at_step": half, **shares}


def test_a_table_has_mean_and_deviation():
    base, changed = {"activation": "swish", "learning_rate": "3e-3"}, {"dropout_structure": "0,0.1,0"}
    rows = [row("neon", "rate", seed, 0.3 + seed / 10, 25, base) for seed in (0, 1)]
    rows += [row("neon", "dropout", seed, loss, half, changed) for seed, loss, half in [(0, 0.5, 50), (1, 0.6, "")]]
    rows += [row("neon", "baseline", 2, 0.2, 25, base)]
    *_, baseline, with_dropout = write_table(rows, "dropout", base, {"{}": 1.0, json.dumps(changed): 1.25}).splitlines()
    assert (
        baseline
        == f"| *baseline*, 3 seeds | 0.300 ± {statistics.stdev([0.2, 0.3, 0.4]):.3f} | 25 | 50% | 100% | 1.00 | 2 |"
    )
    assert (
        with_dropout
        == f"| dropout_structure 0,0.1,0 | 0.550 ± {statistics.stdev([0.5, 0.6]):.3f} | 1 of 2 | 50% | 100% | 1.25 | 2 |"
    )


def test_changes_that_seeds_explain_are_in_brackets():
    def runs(*losses):
        return [("neon", (loss, 0.0, 0.0)) for loss in losses]

    found = {"baseline": runs(-10.0, 10.0), "near": runs(20.0, 22.0), "far": runs(28.0, 29.0)}
    found["one"] = [*runs(30.0), ("sunset", (1.0, 0.0, 0.0))]
    lines = write_changes(found).splitlines()[2:]
    # stdev of -10 and 10 is 14.14; two errors of a difference are 28.28 for two runs beside two, 34.6 for one
    assert [line.split(" | ")[:2] for line in lines] == [
        ["| baseline", "± 14.1"],
        ["| near", "(+21.0)"],
        ["| far", "+28.5"],
        ["| one", "(+30.0)"],
    ]


def test_effects_are_compared_within_a_style():
    base, other = {"activation": "swish", "learning_rate": "3e-3"}, {"activation": "relu", "learning_rate": "3e-3"}
    runs = [("neon", 0, 0.2), ("neon", 1, 0.4), ("sunset", 0, 0.4)]
    rows = [row(style, "rate", seed, loss, 25, base) for style, seed, loss in runs]
    rows += [row("neon", "rate", 0, 0.3, 25, other), row("sunset", "rate", 0, "nan", 25, other)]
    rows += [row("neon", "rate", 0, 0.9, 25, {**other, "learning_rate": "3e-5"})]  # another rate
    rows += [row("neon", "dropout", 0, 0.15, 25, {"dropout_structure": "0,0.1,0"})]
    rows[-1] |= {"style_share": 0.25, "subject_share": 0.6}
    rows += [row("neon", "tags", 0, 0.15, 25, {"shuffle_tags": True})]
    rows += [row("other", "dropout", 0, 0.15, 25, {"dropout_structure": "0,0.1,0"})]  # a style without its base
    found = effects(rows, base)
    assert {name: [(style, round(changes[0], 6)) for style, changes in runs] for name, runs in found.items()} == {
        "baseline": [("neon", -33.333333), ("neon", 33.333333), ("sunset", 0.0)],
        "activation relu": [("neon", 0.0), ("sunset", 2400.0)],  # what has died has ten times the loss of nothing
        "dropout_structure 0,0.1,0": [("neon", -50.0)],
    }
    assert {changes[1:] for runs in found.values() for _, changes in runs} == {(0.0, 0.0), (-25.0, -40.0)}
    assert found["dropout_structure 0,0.1,0"][0][1][1:] == (-25.0, -40.0)
    # the only setting with two seeds of one style
    assert seed_deviation(found, 0) == pytest.approx(statistics.stdev([-100 / 3, 100 / 3]))
    lost = [("neon", (900.0, 0.0, -95.0)), ("neon", (100.0, 0.0, -95.0))]
    assert seed_deviation({**found, "LoRA": lost}, 0) == seed_deviation(found, 0)
    labels = [text.get_text() for text in draw_effects(rows, base).axes[0].get_yticklabels()]
    assert labels == list(found) == ["baseline", "activation relu", "dropout_structure 0,0.1,0"]
    best = draw_rates(rows).axes[0].lines[1]  # swish, after relu, in neon
    assert best.get_label() == "swish" and best.get_ydata() == pytest.approx([0.3])


def test_ratios_are_those_of_the_same_round():
    now = [0.0]
    costs = {"plain": itertools.cycle([1.0, 2.0]), "dear": itertools.cycle([3.0, 10.0])}

    def step(name):
        calls = itertools.count()

        def run():  # what it costs changes from round to round; the first call of a round is not measured
            call = next(calls)
            cost = next(costs[name]) if call % (settings_time.STEPS + 1) == 0 else run.cost
            run.cost = cost
            now[0] += 1000.0 if call % (settings_time.STEPS + 1) == 0 else cost

        return run

    steps = {name: step(name) for name in costs}
    ratios = settings_time.measure_ratios(steps, "plain", lambda: now[0])
    assert ratios["plain"] == [1.0] * settings_time.ROUNDS
    assert ratios["dear"] == ([3.0, 5.0] * settings_time.ROUNDS)[: settings_time.ROUNDS]


def test_a_step_is_timed_for_every_setting(tmp_path, monkeypatch):
    settings = [run.options for run in settings_table.every_setting(tmp_path)]
    shapes = {settings_time.shape(options) for options in settings}
    # 8 activations, 7 other structures, LayerNorm, two dropouts, two choices of widths; the rest makes the same steps
    assert len(shapes) == 20 and not {"learning_rate", "weight_init", "seed"} & set("".join(shapes).split('"'))
    monkeypatch.setattr(settings_time, "TIMES", tmp_path / "times.csv")
    monkeypatch.setattr(settings_time, "ROUNDS", 2)
    monkeypatch.setattr(settings_time, "STEPS", 1)
    few = [options for options in settings if settings_time.shape(options) in ("{}", '{"widths": "80"}')]
    ratios = settings_time.measure_settings(few, batch_size=1, size=64)
    settings_time.write_times(ratios)
    assert settings_time.read_times() == {name: round(statistics.median(found), 3) for name, found in ratios.items()}
    assert set(ratios) == {"{}", '{"widths": "80"}', "lora", "the same again"}


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
