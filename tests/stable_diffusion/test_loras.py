"""LoRAs fused into the base model: as diffusers applies them, with hypernetworks, and through a whole run."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

import hypernet
from hypernet.cli.generation_options import find_model
from hypernet.generation.generator import GenerationSettings, ImageGenerator
from hypernet.stable_diffusion.loras import absolute_lora, split_lora, write_lora_tag
from hypernet.stable_diffusion.text_encoding import encode_prompts, text_hash
from hypernet.utils.errors import UserError
from tests.helpers.scripts import train_here
from tests.helpers.tiny_models import open_models, tiny_pipeline, tiny_xl_pipeline


def save_lora(pipe: DiffusionPipeline, path: Path, seed: int) -> None:
    """Save a random LoRA of UNet and first text encoder, as diffusers' training scripts do."""
    torch.manual_seed(seed)
    layers = []
    for part, targets in ((pipe.unet, ["to_q", "to_k", "to_v", "to_out.0"]), (pipe.text_encoder, ["q_proj", "v_proj"])):
        inject_adapter_in_model(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=targets), part)
        layers.append(convert_state_dict_to_diffusers(get_peft_model_state_dict(part)))
    type(pipe).save_lora_weights(path.parent, *layers, weight_name=path.name)


@pytest.fixture(scope="module")
def loras(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    save_lora(tiny_pipeline(), folder / "ink.safetensors", seed=1)
    save_lora(tiny_pipeline(), folder / "pen.safetensors", seed=2)
    save_lora(tiny_xl_pipeline(), folder / "xl.safetensors", seed=3)
    return folder


def outputs(pipe, added=None):
    """Return the outputs of the UNet and the first text encoder for fixed inputs."""
    generator = torch.Generator().manual_seed(0)
    width = pipe.unet.config.cross_attention_dim
    latents, text = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 7, width, generator=generator)
    with torch.no_grad():
        prediction = pipe.unet(latents, torch.tensor([9]), text, added_cond_kwargs=added).sample
        return prediction, pipe.text_encoder(torch.tensor([[1, 2, 3]]))[0]


@pytest.mark.parametrize("model, pipeline", [("epsilon", StableDiffusionPipeline), ("xl", StableDiffusionXLPipeline)])
def test_fused_loras_equal_those_that_peft_applies(models_dir, loras, model, pipeline):
    files = [("xl", 0.5)] if model == "xl" else [("ink", 0.5), ("pen", -1.0)]
    files = [(loras / f"{name}.safetensors", scale) for name, scale in files]
    added = {"text_embeds": torch.ones(1, 24), "time_ids": torch.ones(1, 6)} if model == "xl" else None
    pipe = pipeline.from_pretrained(models_dir / model, dtype=torch.float32)
    plain = outputs(pipe, added)
    for number, (file, _) in enumerate(files):
        pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name=str(number))
    pipe.set_adapters([str(number) for number in range(len(files))], [scale for _, scale in files])
    models = open_models(models_dir / model, lora=tuple(f"{file}:{scale}" for file, scale in files))
    for ours, theirs, before in zip(outputs(models.pipeline, added), outputs(pipe, added), plain):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        assert (ours - before).abs().max() > 0.01
    without = open_models(models_dir / model)
    assert models.hash == without.hash and text_hash(models) != text_hash(without)
    assert models.unet.state_dict().keys() == without.unet.state_dict().keys()


def test_fuses_a_kohya_file_into_unet_and_both_text_encoders(models_dir, tmp_path):
    """Most LoRAs come from this trainer: they have its names, and an alpha that scales the change."""
    plain, rank, alpha = open_models(models_dir / "xl"), 2, 1.0
    layers = {
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k": ("unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"),
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": ("text_encoder", "encoder.layers.0.self_attn.q_proj"),
        "lora_te1_text_model_encoder_layers_0_self_attn_out_proj": ("text_encoder", "encoder.layers.0.self_attn.out_proj"),
        "lora_te2_text_model_encoder_layers_1_self_attn_v_proj": ("text_encoder_2", "text_model.encoder.layers.1.self_attn.v_proj"),
        "lora_te2_text_model_encoder_layers_1_self_attn_out_proj": ("text_encoder_2", "text_model.encoder.layers.1.self_attn.out_proj"),
    }  # fmt: skip
    states, changes = {}, {}
    for name, (part, layer) in layers.items():
        weight = getattr(plain.pipeline, part).get_submodule(layer).weight
        down, up = torch.randn(rank, weight.shape[1]), torch.randn(weight.shape[0], rank)
        states |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(alpha)}
        changes[part, layer] = weight + 0.5 * alpha / rank * up @ down
    save_file(states, tmp_path / "kohya.safetensors")
    fused = open_models(models_dir / "xl", lora=(f"{tmp_path / 'kohya.safetensors'}:0.5",))
    for (part, layer), expected in changes.items():
        weight = getattr(fused.pipeline, part).get_submodule(layer).weight
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("lora_first", [True, False])
def test_loras_and_hypernetworks_stack_in_any_order(models_dir, loras, lora_first):
    pipe = StableDiffusionPipeline.from_pretrained(models_dir / "epsilon", dtype=torch.float32)
    plain = outputs(pipe)
    hypernetwork = hypernet.Hypernetwork([12, 16, 32], weight_init="xavier_normal")
    both = open_models(models_dir / "epsilon", lora=(str(loras / "ink.safetensors"),)).pipeline
    hypernet.attach(both.unet, hypernetwork, 0.7)
    steps = [
        lambda: pipe.load_lora_weights(loras, weight_name="ink.safetensors"),
        lambda: hypernet.attach(pipe.unet, hypernetwork, 0.7),
    ]
    for step in steps if lora_first else reversed(steps):
        step()
    for ours, theirs in zip(outputs(pipe), outputs(both)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    steps = [pipe.unload_lora_weights, lambda: hypernet.detach(pipe.unet)]
    for step in steps if lora_first else reversed(steps):
        step()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(outputs(pipe), plain))


