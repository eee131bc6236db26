"""examples/benchmarks/settings_study: the runs of the study, and what becomes of their figures."""

import collections
import itertools
import json
import random
import shutil
import statistics

import pytest
from PIL import Image
from safetensors.torch import load_file

import hypernet
from examples.benchmarks.settings_study import page, rows, run, timing
from examples.benchmarks.settings_study.lora import train_lora
from examples.benchmarks.settings_study.plots import draw_changes, draw_learning_rates, find_changes, seed_deviation
from examples.benchmarks.settings_study.run import MODEL, SECTIONS, SEEDS, section_runs, write_data
from examples.quickstart.tools import scenes, sets
from hypernet.cli.training_options import options_to_flags, parse_config
from hypernet.utils.errors import UserError

IMAGES = MODEL.with_name("images")

# --- Runs


def test_every_setting_has_a_run_per_seed(tmp_path):
    settings = {}
    for section, grid in SECTIONS.items():
        runs = section_runs(tmp_path, "openmoji", section)
        configs = [parse_config(options_to_flags(each.options)) for each in runs]
        seeds = grid.get("seed", SEEDS)
        assert sorted({config.seed for config in configs}) == seeds and not any(config.guard for config in configs)
        settings[section] = len(runs) // len(seeds)
        assert len({each.name for each in runs}) == len(runs) == len(seeds) * settings[section]
        # apart from what the section varies, the options are the baseline's
        shared = {name: value for name, value in run.BASE.items() if name not in grid}
        assert all(str(each.options[name]) == str(value) for each in runs for name, value in shared.items())
    # eight activations at five learning rates, ...
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


def test_settings_csv_has_every_run_once(tmp_path):
    found = rows.rows_of_one_model(rows.read_rows(), run.identify_model(), run.count_runs())
    assert len(found) == run.count_runs() == len({(row["style"], row["section"], row["run"]) for row in found})
    counts = collections.Counter((row["style"], row["section"], int(row["seed"])) for row in found)
    styles, expected = {row["style"] for row in found}, collections.Counter()
    for style, section in itertools.product(styles, SECTIONS):
        for each in section_runs(tmp_path, style, section):
            expected[style, section, each.options["seed"]] += 1
            # the widths are those of the model that was measured
            assert section == "widths" or any((row["style"], row["run"]) == (style, each.name) for row in found)
    assert len(styles) == 2 and counts == expected
    text = page.PAGE.read_text(encoding="utf-8")
    assert f" {len(found)} runs" in text
    (model,) = {row["model"] for row in found}
    assert f"<!-- model -->\n{page.describe_model(model, run.identify_model())}\n<!-- end -->" in text


def test_a_new_models_runs_replace_older_ones_once_all_are_there():
    old, new = ([{"model": model, "run": number} for number in range(3)] for model in ("old", "new"))
    assert rows.rows_of_one_model([*new[:2], *old], "new", 3) == old
    assert rows.rows_of_one_model([*new, *old], "new", 3) == new
    assert rows.rows_of_one_model(new[:1], "new", 3) == new[:1]
    assert rows.rows_of_one_model([], "new", 3) == []
    assert page.describe_model("old", "new") != page.describe_model("new", "new")


def test_failed_runs_are_not_measured(tmp_path, monkeypatch, capsys):
    """The folder of a failed run may hold an older run, whose figures do not count."""
    names = [each.name for each in section_runs(tmp_path, "openmoji", "latents") if each.options["seed"] == 0]
    monkeypatch.setattr(rows, "TABLE", tmp_path / "settings.csv")
    monkeypatch.setattr(run, "train_all", lambda runs, *_: {runs[0].name: "it holds another run"})
    monkeypatch.setattr(run, "identify_model", lambda: "new")
    for name in ("load_pipeline", "load_classifier"):
        monkeypatch.setattr(run, name, lambda *_: None)
    figures = {"val_loss": 0.5, "val_loss_base": 1.0, "reached_at_step": 25, "file_bytes": 9}
    monkeypatch.setattr(run, "measure_run", lambda *_: figures)  # of whatever is in the folder
    run.complete_section(tmp_path, jobs=1, style="openmoji", section="latents", seed=0)
    assert [(row["model"], row["run"]) for row in rows.read_rows()] == [("new", name) for name in names[1:]]
    assert f"{names[0]}: it holds another run" in capsys.readouterr().out


@pytest.fixture
def plain_hand(monkeypatch):
    """A hand that shows every subject as a colored square, in place of an artist's emoji."""

    def render(subject, hand):
        return Image.new("RGBA", (64, 64), (*random.Random(subject).randbytes(3), 255))

    monkeypatch.setattr(scenes, "find", lambda subject, hand: subject)
    monkeypatch.setattr(scenes, "render", render)


