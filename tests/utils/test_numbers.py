"""Misspelled numbers, and sizes with units."""

import pytest

from hypernet.utils.numbers import meant_number, meant_whole_number, size_text


@pytest.mark.parametrize(
    "text, meant",
    [
        ("0,5", "0.5"),
        ("\u22121,5", "-1.5"),
        ("1e\u20135", "1e-5"),
        ("80%", "0.8"),
        ("12,5\u00a0%", "0.125"),
        ("a", None),
    ]
    + [("1,2,3", None), ("", None)],
)
def test_a_misspelled_number(text, meant):
    assert meant_number(text) == meant


@pytest.mark.parametrize(
    "text, meant",
    [("1e4", 10000), ("10k", 10000), ("1,5K", 1500), ("12.000", 12000), ("12\u202f000", 12000), ("1\u2019000", 1000)]
    + [("5.0", 5), ("2,5", None), ("k", None), ("1e99", None), ("nan", None)],
)
def test_a_misspelled_whole_number(text, meant):
    assert meant_whole_number(text) == meant


@pytest.mark.parametrize(
    "count, text",
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (264_400_000, "264 MB"), (5.34e9, "5.3 GB"), (12e9, "12 GB")]
    + [(999_700, "1.0 MB"), (9.96e9, "10 GB")],
)
def test_sizes_have_a_unit(count, text):
    assert size_text(count) == text
