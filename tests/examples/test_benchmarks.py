"""What the benchmarks count on the real shapes, against the targets; and one short run of those that measure time."""

import json
import math
import os
import random
from pathlib import Path

import pytest
import torch

from examples.benchmarks import (
    checkpoint_cost,
    damaged_files,
    inference,
    kill_and_resume,
    presets,
    scoring_cost,
    short_runs,
    step,
    training_run,
    ways,
)
from examples.benchmarks.damage.kinds import KINDS, Kind
from examples.benchmarks.damage.samples import make_samples
from hypernet.cli.script import ScriptParser
from hypernet.cli.training_options import parse_config
from hypernet.training.memory_peaks import memory_peaks
from hypernet.utils.errors import UserError
from tests.helpers.scripts import REPO, one_line_error
from tests.helpers.tiny_models import tiny_unet


def parse(model, *flags):
    return step.parse_arguments(["--model", model, "--count_only", *flags])


# --- FLOPs


@pytest.mark.parametrize("model, floor, linear, activated", [("sd15", 1726, 1.06, 1.17), ("sdxl", 14222, 1.11, 1.39)])
def test_step_is_near_the_floor(model, floor, linear, activated):
    names = ("floor", "ours, linear", "ours, swish")
    flops = {way: step.count_flops(parse(model), "training", way) for way in names}
    assert round(flops["floor"] / 1e9) == floor
    ratio = {way: flops[way] / flops["floor"] for way in names}
    assert 1 < ratio["ours, linear"] <= linear < ratio["ours, swish"] <= activated


def test_larger_batch_is_nearer_to_the_floor():
    args = parse("sd15", "--batch_size", "4")
    floor, linear = (step.count_flops(args, "training", way) for way in ("floor", "ours, linear"))
    assert floor < linear <= 1.03 * floor


def test_fused_hypernetwork_costs_nothing():
    none, fused, attached = (step.count_flops(parse("sd15"), "sampling", way) for way in ("none", "fused", "attached"))
    assert none == fused < attached < 1.1 * none


# --- Memory


def test_prior_preservation_adds_half_a_batch_and_its_targets():
    prior, linear = (
        step.count_flops(parse("sd15", "--batch_size=4"), "training", f"ours, {way}") for way in ("prior", "linear")
    )
    half = step.count_flops(parse("sd15", "--batch_size=2"), "training", "ours, linear")
    target = step.count_flops(parse("sd15"), "sampling", "none")  # a batch of two
    assert prior == pytest.approx(linear + half + target, rel=0.01)


@pytest.mark.parametrize("start, lowest", [(1e-3, 1e-3), (1e-4, 1e-2), (3e-2, 1e-6), (1e-3, 1.0)])
def test_the_best_learning_rate_of_a_grid_is_found(start, lowest):
    tried = []

    def loss_at(rate):
        tried.append(rate)
        return abs(math.log(rate / lowest))

    best, loss = short_runs.find_best(loss_at, start)
    assert (best, loss) == min(
        ((rate, abs(math.log(rate / lowest))) for rate in short_runs.GRID), key=lambda pair: pair[1]
    )
    assert len(tried) == len(set(tried))


@pytest.mark.parametrize("preset, limits", [("6gb", (1.68, 2.47)), ("8gb", (2.13, 2.92))])
def test_small_cards_suffice(preset, limits):
    peaks = {name: size / 2**30 for name, size in vars(memory_peaks(presets.needs_of(preset))).items()}
    assert peaks.pop("encoding") < 3.1
    for name, limit in zip(("step", "preview"), limits, strict=True):
        assert 0.95 * limit < peaks.pop(name) < limit
    assert not peaks


def test_unknown_preset_is_refused():
    with pytest.raises(UserError, match="foo"):
        presets.main(["6gb", "foo"])


