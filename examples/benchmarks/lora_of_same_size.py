"""For comparison, train a LoRA of a hypernetwork's size on the same images, noise and timesteps, with the same loss."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
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
from hypernet.training.loss import training_loss
from hypernet.training.lr_schedule import clipping_schedule, learning_rate_function
from hypernet.training.validation import ValidationLoss

TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]  # as in diffusers' LoRA example


class PlainUNet(torch.nn.Module):
    """A UNet without a hypernetwork, with the interface of `HypernetworkUNet`."""

    def __init__(self, unet: UNet2DConditionModel):
        super().__init__()
        self.unet, self.hypernetwork = unet, torch.nn.Identity()

    def forward(self, *args: Any, **conditions: Any) -> torch.Tensor:
        """Return the UNet's prediction."""
        return self.unet(*args, **conditions).sample


def add_lora(unet: UNet2DConditionModel, parameters: int, seed: int) -> list[torch.nn.Parameter]:
    """Add adapters of the rank that comes closest to this number of parameters, and return their weights."""
    endings = tuple(f".{target}" for target in TARGETS)
    layers = [module for name, module in unet.named_modules() if name.endswith(endings)]
    rank = max(1, round(parameters / sum(layer.in_features + layer.out_features for layer in layers)))
    torch.manual_seed(seed)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=TARGETS))
    return [weight for weight in unet.parameters() if weight.requires_grad]


def train_lora(options: Mapping[str, Any]) -> dict[str, Any]:
    """Train with the options of a run, and save the LoRA to its output folder. Return val_loss and val_loss_base.

    Nothing is trained if it is finished.
    """
    figures = Path(options["output_dir"], "result.json")
    if figures.exists():
        known: dict[str, Any] = json.loads(figures.read_text(encoding="utf-8"))
        return known
    config = parse_config(options_to_flags(dict(options)))
    AcceleratorState._reset_state(True)
    models = load_stable_diffusion(identify_base_model(ModelSource.from_config(config)), torch.float32)
    multiple = models.base.image_multiple
    source, validation_source = open_image_source(config), open_validation_folder(config)
    found, _ = index_images(source, config, multiple)
    validation_source, validation_records, records = split_validation(
        source, validation_source, found, config, multiple
    )
    dataset = encode_dataset(models, source, records, config, torch.float32)
    validation_set = encode_validation(models, validation_source, validation_records, config, torch.float32)
    validation = ValidationLoss(validation_set, models, Accelerator(cpu=True), config.train_batch_size)
    model = PlainUNet(models.unet)
    base: Any = model
    base_loss = validation.measure(base)["val_loss"]
    size = sum(weight.numel() for weight in hypernet.Hypernetwork(models.base.context_widths).parameters())
    weights = add_lora(models.unet, size, config.seed)
    optimizer, learning_rate_at = torch.optim.AdamW(weights), learning_rate_function(config)
    clipping, order = clipping_schedule(config), iter(EpochBatchSampler(records, config.train_batch_size, config.seed))
    for step in range(config.max_train_steps):
        batch = dataset.__getitems__(next(order))
        training_loss(model, batch, batch["conditions"], models.scheduler, torch.float32).backward()
        torch.nn.utils.clip_grad_norm_(weights, clipping.at(step))
        optimizer.param_groups[0]["lr"] = learning_rate_at(step)
        optimizer.step()
        optimizer.zero_grad()
    StableDiffusionPipeline.save_lora_weights(figures.parent, unet_lora_layers=get_peft_model_state_dict(models.unet))
    result = {"val_loss": validation.measure(base)["val_loss"], "val_loss_base": base_loss}
    figures.write_text(json.dumps(result), encoding="utf-8")
    return result
