"""Load the frozen Stable Diffusion model, move its parts between devices, encode images."""

import contextlib
import dataclasses
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from hypernet.stable_diffusion.base_model import BaseModel
from hypernet.stable_diffusion.loras import fuse_loras
from hypernet.stable_diffusion.model_hash import model_hash
from hypernet.stable_diffusion.model_source import UNSAFE
from hypernet.stable_diffusion.schedulers import build_training_scheduler, choose_sampler
from hypernet.stable_diffusion.single_file import SingleFile, check_pickles, tokenizers_without_configs
from hypernet.stable_diffusion.vae import load_vae
from hypernet.utils.errors import UserError, one_line, reason
from hypernet.utils.pickle_scanner import RefusedCode


@dataclasses.dataclass
class StableDiffusion:
    """A pipeline with frozen parts, and what the base model's configs say.

    For training, VAE and text encoders are loaded in float32; only the UNet may be in half precision.
    """

    pipeline: DiffusionPipeline
    base: BaseModel
    scheduler: DDPMScheduler  # for training; the pipeline has its own, for sampling
    device: torch.device  # where the parts run

    def on_device(self, *modules: torch.nn.Module) -> None:
        """Move these of VAE and text encoders to the device, the others to the CPU. Small GPUs cannot hold them all."""
        for module in (self.vae, *self.text_encoders):
            module.to(self.device if any(module is wanted for wanted in modules) else "cpu")

    @property
    def unet(self) -> UNet2DConditionModel:
        """The UNet."""
        return self.pipeline.unet

    @property
    def vae(self) -> AutoencoderKL:
        """The VAE."""
        return self.pipeline.vae

    @property
    def text_encoders(self) -> list[PreTrainedModel]:
        """The text encoder, or SDXL's two."""
        pipe = self.pipeline
        return [pipe.text_encoder, pipe.text_encoder_2] if self.base.is_xl else [pipe.text_encoder]

    @property
    def tokenizers(self) -> list[CLIPTokenizer]:
        """The tokenizer of each text encoder."""
        pipe = self.pipeline
        return [pipe.tokenizer, pipe.tokenizer_2] if self.base.is_xl else [pipe.tokenizer]

    @cached_property
    def hash(self) -> str:
        """Ten hex digits that identify the base model in a hypernetwork; fused LoRAs do not change them."""
        return model_hash(self.base.source, self.unet)


def load_stable_diffusion(
    base: BaseModel,
    unet_dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    keep_on_cpu: bool = False,
) -> StableDiffusion:
    """Load all parts, frozen and in evaluation mode, with the LoRAs of the source fused.

    Args:
        unet_dtype: precision of the UNet.
        device: where the parts run.
        dtype: precision of VAE and text encoders.
        keep_on_cpu: keep the parts on the CPU for now, so that a small GPU need not hold all of them at once.

    Raises:
        UserError: if the weights cannot be loaded.
    """
    try:
        with _quiet():
            models = _load_parts(base, unet_dtype, torch.device(device), dtype, keep_on_cpu)
    except UserError:
        raise
    except RefusedCode:
        raise base.source.error(f"one of its files {UNSAFE}") from None
    except Exception as error:  # damaged weights, configs and vocabularies raise errors of any kind
        problem = "tensors are missing" if "meta tensor" in str(error) else one_line(reason(error), 300)
        raise base.source.error(f"it cannot be loaded: {problem}") from None
    if base.source.lora:
        _ = models.hash  # computed and cached before LoRAs change the weights
        with _quiet():
            fuse_loras(models.pipeline, base.source.lora)
    return models


def _load_parts(
    base: BaseModel, unet_dtype: torch.dtype, device: torch.device, dtype: torch.dtype, keep_on_cpu: bool
) -> StableDiffusion:
    pipeline = _load_pipeline(base, unet_dtype, dtype)
    for module in pipeline.components.values():
        if isinstance(module, torch.nn.Module):
            module.requires_grad_(False).eval().to("cpu" if keep_on_cpu else device)
    scheduler = build_training_scheduler(pipeline.scheduler, base.prediction_type, base.zero_terminal_snr)
    pipeline.scheduler = choose_sampler(pipeline.scheduler, base.prediction_type, base.zero_terminal_snr)
    models = StableDiffusion(pipeline, base, scheduler, device)
    for tokenizer, encoder in zip(models.tokenizers, models.text_encoders):
        length, longest = tokenizer.model_max_length, encoder.config.max_position_embeddings
        if len(tokenizer) < encoder.config.vocab_size:  # without its files, transformers builds one with two tokens
            raise base.source.error(f"its tokenizer is missing or damaged; it has {len(tokenizer)} tokens")
        if not 2 < length <= longest:
            raise base.source.error(f"its tokenizer takes {length} tokens at once, its text encoder {longest}")
    return models


