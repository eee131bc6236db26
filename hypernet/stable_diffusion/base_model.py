"""What kind of model it is and what it needs, recognised from its configs, before any weight is read."""

import dataclasses
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
from transformers import PretrainedConfig

from hypernet.stable_diffusion.loras import check_loras
from hypernet.stable_diffusion.model_source import PREDICTION_TYPES, UNREACHED, ModelSource
from hypernet.stable_diffusion.single_file import SingleFile, open_single_file
from hypernet.stable_diffusion.vae import read_vae_config
from hypernet.utils.errors import UserError

TRAINABLE = "Stable Diffusion 1.x, 2.x and SDXL can be trained"
TEXT_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection")
MORE_CHANNELS = {5: "a depth model", 7: "an upscaling model", 8: "a pix2pix model", 9: "an inpainting model"}


@dataclasses.dataclass
class BaseModel:
    """A model that can be trained on, by its configs."""

    source: ModelSource
    single: SingleFile | None  # where the model is one file
    is_xl: bool
    unet: dict  # configs
    vae: dict
    own_vae: dict  # that of the model, where another one is taken
    prediction_type: str
    config_says: str  # of that, where an option says it, too
    zero_snr: bool  # whether the last timestep is noise alone
    clip_skip: int  # as the text encoder is read where no option says it
    zeros_for_empty: bool  # whether an empty prompt is zeros

    @property
    def context_widths(self) -> list[int]:
        """The input widths of the attention layers' to_k: for SD 1.x 320, 640, 768, 1280."""
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(self.unet)
        layers = {name.removesuffix(".processor") for name in unet.attn_processors}
        return sorted({unet.get_submodule(f"{layer}.to_k").in_features for layer in layers})

    def describe(self) -> str:
        """What was recognised and what goes with it, in a line."""
        width, source = self.unet.get("cross_attention_dim", 1280), self.source
        kinds = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x"}
        kind = "SDXL" if self.is_xl else kinds.get(width, f"a Stable Diffusion with text {width} wide")
        zero_snr = ", a schedule that ends in noise alone" if self.zero_snr else ""
        vae, loras = source.pretrained_vae_model_name_or_path, source.lora
        others = f" (its config says {self.config_says})" if self.config_says != self.prediction_type else ""
        parts = [f"{source.path}: {kind}, predicts {self.prediction_type}{others}{zero_snr}"]
        parts += [f"VAE {vae}"] if vae else []
        parts += [f"LoRAs underneath {', '.join(loras)}"] if loras else []
        return "; ".join(parts)

    @property
    def image_multiple(self) -> int:
        """Images need sides that are multiples of this, the VAE's factor."""
        return 2 ** (len(self.vae["block_out_channels"]) - 1)  # as diffusers' pipelines have it


def identify_base_model(source: ModelSource) -> BaseModel:
    """The model by its configs, after a look whether all that is named exists.

    Raises:
        UserError: if there is no such model, it is of another kind, or an option does not go with it.
    """
    source.check()
    single = open_single_file(source) if source.is_file else None
    index, scheduler = _read_pipeline(source, single)
    unet = single and single.unet or _read(source, single, UNet2DConditionModel, "unet")
    check_loras(source.lora, _check_text_width(source, single, unet))
    own_vae = single and single.vae or _read(source, single, AutoencoderKL, "vae")
    vae = read_vae_config(source, own_vae)
    is_xl = unet.get("addition_embed_type") == "text_time"
    _check_kind(source, index, unet, own_vae, is_xl)
    own, predicted = _choose_prediction(source, single, scheduler)
    zeros = _choose_zeros(source, index, is_xl)
    base = BaseModel(
        source=source,
        single=single,
        is_xl=is_xl,
        unet=unet,
        vae=vae,
        own_vae=own_vae,
        prediction_type=predicted,
        config_says=own,
        zero_snr=_choose_zero_snr(source, single, scheduler),
        clip_skip=_check_clip_skip(source, single) or (2 if is_xl else 1),
        zeros_for_empty=zeros,
    )
    if base.zero_snr and base.prediction_type == "epsilon":
        _refuse_noise_alone(source)
    return base


def _read(source, single, model_class, subfolder=None) -> dict:
    """One config of the model's folder or of the Hub, or of the folder that a single file's configs come from."""
    path = single.configs if single else source.path
    where = {} if subfolder is None else {"subfolder": subfolder}
    try:
        return model_class.load_config(path, revision=None if single else source.revision, **where)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        what = f"its {subfolder or 'model_index.json'} has no config that can be read ({reason})"
        raise source.error(what if Path(path).exists() else f"it is not here, and {UNREACHED}") from None


def _read_pipeline(source, single) -> tuple[dict, dict]:
    """The model's index, checked, and its scheduler's config. Raises: UserError for a model of another kind."""
    if single and single.configs is None:
        return _plain_index(single.kind), {"prediction_type": "epsilon"}
    index = _read(source, single, DiffusionPipeline)
    _check_index(source, index)
    return index, _read(source, single, DDPMScheduler, "scheduler")