@pytest.fixture(scope="module")
def trained(models_dir, images_dir, loras, tmp_path_factory):
    """A run folder of a training on top of `ink.safetensors` at 0.5, with a clip skip of 2."""
    folder = tmp_path_factory.mktemp("run")
    flags = ["--max_train_steps=1", "--name=x", "--clip_skip=2", f"--lora={loras / 'ink.safetensors'}:0.5"]
    train_here(models_dir, images_dir, folder, *flags)
    return folder


def test_a_run_records_its_loras(models_dir, loras, trained):
    lora = f"{loras / 'ink.safetensors'}:0.5"
    assert json.loads((trained / "run.json").read_text())["lora"] == [lora]
    assert hypernet.load(trained / "x.pt").config.optional_info == "LoRAs underneath: ink.safetensors:0.5"
    card = (trained / "README.md").read_text()
    assert "`<lora:ink:0.5>`" in card and "clip skip 2" in card
    recipe = card.split("```python\n")[1].split("```")[0]
    names = {}
    exec(recipe.strip().rpartition("\n")[0], names)  # all but the line that generates
    ours = open_models(models_dir / "epsilon", lora=(lora,)).pipeline
    hypernet.attach(ours.unet, hypernet.load(trained))
    for one, other in zip(outputs(names["pipe"]), outputs(ours)):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_generation_uses_the_loras_of_the_run(models_dir, loras, trained, capsys):
    lora = f"{loras / 'ink.safetensors'}:0.5"
    options = json.loads((trained / "run.json").read_text())
    older = {
        key: options[key] for key in ("pretrained_model_name_or_path", "lora", "clip_skip")
    }  # before other options
    source = find_model([options, older], "")
    assert source.lora == (lora,) and source.clip_skip == 2
    other = find_model([options], "", model=str(models_dir / "v_prediction"))  # only its options on prompts apply
    assert "--lora" in capsys.readouterr().err
    assert other.lora == () and other.clip_skip == 2
    generator = ImageGenerator(open_models(models_dir / "epsilon", lora=source.lora, clip_skip=2))
    settings = GenerationSettings("a (cat)", steps=1, size=(64, 64))
    text = generator.infotext(settings, generator.generate([settings])[0])
    assert text.startswith("a \\(cat\\) <lora:ink:0.5>") and "Clip skip: 2" in text


def test_refuses_what_is_not_a_lora_for_the_model(models_dir, loras):
    ink = str(loras / "ink.safetensors")
    for texts, named in [
        ((str(loras / "xl.safetensors"),), ".*xl.safetensors.* 36 .* 12"),
        ((str(loras),), f"{loras}: .* 3 "),
        (("somebody/ink",), "somebody/ink"),
        (("0.8",), "0.8"),
        (("ink.safetensors:0",), "ink.safetensors:0"),
        ((ink, ink), ink),
    ]:
        with pytest.raises(UserError, match=f"^--lora {named}"):
            open_models(models_dir / "epsilon", lora=texts)


@pytest.mark.parametrize("layer", ["unet.other.to_k", "text_encoder.other.q_proj", "other.to_k"])
def test_refuses_a_lora_without_a_layer_of_the_model(models_dir, tmp_path, layer):
    file = tmp_path / "other.safetensors"
    save_file({f"{layer}.lora_A.weight": torch.ones(2, 12), f"{layer}.lora_B.weight": torch.ones(16, 2)}, file)
    with pytest.raises(UserError, match=f"^--lora {file}"):
        open_models(models_dir / "epsilon", lora=(str(file),))


def test_takes_the_only_file_of_a_folder(models_dir, loras, tmp_path):
    shutil.copy(loras / "ink.safetensors", tmp_path)
    models = [open_models(models_dir / "epsilon", lora=each) for each in ((), (str(tmp_path),))]
    assert not torch.equal(*(encode_prompts(each, ["a"])[0].tokens for each in models))


def test_splits_path_and_scale():
    assert split_lora("C:\\ink.safetensors") == ("C:\\ink.safetensors", 1.0)
    assert split_lora("ink.safetensors:-0.5") == ("ink.safetensors", -0.5)
    assert absolute_lora("somebody/ink:0.5") == "somebody/ink:0.5"


def test_writes_a_tag_for_any_name():
    assert write_lora_tag("a/ink.safetensors", 0.5) == "<lora:ink:0.5>"
    assert write_lora_tag("a/we:ird>1.safetensors", 1) == "<lora:we_ird_1:1>"


def test_a_damaged_lora_is_one_error(models_dir, tmp_path):
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight"
    path = tmp_path / "ink.safetensors"
    for shape in ((), (3,), (2, 0), (1, 2, 3)):
        save_file({name: torch.zeros(shape), name.replace("lora_A", "lora_B"): torch.zeros(shape)}, path)
        with pytest.raises(UserError, match=f"^--lora {path}: ") as error:
            open_models(models_dir / "epsilon", lora=(str(path),))
        assert str(error.value).isprintable(), shape
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=f"^--lora {path}: .*pipe"):
        open_models(models_dir / "epsilon", lora=(str(path),))
