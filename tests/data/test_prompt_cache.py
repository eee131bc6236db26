"""Embeddings of prompts: where the disk has no room for them."""

import shutil

from tests.helpers.encoding import configure, encode


def test_encodes_at_each_step_without_room_in_the_cache(epsilon_models, images_dir, tmp_path, monkeypatch, capsys):
    full = shutil.disk_usage(tmp_path)._replace(free=8 * 32 * 12 * 4)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    dataset, _ = encode(epsilon_models, configure(images_dir, tmp_path))
    assert not dataset.is_cached and "8 prompts" in capsys.readouterr().out
    monkeypatch.undo()
    dataset, _ = encode(epsilon_models, configure(images_dir, tmp_path))
    assert dataset.is_cached
