"""Crops, parts and mirrored copies, pixel by pixel."""

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from examples.preparation.cutting import choose_crop
from examples.preparation.options import parse_arguments
from hypernet.data.image_io import on_background, read_image
from tests.helpers.preparation import hashes, run_here, scene, skipped, write


def test_crops_splits_and_mirrors(tmp_path):
    source = write(tmp_path / "in", {"long.png": (300, 100), "plain.png": (128, 96), "wide.png": (180, 100)})
    run_here(source, tmp_path / "out", "--size=64x48", "--split", "--flip")
    made = {name for name in hashes(tmp_path / "out") if name.endswith(".png")}
    parts = [f"long-{i}" for i in (1, 2, 3)]
    assert made == {f"{stem}{end}.png" for stem in (*parts, "plain", "wide") for end in ("", "-flipped")}
    places = {"plain": (0.5, 0.5), "wide": (0.5, 0.5), **{part: (i / 2, 0) for i, part in enumerate(parts)}}
    for name, centering in places.items():
        image = Image.open(source / f"{name.partition('-')[0]}.png")
        expected = ImageOps.fit(image, (64, 48), Image.Resampling.LANCZOS, centering=centering)
        found = Image.open(tmp_path / "out" / f"{name}.png")
        assert found.mode == "RGB" and np.abs(np.asarray(found, int) - np.asarray(expected, int)).max() <= 1
        mirrored = Image.open(tmp_path / "out" / f"{name}-flipped.png")
        assert (np.asarray(mirrored) == np.asarray(found)[:, ::-1]).all()
    out = tmp_path / "sizes"
    printed = run_here(source, out, "--auto_size", "--size_threshold=0.05", "--objective=error")
    assert Image.open(out / "plain.png").size == (512, 384)
    assert "300x100" in skipped(printed)["long.png"] and "--size_threshold" in skipped(printed)["long.png"]


def test_writes_pixels_without_metadata(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = tmp_path / "in"
    source.mkdir()
    image = scene(1)
    image.save(source / "keyed.png", transparency=image.getpixel((0, 0)), icc_profile=profile, dpi=(72, 72))
    clear = image.copy()
    clear.putalpha(Image.linear_gradient("L").resize(image.size))
    clear.save(source / "clear.png")
    run_here(source, tmp_path / "white", "--size=96")
    run_here(source, tmp_path / "red", "--size=96", "--background=red")
    run_here(source, tmp_path / "kept", "--size=48", "--keep_alpha")
    for name in ("keyed", "clear"):
        for folder, color in (("white", "white"), ("red", "red")):
            found = Image.open(tmp_path / folder / f"{name}.png")
            found.load()
            assert found.mode == "RGB" and not set(found.info) - {"srgb"}
            expected = on_background(read_image((source / f"{name}.png").read_bytes()), color)
            assert (np.asarray(found) == np.asarray(expected)).all()
    kept = Image.open(tmp_path / "kept" / "clear.png")
    expected = clear.resize((48, 48), Image.Resampling.LANCZOS)
    assert kept.mode == "RGBA" and np.abs(np.asarray(kept, int) - np.asarray(expected, int)).max() <= 1


def test_refuses_to_split_a_strip():
    args = parse_arguments("", ["in", "out", "--split"])
    with pytest.raises(ValueError, match="1250"):
        choose_crop(Image.new("RGB", (8000, 8)), args)
