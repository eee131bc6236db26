"""LoRAs underneath: folded in as diffusers applies them; with hypernetworks in any order; trained over and drawn with."""

import json
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

import hypernet
from hypernet.cli.generation_options import find_model
from hypernet.generation.generator import GenerationSettings, ImageGenerator
from hypernet.stable_diffusion.loras import absolute_lora, split_lora
from hypernet.stable_diffusion.text_encoding import encode_prompts, text_hash
from hypernet.utils.errors import UserError
from tests.helpers.scripts import train_here
from tests.helpers.tiny_models import open_models, tiny_pipeline, tiny_xl_pipeline


def save_lora(pipe, path, seed):
    """A random LoRA of UNet and first text encoder, as a training script of diffusers saves one."""
    torch.manual_seed(seed)
    config = LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    pipe.unet.add_adapter(config)
    text = LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["q_proj", "v_proj"])
    pipe.text_encoder.add_adapter(text)
    layers = [
        convert_state_dict_to_diffusers(get_peft_model_state_dict(part)) for part in (pipe.unet, pipe.text_encoder)
    ]
    type(pipe).save_lora_weights(
        path.parent, unet_lora_layers=layers[0], text_encoder_lora_layers=layers[1], weight_name=path.name
    )


@pytest.fixture(scope="module")
def loras(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    save_lora(tiny_pipeline(), folder / "ink.safetensors", seed=1)
    save_lora(tiny_pipeline(), folder / "pen.safetensors", seed=2)
    save_lora(tiny_xl_pipeline(), folder / "xl.safetensors", seed=3)
    return folder


def outputs(pipe, added=None):
    """What the UNet and the first text encoder say of the same inputs."""
    generator = torch.Generator().manual_seed(0)
    width = pipe.unet.config.cross_attention_dim
    latents, text = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 7, width, generator=generator)
    with torch.no_grad():
        said = pipe.unet(latents, torch.tensor([9]), text, added_cond_kwargs=added).sample
        return said, pipe.text_encoder(torch.tensor([[1, 2, 3]]))[0]


@pytest.mark.parametrize("model, pipeline", [("epsilon", StableDiffusionPipeline), ("xl", StableDiffusionXLPipeline)])
def test_folded_in_as_peft_applies_them(models_dir, loras, model, pipeline):
    files = (
        [(loras / "xl.safetensors", 0.5)]
        if model == "xl"
        else [(loras / "ink.safetensors", 0.5), (loras / "pen.safetensors", -1.0)]
    )
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


def test_a_kohya_file_reaches_unet_and_both_text_encoders(models_dir, tmp_path):
    """The trainer most LoRAs come from: its names, and its alpha, by which the change is scaled."""
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
    folded = open_models(models_dir / "xl", lora=(f"{tmp_path / 'kohya.safetensors'}:0.5",))
    for (part, layer), expected in changes.items():
        weight = getattr(folded.pipeline, part).get_submodule(layer).weight
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("lora_first", [True, False])
def test_with_a_hypernetwork_in_any_order(models_dir, loras, lora_first):
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


def test_a_training_over_a_lora(models_dir, images_dir, loras, tmp_path, capsys):
    """The run records it, its previews have it, and so has what is drawn with the result."""
    lora = f"{loras / 'ink.safetensors'}:0.5"
    flags = ["--max_train_steps=1", "--name=x", "--clip_skip=2", f"--lora={lora}"]
    train_here(models_dir, images_dir, tmp_path / "run", *flags)
    options = json.loads((tmp_path / "run" / "run.json").read_text())
    assert options["lora"] == [lora]
    assert hypernet.load(tmp_path / "run" / "x.pt").config.optional_info == "LoRAs underneath: ink.safetensors:0.5"
    card = (tmp_path / "run" / "README.md").read_text()
    assert "It was trained over LoRAs, which belong to it; in the WebUI write `<lora:ink:0.5>` beside it." in card
    assert "clip skip 2, which the WebUI has to be set to" in card

    code = card.split("```python\n")[1].split("```")[0]  # the recipe on the card draws with all of it
    given = {}
    exec(code.strip().rpartition("\n")[0], given)
    ours = open_models(models_dir / "epsilon", lora=(lora,)).pipeline
    hypernet.attach(ours.unet, hypernet.load(tmp_path / "run"))
    for one, other in zip(outputs(given["pipe"]), outputs(ours)):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)

    class Args:
        model = None

    older = {key: options[key] for key in ("pretrained_model_name_or_path", "lora", "clip_skip")}
    source = find_model(Args, [options, older], "")  # a run that did not know the other options yet
    assert source.lora == (lora,) and source.clip_skip == 2
    Args.model = str(models_dir / "v_prediction")  # of another model only how prompts are read is taken over
    other = find_model(Args, [options], "")
    assert "whose --lora are not taken" in capsys.readouterr().err
    assert other.lora == () and other.clip_skip == 2
    generator = ImageGenerator(open_models(models_dir / "epsilon", lora=source.lora, clip_skip=2))
    picture = GenerationSettings("a (cat)", steps=1, size=(64, 64))
    text = generator.infotext(picture, generator.generate([picture])[0])
    assert text.startswith("a \\(cat\\) <lora:ink:0.5>") and "Clip skip: 2" in text


def test_what_is_no_lora_for_this_model(models_dir, loras, tmp_path):
    with pytest.raises(
        UserError, match="xl.safetensors: it was made for another kind of model: its text is 36 wide, .* 12"
    ):
        open_models(models_dir / "epsilon", lora=(str(loras / "xl.safetensors"),))
    for text, message in [
        (f"{loras}", "it is a folder with 3 .safetensors files; name the file"),
        ("somebody/ink", "there is no such file or folder, and the Hub has no such LoRA, or cannot be reached"),
        ("0.8", "write PATH, or PATH:SCALE"),
        ("ink.safetensors:0", "at a scale of 0 it does nothing"),
    ]:
        with pytest.raises(UserError, match=message):
            open_models(models_dir / "epsilon", lora=(text,))
    with pytest.raises(UserError, match="it is named twice"):
        open_models(models_dir / "epsilon", lora=(str(loras / "ink.safetensors"),) * 2)
    (tmp_path / "one").mkdir()
    shutil.copy(loras / "ink.safetensors", tmp_path / "one")
    open_models(models_dir / "epsilon", lora=(str(tmp_path / "one"),))
    assert split_lora("C:\\ink.safetensors") == ("C:\\ink.safetensors", 1.0)
    assert split_lora("ink.safetensors:-0.5") == ("ink.safetensors", -0.5)
    assert absolute_lora("somebody/ink:0.5") == "somebody/ink:0.5"
    embeds = [
        encode_prompts(open_models(models_dir / "epsilon", lora=each), ["a"])[0].tokens
        for each in ((), (str(loras / "ink.safetensors"),))
    ]
    assert not torch.equal(*embeds)
