#!/usr/bin/env python
"""What a training step costs, side by side: the frozen model's own, the WebUI's way, a LoRA's, and ours.

    python examples/benchmark.py --model quickstart                  # a minute on a laptop
    python examples/benchmark.py --model sd15 --flops_only           # counts on the true shape, without weights
    python examples/benchmark.py --model sdxl --flops_only
    python examples/benchmark.py --model sd15 --rounds 3             # on a CPU ten minutes, 12 GB of memory

The ways take turns in one process, so that noise hits all of them alike; times are medians of ratios to the floor of the
same round. FLOPs are torch's own count (two for a multiply-add; convolutions, products, attention), on tensors without data.

floor           the frozen UNet forward, and backward down to its input (trainings end at the first attention before it)
webui           modules in every layer for itself, the text's too; attention not fused; every block computed twice
module by module  one hypernetwork, attached, with its modules computed as they are
ours, linear    the same (structure 1,2,1), with as few products as the counts in hypernet/folding.py say
ours, swish     with an activation, which leaves no choice but for the text
lora            rank 16 through PEFT on to_q, to_k, to_v and to_out, as diffusers' example trains it
"""

import contextlib
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hypernet.script import ScriptParser, run_script

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig
from torch.utils.flop_counter import FlopCounterMode

import hypernet
from hypernet.attention import attention_layers
from hypernet.errors import UserError

REPO = Path(__file__).resolve().parent.parent
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
CONFIGS = {"sd15": {"cross_attention_dim": 768, "attention_head_dim": 8}, "sdxl": SDXL}
SIZES = {"quickstart": 128, "sd15": 512, "sdxl": 1024}  # pixels a side


def parse_arguments(arguments=None):
    parser = ScriptParser(__doc__)
    parser.add_argument(
        "--model", choices=SIZES, default="quickstart", help="random weights of the true shape but for quickstart"
    )
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--size", type=int, help="side of the pictures; default: 128, 512 or 1024")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the UNet and of the products"
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help=", ".join(WAYS))
    parser.add_argument("--flops_only", action="store_true")
    parser.add_argument("--json", type=Path, help="write the table there, too")
    args = parser.parse_args(arguments)
    if min(args.batch_size, args.rounds, args.size or 1) < 1:
        raise UserError("--batch_size, --rounds and --size must be 1 or more")
    if (args.size or 64) % 64:
        raise UserError(f"--size {args.size}: it must be a multiple of 64")
    return args


# --- The ways: each makes `unet` ready for its kind of step and gives the parameters to train


@contextlib.contextmanager
def floor(unet):
    yield []


@contextlib.contextmanager
def attached(unet, activation="linear", folding=True):
    hypernetwork = new_hypernetwork(unet, activation)
    hypernet.attach(unet, hypernetwork)
    unet._hypernetworks.folding = folding
    yield list(hypernetwork.parameters())
    hypernet.detach(unet)


@contextlib.contextmanager
def webui(unet):
    """From the facts: a pair of float32 modules called in every layer, under autocast if there is one, attention as two products and a softmax, and the
    recomputation of every block that the WebUI trains with."""
    hypernetwork = new_hypernetwork(unet, "linear")

    def transform(part):
        def before(projection, args):
            x = args[0]
            return (x + hypernetwork.pairs[str(x.shape[-1])][part](x),)

        return before

    hooks = []
    for layer in attention_layers(unet).values():
        hooks += [
            layer.to_k.register_forward_pre_hook(transform("k")),
            layer.to_v.register_forward_pre_hook(transform("v")),
        ]
    processors = dict(unet.attn_processors)
    unet.set_attn_processor(AttnProcessor())
    unet.enable_gradient_checkpointing()
    unet.train()  # or nothing is computed twice
    yield list(hypernetwork.parameters())
    unet.eval().disable_gradient_checkpointing()
    unet.set_attn_processor(processors)
    for hook in hooks:
        hook.remove()


@contextlib.contextmanager
def lora(unet):
    unet.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    yield parameters
    unet.unload_lora()


WAYS = {
    "floor": floor,
    "webui": webui,
    "module by module": lambda unet: attached(unet, folding=False),
    "ours, linear": attached,
    "ours, swish": lambda unet: attached(unet, "swish"),
    "lora": lora,
}


def new_hypernetwork(unet, activation):
    widths = sorted({layer.to_k.in_features for layer in attention_layers(unet).values()})
    with torch.device(unet.device):
        return hypernet.Hypernetwork(widths, activation=activation).train()


