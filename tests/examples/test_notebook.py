"""examples/notebooks/colab.ipynb, executed from first to last cell on the quickstart's model; and colab.py."""

import base64
import io
import json
import os
import re
import signal
import sys
import tempfile
import threading
import types
import zipfile
from pathlib import Path

import nbformat
import numpy as np
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell
from PIL import Image

import hypernet
from examples.notebooks import colab
from examples.quickstart.tools.shapes import caption, draw, random_shape
from hypernet.cli.training_options import parse_config
from tests.helpers.forked_python import forked_python
from tests.helpers.scripts import REPO

NOTEBOOK = REPO / "examples" / "notebooks" / "colab.ipynb"
SETTINGS = {
    "NAME": "openmoji",
    "PRESET": "quickstart.yaml",
    "MODEL": "examples/quickstart/model",
    "SIZE": 64,
    "PREPARE": "--split --focus",
    "PROMPTS": "a star on a blue background; a cat on a purple background",
    "STEPS": 12,
    "LEARNING_RATE": "3e-3",
    "SAVE_EVERY": 6,
    "MORE": {"validation_inference_steps": 3, "train_batch_size": 2, "validation_split": 0.2, "logging_steps": 2},
}
AFTERWARDS = """
import signal
import threading
import time


def interrupt_twice():
    while (OUTPUT / "hypernetwork_loss.csv").read_text().count("\\n") < 9:  # two more than after 12 steps
        time.sleep(0.05)
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)


threading.Thread(target=interrupt_twice).start()
for changes in {"max_train_steps": 100000}, {"pretrained_model_name_or_path": "no/where"}:
    try:
        colab.train({**OPTIONS, **changes})
    except colab.Notice as notice:
        print("NOTICE", notice)
raise colab.Notice("one line")
"""


def cells(kind):
    return {cell.id: cell for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == kind}


