"""Which captions and file names are suspicious, and that a run says so."""

import pytest

from hypernet.data.caption_remarks import caption_notes, caption_remarks, doubtful_captions, has_words
from hypernet.data.image_index import ImageRecord
from hypernet.data.image_source import open_image_source
from tests.helpers.encoding import configure, write_image

CAMERAS = ["IMG_2034", "DSC00012", "_101112", "PXL_20230506_101112345", "IMG-20230506-WA0001", "DSCF1234", "P1010001"]
CAMERAS += ["_DSC0012", "SAM_0001", "GH010001", "DJI_0012", "IMG_2034 (1)", "IMG_E2034", "IMG20230506101112", "MVIMG_1"]
PROGRAMS = ["WhatsApp Image 2023-05-06", "final_FINAL_v2 (1)", "download (3)", "signal-2023-05-06-101112", "FB_IMG_168"]
PROGRAMS += ["Untitled-1", "Copy of image 2", "Kopie von Bild (2)", "frame_00012", "vlcsnap-2023-05-06-10h11m12s123"]
PROGRAMS += ["mmexport1683338400", "pexels-jane-doe-123456", "jane-doe-Xy12AbC-unsplash", "微信图片_20230506101112"]
SCREENSHOTS = ["Screenshot 2024-01-03 at 10.11.12", "Bildschirmfoto 2023-05-06 um 10.11.12", "Screen Shot 2023-05-06"]
SCREENSHOTS += ["Capture d’écran 2023-05-06 à 10.11.12", "Снимок экрана 2023-05-06", "スクリーンショット 2023-05-06"]
HASHES = ["3f9a8cde1e", "a3", "v2", "d41d8cd98f00b204e9800998ecf8427e", "12345678_p0", "17", "(2)", "---"]
GENERATORS = ["ComfyUI_00012_", "ComfyUI_temp_qwert_00001_", "00012-1234567890", "xyz_grid-0001-77", "txt2img_3"]
GENERATORS += ["ChatGPT Image Apr 1, 2025, 10_20_30 AM", "Gemini_Generated_Image_k3xab2kx"]
WORDS = ["a cat", "red_cat_0042", "cat01", "burrito_bw", "IMG_2034 a red cat", "ox", "the photo of a cat", "Sam"]
WORDS += ["чайка", "猫", "猫2匹", "红色的猫 2023年", "Schloß", "été", "снимок кота", "고양이"]
WORDS += ["image of a tree", "unsplash forest"]


@pytest.mark.parametrize("name", CAMERAS + PROGRAMS + SCREENSHOTS + HASHES + GENERATORS)
def test_recognizes_file_names_without_words(name):
    assert not has_words(name)


@pytest.mark.parametrize("name", WORDS)
def test_recognizes_file_names_with_words(name):
    assert has_words(name)


def test_names_each_doubtful_caption():
    captions, written = ["by hand", "a dog", "IMG_1", "", "猫", "17."], [True, False, False, False, True, True]
    doubts = dict(doubtful_captions(captions, written))
    assert sorted(doubts) == [1, 2, 5] and "no words" in doubts[2] and "no words" in doubts[5]
    assert dict(doubtful_captions(["a dog", "IMG_1"], [False, False])).keys() == {1}


def test_notes_on_captions_from_file_names():
    assert caption_notes(["a cat", "a dog"], [False, False]) == caption_notes(["IMG_1", "x"], [True, True]) == []
    (mixed,) = caption_notes(["by hand", "a dog", "a cow"], [True, False, False])
    assert "2 of 3" in mixed and '"a dog"' in mixed
    mixed, wordless = caption_notes(["by hand", "a dog", "IMG_1", "IMG_2"], [True, False, False, False])
    assert "3 of 4" in mixed and "2," in wordless and '"IMG_1", "IMG_2"' in wordless
    (mixed,) = caption_notes(["by hand", "", "a dog"], [True, False, False])
    assert "1 of 3" in mixed and '"a dog"' in mixed
    assert caption_notes(["by hand", ""], [True, False]) == []  # an empty caption has its own note
    (wordless,) = caption_notes(["1234", "a cat"], [True, True])
    assert '"1234"' in wordless


def remarks(folder, **options):
    config = configure(folder, folder.parent / "cache", **options)
    source = open_image_source(config)
    return caption_remarks(source, [ImageRecord(row, "", 8, 8, False, (8, 8)) for row in range(len(source))], config)


@pytest.fixture
def folder(tmp_path):
    """A folder of two images, captioned "red; square, big" and "blue; round"."""
    for name, caption in (("a", "red; square, big"), ("b", "blue; round")):
        write_image(tmp_path / "images" / f"{name}.png")
        (tmp_path / "images" / f"{name}.txt").write_text(caption)
    return tmp_path / "images"


def test_remarks_on_what_captions_contain(folder):
    assert remarks(folder) == []
    (folder / "a.txt").write_text("a cat, [filewords]")
    (note,) = remarks(folder)
    assert "[filewords]" in note and str(folder / "a.png") in note and note.startswith("1 ")
    (folder / "a.txt").write_text("a cat\na dog")
    (note,) = remarks(folder)
    assert "--caption_lines" in note and str(folder / "a.png") in note
    assert remarks(folder, caption_lines=True) == []
    (folder / "a.txt").write_text("\n")
    (note,) = remarks(folder)
    assert "empty" in note and note.startswith("1 ")
    (note,) = remarks(folder, template="a thing")  # then the captions do not matter
    assert note.startswith("--template ")


def test_remarks_on_options_without_effect(folder):
    (note,) = remarks(folder, caption_lines=True)
    assert note.startswith("--caption_lines ")
    assert remarks(folder, shuffle_tags=True) == remarks(folder, tag_dropout=0.1) == []
    (note,) = remarks(folder, shuffle_tags=True, tag_separator="|")
    assert note.startswith("--shuffle_tags ") and '--tag_separator ","' in note
    (note,) = remarks(folder, tag_dropout=0.1, keep_tags=2, tag_separator=";")
    assert note.startswith("--tag_dropout ") and "--tag_separator" not in note  # the words of a sentence are not tags
    (folder / "a.txt").write_text("red_square big")
    (folder / "b.txt").write_text("blue round")
    (note,) = remarks(folder, shuffle_tags=True, tag_separator=";")
    assert note.startswith("--shuffle_tags ") and '--tag_separator " "' in note
    (folder / "a.txt").write_text("red;square")
    (note,) = remarks(folder, shuffle_tags=True)
    assert note.startswith("--shuffle_tags ") and '--tag_separator ";"' in note
    assert remarks(folder, shuffle_tags=True, tag_separator=";") == []
    (folder / "a.txt").write_text("red")
    (folder / "b.txt").write_text("blue")
    (note,) = remarks(folder, shuffle_tags=True)
    assert note.startswith("--shuffle_tags ") and "--tag_separator" not in note


@pytest.mark.parametrize("template", ["{caption} in the style of {name}", "{} by [name]", "a $caption", "<caption>"])
def test_remarks_on_a_template_without_the_caption(folder, template):
    (note,) = remarks(folder, template=template)
    assert note.startswith(f"--template {template}: ") and "[filewords]" in note
