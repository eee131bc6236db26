"""Tags in prompts, and the hypernetworks their names refer to."""

import re
import time

import pytest

import hypernet
from hypernet.generation.prompt_tags import find_hypernetwork, tag_name, write_tag
from hypernet.generation.tag_syntax import split_prompt
from hypernet.utils.errors import UserError


@pytest.mark.parametrize(
    "prompt, text, tags",
    [
        ("a cat", "a cat", []),
        ("a <hypernet:neon:0.8> cat", "a  cat", [("neon", 0.8)]),
        ("<hypernet:a><hypernet:b:-1e-1>,<hypernet:a:2>", ",", [("a", 1.0), ("b", -0.1), ("a", 2.0)]),
        ("a < b, <3, 1 > 0, <br>, <a cat: red>", "a < b, <3, 1 > 0, <br>, <a cat: red>", []),
        ("two\nlines <hypernet:my style:0>", "two\nlines ", [("my style", 0.0)]),
    ],
)
def test_splits_prompts(prompt, text, tags):
    assert split_prompt(prompt) == (text, tags)


@pytest.mark.parametrize(
    "prompt", ["<hypernet:a:x>", "<hypernet:a:>", "<hypernet::1>", "<hypernet:a:1:2>", "<hypernet:a:nan>", "<lora:a:1>"]
)
def test_refuses_malformed_tags(prompt):
    with pytest.raises(UserError) as caught:
        split_prompt(f"a cat {prompt}")
    assert prompt in str(caught.value) and "\n" not in str(caught.value)


def test_a_decimal_comma_in_a_tag_is_corrected():
    with pytest.raises(UserError, match="<hypernet:a:0.8>$"):
        split_prompt("a cat <hypernet:a:0,8>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs with a checkpoint each, one with its folder's name; WebUI files; files that are not hypernetworks."""
    folder = tmp_path_factory.mktemp("hypernetworks")
    for run, name in (("first", "neon"), ("ink", "ink")):
        hypernetwork = hypernet.Hypernetwork(widths=(12,), name=name, step=20)
        hypernetwork.save_pretrained(folder / run)
        hypernet.save_webui(hypernetwork, folder / run / f"{name}.pt")
        hypernetwork.save_pretrained(folder / run / "checkpoints" / "step-000020")
        (folder / run / "run.json").write_text("{}")
    best = hypernet.Hypernetwork(widths=(12,), name="neon", step=10)
    hypernet.save(best, folder / "first" / "best")
    hypernet.save_webui(best, folder / "first" / "best" / "neon.pt")
    hypernet.save(hypernetwork, folder / "alone" / "sole.safetensors")
    hypernet.save(hypernetwork, folder / "alone" / "both.safetensors")
    hypernet.save(hypernetwork, folder / "alone" / "both.pt")
    (folder / "alone" / "lora.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    for place in ("webui/style.pt", "webui/old/style.pt", ".hidden/secret.pt"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(place.encode())
    for place in ("one", "two"):
        (folder / place).mkdir()
        (folder / place / "same.pt").write_bytes(b"same")
    (folder / "unet").mkdir()
    (folder / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    "name, place",
    [
        ("neon-best", "first/best"),
        ("first/best", "first/best"),
        ("first", "first"),
        ("neon", "first"),  # the trained folder, by the name in its config; its neon.pt holds the same
        ("ink", "ink"),
        ("neon-20", "first/checkpoints/step-000020"),
        ("ink/checkpoints/step-000020", "ink/checkpoints/step-000020"),
        ("old/style", "webui/old/style.pt"),
        ("same", "one/same.pt"),
        ("sole", "alone/sole.safetensors"),
        ("both", "alone/both.pt"),
    ],
)
def test_finds_hypernetworks_by_name(folder, name, place):
    assert find_hypernetwork(name, folder) == folder / place


@pytest.mark.parametrize(
    "name, named",
    [
        ("neom", ["neon"]),
        ("neon-2", ["neon-20", "neon", "neon-best"]),
        ("lora", []),
        ("secret", []),
        ("unet", []),
    ],
)
def test_names_the_nearest_if_there_is_none(folder, name, named):
    with pytest.raises(UserError) as caught:
        find_hypernetwork(name, folder)
    start, _, hint = str(caught.value).partition(";")
    assert start.startswith(f"<hypernet:{name}>") and str(folder) in start and "\n" not in hint
    assert re.findall(r"neon[-\w]*", hint) == named
    with pytest.raises(UserError, match="--hypernetwork_dir"):
        find_hypernetwork(name, folder / "none")


@pytest.mark.parametrize(
    "name, places",
    [
        ("style", ["webui/style.pt", "webui/old/style.pt"]),
        ("step-000020", ["first/checkpoints/step-000020", "ink/checkpoints/step-000020"]),
    ],
)
def test_suggests_a_longer_tag_if_there_are_several(folder, name, places):
    with pytest.raises(UserError) as caught:
        find_hypernetwork(name, folder)
    message = str(caught.value)
    assert all(str(folder / place) in message for place in places) and "\n" not in message
    _, longer = re.findall(r"<hypernet:([^>]+)>", message)
    assert find_hypernetwork(longer, folder) == folder / places[0]


NAMES = [
    "we:ird",
    "a>b",
    "<c>",
    "d, e: f",
    "<hypernet:x:1>",
    "(g) [h]",
    "back\\slash",
    " i ",
    " ",
    "\u65e5\u672c:1",
    "l\nm",
    "=0.5",
]


@pytest.mark.parametrize("name", [*NAMES, "n\udcffo"])
def test_every_name_can_be_read_back_from_its_tag(tmp_path, name):
    file, run = tmp_path / "files" / f"{name}.pt", tmp_path / "runs" / name
    hypernetwork = hypernet.Hypernetwork(widths=(12,), name=name.replace("\udcff", "\xff"), step=7)
    places = {file: file.parent, run: run.parent, run / "checkpoints" / "step-000007": run.parent}
    for path in places:
        path.parent.mkdir(parents=True, exist_ok=True)
        hypernet.save(hypernetwork, path)
    for path, folder in places.items():
        text = f"a cat {write_tag(path, 0.5)}"
        text.encode()
        text, [(found, strength)] = split_prompt(text)
        assert text == "a cat " and strength == 0.5
        assert find_hypernetwork(found, folder) == path


def test_finds_what_tag_name_returns(folder):
    for place in ("first", "first/checkpoints/step-000020", "ink/checkpoints/step-000020", "webui/old/style.pt"):
        name = tag_name(folder / place)
        found = find_hypernetwork(name if place[:5] != "webui" else f"old/{name}", folder)
        assert found == folder / place
    assert write_tag(folder / "first", 0.80) == "<hypernet:neon:0.8>"
    assert write_tag("user/my-style", 1) == "<hypernet:my-style:1>"
    assert split_prompt(write_tag(folder / "ink" / "checkpoints" / "step-000020", 0.25)) == ("", [("ink-20", 0.25)])


def test_reads_long_prompts_in_linear_time():
    prompt = "<a:" * 100_000
    started = time.process_time()
    assert split_prompt(prompt) == (prompt, []) and time.process_time() - started < 5
