"""convert_to_webui.py and examples/generate.py, run as their users run them."""

import numpy as np
import torch
from conftest import REPO, run, train
from diffusers import StableDiffusionPipeline
from PIL import Image

import hypernet


def test_train_convert_generate(models_dir, images_dir, tmp_path):
    output = tmp_path / "style"
    train(models_dir, images_dir, output, "--max_train_steps=2", "--checkpointing_steps=1", "--learning_rate=1e-2")

    done = run(REPO / "convert_to_webui.py", output / "checkpoints" / "step-000001", tmp_path / "early.pt")
    assert done.returncode == 0 and "early.pt: early, step 1" in done.stdout, done.stderr
    early, state = hypernet.load(tmp_path / "early.pt"), hypernet.load(output / "checkpoints" / "step-000001")
    assert early.config.name == "early" and early.config.step == 1
    assert all(torch.equal(a, b) for a, b in zip(early.state_dict().values(), state.state_dict().values()))

    (output / "style.pt").unlink()
    assert run(REPO / "convert_to_webui.py", output).returncode == 0
    assert hypernet.load(output / "style.pt").config.step == 2
    for arguments, message in [
        ([tmp_path / "none"], "there is no such file"),
        ([output, tmp_path / "a.safetensors"], "end in .pt"),
        ([output, tmp_path / "none" / "a.pt"], "there is no folder"),
        ([REPO / "README.md"], "README.md: it is no hypernetwork"),
        ([], "the following arguments are required: source"),
        ([output, "--halff"], "unrecognized arguments: --halff"),
    ]:
        done = run(REPO / "convert_to_webui.py", *arguments)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1

    flags = ["--prompt", "a red star", "--steps=3", "--seed=4", "--num_images=2", "--output_dir", tmp_path / "images"]
    done = run(REPO / "examples/generate.py", "--hypernetwork", output, "--strength=0.8", *flags)
    assert done.returncode == 0, done.stderr
    assert all("it/s" in line or not line.strip() for line in done.stderr.splitlines()), done.stderr
    pipe = StableDiffusionPipeline.from_pretrained(models_dir / "epsilon", dtype=torch.float32)
    hypernet.attach(pipe.unet, hypernet.load(output / "style.pt"), 0.8)
    for i, path in enumerate(done.stdout.split("\n")[:2]):
        generator = torch.Generator().manual_seed(4 + i)
        expected = pipe("a red star", num_inference_steps=3, guidance_scale=7.5, generator=generator).images[0]
        difference = np.asarray(Image.open(path), np.int16) - np.asarray(expected, np.int16)
        assert np.abs(difference).max() <= 1
    done = run(REPO / "examples/generate.py", "--hypernetwork", tmp_path / "early.pt", *flags)
    assert done.returncode == 2 and "--model is missing" in done.stderr and done.stderr.count("\n") == 1
