"""README's first command, and what the hypernetwork it trains does to the images."""

import re
import subprocess
import time

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

import hypernet
from examples.quickstart.tools.classifier import judge, load_classifier, source_hash
from examples.quickstart.tools.draw import draw, write_images
from examples.quickstart.tools.measure import denoising_loss, load_pipeline, matches, prompt_scenes, sample, share
from tests.helpers.scripts import REPO, run, step_of, unexpected

QUICKSTART = REPO / "examples" / "quickstart"
MODEL = QUICKSTART / "model"


@pytest.fixture(scope="module")
def quickstart(newcomer):
    """The finished process of README's first command in a copy of the repository, and the copy."""
    deadline = time.monotonic() + 600
    while not (newcomer / "code").exists() and time.monotonic() < deadline:
        time.sleep(0.5)
    code, stdout, stderr = ((newcomer / name).read_text() for name in ("code", "stdout", "stderr"))
    return subprocess.CompletedProcess("README's command", int(code), stdout, stderr), newcomer / "repo"


# --- The model and the images


OPEN_MODEL = """
import sys, diffusers, torch
diffusers.StableDiffusionPipeline  # warnings on import are not the model's fault
print("opening", file=sys.stderr)
pipeline = diffusers.StableDiffusionPipeline.from_pretrained(sys.argv[1], dtype=torch.float32)
print({str(p.dtype) for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder) for p in part.parameters()})
"""


def test_model_is_small_and_opens_without_warnings():
    assert sum(path.stat().st_size for path in MODEL.rglob("*")) <= 12e6
    done = run("-W", "always", "-c", OPEN_MODEL, MODEL)
    assert done.returncode == 0 and done.stdout.strip() == "{'torch.float32'}", done.stderr
    printed = done.stderr.partition("opening\n")[2]
    assert not re.search(r"warn|deprecat|expected|unused|not |error", printed, re.I), printed


def test_committed_images_are_those_of_the_script(tmp_path):
    write_images(tmp_path, "neon", 32, 32)
    committed = QUICKSTART / "images"
    names = sorted(path.name for path in committed.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir()) and len(names) == 64
    for name in names:
        if name.endswith(".txt"):
            assert (committed / name).read_text() == (tmp_path / name).read_text()
        else:  # Pillow's versions may round differently
            ours, drawn = (np.asarray(Image.open(folder / name), np.int16) for folder in (committed, tmp_path))
            assert np.abs(ours - drawn).mean() < 1


def test_classifier_recognizes_what_is_drawn():
    with safe_open(QUICKSTART / "tools" / "classifier.safetensors", framework="pt") as file:
        # or every user would train it again; load_classifier writes it
        assert file.metadata()["source"] == source_hash()
    scenes = prompt_scenes(60)
    for style in ("flat", "neon"):
        seen = judge(load_classifier(), [draw(scene, style) for scene in scenes])
        assert share(matches(scenes, seen, "subject")) >= 0.97
        assert share(name == style for name in seen["style"]) >= 0.97


# --- README's command


def test_command_runs_and_names_its_files(quickstart):
    done, copy = quickstart
    assert done.returncode == 0, done.stderr[-3000:]
    assert step_of(copy / "output" / "quickstart") == 1000
    paths = set(re.findall(r"output/quickstart[\w./-]*\w", done.stdout))
    assert "output/quickstart/previews/before_after.png" in paths
    assert not [path for path in paths if not (copy / path).exists()]
    assert "examples/generate.py" in done.stdout
    assert not [line for line in unexpected(done.stderr) if not line.startswith(("WARNING: ", "[notice]"))]  # pip's


def test_code_on_the_model_card_generates_an_image(quickstart, monkeypatch):
    _, copy = quickstart
    card = (copy / "output" / "quickstart" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    code = code.replace(".images[0]", ".images[0].save('generated.png')")
    monkeypatch.chdir(copy)
    exec(code, {})
    assert Image.open(copy / "generated.png").size == (128, 128)
    for image in re.findall(r"!\[[^]]*\]\(([^)]*)\)", card):
        assert (copy / "output" / "quickstart" / image).is_file(), image


def test_learns_the_style_and_keeps_the_subjects(quickstart):
    _, copy = quickstart
    pipeline, classifier, scenes = load_pipeline(MODEL), load_classifier(), prompt_scenes(36)

    def measure():
        seen = judge(classifier, sample(pipeline, scenes))
        neon = share(style == "neon" for style in seen["style"])
        return denoising_loss(pipeline, "neon"), neon, share(matches(scenes, seen, "subject")), seen

    loss_before, neon_before, subject_before, seen = measure()
    hypernet.attach(pipeline.unet, hypernet.load(copy / "output" / "quickstart" / "neon.pt"))
    loss_after, neon_after, subject_after, _ = measure()
    print(f"loss {loss_before:.3f} -> {loss_after:.3f}, neon {neon_before:.0%} -> {neon_after:.0%}")
    print(f"subject {subject_before:.0%} -> {subject_after:.0%}")
    assert loss_after <= 0.3 * loss_before
    assert neon_before <= 0.05 and neon_after >= 0.90
    assert subject_before >= 0.80 and subject_after >= 0.60
    assert share(matches(scenes, seen, "color", "background")) >= 0.90
