"""Which options count as changed, also against records of earlier versions."""

import json
import re

import pytest

from examples.preparation.option_effects import describe
from hypernet.utils.errors import UserError
from tests.helpers.preparation import contents, run_here, write

INTRODUCED = {"fit", "keep_size", "num_beams", "min_length", "max_length"}


@pytest.fixture
def earlier(tmp_path):
    """A folder with the record of an earlier version, which kept every option and did not have all of today's."""
    source = write(tmp_path / "in", {"a.png": (60, 40)})
    run_here(source, tmp_path / "out", "--size=32")
    path = tmp_path / "out" / "prepare.jsonl"
    first, *rest = path.read_text().splitlines()
    record = json.loads(first)
    options = {name: value for name, value in record["options"].items() if name not in INTRODUCED}
    options |= {"caption_tokens": 64, "tagger_threshold": 0.35, "face_weight": 0.9, "order": "score", "min_side": 384}
    path.write_text("\n".join([json.dumps({**record, "options": options}), *rest, ""]))
    return source, tmp_path / "out"


def test_goes_on_with_a_record_of_an_earlier_version(earlier):
    source, out = earlier
    write(source, {"b.png": (60, 40)})
    before = contents(out)
    run_here(source, out, "--size=32", "--tagger_threshold=.5")  # without a tagger, no change
    assert contents(out).items() > before.items() and (out / "b.png").exists()


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--size=32", "--fit"], "--fit (was not given)"),
        (["--size=32", "--keep_size"], "--keep_size (was not given)"),
        (["--size=32", "--focus", "--face_weight=.5"], "--focus (was not given)"),
        (["--size=48x32"], "--size (was 32x32)"),
        (["--size=32", "--filename_join_string=_"], '--filename_join_string (was " ")'),
        (["--size=32", "--caption", "filename"], "--caption (was not given)"),
        (["--size=32", "--caption", "tagger", "--tagger_threshold=.5"], "--caption (was not given)"),
    ],
)
def test_names_the_options_that_have_changed(earlier, flags, named):
    source, out = earlier
    before = contents(out)
    with pytest.raises(UserError, match=re.escape(f"{named}; ")) as error:
        run_here(source, out, *flags)
    assert str(error.value).count("(was ") == 1 and contents(out) == before


def test_reads_the_earlier_name_of_an_option(earlier):
    source, out = earlier
    path = out / "prepare.jsonl"
    path.write_text(path.read_text().replace('"caption": []', '"caption": ["blip"]'))
    with pytest.raises(UserError, match=re.escape("--max_length (was 64)")):
        run_here(source, out, "--size=32", "--caption", "blip", "--max_length=40")


def test_values_are_written_as_on_the_command_line():
    assert describe("size", [768, 512]) == "768x512" and describe("caption", ["blip", "tagger"]) == "blip tagger"
    assert describe("exclude_tags", ["text", "red eyes"]) == "text, red eyes" and describe("caption", []) == "not given"
    assert describe("min_length", None) == "not given" and describe("overlap_ratio", 0.2) == "0.2"
