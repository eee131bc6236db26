"""Embed prompts once and cache them on disk, or embed them at every step if there are too many."""

from collections.abc import Callable, Iterator

import torch

from hypernet.data.arrow_cache import CACHE_VERSION, FLOATS, Row, RowCache, cache_folder
from hypernet.stable_diffusion.model import StableDiffusion
from hypernet.stable_diffusion.text_encoding import Embeds, embeds_key, encode_prompts, read_prompt, text_hash
from hypernet.utils.atomic_files import free_space
from hypernet.utils.errors import is_local_main_process

PROMPTS_AT_ONCE = 32
PromptEmbeds = Callable[[list[str]], list[Embeds]]


class CachedEmbeds:
    """Maps prompts to their embeddings in the cache, float32."""

    def __init__(self, cache: RowCache, prompts: list[str], width: int):
        self.cache, self.width = cache, width
        self.rows = dict(zip(prompts, cache.positions(list(map(embeds_key, prompts))).tolist()))

    def __call__(self, prompts: list[str]) -> list[Embeds]:
        return [self._read(self.rows[prompt]) for prompt in prompts]

    def _read(self, row: int) -> Embeds:
        pooled = self.cache.read(row, "pooled")
        tokens = torch.tensor(self.cache.read(row, "prompt_embeds")).view(-1, self.width)  # (tokens, width)
        return Embeds(tokens, None if pooled is None else torch.tensor(pooled))


class LiveEmbeds:
    """Maps prompts to their embeddings by running the text encoders."""

    def __init__(self, models: StableDiffusion):
        self.models = models

    def __call__(self, prompts: list[str]) -> list[Embeds]:
        return encode_prompts(self.models, prompts)


def open_embeds(models: StableDiffusion, prompts: list[str] | None, cache_dir: str | None) -> PromptEmbeds:
    """Encode the prompts that are not in the cache of these text encoders, with a progress bar.

    Args:
        prompts: every prompt that can occur; None if their number is unlimited.

    Returns:
        `CachedEmbeds`; or `LiveEmbeds` if `prompts` is None or the disk has no room for them, which is printed.
    """
    if prompts is None:
        return LiveEmbeds(models)
    width = sum(encoder.config.hidden_size for encoder in models.text_encoders)
    folder = cache_folder(cache_dir) / f"prompts-{CACHE_VERSION}-{text_hash(models)}"
    cache = RowCache(folder, {"prompt_embeds": FLOATS, "pooled": FLOATS})
    keys = {embeds_key(prompt): prompt for prompt in prompts}
    missing = [prompt for prompt, row in zip(keys.values(), cache.positions(list(keys))) if row < 0]
    tokenizer = models.tokenizers[0]
    chunks = sum(len(read_prompt(models, tokenizer, prompt)[0]) for prompt in missing)
    needed = chunks * tokenizer.model_max_length * width * 4  # bytes
    free = free_space(cache_folder(cache_dir))
    if needed > 0.9 * free:
        if is_local_main_process():
            sizes = f"would take {needed / 1e9:.1f} GB in the cache, where {free / 1e9:.1f} GB are free"
            print(f"{len(prompts)} prompts {sizes}; they are encoded at each step instead")
        return LiveEmbeds(models)

    def encode(items: list[tuple[str, str]]) -> Iterator[Row]:
        for start in range(0, len(items), PROMPTS_AT_ONCE):
            part = items[start : start + PROMPTS_AT_ONCE]
            for (key, _), (tokens, pooled) in zip(part, encode_prompts(models, [prompt for _, prompt in part])):
                pooled = None if pooled is None else pooled.float().cpu().numpy()
                yield {"key": key, "prompt_embeds": tokens.float().cpu().numpy().ravel(), "pooled": pooled}

    cache.fill(keys, encode, "Encoding prompts", "prompts")
    return CachedEmbeds(cache, prompts, width)
