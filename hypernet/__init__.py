"""Hypernetworks for Stable Diffusion: build, attach, load, save."""

import importlib

_HOMES = {  # public name -> its module, imported when it is first asked for, as diffusers does
    "Hypernetwork": "network",
    "HypernetworkModule": "network",
    "HypernetworkUNet": "attention",
    "attach": "attention",
    "detach": "attention",
    "set_strength": "attention",
    "merge": "linear",
    "average": "averaging",
    "examine": "examination",
    "load": "files",
    "save": "files",
    "NotAHypernetwork": "pickles",
    "load_webui": "webui",
    "save_webui": "webui",
    "UserError": "errors",
}
__all__ = list(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module 'hypernet' has no attribute {name!r}")
    return getattr(importlib.import_module(f"hypernet.{_HOMES[name]}"), name)
