"""The image and video files that words on a command line stand for, and why they stand for none."""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from anchorite.data.headers import IMAGE_SUFFIXES
from anchorite.data.shards.format import leads_into_shard
from anchorite.errors import InputError, StorageError

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".wmv", ".flv", ".mpg", ".mpeg", ".mts", ".m2ts", ".3gp", ".ogv"}
)
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")  # a Path has one slash left of two
_NUM_KINDS = 3  # told of what a folder holds instead of images


def expand_sources(sources: Iterable[str | Path], recursive: bool = False) -> list[Path]:
    """The image and video files meant by `sources`, in their order, each file once.

    A file stands for itself, whatever its suffix; a folder for the images in it, sorted by name, with `recursive` also
    those in its subfolders; anything else is a pattern (*, ?, [..], ** for any depth) for image files, videos and
    folders. Hidden files, and those without the suffix of an image or a video, are found only by their own name.
    Raises InputError naming every source that stands for nothing, where it was looked for, and what to do.
    """
    found: dict[Path, Path] = {}
    failures: list[str] = []
    for source in sources:
        paths = _expand(Path(source), recursive)
        if not paths:
            failures.append(_why_nothing(source, recursive))
        for path in paths:
            found.setdefault(path.resolve(), path)
    if failures:
        raise InputError("\n".join(failures))
    if not found:
        raise InputError("no source given; name image files, videos, folders or quoted patterns such as 'photos/*.jpg'")
    return list(found.values())


def is_image_name(path: Path) -> bool:
    """Whether a file is called like an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def is_video_name(path: Path) -> bool:
    """Whether a file is called like a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def address_scheme(source: str) -> str:
    """The lower-case scheme of an address, as rtsp in rtsp://host/path, or nothing."""
    address = _ADDRESS.match(source)
    return address[1].lower() if address else ""


def _expand(source: Path, recursive: bool) -> list[Path]:
    if source.is_file() or leads_into_shard(source):
        return [source]
    if source.is_dir():
        return _images_in(source, recursive)
    paths: list[Path] = []
    # Not Path.glob, which refuses absolute patterns.
    for match in sorted(glob.glob(str(source.expanduser()), recursive=True)):  # noqa: PTH207
        path = Path(match)
        paths += _images_in(path, recursive) if path.is_dir() and not _is_any_depth(source) else []
        paths += [path] if path.is_file() and (is_image_name(path) or is_video_name(path)) else []
    return paths


def _images_in(folder: Path, recursive: bool) -> list[Path]:
    entries = folder.rglob("*") if recursive else folder.iterdir()
    try:
        return sorted(path for path in entries if is_image_name(path) and _is_visible(path, folder) and path.is_file())
    except OSError as error:
        raise StorageError(f"{folder}: cannot be searched: {error.strerror or error}. Check its permissions") from error


def _is_visible(path: Path, folder: Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(folder).parts)


def _is_any_depth(pattern: Path) -> bool:
    """Whether a pattern walks the tree by itself, so that its folders need not be opened again."""
    return "**" in pattern.parts


def _why_nothing(source: str | Path, recursive: bool) -> str:
    path = Path(source)
    kinds = " ".join(sorted(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES))
    if path.is_dir():
        deeper = "" if recursive else "; its subfolders are searched with --recursive"
        others = [entry for entry in path.iterdir() if entry.is_file()]
        return f"{path}: no image in this folder (looked for {kinds}){_instead(others)}{deeper}"
    if glob.has_magic(str(path)):
        others = [Path(match) for match in sorted(glob.glob(str(path.expanduser()), recursive=True))]  # noqa: PTH207
        others = [other for other in others if other.is_file()]
        return f"{path}: no image matches this pattern (looked from {Path.cwd()} for {kinds}){_instead(others)}"
    return _why_no_file(source)


def _why_no_file(source: str | Path) -> str:
    """Why a name is no file here: an address, a camera without its place, or a name that does not exist."""
    scheme = address_scheme(str(source))
    if scheme == "file":
        return f"{source}: files are named by their path alone, without file:"
    if scheme:
        return f"{source}: an address, and nothing is ever downloaded; save it as a file first, and name that file"
    return f"{Path(source)}: no such file or folder (looked from {Path.cwd()})"


def _instead(others: list[Path]) -> str:
    """What there is instead of images, as the rest of a sentence."""
    counts = Counter(other.suffix.lower() or "no suffix" for other in others if not other.name.startswith("."))
    if not counts:
        return ""
    listed = ", ".join(f"{number} of {suffix}" for suffix, number in counts.most_common(_NUM_KINDS))
    more = " and others" if len(counts) > _NUM_KINDS else ""
    return f", but files: {listed}{more}; {_how_to_read(others)}"


def _how_to_read(others: list[Path]) -> str:
    """What to do with files that are no images."""
    video = next((other for other in others if is_video_name(other)), None)
    if video is not None:
        return f"videos are named one by one or by a quoted pattern, such as '{video.parent / '*'}{video.suffix}'"
    return "convert photographs among them to JPEG or PNG first"
