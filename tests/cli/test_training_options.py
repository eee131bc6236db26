"""Options from the command line and from YAML; what is refused, in one line."""

from pathlib import Path

import pytest

from hypernet.cli.training_options import options_table, parse_config, run_label
from hypernet.utils.errors import UserError
from tests.helpers.scripts import REPO

NEEDED = ["--pretrained_model_name_or_path", "model", "--train_data_dir", "images"]


def test_yaml_comes_before_flags(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(
        "pretrained_model_name_or_path: m\ntrain_data_dir: d\nmax_train_steps: 30\nlearning_rate: 5e-6\n"
        "layer_structure: [1, 1.5, 1]\nlayer_norm: true\nvalidation_prompt: [a cat, 'a dog, running']\n"
        "adam_epsilon: 1e-7\nwidths: null\noutput_dir: out/My style\n"
    )
    config = parse_config(["--config", str(file), "--max_train_steps", "50"])
    assert (config.max_train_steps, config.learning_rate, config.adam_epsilon) == (50, "5e-6", 1e-7)
    assert config.layer_structure_numbers == [1, 1.5, 1] and config.layer_norm and config.widths is None
    assert config.validation_prompt == ["a cat", "a dog, running"] and config.name == "My style"
    assert parse_config(["--layer_norm=false", "--config", str(file)]).layer_norm is False


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--learning_rte", "1"], r"unknown option --learning_rte; did you mean --learning_rate\?"),
        (["--learn", "1"], "unknown option --learn"),
        (["stray"], "'stray' stands alone"),
        (["--max_train_steps", "ten"], "^--max_train_steps: invalid int value: 'ten'"),
        (["--max_train_steps", "0"], "--max_train_steps 0: it must be 1 or more"),
        (["--learning_rate", "1e-5:9, 1e-6:8"], r"--learning_rate .*>>> 1e-6:8<<<"),
        (["--layer_structure", "2,1"], "--layer_structure 2,1: it must start and end with 1"),
        (["--layer_structure", "1,x,1"], "--layer_structure 1,x,1: 'x' is not a number"),
        (["--activation", "rellu"], "--activation 'rellu' is unknown; choose one of .*relu"),
        (["--dropout_structure", "0,0.5"], "--dropout_structure 0,0.5: it needs 3"),
        (["--mixed_precision", "fp8"], "--mixed_precision fp8: choose one of no, fp16, bf16"),
        (["--report_to", "mlflow"], "--report_to mlflow: choose one of"),
        (["--adam_beta2", "1"], "--adam_beta2 1.0: it must be from 0 to below 1"),
        (["--name", "a/b"], "--name a/b: it becomes a file name"),
        (["--name", "a:b"], "--name a:b: it becomes a file name"),
        (["--seed", "5000000000"], "--seed 5000000000: it must be below"),
        (["--layer_structure", "1,inf,1"], "--layer_structure 1,inf,1: 'inf' is not a number"),
        (["--template", "none.txt"], "--template none.txt: there is no such file"),
        (["--widths", "320,abc"], "--widths 320,abc: 'abc' is not a number"),
        (["--config", "none.yaml"], "--config none.yaml: there is no such file"),
        (["--train_data_dir", ""], "--train_data_dir is missing"),
        (["--dataset_name", "a/b"], "--train_data_dir images: name a folder or a data set, not both"),
        (["--tag_dropout", "1.5"], "--tag_dropout 1.5: a probability is from 0 to 1"),
        (["--caption_dropout", "-0.1"], "--caption_dropout -0.1: a probability is from 0 to 1"),
        (["--filename_word_regex", "[a-"], r"--filename_word_regex \[a-: it is no regular expression"),
        (["--resolution", "big"], "--resolution big: write a side, such as 512, or WIDTHxHEIGHT"),
        (["--resolution", "0"], "--resolution 0: write a side"),
        (["--resolution", "32", "--aspect_buckets"], "--resolution 32x32 has no aspect buckets"),
        (["--alpha_background", "#ffffff00"], "--alpha_background #ffffff00: it is no colour"),
        (["--template", "by [Name]"], r"--template by \[Name\]: it has \[Name\]; did you mean \[name\]"),
        (["--template", "a [fileword]"], r"it has \[fileword\]; did you mean \[filewords\]"),
        (["--template", "styl"], "--template styl: there is no such file"),
        (["--alpha_background", "whit"], "--alpha_background whit: it is no colour"),
        (["--crop", "middle"], "--crop middle: choose one of center, random, none"),
        (["--latent_sampling", "mean"], "--latent_sampling mean: choose one of deterministic, once, random"),
        (["--template", "style", "--shuffle_tags"], r"--shuffle_tags: --template style has no \[filewords\]"),
        (
            ["--template", "styl_e"],
            "--template styl_e: there is no such file, and no such template is shipped; there are hyper",
        ),
        (["--varsize", "--aspect_buckets"], "--varsize: choose it or --aspect_buckets"),
        (["--crop_variants", "3"], "--crop_variants 3: it belongs to --crop random"),
        (["--keep_tags", "1"], "--keep_tags 1: it belongs to --shuffle_tags or --tag_dropout"),
        (["--caption_variants", "2"], "--caption_variants 2: it belongs to --shuffle_tags or --tag_dropout"),
        (["--bucket_upscale"], "--bucket_upscale: it belongs to --aspect_buckets"),
        (["--image_column", "x"], "--image_column x: it belongs to --dataset_name"),
    ],
)
def test_mistakes_get_one_line(flags, message):
    with pytest.raises(UserError, match=message) as error:
        parse_config([*NEEDED, *flags])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text, size", [("512", (512, 512)), ("768x512", (768, 512)), (" 64 X 128 ", (64, 128))])
def test_resolution(text, size):
    assert parse_config([*NEEDED, "--resolution", text]).size == size


def test_unknown_key_in_yaml(tmp_path):
    (tmp_path / "a.yaml").write_text("train_data: x\n")
    with pytest.raises(UserError, match=r"a\.yaml: unknown option train_data; did you mean train_data_dir\?"):
        parse_config(["--config", str(tmp_path / "a.yaml")])
    (tmp_path / "a.yaml").write_text("template: [filewords]")
    with pytest.raises(UserError, match=r"a\.yaml: template: \[...\] is a list in YAML; put the value in quotes"):
        parse_config(["--config", str(tmp_path / "a.yaml")])
    (tmp_path / "a.yaml").write_text("[1, 2")
    with pytest.raises(UserError, match="it cannot be read as YAML"):
        parse_config(["--config", str(tmp_path / "a.yaml")])


def test_readme_lists_every_option():
    assert options_table() in Path(REPO / "examples" / "docs" / "options.md").read_text(encoding="utf-8")


def test_runs_are_called_after_what_differs(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(
        "pretrained_model_name_or_path: m\ntrain_data_dir: d\nname: ink\nactivation: relu\nlearning_rate: 1e-4\n"
    )
    flags = ["--config", str(file), "--activation=mish", "--learning-rate", "1e-3", "--no_guard", "--output_dir=o/b"]
    flags += ["--adam_beta2=0.99", "--train_batch_size=1", "--validation_prompt", "a cat"]
    label = run_label(parse_config(flags), flags)
    assert label == "ink, activation=mish, learning_rate=1e-3, guard=False, adam_beta2=0.99"  # not what has its default
    assert run_label(parse_config([*flags, "--run_name=first"]), flags) == "first"
    assert run_label(parse_config(["--config", str(file)]), ["--config", str(file)]) == "ink"
