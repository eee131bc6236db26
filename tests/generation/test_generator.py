"""examples/generate.py and examples/xy_plot.py, run as their users run them, and what they share."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionPipeline
from PIL import Image

import hypernet
from examples import generate, xy_plot
from hypernet.generation.generator import GenerationSettings, ImageGenerator, weights_sha256
from hypernet.generation.infotext import parse_infotext, read_png_infotext
from hypernet.stable_diffusion.model_source import ModelSource
from hypernet.utils.errors import UserError
from hypernet.utils.image_grid import labeled_grid, load_font, wrap
from tests.helpers.scripts import REPO, run, unexpected
from tests.helpers.tiny_models import TINY_WIDTHS, open_models


@pytest.fixture(scope="module")
def networks(models_dir, tmp_path_factory):
    """A folder with a run, `ink`: the hypernetwork, its `.pt`, and two checkpoints; and `other.pt` from elsewhere."""
    folder = tmp_path_factory.mktemp("networks")
    run_options = {"pretrained_model_name_or_path": str(models_dir / "epsilon"), "validation_guidance_scale": 4.0}
    for i, place in enumerate(("ink", "ink/checkpoints/step-000009", "ink/checkpoints/step-000010", "other")):
        torch.manual_seed(i)
        step = int(place[-2:]) if place[-1].isdigit() else 10
        network = hypernet.Hypernetwork(TINY_WIDTHS, weight_init="xavier_normal", name="ink", step=step)
        if place == "other":
            hypernet.save_webui(network, folder / "other.pt")
        else:
            network.save_pretrained(folder / place)
        if place == "ink":
            hypernet.save_webui(network, folder / "ink" / "ink.pt")
            (folder / "ink" / "run.json").write_text(json.dumps(run_options))
    return folder


def difference(a, b):
    a, b = (np.asarray(image if isinstance(image, Image.Image) else Image.open(image), np.int16) for image in (a, b))
    return np.abs(a - b).max()


def plain_picture(pipe, stack, prompt, seed=0, **options):
    """What diffusers draws by itself with these hypernetworks."""
    for path, strength in stack:
        hypernet.attach(pipe.unet, hypernet.load(path), strength)
    image = pipe(prompt, generator=torch.Generator().manual_seed(seed), **options).images[0]
    hypernet.detach(pipe.unet)
    return image


def test_generate(models_dir, networks, tmp_path):
    words = ["--prompt", "a red <hypernet:other:0.5>star", "--negative_prompt", "blue, a: b", "--strength=0.8"]
    flags = ["--steps=3", "--seed=7", "--num_images=3", "--batch_size=2", "--size=64x128", "--sampler", "euler A"]
    flags += ["--hypernetwork_dir", networks, "--output_dir", tmp_path, "--hypernetwork", networks / "ink"]
    done = run(REPO / "examples/generate.py", *words, *flags)
    assert done.returncode == 0 and not unexpected(done.stderr), done.stderr
    paths = done.stdout.splitlines()
    assert [path.rpartition("-")[2] for path in paths] == ["seed7.png", "seed8.png", "seed9.png"]
    pipe = StableDiffusionPipeline.from_pretrained(models_dir / "epsilon", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    options = {"num_inference_steps": 3, "guidance_scale": 4, "width": 64, "height": 128}
    stack = [(networks / "other.pt", 0.5), (networks / "ink", 0.8)]
    for seed, path in enumerate(paths, 7):
        expected = plain_picture(pipe, stack, "a red star", seed, negative_prompt="blue, a: b", **options)
        assert difference(path, expected) <= 1
    prompt, negative, fields = parse_infotext(read_png_infotext(paths[0]))
    assert prompt == "a red star <hypernet:other:0.5> <hypernet:ink:0.8>" and negative == "blue, a: b"
    shown = {
        "Steps": "3",
        "Sampler": "Euler a",
        "Schedule type": "Uniform",
        "CFG scale": "4",
        "Seed": "7",
        "RNG": "CPU",
    }
    assert fields.items() >= {**shown, "Size": "64x128", "Model": "epsilon"}.items()

    again = ["--prompt", prompt, "--hypernetwork_dir", networks, *flags[1:-2]]  # what the text says draws it again
    again += ["--negative_prompt", negative, "--steps", "3"]
    before = [Path(path).read_bytes() for path in paths]
    assert in_process(generate, again) == paths and [Path(path).read_bytes() for path in paths] == before
    other = in_process(generate, [*again, "--steps", "4"])
    assert [path.rpartition("-")[2] for path in other] == ["2.png"] * 3 and difference(other[2], paths[2]) > 1


def in_process(script, arguments):
    """The lines that a script's main prints."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        script.main([str(argument) for argument in arguments])
    return said.getvalue().splitlines()


