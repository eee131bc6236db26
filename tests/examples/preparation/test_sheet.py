"""The sheet shows each image before and after."""

import numpy as np
from PIL import Image

from examples.preparation import sheet
from examples.quickstart.tools.odd_images import write_odd_images
from tests.helpers.preparation import labeled, run_here, write


def test_sheet_shows_before_and_after(tmp_path):
    write_odd_images(tmp_path / "in")
    printed = run_here(tmp_path / "in", tmp_path / "out", "--size=64", "--split", "--sheet_images=7")
    found = Image.open(tmp_path / "out_sheet.png")
    cell, pad, gap, head = sheet.CELL, sheet.PAD, sheet.GAP, 3 * sheet.FONT
    width, height = sheet.CARD
    assert found.size == (3 * (width + gap) + gap, 3 * (height + gap) + gap + head)  # seven in rows of three
    assert labeled(printed, tmp_path / "out_sheet.png") and not (tmp_path / "out" / "out_sheet.png").exists()
    first = np.asarray(found, int)[gap + head :, gap:]
    left = pad + cell + sheet.ARROW
    after = first[pad:, left:][:cell, :cell]
    made = Image.open(tmp_path / "out" / "clear.png").resize((cell, cell), Image.Resampling.LANCZOS)
    assert np.abs(after - np.asarray(made, int)).max() <= 1
    before = first[pad:, pad:][:cell, :cell]
    assert np.abs(before[5:-5, 5:-5] - after[5:-5, 5:-5]).mean() < 12 and before[0, 9].tolist() == [255, 140, 26]
    run_here(tmp_path / "in", tmp_path / "fitted", "--size=64", "--fit", "--sheet_images=7", "--background=red")
    first = np.asarray(Image.open(tmp_path / "fitted_sheet.png"), int)[gap + head :, gap:]
    made = Image.open(tmp_path / "fitted" / "clear.png").resize((cell, cell), Image.Resampling.LANCZOS)
    assert np.abs(first[pad:, left:][:cell, :cell] - np.asarray(made, int)).max() <= 1
    run_here(tmp_path / "in", tmp_path / "none", "--size=64", "--sheet_images=0")
    assert not (tmp_path / "none_sheet.png").exists()


def test_frames_of_very_thin_crops_are_drawn(tmp_path):
    write(tmp_path / "in", {"long.png": Image.new("RGB", (3000, 10)), "tall.png": Image.new("RGB", (5, 2000))})
    printed = run_here(tmp_path / "in", tmp_path / "out", "--size=64")
    assert labeled(printed, tmp_path / "out_sheet.png")
    framed = np.asarray(sheet.draw_frames(Image.new("RGB", (3000, 10)), [(2999, 0, 3000, 10), (1500, 9.9, 1510, 10)]))
    assert framed.shape[0] == 1 and framed[0, -1].tolist() == [255, 140, 26]
