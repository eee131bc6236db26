"""README's first command, and what the hypernetwork it trains does to the images."""

import re
import subprocess
import time

import pytest
from PIL import Image

import hypernet
from examples.benchmarks.judging import judge_samples
from examples.quickstart.tools.classifier import judge, load_classifier
from examples.quickstart.tools.measure import load_pipeline, share_right
from examples.quickstart.tools.sets import SUBJECTS
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
import sys, warnings, diffusers, torch
diffusers.StableDiffusionPipeline  # warnings on import are not the model's fault
warnings.simplefilter("always")
print("opening", file=sys.stderr)
pipeline = diffusers.StableDiffusionPipeline.from_pretrained(sys.argv[1], dtype=torch.float32)
print({str(p.dtype) for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder) for p in part.parameters()})
"""


def test_model_is_small_and_opens_without_warnings():
    assert sum(path.stat().st_size for path in MODEL.rglob("*")) <= 26e6
    done = run("-c", OPEN_MODEL, MODEL)
    assert done.returncode == 0 and done.stdout.strip() == "{'torch.float32'}", done.stderr
    printed = done.stderr.partition("opening\n")[2]
    assert not re.search(r"warn|deprecat|expected|unused|not |error", printed, re.I), printed


def test_classifier_recognizes_the_committed_images():
    paths = sorted((QUICKSTART / "images").glob("*.png"))
    captions = [path.with_suffix(".txt").read_text() for path in paths]
    subjects = [max((subject for subject in SUBJECTS if subject in text), key=len) for text in captions]
    seen = judge(load_classifier(), [Image.open(path) for path in paths])
    assert len(paths) == len(set(subjects)) == 32
    assert share_right(seen["hand"], ["openmoji"] * 32) >= 0.95
    assert share_right(seen["subject"], subjects) >= 0.90


# --- README's command


def test_command_runs_and_names_its_files(quickstart):
    done, copy = quickstart
    assert done.returncode == 0, done.stderr[-3000:]
    assert step_of(copy / "output" / "quickstart") == 400
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
    pipeline = load_pipeline(MODEL)
    before = judge_samples(pipeline, "openmoji", 12)
    hypernet.attach(pipeline.unet, hypernet.load(copy / "output" / "quickstart" / "openmoji.pt"))
    after = judge_samples(pipeline, "openmoji", 36)
    print(f"style {before.style:.0%} -> {after.style:.0%}, subject {before.subject:.0%} -> {after.subject:.0%}")
    assert before.style <= 0.1 and after.style >= 0.70  # 0.88 less three standard errors of 36 samples
    assert before.subject >= 0.90 and after.subject >= 0.60
    assert before.background >= 0.95
