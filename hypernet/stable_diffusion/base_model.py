"""Identify a base model and its requirements from its configs, before any weights are read."""

import dataclasses
import inspect
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ConfigMixin, DDPMScheduler, DiffusionPipeline, UNet2DConditionModel

from hypernet.stable_diffusion.configs import Config, read_config
from hypernet.stable_diffusion.loras import check_loras
from hypernet.stable_diffusion.model_source import PREDICTION_TYPES, UNREACHED, ModelSource
from hypernet.stable_diffusion.single_file import SingleFile, open_single_file
from hypernet.stable_diffusion.vae import read_vae_config
from hypernet.utils.errors import UserError, reason

TRAINABLE = "Stable Diffusion 1.x, 2.x and SDXL can be trained"
ENCODER_PARTS = ("text_encoder", "text_encoder_2")
TEXT_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection")
OTHER_CHANNELS = {5: "a depth model", 7: "an upscaling model", 8: "a pix2pix model", 9: "an inpainting model"}


@dataclasses.dataclass
class BaseModel:
    """A base model that can be trained on, as its configs and the options describe it."""

    source: ModelSource
    single_file: SingleFile | None
    is_xl: bool
    unet_config: Config
    vae_config: Config  # of the VAE in use
    own_vae_config: Config  # of the model's own VAE
    prediction_type: str
    config_prediction_type: str  # from the config, before an option overrides it
    zero_terminal_snr: bool
    clip_skip: int  # from the option, else the model's default
    zeros_for_empty_prompt: bool  # whether an empty prompt is embedded as zeros

    @property
    def context_widths(self) -> list[int]:
        """The input widths of the attention layers' to_k: 320, 640, 768, 1280 for SD 1.x.

        Raises:
            UserError: if no UNet can be built from the config.
        """
        known = inspect.signature(UNet2DConditionModel.__init__).parameters  # diffusers warns about other entries
        try:
            with torch.device("meta"):
                unet = UNet2DConditionModel.from_config({k: v for k, v in self.unet_config.items() if k in known})
            layers = {name.removesuffix(".processor") for name in unet.attn_processors}
            return sorted({unet.get_submodule(f"{layer}.to_k").in_features for layer in layers})
        except Exception as error:  # diffusers does not validate the values
            raise self.source.error(f"no UNet can be built from its config ({reason(error)})") from None

    @property
    def image_multiple(self) -> int:
        """The VAE's downsampling factor. Image sides must be multiples of it."""
        return 2 ** (len(self.vae_config.get("block_out_channels", (64,))) - 1)  # as diffusers' pipelines compute it

    def describe(self) -> str:
        """Return a line that says what kind of model it is, what it predicts, and what is added to it."""
        width, source = self.unet_config.get("cross_attention_dim", 1280), self.source
        kinds = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x"}
        kind = "SDXL" if self.is_xl else kinds.get(width, f"Stable Diffusion with text width {width}")
        overridden = self.config_prediction_type != self.prediction_type
        override = f" (its config says {self.config_prediction_type})" if overridden else ""
        zero_terminal_snr = ", zero terminal SNR" if self.zero_terminal_snr else ""
        parts = [f"{source.path}: {kind}, predicts {self.prediction_type}{override}{zero_terminal_snr}"]
        if source.pretrained_vae_model_name_or_path:
            parts.append(f"VAE {source.pretrained_vae_model_name_or_path}")
        if source.lora:
            parts.append(f"fused LoRAs {', '.join(source.lora)}")
        return "; ".join(parts)


