"""Bundles on the Hugging Face Hub: fetched and pushed."""

from __future__ import annotations

import re
from pathlib import Path

from embedtune.bundle.folder import MANIFEST, read_manifest
from embedtune.bundle.paths import check_files, is_inside
from embedtune.errors import BundleError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def find_bundle(path: str | Path, *, revision: str | None = None) -> tuple[Path, Path]:
    """Return a bundle's folder, and the folder that its links may lead into; a Hub id is downloaded, or found cached.

    Raises
    ------
    BundleError
        If it is neither a folder nor a bundle of the Hub, or the Hub refuses or can't be reached.
    """
    folder = Path(path).expanduser()
    if folder.exists() or not _HUB_ID.fullmatch(str(path)):
        return folder, folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        found = Path(snapshot_download(str(path), revision=revision))
    except RepositoryNotFoundError:
        raise BundleError(
            f"there is no folder '{path}', and no model of that name on the Hub: check the name, or set HF_TOKEN "
            "if it is private."
        ) from None
    except LocalEntryNotFoundError:
        raise BundleError(
            f"there is no folder '{path}', and the Hub can't be reached: check the network, or give a folder."
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise BundleError(f"'{path}' can't be fetched from the Hub: {_say(error)}") from None
    return found, found.parent.parent  # the snapshot's links lead to blobs beside it


def push_bundle(
    path: str | Path, repo_id: str, *, private: bool = True, message: str = "Upload a bundle"
) -> str:
    """Upload a bundle's own files to the Hub as a model, and return its address; the token is HF_TOKEN's.

    Raises
    ------
    BundleError
        If it isn't a bundle, or the Hub refuses or can't be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    folder = Path(path).expanduser()
    files = read_manifest(folder)["files"]
    check_files(folder, files, root=folder)  # a link would send what it leads to
    card = folder / "README.md"
    if not _HUB_ID.fullmatch(repo_id):
        raise BundleError(f"'{repo_id}' is no Hub name: give organisation/name.")
    api = HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        found = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=[*files, MANIFEST, *([card.name] if is_inside(card, folder) else [])],
            delete_patterns="*",
            commit_message=message,
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise BundleError(f"'{repo_id}' can't be written on the Hub: {_say(error)}") from None
    return str(found.repo_url)


def _say(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
