#!/usr/bin/env python
"""Train a Stable Diffusion hypernetwork on a folder of images.

    accelerate launch train_hypernetwork.py --config examples/quickstart.yaml

    accelerate launch train_hypernetwork.py \\
        --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5 \\
        --train_data_dir my_pictures --output_dir output/my_style \\
        --mixed_precision fp16 --learning_rate "5e-5:2000, 5e-6:6000" \\
        --validation_prompt "a house by the sea" --validation_steps 500

To resume, run the same command again.
"""

import datetime
import json
import math
import os
import shlex
import time
from pathlib import Path

from hypernet.script import run_script

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs, ProjectConfiguration, set_seed
from tqdm.auto import tqdm

import hypernet
from hypernet.cache import check_cache_folder
from hypernet.command_line import parse_config
from hypernet.config import TrainingConfig
from hypernet.dataset import EpochBatches, build_loader, describe_data, encode_dataset
from hypernet.errors import UserError
from hypernet.initial import open_initial
from hypernet.inspection import find_pictures
from hypernet.loss import diffusion_loss, diffusion_target
from hypernet.models import (
    check_resolution,
    choose_widths,
    encode_prompts,
    load_models,
    load_sampler,
    model_name,
    vae_precision,
    weight_dtype,
    weights_hash,
)
from hypernet.output import OutputFolder
from hypernet.plot import plot_losses
from hypernet.preview import Previewer, labelled_grid
from hypernet.replacing import replacing
from hypernet.report import (
    check_hub_login,
    choose_trackers,
    log_previews,
    push_to_hub,
    start_trackers,
    wandb_sync_line,
    write_card,
)
from hypernet.seeds import derive_seed
from hypernet.sources import open_source
from hypernet.readers import comfyui_reads

POSITION = "position.json"  # within a training state: which batch comes next


