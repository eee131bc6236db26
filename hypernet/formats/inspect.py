"""Report what is in a hypernetwork's file: structure, weights, perturbation, and which programs read it."""

import math
from pathlib import Path
from typing import Any

import torch

from hypernet.formats.compatibility import program_support
from hypernet.formats.load_save import find_weights, load
from hypernet.formats.repair import find_repairs
from hypernet.formats.webui import EXTENSION, EXTENSION_FIELDS, build_webui, read_webui
from hypernet.formats.webui_optimizer import optim_path
from hypernet.modeling.hypernetwork import Hypernetwork

BASE_MODELS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}  # by the width of the text


def inspect(path: str | Path) -> dict[str, Any]:
    """Return all that is known about the hypernetwork at `path`, as plain data for a table or JSON.

    Raises:
        NotAHypernetwork: if there is none.
    """
    path = Path(path)
    is_webui = path.is_file() and path.suffix.lower() != ".safetensors"
    data = read_webui(path) if is_webui else None
    hypernetwork = load(path) if data is None else build_webui(path, data)
    config = hypernetwork.config
    widths = [int(width) for width in hypernetwork.pairs]
    beside = path / f"{config.name}.pt"
    optimizer = optim_path(path) if is_webui else path / "optimizer.bin"
    modules = [_inspect_module(hypernetwork, width, part) for width in widths for part in ("k", "v")]
    return {
        "file": str(path),
        "bytes": find_weights(path).stat().st_size,
        "name": config.name,
        "name_in_file": config.name if data is None else data.get("name"),
        "step": config.step,
        "widths": widths,
        "made_for": " or ".join(model for width, model in BASE_MODELS.items() if width in widths) or None,
        "layer_structure": list(config.layer_structure),
        "activation": config.activation,
        "layer_norm": config.layer_norm,
        "activate_output": config.activate_output,
        "dropout_structure": config.dropout_structure and list(config.dropout_structure),
        "skip_connection": config.skip_connection,
        "extension_fields": [field for field in EXTENSION_FIELDS if data is not None and field in data],
        "weight_init": config.weight_init,
        "base_model_name": config.base_model_name,
        "base_model_hash": config.base_model_hash,
        "optional_info": config.optional_info,
        "parameters": sum(parameter.numel() for parameter in hypernetwork.parameters()),
        "dtype": str(hypernetwork.stored_dtype).removeprefix("torch."),
        "optimizer": optimizer.name if optimizer.is_file() else None,
        "modules": modules,
        "repairs": [] if data is None else find_repairs(path, data),
        "read_by": program_support(path, data, hypernetwork, beside if beside.is_file() else None),
        "verdict": _verdict(modules),
    }


@torch.no_grad()
def _inspect_module(hypernetwork: Hypernetwork, width: int, part: str) -> dict[str, Any]:
    """Return a module's weight norms and its perturbation, the relative size of what it adds to contexts.

    The contexts are standard normal, as attention layers get normalized inputs. So no base model is needed.
    """
    module = hypernetwork.pairs[str(width)][part]
    context = torch.randn(256, width, generator=torch.Generator().manual_seed(0))
    change = module(context)  # (256, width)
    norms = {name: tensor.norm().item() for name, tensor in module.state_dict().items() if name.endswith("weight")}
    finite = all(tensor.isfinite().all() for tensor in module.state_dict().values())
    return {
        "module": f"{width} {part.upper()}",
        "norms": {name: _finite_or_none(norm) for name, norm in norms.items()},
        "perturbation": _finite_or_none((change.norm() / context.norm()).item()),
        "finite": bool(finite and change.isfinite().all()),
        "dead": not change.any().item(),
    }


def _finite_or_none(value: float) -> float | None:
    """Return None for NaN and infinity, which JSON cannot express."""
    return value if math.isfinite(value) else None


