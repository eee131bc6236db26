"""What follows from the options that scripts which generate images share."""

import pytest

from hypernet.cli.generation_options import choose_model, pair_strengths
from hypernet.generation.generator import GenerationSettings
from hypernet.utils.errors import UserError


@pytest.mark.parametrize(
    "hypernetworks, strengths, expected",
    [
        ([], None, []),
        (["a", "b"], None, [("a", 1.0), ("b", 1.0)]),
        (["a", "b"], [0.5], [("a", 0.5), ("b", 0.5)]),
        (["a", "b"], [0.5, 0], [("a", 0.5), ("b", 0)]),
    ],
)
def test_pairs_hypernetworks_with_strengths(hypernetworks, strengths, expected):
    assert pair_strengths(hypernetworks, strengths) == expected


@pytest.mark.parametrize("hypernetworks, strengths", [([], [1]), (["a"], [1, 2]), (["a", "b", "c"], [1, 2])])
def test_refuses_strengths_that_do_not_match(hypernetworks, strengths):
    with pytest.raises(UserError, match="--strength"):
        pair_strengths(hypernetworks, strengths)


@pytest.mark.parametrize("strengths, noted", [([80], "80"), ([1, 0.8], None), ([-20, 5], "-20")])
def test_notes_strengths_that_look_like_percentages(hypernetworks_dir, capsys, strengths, noted):
    path = str(hypernetworks_dir / "ink")
    choose_model([GenerationSettings(prompt="a", hypernetworks=((path, strength),)) for strength in strengths])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (noted is not None) and all(
        f" strength {noted}" in line for line in lines
    )  # not --strength: it may be a tag's or an axis's
