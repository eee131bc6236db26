#!/usr/bin/env python
"""Train a Stable Diffusion hypernetwork on a folder of images.

    python train_hypernetwork.py --config examples/configs/quickstart.yaml

    python train_hypernetwork.py \\
        --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5 \\
        --train_data_dir my_images --output_dir output/my_style \\
        --mixed_precision fp16 --learning_rate auto --max_train_steps 6000 \\
        --validation_prompt "a house by the sea" --validation_steps 500

To resume, run the same command again. For several GPUs, replace `python` with `accelerate launch`.
"""

from hypernet.cli.option_notes import option_notes
from hypernet.cli.script import quiet_libraries, run_script
from hypernet.cli.training_options import parse_config, run_label

if __name__ == "__main__":
    quiet_libraries()
    CONFIG = run_script(parse_config)  # answer --help and mistakes before importing torch, which takes seconds

import shlex
import time

from accelerate.utils import gather_object
from tqdm.auto import tqdm

from hypernet.config import TrainingConfig
from hypernet.data.dataset import build_loader
from hypernet.data.prompts import with_template_words
from hypernet.formats.compatibility import comfyui_reads
from hypernet.formats.load_save import load
from hypernet.formats.webui import EXTENSION
from hypernet.modeling.attachment import attach, detach
from hypernet.training import setup
from hypernet.training.accelerator import print_main, report_dead_processes
from hypernet.training.auto_learning_rate import CHOSEN, settle_learning_rate
from hypernet.training.checkpoint import Checkpointer
from hypernet.training.divergence_guard import DivergenceGuard
from hypernet.training.lr_schedule import learning_rate_function, learning_rate_schedule
from hypernet.training.model_card import push_to_hub, write_card
from hypernet.training.monitor import Monitor
from hypernet.training.outcome import Outcome
from hypernet.training.perturbation import perturbation_of_first_image
from hypernet.training.previews import Previewer
from hypernet.training.run import Run
from hypernet.training.run_facts import describe_run
from hypernet.training.run_page import RunPage
from hypernet.training.shutdown import Interrupted, ShutdownSignals
from hypernet.training.updater import Updater
from hypernet.utils.errors import UserError, counted
from hypernet.utils.image_grid import save_png


