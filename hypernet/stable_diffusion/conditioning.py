"""What a UNet takes beside noisy latents and timesteps: the text, and of SDXL the sizes."""

import contextlib

import torch

from hypernet.stable_diffusion.text_encoding import Embeds


def build_conditions(embeds: list[Embeds], time_ids: torch.Tensor | None = None) -> dict:
    """The UNet's arguments for a batch of prompts, by diffusers' names.

    Prompts of several lengths are filled up with zeros that a mask takes out, so that no image depends on what else is in
    the batch. `time_ids` (B, 6) are SDXL's: height and width of the original, top and left of the crop, height and width
    of the image that is shown (Podell et al. 2023, section 2.2).
    """
    lengths = [len(tokens) for tokens, _ in embeds]
    padded = torch.nn.utils.rnn.pad_sequence([tokens for tokens, _ in embeds], batch_first=True)
    given = {"encoder_hidden_states": padded}  # (B, tokens, text width)
    if len(set(lengths)) > 1:
        places = torch.arange(padded.shape[1], device=padded.device)
        given["encoder_attention_mask"] = places < torch.tensor(lengths, device=padded.device)[:, None]  # (B, tokens)
    if time_ids is not None:
        pooled = torch.stack([pooled for _, pooled in embeds])
        given["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": time_ids}
    return given


def cast_conditions(given: dict, device, dtype: torch.dtype) -> dict:
    """The arguments on a device, the embeddings in the UNet's precision; the sizes stay float32, mask and all."""
    kept = ("time_ids", "encoder_attention_mask")
    return {
        key: cast_conditions(value, device, dtype)
        if isinstance(value, dict)
        else value.to(device, value.dtype if key in kept else dtype)
        for key, value in given.items()
    }


def take_first(given: dict, count: int) -> dict:
    """The arguments of the first `count` images."""
    return {key: take_first(value, count) if isinstance(value, dict) else value[:count] for key, value in given.items()}


def time_ids(original: tuple[float, float], corner: tuple[float, float], shown: tuple[int, int]) -> torch.Tensor:
    """SDXL's six numbers, float32, of (height, width), (top, left), (height, width), all in pixels."""
    return torch.tensor([*original, *corner, *shown], dtype=torch.float32)


def pipeline_arguments(positive: list[Embeds], negative: list[Embeds], dtype: torch.dtype) -> tuple[dict, torch.Tensor]:
    """What a pipeline takes in place of prompts, and the mask of both, (2 * B, tokens): `masked` brings it to the UNet."""
    both = cast_conditions(build_conditions([*negative, *positive]), None, dtype)
    tokens, count = both["encoder_hidden_states"], len(positive)
    given = {"negative_prompt_embeds": tokens[:count], "prompt_embeds": tokens[count:]}
    if positive[0].pooled is not None:
        given["negative_pooled_prompt_embeds"] = torch.stack([pooled for _, pooled in negative]).to(dtype)
        given["pooled_prompt_embeds"] = torch.stack([pooled for _, pooled in positive]).to(dtype)
    return given, both.get("encoder_attention_mask")


@contextlib.contextmanager
def text_mask(unet, mask: torch.Tensor | None):
    """Let the UNet take no notice of what fills shorter prompts up: diffusers' pipelines have no argument for that.

    `mask` is that of `pipeline_arguments`; without guidance the pipeline asks for the second half only.
    """

    def add(module, args, kwargs):
        batch = (kwargs["sample"] if "sample" in kwargs else args[0]).shape[0]
        return args, {**kwargs, "encoder_attention_mask": mask[-batch:].to(module.device)}

    hook = unet.register_forward_pre_hook(add, with_kwargs=True) if mask is not None else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()
