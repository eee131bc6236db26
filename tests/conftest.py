"""A tiny random Stable Diffusion of each prediction type, a folder of pictures, and how to run the scripts."""

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
from PIL import Image

from examples.quickstart.tools.draw import caption, draw, random_scene
from tests.helpers.scripts import REPO
from tests.helpers.tiny_models import tiny_pipeline, tiny_xl_pipeline


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


