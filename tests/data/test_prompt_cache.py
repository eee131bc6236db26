"""Embeddings of prompts: where the disk has no room for them."""

import shutil

import torch

from hypernet.data.arrow_cache import CACHE_VERSION, FLOATS, RowCache
from hypernet.data.prompt_cache import open_embeds
from hypernet.stable_diffusion.text_encoding import encode_prompts, text_hash
from tests.helpers.encoding import configure, encode


def test_encodes_at_each_step_without_room_in_the_cache(epsilon_models, images_dir, tmp_path, monkeypatch, capsys):
    encode(epsilon_models, configure(images_dir, tmp_path, template="a drawing"))  # images are always cached
    full = shutil.disk_usage(tmp_path)._replace(free=8 * 32 * 12 * 4)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    capsys.readouterr()
    dataset, _ = encode(epsilon_models, configure(images_dir, tmp_path))
    assert not dataset.is_cached and "8 prompts" in capsys.readouterr().out
    monkeypatch.undo()
    dataset, _ = encode(epsilon_models, configure(images_dir, tmp_path))
    assert dataset.is_cached


def test_reuses_older_caches_except_for_prompts_read_differently(epsilon_models, tmp_path):
    """The cache is of a version that did not yet replace quotes, ligatures and full-width letters."""
    prompts = ["a cat", "a \u201ccat\u201d"]
    cache = RowCache(
        tmp_path / f"prompts-{CACHE_VERSION}-{text_hash(epsilon_models)}", {"prompt_embeds": FLOATS, "pooled": FLOATS}
    )
    size = encode_prompts(epsilon_models, ["a cat"])[0].tokens.numel()
    rows = ({"key": prompt, "prompt_embeds": [5.0] * size, "pooled": None} for prompt in prompts)
    cache.fill(dict.fromkeys(prompts), lambda items: rows, "", "")
    for _ in range(2):
        old, new = open_embeds(epsilon_models, prompts, str(tmp_path))(prompts)
        assert (old.tokens == 5).all()
        torch.testing.assert_close(new.tokens, encode_prompts(epsilon_models, ['a "cat"'])[0].tokens)
