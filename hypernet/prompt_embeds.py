"""Prompts become embeddings: each is encoded once and cached on the disk."""

import shutil

import torch

from hypernet.cache import CACHE_VERSION, FLOATS, RowCache, cache_folder
from hypernet.errors import is_first
from hypernet.models import StableDiffusion, encode_prompts, text_encoder_hash

PROMPTS_AT_ONCE = 32


class PromptEmbeds:
    """Prompt -> its embedding (tokens, width) float32, read from the cache."""

    def __init__(self, cache: RowCache, prompts: list[str], width: int):
        self.cache, self.width = cache, width
        self.rows = dict(zip(prompts, cache.positions(prompts).tolist()))

    def __getitem__(self, prompt: str) -> torch.Tensor:
        return torch.tensor(self.cache.read(self.rows[prompt], "prompt_embeds")).view(-1, self.width)


def encode_all_prompts(models: StableDiffusion, prompts: list[str], cache_dir) -> PromptEmbeds | None:
    """Encode those prompts that have not been encoded yet with this tokenizer and text encoder, with a progress bar.

    None, with a line that says so, if the disk cannot hold them all.
    """
    width, tokens = models.text_encoder.config.hidden_size, models.tokenizer.model_max_length
    folder = cache_folder(cache_dir) / f"prompts-{CACHE_VERSION}-{text_encoder_hash(models)}"
    cache = RowCache(folder, {"prompt_embeds": FLOATS})
    needed = (cache.positions(prompts) < 0).sum() * tokens * width * 4  # bytes
    free = shutil.disk_usage(cache_folder(cache_dir)).free
    if needed > 0.9 * free:
        sizes = f"would take {needed / 1e9:.1f} GB in the cache, where {free / 1e9:.1f} GB are free"
        if is_first():
            print(f"{len(prompts)} prompts {sizes}; they are encoded at each step instead")
        return None

    def encode(items):
        for start in range(0, len(items), PROMPTS_AT_ONCE):
            texts = [prompt for prompt, _ in items[start : start + PROMPTS_AT_ONCE]]
            for prompt, embeds in zip(texts, encode_prompts(models, texts).cpu().numpy()):
                yield {"key": prompt, "prompt_embeds": embeds.ravel()}

    cache.fill(dict.fromkeys(prompts), encode, "Encoding prompts", "prompts")
    return PromptEmbeds(cache, prompts, width)
