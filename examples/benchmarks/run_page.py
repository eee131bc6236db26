#!/usr/bin/env python
"""Measure the page of a long run: its size, the time to write it, and how soon Chromium shows it.

    python examples/benchmarks/run_page.py                       # 10,000 and 1,000,000 steps; about two minutes
    python examples/benchmarks/run_page.py --steps 10000 --folder output/page --screenshots

The run is simulated: tables, 40 previews and a few images. Needs selenium, Chromium and its driver.
"""

import argparse
import base64
import contextlib
import functools
import io
import json
import math
import random
import shutil
import sys
import tempfile
import time
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hypernet.cli.script import ScriptParser, quiet_libraries, run_script

if __name__ == "__main__":
    quiet_libraries()  # before diffusers is imported

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from hypernet.config import TrainingConfig
from hypernet.training.run_facts import draw_thumbnail, list_settings, training_command
from hypernet.training.run_folder import RunFolder
from hypernet.training.run_page import SHARE, RunPage
from hypernet.utils.errors import UserError
from hypernet.utils.image_grid import preview_grid, save_png

LOGGED, PREVIEWS, IMAGES = 10, 40, 8  # steps per row; preview grids; images shown
SIDE = 256  # pixels, of a preview
WIDTHS = (320, 640, 768, 1280)
WINDOWS = {"desktop": (1280, 900), "phone": (390, 844)}  # pixels
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[10_000, 1_000_000], help="default: 10000 1000000")
    parser.add_argument("--folder", type=Path, help="keep the runs below this folder")
    parser.add_argument("--screenshots", action="store_true", help="save screenshots beside the pages")
    args = parser.parse_args(arguments)
    if min(args.steps) < PREVIEWS * LOGGED:
        raise UserError(f"--steps: the fewest are {PREVIEWS * LOGGED}, one row per preview")
    return args


# --- A run that never was


def make_up_options(folder: Path, steps: int) -> TrainingConfig:
    """Return the options of a run that is four fifths done."""
    return TrainingConfig(
        name="neon",
        output_dir=str(folder),
        train_data_dir="my_images",
        pretrained_model_name_or_path="stable-diffusion-v1-5/stable-diffusion-v1-5",
        learning_rate=f"5e-5:{steps // 5}, 5e-6:{steps * 5 // 4}",
        max_train_steps=steps * 5 // 4,
        activation="swish",
        validation_prompt=["a house by the sea, in the style of neon", "portrait of a woman, in the style of neon"],
        validation_split=0.1,
        template="[filewords], in the style of [name]",
    )


def make_up_run(folder: Path, steps: int) -> None:
    """Write the tables and previews of a run."""
    config = make_up_options(folder, steps)
    run = RunFolder(config)
    write_tables(run, steps)
    write_previews(run, steps, list(config.validation_prompt or []))


def make_up_page(folder: Path, steps: int) -> RunPage:
    """Return the page of the run in a folder, not yet written."""
    config = make_up_options(folder, steps)
    failures: Any = types.SimpleNamespace(
        accelerator=types.SimpleNamespace(is_main_process=True),
        lines=["TensorBoard could not log measurements (No space left on device); the run continues"],
        tolerate=lambda what: contextlib.nullcontext(),
    )
    page = RunPage(RunFolder(config), failures, make_up_facts(config), first_step=0, last_step=config.max_train_steps)
    page.step = steps
    page._paces[0] = (time.monotonic() - 0.55 * steps, 0)
    page._started = page._paces[0][0]
    return page


