"""Images that cannot be used are named, with the reason."""

import shutil

import pytest

from hypernet.data.image_index import index_images
from hypernet.data.image_source import open_image_source
from hypernet.utils.errors import UserError
from tests.helpers.encoding import configure, png_without_pixels
from tests.helpers.processes import run_processes


def test_unusable_files_are_named(images_dir, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(images_dir, folder)
    whole = (folder / "0.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.webp").write_bytes(b"<html>")
    (folder / "huge.png").write_bytes(png_without_pixels(20_000, 20_000))
    config = configure(folder, tmp_path / "cache")
    reasons = {"cut.png": "truncated", "empty.jpg": "empty", "huge.png": "million pixels", "page.webp": "not an image"}
    alone = index_images(open_image_source(config), config, 8)
    shared = configure(folder, tmp_path / "shared cache")
    (tmp_path / "shared cache").mkdir()
    assert run_processes(3, lambda each: index_images(open_image_source(shared), shared, 8, each)) == [alone] * 3
    for _ in range(2):  # the second time the usable ones are not opened again
        records, problems = index_images(open_image_source(config), config, 8)
        assert (records, problems) == alone and len(records) == 8 and len(problems) == 4
        for problem, (name, reason) in zip(problems, reasons.items()):
            path, _, text = problem.partition(": ")
            assert path == str(folder / name) and reason in text
    for path in folder.glob("?.png"):
        path.unlink()
    with pytest.raises(UserError, match="--train_data_dir .* 4 images .*cut.png"):
        index_images(open_image_source(config), config, 8)
