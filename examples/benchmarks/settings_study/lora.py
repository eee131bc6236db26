"""A LoRA of a hypernetwork's size, trained on the same images, noise, timesteps and rate, and measured by the same loss."""

from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

import hypernet
from hypernet.cli.training_options import options_to_flags, parse_config
from hypernet.data.batch_sampler import EpochBatchSampler
from hypernet.data.dataset import encode_dataset
from hypernet.data.image_index import index_images
from hypernet.data.image_source import open_image_source
from hypernet.data.validation_split import encode_validation, open_validation_folder, split_validation
from hypernet.stable_diffusion.base_model import identify_base_model
from hypernet.stable_diffusion.model import load_stable_diffusion
from hypernet.stable_diffusion.model_source import ModelSource
from hypernet.training.loss import diffusion_loss, prediction_target
from hypernet.training.validation import ValidationLoss

TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]  # those of diffusers' example


class OnUNet(torch.nn.Module):
    """What `ValidationLoss` measures: a UNet, and in the place of the hypernetwork nothing."""

    def __init__(self, unet):
        super().__init__()
        self.unet, self.hypernetwork = unet, torch.nn.Identity()


def add_lora(unet, parameters: int, seed: int) -> int:
    """Adapters of that rank at which they have most nearly so many parameters; the rank."""
    layers = [
        module for name, module in unet.named_modules() if name.endswith(tuple(f".{target}" for target in TARGETS))
    ]
    rank = max(1, round(parameters / sum(layer.in_features + layer.out_features for layer in layers)))
    torch.manual_seed(seed)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=TARGETS))
    return rank


def train_lora(options: dict, folder: Path) -> dict:
    """Train with the options of a run and save to `folder`; the row of the table as far as training tells it."""
    config = parse_config(options_to_flags(options))
    models = load_stable_diffusion(identify_base_model(ModelSource.from_config(config)), torch.float32)
    source, held_folder = open_image_source(config), open_validation_folder(config)
    pictures, _ = index_images(source, config, models.base.image_multiple)
    held_source, held, pictures = split_validation(source, held_folder, pictures, config, models.base.image_multiple)
    dataset = encode_dataset(models, source, pictures, config, torch.float32)
    held_out = ValidationLoss(
        encode_validation(models, held_source, held, config, torch.float32),
        models,
        Accelerator(),
        config.train_batch_size,
    )
    unet, scheduler = models.unet, models.scheduler
    base = held_out.measure(OnUNet(unet))["val_loss"]
    size = sum(weight.numel() for weight in hypernet.Hypernetwork(models.base.context_widths).parameters())
    rank = add_lora(unet, size, config.seed)
    weights = [weight for weight in unet.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=config.schedule.at(0))
    batches, losses = iter(EpochBatchSampler(pictures, config.train_batch_size, config.seed)), []
    for step in range(1, config.max_train_steps + 1):
        batch = dataset.__getitems__(next(batches))
        latents, noise, timesteps = batch["latents"], batch["noise"], batch["timesteps"]
        prediction = unet(scheduler.add_noise(latents, noise, timesteps), timesteps, **batch["conditions"]).sample
        diffusion_loss(prediction, prediction_target(scheduler, latents, noise, timesteps), batch["weights"]).backward()
        torch.nn.utils.clip_grad_norm_(weights, config.schedule_of("max_grad_norm").at(step - 1))
        optimizer.step()
        optimizer.zero_grad()
        if step % config.validation_loss_steps == 0 or step == config.max_train_steps:
            losses.append((step, held_out.measure(OnUNet(unet))["val_loss"]))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet))
    return {
        "val_loss": losses[-1][1],
        "val_loss_base": base,
        "half_at_step": next((step for step, loss in losses if loss <= 0.5 * base), None),
        "file_bytes": (folder / "pytorch_lora_weights.safetensors").stat().st_size,
        "rank": rank,
    }
