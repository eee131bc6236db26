"""The WebUI's prompt syntax: `(word)`, `(word:1.3)`, `[word]`, `BREAK`, and escaped brackets.

It follows the WebUI's wiki, "Features, Attention/emphasis", and the WebUI's behavior where the wiki says nothing.
"""

import re
import unicodedata

ROUND, SQUARE = 1.1, 1 / 1.1  # factors of a pair of brackets
BREAK = None  # in place of a text: a new chunk starts here
MAX_DEPTH = 30  # of nested brackets, a factor of 17; deeper brackets are text
WeightedText = tuple[str | None, float]

_ESCAPED = re.compile(r"\\([()\[\]])")
_MARK = re.compile(
    r"\\(?P<escaped>[()\[\]\\])|(?P<lone>\\)|:\s*(?P<weight>[+-]?[.\d]+)\s*\)|(?P<bracket>[()\[\]])"
    r"|(?P<new>(?:(?<!\s)\s+)?\bBREAK\b\s*)"  # matches spaces only from the first of a run, or a long run takes forever
)
_LAST_WEIGHT = re.compile(r":(?=\s*[-+]?(?:\d+\.?|\d*\.\d+)\s*$)")  # the colon of a prompt's final ":1.5"


def unescape(prompt: str) -> str:
    """Replace escaped brackets such as `\\(` by plain ones."""
    return _ESCAPED.sub(r"\1", prompt)


def escape(prompt: str) -> str:
    """Escape a prompt written without emphasis, so that `parse_emphasis` reads it the same.

    BREAK becomes lower case, which has the same tokens.
    """
    return re.sub(r"\bBREAK\b", "break", re.sub(r"([\\()\[\]])", r"\\\1", unescape(prompt)))


def write_for_webui(prompt: str, emphasis: bool) -> str:
    """Rewrite a prompt so that the WebUI reads the same tokens from it.

    Syntax of the WebUI alone is replaced: AND becomes lower case; "#", which begins a comment there, and the colon of a
    final ":1.5", a weight there, become full-width characters, which its tokenizers read as the plain ones.

    Args:
        emphasis: whether the prompt was read with `parse_emphasis`.
    """
    prompt = re.sub(r"\bAND\b", "and", prompt if emphasis else escape(prompt))
    return _LAST_WEIGHT.sub("\uff1a", prompt.replace("#", "\uff03"))


def _plain_characters() -> dict[int, str]:
    """Return the replacements of `plain`, one step of Unicode's compatibility decomposition each."""
    wide = [0x3000, *range(0xFF01, 0xFFF0)]
    joined = [0x132, 0x133, 0x149, *range(0x1C4, 0x1CD), *range(0x1F1, 0x1F4), *range(0xFB00, 0xFB07)]
    parts = {code: unicodedata.decomposition(chr(code)).split()[1:] for code in (*wide, *joined)}
    plain = {code: "".join(chr(int(part, 16)) for part in found) for code, found in parts.items() if found}
    quotes = dict.fromkeys([0x2BC, *range(0x2018, 0x201C)], "'") | dict.fromkeys(range(0x201C, 0x2020), '"')
    return {code: text.translate(quotes) for code, text in plain.items()} | quotes


_PLAIN = _plain_characters()


def plain(text: str) -> str:
    """Replace curly quotes, ligatures and full-width characters with plain ones, as in CLIP's training captions.

    The WebUI's tokenizers do so through ftfy (its `uncurl_quotes`, `fix_latin_ligatures` and `fix_character_width`);
    those of transformers 5 do not.
    """
    return text.translate(_PLAIN)


def parse_emphasis(prompt: str) -> list[WeightedText]:
    """Split a prompt into texts with one weight each; the text is `BREAK` where a new chunk starts.

    A pair of round brackets multiplies by 1.1, or by the number before its end; square brackets divide by 1.1; nested
    pairs multiply, up to 30 deep. An unclosed pair extends to the end, a closing bracket without an opening one is
    text, and a backslash makes the next bracket text.
    """
    texts: list[list[str] | None] = []  # pieces of text, or BREAK
    weights: list[float] = []  # of each
    opened: dict[str, list[int]] = {"(": [], "[": []}  # indices into `texts` where the open pairs start
    position = 0

    def add(text: str) -> None:
        pieces = texts[-1] if texts else BREAK
        is_first = any(starts and starts[-1] == len(texts) for starts in opened.values())  # in its pair
        if pieces is BREAK or weights[-1] != 1 or is_first:
            texts.append([text])
            weights.append(1.0)
        else:
            pieces.append(text)

    def close(bracket: str, factor: float) -> None:
        start = opened[bracket].pop()
        weights[start:] = [weight * factor for weight in weights[start:]]

    for mark in _MARK.finditer(prompt):
        add(prompt[position : mark.start()])
        position, bracket, factor = mark.end(), mark["bracket"], _parse_weight(mark["weight"])
        if bracket in ("(", "[") and len(opened[bracket]) < MAX_DEPTH:
            opened[bracket].append(len(texts))
        elif factor is not None and opened["("]:
            close("(", factor)
        elif bracket == ")" and opened["("]:
            close("(", ROUND)
        elif bracket == "]" and opened["["]:
            close("[", SQUARE)
        elif mark["new"]:
            texts.append(BREAK)
            weights.append(1.0)
        else:
            add(mark["escaped"] or ("" if mark["lone"] else mark[0]))
    add(prompt[position:])
    for bracket, factor in (("(", ROUND), ("[", SQUARE)):
        while opened[bracket]:
            close(bracket, factor)
    return _join(texts, weights)


def _parse_weight(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _join(texts: list[list[str] | None], weights: list[float]) -> list[WeightedText]:
    """Join pieces, and neighbors of the same weight; drop empty texts."""
    joined: list[tuple[list[str] | None, float]] = []
    for pieces, weight in zip(texts, weights):
        last, last_weight = joined[-1] if joined else (BREAK, 1.0)
        if pieces is BREAK:
            joined.append((BREAK, 1.0))
        elif last is not BREAK and last_weight == weight:
            last.extend(pieces)
        elif any(pieces):
            joined.append((pieces, weight))
    return [(BREAK if pieces is BREAK else "".join(pieces), weight) for pieces, weight in joined] or [("", 1.0)]
