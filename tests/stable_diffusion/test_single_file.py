"""A whole model in one file loads like its folder; other files are refused with the reason."""

import dataclasses
import hashlib
import io
import json
import os
import shutil
import time
import zipfile

import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

import hypernet
from hypernet.stable_diffusion.base_model import identify_base_model
from hypernet.stable_diffusion.model_source import ModelSource
from hypernet.stable_diffusion.single_file import UNET, open_single_file
from hypernet.training.diffusers_recipe import diffusers_recipe
from hypernet.utils.errors import UserError
from tests.helpers.original_format import original_state_dict
from tests.helpers.scripts import run, train_here
from tests.helpers.tiny_models import open_models, tiny_pipeline, tiny_unet, tiny_vae, tiny_xl_pipeline

ORIGINAL = {  # like CompVis' v1-inference.yaml, for a smaller model
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
    """The tiny models as single files (`epsilon` also as a .ckpt), and files that cannot be used."""
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
    xl = StableDiffusionXLPipeline.from_pretrained(models_dir / "xl")
    save_file(original_state_dict(xl), folder / "xl.safetensors")
    save_file(original_state_dict(tiny_pipeline(in_channels=9)), folder / "inpainting.safetensors")
    (folder / "damaged.safetensors").write_bytes((folder / "epsilon.safetensors").read_bytes()[:5000])
    tiny_unet().save_pretrained(folder / "unet")
    (folder / "text.safetensors").write_text("no tensors")
    return folder


@pytest.mark.parametrize(
    "name, file", [("epsilon", "epsilon.safetensors"), ("epsilon", "epsilon.ckpt"), ("sd2", None), ("xl", None)]
)
def test_a_file_loads_like_its_folder(models_dir, files, name, file):
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
    ours, theirs = (dataclasses.replace(each.base, source=None, single_file=None) for each in (models, folder))
    assert ours == theirs
    assert models.base.source.name == name and models.hash == hashlib.sha256(path.read_bytes()).hexdigest()[:10]


def test_trains_on_a_file_as_on_its_folder(models_dir, images_dir, files, tmp_path):
    flags = ["--max_train_steps=2", "--name=x", "--optimizer=SGD", "--learning_rate=1"]
    train_here(models_dir, images_dir, tmp_path / "folder", *flags)
    flags.append(f"--model_config={models_dir / 'epsilon'}")
    train_here(files, images_dir, tmp_path / "file", *flags, model="epsilon.safetensors")
    ours, theirs = (hypernet.load(tmp_path / name / "x.pt") for name in ("file", "folder"))
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    digest = hashlib.sha256((files / "epsilon.safetensors").read_bytes()).hexdigest()
    assert (ours.config.base_model_name, ours.config.base_model_hash) == ("epsilon", digest[:10])


def test_marker_tensors_set_v_prediction_and_zero_terminal_snr(models_dir, files, tmp_path):
    options = {"model_config": str(models_dir / "epsilon")}
    options["pretrained_vae_model_name_or_path"] = str(files / "vae.safetensors")
    base = identify_base_model(ModelSource(str(files / "velocity.safetensors"), **options))
    assert (base.prediction_type, base.zero_terminal_snr) == ("v_prediction", True)
    hypernet.save(hypernet.Hypernetwork([12, 16, 32]), tmp_path / "ink")
    recipe = diffusers_recipe(base, str(tmp_path / "ink"), "a cat")
    recipe = recipe.replace(
        "AutoencoderKL.from_single_file(",
        "AutoencoderKL.from_single_file(config=CONFIG, subfolder='vae', pretrained_model_link_or_path_or_dict=",
    )
    names = {"CONFIG": options["model_config"]}  # offline; the default is on the Hub
    exec(recipe.rpartition("\n")[0], names)
    scheduler = names["pipe"].scheduler.config
    assert (scheduler.prediction_type, scheduler.rescale_betas_zero_snr) == ("v_prediction", True)
    assert scheduler.timestep_spacing == "trailing"


@pytest.mark.parametrize(
    "file, named",
    [
        ("epsilon.safetensors", "--model_config"),
        ("inpainting.safetensors", "inpainting"),
        ("damaged.safetensors", "damaged"),
        ("text.safetensors", "damaged"),
        ("vae.safetensors", "VAE"),
        ("without_vae.safetensors", "VAE.*--pretrained_vae_model_name_or_path"),
        ("unet/diffusion_pytorch_model.safetensors", "UNet"),
        ("unet/config.json", ".safetensors or .ckpt"),
        ("base.safetensors", "2.x.*--prediction_type"),
        ("cosxl.safetensors", "EDM"),
        ("page.ckpt", "web page"),
        ("code.ckpt", "code.*.safetensors"),
    ],
)
def test_refuses_other_files(files, file, named):
    with pytest.raises(UserError, match=f"^--pretrained_model_name_or_path {files / file}: .*{named}") as error:
        identify_base_model(ModelSource(str(files / file)))
    assert "\n" not in str(error.value)


def bombs():
    """Return contents of .ckpt files that would take forever, run code, or fail in odd ways."""
    key, cycle = b"X\x0a\x00\x00\x00state_dict", {}
    cycle["state_dict"] = cycle
    yield "cycle", saved(cycle)
    yield "long name", with_pickle(b"\x80\x02c" + b"a" * 200_000 + b"\nx\n.")
    yield "nested", with_pickle(b"\x80\x02" + (b"}" + key) * 20_000 + b"}" + b"s" * 20_000 + b".")
    yield "truncated", saved({"state_dict": {"a": torch.zeros(9)}})[:-30]
    yield "more directories", saved({"state_dict": {}}) + saved({"state_dict": {}})
    for name, content in (("list", []), ("text", "state_dict"), ("none", None), ("numbers", {1: torch.zeros(2)})):
        yield name, saved({"state_dict": content})
    for shape in ((), (0, 0), (2,)):
        states = {UNET: torch.zeros(shape), "first_stage_model.x": torch.zeros(1), "cond_stage_model.x": torch.zeros(1)}
        yield f"shape {shape}", saved({"state_dict": states})


def saved(data, zipped=True):
    file = io.BytesIO()
    torch.save(data, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def with_pickle(pickled):
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3")
    return file.getvalue()


@pytest.mark.parametrize("as_vae", [False, True])
def test_a_damaged_ckpt_is_one_quick_error(models_dir, tmp_path, as_vae):
    for name, content in bombs():
        path = tmp_path / f"{name}.ckpt"
        path.write_bytes(content)
        vae = {"pretrained_vae_model_name_or_path": str(path)} if as_vae else {}
        source = ModelSource(str(models_dir / "epsilon" if as_vae else path), **vae)
        started = time.process_time()
        with pytest.raises(UserError, match="^--pretrained_") as error:
            identify_base_model(source)
        assert time.process_time() - started < 5 and str(path) in str(error.value), name


def test_opens_no_pipe_and_no_device(models_dir, tmp_path):
    os.mkfifo(tmp_path / "model.ckpt")
    os.mkfifo(tmp_path / "model.yaml")
    for path in (tmp_path / "model.ckpt", "/dev/zero"):
        with pytest.raises(UserError, match=f"^--pretrained_model_name_or_path {path}: .*(pipe|device)"):
            identify_base_model(ModelSource(str(path)))
    vae = {"pretrained_vae_model_name_or_path": str(tmp_path / "model.ckpt")}
    with pytest.raises(UserError, match="^--pretrained_vae_model_name_or_path .*pipe"):
        identify_base_model(ModelSource(str(models_dir / "epsilon"), **vae))
    original_pipeline(tmp_path / "whole")
    source = ModelSource(str(tmp_path / "whole" / "model.safetensors"), original_config=str(tmp_path / "model.yaml"))
    with pytest.raises(UserError, match="^--original_config .*pipe"):
        identify_base_model(source)


@pytest.mark.parametrize("zipped", [True, False])
def test_reads_a_training_state_with_shared_tensors_and_other_numbers(models_dir, files, tmp_path, zipped):
    states = torch.load(files / "epsilon.ckpt", weights_only=True)["state_dict"]
    states["model_ema.num_updates"] = torch.tensor(3, dtype=torch.uint8)
    states["model_ema.copy"] = states[UNET].view(-1)
    state = {"epoch": 3, "state_dict": states, "optimizer_states": [{"state": {0: {"step": 5}}}], "callbacks": {}}
    (tmp_path / "state.ckpt").write_bytes(saved(state, zipped))
    models = open_models(tmp_path / "state.ckpt", model_config=str(models_dir / "epsilon"))
    folder = open_models(models_dir / "epsilon")
    theirs = folder.unet.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in models.unet.state_dict().items())


def original_pipeline(folder):
    """Return a pipeline that ORIGINAL describes; write both to files."""
    folder.mkdir(exist_ok=True)
    pipe = tiny_pipeline(block_out_channels=(32, 64), norm_num_groups=32, attention_head_dim=2)
    vae = {"block_out_channels": (32, 32), "norm_num_groups": 32, "layers_per_block": 1, "scaling_factor": 0.18215}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    pipe.register_modules(vae=tiny_vae(**vae, **blocks))
    save_file(original_state_dict(pipe), folder / "model.safetensors")
    (folder / "model.yaml").write_text(yaml.safe_dump(ORIGINAL))
    return pipe


def test_an_original_config_describes_unet_and_vae(models_dir, tmp_path):
    pipe = original_pipeline(tmp_path)
    options = {"original_config": str(tmp_path / "model.yaml"), "model_config": str(models_dir / "epsilon")}
    models = open_models(tmp_path / "model.safetensors", **options)
    for ours, theirs in ((models.unet, pipe.unet), (models.vae, pipe.vae)):
        theirs = theirs.state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.state_dict().items())
    assert models.base.prediction_type == "v_prediction"  # in the YAML, parameterization: v
    assert models.base.context_widths == [12, 32, 64] and models.base.image_multiple == 2


