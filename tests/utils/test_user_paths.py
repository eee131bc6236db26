"""Names that no file system or program accepts, and `~` in paths."""

from pathlib import Path

import pytest

from hypernet.utils.user_paths import LONGEST_FILE_NAME, expand_home, name_problem, path_problem

LONGEST = 255 - len(LONGEST_FILE_NAME.format(""))


@pytest.mark.parametrize(
    "name",
    ["ink", "my style", "v1.5", "水墨", "👩\u200d🎨", "می\u200cخواهم", "none", "console", "a,b (2)", "x" * LONGEST],
)
def test_accepts_possible_names(name):
    assert name_problem(name) is None


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", " ", "a/b", "a\\b", "a:b", "<a>", "a?", "a\nb", "a\x1bb", "a\x7f", "\udcff"]
    + [
        "a\u202eb",
        "ab\u200b",
        "\ufeffab",
        "a\u00adb",
        "a\u200db",
        "水\u200d",
        "水\u200d\u200d水",
        "a\u2028b",
        "ab\u00a0",
    ],
)
def test_refuses_impossible_file_names(name):
    assert name_problem(name)


@pytest.mark.parametrize("name", ["None", "ink.", "ink ", "CON", "con", "Nul.v1", "aux .x", "COM1", "lpt9", "COM¹"])
def test_refuses_names_that_windows_or_the_webui_reject(name):
    assert name_problem(name)


def test_the_longest_name_can_be_written_with_all_that_is_added(tmp_path):
    for name in ("x" * LONGEST, "水" * (LONGEST // 3)):
        assert name_problem(name) is None
        (tmp_path / LONGEST_FILE_NAME.format(name)).touch()
        assert name_problem(name + "水")


def test_refuses_paths_that_cannot_exist(tmp_path):
    assert path_problem(str(tmp_path / "a" / ("x" * 255))) is None
    assert all(path_problem(path) for path in ("a/" + "x" * 256 + "/b", "水" * 86, "a\0b", "a\ud800"))


def test_expands_home_where_shells_do_not(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    home = str(Path.home())
    words = ["--output_dir=~/out", "~/my images", "~", "--model-config=~", "--lora", "~/a.safetensors:0.5"]
    expected = [f"--output_dir={home}/out", f"{home}/my images", home, f"--model-config={home}"]
    assert expand_home(words) == [*expected, "--lora", f"{home}/a.safetensors:0.5"]
    unchanged = ["a ~/cat", "~cat", "~a cat", "--prompt=~ish", "x~/y", "--a=b~/c", "~no_such_user/x"]
    assert expand_home(unchanged) == unchanged
