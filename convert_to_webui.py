#!/usr/bin/env python
"""Write a trained hypernetwork as a `.pt` file for the AUTOMATIC1111 WebUI and ComfyUI.

    python convert_to_webui.py output/my_style                                # writes output/my_style/my_style.pt
    python convert_to_webui.py output/my_style/checkpoints/step-005000 my_style-5000.pt

The file's name is the name that prompts use: my_style.pt is `<hypernet:my_style:1>`.
"""

from pathlib import Path

from hypernet.script import ScriptParser, run_script

import hypernet
from hypernet.errors import UserError


def main(arguments=None):
    parser = ScriptParser(__doc__)
    parser.add_argument("source", help="a trained folder, a checkpoint of it, a .safetensors, a .pt, or a Hub id")
    parser.add_argument("target", nargs="?", type=Path, help="the .pt file to write; default: NAME.pt in that folder")
    args = parser.parse_args(arguments)
    if args.target is None and args.source.endswith(".pt"):
        raise UserError(f"{args.source}: it is a WebUI file already; name the file to write, if you want another one")
    if args.target is not None and not args.target.parent.is_dir():
        raise UserError(f"{args.target}: there is no folder {args.target.parent}")
    if args.target is not None and args.target.suffix != ".pt":
        raise UserError(f"{args.target}: the WebUI's files end in .pt")
    hypernetwork = hypernet.load(args.source)
    folder = Path(args.source) if Path(args.source).is_dir() else Path()
    target = args.target or folder / f"{hypernetwork.config.name}.pt"
    try:
        hypernet.save_webui(hypernetwork, target)
    except OSError as error:
        raise UserError(f"{target}: it cannot be written ({error.strerror})") from None
    print(f"{target}: {target.stem}, step {hypernetwork.config.step}, {target.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    run_script(main)
