"""Hypernetworks in diffusers' pipelines, with what users do to a pipeline before or after, against the reference."""

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

import hypernet
from tests.helpers.references import with_hooks
from tests.helpers.tiny_models import ONE_LEVEL, generate, tiny_hypernetwork, tiny_pipeline, tiny_unet, unet_inputs

SIZE = {"width": 64, "height": 64}
IMAGE = Image.effect_noise((64, 64), 50).convert("RGB")
MASK = Image.linear_gradient("L").resize((64, 64))


def pipeline(cls, **more):
    """Return another pipeline with the parts of the tiny one."""
    parts = {name: part for name, part in tiny_pipeline().components.items() if name != "image_encoder"}
    return cls(**parts, requires_safety_checker=False, **more)


def xl_pipeline(cls=StableDiffusionXLPipeline):
    pipe = tiny_pipeline()
    changes = {"addition_embed_type": "text_time", "addition_time_embed_dim": 2, "cross_attention_dim": 24}
    unet = tiny_unet(**changes, projection_class_embeddings_input_dim=12 + 6 * 2, transformer_layers_per_block=(1, 2))
    torch.manual_seed(0)
    config = CLIPTextConfig(**{**pipe.text_encoder.config.to_dict(), "projection_dim": 12})
    second = CLIPTextModelWithProjection(config).eval()
    return cls(pipe.vae, pipe.text_encoder, second, pipe.tokenizer, pipe.tokenizer, unet, pipe.scheduler)


def controlnet_pipeline():
    controlnet = ControlNetModel.from_unet(tiny_unet(), conditioning_embedding_out_channels=(4,) * 4)
    return pipeline(StableDiffusionControlNetPipeline, controlnet=controlnet)


PIPELINES = {
    "text to image": (tiny_pipeline, SIZE),
    "image to image": (lambda: pipeline(StableDiffusionImg2ImgPipeline), {"image": IMAGE}),
    "inpainting": (lambda: pipeline(StableDiffusionInpaintPipeline), {"image": IMAGE, "mask_image": MASK, **SIZE}),
    "ControlNet": (controlnet_pipeline, {"image": IMAGE}),
    "SDXL": (xl_pipeline, SIZE),
    "SDXL image to image": (lambda: xl_pipeline(StableDiffusionXLImg2ImgPipeline), {"image": IMAGE, "strength": 0.8}),
}


@pytest.mark.parametrize("kind", PIPELINES)
def test_every_pipeline_matches_the_reference(kind):
    build, arguments = PIPELINES[kind]
    hypernetwork = tiny_hypernetwork(widths=(24, 16, 32) if "SDXL" in kind else (12, 16, 32)).eval()
    pipe, reference = build(), build()
    with_hooks(reference.unet, [(hypernetwork, 0.7)])
    plain = generate(pipe, **arguments)
    hypernet.attach(pipe.unet, hypernetwork, 0.7)
    generated = generate(pipe, **arguments)
    assert np.abs(generated - generate(reference, **arguments)).max() < 1e-5
    assert np.abs(generated - plain).max() > 1e-3
    hypernet.detach(pipe.unet)
    assert np.array_equal(generate(pipe, **arguments), plain)


@pytest.fixture(scope="module")
def expected():
    pipe = tiny_pipeline()
    with_hooks(pipe.unet, [(tiny_hypernetwork().eval(), 0.7)])
    return generate(pipe, **SIZE)


def changed_pipeline(change, before):
    pipe = tiny_pipeline()
    if before:
        change(pipe)
    hypernet.attach(pipe.unet, tiny_hypernetwork().eval(), 0.7)
    if not before:
        change(pipe)
    return pipe


CHANGES = {
    "attention slicing": lambda pipe: pipe.enable_attention_slicing(1),
    "slicing on and off": lambda pipe: (pipe.enable_attention_slicing(1), pipe.disable_attention_slicing()),
    "VAE slicing": lambda pipe: pipe.vae.enable_slicing(),
    "to": lambda pipe: pipe.to("cpu"),
    "half and back": lambda pipe: (pipe.to(torch.float64), pipe.to(torch.float32)),
    "offload": lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
    "channels last": lambda pipe: pipe.unet.to(memory_format=torch.channels_last),
    "FreeU off again": lambda pipe: (pipe.enable_freeu(1, 1, 1, 1), pipe.disable_freeu()),
}


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_changes_to_a_pipeline_keep_the_image(expected, change, before):
    pipe = changed_pipeline(CHANGES[change], before)
    assert np.abs(generate(pipe, **SIZE) - expected).max() < 1e-5
    assert np.abs(generate(pipe, **SIZE) - expected).max() < 1e-5


def test_bfloat16_pipeline(expected):
    """The images are no further from float32 than those of the reference; how far depends on PyTorch's kernels."""

    def error(attach):
        pipe = tiny_pipeline().to(dtype=torch.bfloat16)
        attach(pipe.unet)
        assert pipe.unet.dtype == torch.bfloat16
        return np.abs(generate(pipe, **SIZE) - expected).mean()

    reference = error(lambda unet: with_hooks(unet, [(tiny_hypernetwork().eval().to(torch.bfloat16), 0.7)]))
    for hypernetwork in (tiny_hypernetwork().eval(), tiny_hypernetwork().eval().to(torch.bfloat16)):
        assert error(lambda unet, attached=hypernetwork: hypernet.attach(unet, attached, 0.7)) < 2 * reference + 0.02


@pytest.mark.parametrize("before, activation", [(True, "relu"), (False, "linear")])
def test_compiles_without_graph_breaks(before, activation):
    """diffusers' documentation compiles with fullgraph=True, which fails at any graph break."""
    torch.compiler.reset()
    hypernetwork = tiny_hypernetwork(activation=activation).eval()
    unet, plain = tiny_unet(**ONE_LEVEL), tiny_unet(**ONE_LEVEL)
    reference = with_hooks(tiny_unet(**ONE_LEVEL), [(hypernetwork, 0.7)])
    if not before:
        hypernet.attach(unet, hypernetwork, 0.7)
    compiled = torch.compile(unet, fullgraph=True, backend="eager")
    if before:
        hypernet.attach(compiled, hypernetwork, 0.7)
    with torch.no_grad():
        assert (compiled(*unet_inputs()).sample - reference(*unet_inputs()).sample).abs().max() < 1e-5
        hypernet.set_strength(compiled, 0.0) if before else hypernet.detach(compiled)
        assert (compiled(*unet_inputs()).sample - plain(*unet_inputs()).sample).abs().max() < 1e-6
