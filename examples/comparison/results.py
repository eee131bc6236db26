"""What a run has left in its folder, and pictures drawn with it from the same noise as with all others."""

import argparse
import csv
import dataclasses
import json
import math
import statistics
import textwrap
from pathlib import Path

from PIL import Image, ImageOps

from examples.comparison.grid import shown
from examples.comparison.runs import Run
from examples.xy_plot import cell_key, draw_missing
from hypernet.cli.generation_options import find_model
from hypernet.cli.training_options import options_to_flags, parse_config
from hypernet.config import parse_size
from hypernet.generation.generator import GenerationSettings
from hypernet.generation.infotext import read_png_infotext

# Options in which runs differ without being other runs
SILENT = {"output_dir", "overwrite", "run_name", "name", "cache_dir", "resume_from_checkpoint", "report_to"}
SILENT |= {"tracker_project_name", "logging_steps", "checkpointing_steps", "checkpoints_total_limit"}
SILENT |= {"validation_prompt", "validation_steps", "num_validation_images", "validation_inference_steps"}
SILENT |= {"validation_guidance_scale", "validation_loss_steps", "enable_tiling"}


@dataclasses.dataclass
class Result:
    """A run and how it went. Losses are pairs (step, loss); what it has not is None."""

    run: Run
    options: dict
    problem: str | None
    losses: list[tuple[int, float]]
    held_out: list[tuple[int, float]]
    step: int | None = None
    val_loss: float | None = None  # of what is exported
    val_loss_base: float | None = None  # of the model without a hypernetwork
    best_val_loss: float | None = None
    best_step: int | None = None
    guard_returns: int = 0
    reached: int | None = None  # the first step at which the held-out loss was as low as --reach
    images_per_second: float | None = None
    peak_memory_gib: float | None = None
    file_bytes: int | None = None

    @property
    def last_loss(self) -> float | None:
        """The mean of the last tenth of the logged losses."""
        last = [loss for _, loss in self.losses[-max(1, len(self.losses) // 10) :]]
        return statistics.fmean(last) if last else None

    @property
    def rank(self) -> tuple:
        """What runs are sorted by: held-out loss, where there is none the last training loss; failed ones come last."""
        losses = (self.val_loss, self.last_loss)
        values = [math.inf if loss is None or not math.isfinite(loss) else loss for loss in losses]
        return self.problem is not None, *values

    @property
    def can_draw(self) -> bool:
        return (self.run.folder / "config.json").is_file()


def read_result(run: Run, problem: str | None, reach: float | None = None) -> Result:
    """The run's tables and files; `problem` says why it has failed."""
    folder = run.folder
    # (one that has failed early has written nothing down)
    options = run.told or vars(parse_config(options_to_flags(run.options)))
    held_out, metrics = _pairs(folder / "validation_loss.csv", "val_loss"), _rows(folder / "metrics.csv")
    end = folder / "result.json"
    ended = json.loads(end.read_text(encoding="utf-8")) if end.is_file() else {}
    if not ended and problem is None:
        problem = f"not finished, at step {metrics[-1]['step'] if metrics else 0}"
    webui_file = folder / f"{options.get('name')}.pt"
    if held_out:  # one that has not ended has its last measurement
        ((_, base), *_) = _pairs(folder / "validation_loss.csv", "val_loss_base")
        ended = {"val_loss": held_out[-1][1], "val_loss_base": base, **ended}
    names = {field.name for field in dataclasses.fields(Result)}
    return Result(
        run,
        options,
        problem,
        _pairs(folder / "hypernetwork_loss.csv", "loss"),
        held_out,
        reached=next((step for step, loss in held_out if reach is not None and loss <= reach), None),
        images_per_second=_of(metrics, "images_per_second", statistics.median),
        peak_memory_gib=_of(metrics, "peak_memory_gib", max),
        file_bytes=webui_file.stat().st_size if webui_file.is_file() else None,
        **{key: value for key, value in ended.items() if key in names},
    )


def _rows(path: Path) -> list[dict]:
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]


def _pairs(path, column) -> list[tuple[int, float]]:
    return [(int(row["step"]), float(row[column])) for row in _rows(path)]


def _of(rows, column, summary):
    values = [float(row[column]) for row in rows if row.get(column)]
    return summary(values) if values else None


def differing(results: list[Result]) -> list[str]:
    """The options in which the runs differ, in the order of the training's own list."""
    keys = dict.fromkeys(key for result in results for key in result.options)
    return [key for key in keys if key not in SILENT and len({shown(r.options.get(key)) for r in results}) > 1]


def label_of(result: Result, results: list[Result]) -> str:
    """What tells a run of a grid from the others; one that was there already has its folder's name."""
    told = [f"{key} {short(result.options.get(key))}" for key in differing(results)]
    return ", ".join(told if result.run.options else []) or result.run.name


def short(value) -> str:
    """An option's value, of a path its end, at most forty letters of it."""
    text = shown(value)
    text = Path(text).name if "/" in text else text
    return textwrap.shorten(text, 40, placeholder="…") if " " in text else text[:40]


# --- Pictures


@dataclasses.dataclass
class Previews:
    """Files of pictures, rows of columns, and what stands beside and above them."""

    rows: list[str]
    columns: list[str]
    paths: list[list[Path]]


def draw_previews(
    results: list[Result], folder: Path, prompts: list[str] | None, most: int, order: list[Run]
) -> Previews | None:
    """The same prompts and seeds without a hypernetwork and with the first `most` runs; what is there is not drawn again.

    They stand in the runs' own order, since the one of lowest loss is not always the one to like.

    Seeds begin at 0 whatever `--seed` a run was trained with. None if no run can draw, or nothing says what.
    """
    drawing = [result for result in results if result.can_draw][:most]
    prompts = prompts or next(
        (r.options["validation_prompt"] for r in drawing if r.options.get("validation_prompt")), []
    )
    if not drawing or not prompts:
        print(
            "no pictures: "
            + ("no run has a --validation_prompt; name one with --prompt" if drawing else "no run to draw with")
        )
        return None
    count = max(int(result.options.get("num_validation_images") or 1) for result in drawing)
    lines = [(prompt, seed) for prompt in prompts for seed in range(count)]
    labels = [f"{prompt}, seed {seed}" if count > 1 else prompt for prompt, seed in lines]
    drawing.sort(key=lambda result: order.index(result.run))
    columns, paths = [], []
    wanted: dict = {}  # source -> {file: settings}
    for result in drawing:
        source = _model(result)
        new = source not in wanted
        files = wanted.setdefault(source, {})
        label = label_of(result, results)
        for column, stack in [("without", ())] * new + [(label, ((str(result.run.folder), 1.0),))]:
            cells = [_settings(result, prompt, seed, stack) for prompt, seed in lines]
            columns.append(column)
            paths.append([folder / f"{cell_key(cell, source.identity())}.png" for cell in cells])
            files.update(zip(paths[-1], cells))
    for source, files in wanted.items():
        missing = {path: cell for path, cell in files.items() if read_png_infotext(path) is None}
        if missing:
            folder.mkdir(parents=True, exist_ok=True)
            draw_missing(missing, source, batch_size=1)
    return Previews(labels, columns, [list(row) for row in zip(*paths)])


def _model(result):
    return find_model(
        argparse.Namespace(model=None), [result.options], f"{result.run.folder}: its run.json names no model"
    )


def _settings(result: Result, prompt: str, seed: int, stack) -> GenerationSettings:
    options = result.options
    return GenerationSettings(
        prompt=prompt,
        seed=seed,
        steps=int(options.get("validation_inference_steps", 25)),
        guidance_scale=float(options.get("validation_guidance_scale", 7.5)),
        size=parse_size(str(options.get("resolution", 512))),
        hypernetworks=stack,
    )


def open_pictures(previews: Previews, side: int | None = None) -> list[list[Image.Image]]:
    """The pictures as they are, or all fitted into the same white square of `side` pixels."""
    rows = [[Image.open(path).convert("RGB") for path in row] for row in previews.paths]
    if side is None:
        return rows
    how = {"method": Image.Resampling.LANCZOS, "color": "white"}
    return [[ImageOps.pad(image, (side, side), **how) for image in row] for row in rows]
