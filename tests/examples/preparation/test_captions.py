"""Captions from a tagger and a captioning model, both tiny, and how they are combined with written ones."""

import re
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipProcessor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from examples.preparation.captions import WITHOUT_IT, combine, is_emoticon, tagger_pixels
from hypernet.utils.errors import UserError
from tests.helpers.preparation import read_clean_captions, run_here, write

TAGS = [("general", 9), ("blue_sky", 0), ("red_hair", 0), ("o_o", 0), ("green_(leaf)", 4), ("dull", 0)]


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    """A tagger that sees mean colors: blue_sky is the blue of an image, and so on; o_o is always 0.6."""
    folder = tmp_path_factory.mktemp("tagger")
    rows = [f"{i},{name},{category},1" for i, (name, category) in enumerate(TAGS)]
    (folder / "selected_tags.csv").write_text("\n".join(["tag_id,name,category,count", *rows]))
    matrix = np.zeros((3, len(TAGS)), np.float32)  # from BGR
    matrix[0, 1], matrix[2, 2], matrix[1, 4] = 1 / 255, 1 / 255, 1 / 255
    bias = np.array([0.99, 0, 0, 0.6, 0, 0.1], np.float32)
    nodes = [
        helper.make_node("ReduceMean", ["pixels"], ["means"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["means", "matrix"], ["products"]),
        helper.make_node("Add", ["products", "bias"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tagger",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 32, 32, 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", len(TAGS)])],
        [onnx.numpy_helper.from_array(matrix, "matrix"), onnx.numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    return folder


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    """A BLIP with random weights that knows six words."""
    folder = tmp_path_factory.mktemp("blip") / "model"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "red", "cat", "dog", "on", "grass"]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = BertTokenizer(vocab=vocabulary, bos_token="[DEC]")
    sides = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"vocab_size": 12, "bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    text = {**sides, **ids, "encoder_hidden_size": 16, "max_position_embeddings": 32, "projection_dim": 16}
    config = BlipConfig(text_config=text, vision_config={**sides, "image_size": 32, "patch_size": 16})
    torch.manual_seed(4)
    model = BlipForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.text_decoder.parameters():
            parameter.mul_(8)  # so that some words are much more likely than others
    model.save_pretrained(folder)
    BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    """A folder with three images of one color each, one of them captioned."""
    folder = tmp_path_factory.mktemp("colors")
    images = {"blue.png": (0, 128, 255), "red.png": (230, 0, 90), "gray.png": (10, 10, 10)}
    write(folder, {name: Image.new("RGB", (40, 40), color) for name, color in images.items()})
    (folder / "gray.txt").write_text("a dark one, o_o")
    return folder


def test_combines_captions():
    assert [combine("old, new", ["new, red"], mode) for mode in ("ignore", "copy", "prepend", "append")] == [
        "new, red",
        "old, new",
        "old, new, red",
        "new, red, old",
    ]
    assert combine(None, [], "copy") is None and combine("", [], "copy") == "" and combine("", ["x"], "copy") == "x"
    assert combine("old", [], "ignore") is None and combine("old", [], "append") == "old"
    assert combine(None, ["a cat", "cat, A cat, red"], "copy") == "a cat, cat, red"


def test_tagger(tagger, colors, tmp_path):
    def tags(name, *flags):
        run_here(colors, tmp_path / name, "--size=32", "--caption", "tagger", "--tagger_model", tagger, *flags)
        return read_clean_captions(tmp_path / name)

    assert tags("plain") == {
        "blue.png": "blue sky, o_o, green (leaf)",
        "red.png": "red hair, o_o, blue sky",
        "gray.png": "a dark one, o_o",
    }
    assert tags("high", "--tagger_threshold=0.55")["blue.png"] == "blue sky, o_o"
    assert tags("written", "--keep_underscores", "--escape_brackets")["blue.png"] == r"blue_sky, o_o, green_\(leaf\)"
    found = tags("ordered", "--order=alphabet", "--exclude_tags", "Blue Sky, unknown")
    assert found["blue.png"] == "green (leaf), o_o" and found["red.png"] == "o_o, red hair"
    assert tags("ignored", "--existing_caption=ignore")["gray.png"] == "o_o"
    found = tags("before", "--existing_caption=prepend", "--tagger_threshold=0.05")["gray.png"]
    assert found == "a dark one, o_o, dull"
    found = tags("after", "--existing_caption=append", "--tagger_threshold=0.05")["gray.png"]
    assert found == "o_o, dull, a dark one"
    found = tags("several", "--caption", "filename", "tagger", "--flip")
    assert found["red.png"] == found["red-flipped.png"] == "red, red hair, o_o, blue sky"


def test_tagger_input_is_a_white_square_in_bgr():
    image = Image.new("RGB", (20, 10), (200, 100, 50))
    pixels = tagger_pixels(image, 20)
    assert pixels.shape == (1, 20, 20, 3) and pixels.dtype == np.float32
    assert (pixels[0, 10, 10] == (50, 100, 200)).all() and (pixels[0, 1] == 255).all() and (pixels[0, -2] == 255).all()


def test_recognizes_emoticons():
    assert all(map(is_emoticon, ["o_o", ">_<", "^_^", "(o)_(o)", "||_||", "+_-", "._."]))
    assert not any(map(is_emoticon, ["long_hair", "1girl", "t_shirt", "cat", ":d"]))


def test_captioning_model(blip, colors, tmp_path):
    model = BlipForConditionalGeneration.from_pretrained(blip).eval()
    processor = BlipProcessor.from_pretrained(blip)
    image = processor(images=Image.new("RGB", (32, 32), (0, 128, 255)), return_tensors="pt")
    seen = set()
    for i, (flags, settings) in enumerate(
        [
            (["--caption_tokens=5"], {"max_new_tokens": 5}),  # the name of earlier versions
            (["--max_length=4"], {"max_new_tokens": 4}),
            (["--max_length=20"], {"max_new_tokens": 20}),
            (["--max_length=20", "--min_length=15"], {"max_new_tokens": 20, "min_new_tokens": 15}),
            (["--max_length=20", "--num_beams=3"], {"max_new_tokens": 20, "num_beams": 3}),
        ]
    ):
        run_here(colors, tmp_path / f"{i}", "--size=32", "--caption", blip, *flags)
        found = read_clean_captions(tmp_path / f"{i}")
        expected = processor.decode(model.generate(**image, **settings)[0], skip_special_tokens=True)
        assert expected and found["blue.png"] == expected and found["gray.png"] == "a dark one, o_o"
        seen.add(expected)
    assert len(seen) == 5
    flags = ("--size=32", "--caption", blip, "--max_length=5")
    run_here(colors, tmp_path / "prompted", *flags, "--caption_prompt=a red cat")
    assert read_clean_captions(tmp_path / "prompted")["red.png"].startswith("a red cat")


def test_loads_no_model_if_all_captions_are_written(tmp_path):
    source = write(tmp_path / "in", {"a.png": (40, 40)}, a="written")
    run_here(source, tmp_path / "out", "--size=32", "--caption", "blip", "tagger")
    assert read_clean_captions(tmp_path / "out") == {"a.png": "written"}


@pytest.mark.parametrize(
    "flags, named, can_do_without",
    [
        (["blipp"], "--caption blipp", False),
        (["blip"], "--caption Salesforce/blip-image-captioning-base", True),
        (["nobody/nothing"], "--caption nobody/nothing", True),
        (["tagger"], "--caption tagger --tagger_model SmilingWolf/wd-vit-tagger-v3", True),
        (["tagger", "--tagger_model=."], "--caption tagger --tagger_model .", True),
    ],
)
def test_refuses_models_that_cannot_be_loaded(one_image, tmp_path, flags, named, can_do_without):
    with pytest.raises(UserError, match=re.escape(named)) as error:
        run_here(one_image, tmp_path / "out", "--caption", *flags)
    assert "\n" not in str(error.value) and (WITHOUT_IT in str(error.value)) == can_do_without
    assert not list(tmp_path.rglob("*.png")) and len(list(one_image.iterdir())) == 1


def test_tagger_needs_onnxruntime(one_image, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    with pytest.raises(UserError, match="--caption tagger: .*pip install onnxruntime") as error:
        run_here(one_image, tmp_path / "out", "--caption", "tagger")
    assert WITHOUT_IT in str(error.value)
