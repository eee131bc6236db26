"""Embed prompts as the WebUI does: in chunks of 75 tokens, with its clip skip and emphasis.

Training, previews and generation share this code.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from transformers import CLIPTokenizer, PreTrainedModel

from hypernet.stable_diffusion.model import StableDiffusion
from hypernet.stable_diffusion.model_hash import config_items, parts_hash, weights_hash
from hypernet.stable_diffusion.prompt_parser import BREAK, parse_emphasis, plain, unescape
from hypernet.utils.errors import counted

COMMA = ",</w>"  # in CLIP's vocabulary
CHUNKS_AT_ONCE = 32  # chunks per forward pass of a text encoder
BACKTRACK = 20  # tokens; the WebUI's setting "comma padding backtrack"
Chunk = list[tuple[int, float]]  # tokens with their weights


class Embeds(NamedTuple):
    """The embeddings of a prompt."""

    tokens: torch.Tensor  # (chunks * 77, text width)
    pooled: torch.Tensor | None = None  # (pooled width,), of SDXL


@torch.no_grad()
def encode_prompts(models: StableDiffusion, prompts: Sequence[str]) -> list[Embeds]:
    """Return the embeddings of prompts of any length, on the text encoders' device and in their precision.

    Up to 75 tokens they equal those of the pipeline's own `encode_prompt` for the `plain` prompt, bit for bit. SDXL's
    pooled embedding is the first chunk's. An empty prompt is all zeros for models configured so, as in classifier-free
    guidance.
    """
    hidden, pooled = [], None
    for encoder, tokenizer in zip(models.text_encoders, models.tokenizers):
        chunks = [read_prompt(models, tokenizer, prompt)[0] for prompt in prompts]
        of_encoder, of_encoder_pooled = _encode_chunks(models, encoder, tokenizer, chunks)
        hidden.append(of_encoder)
        pooled = of_encoder_pooled or pooled
    tokens = [torch.cat(parts, dim=-1) for parts in zip(*hidden)]
    if models.base.is_xl and pooled is not None:
        embeds = [Embeds(*each) for each in zip(tokens, pooled)]
    else:
        embeds = [Embeds(each) for each in tokens]
    zero = [models.base.zeros_for_empty_prompt and prompt == "" for prompt in prompts]
    return [Embeds(*map(torch.zeros_like, each)) if is_zero else each for each, is_zero in zip(embeds, zero)]


def _encode_chunks(
    models: StableDiffusion, encoder: PreTrainedModel, tokenizer: CLIPTokenizer, chunks: list[list[Chunk]]
) -> tuple[list[torch.Tensor], list[torch.Tensor] | None]:
    """Return each prompt's hidden states, (chunks * 77, width), and the pooled embedding of its first chunk, if any."""
    ids = torch.tensor([token_ids(tokenizer, chunk) for of_prompt in chunks for chunk in of_prompt])
    weights = torch.tensor([_weights(tokenizer, chunk) for of_prompt in chunks for chunk in of_prompt])
    counts = [len(of_prompt) for of_prompt in chunks]
    parts = [_forward(models, encoder, part) for part in ids.split(CHUNKS_AT_ONCE)]
    hidden = torch.cat([part for part, _ in parts])  # (all chunks, 77, width)
    hidden = apply_emphasis(hidden, weights)
    tokens = [part.flatten(0, 1) for part in hidden.split(counts)]
    if parts[0][1] is None:
        return tokens, None
    pooled = torch.cat([part for _, part in parts])  # (all chunks, pooled width)
    return tokens, [part[0] for part in pooled.split(counts)]


