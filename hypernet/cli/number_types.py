"""Convert the numbers of a command line, and say for a misspelled one how it is written. Imports no torch."""

import argparse

from hypernet.utils.errors import one_line
from hypernet.utils.numbers import meant_number, meant_whole_number


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
        meant = meant_number(text) or "a number, such as 0.5"
        raise argparse.ArgumentTypeError(f"{one_line(text)!r} is not a number; write {meant}") from None


def parse_whole_number(text: str) -> int:
    """Parse a whole number, as `int` does.

    Raises:
        argparse.ArgumentTypeError: for anything else, with the number that is probably meant.
    """
    try:
        return int(text)
    except ValueError:
        meant = meant_whole_number(text)
        hint = "a whole number, such as 1000" if meant is None else meant
        raise argparse.ArgumentTypeError(f"{one_line(text)!r} is not a whole number; write {hint}") from None