def test_tags_have_the_words_of_the_captions(plain_hand, tmp_path):
    write_data(tmp_path, "openmoji")
    subjects = {}
    for name, count in (("images", 32), ("held_out", 8)):
        paths = sorted((tmp_path / name).glob("*.txt"))
        assert len(paths) == count
        for path in paths:
            tagged = tmp_path / f"{name}_tags" / path.name
            caption, tags = path.read_text().split(), tagged.read_text().strip().split(", ")
            assert sorted(" ".join(tags).split()) == sorted(word for word in caption if word not in ("a", "an", "on"))
            assert path.with_suffix(".png").read_bytes() == tagged.with_suffix(".png").read_bytes()
            subjects.setdefault(name, set()).update(tag for tag in tags if tag in scenes.SUBJECTS)
        assert len(subjects[name]) == count
    assert not subjects["images"] & subjects["held_out"]
    for section, ending in (("tags", "_tags"), ("latents", "")):
        options = section_runs(tmp_path, "openmoji", section)[0].options
        assert options["train_data_dir"].endswith(f"images{ending}")
        assert options["validation_data_dir"].endswith(f"held_out{ending}")


def test_emoji_that_cannot_be_fetched_are_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "")  # without npm
    monkeypatch.setattr(sets, "CACHE_DIR", tmp_path / "sets")
    sets.load_set.cache_clear()
    sets.find.cache_clear()
    with pytest.raises(UserError, match="--styles openmoji"):
        write_data(tmp_path, "openmoji")
    assert not (tmp_path / "done").exists()


# --- Tables and plots


def make_row(style, section, seed, loss, half, options):
    shares = {"style_share": 0.5, "subject_share": 1.0, "file_bytes": 2000, "val_loss_base": 1.0, "rank": ""}
    row = {"style": style, "section": section, "seed": seed, "options": json.dumps(options)}
    return {**row, "val_loss": loss, "reach": 0.5, "reached_at_step": half, **shares}


def test_tables_show_mean_and_deviation():
    base, changed = {"activation": "swish", "learning_rate": "3e-3"}, {"dropout_structure": "0,0.1,0"}
    runs = [make_row("openmoji", "rate", seed, 0.3 + seed / 10, 25, base) for seed in (0, 1)]
    runs += [
        make_row("openmoji", "dropout", seed, loss, half, changed) for seed, loss, half in [(0, 0.5, 50), (1, 0.6, "")]
    ]
    runs += [make_row("openmoji", "baseline", 2, 0.2, 25, base)]
    times = {"{}": 1.0, json.dumps(changed): 1.25}
    *_, baseline, dropout = page.build_table(runs, "dropout", base, times).splitlines()
    deviation = statistics.stdev([0.2, 0.3, 0.4])
    assert baseline == f"| *baseline*, 3 seeds | 0.300 ± {deviation:.3f} | 25 | 50% | 100% | 1.00 | 2 |"
    deviation = statistics.stdev([0.5, 0.6])
    assert dropout == f"| dropout_structure 0,0.1,0 | 0.550 ± {deviation:.3f} | 1 of 2 | 50% | 100% | 1.25 | 2 |"


def test_changes_within_the_noise_of_the_seeds_are_in_brackets():
    def runs(*losses):
        return [("openmoji", (loss, 0.0, 0.0)) for loss in losses]

    changes = {"baseline": runs(-10.0, 10.0), "near": runs(20.0, 22.0), "far": runs(28.0, 29.0)}
    changes["one"] = [*runs(30.0), ("streamline-emojis", (1.0, 0.0, 0.0))]
    lines = page.build_changes_table(changes).splitlines()[2:]
    # stdev of -10 and 10 is 14.14; two errors of a difference are 28.28 for two runs beside two, 34.6 for one
    assert [line.split(" | ")[:2] for line in lines] == [
        ["| baseline", "± 14.1"],
        ["| near", "(+21.0)"],
        ["| far", "+28.5"],
        ["| one", "(+30.0)"],
    ]


