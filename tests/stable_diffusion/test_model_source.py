"""The options that choose a base model are checked before anything is read."""

import pytest

from hypernet.stable_diffusion.model_source import ModelSource
from hypernet.utils.errors import UserError


@pytest.mark.parametrize(
    "options, named",
    [
        ({"prediction_type": "flow"}, "--prediction_type flow.* epsilon, v_prediction, sample"),
        ({"clip_skip": 0}, "--clip_skip 0"),
        ({"max_token_chunks": 0}, "--max_token_chunks 0"),
        ({"lora": ("a:b",)}, "--lora a:b"),
    ],
)
def test_refuses_values_that_cannot_work(options, named):
    with pytest.raises(UserError, match=f"^{named}"):
        ModelSource("model", **options)


def test_a_path_of_another_system_and_an_address_are_named_as_such():
    for path, named in (("C:\\models\\a.safetensors", "Windows"), ("https://huggingface.co/a/b/tree/main", " a/b$")):
        with pytest.raises(UserError, match=f"^--pretrained_model_name_or_path .*{named}"):
            ModelSource(path).check()
