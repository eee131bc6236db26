"""examples/comparison: grids, the environment of runs, the table and the page."""

import math
import os
import statistics

import pytest

from examples.comparison.grid import read_grid
from examples.comparison.groups import group_runs
from examples.comparison.page import write_page
from examples.comparison.previews import own_prompts
from examples.comparison.ranking import rank
from examples.comparison.runs import Runner, same_options
from examples.comparison.table import build_table
from hypernet.cli.training_options import options_to_flags, parse_config
from hypernet.utils.errors import UserError
from tests.helpers.grids import make_result, required_options, write_yaml

# --- Grids


def test_every_combination_is_a_run_named_after_what_differs(tmp_path, models_dir, images_dir):
    path = write_yaml(
        tmp_path / "grid.yaml",
        **required_options(models_dir, images_dir),
        grid=[
            {"activation": ["linear", "swish"], "learning_rate": ["1e-4", "5e-5:100, 1e-5:200"], "snr_gamma": [5]},
            {"layer_structure": [[1, 2, 2, 1]], "snr_gamma": [5]},
        ],
    )
    runs = read_grid(path, tmp_path / "out")
    assert [each.name for each in runs] == [
        "activation=linear,learning_rate=1e-4",
        "activation=linear,learning_rate=5e-5_100,_1e-5_200",
        "activation=swish,learning_rate=1e-4",
        "activation=swish,learning_rate=5e-5_100,_1e-5_200",
        "layer_structure=1,2,2,1",
    ]
    configs = [parse_config(options_to_flags(each.options)) for each in runs]
    assert [config.activation for config in configs] == ["linear", "linear", "swish", "swish", "linear"]
    assert configs[4].structure()["layer_structure"] == [1, 2, 2, 1] and {config.snr_gamma for config in configs} == {5}
    assert [config.output_dir for config in configs] == [str(tmp_path / "out" / "runs" / each.name) for each in runs]


def test_a_grid_overrides_its_file_and_the_file_its_config(tmp_path, models_dir, images_dir):
    options = required_options(models_dir, images_dir)
    base = write_yaml(tmp_path / "base.yaml", **options, activation="relu", max_train_steps=7, seed=3)
    path = write_yaml(tmp_path / "grid.yaml", config=str(base), max_train_steps=8, grid={"seed": [4, 5]})
    configs = [parse_config(options_to_flags(each.options)) for each in read_grid(path, tmp_path)]
    found = [(config.activation, config.max_train_steps, config.seed) for config in configs]
    assert found == [("relu", 8, 4), ("relu", 8, 5)]


def test_values_are_text_and_names_are_those_of_earlier_versions(tmp_path, models_dir, images_dir):
    """YAML once read true as True and 1.0e-3 as 0.001; runs of such grids keep their folders."""
    path = write_yaml(tmp_path / "grid.yaml", **required_options(models_dir, images_dir))
    path.write_text(
        path.read_text() + "mixed_precision: no\nname: 007\ngrid:\n  layer_norm: [true, off]\n"
        "  learning_rate: [1.0e-3, 1e-4]\n  snr_gamma: [null, 5]\n"
    )
    found = read_grid(path, tmp_path / "out")
    names = [each.name for each in found]
    assert names[0] == "layer_norm=True,learning_rate=0.001,snr_gamma=None"
    assert names[-1] == "layer_norm=False,learning_rate=1e-4,snr_gamma=5" and len(set(names)) == 8
    configs = [parse_config(options_to_flags(each.options)) for each in found]
    assert {(config.mixed_precision, config.name) for config in configs} == {("no", "007")}
    assert [configs[0].layer_norm, configs[0].learning_rate, configs[0].snr_gamma] == [True, "0.001", None]
    options = found[0].options
    assert [options["layer_norm"], options["learning_rate"], options["snr_gamma"]] == [True, 0.001, None]
    assert same_options({**options, "layer_norm": "yes", "resolution": 64, "name": "x", "activation": "None"}, options)
    assert not same_options({**options, "seed": 1}, options) and not same_options(None, options)


@pytest.mark.parametrize(
    "grid, named",
    [
        ("activation: [relu, {a: b}]", "activation.*mapping"),
        ("validation_prompt: [[a cat, ]]\n  lora: [[a, [b]]]", "lora, item 2"),
        ("validation_prompt: [[a cat, null]]", "validation_prompt, item 2.*empty"),
        ("seed:\n    -\n    - 1", "seed, item 1.*empty"),
        ("config: [a.yaml, b.yaml]", "config: ((?!did you mean).)*$"),
        ("learning_rate: [1.0e-3, 0.001]", "learning_rate=0.001"),
    ],
)
def test_refuses_values_that_are_not_text(tmp_path, models_dir, images_dir, grid, named):
    path = write_yaml(tmp_path / "grid.yaml", **required_options(models_dir, images_dir))
    path.write_text(path.read_text() + f"grid:\n  {grid}\n")
    with pytest.raises(UserError, match=named):
        read_grid(path, tmp_path / "out")


