"""A whole model in one file: the same weights as of its folder, and what is said of files that are something else."""

import dataclasses
import hashlib
import json
import os
import shutil

import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file
from transformers import CLIPTokenizer

import hypernet
from hypernet.stable_diffusion.base_model import identify_base_model
from hypernet.stable_diffusion.model_source import ModelSource
from hypernet.training.model_card import diffusers_recipe
from hypernet.utils.errors import UserError
from tests.helpers.original_format import original_state_dict
from tests.helpers.scripts import REPO, run, train_here
from tests.helpers.tiny_models import open_models, tiny_pipeline, tiny_unet, tiny_vae, tiny_xl_pipeline

ORIGINAL = {  # as CompVis' v1-inference.yaml, of a smaller model
    "model": {
        "params": {
            "linear_start": 0.00085,
            "linear_end": 0.012,
            "parameterization": "v",
            "scale_factor": 0.18215,
            "unet_config": {
                "params": {
                    "in_channels": 4,
                    "out_channels": 4,
                    "model_channels": 32,
                    "channel_mult": [1, 2],
                    "num_res_blocks": 1,
                    "attention_resolutions": [2, 1],
                    "transformer_depth": 1,
                    "num_heads": 2,
                    "context_dim": 12,
                }
            },
            "first_stage_config": {
                "params": {
                    "ddconfig": {
                        "in_channels": 3,
                        "out_ch": 3,
                        "z_channels": 4,
                        "ch": 32,
                        "ch_mult": [1, 1],
                        "num_res_blocks": 1,
                    }
                }
            },
        }
    }
}


@pytest.fixture(scope="module")
def files(models_dir, tmp_path_factory):
    """The tiny models as single files, `epsilon` as a .ckpt, too."""
    folder = tmp_path_factory.mktemp("files")
    for name, pipeline in (("epsilon", StableDiffusionPipeline), ("sd2", StableDiffusionPipeline)):
        states = original_state_dict(pipeline.from_pretrained(models_dir / name), open_clip=name == "sd2")
        save_file(states, folder / f"{name}.safetensors")
        if name == "epsilon":
            torch.save({"state_dict": states}, folder / "epsilon.ckpt")
            torch.save({"state_dict": states, "callbacks": Exception}, folder / "code.ckpt")
            without_vae = {key: value for key, value in states.items() if not key.startswith("first_stage")}
            save_file(without_vae, folder / "without_vae.safetensors")
            vae = {key: value for key, value in states.items() if key.startswith("first_stage")}
            save_file(vae, folder / "vae.safetensors")
            save_file({**states, "edm_vpred.sigma_max": torch.zeros(1)}, folder / "cosxl.safetensors")
            wide = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
            save_file({**states, wide: torch.zeros(1, 1024)}, folder / "base.safetensors")
            (folder / "page.ckpt").write_text("<!DOCTYPE html>")
            mark = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
            save_file({**states, **mark}, folder / "velocity.safetensors")
    save_file(
        original_state_dict(StableDiffusionXLPipeline.from_pretrained(models_dir / "xl")), folder / "xl.safetensors"
    )
    inpainting = tiny_pipeline(in_channels=9)
    save_file(original_state_dict(inpainting), folder / "inpainting.safetensors")
    save_file(
        {key: value for key, value in states.items() if "output_blocks.0." not in key}, folder / "part.safetensors"
    )
    (folder / "damaged.safetensors").write_bytes((folder / "epsilon.safetensors").read_bytes()[:5000])
    tiny_unet().save_pretrained(folder / "unet")
    (folder / "text.safetensors").write_text("no tensors")
    return folder


@pytest.mark.parametrize(
    "name, file", [("epsilon", "epsilon.safetensors"), ("epsilon", "epsilon.ckpt"), ("sd2", None), ("xl", None)]
)
def test_a_file_holds_what_its_folder_does(models_dir, files, name, file):
    path = files / (file or f"{name}.safetensors")
    models = open_models(path, unet_dtype=torch.bfloat16, model_config=str(models_dir / name))
    folder = open_models(models_dir / name)
    assert models.unet.dtype == torch.bfloat16 and models.vae.dtype == torch.float32
    parts = [(models.unet.float(), folder.unet), (models.vae, folder.vae)]
    parts += zip(models.text_encoders, folder.text_encoders, strict=True)
    for ours, theirs in parts:
        theirs = theirs.to(torch.bfloat16).float() if theirs is folder.unet else theirs
        ours, theirs = ours.state_dict(), theirs.state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    same = dataclasses.asdict(folder.base) | {"source": None, "single": None}
    assert dataclasses.asdict(models.base) | {"source": None, "single": None} == same
    assert models.base.source.name == name and models.hash == hashlib.sha256(path.read_bytes()).hexdigest()[:10]


