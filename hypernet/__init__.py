"""Hypernetworks for Stable Diffusion: build, attach, load, save.

    import hypernet

    style = hypernet.load("my_style.pt")  # or a folder, a .safetensors, a Hub id
    hypernet.attach(pipe.unet, style, strength=0.8)
    image = pipe("a house by the sea").images[0]
    hypernet.detach(pipe.unet)

Names are imported on first use, so `import hypernet` itself loads nothing heavy.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hypernet.formats.inspect import inspect
    from hypernet.formats.load_save import load, save
    from hypernet.formats.safe_pickle import NotAHypernetwork
    from hypernet.formats.stack_file import load_stack
    from hypernet.formats.webui import load_webui, save_webui
    from hypernet.modeling.attachment import HypernetworkUNet, attach, detach, set_strength
    from hypernet.modeling.averaging import average
    from hypernet.modeling.fusing import fuse
    from hypernet.modeling.hypernetwork import Hypernetwork, HypernetworkModule
    from hypernet.utils.errors import UserError

__version__ = "0.1.0"

__all__ = [
    "Hypernetwork",
    "HypernetworkModule",
    "HypernetworkUNet",
    "NotAHypernetwork",
    "UserError",
    "attach",
    "average",
    "detach",
    "fuse",
    "inspect",
    "load",
    "load_stack",
    "load_webui",
    "save",
    "save_webui",
    "set_strength",
]

_MODULES = {
    "Hypernetwork": "modeling.hypernetwork",
    "HypernetworkModule": "modeling.hypernetwork",
    "HypernetworkUNet": "modeling.attachment",
    "NotAHypernetwork": "formats.safe_pickle",
    "UserError": "utils.errors",
    "attach": "modeling.attachment",
    "average": "modeling.averaging",
    "detach": "modeling.attachment",
    "fuse": "modeling.fusing",
    "inspect": "formats.inspect",
    "load": "formats.load_save",
    "load_stack": "formats.stack_file",
    "load_webui": "formats.webui",
    "save": "formats.load_save",
    "save_webui": "formats.webui",
    "set_strength": "modeling.attachment",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'hypernet' has no attribute {name!r}")
    return getattr(importlib.import_module(f"hypernet.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__all__", "__doc__", "__name__", "__version__"])
