"""Processes that share a work: what each gets, and what happens when one fails or dies."""

import contextlib
import io
import shutil
import time

import pytest

from hypernet.data.processes import ALONE, Processes
from hypernet.utils.errors import OtherProcessError, UserError
from tests.helpers.processes import run_processes


def test_all_get_the_results_of_all_and_one_bar_counts_their_steps():
    def work(processes):
        def share(step):
            for _ in range(processes.index + 1):
                step()
            return processes.index

        return processes.share(share, 6, "Working", "steps"), processes.gather(-processes.index)

    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        assert run_processes(3, work) == [([0, 1, 2], [0, -1, -2])] * 3
    assert said.getvalue().count("Working: 100%") == 1 and " 6/6 " in said.getvalue()
    assert work(ALONE) == ([0], [0])


def test_a_share_may_take_longer_than_a_communication():
    def work(processes):
        return processes.share(lambda _: time.sleep(3 * processes.index))

    assert run_processes(2, work, seconds=1) == [[None, None]] * 2


@pytest.mark.parametrize(
    "failure, expected", [(UserError("--cache_dir x: it is full"), "--cache_dir x: it is full"), (KeyError(7), "7")]
)
def test_a_failure_ends_all_with_the_same_line(failure, expected):
    def work(processes):
        def share(step):
            for number in range(1000):
                if (processes.index, number) == (1, 3):
                    raise failure
                step()
                time.sleep(0.01)

        processes.share(share)

    first, second, third = run_processes(3, work)
    assert type(first) is type(third) is UserError and expected in str(first) and str(first) == str(third)
    assert type(second) is type(failure) and str(second) in str(first)


@pytest.mark.parametrize("waits", [False, True])
def test_a_process_that_dies_is_noticed_by_those_that_work_and_those_that_wait(waits):
    def work(processes):
        def share(step):
            if processes.index == 1:
                processes.die()
            for _ in range(0 if waits else 1000):
                step()
                time.sleep(0.01)

        processes.share(share)

    error, _ = run_processes(2, work)
    assert type(error) is OtherProcessError and "\n" not in str(error)


def test_processes_see_whether_they_share_a_folder(tmp_path):
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:
        place.mkdir()
    shutil.copytree(places[0], tmp_path / "copy")
    (tmp_path / "link").symlink_to(places[1])

    def work(processes: Processes):
        return processes.find_lowest([*places, tmp_path / "copy", tmp_path / "link"][processes.index])

    assert run_processes(4, work) == [0, 1, 2, 1]
    assert not list(tmp_path.rglob(".*"))
