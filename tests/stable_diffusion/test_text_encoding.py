"""Prompts are embedded as by the pipelines' own encode_prompt, and as by hand: chunks, clip skip, emphasis."""

import dataclasses
import re

import pytest
import torch

from hypernet.stable_diffusion.text_encoding import (
    apply_emphasis,
    encode_prompts,
    make_chunks,
    text_hash,
    truncated_prompts,
    truncation_note,
)
from tests.helpers.tiny_models import LONG_PROMPT, open_models


@pytest.fixture(scope="module")
def models(models_dir):
    return {name: open_models(models_dir / name) for name in ("epsilon", "sd2", "xl")}


def with_options(models, **options):
    """Return the same model with other options on prompts."""
    source = dataclasses.replace(models.base.source, **options)
    clip_skip = options.get("clip_skip", models.base.clip_skip)
    zeros = options.get("force_zeros_for_empty_prompt", models.base.zeros_for_empty_prompt)
    base = dataclasses.replace(models.base, source=source, clip_skip=clip_skip, zeros_for_empty_prompt=zeros)
    return dataclasses.replace(models, base=base)


@pytest.mark.parametrize("name", ["epsilon", "sd2", "xl"])
@pytest.mark.parametrize("prompt", ["a red star on a blue background", "a", "(a cat), [b]: 1.5", ""])
def test_a_short_prompt_equals_the_pipelines_bit_for_bit(models, name, prompt):
    pipe = models[name].pipeline
    given = pipe.encode_prompt(prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True)
    tokens, pooled = encode_prompts(models[name], [prompt])[0]
    empty, empty_pooled = encode_prompts(models[name], [""])[0]
    if prompt or name != "xl":  # the pipeline embeds only a missing negative prompt as zeros
        assert torch.equal(tokens, given[0][0])
    assert torch.equal(empty, given[1][0])
    if name == "xl":
        assert torch.equal(pooled, given[2][0]) or not prompt
        assert torch.equal(empty_pooled, given[3][0]) and not empty.any()
        kept = with_options(models[name], force_zeros_for_empty_prompt=False)
        assert torch.equal(encode_prompts(kept, [""])[0].tokens, pipe.encode_prompt("", device="cpu")[0][0])


@pytest.mark.parametrize("name", ["epsilon", "sd2", "xl"])
def test_a_long_prompt_is_encoded_chunk_by_chunk(models, name):
    """By hand: slices of the tokenizer's length, each with start token, end token and padding."""
    pipe, text = models[name].pipeline, LONG_PROMPT.replace(",", " and")  # commas would move the borders
    parts = []
    for tokenizer, encoder in zip(models[name].tokenizers, models[name].text_encoders):
        length = tokenizer.model_max_length
        tokens = tokenizer(text).input_ids[1:-1]
        assert len(tokens) > 200
        slices = [tokens[start : start + length - 2] for start in range(0, len(tokens), length - 2)]
        rows = [[tokenizer.bos_token_id, *part, tokenizer.eos_token_id] for part in slices]
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


def test_notes_the_prompt_that_loses_most_tokens(models):
    limited, longer = with_options(models["epsilon"], max_token_chunks=1), LONG_PROMPT + ", a dog"
    prompts = ["a cat", LONG_PROMPT, longer, LONG_PROMPT]
    assert [prompt for prompt, _, _ in truncated_prompts(limited, dict.fromkeys(prompts))] == [LONG_PROMPT, longer]
    _, lost, count = max(truncated_prompts(limited, prompts), key=lambda each: each[1])
    length = limited.tokenizers[0].model_max_length - 2
    assert 0 < lost < count and count - lost <= length
    numbers = rf"--max_token_chunks 1\D+ 2 .*\D{lost}\D+{count}\D"
    images = {"a cat": "cat.png", LONG_PROMPT: "long.png", longer: "dog.png"}
    for note, name in (
        (truncation_note(limited, prompts), LONG_PROMPT[:40]),
        (truncation_note(limited, list(images), images), "dog.png"),
    ):
        assert name in note and re.search(numbers, note)
    assert truncation_note(models["epsilon"], prompts) is None and truncation_note(limited, prompts[:1]) is None


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_clip_skip(models, clip_skip):
    """The final norm of the n-th layer from the end, as in the WebUI; for SDXL's first encoder without the norm."""
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


def test_chunks_break_after_commas():
    """If a comma is among the last 20 tokens of a full chunk, what follows it moves on: the WebUI's rule."""
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


def test_curly_quotes_ligatures_and_full_width_letters_are_read_as_plain_ones(models):
    curly, straight = (
        "a \u201cred\u201d \ufb01sh, it\u2019s \uff21\uff0cb \uff08c\uff1a1.5\uff09",
        'a "red" fish, it\'s A,b (c:1.5)',
    )
    for name in ("epsilon", "xl"):
        found, expected = encode_prompts(models[name], [curly, straight])
        assert torch.equal(found.tokens, expected.tokens)
    weighted = with_options(models["epsilon"], prompt_emphasis=True)  # full-width brackets are not syntax
    assert torch.equal(
        encode_prompts(weighted, [curly])[0].tokens, encode_prompts(models["epsilon"], [curly])[0].tokens
    )


def test_emphasis_scales_tokens_and_restores_the_mean(models):
    plain = encode_prompts(models["epsilon"], ["a red star"])[0].tokens
    weighted = with_options(models["epsilon"], prompt_emphasis=True)
    tokenizer = weighted.tokenizers[0]
    before = 1 + len(tokenizer("a", add_special_tokens=False).input_ids)
    count = len(tokenizer("red", add_special_tokens=False).input_ids)
    expected = plain.clone()
    expected[before : before + count] *= 1.3
    expected *= plain.mean() / expected.mean()
    found = encode_prompts(weighted, ["a (red:1.3) star"])[0].tokens
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert torch.equal(encode_prompts(weighted, ["a red star"])[0].tokens, plain)
    assert len(encode_prompts(weighted, ["a BREAK b"])[0].tokens) == 2 * tokenizer.model_max_length
    two = apply_emphasis(torch.randn(2, 3, 4), torch.tensor([[1.0, 2, 1], [1, 1, 1]]))
    assert two.shape == (2, 3, 4)
