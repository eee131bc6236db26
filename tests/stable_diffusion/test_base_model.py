"""Base models are identified from their configs alone, on the shapes of models in use."""

import json

import pytest
import torch
from diffusers import UNet2DConditionModel

import hypernet
from hypernet.config import TrainingConfig
from hypernet.modeling.attachment import attention_layers
from hypernet.stable_diffusion.base_model import identify_base_model
from hypernet.stable_diffusion.model_source import ModelSource
from hypernet.training.model_checks import choose_widths
from hypernet.utils.errors import UserError

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


def write_configs(path, unet=SD15, index=None, scheduler=None):
    """Write the configs of a model without weights into a folder; return its path."""
    index = (INDEX_XL if unet.get("addition_embed_type") else INDEX) if index is None else index
    configs = {"unet": unet, "vae": {"block_out_channels": [128, 256, 512, 512]}, "scheduler": scheduler or {}}
    (path / "model_index.json").write_text(json.dumps(index))
    for name, config in configs.items():
        (path / name).mkdir()
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        (path / name / file).write_text(json.dumps(config))
    return str(path)


def identify(path, **options):
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
def test_identifies_real_shapes(tmp_path, unet, widths, is_xl):
    base = identify(write_configs(tmp_path, unet))
    assert (base.context_widths, base.is_xl, base.image_multiple, base.clip_skip) == (widths, is_xl, 8, 1 + is_xl)


@pytest.mark.parametrize("config, layers", [(SD15, 16), (SDXL, 70)], ids=["SD 1.5", "SDXL"])
def test_hypernetwork_reaches_every_attention_layer(config, layers):
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config).requires_grad_(False)
        hypernetwork = hypernet.Hypernetwork([640, 1280, config["cross_attention_dim"], 320][: 3 + (config is SD15)])
        hypernet.attach(unet, hypernetwork)
        reached = {True: set(), False: set()}
        for name, layer in attention_layers(unet).items():
            names = reached[layer.is_cross_attention]
            layer.processor.stack.use_linear_maps = False  # so that each layer asks for its own contexts
            layer.to_k.register_forward_pre_hook(
                lambda _, args, name=name, names=names: args[0].requires_grad and names.add(name)
            )
        added = {"text_embeds": torch.zeros(1, 1280), "time_ids": torch.zeros(1, 6)} if config is SDXL else None
        text = torch.zeros(1, 77, config["cross_attention_dim"])
        unet(torch.zeros(1, 4, 32, 32), torch.zeros(1), text, added_cond_kwargs=added)
    assert {is_cross: len(names) for is_cross, names in reached.items()} == {True: layers, False: layers}


@pytest.mark.parametrize(
    "unet, index, named",
    [
        ({**SD15, "in_channels": 9}, INDEX, "inpainting"),
        ({**SD15, "in_channels": 5}, INDEX, "depth"),
        ({**SD15, "in_channels": 8}, INDEX, "pix2pix"),
        ({**SD15, "in_channels": 6}, INDEX, "6 input channels"),
        (SD15, {"_class_name": "FluxPipeline", "transformer": ["diffusers", "X"]}, "FluxPipeline"),
        (SD15, {**INDEX, "unet": ["diffusers", "UNet3DConditionModel"]}, "UNet3DConditionModel"),
        (SD15, {**INDEX, "text_encoder": ["transformers", "T5EncoderModel"]}, "text_encoder.*T5EncoderModel"),
        (SD15, {**INDEX, "vae": ["diffusers", "AutoencoderTiny"]}, "VAE.*AutoencoderTiny"),
        (SDXL, {**INDEX_XL, "text_encoder": [None, None]}, "refiner"),
        (SDXL, {**INDEX_XL, "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}, "FlowMatch"),
        (SDXL, {**INDEX_XL, "scheduler": ["diffusers", "EDMDPMSolverMultistepScheduler"]}, "EDM"),
        ({**SDXL, "encoder_hid_dim_type": "text_proj"}, INDEX_XL, "its UNet"),
        ({**SD15, "class_embed_type": "projection"}, INDEX, "its UNet"),
        (SDXL, INDEX, "second text encoder"),
    ],
)
def test_refuses_other_kinds_of_models(tmp_path, unet, index, named):
    with pytest.raises(UserError, match=f"--pretrained_model_name_or_path .*{named}") as error:
        identify(write_configs(tmp_path, unet, index))
    assert "Stable Diffusion 1.x, 2.x and SDXL" in str(error.value) and "\n" not in str(error.value)


def test_prediction_type_and_zero_terminal_snr_come_from_config_or_options(tmp_path):
    path = write_configs(tmp_path, scheduler={"prediction_type": "v_prediction", "rescale_betas_zero_snr": True})
    base = identify(path)
    assert (base.prediction_type, base.zero_terminal_snr) == ("v_prediction", True)
    assert identify(path, prediction_type="sample").prediction_type == "sample"
    with pytest.raises(UserError, match="--pretrained_model_name_or_path.*--rescale_betas_zero_snr false"):
        identify(path, prediction_type="epsilon")
    with pytest.raises(UserError, match="^--rescale_betas_zero_snr.*--prediction_type"):
        identify(path, prediction_type="epsilon", rescale_betas_zero_snr=True)
    base = identify(path, prediction_type="epsilon", rescale_betas_zero_snr=False)
    assert (base.prediction_type, base.zero_terminal_snr) == ("epsilon", False)
    assert "epsilon" in base.describe() and "v_prediction" in base.describe()  # what it overrides, too


@pytest.mark.parametrize(
    "options, named",
    [
        ({"clip_skip": 3}, "--clip_skip 3.* 2 layers"),
        ({"force_zeros_for_empty_prompt": True}, "--force_zeros_for_empty_prompt.*SDXL"),
        ({"lora": ("none.safetensors",)}, "--lora none.safetensors"),
        ({"lora": ("loras/none.safetensors:1",)}, "--lora loras/none.safetensors:1"),
        ({"lora": ("{model}/unet/diffusion_pytorch_model.safetensors",)}, "--lora .*UNet"),
        ({"model_config": "x"}, "--model_config x"),
        ({"revision": "main"}, "--revision main"),
        ({"pretrained_vae_model_name_or_path": "none"}, "--pretrained_vae_model_name_or_path none"),
        (
            {"pretrained_vae_model_name_or_path": "{model}/unet"},
            "--pretrained_vae_model_name_or_path .*UNet2DConditionModel",
        ),
    ],
)
def test_refuses_options_that_do_not_go_with_the_model(models_dir, options, named):
    path = models_dir / "epsilon"

    def fill(value):
        if isinstance(value, tuple):
            return tuple(map(fill, value))
        return value.format(model=path) if isinstance(value, str) else value

    with pytest.raises(UserError, match=f"^{named}"):
        identify(path, **{key: fill(value) for key, value in options.items()})


def test_widths_default_to_those_of_the_unet(models_dir):
    needed = {"pretrained_model_name_or_path": "m", "train_data_dir": "d"}
    base = identify(models_dir / "xl")
    assert choose_widths(TrainingConfig(**needed), base) == [16, 32, 36]
    with pytest.raises(UserError, match="--widths 768.* 16,32,36"):
        choose_widths(TrainingConfig(**needed, widths="768"), base)
