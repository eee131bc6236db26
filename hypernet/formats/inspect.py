"""What is in a hypernetwork's file: its structure, its weights, the strength of its effect, and who reads it."""

import math
from pathlib import Path

import torch

from hypernet.formats import compatibility as readers
from hypernet.formats.load_save import find_weights, load
from hypernet.formats.repair import find_repairs
from hypernet.formats.webui import build_webui, read_webui
from hypernet.formats.webui_optimizer import optim_path
from hypernet.modeling.hypernetwork import Hypernetwork

FAMILIES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}  # by the width of their text


def inspect(path) -> dict:
    """All that is to be known of the hypernetwork at `path`, as plain data for a table or JSON.

    Raises:
        NotAHypernetwork: if it is none.
    """
    path = Path(path)
    webui_file = path.is_file() and path.suffix.lower() != ".safetensors"
    data = read_webui(path) if webui_file else None
    hypernetwork = build_webui(path, data) if webui_file else load(path)
    config = hypernetwork.config
    widths = [int(width) for width in hypernetwork.pairs]
    beside = path / f"{config.name}.pt"
    optimizer = optim_path(path) if webui_file else path / "optimizer.bin"
    families = [family for width, family in FAMILIES.items() if width in widths]
    report = {
        "file": str(path),
        "bytes": find_weights(path).stat().st_size,
        "name": config.name,
        "name_in_file": data.get("name") if webui_file else config.name,
        "step": config.step,
        "widths": widths,
        "made_for": " or ".join(families) or None,
        "layer_structure": list(config.layer_structure),
        "activation": config.activation,
        "layer_norm": config.layer_norm,
        "activate_output": config.activate_output,
        "dropout_structure": config.dropout_structure and list(config.dropout_structure),
        "weight_init": config.weight_init,
        "base_model_name": config.base_model_name,
        "base_model_hash": config.base_model_hash,
        "optional_info": config.optional_info,
        "parameters": sum(parameter.numel() for parameter in hypernetwork.parameters()),
        "dtype": str(hypernetwork.stored_dtype).removeprefix("torch."),
        "optimizer": optimizer.name if optimizer.is_file() else None,
        "modules": [_module(hypernetwork, width, part) for width in widths for part in ("k", "v")],
        "find_repairs": find_repairs(path, data) if webui_file else [],
        "read_by": readers.table(path, data, hypernetwork, beside if beside.is_file() else None),
    }
    report["verdict"] = _verdict(report["modules"])
    return report


@torch.no_grad()
def _module(hypernetwork: Hypernetwork, width: int, part: str) -> dict:
    """A module's weights and effect: what it adds to contexts of unit normal numbers, relative to their size.

    What attention layers get is normalised before, so that unit normal numbers stand for it when no model is at hand.
    """
    module = hypernetwork.pairs[str(width)][part]
    context = torch.randn(256, width, generator=torch.Generator().manual_seed(0))
    change = module(context)
    norms = {name: tensor.norm().item() for name, tensor in module.state_dict().items() if name.endswith("weight")}
    finite = all(tensor.isfinite().all() for tensor in module.state_dict().values())
    return {
        "module": f"{width} {part.upper()}",
        "norms": {name: _number(norm) for name, norm in norms.items()},
        "effect": _number((change.norm() / context.norm()).item()),
        "finite": bool(finite and change.isfinite().all()),
        "dead": not change.any().item(),
    }


def _number(value: float) -> float | None:
    """None for what JSON has no number for."""
    return value if math.isfinite(value) else None


def _verdict(modules) -> str:
    """One line on its health."""
    broken = [module["module"] for module in modules if not module["finite"]]
    dead = [module["module"] for module in modules if module["dead"]]
    if broken:
        return f"broken: not a number in {', '.join(broken)}; it draws noise or black pictures"
    if len(dead) == len(modules):
        return "dead: it changes nothing, pictures are those without it"
    return f"alive, but {', '.join(dead)} changes nothing" if dead else "alive"


def describe(report: dict) -> str:
    """A report of `examine` for people."""
    layers = ",".join(f"{multiple:g}" for multiple in report["layer_structure"])
    dropout = report["dropout_structure"]
    details = [f"activation {report['activation']}"]
    details += ["activated output"] if report["activate_output"] and report["activation"] != "linear" else []
    details += ["LayerNorm"] if report["layer_norm"] else []
    details += ["dropout " + ",".join(f"{p:g}" for p in dropout)] if dropout and any(dropout) else ["no dropout"]
    base = " ".join(filter(None, [report["base_model_name"], report["base_model_hash"]])) or "not said"
    rows = [
        ("name", _named(report)),
        (
            "trained for",
            f"{report['step']:,} steps" + (f", {report['optimizer']} beside it" if report["optimizer"] else ""),
        ),
        ("base model", base + (f" ({report['made_for']} by its widths)" if report["made_for"] else "")),
        ("structure", f"{layers} over {', '.join(map(str, report['widths']))}; {', '.join(details)}"),
        ("started from", report["weight_init"]),
        ("weights", f"{report['bytes'] / 2**20:.1f} MiB, {report['parameters']:,} parameters, {report['dtype']}"),
        ("note", report["optional_info"]),
        ("state", report["verdict"]),
        ("to mend", "; ".join(report["find_repairs"]) + " (--fix)" if report["find_repairs"] else None),
    ]
    lines = [report["file"], *(f"  {label:13} {_printable(value)}" for label, value in rows if value)]
    lines.append("  module   effect   norms of its weights")
    for module in report["modules"]:
        shown = {name.removesuffix(".weight"): norm for name, norm in module["norms"].items()}
        norms = "  ".join(f"{name} {'nan' if norm is None else format(norm, '.3g')}" for name, norm in shown.items())
        effect = "    nan" if module["effect"] is None else f"{module['effect']:7.2%}"
        lines.append(f"  {module['module']:7} {effect}   {norms}")
    lines.append("  draws the same in")
    lines += [f"    {program:13} {answer}" for program, answer in report["read_by"].items()]
    return "\n".join(lines)


def overview(reports: list[dict]) -> str:
    """One line for each report of `examine`, as a table."""
    rows = [("file", "steps", "structure", "activation", "made for", "state", "draws right in")]
    for report in reports:
        readers_ = [name for name in ("WebUI", "ComfyUI") if report["read_by"][name].startswith(("yes", "once"))]
        layers = ",".join(f"{multiple:g}" for multiple in report["layer_structure"])
        state = report["verdict"].partition(":")[0] + (", to mend" if report["find_repairs"] else "")
        family = (report["made_for"] or "?").removeprefix("Stable Diffusion ")
        row = report["file"], f"{report['step']:,}", layers, report["activation"], family, state, ", ".join(readers_)
        rows.append(tuple(map(_printable, row)))
    lengths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(word.ljust(length) for word, length in zip(row, lengths)).rstrip() for row in rows)


def _printable(text):
    """Without what would move a terminal's cursor or colour it: such words come from the file."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _named(report):
    inside = report["name_in_file"]
    return report["name"] + (f" (in the file: {inside}; --fix)" if inside not in (None, report["name"]) else "")
