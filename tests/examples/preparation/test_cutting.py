"""Crops, parts and mirrored copies, pixel by pixel."""

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from examples.preparation.cutting import choose_crop, describe_enlargement
from examples.preparation.options import parse_arguments
from hypernet.data.image_io import on_background, read_image
from tests.helpers.preparation import contents, hashes, labeled, run_here, scene, skipped, write


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


def test_fits_the_whole_image_on_a_background(tmp_path):
    turned = Image.Exif()
    turned[274] = 6  # shown rotated by 90 degrees
    clear = scene(1, (90, 30))
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    sizes = {
        "wide": (180, 50),
        "tall": (33, 150),
        "odd": (101, 71),
        "dot": (1, 1),
        "strip": (2000, 9),
        "same": (96, 64),
    }
    images = {f"{name}.png": scene(3, size) for name, size in sizes.items()}
    source = write(tmp_path / "in", {**images, "clear.png": clear})
    scene(2, (120, 40)).save(source / "turned.jpg", exif=turned, quality=100)
    run_here(source, tmp_path / "out", "--size=96x64", "--fit", "--background=teal")
    run_here(source, tmp_path / "kept", "--size=96x64", "--fit", "--keep_alpha")
    for path in sorted(source.iterdir()):
        image = read_image(path.read_bytes())
        shown = ImageOps.exif_transpose(Image.open(path))
        assert image.size == shown.size
        found = Image.open(tmp_path / "out" / f"{path.stem}.png")
        assert found.mode == "RGB" and found.size == (96, 64)
        if path.stem == "strip":  # thinner than a pixel
            assert (np.asarray(found) != (0, 128, 128)).any(2).sum(1).nonzero()[0].tolist() == [32]
            continue
        expected = ImageOps.pad(on_background(image, "teal"), (96, 64), Image.Resampling.LANCZOS, color="teal")
        assert np.abs(np.asarray(found, int) - np.asarray(expected, int)).max() <= 1
        kept = Image.open(tmp_path / "kept" / f"{path.stem}.png")
        mask = ImageOps.pad(Image.new("L", image.size, 255), (96, 64), Image.Resampling.LANCZOS, color=0)
        if path.stem == "same":
            assert kept.mode == "RGB"
        elif path.stem != "clear":
            assert np.array_equal(np.asarray(kept.getchannel("A")), np.asarray(mask))


def test_fits_images_of_almost_the_same_shape_without_a_line_at_the_edge(tmp_path):
    source = write(tmp_path / "in", {"a.png": scene(1, (400, 399)), "b.png": scene(1, (400, 390))})
    run_here(source, tmp_path / "out", "--size=256", "--fit", "--background=red")
    whole = Image.open(source / "a.png").resize((256, 256), Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "a.png")), np.asarray(whole))
    assert (np.asarray(Image.open(tmp_path / "out" / "b.png"))[[0, 1, 2, -3, -2, -1]] == (255, 0, 0)).all()


def test_splits_long_images_and_fits_the_others(tmp_path):
    source = write(tmp_path / "in", {"long.png": scene(1, (300, 100)), "wide.png": scene(2, (150, 100))})
    run_here(source, tmp_path / "out", "--size=64", "--fit", "--split", "--background=red")
    run_here(source, tmp_path / "split", "--size=64", "--split")
    made, split = contents(tmp_path / "out"), contents(tmp_path / "split")
    assert made.keys() == split.keys() and {name for name in made if made[name] != split[name]} == {"wide.png"}
    assert (np.asarray(Image.open(tmp_path / "out" / "wide.png"))[[0, -1]] == (255, 0, 0)).all()


def test_background_auto_continues_the_border(tmp_path):
    paper = Image.new("RGB", (150, 50), (245, 234, 208))
    paper.paste(scene(1, (40, 30)), (90, 10))
    grainy = np.asarray(paper, int) + np.random.RandomState(0).randint(-4, 5, (50, 150, 3))
    framed = Image.new("RGB", (40, 80), "navy")  # bars meet the left and the right, mostly red
    framed.paste("red", (0, 10, 40, 70))
    wide = Image.new("RGB", (108, 40), "navy")  # bars meet the top and the bottom; 47 * (108 / 47) exceeds 108
    wide.paste("red", (5, 0, 103, 40))
    clear = Image.new("RGBA", (40, 80), (0, 0, 0, 0))
    clear.paste((0, 128, 0, 255), (0, 5, 40, 80))
    images = {"paper.png": paper, "grainy.png": Image.fromarray(grainy.clip(0, 255).astype(np.uint8))}
    source = write(tmp_path / "in", {**images, "framed.png": framed, "wide.png": wide, "clear.png": clear})
    run_here(source, tmp_path / "out", "--size=47", "--fit", "--background=auto")

    def made(name):
        return np.asarray(Image.open(tmp_path / "out" / f"{name}.png"), int)

    assert (made("paper")[[0, -1]] == (245, 234, 208)).all()
    assert np.abs(made("grainy")[[0, -1]] - (245, 234, 208)).max() <= 4
    assert (made("framed")[:, [0, -1]] == (255, 0, 0)).all() and (made("wide")[[0, -1]] == (255, 0, 0)).all()
    assert (made("clear")[:, [0, -1]] == 255).all() and (made("clear")[23, 23] == (0, 128, 0)).all()


def test_keeps_sizes_and_channels(tmp_path):
    clear = scene(1, (30, 41))
    clear.putalpha(100)
    source = write(tmp_path / "in", {"a.png": scene(2, (31, 7)), "b.png": clear})
    printed = run_here(source, tmp_path / "out", "--keep_size", "--keep_alpha", "--flip")
    assert not labeled(printed, "small")
    for name in ("a", "b"):
        before, after = Image.open(source / f"{name}.png"), Image.open(tmp_path / "out" / f"{name}.png")
        assert after.mode == before.mode and np.array_equal(np.asarray(after), np.asarray(before))
        mirrored = np.asarray(Image.open(tmp_path / "out" / f"{name}-flipped.png"))
        assert np.array_equal(mirrored, np.asarray(before)[:, ::-1])


def test_enlargements_are_plain_numbers():
    assert [describe_enlargement(factor).split()[1] for factor in (1.01, 12.34, 1024.0)] == ["1.01", "12.3", "1024"]


def test_refuses_to_split_a_strip():
    args = parse_arguments("", ["in", "out", "--split"])
    with pytest.raises(ValueError, match="1250"):
        choose_crop(Image.new("RGB", (8000, 8)), args)
