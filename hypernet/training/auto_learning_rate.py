"""Resolve `--learning_rate auto`: reuse the learning rate that the run has already chosen, or run a range test."""

import math

from hypernet.training.accelerator import print_main
from hypernet.training.checkpoint import Checkpointer
from hypernet.training.lr_schedule import POLYNOMIAL_END, auto_factor
from hypernet.training.perturbation import Perturbation
from hypernet.training.range_test import RangeTest, run_range_test
from hypernet.training.run import Run
from hypernet.training.run_folder import RunFolder
from hypernet.training.updater import Updater
from hypernet.utils.errors import UserError
from hypernet.utils.image_grid import save_png

CHOSEN = "tested_learning_rate"  # in run.json: the result of the range test, not multiplied by the factor of "auto:0.5"


def recall_choice(folder: RunFolder, starts_over: bool) -> None:
    """Keep the learning rate that the run in the folder has chosen, so that a resumed run does not repeat the test."""
    chosen = None if starts_over else folder.identity.record.get(CHOSEN)
    if isinstance(chosen, float) and 0 < chosen < math.inf:
        folder.extras[CHOSEN] = chosen


def settle_learning_rate(
    run: Run, updater: Updater, checkpointer: Checkpointer, perturbation: Perturbation, finished: bool
) -> list[str]:
    """Replace `--learning_rate auto` with a number; record and print it.

    All processes call this after the run has resumed.

    Args:
        finished: whether no steps are left, so that nothing is tested.

    Returns:
        The printed lines: one, or none if there is nothing to replace or `finished` without a recorded choice.

    Raises:
        UserError: if no learning rate lowers the loss, or the choice cannot be recorded.
    """
    config, folder = run.config, run.folder
    factor = auto_factor(config.learning_rate)
    if factor is None or (finished and CHOSEN not in folder.extras):
        return []
    if CHOSEN in folder.extras:
        reason = "chosen earlier in this run"
    else:
        print_main(run.accelerator, "Testing learning rates, which takes the time of at most 100 steps")
        test = run_range_test(updater, checkpointer, perturbation)
        if run.accelerator.is_main_process:
            _draw(run, test, None if test.choice is None else factor * test.choice)
        if test.choice is None:
            problem = f"the test found none that lowers the loss (see {folder.learning_rate_plot}); set a number"
            raise UserError(f"--learning_rate {config.learning_rate}: {problem}")
        folder.extras[CHOSEN] = test.choice
        reason = _describe(test)
        if run.accelerator.is_main_process:
            try:  # a resumed run that does not know it would test again, and not be exact
                folder.record(run.orders.begun_by)
            except OSError as error:
                problem = f"the chosen learning rate could not be recorded there ({error.strerror})"
                raise UserError(f"--output_dir {folder.root}: {problem}") from None
    learning_rate = factor * folder.extras[CHOSEN]
    if config.lr_scheduler == "polynomial" and learning_rate <= POLYNOMIAL_END:
        problem = f"it ends at {POLYNOMIAL_END:g}, but the chosen learning rate is only {learning_rate:.2g}"
        raise UserError(f"--lr_scheduler polynomial: {problem}")
    config.learning_rate = f"{learning_rate:.2g}"
    scaled = "" if factor == 1 else f", times {factor:g}"
    line = f"learning rate {config.learning_rate} ({reason}{scaled}), {config.lr_scheduler}"
    print_main(run.accelerator, line)
    return [line]


def _describe(test: RangeTest) -> str:
    """Describe the result of a range test."""
    broken = f", and training diverges at {test.learning_rates[-1]:.1g}" if test.is_broken else ""
    return f"range test: the loss falls fastest from here{broken}"


def _draw(run: Run, test: RangeTest, learning_rate: float | None) -> None:
    """Save the plot of a range test as learning_rate.png."""
    path = run.folder.learning_rate_plot
    with run.failures.tolerate(f"{path} could not be drawn"):
        from hypernet.training.loss_plot import plot_range_test  # loads matplotlib

        save_png(plot_range_test(test, str(run.config.name), learning_rate), path)