def identify_base_model(source: ModelSource) -> BaseModel:
    """Read the model's configs, and check that everything the options name exists and fits the model.

    Raises:
        UserError: if there is no such model, it is of a kind that cannot be trained, or an option does not fit it.
    """
    source.check()
    single_file = open_single_file(source) if source.is_file else None
    index, scheduler = _read_pipeline(source, single_file)
    unet = single_file and single_file.unet_config or _read_config(source, single_file, UNet2DConditionModel, "unet")
    check_loras(source.lora, _check_text_width(source, single_file, unet))
    own_vae = single_file and single_file.vae_config or _read_config(source, single_file, AutoencoderKL, "vae")
    vae = read_vae_config(source, own_vae)
    is_xl = unet.get("addition_embed_type") == "text_time"
    _check_kind(source, index, unet, own_vae, is_xl)
    config_prediction_type = single_file and single_file.prediction_type or scheduler.get("prediction_type", "epsilon")
    encoders = _read_text_encoders(source, single_file, index)
    _check_clip_skip(source, encoders[0] if encoders else {})
    base = BaseModel(
        source=source,
        single_file=single_file,
        is_xl=is_xl,
        unet_config=unet,
        vae_config=vae,
        own_vae_config=own_vae,
        prediction_type=_choose_prediction_type(source, config_prediction_type),
        config_prediction_type=config_prediction_type,
        zero_terminal_snr=_choose_zero_terminal_snr(source, single_file, scheduler),
        clip_skip=source.clip_skip or (2 if is_xl else 1),
        zeros_for_empty_prompt=_choose_zeros(source, index, is_xl),
    )
    if base.zero_terminal_snr and base.prediction_type == "epsilon":
        raise _zero_terminal_snr_error(source)
    return base


# --- Reading configs


def _read_config(
    source: ModelSource,
    single_file: SingleFile | None,
    model_class: type[ConfigMixin] | None,
    subfolder: str | None = None,
) -> Config:
    """Read one config from the model's folder or Hub repository; for a single file, from the one with its configs."""
    path = single_file.configs if single_file else source.path
    try:
        return read_config(str(path), None if single_file else source.revision, model_class, subfolder)
    except Exception as error:  # the Hub's client raises errors of any kind
        problem = f"its {subfolder or 'model_index.json'} has no usable config ({reason(error)})"
        is_local = path is not None and Path(path).exists()
        raise source.error(problem if is_local else f"there is no such folder, and {UNREACHED}") from None


def _read_pipeline(source: ModelSource, single_file: SingleFile | None) -> tuple[Config, Config]:
    """Return the pipeline's index and its scheduler's config. Raise UserError for another kind of model."""
    if single_file and single_file.configs is None:
        return _index_of_single_file(single_file.kind), {"prediction_type": "epsilon"}
    index = _read_config(source, single_file, DiffusionPipeline)
    _check_index(source, index)
    return index, _read_config(source, single_file, DDPMScheduler, "scheduler")


