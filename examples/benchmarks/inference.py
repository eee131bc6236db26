#!/usr/bin/env python
"""Measure what files and frozen models take, and what is left of a hypernetwork in other forms.

    python examples/benchmarks/inference.py sizes                                      # of SD 1.x files, and of frozen UNets
    python examples/benchmarks/inference.py lora output/quickstart --sheet lora.png    # LoRAs of several ranks, drawn

What a sampling step costs without, with and with merged hypernetworks is in examples/benchmarks/step.py.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hypernet.cli.script import quiet_libraries

quiet_libraries()  # before diffusers is imported

import torch
from diffusers import UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging

import hypernet
from examples.benchmarks.ways import CONFIGS
from hypernet.cli.script import ScriptParser, run_script
from hypernet.formats.lora import save_lora
from hypernet.formats.trained_folder import training_options
from hypernet.generation.generator import load_for_generation
from hypernet.modeling.lora_approximation import gather_contexts, to_lora
from hypernet.stable_diffusion.model_source import ModelSource
from hypernet.stable_diffusion.quantization import weight_bytes
from hypernet.utils.errors import UserError
from hypernet.utils.image_grid import labeled_grid


def parse_arguments(arguments=None):
    parser = ScriptParser(__doc__)
    parser.add_argument("what", choices=("sizes", "lora"))
    parser.add_argument("hypernetwork", nargs="?", help="with lora: a folder that the training has written")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 4, 16, 64], help="with lora: default: 1 4 16 64")
    parser.add_argument("--sheet", type=Path, help="with lora: PNG to draw")
    args = parser.parse_args(arguments)
    if args.what == "lora" and args.hypernetwork is None:
        raise UserError("lora: name a folder that the training has written")
    return args


def sizes():
    """Bytes of the WebUI's file, by structure and precision; and of frozen UNets on the device, counted."""
    with tempfile.TemporaryDirectory() as folder:
        for structure in ((1, 2, 1), (1, 2, 2, 1)):
            hypernetwork = hypernet.Hypernetwork(layer_structure=structure)
            for dtype in (torch.float32, torch.float16):
                path = Path(folder, "style.pt")
                hypernet.save(hypernetwork, path, dtype)
                name = ",".join(map(str, structure))
                print(f"{name:8} {str(dtype)[6:]:8} {path.stat().st_size / 2**20:6.1f} MiB")
    for model, config in CONFIGS.items():
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(config)
        for kind in (None, "int8", "nf4"):
            held = weight_bytes(unet, kind, torch.float16) / 2**30
            print(f"UNet of {model:5} {'float16' if kind is None else f'--quantize {kind}':16} {held:5.2f} GiB")


def compare_loras(args):
    """What LoRAs keep of the hypernetwork, in numbers and in a sheet of pictures."""
    options = training_options(args.hypernetwork)
    prompts, hypernetwork = options["validation_prompt"], hypernet.load(args.hypernetwork)
    pipe = load_for_generation(ModelSource.of(options)).pipeline
    pipe.set_progress_bar_config(disable=True)
    diffusers_logging.set_verbosity_error()  # that the LoRA has nothing for the text encoder is as it should be
    call = {"num_inference_steps": 20, "guidance_scale": options["validation_guidance_scale"]}

    def draw():
        generators = [torch.Generator().manual_seed(1) for _ in prompts]
        return pipe(prompts, generator=generators, **call).images

    columns = {"without": draw()}
    hypernet.attach(pipe.unet, hypernetwork)
    columns["hypernetwork"] = draw()
    hypernet.detach(pipe.unet)
    contexts = gather_contexts(pipe, hypernetwork, prompts, **call)
    with tempfile.TemporaryDirectory() as folder:
        for rank in args.ranks:
            lora = to_lora(pipe.unet, hypernetwork, rank, contexts)
            save_lora(lora, Path(folder, "lora.safetensors"))
            for form, name in (("kohya", "lora.safetensors"), ("PEFT", "lora_peft.safetensors")):
                kept = "  ".join(f"{width}: {share[form.lower()]:6.1%}" for width, share in sorted(lora.kept.items()))
                print(
                    f"rank {rank:4} {form:5}  kept by width  {kept}  {Path(folder, name).stat().st_size / 2**20:.2f} MiB"
                )
            pipe.load_lora_weights(folder, weight_name="lora.safetensors")
            columns[f"LoRA, rank {rank}"] = draw()
            pipe.unload_lora_weights()
    missed = "  ".join(f"{width}: {share:.1%}" for width, share in sorted(lora.fitted.items()))
    print(f"the nearest linear maps miss  {missed}")
    if args.sheet:
        rows = [list(row) for row in zip(*columns.values())]
        labeled_grid(rows, prompts, list(columns)).save(args.sheet)
        print(args.sheet)


def main(arguments=None):
    args = parse_arguments(arguments)
    if args.what == "sizes":
        sizes()
    else:
        compare_loras(args)


if __name__ == "__main__":
    run_script(main)
