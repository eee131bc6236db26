"""Settings that every script makes before slow imports."""

import os

import pytest

from hypernet.cli.script import quiet_libraries


@pytest.mark.parametrize("given, expected", [({}, "1000"), ({"GOMP_SPINCOUNT": "infinite"}, "infinite")])
def test_waiting_threads_yield_their_core_unless_the_user_decides(monkeypatch, given, expected):
    monkeypatch.setattr(os, "environ", dict(given))
    quiet_libraries()
    assert os.environ["GOMP_SPINCOUNT"] == expected and os.environ["KMP_BLOCKTIME"] == "1"
