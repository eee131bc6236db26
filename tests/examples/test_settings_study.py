"""examples/benchmarks/settings_study: the runs of the study, and what becomes of their figures."""

import os
import random
import re
import shutil
import statistics

import numpy as np
import pytest
from PIL import Image

import hypernet
from examples.benchmarks import judging
from examples.benchmarks.settings_study import agreement, measure, page, plots, rows, run
from examples.benchmarks.settings_study.rows import Row
from examples.benchmarks.settings_study.settings import (
    BASE,
    BASELINE,
    BASELINE_SEEDS,
    HIGH,
    MODEL,
    SECTIONS,
    SEEDS,
    STYLES,
    StudyRun,
    setting_label,
    unique_settings,
)
from examples.quickstart.tools import scenes, sets
from hypernet.cli.training_options import options_to_flags, parse_config
from hypernet.utils.errors import UserError

IMAGES = MODEL.with_name("images")

# --- Runs


def test_every_setting_has_a_run_per_seed(tmp_path):
    runs = run.list_runs(tmp_path, STYLES[:1], list(SECTIONS), [*SEEDS, *BASELINE_SEEDS])
    settings = unique_settings()
    assert len({setting_label(setting) for setting in settings}) == len(settings)  # labels tell settings apart
    assert len({each.folder for each in runs}) == len(runs) == 3 * len(settings) + len(BASELINE_SEEDS)
    for setting in settings:
        seeds = [each.seed for each in runs if each.setting == setting]
        assert seeds == [*SEEDS, *(BASELINE_SEEDS if setting == BASELINE else ())]
    for each in runs:
        config = parse_config(options_to_flags(each.options()))
        steps = each.setting.get("max_train_steps", BASE["max_train_steps"])
        assert config.max_train_steps == config.validation_loss_steps == steps and not config.guard
        # apart from what the setting varies, the options are the baseline's
        varied = {*each.setting, "max_train_steps"}
        assert all(each.options()[name] == value for name, value in BASE.items() if name not in varied)


def test_an_optimizer_starts_afresh_by_continuing_from_the_file_alone(tmp_path):
    each = StudyRun(tmp_path, "openmoji", {"fresh_optimizer_every": 50}, seed=2)
    parts = [each.options(part) for part in range(len(each.ends))]
    assert [part["max_train_steps"] for part in parts] == [50, 100, 150]
    assert len({part["output_dir"] for part in parts}) == len({part["seed"] for part in parts}) == 3
    assert parts[-1] == each.options() and parts[-1]["output_dir"] == str(each.folder)
    sources = [os.path.join(part["output_dir"], "openmoji.pt") for part in parts]
    assert [part.get("init_from") for part in parts] == [None, *sources[:-1]]


def test_settings_csv_has_runs_of_the_study_once(tmp_path):
    found = rows.read_rows()
    assert len({row.key for row in found}) == len(found)
    assert {row.model for row in found} <= {run.identify_model()}
    expected = run.list_runs(tmp_path, STYLES[:1], list(SECTIONS), [*SEEDS, *BASELINE_SEEDS])
    keys = {Row("", each.style, each.setting, each.seed, {}).key for each in expected}
    assert keys >= {row.key for row in found if row.style == STYLES[0]}


@pytest.fixture
def table(tmp_path, monkeypatch):
    """An empty settings.csv of a model "new"."""
    monkeypatch.setattr(rows, "TABLE", tmp_path / "settings.csv")
    monkeypatch.setattr(run, "identify_model", lambda: "new")


def test_rows_are_read_as_written(table):
    written = [
        Row("new", "openmoji", HIGH, 1, {"val_loss": 0.5, "file_bytes": 9.0}),
        Row("new", "openmoji", BASELINE, 0, {"subject_share": 0.25}),
    ]
    assert rows.read_rows() == []
    rows.write_rows(written)
    assert sorted(rows.read_rows(), key=lambda row: row.seed) == written[::-1]


def test_only_missing_runs_are_measured_and_failed_ones_left_out(table, tmp_path, monkeypatch, capsys):
    runs = [StudyRun(tmp_path, "openmoji", BASELINE, seed) for seed in SEEDS]
    rows.write_rows([Row("new", "openmoji", BASELINE, 0, {"val_loss": 0.1})])

    def measure_all(missing, jobs):
        yield missing[0], UserError("it holds another run")
        yield missing[1], {"val_loss": 0.5}

    monkeypatch.setattr(run, "measure_all", measure_all)
    run.complete_table(runs, jobs=2)
    assert [(row.seed, row.figures) for row in rows.read_rows()] == [(0, {"val_loss": 0.1}), (2, {"val_loss": 0.5})]
    assert "it holds another run" in capsys.readouterr().out


def test_runs_of_another_model_are_not_mixed_in(table, tmp_path):
    rows.write_rows([Row("old", "openmoji", BASELINE, 0, {})])
    with pytest.raises(UserError, match=r"settings\.csv"):
        run.complete_table([StudyRun(tmp_path, "openmoji", BASELINE, 1)], jobs=1)


