"""Approximate a hypernetwork by a LoRA on a UNet's to_k and to_v, for programs without hypernetworks.

At strength s a linear module adds s W (M x + b) to the projection W of a context x: the LoRA of the matrix s W M with
the bias s W b. A module that is not linear is replaced by the linear map closest to it on real contexts.
"""

import dataclasses
from typing import Any

import torch
from torch import nn

from hypernet.modeling.attachment import attach, attention_layers, detach
from hypernet.modeling.hypernetwork import Hypernetwork, is_linear
from hypernet.modeling.linear_map import linear_map

CONTEXTS_PER_CALL = 256  # sampled from each call of the hypernetwork
MAX_CONTEXTS = 32768  # per width
VALIDATION_STRIDE = 5  # every fifth context is kept out of the fit, to measure it
RIDGE = 1e-6  # relative to the mean square of the contexts


@dataclasses.dataclass
class Lora:
    """The LoRA factors of each projection, and how well they approximate the hypernetwork.

    Attributes:
        factors: "down_blocks.0. ... .attn1.to_k" -> (down (rank, in), up (out, rank), bias (out,)).
        without_bias: the same names -> (down, up), the best factors for a format without biases.
        fit_errors: width -> share of what the modules add that their linear maps miss, measured on contexts kept out of
            the fit; 0 for linear modules.
        kept: width -> {"peft": share, "kohya": share} of what the hypernetwork adds to keys and values that each format
            keeps: 1 - |LoRA - hypernetwork|^2 / |hypernetwork|^2. kohya's format has no biases.
    """

    factors: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    without_bias: dict[str, tuple[torch.Tensor, torch.Tensor]]
    fit_errors: dict[int, float]
    kept: dict[int, dict[str, float]]


@torch.no_grad()
def to_lora(
    unet: nn.Module, hypernetwork: Hypernetwork, rank: int, contexts: dict[int, torch.Tensor], strength: float = 1.0
) -> Lora:
    """Return the LoRA of at most `rank` that is closest to the hypernetwork on the given contexts.

    Args:
        unet: the UNet whose projections the LoRA changes.
        hypernetwork: the hypernetwork to approximate.
        rank: the largest rank of a projection's factors.
        contexts: width -> (N, width), from `gather_contexts` or `normal_contexts`.
        strength: the hypernetwork's strength that corresponds to a LoRA of strength 1.

    Raises:
        ValueError: if the hypernetwork has non-finite weights, or the UNet has attention layers that no hypernetwork
            can act on.
    """
    if not all(parameter.isfinite().all() for parameter in hypernetwork.parameters()):
        raise ValueError(f"{hypernetwork.config.name} has weights that are not finite")
    lora, maps = Lora({}, {}, {}, {}), {}
    for width, x in contexts.items():
        maps[width], lora.fit_errors[width] = _fit_width(hypernetwork, width, x)
    energies: dict[int, list[float]] = {}  # width -> squared norms: what is added, what "peft" and "kohya" miss of it
    for name, layer in attention_layers(unet).items():
        width = layer.to_k.in_features
        for part in ("k", "v") if width in maps else ():
            fit, key = maps[width][part], f"{name}.to_{part}"
            weight = strength * getattr(layer, f"to_{part}").weight.double().cpu()  # (out, width)
            down, up = _low_rank_factors(weight @ fit.matrix, fit.spread, rank)
            cut_off = weight @ fit.matrix - up @ down  # (out, width); the bias keeps its mean
            bias = weight @ fit.bias + cut_off @ fit.mean  # (out,)
            down_alone, up_alone = _low_rank_factors(weight @ fit.matrix_alone, fit.moment, rank)
            lora.factors[key], lora.without_bias[key] = (down, up, bias), (down_alone, up_alone)
            added = fit.added @ weight.T  # (N, out)
            missed_by_peft = added - fit.x @ down.T @ up.T - bias
            missed_by_kohya = added - fit.x @ down_alone.T @ up_alone.T
            sums = energies.setdefault(width, [0.0, 0.0, 0.0])
            for i, values in enumerate((added, missed_by_peft, missed_by_kohya)):
                sums[i] += values.square().sum().item()
    for width, (whole, *missed) in energies.items():
        lora.kept[width] = {form: 1 - rest / (whole or 1.0) for form, rest in zip(("peft", "kohya"), missed)}
    return lora


@dataclasses.dataclass
class _Fit:
    """The linear map of a module, x -> matrix x + bias, and what is needed to reduce its rank. All float64."""

    matrix: torch.Tensor  # (width, width)
    bias: torch.Tensor  # (width,)
    matrix_alone: torch.Tensor  # (width, width), the best matrix without a bias
    mean: torch.Tensor  # (width,), of the contexts
    moment: torch.Tensor  # (width, width), the square root of E[x x^T]
    spread: torch.Tensor  # (width, width), the square root of the contexts' covariance
    x: torch.Tensor  # (N, width), contexts to measure on
    added: torch.Tensor  # (N, width), what the module adds to them


