"""Set the lowest prompt fidelity of a good state: `--min_prompt_fidelity`, or less if the style itself has less."""

import math

from hypernet.training.accelerator import print_main
from hypernet.training.preview_scores import OWN_FIDELITY, PreviewScores
from hypernet.training.run import Run
from hypernet.training.run_folder import RunFolder

UNRECOGNIZED = 1 / 3  # of the limit: images of a lower prompt fidelity do not tell the style from lost subjects


def fidelity_limit(wanted: float, own: float | None) -> float:
    """Return the limit of a run.

    A hypernetwork that fully matches the style has the prompt fidelity of the style's own images; to ask for more would
    forbid the style. If even they show next to nothing of their captions, `wanted` stays: a lower limit would let ruined
    images pass.

    Args:
        wanted: `--min_prompt_fidelity`.
        own: `PreviewScores.own_fidelity`.
    """
    if own is None or not UNRECOGNIZED * wanted <= own < wanted:
        return wanted
    return math.floor(100 * own) / 100


def recall_own_fidelity(folder: RunFolder, starts_over: bool) -> None:
    """Keep what the run in the folder has measured, so that a resumed run has the same limit."""
    own = None if starts_over else folder.identity.record.get(OWN_FIDELITY)
    if isinstance(own, float) and math.isfinite(own):
        folder.extras[OWN_FIDELITY] = own


def settle_fidelity_limit(run: Run, scores: PreviewScores | None) -> tuple[float, list[str]]:
    """Return the limit, and the lines printed if the style's own images are below `--min_prompt_fidelity`."""
    wanted, own = run.config.min_prompt_fidelity, None if scores is None else scores.own_fidelity
    limit = fidelity_limit(wanted, own)
    if own is None:
        return limit, []
    run.folder.extras[OWN_FIDELITY] = own
    if own >= wanted:
        return limit, []
    line = f"your own images have a prompt fidelity of {own:.2f}"
    if limit < wanted:
        line += f", so {limit:g} is enough in this run, instead of --min_prompt_fidelity {wanted:g}"
    else:
        line += ": either their captions do not describe them, or the base model recognizes nothing in this style and "
        line += (
            "the guard takes the style for lost subjects. If it rolls back good previews, use --min_prompt_fidelity 0"
        )
    print_main(run.accelerator, f"note: {line}")
    return limit, [line]
