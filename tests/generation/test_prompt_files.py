"""Files of prompts with settings: YAML, kohya's lines, images with the WebUI's text, and that text."""

import json
from pathlib import Path

import pytest
from PIL import ExifTags, Image

from hypernet.generation.infotext import save_png
from hypernet.generation.prompt_files import read_prompts
from hypernet.utils.errors import UserError

INFOTEXT = """a (red:1.2) star,
on a table <hypernet:ink:0.8><lora:x:1>
Negative prompt: blurry, a: b
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 4294967295, Size: 512x768, Clip skip: 2"""
SETTINGS = {"negative_prompt": "blurry, a: b", "steps": 20, "sampler": "DPM++ 2M Karras", "guidance_scale": 6.5}
SETTINGS |= {"seed": 4294967295, "size": (512, 768)}


def read(folder: Path, name: str, content: str):
    (folder / name).write_text(content, encoding="utf-8")
    return read_prompts(folder / name, "--option")


def texts_and_settings(prompts):
    return [(each.text, dict(each.settings)) for each in prompts]


def test_reads_kohyas_lines(tmp_path):
    content = (
        "# prompts\n\na cat, a -- b --n blurry, red-eyed --w 512 --h 768 --d 1 --l 7.5 --s 28 --ss euler_a\na dog\n"
    )
    content += 'A FISH --N "no" --D=-1 --l 7  # x\n'
    with pytest.raises(UserError, match="line 5"):  # a comment is a line of its own
        read(tmp_path, "prompts.txt", content)
    cat, dog, fish = read(tmp_path, "prompts.txt", content.replace("  # x", ""))
    kohya = {"negative_prompt": "blurry, red-eyed", "width": 512, "height": 768, "seed": 1, "steps": 28}
    assert (cat.text, cat.settings) == ("a cat, a -- b", kohya | {"guidance_scale": 7.5, "sampler": "euler_a"})
    assert (dog.text, dog.settings) == ("a dog", {}) and "line 4" in dog.where
    assert (fish.text, fish.settings) == ("A FISH", {"negative_prompt": "no", "seed": -1, "guidance_scale": 7})


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_reads_text_as_windows_writes_it(tmp_path, encoding):
    (tmp_path / "prompts.txt").write_bytes("a café --d 1\r\na dog\r\n".encode(encoding))
    prompts = texts_and_settings(read_prompts(tmp_path / "prompts.txt", "--option"))
    assert prompts == [("a café", {"seed": 1}), ("a dog", {})]


def test_reads_yaml_and_json(tmp_path):
    content = """- a cat: asleep
- prompt: "a dog, [name]"
  negative_prompt: no
  size: [512, 768]
  seed: 010
  guidance_scale: null
- {p: a fish, cfg_scale: 5, sample_steps: 3, sampler_name: Euler a, width: 64}
"""
    with pytest.raises(UserError, match="line 1: unknown setting a cat"):
        read(tmp_path, "prompts.yaml", content)
    read_again = texts_and_settings(read(tmp_path, "prompts.yaml", content.replace("a cat: asleep", "no")))
    dog = {"negative_prompt": "no", "size": (512, 768), "seed": 10}
    fish = {"guidance_scale": 5, "steps": 3, "sampler": "Euler a", "width": 64}
    assert read_again == [("no", {}), ("a dog, [name]", dog), ("a fish", fish)]
    kohya = [
        {
            "prompt": "a cat \U0001f408",
            "negative_prompt": "x",
            "scale": 7.5,
            "sample_steps": 8,
            "sample_sampler": "ddim",
        }
    ]
    ((text, settings),) = texts_and_settings(read(tmp_path, "prompts.json", json.dumps(kohya)))
    assert (text, settings["guidance_scale"], settings["steps"], settings["sampler"]) == (
        "a cat \U0001f408",
        7.5,
        8,
        "ddim",
    )
    ((text, settings),) = texts_and_settings(read(tmp_path, "one.yaml", "prompt: a cat\nresolution: 96x64"))
    assert (text, settings) == ("a cat", {"size": (96, 64)})


def test_reads_the_webuis_text_from_images_and_text_files(tmp_path):
    image = Image.new("RGB", (8, 8))
    save_png(tmp_path / "a.png", image, INFOTEXT)
    (tmp_path / "a.png").rename(tmp_path / "no_ending")  # kinds are told by content
    exif = image.getexif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"UNICODE\0" + INFOTEXT.encode("utf-16-be")
    image.save(tmp_path / "b.jpg", exif=exif)
    (tmp_path / "c.txt").write_text(INFOTEXT, encoding="utf-8-sig")
    for name in ("no_ending", "b.jpg", "c.txt"):
        (prompt,) = read_prompts(tmp_path / name, "--option")
        assert (prompt.text, prompt.settings) == ("a (red:1.2) star,\non a table", SETTINGS), name
        assert {"<hypernet:ink:0.8>", "<lora:x:1>", "Clip skip"} <= prompt.fields.keys()
    several = read(tmp_path, "c.txt", f"{INFOTEXT}\n\na dog\nSteps: 3, Sampler: Euler, Seed: 1\nTemplate: a, b\n")
    assert [each.text for each in several][1:] == ["a dog"] and "Template" in several[1].fields
    assert several[1].settings == {"negative_prompt": "", "steps": 3, "sampler": "Euler", "seed": 1}
    assert "line 4" in several[0].where and "line 7" in several[1].where


