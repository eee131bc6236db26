"""A tiny random Stable Diffusion of each prediction type, a folder of pictures, and how to run the scripts."""

import contextlib
import io
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # threads that wait for others hardly hold a core that these may need
ALONE = dict(os.environ)  # what a command gets that has all cores
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run in two processes
os.environ.setdefault("OMP_THREAD_LIMIT", os.environ["OMP_NUM_THREADS"])  # or trainings would not take one for meant
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell begins in the background would ignore it

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from examples.quickstart.tools.build_model import build_tokenizer
from examples.quickstart.tools.draw import caption, draw, random_scene
from hypernet.stable_diffusion.base_model import recognise
from hypernet.stable_diffusion.model_source import ModelSource
from hypernet.stable_diffusion.model import load_models

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


def tiny_pipeline(prediction_type="epsilon", **unet_changes):
    unet, tokenizer = tiny_unet(**unet_changes), build_tokenizer()  # the UNet first: it seeds the others, too
    return StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=CLIPTextModel(tiny_text_config(tokenizer)).eval(),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=tiny_scheduler(prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def tiny_xl_pipeline(prediction_type="epsilon", **changes):
    """Two text encoders, whose tokenizers pad differently, and a UNet of SDXL's kind: widths 16, 32, 36."""
    tokenizers = build_tokenizer(), build_tokenizer()
    tokenizers[1].pad_token = "!"
    first = tiny_text_config(tokenizers[0])
    second = tiny_text_config(tokenizers[1], hidden_size=24, projection_dim=24, hidden_act="gelu")
    unet = tiny_unet(
        block_out_channels=(8, 16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(1, 2, 4),
        use_linear_projection=True,
        cross_attention_dim=36,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
    )
    return StableDiffusionXLPipeline(
        vae=tiny_vae(),
        text_encoder=CLIPTextModel(first).eval(),
        text_encoder_2=CLIPTextModelWithProjection(second).eval(),
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=unet,
        scheduler=tiny_scheduler(prediction_type),
        **{"add_watermarker": False, **changes},
    )


def tiny_scheduler(prediction_type):
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def tiny_vae(**changes):
    config = {
        "block_out_channels": (4, 8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "norm_num_groups": 2,
        "sample_size": 64,
        "scaling_factor": 0.7,
    }
    return AutoencoderKL(**{**config, **changes})


def tiny_text_config(tokenizer, **changes):
    config = {
        "vocab_size": len(tokenizer),
        "hidden_size": 12,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPTextConfig(**{**config, **changes})


def open_models(path, unet_dtype=torch.float32, **options):
    """A model as the training loads it."""
    return load_models(recognise(ModelSource(str(path), **options)), unet_dtype)


LONG = "compare notebook unattended train drawing compiling webui".split()


def pytest_collection_modifyitems(items):
    """The files that take longest come first, so that at the end no process has to wait long for the other."""
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONG)


@pytest.fixture(scope="session", autouse=True)
def newcomer(request, tmp_path_factory):
    """README's first command in a copy of the repository: a folder with `repo`, `stdout`, `stderr` and, at its end, `code`.

    It is begun before all tests, by the first of the processes that share them out, because it takes minutes.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if worker else base) / "newcomer"  # that of all workers
    if worker not in (None, "gw0") or not any("quickstart" in item.fixturenames for item in request.session.items):
        yield folder
        return
    left_out = shutil.ignore_patterns(".git", "output", "build", "wandb", "__pycache__", ".*cache", ".venv")
    shutil.copytree(REPO, folder / "repo", ignore=left_out)
    (command,) = re.findall(
        r"^pip install -r requirements\.txt && .*$", (folder / "repo" / "README.md").read_text(), re.M
    )
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**ALONE, "PATH": path, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    script = f"({command}) > ../stdout 2> ../stderr; echo $? > ../code.part; mv ../code.part ../code"
    process = subprocess.Popen(script, shell=True, cwd=folder / "repo", env=environment)
    yield folder
    process.wait()  # another worker may be waiting for it


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory):
    """Folder with the tiny models `epsilon`, `v_prediction`, `sd2` and `xl`."""
    folder = tmp_path_factory.mktemp("models")
    for prediction_type in ("epsilon", "v_prediction"):
        tiny_pipeline(prediction_type).save_pretrained(folder / prediction_type)
    tiny_pipeline("v_prediction", use_linear_projection=True, attention_head_dim=(1, 2)).save_pretrained(folder / "sd2")
    tiny_xl_pipeline().save_pretrained(folder / "xl")
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