def test_an_error_on_the_output_folders_name_names_its_option(tmp_path, models_dir, images_dir):
    path = write_yaml(tmp_path / "grid.yaml", **required_options(models_dir, images_dir), grid={"seed": [1, 2]})
    with pytest.raises(UserError, match="--output_dir .*None"):
        read_grid(path, tmp_path / "None")


# --- Runs


@pytest.mark.parametrize(
    "jobs, gpu, given, expected",
    [
        (1, None, {}, {}),
        (2, None, {}, {"OMP_NUM_THREADS": "4", "OMP_THREAD_LIMIT": "4"}),
        (9, None, {}, {"OMP_NUM_THREADS": "1", "OMP_THREAD_LIMIT": "1"}),
        (2, None, {"OMP_NUM_THREADS": "3"}, {"OMP_NUM_THREADS": "3", "OMP_THREAD_LIMIT": "3"}),
        (2, "1", {}, {"CUDA_VISIBLE_DEVICES": "1"}),
    ],
)
def test_each_run_gets_its_share_of_the_machine(tmp_path, monkeypatch, jobs, gpu, given, expected):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    names = ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "CUDA_VISIBLE_DEVICES")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in {"WANDB_RUN_ID": "one", **given}.items():
        monkeypatch.setenv(name, value)
    environment = Runner(tmp_path / "grid", jobs).environment(gpu)
    assert {name: environment[name] for name in names if name in environment} == expected
    assert environment["WANDB_RUN_GROUP"] == "grid" and "WANDB_RUN_ID" not in environment


# --- The table and the page


def test_counts_losses_that_are_not_finite(tmp_path):
    losses = {"relu 0": math.nan, "relu 1": 0.5, "swish 0": 0.6}
    results = [make_result(name, val_loss=loss) for name, loss in losses.items()]
    for result in results:
        result.losses, result.val_losses = [(10, math.nan), (20, math.inf)], [(10, result.val_loss)]
    ranking = rank(results)
    paths = write_page(ranking, None, tmp_path, "$x^2 runs")
    assert all(path.stat().st_size for path in paths)
    headings, rows = build_table(ranking)
    losses = {row[1]: row[headings.index("validation loss")] for row in rows}
    assert losses["swish"] == "0.6000" and losses["relu"].startswith("0.5000, 1 ")


def test_runs_that_differ_only_in_the_seed_share_a_row():
    scores = {"relu 0": (0.9, 0.2), "relu 1": (1.0, 0.4), "swish 0": (0.95, 0.25), "swish 1": (0.97, 0.27)}
    results = [make_result(name, values) for name, values in scores.items()]
    results += [make_result("mish 0", problem="it crashed"), make_result("mish 1", (1, 0))]
    headings, rows = build_table(rank(results))
    assert headings[:4] == ["", "activation", "runs", "front"]
    # by the means; a group with a failed run comes last, whatever its other runs are like
    assert [row[:4] for row in rows] == [["1", "swish", "2", "yes"], ["2", "relu", "2", "no"], ["3", "mish", "2", ""]]
    spread = f"{statistics.fmean([0.2, 0.4]):.2f} ± {statistics.stdev([0.2, 0.4]):.2f}"
    assert rows[1][headings.index("style distance")] == spread and rows[2][-1] == "it crashed"


def test_values_that_look_alike_when_shortened_are_not_grouped():
    results = [make_result(f"{'x' * 60}{end} 0", val_loss=loss) for end, loss in (("a", 0.2), ("b", 0.4))]
    groups = group_runs(results)
    assert [len(group.results) for group in groups] == [1, 1] and len(groups[0].values["activation"]) == 40


# --- Images


def test_each_run_gets_its_own_name_in_the_prompts():
    prompts = ["a cat by ink", "a dog"]
    best = {"name": "ink", "previews": [{"prompt": prompt} for prompt in prompts]}
    other = {"name": "neon", "previews": [{"prompt": "a cat by neon"}, {"prompt": "a dog"}]}
    assert own_prompts(other, best, prompts) == ["a cat by neon", "a dog"]
    assert own_prompts({**other, "previews": [{"prompt": "a fish by neon"}]}, best, prompts) == prompts
    assert own_prompts({}, best, prompts) == own_prompts(other, {}, prompts) == prompts
    assert own_prompts(other, {}, ["a cat by [name]"]) == ["a cat by neon"]
