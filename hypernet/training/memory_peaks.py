"""The peak GPU memory of each part of a run, counted on fake tensors or measured on real ones.

Nothing is estimated: what a run does on its device is done once, on tensors of the same shapes. CUDA itself, the workspaces
of its libraries and the allocator's rounding come on top of a count, which is the least that a run takes. (So do the copies
that channels_last makes, since fake weights are contiguous: 3% on a tiny model.)
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from hypernet.config import Quantization
from hypernet.data.latents import PIXELS_AT_ONCE
from hypernet.modeling.attachment import HypernetworkUNet
from hypernet.modeling.hypernetwork import Hypernetwork
from hypernet.stable_diffusion.quantization import quantize
from hypernet.training.compilation import memory_format
from hypernet.training.memory_counting import ADAMW_STATE, FakeOptimizer, compute_norms_in_float32, count_peak_memory
from hypernet.training.previews import enable_tiling

TOKENS = 77  # of a prompt that fits into one chunk


@dataclasses.dataclass(frozen=True)
class MemoryNeeds:
    """Everything that determines how much memory a run takes on its device.

    Attributes:
        unet: the UNet's config.
        vae: the VAE's config.
        hypernetwork: arguments of `Hypernetwork`.
        dtype: precision of the UNet and of the products.
        vae_dtype: precision in which images are encoded.
        size: (width, height) of the largest training image.
        preview_size: (width, height) of the largest preview; None without previews.
        previews: images per prompt, which are generated together.
        state_ratio: bytes of the optimizer's state, and of an EMA, per byte of the weights.
        encoder_bytes: the text encoders' weights.
        encodes_always: whether the text encoders stay on the device while training.
    """

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    hypernetwork: Mapping[str, Any]
    dtype: torch.dtype = torch.float32
    vae_dtype: torch.dtype = torch.float32
    size: tuple[int, int] = (512, 512)
    batch_size: int = 1
    preview_size: tuple[int, int] | None = None
    previews: int = 1
    checkpointing: bool = False
    quantize: Quantization | None = None
    tiling: bool = False
    state_ratio: float = ADAMW_STATE
    encoder_bytes: int = 0
    encodes_always: bool = False


@dataclasses.dataclass(frozen=True)
class MemoryPeaks:
    """Peaks in bytes of the parts of a run, which follow one another.

    Attributes:
        encoding: of the VAE or the text encoders, before the UNet is on the device.
        step: of a training step.
        preview: of decoding a preview, with everything that training holds meanwhile; 0 without previews.
    """

    encoding: int
    step: int
    preview: int

    @property
    def highest(self) -> int:
        """The memory that the device must have."""
        return max(dataclasses.astuple(self))


class Memory(Protocol):
    """What counts or measures memory: `PeakMemory`, or a GPU's allocator."""

    @property
    def peak(self) -> int:
        """The most bytes held at once since `restart`."""

    def restart(self) -> None:
        """Forget the peak so far."""


Meter = Callable[[], AbstractContextManager[Memory]]


def memory_peaks(
    needs: MemoryNeeds, meter: Meter = count_peak_memory, device: torch.device | str = "cpu"
) -> MemoryPeaks:
    """Return the peaks of a run.

    Args:
        meter: makes what counts or measures the memory of its `with` block. By default nothing is computed; another one
            may measure a GPU that computes everything.
        device: where the tensors are; that of fake ones does not matter.
    """
    device, counts = torch.device(device), meter is count_peak_memory
    with meter() as memory:
        _encode(needs, device, counts)
        encoding = max(memory.peak, needs.encoder_bytes)
    with meter() as memory:
        held = _train(needs, device, counts, memory)
        step = memory.peak
        memory.restart()
        if needs.preview_size:
            _decode(needs, device)
        del held
        return MemoryPeaks(encoding, step, memory.peak if needs.preview_size else 0)


