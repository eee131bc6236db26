"""Convert the numbers of a command line, and say for a misspelled one how it is written. Imports no torch."""

import argparse
import math
import re

from hypernet.utils.errors import one_line

MOST_DIGITS = 15  # of a suggested whole number; floats are exact up to there


def use_plain_numbers(parser: argparse.ArgumentParser) -> None:
    """Make a parser's options of type `int` and `float` explain mistakes such as 0,5, 80% and 1e3."""
    parser.register("type", int, parse_whole_number)
    parser.register("type", float, parse_number)


def parse_number(text: str) -> float:
    """Parse a number, as `float` does.

    Raises:
        argparse.ArgumentTypeError: for anything else, with the number that is probably meant.
    """
    try:
        return float(text)
    except ValueError:
        pass
    meant = "a number, such as 0.5"
    if match := re.fullmatch(r"\s*([-+]?\d*[.,]?\d+(?:e[-+]?\d+)?)\s*(%?)\s*", text, re.IGNORECASE):
        number = float(match[1].replace(",", "."))
        meant = f"{number / 100:g}" if match[2] else match[1].replace(",", ".")
    raise argparse.ArgumentTypeError(f"{one_line(text)!r} is not a number; write {meant}")


def parse_whole_number(text: str) -> int:
    """Parse a whole number, as `int` does.

    Raises:
        argparse.ArgumentTypeError: for anything else, with the number that is probably meant.
    """
    try:
        return int(text)
    except ValueError:
        pass
    meant = "a whole number, such as 1000"
    if re.fullmatch(r"\s*[-+]?[1-9]\d{0,2}([., ']\d{3})+\s*", text):  # thousands
        meant = re.sub(r"[., '+]", "", text)
    elif (number := _number_or_nan(text)).is_integer() and abs(number) < 10**MOST_DIGITS:
        meant = f"{number:.0f}"
    raise argparse.ArgumentTypeError(f"{one_line(text)!r} is not a whole number; write {meant}")


def _number_or_nan(text: str) -> float:
    try:
        return float(text.replace(",", "."))
    except ValueError:
        return math.nan
