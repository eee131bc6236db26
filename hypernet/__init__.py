"""Hypernetworks for Stable Diffusion: build, attach, load, save."""

import importlib

_HOMES = {  # public name -> its module, imported when it is first asked for, as diffusers does
    "Hypernetwork": "modeling.hypernetwork",
    "HypernetworkModule": "modeling.hypernetwork",
    "HypernetworkUNet": "modeling.attachment",
    "attach": "modeling.attachment",
    "detach": "modeling.attachment",
    "set_strength": "modeling.attachment",
    "fuse": "modeling.fusing",
    "average": "modeling.averaging",
    "inspect": "formats.inspect",
    "load": "formats.load_save",
    "save": "formats.load_save",
    "NotAHypernetwork": "formats.safe_pickle",
    "load_webui": "formats.webui",
    "save_webui": "formats.webui",
    "UserError": "utils.errors",
}
__all__ = list(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module 'hypernet' has no attribute {name!r}")
    return getattr(importlib.import_module(f"hypernet.{_HOMES[name]}"), name)