def _encode(needs: MemoryNeeds, device: torch.device, counts: bool) -> None:
    """Encode a batch of images as `hypernet.data.latents` does."""
    vae, (width, height) = _build(AutoencoderKL, needs.vae, torch.float32, device), needs.size
    if counts and needs.vae_dtype is not torch.float32:
        compute_norms_in_float32(vae)
    pixels = torch.zeros(max(1, PIXELS_AT_ONCE["other"] // (width * height)), 3, height, width, device=device)
    with torch.no_grad(), _autocast(device, needs.vae_dtype):
        vae.encode(pixels)


def _train(needs: MemoryNeeds, device: torch.device, counts: bool, memory: Memory) -> list[Any]:
    """Take a training step, in which `memory` finds its peak. Return what training holds between two steps."""
    unet = _build(UNet2DConditionModel, needs.unet, needs.dtype, device)
    with torch.device(device):
        hypernetwork = Hypernetwork.from_config(dict(needs.hypernetwork)).train()
        encoders = torch.empty(needs.encoder_bytes * needs.encodes_always, dtype=torch.uint8)
    if counts and needs.dtype is not torch.float32:
        compute_norms_in_float32(unet)
    if needs.quantize:
        quantize(unet, needs.quantize, needs.dtype, device)
    if device.type == "cuda":
        unet.to(memory_format=memory_format(device, compiled=False))
    if needs.checkpointing:
        unet.enable_gradient_checkpointing()
    model = HypernetworkUNet(unet, hypernetwork).train()
    optimizer = FakeOptimizer(hypernetwork.parameters(), needs.state_ratio)
    memory.restart()
    latents, timesteps, conditions = _inputs(needs, device)
    with _autocast(device, needs.dtype):
        prediction = model(latents, timesteps, **conditions)
    prediction.float().square().mean().backward()
    optimizer.zero_grad()
    return [model, optimizer, encoders]


def _inputs(needs: MemoryNeeds, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Return latents (B, C, height, width), timesteps (B,) and the UNet's other arguments."""
    shrink, count, config = _shrink(needs), needs.batch_size, needs.unet
    with torch.device(device):
        channels, (width, height) = config.get("in_channels", 4), needs.size
        latents = torch.zeros(count, channels, height // shrink, width // shrink, dtype=needs.dtype)
        text = torch.zeros(count, TOKENS, config.get("cross_attention_dim", 1280), dtype=needs.dtype)
        conditions: dict[str, Any] = {"encoder_hidden_states": text}
        if config.get("addition_embed_type"):  # SDXL: sizes, each embedded, and pooled text fill the projection's input
            embedded = 6 * config.get("addition_time_embed_dim", 256)
            pooled = torch.zeros(count, config["projection_class_embeddings_input_dim"] - embedded, dtype=needs.dtype)
            conditions["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.zeros(count, 6)}
        return latents, torch.full((count,), 500), conditions


def _decode(needs: MemoryNeeds, device: torch.device) -> None:
    """Decode the previews of a prompt, as `hypernet.training.previews` does."""
    assert needs.preview_size is not None
    vae, (width, height) = _build(AutoencoderKL, needs.vae, torch.float32, device), needs.preview_size
    if needs.tiling:
        enable_tiling(vae)
    shape = (needs.previews, needs.vae.get("latent_channels", 4), height // _shrink(needs), width // _shrink(needs))
    with torch.no_grad():
        vae.decode(torch.zeros(shape, device=device))


def _build(model_class: Any, config: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> Any:
    """Return a frozen model of this config with random weights."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return model_class.from_config(dict(config)).requires_grad_(False).eval()
    finally:
        torch.set_default_dtype(before)


def _autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    return contextlib.nullcontext() if dtype is torch.float32 else torch.autocast(device.type, dtype)


def _shrink(needs: MemoryNeeds) -> int:
    """Return the VAE's downsampling factor."""
    return 2 ** (len(needs.vae.get("block_out_channels", (64,))) - 1)
