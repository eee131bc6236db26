"""Prompts in chunks, clip skip and emphasis: against the pipelines' own encode_prompt, and against encoding by hand."""

import re

import pytest
import torch

from hypernet.stable_diffusion.conditioning import build_conditions
from hypernet.stable_diffusion.prompt_parser import BREAK, escape, parse_emphasis, unescape
from hypernet.stable_diffusion.text_encoding import (
    Embeds,
    apply_emphasis,
    encode_prompts,
    make_chunks,
    text_hash,
    truncation_note,
)
from tests.helpers.tiny_models import open_models

LONG = ", ".join(
    f"a {size} {color} cat on a roof" for color in ("red", "blue", "pink") for size in ("big", "small") * 6
)


@pytest.fixture(scope="module")
def models(models_dir):
    return {name: open_models(models_dir / name) for name in ("epsilon", "sd2", "xl")}


def with_options(models, **options):
    """The same model, its prompts read otherwise."""
    import dataclasses

    source = dataclasses.replace(models.base.source, **options)
    clip_skip = options.get("clip_skip", models.base.clip_skip)
    zeros = options.get("force_zeros_for_empty_prompt", models.base.zeros_for_empty)
    base = dataclasses.replace(models.base, source=source, clip_skip=clip_skip, zeros_for_empty=zeros)
    return dataclasses.replace(models, base=base)


@pytest.mark.parametrize("name", ["epsilon", "sd2", "xl"])
@pytest.mark.parametrize("prompt", ["a red star on a blue background", "a", "(a cat), [b]: 1.5", ""])
def test_a_short_prompt_is_the_pipelines_own_bit_for_bit(models, name, prompt):
    pipe = models[name].pipeline
    given = pipe.encode_prompt(prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True)
    (tokens, pooled), (empty, empty_pooled) = (
        encode_prompts(models[name], [prompt])[0],
        encode_prompts(models[name], [""])[0],
    )
    if prompt or name != "xl":  # (the pipeline makes zeros of a missing negative prompt only)
        assert torch.equal(tokens, given[0][0])
    assert torch.equal(empty, given[1][0])
    if name == "xl":
        assert torch.equal(pooled, given[2][0]) or not prompt
        assert torch.equal(empty_pooled, given[3][0]) and not empty.any()
        kept = with_options(models[name], force_zeros_for_empty_prompt=False)
        assert torch.equal(encode_prompts(kept, [""])[0].tokens, pipe.encode_prompt("", device="cpu")[0][0])


@pytest.mark.parametrize("name", ["epsilon", "sd2", "xl"])
def test_a_long_prompt_is_encoded_chunk_by_chunk(models, name):
    """By hand: the tokens in stretches of the tokenizer's length, each with start and end, its padding behind."""
    pipe, text = models[name].pipeline, LONG.replace(",", " and")  # without commas, which would move the borders
    parts = []
    for tokenizer, encoder in zip(models[name].tokenizers, models[name].text_encoders):
        length = tokenizer.model_max_length
        tokens = tokenizer(text).input_ids[1:-1]
        assert len(tokens) > 200
        stretches = [tokens[start : start + length - 2] for start in range(0, len(tokens), length - 2)]
        rows = [[tokenizer.bos_token_id, *stretch, tokenizer.eos_token_id] for stretch in stretches]
        ids = torch.tensor([row + [tokenizer.pad_token_id] * (length - len(row)) for row in rows])
        outputs = encoder(ids, output_hidden_states=True)
        parts.append(outputs.hidden_states[-2] if name == "xl" else outputs.last_hidden_state)
    tokens, pooled = encode_prompts(models[name], [text])[0]
    torch.testing.assert_close(tokens, torch.cat(parts, -1).flatten(0, 1), rtol=0, atol=1e-6)
    if name == "xl":
        first = pipe.text_encoder_2(ids[:1])[0][0]
        torch.testing.assert_close(pooled, first, rtol=0, atol=1e-6)
    cut = encode_prompts(with_options(models[name], max_token_chunks=2), [text, "a cat"])
    length = models[name].tokenizers[0].model_max_length
    torch.testing.assert_close(cut[0].tokens, tokens[: 2 * length], rtol=0, atol=1e-6)
    assert [len(each.tokens) for each in cut] == [2 * length, length]


def test_what_is_cut_is_told(models):
    cutting, prompts = with_options(models["epsilon"], max_token_chunks=1), ["a cat", LONG, LONG + ", a dog", LONG]
    note = r"note: --max_token_chunks 1 cuts 2 prompts; {} loses \d+ of \d+ tokens"
    assert re.fullmatch(note.format(f'"{LONG[:40]}..."'), truncation_note(cutting, prompts))
    images = {"a cat": "cat.png", LONG: "long.png", LONG + ", a dog": "dog.png"}
    assert re.fullmatch(note.format("dog.png"), truncation_note(cutting, list(images), images))
    assert truncation_note(models["epsilon"], prompts) is None and truncation_note(cutting, prompts[:1]) is None


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_clip_skip(models, clip_skip):
    """The WebUI's: the final norm of the layers' n-th last output; of SDXL's first encoder without the norm."""
    for name in ("epsilon", "xl"):
        encoder, tokenizer = models[name].text_encoders[0], models[name].tokenizers[0]
        ids = tokenizer(["a cat"], padding="max_length", return_tensors="pt").input_ids
        states = encoder(ids, output_hidden_states=True)
        hidden = states.hidden_states[-clip_skip]
        expected = hidden if name == "xl" else encoder.final_layer_norm(hidden)
        tokens = encode_prompts(with_options(models[name], clip_skip=clip_skip), ["a cat"])[0].tokens
        assert torch.equal(tokens[:, : expected.shape[-1]], expected[0])
        assert name == "xl" or clip_skip == 2 or torch.equal(tokens, states.last_hidden_state[0])
        skipped = with_options(models[name], clip_skip=clip_skip)
        assert (text_hash(skipped) == text_hash(models[name])) == (clip_skip == models[name].base.clip_skip)


