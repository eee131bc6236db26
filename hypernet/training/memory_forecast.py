"""Report before a run begins how much GPU memory it takes, and which options would make it fit.

The figures are counted (see `hypernet.training.memory_peaks`), not estimated. Since more comes on top, a run whose
count does not fit fails, or on Windows may become very slow, and one whose count barely fits may fail.
"""

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Iterator
from typing import Any

import torch

from hypernet.config import TrainingConfig
from hypernet.data.latents import PIXELS_AT_ONCE
from hypernet.stable_diffusion.model import StableDiffusion, vae_dtype
from hypernet.training.memory_counting import ADAMW_8BIT_STATE, ADAMW_STATE
from hypernet.training.memory_peaks import MemoryNeeds, MemoryPeaks, memory_peaks
from hypernet.training.previews import TILE
from hypernet.training.run import Run, RunImages

GIB = 2**30
RESERVE = GIB // 2  # room to leave for what is not counted; docs/speed.md: "another half GiB or more"
COUNTED_FOR = "memory_counted_for"  # in run.json: the GPU and the needs for which a run was counted


def memory_lines(run: Run, images: RunImages, models: StableDiffusion) -> list[str]:
    """Return a line on the memory that a run takes, and a note if it will not fit; nothing where that is not known.

    That is: on CPUs and Apple's GPUs, which share their memory with everything else, and with --compile, which fuses
    operations, so that their intermediate results are never stored. Since counting takes seconds, a run that resumes
    gets no line either, unless it is on another GPU now or its needs have changed.
    """
    device = run.accelerator.device
    if device.type != "cuda" or run.config.compile:
        return []
    with contextlib.suppress(Exception):  # a forecast must not end a run
        needs, (free, total) = needs_of(run, images, models), torch.cuda.mem_get_info(device)
        digest = hashlib.sha256(repr(needs).encode()).hexdigest()[:16]
        counted_for = [torch.cuda.get_device_name(device), total, digest]
        run.folder.extras[COUNTED_FOR] = counted_for
        if run.checkpoint and run.folder.identity.record.get(COUNTED_FOR) == counted_for:
            return []
        return describe_memory(needs, run.config, free + torch.cuda.memory_reserved(device))
    return []


def needs_of(run: Run, images: RunImages, models: StableDiffusion) -> MemoryNeeds:
    """Return what determines the memory of a run."""
    config, initial = run.config, run.initial
    structure = dict(initial.hypernetwork.config) if initial else {"widths": tuple(run.widths), **config.structure()}
    return MemoryNeeds(
        unet=models.unet.config,
        vae=models.vae.config,
        hypernetwork=structure,
        dtype=run.dtype,
        vae_dtype=vae_dtype(run.dtype, run.accelerator.device),
        size=max((record.size for record in images.records), key=math.prod),
        batch_size=config.train_batch_size,
        preview_size=max((each.size for each in run.previews), key=math.prod, default=None),
        previews=config.num_validation_images,
        checkpointing=config.gradient_checkpointing,
        quantize=config.quantize,
        tiling=config.enable_tiling,
        state_ratio=run.state_ratio + bool(config.ema_decay),
        encoder_bytes=sum(
            weight.numel() * weight.element_size() for each in models.text_encoders for weight in each.parameters()
        ),
        encodes_always=(config.shuffle_tags or config.tag_dropout > 0) and not config.caption_variants,
    )


def describe_memory(needs: MemoryNeeds, config: TrainingConfig, free: int) -> list[str]:
    """Return a line on the memory of a run, and a note if the device has or may have too little.

    Args:
        free: bytes that the device has left.
    """
    peaks = memory_peaks(needs)
    parts = [f"encoding {_gib(peaks.encoding)}", f"a step {_gib(peaks.step)}"]
    parts += [f"previews {_gib(peaks.preview)}"] if peaks.preview else []
    line = f"GPU memory: at least {_gib(peaks.highest)} GiB ({', '.join(parts)}); {_gib(free)} GiB is free"
    if _fits(peaks, free):
        return [line]
    if peaks.highest > free:
        problem = "this GPU has too little memory left for the run"
    else:
        problem = f"this GPU may have too little memory left: about {_gib(RESERVE)} GiB more is needed than is counted"
    changes, then = find_remedy(needs, peaks, config, free)
    added = " ".join(f"--{option}" if value is True else f"--{option} {value}" for option, value in changes.items())
    note = f"note: {problem}"
    if added:
        note += f"; {'' if _fits(then, free) else 'even '}with {added} it takes at least {_gib(then.highest)} GiB"
    if then.encoding + RESERVE > free and _encodes_the_same_at_any_size(needs, then):
        note += f"; no option lowers the {_gib(then.encoding)} GiB of encoding, so use a GPU with more memory"
    elif not _fits(then, free):
        note += f"; use a smaller --resolution{' as well' if added else ', or another model'}"
    return [line, note]


def find_remedy(
    needs: MemoryNeeds, peaks: MemoryPeaks, config: TrainingConfig, free: int
) -> tuple[dict[str, Any], MemoryPeaks]:
    """Return options that lower the peak until the run fits, the most harmless first, and the peaks with them."""
    changes: dict[str, Any] = {}
    for options, changed in _remedies(needs, config):
        if _fits(peaks, free) or (peaks.encoding == peaks.highest and "mixed_precision" not in options):
            break  # it fits, or no option lowers the peak: only the precision matters to encoding
        needs_then = dataclasses.replace(needs, **changed)
        peaks_then = memory_peaks(needs_then)
        if peaks_then.highest < peaks.highest:
            needs, peaks, changes = needs_then, peaks_then, changes | options
    return changes, peaks


def _fits(peaks: MemoryPeaks, free: int) -> bool:
    """Whether the run fits, with room for what is not counted."""
    return peaks.highest + RESERVE <= free


def _encodes_the_same_at_any_size(needs: MemoryNeeds, peaks: MemoryPeaks) -> bool:
    """Whether encoding takes as much with smaller images: the VAE encodes more at once, or prompts take the most."""
    return peaks.encoding == needs.encoder_bytes or math.prod(needs.size) <= PIXELS_AT_ONCE["other"]


def _remedies(needs: MemoryNeeds, config: TrainingConfig) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield options that save memory, and what they change in the needs, from the most harmless to the coarsest."""
    half = {"dtype": torch.float16, "vae_dtype": torch.float16}
    if needs.dtype is torch.float32:
        yield {"mixed_precision": "fp16"}, half
    if not needs.checkpointing:
        yield {"gradient_checkpointing": True}, {"checkpointing": True}
    if needs.preview_size and max(needs.preview_size) > TILE and not needs.tiling:
        yield {"enable_tiling": True}, {"tiling": True}
    if needs.previews > 1:
        yield {"num_validation_images": 1}, {"previews": 1}
    batch_size = needs.batch_size // 2
    while batch_size:
        accumulated = -(-needs.batch_size * config.gradient_accumulation_steps // batch_size)
        options = {"train_batch_size": batch_size, "gradient_accumulation_steps": accumulated}
        yield options, {"batch_size": batch_size}
        batch_size //= 2
    if needs.state_ratio >= ADAMW_STATE and config.optimizer == "AdamW":
        yield {"use_8bit_adam": True}, {"state_ratio": needs.state_ratio - ADAMW_STATE + ADAMW_8BIT_STATE}
    if needs.quantize is None:
        yield {"quantize": "int8"}, {"quantize": "int8"}
    if needs.quantize != "nf4":
        yield {"quantize": "nf4"}, {"quantize": "nf4"}


def _gib(size: float) -> str:
    return f"{size / GIB:.1f}"
