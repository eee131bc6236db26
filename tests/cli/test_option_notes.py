"""Notes on valid options that are probably not what the user meant."""

import re

import pytest

from hypernet.cli.option_notes import option_notes, placeholder_note, repeated_notes, strength_note
from hypernet.cli.training_options import parse_config

REQUIRED = ["--pretrained_model_name_or_path", "model", "--train_data_dir", "images"]
TEMPLATE = ["--name=ink", "--template", "[filewords], art by [name]"]


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--validation_prompt", "a", "red", "cat"], "--validation_prompt a red cat"),
        (["--validation_prompt", "a cat", "a", "dog"], "--validation_prompt"),
        (["--template=[filewords], in ink", "--validation_prompt", "a cat"], "a cat, in ink"),
        (["--validation_prompt", "a {caption}"], "{caption}"),
        ([*TEMPLATE, "--validation_prompt", "a cat"], "--template"),
        (["--learning_rate", "1e-4:50, 1e-5:200", "--max_train_steps=50"], "--learning_rate 1e-4:50, 1e-5:200"),
        (["--learning_rate", "1e-4:12000, 1e-5"], "--learning_rate 1e-4:12000, 1e-5"),
        (["--max_grad_norm", "1:20000, 0.5"], "--max_grad_norm"),
        (["--clip_grad_mode=value", "--max_grad_value", "1:20000, 0.5"], "--max_grad_value"),
        (["--output_dir=out/.ink"], "--name .ink"),
        (["--output_dir=out/ink.pt"], "--name ink.pt"),
        (["--validation_prompt", "'a", "cat'"], "double"),
        (["--validation_prompt", "prompts.txt"], "--validation_prompts_file"),
        (["--lora", "a.safetensors:80"], "--lora a.safetensors:80: .* 0.8$"),
        (["--caption_dropout=1"], "--caption_dropout 1"),
        (["--validation_split=0.9"], "--validation_split 0.9"),
        (["--noise_offset=5"], "--noise_offset 5"),
        (["--validation_guidance_scale=75"], "--validation_guidance_scale 75"),
        (["--ema_decay=0.1"], "--ema_decay 0.1"),
        (["--prompt_emphasis", "--validation_prompt", "a (cat:1,3)"], r"\(cat:1\.3\)$"),
        (["--learning_rate=5e-6", "--max_train_steps=100"], "--learning_rate 5e-6"),
        (["--learning_rate=1e-9"], "--learning_rate 1e-9"),
        (["--learning_rate=1"], "--learning_rate 1"),
        (["--learning_rate=1e5"], "--learning_rate 1e5: .*1e-05"),
        (["--learning_rate=0.2:9, 1e-5", "--optimizer=Lion8bit"], "--learning_rate 0.2:9, 1e-5"),
        (["--learning_rate=1e-4", "--optimizer=Adadelta"], "--learning_rate 1e-4: .*Adadelta"),
        (["--optimizer=SGD"], "--learning_rate 1e-5: .*SGD"),
        (["--layer_structure=1,1,5,1"], "--layer_structure 1,1,5,1"),
    ],
)
def test_one_note_names_the_option(flags, named):
    (note,) = option_notes(parse_config([*REQUIRED, *flags]))
    assert (named in note or re.search(named, note)) and "\n" not in note


def test_notes_on_prompts_in_a_file_name_the_option(tmp_path):
    (tmp_path / "prompts.txt").write_text("a {caption}")
    flags = [*TEMPLATE, "--validation_prompts_file", str(tmp_path / "prompts.txt")]
    notes = option_notes(parse_config([*REQUIRED, *flags]))
    assert [note.partition(":")[0] for note in notes] == ["--validation_prompts_file"] * 2


def test_placeholders_that_no_script_fills():
    assert placeholder_note(["a cat", "a [dark] cat"]) is None
    assert "[name]" in placeholder_note(["a cat", "a cat by [name]"])


def test_strengths_that_look_like_percentages():
    assert strength_note([1, 5, 0, -1.5]) is None
    assert "0.8" in strength_note([1, 80]) and "-20, 80" in strength_note([80, -20, 80])


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--validation_prompt", "a cat", "a dog"],
        ["--validation_prompt", "cat"],
        ["--validation_prompt", "a [dark] cat, [a|b]"],
        ["--validation_prompt", "[filewords], in a [folder]"],
        ["--template=[filewords], in ink", "--validation_prompt", "a cat", "a dog in ink"],
        [*TEMPLATE, "--validation_prompt", "a cat, art by [name]", "a dog"],
        ["--learning_rate", "1e-4:50, 1e-5:200"],
        ["--learning_rate", "1e-4:50, 1e-5:200", "--max_train_steps=51"],
        ["--max_grad_norm", "1:20, 0.5"],
        ["--layer_structure", "1,1.5,1.5,1"],
        ["--lora", "a.safetensors:1.5"],
        ["--learning_rate=1e-9", "--max_train_steps=20"],
        ["--learning_rate=5e-7:3000"],
        ["--learning_rate=1", "--optimizer=Adadelta"],
        ["--learning_rate=1", "--optimizer=SGD"],
    ],
)
def test_no_note_on_sensible_options(flags):
    assert option_notes(parse_config([*REQUIRED, *flags])) == []


@pytest.mark.parametrize("flags", [["--train_data_dir", "b"], ["--train-data-dir=b", "c"], ["--train_data_dir="]])
def test_an_option_that_takes_the_place_of_an_earlier_one_gets_a_note(monkeypatch, flags):
    monkeypatch.setattr("sys.argv", ["train.py", *REQUIRED, *flags])
    (note,) = option_notes(parse_config(REQUIRED))
    assert note.startswith("--train_data_dir: ")
    assert repeated_notes([*REQUIRED, "--lora", "a", "--lora=b", "--seed=1", "--guard", "--", "--"]) == []
