"""Mistakes end in one line that names the option or folder, before anything is written."""

import contextlib
import io
import re

import pytest

from examples.preparation.options import parse_arguments
from hypernet.utils.errors import UserError
from tests.helpers.preparation import run_here, write
from tests.helpers.scripts import REPO


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--size=0"], "--size 0"),
        (["--size=big"], "--size big"),
        (["--size=99999"], "--size 99999x99999"),
        (["--background=whit"], "--background whit"),
        (["--overlap_ratio=1"], "--overlap_ratio 1.0"),
        (["--split_threshold=nan"], "--split_threshold nan"),
        (["--split_threshold=2"], "--split_threshold 2.0"),
        (["--face_weight=-1"], "--face_weight -1.0"),
        (["--focus", "--face_weight=0", "--edges_weight=0", "--entropy_weight=0"], "--face_weight"),
        (["--auto_size", "--min_side=800"], "--min_side 800"),
        (["--auto_size", "--max_area=9", "--min_area=10"], "--min_area 10"),
        (["--max_area=0"], "--max_area 0"),
        (["--objective=big"], "--objective"),
        (["--filename_word_regex=("], "--filename_word_regex ("),
        (["--caption_column=x"], "--caption_column x"),
        (["--siz=3"], "--size"),
        (["--sheet_images=-1"], "--sheet_images -1"),
        (["--fit", "--focus"], "--fit --focus"),
        (["--keep_size", "--split"], "--keep_size --split"),
        (["--keep_size", "--fit"], "--keep_size --fit"),
        (["--num_beams=0"], "--num_beams 0"),
        (["--max_length=0"], "--max_length 0"),
        (["--min_length=-1"], "--min_length -1"),
        (["--min_length=30", "--max_length=20"], "--min_length 30"),
    ],
)
def test_refuses_values_that_cannot_work(one_image, tmp_path, flags, named):
    with pytest.raises(UserError, match=re.escape(named)) as error:
        run_here(one_image, tmp_path / "out", *flags)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*.png")) and len(list(one_image.iterdir())) == 1


def test_refuses_folders_that_cannot_work(one_image, tmp_path):
    (tmp_path / "link").symlink_to(one_image)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_bytes(b"")
    linked = write(tmp_path / "linked", {"a.png": (40, 40)})
    target = write(tmp_path / "target" / "sub", {"b.png": (40, 40)}).parent
    (linked / "sub").symlink_to(target / "sub")
    for source, folder, named in [
        (one_image, one_image, f"DST {one_image}"),
        (one_image, tmp_path / "link", f"DST {tmp_path / 'link'}"),
        (one_image, one_image / "sub" / "out", f"SRC {one_image}"),
        (one_image, one_image.parent, f"SRC {one_image}"),
        (tmp_path / "nowhere", tmp_path / "out", f"SRC {tmp_path / 'nowhere'}"),
        (tmp_path / "empty", tmp_path / "out", f"SRC {tmp_path / 'empty'}"),
        (tmp_path / "file", tmp_path / "out", f"SRC {tmp_path / 'file'}"),
        (one_image, tmp_path / "file", f"DST {tmp_path / 'file'}"),
        (one_image, tmp_path / "file" / "out", f"DST {tmp_path / 'file' / 'out'}"),
        (broken, tmp_path / "out", f"SRC {broken}"),
        (linked, target, f"{linked / 'sub'}"),
    ]:
        with pytest.raises(UserError, match=re.escape(named)) as error:
            run_here(source, folder)
        assert "\n" not in str(error.value)


def test_the_docs_list_every_option():
    with pytest.raises(SystemExit), contextlib.redirect_stdout(io.StringIO()) as printed:
        parse_arguments("", ["--help"])
    options = set(re.findall(r"--[a-z_]+", printed.getvalue())) - {"--help", "--alpha_weight"}
    page = (REPO / "examples" / "docs" / "prepare.md").read_text()
    assert options and options <= set(re.findall(r"--[a-z_]+", page))
