"""The WebUI's prompt syntax: `(word)`, `(word:1.3)`, `[word]`, `BREAK`, and brackets that are meant as they stand.

The rules are those of the WebUI's wiki, "Features, Attention/emphasis", and of what it does where that is silent.
"""

import re

ROUND, SQUARE = 1.1, 1 / 1.1  # what one pair of brackets multiplies by
BREAK = None  # in place of a text: what follows starts a new chunk

_ESCAPED = re.compile(r"\\([()\[\]])")
_MARK = re.compile(
    r"\\(?P<escaped>[()\[\]\\])|(?P<lone>\\)|:\s*(?P<weight>[+-]?[.\d]+)\s*\)|(?P<bracket>[()\[\]])"
    r"|(?P<new>\s*\bBREAK\b\s*)"
)


def unescape(prompt: str) -> str:
    """`\\(` and the like as the brackets that they mean; everything else as it stands."""
    return _ESCAPED.sub(r"\1", prompt)


def escape(prompt: str) -> str:
    """A prompt that is read without emphasis, as `parse_emphasis` has to get it to read the same."""
    return re.sub(r"([\\()\[\]])", r"\\\1", unescape(prompt))


def parse_emphasis(prompt: str) -> list[tuple[str | None, float]]:
    """(text, weight) of each stretch of a prompt; the text is `BREAK` where a new chunk begins.

    A pair of round brackets multiplies by 1.1, or by the number that it ends with, square ones divide by 1.1; pairs within
    pairs multiply, a pair that is never closed goes to the end, and a bracket that closes nothing is text. A backslash
    takes a bracket's meaning away.
    """
    stretches, opened, position = [], {"(": [], "[": []}, 0  # opened: where in `stretches` each open pair began

    def close(kind, factor):
        for index in range(opened[kind].pop(), len(stretches)):
            text, weight = stretches[index]
            stretches[index] = text, weight * factor

    for mark in _MARK.finditer(prompt):
        stretches.append((prompt[position : mark.start()], 1.0))
        position, bracket, factor = mark.end(), mark["bracket"], _number(mark["weight"])
        if bracket in ("(", "["):
            opened[bracket].append(len(stretches))
        elif factor is not None and opened["("]:
            close("(", factor)
        elif bracket == ")" and opened["("]:
            close("(", ROUND)
        elif bracket == "]" and opened["["]:
            close("[", SQUARE)
        elif mark["new"]:
            stretches.append((BREAK, 1.0))
        else:
            stretches.append((mark["escaped"] or ("" if mark["lone"] else mark[0]), 1.0))
    stretches.append((prompt[position:], 1.0))
    for kind, factor in (("(", ROUND), ("[", SQUARE)):
        while opened[kind]:
            close(kind, factor)
    return _joined(stretches)


def _number(text) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def _joined(stretches):
    """Neighbours of one weight together, without empty ones."""
    joined = []
    for text, weight in stretches:
        if text is BREAK:
            joined.append((BREAK, 1.0))
        elif text and joined and joined[-1][0] is not BREAK and joined[-1][1] == weight:
            joined[-1] = joined[-1][0] + text, weight
        elif text:
            joined.append((text, weight))
    return joined or [("", 1.0)]
