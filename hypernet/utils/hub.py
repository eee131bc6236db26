"""Recognize Hub ids, and download files of Hub repositories."""

from pathlib import Path


def is_hub_id(path: str) -> bool:
    """Return whether this may be a Hub id: OWNER/NAME, and not an existing local path."""
    local = Path(path)
    return not local.exists() and not local.is_absolute() and len(local.parts) == 2 and path[0] not in ".~\\"


def hub_file(repo_id: str, file: str = ".gitattributes", revision: str | None = None) -> Path:
    """Return the local path of a file of a Hub repository, downloaded to the cache if needed.

    The default file is one that every repository has, for checking that the repository exists.

    Raises:
        OSError: if there is no such file or repository, the id is invalid, or the Hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download  # slow to import, and rarely needed

    try:
        return Path(hf_hub_download(repo_id, file, revision=revision))
    except ValueError as error:  # an invalid id
        raise OSError(str(error)) from None
