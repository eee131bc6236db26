"""The WebUI's prompt syntax: `(word)`, `(word:1.3)`, `[word]`, `BREAK`, and escaped brackets.

It follows the WebUI's wiki, "Features, Attention/emphasis", and the WebUI's behavior where the wiki says nothing.
"""

import re

ROUND, SQUARE = 1.1, 1 / 1.1  # factors of a pair of brackets
BREAK = None  # in place of a text: a new chunk starts here
WeightedText = tuple[str | None, float]

_ESCAPED = re.compile(r"\\([()\[\]])")
_MARK = re.compile(
    r"\\(?P<escaped>[()\[\]\\])|(?P<lone>\\)|:\s*(?P<weight>[+-]?[.\d]+)\s*\)|(?P<bracket>[()\[\]])"
    r"|(?P<new>\s*\bBREAK\b\s*)"
)


def unescape(prompt: str) -> str:
    """Replace escaped brackets such as `\\(` by plain ones."""
    return _ESCAPED.sub(r"\1", prompt)


def escape(prompt: str) -> str:
    """Escape a prompt written without emphasis, so that `parse_emphasis` reads it the same."""
    return re.sub(r"([\\()\[\]])", r"\\\1", unescape(prompt))


def parse_emphasis(prompt: str) -> list[WeightedText]:
    """Split a prompt into texts with one weight each; the text is `BREAK` where a new chunk starts.

    A pair of round brackets multiplies by 1.1, or by the number before its end; square brackets divide by 1.1; nested
    pairs multiply. An unclosed pair extends to the end, a closing bracket without an opening one is text, and a
    backslash makes the next bracket text.
    """
    texts: list[WeightedText] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}  # indices into `texts` where the open pairs start
    position = 0

    def close(bracket: str, factor: float) -> None:
        for index in range(opened[bracket].pop(), len(texts)):
            text, weight = texts[index]
            texts[index] = text, weight * factor

    for mark in _MARK.finditer(prompt):
        texts.append((prompt[position : mark.start()], 1.0))
        position, bracket, factor = mark.end(), mark["bracket"], _parse_weight(mark["weight"])
        if bracket in ("(", "["):
            opened[bracket].append(len(texts))
        elif factor is not None and opened["("]:
            close("(", factor)
        elif bracket == ")" and opened["("]:
            close("(", ROUND)
        elif bracket == "]" and opened["["]:
            close("[", SQUARE)
        elif mark["new"]:
            texts.append((BREAK, 1.0))
        else:
            texts.append((mark["escaped"] or ("" if mark["lone"] else mark[0]), 1.0))
    texts.append((prompt[position:], 1.0))
    for bracket, factor in (("(", ROUND), ("[", SQUARE)):
        while opened[bracket]:
            close(bracket, factor)
    return _join(texts)


def _parse_weight(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _join(texts: list[WeightedText]) -> list[WeightedText]:
    """Join neighbors of the same weight, and drop empty texts."""
    joined: list[WeightedText] = []
    for text, weight in texts:
        if text is BREAK:
            joined.append((BREAK, 1.0))
        elif text and joined and joined[-1][0] is not BREAK and joined[-1][1] == weight:
            joined[-1] = joined[-1][0] + text, weight
        elif text:
            joined.append((text, weight))
    return joined or [("", 1.0)]
