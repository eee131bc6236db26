"""Suggest what an unknown option, or a word that belongs to no option, was meant to be. Imports no torch."""

import argparse
import difflib
import re
from collections.abc import Collection, Mapping, Sequence

from hypernet.cli.option_aliases import PAGE, find_aliases, other_names
from hypernet.cli.parse_errors import explain_stray
from hypernet.utils.errors import one_line

SHOWN = 8  # unknown options in one message


def explain_rest(parser: argparse.ArgumentParser, arguments: Sequence[str], rest: Sequence[str]) -> str:
    """Return the message for the words of a command line that its parser did not recognize.

    Args:
        arguments: the command line.
        rest: those words, as `parse_known_args` returns them.
    """
    if problem := explain_stray(rest[0], parser._option_string_actions):
        return problem
    options = {name.lstrip("-"): action for name, action in parser._option_string_actions.items()}
    if not rest[0].startswith("-"):
        takes_words = any(not action.option_strings for action in parser._actions)
        return _explain_value(rest[0], arguments, options, takes_words)
    flags = [word.partition("=")[0] for word in rest if re.match(r"--?[^\W\d]", word)]
    return explain_unknown(list(dict.fromkeys(flags or rest[:1])), options)


def explain_unknown(words: Sequence[str], options: Collection[str], form: str = "--{}") -> str:
    """Return the message for unknown options.

    Args:
        words: the unknown options as written.
        options: those of the script, without dashes.
        form: how to write an option: "{}" in a YAML file.
    """
    shown = [one_line(word) for word in words]
    hints = [_suggest(word.lower().lstrip("-").replace("-", "_"), options, form) for word in words]
    if len(words) == 1:
        meant, difference = hints[0]
        if meant:
            return f"unknown option {shown[0]}; did you mean {meant}?{difference and f' ({difference})'}"
        reason = f"there is no such option here ({difference})" if difference else "--help lists all options"
        return f"unknown option {shown[0]}; {reason}"
    meanings = [meant or ("no option" if difference else "?") for meant, difference in hints]
    listed = ", ".join(f"{word} ({meaning})" for word, meaning in zip(shown[:SHOWN], meanings))
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return f"unknown options {listed}{more}; see examples/docs/{PAGE.name}"


def _suggest(name: str, options: Collection[str], form: str) -> tuple[str, str]:
    """Return our option for an unknown one, and what is different; both may be empty.

    An option with the same meaning comes first, then one with similar spelling, then another script's.
    """
    if renamed := [other for other in other_names(name) if other in options]:  # an option of training
        return form.format(renamed[0]), ""
    aliases = find_aliases(name)
    ours = list(dict.fromkeys(option for alias in aliases for option in alias.ours))
    own = [option for option in ours if (flag := re.search(r"--(\w+)", option)) and flag[1] in options]
    own = [re.sub(r"^(?:\w+\.py )?--(\w+)", lambda flag: form.format(flag[1]), option) for option in own]
    near = [form.format(option) for option in difflib.get_close_matches(name, options, 1, 0.65)]
    if near and not own and (ours or not aliases):
        return near[0], ""
    others = [option if ".py" in option else f"train_hypernetwork.py {option}" for option in ours]
    differences = dict.fromkeys(alias.difference for alias in aliases if alias.difference != "the same")
    return " or ".join(dict.fromkeys(own or others)), "; ".join(differences)


def _explain_value(
    word: str, arguments: Sequence[str], options: Mapping[str, argparse.Action], takes_words: bool
) -> str:
    """Return the message for a word that is not the value of any option.

    Args:
        takes_words: whether the script takes words other than options and their values.
    """
    shown = one_line(word)
    problem = f"{shown!r} is not the value of any option"
    flag, words = _option_before(word, arguments)
    action = options.get(flag.lstrip("-"))
    if action and action.type is None and action.nargs is None and re.search(r"[^\W\d]|,", "".join(words)):
        return f'{problem}; a value with spaces needs quotes: {flag} "{one_line(" ".join(words))}"'
    if action:
        return f"{problem}; {flag} takes {'one value' if words else 'none'}"
    if takes_words:
        return f"{shown!r} is one word too many; a path with spaces needs quotes"
    is_config = "config" in options and word.lower().endswith((".yaml", ".yml"))
    meant = f"--config {shown}" if is_config else "--option VALUE, with quotes around a value that has spaces"
    return f"{problem}; write {meant}"


def _option_before(word: str, arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Return the option that a stray word follows, or "", and all words from there to the next option."""
    places = [i for i, argument in enumerate(arguments) if argument == word]
    place = next((i for i in places if i and not re.fullmatch(r"--\w+", arguments[i - 1])), places[0])
    flags = [i for i, argument in enumerate(arguments[:place]) if argument.startswith("--")]
    if not flags:
        return "", []
    flag, equals, value = arguments[flags[-1]].partition("=")
    ends = [i for i, argument in enumerate(arguments) if i > place and argument.startswith("--")]
    following = arguments[flags[-1] + 1 : min(ends, default=len(arguments))]
    return flag, [*([value] if equals else []), *following]
