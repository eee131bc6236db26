"""Train a LoRA of a hypernetwork's size on the same images, noise, timesteps and loss, for comparison."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

import hypernet
from examples.benchmarks.settings_study.rows import find_reached
from hypernet.cli.training_options import options_to_flags, parse_config
from hypernet.config import TrainingConfig
from hypernet.data.batch_sampler import EpochBatchSampler
from hypernet.data.dataset import TrainingDataset, encode_dataset
from hypernet.data.image_index import index_images
from hypernet.data.image_source import open_image_source
from hypernet.data.validation_split import encode_validation, open_validation_folder, split_validation
from hypernet.stable_diffusion.base_model import identify_base_model
from hypernet.stable_diffusion.model import StableDiffusion, load_stable_diffusion
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


def add_lora(unet: UNet2DConditionModel, parameters: int, seed: int) -> int:
    """Add adapters of the rank that comes closest to this number of parameters, and return the rank."""
    endings = tuple(f".{target}" for target in TARGETS)
    layers = [module for name, module in unet.named_modules() if name.endswith(endings)]
    rank = max(1, round(parameters / sum(layer.in_features + layer.out_features for layer in layers)))
    torch.manual_seed(seed)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=TARGETS))
    return rank


def train_lora(options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train with the options of a run and save the LoRA to `folder`. Return its columns of settings.csv."""
    config = parse_config(options_to_flags(options))
    models = load_stable_diffusion(identify_base_model(ModelSource.from_config(config)), torch.float32)
    dataset, batches, validation = prepare_data(config, models)
    base = validation.measure(PlainUNet(models.unet))["val_loss"]
    size = sum(weight.numel() for weight in hypernet.Hypernetwork(models.base.context_widths).parameters())
    rank = add_lora(models.unet, size, config.seed)
    losses = train(config, models, dataset, batches, validation)
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(models.unet))
    return {
        "val_loss": losses[-1][1],
        "val_loss_base": base,
        **find_reached(losses, base),
        "file_bytes": (folder / "pytorch_lora_weights.safetensors").stat().st_size,
        "rank": rank,
    }


def prepare_data(
    config: TrainingConfig, models: StableDiffusion
) -> tuple[TrainingDataset, EpochBatchSampler, ValidationLoss]:
    """Return training images, the order of their batches, and the validation loss, as a training run has them."""
    multiple = models.base.image_multiple
    source, validation_source = open_image_source(config), open_validation_folder(config)
    records, _ = index_images(source, config, multiple)
    validation_source, validation_records, records = split_validation(
        source, validation_source, records, config, multiple
    )
    dataset = encode_dataset(models, source, records, config, torch.float32)
    validation_dataset = encode_validation(models, validation_source, validation_records, config, torch.float32)
    validation = ValidationLoss(validation_dataset, models, Accelerator(), config.train_batch_size)
    return dataset, EpochBatchSampler(records, config.train_batch_size, config.seed), validation


def train(
    config: TrainingConfig,
    models: StableDiffusion,
    dataset: TrainingDataset,
    batches: EpochBatchSampler,
    validation: ValidationLoss,
) -> list[tuple[int, float]]:
    """Train the parameters of the UNet that require gradients. Return (step, validation loss) pairs."""
    model, losses = PlainUNet(models.unet), []
    parameters = [weight for weight in models.unet.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate_function(config)(0))
    clipping, order = clipping_schedule(config), iter(batches)
    evaluation_steps = config.validation_loss_steps or config.validation_steps
    for step in range(1, config.max_train_steps + 1):
        batch = dataset.__getitems__(next(order))
        training_loss(model, batch, batch["conditions"], models.scheduler, torch.float32).backward()
        torch.nn.utils.clip_grad_norm_(parameters, clipping.at(step - 1))
        optimizer.step()
        optimizer.zero_grad()
        if step % evaluation_steps == 0 or step == config.max_train_steps:
            losses.append((step, validation.measure(model)["val_loss"]))
    return losses
