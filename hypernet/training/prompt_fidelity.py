"""Prompt fidelity: do generated images still show their prompts? The base model itself is the judge.

Without the hypernetwork, the model is a classifier (Li et al. 2023, arXiv 2303.16203): it predicts the noise in an
image better with the prompt that the image shows than with another one. By how much, compared with the same image
generated without the hypernetwork, is what is left of the prompt.
"""

import re
import statistics
from collections.abc import Callable, Sequence

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from hypernet.stable_diffusion.conditioning import build_conditions, cast_conditions
from hypernet.stable_diffusion.text_encoding import Embeds
from hypernet.training.loss import prediction_target
from hypernet.utils.hashing import derive_seed

NOISE_LEVELS = (0.3, 0.45, 0.6)  # timesteps as shares of all: composition and subject are decided there
ALTERNATIVES = 3  # prompts that each image is compared with


def choose_alternatives(prompt: str, texts: Sequence[str]) -> list[str]:
    """Return up to `ALTERNATIVES` other texts to compare an image of `prompt` with; the empty prompt if there are none.

    Those that share the most words with it come first: between "a cat on a blue background" and "a dog on a blue
    background" only the subject decides. A text that is a part of the prompt, or contains it, says nothing.
    """
    own = _words(prompt)
    others = {text: _words(text) for text in dict.fromkeys(texts)}
    useful = [text for text, words in others.items() if not words <= own and not own <= words]
    shared = {text: len(own & others[text]) / len(own | others[text]) for text in useful}
    return sorted(useful, key=lambda text: (-shared[text], text))[:ALTERNATIVES] or [""]


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))


@torch.no_grad()
def prompt_margin(
    unet: UNet2DConditionModel,
    scheduler: DDPMScheduler,
    latents: torch.Tensor,
    embeds: list[Embeds],
    time_ids: torch.Tensor | None,
    seed: int,
    batch_size: int,
    check: Callable[[], None] = lambda: None,
) -> float:
    """Return by how much the base model predicts an image better with its own prompt than with the alternatives.

    The difference of mean squared errors, averaged over the alternatives and `NOISE_LEVELS`. All prompts get the same
    noise.

    Args:
        unet: without a hypernetwork, or at strength 0.
        latents: the image, (channels, height, width).
        embeds: of its own prompt, then of the alternatives.
        time_ids: SDXL's for the image, (6,).
        seed: of the noise.
        batch_size: the most prompts per forward pass.
        check: called between forward passes; may raise.
    """
    steps = scheduler.config.num_train_timesteps
    timesteps = torch.tensor([int(level * steps) for level in NOISE_LEVELS], device=latents.device)
    generators = [torch.Generator().manual_seed(derive_seed("prompt margin", seed, level)) for level in NOISE_LEVELS]
    noise = torch.stack([torch.randn(latents.shape, generator=generator) for generator in generators])
    noise = noise.to(latents.device)  # (levels, channels, height, width)
    clean = latents.float().expand_as(noise)
    noisy = scheduler.add_noise(clean, noise, timesteps).to(unet.dtype)
    targets = prediction_target(scheduler, clean, noise, timesteps)
    errors = []  # of each prompt, at all levels
    for at in range(0, len(embeds), batch_size):
        part = embeds[at : at + batch_size]
        ids = None if time_ids is None else time_ids.expand(len(part), -1)
        conditions = cast_conditions(build_conditions(part, ids), latents.device, unet.dtype)
        predictions = []
        for level, timestep in enumerate(timesteps):
            check()
            predictions.append(unet(noisy[level].expand(len(part), -1, -1, -1), timestep, **conditions).sample.float())
        errors += (torch.stack(predictions, 1) - targets).square().mean((1, 2, 3, 4))
    own, *others = torch.stack(errors).tolist()
    return statistics.fmean(others) - own