@report_dead_processes()
def main(config: TrainingConfig) -> None:
    # Set up
    run = setup.start_run(config)
    accelerator, folder, device = run.accelerator, run.folder, run.accelerator.device
    signals = ShutdownSignals(accelerator)
    images = setup.find_images(run)
    notes = option_notes(config)
    print_main(accelerator, *(f"note: {note}" for note in notes))
    models = setup.load_base_model(run)
    dataset, validation = setup.encode_data(run, images, models)
    setup.create_folder(run, images)
    previewer, scores, prior = setup.place_models(run, models, dataset, validation)
    if scores is not None and scores.note:
        notes.append(scores.note)
        print_main(accelerator, f"note: {scores.note}")
    trainee = setup.build_trainee(run, models)
    hypernetwork, ema, batches = trainee.hypernetwork, trainee.ema, images.batches
    updater = Updater(run, models, dataset, batches, trainee, prior)
    guard = DivergenceGuard(config.guard, config.min_prompt_fidelity)
    checkpointer = Checkpointer(
        accelerator, folder, hypernetwork, trainee.optimizer, ema, batches, guard, config.checkpoints_total_limit
    )
    perturbation = perturbation_of_first_image(models, dataset, run.dtype, device)
    if run.initial or not config.init_from:  # otherwise, a resumed run does not know its start
        perturbation.start(hypernetwork)
    first_step = step = setup.resume(run, checkpointer, batches)
    last_step = learning_rate_schedule(config).last_step
    notes += settle_learning_rate(run, updater, checkpointer, perturbation, finished=first_step >= last_step)
    if first_step >= last_step:
        accelerator.print(f"This run has {first_step} of {last_step} steps; to continue, raise --max_train_steps")
    run.trackers.start(config, folder, run_label(config), batches.fingerprint)
    monitor = Monitor(run, checkpointer, validation, trainee.bare_model, perturbation, signals, scores)
    outcome = Outcome(monitor)
    state = monitor.state(first_step)
    if monitor.begin(first_step, first_step >= last_step, folder.identity.changed):
        last_step = first_step
    save_discarded(monitor, previewer, first_step, state)
    page = RunPage(folder, run.failures, describe_run(run, images, notes), first_step, last_step)
    print_main(accelerator, f"To watch it train, open {folder.page} in a browser")

    # Train
    learning_rate_at = learning_rate_function(config)
    started, stream, stops = time.monotonic(), iter(build_loader(accelerator, dataset, batches)), False
    bar = tqdm(
        range(first_step, last_step),
        initial=first_step,
        total=max(first_step, last_step),
        desc="Training",
        disable=not accelerator.is_main_process,
    )
    with signals, page:
        if previewer is not None and run.checkpoint and first_step < last_step and previewer.is_due(first_step):
            stops = not preview(monitor, previewer, step, again=True)  # the last run may have been stopped here
        for step_index in [] if stops else bar:
            step_started = time.monotonic()
            learning_rate = learning_rate_at(step_index) * guard.learning_rate_factor
            for _ in range(config.gradient_accumulation_steps):
                batch = next(stream)
                place = batch["epoch"], batch["epoch_step"]
                loss, norm = updater.learn(batch, step_index, learning_rate)
                checkpointer.losses.append(loss)
                checkpointer.grad_norms += [] if norm is None else [norm]
                monitor.images += len(batch["latents"])
            ema.step()

            # Measure, save and preview whatever is due after this step
            step = page.step = step_index + 1
            batches.start = (place[0], place[1] + 1)  # where a resumed run continues
            last = step == last_step
            problem = monitor.measure(step, place, learning_rate, step_started, last)
            stops = signals.stop_wanted()
            saves = last or stops or step % config.checkpointing_steps == 0
            state = monitor.state(step)
            gives_up = monitor.settle(step, problem, last, saves)
            save_discarded(monitor, previewer, step, state)
            bar.set_postfix(monitor.progress, refresh=False)
            ends = last or stops or gives_up
            if saves or gives_up:
                save(monitor, step, ends)
            if outcome.plot(now=ends):
                page.write()
            if previewer is not None and not ends and previewer.is_due(step):
                stops = not preview(monitor, previewer, step)
                page.write()
                if stops and not saves:
                    monitor.settle(step, None, last, saves=True)
                    save(monitor, step, ends=True)
            if stops or gives_up:
                break

        # Finish
        stops = stops and (step < last_step or guard.validation_due)
        if not stops and (previewer or scores):  # preview the exported file as users load it, not the weights in memory
            detach(models.unet)
            attach(models.unet, load(folder.webui_file).to(device))
            stops = not preview(monitor, previewer, step, "with", folder.before_after.name)
            outcome.plot(now=True)  # with the scores of that file
    run.trackers.summarize(outcome.result())
    if stops and accelerator.is_main_process:
        line = f"stopped by {signals.reason} after step {step}; saved; the same command resumes from there"
        print_main(accelerator, line, *folder.finish_tables(), run.trackers.sync_line() or "")
        page.write("stopped")
    elif accelerator.is_main_process:
        prompt = run.previews[0].prompt if run.previews else "a painting"
        prompt = with_template_words(dataset.prompts.templates, prompt, str(config.name))
        report(run, outcome, prompt, time.monotonic() - started, step - first_step)
        page.write("finished", "The divergence guard ended the run early." if guard.has_ended else "")
    run.trackers.finish()
    del trainee, updater  # delete distributed modules before the process group, or both wait forever
    accelerator.free_memory()
    accelerator.end_training()


def save(monitor: Monitor, step: int, ends: bool) -> None:
    """Save a checkpoint.

    Raises:
        UserError: if saving fails and the run `ends` here.
    """
    with monitor.stopwatch.timing("checkpoints"):
        problem = monitor.checkpointer.save(step)
    if problem and ends:
        raise UserError(problem)


