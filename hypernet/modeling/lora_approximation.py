"""A hypernetwork as a LoRA on the to_k and to_v of a UNet, for programs that know no hypernetworks.

A linear module adds s W (M x + b) to what a projection W makes of a context x: that is the LoRA of the matrix s W M with
the bias s W b. A module that is not linear is replaced by the linear map that comes nearest to it on real contexts.
"""

import dataclasses

import torch

from hypernet.modeling.attachment import attach, attention_layers, detach
from hypernet.modeling.hypernetwork import Hypernetwork, is_linear
from hypernet.modeling.linear_map import linear_map

PER_CALL = 256  # contexts kept of a call of the hypernetwork
MOST = 32768  # of one width

HELD_OUT = 5  # every fifth context is not fitted on, but measured on
RIDGE = 1e-6  # relative to the mean square of the contexts


@dataclasses.dataclass
class Lora:
    """The factors of every projection, and how well they do.

    factors: "down_blocks.0. … .attn1.to_k" -> (down (rank, in), up (out, rank), bias (out,)).
    fitted: width -> the share of the modules' own effect that their linear maps miss on contexts not fitted on; 0 for
        linear modules.
    kept: width -> {"peft": share, "kohya": share}, of the hypernetwork's effect behind the projections, that each file
        keeps: 1 - |LoRA's effect - hypernetwork's|^2 / |hypernetwork's|^2.
    """

    factors: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    without_bias: dict[str, tuple[torch.Tensor, torch.Tensor]]
    fitted: dict[int, float]
    kept: dict[int, dict[str, float]]


@torch.no_grad()
def to_lora(unet, hypernetwork: Hypernetwork, rank: int, contexts: dict[int, torch.Tensor], strength=1.0) -> Lora:
    """The LoRA of at most `rank` that comes nearest to the hypernetwork on the given contexts.

    Args:
        contexts: width -> (N, width), from `gather_contexts` or `normal_contexts`.
        strength: of the hypernetwork at which the LoRA has strength 1.

    Raises:
        ValueError: if the hypernetwork has weights that are no numbers, or the UNet has attention layers that none can be
            put on.
    """
    if not all(parameter.isfinite().all() for parameter in hypernetwork.parameters()):
        raise ValueError(f"{hypernetwork.config.name} has weights that are not numbers")
    lora, effects = Lora({}, {}, {}, {}), {}
    maps = {width: _maps(hypernetwork, width, x, lora.fitted) for width, x in contexts.items()}
    for name, layer in attention_layers(unet).items():
        width = layer.to_k.in_features
        for part in ("k", "v") if width in maps else ():
            weight = strength * getattr(layer, f"to_{part}").weight.double().cpu()  # (out, width)
            of, key = maps[width][part], f"{name}.to_{part}"
            down, up = _factors(weight @ of.matrix, of.spread, rank)
            bias = weight @ of.bias + (weight @ of.matrix - up @ down) @ of.mean  # what is cut off is so on the average
            alone = _factors(weight @ of.matrix_alone, of.moment, rank)
            lora.factors[key], lora.without_bias[key] = (down, up, bias), alone
            wanted = of.change @ weight.T  # (N, out)
            missed = wanted - of.x @ down.T @ up.T - bias, wanted - of.x @ alone[0].T @ alone[1].T
            sums = effects.setdefault(width, [0.0, 0.0, 0.0])
            for i, effect in enumerate((wanted, *missed)):
                sums[i] += effect.square().sum().item()
    for width, (wanted, *missed) in effects.items():
        lora.kept[width] = {form: 1 - rest / (wanted or 1.0) for form, rest in zip(("peft", "kohya"), missed)}
    return lora


@dataclasses.dataclass
class _Map:
    """The linear map of a module, x -> matrix x + bias, and what is needed to cut it down to a rank; all float64."""

    matrix: torch.Tensor  # (width, width)
    bias: torch.Tensor  # (width,)
    matrix_alone: torch.Tensor  # (width, width), the one that does best without a bias
    mean: torch.Tensor  # (width,), of the contexts
    moment: torch.Tensor  # (width, width), the square root of E[x x^T]
    spread: torch.Tensor  # (width, width), the square root of the contexts' covariance
    x: torch.Tensor  # (N, width), contexts to measure on
    change: torch.Tensor  # (N, width), what the module makes of them