def main(arguments=None):
    # What the user may have got wrong, before anything slow
    config = parse_config(arguments)
    initial = open_initial(config)
    widths = choose_widths(config)
    multiple = check_resolution(config)
    output = OutputFolder(config)
    changes = output.check(config.overwrite)
    state = None if config.overwrite else output.find_state(config.resume_from_checkpoint)
    trackers = choose_trackers(config)
    check_hub_login(config)
    check_cache_folder(config.cache_dir)
    source = open_source(config)
    accelerator = build_accelerator(config, output, trackers)

    # Images, looked at but not encoded yet
    with accelerator.local_main_process_first():
        pictures, problems = find_pictures(source, config, multiple)
    batches = EpochBatches(
        pictures, config.train_batch_size, config.seed, accelerator.num_processes, accelerator.process_index
    )
    accelerator.print(describe_data(source, pictures, problems, batches, config))

    # Models
    accelerator.print(f"Loading {config.pretrained_model_name_or_path}")
    dtype = weight_dtype(accelerator.mixed_precision)
    path, device = config.pretrained_model_name_or_path, accelerator.device
    models = load_models(path, config.revision, config.variant, dtype, device)
    unet = models.unet
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()

    # Data
    with accelerator.local_main_process_first():
        dataset = encode_dataset(models, source, pictures, config, vae_precision(dtype, device))

    # Previews; the first ones show the model without the hypernetwork
    previewer, before = None, None
    if accelerator.is_main_process:
        output.create(config.overwrite)
        if config.validation_prompt:
            print("Drawing previews without the hypernetwork")
            previewer = build_previewer(models, config)
            before = previewer.draw(*config.size)
    if dataset.embeds is not None:
        models.text_encoder.to("cpu")
    if previewer is None:
        models.vae.to("cpu")

    # Hypernetwork and optimizer
    set_seed(config.seed)
    hypernetwork = initial.hypernetwork.train() if initial else hypernet.Hypernetwork(widths, **config.structure())
    hypernetwork.register_to_config(
        name=config.name,
        base_model_name=model_name(config.pretrained_model_name_or_path),
        base_model_hash=weights_hash(unet, torch.float16),
    )
    model = hypernet.HypernetworkUNet(unet, hypernetwork)
    optimizer = torch.optim.AdamW(
        hypernetwork.parameters(),
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.adam_weight_decay,
        eps=config.adam_epsilon,
        fused=accelerator.device.type == "cuda",
    )
    model, optimizer = accelerator.prepare(model, optimizer)
    save_only_what_trains(accelerator, hypernetwork, batches)

    # Resume
    schedule, first_step = config.schedule, hypernetwork.config.step
    if state is not None:
        accelerator.load_state(state)
        first_step = hypernetwork.config.step
        if batches.restarts:
            changes.append("the images, or their batches, are others than before: a new epoch begins")
        accelerator.print(f"Going on from {state}, step {first_step}", *changes, sep="\n  ")
        if accelerator.is_main_process:
            output.export(hypernetwork)
    elif initial is not None:
        initial.restore(optimizer)
        accelerator.print(*initial.lines, sep="\n")
    if accelerator.is_main_process:
        output.go_back_to(first_step)
    start_trackers(accelerator, trackers, config, output)
    scheduler = models.scheduler

    # Train
    started, losses = time.monotonic(), []
    stream = iter(build_loader(accelerator, dataset, batches))
    bar = tqdm(
        range(first_step, schedule.last_step),
        initial=first_step,
        total=max(first_step, schedule.last_step),
        desc="Training",
        disable=not accelerator.is_main_process,
    )
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = schedule.at(step)
        for _ in range(config.gradient_accumulation_steps):
            batch = next(stream)
            epoch, epoch_step = batch["epoch"], batch["epoch_step"]
            torch.manual_seed(derive_seed(config.seed, "dropout", epoch, epoch_step, accelerator.process_index))
            with accelerator.accumulate(model):
                latents, noise, timesteps = batch["latents"], batch["noise"], batch["timesteps"]
                noisy = scheduler.add_noise(latents, noise, timesteps)
                if dataset.embeds is None:
                    batch["prompt_embeds"] = encode_prompts(models, batch["prompts"])
                prediction = model(noisy.to(dtype), timesteps, batch["prompt_embeds"].to(dtype))
                target = diffusion_target(scheduler, latents, noise, timesteps)
                loss = diffusion_loss(prediction, target, batch["weights"])
                accelerator.backward(loss)
                if accelerator.sync_gradients and config.max_grad_norm > 0:
                    accelerator.clip_grad_norm_(hypernetwork.parameters(), config.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.detach())

        done, last = step + 1, step + 1 == schedule.last_step
        batches.start = (epoch, epoch_step + 1)  # of the next batch, for the training state
        saves = last or done % config.checkpointing_steps == 0
        if saves or done % config.logging_steps == 0:
            mean = accelerator.reduce(torch.stack(losses).mean(), "mean").item()
            losses.clear()
            bar.set_postfix(loss=f"{mean:.4f}", lr=f"{schedule.at(step):.1e}")
            accelerator.log({"loss": mean, "learning_rate": schedule.at(step), "epoch": epoch}, step=done)
            if accelerator.is_main_process:
                output.log_loss(done, epoch, epoch_step, mean, schedule.at(step))
            if not math.isfinite(mean):
                states = ", ".join(state.name for state in output.states()) or "none"
                raise UserError(
                    f"the loss is {mean} at step {done}: the run has died; go on with a lower --learning_rate "
                    f"from --resume_from_checkpoint NAME, one of: {states}"
                )
        if saves:
            save(accelerator, output, hypernetwork, done, config.checkpoints_total_limit)
        if previewer is not None and done % config.validation_steps == 0 and not last:
            bar.set_description("Drawing previews")
            pictures = preview(previewer, output, config, hypernetwork, before, f"step {done}", f"step-{done:06d}.png")
            log_previews(accelerator, pictures, config.validation_prompt, done)
            bar.set_description("Training")

    # The result: what is drawn here has been saved, converted and loaded again
    if accelerator.is_main_process:
        steps = hypernetwork.config.step
        if previewer is not None:
            hypernet.detach(unet)
            hypernet.attach(unet, hypernet.load(output.webui_file).to(unet.device))
            pictures = preview(previewer, output, config, hypernetwork, before, "with", output.before_after.name)
            log_previews(accelerator, pictures, config.validation_prompt, steps)
        finish(accelerator, output, config, hypernetwork, time.monotonic() - started, steps - first_step)
    accelerator.end_training()


