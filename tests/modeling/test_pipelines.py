"""Hypernetworks in diffusers' pipelines, and what users do to a pipeline before and after: the picture stays right."""

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
from hypernet import Hypernetwork
from tests.helpers.tiny_models import tiny_pipeline, tiny_unet
from tests.modeling.test_attachment import with_hooks

PICTURE = Image.effect_noise((64, 64), 50).convert("RGB")
MASK = Image.linear_gradient("L").resize((64, 64))


def style(seed=0, widths=(12, 16, 32), activation="relu", **options):
    torch.manual_seed(seed)
    return Hypernetwork(widths, weight_init="kaiming_normal", activation=activation, **options).eval()


def pipeline(cls=None, **more):
    torch.manual_seed(0)
    pipe = tiny_pipeline()
    if cls is not None:
        parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
        pipe = cls(**parts, requires_safety_checker=False, **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def xl_pipeline(cls=StableDiffusionXLPipeline):
    pipe = tiny_pipeline()
    changes = {"addition_embed_type": "text_time", "addition_time_embed_dim": 2, "cross_attention_dim": 24}
    unet = tiny_unet(**changes, projection_class_embeddings_input_dim=12 + 6 * 2, transformer_layers_per_block=(1, 2))
    torch.manual_seed(0)
    config = CLIPTextConfig(**{**pipe.text_encoder.config.to_dict(), "projection_dim": 12})
    second = CLIPTextModelWithProjection(config).eval()
    pipe = cls(pipe.vae, pipe.text_encoder, second, pipe.tokenizer, pipe.tokenizer, unet, pipe.scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, prompt="a red star", steps=3, **arguments):
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt, generator=generator, num_inference_steps=steps, output_type="np", **arguments).images


PIPELINES = {
    "text to image": (lambda: pipeline(), {"width": 64, "height": 64}),
    "image to image": (lambda: pipeline(StableDiffusionImg2ImgPipeline), {"image": PICTURE}),
    "inpainting": (lambda: pipeline(StableDiffusionInpaintPipeline), {"image": PICTURE, "mask_image": MASK, "width": 64, "height": 64}),
    "ControlNet": (
        lambda: pipeline(StableDiffusionControlNetPipeline, controlnet=ControlNetModel.from_unet(tiny_unet(), conditioning_embedding_out_channels=(4,) * 4)),
        {"image": PICTURE},
    ),
    "SDXL": (lambda: xl_pipeline(), {"width": 64, "height": 64}),
    "SDXL image to image": (lambda: xl_pipeline(StableDiffusionXLImg2ImgPipeline), {"image": PICTURE, "strength": 0.8}),
}  # fmt: skip


@pytest.mark.parametrize("kind", PIPELINES)
def test_every_pipeline_draws_the_plain_computation(kind):
    build, arguments = PIPELINES[kind]
    hypernetwork = style(widths=(24, 16, 32) if "SDXL" in kind else (12, 16, 32))
    pipe, reference = build(), build()
    with_hooks(reference.unet, [(hypernetwork, 0.7)])
    plain = draw(pipe, **arguments)
    hypernet.attach(pipe.unet, hypernetwork, 0.7)
    drawn = draw(pipe, **arguments)
    assert np.abs(drawn - draw(reference, **arguments)).max() < 1e-5
    assert np.abs(drawn - plain).max() > 1e-3
    hypernet.detach(pipe.unet)
    assert np.array_equal(draw(pipe, **arguments), plain)


@pytest.fixture(scope="module")
def expected():
    pipe = pipeline()
    with_hooks(pipe.unet, [(style(), 0.7)])
    return draw(pipe, width=64, height=64)


def changed_pipeline(change, before):
    pipe = pipeline()
    if before:
        change(pipe)
    hypernet.attach(pipe.unet, style(), 0.7)
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
def test_what_is_done_to_a_pipeline_leaves_the_picture(expected, change, before):
    pipe = changed_pipeline(CHANGES[change], before)
    assert np.abs(draw(pipe, width=64, height=64) - expected).max() < 1e-5
    assert np.abs(draw(pipe, width=64, height=64) - expected).max() < 1e-5


