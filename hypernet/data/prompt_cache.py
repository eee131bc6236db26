"""Embed prompts once and cache them on disk, or embed them at every step if there are too many."""

from collections.abc import Callable, Iterator

import torch

from hypernet.data.arrow_cache import CACHE_VERSION, FLOATS, Pairs, Row, RowCache, cache_folder
from hypernet.data.processes import ALONE, Processes
from hypernet.stable_diffusion.model import StableDiffusion
from hypernet.stable_diffusion.text_encoding import Embeds, embeds_key, encode_prompts, read_prompt, text_hash
from hypernet.utils.atomic_files import free_space

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


def open_embeds(
    models: StableDiffusion, prompts: list[str] | None, cache_dir: str | None, processes: Processes = ALONE
) -> PromptEmbeds:
    """Encode the prompts that are not in the cache of these text encoders, with a progress bar.

    Args:
        prompts: every prompt that can occur; None if their number is unlimited.
        processes: those that share this work. Each calls this with the same prompts.

    Returns:
        `CachedEmbeds`; or `LiveEmbeds` if `prompts` is None or the disk has no room for them, which is printed.
    """
    if prompts is None:
        return LiveEmbeds(models)
    width = sum(encoder.config.hidden_size for encoder in models.text_encoders)
    folder = cache_folder(cache_dir) / f"prompts-{CACHE_VERSION}-{text_hash(models)}"
    cache = RowCache(folder, {"prompt_embeds": FLOATS, "pooled": FLOATS}, processes)
    keys = {embeds_key(prompt): prompt for prompt in prompts}
    missing = [prompt for prompt, row in zip(keys.values(), cache.positions(list(keys))) if row < 0]
    tokenizer, own = models.tokenizers[0], missing[processes.index :: processes.count]
    chunks = sum(processes.share(lambda _: sum(len(read_prompt(models, tokenizer, prompt)[0]) for prompt in own)))
    needed = chunks * tokenizer.model_max_length * width * 4  # bytes
    free = min(processes.gather(free_space(cache_folder(cache_dir))))  # each machine may have a cache of its own
    if needed > 0.9 * free:
        if processes.index == 0:
            sizes = f"would take {needed / 1e9:.1f} GB in the cache, where {free / 1e9:.1f} GB are free"
            print(f"{len(prompts)} prompts {sizes}; they are encoded at each step instead")
        return LiveEmbeds(models)

    def batches(items: Pairs) -> list[Pairs]:
        return [items[start : start + PROMPTS_AT_ONCE] for start in range(0, len(items), PROMPTS_AT_ONCE)]

    def encode(items: Pairs) -> Iterator[Row]:
        for batch in batches(items):
            for (key, _), (tokens, pooled) in zip(batch, encode_prompts(models, [prompt for _, prompt in batch])):
                pooled = None if pooled is None else pooled.float().cpu().numpy()
                yield {"key": key, "prompt_embeds": tokens.float().cpu().numpy().ravel(), "pooled": pooled}

    cache.fill(keys, encode, "Encoding prompts", "prompts", batches)
    return CachedEmbeds(cache, prompts, width)
