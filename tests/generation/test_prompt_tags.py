"""Tags in prompts, and the files that their names mean."""

import pytest

import hypernet
from hypernet.generation.prompt_tags import find_hypernetwork, split_prompt, tag_name, write_tag
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
def test_tags(prompt, text, tags):
    assert split_prompt(prompt) == (text, tags)


@pytest.mark.parametrize(
    "prompt", ["<hypernet:a:x>", "<hypernet:a:>", "<hypernet::1>", "<hypernet:a:1:2>", "<hypernet:a:nan>", "<lora:a:1>"]
)
def test_bad_tags(prompt):
    with pytest.raises(UserError) as caught:
        split_prompt(f"a cat {prompt}")
    assert prompt in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs with a checkpoint each, one run called like its own file, WebUI files, and things that are none."""
    folder = tmp_path_factory.mktemp("networks")
    for run, name in (("first", "neon"), ("ink", "ink")):
        network = hypernet.Hypernetwork(widths=(12,), name=name, step=20)
        network.save_pretrained(folder / run)
        hypernet.save_webui(network, folder / run / f"{name}.pt")
        network.save_pretrained(folder / run / "checkpoints" / "step-000020")
        (folder / run / "run.json").write_text("{}")
    best = hypernet.Hypernetwork(widths=(12,), name="neon", step=10)
    hypernet.save(best, folder / "first" / "best")
    hypernet.save_webui(best, folder / "first" / "best" / "neon.pt")
    hypernet.save(network, folder / "alone" / "sole.safetensors")
    hypernet.save(network, folder / "alone" / "both.safetensors")
    hypernet.save(network, folder / "alone" / "both.pt")
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
        ("neon", "first"),  # the trained folder, by its own name; its neon.pt is the same hypernetwork
        ("ink", "ink"),
        ("neon-20", "first/checkpoints/step-000020"),
        ("ink/checkpoints/step-000020", "ink/checkpoints/step-000020"),
        ("old/style", "webui/old/style.pt"),
        ("same", "one/same.pt"),
        ("sole", "alone/sole.safetensors"),
        ("both", "alone/both.pt"),
    ],
)
def test_find(folder, name, place):
    assert find_hypernetwork(name, folder) == folder / place


@pytest.mark.parametrize(
    "name, message",
    [
        ("neom", "did you mean neon?"),
        ("neon-2", "did you mean neon-20 or neon or neon-best?"),
        ("style", "webui/style.pt or"),
        ("step-000020", "write more of the path"),
        ("lora", "there is no such hypernetwork"),
        ("secret", "there is no such hypernetwork"),
        ("unet", "there is no such hypernetwork"),
    ],
)
def test_not_found(folder, name, message):
    with pytest.raises(UserError) as caught:
        find_hypernetwork(name, folder)
    assert message in str(caught.value) and str(folder) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no such folder"):
        find_hypernetwork(name, folder / "none")


def test_names_are_found_again(folder):
    for place in ("first", "first/checkpoints/step-000020", "ink/checkpoints/step-000020", "webui/old/style.pt"):
        name = tag_name(folder / place)
        found = find_hypernetwork(name if place[:5] != "webui" else f"old/{name}", folder)
        assert found == folder / place
    assert write_tag(folder / "first", 0.80) == "<hypernet:neon:0.8>"
    assert write_tag("user/my-style", 1) == "<hypernet:my-style:1>"
    assert split_prompt(write_tag(folder / "ink" / "checkpoints" / "step-000020", 0.25)) == ("", [("ink-20", 0.25)])
