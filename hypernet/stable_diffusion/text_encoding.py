"""Prompts become embeddings as in the WebUI: in chunks of 75 tokens, with its clip skip and emphasis.

The same code serves training, previews and drawing.
"""

from typing import NamedTuple

import torch

from hypernet.stable_diffusion.model import StableDiffusion
from hypernet.stable_diffusion.model_hash import hash_of, shaping, weights_hash
from hypernet.stable_diffusion.prompt_parser import BREAK, parse_emphasis, unescape

COMMA = ",</w>"  # in CLIP's vocabulary
CHUNKS_AT_ONCE = 32  # in one forward, whatever prompts they belong to
BACKTRACK = 20  # tokens; the WebUI's setting "comma padding backtrack"


class Embeds(NamedTuple):
    """What the UNet gets of a prompt."""

    tokens: torch.Tensor  # (chunks * 77, text width)
    pooled: torch.Tensor | None = None  # (width,), SDXL's


@torch.no_grad()
def encode_prompts(models: StableDiffusion, prompts: list[str]) -> list[Embeds]:
    """The embeddings of prompts of any length, on the text encoders' device, in their precision.

    Up to 75 tokens they are those of the pipeline's own `encode_prompt`, bit for bit. SDXL's pooled embedding is that of the
    first chunk; an empty prompt is zeros for an SDXL that is configured so, as what guidance compares with is.
    """
    widths, pooled = [], None
    for encoder, tokenizer in zip(models.text_encoders, models.tokenizers):
        chunks = [read_prompt(models, tokenizer, prompt)[0] for prompt in prompts]
        ids = torch.tensor([token_ids(tokenizer, chunk) for of_prompt in chunks for chunk in of_prompt])
        parts = [_encode(models, encoder, part) for part in ids.split(CHUNKS_AT_ONCE)]
        hidden = torch.cat([states for states, _ in parts])  # (all chunks, 77, width of this encoder)
        weights = torch.tensor([_weights(tokenizer, chunk) for of_prompt in chunks for chunk in of_prompt])
        hidden = apply_emphasis(hidden, weights.to(hidden.device))
        counts = [len(of_prompt) for of_prompt in chunks]
        widths.append([part.flatten(0, 1) for part in hidden.split(counts)])
        if parts[0][1] is not None:
            pooled = [part[0] for part in torch.cat([part for _, part in parts]).split(counts)]
    embeds = [Embeds(torch.cat(parts, dim=-1)) for parts in zip(*widths)]
    if models.base.is_xl:
        embeds = [Embeds(tokens, of_all) for (tokens, _), of_all in zip(embeds, pooled)]
    zero = [models.base.zeros_for_empty and prompt == "" for prompt in prompts]
    return [Embeds(*map(torch.zeros_like, each)) if is_zero else each for each, is_zero in zip(embeds, zero)]


def _encode(models, encoder, ids):
    """(the layer that the model reads, (chunks, 77, width); the pooled embedding, (chunks, width), if it has one)."""
    needs_layers = models.base.is_xl or models.base.clip_skip > 1
    outputs = encoder(ids.to(encoder.device), output_hidden_states=needs_layers)
    return _hidden_states(models, encoder, outputs), outputs[0] if outputs[0].ndim == 2 else None


def read_prompt(models: StableDiffusion, tokenizer, prompt: str):
    """(chunks of (token, weight), how many tokens are cut off, how many there were)."""
    if models.base.source.prompt_emphasis:
        stretches = parse_emphasis(prompt)
    else:
        stretches = [(unescape(prompt), 1.0)]
    tokens = [(None, 1.0) if text is BREAK else (_tokenize(tokenizer, text), weight) for text, weight in stretches]
    comma = tokenizer.convert_tokens_to_ids(COMMA)
    chunks = make_chunks(tokens, comma if comma != tokenizer.unk_token_id else None, tokenizer.model_max_length - 2)
    most = models.base.source.max_token_chunks
    count = sum(map(len, chunks))
    return chunks[:most], sum(map(len, chunks[most:])) if most else 0, count


