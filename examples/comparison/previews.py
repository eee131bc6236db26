"""Generate the same prompts from the same noise with every run of a comparison."""

import dataclasses
from pathlib import Path

from PIL import Image, ImageOps

from examples.comparison.results import Result, differing_options, shorten_value
from examples.comparison.runs import Run
from examples.xy_plot import cell_key, generate_missing
from hypernet.cli.generation_options import find_model
from hypernet.config import parse_size
from hypernet.generation.generator import GenerationSettings
from hypernet.generation.infotext import read_png_infotext
from hypernet.stable_diffusion.model_source import ModelSource

BASE_LABEL = "base model"


@dataclasses.dataclass
class Previews:
    """A grid of image files and its labels."""

    rows: list[str]  # prompts
    columns: list[str]  # the base model, and each run
    paths: list[list[Path]]  # rows of columns


def generate_previews(
    results: list[Result], runs: list[Run], folder: Path, prompts: list[str] | None, limit: int
) -> Previews | None:
    """Generate with the base model and with the first `limit` results; images that exist are reused.

    The seeds start at 0, whatever `--seed` a run was trained with.

    Args:
        results: best first.
        runs: the same runs in the order of the columns, which is not that of the loss: the lowest one is not always the
            one to like.
        folder: where the images go.
        prompts: default: the --validation_prompt of the best run that has one.

    Returns:
        None if there is no prompt, or no run to generate with.
    """
    chosen = [result for result in results if result.can_generate][:limit]
    prompts = prompts or next(
        (r.options["validation_prompt"] for r in chosen if r.options.get("validation_prompt")), []
    )
    if not chosen or not prompts:
        reason = "no run has a --validation_prompt; name one with --prompt" if chosen else "no run has a hypernetwork"
        print(f"no images: {reason}")
        return None
    chosen.sort(key=lambda result: runs.index(result.run))
    count = max(int(result.options.get("num_validation_images") or 1) for result in chosen)
    lines = [(prompt, seed) for prompt in prompts for seed in range(count)]
    columns: list[str] = []
    paths: list[list[Path]] = []
    wanted: dict[ModelSource, dict[Path, GenerationSettings]] = {}
    for result in chosen:
        source = _base_model(result)
        cells = [_settings(result, prompt, seed) for prompt, seed in lines]
        stack = ((str(result.run.folder), 1.0),)
        trained = [dataclasses.replace(cell, hypernetworks=stack) for cell in cells]
        base = [(BASE_LABEL, cells)] if source not in wanted else []
        for label, column in [*base, (_run_label(result, results), trained)]:
            columns.append(label)
            paths.append([folder / f"{cell_key(cell, source.identity())}.png" for cell in column])
            wanted.setdefault(source, {}).update(zip(paths[-1], column))
    for source, files in wanted.items():
        missing = {path: settings for path, settings in files.items() if read_png_infotext(path) is None}
        if missing:
            folder.mkdir(parents=True, exist_ok=True)
            generate_missing(missing, source, batch_size=1)
    labels = [f"{prompt}, seed {seed}" if count > 1 else prompt for prompt, seed in lines]
    return Previews(labels, columns, [list(row) for row in zip(*paths)])


def _run_label(result: Result, results: list[Result]) -> str:
    """Return the options that tell a run of a grid from the others; the name of a run trained elsewhere."""
    parts = [f"{key} {shorten_value(result.options.get(key))}" for key in differing_options(results)]
    return ", ".join(parts if result.run.options else []) or result.run.name


def _base_model(result: Result) -> ModelSource:
    return find_model([result.options], f"{result.run.folder}: its run.json names no model")


def _settings(result: Result, prompt: str, seed: int) -> GenerationSettings:
    """Return the settings of a run's previews, without its hypernetwork."""
    options = result.options
    return GenerationSettings(
        prompt=prompt,
        seed=seed,
        steps=int(options.get("validation_inference_steps", 25)),
        guidance_scale=float(options.get("validation_guidance_scale", 7.5)),
        size=parse_size(str(options.get("resolution", 512))),
    )


def open_images(previews: Previews, side: int | None = None) -> list[list[Image.Image]]:
    """Open the images as they are, or all fitted into a white square of `side` pixels."""
    rows = [[Image.open(path).convert("RGB") for path in row] for row in previews.paths]
    if side is None:
        return rows
    return [
        [ImageOps.pad(image, (side, side), method=Image.Resampling.LANCZOS, color="white") for image in row]
        for row in rows
    ]
