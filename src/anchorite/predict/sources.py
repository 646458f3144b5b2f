"""Sources of images on a command line: files, folders, patterns, videos, cameras, watched folders, lists on stdin."""

from __future__ import annotations

import glob
import os
import select
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anchorite.data.formats.common import is_image_name, other_image_kind
from anchorite.data.headers import IMAGE_SUFFIXES
from anchorite.data.images import decode_image
from anchorite.data.prefetch import prefetch
from anchorite.data.shards.format import leads_into_shard
from anchorite.errors import AnchoriteError, InputError, StorageError
from anchorite.files import StrPath
from anchorite.predict.frames import FLUSH, VIDEO_SUFFIXES, Frame, LiveSource, address_scheme, is_live, video_frames

STDIN = "-"
_NUM_SHOWN = 5  # names of files that were passed over
_NUM_KINDS = 3  # listed of what a folder holds instead of images
_LONGEST_PATH = 65_536
_POLL_S = 0.2
_QUIET_S = 0.5  # a watched file is read when neither its size nor its time of change moved for so long
_PATIENCE_S = 10.0  # and reported as damaged when it stays unreadable for so long
_TEMPORARY = frozenset({".tmp", ".temp", ".part", ".partial", ".filepart", ".crdownload", ".download"})
_State = tuple[int, int, int]  # time of change in ns, bytes, inode


@dataclass(frozen=True)
class SourceConfig:
    """How sources are read.

    recursive: folders stand for their subfolders too. every: of videos, cameras and streams use each so-many-th frame.
    watch: sources are folders that images are being written to. idle_s: end after so many seconds without a new one.
    null_separated: paths on stdin end with a NUL character instead of a line's end.
    """

    recursive: bool = False
    every: int = 1
    watch: bool = False
    idle_s: float | None = None
    null_separated: bool = False


@dataclass
class Sources:
    """What was named, looked at but not read yet; `open_sources` makes it. Use `items` once.

    paths: the files that are known from the beginning; passed_over: files of folders that are no images; watched:
    folders; listed: the descriptor of a list of paths.
    """

    config: SourceConfig
    paths: list[Path] = field(default_factory=list)
    passed_over: list[Path] = field(default_factory=list)
    watched: list[Path] = field(default_factory=list)
    live: LiveSource | None = None
    listed: int | None = None

    @property
    def is_endless(self) -> bool:
        """Whether it goes on until it is stopped."""
        return bool(self.watched) or self.live is not None

    @property
    def is_streamed(self) -> bool:
        """Whether it is more than a known number of images."""
        return self.is_endless or self.listed is not None or any(is_video_name(path) for path in self.paths)

    @property
    def amount(self) -> str:
        """How many there are, as the end of a sentence."""
        if self.is_streamed:
            return f"the {len(self.paths)} images and videos" if self.paths else "the images that came"
        return f"{len(self.paths)} images"

    @property
    def num_dropped(self) -> int:
        """Frames of a camera or stream that the network had no time for; known at the end."""
        return 0 if self.live is None else self.live.num_dropped

    def refuse_output(self, folder: StrPath) -> None:
        """InputError when what is written to `folder` would be read again."""
        folder = Path(folder)
        for watched in self.watched:
            if watched.resolve() in (folder.resolve(), *folder.resolve().parents):
                raise InputError(
                    f"--out {folder}: lies in the watched folder {watched}, which would be fed with its own results; "
                    "name a folder elsewhere with --out"
                )

    def items(self, stop: threading.Event, depth: int) -> Generator[Any, None, None]:
        """What `Predictor.stream` takes (paths, frames, lulls, and errors in place of what cannot be read).

        It is read up to `depth` ahead. Setting `stop` ends what is endless.
        """
        config = self.config
        if self.live is not None:
            return self.live.frames(stop, config.every)
        if not self.watched and self.listed is None:
            return opened(self.paths, every=config.every, depth=depth)

        def arriving(end: threading.Event) -> Generator[Any, None, None]:
            if self.listed is None:
                items = watched_items(self.watched, config.recursive, config.idle_s, end)
                return (item for item in items if item is not None)
            names = listed_names(self.listed, b"\0" if config.null_separated else b"\n", end)
            return opened(names, config.recursive, config.every)

        return prefetch(arriving, depth, stop, FLUSH)


