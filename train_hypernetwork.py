#!/usr/bin/env python
"""Train a Stable Diffusion hypernetwork on a folder of images.

    accelerate launch train_hypernetwork.py --config examples/configs/quickstart.yaml

    accelerate launch train_hypernetwork.py \\
        --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5 \\
        --train_data_dir my_pictures --output_dir output/my_style \\
        --mixed_precision fp16 --learning_rate "5e-5:2000, 5e-6:6000" \\
        --validation_prompt "a house by the sea" --validation_steps 500

To resume, run the same command again.
"""

import shlex
import time

from hypernet.cli.script import run_script, say

import torch
from accelerate.utils import set_seed
from tqdm.auto import tqdm

import hypernet
from hypernet.stable_diffusion.base_model import check_resolution, choose_widths, recognise
from hypernet.data.arrow_cache import check_cache_folder
from hypernet.training.model_card import check_hub_login, push_to_hub, write_card
from hypernet.training.clipping import clip_gradients
from hypernet.cli.training_options import parse_config, run_label
from hypernet.training.compilation import Compiled, check_compiler, check_shapes, memory_format
from hypernet.stable_diffusion.conditioning import cast
from hypernet.config import TrainingConfig
from hypernet.data.dataset import EpochBatches, build_loader, describe_data, encode_dataset
from hypernet.training.perturbation import measure_first_image
from hypernet.utils.errors import UserError
from hypernet.training.divergence_guard import Guard
from hypernet.training.validation import HeldOutLoss, describe_held_out, encode_held_out, hold_out, open_held_out
from hypernet.training.init_from import open_initial
from hypernet.data.image_index import find_pictures
from hypernet.training.shutdown import Interruption
from hypernet.training.accelerator import build_accelerator, check_shared, choose_precision, others_watched
from hypernet.stable_diffusion.loras import note_loras
from hypernet.training.loss import diffusion_loss, diffusion_target, snr_weights
from hypernet.stable_diffusion.model import load_models, vae_precision, weight_dtype
from hypernet.training.optimizers import build_optimizer, check_optimizer
from hypernet.training.run_folder import OutputFolder
from hypernet.training.previews import Previewer
from hypernet.stable_diffusion.quantization import quantize
from hypernet.training.rates import learning_rate_function
from hypernet.formats.compatibility import comfyui_reads
from hypernet.utils.seeds import derive_seed
from hypernet.data.image_source import open_source
from hypernet.training.trackers import choose_trackers, log_artifact, log_previews, start_trackers, wandb_sync_line
from hypernet.training.checkpoint import TrainingState
from hypernet.stable_diffusion.vae import vae_notes
from hypernet.training.monitor import Watch
from hypernet.training.ema import WeightAverage


