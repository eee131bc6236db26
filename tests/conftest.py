"""Shared fixtures: tiny models of every kind, folders of images, README's quickstart."""

import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # waiting threads give up their core soon
ALL_CORES = dict(os.environ)  # for commands that may use all cores
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run in two processes
os.environ.setdefault("OMP_THREAD_LIMIT", os.environ["OMP_NUM_THREADS"])  # for trainings started by a launcher
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell makes background jobs ignore it

import pytest
import torch
from PIL import Image

import hypernet
from examples.quickstart.tools.shapes import draw, random_shape, write_images
from hypernet.training import loss_plot
from hypernet.training.preview_scores import PreviewScores
from tests.helpers.scripts import REPO, STARTED
from tests.helpers.tiny_models import TINY_WIDTHS, open_models, tiny_pipeline, tiny_xl_pipeline

MEASURE_BASE = PreviewScores.measure_base


def pytest_collection_finish():
    """Let collections of garbage, one of which ends every training, pass over everything that is imported by now."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def newcomer(request, tmp_path_factory):
    """Run README's quickstart in a copy of the repository: a folder with `repo`, `stdout`, `stderr` and, once done, `code`.

    It takes minutes, so the first worker starts it before all tests.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if worker else base) / "newcomer"  # shared by all workers
    if worker not in (None, "gw0") or not any("quickstart" in item.fixturenames for item in request.session.items):
        yield folder
        return
    left_out = shutil.ignore_patterns(".git", "output", "build", "wandb", "__pycache__", ".*cache", ".venv")
    shutil.copytree(REPO, folder / "repo", ignore=left_out)
    (command,) = re.findall(
        r"^pip install -r requirements\.txt && .*$", (folder / "repo" / "README.md").read_text(), re.M
    )
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**ALL_CORES, "PATH": path, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    script = f"({command}) > ../stdout 2> ../stderr; echo $? > ../code.part; mv ../code.part ../code"
    process = subprocess.Popen(script, shell=True, cwd=folder / "repo", env=environment)
    yield folder
    process.wait()  # another worker may be waiting for it


@pytest.fixture(scope="session", autouse=True)
def blank_plots():
    """Let trainings within this process save a blank loss.png, which saves a sixth of their time."""
    with mock.patch.object(loss_plot, "plot_losses", lambda *_: Image.new("RGB", (800, 450))):
        yield


@pytest.fixture(scope="session", autouse=True)
def nothing_is_scored():
    """Let trainings within this process score nothing: it would take most of their time."""
    with mock.patch.object(PreviewScores, "measure_base", lambda _: None):
        yield


@pytest.fixture
def scored():
    """Let trainings within this process score what they generate, as they do for users."""
    with mock.patch.object(PreviewScores, "measure_base", MEASURE_BASE):
        yield


@pytest.fixture(autouse=True)
def end_started_processes():
    """End what a failed test has left running."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.kill()
            process.wait()


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
    """Eight images of 64 pixels with sidecar captions."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, 8, 64)
    return folder


@pytest.fixture(scope="session")
def mixed_dir(tmp_path_factory):
    """Six images of five shapes, one with transparency, two with tags."""
    folder = tmp_path_factory.mktemp("mixed")
    for i, sides in enumerate([(64, 64), (96, 64), (64, 128), (200, 120), (64, 64), (130, 131)]):
        image = draw(random_shape(i), 256).resize(sides)
        if i == 3:
            image.putalpha(Image.linear_gradient("L").resize(sides))
        image.save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a cat, red, blue" if i < 2 else f"picture {i}")
    return folder


@pytest.fixture(scope="module")
def epsilon_models(models_dir):
    """The tiny model `epsilon`, loaded as the training loads it."""
    return open_models(models_dir / "epsilon")


@pytest.fixture
def encode_counts(epsilon_models):
    """How much goes through its VAE's encoder and its text encoder: {"images": n, "prompts": n}."""
    counts = {"images": 0, "prompts": 0}

    def count(name):
        return lambda module, args: counts.__setitem__(name, counts[name] + len(args[0]))

    layers = epsilon_models.text_encoders[0].named_modules()
    text_layer = next(module for name, module in layers if name.endswith("layers.0"))
    hooks = [
        epsilon_models.vae.encoder.register_forward_pre_hook(count("images")),
        text_layer.register_forward_pre_hook(count("prompts")),
    ]
    yield counts
    for hook in hooks:
        hook.remove()


@pytest.fixture(scope="session")
def hypernetworks_dir(models_dir, tmp_path_factory):
    """The run `ink` with its `ink.pt` and the checkpoints of steps 9 and 10; and `other.pt`, of no run."""
    folder = tmp_path_factory.mktemp("hypernetworks")
    run_options = {"pretrained_model_name_or_path": str(models_dir / "epsilon"), "validation_guidance_scale": 4.0}
    for i, place in enumerate(("ink", "ink/checkpoints/step-000009", "ink/checkpoints/step-000010", "other")):
        torch.manual_seed(i)
        step = int(place[-2:]) if place[-1].isdigit() else 10
        hypernetwork = hypernet.Hypernetwork(TINY_WIDTHS, weight_init="xavier_normal", name="ink", step=step)
        if place == "other":
            hypernet.save_webui(hypernetwork, folder / "other.pt")
        else:
            hypernetwork.save_pretrained(folder / place)
        if place == "ink":
            hypernet.save_webui(hypernetwork, folder / "ink" / "ink.pt")
            (folder / "ink" / "run.json").write_text(json.dumps(run_options))
    return folder
