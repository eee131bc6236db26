"""Notes on valid options that are probably not what the user meant."""

import pytest

from hypernet.cli.option_notes import option_notes
from hypernet.cli.training_options import parse_config

REQUIRED = ["--pretrained_model_name_or_path", "model", "--train_data_dir", "images"]
TEMPLATE = ["--name=ink", "--template", "[filewords], art by [name]"]


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--validation_prompt", "a", "red", "cat"], "--validation_prompt a red cat"),
        (["--validation_prompt", "a cat", "a", "dog"], "--validation_prompt"),
        (["--validation_prompt", "[filewords], a cat"], "[filewords]"),
        (["--validation_prompt", "a {caption}"], "{caption}"),
        ([*TEMPLATE, "--validation_prompt", "a cat"], "--template"),
        (["--learning_rate", "1e-4:50, 1e-5:200", "--max_train_steps=50"], "--learning_rate 1e-4:50, 1e-5:200"),
        (["--learning_rate", "1e-4:12000, 1e-5"], "--learning_rate 1e-4:12000, 1e-5"),
        (["--max_grad_norm", "1:20000, 0.5"], "--max_grad_norm"),
        (["--clip_grad_mode=value", "--max_grad_value", "1:20000, 0.5"], "--max_grad_value"),
        (["--output_dir=out/.ink"], "--name .ink"),
    ],
)
def test_one_note_names_the_option(flags, named):
    (note,) = option_notes(parse_config([*REQUIRED, *flags]))
    assert named in note and "\n" not in note


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--validation_prompt", "a cat", "a dog"],
        ["--validation_prompt", "cat"],
        ["--validation_prompt", "a [dark] cat, [a|b]"],
        [*TEMPLATE, "--validation_prompt", "a cat, art by [name]", "a dog"],
        ["--learning_rate", "1e-4:50, 1e-5:200"],
        ["--learning_rate", "1e-4:50, 1e-5:200", "--max_train_steps=51"],
        ["--max_grad_norm", "1:20, 0.5"],
    ],
)
def test_no_note_on_sensible_options(flags):
    assert option_notes(parse_config([*REQUIRED, *flags])) == []