def main(arguments=None):
    # What the user may have got wrong, before anything slow
    config = parse_config(arguments)
    choose_precision(config)
    initial = open_initial(config)
    base = recognise(config.model_source)
    widths, multiple = choose_widths(config, base), check_resolution(config, base)
    output = OutputFolder(config)
    changes = output.check(config.overwrite)
    saved, ignored = output.find_state("none" if config.overwrite else config.resume_from_checkpoint)
    trackers = choose_trackers(config)
    check_hub_login(config)
    check_cache_folder(config.cache_dir)
    source, held_folder = open_source(config), open_held_out(config)
    accelerator = build_accelerator(config, output, trackers)
    if accelerator.is_main_process and output.is_begun():
        output.lock()
    check_optimizer(config, accelerator.device)
    if config.compile:
        check_compiler(accelerator.device)

    # Images, looked at but not encoded yet
    with accelerator.local_main_process_first():
        pictures, problems = find_pictures(source, config, multiple)
        if config.holds_out:
            before = {} if config.overwrite else output.read_held_out()
            held_source, held_pictures, pictures = hold_out(source, held_folder, pictures, config, multiple, before)
    batches = EpochBatches(
        pictures, config.train_batch_size, config.seed, accelerator.num_processes, accelerator.process_index
    )
    config.count_steps(len(batches))
    if config.compile:
        check_shapes(batches.shapes)
    accelerator.print(describe_data(source, pictures, problems, batches, config))
    if config.holds_out:
        accelerator.print(describe_held_out(held_source, held_pictures))

    # Models
    accelerator.print(f"Loading {base.describe()}")
    dtype, device = weight_dtype(accelerator.mixed_precision), accelerator.device
    models = load_models(base, dtype, device, waits=True)
    unet, scheduler = models.unet, models.scheduler
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()

    # Data
    held_out, precision = None, vae_precision(dtype, device)
    with accelerator.local_main_process_first():
        dataset = encode_dataset(models, source, pictures, config, precision)
        if config.holds_out:
            held_dataset = encode_held_out(models, held_source, held_pictures, config, precision)
    if config.holds_out:
        held_out = HeldOutLoss(held_dataset, models, accelerator, config.train_batch_size)
    for note in vae_notes(base, dataset.latents):
        accelerator.print(note)

    # Previews; the first ones show the model without the hypernetwork
    if accelerator.is_main_process:
        output.lock()
        output.create(config.overwrite)
        if config.holds_out:
            output.write_held_out({picture.sha256: held_source.name(picture.row) for picture in held_pictures})
    check_shared(accelerator, output, saved)
    previewer = Previewer(models, config, accelerator) if config.validation_prompt else None
    models.on_device(*([] if dataset.is_cached else models.text_encoders))
    base_hash = models.hash  # as it is, before it may be rounded
    if config.quantize:
        quantize(unet, config.quantize, dtype, device)
        accelerator.print(f"The UNet's attention blocks are held in {config.quantize}")
    unet.to(device, memory_format=memory_format(device, config.compile))  # now that the others have gone
    if previewer is not None:
        accelerator.print("Drawing previews without the hypernetwork")
        previewer.without = previewer.draw()

    # Hypernetwork and optimizer
    set_seed(config.seed)
    hypernetwork = initial.hypernetwork.train() if initial else hypernet.Hypernetwork(widths, **config.structure())
    hypernetwork.register_to_config(name=config.name, base_model_name=base.source.name, base_model_hash=base_hash)
    note_loras(hypernetwork, config.lora)
    on_unet = hypernet.HypernetworkUNet(unet, hypernetwork)
    optimizer = build_optimizer(config, hypernetwork.parameters(), device)
    model, optimizer = accelerator.prepare(on_unet, optimizer)
    compiled = Compiled(on_unet, accelerator) if config.compile else None
    average = WeightAverage(hypernetwork, config.ema_decay)
    guard = Guard(watches_loss=config.guard)
    state = TrainingState(accelerator, output, config, hypernetwork, optimizer, average, batches, guard)
    watch = Watch(accelerator, config, output, state, held_out)

    # Resume
    rate_at, last_step = learning_rate_function(config), config.schedule.last_step
    snr_table = snr_weights(scheduler, config.snr_gamma).to(device) if config.snr_gamma else None
    thresholds = config.schedule_of("max_grad_value" if config.clip_grad_mode == "value" else "max_grad_norm")
    accelerator.print(*ignored, sep="\n", end="\n" if ignored else "")
    if saved is not None:
        state.load(saved)
        if batches.restarts:
            changes.append("the images, or their batches, are others than before: a new epoch begins")
        accelerator.print(f"Going on from {saved}, step {hypernetwork.config.step}", *changes, sep="\n  ")
        if accelerator.is_main_process:
            state.export()
    elif initial is not None:
        initial.restore(optimizer)
        accelerator.print(*initial.lines, sep="\n")
    first_step = done = hypernetwork.config.step
    stops = last = False
    if first_step >= last_step:
        accelerator.print(f"This run has made its {last_step} steps; to go on, raise --max_train_steps")
    if accelerator.is_main_process:
        print(*(f"  {line}\n" for line in output.go_back_to(first_step)), sep="", end="")
    start_trackers(accelerator, trackers, config, output, run_label(config, arguments), batches.fingerprint)
    watch.begin(on_unet, measure_first_image(models, dataset, dtype, device), first_step, output.changed)

    # Train
    started, stream = time.monotonic(), iter(build_loader(accelerator, dataset, batches))
    bar = tqdm(
        range(first_step, last_step),
        initial=first_step,
        total=max(first_step, last_step),
        desc="Training",
        disable=not accelerator.is_main_process,
    )
    with Interruption(accelerator) as interruption, others_watched(accelerator):
        for step in bar:
            began, rate = time.monotonic(), rate_at(step) * guard.rate_factor
            for group in optimizer.param_groups:
                group["lr"] = rate
            for _ in range(config.gradient_accumulation_steps):
                batch = next(stream)
                epoch, epoch_step = batch["epoch"], batch["epoch_step"]
                if hypernetwork.config.dropout_structure:
                    torch.manual_seed(derive_seed(config.seed, "dropout", epoch, epoch_step, accelerator.process_index))
                with accelerator.accumulate(model):
                    latents, noise, timesteps = batch["latents"], batch["noise"], batch["timesteps"]
                    noisy = scheduler.add_noise(latents, noise, timesteps).to(dtype)
                    given = cast(dataset.conditions(batch), device, dtype)
                    if compiled is not None:
                        compiled.meet(noisy, timesteps, given)
                    prediction = model(noisy, timesteps, **given)
                    target, weights = diffusion_target(scheduler, latents, noise, timesteps), batch["weights"]
                    if snr_table is not None:
                        weights = weights * snr_table[timesteps].view(-1, 1, 1, 1)
                    loss = diffusion_loss(prediction, target, weights)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        threshold = thresholds.at(step)
                        norm = clip_gradients(accelerator, hypernetwork.parameters(), config.clip_grad_mode, threshold)
                        watch.grad_norms.append(norm)
                    optimizer.step()
                    optimizer.zero_grad()
                    state.losses.append(loss.detach())
                    watch.images += len(latents)
            average.step()

            # What is due after this step
            done, last = step + 1, step + 1 == last_step
            batches.start = (epoch, epoch_step + 1)  # of the next batch, for the training state
            stops = interruption.wants_stop()
            saves = last or stops or done % config.checkpointing_steps == 0
            gives_up = watch.after_step(done, (epoch, epoch_step), rate, began, last, saves)
            bar.set_postfix(watch.shown, refresh=False)
            ends = last or stops or gives_up
            if (saves or gives_up) and not state.save(done) and ends:
                raise UserError("the run ends without having been saved; the same command goes on from what was before")
            watch.plot(now=ends)
            if previewer is not None and not ends and done % config.validation_steps == 0:
                preview(accelerator, previewer, output, config, state, done, f"step {done}", f"step-{done:06d}.png")
            if stops or gives_up:
                break

    # The result: what is drawn here has been saved, converted and loaded again
    if stops and not last:
        stopped = f"stopped by {interruption.reason} after step {done}; saved"
        say(accelerator, f"{stopped}; the same command goes on from there", wandb_sync_line(accelerator) or "")
    else:
        if previewer is not None:
            hypernet.detach(unet)
            hypernet.attach(unet, hypernet.load(output.webui_file).to(unet.device))
            preview(accelerator, previewer, output, config, state, done, "with", output.before_after.name)
        if accelerator.is_main_process:
            finish(accelerator, output, config, base, watch, time.monotonic() - started, done - first_step)
    del model  # what is distributed has to go before the group of processes, or both wait for ever
    accelerator.free_memory()
    accelerator.end_training()


