import pytest

from hypernet.captions import fill_template, read_caption, read_templates
from hypernet.errors import UserError


@pytest.mark.parametrize(
    "name, caption",
    [("00012-0-a cat.png", "a cat"), ("03 - a dog.png", "- a dog"), ("portrait 2.jpg", "portrait 2"), ("17.png", "")],
)
def test_caption_from_file_name(tmp_path, name, caption):
    assert read_caption(tmp_path / name) == caption


def test_sidecar_wins(tmp_path):
    (tmp_path / "1.txt").write_text("ein Haus, grün\n", encoding="utf-8")
    assert read_caption(tmp_path / "1.png") == "ein Haus, grün"
    (tmp_path / "1.txt").write_bytes("grün".encode("latin-1"))
    with pytest.raises(UserError, match=r"1\.txt: it is not UTF-8"):
        read_caption(tmp_path / "1.png")


def test_templates(tmp_path):
    assert read_templates("art by [name]") == ["art by [name]"]
    file = tmp_path / "style.txt"
    file.write_text("a [filewords]\n\nart by [name], [filewords]\n")
    assert read_templates(str(file)) == ["a [filewords]", "art by [name], [filewords]"]
    file.write_text("\n")
    with pytest.raises(UserError, match="it is empty"):
        read_templates(str(file))
    with pytest.raises(UserError, match="no such file"):
        read_templates(str(tmp_path / "none.txt"))
    assert fill_template("art by [name], [filewords]", "a [name] cat", "me") == "art by me, a me cat"