def test_refuses_a_yaml_of_another_kind(models_dir, tmp_path):
    original_pipeline(tmp_path)
    for text, named in (("a: 1", "CompVis"), ("model: {}", "KeyError|TypeError"), (": -", "YAML")):
        bad = tmp_path / "bad.yaml"
        bad.write_text(text)
        with pytest.raises(UserError, match=f"^--original_config {bad}: .*({named})"):
            open_models(
                tmp_path / "model.safetensors", original_config=str(bad), model_config=str(models_dir / "epsilon")
            )


def test_refuses_a_file_without_a_tokenizer(tmp_path):
    original_pipeline(tmp_path)
    source = ModelSource(str(tmp_path / "model.safetensors"), original_config=str(tmp_path / "model.yaml"))
    with pytest.raises(UserError, match="tokenizer.*--model_config"):
        identify_base_model(source)


def test_refuses_configs_of_another_kind(models_dir, files):
    with pytest.raises(UserError, match=f"--model_config {models_dir / 'xl'}: .* 36 .* 12"):
        identify_base_model(ModelSource(str(files / "epsilon.safetensors"), model_config=str(models_dir / "xl")))


def test_an_original_config_is_enough_with_clip_in_the_cache(models_dir, tmp_path):
    """CLIP's tokenizer and config then come from the Hub's cache, laid out as huggingface_hub does."""
    repository = tmp_path / "home" / "hub" / "models--openai--clip-vit-large-patch14"
    snapshot = repository / "snapshots" / "abc"
    shutil.copytree(models_dir / "epsilon" / "tokenizer", snapshot)
    shutil.copy(models_dir / "epsilon" / "text_encoder" / "config.json", snapshot)
    (snapshot / "vocab.json").write_text(json.dumps(CLIPTokenizer.from_pretrained(snapshot).get_vocab()))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    pipe = original_pipeline(tmp_path)
    code = """
import sys
from safetensors.torch import load_file, save_file
from tests.helpers.tiny_models import open_models
models = open_models(sys.argv[1], original_config=sys.argv[2])
save_file(models.text_encoders[0].state_dict(), sys.argv[3])
print(len(models.tokenizers[0]))
"""
    paths = [tmp_path / name for name in ("model.safetensors", "model.yaml", "text_encoder.safetensors")]
    done = run("-c", code, *paths, afresh=True, env={**os.environ, "HF_HOME": str(tmp_path / "home")})
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) == len(pipe.tokenizer)
    found, expected = load_file(paths[-1]), pipe.text_encoder.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


def test_recognizes_sdxl_by_its_tensors(tmp_path):
    """Diffusers goes by the tenth layer of the second text encoder."""
    pipe = tiny_xl_pipeline()
    states = original_state_dict(pipe)
    states["conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias"] = torch.zeros(1)
    save_file(states, tmp_path / "xl.safetensors")
    pipe.save_pretrained(tmp_path / "xl")
    source = ModelSource(str(tmp_path / "xl.safetensors"), model_config=str(tmp_path / "xl"))
    assert open_single_file(source).kind == "xl_base"
