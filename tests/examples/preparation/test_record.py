"""The record protects files that prepare.py did not make, and corrections by hand."""

import pytest
from PIL import Image

from hypernet.utils.errors import UserError
from tests.helpers.preparation import contents, hashes, labeled, run_here, scene, skipped, write


def test_overwrites_nothing_unless_asked(tmp_path):
    source = write(tmp_path / "in", {"a.png": (60, 60), "b.png": (60, 60), "c.png": (90, 30)}, b="words")
    out = tmp_path / "out"
    write(out, {"a.png": (9, 9), "else.png": (9, 9), "c-2.png": (9, 9)})
    (out / "notes.txt").write_text("mine")
    mine = contents(out)
    printed = run_here(source, out, "--size=32", "--split")
    assert skipped(printed).keys() == {"a.png", "c.png"}
    for name, obstacle in (("a.png", "a.png"), ("c.png", "c-2.png")):
        assert str(out / obstacle) in skipped(printed)[name]
    assert contents(out).items() >= mine.items() and contents(out).keys() - mine.keys() == {"b.png", "b.txt"}

    (out / "b.txt").write_text("corrected by hand")
    run_here(source, out, "--size=32", "--split")
    assert (out / "b.txt").read_text() == "corrected by hand"
    kept = hashes(out)
    with pytest.raises(UserError, match="--size .*32x32.*--overwrite"):
        run_here(source, out, "--size=48", "--split")
    other = write(tmp_path / "other", {"a.png": (60, 60)})
    with pytest.raises(UserError, match=f"SRC .*{source}"):
        run_here(other, out, "--size=32", "--split")
    assert hashes(out) == kept
    run_here(source, out, "--size=48", "--overwrite")
    assert Image.open(out / "b.png").size == (48, 48) and (out / "b.txt").read_text() == "words\n"
    assert Image.open(out / "c.png").size == (48, 48)  # not split this time, so c-2.png is not in the way
    assert contents(out).items() >= mine.items()
    (out / "b.png").unlink()
    write(source, {"d.png": (60, 60)})
    run_here(source, out, "--size=48")
    assert (out / "b.png").exists() and (out / "d.png").exists()

    sheet = tmp_path / "new_sheet.png"
    Image.new("RGB", (3, 3)).save(sheet)
    assert any(str(sheet) in note for note in labeled(run_here(source, tmp_path / "new", "--size=32"), "note"))
    assert Image.open(sheet).size == (3, 3)


def test_keeps_files_named_like_a_skipped_image(tmp_path):
    source = write(tmp_path / "in", {"a.png": (60, 60), "small.png": (9, 9)})
    assert "small.png" in skipped(run_here(source, tmp_path / "out", "--size=32", "--skip_small"))
    scene(3).save(tmp_path / "out" / "small.png")
    (tmp_path / "out" / "small.txt").write_text("mine")
    mine = {name: data for name, data in contents(tmp_path / "out").items() if name.startswith("small")}
    run_here(source, tmp_path / "out", "--size=48", "--skip_small", "--overwrite")
    assert Image.open(tmp_path / "out" / "a.png").size == (48, 48)
    assert {name: data for name, data in contents(tmp_path / "out").items() if name.startswith("small")} == mine
    assert len(mine) == 2


def test_refuses_a_damaged_record(one_image, tmp_path):
    (tmp_path / "prepare.jsonl").write_text("no json\n")
    with pytest.raises(UserError, match=str(tmp_path / "prepare.jsonl")):
        run_here(one_image, tmp_path)