def _verdict(modules: list[dict[str, Any]]) -> str:
    """Return one line that says whether the hypernetwork is alive, dead or broken."""
    broken = [module["module"] for module in modules if not module["finite"]]
    dead = [module["module"] for module in modules if module["dead"]]
    if broken:
        return f"broken: NaN or infinity in {', '.join(broken)}; images will be noise or black"
    if len(dead) == len(modules):
        return "dead: it changes nothing; images are those of the base model"
    return f"alive, but {', '.join(dead)} change nothing" if dead else "alive"


def describe(report: dict[str, Any]) -> str:
    """Format a report of `inspect` for the console."""
    lines = [report["file"], *(f"  {label:13} {_printable(value)}" for label, value in _rows(report) if value)]
    lines.append("  module   perturbation   weight norms")
    for module in report["modules"]:
        shown = {name.removesuffix(".weight"): norm for name, norm in module["norms"].items()}
        norms = "  ".join(f"{name} {'nan' if norm is None else format(norm, '.3g')}" for name, norm in shown.items())
        perturbation = "nan" if module["perturbation"] is None else f"{module['perturbation']:.2%}"
        lines.append(f"  {module['module']:7} {perturbation:>13}   {norms}")
    lines.append("  works as in the WebUI")
    lines += [f"    {program:13} {answer}" for program, answer in report["read_by"].items()]
    return "\n".join(lines)


def _rows(report: dict[str, Any]) -> list[tuple[str, str | None]]:
    """Return (label, value) pairs for everything in a report except the modules and programs."""
    inside, dropout, optimizer = report["name_in_file"], report["dropout_structure"], report["optimizer"]
    extension = report["extension_fields"]
    details = [f"activation {report['activation']}"]
    details += ["activated output"] if report["activate_output"] and report["activation"] != "linear" else []
    details += ["LayerNorm"] if report["layer_norm"] else []
    details += [f"dropout {_numbers(dropout)}"] if dropout and any(dropout) else ["no dropout"]
    details += [f"skip connections ({report['skip_connection']})"] if report["skip_connection"] else []
    structure = f"{_numbers(report['layer_structure'])} on widths {', '.join(map(str, report['widths']))}"
    base = " ".join(filter(None, [report["base_model_name"], report["base_model_hash"]])) or "unknown"
    base += f" (its widths are those of {report['made_for']})" if report["made_for"] else ""
    return [
        ("name", report["name"] + (f" (in the file: {inside}; --fix)" if inside not in (None, report["name"]) else "")),
        ("trained for", f"{report['step']:,} steps" + (f"; {optimizer} is beside it" if optimizer else "")),
        ("base model", base),
        ("structure", f"{structure}; {', '.join(details)}"),
        ("weight init", report["weight_init"]),
        ("weights", f"{report['bytes'] / 2**20:.1f} MiB, {report['parameters']:,} parameters, {report['dtype']}"),
        ("extension", f"the fields {', '.join(extension)} come from {EXTENSION}" if extension else None),
        ("note", report["optional_info"]),
        ("state", report["verdict"]),
        ("needs repair", "; ".join(report["repairs"]) + " (--fix)" if report["repairs"] else None),
    ]


def overview(reports: list[dict[str, Any]]) -> str:
    """Format reports of `inspect` as a table with a line for each."""
    rows: list[tuple[str, ...]] = [("file", "steps", "structure", "activation", "made for", "state", "works in")]
    for report in reports:
        programs = [name for name in ("WebUI", "ComfyUI") if report["read_by"][name].startswith("yes")]
        layers = _numbers(report["layer_structure"])
        state = report["verdict"].partition(":")[0] + (", needs repair" if report["repairs"] else "")
        made_for = (report["made_for"] or "?").removeprefix("Stable Diffusion ")
        row = report["file"], f"{report['step']:,}", layers, report["activation"], made_for, state, ", ".join(programs)
        rows.append(tuple(map(_printable, row)))
    lengths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(word.ljust(length) for word, length in zip(row, lengths)).rstrip() for row in rows)


def _numbers(values: list[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


def _printable(text: str) -> str:
    """Escape control characters: the text comes from the file, and could move the cursor or color the terminal."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
