"""examples/xy_plot.py, run as its users run it."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

import hypernet
from examples import generate, xy_plot
from hypernet.generation.generator import weights_sha256
from hypernet.generation.infotext import parse_infotext, read_png_infotext
from hypernet.utils.errors import UserError
from tests.helpers.forked_python import forked_python
from tests.helpers.generation import grid_cell, max_difference, reference_image, run_main
from tests.helpers.scripts import REPO, one_line_error, unexpected
from tests.helpers.tiny_models import TINY_WIDTHS

SCRIPT = REPO / "examples/xy_plot.py"
Y_AXIS = ["--y", "strength", "0.5-1 [3]", "--prompt", "a red star", "--seed=3", "--steps=6"]


def counts(line):
    """Return the numbers in the script's first line: columns, rows, cells to generate, cells reused."""
    return [int(number) for number in re.findall(r"\d+", line)[:4]]


def test_resumes_after_an_interrupt(models_dir, hypernetworks_dir, tmp_path, monkeypatch):
    """The cells equal images of diffusers, and the grid equals that of an uninterrupted plot."""
    run_dir = hypernetworks_dir / "ink"
    x_axis = ["--x", "checkpoint", "none", run_dir / "checkpoints" / "*", run_dir / "ink.pt"]
    flags = list(map(str, [SCRIPT, *x_axis, *Y_AXIS, "--output", tmp_path / "first.png"]))
    with forked_python():
        process = subprocess.Popen([sys.executable, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    cells = tmp_path / "first_cells"
    while process.poll() is None and len(list(cells.glob("[!.]*.png"))) < 2:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and unexpected(stderr)[-1].startswith("stopped"), stderr  # colab.py looks for it
    finished = {path: path.stat().st_mtime_ns for path in cells.glob("[!.]*.png")}
    assert 2 <= len(finished) < 10 and not (tmp_path / "first.png").exists()

    monkeypatch.setenv("WANDB_MODE", "offline")
    lines = run_main(xy_plot, [*flags[1:], "--wandb"])
    first_line = lines[0]
    assert counts(first_line) == [4, 3, 10 - len(finished), len(finished)]  # the column "none" has the same cell thrice
    assert first_line.endswith(str(cells)) and any("wandb sync" in line for line in lines)
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items()) and len(list(cells.iterdir())) == 10
    lines = run_main(xy_plot, [*x_axis, *Y_AXIS, "--output", tmp_path / "second.png"])
    assert counts(lines[0]) == [4, 3, 10, 0] and lines[1] == str(tmp_path / "second.png")
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()

    pipe = StableDiffusionPipeline.from_pretrained(models_dir / "epsilon", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    grid, saved = Image.open(tmp_path / "first.png"), {}
    for path in cells.iterdir():
        saved[parse_infotext(read_png_infotext(path))[0]] = Image.open(path)
    files = ["checkpoints/step-000009", "checkpoints/step-000010", "ink.pt"]
    options = {"num_inference_steps": 6, "guidance_scale": 4, "seed": 3}
    for row, strength in enumerate((0.5, 0.75, 1)):
        assert max_difference(grid_cell(grid, row, 0, (3, 4)), saved["a red star"]) == 0
        for column, (file, name) in enumerate(zip(files, ("ink-9", "ink-10", "ink")), 1):
            cell = saved[f"a red star <hypernet:{name}:{strength:g}>"]
            assert max_difference(grid_cell(grid, row, column, (3, 4)), cell) == 0
            expected = reference_image(pipe, [(run_dir / file, strength)], "a red star", **options)
            assert max_difference(cell, expected) <= 1
    check_table(tmp_path)


def check_table(folder):
    """W&B's table has a row for each cell, with its axes, image and settings."""
    (path,) = folder.glob("wandb/offline-run-*/files/media/table/*.table.json")
    table = json.loads(path.read_text())
    rows = [dict(zip(table["columns"], row)) for row in table["data"]]
    assert len(rows) == 12 and {row["y"] for row in rows} == {"strength 0.5", "strength 0.75", "strength 1"}
    assert rows[5]["x"] == "step 9" and rows[5]["y"] == "strength 0.75" and rows[5]["hypernetworks"] == "ink-9 0.75"
    assert rows[0]["prompt"] == "a red star" and rows[0]["seed"] == 3 and rows[0]["image"] == "Image"


def test_reuses_cells_of_another_plot(hypernetworks_dir, tmp_path):
    flags = ["--hypernetwork", hypernetworks_dir / "ink", "--steps=2", "--output", tmp_path / "a.png"]
    first = run_main(xy_plot, ["--x", "seed", "1-3", "--prompt", "a red star", *flags])
    assert counts(first[0]) == [3, 1, 3, 0] and first[1] == str(tmp_path / "a.png")
    axes = ["--x", "prompt", "a red star", "a <hypernet:other:1> cat", "--y", "seed", "2-4"]
    second = run_main(xy_plot, [*axes, *flags, "--hypernetwork_dir", hypernetworks_dir, "--batch_size=4"])
    assert counts(second[0]) == [2, 3, 4, 2] and second[1] == str(tmp_path / "a-2.png")
    _, _, fields = parse_infotext(read_png_infotext(second[1]))
    assert fields["X axis"] == "prompt" and fields["Y values"] == "seed 2, seed 3, seed 4"


def test_generates_again_with_a_retrained_hypernetwork(models_dir, tmp_path):
    flags = ["--x", "seed", "1", "2", "--prompt", "a red star", "--steps=2", "--model", models_dir / "epsilon"]
    flags += ["--hypernetwork", tmp_path / "ink", "--output", tmp_path / "a.png"]
    for seed, expected in ((1, [2, 1, 2, 0]), (2, [2, 1, 2, 0]), (1, [2, 1, 0, 2])):
        torch.manual_seed(seed)
        hypernet.Hypernetwork(TINY_WIDTHS, weight_init="xavier_normal").save_pretrained(tmp_path / "ink")
        weights_sha256.cache_clear()
        assert counts(run_main(xy_plot, flags)[0]) == expected


def test_names_that_a_tag_cannot_hold(models_dir, hypernetworks_dir, tmp_path):
    """The grid is made whatever the files are called, and generate.py reads the PNGs' prompts back."""
    folder = tmp_path / "runs [v2]"
    folder.mkdir()
    for name in ("we:ird>[1]", "in\udcffk"):
        shutil.copy(hypernetworks_dir / "other.pt", folder / f"{name}.pt")
    flags = ["--model", models_dir / "epsilon", "--steps=2", "--sampler=Euler Karras"]
    axes = [
        "--x",
        "checkpoint",
        "none",
        folder / "*.pt",
        "--prompt",
        "a \u201cstar\u201d AND (16:9",
        "--output",
        tmp_path / "a.png",
    ]
    lines = run_main(xy_plot, [*axes, *flags])
    assert counts(lines[0]) == [3, 1, 2, 0] and lines[1] == str(tmp_path / "a.png")  # the two files are the same
    grid, cells = (tmp_path / "a.png").read_bytes(), list((tmp_path / "a_cells").iterdir())
    prompts = {parse_infotext(read_png_infotext(cell))[0]: cell for cell in cells}
    (tagged,) = (prompt for prompt in prompts if "<hypernet:" in prompt)
    (path,) = run_main(generate, ["--prompt", tagged, "--hypernetwork_dir", folder, "--output_dir", tmp_path, *flags])
    assert max_difference(path, prompts[tagged]) == 0 and parse_infotext(read_png_infotext(path))[0] == tagged

    (tmp_path / "a.png").unlink()
    cells[0].write_bytes(cells[0].read_bytes()[:-100])  # a damaged cell is generated again
    assert counts(run_main(xy_plot, [*axes, *flags])[0]) == [3, 1, 1, 1]
    assert (tmp_path / "a.png").read_bytes() == grid


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--x", "seed", "1", "--y", "seed", "2"], "--y seed"),
        (["--x", "seed", "1", "--seed", "2"], "--seed"),
        (["--x", "checkpoint", "none", "--hypernetwork", "a.pt"], "--hypernetwork"),
        (["--x", "strength", "1"], "--hypernetwork"),
        (["--x", "checkpoint", "none"], "--model"),
        (["--x", "checkpoint", "nothing.pt"], "nothing.pt"),
        (["--x", "checkpoint", "examples"], "examples"),
        (["--x", "steps", "0-3"], "--steps 0"),
        (["--x", "guidance", "-1"], "--guidance_scale -1"),
        (["--x", "seed", "1", "--output", "a.jpg"], "--output a.jpg"),
        (["--x", "seed"], "--x seed"),
    ],
)
def test_refuses(tmp_path, flags, named):
    with pytest.raises(UserError) as caught:
        xy_plot.main(["--prompt", "a", "--output", str(tmp_path / "a.png"), *flags])
    assert str(caught.value).startswith(named) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "words, noted",
    [
        (["strength", "1,5", "1"], "--x strength 1,5"),
        (["guidance", "1-3", "7,5"], "--x guidance 7,5"),
        (["prompt", "a", "red", "cat"], "--x prompt a red cat"),
        (["strength", "0,0.5,1"], None),
        (["seed", "1,2"], None),
        (["prompt", "a cat", "0,5"], None),
    ],
)
def test_notes_values_that_are_probably_mistakes(capsys, words, noted):
    xy_plot.print_axis_notes("--x", *words)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (noted is not None) and all(noted in line for line in lines)


def test_prints_one_line_for_a_mistake(tmp_path):
    flags = ["--x", "prompt", "a", "--prompt", "b", "--output", tmp_path / "a.png"]
    assert one_line_error(xy_plot.main, *flags).startswith("--prompt")