def _maps(hypernetwork, width, contexts, fitted) -> dict[str, _Map]:
    """The map of each part; notes what the maps miss of the modules' effect in `fitted`."""
    x = contexts.double()  # (N, width)
    held_out, mean = torch.arange(len(x)) % HELD_OUT == 0, x.mean(0)
    moment = _second_moment(x)
    toward_bias = torch.linalg.solve(moment, mean)  # the vector that makes 1 of a context, on the average
    roots = _square_root(moment), _square_root(_second_moment(x - mean))
    maps, missed, effect = {}, 0.0, 0.0
    for part in ("k", "v"):
        module = hypernetwork.pairs[str(width)][part].cpu()
        change = module(contexts).double()
        linear = is_linear(hypernetwork)
        matrix, bias = linear_map(module) if linear else _fit(x[~held_out], change[~held_out])
        if not linear:
            missed += (change - x @ matrix.T - bias)[held_out].square().sum().item()
            effect += change[held_out].square().sum().item()
        alone = matrix + torch.outer(bias, toward_bias)
        maps[part] = _Map(matrix, bias, alone, mean, *roots, x[held_out], change[held_out])
    fitted[width] = missed / effect if effect else 0.0
    return maps


def _second_moment(x):
    """E[x x^T], (width, width), with a little more on its diagonal so that it can be inverted."""
    moment = x.T @ x / len(x)
    return moment + RIDGE * (moment.diagonal().mean() + 1e-12) * torch.eye(len(moment), dtype=x.dtype)


def _square_root(moment):
    values, vectors = torch.linalg.eigh(moment)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def _fit(x, y):
    """(matrix, bias) with y ~ x matrix^T + bias, by least squares."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    centred = x - mean_x
    matrix = torch.linalg.solve(_second_moment(centred), centred.T @ (y - mean_y) / len(x)).T
    return matrix, mean_y - matrix @ mean_x


def _factors(matrix, root, rank):
    """(down (rank, in), up (out, rank)): the product nearest to `matrix` on contexts whose E[x x^T] is root root."""
    u, s, vh = torch.linalg.svd(matrix @ root, full_matrices=False)
    scale = s[:rank].sqrt()
    return torch.linalg.solve(root, (vh[:rank].T * scale)).T, u[:, :rank] * scale


@torch.no_grad()
def gather_contexts(pipe, hypernetwork: Hypernetwork, prompts: list[str], strength=1.0, seed=0, **options):
    """Draw the prompts with the hypernetwork on, and keep some of the contexts that it is given.

    Args:
        pipe: a diffusers pipeline; `options` (steps, size, guidance) go to its call.
        strength: at which pictures are drawn, because it shapes what deeper layers get.

    Returns:
        Width -> contexts (N, width), float32 on the CPU, of all layers, steps and prompts.
    """
    generator, kept, calls = torch.Generator().manual_seed(seed), {}, {}

    def some(contexts, count):
        return contexts[torch.randperm(len(contexts), generator=generator)[:count].to(contexts.device)]

    def keep(module, args):
        context = args[0].flatten(0, -2)  # (B * tokens, width)
        if str(context.shape[-1]) in hypernetwork.pairs:
            calls.setdefault(context.shape[-1], []).append(some(context, PER_CALL).float().cpu())

    hook = hypernetwork.register_forward_pre_hook(keep)
    attach(pipe.unet, hypernetwork, strength)
    pipe.unet._hypernetworks.folding = False  # or contexts go by it
    try:
        for i, prompt in enumerate(prompts):
            pipe(prompt, generator=torch.Generator().manual_seed(seed + i), output_type="latent", **options)
            for width, contexts in calls.items():
                kept.setdefault(width, []).append(some(torch.cat(contexts), MOST // len(prompts)))
            calls.clear()
    finally:
        detach(pipe.unet)
        hook.remove()
    return {width: torch.cat(contexts) for width, contexts in kept.items()}


def normal_contexts(hypernetwork: Hypernetwork, count=4096, seed=0) -> dict[int, torch.Tensor]:
    """Unit normal contexts in their place, for what attention layers get is normalised before."""
    generator = torch.Generator().manual_seed(seed)
    return {int(width): torch.randn(count, int(width), generator=generator) for width in hypernetwork.pairs}