def copy_repo_images(folder, numbers):
    folder.mkdir(parents=True)
    for number in numbers:
        for path in IMAGES.glob(f"{number:02d}.*"):
            shutil.copy(path, folder)


def test_measures_a_run_with_a_fresh_optimizer(tmp_path, monkeypatch):
    copy_repo_images(tmp_path / "data" / "mine" / "images", range(4))
    copy_repo_images(tmp_path / "data" / "mine" / "held_out", range(4, 6))
    setting = {"fresh_optimizer_every": 1, "max_train_steps": 2, "train_batch_size": 1}
    setting |= {"validation_prompt": ["a cat"], "validation_inference_steps": 1}
    each = StudyRun(tmp_path, "mine", setting, seed=0)
    images = sorted((tmp_path / "data" / "mine" / "images").glob("*.png"))
    each.train_images.write_text("".join(f"{path}\n" for path in images))
    monkeypatch.setattr(measure, "SAMPLES", 2)
    for module in (measure, judging):
        monkeypatch.setattr(module, "SAMPLING_STEPS", 1)
    figures = measure.measure_run(each)
    assert {"val_loss", "val_loss_base", "subject_share", "file_bytes"} <= figures.keys()
    assert {"sample_style_distance", "sample_prompt_fidelity"} <= figures.keys()
    assert "style_share" not in figures  # the classifier does not know the hand
    assert hypernet.load(each.folder).config.step == 2
    assert figures["file_bytes"] == (each.folder / "mine.pt").stat().st_size
    assert Image.open(f"{each.folder}.png").height < 2 * 128 + 5


# --- Data


@pytest.fixture
def plain_hand(monkeypatch):
    """A hand that shows every subject as a colored square, in place of an artist's emoji."""

    def render(subject, hand):
        return Image.new("RGBA", (64, 64), (*random.Random(subject).randbytes(3), 255))

    for module in (scenes, run):
        monkeypatch.setattr(module, "find", lambda subject, hand: subject)
    monkeypatch.setattr(scenes, "render", render)


def subjects_of(paths):
    captions = [path.with_suffix(".txt").read_text() for path in paths]
    return {re.sub(r"^(an? )?((small|big) )?", "", text.partition(" on ")[0]) for text in captions}


def test_validation_images_show_other_subjects(plain_hand, tmp_path):
    run.write_data(tmp_path, "openmoji", None)
    lists = {name: (tmp_path / f"train_{name}.txt").read_text().splitlines() for name in (8, 32, "all")}
    assert {name: len(paths) for name, paths in lists.items()} == {8: 8, 32: 32, "all": len(sets.SUBJECTS) - 8}
    assert lists["all"][:32] == lists[32] and lists[32][:8] == lists[8]
    held_out = sorted((tmp_path / "held_out").glob("*.png"))
    assert len(held_out) == 8 and not subjects_of(held_out) & subjects_of((tmp_path / "images").glob("*.png"))


def test_a_folder_of_images_is_a_style(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    for number in range(44):
        Image.new("RGB", (8, 8)).save(mine / f"{number:02d}.png")
        (mine / f"{number:02d}.txt").write_text("a cat")
    run.write_data(tmp_path / "data", "ink", mine)
    held_out, images = (
        {path.name for path in (tmp_path / "data" / name).glob("*.png")} for name in ("held_out", "images")
    )
    assert len(held_out) == 8 and len(images) == 36 and not held_out & images
    for path in mine.glob("2*.*"):
        path.unlink()
    with pytest.raises(UserError, match="--style_dir ink"):
        run.write_data(tmp_path / "few", "ink", mine)


def test_a_style_without_a_folder_is_refused():
    with pytest.raises(UserError, match="--style_dir ink"):
        run.parse_arguments(["--style_dir", "ink"])


def test_emoji_that_cannot_be_fetched_are_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "")  # without npm
    monkeypatch.setattr(sets, "CACHE_DIR", tmp_path / "sets")
    sets.load_set.cache_clear()
    sets.find.cache_clear()
    with pytest.raises(UserError, match="openmoji"):
        run.write_data(tmp_path, "openmoji", None)
    assert not (tmp_path / "done").exists()


# --- Tables, plots and correlations


def make_row(setting, seed, loss, style="openmoji", **figures):
    figures = {"val_loss": loss, "val_loss_base": 1.0, "subject_share": 0.5, "file_bytes": 2000.0, **figures}
    return Row("new", style, setting, seed, figures)


def test_tables_mark_differences_beyond_those_between_seeds(monkeypatch):
    near, far = {"activation": "relu"}, {"activation": "elu"}
    monkeypatch.setitem(SECTIONS, "activation", [BASELINE, near, far])
    found = [make_row(BASELINE, seed, loss) for seed, loss in enumerate((0.4, 0.6))]
    # the variance of 0.4 and 0.6 is 0.02, that of the others 0: pooled over 1 + 2 + 2 degrees of freedom, 0.004, so that
    # two errors of a difference are 0.115 for three runs beside two
    found += [make_row(near, seed, 0.61) for seed in range(3)] + [make_row(far, seed, 0.62) for seed in range(3)]
    found += [make_row(BASELINE, seed, 0.1, style="other") for seed in range(3)]  # a style without this section
    lines = page.build_table(found, "activation").splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [[row[0], row[1], row[-2], row[-1]] for row in cells] == [
        ["baseline", f"0.500 ± {statistics.stdev([0.4, 0.6]):.3f}", "50% ± 0%", "2"],
        ["activation relu (3 seeds)", "0.610", "50%", "2"],
        ["activation elu (3 seeds)", "**0.620**", "50%", "2"],
    ]


