"""The UNet in 4 and 8 bits: close to the original, with right gradients, and of the size that is predicted."""

import bitsandbytes
import pytest
import torch

import hypernet
from hypernet.modeling.attachment import attention_layers
from hypernet.stable_diffusion.quantization import QuantizedLinear, quantize, weight_bytes
from tests.helpers.scripts import read_csv, train_here
from tests.helpers.tiny_models import tiny_unet

# Greatest relative distance from the original UNet's output; least cosine between the gradients of both
LIMITS = {"nf4": (0.2, 0.95), "int8": (0.02, 0.999)}


def wide_unet():
    """Return a tiny UNet with widths that are multiples of a block."""
    return tiny_unet(block_out_channels=(64, 128), cross_attention_dim=192)


def step(unet, hypernetwork):
    """Return the prediction, and the hypernetwork's gradients, for fixed inputs."""
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 7, 192, generator=generator)
    hypernetwork.zero_grad()
    with torch.no_grad():
        unet(latents, torch.tensor([3, 700]), text)  # as in a preview: it must not spoil later gradients
    prediction = hypernet.HypernetworkUNet(unet, hypernetwork)(latents, torch.tensor([3, 700]), text)
    prediction.square().mean().backward()
    hypernet.detach(unet)
    return prediction.detach(), torch.cat([weight.grad.flatten() for weight in hypernetwork.parameters()])


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize(
    "structure", [{}, {"activation": "swish", "layer_norm": True, "layer_structure": (1, 2, 2, 1)}]
)
def test_outputs_and_gradients_are_close_to_the_original(kind, structure):
    torch.manual_seed(0)
    hypernetwork = hypernet.Hypernetwork([64, 128, 192], weight_init="xavier_normal", **structure)
    plain, quantized = (wide_unet() for _ in range(2))
    quantize(quantized, kind, torch.float32, "cpu")
    (expected, gradients), (found, moved) = step(plain, hypernetwork), step(quantized, hypernetwork)
    distance, cosine = LIMITS[kind]
    assert 0 < (found - expected).norm() / expected.norm() < distance
    assert torch.cosine_similarity(moved, gradients, dim=0) > cosine


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_layer_equals_a_linear_one_with_the_rounded_weight(kind):
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(96, 40), torch.randn(2, 5, 96, requires_grad=True)
    if kind == "nf4":
        rounded = bitsandbytes.functional.dequantize_nf4(*bitsandbytes.functional.quantize_nf4(linear.weight.data))
    else:
        packed, scales, _ = bitsandbytes.functional.int8_vectorwise_quant(linear.weight.data.half())
        rounded = bitsandbytes.functional.int8_vectorwise_dequant(packed, scales)
    layer = QuantizedLinear(linear, kind, torch.float32, "cpu")
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        y = layer(x)
    assert {tensor.data_ptr() for tensor in kept} <= {layer.packed.data_ptr(), layer.scales.data_ptr()}
    expected = torch.nn.functional.linear(x, rounded, linear.bias)
    torch.testing.assert_close(y, expected)
    (gradient,), (right,) = (torch.autograd.grad(out.square().sum(), x) for out in (y, expected))
    torch.testing.assert_close(gradient, right)
    layer = QuantizedLinear(linear, kind, torch.bfloat16, "cpu")
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype is torch.bfloat16  # as from nn.Linear
    assert torch.autograd.grad(layer(x).sum(), x)[0].dtype is torch.float32


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantizes_all_of_attention_and_nothing_else(kind):
    unet = wide_unet()
    before = weight_bytes(unet, None, torch.float32)
    counted = weight_bytes(unet, kind, torch.float32)
    quantize(unet, kind, torch.float32, "cpu")
    one_byte = {name for name, weight in unet.named_parameters() if weight.dtype in (torch.uint8, torch.int8)}
    layers = {f"{name}.{part}" for name in attention_layers(unet) for part in ("to_q", "to_k", "to_v", "to_out.0")}
    assert {f"{name}.packed" for name in layers} <= one_byte and all(".attentions." in name for name in one_byte)
    assert sum(weight.numel() * weight.element_size() for weight in unet.parameters()) == counted < before
    assert not list(unet.buffers())  # distributed training would broadcast them


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_trains_on_a_quantized_model(models_dir, images_dir, tmp_path, kind):
    flags = ["--max_train_steps=2", "--use_8bit_adam", "--name=x", "--gradient_checkpointing", "--logging_steps=1"]
    flags.append("--learning_rate=1e-3")
    train_here(models_dir, images_dir, tmp_path / "quantized", *flags, f"--quantize={kind}")
    train_here(models_dir, images_dir, tmp_path / "original", *flags)
    loss, original = (read_csv(tmp_path / n / "hypernetwork_loss.csv", "loss") for n in ("quantized", "original"))
    assert loss == pytest.approx(original, rel=0.05) and loss != original
    trained = hypernet.load(tmp_path / "quantized" / "x.pt")
    assert trained.config.step == 2 and all(weight.isfinite().all() for weight in trained.parameters())
