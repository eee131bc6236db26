"""What a run prints about small, duplicate, changed and missing images."""

import re

import pytest
from PIL import Image

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


def test_options_without_effect_are_noted_and_may_change(tmp_path):
    source = write(tmp_path / "in", {"a cat.png": (30, 30)})
    flags = ("--size=32", "--tagger_threshold=.5", "--num_beams=3", "--edges_weight=1", "--background=auto")
    notes = labeled(run_here(source, tmp_path / "out", *flags), "note")
    for option, needed in (
        ("--tagger_threshold", "--caption tagger"),
        ("--num_beams", "--caption blip"),
        ("--edges_weight", "--focus"),
        ("--background auto", "--fit"),
    ):
        assert sum(option in note and needed in note for note in notes) == 1
    assert len(notes) == 4
    notes = labeled(run_here(source, tmp_path / "out", "--size=32", "--min_side=64", "--background=auto"), "note")
    assert len(notes) == 2 and "--min_side" in notes[0] and "--auto_size" in notes[0]
    assert not labeled(run_here(source, tmp_path / "fitted", "--size=32", "--background=auto", "--fit"), "note")
    (note,) = labeled(run_here(source, tmp_path / "kept", "--size=32", "--keep_size"), "note")
    assert "--size" in note and Image.open(tmp_path / "kept" / "a cat.png").size == (30, 30)


@pytest.mark.parametrize(
    "size, flags, options",
    [
        ((300, 100), [], {"--fit", "--split"}),
        ((100, 300), ["--focus"], {"--fit", "--split"}),
        ((100, 300), ["--split_threshold=.2"], {"--fit"}),
        ((180, 100), [], {"--fit"}),
        ((900, 500), [], {"--fit", "--auto_size", "--aspect_buckets"}),
    ],
)
def test_names_what_keeps_more_of_images_that_lose_much(tmp_path, size, flags, options):
    images = {"a.png": scene(1, size), "b.png": (64, 64), "c.png": (80, 64)}
    source = write(tmp_path / "in", images)
    (line,) = labeled(run_here(source, tmp_path / "out", "--size=64", *flags), "cut")
    assert "a.png" in line and "1 of 3" in line and f"{min(size) / max(size):.0%}" in line
    assert set(re.findall(r"--\w+", line)) - {"--focus"} == options
    for option in options - {"--aspect_buckets"}:
        rest = [flag for flag in flags if flag != "--focus"]
        assert not labeled(run_here(source, tmp_path / option, "--size=64", option, *rest), "cut")


def test_focus_counts_what_is_cut_from_the_subject(tmp_path):
    canvas = Image.new("RGB", (300, 100), "white")
    canvas.paste(scene(4, (70, 70)), (220, 15))
    wide = Image.new("RGB", (300, 100), "white")
    wide.paste(scene(4, (280, 70)), (10, 15))
    source = write(tmp_path / "in", {"fits.png": canvas, "wide.png": wide})
    (line,) = labeled(run_here(source, tmp_path / "out", "--size=64", "--focus"), "cut")
    assert "wide.png" in line and "1 of 2" in line


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


def test_templates_to_copy_are_named(tmp_path):
    source = write(tmp_path / "in", {"a.png": (40, 40), "cats/b.png": (40, 40), "dogs/template.png": (40, 40)})
    for folder in ("cats", "dogs"):  # in the second, it is a caption
        (source / folder / "template.txt").write_text("a [folder], [filewords]")
    flags = ("--size=32", "--caption=filename")
    (note,) = labeled(run_here(source, tmp_path / "out", *flags), "note")
    assert str(source / "cats" / "template.txt") in note and str(tmp_path / "out" / "cats" / "template.txt") in note
    (tmp_path / "out" / "cats" / "template.txt").write_text("mine")
    assert not labeled(run_here(source, tmp_path / "out", *flags), "note")
    run_here(source, tmp_path / "out", *flags, "--overwrite")
    assert (tmp_path / "out" / "cats" / "template.txt").read_text() == "mine"