def preview(accelerator, previewer, output: OutputFolder, config: TrainingConfig, state, step, label, file_name):
    """Draw the previews as the hypernetwork is now, and save them beside those without it."""
    state.hypernetwork.eval()
    with state.average.applied():
        pictures, grid = previewer.compare(label)
    state.hypernetwork.train()
    if grid is not None:
        output.save_picture(grid, output.previews / file_name)
        log_previews(accelerator, pictures, config.validation_prompt, step)


def finish(accelerator, output: OutputFolder, config: TrainingConfig, base, watch: Watch, seconds, steps):
    """Card and push; then tell where everything is and what to do next."""
    hypernetwork = watch.state.hypernetwork
    lines = [
        f"\n{steps} steps in {seconds:.0f} s; {config.name} has been trained for {hypernetwork.config.step} steps.",
        f"  hypernetwork    {output.root}  (for diffusers: hypernet.load)",
        f"  for the WebUI   {output.webui_file}{'  (for ComfyUI, too)' if comfyui_reads(hypernetwork) else ''}",
        f"  before / after  {output.before_after}" if config.validation_prompt else "",
        f"  loss            {output.loss_plot} and {output.losses.path}",
        watch.summary(),
        f"  model card      {output.card}",
        wandb_sync_line(accelerator) or "",
    ]
    output.write_result(watch.result())
    if config.log_artifact:
        log_artifact(accelerator, config, output)
    if config.push_to_hub:
        lines.append(push_to_hub(output, config, base, hypernetwork))
    else:
        write_card(output, config, base, hypernetwork, str(output.root))
    prompt = (config.validation_prompt or ["a painting"])[0]
    lines.append("Look at the pictures first. Then draw your own:" if config.validation_prompt else "Draw with it:")
    quoted = shlex.join(["--hypernetwork", str(output.root), "--prompt", prompt])
    lines.append(f"  python examples/generate.py {quoted}")
    accelerator.print("\n".join(line for line in lines if line))


if __name__ == "__main__":
    run_script(main, "stopped; the same command goes on from the last training state, if there is one yet")