XY = REPO / "examples/xy_plot.py"
PLOT = ["--y", "strength", "0.5-1 [3]", "--prompt", "a red star", "--seed=3", "--steps=6"]


def cell_of(grid, row, column, shape, side=64, gap=3):
    """Cells are at the lower right of a grid, with a gap after each."""
    left, top = (size - (count - i) * (side + gap) for size, count, i in zip(grid.size, shape[::-1], (column, row)))
    return grid.crop((left, top, left + side, top + side))


def test_xy_plot(models_dir, networks, tmp_path):
    """Interrupted and resumed, the cells are those of diffusers and the grid is that of one go."""
    x = ["--x", "checkpoint", "none", networks / "ink" / "checkpoints" / "*", networks / "ink" / "ink.pt"]
    flags = list(map(str, [XY, *x, *PLOT, "--output", tmp_path / "first.png"]))
    process = subprocess.Popen([sys.executable, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    cells = tmp_path / "first_cells"
    while process.poll() is None and len(list(cells.glob("[!.]*.png"))) < 2:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and unexpected(stderr)[-1].startswith("stopped; what is drawn is kept"), stderr
    drawn = {path: path.stat().st_mtime_ns for path in cells.glob("[!.]*.png")}
    assert 2 <= len(drawn) < 10 and not (tmp_path / "first.png").exists()

    done = run(*flags, "--wandb", env={**os.environ, "WANDB_MODE": "offline"})
    assert done.returncode == 0 and not unexpected(done.stderr), done.stderr
    said = (
        f"4 x 3 cells: {10 - len(drawn)} to draw, {len(drawn)} reused from {cells}"  # three of them are the plain one
    )
    assert said in done.stdout and "wandb sync" in done.stdout
    assert all(path.stat().st_mtime_ns == time for path, time in drawn.items()) and len(list(cells.iterdir())) == 10
    whole = in_process(xy_plot, [*x, *PLOT, "--output", tmp_path / "second.png"])
    assert "10 to draw, 0 reused" in whole[0] and whole[1] == str(tmp_path / "second.png")
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()

    pipe = StableDiffusionPipeline.from_pretrained(models_dir / "epsilon", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    grid, saved = Image.open(tmp_path / "first.png"), {}
    for path in cells.iterdir():
        saved[parse_infotext(read_png_infotext(path))[0]] = Image.open(path)
    files = ["checkpoints/step-000009", "checkpoints/step-000010", "ink.pt"]
    for row, strength in enumerate((0.5, 0.75, 1)):
        assert difference(cell_of(grid, row, 0, (3, 4)), saved["a red star"]) == 0
        for column, (file, name) in enumerate(zip(files, ("ink-9", "ink-10", "ink")), 1):
            cell = saved[f"a red star <hypernet:{name}:{strength:g}>"]
            assert difference(cell_of(grid, row, column, (3, 4)), cell) == 0
            options = {"num_inference_steps": 6, "guidance_scale": 4, "seed": 3}
            assert (
                difference(cell, plain_picture(pipe, [(networks / "ink" / file, strength)], "a red star", **options))
                <= 1
            )
    check_table(tmp_path)


def check_table(folder):
    """W&B's table has a row for each cell, with its axes, its picture and its settings."""
    (path,) = folder.glob("wandb/offline-run-*/files/media/table/*.table.json")
    table = json.loads(path.read_text())
    rows = [dict(zip(table["columns"], row)) for row in table["data"]]
    assert len(rows) == 12 and {row["y"] for row in rows} == {"strength 0.5", "strength 0.75", "strength 1"}
    assert rows[5]["x"] == "step 9" and rows[5]["y"] == "strength 0.75" and rows[5]["hypernetworks"] == "ink-9 0.75"
    assert rows[0]["prompt"] == "a red star" and rows[0]["seed"] == 3 and rows[0]["image"] == "Image"


def test_xy_plot_reuses_across_plots(networks, tmp_path):
    flags = ["--hypernetwork", networks / "ink", "--steps=2", "--output", tmp_path / "a.png"]
    one = in_process(xy_plot, ["--x", "seed", "1-3", "--prompt", "a red star", *flags])
    assert "3 x 1 cells: 3 to draw, 0 reused" in one[0] and one[1] == str(tmp_path / "a.png")
    axes = ["--x", "prompt", "a red star", "a <hypernet:other:1> cat", "--y", "seed", "2-4"]
    two = in_process(xy_plot, [*axes, *flags, "--hypernetwork_dir", networks, "--batch_size=4"])
    assert "2 x 3 cells: 4 to draw, 2 reused" in two[0] and two[1] == str(tmp_path / "a-2.png")
    prompt, _, fields = parse_infotext(read_png_infotext(two[1]))
    assert fields["X axis"] == "prompt" and fields["Y values"] == "seed 2, seed 3, seed 4"


def test_a_retrained_hypernetwork_is_drawn_anew(models_dir, networks, tmp_path):
    flags = ["--x", "seed", "1", "2", "--prompt", "a red star", "--steps=2", "--model", models_dir / "epsilon"]
    flags += ["--hypernetwork", tmp_path / "ink", "--output", tmp_path / "a.png"]
    for seed, said in ((1, "2 to draw, 0 reused"), (2, "2 to draw, 0 reused"), (1, "0 to draw, 2 reused")):
        torch.manual_seed(seed)
        hypernet.Hypernetwork(TINY_WIDTHS, weight_init="xavier_normal").save_pretrained(tmp_path / "ink")
        weights_sha256.cache_clear()
        assert said in in_process(xy_plot, flags)[0]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--sampler", "Eulr"], "did you mean Euler"),
        (["--size", "100"], "multiples of 8"),
        (["--size", "64by64"], "WIDTHxHEIGHT"),
        (["--steps", "0"], "steps 0"),
        (["--seed", "-2"], "seed -2"),
        (["--num_images", "0"], "--num_images: 0: it must be a whole number"),
        (["--strength", "1", "2"], "2 for 1 hypernetworks"),
        (["--strength", "nan"], "strength: it must be a number"),
        (["--hypernetwork", "nothing.pt"], "there is no such file"),
        (["--model", "no/such/model"], "there is no such file or folder"),
        (["--model", "tests"], "no model_index.json"),
        (["--prompt", "a <hypernet:inc>"], "did you mean ink"),
        (["--prompt", "a <lora:x:1>"], "<lora:x:1>"),
        (["--colour", "red"], "unrecognized arguments"),
    ],
)
def test_generate_refuses(networks, tmp_path, flags, message):
    right = [
        "--hypernetwork",
        networks / "ink",
        "--hypernetwork_dir",
        networks,
        "--prompt",
        "a",
        "--output_dir",
        tmp_path,
    ]
    with pytest.raises(UserError) as caught:
        generate.main(list(map(str, [*right, *flags])))
    assert message in str(caught.value) and "\n" not in str(caught.value) and not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--x", "seed", "1", "--y", "seed", "2"], "that is the other axis already"),
        (["--x", "seed", "1", "--seed", "2"], "--seed: its values are those of the axis"),
        (["--x", "checkpoint", "none", "--hypernetwork", "a.pt"], "--hypernetwork: its values are those"),
        (["--x", "strength", "1"], "--hypernetwork is missing"),
        (["--x", "checkpoint", "none"], "--model is missing"),
        (["--x", "checkpoint", "nothing.pt"], "there is no such file"),
        (["--x", "checkpoint", "examples"], "examples: there is no hypernetwork in this folder itself"),
        (["--x", "steps", "0-3"], "steps 0"),
        (["--x", "guidance", "-1"], "guidance_scale -1.0"),
        (["--x", "seed", "1", "--output", "a.jpg"], "end in .png"),
        (["--x", "seed"], "its values are missing"),
    ],
)
def test_xy_plot_refuses(tmp_path, flags, message):
    with pytest.raises(UserError) as caught:
        xy_plot.main(["--prompt", "a", "--output", str(tmp_path / "a.png"), *flags])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_one_line_on_the_console(tmp_path):
    done = run(XY, "--x", "prompt", "a", "--prompt", "b", "--output", tmp_path / "a.png")
    expected = "error: --prompt: its values are those of the axis prompt; leave one of them out\n"
    assert done.returncode == 2 and done.stderr == expected and not done.stdout


