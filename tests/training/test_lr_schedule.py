"""The schedule against the rules documented for the WebUI's."""

import random
import re

import pytest

from hypernet.training.lr_schedule import ScheduleError, parse_schedule


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


def documented(text, max_steps):
    """The rules of the WebUI's notation, written down once more: (pieces, or the number of the part that is wrong)."""
    parts = text.split(",")
    if len(parts) > 1 and not parts[-1].strip():
        parts.pop()  # a trailing comma is fine
    pieces, last, ended = [], 0, False
    for number, part in enumerate(parts):
        match = re.fullmatch(r"\s*([^:\s]*)\s*(?::\s*([^:\s]*)\s*)?", part)
        if not match or not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", match[1], re.I) or float(match[1]) < 0:
            return number
        if match[2] is not None and not re.fullmatch(r"[+-]?\d+", match[2]):
            return number
        step = None if match[2] is None else int(match[2])
        if step is not None and step != -1 and step < 1:
            return number
        if ended:
            continue  # what comes after the end is read, but does not count
        if step in (None, -1):
            step = max_steps
            pieces.append((float(match[1]), step))
            ended = True
            continue
        if step <= last:
            return number
        last = step
        pieces.append((float(match[1]), min(step, max_steps)))
        ended = step >= max_steps
    return tuple(pieces)


def random_text(rng):
    def number():
        return rng.choice(["1e-5", "5E-6", "0.001", ".5", "3", "2.", "0", "+1e-4", "1e-05", f"{rng.random():.3g}"])

    def step():
        return rng.choice(
            [str(rng.randint(1, 120)), str(10 * rng.randint(1, 12)), "-1", "0", "-7", "1.5", "", "x", "+8"]
        )

    parts, at = [], 0
    for _ in range(rng.randint(1, 4)):
        at += rng.randint(1, 40)
        chosen = rng.choices(
            [f"{number()}:{at}", number(), f"{number()}:{step()}", f"{number()} : {at}"], [8, 2, 2, 2]
        )[0]
        parts.append(rng.choice(["", " ", "  "]) + chosen)
    text = ",".join(parts) + rng.choice(["", "", "", ",", ", "])
    if rng.random() < 0.3:  # a slip of the hand
        place = rng.randrange(len(text) + 1)
        text = text[:place] + rng.choice(list(",:-ex. ") + ["nan", "::"]) + text[place + rng.randint(0, 1) :]
    return text


def test_ten_thousand_random_schedules():
    rng, valid = random.Random(0), 0
    for _ in range(10_000):
        text = random_text(rng)
        expected = documented(text, 100)
        if isinstance(expected, tuple):
            valid += 1
            assert parse_schedule(text, 100).pieces == expected, text
        else:
            with pytest.raises(ScheduleError) as error:
                parse_schedule(text, 100)
            marked = re.search(r'^"(.*)>>>(.*)<<<', str(error.value), re.S)
            assert marked[1].count(",") == expected and "," not in marked[2], (text, str(error.value))
    assert 3000 < valid < 8000  # of either kind enough
