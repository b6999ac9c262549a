"""What a bundle may hold, and where its files may lie."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from embedtune.errors import BundleError

#: Kinds of files that can't run anything when they are read.
_KINDS = (".json", ".safetensors", ".skops", ".txt", ".model", ".jinja", ".md")
#: Written by people and by the Hub, and never read here.
_UNREAD = re.compile(r"README\.md|LICENSE[\w.-]*|\.gitattributes|\.gitignore|\.cache/.*")
_NAME = re.compile(r"[\w-][\w .+-]*")


def list_files(folder: Path) -> list[str]:
    """Return the names of all files that loading may read, relative to the folder, with ``/``."""
    names = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir())
    return sorted(name for name in names if name != "bundle.json" and not _UNREAD.fullmatch(name))


def check_view_name(name: str) -> None:
    """Refuse a view's name that can't be a file's.

    Raises
    ------
    BundleError
    """
    if not _NAME.fullmatch(name):
        raise BundleError(
            f"view '{name}' can't be saved under that name: use letters, digits, '.', '-', '_' and spaces."
        )


def check_files(folder: Path, listed: Iterable[str], *, root: Path) -> None:
    """Refuse a bundle whose files aren't those that its manifest lists, or could bring more than numbers.

    Parameters
    ----------
    folder : Path
    listed : iterable of str
        Names that the manifest gives.
    root : Path
        Nothing may lie outside of it; links inside are let through (the Hub's cache is made of them).

    Raises
    ------
    BundleError
    """
    listed = set(listed)
    for name in sorted(listed):
        if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
            raise BundleError(f"{folder} lists the file '{name}' outside of itself: get a bundle you trust.")
        if not name.endswith(_KINDS):
            raise BundleError(
                f"{folder} holds '{name}', and only {', '.join(_KINDS)} are read: get a bundle you trust."
            )
        if not (folder / name).is_file():
            raise BundleError(f"{folder} lacks its file {name}: copy the whole bundle again.")
    for name in list_files(folder):
        if name not in listed:
            raise BundleError(
                f"{folder} holds '{name}', which wasn't saved with it: delete it, or copy the bundle again."
            )
    for name in [*sorted(listed), "bundle.json"]:
        if not is_inside(folder / name, root):
            raise BundleError(f"'{name}' in {folder} is a link that leads out of it: get a bundle you trust.")


def is_inside(path: Path, root: Path) -> bool:
    """Tell whether a path, its links followed, lies in a folder."""
    return path.resolve().is_relative_to(root.resolve())


def find_inside(folder: Path, name: object, listed: Iterable[str]) -> Path:
    """Return a file or a folder of the bundle that its manifest speaks of.

    Raises
    ------
    BundleError
        If none of the listed files is it, or lies in it.
    """
    if isinstance(name, str) and any(one == name or one.startswith(f"{name}/") for one in listed):
        return folder / name
    raise BundleError(f"{folder} speaks of '{name}' and doesn't hold it: copy the whole bundle again.")
