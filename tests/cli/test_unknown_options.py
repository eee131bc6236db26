"""What is said of an unknown option, or of a word that belongs to none."""

import re

import pytest

from hypernet.cli.option_aliases import find_aliases
from hypernet.cli.script import ScriptParser
from hypernet.cli.training_options import options_to_flags, parse_config
from hypernet.utils.errors import UserError

REQUIRED = ["--pretrained_model_name_or_path", "model", "--train_data_dir", "images"]


@pytest.fixture
def parser():
    """A script with a few options, some of them named as in training."""
    parser = ScriptParser(None)
    parser.add_argument("SRC")
    parser.add_argument("--size")
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--prompt")
    parser.add_argument("--max_side", type=int)
    parser.add_argument("--model")
    return parser


@pytest.mark.parametrize(
    "flags, named",
    [
        ("--lr 1e-3", "--lr;.*--learning_rate"),
        ("--save_every_n_steps=500", "--save_every_n_steps;.*--checkpointing_steps"),
        ("--max_train_epochs 3", "--max_train_epochs;.*--num_train_epochs"),
        ("--network-dim 8", "--network_dim;.*--layer_structure"),
        ("--use_dropout", "--use_dropout;.*--dropout_structure true"),
        ("--clip_grad_value 0.1", "--clip_grad_value;.*--max_grad_norm or --max_grad_value"),
        ("--train_batch 2", "--train_batch;.*--train_batch_size"),
        ("--preview_width 512", "--preview_width;.*--validation_resolution"),
        ("--process_split", "--process_split;.*prepare.py --split"),
        ("-lr 1", "option -lr;.*--learning_rate"),
        ("--learning_rte 1", "--learning_rte;.*--learning_rate"),
        ("--xyzzy 1", "--xyzzy;.*--help"),
        ("--xyzzy --lr 1 --v2", r"--xyzzy \(\?\), --lr \(--learning_rate\), --v2 \(((?!--).)*\).*from_webui.md"),
        ("--layer_structure 1, 2, 1", '--layer_structure "1, 2, 1"$'),
        ("--learning_rate 5e-6:12000, 5e-7:30000 --seed 3", '--learning_rate "5e-6:12000, 5e-7:30000"$'),
        ("--output_dir=out/my style --seed 3", '--output_dir "out/my style"$'),
        ("--name style --output_dir out/my style", '--output_dir "out/my style"$'),
        ("--resolution 512 768", "'768'.*--resolution takes one"),
        ("--seed 3 4", "'4'.*--seed takes one"),
        ("--overwrite=true my.yaml", "'my.yaml'.*--overwrite takes one"),
    ],
)
def test_a_command_line_is_told_what_was_meant(flags, named):
    with pytest.raises(UserError, match=named) as error:
        parse_config([*REQUIRED, *flags.split(" ")])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("word, meant", [("my.yaml", "--config my.yaml"), ("stray", "quotes")])
def test_a_word_before_all_options(word, meant):
    with pytest.raises(UserError, match=f"{word!r}.*{meant}"):
        parse_config([word, *REQUIRED])


def test_what_is_different_is_said_with_the_option():
    for name in ("text_encoder_layer_skip", "network_alpha"):
        (alias,) = find_aliases(name)
        with pytest.raises(UserError, match=re.escape(alias.difference)):
            parse_config([*REQUIRED, f"--{name}", "1"])


@pytest.mark.parametrize(
    "options, named",
    [
        ({"batch_size": 4}, "option batch_size;.*mean train_batch_size"),
        ({"Max steps": 4}, "option Max steps;.*mean max_train_steps"),
        ({"layer_norn": True}, "option layer_norn;.*mean layer_norm"),
        ({"network_dim": 8, "seed": 1, "id_task": 0}, r"network_dim \(layer_structure 1,2,1\), id_task \("),
    ],
)
def test_a_yaml_file_is_told_in_its_own_form(options, named):
    with pytest.raises(UserError, match=named):
        options_to_flags(options)


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--width", "64"], "--width;.*mean --size 768x512"),
        (["--process_flip"], "--process_flip;.*mean --flip"),
        (["--prompts", "a cat"], "--prompts;.*mean --prompt"),
        (["--max-side", "64"], "--max-side;.*mean --max_side"),
        (["--resolution", "64"], "--resolution;.*mean --size"),
        (["--pretrained_model_name_or_path", "sd"], "--pretrained_model_name_or_path;.*mean --model"),
        (["--validation_prompt", "a cat"], "--validation_prompt;.*mean --prompt"),
        (["--use_weight"], "--use_weight;.*mean train_hypernetwork.py --alpha_weight"),
        (["--prompt", "a", "red", "star"], '--prompt "a red star"$'),
        (["images"], "'images'.*quotes"),
        (["--prompt", "a", "~/cat"], "quotes"),
    ],
)
def test_other_scripts_name_their_own_options_first(parser, flags, named):
    with pytest.raises(UserError, match=named):
        parser.parse_args(["raw", *flags])


def test_many_unknown_options_stay_one_short_line():
    with pytest.raises(UserError) as error:
        parse_config([*REQUIRED, *(f"--unknown_{number}" for number in range(30))])
    assert (
        "--unknown_7 " in str(error.value) and "--unknown_8" not in str(error.value) and "22 more" in str(error.value)
    )
