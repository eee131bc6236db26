"""The UNet's inputs besides noisy latents and timesteps: text embeddings, and SDXL's sizes."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from hypernet.stable_diffusion.text_encoding import Embeds

Conditions = dict[str, Any]  # tensors by the names of the UNet's arguments, some of them in a nested dict


def build_conditions(embeds: list[Embeds], time_ids: torch.Tensor | None = None) -> Conditions:
    """Return the UNet's arguments for a batch of prompts.

    Shorter prompts are padded with zeros, which a mask excludes. So no image depends on the others in its batch.

    Args:
        time_ids: (B, 6), for SDXL: height and width of the original, top and left of the crop, target height and width
            (Podell et al. 2023, section 2.2).
    """
    lengths = [len(tokens) for tokens, _ in embeds]
    padded = torch.nn.utils.rnn.pad_sequence([tokens for tokens, _ in embeds], batch_first=True)
    conditions: Conditions = {"encoder_hidden_states": padded}  # (B, tokens, text width)
    if len(set(lengths)) > 1:
        positions = torch.arange(padded.shape[1], device=padded.device)
        mask = positions < torch.tensor(lengths).to(padded.device, non_blocking=True)[:, None]  # (B, tokens)
        conditions["encoder_attention_mask"] = mask
    if time_ids is not None:
        pooled = torch.stack([each.pooled for each in embeds if each.pooled is not None])  # (B, pooled width)
        conditions["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": time_ids}
    return conditions


def cast_conditions(conditions: Conditions, device: torch.device | None, dtype: torch.dtype) -> Conditions:
    """Move to a device (None: stay) and cast the embeddings to the UNet's precision, but not sizes and mask."""
    kept = ("time_ids", "encoder_attention_mask")
    return {
        key: cast_conditions(value, device, dtype)
        if isinstance(value, dict)
        else value.to(device, value.dtype if key in kept else dtype)
        for key, value in conditions.items()
    }


def take_first(conditions: Conditions, count: int) -> Conditions:
    """Return the conditions of the first `count` images of a batch."""
    return {
        key: take_first(value, count) if isinstance(value, dict) else value[:count] for key, value in conditions.items()
    }


def time_ids(original: tuple[float, float], corner: tuple[float, float], target: tuple[int, int]) -> torch.Tensor:
    """Return SDXL's size conditioning, (6,) float32: (height, width), (top, left), (height, width), all in pixels."""
    return torch.tensor([*original, *corner, *target], dtype=torch.float32)


def pipeline_arguments(
    positive: list[Embeds], negative: list[Embeds], dtype: torch.dtype
) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """Return a pipeline's arguments in place of prompts, and the mask of both, (2 * B, tokens), for `text_mask`."""
    both = cast_conditions(build_conditions([*negative, *positive]), None, dtype)
    tokens, count = both["encoder_hidden_states"], len(positive)
    arguments = {"negative_prompt_embeds": tokens[:count], "prompt_embeds": tokens[count:]}
    for prefix, embeds in (("negative_", negative), ("", positive)):
        pooled = [each.pooled for each in embeds if each.pooled is not None]
        if pooled:
            arguments[f"{prefix}pooled_prompt_embeds"] = torch.stack(pooled).to(dtype)
    return arguments, both.get("encoder_attention_mask")


@contextlib.contextmanager
def text_mask(unet: torch.nn.Module, mask: torch.Tensor | None) -> Iterator[None]:
    """Mask padding tokens in the UNet; diffusers' pipelines have no argument for that.

    Args:
        mask: from `pipeline_arguments`. Without guidance, the pipeline runs only the prompts, the mask's second half.
    """
    if mask is None:
        yield
        return

    def add(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        batch = (kwargs["sample"] if "sample" in kwargs else args[0]).shape[0]
        return args, {**kwargs, "encoder_attention_mask": mask[-batch:].to(module.device)}

    hook = unet.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