# --- What is measured


def load_unet(model, device, dtype=torch.float32):
    """The UNet, frozen; without data on the meta device."""
    with torch.device(device):
        if model == "quickstart":
            config = UNet2DConditionModel.load_config(REPO / "examples" / "quickstart" / "model", subfolder="unet")
            unet = UNet2DConditionModel.from_config(config)
        else:
            unet = UNet2DConditionModel(**CONFIGS[model])
    return torch.nn.Module.to(unet, dtype).requires_grad_(False).eval()  # ModelMixin.to warns of half precision


def make_inputs(unet, batch, size, device, dtype):
    side = size // 8
    with torch.device(device):
        latents = torch.randn(batch, 4, side, side, dtype=dtype)
        text = torch.randn(batch, 77, unet.config.cross_attention_dim, dtype=dtype)
        more = {}
        if unet.config.addition_embed_type:
            added = {"text_embeds": torch.randn(batch, 1280, dtype=dtype), "time_ids": torch.ones(batch, 6)}
            more = {"added_cond_kwargs": added}
        return latents, torch.full((batch,), 500), text, more


def step(unet, way, inputs, optimizer, dtype):
    """Forward, backward and update; the floor's backward goes down to the latents."""
    latents, timesteps, text, more = inputs
    latents = latents.detach().requires_grad_(way == "floor")
    half = dtype is not torch.float32
    with torch.autocast(latents.device.type, dtype, enabled=half) if not latents.is_meta else contextlib.nullcontext():
        prediction = unet(latents, timesteps, text, **more).sample
    prediction.float().square().mean().backward()
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad()


def count_flops(args) -> dict[str, int]:
    unet = load_unet(args.model, "meta")
    inputs = make_inputs(unet, args.batch_size, args.size or SIZES[args.model], "meta", torch.float32)
    counts = {}
    for way in args.ways:
        with WAYS[way](unet), FlopCounterMode(display=False) as counter:
            step(unet, way, inputs, None, torch.float32)
        counts[way] = counter.get_total_flops()
    return counts


def measure(args) -> dict[str, dict]:
    """Way -> time ratio to the floor, images a second and, on a GPU, the peak of its memory."""
    dtype, cuda = getattr(torch, args.dtype), torch.device(args.device).type == "cuda"
    torch.manual_seed(0)
    unet = load_unet(args.model, args.device, dtype)
    inputs = make_inputs(unet, args.batch_size, args.size or SIZES[args.model], args.device, dtype)
    seconds, memory = {way: [] for way in args.ways}, {}
    for _ in range(args.rounds):
        for way in args.ways:
            with WAYS[way](unet) as parameters:
                optimizer = torch.optim.AdamW(parameters, fused=True) if parameters else None
                step(unet, way, inputs, optimizer, dtype)  # the first one takes memory for gradients and moments
                if cuda:
                    torch.cuda.synchronize()
                    torch.cuda.reset_peak_memory_stats()
                started = time.perf_counter()
                step(unet, way, inputs, optimizer, dtype)
                if cuda:
                    torch.cuda.synchronize()
                    memory[way] = torch.cuda.max_memory_allocated()
                seconds[way].append(time.perf_counter() - started)
    return {
        way: {
            "time_ratio": statistics.median(mine / base for mine, base in zip(seconds[way], seconds["floor"])),
            "images_per_second": args.batch_size / statistics.median(seconds[way]),
            "peak_memory": memory.get(way),
        }
        for way in args.ways
    }


def main(arguments=None):
    args = parse_arguments(arguments)
    args.ways = ["floor", *(way for way in args.ways if way != "floor")]
    counts = count_flops(args)
    measured = {} if args.flops_only else measure(args)
    rows = []
    for way, flops in counts.items():
        rows.append({"way": way, "flops": flops, "flops_ratio": flops / counts["floor"], **measured.get(way, {})})
        line = f"{way:17} {flops / 1e9:9.1f} GFLOP  {flops / counts['floor']:5.3f}"
        if measured:
            row = rows[-1]
            line += f"   time {row['time_ratio']:5.2f}   {row['images_per_second']:7.3f} images/s"
            line += f"   {row['peak_memory'] / 2**30:6.2f} GiB" if row["peak_memory"] else ""
        print(line, flush=True)
    if args.json:
        about = {key: str(value) for key, value in vars(args).items()}
        args.json.write_text(json.dumps({"about": about, "torch": torch.__version__, "rows": rows}, indent=2))


if __name__ == "__main__":
    run_script(main)