def make_chunks(stretches, comma: int | None, length: int = 75) -> list[list[tuple[int, float]]]:
    """(token, weight) pairs in chunks of at most `length`; (None, weight) among the stretches begins a new one.

    Where a chunk is full and a comma lies among its last 20 tokens, what follows the comma goes into the next one: so the
    WebUI keeps tags together.
    """
    chunks, chunk, last_comma = [], [], None
    for tokens, weight in stretches:
        if tokens is None:
            chunks.append(chunk)
            chunk, last_comma = [], None
            continue
        for token in tokens:
            if len(chunk) == length:
                near = token != comma and last_comma is not None and length - last_comma <= BACKTRACK
                keep = last_comma + 1 if near else length
                chunks.append(chunk[:keep])
                chunk, last_comma = chunk[keep:], None
            elif token == comma:
                last_comma = len(chunk)
            chunk.append((token, weight))
    return [*chunks, chunk] if chunk or not chunks else chunks


def token_ids(tokenizer, chunk) -> list[int]:
    """Start, the chunk's tokens, end, and padding up to the tokenizer's length (77)."""
    ids = [tokenizer.bos_token_id, *(token for token, _ in chunk), tokenizer.eos_token_id]
    return ids + [tokenizer.pad_token_id] * (tokenizer.model_max_length - len(ids))


def _weights(tokenizer, chunk) -> list[float]:
    rest = tokenizer.model_max_length - 1 - len(chunk)
    return [1.0, *(weight for _, weight in chunk), *[1.0] * rest]


def _tokenize(tokenizer, text) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids


def _hidden_states(models, encoder, outputs) -> torch.Tensor:
    """The layer that the model reads, (chunks, 77, width).

    Clip skip is the WebUI's: 1 is the encoder's output, and n the final norm of the n-th layer from the end. SDXL was made
    with the last but one, without the norm; there it changes the first encoder, as the WebUI's setting "clip skip SDXL" does.
    """
    clip_skip = models.base.clip_skip
    if models.base.is_xl:
        first = encoder is models.text_encoders[0]
        return outputs.hidden_states[-clip_skip if first else -2]
    if clip_skip == 1:
        return outputs.last_hidden_state
    norm = getattr(encoder, "text_model", encoder).final_layer_norm  # transformers before 5 wraps it
    return norm(outputs.hidden_states[-clip_skip])


def apply_emphasis(hidden: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Each token's vector times its weight, then each chunk back to its mean of before, as the WebUI's "Original".

    hidden (chunks, 77, width); weights (chunks, 77). A chunk of weights 1 stays as it is, bit for bit.
    """
    if bool((weights == 1).all()):
        return hidden
    weighted = hidden * weights[..., None].to(hidden.dtype)
    restored = weighted * (hidden.mean((1, 2), keepdim=True) / weighted.mean((1, 2), keepdim=True))
    return torch.where((weights == 1).all(1)[:, None, None], hidden, restored)


def text_hash(models: StableDiffusion) -> str:
    """Ten hex digits that change with whatever shapes an embedding: tokenizers, encoders, and how prompts are read."""
    parts = []
    for tokenizer, encoder in zip(models.tokenizers, models.text_encoders):
        config = shaping(encoder.config.to_dict(), "transformers_version", "dtype")
        special = tokenizer.model_max_length, tokenizer.pad_token_id
        parts += [sorted(tokenizer.get_vocab().items()), special, config, weights_hash(encoder)]
    base = models.base
    read = base.clip_skip, base.source.max_token_chunks, base.source.prompt_emphasis, base.zeros_for_empty
    return hash_of(*parts, read)


def truncation_note(models: StableDiffusion, prompts: list[str], images: dict[str, str] | None = None) -> str | None:
    """What to tell if --max_token_chunks cuts prompts: which loses most, by its image's name where `images` has them."""
    most = models.base.source.max_token_chunks
    cut = truncated_prompts(models, dict.fromkeys(prompts)) if most else []
    if not cut:
        return None
    prompt, lost, tokens = max(cut, key=lambda each: each[1])
    name = images[prompt] if images else f'"{prompt[:40]}..."'
    return f"note: --max_token_chunks {most} cuts {len(cut)} prompts; {name} loses {lost} of {tokens} tokens"


def truncated_prompts(models: StableDiffusion, prompts: list[str]) -> list[tuple[str, int, int]]:
    """(prompt, how many of its tokens are cut off, how many it has) of those that --max_token_chunks cuts."""
    read = [(prompt, *read_prompt(models, models.tokenizers[0], prompt)[1:]) for prompt in prompts]
    return [each for each in read if each[1]]
