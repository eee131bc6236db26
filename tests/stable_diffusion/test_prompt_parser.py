"""The WebUI's prompt syntax."""

import pytest

from hypernet.stable_diffusion.prompt_parser import BREAK, escape, parse_emphasis, unescape


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


def test_unescapes_brackets_only():
    assert unescape(r"saber \(fate\) [x\] \n") == r"saber (fate) [x] \n"
