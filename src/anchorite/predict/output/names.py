"""Names of files and folders that any file system takes, made of names that may come from strangers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from anchorite.errors import InputError, StorageError

# File systems stop at 255 bytes; this leaves room for a number, a suffix and the name of a temporary file.
_LONGEST_STEM = 180
_REFUSED_SIGNS = frozenset('<>:"/\\|?*')
_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))})


def file_name(text: str) -> str:
    """A text without what some file system refuses: control characters, bytes that are no text, Windows' signs."""
    return "".join(sign if sign.isprintable() and sign not in _REFUSED_SIGNS else "_" for sign in text)


def folder_names(texts: Iterable[str]) -> list[str]:
    """A folder name for each text, all different: no path, no hidden folder, no device of Windows."""
    names, taken = Names(), []
    for text in texts:
        name = file_name(text).strip(". ") or "_"
        taken.append(names.unused(f"{name}_" if name.partition(".")[0].casefold() in _DEVICES else name))
    return taken


class Names:
    """Names given out once; those that differ in case alone are one to some file systems, so they count as equal."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def unused(self, stem: str) -> str:
        """The stem, shortened to what file systems hold, or the first of stem-2, stem-3, ... that is free."""
        stem = stem.encode()[:_LONGEST_STEM].decode(errors="ignore")
        name, number = stem, 1
        while name.casefold() in self._taken:
            number += 1
            name = f"{stem}-{number}"
        self._taken.add(name.casefold())
        return name


def fresh_folder(wanted: Path) -> Path:
    """`wanted`, if nothing is in it, else the first of wanted-2, wanted-3, ... with nothing in it; creates nothing."""
    folder, number = wanted, 1
    while _has_content(folder):
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def make_empty(folder: Path) -> None:
    """Make a folder; InputError when it holds something, StorageError when it cannot be made."""
    try:
        if _has_content(folder):
            raise InputError(
                f"{folder}: there is something here already, and nothing is ever overwritten; "
                "name a new or an empty folder"
            )
    except OSError as error:
        raise _unmakeable(folder, error) from error
    make_part(folder)


def make_part(folder: Path) -> None:
    """Make a folder where it is not there yet; StorageError when it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unmakeable(folder, error) from error


def _unmakeable(folder: Path, error: OSError) -> StorageError:
    return StorageError(f"{folder}: cannot be made: {error.strerror or error}; choose another folder")


def _has_content(path: Path) -> bool:
    return path.exists() and (not path.is_dir() or any(path.iterdir()))
