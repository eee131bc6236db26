"""Where convert_to_webui.py writes, and what it must not do away with there."""

from pathlib import Path

from hypernet.formats.load_save import load
from hypernet.formats.trained_folder import trained_config
from hypernet.utils.errors import UserError


def choose_target(source: str, target: Path | None, rename: str | None, overwrite: bool) -> Path | None:
    """Where to write what is at `source`; None for NAME.pt in the trained folder that it is.

    Args:
        target: what the user names.
        rename: the name of a copy beside the file `source`, in place of a target.

    Raises:
        UserError: if neither says where, or nothing can be written there; NotAHypernetwork if `source` is none.
    """
    path = Path(source)
    if rename is not None:
        name = rename.removesuffix(path.suffix)
        if target is not None:
            raise UserError(f"--rename {name}: the copy lies beside the file; leave {target} out")
        if path.is_dir():
            raise UserError(f"--rename {name}: it is for files; name the TARGET for what is in {path}")
        if not is_file_name(name):
            raise UserError(f'--rename {rename!r}: it becomes a file name, so none of < > : " / \\ | ? *')
        target = path.with_name(name + path.suffix)
    if target is None and not path.is_dir():
        load(source)  # which tells if it is none
        raise UserError(f"{path}: name what to write, too: convert_to_webui.py {path} TARGET")
    if target is not None:
        check_target(target, overwrite, source)
    return target


def target_inside(folder: Path, name: str, overwrite: bool) -> Path:
    """NAME.pt in a trained folder, which may be replaced if the folder is a run's own; `name` is its config's word."""
    target = folder / f"{name if is_file_name(name) else folder.resolve().name}.pt"  # the word may be a path
    check_target(target, overwrite or (folder / "run.json").exists())
    return target


def check_target(target: Path, overwrite: bool, *sources):
    """Raises: UserError for a place that cannot be written to, or would do away with something else."""
    if len(target.name.encode()) > 200:
        raise UserError(f"{target.name[:40]}...: the name is too long")
    file = is_one_file(target)
    if any(Path(source).resolve() == target.resolve() for source in sources):
        raise UserError(f"{target}: it is the source itself; name another one")
    if not target.parent.is_dir():
        raise UserError(f"{target}: there is no folder '{target.parent}'")
    if target.suffix.lower() in (".ckpt", ".bin", ".pth"):
        raise UserError(
            f"{target}: write NAME.pt (for the WebUI), NAME.safetensors, or a folder's name (for diffusers)"
        )
    if file and target.is_dir() or not file and target.is_file():
        raise UserError(f"{target}: it is a {'folder' if file else 'file'}; name another place")
    if target.is_dir() and any(target.iterdir()):
        if trained_config(target) is None or (target / "run.json").exists():
            raise UserError(
                f"{target}: it holds other things; name a new folder, or a file, such as {target / 'NAME.pt'}"
            )
    if not overwrite and (target.is_file() or trained_config(target) is not None):
        raise UserError(f"{target}: there is one already; name another one, or add --overwrite")
    if target.stem == "None":
        raise UserError(f"{target}: the WebUI takes None for no hypernetwork; name it otherwise")


def is_one_file(target: Path) -> bool:
    """Whether `hypernet.save` writes a file there; else it is a folder."""
    return target.suffix.lower() in (".pt", ".safetensors")


def is_file_name(name: str) -> bool:
    """Whether a file can be called so everywhere."""
    return (
        name.isprintable() and not set(name) & set('<>:"/\\|?*') and bool(name.strip(". ")) and len(name.encode()) < 200
    )