def test_borders_of_chunks():
    """Where a chunk is full, what follows a comma among its last 20 tokens moves on: the WebUI's rule."""
    comma, word = 1, 2

    def lengths(tokens, length=75):
        return [len(chunk) for chunk in make_chunks([(tokens, 1.0)], comma, length)]

    assert lengths([]) == [0]
    assert lengths([word] * 75) == [75]
    assert lengths([word] * 76) == [75, 1]
    assert lengths([word] * 60 + [comma] + [word] * 15) == [61, 15]  # the comma is the 15th from the end
    assert lengths([word] * 55 + [comma] + [word] * 20) == [56, 20]
    assert lengths([word] * 54 + [comma] + [word] * 21) == [75, 1]  # too far back
    assert lengths([word] * 75 + [comma] + [word]) == [75, 2]
    assert lengths([comma] * 160) == [75, 75, 10]
    chunks = make_chunks([([word] * 3, 1.1), (None, 1.0), ([word], 1.0), (None, 1.0)], comma)
    assert chunks == [[(word, 1.1)] * 3, [(word, 1.0)]]


@pytest.mark.parametrize(
    "prompt, expected",  # from the WebUI's wiki and the documentation of its parser
    [
        ("a cat", [("a cat", 1.0)]),
        ("", [("", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        ("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).", None),
        ("((a))", [("a", 1.21)]),
        ("[a]", [("a", 1 / 1.1)]),
        ("(a:1.5) b:1.5)", [("a", 1.5), (" b:1.5)", 1.0)]),
        ("[a:1.5)", [("a:1.5)", 1 / 1.1)]),
        ("a) b]", [("a) b]", 1.0)]),
        ("a BREAK b", [("a", 1.0), (BREAK, 1.0), ("b", 1.0)]),
        ("BREAKFAST", [("BREAKFAST", 1.0)]),
        (r"a \\(b)", [("a \\", 1.0), ("b", 1.1)]),
        (r"lone \ here", [("lone  here", 1.0)]),
    ],
)
def test_emphasis_is_parsed(prompt, expected):
    found = parse_emphasis(prompt)
    if expected is None:
        expected = [("a ", 1.0), ("house", 1.3 * 1.1 * 1.1), (" ", 1.1), ("on", 1.0), (" a ", 1.1), ("hill", 0.55)]
        expected += [(", sun, ", 1.1), ("sky", 1.1**4), (".", 1.1)]
    assert [text for text, _ in found] == [text for text, _ in expected]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in expected])


@pytest.mark.parametrize("prompt", ["a cat", r"saber \(fate\)", "a (b:1.3) [c]", r"back\slash", "((", r"a\\(b)"])
def test_what_is_read_without_emphasis_can_be_written_for_it(prompt):
    assert parse_emphasis(escape(prompt)) == [(unescape(prompt), 1.0)]


def test_plain_brackets():
    assert unescape(r"saber \(fate\) [x\] \n") == r"saber (fate) [x] \n"


def test_emphasis_by_hand(models):
    """Each token's vector times its weight, then the chunk's mean as before."""
    plain = encode_prompts(models["epsilon"], ["a red star"])[0].tokens
    weighed = with_options(models["epsilon"], prompt_emphasis=True)
    tokenizer = weighed.tokenizers[0]
    before = 1 + len(tokenizer("a", add_special_tokens=False).input_ids)
    count = len(tokenizer("red", add_special_tokens=False).input_ids)
    expected = plain.clone()
    expected[before : before + count] *= 1.3
    expected *= plain.mean() / expected.mean()
    found = encode_prompts(weighed, ["a (red:1.3) star"])[0].tokens
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert torch.equal(encode_prompts(weighed, ["a red star"])[0].tokens, plain)
    assert len(encode_prompts(weighed, ["a BREAK b"])[0].tokens) == 2 * tokenizer.model_max_length
    two = apply_emphasis(torch.randn(2, 3, 4), torch.tensor([[1.0, 2, 1], [1, 1, 1]]))
    assert two.shape == (2, 3, 4)


@pytest.mark.parametrize("name", ["epsilon", "xl"])
def test_a_long_prompt_in_a_batch_changes_no_other(models, name):
    """What fills shorter prompts up is masked: the UNet predicts what it predicts alone."""
    embeds = encode_prompts(models[name], ["a cat", LONG, ""])
    assert len({len(each.tokens) for each in embeds}) == 2
    latents, timesteps, sizes = torch.randn(3, 4, 8, 8), torch.tensor([5, 500, 900]), torch.randint(64, (3, 6)).float()
    sizes = sizes if name == "xl" else None
    together = models[name].unet(latents, timesteps, **build_conditions(embeds, sizes)).sample
    for i, each in enumerate(embeds):
        alone = build_conditions([each], None if sizes is None else sizes[i : i + 1])
        assert "encoder_attention_mask" not in alone
        expected = models[name].unet(latents[i : i + 1], timesteps[i : i + 1], **alone).sample
        torch.testing.assert_close(together[i : i + 1], expected, rtol=0, atol=1e-5)


def test_prompts_of_one_length_need_no_mask():
    assert set(build_conditions([Embeds(torch.zeros(7, 3))] * 2)) == {"encoder_hidden_states"}