def test_half_precision(expected):
    for hypernetwork in (style(), style().to(torch.bfloat16)):
        pipe = pipeline().to(dtype=torch.bfloat16)
        hypernet.attach(pipe.unet, hypernetwork, 0.7)
        assert np.abs(draw(pipe, width=64, height=64) - expected).mean() < 0.02
        assert pipe.unet.dtype == torch.bfloat16


@pytest.mark.parametrize("before, activation", [(True, "relu"), (False, "linear")])
def test_compiled_without_a_break(before, activation):
    """diffusers' documentation compiles with fullgraph=True, which fails wherever Python has to step in."""
    torch.compiler.reset()
    small = {
        "block_out_channels": (16,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
    }
    unet, reference, plain = (
        tiny_unet(**small),
        with_hooks(tiny_unet(**small), [(style(activation=activation), 0.7)]),
        tiny_unet(**small),
    )
    arguments = (torch.randn(1, 4, 8, 8), torch.tensor(3), torch.randn(1, 7, 12))
    if not before:
        hypernet.attach(unet, style(activation=activation), 0.7)
    compiled = torch.compile(unet, fullgraph=True, backend="eager")
    if before:
        hypernet.attach(compiled, style(activation=activation), 0.7)
    with torch.no_grad():
        assert (compiled(*arguments).sample - reference(*arguments).sample).abs().max() < 1e-5
        hypernet.set_strength(compiled, 0.0) if before else hypernet.detach(compiled)
        assert (compiled(*arguments).sample - plain(*arguments).sample).abs().max() < 1e-6


def test_text_is_transformed_once_per_image():
    pipe, hypernetwork, calls = pipeline(), style(), []
    hypernetwork.pairs["12"]["k"].register_forward_hook(lambda *_: calls.append(1))
    hypernet.attach(pipe.unet, hypernetwork)
    first = draw(pipe, steps=7, width=64, height=64)
    assert len(calls) == 1
    second = draw(pipe, "a blue cat", steps=5, width=64, height=64)
    assert len(calls) == 2 and np.abs(first - second).max() > 0.01
    for strength in (0.5, 1.0):
        hypernet.set_strength(pipe.unet, strength)
        again = draw(pipe, steps=7, width=64, height=64)
        assert np.array_equal(again, first) == (strength == 1.0)


def test_kept_text_is_never_stale():
    """The same tensor at the next forward, but something has changed: strength, weights, precision, or the text itself."""
    unet, hypernetwork = tiny_unet(), style()
    hypernet.attach(unet, hypernetwork)
    latents, text = torch.randn(1, 4, 8, 8), torch.randn(1, 7, 12)

    def check():
        with torch.no_grad():
            result = unet(latents, 3, text).sample
        reference = with_hooks(tiny_unet(), [(layer, strength) for layer, strength in unet._hypernetworks.layers])
        with torch.no_grad():
            assert (result - reference(latents, 3, text).sample).abs().max() < 1e-6
        return result

    results = [check()]
    hypernet.set_strength(unet, 0.5)
    results.append(check())
    with torch.no_grad():
        hypernetwork.pairs["12"]["v"].linear[0].weight.mul_(2)
    results.append(check())
    text.mul_(2)
    results.append(check())
    for parameter in hypernetwork.parameters():  # as averages of weights are swapped in; leaves no trace
        parameter.data.mul_(1.1)
    results.append(check())
    for parameter in hypernetwork.parameters():
        parameter.data = parameter.data * 0.9
    results.append(check())
    text.numpy()[:] += 1
    results.append(check())
    hypernetwork.load_state_dict(style(1).state_dict())
    results.append(check())
    hypernet.attach(unet, style(2), 0.3)
    results.append(check())
    for i, result in enumerate(results[1:]):
        assert not torch.equal(result, results[i])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_once_per_image_in_every_mode(mode):
    unet, calls = tiny_unet(), []
    with mode():
        hypernetwork = style()
        hypernetwork.pairs["12"]["k"].register_forward_hook(lambda *_: calls.append(1))
        hypernet.attach(unet, hypernetwork)
        text = torch.randn(1, 7, 12)
        unet(torch.randn(1, 4, 8, 8), 9, text)
    with torch.no_grad():
        unet(torch.randn(1, 4, 8, 8), 8, text)
    assert len(calls) == 1


def test_strength_of_one_of_several():
    unet, one, other = tiny_unet(), style(1), style(2)
    hypernet.attach(unet, one)
    hypernet.attach(unet, other)
    hypernet.set_strength(unet, 0.0, one)
    only = tiny_unet()
    hypernet.attach(only, other)
    arguments = (torch.randn(1, 4, 8, 8), 3, torch.randn(1, 7, 12))
    with torch.no_grad():
        assert torch.equal(unet(*arguments).sample, only(*arguments).sample)
    with pytest.raises(ValueError, match="no such hypernetwork on this UNet"):
        hypernet.set_strength(unet, 1.0, style(3))
    with pytest.raises(ValueError, match="no such hypernetwork on this UNet"):
        hypernet.set_strength(tiny_unet(), 1.0)


def test_what_is_no_hypernetwork_or_no_unet():
    pipe, other = pipeline(), Hypernetwork((320, 768), (1, 1))
    for call, error, message in [
        (
            lambda: hypernet.attach(pipe.unet, "style.pt"),
            TypeError,
            "a Hypernetwork, as hypernet.load gives it, not a str",
        ),
        (
            lambda: hypernet.fuse(pipe.unet, "style.pt"),
            TypeError,
            "a Hypernetwork, as hypernet.load gives it, not a str",
        ),
        (lambda: hypernet.attach(pipe, style()), TypeError, "such as pipe.unet, not on a StableDiffusionPipeline"),
        (lambda: hypernet.detach(pipe), TypeError, "such as pipe.unet"),
        (lambda: hypernet.attach(pipe.unet, style(), "0.8"), TypeError, "a strength is a number, not a str"),
        (
            lambda: hypernet.attach(pipe.unet, other),
            ValueError,
            "transforms widths 320, 768; this model has 12, 16, 32",
        ),
        (lambda: hypernet.fuse(pipe.unet, other), ValueError, "has none of this UNet's widths"),
        (lambda: hypernet.detach(pipe.unet, style()), ValueError, "no such hypernetwork on this UNet"),
    ]:
        with pytest.raises(error, match=message):
            call()
    assert not hasattr(pipe.unet, "_hypernetworks")


def test_detach_one_of_two():
    unet, one, other = tiny_unet(), style(1), style(2)
    hypernet.attach(unet, one)
    hypernet.attach(unet, other, 0.5)
    hypernet.detach(unet, one)
    only = with_hooks(tiny_unet(), [(other, 0.5)])
    arguments = (torch.randn(1, 4, 8, 8), 3, torch.randn(1, 7, 12))
    with torch.no_grad():
        assert (unet(*arguments).sample - only(*arguments).sample).abs().max() < 1e-6
    hypernet.detach(unet, other)
    assert not hasattr(unet, "_hypernetworks")


def test_detach_keeps_what_was_set_meanwhile():
    pipe = pipeline()
    hypernet.attach(pipe.unet, style())
    pipe.enable_attention_slicing(1)
    hypernet.detach(pipe.unet)
    assert {type(p).__name__ for p in pipe.unet.attn_processors.values()} == {"SlicedAttnProcessor"}


def test_attention_that_does_more_is_refused():
    class IPAdapterAttnProcessor2_0:
        pass

    pipe, processors = pipeline(), []
    layer = pipe.unet.up_blocks[1].attentions[0].transformer_blocks[0].attn2
    layer.processor, before = IPAdapterAttnProcessor2_0(), layer.processor
    processors = list(pipe.unet.attn_processors.values())
    with pytest.raises(ValueError, match="a IPAdapterAttnProcessor2_0's, which does more than attention"):
        hypernet.attach(pipe.unet, style())
    assert list(pipe.unet.attn_processors.values()) == processors
    layer.processor = before
    hypernet.attach(pipe.unet, style())
    layer.processor = IPAdapterAttnProcessor2_0()
    with pytest.raises(ValueError, match="does more than attention"):
        draw(pipe, width=64, height=64)