def build_accelerator(config: TrainingConfig, output: OutputFolder, trackers) -> Accelerator:
    precision = config.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION")
    if precision == "fp16" and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise UserError("--mixed_precision fp16: it needs a GPU; on a CPU leave it at no")
    several_on_cpu = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available()
    accelerator = Accelerator(
        cpu=several_on_cpu,  # unless told, Accelerate takes processes without a GPU for unrelated ones
        mixed_precision=config.mixed_precision,
        log_with=trackers or None,
        project_config=ProjectConfiguration(project_dir=str(output.root), logging_dir=str(output.logs)),
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=config.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        # the others wait for the main process while it encodes a large folder, or draws many previews
        kwargs_handlers=[InitProcessGroupKwargs(timeout=datetime.timedelta(hours=6))],
    )
    if accelerator.device.type == "cpu" and torch.get_num_threads() == 1:  # so `accelerate launch` sets it, unasked
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // accelerator.num_processes))
    return accelerator


def build_previewer(models, config: TrainingConfig) -> Previewer:
    """Previews use the model's own sampler, as its pipeline would."""
    scheduler = load_sampler(config.pretrained_model_name_or_path, config.revision)
    return Previewer(
        models,
        scheduler,
        config.validation_prompt,
        config.num_validation_images,
        config.validation_inference_steps,
        config.validation_guidance_scale,
        config.seed,
    )


def save_only_what_trains(accelerator: Accelerator, hypernetwork, batches: EpochBatches):
    """Let training states hold the hypernetwork as it is loaded everywhere, not the frozen UNet around it; and the place."""

    def before_save(models, weights, folder):
        weights.clear()
        hypernet.save(hypernetwork, folder)
        Path(folder, POSITION).write_text(json.dumps(batches.state_dict()), encoding="utf-8")

    def before_load(models, folder):
        models.clear()
        saved = hypernet.load(folder)
        hypernetwork.load_state_dict(saved.state_dict())
        hypernetwork.register_to_config(step=saved.config.step)
        position = Path(folder, POSITION)
        if position.is_file():  # the first version of this script left none
            batches.load_state_dict(json.loads(position.read_text(encoding="utf-8")))

    accelerator.register_save_state_pre_hook(before_save)
    accelerator.register_load_state_pre_hook(before_load)


def save(accelerator: Accelerator, output: OutputFolder, hypernetwork, step: int, limit: int | None):
    """The training state, and beside it the hypernetwork to use, in our format and the WebUI's."""
    hypernetwork.register_to_config(step=step)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        with replacing(output.checkpoint(step)) as temporary:
            accelerator.save_state(temporary)
        output.export(hypernetwork)
        output.prune(limit)
        plot_losses(output.read_losses(), hypernetwork.config.name).save(output.loss_plot)
    accelerator.wait_for_everyone()


def preview(previewer, output, config, hypernetwork, before, label, file_name):
    """Draw the previews as the hypernetwork is now, and save them beside those without it."""
    hypernetwork.eval()
    pictures = previewer.draw(*config.size)
    hypernetwork.train()
    rows = [[*without, *with_it] for without, with_it in zip(before, pictures)]
    labels = ["without"] * config.num_validation_images + [label] * config.num_validation_images
    labelled_grid(rows, config.validation_prompt, labels).save(output.previews / file_name)
    return pictures


def finish(accelerator, output: OutputFolder, config: TrainingConfig, hypernetwork, seconds, steps):
    """Card and push; then tell where everything is and what to do next."""
    lines = [
        f"\n{steps} steps in {seconds:.0f} s; {config.name} has been trained for {hypernetwork.config.step} steps.",
        f"  hypernetwork    {output.root}  (for diffusers: hypernet.load)",
        f"  for the WebUI   {output.webui_file}{'  (for ComfyUI, too)' if comfyui_reads(hypernetwork) else ''}",
        f"  before / after  {output.before_after}" if config.validation_prompt else "",
        f"  loss            {output.loss_plot} and {output.loss_csv}",
        f"  model card      {output.card}",
        wandb_sync_line(accelerator) or "",
    ]
    if config.push_to_hub:
        lines.append(push_to_hub(output, config, hypernetwork))
    else:
        write_card(output, config, hypernetwork, str(output.root))
    prompt = (config.validation_prompt or ["a painting"])[0]
    lines.append("Look at the pictures first. Then draw your own:")
    quoted = shlex.join(["--hypernetwork", str(output.root), "--prompt", prompt])
    lines.append(f"  python examples/generate.py {quoted}")
    accelerator.print("\n".join(line for line in lines if line))


if __name__ == "__main__":
    run_script(main, "stopped; the same command goes on from the last training state, if there is one yet")