def write_tables(run: RunFolder, steps: int) -> None:
    """Write losses, validation losses, metrics and the guard's events."""
    rng, losses, metrics = random.Random(0), [], []
    names = ["grad_norm", *(f"effect/{width}" for width in WIDTHS), "images_per_second", "peak_memory_gib"]
    for step in range(LOGGED, steps + 1, LOGGED):
        share, rate = step / steps, 5e-5 if step < steps // 5 else 5e-6
        loss = (0.115 + 0.05 * math.exp(-6 * share)) * rng.lognormvariate(0, 0.28)
        losses.append(f"{step},{step // 28},{step % 28},{loss:.7f},{rate:.10g}")
        effects = [0.9 * (1 - math.exp(-9 * share)) * (0.3 + number) for number in range(len(WIDTHS))]
        values = [0.3 * rng.lognormvariate(0, 0.5), *(rng.gauss(1, 0.01) * each for each in effects), 3.4, 5.2]
        metrics.append(",".join([str(step), *(f"{value:.7g}" for value in values)]))
    every = steps // PREVIEWS
    measured = [
        f"{step},{0.129 + 0.03 * math.exp(-5 * step / steps):.7f},0.1601" for step in range(0, steps + 1, every)
    ]
    event = (
        "val_loss 0.171 has been clearly above its best, 0.1418 at step {}, for 3 evaluations; goes back to the best"
    )
    tables = {
        run.losses: ["step,epoch,epoch_step,loss,learn_rate", *losses],
        run.validation_losses: ["step,val_loss,val_loss_base", *measured],
        run.metrics: [",".join(["step", *names]), *metrics],
        run.guard_log: ["step,event,learning_rate_factor", f'{7 * every},"{event.format(4 * every)}",0.1'],
    }
    for table, lines in tables.items():
        table.path.parent.mkdir(parents=True, exist_ok=True)
        table.path.write_text("\n".join([*lines, ""]), encoding="utf-8")


def write_previews(run: RunFolder, steps: int, prompts: list[str]) -> None:
    """Write preview grids in which a style comes out more and more."""
    before, after = ([draw_landscape(seed, neon) for seed in range(len(prompts))] for neon in (False, True))
    run.previews.mkdir(parents=True, exist_ok=True)
    for number in range(1, PREVIEWS + 1):
        step, share = number * steps // PREVIEWS, 1 - math.exp(-4 * number / PREVIEWS)
        current = [Image.blend(plain, styled, share) for plain, styled in zip(before, after)]
        current = [image.filter(ImageFilter.GaussianBlur(2 * (1 - share))) for image in current]
        grid = preview_grid([list(row) for row in zip(before, current)], prompts, ["without", f"step {step}"])
        save_png(grid, run.previews / f"step-{step:06d}.png")


def make_up_facts(config: TrainingConfig) -> dict[str, Any]:
    """Return what `describe_run` does for a run."""
    return {
        "name": config.name,
        "device": "Training on Tesla T4, processes: 1, mixed precision: fp16",
        "base": "Stable Diffusion (epsilon): stable-diffusion-v1-5/stable-diffusion-v1-5",
        "command": training_command(config),
        "settings": list_settings(config),
        "has_previews": True,
        "notes": ["1 image has an empty caption, such as my_images/17.png"],
        "data": {
            "count": 28,
            "validation": 3,
            "visits": 28,
            "batches": 28,
            "sizes": [["512×512", 17], ["640×384", 8], ["384×640", 3]],
            "more_sizes": 0,
            "images": make_up_images(),
        },
    }


@functools.cache
def make_up_images() -> list[dict[str, str]]:
    """Return a few images as the page shows them."""
    shown = []
    for number in range(IMAGES):
        file = io.BytesIO()
        draw_landscape(100 + number, neon=True).save(file, "PNG")
        source, text = draw_thumbnail(file.getvalue(), "white"), f"hills at night, {number + 1} of {IMAGES}"
        shown.append({"name": f"{number}.png", "size": "1024×1024", "caption": text, "source": source})
    return shown


