"""examples/show_data.py, run as its users run it."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from examples import show_data
from hypernet.utils.errors import UserError
from tests.helpers.scripts import REPO, one_line_error, run


def write_odd_images(mixed_dir, folder):
    """Copy `mixed_dir`; add an empty file, a copy of 0.png with a long caption, and a tiny image."""
    shutil.copytree(mixed_dir, folder)
    (folder / "empty.png").write_bytes(b"")
    Image.open(folder / "0.png").save(folder / "again.bmp")
    (folder / "again.txt").write_text("a cat, " * 20)
    Image.open(folder / "1.png").crop((0, 0, 30, 30)).save(folder / "tiny.png")


def data_flags(model, folder, tmp_path):
    """Return options of show_data.py."""
    flags = ["--pretrained_model_name_or_path", model, "--train_data_dir", folder, "--cache_dir", tmp_path / "cache"]
    return [str(flag) for flag in (*flags, "--resolution=64", "--output_dir", tmp_path / "none")]


def test_show_data(models_dir, mixed_dir, tmp_path, capsys):
    folder, sheet = tmp_path / "images", tmp_path / "sheets" / "data.png"
    write_odd_images(mixed_dir, folder)
    flags = data_flags(models_dir / "epsilon", folder, tmp_path)
    done = run(REPO / "examples" / "show_data.py", "--sheet", sheet, *flags, "--max_token_chunks=1")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    (line,) = [line for line in lines if "--max_token_chunks 1 " in line]
    lost, tokens = re.search(r"again\.bmp \D*(\d+) of (\d+) tokens", line).groups()
    assert 30 <= int(lost) < int(tokens)
    assert any(line.startswith("skipped: ") and "empty.png" in line for line in lines)
    assert sum("empty.png" in line for line in lines) == 1 and any(re.search(r"\b8\b.*\b1\b", line) for line in lines)
    remarks = {line.partition(": ")[0].rpartition("/")[2]: line for line in lines if "look at /" in line}
    assert "0.png" in remarks["again.bmp"] and "--max_token_chunks" in remarks["again.bmp"]
    assert {lost, tokens} <= set(re.findall(r"\d+", remarks["again.bmp"]))
    assert "30x30" in remarks["tiny.png"] and "2.1 times" in remarks["tiny.png"]
    assert all(part in remarks["2.png"] for part in ("64x128", "50%", "--fit", "--split"))
    shown, warned = np.asarray(Image.open(sheet)), Image.open(sheet.with_name("data_warnings.png"))
    assert shown.shape[1] == 6 * 252 + 12 and warned.width == min(6, len(remarks)) * 252 + 12
    first = shown[12 : 12 + 240, 12 : 12 + 240]  # decoded from its latents
    assert first.std() > 5 and not (tmp_path / "none").exists()

    # with one good image and the right scaling factor, nothing is suspicious
    for file in folder.iterdir():
        if file.name not in ("0.png", "0.txt"):
            file.unlink()
    std = float(re.search(r"latents\D*([\d.]+)", remarks["0.png"])[1])
    model, config = tmp_path / "right", json.loads((models_dir / "epsilon" / "vae" / "config.json").read_text())
    shutil.copytree(models_dir / "epsilon", model)
    (model / "vae" / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.7 / std}))
    flags = data_flags(model, folder, tmp_path)
    show_data.main(["--sheet", str(sheet), *flags, "--max_token_chunks=1"])
    printed = capsys.readouterr()
    assert "look at" not in printed.out and not sheet.with_name("data_warnings.png").exists()
    assert "Encoding" not in printed.err  # the scaling factor is not part of what is cached
    assert "nothing suspicious" in printed.out

    # a folder without per-image problems but with a file that is not read
    (folder / "captions.jsonl").write_text("")
    Image.open(folder / "0.png").rotate(90).save(folder / "IMG_2034.png")
    show_data.main(["--sheet", str(sheet), *flags])
    lines = capsys.readouterr().out.splitlines()
    (remark,) = [line for line in lines if "look at /" in line]
    assert "IMG_2034.png" in remark and "file name" in remark
    assert sum(line.startswith("note: ") for line in lines) == 3  # unread, without a caption, without words
    (folder / "IMG_2034.txt").write_text("a caption")
    (folder / "of_no_image.txt").write_text("a caption")
    show_data.main(["--sheet", str(sheet), *flags])
    lines = capsys.readouterr().out.splitlines()
    assert "look at" not in "".join(lines) and "notes" in lines[-1]


MISTAKES = [
    (["--sheet={folder}/images/s.png"], "--sheet .*--train_data_dir"),
    (["--sheet={folder}/file/s.png"], "--sheet .*file"),
    (["--sheet={folder}/s.gif"], "--sheet .*png"),
    (["--max_images=0"], "--max_images 0"),
    (["--epoch=-1"], "--epoch -1"),
]


@pytest.mark.parametrize("flags, named", MISTAKES)
def test_show_data_refuses_bad_options(models_dir, images_dir, tmp_path, flags, named):
    shutil.copytree(images_dir, tmp_path / "images")
    (tmp_path / "file").write_text("")
    needed = data_flags(models_dir / "epsilon", tmp_path / "images", tmp_path)
    with pytest.raises(UserError, match=f"^{named}") as error:
        show_data.main([*needed, *(flag.format(folder=tmp_path) for flag in flags)])
    assert "\n" not in str(error.value)


def test_show_data_refuses_bad_training_options_in_one_line(models_dir, images_dir, tmp_path):
    flags = data_flags(models_dir / "epsilon", images_dir, tmp_path)
    sheet = tmp_path / "sheets" / "s.png"
    line = one_line_error(show_data.main, *flags, "--sheet", sheet, "--epoch", "1", "--tag_dropout=2")
    assert line.startswith("--tag_dropout 2.0: ") and not sheet.parent.exists()
