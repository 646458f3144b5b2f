"""Folders and files that commands write: new or empty ones only, so that nothing is ever overwritten."""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp

from anchorite.errors import InputError, StorageError


def free_path(wanted: Path) -> Path:
    """`wanted`, a folder or an .html file, or with a number added to its name where that is taken.

    An empty folder is free.
    """
    suffix = wanted.suffix if wanted.suffix == ".html" else ""
    path, number = wanted, 1
    while os.path.lexists(path) and (suffix or not path.is_dir() or any(path.iterdir())):
        number += 1
        path = wanted.with_name(f"{wanted.name.removesuffix(suffix)}-{number}{suffix}")
    return path


def refuse_taken(folder: Path, flag: str = "--out") -> None:
    """Raise at once, before minutes of work, what making and filling `folder` would raise later.

    InputError when there is something in it, StorageError when it could not be made.
    """
    if folder.is_symlink() and not folder.exists():
        raise InputError(f"{flag} {folder}: a link to something that does not exist; name a new or an empty folder")
    try:
        is_taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise StorageError(f"{flag} {folder}: cannot be read: {error.strerror}; name another folder") from error
    if is_taken:
        is_run = (folder / "recipe.yaml").is_file()
        other = f"go on with that run by --resume {shlex.quote(str(folder))}, or name" if is_run else "name"
        raise InputError(
            f"{flag} {folder}: exists already, and nothing is ever overwritten; {other} a new or an empty folder"
        )
    _require_makeable(folder, flag)


def refuse_taken_file(path: Path) -> None:
    """InputError where the file exists, StorageError where its folder does not."""
    if os.path.lexists(path):
        raise InputError(f"{path}: exists already, and nothing is ever overwritten; name a new file")
    if not path.parent.is_dir():
        raise StorageError(f"{path}: cannot be made: there is no folder {path.parent}; make it or name another")


def refuse_taken_page(page: Path) -> None:
    """`refuse_taken` for a page of HTML, whose name has to say that it is one; its folder need not be there yet."""
    if page.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out {page}: the page is one HTML file; name it {page.with_suffix('.html').name}")
    if os.path.lexists(page):
        raise InputError(f"--out {page}: exists already, and nothing is ever overwritten; name a new file")
    _require_makeable(page.parent, "--out")


def data_name(data: Path) -> str:
    """What a dataset is called by its path, for the names of folders made from it."""
    path = data.resolve()
    if path.name in ("data.yaml", "data.yml"):
        return path.parent.name
    return path.stem if path.is_file() else path.name


def _require_makeable(folder: Path, flag: str) -> None:
    """StorageError where a folder could not be made and filled. It is made and removed again to see that: permissions
    alone do not tell, they let root write even into /proc."""
    missing = [path for path in (folder.absolute(), *folder.absolute().parents) if not path.exists()]
    parent = missing[-1].parent if missing else folder
    if not parent.is_dir():
        raise StorageError(f"{flag} {folder}: cannot be made: {parent} is a file; name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        missing.insert(0, Path(mkdtemp(prefix=".anchorite-", dir=folder)))
    except OSError as error:
        raise StorageError(
            f"{flag} {folder}: nothing can be made in {parent}: {error.strerror}; name another folder"
        ) from error
    finally:
        for path in missing:
            with suppress(OSError):  # another process has put something in
                path.rmdir()