def test_steps_that_a_sampler_cannot_take(models_dir):
    generator = ImageGenerator(open_models(models_dir / "epsilon"))
    with pytest.raises(UserError, match="steps 60: LCM cannot take so many"):
        list(generator.generate_all([GenerationSettings("a", steps=2), GenerationSettings("a", steps=60, sampler="LCM")]))


@pytest.mark.parametrize("model", ["epsilon", "xl"])
def test_pictures_do_not_depend_on_their_batch(model, models_dir, networks):
    generator = ImageGenerator(open_models(models_dir / model))
    pipe = generator.pipe
    pipe.set_progress_bar_config(disable=True)
    stack = ((str(networks / "ink"), 1.0), (str(networks / "other.pt"), -0.5))
    pictures = [
        GenerationSettings(prompt, negative, seed, steps=2, sampler=sampler, hypernetworks=hypernetworks)
        for seed, (prompt, negative) in enumerate([("a cat", ""), ("a red star", ""), ("a star", "blue"), ("", "blue")])
        for sampler in (None, "DPM++ 2M SDE Karras")
        for hypernetworks in (stack, (), stack[:1])
    ]
    alone, together = (dict(generator.generate_all(pictures, batch_size)) for batch_size in (1, 3))
    assert sorted(alone) == sorted(together) == list(range(len(pictures)))
    assert max(difference(alone[i], together[i]) for i in alone) <= 1
    assert not generator.loaded and not hasattr(pipe.unet, "_hypernetworks")
    pipe.scheduler = generator.schedulers[None]
    for i in (0, 1, 2, 12):
        picture = pictures[i]
        if picture.sampler is None:
            options = {"num_inference_steps": 2, "negative_prompt": picture.negative_prompt or None}
            options["guidance_scale"] = 7.5
            expected = plain_picture(pipe, picture.hypernetworks, picture.prompt, picture.seed, **options)
            assert difference(alone[i], expected) <= 1


