"""Find out which programs read a `.pt` file as the WebUI does, and why the others do not.

The rules come from the programs' sources: modules/safe.py and modules/hypernetworks/hypernetwork.py of the WebUI 1.10,
comfy_extras/nodes_hypernetwork.py of ComfyUI.
"""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypernet.formats.webui import EXTENSION, webui_fields
from hypernet.modeling.hypernetwork import Hypernetwork

COMFYUI_ACTIVATIONS = ("linear", "relu", "leakyrelu", "elu", "swish", "tanh", "sigmoid", "softsign", "mish")
WEBUI_RECORDS = re.compile(r"[^/]+/(data/\d+|version|data\.pkl)")  # zip entries that every version accepts
NEW_WEBUI_RECORDS = re.compile(r"[^/]+/(byteorder|\.data/serialization_id)")  # accepted since 1.9


def comfyui_reads(hypernetwork: Hypernetwork) -> bool:
    """Return whether ComfyUI applies the `.pt` that `save_webui` writes as the WebUI does."""
    return not comfyui_problems(webui_fields(hypernetwork))


def comfyui_problems(fields: Mapping[Any, Any]) -> list[str]:
    """Return why ComfyUI applies a `.pt` with these fields differently from the WebUI; empty if it does not."""
    if fields.get("skip_connection"):
        return ["applies it without its skip connections, or refuses it"]
    problems = []
    activation = fields.get("activation_func", "linear")
    if activation is None:
        problems.append("refuses activation None (--fix writes linear)")
    elif activation not in COMFYUI_ACTIVATIONS:
        problems.append(f"does not know the activation {activation}")
    has_activation = activation not in (None, "linear")
    if has_activation and fields.get("is_layer_norm") and not fields.get("activate_output", False):
        problems.append("activates the last layer too if there is a LayerNorm")
    if has_activation and "activate_output" not in fields:
        problems.append("does not activate the output if the field is missing (--fix adds it)")
    if _comfyui_drops(fields):
        problems.append("leaves dropout active during sampling (--for_inference removes it)")
    return problems


def _comfyui_drops(fields: Mapping[Any, Any]) -> bool:
    """Return whether ComfyUI adds dropout after any layer. It goes by the flags, and counts LayerNorms as layers."""
    if not fields.get("use_dropout", False):
        return False
    layers = len(fields.get("layer_structure") or (1, 2, 1)) - 1
    weights, places = (2 * layers, range(1, 2 * layers, 2)) if fields.get("is_layer_norm") else (layers, range(layers))
    last_inner = fields.get("last_layer_dropout", False)
    return any(place < weights - 1 and (place != weights - 2 or last_inner) for place in places)


def webui_problems(path: Path, fields: Mapping[Any, Any]) -> list[str]:
    """Return why the WebUI refuses the `.pt` file `path`, or mistakes it for another file; empty if it does neither."""
    problems = [problem] if (problem := serialization_problem(path)) else []
    if fields.get("name") not in (None, path.stem):
        problems.append("looks it up by file name but caches it under the other name in the file (--fix)")
    return problems


def serialization_problem(path: Path) -> str | None:
    """Return why some version of the WebUI refuses how the file was serialized, or None."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not WEBUI_RECORDS.fullmatch(name)]
    if not all(NEW_WEBUI_RECORDS.fullmatch(name) for name in names):
        return "refuses files written by newer versions of PyTorch (--fix rewrites it)"
    return "versions before 1.9 refuse it (--fix rewrites it)" if names else None


def program_support(
    path: Path, data: dict | None, hypernetwork: Hypernetwork, webui_file: Path | None = None
) -> dict[str, str]:
    """Return program -> an answer that starts with "yes", "only" or "no" and gives the reason.

    Args:
        data: what `read_webui` returned for `path`; None for one of our own formats.
        webui_file: for one of our own formats, the `.pt` beside it, if there is one.
    """
    webui = webui_problems(path, data) if data else []
    comfyui = comfyui_problems(data or webui_fields(hypernetwork))
    yes = "yes" if data else f"yes, as {webui_file.name} beside it" if webui_file else "yes, once converted to .pt"
    sdnext = "only with its original backend; its diffusers backend ignores it"
    if hypernetwork.config.skip_connection is not None:
        webui.append(f"only {EXTENSION} applies it")
        sdnext = "no: it does not support skip connections"
    return {
        "this project": "yes",
        "WebUI": "no: " + "; ".join(webui) if webui else yes,
        "ComfyUI": "no: " + "; ".join(comfyui) if comfyui else yes,
        "SD.Next": sdnext,
        "Forge": "no: it parses the prompt tag but applies nothing",
    }