def test_the_page_keeps_everything_but_its_tables(tmp_path, monkeypatch, capsys):
    target = tmp_path / "settings.md"
    target.write_text("Before.\n<!-- widths -->\nold\n<!-- end -->\nAfter <!-- end -->")
    monkeypatch.setattr(page, "PAGE", target)
    monkeypatch.setattr(page, "PLOTS", {tmp_path / "plot.png": plots.draw_settings})
    page.write_page([make_row(setting, seed, 0.5) for setting in SECTIONS["widths"] for seed in SEEDS])
    before, table, after = target.read_text().partition("<!-- widths -->\n| setting")
    assert before == "Before.\n" and table and after.endswith("|\n<!-- end -->\nAfter <!-- end -->")
    assert "old" not in after and (tmp_path / "plot.png").is_file()


def test_plots_show_every_run():
    found = [
        make_row(setting, seed, 0.5, style_share=0.2, style_distance=0.3)
        for setting in (BASELINE, HIGH)
        for seed in SEEDS
    ]
    found += [make_row(BASELINE, 0, 5.0, style="other")]  # ten times the scale of the plot, and without some figures
    panels = plots.draw_settings(found).axes
    assert [text.get_text() for text in panels[0].get_yticklabels()] == ["baseline", setting_label(HIGH)]
    offsets = {panel.get_title(): [len(dots.get_offsets()) for dots in panel.collections] for panel in panels}
    assert offsets["style distance"] == [6] and offsets["prompt fidelity"] == []
    assert max(dots.get_offsets()[:, 0].max() for dots in panels[0].collections) == 2
    found += [make_row({"learning_rate": "1e-2:50, 1e-3:150"}, 0, 0.5)]  # a schedule, which has no place on the axis
    (line, other) = plots.draw_learning_rates(found).axes[0].lines
    assert list(line.get_xdata()) == [1e-3, 2e-3] and list(other.get_ydata()) == [2]
    assert [len(dots.get_offsets()) for dots in plots.draw_agreement(found).axes[0].collections] == [6, 0]


def test_rank_correlation_of_known_cases():
    values = [3.0, 1.0, 4.0, 1.5, 9.0]
    assert agreement.spearman(values, [value**3 for value in values]) == pytest.approx(1)
    assert agreement.spearman(values, [-value for value in values]) == pytest.approx(-1)
    # ranks 1, 2, 3, 4 and, with a tie, 1, 3, 2, 4 -> 1, 2.5, 2.5, 4
    expected = np.corrcoef([1, 2, 3, 4], [1, 2.5, 2.5, 4])[0, 1]
    assert agreement.spearman([1, 2, 3, 4], [10, 30, 30, 70]) == pytest.approx(expected)
    assert np.isnan(agreement.spearman(values, [2.0] * 5))


def test_ruined_and_good_runs_below_a_limit_are_counted():
    shares = {0.45: 0.4, 0.55: 0.49, 0.65: 0.9, 0.95: 0.7, 0.3: 0.6}  # by prompt fidelity; the last is neither
    found = [
        make_row(BASELINE, seed, 1.0, prompt_fidelity=fidelity, subject_share=share)
        for seed, (fidelity, share) in enumerate(shares.items())
    ]
    lines = [line.strip("| ").split(" | ") for line in agreement.build_limit_table(found).splitlines()[2:]]
    assert lines == [
        ["0.4", "0 of 2", "0 of 2"],
        ["0.5", "1 of 2", "0 of 2"],
        ["0.6", "2 of 2", "0 of 2"],
        ["0.7", "2 of 2", "1 of 2"],
    ]


def test_agreement_is_counted_over_runs_with_both_figures():
    found = [
        make_row(BASELINE, seed, seed / 10, prompt_fidelity=seed / 12, subject_share=seed**2 / 144)
        for seed in range(12)
    ]
    found += [make_row(BASELINE, 12, float("nan"), subject_share=1.0)]
    found += [make_row(HIGH, seed, 1.0, style="other") for seed in range(2)]  # too few for a line of its own
    lines = [line.strip("|").split("|") for line in agreement.build_agreement_table(found).splitlines()[2:]]
    cells = {name.strip(): [cell.strip() for cell in rest] for name, *rest in lines}
    assert cells["openmoji"] == ["", "1.00 (12)", "", "", "-1.00 (12)", ""]
    assert "other" not in cells and cells["all runs"][1] == "1.00 (12)"
    assert cells["resuming"] == cells["all runs"]  # it has the baseline and HIGH
