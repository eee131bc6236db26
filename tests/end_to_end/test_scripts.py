"""examples/generate.py and examples/show_data.py, run as their users run them."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

import hypernet
from examples import generate, show_data
from hypernet.utils.errors import UserError
from tests.helpers.scripts import REPO, run, train_here


def test_train_and_generate(models_dir, images_dir, tmp_path, capsys):
    output = tmp_path / "style"
    train_here(models_dir, images_dir, output, "--max_train_steps=2", "--checkpointing_steps=1", "--learning_rate=1e-2")
    flags = ["--prompt", "a red star", "--steps=3", "--seed=4", "--num_images=2", "--output_dir", tmp_path / "images"]
    generate.main([str(flag) for flag in ("--hypernetwork", output, "--strength=0.8", *flags)])
    paths = capsys.readouterr().out.splitlines()
    assert len(paths) == 2
    pipe = StableDiffusionPipeline.from_pretrained(models_dir / "epsilon", dtype=torch.float32)
    hypernet.attach(pipe.unet, hypernet.load(output / "style.pt"), 0.8)
    for i, path in enumerate(paths):
        generator = torch.Generator().manual_seed(4 + i)
        expected = pipe("a red star", num_inference_steps=3, guidance_scale=7.5, generator=generator).images[0]
        difference = np.asarray(Image.open(path), np.int16) - np.asarray(expected, np.int16)
        assert np.abs(difference).max() <= 1
    alone = shutil.copy(output / "style.pt", tmp_path)
    done = run(REPO / "examples/generate.py", "--hypernetwork", alone, *flags)
    assert done.returncode == 2 and "--model is missing" in done.stderr and done.stderr.count("\n") == 1


def test_show_data(models_dir, mixed_dir, tmp_path, capsys):
    folder, sheet = tmp_path / "images", tmp_path / "sheets" / "data.png"
    shutil.copytree(mixed_dir, folder)
    (folder / "empty.png").write_bytes(b"")
    Image.open(folder / "0.png").save(folder / "again.bmp")
    (folder / "again.txt").write_text("a cat, " * 20)
    Image.open(folder / "1.png").crop((0, 0, 30, 30)).save(folder / "tiny.png")
    flags = ["--pretrained_model_name_or_path", models_dir / "epsilon", "--train_data_dir", folder]
    flags += ["--cache_dir", tmp_path / "cache", "--resolution=64", "--output_dir", tmp_path / "none"]
    done = run(REPO / "examples" / "show_data.py", "--sheet", sheet, *flags, "--max_token_chunks=1")
    assert done.returncode == 0, done.stderr
    cut = r"note: --max_token_chunks 1 cuts 1 prompts; .*again.bmp loses (\d+) of (\d+) tokens"
    lost, tokens = re.search(cut, done.stdout).groups()
    assert 30 <= int(lost) < int(tokens)
    assert "images used: 8, skipped: 1" in done.stdout and "empty.png: it is empty" in done.stdout
    remarks = {
        line.partition(": ")[0].rpartition("/")[2]: line for line in done.stdout.splitlines() if "look at /" in line
    }
    assert "the same picture as 0.png" in remarks["again.bmp"]
    assert f"a prompt of {tokens} tokens; --max_token_chunks cuts the last {lost}" in remarks["again.bmp"]
    assert "only 30x30, enlarged 2.1 times" in remarks["tiny.png"]
    assert "64x128: only 50% of it is kept" in remarks["2.png"]
    shown, warned = np.asarray(Image.open(sheet)), Image.open(sheet.with_name("data_warnings.png"))
    assert shown.shape[1] == 6 * 252 + 12 and warned.width == min(6, len(remarks)) * 252 + 12
    picture = shown[12 : 12 + 240, 12 : 12 + 240]  # the first one, decoded from its latent
    assert picture.std() > 5 and not (tmp_path / "none").exists()

    for file in folder.iterdir():
        if file.name not in ("0.png", "0.txt"):
            file.unlink()
    deviation = float(re.search(r"0.png: .*latents of deviation ([\d.]+), not about 1", done.stdout)[1])
    right, config = tmp_path / "right", models_dir / "epsilon" / "vae" / "config.json"
    shutil.copytree(models_dir / "epsilon", right)
    config = json.loads(config.read_text())
    (right / "vae" / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.7 / deviation}))
    flags[1] = right
    show_data.main([str(flag) for flag in ("--sheet", sheet, *flags, "--max_token_chunks=1")])
    said = capsys.readouterr()
    assert "nothing suspicious" in said.out and not sheet.with_name("data_warnings.png").exists()
    assert "Encoding" not in said.err  # the scale of latents is no part of what is cached

    for path, message in [
        (folder / "s.png", "it lies in --train_data_dir"),
        (REPO / "README.md" / "s.png", "it cannot be w"),
    ]:
        with pytest.raises(UserError, match=message) as error:
            show_data.main([str(flag) for flag in (*flags, "--sheet", path)])
        assert "\n" not in str(error.value)
    done = run(REPO / "examples" / "show_data.py", *flags, "--sheet", sheet, "--epoch", "1", "--tag_dropout=2")
    assert done.returncode == 2 and done.stderr == "error: --tag_dropout 2.0: a probability is from 0 to 1\n"
