"""LoRAs made of hypernetworks, against the hypernetwork itself."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import hypernet
from hypernet.formats.lora import peft_path, save_lora
from hypernet.modeling.lora_approximation import gather_contexts, normal_contexts, to_lora
from tests.helpers.tiny_models import generate, tiny_pipeline, tiny_unet, trained_hypernetwork

SIZE = {"width": 64, "height": 64}


def generate_with_lora(folder, name):
    pipe = tiny_pipeline()
    pipe.load_lora_weights(folder, weight_name=name)
    return generate(pipe, **SIZE)


def test_lora_of_a_linear_hypernetwork_is_exact_at_full_rank(tmp_path):
    pipe = tiny_pipeline()
    hypernet.attach(pipe.unet, trained_hypernetwork(), 0.7)
    expected = generate(pipe, **SIZE)
    hypernet.detach(pipe.unet)
    contexts = gather_contexts(
        pipe, trained_hypernetwork(), ["a red star", "a cat"], 0.7, num_inference_steps=3, **SIZE
    )
    errors = []
    for rank in (2, 8, 32):
        lora = to_lora(pipe.unet, trained_hypernetwork(), rank, contexts, 0.7)
        save_lora(lora, tmp_path / "style.safetensors")
        errors.append(np.abs(generate_with_lora(tmp_path, "style_peft.safetensors") - expected).mean())
        assert set(lora.fit_errors.values()) == {0.0}
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-5
    assert all(kept["peft"] > 1 - 1e-9 for kept in lora.kept.values())


def test_without_biases_both_formats_are_exact(tmp_path):
    pipe, unbiased = tiny_pipeline(), trained_hypernetwork(biases=False)
    lora = to_lora(pipe.unet, unbiased, 32, normal_contexts(unbiased), 0.7)
    save_lora(lora, tmp_path / "unbiased.safetensors")
    hypernet.attach(pipe.unet, unbiased, 0.7)
    exact = generate(pipe, **SIZE)
    for name in ("unbiased", "unbiased_peft"):
        assert np.abs(generate_with_lora(tmp_path, f"{name}.safetensors") - exact).max() < 1e-4


def test_kept_shares_match_the_saved_files(tmp_path):
    """The reference applies the files' matrices to the contexts the shares were measured on."""
    pipe, hypernetwork = tiny_pipeline(), trained_hypernetwork(activation="relu")
    contexts = gather_contexts(pipe, hypernetwork, ["a red star"], num_inference_steps=4, **SIZE)
    lora = to_lora(pipe.unet, hypernetwork, 4, contexts)
    save_lora(lora, tmp_path / "style.safetensors")
    kohya, peft = load_file(tmp_path / "style.safetensors"), load_file(peft_path(tmp_path / "style.safetensors"))
    sums = {width: [0.0, 0.0, 0.0] for width in contexts}
    for name, layer in pipe.unet.named_modules():
        for part in ("k", "v") if name.endswith(("attn1", "attn2")) else ():
            width = layer.to_k.in_features
            x, key = contexts[width][::5], f"lora_unet_{name.replace('.', '_')}_to_{part}"
            weight = getattr(layer, f"to_{part}").weight
            added = hypernetwork.pairs[str(width)][part](x) @ weight.T
            down, up = kohya[f"{key}.lora_down.weight"], kohya[f"{key}.lora_up.weight"]
            by_kohya = x @ down.T @ up.T * kohya[f"{key}.alpha"] / len(down)
            a, b, bias = (peft[f"unet.{name}.to_{part}.lora_{end}"] for end in ("A.weight", "B.weight", "B.bias"))
            for i, values in enumerate((added, added - by_kohya, added - x @ a.T @ b.T - bias)):
                sums[width][i] += values.square().sum().item()
            assert len(down) == len(a) == min(4, *weight.shape)
    for width, (whole, missed_by_kohya, missed_by_peft) in sums.items():
        assert lora.kept[width]["kohya"] == pytest.approx(1 - missed_by_kohya / whole, abs=1e-4)
        assert lora.kept[width]["peft"] == pytest.approx(1 - missed_by_peft / whole, abs=1e-4)
        assert 0 < lora.fit_errors[width] < 0.5 and lora.kept[width]["peft"] > lora.kept[width]["kohya"]
    assert len(kohya) == 3 * len(lora.factors) and len(peft) == 3 * len(lora.factors)


def test_fit_is_exact_where_a_relu_is_linear():
    hypernetwork = trained_hypernetwork(activation="relu")
    for pair in hypernetwork.pairs.values():
        for module in pair.values():
            module.linear[0].bias.fill_(50.0)
    contexts = normal_contexts(hypernetwork, 500)
    lora = to_lora(tiny_unet(), hypernetwork, 64, contexts)
    assert max(lora.fit_errors.values()) < 1e-9 and min(kept["peft"] for kept in lora.kept.values()) > 1 - 1e-9


def test_gathered_contexts_are_inputs_of_the_modules():
    pipe, hypernetwork, seen = tiny_pipeline(), trained_hypernetwork(), {}
    for width, pair in hypernetwork.pairs.items():
        keep = seen.setdefault(int(width), [])
        pair["k"].register_forward_pre_hook(lambda module, args, keep=keep: keep.append(args[0].flatten(0, -2).clone()))
    contexts = gather_contexts(pipe, hypernetwork, ["a red star", "a cat"], num_inference_steps=2, **SIZE)
    for width, rows in contexts.items():
        known = {row.numpy().tobytes() for row in torch.cat(seen[width])}
        assert all(row.numpy().tobytes() in known for row in rows) and len(rows) > width
    assert {type(p).__name__ for p in pipe.unet.attn_processors.values()} == {"AttnProcessor2_0"}


def test_lora_of_some_widths():
    pipe, hypernetwork = tiny_pipeline(), trained_hypernetwork(widths=(12, 32), biases=False)
    contexts = gather_contexts(pipe, hypernetwork, ["a cat"], num_inference_steps=2, **SIZE)
    lora = to_lora(pipe.unet, hypernetwork, 32, contexts)
    assert contexts.keys() == lora.kept.keys() == {12, 32} and min(kept["peft"] for kept in lora.kept.values()) > 0.999


def test_weights_that_are_not_finite_are_refused():
    hypernetwork = trained_hypernetwork()
    hypernetwork.pairs["12"]["k"].linear[0].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=hypernetwork.config.name):
        to_lora(tiny_unet(), hypernetwork, 32, normal_contexts(hypernetwork))
