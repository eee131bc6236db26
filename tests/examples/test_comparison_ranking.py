"""examples/comparison: which runs can be compared, which are on the front, and how the page shows it."""

import csv
import json
import math
import random

import pytest

from examples.comparison.curves import draw_curves
from examples.comparison.groups import Standing
from examples.comparison.page import write_page
from examples.comparison.ranking import rank
from examples.comparison.results import read_result
from examples.comparison.runs import Run
from examples.comparison.scatter import draw_scatter
from examples.comparison.table import build_table
from hypernet.utils.errors import UserError
from tests.helpers.grids import make_result

IMAGES = {name: frozenset({name * 64}) for name in "ab"}


def standings(results) -> dict[str, str]:
    """Return the standing of each group by the name of its first run, in the order of the page."""
    return {group.results[0].run.name: group.standing.name for group in rank(results).groups}


# --- The front


def test_ruined_useless_and_failed_runs_are_not_on_the_front():
    results = [
        make_result("useless 0", (1.2, 1.0), val_loss=0.9),
        make_result("ruined 0", (0.3, 0.05), val_loss=0.1),
        make_result("old 0", val_loss=0.2),
        make_result("failed 0", (1.0, 0.0), problem="it crashed"),
        make_result("behind 0", (0.9, 0.5), val_loss=0.3),
        make_result("near 0", (0.85, 0.3), val_loss=0.5),
        make_result("faithful 0", (0.95, 0.4), val_loss=0.6),
        make_result("older 0", val_loss=0.1),
    ]
    expected = {"near 0": "FRONT", "faithful 0": "FRONT", "behind 0": "BEHIND", "useless 0": "BEHIND"}
    expected |= {"ruined 0": "BELOW_LIMIT", "old 0": "UNMEASURED", "older 0": "UNMEASURED", "failed 0": "FAILED"}
    assert list(standings(results).items()) == list(expected.items())


def test_the_front_is_what_no_run_dominates_and_every_part_is_ordered_by_score():
    generator = random.Random(0)
    places = {f"run{i} 0": (generator.uniform(0.5, 1.1), generator.uniform(0.1, 1.1)) for i in range(60)}
    groups = rank([make_result(name, place) for name, place in places.items()]).groups
    eligible = {name: (min(f, 1), d) for name, (f, d) in places.items() if f >= 0.8 and d < 1}
    front = {
        name
        for name, (f, d) in eligible.items()
        if all((f2 < f or d2 > d) for other, (f2, d2) in eligible.items() if other != name)
    }
    assert {g.results[0].run.name for g in groups if g.standing == Standing.FRONT} == front and len(front) > 2
    keys = [(group.standing, -group.results[0].score) for group in groups]
    assert keys == sorted(keys)


def test_equal_runs_share_the_front():
    assert set(standings([make_result(f"{name} 0", (0.9, 0.5)) for name in "abc"]).values()) == {"FRONT"}


def test_the_strictest_limit_counts_for_all():
    results = [
        make_result("a 0", (0.85, 0.3), options={"min_prompt_fidelity": 0.9}),
        make_result("b 0", (0.95, 0.6), options={"min_prompt_fidelity": 0.5}),
    ]
    assert standings(results) == {"b 0": "FRONT", "a 0": "BELOW_LIMIT"}


# --- Validation sets


def test_runs_with_other_validation_images_are_not_ranked_against_each_other():
    results = [
        make_result("a1 0", (0.9, 0.8), base=0.6, validation_images=IMAGES["a"]),
        make_result("b1 0", (0.95, 0.3), base=0.8, validation_images=IMAGES["b"]),
        make_result("a2 0", (0.85, 0.9), base=0.6, validation_images=IMAGES["a"]),
        make_result("b2 0", (0.95, 0.4), base=0.8, validation_images=IMAGES["b"]),
    ]
    ranking = rank(results)
    assert standings(results) == {"a1 0": "FRONT", "a2 0": "BEHIND", "b1 0": "FRONT", "b2 0": "BEHIND"}
    assert [result.run.name for result in ranking.results] == ["a1 0", "b1 0", "a2 0", "b2 0"]  # for the previews
    headings, rows = build_table(ranking)
    assert [row[headings.index("validation set")] for row in rows] == ["1", "1", "2", "2"]
    assert not any(ranking.is_alone(group) for group in ranking.groups)


@pytest.mark.parametrize(
    "base, images, sets",
    [
        (0.602, "a", 1),  # another precision or device
        (0.63, "a", 2),  # other captions or another base model
        (0.6, "b", 2),
    ],
)
def test_images_and_base_loss_tell_validation_sets_apart(base, images, sets):
    first = make_result("x 0", (0.9, 0.5), base=0.6, validation_images=IMAGES["a"])
    second = make_result("x 1", (0.9, 0.5), base=base, validation_images=IMAGES[images])
    ranking = rank([first, second])
    assert len(ranking.sets) == len(ranking.groups) == sets  # runs of several sets are never averaged


def test_without_validation_images_the_training_images_tell_sets_apart():
    places = {"a 0": "ink", "b 0": "emoji", "c 0": "ink"}
    results = [make_result(name, (0.9, 0.5), options={"train_data_dir": place}) for name, place in places.items()]
    ranking = rank([*results, make_result("d 0", problem="it crashed before it measured anything")])
    assert [result.validation_set and result.validation_set.number for result in ranking.results] == [1, 1, 2, None]
    assert [ranking.is_alone(group) for group in ranking.groups] == [False, False, True, False]


