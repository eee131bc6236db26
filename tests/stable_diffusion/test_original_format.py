"""The test helper `original_format` writes what diffusers reads."""

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.loaders.single_file_utils import infer_diffusers_model_type
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.helpers.original_format import original_state_dict
from tests.helpers.tiny_models import tiny_pipeline, tiny_unet


def tiny_sd2():
    base = tiny_pipeline("v_prediction")
    unet = tiny_unet(
        use_linear_projection=True,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    config = CLIPTextConfig(**base.text_encoder.config.to_dict() | {"hidden_act": "gelu", "pad_token_id": 0})
    return StableDiffusionPipeline(
        **base.components | {"unet": unet, "text_encoder": CLIPTextModel(config)}, requires_safety_checker=False
    )


def tiny_sdxl():
    base = tiny_pipeline()
    unet = tiny_unet(
        use_linear_projection=True,
        cross_attention_dim=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 20,
    )
    second = {"hidden_size": 20, "num_hidden_layers": 10, "projection_dim": 20, "hidden_act": "gelu", "pad_token_id": 0}
    config = CLIPTextConfig(**base.text_encoder.config.to_dict() | second)
    return StableDiffusionXLPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer=base.tokenizer,
        tokenizer_2=base.tokenizer,
        unet=unet,
        scheduler=base.scheduler,
    )


@pytest.mark.parametrize("make, open_clip", [(tiny_pipeline, False), (tiny_sd2, True), (tiny_sdxl, False)])
def test_diffusers_reads_the_same_weights_back(make, open_clip, tmp_path):
    pipeline, file = make(), tmp_path / "model.safetensors"
    models = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    for model in models.values():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)  # no two alike, so that none can be mistaken for another
    pipeline.save_pretrained(tmp_path / "folder")
    save_file(original_state_dict(pipeline, open_clip=open_clip), file)
    loaded = type(pipeline).from_single_file(str(file), config=str(tmp_path / "folder"))
    for name, model in models.items():
        expected, states = model.state_dict(), getattr(loaded, name).state_dict()
        assert states.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(states[key], value), f"{name} {key}"
    assert (infer_diffusers_model_type(load_file(file)) == "xl_base") == (make is tiny_sdxl)


def test_names_that_diffusers_would_accept_either_way():
    blocks = {
        "model.diffusion_model.input_blocks.3.0.": "in_layers.0 in_layers.2 emb_layers.1 out_layers.0 out_layers.3 "
        "skip_connection",
        "first_stage_model.encoder.down.1.block.0.": "norm1 conv1 norm2 conv2 nin_shortcut",
        "conditioner.embedders.1.model.transformer.resblocks.0.": "ln_1 ln_2 attn.in_proj_weight attn.in_proj_bias "
        "attn.out_proj mlp.c_fc mlp.c_proj",
    }
    states = original_state_dict(tiny_sdxl())
    for block, parts in blocks.items():
        names = [name.removeprefix(block) for name in states if name.startswith(block)]
        assert {name.removesuffix(".weight").removesuffix(".bias") for name in names} == set(parts.split())
