"""What a run prints about small, duplicate, changed and missing images."""

import pytest

from hypernet.utils.errors import UserError
from tests.helpers.preparation import (
    contents,
    hashes_without_record,
    labeled,
    run_here,
    scene,
    skipped,
    summary,
    write,
)


def test_small_images_and_duplicates_are_reported_or_skipped(tmp_path):
    large = scene(3, (90, 90))
    images = {"a.png": large.resize((60, 60)), "b.jpg": large, "c.png": (90, 90), "tiny.png": scene(9, (20, 30))}
    source = write(tmp_path / "in", images)
    printed = run_here(source, tmp_path / "reported", "--size=48")
    (small,), (duplicates,) = labeled(printed, "small"), labeled(printed, "near-duplicates")
    assert all(part in small for part in ("tiny.png", "20x30", "2.4")) and not skipped(printed)
    assert "a.png" in duplicates and "b.jpg" in duplicates
    out, flags = tmp_path / "skipped", ("--size=48", "--skip_small", "--skip_duplicates")
    printed = run_here(source, out, *flags)
    assert summary(printed, out) == [2, 2, 4, 0]  # images of files, caption files; none done before
    reasons = skipped(printed)
    assert reasons.keys() == {"a.png", "tiny.png"} and "b.jpg" in reasons["a.png"]
    assert "20x30" in reasons["tiny.png"] and "2.4" in reasons["tiny.png"]
    before = hashes_without_record(out)
    assert before.keys() == {"b.png", "c.png"}
    run_here(source, out, *flags)
    assert hashes_without_record(out) == before
    printed = run_here(source, tmp_path / "fewer", "--size=48", "--max_enlarged=3", "--same_threshold=0")
    assert not labeled(printed, "small") and not labeled(printed, "near-duplicates")


def test_options_that_only_report_may_change(tmp_path):
    source = write(tmp_path / "in", {"a.png": (30, 30)})
    (small,) = labeled(run_here(source, tmp_path / "out", "--size=32"), "small")
    assert "a.png" in small
    assert not labeled(run_here(source, tmp_path / "out", "--size=32", "--max_enlarged=2"), "small")


def test_reports_only_enlargements_that_can_be_seen(tmp_path):
    source = write(tmp_path / "in", {"a.png": (400, 399), "b.png": (400, 396)})
    (small,) = labeled(run_here(source, tmp_path / "out", "--size=400"), "small")
    assert "b.png" in small and "enlarged 1.01 times" in small


def test_names_only_the_option_that_was_changed(tmp_path):
    source = write(tmp_path / "in", {"a.png": (30, 30)})
    run_here(source, tmp_path / "out", "--size=32")
    with pytest.raises(UserError, match="--skip_duplicates") as error:
        run_here(source, tmp_path / "out", "--size=32", "--skip_duplicates")
    assert "--same_threshold" not in str(error.value) and "None" not in str(error.value)
    run_here(source, tmp_path / "skipping", "--size=32", "--skip_duplicates")
    with pytest.raises(UserError, match="--same_threshold .*0.02"):
        run_here(source, tmp_path / "skipping", "--size=32", "--skip_duplicates", "--same_threshold=0.1")


def test_notes_images_without_a_caption_unless_they_get_one(tmp_path):
    source = write(tmp_path / "in", {"a cat.png": (30, 30), "a dog.png": (30, 30)})
    (source / "a cat.caption").write_text("a red cat")
    (note,) = labeled(run_here(source, tmp_path / "out", "--size=32"), "note")
    assert "1 of 2" in note and "a dog" in note and (tmp_path / "out" / "a cat.txt").read_text() == "a red cat\n"
    assert not labeled(run_here(source, tmp_path / "captioned", "--size=32", "--caption", "filename"), "note")


def test_names_images_that_have_changed_or_disappeared(tmp_path):
    source = write(tmp_path / "in", {"a.png": (60, 60), "b.png": (60, 60)})
    run_here(source, tmp_path / "out", "--size=32")
    made = contents(tmp_path / "out")
    scene(7).save(source / "a.png")
    (source / "b.png").unlink()
    notes = labeled(run_here(source, tmp_path / "out", "--size=32"), "note")
    changed, gone = (note for note in notes if note.startswith("images "))
    assert "1, such as a.png" in changed and "--overwrite" in changed
    assert "1, such as b.png" in gone and contents(tmp_path / "out") == made