def test_model_identity(models_dir, tmp_path):
    source = ModelSource(str(models_dir / "epsilon"))
    assert source.identity() == source.identity() != ModelSource(str(models_dir / "v_prediction")).identity()


def test_sheet():
    cells = [[Image.new("RGB", (64, 64), (row * 50, column * 50, 90)) for column in range(3)] for row in range(2)]
    labels = ["a long prompt that has to be wrapped into several lines " * 3, "x" * 80, "step 500"]
    sheet = labeled_grid(cells, ["one", "two"], labels, caption="what they share")
    for row in range(2):
        for column in range(3):
            assert difference(cell_of(sheet, row, column, (2, 3)), cells[row][column]) == 0
    assert labeled_grid(cells[:1], [""], labels).width == 3 + 3 * (64 + 3)
    font = load_font(12)
    for label in labels:
        lines = wrap(label, font, 64)
        assert len(lines) <= 6 and all(font.getlength(line) <= 64 for line in lines[:-1])
    assert " ".join(wrap("a cat on a mat", font, 40)) == "a cat on a mat"
    name, width = "seed=1,activation=swish,learning_rate=3e-3", font.getlength("learning_rate=3e-3")
    assert wrap(name, font, width) == ["seed=1,", "activation=swish,", "learning_rate=3e-3"]
    assert wrap(name, font, font.getlength("activation=")) == [
        "seed=1,",
        "activation=",
        "swish,",
        "learning_",
        "rate=3e-3",
    ]
