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


@pytest.mark.parametrize(
    "path, meant",
    [
        ("C:\\Users\\me", "Windows"),
        ("D:/images", "Windows"),
        ("d:", "Windows"),
        ("my\\images", "my/images"),
        ("My\\ Drawings/a", "My Drawings/a"),
        ('"my images"', " my images "),
        ("\u201cmy images\u201d", " my images "),
        ("'a'", " a "),
        ("$HOME/images", "$HOME"),
        ("${DATA}", "${DATA}"),
        ("%USERPROFILE%/images", "%USERPROFILE%"),
        ("file:///home/me/a", " /home/me/a"),
        ("https://huggingface.co/someone/style/tree/main", " someone/style"),
        ("https://huggingface.co/datasets/someone/style", " someone/style"),
        ("http://localhost/a", "a path"),
        ("/content/drive/MyDrive/out", "Google Drive"),
    ],
)
def test_paths_that_are_not_meant_literally(path, meant):
    assert meant in path_problem(path)


@pytest.mark.parametrize(
    "path", ["someone/style", "a b/c", "a:b", "it's", "100%/a", "$5 sketches", "~x", "a.b/(c) [d]", ""]
)
def test_plausible_paths(path):
    assert path_problem(path) is None


def test_an_existing_path_is_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("'a'", "$HOME", "a\\b", "C:"):
        Path(name).mkdir()
        assert path_problem(name) is None
    assert path_problem("a\\c") and path_problem("C:/d")
