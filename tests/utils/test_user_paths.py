"""Names that no file system or program takes, and `~` in paths."""

from pathlib import Path

import pytest

from hypernet.utils.user_paths import LONGEST_FILE_NAME, expand_home, name_problem, path_problem

LONGEST = 255 - len(LONGEST_FILE_NAME.format(""))


@pytest.mark.parametrize("name", ["ink", "my style", "v1.5", "水墨", "none", "console", "a,b (2)", "x" * LONGEST])
def test_names_that_are_possible(name):
    assert name_problem(name) is None


@pytest.mark.parametrize(
    "name", ["", ".", "..", " ", "a/b", "a\\b", "a:b", "<a>", "a?", "a\nb", "a\x1bb", "a\x7f", "\udcff"]
)
def test_names_that_are_no_file_names(name):
    assert name_problem(name)


@pytest.mark.parametrize("name", ["None", "ink.", "ink ", "CON", "con", "Nul.v1", "aux .x", "COM1", "lpt9", "COM¹"])
def test_names_that_windows_or_the_webui_do_not_take(name):
    assert name_problem(name)


def test_the_longest_name_can_be_written_with_all_that_is_added(tmp_path):
    for name in ("x" * LONGEST, "水" * (LONGEST // 3)):
        assert name_problem(name) is None
        (tmp_path / LONGEST_FILE_NAME.format(name)).touch()
        assert name_problem(name + "水")


def test_paths_that_cannot_exist(tmp_path):
    assert path_problem(str(tmp_path / "a" / ("x" * 255))) is None
    assert all(path_problem(path) for path in ("a/" + "x" * 256 + "/b", "水" * 86, "a\0b", "a\ud800"))


def test_home_is_expanded_where_shells_leave_it(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    home = str(Path.home())
    words = ["--output_dir=~/out", "~/my images", "~", "--model-config=~", "--lora", "~/a.safetensors:0.5"]
    expected = [f"--output_dir={home}/out", f"{home}/my images", home, f"--model-config={home}"]
    assert expand_home(words) == [*expected, "--lora", f"{home}/a.safetensors:0.5"]
    unchanged = ["a ~/cat", "~cat", "~a cat", "--prompt=~ish", "x~/y", "--a=b~/c", "~no_such_user/x"]
    assert expand_home(unchanged) == unchanged
