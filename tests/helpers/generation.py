"""Generate images with diffusers alone to compare ours with, run the scripts' `main`, and take grids apart."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

import hypernet


def max_difference(a: Image.Image | str | Path, b: Image.Image | str | Path) -> int:
    """Return the largest difference of two images, or image files, in any pixel and channel."""
    a, b = (np.asarray(image if isinstance(image, Image.Image) else Image.open(image), np.int16) for image in (a, b))
    return int(np.abs(a - b).max())


def reference_image(
    pipe: DiffusionPipeline, stack: Sequence[tuple[Path | str, float]], prompt: str, seed: int = 0, **options: Any
) -> Image.Image:
    """Generate an image with diffusers' own pipeline and (path, strength) of hypernetworks."""
    for path, strength in stack:
        hypernet.attach(pipe.unet, hypernet.load(path), strength)
    image = pipe(prompt, generator=torch.Generator().manual_seed(seed), **options).images[0]
    hypernet.detach(pipe.unet)
    return image


def run_main(script: ModuleType, arguments: Sequence[object]) -> list[str]:
    """Call the `main` of a script and return the lines it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        script.main([str(argument) for argument in arguments])
    return printed.getvalue().splitlines()


def grid_cell(
    grid: Image.Image, row: int, column: int, shape: tuple[int, int], side: int = 64, gap: int = 3
) -> Image.Image:
    """Cut a cell out of a labeled grid of `shape` (rows, columns): cells are at the lower right, each followed by a gap."""
    left, top = (size - (count - i) * (side + gap) for size, count, i in zip(grid.size, shape[::-1], (column, row)))
    return grid.crop((left, top, left + side, top + side))
