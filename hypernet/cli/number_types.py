"""Convert the numbers of a command line, and say for a misspelled one how it is written. Imports no torch."""

import argparse
from collections.abc import Callable
from typing import TypeVar

from hypernet.utils.errors import one_line
from hypernet.utils.numbers import meant_number, meant_whole_number

Number = TypeVar("Number", int, float)


def use_plain_numbers(parser: argparse.ArgumentParser) -> None:
    """Make a parser's options of type `int` and `float` explain mistakes such as 0,5, 80% and 1e3."""
    parser.register("type", int, parse_whole_number)
    parser.register("type", float, parse_number)


def parse_number(text: str) -> float:
    """Parse a number, as `float` does.

    Raises:
        argparse.ArgumentTypeError: for anything else, with the number that is probably meant.
    """
    return _parse(text, float, meant_number, "a number", "0.5")


def parse_whole_number(text: str) -> int:
    """Parse a whole number, as `int` does.

    Raises:
        argparse.ArgumentTypeError: for anything else, with the number that is probably meant.
    """
    return _parse(text, int, meant_whole_number, "a whole number", "1000")


def _parse(text: str, kind: Callable[[str], Number], meant: Callable[[str], object], what: str, example: str) -> Number:
    try:
        return kind(text)
    except ValueError:
        number = meant(text)
        hint = f"{what}, such as {example}" if number is None else number
        raise argparse.ArgumentTypeError(f"{one_line(text)!r} is not {what}; write {hint}") from None