def images(cell) -> list[Image.Image]:
    """Return the images below an executed cell."""
    found = [output["data"]["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def text(cell) -> str:
    """Return the text below an executed cell."""
    shown = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return "\n".join(shown)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Execute the notebook with AFTERWARDS as its last cell; return the cells by id, and the folder WORK."""
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "raw").mkdir()
    for i, sides in enumerate([(96, 96), (96, 96), (96, 80), (220, 96), (96, 96), (80, 96)]):
        shape = random_shape(i)
        draw(shape, 96).resize(sides).save(folder / "raw" / f"{i}.png")
        (folder / "raw" / f"{i}.txt").write_text(caption(shape))
    settings = {**SETTINGS, "IMAGES": str(folder / "raw"), "WORK": str(folder / "work")}
    notebook = nbformat.read(NOTEBOOK, 4)
    notebook.cells.append(new_code_cell(AFTERWARDS, id="afterwards"))
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}})
    client.allow_errors = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYPERNET_NOTEBOOK", json.dumps(settings))
        patch.setenv("TMPDIR", str(folder))  # for the scripts' output
        with forked_python():
            client.execute()
    return {cell.id: cell for cell in notebook.cells}, folder / "work"


def test_every_cell_runs_and_shows_its_images(executed):
    ran, work = executed
    for cell in ran.values():
        if cell.cell_type == "code":
            assert cell.execution_count, cell.id
        if cell.cell_type == "code" and cell.id != "afterwards":
            assert not [output for output in cell.outputs if output.output_type == "error"], (cell.id, cell.outputs)
    assert re.search(r"\b12\b", text(ran["fetch"]))  # files: six images with captions
    assert len(list((work / "openmoji_pictures").glob("*.png"))) == 8  # the widest image was split
    for name in ("prepare", "data", "compare", "plot"):
        assert len(images(ran[name])) == 1, name
    previews, loss = sorted(images(ran["train"]), key=lambda image: image.size)
    assert loss.size == (800, 650) and all(np.asarray(image).std() > 5 for image in (loss, previews))
    hypernetwork = hypernet.load(work / "openmoji" / "openmoji.pt")
    assert hypernetwork.config.step >= 12 and "openmoji.pt" in text(ran["download"])


def test_shows_the_output_without_finished_progress_bars(executed):
    ran, work = executed
    shown = text(ran["train"])
    assert "12 steps" in shown and "openmoji.pt" in shown and shown.rstrip().endswith(str(work / "openmoji"))
    assert not re.search(r"\d+/\d+ \[", shown) and "\r" not in shown


def test_resumes_saves_when_interrupted_and_shows_a_mistake_as_one_line(executed):
    ran, work = executed
    shown = text(ran["afterwards"])
    assert re.search(r"step-000012, step 12$", shown, re.M)  # the checkpoint it resumes from
    stopped, mistake = re.findall("^NOTICE (.*)$", shown, re.M)
    step = int(re.match(r"stopped by SIGINT after step (\d+);", stopped)[1])
    assert step >= 16 and (work / "openmoji" / "checkpoints" / f"step-{step:06d}").exists()
    assert "this cell" in stopped and mistake.startswith("error: --pretrained_model_name_or_path no/where")
    (error,) = [output for output in ran["afterwards"].outputs if output.output_type == "error"]
    assert error.traceback == ["one line"]


def test_notebook_has_no_outputs_and_no_long_cells():
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    assert notebook.metadata.accelerator == "GPU" and notebook.metadata.colab.gpuType == "T4"
    assert notebook.metadata.kernelspec.name == "python3"
    before = None
    for cell in notebook.cells:
        lines = [line for line in cell.source.splitlines() if "colab-badge" not in line]
        assert len(lines) <= 25 and max(map(len, lines)) <= 120, cell.id
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, cell.id
            assert before.cell_type == "markdown" and re.search(r"\*\*(Look|Check)\b", before.source), cell.id
        before = cell
    for link in re.findall(r"\]\(([^)h][^)]*)\)", "".join(cell.source for cell in notebook.cells)):
        assert (NOTEBOOK.parent / link).exists(), link


def test_cells_for_colab(tmp_path, monkeypatch):
    """With Colab's modules replaced: uploads are unpacked, the .pt is downloaded, and results are kept on Drive."""
    calls, code = [], cells("code")

    def upload():
        with zipfile.ZipFile("some.ZIP", "w") as archive:
            archive.writestr("cat.png", b"image")
        Path("dog.png").write_bytes(b"image")
        return {"some.ZIP": b"", "dog.png": b""}

    module = types.ModuleType("google.colab")
    module.drive = types.SimpleNamespace(mount=calls.append)
    module.files = types.SimpleNamespace(upload=upload, download=calls.append)
    monkeypatch.setattr(os.path, "ismount", lambda path: True)  # Google Drive is mounted
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", module)
    monkeypatch.delenv("HYPERNET_NOTEBOOK", raising=False)
    monkeypatch.syspath_prepend(NOTEBOOK.parent)  # as the first cell does
    monkeypatch.chdir(REPO)
    names = {"IN_COLAB": True, "os": os, "Path": Path}
    for name in ("settings", "options"):
        exec(code[name].source, names)
    config = parse_config(colab.flags(names["OPTIONS"]))
    assert {config.output_dir, config.cache_dir, config.train_data_dir} == {
        f"/content/drive/MyDrive/hypernetworks/{name}" for name in ("my_style", "cache", "my_style_pictures")
    }
    assert config.mixed_precision == "fp16" and config.validation_split == 0.1 and config.report_to == "none"
    assert len(config.validation_prompt) == 3 and config.checkpointing_steps == 500

    names |= {"IMAGES": str(tmp_path / "raw"), "OUTPUT": tmp_path}
    (tmp_path / "my_style.pt").write_bytes(b"hypernetwork")
    monkeypatch.chdir(tmp_path)
    for name in ("fetch", "download"):
        exec(code[name].source, names)
    assert sorted(path.name for path in (tmp_path / "raw").iterdir()) == ["cat.png", "dog.png"]
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "my_style.pt"}
    assert calls == ["/content/drive", str(tmp_path / "my_style.pt")]
    compile(TransformerManager().transform_cell(code["get"].source), "get", "exec")


def test_default_settings_outside_colab_are_the_quickstarts(monkeypatch):
    monkeypatch.delenv("HYPERNET_NOTEBOOK", raising=False)
    monkeypatch.syspath_prepend(NOTEBOOK.parent)  # as the first cell does
    monkeypatch.chdir(REPO)
    names = {"IN_COLAB": False, "os": os, "Path": Path}
    for name in ("settings", "options"):
        exec(cells("code")[name].source, names)
    config = parse_config(colab.flags(names["OPTIONS"]))
    assert config.pretrained_model_name_or_path == "examples/quickstart/model" and config.output_dir.endswith(
        "openmoji"
    )


SCRIPT = """
import signal, time
received = []
signal.signal(signal.SIGINT, lambda *_: received.append(1))
print("ready")
while not received:
    time.sleep(0.02)
time.sleep(0.5)
print(f"stopped after {len(received)} interrupts; the same command resumes")
"""


def test_forwards_the_interrupt_button_to_the_script_once(tmp_path, monkeypatch):
    monkeypatch.setattr(colab, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shown = []
    monkeypatch.setattr(colab._Display, "show", lambda self, bundle: shown.append(bundle["text/plain"]))
    (tmp_path / "script.py").write_text(SCRIPT)

    def interrupt_thrice():
        if shown and "ready" in shown[-1] and not interrupt_thrice.done:
            interrupt_thrice.done = True
            for delay in (0, 0.1, 0.2):
                threading.Timer(delay, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()

    interrupt_thrice.done, before = False, signal.getsignal(signal.SIGINT)
    with pytest.raises(colab.Notice, match=r"^stopped after 1 interrupts; this cell resumes$"):
        colab._run_and_show([sys.executable, tmp_path / "script.py"], interrupt_thrice)
    assert signal.getsignal(signal.SIGINT) is before


def test_shows_a_run_again_that_is_still_going(tmp_path, monkeypatch):
    monkeypatch.setattr(colab._Display, "show", lambda self, bundle: None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    script = tmp_path / "script.py"
    script.write_text("import os, time; print('process', os.getpid()); time.sleep(1); print('ended')")
    first = colab._start([sys.executable, str(script)])
    assert colab.run(script) == [f"process {first.pid}", "ended"]
    assert colab.run(script) != [f"process {first.pid}", "ended"]
    script.write_text("raise SystemExit('it is broken')")
    with pytest.raises(colab.Notice, match="^it is broken$"):
        colab.run(script)


def test_scales_large_images_and_skips_unfinished_ones(tmp_path, monkeypatch):
    shown, display = [], colab._Display()
    monkeypatch.setattr(colab._Display, "show", lambda self, bundle: shown.append(bundle))
    display.show_newest(tmp_path.glob("*.png"))
    (tmp_path / "step-1.png").write_bytes(b"unfinished")
    display.show_newest(tmp_path.glob("*.png"))
    assert not shown
    for i, sides in enumerate([(2200, 400), (1100, 1400)]):
        Image.linear_gradient("L").resize(sides).save(tmp_path / f"step-{i}.png")
        os.utime(tmp_path / f"step-{i}.png", (2e9 + i, 2e9 + i))
        display.show_newest(tmp_path.glob("*.png"))
    small, large = shown
    assert Image.open(io.BytesIO(base64.b64decode(small["image/png"]))).size == (1100, 200)
    assert Image.open(io.BytesIO(base64.b64decode(large["image/jpeg"]))).size == (1100, 1400)


def test_shows_lines_as_a_terminal_does():
    printed = "begun\r\n\rEncoding:   0%|  | 0/8 [00:00<?]\rEncoding: 100%|##| 8/8 [00:01<00:00]\n\r          \rstep 3: saved\n"
    bar = "\rTraining:  10%|# | 1/10 [00:00<00:02]\rTraining:  30%|###| 3/10 [00:00<00:02]"
    assert colab._visible_lines(printed + bar) == ["begun", "step 3: saved", "Training:  30%|###| 3/10 [00:00<00:02]"]
    assert colab._visible_lines("") == []