def test_changes_are_relative_to_the_baseline_of_the_same_style():
    base, other = {"activation": "swish", "learning_rate": "3e-3"}, {"activation": "relu", "learning_rate": "3e-3"}
    dropout = {"dropout_structure": "0,0.1,0"}
    runs = [("openmoji", 0, 0.2), ("openmoji", 1, 0.4), ("streamline-emojis", 0, 0.4)]
    runs = [make_row(style, "rate", seed, loss, 25, base) for style, seed, loss in runs]
    runs += [
        make_row("openmoji", "rate", 0, 0.3, 25, other),
        make_row("streamline-emojis", "rate", 0, "nan", 25, other),
    ]
    runs += [make_row("openmoji", "rate", 0, 0.9, 25, {**other, "learning_rate": "3e-5"})]  # another learning rate
    runs += [make_row("openmoji", "dropout", 0, 0.15, 25, dropout) | {"style_share": 0.25, "subject_share": 0.6}]
    runs += [make_row("openmoji", "tags", 0, 0.15, 25, {"shuffle_tags": True})]
    runs += [make_row("other", "dropout", 0, 0.15, 25, dropout)]  # a style without a baseline
    changes = find_changes(runs, base)
    losses = {name: [(style, round(found[0], 6)) for style, found in group] for name, group in changes.items()}
    assert losses == {
        "baseline": [("openmoji", -33.333333), ("openmoji", 33.333333), ("streamline-emojis", 0.0)],
        "activation relu": [
            ("openmoji", 0.0),
            ("streamline-emojis", 2400.0),
        ],  # NaN counts as ten times the base model's loss
        "dropout_structure 0,0.1,0": [("openmoji", -50.0)],
    }
    assert {found[1:] for group in changes.values() for _, found in group} == {(0.0, 0.0), (-25.0, -40.0)}
    assert changes["dropout_structure 0,0.1,0"][0][1][1:] == (-25.0, -40.0)
    # the only setting with two seeds of one style
    assert seed_deviation(changes, 0) == pytest.approx(statistics.stdev([-100 / 3, 100 / 3]))
    lost = [("openmoji", (900.0, 0.0, -95.0)), ("openmoji", (100.0, 0.0, -95.0))]
    assert seed_deviation({**changes, "LoRA": lost}, 0) == seed_deviation(changes, 0)
    labels = [text.get_text() for text in draw_changes(runs, base).axes[0].get_yticklabels()]
    assert labels == list(changes) == ["baseline", "activation relu", "dropout_structure 0,0.1,0"]
    swish = draw_learning_rates(runs).axes[0].lines[1]  # after relu, in neon
    assert swish.get_label() == "swish" and swish.get_ydata() == pytest.approx([0.3])


# --- Timing


def test_time_ratios_compare_steps_of_the_same_round():
    now = [0.0]
    costs = {"plain": itertools.cycle([1.0, 2.0]), "costly": itertools.cycle([3.0, 10.0])}

    def make_step(name):
        calls = itertools.count()

        def step():  # its cost changes from round to round; the first call of a round is not measured
            call = next(calls)
            cost = next(costs[name]) if call % (timing.STEPS + 1) == 0 else step.cost
            step.cost = cost
            now[0] += 1000.0 if call % (timing.STEPS + 1) == 0 else cost

        return step

    steps = {name: make_step(name) for name in costs}
    ratios = timing.measure_ratios(steps, "plain", lambda: now[0])
    assert ratios["plain"] == [1.0] * timing.ROUNDS
    assert ratios["costly"] == ([3.0, 5.0] * timing.ROUNDS)[: timing.ROUNDS]


def test_times_a_step_of_every_setting(tmp_path, monkeypatch):
    settings = [each.options for each in run.one_run_per_setting(tmp_path)]
    keys = {timing.cost_key(options) for options in settings}
    # 8 activations, 7 other structures, LayerNorm, two dropouts, two choices of widths; the others make the same steps
    assert len(keys) == 20 and not {"learning_rate", "weight_init", "seed"} & set("".join(keys).split('"'))
    monkeypatch.setattr(timing, "TIMES", tmp_path / "times.csv")
    monkeypatch.setattr(timing, "ROUNDS", 2)
    monkeypatch.setattr(timing, "STEPS", 1)
    text_only = json.dumps({"widths": str(run.TEXT_WIDTH)})
    few = [options for options in settings if timing.cost_key(options) in ("{}", text_only)]
    ratios = timing.measure_settings(few, batch_size=1, size=64)
    timing.write_times({"{}": [1.0, 2.0]}, "old")
    timing.write_times(ratios, "new")
    assert timing.read_times("new") == {name: round(statistics.median(found), 3) for name, found in ratios.items()}
    assert timing.read_times("old") == {"{}": 1.5}
    assert set(ratios) == {"{}", text_only, "lora", "the same again"}


# --- LoRA


def test_the_lora_has_the_size_of_a_hypernetwork_and_learns(tmp_path):
    for name, numbers in (("images", range(4)), ("held_out", range(4, 6))):
        (tmp_path / name).mkdir()
        for path in (file for number in numbers for file in IMAGES.glob(f"{number:02d}.*")):
            shutil.copy(path, tmp_path / name)
    options = {**run.BASE, "max_train_steps": 3, "validation_loss_steps": 1, "seed": 0}
    options |= {"train_data_dir": str(tmp_path / "images"), "validation_data_dir": str(tmp_path / "held_out")}
    found = train_lora({**options, "cache_dir": str(tmp_path / "cache")}, tmp_path / "lora")
    weights = load_file(tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    widths = [run.TEXT_WIDTH, *run.OTHER_WIDTHS]
    size = sum(weight.numel() for weight in hypernet.Hypernetwork(widths).parameters())
    assert sum(weight.numel() for weight in weights.values()) == pytest.approx(size, rel=0.03)
    ranks = {weight.shape[0] for name, weight in weights.items() if "lora.down" in name or "lora_A" in name}
    assert ranks == {found["rank"]}
    assert found["val_loss"] < found["val_loss_base"]