def open_sources(sources: Sequence[StrPath], config: SourceConfig | None = None) -> Sources:
    """What the words of a command mean: files, folders, patterns; camera:0, rtsp://...; - for a list of paths on stdin.

    With `config.watch` they are folders to watch. Raises InputError naming every word that stands for nothing, and
    mixtures that cannot be: cameras, streams and stdin are read alone. A camera is open afterwards.
    """
    config, words = config or SourceConfig(), [os.fspath(word) for word in sources]
    if config.idle_s is not None and not config.watch:
        raise InputError("--idle-seconds: says how long to watch a folder; give --watch, too")
    if config.null_separated and STDIN not in words:
        raise InputError("--null: says how a list on stdin is written; give - as the source")
    if config.watch:
        for folder in map(Path, words):
            if not folder.is_dir():
                what = "a file" if folder.exists() else "no folder that exists"
                raise InputError(f"--watch {folder}: {what}; name the folder that images are written to")
        if not words:
            raise InputError("--watch: name the folder that images are written to")
        return Sources(config, watched=list({Path(word).resolve(): Path(word) for word in words}.values()))
    alone = next((word for word in words if word == STDIN or is_live(word)), None)
    if alone is None:
        passed_over: list[Path] = []
        return Sources(config, expand_sources(words, config.recursive, passed_over), passed_over)
    if len(words) > 1:
        raise InputError(
            f"{alone}: a camera, a stream or a list on stdin is read alone; run a second command for the rest"
        )
    if alone != STDIN:
        return Sources(config, live=LiveSource(alone))
    try:
        return Sources(config, listed=sys.stdin.fileno())
    except (AttributeError, OSError, ValueError) as error:
        raise InputError("-: a list of paths is wanted on stdin, and there is none") from error


def opened(
    sources: Iterable[Any], recursive: bool = False, every: int = 1, depth: int = 16
) -> Generator[Any, None, None]:
    """Sources with paths opened: folders and patterns as their images, videos as frames, all else as it is.

    What cannot be read, or the rest of a video, becomes an item that is the error. recursive: folders stand for their
    subfolders too. every: use each so-many-th frame of a video, decoded up to `depth` ahead.
    """
    for source in sources:
        if not isinstance(source, str | os.PathLike):
            yield source
            continue
        try:
            for path in expand_sources([source], recursive):
                if not is_video_name(path):
                    yield path
                    continue
                with closing(video_frames(path, every, depth)) as frames:
                    yield from frames
        except AnchoriteError as error:
            yield error


def expand_sources(
    sources: Iterable[StrPath], recursive: bool = False, passed_over: list[Path] | None = None
) -> list[Path]:
    """The image and video files meant by `sources`, in their order, each file once.

    A file stands for itself, whatever its suffix; a folder for the images in it, sorted by name, with `recursive` also
    those in its subfolders; anything else is a pattern (*, ?, [..], ** for any depth) for image files, videos and
    folders. Hidden files, and those without the suffix of an image or a video, are found only by their own name.
    passed_over: takes the files of folders that are no images.
    Raises InputError naming every source that stands for nothing, where it was looked for, and what to do.
    """
    found: dict[Path, Path] = {}
    failures: list[str] = []
    for source in sources:
        named, paths = Path(source), list[Path]()
        if named.is_file() or leads_into_shard(named):
            paths = [named]
        elif named.is_dir():
            paths = _images_in(named, recursive, passed_over)
        else:
            for path in _matches(named):
                if path.is_dir() and "**" not in named.parts:  # which walks the tree by itself
                    paths += _images_in(path, recursive, passed_over)
                elif path.is_file() and (is_image_name(path.name) or is_video_name(path)):
                    paths.append(path)
        if not paths:
            failures.append(_why_nothing(source, recursive))
        for path in paths:
            found.setdefault(path.resolve(), path)
    if failures:
        raise InputError("\n".join(failures))
    if not found:
        raise InputError("no source given; name image files, videos, folders or quoted patterns such as 'photos/*.jpg'")
    return list(found.values())


