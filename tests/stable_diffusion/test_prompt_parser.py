"""The WebUI's prompt syntax."""

import re
import time

import pytest

from hypernet.stable_diffusion.prompt_parser import BREAK, escape, parse_emphasis, plain, unescape, write_for_webui


@pytest.mark.parametrize(
    "prompt, expected",  # from the WebUI's wiki and the documentation of its parser
    [
        ("a cat", [("a cat", 1.0)]),
        ("", [("", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [("a ", 1.0), ("house", 1.3 * 1.1 * 1.1), (" ", 1.1), ("on", 1.0), (" a ", 1.1), ("hill", 0.55)]
            + [(", sun, ", 1.1), ("sky", 1.1**4), (".", 1.1)],
        ),
        ("((a))", [("a", 1.21)]),
        ("[a]", [("a", 1 / 1.1)]),
        ("(a:1.5) b:1.5)", [("a", 1.5), (" b:1.5)", 1.0)]),
        ("[a:1.5)", [("a:1.5)", 1 / 1.1)]),
        ("a) b]", [("a) b]", 1.0)]),
        ("a BREAK b", [("a", 1.0), (BREAK, 1.0), ("b", 1.0)]),
        ("BREAKFAST", [("BREAKFAST", 1.0)]),
        (r"a \\(b)", [("a \\", 1.0), ("b", 1.1)]),
        (r"lone \ here", [("lone  here", 1.0)]),
    ],
)
def test_parses_emphasis(prompt, expected):
    found = parse_emphasis(prompt)
    assert [text for text, _ in found] == [text for text, _ in expected]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in expected])


@pytest.mark.parametrize("prompt", ["a cat", r"saber \(fate\)", "a (b:1.3) [c]", r"back\slash", "((", r"a\\(b)"])
def test_an_escaped_prompt_is_read_without_emphasis(prompt):
    assert parse_emphasis(escape(prompt)) == [(unescape(prompt), 1.0)]


def webui_texts(prompt):
    """Return (texts, weight) of each part of a composed prompt as the WebUI reads it: comments, AND, a final weight."""
    parts = []
    for part in re.split(r"\bAND\b", re.sub(r"#[^\n]*(\n|$)", "\n", prompt)):
        text, weight = re.fullmatch(r"(.*?)(?:\s*:\s*([-+]?(?:\d+\.?|\d*\.\d+)))?\s*", part, re.DOTALL).groups()
        parts.append((parse_emphasis(text), weight))
    return parts


PROMPTS = [
    "a BREAK b",
    "BREAK",
    "rock AND roll",
    "AND",
    "#1 fan\nof it",
    "ratio 16:9",
    "x : .5 ",
    "(a:1.2): -3.",
    "AND: 2",
]


@pytest.mark.parametrize("prompt", [*PROMPTS, "SAND BREAKFAST", r"saber \(fate\), [a|b] [c:d:5]"])
def test_the_webui_finds_no_syntax_in_a_prompt_without_emphasis(prompt):
    [(texts, weight)] = webui_texts(write_for_webui(prompt, emphasis=False))
    assert weight is None and [(plain(text).lower().rstrip(), weight) for text, weight in texts] == [
        (unescape(prompt).lower().rstrip(), 1.0)
    ]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_webui_reads_emphasis_as_we_do(prompt):
    def shown(texts):
        return [(text and plain(text).lower().rstrip(), weight) for text, weight in texts]

    [(texts, weight)] = webui_texts(write_for_webui(prompt, emphasis=True))
    assert weight is None and shown(texts) == shown(parse_emphasis(prompt))


@pytest.mark.parametrize("prompt", ["a cat", "a (cat:1.3) BREAK [b]", "", "dots: 3 cats", "Andy, and"])
def test_leaves_other_prompts_as_they_are(prompt):
    assert write_for_webui(prompt, emphasis=True) == prompt


@pytest.mark.parametrize(
    "text, expected",  # as documented for ftfy's uncurl_quotes, fix_latin_ligatures and fix_character_width
    [
        ("\u201chere\u2019s a test\u201d \u2018x\u201b \u201eq\u201f", '"here\'s a test" \'x\' "q"'),
        ("\ufb02u\ufb00y \ufb01sh, o\ufb03ce, wa\ufb04e", "fluffy fish, office, waffle"),
        ("\u0133s, \u0132S, \u0149 \u01f3 \u01c4", "ijs, IJS, 'n dz D\u017d"),
        (
            "\uff2c\uff2f\uff35\uff24\u3000\uff4e\uff4f\uff49\uff53\uff45\uff53\uff0c\uff11\uff08\uff5e",
            "LOUD noises,1(~",
        ),
        ("\uff8a\uff9d\uff76\uff78", "\u30cf\u30f3\u30ab\u30af"),
        ("\xe9 \xb2 \xbd \u2122 \u2026 \u2013 \u65e5\u672c\u3002 a < b & 'c' \"d\"", None),
    ],
)
def test_makes_characters_plain(text, expected):
    assert plain(text) == (text if expected is None else expected)


def test_unescapes_brackets_only():
    assert unescape(r"saber \(fate\) [x\] \n") == r"saber (fate) [x] \n"


def test_reads_long_prompts_in_linear_time():
    letters = 100_000
    patterns = ["(", "((a:1.1)", "(a)[b]", "\\(", " ", "BREAK ", ":1", "[", "("]
    started = time.process_time()
    for pattern in patterns:
        parse_emphasis(pattern * (letters // len(pattern)))
    parse_emphasis("(" * 29 + ")(" * (letters // 2))
    assert time.process_time() - started < 10  # each took minutes when the time was quadratic


def test_brackets_nest_thirty_deep():
    for depth in (1, 5, 30):
        [(text, weight)] = parse_emphasis("(" * depth + "a" + ")" * depth)
        assert text == "a" and weight == pytest.approx(1.1**depth)
    assert parse_emphasis("(" * 40 + "a") == [("(" * 10 + "a", pytest.approx(1.1**30))]