def _load_pipeline(base: BaseModel, unet_dtype: torch.dtype, dtype: torch.dtype) -> DiffusionPipeline:
    source, single_file = base.source, base.single_file
    pipeline_class = StableDiffusionXLPipeline if base.is_xl else StableDiffusionPipeline
    parts = {"feature_extractor": None, "image_encoder": None, **_without_extras(base.is_xl)}
    if source.pretrained_vae_model_name_or_path:
        configs = single_file.configs if single_file else source.path
        original = single_file.original if single_file else None
        parts["vae"] = load_vae(source, source.pretrained_vae_model_name_or_path, configs, original, dtype)
    if single_file:
        return _load_single_file(base, single_file, pipeline_class, parts, unet_dtype, dtype)
    kwargs = {"revision": source.revision, "variant": source.variant}
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        check_pickles(Path(source.path, part))
    parts |= _load_text_encoders(base, dtype)
    return pipeline_class.from_pretrained(source.path, dtype={"unet": unet_dtype, "default": dtype}, **kwargs, **parts)


def _load_single_file(
    base: BaseModel,
    single_file: SingleFile,
    pipeline_class: type[DiffusionPipeline],
    parts: dict[str, Any],
    unet_dtype: torch.dtype,
    dtype: torch.dtype,
) -> DiffusionPipeline:
    path, configs, original = single_file.path, single_file.configs, single_file.original
    kwargs = {"original_config": original} if original else {"config": configs, "subfolder": "unet"}
    parts["unet"] = UNet2DConditionModel.from_single_file(path, dtype=unet_dtype, **kwargs)
    if configs is None:
        parts |= tokenizers_without_configs(single_file.kind)
    kwargs = {"config": configs, "original_config": base.source.original_config}
    return pipeline_class.from_single_file(path, dtype=dtype, **kwargs, **parts)


def _load_text_encoders(base: BaseModel, dtype: torch.dtype) -> dict[str, PreTrainedModel]:
    """Load a folder's text encoders, by the pipeline's names.

    Raises:
        ValueError: if tensors are missing, which transformers would initialize at random.
    """
    classes: dict[str, type[PreTrainedModel]] = {"text_encoder": CLIPTextModel}
    classes |= {"text_encoder_2": CLIPTextModelWithProjection} if base.is_xl else {}
    parts, source = {}, base.source
    for name, encoder_class in classes.items():
        kwargs = {"revision": source.revision, "subfolder": name, "dtype": dtype, "output_loading_info": True}
        try:
            parts[name], found = encoder_class.from_pretrained(source.path, variant=source.variant, **kwargs)
        except OSError:
            if not source.variant:
                raise
            # the variant may exist for the UNet alone
            parts[name], found = encoder_class.from_pretrained(source.path, **kwargs)
        if found["missing_keys"]:
            raise ValueError(f"tensors are missing in its {name}, such as {sorted(found['missing_keys'])[0]}")
    return parts


def _without_extras(is_xl: bool) -> dict[str, Any]:
    """Return the pipeline's arguments that turn off watermark and safety checker."""
    return {"add_watermarker": False} if is_xl else {"safety_checker": None, "requires_safety_checker": False}


def latents_pipeline(models: StableDiffusion) -> DiffusionPipeline:
    """Return a pipeline with the same UNet and sampler that turns embeddings into latents, and has no other part."""
    components = dict.fromkeys(models.pipeline.components)
    components |= {"unet": models.unet, "scheduler": models.pipeline.scheduler, **_without_extras(models.base.is_xl)}
    pipeline = type(models.pipeline)(**components)
    pipeline.vae_scale_factor = models.base.image_multiple  # without a VAE, it defaults to 8
    return pipeline


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence log messages and progress bars of diffusers and transformers that users cannot act on."""
    levels = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    had_bars = diffusers_logging.is_progress_bar_enabled()
    diffusers_logging.set_verbosity(diffusers_logging.CRITICAL)  # errors are also raised
    transformers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(levels[0])
        transformers_logging.set_verbosity(levels[1])
        if had_bars:
            diffusers_logging.enable_progress_bar()


@torch.no_grad()
def encode_images(
    models: StableDiffusion, pixels: torch.Tensor, dtype: torch.dtype = torch.float32
) -> torch.Tensor:  # (B, 8, height / 8, width / 8)
    """Return the VAE's moments, unscaled float32: four channels of means, then four of log variances.

    Args:
        pixels: (B, 3, height, width) in [-1, 1].
        dtype: autocast precision; float16 may overflow.
    """
    vae = models.vae
    with torch.autocast(vae.device.type, dtype, enabled=dtype is not torch.float32):
        return vae.encode(pixels.to(vae.device)).latent_dist.parameters.float()


def weight_dtype(mixed_precision: str) -> torch.dtype:
    """Return the precision of the frozen UNet."""
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(mixed_precision, torch.float32)


def vae_dtype(unet_dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the VAE's precision: float16 beside a half-precision UNet on a GPU, else float32.

    bfloat16 is too coarse for images, and float16 is slow on CPUs.
    """
    half = unet_dtype is not torch.float32 and device.type != "cpu"
    return torch.float16 if half else torch.float32
