"""Choose where convert_to_webui.py writes, and refuse to replace anything by mistake."""

import difflib
from pathlib import Path

from hypernet.formats.load_save import load
from hypernet.formats.trained_folder import is_run_folder, read_trained_config
from hypernet.utils.errors import UserError, quoted_if_needed
from hypernet.utils.file_kinds import file_problem
from hypernet.utils.user_paths import name_problem, path_problem

FILE_ENDINGS = (".pt", ".safetensors")


def choose_target(source: str, target: Path | None, rename: str | None, overwrite: bool) -> Path | None:
    """Return where to write a conversion of `source`; None if it is a trained folder, which gets its own NAME.pt.

    Args:
        target: TARGET, if the user named one.
        rename: the name of a copy beside the file `source`, instead of a target.

    Raises:
        UserError: if neither is given for a file, or nothing can be written there.
        NotAHypernetwork: if a target is needed and `source` is not a hypernetwork.
    """
    path = Path(source)
    if rename is not None:
        name = rename.removesuffix(path.suffix)
        if target is not None:
            raise UserError(f"--rename {name}: the copy is written beside the file; leave {target} out")
        if path.is_dir():
            raise UserError(f"--rename {name}: {path} is a folder; name a TARGET instead")
        if problem := name_problem(name):
            raise UserError(f"--rename {quoted_if_needed(name)}: {problem}")
        target = path.with_name(name + path.suffix)
    if target is None and not path.is_dir():
        load(source)  # report a wrong source first
        raise UserError(f"{path}: the TARGET is missing: convert_to_webui.py {path} TARGET")
    if target is not None:
        check_target(target, overwrite, source)
    return target


def default_target(folder: Path, name: str, overwrite: bool) -> Path:
    """Return NAME.pt in a trained folder; a run's own folder may always be updated.

    Args:
        name: from the folder's config. If it is not a valid file name, the folder's name is used.

    Raises:
        UserError: if nothing can be written there.
    """
    target = folder / f"{folder.resolve().name if name_problem(name) else name}.pt"
    check_target(target, overwrite or is_run_folder(folder))
    return target


def check_target(target: Path, overwrite: bool, *sources: str | Path) -> None:
    """Raise UserError if nothing can be written to `target`, or something else would be lost."""
    is_file = is_single_file(target)
    if problem := path_problem(str(target)) or name_problem(target.stem if is_file else target.resolve().name):
        raise UserError(f"{quoted_if_needed(str(target))}: {problem}; choose another name")
    if any(Path(source).resolve() == target.resolve() for source in sources):
        raise UserError(f"{target}: it is the source itself; choose another name")
    if not target.parent.is_dir():
        raise UserError(f"{target}: there is no folder '{target.parent}'")
    if target.suffix.lower() in (".ckpt", ".bin", ".pth"):
        choices = "NAME.pt (for the WebUI), NAME.safetensors, or the name of a folder (for diffusers)"
        raise UserError(f"{target}: hypernetworks are not written in this format; choose {choices}")
    meant = difflib.get_close_matches(target.suffix.lower(), FILE_ENDINGS, 1, 0.75)
    if meant and not is_file and not target.is_dir():
        raise UserError(f"{target}: did you mean {target.with_suffix(meant[0])}? (other endings name a folder)")
    if is_file and target.is_dir() or not is_file and target.is_file():
        raise UserError(f"{target}: it is a {'folder' if is_file else 'file'}; choose another name")
    if target.exists() and not target.is_dir() and (problem := file_problem(target)):
        raise UserError(f"{target}: {problem}; choose another name")
    is_hypernetwork = read_trained_config(target) is not None
    if target.is_dir() and any(target.iterdir()) and (not is_hypernetwork or is_run_folder(target)):
        raise UserError(f"{target}: it holds other files; name a new folder, or a file such as {target / 'NAME.pt'}")
    if not overwrite and (target.is_file() or is_hypernetwork):
        raise UserError(f"{target}: it already exists; choose another name, or add --overwrite")


def is_single_file(target: Path) -> bool:
    """Whether `hypernet.save` writes a file there rather than a folder."""
    return target.suffix.lower() in FILE_ENDINGS
