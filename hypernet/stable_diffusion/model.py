"""The frozen Stable Diffusion: load it, cast it, encode images."""

import contextlib
import dataclasses
import pickle
from functools import cached_property

import torch
import transformers
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from hypernet.stable_diffusion.base_model import BaseModel
from hypernet.stable_diffusion.loras import fuse_loras
from hypernet.stable_diffusion.model_hash import model_hash
from hypernet.stable_diffusion.model_source import UNSAFE
from hypernet.stable_diffusion.schedulers import choose_sampler
from hypernet.stable_diffusion.single_file import encoders_without_configs
from hypernet.stable_diffusion.vae import load_vae


@dataclasses.dataclass
class StableDiffusion:
    """A pipeline whose parts are frozen, with what its configs say of how it was trained.

    VAE and text encoders are float32 where it is loaded for training, the UNet as it was cast.
    """

    pipeline: DiffusionPipeline
    base: BaseModel
    scheduler: DDPMScheduler  # of the training; the pipeline's own is for drawing
    device: torch.device  # where the parts work

    def on_device(self, *modules):
        """Bring these of VAE and text encoders to the device, and the others to the CPU: a small card has no room for all."""
        for module in (self.vae, *self.text_encoders):
            module.to(self.device if any(module is wanted for wanted in modules) else "cpu")

    @property
    def unet(self) -> UNet2DConditionModel:
        return self.pipeline.unet

    @property
    def vae(self) -> AutoencoderKL:
        return self.pipeline.vae

    @property
    def text_encoders(self) -> list:
        pipe = self.pipeline
        return [pipe.text_encoder, pipe.text_encoder_2] if self.base.is_xl else [pipe.text_encoder]

    @property
    def tokenizers(self) -> list:
        pipe = self.pipeline
        return [pipe.tokenizer, pipe.tokenizer_2] if self.base.is_xl else [pipe.tokenizer]

    @cached_property
    def hash(self) -> str:
        """Ten hex digits by which a hypernetwork remembers the model; LoRAs folded in do not change them."""
        return model_hash(self.base.source, self.unet)


def load_stable_diffusion(
    base: BaseModel, unet_dtype=torch.float32, device="cpu", dtype=torch.float32, waits=False
) -> StableDiffusion:
    """Load the parts frozen and in evaluation mode on `device`, the LoRAs of the source folded in.

    Args:
        unet_dtype: of the UNet; `dtype` is that of VAE and text encoders (whose turn is short).
        waits: leave them on the CPU for now, so that a small card need not hold all at once.

    Raises:
        UserError: if the weights cannot be loaded.
    """
    try:
        with _quiet():
            pipeline = _load_pipeline(base, unet_dtype, dtype)
        for module in pipeline.components.values():
            if isinstance(module, torch.nn.Module):
                module.requires_grad_(False).eval().to("cpu" if waits else device)
    except pickle.UnpicklingError:
        raise base.source.error(f"a file of it {UNSAFE}") from None
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        reason = "tensors are missing in it" if "meta tensor" in reason else reason
        raise base.source.error(f"it cannot be loaded: {reason}") from None
    changes = {"prediction_type": base.prediction_type, "rescale_betas_zero_snr": base.zero_snr}
    with _quiet():
        scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, **changes)
        pipeline.scheduler = choose_sampler(pipeline.scheduler, base.prediction_type, base.zero_snr)
    models = StableDiffusion(pipeline, base, scheduler, torch.device(device))
    for tokenizer, encoder in zip(models.tokenizers, models.text_encoders):
        if len(tokenizer) < encoder.config.vocab_size:  # transformers makes one of two tokens where there are no files
            raise base.source.error(f"its tokenizer is missing or damaged; it has {len(tokenizer)} tokens")
    if base.source.lora:
        _ = models.hash  # before they change the weights
        with _quiet():
            fuse_loras(pipeline, base.source.lora)
    return models


