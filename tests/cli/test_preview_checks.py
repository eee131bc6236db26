"""Mistakes in the options on previews."""

import pytest

from hypernet.cli.training_options import parse_config
from hypernet.utils.errors import UserError

REQUIRED = ["--pretrained_model_name_or_path", "model", "--train_data_dir", "images"]


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--validation_sampler=Eulr"], ["--validation_sampler 'Eulr'", "Euler"]),
        (["--validation_sampler=Euler a Karras"], ["--validation_sampler", "SGM Uniform"]),
        (["--validation_seed=-2"], ["--validation_seed -2", "-1"]),
        (["--validation_resolution=500"], ["--validation_resolution 500", "8"]),
        (["--validation_resolution=wide"], ["--validation_resolution wide"]),
        (["--validation_inference_steps=1001"], ["--validation_inference_steps 1001"]),
        (["--validation_guidance_scale=-1"], ["--validation_guidance_scale -1"]),
        (["--validation_prompts_file=missing.txt"], ["--validation_prompts_file missing.txt"]),
        (["--validation_prompt", "a <hypernet:x:1>"], ["<hypernet:x:1>"]),
    ],
)
def test_refuses(flags, named):
    with pytest.raises(UserError) as caught:
        parse_config([*REQUIRED, "--validation_prompt", "a cat", *flags])
    assert all(word in str(caught.value) for word in named), caught.value


@pytest.mark.parametrize("flag", ["negative_prompt=red", "sampler=Euler", "seed=1", "resolution=64"])
def test_settings_without_a_prompt_are_refused(flag):
    with pytest.raises(UserError, match=f"--validation_{flag.partition('=')[0]} .*--validation_prompt "):
        parse_config([*REQUIRED, f"--validation_{flag}"])


def test_a_prompt_in_a_file_is_checked_like_one_on_the_command_line(tmp_path):
    for line, named in [("a cat --ss Eulr", "Eulr"), ("a <lora:x:1>", "<lora:x:1>")]:
        (tmp_path / "prompts.txt").write_text(f"a dog\n{line}\n")
        with pytest.raises(UserError) as caught:
            parse_config([*REQUIRED, "--validation_prompts_file", str(tmp_path / "prompts.txt")])
        assert "prompts.txt: line 2: " in str(caught.value) and named in str(caught.value)
