"""Recognize misspelled numbers, to suggest the right spelling."""

import math
import re

MOST_DIGITS = 15  # of a suggested whole number; floats are exact up to there
SIZE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_NUMBER = re.compile(r"([-+]?\d*[.,]?\d+(?:e[-+]?\d+)?)\s*(%?)", re.IGNORECASE)


def meant_number(text: str) -> str | None:
    """Return the number that a text probably means, such as 0.5 for 0,5 and 0.8 for 80%; None if unclear."""
    match = _NUMBER.fullmatch(plain_signs(text).strip())
    if not match:
        return None
    number = match[1].replace(",", ".")
    return f"{float(number) / 100:g}" if match[2] else number


def meant_whole_number(text: str) -> int | None:
    """Return the whole number that a text probably means, such as 10000 for 1e4, 10k and 10,000; None if unclear."""
    plain = plain_signs(text).strip()
    if re.fullmatch(r"[-+]?[1-9]\d{0,2}([., ']\d{3})+", plain):  # thousands
        return int(re.sub(r"[., ']", "", plain))
    try:
        number = float(re.sub(r"(?<=\d)k$", "e3", plain, flags=re.IGNORECASE).replace(",", "."))
    except ValueError:
        number = math.nan
    return int(number) if number.is_integer() and abs(number) < 10**MOST_DIGITS else None


def plain_signs(text: str) -> str:
    """Return a text with typographic minus signs, spaces and apostrophes replaced by those of a keyboard."""
    return re.sub("[\u2010-\u2015\u2212]", "-", re.sub(r"\s", " ", text)).replace("\u2019", "'")


def size_text(count: float) -> str:
    """Return a number of bytes with a unit, such as 264 MB and 5.3 GB."""
    value, unit = next((count / 1000**i, unit) for i, unit in enumerate(SIZE_UNITS) if count < 999.5 * 1000**i)
    return f"{value:.1f} {unit}" if value < 9.95 and unit not in SIZE_UNITS[:2] else f"{value:.0f} {unit}"
