"""The model card: valid metadata and code, and no private paths."""

import ast
import re

import pytest
from huggingface_hub import HfApi, ModelCard

from hypernet import Hypernetwork
from hypernet.config import TrainingConfig
from hypernet.stable_diffusion.base_model import BaseModel, identify_base_model
from hypernet.stable_diffusion.model_source import ModelSource
from hypernet.training.model_card import push_to_hub, write_card
from hypernet.training.run_folder import RunFolder


@pytest.fixture
def base(models_dir) -> BaseModel:
    return identify_base_model(ModelSource(str(models_dir / "epsilon")))


def configure(base: BaseModel, tmp_path, **options) -> tuple[RunFolder, TrainingConfig]:
    options = {"name": "ink", "output_dir": str(tmp_path / "run"), **options}
    config = TrainingConfig(pretrained_model_name_or_path=base.source.path, **options)
    folder = RunFolder(config)
    folder.create(overwrite=False)
    return folder, config


def test_special_characters_are_escaped(base, tmp_path):
    prompt, source = 'a "red" \\(cat\\) | dog', "C:\\new\\ink"
    folder, config = configure(base, tmp_path, name="my: style", filename_word_regex="a|b")
    write_card(folder, config, base, Hypernetwork([12, 32], activation="relu"), source, prompt, {}, "")
    card = ModelCard.load(folder.card)
    assert card.data.library_name == "diffusers" and "hypernetwork" in card.data.tags
    assert card.data.base_model is None  # it is a folder here
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    strings = {node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)}
    assert {prompt, source, base.source.path} <= strings
    assert "(my%3A%20style.pt)" in card.text and "a\\|b" in card.text


def test_private_options_are_left_out(base, tmp_path):
    options = {"train_data_dir": "/home/me/images", "cache_dir": "/home/me/cache", "push_to_hub": True, "seed": 7}
    folder, config = configure(base, tmp_path, **options)
    write_card(folder, config, base, Hypernetwork([12, 32]), "me/ink", "a cat", {}, "")
    text = folder.card.read_text()
    assert "/home/me" not in text and str(tmp_path) not in text and base.source.path not in text
    assert "| seed | 7 |" in text


def test_failed_upload_leaves_a_card(base, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise OSError("no\nconnection")

    monkeypatch.setattr(HfApi, "create_repo", fail)
    folder, config = configure(base, tmp_path, push_to_hub=True)
    line = push_to_hub(folder, config, base, Hypernetwork([12, 32]), "a cat", {}, "")
    assert "no connection" in line and str(folder.root) in line and folder.card.is_file()