def _plain_index(kind) -> dict:
    """What a model_index.json would say of a single file."""
    encoders = {"text_encoder": ["transformers", TEXT_ENCODERS[0]]}
    if kind == "xl_base":
        encoders["text_encoder_2"] = ["transformers", TEXT_ENCODERS[1]]
    return {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"], **encoders}


def _check_index(source, index):
    """Whether it is made of the right parts. Raises: UserError if not."""
    kind = index.get("_class_name", "model")
    if not _part(index, "unet"):
        raise source.error(f"it is a {kind}, which has no UNet; {TRAINABLE}")
    if _part(index, "unet") != "UNet2DConditionModel":
        raise source.error(f"its UNet is a {_part(index, 'unet')}; {TRAINABLE}")
    if _part(index, "vae") != "AutoencoderKL" and not source.pretrained_vae_model_name_or_path:
        raise source.error(f"its VAE is {_part(index, 'vae') or 'missing'}, not an AutoencoderKL; {TRAINABLE}")
    if not _part(index, "text_encoder") and _part(index, "text_encoder_2"):
        raise source.error(f"it is an SDXL refiner; {TRAINABLE}, with its base model")
    for part in ("text_encoder", "text_encoder_2"):
        if part in index and _part(index, part) not in TEXT_ENCODERS:
            raise source.error(f"its {part} is {_part(index, part) or 'missing'}, not CLIP's; {TRAINABLE}")
    for kind in ("EDM", "FlowMatch"):
        if kind in (_part(index, "scheduler") or ""):
            raise source.error(f"its schedule is {kind}'s, by which it was trained in another way; {TRAINABLE}")


def _part(index, name) -> str | None:
    """The class of a part of the pipeline; None if it has none."""
    return (index.get(name) or [None, None])[1]


def _check_text_width(source, single, unet) -> int:
    """How wide the UNet's text is. Raises: UserError if a single file's configs are those of another kind of model."""
    width = unet.get("cross_attention_dim", 1280)
    if single and single.text_width != width:
        option = "original_config" if single.unet else "model_config"
        problem = f"it is of another kind: its text is {width} wide, that of {source.path} {single.text_width}"
        raise UserError(f"--{option} {getattr(source, option) or single.configs}: {problem}")
    return width


def _check_kind(source, index, unet, own_vae, is_xl):
    """Whether the UNet is one that is trained by noise and text alone. Raises: UserError if not."""
    channels, latent = unet.get("in_channels", 4), own_vae.get("latent_channels", 4)
    if channels != latent:
        kind = MORE_CHANNELS.get(channels, f"another kind of model, with {channels} input channels")
        raise source.error(f"it is {kind}; {TRAINABLE}")
    if (
        unet.get("addition_embed_type")
        and not is_xl
        or unet.get("encoder_hid_dim_type")
        or unet.get("class_embed_type")
    ):
        raise source.error(f"its UNet takes more than Stable Diffusion's text; {TRAINABLE}")
    if is_xl and not _part(index, "text_encoder_2"):
        raise source.error(f"its UNet is an SDXL's, but there is no second text encoder; {TRAINABLE}")


def _choose_prediction(source, single, scheduler) -> tuple[str, str]:
    """What the model predicts by its file and configs, and by the option, if it is given."""
    own = single and single.prediction_type or scheduler.get("prediction_type", "epsilon")
    predicted = source.prediction_type or own
    if predicted not in PREDICTION_TYPES:
        raise source.error(f"it predicts {predicted}; {', '.join(PREDICTION_TYPES)} can be trained")
    return own, predicted


def _choose_zero_snr(source, single, scheduler) -> bool:
    if source.rescale_betas_zero_snr is not None:
        return source.rescale_betas_zero_snr
    return bool(single and single.zero_snr or scheduler.get("rescale_betas_zero_snr"))


def _choose_zeros(source, index, is_xl) -> bool:
    """Whether an empty prompt is zeros. Raises: UserError if the option is given to a model that knows no such thing."""
    zeros = source.force_zeros_for_empty_prompt
    if zeros is not None and not is_xl:
        raise UserError("--force_zeros_for_empty_prompt: it belongs to SDXL")
    return is_xl and index.get("force_zeros_for_empty_prompt", True) if zeros is None else zeros


def _refuse_noise_alone(source):
    problem = "where the last timestep is noise alone, predicting the noise teaches nothing"
    if source.rescale_betas_zero_snr:
        hint = "it belongs to --prediction_type v_prediction or sample"
        raise UserError(f"--rescale_betas_zero_snr: {problem}; {hint}")
    hint = "add --rescale_betas_zero_snr false, or --prediction_type v_prediction"
    raise source.error(f"its schedule ends in noise alone, and it predicts the noise; {problem}; {hint}")


def _check_clip_skip(source, single) -> int | None:
    """--clip_skip, if it is given. Raises: UserError for more than the text encoder has layers."""
    path = single.configs if single else source.path
    if source.clip_skip is not None:
        where = {"subfolder": "text_encoder", "revision": None if single else source.revision}
        try:
            encoder = PretrainedConfig.get_config_dict(path, **where)[0] if path else {}
        except (OSError, ValueError) as error:
            raise source.error(f"its text_encoder's config cannot be read ({str(error).splitlines()[0]})") from None
        layers = encoder.get("num_hidden_layers", 12)
        if source.clip_skip > layers:
            raise UserError(f"--clip_skip {source.clip_skip}: the text encoder has {layers} layers")
    return source.clip_skip
