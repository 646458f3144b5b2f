"""What images may be given as: files, folders and patterns on a command line; arrays, Pillow images, paths in Python.

Legend: H, W image height and width in pixels.
"""

from __future__ import annotations

import glob
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from anchorite.data.decode import decode_image
from anchorite.data.headers import IMAGE_SUFFIXES
from anchorite.errors import InputError, StorageError

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".wmv", ".flv", ".mpg", ".mpeg", ".mts", ".m2ts", ".3gp", ".ogv"}
)
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")  # a Path has one slash left of two
_NUM_KINDS = 3  # told of what a folder holds instead of images
_WANTED = "give numpy arrays (H, W, 3) of uint8 in RGB order, Pillow images or paths"


def expand_sources(sources: Iterable[str | Path], recursive: bool = False) -> list[Path]:
    """The image files meant by `sources`, in their order, each file once.

    A file stands for itself, whatever its suffix (a video is refused); a folder for the images in it, sorted by name,
    with `recursive` also those in its subfolders; anything else is a pattern (*, ?, [..], ** for any depth) for image
    files and folders. Hidden files, and those without the suffix of an image, are found only by their own name.
    Raises InputError naming every source that stands for no image, where it was looked for, and what to do.
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
        raise InputError("no source given; name image files, folders or quoted patterns such as 'photos/*.jpg'")
    return list(found.values())


def each_source(sources: Any) -> Iterator[Any]:
    """The images of `sources` one by one: a single image or path stands for itself, anything iterable for its items.

    An array of four axes is a batch of images. Raises InputError when it is none of these.
    """
    is_batch = isinstance(sources, np.ndarray) and sources.ndim == 4
    if not is_batch and (isinstance(sources, str | Path | np.ndarray) or _is_pillow(sources)):
        yield sources
    elif isinstance(sources, Iterable):
        yield from sources
    else:
        raise InputError(f"images cannot be taken from {type(sources).__name__}; {_WANTED}")


def source_name(source: Any) -> str:
    """Where an image came from, as far as it is known: its path, or nothing."""
    if isinstance(source, str | Path):
        return str(source)
    return str(getattr(source, "filename", "") or "")


def read_image(source: Any) -> UInt8[NDArray[np.uint8], "H W 3"]:
    """The image (H, W, 3) uint8 RGB behind a path, an array or a Pillow image.

    A file is turned as its EXIF orientation says; a Pillow image is taken as its pixels lie, so that boxes fit what the
    caller holds. Raises InputError (StorageError, if the disk refuses) naming the file, or shape and type and remedy.
    """
    if isinstance(source, str | Path):
        return decode_image(source)
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
            raise InputError(f"an image array of shape {source.shape} and type {source.dtype} was given; {_WANTED}")
        return source
    if _is_pillow(source):
        if source.mode[0] in "IF":
            raise InputError(
                f"a Pillow image of mode {source.mode} was given, whose brightness has no fixed range; "
                "scale it to 8 bits first"
            )
        return np.asarray(source.convert("RGB"))
    raise InputError(f"an image cannot be taken from {type(source).__name__}; {_WANTED}")


def _is_pillow(source: Any) -> bool:
    """Whether it behaves like a Pillow image; Pillow itself is never imported."""
    return all(hasattr(source, name) for name in ("mode", "size", "convert", "getbands"))


def _expand(source: Path, recursive: bool) -> list[Path]:
    if source.is_file():
        return [] if _is_video(source) else [source]
    if source.is_dir():
        return _images_in(source, recursive)
    paths: list[Path] = []
    # Not Path.glob, which refuses absolute patterns.
    for match in sorted(glob.glob(str(source.expanduser()), recursive=True)):  # noqa: PTH207
        path = Path(match)
        paths += _images_in(path, recursive) if path.is_dir() and not _is_any_depth(source) else []
        paths += [path] if path.is_file() and _is_image_name(path) else []
    return paths


def _images_in(folder: Path, recursive: bool) -> list[Path]:
    entries = folder.rglob("*") if recursive else folder.iterdir()
    try:
        return sorted(path for path in entries if _is_image_name(path) and _is_visible(path, folder) and path.is_file())
    except OSError as error:
        raise StorageError(f"{folder}: cannot be searched: {error.strerror or error}. Check its permissions") from error


def _is_image_name(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _is_visible(path: Path, folder: Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(folder).parts)


def _is_any_depth(pattern: Path) -> bool:
    """Whether a pattern walks the tree by itself, so that its folders need not be opened again."""
    return "**" in pattern.parts


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def _why_nothing(source: str | Path, recursive: bool) -> str:
    path = Path(source)
    kinds = " ".join(sorted(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES))
    if path.is_file():
        return f"{path}: {_how_to_read([path])}"
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
    """Why a name is no file here: an address, a camera, or a name that does not exist."""
    address = _ADDRESS.match(str(source))
    scheme = address[1].lower() if address else ""
    if scheme == "file":
        return f"{source}: files are named by their path alone, without file:"
    if scheme.startswith(("rtsp", "rtmp", "udp", "rtp")):
        return f"{source}: streams are not read; {_how_to_make_frames(str(source))}"
    if scheme:
        return f"{source}: an address, and nothing is ever downloaded; save it as a file first, and name that file"
    camera = "; cameras are not read: save their images as files" if str(source).isdigit() else ""
    return f"{Path(source)}: no such file or folder (looked from {Path.cwd()}){camera}"


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
    video = next((other for other in others if _is_video(other)), None)
    if video is not None:
        return f"video is not read yet; {_how_to_make_frames(str(video))}"
    return "convert photographs among them to JPEG or PNG first"


def _how_to_make_frames(video: str) -> str:
    return f"make images of it, and name their folder: mkdir frames; ffmpeg -i {shlex.quote(video)} frames/%05d.png"
