"""Folders that commands write into: new or empty ones only, so that nothing is ever overwritten."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from anchorite.errors import InputError, StorageError


def free_folder(wanted: Path) -> Path:
    """`wanted`, or with a number behind it where that is taken."""
    path, number = wanted, 2
    while path.exists() or path.is_symlink():
        path = wanted.with_name(f"{wanted.name}-{number}")
        number += 1
    return path


def refuse_taken(folder: Path, flag: str = "--out") -> None:
    """Raise at once, before minutes of work, what making and filling `folder` would raise later.

    InputError when there is something in it, StorageError when it could not be made.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        is_run = (folder / "recipe.yaml").is_file()
        other = f"go on with that run by --resume {shlex.quote(str(folder))}, or name" if is_run else "name"
        raise InputError(
            f"{flag} {folder}: exists already, and nothing is ever overwritten; {other} a new or an empty folder"
        )
    parent = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not parent.is_dir():
        raise StorageError(f"{flag} {folder}: cannot be made: {parent} is a file; name another folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise StorageError(f"{flag} {folder}: cannot be made: no permission to write in {parent}; name another folder")
