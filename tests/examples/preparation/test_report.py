"""What a run prints about small, duplicate, changed and missing images."""

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


def test_names_images_that_have_changed_or_disappeared(tmp_path):
    source = write(tmp_path / "in", {"a.png": (60, 60), "b.png": (60, 60)})
    run_here(source, tmp_path / "out", "--size=32")
    made = contents(tmp_path / "out")
    scene(7).save(source / "a.png")
    (source / "b.png").unlink()
    changed, gone = labeled(run_here(source, tmp_path / "out", "--size=32"), "note")
    assert "1, such as a.png" in changed and "--overwrite" in changed
    assert "1, such as b.png" in gone and contents(tmp_path / "out") == made