def _fit_width(hypernetwork: Hypernetwork, width: int, contexts: torch.Tensor) -> tuple[dict[str, _Fit], float]:
    """Return the fit of each part, and the share of what the modules add that the fits miss on validation contexts."""
    x = contexts.double()  # (N, width)
    validation, mean = torch.arange(len(x)) % VALIDATION_STRIDE == 0, x.mean(0)
    moment = _second_moment(x)
    to_one = torch.linalg.solve(moment, mean)  # (width,); its product with a context is 1 on average
    roots = _square_root(moment), _square_root(_second_moment(x - mean))
    fits, missed, whole, linear = {}, 0.0, 0.0, is_linear(hypernetwork)
    for part in ("k", "v"):
        module = hypernetwork.pairs[str(width)][part].cpu()
        added = module(contexts).double()  # (N, width)
        matrix, bias = linear_map(module) if linear else _least_squares(x[~validation], added[~validation])
        if not linear:
            missed += (added - x @ matrix.T - bias)[validation].square().sum().item()
            whole += added[validation].square().sum().item()
        alone = matrix + torch.outer(bias, to_one)
        fits[part] = _Fit(matrix, bias, alone, mean, *roots, x[validation], added[validation])
    return fits, missed / whole if whole else 0.0


def _second_moment(x: torch.Tensor) -> torch.Tensor:
    """Return E[x x^T], (width, width), with a small ridge so that it can be inverted."""
    moment = x.T @ x / len(x)
    return moment + RIDGE * (moment.diagonal().mean() + 1e-12) * torch.eye(len(moment), dtype=x.dtype)


def _square_root(moment: torch.Tensor) -> torch.Tensor:
    """Return the symmetric square root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(moment)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def _least_squares(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (matrix, bias) that minimize |y - x matrix^T - bias|^2."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    centered = x - mean_x
    matrix = torch.linalg.solve(_second_moment(centered), centered.T @ (y - mean_y) / len(x)).T
    return matrix, mean_y - matrix @ mean_x


def _low_rank_factors(matrix: torch.Tensor, root: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (down (rank, in), up (out, rank)), the product closest to `matrix` where E[x x^T] = root root^T.

    By Eckart-Young this is the truncated SVD of `matrix @ root`, with `root` divided out again.
    """
    u, s, vh = torch.linalg.svd(matrix @ root, full_matrices=False)
    scale = s[:rank].sqrt()
    return torch.linalg.solve(root, (vh[:rank].T * scale)).T, u[:, :rank] * scale


@torch.no_grad()
def gather_contexts(
    pipe: Any, hypernetwork: Hypernetwork, prompts: list[str], strength: float = 1.0, seed: int = 0, **options: Any
) -> dict[int, torch.Tensor]:
    """Generate images with the hypernetwork attached, and return a sample of the contexts it transforms.

    Args:
        pipe: a diffusers pipeline.
        hypernetwork: the hypernetwork to attach; detached at the end.
        prompts: one image is generated for each.
        strength: strength of the hypernetwork, which shapes the contexts of deeper layers.
        seed: seed of the noise and of the sample.
        options: further arguments of the pipeline's call (steps, size, guidance).

    Returns:
        Width -> contexts (N, width), float32 on the CPU, of all layers, steps and prompts.
    """
    generator = torch.Generator().manual_seed(seed)
    kept: dict[int, list[torch.Tensor]] = {}
    calls: dict[int, list[torch.Tensor]] = {}

    def sample(contexts: torch.Tensor, count: int) -> torch.Tensor:
        return contexts[torch.randperm(len(contexts), generator=generator)[:count].to(contexts.device)]

    def keep(module: nn.Module, args: tuple) -> None:
        context = args[0].flatten(0, -2)  # (B * tokens, width)
        if str(context.shape[-1]) in hypernetwork.pairs:
            calls.setdefault(context.shape[-1], []).append(sample(context, CONTEXTS_PER_CALL).float().cpu())

    hook = hypernetwork.register_forward_pre_hook(keep)
    attach(pipe.unet, hypernetwork, strength)
    pipe.unet._hypernetworks.use_linear_maps = False  # they would bypass the hook
    try:
        for i, prompt in enumerate(prompts):
            pipe(prompt, generator=torch.Generator().manual_seed(seed + i), output_type="latent", **options)
            for width, contexts in calls.items():
                kept.setdefault(width, []).append(sample(torch.cat(contexts), MAX_CONTEXTS // len(prompts)))
            calls.clear()
    finally:
        detach(pipe.unet)
        hook.remove()
    return {width: torch.cat(contexts) for width, contexts in kept.items()}


def normal_contexts(hypernetwork: Hypernetwork, count: int = 4096, seed: int = 0) -> dict[int, torch.Tensor]:
    """Return standard normal contexts, (count, width) per width: attention layers get normalized inputs."""
    generator = torch.Generator().manual_seed(seed)
    return {int(width): torch.randn(count, int(width), generator=generator) for width in hypernetwork.pairs}
