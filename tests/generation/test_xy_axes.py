"""The axes of an X/Y plot."""

import pytest

from hypernet.generation.xy_axes import parse_axis
from hypernet.utils.errors import UserError


@pytest.mark.parametrize(
    "words, values",
    [
        (["seed", "1-5"], (1, 2, 3, 4, 5)),
        (["seed", "1-10 (+3)"], (1, 4, 7, 10)),
        (["seed", "10-1(-3)", "4"], (10, 7, 4, 1)),
        (["steps", "0-10 [4]"], (0, 3, 6, 10)),
        (["steps", "10\u201312"], (10, 11, 12)),
        (["strength", "0,1", "0, 5"], (0, 1, 5)),
        (["strength", "0-1 [5]"], (0, 0.25, 0.5, 0.75, 1)),
        (["strength", "0-0.3 (+0.1)", "1, -0.5"], (0, 0.1, 0.2, 0.3, 1, -0.5)),
        (["guidance", "7", "1.5-3.5"], (7, 1.5, 2.5, 3.5)),
        (["prompt", "a, b", "1-5", "a, b"], ("a, b", "1-5")),
    ],
)
def test_parses_values(words, values):
    axis = parse_axis("--x", words)
    assert axis.kind == words[0] and axis.values == values and len(axis.labels) == len(values)
    assert all(type(value) is type(other) or isinstance(value, float) for value, other in zip(axis.values, values))


def test_labels_values():
    assert parse_axis("--x", ["strength", "0-1 [3]", "0.123"]).labels == (
        "strength 0",
        "strength 0.5",
        "strength 1",
        "strength 0.123",
    )
    assert parse_axis("--x", ["steps", "20"]).labels == ("20 steps",)
    assert parse_axis("--x", ["prompt", "a cat"]).labels == ("a cat",)


def test_orders_and_labels_checkpoints(tmp_path):
    for run in ("ink", "neon"):
        for step in (500, 2000, 10000):
            (tmp_path / run / "checkpoints" / f"step-{step}").mkdir(parents=True)
    (tmp_path / "neon" / "neon.pt").touch()
    steps = tmp_path / "neon" / "checkpoints"
    ordered = [str(steps / f"step-{step}") for step in (500, 2000, 10000)]
    last = str(tmp_path / "neon" / "neon.pt")
    for words in ([str(steps / "*")], sorted(ordered)):  # a pattern, and its expansion by a shell
        axis = parse_axis("--x", ["checkpoint", "none", *words, last])
        assert axis.values == (None, *ordered, last)
        assert axis.labels == ("none", "step 500", "step 2000", "step 10000", "neon")
    axis = parse_axis("--x", ["checkpoint", str(tmp_path / "*" / "checkpoints" / "step-500")])
    assert axis.labels == ("ink step 500", "neon step 500")


@pytest.mark.parametrize("pattern", ["{}/checkpoints/*", "{}/check*/step-[0-9]", "{}/*/*/"])
@pytest.mark.parametrize("run", ["style [v2]", "[a]", "x*y", "what?[!b]", "plain"])
def test_folders_in_patterns_are_literal(tmp_path, monkeypatch, run, pattern):
    for name in (run, "style v", "a", "xyz"):  # others, that the run's name would match as a pattern
        for step in ("step-1", "step-2"):
            (tmp_path / name / "checkpoints" / step).mkdir(parents=True)
    (tmp_path / run / "checkpoints" / "file").touch()
    end = "/" if pattern.endswith("/") else ""
    expected = [f"{run}/checkpoints/step-{step}{end}" for step in (1, 2)]
    expected += [] if end or "step" in pattern else [f"{run}/checkpoints/file"]
    monkeypatch.chdir(tmp_path)
    for above in ("", f"{tmp_path}/"):
        values = parse_axis("--x", ["checkpoint", above + pattern.format(run)]).values
        assert sorted(values) == sorted(above + path for path in expected)


@pytest.mark.parametrize("pattern", ["style [v2]*/*", "*/step-[1]", "*[v2]*/step*"])
def test_brackets_are_literal_if_nothing_matches_otherwise(tmp_path, pattern):
    (tmp_path / "style [v2]-b" / "step-[1]").mkdir(parents=True)
    assert parse_axis("--x", ["checkpoint", f"{tmp_path}/{pattern}"]).values == (f"{tmp_path}/style [v2]-b/step-[1]",)


def test_labels_names_that_are_not_unicode():
    (label,) = parse_axis("--x", ["checkpoint", "in\udcffk.pt"]).labels
    assert label == "in?k"


@pytest.mark.parametrize(
    "words, named",
    [
        (["hue", "1"], "--x hue"),
        (["seed"], "--x seed"),
        (["seed", "1.5"], "--x seed 1.5"),
        (["strength", "high"], "--x strength high"),
        (["strength", "0-1", "[5]"], "--x strength [5]"),
        (["strength", "0,5", "1"], "--x strength 0,5"),
        (["guidance", "0,05"], "--x guidance 0,05"),
        (["strength", "1,5-0,5 [3]"], "--x strength 5-0"),
        (["seed", "5-1"], "--x seed 5-1"),
        (["seed", "1-5 (+0)"], "--x seed 1-5 (+0)"),
        (["seed", "1-1000000"], "--x seed 1-1000000"),
        (["guidance", "inf"], "--x guidance inf"),
        (["checkpoint", "nothing/here/*"], "--x checkpoint nothing/here/*"),
    ],
)
def test_refuses_malformed_axes(words, named):
    with pytest.raises(UserError) as caught:
        parse_axis("--x", words)
    assert str(caught.value).startswith(f"{named}: ") and "\n" not in str(caught.value)