def is_video_name(path: Path) -> bool:
    """Whether a file is called like a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def _matches(pattern: Path) -> list[Path]:
    # Not Path.glob, which refuses absolute patterns.
    return [Path(match) for match in sorted(glob.glob(str(pattern.expanduser()), recursive=True))]  # noqa: PTH207


def _images_in(folder: Path, recursive: bool, passed_over: list[Path] | None) -> list[Path]:
    try:
        files = sorted(path for path in (folder.rglob("*") if recursive else folder.iterdir()) if path.is_file())
    except OSError as error:
        raise StorageError(f"{folder}: cannot be searched: {error.strerror or error}. Check its permissions") from error
    files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if passed_over is not None:
        passed_over += [path for path in files if not is_image_name(path.name)]
    return [path for path in files if is_image_name(path.name)]


def passed_over_text(paths: Sequence[Path]) -> str:
    """One line on files that are no images."""
    names = [path.name for path in paths]
    shown = ", ".join(names[:_NUM_SHOWN]) + (", ..." if len(names) > _NUM_SHOWN else "")
    kinds = sorted({kind for name in names if (kind := other_image_kind(name))})
    remedy = f"; {' and '.join(kinds)} images are not read: convert them to JPEG or PNG" if kinds else ""
    what = "1 file is no image and was" if len(names) == 1 else f"{len(names)} files are no images and were"
    return f"{what} passed over: {shown}{remedy}"


def _why_nothing(source: StrPath, recursive: bool) -> str:
    """What is there instead of images, and what to do, of a source that stands for nothing."""
    path, scheme = Path(source), address_scheme(str(source))
    kinds, deeper = " ".join(sorted(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)), ""
    if path.is_dir():
        nothing, entries = f"no image in this folder (looked for {kinds})", list(path.iterdir())
        deeper = "" if recursive else "; its subfolders are searched with --recursive"
    elif glob.has_magic(str(path)):
        nothing = f"no image matches this pattern (looked from {Path.cwd()} for {kinds})"
        entries = _matches(path)
    elif scheme == "file":
        return f"{source}: files are named by their path alone, without file:"
    elif scheme:
        return f"{source}: an address, and nothing is ever downloaded; save it as a file first, and name that file"
    else:
        return f"{path}: no such file or folder (looked from {Path.cwd()})"
    others = [entry for entry in entries if entry.is_file()]
    counts = Counter(other.suffix.lower() or "no suffix" for other in others if not other.name.startswith("."))
    if not counts:
        return f"{path}: {nothing}{deeper}"
    listed = ", ".join(f"{number} of {suffix}" for suffix, number in counts.most_common(_NUM_KINDS))
    more = " and others" if len(counts) > _NUM_KINDS else ""
    video = next((other for other in others if is_video_name(other)), None)
    remedy = (
        "convert photographs among them to JPEG or PNG first"
        if video is None
        else f"videos are named one by one or by a quoted pattern, such as '{video.parent / '*'}{video.suffix}'"
    )
    return f"{path}: {nothing}, but files: {listed}{more}; {remedy}{deeper}"


def listed_names(descriptor: int, separator: bytes, stop: threading.Event) -> Iterator[str]:
    """The paths that a descriptor lists, each followed by `separator`, as they come and until `stop` is set."""
    rest = b""
    while not stop.is_set():
        # Waits a moment at a time, so that the list can be left; Windows can ask only sockets.
        if sys.platform != "win32" and not select.select([descriptor], [], [], 0.1)[0]:
            continue
        part = os.read(descriptor, 65_536)
        *whole, rest = (rest + part).split(separator)
        if not part:
            whole = [rest]
        if len(rest) > _LONGEST_PATH:
            raise InputError("-: no path is as long as this line on stdin; print one a line, or use --null")
        for name in whole:
            name = name if separator == b"\0" else name.removesuffix(b"\r")
            if name:
                yield os.fsdecode(name)
        if not part:
            return


def watched_items(
    folders: Sequence[Path], recursive: bool, idle_s: float | None, stop: threading.Event
) -> Generator[Frame | AnchoriteError | None, None, None]:
    """The images that are in folders and those that come, until `stop` is set or nothing has come for `idle_s` seconds.

    A frame for each image that is complete, by name, an error for each that stays unreadable, None after each look at
    the folders. A file that is written anew is a new image. Memory grows with the names that are in the folders now,
    not with what has gone through them. Raises StorageError when a folder cannot be listed any more.
    """
    done: dict[str, _State] = {}
    # Files that are not handed out yet: how each looked last, since when, and why it could not be read then.
    waiting: dict[str, tuple[_State, float, AnchoriteError | None]] = {}
    moved_at = time.monotonic()
    while not stop.is_set():
        there: dict[str, _State] = {}
        for folder in folders:
            try:
                there |= _complete_names(folder, recursive)
            except OSError as error:
                raise StorageError(f"{folder}: cannot be watched any more: {error.strerror or error}") from error
        for known in (done, waiting):
            for gone in known.keys() - there.keys():
                del known[gone]
        for name, state in there.items():
            if state != (waiting[name][0] if name in waiting else done.get(name)):
                moved_at = time.monotonic()
                waiting[name] = state, moved_at, None
        for name in sorted(waiting):
            state, since, failure = waiting[name]
            if time.monotonic() - since < (_QUIET_S if failure is None else _PATIENCE_S):
                continue
            item: Frame | AnchoriteError | None = failure
            if item is None:
                try:
                    item = Frame(decode_image(name), name)
                except AnchoriteError as error:
                    waiting[name] = state, since, error  # still being written, perhaps
                    continue
            done[name] = waiting.pop(name)[0]
            yield item
            moved_at = time.monotonic()
            if stop.is_set():
                return
        yield None
        if idle_s is not None and time.monotonic() - moved_at >= idle_s:
            break
        stop.wait(_POLL_S)
    yield from (failure for _, _, failure in waiting.values() if failure is not None)


def _complete_names(folder: Path, recursive: bool) -> Iterator[tuple[str, _State]]:
    """Images by their names, but for those that programs are still writing, to go by how they are called."""
    with os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry.path)
            if entry.name.startswith((".", "~")):
                continue
            with suppress(FileNotFoundError):  # moved away since it was listed
                if recursive and entry.is_dir(follow_symlinks=False):
                    yield from _complete_names(path, recursive)
                elif is_image_name(entry.name) and Path(path.stem).suffix.lower() not in _TEMPORARY and entry.is_file():
                    status = entry.stat()
                    yield entry.path, (status.st_mtime_ns, status.st_size, status.st_ino)
