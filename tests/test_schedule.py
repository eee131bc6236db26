"""The schedule against the rules documented for the WebUI's."""

import pytest

from hypernet.schedule import ScheduleError, parse_schedule


@pytest.mark.parametrize(
    "text, pieces",
    [
        ("1e-5", ((1e-5, 100),)),
        ("5e-6:60, 5e-7:90", ((5e-6, 60), (5e-7, 90))),
        ("5e-6:60, 5e-7:90,", ((5e-6, 60), (5e-7, 90))),
        ("5e-6:60, 5e-7", ((5e-6, 60), (5e-7, 100))),
        ("5e-6:60, 5e-7:-1", ((5e-6, 60), (5e-7, 100))),
        ("1e-4, 5e-7:50", ((1e-4, 100),)),
        ("1e-4:500", ((1e-4, 100),)),
        ("1e-4:100, 1e-5:200", ((1e-4, 100),)),
        (" 0.5 : 10 ,.25: 20", ((0.5, 10), (0.25, 20))),
    ],
)
def test_pieces(text, pieces):
    assert parse_schedule(text, 100).pieces == pieces


def test_values_by_step():
    schedule = parse_schedule("5e-6:12000, 5e-7:30000", 100000)
    assert [schedule.at(step) for step in (0, 11999, 12000, 29999)] == [5e-6, 5e-6, 5e-7, 5e-7]
    assert schedule.last_step == 30000


@pytest.mark.parametrize(
    "text, marked",
    [
        ("", ">>><<<"),
        ("abc", ">>>abc<<<"),
        ("1e-5:10, x:20", "1e-5:10,>>> x:20<<<"),
        ("1e-5:10, 1e-6:10", ">>> 1e-6:10<<<"),
        ("1e-5:10,,1e-6:20", ">>><<<"),
        ("1e-5:1:2", ">>>1e-5:1:2<<<"),
        ("1e-5:2.5", ">>>1e-5:2.5<<<"),
        ("1e-5:", ">>>1e-5:<<<"),
        ("1e-5:0", ">>>1e-5:0<<<"),
        ("-1e-5", ">>>-1e-5<<<"),
        ("nan", ">>>nan<<<"),
        ("1e-5, oops", "1e-5,>>> oops<<<"),
    ],
)
def test_what_does_not_parse_is_marked(text, marked):
    with pytest.raises(ScheduleError) as error:
        parse_schedule(text, 100)
    assert marked in str(error.value) and "\n" not in str(error.value)
