"""Train one run of the study in this process, and measure it."""

import contextlib
import functools
import json
import math
from pathlib import Path

from accelerate.state import AcceleratorState

import train_hypernetwork
from examples.benchmarks.judging import SAMPLING_STEPS, judge_samples, pipeline_with
from examples.benchmarks.sample_scores import SampleScores
from examples.benchmarks.settings_study.rows import RESULT
from examples.benchmarks.settings_study.settings import MODEL, TRAIN_IMAGES, StudyRun
from examples.quickstart.tools.measure import load_pipeline, prompt_scenes, save_sheet
from examples.quickstart.tools.scenes import caption
from hypernet.cli.training_options import options_to_flags, parse_config
from hypernet.utils.errors import UserError

SAMPLES = 36


@functools.cache
def load_scores(data: Path) -> SampleScores:
    """Prepare what scores samples in the style of a data folder, once per process."""
    training = [Path(line) for line in (data / f"train_{TRAIN_IMAGES}.txt").read_text(encoding="utf-8").splitlines()]
    validation = sorted(path for path in (data / "held_out").iterdir() if path.suffix != ".txt")
    prompts = [caption(scene) for scene in prompt_scenes(SAMPLES)]
    return SampleScores(load_pipeline(MODEL), prompts, training, validation, SAMPLING_STEPS)


def measure_run(run: StudyRun) -> dict[str, float]:
    """Train a run, and return its figures by column of settings.csv. What it prints goes to FOLDER.log.

    Raises:
        UserError: if it cannot be trained, or is stopped before its end.
    """
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{run.folder}.log", "w", encoding="utf-8") as log:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            figures = _train(run)
            shares = judge_run(run)
    return {name: value for name, value in {**figures, **shares}.items() if value is not None and math.isfinite(value)}


def _train(run: StudyRun) -> dict[str, float | None]:
    for part in range(len(run.ends)):
        config = parse_config(options_to_flags(run.options(part)))
        AcceleratorState._reset_state(True)
        train_hypernetwork.main(config)
        result = Path(config.output_dir) / "result.json"
        if not result.is_file():
            raise UserError("stopped; the same command resumes")
    figures = json.loads(result.read_text(encoding="utf-8"))
    size = (run.folder / f"{run.style}.pt").stat().st_size
    return {**{name: figures.get(name) for name in RESULT}, "file_bytes": size}


def judge_run(run: StudyRun) -> dict[str, float | None]:
    """Return what the classifier sees in samples: the shares of right subjects and, for a hand it knows, in the style.

    The samples are saved as FOLDER.png.
    """
    seen = judge_samples(pipeline_with(run.folder), run.style, SAMPLES)
    save_sheet(seen.images, Path(f"{run.folder}.png"))
    scores = load_scores(run.data).measure(seen.images)
    return {
        **{f"sample_{name}": value for name, value in scores.items()},
        "style_share": seen.style,
        "subject_share": seen.subject,
    }
