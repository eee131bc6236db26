"""Which programs draw with a `.pt` file what the WebUI draws with it, and why the others do not.

What is said of them was read from their sources: modules/safe.py and modules/hypernetworks/hypernetwork.py of the WebUI
1.10, comfy_extras/nodes_hypernetwork.py of ComfyUI.
"""

import re
import zipfile

from hypernet.formats.webui import webui_fields
from hypernet.modeling.hypernetwork import Hypernetwork

COMFYUI_ACTIVATIONS = ("linear", "relu", "leakyrelu", "elu", "swish", "tanh", "sigmoid", "softsign", "mish")
WEBUI_RECORDS = re.compile(r"[^/]+/(data/\d+|version|data\.pkl)")  # zip entries that every version lets through
NEW_WEBUI_RECORDS = re.compile(r"[^/]+/(byteorder|\.data/serialization_id)")  # since 1.9


def comfyui_reads(hypernetwork: Hypernetwork) -> bool:
    """Whether ComfyUI draws with the `.pt` that `save_webui` writes what the WebUI does."""
    return not comfyui_problems(webui_fields(hypernetwork))


def comfyui_problems(fields: dict) -> list[str]:
    """Why ComfyUI draws something else with a `.pt` of these fields, or nothing."""
    problems = []
    activation = fields.get("activation_func", "linear")
    if activation is None:
        problems.append("refuses activation None (--fix writes linear)")
    elif activation not in COMFYUI_ACTIVATIONS:
        problems.append(f"does not know the activation {activation}")
    activates = activation not in (None, "linear")
    output = fields.get("activate_output", False)
    if activates and fields.get("is_layer_norm") and not output:
        problems.append("activates the last layer, too, where there is a LayerNorm")
    if activates and fields.get("activate_output") is None:
        problems.append("does not activate the output where the file does not say it (--fix says it)")
    if _comfyui_drops(fields):
        problems.append("leaves dropout active while drawing (--for_inference takes it out)")
    return problems


def _comfyui_drops(fields) -> bool:
    """Whether ComfyUI puts a dropout after any layer: it goes by the flags, and counts LayerNorms as layers."""
    if not fields.get("use_dropout", False):
        return False
    layers = len(fields.get("layer_structure") or (1, 2, 1)) - 1
    weights, places = (2 * layers, range(1, 2 * layers, 2)) if fields.get("is_layer_norm") else (layers, range(layers))
    last_inner = fields.get("last_layer_dropout", False)
    return any(place < weights - 1 and (place != weights - 2 or last_inner) for place in places)


def webui_problems(path, fields: dict) -> list[str]:
    """Why the WebUI refuses the `.pt` file `path`, or uses another one in its place."""
    problems = []
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not WEBUI_RECORDS.fullmatch(name)]
        if any(not NEW_WEBUI_RECORDS.fullmatch(name) for name in names):
            problems.append("refuses what a newer PyTorch has written (--fix writes it anew)")
        elif names:
            problems.append("refuses it before version 1.9 (--fix writes it anew)")
    if fields.get("name") not in (None, path.stem):
        problems.append("finds it by its file name but keeps it by another name in it (--fix)")
    return problems


def table(path, data: dict | None, hypernetwork: Hypernetwork, webui_file=None) -> dict[str, str]:
    """Program -> "yes", or why not, for a file of which `read_webui` has read `data`.

    `data` is None for one of ours; `webui_file` is then the `.pt` that lies beside it, if there is one.
    """
    webui = webui_problems(path, data) if data else []
    comfyui = comfyui_problems(data or webui_fields(hypernetwork))
    yes = "yes" if data else f"yes, as {webui_file.name} beside it" if webui_file else "once it is converted to a .pt"
    return {
        "this project": "yes",
        "WebUI": "no: " + "; ".join(webui) if webui else yes,
        "ComfyUI": "no: " + "; ".join(comfyui) if comfyui else yes,
        "SD.Next": "only with its original backend; with the diffusers backend it does nothing",
        "Forge": "no: it understands the prompt's tag, but applies nothing",
    }
