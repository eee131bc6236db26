"""Numbers of a command line."""

import argparse

import pytest

from hypernet.cli.number_types import parse_number, parse_whole_number
from hypernet.cli.script import ScriptParser
from hypernet.cli.training_options import parse_config
from hypernet.utils.errors import UserError

REQUIRED = ["--pretrained_model_name_or_path", "model", "--train_data_dir", "images"]


def test_numbers_are_those_of_python():
    assert [parse_number(text) for text in ("0.5", "-1", "1e-3", " 2 ")] == [0.5, -1, 1e-3, 2]
    assert [parse_whole_number(text) for text in ("5", "-1", " 2 ", "010")] == [5, -1, 2, 10]


@pytest.mark.parametrize(
    "parse, text, meant",
    [
        (parse_number, "0,1", "0.1"),
        (parse_number, "-,5", "-.5"),
        (parse_number, "1,5e-4", "1.5e-4"),
        (parse_number, "80%", "0.8"),
        (parse_number, "12,5 %", "0.125"),
        (parse_number, "half", "0.5"),
        (parse_number, "1,2,3", "0.5"),
        (parse_whole_number, "1e3", "1000"),
        (parse_whole_number, "5.0", "5"),
        (parse_whole_number, "2,0", "2"),
        (parse_whole_number, "10,000", "10000"),
        (parse_whole_number, "-10 000", "-10000"),
        (parse_whole_number, "2,5", "1000"),
        (parse_whole_number, "1e99", "1000"),
        (parse_whole_number, "nan", "1000"),
        (parse_whole_number, "ten", "1000"),
    ],
)
def test_a_misspelled_number_is_answered_with_the_right_one(parse, text, meant):
    with pytest.raises(argparse.ArgumentTypeError) as error:
        parse(text)
    assert str(error.value).startswith(repr(text)) and str(error.value).split()[-1] == meant


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--validation_split", "0,1"], "^--validation_split: .* 0[.]1$"),
        (["--max_train_steps", "1e3"], "^--max_train_steps: .* 1000$"),
        (["--num_train_epochs=5.0"], "^--num_train_epochs: .* 5$"),
    ],
)
def test_training_options_explain_numbers(flags, named):
    with pytest.raises(UserError, match=named):
        parse_config([*REQUIRED, *flags])


def test_every_script_explains_numbers():
    parser = ScriptParser(None)
    parser.add_argument("--strength", type=float, nargs="+")
    with pytest.raises(UserError, match="^--strength: .* 0[.]8;"):
        parser.parse_args(["--strength", "1", "80%"])
