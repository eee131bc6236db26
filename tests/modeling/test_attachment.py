"""Attach and detach: what changes on a UNet, what comes back, and what is refused."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention

import hypernet
from hypernet import Hypernetwork
from tests.helpers.references import with_hooks
from tests.helpers.tiny_models import generate, tiny_hypernetwork, tiny_pipeline, tiny_unet, unet_inputs


def test_strength_zero_and_detached_are_bit_identical():
    unet = tiny_unet()
    processors, keys, arguments = dict(unet.attn_processors), list(unet.state_dict()), unet_inputs()
    plain = unet(*arguments).sample
    hypernet.attach(unet, tiny_hypernetwork(0), 0.0)
    assert torch.equal(unet(*arguments).sample, plain)
    hypernet.attach(unet, tiny_hypernetwork(1))
    assert not torch.equal(unet(*arguments).sample, plain)
    assert list(unet.state_dict()) == keys
    hypernet.detach(unet)
    hypernet.detach(unet)
    assert all(unet.attn_processors[name] is processor for name, processor in processors.items())
    assert torch.equal(unet(*arguments).sample, plain)


def test_every_attention_layer_of_sd15_is_reached():
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        hypernet.attach(unet, Hypernetwork())
        layers = [module for module in unet.modules() if isinstance(module, Attention)]
        processors = {type(layer.processor).__name__ for layer in layers}
    assert len(layers) == 32 and processors == {"HypernetworkAttnProcessor"}


def test_set_strength_of_one_of_two():
    unet, one, other = tiny_unet(), tiny_hypernetwork(1), tiny_hypernetwork(2)
    hypernet.attach(unet, one)
    hypernet.attach(unet, other)
    hypernet.set_strength(unet, 0.0, one)
    only = tiny_unet()
    hypernet.attach(only, other)
    with torch.no_grad():
        assert torch.equal(unet(*unet_inputs()).sample, only(*unet_inputs()).sample)
    for target in (unet, tiny_unet()):
        with pytest.raises(ValueError):
            hypernet.set_strength(target, 1.0, tiny_hypernetwork(3))
    with pytest.raises(ValueError):
        hypernet.set_strength(tiny_unet(), 1.0)


def test_detach_one_of_two():
    unet, one, other = tiny_unet(), tiny_hypernetwork(1), tiny_hypernetwork(2)
    hypernet.attach(unet, one)
    hypernet.attach(unet, other, 0.5)
    hypernet.detach(unet, one)
    only = with_hooks(tiny_unet(), [(other, 0.5)])
    with torch.no_grad():
        assert (unet(*unet_inputs()).sample - only(*unet_inputs()).sample).abs().max() < 1e-6
    hypernet.detach(unet, other)
    assert not hasattr(unet, "_hypernetworks")


def test_detach_keeps_processors_set_since_attach():
    pipe = tiny_pipeline()
    hypernet.attach(pipe.unet, tiny_hypernetwork())
    pipe.enable_attention_slicing(1)
    hypernet.detach(pipe.unet)
    assert {type(p).__name__ for p in pipe.unet.attn_processors.values()} == {"SlicedAttnProcessor"}


OTHER_WIDTHS = "320, 768.* 12, 16, 32"  # the hypernetwork's, then the UNet's
REFUSED = {
    "attach a path": (lambda pipe: hypernet.attach(pipe.unet, "style.pt"), TypeError, "Hypernetwork.* str"),
    "fuse a path": (lambda pipe: hypernet.fuse(pipe.unet, "style.pt"), TypeError, "Hypernetwork.* str"),
    "attach to a pipeline": (lambda pipe: hypernet.attach(pipe, tiny_hypernetwork()), TypeError, "pipe.unet"),
    "detach from a pipeline": (lambda pipe: hypernet.detach(pipe), TypeError, "pipe.unet"),
    "strength": (lambda pipe: hypernet.attach(pipe.unet, tiny_hypernetwork(), "0.8"), TypeError, "strength"),
    "attach other widths": (lambda pipe: hypernet.attach(pipe.unet, other_widths()), ValueError, OTHER_WIDTHS),
    "fuse other widths": (lambda pipe: hypernet.fuse(pipe.unet, other_widths()), ValueError, OTHER_WIDTHS),
    "detach another": (lambda pipe: hypernet.detach(pipe.unet, tiny_hypernetwork()), ValueError, "hypernetwork"),
}


def other_widths():
    return Hypernetwork((320, 768), (1, 1))


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_arguments_are_refused(case):
    (call, error, named), pipe = REFUSED[case], tiny_pipeline()
    with pytest.raises(error, match=named):
        call(pipe)
    assert not hasattr(pipe.unet, "_hypernetworks")


def test_processors_that_compute_more_are_refused():
    class IPAdapterAttnProcessor2_0:
        pass

    pipe = tiny_pipeline()
    layer = pipe.unet.up_blocks[1].attentions[0].transformer_blocks[0].attn2
    layer.processor, before = IPAdapterAttnProcessor2_0(), layer.processor
    processors = list(pipe.unet.attn_processors.values())
    with pytest.raises(ValueError, match="IPAdapterAttnProcessor2_0"):
        hypernet.attach(pipe.unet, tiny_hypernetwork())
    assert list(pipe.unet.attn_processors.values()) == processors
    layer.processor = before
    hypernet.attach(pipe.unet, tiny_hypernetwork())
    layer.processor = IPAdapterAttnProcessor2_0()
    with pytest.raises(ValueError, match="IPAdapterAttnProcessor2_0"):
        generate(pipe, width=64, height=64)
