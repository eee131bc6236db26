"""Settings that every script makes before slow imports, and its output folder."""

import os
from pathlib import Path

import pytest

from hypernet.cli.script import check_output_file, check_output_folder, quiet_libraries
from hypernet.utils.errors import UserError


@pytest.mark.parametrize("given, expected", [({}, "1000"), ({"GOMP_SPINCOUNT": "infinite"}, "infinite")])
def test_waiting_threads_yield_their_core_unless_the_user_decides(monkeypatch, given, expected):
    monkeypatch.setattr(os, "environ", dict(given))
    quiet_libraries()
    assert os.environ["GOMP_SPINCOUNT"] == expected and os.environ["KMP_BLOCKTIME"] == "1"


def test_an_output_folder_of_another_system_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("C:\\Users\\me\\out", "$HOME/out", "out\\a"):
        with pytest.raises(UserError, match="^--output_dir x: "):
            check_output_folder(Path(folder), "--output_dir x")
    with pytest.raises(UserError, match="^--output x: "):
        check_output_file(Path("C:\\grid.png"), "--output x")
    check_output_folder(Path("out/a"), "--output_dir x")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