@functools.cache
def draw_landscape(seed: int, neon: bool) -> Image.Image:
    """Draw a sun behind hills, in the colors of the day or as glowing outlines."""
    rng, scale = random.Random(seed), 2
    side = scale * SIDE
    sky = [(12, 10, 34), (52, 14, 74)] if neon else [(150, 190, 220), (240, 226, 200)]
    image = Image.composite(
        *(Image.new("RGB", (side, side), color) for color in sky[::-1]), Image.linear_gradient("L").resize((side, side))
    )
    light = Image.new("RGB", image.size)
    x, y, radius = rng.uniform(0.25, 0.75) * side, rng.uniform(0.3, 0.45) * side, rng.uniform(0.1, 0.17) * side
    sun = (x - radius, y - radius, x + radius, y + radius)
    draw, glow = ImageDraw.Draw(image), ImageDraw.Draw(light)
    draw.ellipse(sun, fill=sky[1] if neon else (250, 214, 120))
    glow.ellipse(sun, outline=(255, 120, 90), width=3 * scale)
    colors = (
        [(80, 220, 255), (190, 110, 255), (255, 70, 180)] if neon else [(132, 160, 140), (96, 132, 104), (62, 94, 72)]
    )
    for layer, color in enumerate(colors):
        phase, waves = rng.uniform(0, 6), rng.uniform(1, 2.2)
        height = [(0.55 + 0.13 * layer + 0.07 * math.sin(phase + waves * 6.28 * i / 64)) * side for i in range(65)]
        line = [(i * side / 64, y) for i, y in enumerate(height)]
        draw.polygon([*line, (side, side), (0, side)], fill=(18 + 6 * layer, 10, 40) if neon else color)
        glow.polygon([*line, (side, side), (0, side)], fill=(0, 0, 0))
        glow.line(line, fill=color, width=3 * scale)
    if neon:
        for blur in (0, 4 * scale, 12 * scale):
            image = ImageChops.add(image, light.filter(ImageFilter.GaussianBlur(blur)))
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


# --- Measurements


@contextlib.contextmanager
def open_chromium() -> Iterator[Any]:
    """Yield a headless Chromium with a profile of its own, as a selenium driver.

    Raises:
        UserError: if selenium, Chromium or its driver is missing.
    """
    try:
        from selenium import webdriver
        from selenium.common.exceptions import WebDriverException
    except ImportError:
        raise UserError("selenium is missing: pip install selenium") from None
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    chromedriver = shutil.which("chromedriver")
    if browser is None or chromedriver is None:
        raise UserError("Chromium and chromedriver are missing; on Debian: apt-get install chromium chromium-driver")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for flag in [*FLAGS, f"--user-data-dir={profile}"]:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        try:
            driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
        except WebDriverException as error:
            raise UserError(f"Chromium does not start ({error.msg})") from None
        try:
            driver.get("about:blank")
            requested_addresses(driver)  # those of Chromium's own first page
            yield driver
        finally:
            driver.quit()


def set_window(driver: Any, width: int, height: int) -> None:
    """Give the page a window of this size, smaller than what Chromium allows for windows if need be."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def requested_addresses(driver: Any) -> list[str]:
    """Return the addresses that Chromium has requested since the last call, without its own and data URLs."""
    messages = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    sent = (each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent")
    return [address for address in sent if not address.startswith(("data:", "about:", "chrome:"))]


def measure(driver: Any, folder: Path, steps: int, takes_screenshots: bool) -> None:
    """Make up a run of this many steps, write its page, open it, and print the figures."""
    make_up_run(folder, steps)
    page = make_up_page(folder, steps)
    page.write("stopped")  # reads all grids, as the first page of a resumed run does
    started = time.process_time()
    page.write("stopped")
    seconds = time.process_time() - started
    linked = sum(path.stat().st_size for path in page.folder.previews.iterdir())
    driver.get(page.folder.page.as_uri())
    paint = driver.execute_script("return performance.getEntriesByName('first-contentful-paint')[0].startTime")
    print(f"{steps:,} steps, {PREVIEWS} previews")
    print(f"  run.html       {page.folder.page.stat().st_size / 1e6:.2f} MB, plus {linked / 1e6:.1f} MB of previews")
    print(f"  to write it    {seconds:.2f} s of CPU time; at most {SHARE:.0%} of the run's time")
    print(f"  first paint    {paint / 1000:.2f} s after opening it in Chromium")
    errors = [entry["message"] for entry in driver.get_log("browser")]
    outside = [address for address in requested_addresses(driver) if not address.startswith(folder.as_uri())]
    print(f"  console        {errors or 'no message'}; requests outside the folder: {len(outside)}")
    for name, (width, height) in WINDOWS.items() if takes_screenshots else ():
        set_window(driver, width, height)
        image = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        path = folder / f"{name}.png"
        path.write_bytes(base64.b64decode(image["data"]))
        print(f"  {path}")


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    with open_chromium() as driver, tempfile.TemporaryDirectory() as temporary:
        for steps in args.steps:
            measure(driver, (args.folder or Path(temporary)) / f"run-{steps}", steps, args.screenshots)


if __name__ == "__main__":
    run_script(main)
