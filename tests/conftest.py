"""A tiny random Stable Diffusion of each prediction type, a folder of pictures, and how to run the scripts."""

import contextlib
import io
import os
import random
import re
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from build_model import build_tokenizer
from draw import caption, draw, random_scene

REPO = Path(__file__).resolve().parent.parent
TINY_WIDTHS = [12, 16, 32]  # the text's, and the two of self-attention


def tiny_unet(seed=0, **changes):
    torch.manual_seed(seed)
    config = {
        "sample_size": 8,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 12,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**{**config, **changes}).eval().requires_grad_(False)


def tiny_pipeline(prediction_type="epsilon"):
    unet, tokenizer = tiny_unet(), build_tokenizer()
    vae = AutoencoderKL(
        block_out_channels=(4, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
        sample_size=64,
        scaling_factor=0.7,
    )
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=12,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text_config),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory):
    """Folder with the tiny models `epsilon` and `v_prediction`."""
    folder = tmp_path_factory.mktemp("models")
    for prediction_type in ("epsilon", "v_prediction"):
        tiny_pipeline(prediction_type).save_pretrained(folder / prediction_type)
    return folder


@pytest.fixture(scope="session")
def images_dir(tmp_path_factory):
    """Eight drawn pictures of 64 pixels with sidecar captions."""
    folder, rng = tmp_path_factory.mktemp("images"), random.Random(0)
    for i in range(8):
        scene = random_scene(rng)
        draw(scene, "neon", size=64).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(caption(scene))
    return folder


@pytest.fixture(scope="session")
def mixed_dir(tmp_path_factory):
    """Six pictures of five shapes, one with transparency, two with tags."""
    folder, rng = tmp_path_factory.mktemp("mixed"), random.Random(0)
    for i, sides in enumerate([(64, 64), (96, 64), (64, 128), (200, 120), (64, 64), (130, 131)]):
        image = draw(random_scene(rng), size=256).resize(sides)
        if i == 3:
            image.putalpha(Image.linear_gradient("L").resize(sides))
        image.save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a cat, red, blue" if i < 2 else f"picture {i}")
    return folder


def run(*command, cwd=REPO, **kwargs):
    """Run a script of the repository as a user would; the finished process with its output."""
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=400, **kwargs)


def train_here(models_dir, images_dir, output_dir, *flags, model="epsilon") -> str:
    """The same within this process, without the seconds that imports take; what it said."""
    import train_hypernetwork

    AcceleratorState._reset_state(True)
    needed = {"pretrained_model_name_or_path": models_dir / model, "train_data_dir": images_dir}
    needed |= {"output_dir": output_dir, "cache_dir": models_dir / "cache", "resolution": 64, "report_to": "none"}
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        train_hypernetwork.main([*(f"--{key}={value}" for key, value in needed.items()), *map(str, flags)])
    return said.getvalue()


def unexpected(stderr):
    """The lines on the console that are no progress bars."""
    return [line for line in stderr.splitlines() if line.strip() and not re.search(r"\d+/\d+ \[\d\d:\d\d<", line)]


def train(models_dir, images_dir, output_dir, *flags, model="epsilon", launch=()):
    """`train_hypernetwork.py` on a tiny model, in a process of its own."""
    done = run(
        *launch,
        REPO / "train_hypernetwork.py",
        "--pretrained_model_name_or_path",
        models_dir / model,
        "--train_data_dir",
        images_dir,
        "--output_dir",
        output_dir,
        "--cache_dir",
        models_dir / "cache",
        "--resolution=64",
        "--report_to=none",
        *flags,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done
