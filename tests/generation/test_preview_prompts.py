"""The prompts of previews: options for all, settings of their own, labels, and what is left out of WebUI texts."""

import pytest

from hypernet.cli.training_options import parse_config
from hypernet.generation.preview_prompts import check_sizes, infotext_note, preview_labels, preview_prompts
from hypernet.utils.errors import UserError

REQUIRED = ["--pretrained_model_name_or_path", "model", "--train_data_dir", "images"]
INFOTEXT = "a {}\nSteps: 20, Sampler: Euler a, CFG scale: 6, Seed: 7, Size: 64x96, Model hash: {}, Model: other"


@pytest.fixture
def config_with(tmp_path):
    """Return the options with these flags, and a file of prompts with this content."""

    def build(content, *flags, name="prompts.txt"):
        (tmp_path / name).write_text(content)
        return parse_config([*REQUIRED, "--validation_prompts_file", str(tmp_path / name), *flags])

    return build


def test_the_options_hold_for_what_a_prompt_does_not_say(config_with):
    flags = ["--validation_prompt", "a star", "--seed=4", "--resolution=128x64", "--validation_negative_prompt=red"]
    flags += ["--validation_inference_steps=9", "--validation_guidance_scale=3"]
    star, cat, dog = preview_prompts(config_with("a cat --h 32 --d -1 --n\na dog --s 2 --l 1 --ss ddim", *flags))
    plain = {"negative_prompt": "red", "sampler": None, "seed": 4, "size": [128, 64], "steps": 9, "guidance_scale": 3}
    assert star.settings() == {"prompt": "a star", **plain}
    assert cat.settings() == {"prompt": "a cat", **plain, "size": [128, 32], "seed": -1, "negative_prompt": ""}
    assert dog.settings() == {"prompt": "a dog", **plain, "steps": 2, "guidance_scale": 1, "sampler": "ddim"}
    assert star.flags() == ["--negative_prompt=red"] and cat.with_seed(5).seed == 5 and dog.with_seed(5).seed == 4
    assert set(dog.flags()) == {"--negative_prompt=red", "--sampler=ddim", "--steps=2", "--guidance_scale=1"}
    assert star.source("size") == "--validation_resolution" and "line 1: size" in cat.source("size")

    flags = ["--validation_seed=8", "--validation_resolution=[64, 32]", "--validation_sampler=euler a"]
    star, *_ = preview_prompts(config_with("a cat", "--validation_prompt=a star", *flags[:1], *flags[2:]))
    assert (star.seed, star.sampler, star.size) == (8, "euler a", (512, 512))


def test_without_the_new_options_previews_are_what_they_were():
    (prompt,) = preview_prompts(
        parse_config([*REQUIRED, "--validation_prompt=a cat", "--seed=3", "--resolution=96x64"])
    )
    usual = {"negative_prompt": "", "sampler": None, "seed": 3, "size": [96, 64], "steps": 25, "guidance_scale": 7.5}
    assert prompt.settings() == {"prompt": "a cat", **usual} and prompt.flags() == []
    assert preview_prompts(parse_config(REQUIRED)) == []


def test_labels_tell_prompts_of_the_same_text_apart(config_with):
    prompts = preview_prompts(config_with("a cat --s 2 --ss ddim\na cat --s 3\na dog --s 4\na cat --s 3 --d 1"))
    labels = preview_labels(prompts)
    assert labels[2] == "a dog" and len(set(labels)) == 4 and all(label.endswith("a cat") for label in labels[:2])


def test_sizes_must_fit_the_model(config_with):
    prompts = preview_prompts(config_with("a cat --w 72", "--resolution=72"))
    check_sizes(prompts, 8)
    with pytest.raises(UserError, match="line 1: size 72x"):
        check_sizes(prompts, 16)
    with pytest.raises(UserError, match="--validation_resolution 72x72"):
        check_sizes(preview_prompts(config_with("a cat", "--validation_resolution=72")), 16)


def test_one_note_on_what_is_left_out_of_a_webui_text(config_with):
    def note(text, model_hash="abc", clip_skip=1, emphasis=False):
        return infotext_note(preview_prompts(config_with(text)), model_hash, clip_skip, emphasis)

    text = INFOTEXT.format("cat", "abc")
    assert note(text) is None and note("a (cat)") is None and note(text + ", RNG: CPU, Version: v1.10") is None
    for more, named in [
        (", Hires upscale: 2, Denoising strength: 0.5", ["Hires upscale", "Denoising strength"]),
        (", RNG: NV", ["RNG"]),
        (", Clip skip: 2", ["clip skip 2", "--clip_skip"]),
    ]:
        assert all(word in note(text + more) for word in named)
    assert note(text + ", Clip skip: 2", clip_skip=2) is None and note(text + ", Clip skip: 2", clip_skip=None) is None
    assert "other (abc)" in note(text, model_hash="def")
    assert "<hypernet:ink:1>" in note(INFOTEXT.format("cat <hypernet:ink:1>", "abc"))
    weighed = INFOTEXT.format("(cat:1.2)", "abc")
    assert "--prompt_emphasis" in note(weighed) and note(weighed, emphasis=True) is None