def _forward(
    models: StableDiffusion, encoder: PreTrainedModel, ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the layer that the UNet reads, (chunks, 77, width), and pooled embeddings from encoders that have them."""
    needs_layers = models.base.is_xl or models.base.clip_skip > 1
    outputs = encoder(ids.to(encoder.device, non_blocking=True), output_hidden_states=needs_layers)
    return _hidden_states(models, encoder, outputs), outputs[0] if outputs[0].ndim == 2 else None


def _hidden_states(models: StableDiffusion, encoder: PreTrainedModel, outputs: Any) -> torch.Tensor:
    """Choose the layer that the UNet reads.

    Clip skip counts as in the WebUI: 1 is the encoder's output, n the final norm of the n-th layer from the end. SDXL
    reads the second to last layer without the norm; there it applies to the first encoder, like the WebUI's setting
    "clip skip SDXL".
    """
    clip_skip = models.base.clip_skip
    if models.base.is_xl:
        is_first = encoder is models.text_encoders[0]
        return outputs.hidden_states[-clip_skip if is_first else -2]
    if clip_skip == 1:
        return outputs.last_hidden_state
    norm = getattr(encoder, "text_model", encoder).final_layer_norm  # CLIPTextModelWithProjection wraps it
    return norm(outputs.hidden_states[-clip_skip])


def apply_emphasis(hidden: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Scale each token's vector by its weight, then restore each chunk's mean, as the WebUI's "Original" does.

    A chunk whose weights are all 1 is not changed, bit for bit.

    Args:
        hidden: (chunks, 77, width).
        weights: (chunks, 77), on the CPU, where comparing them does not wait for a GPU.
    """
    if bool((weights == 1).all()):
        return hidden
    weights = weights.to(hidden.device, non_blocking=True)
    weighted = hidden * weights[..., None].to(hidden.dtype)
    restored = weighted * (hidden.mean((1, 2), keepdim=True) / weighted.mean((1, 2), keepdim=True))
    return torch.where((weights == 1).all(1)[:, None, None], hidden, restored)


# --- Chunks of tokens


def read_prompt(models: StableDiffusion, tokenizer: CLIPTokenizer, prompt: str) -> tuple[list[Chunk], int, int]:
    """Return a prompt's chunks, how many tokens --max_token_chunks cuts off, and how many there were."""
    source = models.base.source
    texts = parse_emphasis(prompt) if source.prompt_emphasis else [(unescape(prompt), 1.0)]
    tokens = [(None if text is BREAK else _tokenize(tokenizer, text), weight) for text, weight in texts]
    comma = tokenizer.convert_tokens_to_ids(COMMA)
    chunks = make_chunks(tokens, comma if comma != tokenizer.unk_token_id else None, tokenizer.model_max_length - 2)
    limit = source.max_token_chunks
    return chunks[:limit], sum(map(len, chunks[limit:])) if limit else 0, sum(map(len, chunks))


def _tokenize(tokenizer: CLIPTokenizer, text: str) -> list[int]:
    return tokenizer(plain(text), add_special_tokens=False, verbose=False).input_ids


def make_chunks(texts: Iterable[tuple[list[int] | None, float]], comma: int | None, length: int = 75) -> list[Chunk]:
    """Distribute tokens with their weights over chunks of at most `length`; (None, weight) starts a new one.

    If a comma is among the last 20 tokens of a full chunk, the tokens after it move to the next one, so that tags
    stay whole, as in the WebUI.
    """
    chunks: list[Chunk] = []
    chunk: Chunk = []
    last_comma = None  # its index in the chunk
    for tokens, weight in texts:
        if tokens is None:
            chunks.append(chunk)
            chunk, last_comma = [], None
            continue
        for token in tokens:
            if len(chunk) == length:
                split = length
                if token != comma and last_comma is not None and length - last_comma <= BACKTRACK:
                    split = last_comma + 1
                chunks.append(chunk[:split])
                chunk, last_comma = chunk[split:], None
            elif token == comma:
                last_comma = len(chunk)
            chunk.append((token, weight))
    return [*chunks, chunk] if chunk or not chunks else chunks


def token_ids(tokenizer: CLIPTokenizer, chunk: Chunk) -> list[int]:
    """Return start token, the chunk's tokens, end token, and padding to the tokenizer's length (77)."""
    ids = [tokenizer.bos_token_id, *(token for token, _ in chunk), tokenizer.eos_token_id]
    return ids + [tokenizer.pad_token_id] * (tokenizer.model_max_length - len(ids))


def _weights(tokenizer: CLIPTokenizer, chunk: Chunk) -> list[float]:
    """Return the weight of each of `token_ids`: 1 for the added ones."""
    rest = tokenizer.model_max_length - 1 - len(chunk)
    return [1.0, *(weight for _, weight in chunk), *[1.0] * rest]


def truncated_prompts(models: StableDiffusion, prompts: Iterable[str]) -> list[tuple[str, int, int]]:
    """Return the prompts that --max_token_chunks truncates, each with the number of tokens it loses and has."""
    read = [(prompt, *read_prompt(models, models.tokenizers[0], prompt)[1:]) for prompt in prompts]
    return [(prompt, lost, count) for prompt, lost, count in read if lost]


def truncation_note(
    models: StableDiffusion, prompts: Sequence[str], images: dict[str, str] | None = None
) -> str | None:
    """Return a line to print if --max_token_chunks truncates prompts, which names the one that loses most.

    Args:
        images: prompt -> name of its image, to name instead of the prompt.
    """
    limit = models.base.source.max_token_chunks
    truncated = truncated_prompts(models, dict.fromkeys(prompts)) if limit else []
    if not truncated:
        return None
    prompt, lost, count = max(truncated, key=lambda each: each[1])
    name = images[prompt] if images else f'"{prompt[:40]}..."'
    return f"note: --max_token_chunks {limit} truncates {counted(len(truncated), 'prompt')}; {name} loses {lost} of {count} tokens"


def embeds_key(prompt: str) -> str:
    """Return the cache key of a prompt's embeddings, with a prefix if `plain` changes the prompt.

    Older versions encoded such a prompt unchanged and used the prompt itself as the key.
    """
    return prompt if plain(prompt) == prompt else f"plain: {prompt}"


def text_hash(models: StableDiffusion) -> str:
    """Return ten hex digits that change with everything that shapes an embedding: tokenizers, encoders, options."""
    parts: list[Any] = []
    for tokenizer, encoder in zip(models.tokenizers, models.text_encoders):
        config = config_items(encoder.config.to_dict(), "transformers_version", "dtype")
        special = tokenizer.model_max_length, tokenizer.pad_token_id
        parts += [sorted(tokenizer.get_vocab().items()), special, config, weights_hash(encoder)]
    base = models.base
    options = base.clip_skip, base.source.max_token_chunks, base.source.prompt_emphasis, base.zeros_for_empty_prompt
    return parts_hash(*parts, options)
