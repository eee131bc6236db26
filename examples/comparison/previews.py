"""Generate the same prompts from the same noise with every run of a comparison."""

import dataclasses
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from examples.comparison.results import Result, differing_options, shorten_value
from examples.comparison.runs import Run
from examples.xy_plot import cell_key, generate_missing
from hypernet.cli.generation_options import find_model
from hypernet.config import parse_size
from hypernet.formats.trained_folder import previewed_prompts
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
        results: in the order in which to choose; see `Ranking.results`.
        runs: the same runs in the order of the columns.
        folder: where the images go.
        prompts: with [name] for each run's name. Default: those previewed by the first result that has any, likewise.

    Returns:
        None if there is no prompt, or no run to generate with.
    """
    chosen = [result for result in results if result.can_generate][:limit]
    best = next((r.options for r in chosen if not prompts and previewed_prompts(r.options)), {})
    prompts = prompts or previewed_prompts(best)
    if not chosen or not prompts:
        reason = "no run has a --validation_prompt; name one with --prompt" if chosen else "no run has a hypernetwork"
        print(f"no images: {reason}")
        return None
    chosen.sort(key=lambda result: runs.index(result.run))
    shared = best or chosen[0].options
    count = max(int(result.options.get("num_validation_images") or 1) for result in chosen)
    lines = [(prompt, seed) for prompt in prompts for seed in range(count)]
    columns: list[str] = []
    paths: list[list[Path]] = []
    wanted: dict[ModelSource, dict[Path, GenerationSettings]] = {}
    for result in chosen:
        source = _base_model(result)
        own = own_prompts(result.options, best, prompts)
        cells = [_settings(result.options, shared, prompt, seed) for prompt in own for seed in range(count)]
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


def own_prompts(options: dict[str, Any], best: dict[str, Any], prompts: list[str]) -> list[str]:
    """Return a run's own previewed prompts if they differ from the shared ones only in the name, else `prompts`.

    In the latter, [name] becomes the run's name.

    Args:
        options: of the run.
        best: the options of the run that `prompts` come from; empty if they come from no run.
    """
    own, name, other = previewed_prompts(options), options.get("name"), best.get("name")
    if name and other and [each.replace(name, "") for each in own] == [each.replace(other, "") for each in prompts]:
        return own
    return [prompt.replace("[name]", name or "[name]") for prompt in prompts]


def _run_label(result: Result, results: list[Result]) -> str:
    """Return the options that tell a run of a grid from the others; the name of a run trained elsewhere."""
    parts = [f"{key} {shorten_value(result.options.get(key))}" for key in differing_options(results)]
    return ", ".join(parts if result.run.options else []) or result.run.name


def _base_model(result: Result) -> ModelSource:
    return find_model([result.options], f"{result.run.folder}: its run.json names no model")


def _settings(options: dict[str, Any], shared: dict[str, Any], prompt: str, seed: int) -> GenerationSettings:
    """Return the settings of a run's images, without its hypernetwork.

    Args:
        options: of the run; its resolution is the images' unless the shared previews have one.
        shared: the options of the run whose previews' settings all runs share, so that only the hypernetworks differ.
    """
    return GenerationSettings(
        prompt=prompt,
        negative_prompt=str(shared.get("validation_negative_prompt") or ""),
        seed=seed,
        steps=int(shared.get("validation_inference_steps", 25)),
        guidance_scale=float(shared.get("validation_guidance_scale", 7.5)),
        size=parse_size(str(shared.get("validation_resolution") or options.get("resolution", 512))),
        sampler=shared.get("validation_sampler") or None,
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
