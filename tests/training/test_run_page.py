"""The page of a run: what is in it, and how it works in a real browser."""

import contextlib
import functools
import http.server
import io
import json
import math
import random
import re
import shlex
import shutil
import threading
import types

import pytest
from PIL import Image
from selenium.webdriver import ActionChains
from selenium.webdriver.support.wait import WebDriverWait

from examples.benchmarks.run_page import make_up_page, make_up_run, open_chromium, requested_addresses, set_window
from hypernet.cli.training_options import parse_config
from hypernet.config import TrainingConfig
from hypernet.data.batch_sampler import EpochBatchSampler
from hypernet.training import run_page
from hypernet.training.failures import Failures
from hypernet.training.run_curves import MAX_POINTS, thin
from hypernet.training.run_facts import describe_images, training_command
from hypernet.training.run_page import describe_grid, render
from hypernet.utils.errors import UserError
from hypernet.utils.image_grid import labeled_grid, preview_grid, save_png
from tests.helpers.scripts import train_here

HOSTILE = "</script><script>window.broken=1</script><img src=x onerror='window.broken=2'><!-- \u2028 &lt; 水墨 "
STEPS, PREVIEWS, EVERY = 2_000, 40, 50


@pytest.fixture(scope="module")
def browser():
    """One headless Chromium for all tests of this file."""
    with contextlib.ExitStack() as stack:
        try:
            driver = stack.enter_context(open_chromium())
        except UserError as error:
            pytest.skip(str(error))
        yield driver


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """The folder of a run of `STEPS` steps with 40 previews."""
    folder = tmp_path_factory.mktemp("made up")
    make_up_run(folder, STEPS)
    return folder


@pytest.fixture
def page(made_up, tmp_path, monkeypatch):
    """The page of that run, in a copy of its folder whose name needs quoting in an address."""
    monkeypatch.setattr(run_page, "SHARE", math.inf)  # it may be written at any time
    folder = tmp_path / "a run #1"
    shutil.copytree(made_up, folder)
    return make_up_page(folder, STEPS)


def data_of(page):
    """Return the data in a written page."""
    text = page.folder.page.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.S)[1])


def open_page(browser, address):
    """Open a page at 1280 pixels, after forgetting what happened before; return when it stands still."""
    set_window(browser, 1280, 900)
    browser.get("about:blank")
    browser.get_log("browser"), requested_addresses(browser)
    browser.get(address)
    # Its plots are drawn again a frame after they have their size; a handle to one of the first would be stale.
    browser.execute_async_script(
        "const done = arguments[0], frame = requestAnimationFrame; frame(() => frame(() => frame(() => done())))"
    )


def check_quiet(browser, start):
    """Check that nothing was written to the console, and nothing requested but addresses that start so."""
    assert browser.get_log("browser") == []
    assert [address for address in requested_addresses(browser) if not address.startswith(start)] == []


def text_of(browser, name):
    return browser.execute_script("return document.getElementById(arguments[0]).textContent", name)


def overflow(browser):
    """Return by how many pixels the page is wider than its window."""
    return browser.execute_script("return document.documentElement.scrollWidth - innerWidth")


# --- In a browser


@pytest.mark.parametrize("width, height", [(1280, 900), (390, 844)])
def test_it_fits_the_screen_and_says_where_the_run_is(browser, page, width, height):
    page.write()
    assert page.folder.page.stat().st_size < 3e6
    open_page(browser, page.folder.page.as_uri())
    set_window(browser, width, height)
    assert overflow(browser) <= 0
    assert "2,000 of 2,500" in text_of(browser, "progress") and "left" in text_of(browser, "progress")
    assert text_of(browser, "state") == "Training" and text_of(browser, "name") == "neon"
    assert len(browser.find_elements("css selector", ".plot svg path")) > 8
    assert browser.find_elements("css selector", "#events li") and browser.find_elements("css selector", "#warnings li")
    assert text_of(browser, "command").split() == data_of(page)["command"].split()
    check_quiet(browser, page.folder.root.as_uri())


