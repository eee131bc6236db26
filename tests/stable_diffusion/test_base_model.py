"""What is recognised from a model's configs alone, at the shapes of the models that people have; what is loaded of it."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file

import hypernet
from hypernet.config import TrainingConfig
from hypernet.data.latents import vae_notes
from hypernet.modeling.attachment import attention_layers
from hypernet.stable_diffusion.base_model import identify_base_model
from hypernet.stable_diffusion.model_source import ModelSource
from hypernet.training.setup import choose_widths
from hypernet.utils.errors import UserError
from tests.helpers.tiny_models import open_models, tiny_vae

SD15 = {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768, "attention_head_dim": 8}
SD21 = {**SD15, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
SDXL = {
    **SD15,
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SSD_1B = {**SDXL, "transformer_layers_per_block": [0, 2, 4], "mid_block_type": "UNetMidBlock2D"}  # a distilled SDXL
TINY_SD = {**SD15, "layers_per_block": 1, "mid_block_type": None, "down_block_types": ["CrossAttnDownBlock2D"] * 3}
TINY_SD |= {"block_out_channels": [320, 640, 1280], "up_block_types": ["CrossAttnUpBlock2D"] * 3}
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "scheduler": ["diffusers", "PNDMScheduler"],
}
INDEX_XL = {**INDEX, "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}


def folder(path, unet=SD15, index=None, vae=None, scheduler=None):
    index = (INDEX_XL if unet.get("addition_embed_type") else INDEX) if index is None else index
    configs = {"unet": unet, "vae": vae or {"block_out_channels": [128, 256, 512, 512]}, "scheduler": scheduler or {}}
    (path / "model_index.json").write_text(json.dumps(index))
    for name, config in configs.items():
        (path / name).mkdir()
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        (path / name / file).write_text(json.dumps(config))
    return str(path)


def recognised(path, **options):
    return identify_base_model(ModelSource(str(path), **options))


@pytest.mark.parametrize(
    "unet, widths, is_xl",
    [
        (SD15, [320, 640, 768, 1280], False),
        (SD21, [320, 640, 1024, 1280], False),
        (SDXL, [640, 1280, 2048], True),
        (SSD_1B, [640, 1280, 2048], True),
        (TINY_SD, [320, 640, 768, 1280], False),
    ],
    ids=["SD 1.5", "SD 2.1", "SDXL", "SSD-1B", "tiny-sd"],
)
def test_the_real_shapes(tmp_path, unet, widths, is_xl):
    base = recognised(folder(tmp_path, unet))
    assert (base.context_widths, base.is_xl, base.image_multiple, base.clip_skip) == (widths, is_xl, 8, 1 + is_xl)


@pytest.mark.parametrize("config, layers", [(SD15, 16), (SDXL, 70)], ids=["SD 1.5", "SDXL"])
def test_every_attention_layer_of_the_real_shapes_is_reached(config, layers):
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config).requires_grad_(False)
        hypernetwork = hypernet.Hypernetwork([640, 1280, config["cross_attention_dim"], 320][: 3 + (config is SD15)])
        hypernet.attach(unet, hypernetwork)
        seen = {True: set(), False: set()}
        for name, layer in attention_layers(unet).items():
            kind = seen[layer.is_cross_attention]
            layer.processor.stack.folding = False  # so that each layer asks for its own contexts
            layer.to_k.register_forward_pre_hook(
                lambda _, args, name=name, kind=kind: args[0].requires_grad and kind.add(name)
            )
        added = {"text_embeds": torch.zeros(1, 1280), "time_ids": torch.zeros(1, 6)} if config is SDXL else None
        text = torch.zeros(1, 77, config["cross_attention_dim"])
        unet(torch.zeros(1, 4, 32, 32), torch.zeros(1), text, added_cond_kwargs=added)
    assert {cross: len(names) for cross, names in seen.items()} == {True: layers, False: layers}


@pytest.mark.parametrize(
    "unet, index, message",
    [
        ({**SD15, "in_channels": 9}, INDEX, "it is an inpainting model; Stable Diffusion 1.x, 2.x and SDXL can be"),
        ({**SD15, "in_channels": 5}, INDEX, "it is a depth model"),
        ({**SD15, "in_channels": 8}, INDEX, "it is a pix2pix model"),
        ({**SD15, "in_channels": 6}, INDEX, "it is another kind of model, with 6 input channels; Stable Diffusion 1.x"),
        (
            SD15,
            {"_class_name": "FluxPipeline", "transformer": ["diffusers", "X"]},
            "it is a FluxPipeline, which has no",
        ),
        (SD15, {**INDEX, "unet": ["diffusers", "UNet3DConditionModel"]}, "its UNet is a UNet3DConditionModel"),
        (SD15, {**INDEX, "text_encoder": ["transformers", "T5EncoderModel"]}, "its text_encoder is T5EncoderModel"),
        (SD15, {**INDEX, "vae": ["diffusers", "AutoencoderTiny"]}, "its VAE is AutoencoderTiny"),
        (SDXL, {**INDEX_XL, "text_encoder": [None, None]}, "it is an SDXL refiner"),
        (
            SDXL,
            {**INDEX_XL, "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]},
            "its schedule is FlowMatch's",
        ),
        (SDXL, {**INDEX_XL, "scheduler": ["diffusers", "EDMDPMSolverMultistepScheduler"]}, "its schedule is EDM's"),
        ({**SDXL, "encoder_hid_dim_type": "text_proj"}, INDEX_XL, "its UNet takes more than Stable Diffusion's text"),
        ({**SD15, "class_embed_type": "projection"}, INDEX, "its UNet takes more"),
        (SDXL, INDEX, "no second text encoder"),
    ],
)
def test_other_models_are_refused(tmp_path, unet, index, message):
    with pytest.raises(UserError, match=message) as error:
        recognised(folder(tmp_path, unet, index))
    assert "\n" not in str(error.value)


def test_what_is_predicted(tmp_path):
    path = folder(tmp_path, scheduler={"prediction_type": "v_prediction", "rescale_betas_zero_snr": True})
    base = recognised(path)
    assert (base.prediction_type, base.zero_snr) == ("v_prediction", True)
    assert recognised(path, prediction_type="sample").prediction_type == "sample"
    with pytest.raises(UserError, match="its schedule ends in noise alone, and it predicts the noise; .* false, or"):
        recognised(path, prediction_type="epsilon")
    with pytest.raises(UserError, match="--rescale_betas_zero_snr: where the last timestep is noise alone"):
        recognised(path, prediction_type="epsilon", rescale_betas_zero_snr=True)
    base = recognised(path, prediction_type="epsilon", rescale_betas_zero_snr=False)
    assert not base.zero_snr and "predicts epsilon (its config says v_prediction)" in base.describe()
    with pytest.raises(UserError, match="--prediction_type flow: choose one of epsilon, v_prediction, sample"):
        ModelSource(path, prediction_type="flow")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"clip_skip": 0}, "--clip_skip 0: it must be 1 or more"),
        ({"clip_skip": 3}, "--clip_skip 3: the text encoder has 2 layers"),
        ({"max_token_chunks": 0}, "--max_token_chunks 0: it must be 1 or more"),
        ({"force_zeros_for_empty_prompt": True}, "--force_zeros_for_empty_prompt: it belongs to SDXL"),
        ({"lora": ("none.safetensors",)}, "--lora none.safetensors: there is no such file"),
        ({"lora": ("a:b",)}, "--lora a:b: write PATH, or PATH:SCALE"),
        ({"lora": ("{model}/unet/diffusion_pytorch_model.safetensors",)}, "it is the UNet of a .*, and no LoRA"),
        ({"model_config": "x"}, "--model_config x: it belongs to a model in a single file"),
        ({"revision": "main"}, "--revision main: it belongs to a model on the Hub"),
        ({"lora": ("loras/none.safetensors:1",)}, "--lora loras/none.safetensors:1: there is no such file"),
        ({"pretrained_vae_model_name_or_path": "none"}, "there is no such file or folder"),
        ({"pretrained_vae_model_name_or_path": "{model}/unet"}, "it is a UNet2DConditionModel, not an AutoencoderKL"),
    ],
)
def test_options_that_do_not_go_with_the_model(models_dir, options, message):
    path = models_dir / "epsilon"
    fill = lambda value: value.format(model=path) if isinstance(value, str) else value  # noqa: E731
    options = {
        key: tuple(map(fill, value)) if isinstance(value, tuple) else fill(value) for key, value in options.items()
    }
    with pytest.raises(UserError, match=message):
        recognised(path, **options)


def test_widths(models_dir):
    needed = {"pretrained_model_name_or_path": "m", "train_data_dir": "d"}
    base = recognised(models_dir / "xl")
    assert choose_widths(TrainingConfig(**needed), base) == [16, 32, 36]
    with pytest.raises(UserError, match="--widths 768: the UNet has no attention layer of width 768; it has 16,32,36"):
        choose_widths(TrainingConfig(**needed, widths="768"), base)


def test_models_are_frozen_and_cast(models_dir):
    for model in ("v_prediction", "xl"):
        models = open_models(models_dir / model, unet_dtype=torch.float16)
        assert models.scheduler.config.prediction_type == ("epsilon" if model == "xl" else "v_prediction")
        for module, dtype in [(models.unet, torch.float16), *((part, torch.float32) for part in models.text_encoders)]:
            assert not module.training and {p.dtype for p in module.parameters()} == {dtype}
            assert not any(p.requires_grad for p in module.parameters())


def test_a_text_encoder_in_which_tensors_are_missing(models_dir, tmp_path):
    shutil.copytree(models_dir / "epsilon", tmp_path / "model")
    file = tmp_path / "model" / "text_encoder" / "model.safetensors"
    states = load_file(file)
    save_file(
        {name: value for name, value in states.items() if "layers.0.layer_norm1" not in name}, file, {"format": "pt"}
    )
    with pytest.raises(
        UserError, match="it cannot be loaded: tensors are missing in its text_encoder, such as .*layer_norm1"
    ):
        open_models(tmp_path / "model")


def test_missing_weights_are_told_in_one_line(tmp_path):
    with pytest.raises(UserError, match="--pretrained_model_name_or_path .*: it cannot be loaded") as error:
        open_models(folder(tmp_path))
    assert "\n" not in str(error.value)


class Deviating:
    """Latents of a known deviation."""

    def __init__(self, deviation):
        self.deviation = deviation

    def __len__(self):
        return 100

    def sample(self, index, crop, flip, generator):
        return self.deviation * torch.randn(4, 16, 16, generator=generator)


def test_another_vae(models_dir, tmp_path):
    other = tiny_vae(scaling_factor=0.13)
    torch.nn.init.normal_(other.encoder.conv_in.weight)
    other.save_pretrained(tmp_path / "vae")
    tiny_vae(latent_channels=16).save_pretrained(tmp_path / "flux")
    models = open_models(models_dir / "epsilon", pretrained_vae_model_name_or_path=str(tmp_path / "vae"))
    assert isinstance(models.vae, AutoencoderKL) and models.vae.config.scaling_factor == 0.13
    assert torch.equal(models.vae.encoder.conv_in.weight, other.encoder.conv_in.weight)
    scale, deviation = vae_notes(models.base, Deviating(5.0))
    assert "its scale is 0.13, the model's 0.7" in scale and "latents deviate by 5.0" in deviation
    assert vae_notes(open_models(models_dir / "epsilon").base, Deviating(1.0)) == []
    with pytest.raises(UserError, match="its latents have 16 channels, the model's 4"):
        recognised(models_dir / "epsilon", pretrained_vae_model_name_or_path=str(tmp_path / "flux"))
