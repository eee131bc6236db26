"""Good files of every kind, to be damaged."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from accelerate.state import AcceleratorState
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import hypernet
import train_hypernetwork
from hypernet.cli.training_options import parse_config
from hypernet.formats.webui_optimizer import save_optim
from hypernet.generation.infotext import save_png

MODEL = Path(__file__).resolve().parents[2] / "quickstart" / "model"


def make_samples(folder: Path, kinds: list[str]) -> None:
    """Write one good file of each kind."""
    folder.mkdir(parents=True)
    hypernetwork = hypernet.Hypernetwork((32, 48), (1, 2, 1), "relu", name="style", step=3)
    hypernet.save(hypernetwork, folder / "style.pt")
    hypernet.save(hypernetwork, folder / "style.safetensors")
    residual = hypernet.Hypernetwork((32, 48), (1, 2, 1), "relu", skip_connection="linear")
    hypernet.save(residual, folder / "residual.pt")
    optimizer = torch.optim.AdamW(hypernetwork.parameters())
    sum(parameter.square().sum() for parameter in hypernetwork.parameters()).backward()
    optimizer.step()
    save_optim(optimizer.state_dict(), folder / "style.pt")
    shutil.copytree(MODEL, folder / "model")
    make_images(folder / "images")
    if {"ckpt", "model"} & set(kinds):
        make_model_files(folder)
    if "lora" in kinds:
        with safe_open(MODEL / "unet" / "diffusion_pytorch_model.safetensors", framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys() if name.endswith("to_k.weight")}
        lora = {}
        for name, (width_out, width_in) in shapes.items():
            layer = f"unet.{name.removesuffix('.weight')}"
            lora |= {
                f"{layer}.lora_A.weight": torch.ones(2, width_in),
                f"{layer}.lora_B.weight": torch.ones(width_out, 2),
            }
        save_file(lora, folder / "ink.safetensors", {"format": "pt"})
    if "run" in kinds:
        train_hypernetwork.main(parse_config(run_options(folder / "images", folder / "run")))
        AcceleratorState._reset_state(True)


def make_images(folder: Path) -> None:
    """Write an image of each format, some with captions beside them and some in metadata files."""
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 72, 64, 4), np.uint8)
    names = ["a.png", "b.jpg", "c.webp", "d.gif", "e.bmp", "f.tif", "g.png", "h.png", "i.png"]
    for name, values in zip(names, pixels, strict=True):
        image = Image.fromarray(values, "RGBA" if name < "b" else "CMYK" if name == "b.jpg" else "RGBA")
        image = image if name in ("a.png", "b.jpg") else image.convert("RGB")
        if name == "a.png":
            fields = {"Steps": 20, "Sampler": "Euler a", "CFG scale": 7, "Seed": 1}
            save_png(
                folder / name,
                image,
                f"a cat\nNegative prompt: a dog\n{', '.join(map(': '.join, ((k, str(v)) for k, v in fields.items())))}",
            )
        else:
            image.save(folder / name, **({"exif": image.getexif()} if name == "b.jpg" else {}))
    for name in "abc":
        (folder / f"{name}.txt").write_text(f"a (red:1.2) [star], night, {name}, caf\u00e9")
    rows = [{"file_name": name, "text": f"a house, {name}"} for name in names[3:6]]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = folder / "more"
    more.mkdir()
    shutil.copy(folder / "g.png", more)
    (more / "metadata.csv").write_text('file_name,text\ng.png,"a tree, green"\n')


def make_model_files(folder: Path) -> None:
    """Write the quickstart's model as a .safetensors and as a .ckpt."""
    from tests.helpers.original_format import original_state_dict

    states = original_state_dict(StableDiffusionPipeline.from_pretrained(MODEL))
    states = {name: tensor.contiguous() for name, tensor in states.items()}
    save_file(states, folder / "model.safetensors")
    torch.save({"state_dict": states, "epoch": 3}, folder / "model.ckpt")


def run_options(images: Path, output: Path) -> list[str]:
    """Return the options of a short run."""
    flags = [f"--pretrained_model_name_or_path={MODEL}", f"--train_data_dir={images}", f"--output_dir={output}"]
    flags += [f"--cache_dir={output.parent / 'cache'}", "--max_train_steps=2", "--resolution=64", "--report_to=none"]
    return flags + ["--name=style", "--optimizer=AdamW", "--validation_split=0.3", "--checkpointing_steps=1"]