def test_slider_and_button_show_the_previews(browser, page):
    page.write()
    open_page(browser, page.folder.page.as_uri())

    def visible():
        script = "return [...document.querySelectorAll('.frame img')].filter(i => getComputedStyle(i).visibility === 'visible')"
        return browser.execute_script(f"{script}.map(image => [image.className, image.currentSrc, image.naturalWidth])")

    def move(index):
        script = (
            "const s = document.getElementById('slider'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))"
        )
        browser.execute_script(script, index)
        WebDriverWait(browser, 10).until(
            lambda _: all(f"step-{EVERY * (index + 1):06d}.png" in each[1] for each in visible())
        )

    WebDriverWait(browser, 10).until(lambda _: all(each[2] for each in visible()))
    assert [each[0] for each in visible()] == ["with", "with"] and f"{STEPS:,}" in text_of(browser, "label")
    move(3)
    assert "200" in text_of(browser, "label")
    browser.find_element("id", "without").click()
    assert [each[0].split()[0] for each in visible()] == ["without", "without"]
    browser.find_element("css selector", ".frame").click()
    assert [each[0].split()[0] for each in visible()] == ["with", "with"]
    browser.refresh()
    WebDriverWait(browser, 10).until(lambda _: visible() and "step-000200.png" in visible()[0][1])
    check_quiet(browser, page.folder.root.as_uri())


def test_plots_show_values_under_the_pointer_and_zoom(browser, page):
    page.write()
    open_page(browser, page.folder.page.as_uri())
    plot = browser.find_element("css selector", ".plot svg")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    ActionChains(browser).move_to_element(plot).perform()
    WebDriverWait(browser, 10).until(lambda _: browser.find_elements("css selector", ".legend b"))
    values = [
        float(each.text.split()[0]) for each in browser.find_elements("css selector", ".plot:first-child .legend b")
    ]
    assert len(values) == 3 and all(0.05 < value < 0.4 for value in values)
    step = int(browser.find_element("css selector", ".plot .hint").text.split()[-1].replace(",", ""))
    assert 0.4 * STEPS < step < 0.6 * STEPS
    ActionChains(browser).click_and_hold().move_by_offset(100, 0).release().perform()
    assert browser.find_element("id", "unzoom").is_displayed()
    browser.find_element("id", "unzoom").click()
    assert not browser.find_element("id", "unzoom").is_displayed()
    check_quiet(browser, page.folder.root.as_uri())


def test_steps_of_the_learning_rate_and_large_perturbations_stay_on_their_plots(browser, page):
    rates = [f"{step},0,{step},0.1,{1e-3 if step < 200 else 1e-6}" for step in range(10, STEPS, 10)]
    page.folder.losses.path.write_text("\n".join(["step,epoch,epoch_step,loss,learn_rate", *rates, ""]))
    metrics = [f"{step},1,0.01,0.01,{step / 10}" for step in range(10, STEPS, 10)]
    page.folder.metrics.path.write_text("\n".join(["step,grad_norm,effect/1,effect/2,effect/3", *metrics, ""]))
    page.write()
    open_page(browser, page.folder.page.as_uri())
    for panel, count in ((2, 1), (3, 3)):
        # In one script: the page may redraw a plot between two.
        lines = f".plot:nth-child({panel}) svg g path[stroke-width='2']"
        tops = browser.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map(line => line.getBBox().y)", lines
        )
        assert len(tops) == count and min(tops) > 0


def test_a_run_that_continues_an_old_hypernetwork_fills_its_plots(browser, page):
    for path in page.folder.root.glob("*.csv"):
        path.unlink()
    for first in (10, 20_010):
        rows = [f"{first + step},0,{step},0.1,1e-5" for step in range(0, 500, 10)]
        page.folder.losses.path.write_text("\n".join(["step,epoch,epoch_step,loss,learn_rate", *rows, ""]))
        page.write()
        open_page(browser, page.folder.page.as_uri())
        width = browser.execute_script(
            "const plot = document.querySelector('.plot svg');"
            "return plot.querySelector('g path').getBBox().width / plot.clientWidth"
        )
        assert width > 0.8


def test_a_killed_run_is_noticed(browser, page, monkeypatch):
    monkeypatch.setattr(run_page.time, "time", lambda: 1.7e9)  # the page was last written long ago
    page.write()
    open_page(browser, page.folder.page.as_uri())
    assert text_of(browser, "state").startswith("No news") and "left" not in text_of(browser, "progress")