@pytest.mark.parametrize(
    "fields, sampler",
    [
        ("Sampler: DPM++ 2M Karras", "DPM++ 2M Karras"),  # before WebUI 1.9
        ("Sampler: DPM++ 2M, Schedule type: Automatic", "DPM++ 2M Karras"),
        ("Sampler: DPM++ 3M SDE, Schedule type: Automatic", "DPM++ 3M SDE Exponential"),
        ("Sampler: Euler a, Schedule type: Automatic", "Euler a"),
        ("Sampler: Euler, Schedule type: Uniform", "Euler Uniform"),
        ("Sampler: Euler, Schedule type: Uniform, Timestep spacing: leading", "Euler"),  # by examples/generate.py
        ("Sampler: DDIM, Schedule type: Uniform", "DDIM"),
    ],
)
def test_joins_sampler_and_schedule_type(tmp_path, fields, sampler):
    (prompt,) = read(tmp_path, "a.txt", f"a cat\nSteps: 3, {fields}, Seed: 1")
    assert prompt.settings["sampler"] == sampler


@pytest.mark.parametrize(
    "name, content, named",
    [
        ("a.txt", "a cat\na dog --ar 16:9", ["line 2", "--ar", "--w"]),
        ("a.txt", "a cat --w 500", ["line 1", "--w 500", "8"]),
        ("a.txt", "a cat --l 7,5", ["line 1", "--l 7,5", "7.5"]),
        ("a.txt", "a cat --l nan", ["line 1", "--l nan"]),
        ("a.txt", "a cat --s 1001", ["line 1", "--s 1001", "1000"]),
        ("a.txt", "a cat --s 2.5", ["line 1", "--s 2.5"]),
        ("a.txt", "a cat --d -2", ["line 1", "--d -2"]),
        ("a.txt", "a cat --d", ["line 1", "--d"]),
        ("a.txt", "a cat --d 1 --d 2", ["line 1", "--d"]),
        ("a.txt", "--n blurry", ["line 1", "prompt"]),
        ("a.txt", "# nothing\n\n", ["a.txt", "no prompt"]),
        ("a.yaml", "- prompt: a cat\n\n  stepz: 3", ["line 3", "stepz", "steps"]),
        ("a.yaml", "- prompt: a cat\n  steps: many", ["line 2", "steps many"]),
        ("a.yaml", "- prompt: a cat\n  size: [64]\n- prompt: a dog\n  size: 64x60", ["line 4", "64x60", "8"]),
        ("a.yaml", "- steps: 3", ["line 1", "prompt"]),
        ("a.yaml", "- prompt: [a cat, a dog]", ["line 1"]),
        ("a.yaml", "- {prompt: a cat, width: 64, size: 64}", ["line 1", "size"]),
        ("a.yaml", "- {prompt: a cat, size: 64, width: 64}", ["line 1", "width"]),
        ("a.yaml", "- prompt: a cat\n  seed: {a: b}", ["line 2"]),
        ("a.yaml", "prompts:\n- a cat", ["line 1", "prompts;"]),
        ("a.yaml", "- prompt: a cat\n  stepz:", ["line 2", "stepz"]),
        ("a.yaml", "- prompt: a cat\n  size: []", ["line 2", "size"]),
        ("a.yaml", "- prompt: a cat\n prompt: a dog", ["line 2", "YAML"]),
        ("a.yaml", "a cat", ["a.yaml", "list"]),
        ("a.yaml", "", ["a.yaml", "no prompt"]),
        ("a.toml", 'prompt = "a cat"', ["a.toml", "YAML"]),
        ("a.txt", "a cat\nSteps: 0, Sampler: Euler, Seed: 1", ["line 2", "steps 0"]),
        ("a.txt", "\nSteps: 2, Sampler: Euler, Seed: 1", ["line 2", "prompt"]),
    ],
)
def test_mistakes_are_one_line_with_their_place(tmp_path, name, content, named):
    with pytest.raises(UserError) as caught:
        read(tmp_path, name, content)
    message = str(caught.value)
    assert all(word in message for word in ["--option", name, *named]) and "\n" not in message, message


def test_refuses_what_is_no_file_of_prompts(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    save_png(tmp_path / "comfy.png", Image.new("RGB", (8, 8)), '{"nodes": []}')
    (tmp_path / "cut.png").write_bytes((tmp_path / "plain.png").read_bytes()[:40])
    (tmp_path / "latin.txt").write_bytes("a caf\xe9".encode("latin-1"))
    for name in ("plain.png", "comfy.png", "cut.png", "latin.txt", "missing.txt", "."):
        with pytest.raises(UserError, match="--option"):
            read_prompts(tmp_path / name, "--option")
