"""Write and read the WebUI's infotext."""

import os
import time

import pytest
from PIL import Image

from hypernet.generation.infotext import free_path, parse_infotext, read_png_infotext, save_png, write_infotext

# The example in the WebUI's documentation of the format (modules/infotext_utils.py), shortened
DOCUMENTED = """girl with an artist's beret, determined, blue eyes, ((eyeshadow)), (coquettish)
Negative prompt: ugly, fat, obese, (((deformed))), [blurry], (extra_limb)
Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x512, Model hash: 45dee52b"""
FIELDS = {"Steps": "20", "Sampler": "DPM++ 2M SDE", "Seed": "1", "Size": "512x768", "Model": "a model"}


def test_reads_and_writes_the_documented_example():
    prompt, negative, fields = parse_infotext(DOCUMENTED)
    assert prompt.startswith("girl") and prompt.endswith("(coquettish)") and negative.endswith("(extra_limb)")
    assert fields["Sampler"] == "Euler a" and fields["Size"] == "512x512" and fields["Model hash"] == "45dee52b"
    assert write_infotext(prompt, negative, fields) == DOCUMENTED


@pytest.mark.parametrize(
    "prompt", ["", "a cat", 'Steps: 3, "a": b, c\\', "two\n\nlines: x, y: z", "日本, é <hypernet:a:1>"]
)
@pytest.mark.parametrize("negative", ["", "blurry", 'a: b, "c"\nbad'])
@pytest.mark.parametrize(
    "more", [{}, {"Hypernet hashes": "a: 12, b: 34"}, {"Note": 'say "hi",\nC:\\x', "User": "日本: 1"}]
)
def test_reads_what_it_writes(prompt, negative, more):
    assert parse_infotext(write_infotext(prompt, negative, FIELDS | more)) == (prompt, negative, FIELDS | more)


def test_quotes_separators_and_leaves_out_none():
    text = write_infotext("a cat", "", {"Steps": 20, "Model": "x: y", "VAE": None, "CFG scale": 7.0})
    assert text == 'a cat\nSteps: 20, Model: "x: y", CFG scale: 7.0'
    assert parse_infotext("no fields: here, only: two") == ("no fields: here, only: two", "", {})


def test_stores_the_infotext_in_a_png(tmp_path):
    image = Image.linear_gradient("L").convert("RGB")
    text = write_infotext("日本, a cat", "bad", FIELDS)
    for wanted in (text, write_infotext("a cat", "", FIELDS)):
        save_png(tmp_path / "sub" / "a.png", image, wanted)
        assert read_png_infotext(tmp_path / "sub" / "a.png") == wanted
        with Image.open(tmp_path / "sub" / "a.png") as read:
            assert read.tobytes() == image.tobytes() and read.info == {"parameters": wanted}
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["a.png"]
    assert read_png_infotext(tmp_path / "none.png") is None


def test_a_damaged_image_has_no_infotext(tmp_path):
    save_png(tmp_path / "a.png", Image.effect_noise((64, 64), 50), "text \udcff")
    assert read_png_infotext(tmp_path / "a.png") == "text ?"
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[:-800])
    assert read_png_infotext(tmp_path / "a.png") is None


def test_finds_a_free_path(tmp_path):
    path, image = tmp_path / "a.png", Image.new("RGB", (8, 8))
    assert free_path(path, "one") == path
    save_png(path, image, "one")
    assert free_path(path, "one") == path and free_path(path, "two") == tmp_path / "a-2.png"
    (tmp_path / "a-2.png").write_bytes(b"something else")
    assert free_path(path, "two") == tmp_path / "a-3.png"


def test_reads_long_texts_in_linear_time():
    started = time.process_time()
    for pattern in ("w", "a ", 'aa:"', 'aa: "\\",', "a: b, "):
        parse_infotext(pattern * (300_000 // len(pattern)))
    assert time.process_time() - started < 10


def test_a_pipe_has_no_infotext(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert read_png_infotext(tmp_path / "a.png") is None
