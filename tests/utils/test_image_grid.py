"""Grids of labeled images."""

import json

from PIL import Image

from hypernet.utils.image_grid import labeled_grid, load_font, preview_grid, wrap
from tests.helpers.generation import grid_cell, max_difference

LABELS = ["a long prompt that has to be wrapped into several lines " * 3, "x" * 80, "step 500"]


def test_preview_grid_keeps_every_image():
    rows = [[Image.new("RGB", (64, 64), (50 * row, 80 * column, 9)) for column in range(3)] for row in range(2)]
    grid = preview_grid(rows, ["a", "a much longer prompt with many words"], ["without", "0.5", "1"])
    counts = {color: count for count, color in grid.getcolors(grid.width * grid.height)}
    for row in range(2):
        for column in range(3):
            assert counts[(50 * row, 80 * column, 9)] >= 64 * 64


def test_preview_grid_centers_images_of_several_sizes_in_their_columns():
    sizes = [(64, 96), (96, 64), (16, 16)]
    rows = [
        [Image.new("RGB", size, (50 * row, 80 * column, 9)) for column in range(2)] for row, size in enumerate(sizes)
    ]
    grid = preview_grid(rows, LABELS, ["without", "step 500"])
    cells = json.loads(grid.info["cells"])["cells"]
    for images, places in zip(rows, cells, strict=True):
        for image, (left, top, width, height) in zip(images, places, strict=True):
            assert max_difference(grid.crop((left, top, left + width, top + height)), image) == 0
    for column in range(2):
        assert len({left + width / 2 for left, _, width, _ in (places[column] for places in cells)}) == 1
    counts = {color: count for count, color in grid.getcolors(grid.width * grid.height)}
    assert all(counts[(50 * row, 0, 9)] == width * height for row, (width, height) in enumerate(sizes))


def test_labeled_grid_keeps_every_image():
    cells = [[Image.new("RGB", (64, 64), (row * 50, column * 50, 90)) for column in range(3)] for row in range(2)]
    grid = labeled_grid(cells, ["one", "two"], LABELS, caption="what they share")
    for row in range(2):
        for column in range(3):
            assert max_difference(grid_cell(grid, row, column, (2, 3)), cells[row][column]) == 0
    assert labeled_grid(cells[:1], [""], LABELS).width == 3 + 3 * (64 + 3)


def test_wraps_labels_at_spaces_and_after_punctuation():
    font = load_font(12)
    for label in LABELS:
        lines = wrap(label, font, 64)
        assert len(lines) <= 6 and all(font.getlength(line) <= 64 for line in lines[:-1])
    assert " ".join(wrap("a cat on a mat", font, 40)) == "a cat on a mat"
    name = "seed=1,activation=swish,learning_rate=3e-3"
    lines = wrap(name, font, font.getlength("learning_rate=3e-3"))
    assert lines == ["seed=1,", "activation=swish,", "learning_rate=3e-3"]
    lines = wrap(name, font, font.getlength("activation="))
    assert lines == ["seed=1,", "activation=", "swish,", "learning_", "rate=3e-3"]