# --- The page


def test_the_plots_show_the_front_of_each_validation_set_and_its_base_model():
    places = {"a": (0.95, 0.4), "b": (0.85, 0.3), "c": (-3, 9), "d": None}
    results = [make_result(f"{n} 0", p, base=0.6, validation_images=IMAGES["a"]) for n, p in places.items()]
    results.append(make_result("e 0", (0.9, 0.5), base=0.8, validation_images=IMAGES["b"]))
    for result in results:
        result.val_loss, result.val_losses = 0.5, [(0, result.val_loss_base), (10, 0.5)]
    ranking = rank(results)
    shared, alone = draw_scatter(ranking).axes
    (front,) = [line for line in shared.lines if line.get_drawstyle() == "steps-post"]
    assert list(zip(*front.get_data()))[1:-1] == [(0.3, 0.85), (0.4, 0.95)]
    assert not [line for line in alone.lines if line.get_drawstyle() == "steps-post"]
    assert {"1", "2", "3"} <= {text.get_text() for text in shared.texts} and "4" in {t.get_text() for t in alone.texts}
    left, right = shared.get_xlim()
    bottom, top = shared.get_ylim()
    for line in shared.lines:  # a run far beyond the axes stays in view, and does not squeeze the others
        if line is not front:
            assert all(left <= x <= right for x in line.get_xdata()) and all(
                bottom <= y <= top for y in line.get_ydata()
            )
    assert right - left < 2
    losses = draw_curves(ranking).axes[0]
    dashed = [line.get_ydata()[0] for line in losses.lines if line.get_linestyle() == "--"]
    assert dashed == [0.6, 0.8]


@pytest.mark.parametrize("count", [1, 4, 50])
def test_a_page_has_every_run_in_the_same_order(tmp_path, count):
    results = [make_result(f"run{i} 0", (1 - 0.01 * i, 0.9 - 0.01 * i)) for i in range(count)]
    results.append(make_result("old 0", val_loss=0.5))
    ranking = rank(results)
    html, png, table = write_page(ranking, None, tmp_path, "title")
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == [group.results[0].run.name for group in ranking.groups]
    assert [row["standing"] for row in rows] == [group.standing.name.lower() for group in ranking.groups]
    assert [row["score"] for row in rows[:-1]] == [str(group.results[0].score) for group in ranking.groups[:-1]]
    text = html.read_text()
    places = [text.index(f">{row['activation']}<") for row in rows]
    assert places == sorted(places) and text.count('src="data:image/png') == 2 and png.stat().st_size


def test_without_the_figures_runs_keep_their_order_and_the_page_has_no_scatter_plot(tmp_path):
    results = [make_result(f"{name} 0", val_loss=loss) for name, loss in (("b", 0.3), ("a", 0.1), ("c", math.nan))]
    assert list(standings(results)) == ["b 0", "a 0", "c 0"]
    html, *_ = write_page(rank(results), None, tmp_path, "title")
    assert html.read_text().count('src="data:image/png') == 1


# --- Reading runs


def write_run(folder, **files) -> Run:
    """Write a run folder: run.json, and `files` by their names without suffix."""
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"seed": 1, "name": "x"}))
    for name, content in files.items():
        suffix, text = ("csv", content) if isinstance(content, str) else ("json", json.dumps(content))
        (folder / f"{name}.{suffix}").write_text(text)
    return Run("x", folder, {})


def test_reads_the_figures_of_the_exported_hypernetwork_or_the_last_ones(tmp_path):
    scores = "step,prompt_fidelity,style_distance,score\n0,1.0,1.0,0.0\n10,0.5,0.25,0.375\n"
    losses = "step,val_loss,val_loss_base\n0,0.6,0.6\n10,0.4,0.6\n"
    files = {"scores": scores, "validation_loss": losses, "held_out": {"ab" * 32: "1.png"}}
    figures = {"prompt_fidelity": 0.9, "style_distance": 0.4, "score": 0.54}
    cases = {
        "finished": (files | {"result": {"step": 5, "val_loss": 0.45, **figures}}, (0.9, 0.4, 0.54, 0.45)),
        "stopped": (files, (0.5, 0.25, 0.375, 0.4)),
        "old": ({"result": {"step": 5, "val_loss": 0.45}}, (None, None, None, 0.45)),
        "unmeasurable": ({"result": {"step": 5, **dict.fromkeys(figures)}}, (None, None, None, None)),
    }
    for name, (content, expected) in cases.items():
        result = read_result(write_run(tmp_path / name, **content), None)
        assert (result.prompt_fidelity, result.style_distance, result.score, result.val_loss) == expected, name
        assert result.validation_images == frozenset(content.get("held_out", ())), name
        assert result.has_scores == (expected[0] is not None) and bool(result.problem) == ("result" not in content)


def test_a_damaged_result_is_named(tmp_path):
    run = write_run(tmp_path / "x")
    (run.folder / "result.json").write_text("{")
    with pytest.raises(UserError, match=r"result\.json"):
        read_result(run, None)
