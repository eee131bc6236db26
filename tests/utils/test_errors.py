"""Messages stay one short line, whatever a file name or content adds."""

import pytest

from hypernet.utils.errors import MAX_MESSAGE, UserError, counted, one_line, reason


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a  b.png: it is empty", "a  b.png: it is empty"),
        ("red \x1b[31m, title \x1b]0;x\x07", r"red \x1b[31m, title \x1b]0;x\x07"),
        ("first\r\n  second\nthird", "first second third"),
        ("caf\u00e9, \u732b, \U0001f408", "caf\u00e9, \u732b, \U0001f408"),
        ("turned \u202egnp", r"turned \u202egnp"),
        ("half \ud83d", r"half \ud83d"),
        ("nul \0, bell \x9b", r"nul \x00, bell \x9b"),
    ],
)
def test_escapes_control_characters(text, expected):
    assert one_line(text) == str(UserError(text)) == expected


@pytest.mark.parametrize("length", [MAX_MESSAGE + 1, 10**7])
def test_keeps_both_ends_of_a_long_message(length):
    shown = str(UserError(f"--option x: {'a' * length}; do this instead"))
    assert len(shown) <= MAX_MESSAGE and shown.startswith("--option x: a") and shown.endswith("; do this instead")


def test_singular_and_plural():
    assert [counted(number, "entry", "entries") for number in (0, 1, 2)] == ["0 entries", "1 entry", "2 entries"]
    assert counted(2, "image") == "2 images"


def test_an_error_without_a_message_has_its_class_as_reason():
    assert reason(KeyError()) == "KeyError" and reason(ValueError(" a\nb ")) == "a b"