def test_a_training_on_a_file_is_one_on_its_folder(models_dir, images_dir, files, tmp_path):
    flags = ["--max_train_steps=2", "--name=x", "--optimizer=SGD", "--learning_rate=1"]
    train_here(models_dir, images_dir, tmp_path / "folder", *flags)
    train_here(
        files,
        images_dir,
        tmp_path / "file",
        *flags,
        f"--model_config={models_dir / 'epsilon'}",
        model="epsilon.safetensors",
    )
    ours, theirs = (hypernet.load(tmp_path / name / "x.pt") for name in ("file", "folder"))
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    digest = hashlib.sha256((files / "epsilon.safetensors").read_bytes()).hexdigest()
    assert (ours.config.base_model_name, ours.config.base_model_hash) == ("epsilon", digest[:10])


def test_marks_of_a_velocity_model(models_dir, files, tmp_path):
    options = {"model_config": str(models_dir / "epsilon")}
    options["pretrained_vae_model_name_or_path"] = str(files / "vae.safetensors")
    base = identify_base_model(ModelSource(str(files / "velocity.safetensors"), **options))
    assert (base.prediction_type, base.zero_snr) == ("v_prediction", True)
    hypernet.save(hypernet.Hypernetwork([12, 16, 32]), tmp_path / "ink")
    recipe = diffusers_recipe(base, str(tmp_path / "ink"), "a cat")
    recipe = recipe.replace(
        "AutoencoderKL.from_single_file(",
        "AutoencoderKL.from_single_file(config=CONFIG, subfolder='vae', pretrained_model_link_or_path_or_dict=",
    )
    given = {"CONFIG": options["model_config"]}  # without a network; its kind's is on the Hub
    exec(recipe.rpartition("\n")[0], given)
    scheduler = given["pipe"].scheduler.config
    assert (scheduler.prediction_type, scheduler.rescale_betas_zero_snr, scheduler.timestep_spacing) == (
        "v_prediction",
        True,
        "trailing",
    )


@pytest.mark.parametrize(
    "file, message",
    [
        (
            "epsilon.safetensors",
            "its configs are not in it, and .*, which has them, cannot be reached; .* --model_config",
        ),
        ("inpainting.safetensors", "it is a model of the kind inpainting"),
        ("damaged.safetensors", "it is damaged, or no model"),
        ("text.safetensors", "it is damaged, or no model"),
        ("vae.safetensors", "it is a VAE, and no whole Stable Diffusion in one file"),
        ("without_vae.safetensors", "there is no VAE; name one with --pretrained_vae_model_name_or_path"),
        ("unet/diffusion_pytorch_model.safetensors", "it is the UNet of a Stable Diffusion, and no whole"),
        ("unet/config.json", "it is a file, but no model"),
        (
            "base.safetensors",
            "a Stable Diffusion 2.x in a single file does not say what it predicts; add --prediction_type",
        ),
        ("cosxl.safetensors", "it is a model of the kind EDM"),
        ("page.ckpt", "it is a web page, and no model"),
        ("code.ckpt", "it holds more than weights, .* harmful code, and is not opened; get it as .safetensors"),
    ],
)
def test_other_files_are_refused(files, file, message):
    with pytest.raises(UserError, match=message) as error:
        identify_base_model(ModelSource(str(files / file)))
    assert "\n" not in str(error.value)


def test_a_vae_from_a_file(models_dir, files):
    options = {"model_config": str(models_dir / "epsilon")}
    own = open_models(models_dir / "epsilon").vae.state_dict()
    for file in ("without_vae.safetensors", "epsilon.safetensors"):
        models = open_models(files / file, pretrained_vae_model_name_or_path=str(files / "vae.safetensors"), **options)
        assert all(torch.equal(own[key], value) for key, value in models.vae.state_dict().items())
    with pytest.raises(UserError, match="--pretrained_vae_model_name_or_path .*: it is a file without a VAE"):
        wrong = str(files / "unet/diffusion_pytorch_model.safetensors")
        identify_base_model(ModelSource(str(models_dir / "epsilon"), pretrained_vae_model_name_or_path=wrong))


