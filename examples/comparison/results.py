"""Read the results of runs from their folders, and find the options in which the runs differ."""

import dataclasses
import math
import statistics
import textwrap
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

from examples.comparison.grid import format_value
from examples.comparison.runs import Run
from examples.comparison.validation_sets import ValidationSet
from hypernet.config import TrainingConfig
from hypernet.training.run_folder import SCORE_COLUMNS, RunFolder
from hypernet.training.run_options import BEGUN_BY, PREVIEW_SEED, PREVIEWS
from hypernet.utils.errors import UserError, reason
from hypernet.utils.reading import read_json_object

# Options that do not count as a difference between runs
IGNORED = {"output_dir", "overwrite", "run_name", "name", "cache_dir", "resume_from_checkpoint", "report_to"}
IGNORED |= {"tracker_project_name", "logging_steps", "checkpointing_steps", "checkpoints_total_limit"}
IGNORED |= {"validation_prompt", "validation_steps", "num_validation_images", "validation_inference_steps"}
IGNORED |= {"validation_prompts_file", "validation_negative_prompt", "validation_sampler", "validation_resolution"}
IGNORED |= {"validation_seed", "validation_guidance_scale", "validation_loss_steps", "enable_tiling"}
IGNORED |= {BEGUN_BY, PREVIEWS, PREVIEW_SEED}
SCORES = SCORE_COLUMNS[1:]


@dataclasses.dataclass
class Result:
    """A run and its outcome. Losses are (step, loss) pairs; None means not measured.

    The fields from `step` to `file_bytes` are columns of compare.csv; some are read from result.json.

    Attributes:
        validation_images: SHA-256 of the validation images; empty without any.
        validation_set: what the run was measured on, once `find_validation_sets` has found it.
    """

    run: Run
    options: dict[str, Any]
    problem: str | None  # why it failed or has not finished
    losses: list[tuple[int, float]]
    val_losses: list[tuple[int, float]]
    validation_images: frozenset[str] = frozenset()
    validation_set: ValidationSet | None = None
    step: int | None = None
    prompt_fidelity: float | None = None  # of the exported hypernetwork, like the next three
    style_distance: float | None = None
    score: float | None = None
    val_loss: float | None = None
    val_loss_base: float | None = None  # of the base model alone
    best_val_loss: float | None = None
    best_step: int | None = None
    guard_returns: int = 0  # rollbacks
    reached: int | None = None  # first step with a validation loss as low as --reach
    images_per_second: float | None = None
    peak_memory_gib: float | None = None
    file_bytes: int | None = None

    @property
    def last_loss(self) -> float | None:
        """The mean of the last tenth of the logged training losses."""
        last = [loss for _, loss in self.losses[-max(1, len(self.losses) // 10) :]]
        return statistics.fmean(last) if last else None

    @property
    def has_scores(self) -> bool:
        """Whether prompt fidelity and style distance are known."""
        return all(value is not None and math.isfinite(value) for value in (self.prompt_fidelity, self.style_distance))

    @property
    def can_generate(self) -> bool:
        """Whether the run has exported a hypernetwork."""
        return (self.run.folder / "config.json").is_file()


def read_result(run: Run, problem: str | None, reach: float | None = None) -> Result:
    """Read the tables and files of a run.

    Args:
        problem: why the run failed, or None.
        reach: the validation loss to look for.
    """
    # a run that failed early has not recorded its options
    options = run.recorded_options or vars(run.parse_config())
    folder = _open_folder(run.folder, options)
    metrics, validation = folder.metrics.rows(), folder.validation_losses.rows()
    val_losses = _pairs(validation, "val_loss")
    outcome = _read_outcome(folder.result) if run.is_finished else {}
    if not outcome and problem is None:
        problem = f"not finished, at step {metrics[-1]['step'] if metrics else 0}"
    # for an unfinished run, its last measurements
    if not outcome:
        scores = folder.scores.rows()
        outcome = {name: _summarize(scores, name, itemgetter(-1)) for name in SCORES}
    losses = {name: _summarize(validation, name, itemgetter(-1)) for name in ("val_loss", "val_loss_base")}
    outcome = {**losses, **outcome}
    names = {field.name for field in dataclasses.fields(Result)}
    return Result(
        run,
        options,
        problem,
        _pairs(folder.losses.rows(), "loss"),
        val_losses,
        validation_images=_read_validation_images(folder.validation_images),
        reached=next((step for step, loss in val_losses if reach is not None and loss <= reach), None),
        images_per_second=_summarize(metrics, "images_per_second", statistics.median),
        peak_memory_gib=_summarize(metrics, "peak_memory_gib", max),
        file_bytes=folder.webui_file.stat().st_size if folder.webui_file.is_file() else None,
        **{key: value for key, value in outcome.items() if key in names},
    )


def _read_outcome(path: Path) -> dict[str, Any]:
    """Return the numbers in a result.json.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        outcome = read_json_object(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: it cannot be read ({reason(error)}); train the run again, or leave it out") from None
    return {key: value for key, value in outcome.items() if value is None or type(value) in (int, float)}


def _open_folder(path: Path, options: dict[str, Any]) -> RunFolder:
    """Return the paths and tables of a run; options unknown to this version are ignored."""
    names = {field.name for field in dataclasses.fields(TrainingConfig)} - {"output_dir"}
    known = {name: value for name, value in options.items() if name in names}
    return RunFolder(TrainingConfig(output_dir=str(path), **known))


def _read_validation_images(path: Path) -> frozenset[str]:
    """Return the SHA-256 of the validation images; empty if there are none, or the file is damaged."""
    try:
        return frozenset(read_json_object(path))
    except (OSError, ValueError):
        return frozenset()


def _pairs(rows: list[dict], column: str) -> list[tuple[int, float]]:
    return [(int(row["step"]), float(row[column])) for row in rows if row.get(column)]


def _summarize(rows: list[dict], column: str, function: Callable[[list[float]], float]) -> float | None:
    values = [float(row[column]) for row in rows if row.get(column)]
    return function(values) if values else None


def differing_options(results: list[Result]) -> list[str]:
    """Return the options in which the runs differ, in the order of `--help`."""
    keys = dict.fromkeys(key for result in results for key in result.options)
    return [key for key in keys if key not in IGNORED and len({format_value(r.options.get(key)) for r in results}) > 1]


def shorten_value(value: Any) -> str:
    """Format an option's value for display in at most 40 characters; shorten a path to its last part."""
    text = "default" if value is None else format_value(value)
    text = Path(text).name if "/" in text else text
    return textwrap.shorten(text, 40, placeholder="…") if " " in text else text[:40]
