"""Explain what argparse cannot parse: words that belong to no option, and options without a value."""

import argparse
import re
from collections.abc import Collection

from hypernet.utils.errors import UserError, one_line
from hypernet.utils.numbers import plain_signs

# These continue a line in bash, cmd.exe and PowerShell; in any other shell, each is a word of the command
LINE_ENDS = {"\\", "^", "`"}


def explain_stray(word: str, options: Collection[str]) -> str | None:
    """Return what is wrong with a word that no option takes, and what to write; None if that is unclear.

    Args:
        options: names of all options, with their dashes.
    """
    if word.strip() in LINE_ENDS:
        return f"{word.strip()!r} does not continue the line in this shell; write the whole command on one line"
    name, equals, value = (plain_signs(word).strip().lstrip("-")).partition("=")
    meant = f"--{name.replace('-', '_')}"
    if word.startswith("--") or meant not in options:
        return None
    problem = "an option starts with two hyphens"
    if word[0] in "\u2010\u2011\u2012\u2013\u2014\u2015\u2212":
        problem += ", not a dash, which some programs put in their place"
    return f"{one_line(word)!r}: {problem}; write {meant}{equals}{one_line(value)}"


def explain_missing(message: str) -> str:
    """Return argparse's message, reworded if it is about a missing value."""
    match = re.fullmatch(r"(?:argument )?(\S+): expected (?:one|at least one) argument", message)
    if not match:
        return message.removeprefix("argument ")
    return f"{match[1]}: its value is missing; if the value starts with a hyphen, write {match[1]}=VALUE"


def check_swallowed(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """Raise UserError if an option that takes several values has taken a misspelled option or a line continuation."""
    for action in parser._actions:
        values = getattr(given, action.dest, None)
        for value in values if action.nargs in ("+", "*") and isinstance(values, list) else []:
            problem = explain_stray(str(value), parser._option_string_actions)
            if problem and not str(value).isidentifier():  # plain words are values: --x seed 1 2
                raise UserError(problem)