def original_pipeline(folder):
    """A pipeline that the YAML describes, and both of them in files."""
    pipe = tiny_pipeline(block_out_channels=(32, 64), norm_num_groups=32, attention_head_dim=2)
    vae = {"block_out_channels": (32, 32), "norm_num_groups": 32, "layers_per_block": 1, "scaling_factor": 0.18215}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    pipe.register_modules(vae=tiny_vae(**vae, **blocks))
    save_file(original_state_dict(pipe), folder / "model.safetensors")
    (folder / "model.yaml").write_text(yaml.safe_dump(ORIGINAL))
    return pipe


def test_an_original_config(models_dir, tmp_path):
    pipe = original_pipeline(tmp_path)
    options = {"original_config": str(tmp_path / "model.yaml"), "model_config": str(models_dir / "epsilon")}
    models = open_models(tmp_path / "model.safetensors", **options)
    for ours, theirs in ((models.unet, pipe.unet), (models.vae, pipe.vae)):
        theirs = theirs.state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.state_dict().items())
    assert models.base.prediction_type == "v_prediction"  # which the YAML calls parameterization: v
    assert models.base.context_widths == [12, 32, 64] and models.base.image_multiple == 2
    with pytest.raises(UserError, match="its tokenizer is neither in it nor in that YAML"):
        identify_base_model(ModelSource(str(tmp_path / "model.safetensors"), original_config=options["original_config"]))
    for text, message in [
        ("a: 1", "it is no config of CompVis'"),
        ("model: {}", "it does not describe"),
        (": -", "as YAML"),
    ]:
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(UserError, match=message):
            open_models(tmp_path / "model.safetensors", **{**options, "original_config": str(tmp_path / "bad.yaml")})


def test_configs_of_another_kind(models_dir, files):
    with pytest.raises(UserError, match="--model_config .*xl: it is of another kind: its text is 36 wide, .* 12"):
        identify_base_model(ModelSource(str(files / "epsilon.safetensors"), model_config=str(models_dir / "xl")))


def test_an_original_config_alone_goes_by_what_the_hubs_cache_has(models_dir, tmp_path):
    """A cache as huggingface_hub lays it out, with CLIP's tokenizer and config, is enough."""
    repository = tmp_path / "home" / "hub" / "models--openai--clip-vit-large-patch14"
    snapshot = repository / "snapshots" / "abc"
    shutil.copytree(models_dir / "epsilon" / "tokenizer", snapshot)
    shutil.copy(models_dir / "epsilon" / "text_encoder" / "config.json", snapshot)
    (snapshot / "vocab.json").write_text(json.dumps(CLIPTokenizer.from_pretrained(snapshot).get_vocab()))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    pipe = original_pipeline(tmp_path)
    code = "import sys, torch; sys.path[:0] = sys.argv[1:4]; from conftest import open_models;"
    code += "m = open_models(sys.argv[4], original_config=sys.argv[5]);"
    code += "print(len(m.tokenizers[0]), float(sum(w.double().abs().sum() for w in m.text_encoders[0].state_dict().values())))"
    paths = [
        REPO,
        REPO / "tests",
        REPO / "examples/quickstart",
        tmp_path / "model.safetensors",
        tmp_path / "model.yaml",
    ]
    done = run("-c", code, *paths, env={**os.environ, "HF_HOME": str(tmp_path / "home")})
    assert done.returncode == 0, done.stderr[-3000:]
    tokens, total = done.stdout.split()
    assert int(tokens) == len(pipe.tokenizer)
    expected = sum(weight.double().abs().sum() for weight in pipe.text_encoder.state_dict().values())
    assert float(total) == pytest.approx(float(expected), rel=1e-9)


def test_an_sdxl_is_recognised_by_its_tensors(tmp_path):
    """By what diffusers goes by: the tenth layer of the second text encoder."""
    from hypernet.stable_diffusion.single_file import open_single_file

    pipe = tiny_xl_pipeline()
    states = original_state_dict(pipe)
    states["conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias"] = torch.zeros(1)
    save_file(states, tmp_path / "xl.safetensors")
    pipe.save_pretrained(tmp_path / "xl")
    source = ModelSource(str(tmp_path / "xl.safetensors"), model_config=str(tmp_path / "xl"))
    assert open_single_file(source).kind == "xl_base"
