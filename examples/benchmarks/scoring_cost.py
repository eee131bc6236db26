#!/usr/bin/env python
"""Count and time what the scores of a run cost beside its previews: a short run of the quickstart.

python examples/benchmarks/scoring_cost.py
python examples/benchmarks/scoring_cost.py -- --validation_inference_steps 25 --num_validation_images 2
"""

import contextlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

from hypernet.cli.script import ScriptParser, quiet_libraries, run_script
from hypernet.cli.training_options import parse_config


class Meter:
    """Counts the images that pass through the UNet, the seconds and the results while one of its parts is active."""

    def __init__(self) -> None:
        self.images: dict[str, int] = {}
        self.results: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self.part = ""

    @contextlib.contextmanager
    def measuring(self, part: str, results: int) -> Iterator[None]:
        """Assign what happens in the block to a part, which gives this many results."""
        outer, self.part, started = self.part, part, time.monotonic()
        try:
            yield
        finally:
            self.part = outer
            self.results[part] = self.results.get(part, 0) + results
            self.seconds[part] = self.seconds.get(part, 0.0) + time.monotonic() - started

    def count(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the UNet."""
        if self.part:
            images = kwargs["sample"] if "sample" in kwargs else args[0]
            self.images[self.part] = self.images.get(self.part, 0) + len(images)


def measure(flags: list[str]) -> Meter:
    """Train for two steps, with an evaluation after each, and return what was measured after the first."""
    import train_hypernetwork
    from hypernet.training.preview_scores import PreviewScores
    from hypernet.training.previews import Previewer

    meter = Meter()
    sample, judge, measure_scores = Previewer.sample_prompt, PreviewScores._judge, PreviewScores.measure

    def counted_sample(previewer: Previewer, *args: Any) -> Any:
        with meter.measuring("sampling", previewer.config.num_validation_images):
            return sample(previewer, *args)

    def counted_judge(scores: PreviewScores, latents: dict, *args: Any) -> Any:
        with meter.measuring("scoring", sum(map(len, latents.values()))):
            return judge(scores, latents, *args)

    def counted_measure(scores: PreviewScores, *args: Any) -> Any:
        if not hooked:
            hooked.append(scores.models.unet.register_forward_pre_hook(meter.count, with_kwargs=True))
            meter.seconds.clear(), meter.results.clear()
        return measure_scores(scores, *args)

    hooked: list[Any] = []
    with (
        tempfile.TemporaryDirectory() as work,
        mock.patch.object(Previewer, "sample_prompt", counted_sample),
        mock.patch.object(PreviewScores, "_judge", counted_judge),
        mock.patch.object(PreviewScores, "measure", counted_measure),
    ):
        options = ["--config=examples/configs/quickstart.yaml", f"--output_dir={work}/run", f"--cache_dir={work}/cache"]
        options += ["--learning_rate=1e-4", "--max_train_steps=2", "--validation_split=0.1", "--validation_steps=1"]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            train_hypernetwork.main(parse_config([*options, *flags]))
    return meter


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("flags", nargs="*", help="more training options, after --")
    args = parser.parse_args()
    quiet_libraries()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.chdir(REPO)  # the preset's paths are relative to it
    meter = measure(args.flags)
    each = {
        part: (images / meter.results[part], meter.seconds[part] / meter.results[part])
        for part, images in meter.images.items()
    }
    for part, (images, seconds) in each.items():
        print(f"{part} a preview: {images:.0f} images through the UNet, {seconds:.2f} s")
    ratios = [one / other for one, other in zip(each["scoring"], each["sampling"])]
    print(f"scoring costs {ratios[0]:.2f} times the preview by count, {ratios[1]:.2f} by time")


if __name__ == "__main__":
    run_script(main)