def test_sizes_of_files_and_frozen_unets(capsys):
    assert round(inference.file_sizes()["1,2,1", torch.float32] / 2**20, 1) == 83.7
    assert round(inference.unet_sizes()["sdxl", "nf4"] / 2**30, 2) == 1.83
    inference.main(["sizes"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert any("1,2,1 " in line and " 83.7 " in line for line in lines)
    assert any("sdxl" in line and "nf4" in line and " 1.83 " in line for line in lines)


# --- Whole scripts


def test_tables_of_a_step(tmp_path, monkeypatch, capsys):
    config = dict(tiny_unet().config)  # of a model that is quicker than the quickstart's
    monkeypatch.setattr(ways.UNet2DConditionModel, "load_config", lambda *_, **__: config)
    table, names = tmp_path / "table.json", ["floor", "webui", "lora"]
    step.main(["--rounds=1", "--size=64", f"--json={table}", "--ways", *names])
    rows = json.loads(table.read_text())
    training, sampling = rows["training"], rows["sampling"]
    assert [row["way"] for row in training] == names
    assert [row["way"] for row in sampling] == list(ways.SAMPLING)
    assert len(capsys.readouterr().out.splitlines()) == len(training) + len(sampling) + 2
    assert training[0]["time_ratio"] == training[0]["flops_ratio"] == sampling[0]["time_ratio"] == 1
    assert training[1]["flops_ratio"] > training[2]["flops_ratio"] > 1  # at 64 pixels a LoRA's products show
    for row in training + sampling:
        assert row["images_per_second"] > 0 and row["memory_counted"] > 0 and row["memory_measured"] is None


def test_size_that_cannot_work_is_one_line():
    assert "--size 100" in one_line_error(step.main, "--size", "100")


def test_whole_runs_are_timed(images_dir):
    flags = ["--max_train_steps=2", "--resolution=64", f"--train_data_dir={images_dir}"]
    args = training_run.parse_arguments(flags)
    lora_seconds, _ = training_run.time_run(training_run.train_lora, args)
    our_seconds, overhead = training_run.time_run(training_run.train_ours, args)
    assert min(lora_seconds, our_seconds) > 0 and 0 < overhead < 1


@pytest.mark.usefixtures("scored")
def test_scores_cost_13_images_beside_those_that_a_preview_costs(models_dir, images_dir, monkeypatch):
    monkeypatch.chdir(REPO)
    flags = [f"--pretrained_model_name_or_path={models_dir / 'epsilon'}", f"--train_data_dir={images_dir}"]
    flags += ["--resolution=64", "--validation_split=0.3", "--validation_inference_steps=3"]
    meter = scoring_cost.measure(flags)
    counts = {part: images / meter.results[part] for part, images in meter.images.items()}
    assert counts == {"sampling": 2 * 3, "scoring": 13}  # with guidance; 4 prompts at 3 noise levels, and the style


def test_the_share_of_checkpoints_is_measured(models_dir, images_dir, monkeypatch):
    monkeypatch.setattr(checkpoint_cost, "STEPS", 2)
    monkeypatch.setattr(checkpoint_cost, "CHECKPOINTING_STEPS", 1)
    flags = [f"--pretrained_model_name_or_path={models_dir / 'epsilon'}", f"--train_data_dir={images_dir}"]
    assert 0 < checkpoint_cost.measure_share([*flags, "--resolution=64"]) < 1


def test_a_further_style_has_a_name_and_a_folder():
    parser = ScriptParser("")
    short_runs.add_style_options(parser, ["openmoji"])
    assert parser.parse_args(["--style_dir", "ink=my/ink"]).style_dir == [("ink", Path("my/ink"))]
    for incomplete in ("ink", "ink=", "=my/ink"):
        with pytest.raises(UserError, match="--style_dir"):
            parser.parse_args(["--style_dir", incomplete])


def test_prints_a_line_per_round_and_two_medians(monkeypatch, capsys):
    results = {training_run.train_lora: (8.0, None), training_run.train_ours: (2.0, 0.25)}
    monkeypatch.setattr(training_run, "time_run", lambda train, args: results[train])
    training_run.main(["--rounds=2", "--max_train_steps=16"])
    *rounds, ratio, overhead = capsys.readouterr().out.splitlines()
    assert len(rounds) == 2 and all("4.00" in line and "25.0%" in line for line in rounds)
    assert "4.00" in ratio and "25.0%" in overhead


# --- Kills


def test_options_that_are_drawn_are_valid_and_varied():
    drawn = [kill_and_resume.draw_options(random.Random(seed)) for seed in range(60)]
    required = ["--pretrained_model_name_or_path=m", "--train_data_dir=d"]
    configs = [parse_config([*required, *flags, *later]) for flags, later, _ in drawn]
    assert {config.optimizer for config in configs} == set(kill_and_resume.OPTIMIZERS)
    assert len({config.ema_decay for config in configs}) == len({config.aspect_buckets for config in configs}) == 2
    assert 0 < sum(bool(launch) for *_, launch in drawn) < sum(bool(later) for _, later, _ in drawn) < len(drawn)


# --- Damaged files


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged") / "samples"
    make_samples(folder, ["lora", "ckpt"])
    return folder


def make_case(kind, number, samples, folder):
    (folder / "case").mkdir(parents=True)
    marker = folder / "code ran"
    KINDS[kind].make(random.Random(f"5/{kind}/{number}"), samples, folder / "case", marker)
    return folder / "case", marker


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "run"])
def test_damaged_files_do_no_harm(samples, tmp_path, monkeypatch, kind):
    for number in range(4):
        case, marker = make_case(kind, number, samples, tmp_path / str(number))
        monkeypatch.chdir(case)
        outcome = damaged_files.open_case(kind, case, marker)
        assert set(outcome.results) <= set(damaged_files.HARMLESS), (number, outcome)


def test_the_same_seed_makes_the_same_files(samples, tmp_path):
    def content(number, copy):
        case, marker = make_case("folder", number, samples, tmp_path / copy / str(number))
        files = sorted(path for path in case.rglob("*") if path.is_file())
        return [path.read_bytes().replace(str(marker).encode(), b"marker") for path in files]

    for number in range(5):
        assert content(number, "a") == content(number, "b")


def test_harm_is_noticed(tmp_path, monkeypatch):
    """Each kind of harm, from a way to open files that does it."""
    marker = tmp_path / "code ran"
    (tmp_path / "case").mkdir()

    def fail():
        raise KeyError("x")

    def refuse(*lines):
        for line in lines:
            print(f"error: {line}")
        raise SystemExit(2)

    harms = {"traceback": fail, "ran code": marker.touch, "over 1 GB": lambda: bytearray(2**30 + 2**27)}
    harms |= {"bad output": lambda: os.write(2, b"\x1b[31m")}
    harms |= {"refused": lambda: refuse("--option: it is wrong"), "opened": lambda: None}
    for harm, open_it in [*harms.items(), ("traceback", lambda: refuse("a", "b")), ("traceback", refuse)]:
        monkeypatch.setitem(KINDS, "test", Kind(lambda *_: None, lambda folder, open_it=open_it: [open_it]))
        assert damaged_files.open_case("test", tmp_path / "case", marker).results == [harm]
    monkeypatch.setattr(damaged_files, "SECONDS", -1)
    assert damaged_files.open_case("test", tmp_path / "case", marker).results == ["traceback", "over 10 s"]


def test_an_unknown_kind_is_one_line():
    assert "--kinds x" in one_line_error(damaged_files.main, "--kinds", "x")
