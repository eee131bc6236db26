"""The Hub: what can be an id of it, and files of its repositories."""

from pathlib import Path


def is_hub_id(path: str) -> bool:
    """Whether it can be one, as it stands: OWNER/NAME, and nothing here is called so."""
    place = Path(path)
    return not place.exists() and not place.is_absolute() and len(place.parts) == 2 and path[0] not in ".~\\"


def hub_file(repo_id: str, file: str = ".gitattributes", revision: str | None = None) -> Path:
    """Where a file of a repository lies in the cache here, fetched if need be; every repository has a .gitattributes.

    Raises:
        OSError: if there is no such file or repository, none can have such a name, or the Hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download  # slow to import, and rarely needed

    try:
        return Path(hf_hub_download(repo_id, file, revision=revision))
    except ValueError as error:  # of a name that no repository can have
        raise OSError(str(error)) from None