@contextlib.contextmanager
def served(folder):
    """Serve a folder; yield its address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("kind", ["file", "server", "notebook"])
def test_it_updates_itself_until_the_run_ends(browser, page, kind):
    folder = page.folder.root
    page.step = STEPS - 2 * EVERY
    tables = {table.path: table.path.read_text() for table in (page.folder.losses, page.folder.validation_losses)}
    for path, text in tables.items():
        path.write_text(
            "".join(line for line in text.splitlines(True) if line[0] == "s" or int(line.split(",")[0]) <= page.step)
        )
    page.write()
    (folder / "notebook.html").write_text(
        '<link rel="icon" href="data:,"><iframe sandbox="allow-scripts" src="run.html" width=1200 height=800></iframe>'
    )
    with served(folder) if kind != "file" else contextlib.nullcontext(folder.as_uri()) as address:
        open_page(browser, f"{address}/{'notebook' if kind == 'notebook' else 'run'}.html")
        if kind == "notebook":
            browser.switch_to.frame(0)
        script = "const s = document.getElementById('slider'); s.value = 4; s.dispatchEvent(new Event('input')); window.mark = 1"
        browser.execute_script(script)

        def update():
            browser.execute_script("document.dispatchEvent(new Event('visibilitychange', {bubbles: true}))")

        def wait_for(text):
            WebDriverWait(browser, 20).until(lambda _: text in text_of(browser, "progress") + text_of(browser, "state"))

        for path, text in tables.items():
            path.write_text(text)
        wait_for("1,900 of")
        page.step = STEPS
        page.write()
        update()
        wait_for("2,000 of")
        state = browser.execute_script("return [mark, Number(slider.value), Number(slider.max)]")
        assert state == [1, 4, PREVIEWS - 1] and "250" in text_of(browser, "label")
        page.write("stopped")
        update()
        wait_for("Stopped")
        page.write()  # the same command has resumed it
        update()
        wait_for("Training")
        page.write("finished")
        update()
        wait_for("Finished")
        check_quiet(browser, address)
        update()
        assert not requested_addresses(browser)
        browser.switch_to.default_content()


def test_text_of_a_run_is_never_html(browser, page):
    data = page.facts["data"]
    image = {**data["images"][0], "caption": HOSTILE, "name": HOSTILE}
    page.facts = {**page.facts, "name": HOSTILE, "command": HOSTILE + "x" * 900, "notes": [HOSTILE, "y" * 900]}
    page.facts |= {"settings": [[HOSTILE, HOSTILE, HOSTILE]], "data": {**data, "images": [image]}, "base": HOSTILE}
    page.failures.lines = [HOSTILE]
    (page.folder.guard_log.path).write_text(
        f'step,event,learning_rate_factor\n100,"{HOSTILE.strip()}",0.1\n', encoding="utf-8"
    )
    shutil.rmtree(page.folder.previews)
    page.folder.previews.mkdir()
    tiles = [[Image.new("RGB", (64, 64), color) for color in ("red", "blue")]]
    save_png(preview_grid(tiles, [HOSTILE], ["without", "step 50"]), page.folder.previews / "step-000050.png")
    page.write("failed", HOSTILE)
    open_page(browser, page.folder.page.as_uri())
    assert browser.execute_script("return window.broken") is None
    assert text_of(browser, "name") == text_of(browser, "message") == HOSTILE
    shown = browser.execute_script("return document.querySelector('main').textContent")
    assert shown.count(HOSTILE.strip()) >= 10
    for width in (1280, 390):
        set_window(browser, width, 844)
        assert overflow(browser) <= 0
    check_quiet(browser, page.folder.root.as_uri())


@pytest.mark.parametrize("state", ["training", "finished", "stopped", "failed"])
def test_it_shows_a_run_of_which_little_is_known(browser, page, state):
    for path in page.folder.root.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    page.step = 0
    page.facts = {**page.facts, "has_previews": False, "notes": []}
    page.write(state)
    open_page(browser, page.folder.page.as_uri())
    assert overflow(browser) <= 0 and not browser.find_elements("css selector", ".plot svg path")
    losses = ["step,epoch,epoch_step,loss,learn_rate", "10,0,1,nan,0", "20,0,2,inf,0", "30,0,3,nan,1e-5", ""]
    page.folder.losses.path.write_text("\n".join(losses))
    page.folder.validation_losses.path.write_text("step,val_loss,val_loss_base\n0,0.5,0.5\n")
    page.write(state)
    browser.get(page.folder.page.as_uri())
    assert len(browser.find_elements("css selector", ".plot:first-child .broken")) == 3
    check_quiet(browser, page.folder.root.as_uri())


# --- What is in it


def test_long_tables_keep_their_means_and_peaks():
    rng = random.Random(0)
    values = [rng.random() for _ in range(10 * MAX_POINTS + 3)]
    values[777], values[5000] = 99.0, math.nan
    rows = [{"step": str(10 * i), "loss": str(value)} for i, value in enumerate(values, 1)]
    curve = thin(rows, "loss")
    assert len(curve["steps"]) <= MAX_POINTS and curve["steps"][-1] == 10 * len(values) and curve["broken"] == [50010]
    assert max(curve["high"]) == 99 and all(
        a <= b <= c for a, b, c in zip(curve["low"], curve["values"], curve["high"])
    )
    group = values[:11]
    assert curve["steps"][0] == 110
    assert [curve["values"][0], curve["low"][0], curve["high"][0]] == pytest.approx(
        [sum(group) / 11, min(group), max(group)], rel=1e-5
    )


def test_short_tables_are_shown_as_they_are():
    rows = [
        {"step": "5", "x": "1.5"},
        {"step": "6", "x": ""},
        {"step": "7"},
        {"step": "8", "x": "nan"},
        {"step": "9", "x": "-2"},
    ]
    expected = {"steps": [5, 8, 9], "values": [1.5, None, -2], "low": None, "high": None, "broken": [8]}
    assert thin(rows, "x") == expected and thin(rows, "y") is None and thin([], "x") is None


def test_the_images_shown_are_from_all_of_the_dataset():
    file = io.BytesIO()
    Image.new("RGB", (40, 30)).save(file, "PNG")
    facts = {"size": (64, 64), "width": 40, "height": 30}
    records = [types.SimpleNamespace(row=row, repeats=1 + (row > 9), sha256=str(row), **facts) for row in range(15)]
    source = types.SimpleNamespace(captions=[["a"]] * 15, label=str, read=lambda row: file.getvalue())
    run = types.SimpleNamespace(source=source, config=TrainingConfig())
    batches = EpochBatchSampler(records, batch_size=1, seed=0)
    data = describe_images(run, types.SimpleNamespace(records=records, validation_records=[], batches=batches))
    names = [int(image["name"]) for image in data["images"]]
    assert len(set(names)) == 8 and min(names) == 0 and max(names) >= 13
    assert (data["count"], data["visits"]) == (15, 20)


def test_a_grid_says_where_its_images_are(tmp_path):
    sizes = ((40, 30), (64, 72))
    images = [[Image.effect_noise(size, 50).convert("RGB") for _ in range(4)] for size in sizes]
    grid = preview_grid(images, ["a cat", "水墨"], ["without"] * 2 + ["step 5"] * 2)
    save_png(grid, tmp_path / "grid.png")
    found = describe_grid(tmp_path / "grid.png")
    assert (found["width"], found["height"]) == grid.size
    assert [tile["prompt"] for tile in found["tiles"]] == ["a cat", "a cat", "水墨", "水墨"]
    with Image.open(tmp_path / "grid.png") as image:
        for number, tile in enumerate(found["tiles"]):
            for kind, column in (("without", 0), ("with", 2)):
                left, top, width, height = tile[kind]
                cell = image.crop((left, top, left + width, top + height))
                assert cell.tobytes() == images[number // 2][column + number % 2].tobytes()


def test_grids_of_older_versions_and_damaged_ones(page):
    for path in page.folder.previews.iterdir():
        path.unlink()
    labeled_grid([[Image.new("RGB", (40, 30))]], ["a"], ["b"]).save(page.folder.previews / "step-000050.png")
    (page.folder.previews / "step-000100.png").write_bytes(b"\x89PNG\r\n")
    (page.folder.previews / "notes.txt").touch()
    shutil.copy(page.folder.previews / "step-000050.png", page.folder.previews / "step-009999.png")  # of a later step
    shutil.copy(page.folder.previews / "step-000050.png", page.folder.before_after)
    page.write("stopped")
    assert [(each["step"], each["tiles"]) for each in data_of(page)["previews"]] == [(50, [])]
    page.write("finished")
    assert [each["step"] for each in data_of(page)["previews"]] == [50, STEPS]


def test_data_survive_as_they_are():
    run = {"text": f"{HOSTILE}\udcff", "number": 1.5}
    text = render(run).encode("utf-8").decode("utf-8")
    (inside,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.S)
    assert json.loads(inside) == run and not set("<>&") & set(inside)
    with pytest.raises(ValueError):
        render({"number": math.nan})


def test_how_a_run_ends_is_on_its_page(page):
    for error, state in ((UserError("the disk is full"), "failed"), (KeyboardInterrupt(), "stopped")):
        with pytest.raises(type(error)), page:
            assert data_of(page)["state"] == "training"
            raise error
        assert (data_of(page)["state"], data_of(page)["message"]) == (state, "the disk is full" * (state == "failed"))


def test_a_page_that_cannot_be_written_ends_no_run(page):
    page.failures = Failures(types.SimpleNamespace(is_main_process=True, print=print))
    page.folder.page = page.folder.losses.path / "run.html"  # not below a folder
    with page:
        page.write("finished")
    assert len(page.failures.lines) == 1 and "run.html" in page.failures.lines[0]


def test_writing_takes_at_most_its_share_of_the_time(page, monkeypatch):
    monkeypatch.setattr(run_page, "SHARE", 1e-6)
    with page:
        page.folder.page.unlink()
        page.write()
        assert not page.folder.page.exists()
    page.write("finished")
    assert page.folder.page.exists()


def test_only_the_main_process_writes(page):
    page.failures.accelerator = types.SimpleNamespace(is_main_process=False)
    with page:
        page.write("finished")
    assert not page.folder.page.exists()


# --- Of a real run


def test_the_command_is_the_one_that_was_given(monkeypatch):
    given = ["--config", "my runs/a.yaml", "--name=ink", "--validation_prompt", "a cat's hat", "$HOME"]
    monkeypatch.setattr("sys.argv", ["/home/me/train_hypernetwork.py", *given])
    assert shlex.split(training_command(TrainingConfig()))[2:] == given
    monkeypatch.setattr("sys.argv", ["notebook"])
    options = ["--pretrained_model_name_or_path=sd", "--train_data_dir", "a b", "--no_guard", "--random_flip"]
    config = parse_config([*options, "--validation_prompt", "a cat's hat", "a dog", "--max_train_steps=7"])
    assert parse_config(shlex.split(training_command(config))[2:]) == config


def test_a_run_and_its_resume(models_dir, images_dir, tmp_path):
    images, run = tmp_path / "images", tmp_path / "run"
    shutil.copytree(images_dir, images)
    (images / "0.txt").write_text(HOSTILE, encoding="utf-8")
    flags = ["--max_train_steps=4", "--logging_steps=1", "--validation_prompt=a cat", "--validation_steps=2"]
    flags += ["--validation_inference_steps=2", "--validation_split=0.25", "--learning_rate=1e-3", "--name=ink"]
    page = types.SimpleNamespace(folder=types.SimpleNamespace(page=run / "run.html"))
    train_here(models_dir, images, run, *flags)
    first = data_of(page)
    assert (first["state"], first["step"], first["last_step"], first["name"]) == ("finished", 4, 4, "ink")
    assert [each["step"] for each in first["previews"]][-2:] == [2, 4]
    for preview in first["previews"]:
        assert (run / preview["source"].partition("?")[0]).is_file() and preview["tiles"][0]["prompt"] == "a cat"
    assert first["data"]["count"] == 6 and first["data"]["validation"] == 2 and first["data"]["sizes"] == [["64×64", 6]]
    assert len(first["data"]["images"]) == 6 and all(each["caption"] for each in first["data"]["images"])
    assert {"learning_rate": "1e-3", "name": "ink"}.items() <= {
        name: value for name, value, _ in first["settings"]
    }.items()
    assert "--learning_rate 1e-3" in first["command"] and "--validation_prompt 'a cat'" in first["command"]
    curves = {curve["label"]: curve for panel in first["panels"] for curve in panel["curves"]}
    assert curves["training"]["steps"] == curves["gradient norm"]["steps"] == [1, 2, 3, 4]
    assert curves["validation"]["steps"] == [0, 2, 4] and any(label.isdecimal() for label in curves)
    train_here(models_dir, images, run, *flags, "--max_train_steps=5")
    second = data_of(page)
    assert (second["state"], second["step"]) == ("finished", 5) and second["panels"][0]["curves"][0]["steps"] == [
        1,
        2,
        3,
        4,
        5,
    ]