def _index_of_single_file(kind: str) -> Config:
    """Return what a model_index.json would say about a single file."""
    encoders = {"text_encoder": ["transformers", TEXT_ENCODERS[0]]}
    if kind == "xl_base":
        encoders["text_encoder_2"] = ["transformers", TEXT_ENCODERS[1]]
    return {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"], **encoders}


def _class_of(index: Config, part: str) -> str | None:
    """Return the class of a part of the pipeline; None if there is no such part."""
    return (index.get(part) or [None, None])[1]


# --- Refusing what cannot be trained


def _check_index(source: ModelSource, index: Config) -> None:
    """Check the classes of the pipeline's parts. Raise UserError if one is not Stable Diffusion's."""
    unet, vae = _class_of(index, "unet"), _class_of(index, "vae")
    if not unet:
        raise source.error(f"it is a {index.get('_class_name', 'model')}, which has no UNet; {TRAINABLE}")
    if unet != "UNet2DConditionModel":
        raise source.error(f"its UNet is a {unet}; {TRAINABLE}")
    if vae != "AutoencoderKL" and not source.pretrained_vae_model_name_or_path:
        raise source.error(f"its VAE is {vae or 'missing'}, not an AutoencoderKL; {TRAINABLE}")
    if not _class_of(index, "text_encoder") and _class_of(index, "text_encoder_2"):
        raise source.error(f"it is an SDXL refiner; {TRAINABLE}")
    for part in ENCODER_PARTS:
        if part in index and _class_of(index, part) not in TEXT_ENCODERS:
            raise source.error(f"its {part} is {_class_of(index, part) or 'missing'}, not CLIP's; {TRAINABLE}")
    for kind in ("EDM", "FlowMatch"):
        if kind in (_class_of(index, "scheduler") or ""):
            raise source.error(f"its noise schedule is {kind}'s; {TRAINABLE}")


def _check_text_width(source: ModelSource, single_file: SingleFile | None, unet: Config) -> int:
    """Return the UNet's text width. Raise UserError if a single file's configs are of another kind of model."""
    width = unet.get("cross_attention_dim", 1280)
    if not isinstance(width, int):
        raise source.error(f"its UNet takes texts of several widths; {TRAINABLE}")
    if single_file and single_file.text_width != width:
        option = "original_config" if single_file.unet_config else "model_config"
        problem = f"it is of another kind: its text is {width} wide, that of {source.path} {single_file.text_width}"
        raise UserError(f"--{option} {getattr(source, option) or single_file.configs}: {problem}")
    return width


def _check_kind(source: ModelSource, index: Config, unet: Config, own_vae: Config, is_xl: bool) -> None:
    """Check that the UNet takes only noisy latents and text. Raise UserError if not."""
    channels, latent_channels = unet.get("in_channels", 4), own_vae.get("latent_channels", 4)
    if channels != latent_channels:
        kind = OTHER_CHANNELS.get(channels, f"another kind of model, with {channels} input channels")
        raise source.error(f"it is {kind}; {TRAINABLE}")
    has_other_embedding = unet.get("addition_embed_type") and not is_xl
    if has_other_embedding or unet.get("encoder_hid_dim_type") or unet.get("class_embed_type"):
        raise source.error(f"its UNet takes more than Stable Diffusion's text; {TRAINABLE}")
    if is_xl and not _class_of(index, "text_encoder_2"):
        raise source.error(f"it has SDXL's UNet but no second text encoder; {TRAINABLE}")


def _read_text_encoders(source: ModelSource, single_file: SingleFile | None, index: Config) -> list[Config]:
    """Return the configs of the text encoders; none for a single file with nothing but an original config.

    A folder may lack them, unless --clip_skip needs them.
    """
    path = single_file.configs if single_file else source.path
    parts = [part for part in ENCODER_PARTS if _class_of(index, part)] if path else []
    if path and Path(path).exists() and not source.clip_skip:
        parts = [part for part in parts if Path(path, part, "config.json").exists()]
    return [_read_config(source, single_file, None, part) for part in parts]


def _check_clip_skip(source: ModelSource, encoder: Config) -> None:
    """Check --clip_skip. Raise UserError if it exceeds the number of the text encoder's layers."""
    if source.clip_skip is None:
        return
    layers = encoder.get("num_hidden_layers", 12)
    if source.clip_skip > layers:
        raise UserError(f"--clip_skip {source.clip_skip}: the text encoder has {layers} layers")


# --- Options take precedence over configs


def _choose_prediction_type(source: ModelSource, configured: str) -> str:
    """Return the option, else the config's value. Raise UserError if that cannot be trained."""
    prediction_type = source.prediction_type or configured
    if prediction_type not in PREDICTION_TYPES:
        raise source.error(f"it predicts {prediction_type}; {', '.join(PREDICTION_TYPES)} can be trained")
    return prediction_type


def _choose_zero_terminal_snr(source: ModelSource, single_file: SingleFile | None, scheduler: Config) -> bool:
    if source.rescale_betas_zero_snr is not None:
        return source.rescale_betas_zero_snr
    return bool(single_file and single_file.zero_terminal_snr or scheduler.get("rescale_betas_zero_snr"))


def _choose_zeros(source: ModelSource, index: Config, is_xl: bool) -> bool:
    """Return whether an empty prompt is zeros. Raise UserError if the option is given and the model is not SDXL."""
    zeros = source.force_zeros_for_empty_prompt
    if zeros is not None and not is_xl:
        raise UserError("--force_zeros_for_empty_prompt: it applies only to SDXL")
    return is_xl and index.get("force_zeros_for_empty_prompt", True) if zeros is None else zeros


def _zero_terminal_snr_error(source: ModelSource) -> UserError:
    """Return the error for a model that predicts the noise although its last timestep is nothing but noise."""
    problem = "with zero terminal SNR, a model that predicts the noise learns nothing at the last timestep"
    if source.rescale_betas_zero_snr:
        hint = "it requires --prediction_type v_prediction or sample"
        return UserError(f"--rescale_betas_zero_snr: {problem}; {hint}")
    hint = "add --rescale_betas_zero_snr false, or --prediction_type v_prediction"
    return source.error(f"its schedule has zero terminal SNR, and it predicts epsilon; {problem}; {hint}")
