"""The frozen Stable Diffusion: check it, load it, cast it; encode prompts and images."""

import dataclasses
import hashlib
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTokenizer

from hypernet.errors import UserError

PREDICTION_TYPES = ("epsilon", "v_prediction")
TRAINABLE = "Stable Diffusion 1.x and 2.x can be trained"


@dataclasses.dataclass
class StableDiffusion:
    """The parts of a Stable Diffusion 1.x or 2.x, frozen. VAE and text encoder are float32, the UNet as it was cast."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: DDPMScheduler


def _error(path, problem):
    return UserError(f"--pretrained_model_name_or_path {path}: {problem}")


def image_multiple(path, revision=None) -> int:
    """Images need sides that are multiples of this: the VAE's factor, from its config alone."""
    config = _load_config(AutoencoderKL, "vae", path, revision)
    return _factor(config)


def context_widths(path, revision=None) -> list[int]:
    """Check that `path` is a model that can be trained on, from its configs alone; its UNet's context widths.

    The widths are the input widths of the attention layers' to_k: for SD 1.x 320, 640, 768, 1280.

    Raises:
        UserError: if there is no such model, or it is of another kind.
    """
    config = _load_config(UNet2DConditionModel, "unet", path, revision)
    if config.get("_class_name") != "UNet2DConditionModel":
        raise _error(path, f"its UNet is a {config.get('_class_name')}; {TRAINABLE}")
    if config.get("addition_embed_type") or config.get("in_channels", 4) != 4:
        kind = "an SDXL" if config.get("addition_embed_type") else "an inpainting, depth or pix2pix"
        raise _error(path, f"it is {kind} model; {TRAINABLE}")
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    layers = {name.removesuffix(".processor") for name in unet.attn_processors}
    return sorted({unet.get_submodule(f"{layer}.to_k").in_features for layer in layers})


def _load_config(model_class, subfolder, path, revision):
    folder = Path(path)
    if folder.is_file():
        raise _error(path, "it is a file; name a diffusers folder or a Hub id")
    if not folder.exists() and (len(folder.parts) != 2 or path[0] in "./~"):
        raise _error(path, "there is no such folder")
    if folder.exists() and not (folder / "model_index.json").is_file():
        raise _error(path, "there is no model_index.json in it, so it is no diffusers folder")
    try:
        return model_class.load_config(path, subfolder=subfolder, revision=revision)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise _error(path, f"there is no such model, neither here nor on the Hub ({reason})") from None


def choose_widths(config) -> list[int]:
    """The context widths to train: all that the model's UNet has, or those asked for among them."""
    available = context_widths(config.pretrained_model_name_or_path, config.revision)
    missing = sorted(set(config.widths_numbers or []) - set(available))
    if missing:
        shown = ",".join(map(str, available))
        problem = f"the UNet has no attention layer of width {missing[0]}; it has {shown}"
        raise UserError(f"--widths {config.widths}: {problem}")
    widths = config.widths_numbers or available
    for multiple in config.layer_structure_numbers:
        if int(multiple * widths[0]) < 1:
            problem = f"{multiple:g} times width {widths[0]} is nothing"
            raise UserError(f"--layer_structure {config.layer_structure}: {problem}")
    return widths


def model_name(path: str) -> str:
    """The base model as the hypernetwork remembers it: a Hub id, or the folder's name."""
    return Path(path).resolve().name if Path(path).exists() else path


def check_resolution(config) -> int:
    """What the sides of images must be multiples of; raises UserError if those asked for are not."""
    multiple = image_multiple(config.pretrained_model_name_or_path, config.revision)
    if any(side % multiple for side in config.size):
        raise UserError(f"--resolution {config.resolution}: it must be a multiple of {multiple} for this model")
    return multiple


def load_models(path, revision=None, variant=None, unet_dtype=torch.float32, device="cpu") -> StableDiffusion:
    """Load the parts frozen and in evaluation mode on `device`; VAE and text encoder in float32 (their turn is short).

    Raises:
        UserError: if the weights cannot be loaded, or the model predicts what cannot be trained.
    """
    where = {"pretrained_model_name_or_path": path, "revision": revision}
    weights = {**where, "variant": variant}
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()  # a complaint about .bin files, say, is not the user's to act on here
    try:
        models = StableDiffusion(
            tokenizer=CLIPTokenizer.from_pretrained(**where, subfolder="tokenizer"),
            text_encoder=CLIPTextModel.from_pretrained(**weights, subfolder="text_encoder", dtype=torch.float32),
            vae=AutoencoderKL.from_pretrained(**weights, subfolder="vae", dtype=torch.float32),
            unet=UNet2DConditionModel.from_pretrained(**weights, subfolder="unet", dtype=unet_dtype),
            scheduler=DDPMScheduler.from_pretrained(**where, subfolder="scheduler"),
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise _error(path, " ".join(str(error).split())) from None
    finally:
        diffusers_logging.set_verbosity(verbosity)
    if models.scheduler.config.prediction_type not in PREDICTION_TYPES:
        predicted = models.scheduler.config.prediction_type
        raise _error(path, f"it predicts {predicted}; {' and '.join(PREDICTION_TYPES)} can be trained")
    for module in (models.text_encoder, models.vae, models.unet):
        module.requires_grad_(False).eval().to(device)
    return models


def load_sampler(path, revision=None):
    """The scheduler that the model's own pipeline samples with."""
    config = DiffusionPipeline.load_config(path, revision=revision)
    scheduler_class = getattr(diffusers, config["scheduler"][1])
    return scheduler_class.from_pretrained(path, subfolder="scheduler", revision=revision)


@torch.no_grad()
def encode_prompts(models: StableDiffusion, prompts: list[str]) -> torch.Tensor:
    """The text encoder's last hidden state, (B, tokens, text width), of prompts cut to the tokenizer's length."""
    tokens = models.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return models.text_encoder(tokens.to(models.text_encoder.device)).last_hidden_state


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


def vae_precision(unet_dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """float16 beside a half-precision UNet (bfloat16 has too few digits for an image), else float32; so on a CPU, which
    knows no fast float16."""
    half = unet_dtype is not torch.float32 and device.type != "cpu"
    return torch.float16 if half else torch.float32


def vae_factor(vae: AutoencoderKL) -> int:
    """Pixels per side of a latent cell."""
    return _factor(vae.config)


def _factor(config):
    return 2 ** (len(config["block_out_channels"]) - 1)  # as diffusers' pipelines have it


def weights_hash(module: torch.nn.Module, dtype: torch.dtype | None = None) -> str:
    """Ten hex digits that change with any weight; with `dtype`, rounded to it, however it was loaded."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().to("cpu", dtype).contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:10]


def vae_hash(vae: AutoencoderKL) -> str:
    """Ten hex digits that change with whatever shapes its unscaled moments: config and weights."""
    return _hash_of(_shaping(vae.config, "scaling_factor"), weights_hash(vae))


def text_encoder_hash(models: StableDiffusion) -> str:
    """Ten hex digits that change with whatever shapes an embedding: tokenizer, text encoder's config and weights."""
    vocabulary, length = sorted(models.tokenizer.get_vocab().items()), models.tokenizer.model_max_length
    config = _shaping(models.text_encoder.config.to_dict(), "transformers_version", "dtype")
    return _hash_of(vocabulary, length, config, weights_hash(models.text_encoder))


def _shaping(config, *others):
    """The entries of a config but for its origin, and others that shape no output."""
    return {key: value for key, value in sorted(config.items()) if key[0] != "_" and key not in others}


def _hash_of(*parts):
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:10]
