"""Write api.md from the docstrings of the public names.

python examples/docs/make_api.py
"""

import inspect
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hypernet.cli.script import quiet_libraries

quiet_libraries()  # before diffusers is imported

import hypernet

PAGE = Path(__file__).with_name("api.md")
GROUPS = {
    "Open and write": ["load", "save", "load_webui", "save_webui", "load_stack", "inspect"],
    "Use in a UNet": ["attach", "set_strength", "detach", "fuse"],
    "Build and combine": ["Hypernetwork", "HypernetworkModule", "average"],
    "Train": ["HypernetworkUNet"],
    "Errors": ["UserError", "NotAHypernetwork"],
}
INTRODUCTION = """# The Python functions

`pip install .` in a checkout (or `pip install git+REPOSITORY_URL`) makes `import hypernet` work anywhere. This page is
written by `python examples/docs/make_api.py` from the docstrings; `help(hypernet)` shows the same.
"""
TRAINING_LOOP = """A training loop of your own needs nothing else:

```python
hypernetwork = hypernet.Hypernetwork(widths=(320, 640, 768, 1280), activation="swish", name="my_style")
model = hypernet.HypernetworkUNet(unet.requires_grad_(False), hypernetwork)
optimizer = torch.optim.AdamW(hypernetwork.parameters(), lr=5e-5)
for step, (noisy_latents, timesteps, text, noise) in enumerate(batches, start=1):
    loss = torch.nn.functional.mse_loss(model(noisy_latents, timesteps, text), noise)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    hypernetwork.register_to_config(step=step)  # how long it has been trained; written to its files
hypernet.save(hypernetwork, "my_style.pt")
```
"""


def signature(name: str) -> str:
    """Return how a public name is called, without annotations."""
    parameters = inspect.signature(getattr(hypernet, name)).parameters.values()
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    return f"{name}{inspect.Signature(plain)}"


def document(name: str) -> str:
    """Return the section of one public name."""
    public = getattr(hypernet, name)
    if inspect.isclass(public) and issubclass(public, Exception):
        call = f"{name}({public.__mro__[1].__name__})"
    else:
        call = signature(name)
    lines = [f"### {name}", "", "```python", call, "```", "", "```text", inspect.cleandoc(public.__doc__), "```", ""]
    if inspect.isclass(public) and "forward" in vars(public) and vars(public)["forward"].__doc__:
        lines += ["`forward`:", "", "```text", inspect.cleandoc(vars(public)["forward"].__doc__), "```", ""]
    return "\n".join(lines)


def main() -> None:
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(hypernet.__all__)
    parts = [INTRODUCTION]
    for heading, names in GROUPS.items():
        parts += [f"## {heading}\n", *map(document, names)]
        if heading == "Train":
            parts.append(TRAINING_LOOP)
    PAGE.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
