"""Words of a command line that no option takes, or that one takes by mistake."""

import pytest

from hypernet.cli.script import ScriptParser
from hypernet.cli.training_options import parse_config
from hypernet.utils.errors import UserError

REQUIRED = ["--pretrained_model_name_or_path", "model", "--train_data_dir", "images"]


def parse_script(words):
    """Parse words with a script's parser."""
    parser = ScriptParser(None)
    parser.add_argument("--hypernetwork", nargs="+")
    parser.add_argument("--size")
    parser.parse_args(words)


def test_an_option_with_other_dashes_is_named():
    for words in (["\u2014seed", "1"], ["\u2013seed", "1"], ["-seed", "1"], ["seed=1"], ["\u2212\u2212seed=1"]):
        for place in ([*words, *REQUIRED], [*REQUIRED, *words], [*REQUIRED, "--validation_prompt", "a", *words]):
            with pytest.raises(UserError, match=r"--seed\b"):
                parse_config(place)
    for words in (["\u2014size", "64"], ["--hypernetwork", "a", "\u2014size=64"]):
        with pytest.raises(UserError, match=r"--size\b"):
            parse_script(words)


@pytest.mark.parametrize("end", ["\\", "^", "`", " \\"])
def test_another_shells_line_end_is_explained(end):
    for parse, words in ((parse_config, [*REQUIRED, end]), (parse_config, [end]), (parse_script, ["--size=9", end])):
        with pytest.raises(UserError, match="one line"):
            parse(words)


def test_a_missing_value_is_named():
    for words in (["--learning_rate", "-1e-5"], ["--learning_rate"], ["--lr_power", "--random_flip"]):
        with pytest.raises(UserError, match=f"^{words[0]}: "):
            parse_config([*REQUIRED, *words])
    with pytest.raises(UserError, match="^--size: "):
        parse_script(["--size"])


def test_prompts_and_paths_that_resemble_options_stay():
    config = parse_config([*REQUIRED, "--validation_prompt", "a \u2014 b", "\u2014", "caption=x", "\u2014 seed"])
    assert len(config.validation_prompt) == 4


def test_a_word_that_an_option_takes_may_be_an_options_name():
    parse_script(["--hypernetwork", "size", "64"])  # as in: xy_plot.py --x seed 1 2


def test_the_name_of_a_preset_is_completed(tmp_path):
    for name in ("quickstart", "quickstart.yaml", "8gb"):
        with pytest.raises(UserError, match="examples/configs/.*yaml"):
            parse_config(["--config", name])
    with pytest.raises(UserError, match="no such file$"):
        parse_config(["--config", str(tmp_path / "other.yaml")])