def _load_pipeline(base, unet_dtype, dtype):
    source, single = base.source, base.single
    pipeline_class = StableDiffusionXLPipeline if base.is_xl else StableDiffusionPipeline
    configs = single.configs if single else source.path
    parts = {"feature_extractor": None, "image_encoder": None, **_plain(base.is_xl)}
    if source.pretrained_vae_model_name_or_path:
        parts["vae"] = load_vae(source, configs, single and single.original, dtype)
    if single is None:
        precisions = {"unet": unet_dtype, "default": dtype}
        where = {"revision": source.revision, "variant": source.variant}
        parts |= _load_text_encoders(base, where, dtype)
        return pipeline_class.from_pretrained(source.path, dtype=precisions, **where, **parts)
    where = {"original_config": single.original} if single.original else {"config": configs, "subfolder": "unet"}
    parts["unet"] = UNet2DConditionModel.from_single_file(source.path, dtype=unet_dtype, **where)
    if configs is None:
        parts |= encoders_without_configs(single, dtype)
    where = {"config": configs, "original_config": source.original_config}
    return pipeline_class.from_single_file(source.path, dtype=dtype, **where, **parts)


def _load_text_encoders(base, where, dtype) -> dict:
    """A folder's text encoders, by the pipeline's names. (transformers fills in with random numbers what is missing.)"""
    parts = {"text_encoder": transformers.CLIPTextModel}
    parts |= {"text_encoder_2": transformers.CLIPTextModelWithProjection} if base.is_xl else {}
    for name, encoder in parts.items():
        options = {**where, "subfolder": name, "dtype": dtype, "output_loading_info": True}
        try:
            parts[name], found = encoder.from_pretrained(base.source.path, **options)
        except OSError:
            if not where["variant"]:
                raise
            options["variant"] = None  # there may be one of the UNet alone, as diffusers allows
            parts[name], found = encoder.from_pretrained(base.source.path, **options)
        if found["missing_keys"]:
            raise ValueError(f"tensors are missing in its {name}, such as {sorted(found['missing_keys'])[0]}")
    return parts


def _plain(is_xl) -> dict:
    """A pipeline's arguments for pictures as the model makes them."""
    return {"add_watermarker": False} if is_xl else {"safety_checker": None, "requires_safety_checker": False}


def latents_pipeline(models: StableDiffusion) -> DiffusionPipeline:
    """A pipeline of the same UNet and sampler, from embeddings to latents."""
    kept = {"unet": models.unet, "scheduler": models.pipeline.scheduler}
    pipeline = type(models.pipeline)(
        **{**dict.fromkeys(models.pipeline.components), **kept, **_plain(models.base.is_xl)}
    )
    pipeline.vae_scale_factor = models.base.image_multiple  # without a VAE it would be 8
    return pipeline


@contextlib.contextmanager
def _quiet():
    """Without the libraries' remarks: a complaint about .bin files, say, is not the user's to act on here."""
    verbosities = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    bars = diffusers_logging.is_progress_bar_enabled()
    diffusers_logging.set_verbosity(diffusers_logging.CRITICAL)  # errors are raised, too
    transformers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(verbosities[0])
        transformers_logging.set_verbosity(verbosities[1])
        if bars:
            diffusers_logging.enable_progress_bar()


@torch.no_grad()
def encode_images(models: StableDiffusion, pixels: torch.Tensor, dtype=torch.float32) -> torch.Tensor:
    """The VAE's moments (means, then log variances, unscaled), (B, 8, height / 8, width / 8) float32.

    `pixels` are (B, 3, height, width) in [-1, 1]; `dtype` is the precision of the products, which may overflow in float16.
    """
    vae = models.vae
    with torch.autocast(vae.device.type, dtype, enabled=dtype is not torch.float32):
        return vae.encode(pixels.to(vae.device)).latent_dist.parameters.float()


def weight_dtype(mixed_precision: str) -> torch.dtype:
    """The precision of the frozen UNet."""
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(mixed_precision, torch.float32)


def vae_dtype(unet_dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """float16 beside a half-precision UNet (bfloat16 has too few digits for an image), else float32; so on a CPU, which
    knows no fast float16."""
    half = unet_dtype is not torch.float32 and device.type != "cpu"
    return torch.float16 if half else torch.float32
