"""Which files are images, by their endings or their first bytes; lists of images; kohya's metadata."""

import json
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from examples.quickstart.tools.odd_images import write_mixed_images
from hypernet.data import folder_files, image_io
from hypernet.data.folder_files import IMAGE_SUFFIXES, OTHER_SUFFIXES, find_files, find_image_kind, image_stem
from hypernet.data.image_folder import read_image_folder
from hypernet.data.image_io import on_background, read_image
from hypernet.utils.errors import UserError
from tests.helpers.encoding import write_image
from tests.helpers.image_files import HEADS, stored

IMAGE = Image.new("RGB", (8, 8), "red")


@pytest.fixture(autouse=True)
def forget_plugins():
    """Look for plugins anew in each test."""
    image_io.missing_plugin.cache_clear()
    yield
    image_io.missing_plugin.cache_clear()


def write(path, data=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def names(root):
    return [path.relative_to(root).as_posix() for path in find_files(root).images]


def test_finds_images_by_their_content_where_the_ending_does_not_tell(tmp_path):
    images = ["IMG_2034", "a.jpg_large", "b.png!d", "c.webp?w=640", "d.image", "e.jpg.1", "v1.2 final"]
    images += ["f.JFIF", "g.jpe"]
    for name in images:
        write(tmp_path / name, stored(IMAGE, "JPEG"))
    for name in ("README", "h.dat", "i.jpg_large.json"):
        write(tmp_path / name, b"no image")
    for name in ("j.txt", "k.webp.txt", "l.png~", "m.tmp", "n.npz", "o.md"):  # whatever they contain
        write(tmp_path / name, stored(IMAGE, "WEBP"))
    os.mkfifo(tmp_path / "pipe")  # opening it would wait
    assert names(tmp_path) == sorted(images)
    assert {find_image_kind(str(tmp_path / name)) for name in images if name != "c.webp?w=640"} == {"JPEG"}


def viewed(path):
    """Return the pixels that a viewer shows on white, (height, width, 3)."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I"):
        clear = image.info.get("transparency")
        image = Image.fromarray(np.round(np.asarray(image, np.float64) / 257).astype(np.uint8))
        assert clear is None
    image = image.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"), np.int16)


def test_every_odd_file_is_read_as_viewers_show_it_or_named(tmp_path, monkeypatch):
    for module in ("pillow_heif", "pillow_jxl"):
        monkeypatch.setitem(sys.modules, module, None)
    refused = write_mixed_images(tmp_path)
    scene = next(path for path in sorted(tmp_path.glob("*.jpg")) if path.name not in refused)
    image = Image.open(scene).convert("RGB")
    more = {"a.jfif": "JPEG", "b.JPE": "JPEG", "c.png": "JPEG", "d.jpg": "WEBP", "no ending": "PNG"}
    more |= {"IMG_1.jpg_large": "PNG"}
    more |= {"e.jp2": "JPEG2000", "f.tga": "TGA", "g.ppm": "PPM", "h.dib": "DIB", "i.apng": "PNG"}
    more |= {"j.avif": "AVIF", "avif": "AVIF", "k.png": "AVIF"} if features.check("avif") else {}
    for name, format in more.items():
        write(tmp_path / name, stored(image, format))
    for name, head in (("l.heic", "HEIC"), ("m.jpg", "HEIC"), ("n.jxl", "JPEG XL"), ("heic", "HEIC")):
        write(tmp_path / name, HEADS[head])
    refused["m.jpg"] = "pip install pillow-heif"
    found, read = find_files(tmp_path), 0
    for path in found.images:
        name = path.relative_to(tmp_path).as_posix()
        if name in refused:
            with pytest.raises(ValueError, match=refused.pop(name)):
                read_image(path.read_bytes())
        else:
            shown = np.asarray(on_background(read_image(path.read_bytes()), "white"), np.int16)
            assert np.abs(shown - viewed(path)).max() <= 1, name
            read += 1
    assert not refused and read == len(found.images) - 16 >= 195
    heic, jxl = found.notes
    assert "pillow-heif" in heic and "2" in heic and "pillow-jxl-plugin" in jxl and "n.jxl" in jxl


def test_opens_only_files_whose_endings_are_unknown(tmp_path, monkeypatch):
    opened = []
    for suffix in [*IMAGE_SUFFIXES, *OTHER_SUFFIXES, ".txt", ".json", ".md", ".psd", ".unknown", ""]:
        write(tmp_path / f"a{suffix}")
    monkeypatch.setattr(folder_files, "missing_plugin", lambda kind: None)
    monkeypatch.setattr(folder_files, "read_head", lambda path: opened.append(Path(path).name) or b"")
    found = find_files(tmp_path)
    assert sorted(opened) == ["a", "a.unknown"] and not found.problems


@pytest.mark.parametrize("kind", HEADS)
def test_recognizes_every_kind_by_its_first_bytes(tmp_path, kind):
    assert find_image_kind(str(write(tmp_path / "image", HEADS[kind]))) == kind


STEMS = {"cat.png": "cat", "cat.JPG": "cat", "IMG_1": "IMG_1", "cat.jpg_large": "cat", "cat.webp?w=6.4": "cat"}
STEMS |= {"cat.jpg.1": "cat", "v1.2 final": "v1.2 final", "two.dots.png": "two.dots", "a.pngs": "a.pngs"}


@pytest.mark.parametrize("name", STEMS)
def test_knows_the_ending_of_an_image(name):
    assert image_stem(Path(name)) == STEMS[name]


def test_captions_of_images_without_a_usual_ending(tmp_path):
    for name in ("a.jpg_large", "b.jpg_large", "v1.2 final", "c.image", "12-a red cat"):
        write(tmp_path / name, stored(IMAGE, "PNG"))
    texts = {"a.txt": "one", "b.jpg_large.txt": "two", "v1.2 final.caption": "three", "c.txt": "four"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    folder = read_image_folder(tmp_path)
    assert folder.captions == [("a red cat",), ("one",), ("two",), ("four",), ("three",)]
    assert folder.captioned == [False, True, True, True, True] and folder.notes == []


def test_names_what_reads_an_image_that_needs_a_plugin(tmp_path, monkeypatch):
    for module in ("pillow_heif", "pillow_jxl"):
        monkeypatch.setitem(sys.modules, module, None)
    write_image(tmp_path / "a.png")
    write(tmp_path / "z.heic", stored(IMAGE, "JPEG"))
    for name, kind in (("b.heic", "HEIC"), ("c.HEIF", "HEIC"), ("d", "HEIC"), ("e.jxl", "JPEG XL"), ("a.heic", "HEIC")):
        write(tmp_path / name, HEADS[kind])
    found = find_files(tmp_path)
    assert [path.name for path in found.images] == ["a.png", "z.heic"]
    heic, jxl = found.notes
    assert "pip install pillow-heif" in heic and "3" in heic and str(tmp_path / "b.heic") in heic
    assert "pip install pillow-jxl-plugin" in jxl and str(tmp_path / "e.jxl") in jxl
    for path in found.images:
        path.unlink()
    with pytest.raises(UserError, match=f"^--train_data_dir {tmp_path}: .*pip install pillow-heif"):
        read_image_folder(tmp_path)


def test_reads_what_an_installed_plugin_reads(tmp_path, monkeypatch):
    registered = []
    plugin = types.SimpleNamespace(register_heif_opener=lambda: registered.append("heif"))
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    monkeypatch.setitem(sys.modules, "pillow_jxl", types.SimpleNamespace())
    for name in ("a.heic", "b.hif", "c.jxl"):
        write(tmp_path / name)
    assert names(tmp_path) == ["a.heic", "b.hif", "c.jxl"] and registered == ["heif"]


def test_notes_images_of_drawing_programs_and_cameras_unless_exported(tmp_path):
    for name in ("a.png", "b.png"):
        write_image(tmp_path / name)
    for name in ("a.kra", "b.psd", "c.psd", "d.CR2"):
        write(tmp_path / name)
    raw, psd = find_files(tmp_path).notes
    assert psd.startswith(".psd ") and str(tmp_path / "c.psd") in psd and "1" in psd
    assert raw.startswith(".cr2 ") and str(tmp_path / "d.CR2") in raw


# --- Lists


def write_images(folder, *image_names):
    for number, name in enumerate(image_names):
        write_image(folder / name, (number, 0, 0))


def test_a_list_names_the_images(tmp_path, monkeypatch):
    write_images(tmp_path, "images/a.png", "images/b.png", "images/c.png", "else/d.png", "here/e.png")
    (tmp_path / "images" / "a.txt").write_text("a caption")
    (tmp_path / "images" / "c.txt").write_text("of an image that is not in the list")
    (tmp_path / "else" / "metadata.csv").write_text("file_name,text\nd.png,from a table\n")
    monkeypatch.chdir(tmp_path / "here")
    lines = ["# a comment", "a.png", "", '"b.png"', str(tmp_path / "else" / "d.png"), "e.png"]
    file = tmp_path / "images" / "list.txt"
    file.write_text("\r\n".join(lines))
    folder = read_image_folder(file)
    captions = {path.name: captions for path, captions in zip(folder.images, folder.captions)}
    expected = {"a.png": ("a caption",), "b.png": ("b",), "d.png": ("from a table",), "e.png": ("e",)}
    assert captions == expected and folder.notes == folder.problems == []
    assert folder.images == sorted(folder.images)


def test_a_list_may_spell_paths_otherwise(tmp_path):
    write_images(tmp_path, "sub/Cat 1.png", "sub/dog.png")
    (tmp_path / "list").write_text("C:\\data\\sub\\cat 1.PNG\ndog\nnone.png\n")
    folder = read_image_folder(tmp_path / "list")
    assert [path.name for path in folder.images] == ["Cat 1.png", "dog.png"]
    (unknown,) = folder.notes
    assert "1 of 3" in unknown and '"none.png"' in unknown
    (tmp_path / "list").write_text("sub/dog.png\nsub/../sub/dog.png\n")
    folder = read_image_folder(tmp_path / "list")
    (repeated,) = folder.notes
    assert len(folder.images) == 1 and repeated.startswith(f"{tmp_path / 'list'}: ")


def test_refuses_a_file_that_names_no_image(tmp_path):
    write_images(tmp_path, "a.png")
    for name, data, named in [
        ("cat.txt", b"a cat on a mat", "a cat on a mat"),
        ("empty.txt", b"", "0 "),
        ("photo", stored(IMAGE, "JPEG"), "image"),
        ("images.zip", b"PK\x03\x04" + bytes(20), "archive"),
        ("meta.json", b'{"b": {"caption": "x"}}', '"b"'),
        ("table.csv", b"file_name,text\nb.png,x\n", '"b.png"'),
    ]:
        with pytest.raises(UserError) as error:
            read_image_folder(write(tmp_path / name, data), "--validation_data_dir")
        assert str(error.value).startswith(f"--validation_data_dir {tmp_path / name}: ") and named in str(error.value)


# --- kohya's metadata

KOHYA = {
    "a": {"caption": "a cat", "tags": "ink, night", "train_resolution": [512, 512]},
    "b": {"tags": "ink"},
    "c": {"caption": "a cow"},
    "d": {"train_resolution": [512, 512]},
}
JOINED = [("a cat, ink, night",), ("ink",), ("a cow",)]


def write_kohya(file, entries=KOHYA):
    file.write_text(json.dumps(entries))
    return file


@pytest.mark.parametrize("name", ["meta_cap.json", "meta_lat.json", "metadata.json", "META.json"])
def test_reads_kohyas_metadata_in_a_folder(tmp_path, name):
    write_images(tmp_path, *(f"{name}.png" for name in "abcd"))
    write_kohya(tmp_path / name)
    folder = read_image_folder(tmp_path)
    assert folder.captions == [*JOINED, ("d",)] and folder.captioned == [True, True, True, False]
    assert folder.notes == []
    assert read_image_folder(tmp_path, caption_column="tags").captions[:3] == [("ink, night",), ("ink",), ("c",)]
    assert read_image_folder(tmp_path, caption_column="").captions == [("",)] * 4
    with pytest.raises(UserError, match="^--caption_column said: "):
        read_image_folder(tmp_path, caption_column="said")
    (tmp_path / "a.txt").write_text("its own")
    folder = read_image_folder(tmp_path)
    assert folder.captions == [("its own",), *JOINED[1:], ("d",)] and any("metadata" in note for note in folder.notes)


def test_the_last_of_kohyas_files_counts(tmp_path):
    write_images(tmp_path, "a.png")
    write_kohya(tmp_path / "meta_cap.json", {"a": {"caption": "first"}})
    write_kohya(tmp_path / "meta_clean.json", {"a": {"caption": "second"}})
    assert read_image_folder(tmp_path).captions == [("second",)]


def test_a_metadata_file_names_the_images(tmp_path):
    write_images(tmp_path, *(f"images/{name}.png" for name in "abcde"))
    (tmp_path / "images" / "a.txt").write_text("not this")
    (tmp_path / "images" / "d.txt").write_text("this")
    for file in (write_kohya(tmp_path / "any.json"), write_kohya(tmp_path / "images" / "any.json")):
        folder = read_image_folder(file)
        assert [path.name for path in folder.images] == ["a.png", "b.png", "c.png", "d.png"]
        assert folder.captions == [*JOINED, ("this",)] and folder.captioned == [True] * 4
    absolute = {str(tmp_path / "images" / f"{name}.png"): value for name, value in KOHYA.items()}
    (tmp_path / "elsewhere").mkdir()
    folder = read_image_folder(write_kohya(tmp_path / "elsewhere" / "meta.json", absolute))
    assert folder.captions == [*JOINED, ("this",)] and folder.notes == []
    rows = [{"file_name": "a.png", "text": ["x", "y"]}, {"file_name": "b.png", "text": "z"}]
    (tmp_path / "images" / "some.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_kohya(tmp_path / "images" / "meta_rows.json", rows)
    for name in ("some.jsonl", "meta_rows.json"):
        assert read_image_folder(tmp_path / "images" / name).captions == [("x", "y"), ("z",)]


def test_each_line_is_a_caption_with_the_tags_after_it(tmp_path):
    write_images(tmp_path, "a.png", "b.png", "c.png")
    entries = {"a": {"caption": "a cat\na pet\n", "tags": "ink"}, "b": {"caption": ["one", "two\nthree"]}}
    write_kohya(tmp_path / "meta_cap.json", entries)
    (tmp_path / "c.caption").write_text("\n first \r\n\r\nsecond\n")
    folder = read_image_folder(tmp_path, has_lines=True)
    assert folder.captions == [("a cat, ink", "a pet, ink"), ("one", "two", "three"), ("first", "second")]
    folder = read_image_folder(tmp_path)
    assert folder.captions[1:] == [("one", "two\nthree"), ("first \n\nsecond",)]
    (tmp_path / "c.caption").write_text("\n")
    assert read_image_folder(tmp_path, has_lines=True).captions[2] == ("",)


@pytest.mark.parametrize("content", ['{"a": "a cat"}', '{"size": 3}', "[1, 2]", "{", "[" * 100_000, "\xff"])
def test_other_json_files_are_not_read(tmp_path, content):
    write_images(tmp_path, "a.png")
    (tmp_path / "meta.json").write_bytes(content.encode("latin-1"))
    (note,) = read_image_folder(tmp_path).notes
    assert note.startswith("1 .json ") and str(tmp_path / "meta.json") in note
    with pytest.raises(UserError, match="meta.json: "):
        read_image_folder(tmp_path / "meta.json")
