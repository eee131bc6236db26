"""Prompts become embeddings: each is encoded once and cached on the disk, or at each step where there is no end of them."""

import shutil
from collections.abc import Callable

import torch

from hypernet.data.arrow_cache import CACHE_VERSION, FLOATS, RowCache, cache_folder
from hypernet.stable_diffusion.model import StableDiffusion
from hypernet.stable_diffusion.text_encoding import Embeds, encode_prompts, read_prompt, text_hash
from hypernet.utils.errors import is_local_main_process

PROMPTS_AT_ONCE = 32
PromptEmbeds = Callable[[list[str]], list[Embeds]]


class CachedEmbeds:
    """Prompts -> their embeddings, float32, read from the cache."""

    def __init__(self, cache: RowCache, prompts: list[str], width: int):
        self.cache, self.width = cache, width
        self.rows = dict(zip(prompts, cache.positions(prompts).tolist()))

    def __call__(self, prompts: list[str]) -> list[Embeds]:
        return [self._read(self.rows[prompt]) for prompt in prompts]

    def _read(self, row) -> Embeds:
        pooled = self.cache.read(row, "pooled")
        tokens = torch.tensor(self.cache.read(row, "prompt_embeds")).view(-1, self.width)
        return Embeds(tokens, None if pooled is None else torch.tensor(pooled))


class EncodedEmbeds:
    """Prompts -> their embeddings, encoded when they are asked for."""

    def __init__(self, models: StableDiffusion):
        self.models = models

    def __call__(self, prompts: list[str]) -> list[Embeds]:
        return encode_prompts(self.models, prompts)


def open_embeds(models: StableDiffusion, prompts: list[str] | None, cache_dir) -> PromptEmbeds:
    """Encode those prompts that have not been encoded yet by these text encoders, with a progress bar.

    Without a list of all (None), and where the disk cannot hold them (a line says so), prompts are encoded when they are
    asked for.
    """
    if prompts is None:
        return EncodedEmbeds(models)
    width = sum(encoder.config.hidden_size for encoder in models.text_encoders)
    folder = cache_folder(cache_dir) / f"prompts-{CACHE_VERSION}-{text_hash(models)}"
    cache = RowCache(folder, {"prompt_embeds": FLOATS, "pooled": FLOATS})
    missing = [prompt for prompt, row in zip(prompts, cache.positions(prompts)) if row < 0]
    length, tokenizer = models.tokenizers[0].model_max_length, models.tokenizers[0]
    needed = sum(len(read_prompt(models, tokenizer, prompt)[0]) for prompt in missing) * length * width * 4  # bytes
    free = shutil.disk_usage(cache_folder(cache_dir)).free
    if needed > 0.9 * free:
        sizes = f"would take {needed / 1e9:.1f} GB in the cache, where {free / 1e9:.1f} GB are free"
        if is_local_main_process():
            print(f"{len(prompts)} prompts {sizes}; they are encoded at each step instead")
        return EncodedEmbeds(models)

    def encode(items):
        for start in range(0, len(items), PROMPTS_AT_ONCE):
            texts = [prompt for prompt, _ in items[start : start + PROMPTS_AT_ONCE]]
            for prompt, (tokens, pooled) in zip(texts, encode_prompts(models, texts)):
                pooled = None if pooled is None else pooled.float().cpu().numpy()
                yield {"key": prompt, "prompt_embeds": tokens.float().cpu().numpy().ravel(), "pooled": pooled}

    cache.fill(dict.fromkeys(prompts), encode, "Encoding prompts", "prompts")
    return CachedEmbeds(cache, prompts, width)