def preview(
    monitor: Monitor, previewer: Previewer | None, step: int, label: str = "", file_name: str = "", again: bool = False
) -> bool:
    """Generate previews with the current weights; save, score and log them beside those without the hypernetwork.

    Args:
        previewer: None if there are no previews; other images may still be scored.
        again: whether the last run may have generated and logged the same previews; existing ones are not logged again.

    Returns:
        False if a signal has interrupted the previews.
    """
    checkpointer, folder, signals = monitor.checkpointer, monitor.folder, monitor.signals
    state = (label, step) if label else monitor.state(step)
    images = grid = None
    try:
        with monitor.stopwatch.timing("previews"):
            if previewer is not None:
                with checkpointer.ema.applied():
                    images, grid = previewer.compare(label or f"step {step}", signals.check, state)
            monitor.score(step, state, exported=bool(label))
    except Interrupted:
        return not signals.stop_wanted()
    if previewer is not None and grid is not None:
        path = folder.previews / (file_name or f"step-{step:06d}.png")
        is_known = again and path.exists()
        with monitor.failures.tolerate(f"{path.parent} could not be written to"):
            save_png(grid, path)
        if not is_known:
            monitor.trackers.log_previews(images, previewer.labels, step)
    return True


def save_discarded(monitor: Monitor, previewer: Previewer | None, step: int, state: object) -> None:
    """Save the previews of a state that the guard has discarded, if it was scored by them.

    Args:
        state: of the weights before the guard could act, see `Monitor.state`.
    """
    if previewer is None or monitor.state(step) == state or not all(gather_object([previewer.holds(state)])):
        return
    _, grid = previewer.compare(f"step {step}, discarded", state=state)
    if grid is not None:
        path = monitor.folder.discarded(step)
        with monitor.failures.tolerate(f"{path.parent} could not be written to"):
            save_png(grid, path)


def report(run: Run, outcome: Outcome, prompt: str, seconds: float, steps: int) -> None:
    """Write the result and the model card, push to the Hub if asked to, and print where everything is.

    Args:
        prompt: an example prompt to generate with.
    """
    config, folder, accelerator = run.config, run.folder, run.accelerator
    hypernetwork = outcome.monitor.checkpointer.hypernetwork
    elsewhere = "  (and ComfyUI)" if comfyui_reads(hypernetwork) else ""
    elsewhere = f"  (with {EXTENSION})" if hypernetwork.config.skip_connection else elsewhere
    has_plot = CHOSEN in folder.extras and folder.learning_rate_plot.is_file()
    lines = [
        f"\n{counted(steps, 'step')} in {seconds:.0f} s; {config.name} has been trained for "
        f"{counted(hypernetwork.config.step, 'step')}.",
        f"  hypernetwork    {folder.root}  (for diffusers: hypernet.load)",
        f"  for the WebUI   {folder.webui_file}{elsewhere}",
        f"  before / after  {folder.before_after}" if folder.before_after.is_file() else "",
        f"  the whole run   {folder.page}",
        f"  loss            {folder.loss_plot} and {folder.losses.path}",
        f"  learning rate   {folder.learning_rate_plot}" if has_plot else "",
        *outcome.summary(),
        f"  model card      {folder.card}",
        run.trackers.sync_line() or "",
    ]
    if config.log_artifact:
        run.trackers.log_artifact(config, folder)
    with run.failures.tolerate(f"{folder.card} could not be written"):
        if config.push_to_hub:
            lines.append(push_to_hub(folder, config, run.base, hypernetwork, prompt, outcome.scores, outcome.guarded))
        else:
            write_card(
                folder, config, run.base, hypernetwork, str(folder.root), prompt, outcome.scores, outcome.guarded
            )
    for note in folder.finish_tables():
        run.failures.report(note)
    with run.failures.tolerate(f"{folder.result} could not be written"):
        folder.write_result(outcome.result())
    look_first = (
        "Look at the previews first (if they are not what you want, see examples/docs/fried.md). Then generate:"
    )
    lines.append(look_first if folder.before_after.is_file() else "Generate images with it:")
    flags = ["--hypernetwork", str(folder.root), "--prompt", prompt, *(run.previews[0].flags() if run.previews else [])]
    lines.append(f"  python examples/generate.py {shlex.join(flags)}")
    accelerator.print("\n".join(line for line in lines if line))


if __name__ == "__main__":
    run_script(lambda: main(CONFIG), "stopped; the same command resumes from the last checkpoint, if there is one")
