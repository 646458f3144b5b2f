"""From the words of a command line to images, wherever they come from."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anchorite.data.prefetch import prefetch
from anchorite.errors import AnchoriteError, InputError
from anchorite.predict.sources.frames import LULL
from anchorite.predict.sources.listed import listed_items, stdin_descriptor
from anchorite.predict.sources.live import LiveSource, is_live
from anchorite.predict.sources.paths import expand_sources, is_video_name
from anchorite.predict.sources.videos import video_frames
from anchorite.predict.sources.watched import Watch

OnUnreadable = Callable[[AnchoriteError], None]

STDIN = "-"


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


class Sources:
    """What was named, looked at but not read yet; `open_sources` makes it. Use `items` once, or `close` it.

    paths: the files that are known from the beginning. is_endless: somebody has to stop it. is_streamed: how many
    images it will be is not known.
    """

    def __init__(
        self,
        config: SourceConfig,
        paths: Sequence[Path] = (),
        watched: Sequence[Path] = (),
        live: LiveSource | None = None,
        listed: int | None = None,
    ) -> None:
        self.config, self.paths = config, list(paths)
        self._watched, self._live, self._listed = list(watched), live, listed

    @property
    def is_endless(self) -> bool:
        """Whether it goes on until it is stopped."""
        return bool(self._watched) or self._live is not None

    @property
    def is_streamed(self) -> bool:
        """Whether it is more than a known number of images."""
        return self.is_endless or self._listed is not None or any(is_video_name(path) for path in self.paths)

    @property
    def amount(self) -> str:
        """How many there are, as the end of a sentence."""
        if self.is_streamed:
            return f"the {len(self.paths)} images and videos" if self.paths else "the images that came"
        return f"{len(self.paths)} images"

    @property
    def num_dropped(self) -> int:
        """Frames of a camera or stream that the network had no time for; known at the end."""
        return 0 if self._live is None else self._live.num_dropped

    def refuse_output(self, folder: Path) -> None:
        """InputError when what is written to `folder` would be read again."""
        for watched in self._watched:
            if watched.resolve() in (folder.resolve(), *folder.resolve().parents):
                raise InputError(
                    f"--out {folder}: lies in the watched folder {watched}, which would be fed with its own results; "
                    "name a folder elsewhere with --out"
                )

    def items(self, stop: threading.Event, depth: int, on_unreadable: OnUnreadable) -> Generator[Any, None, None]:
        """Images (paths and frames) and lulls, as `Predictor.stream` takes them, read up to `depth` ahead.

        Setting `stop` ends what is endless. What cannot be read is handed to `on_unreadable` and left out.
        """
        config = self.config
        if self._live is not None:
            yield from self._live.frames(stop, config.every)
        elif self._watched:
            watched = self._watched

            def watch(end: threading.Event) -> Generator[Any, None, None]:
                return Watch(watched, config.recursive, config.idle_s, end).items()

            yield from _without_errors(prefetch(watch, depth, stop, LULL), on_unreadable)
        elif self._listed is not None:
            listed = self._listed

            def read(end: threading.Event) -> Generator[Any, None, None]:
                return listed_items(listed, config.null_separated, config.recursive, config.every, end)

            yield from _without_errors(prefetch(read, depth, stop, LULL), on_unreadable)
        else:
            yield from file_items(self.paths, config.every, depth, on_unreadable)

    def close(self) -> None:
        """Give a camera back, if there is one."""
        if self._live is not None:
            self._live.close()


def open_sources(words: Sequence[str], config: SourceConfig | None = None) -> Sources:
    """What the words mean: files, folders, patterns; camera:0, rtsp://...; - for a list of paths on stdin.

    With `config.watch` they are folders to watch. Raises InputError naming every word that stands for nothing, and
    mixtures that cannot be: cameras, streams and stdin are read alone. A camera is open afterwards.
    """
    config = config or SourceConfig()
    if config.idle_s is not None and not config.watch:
        raise InputError("--idle-seconds: says how long to watch a folder; give --watch, too")
    if config.null_separated and STDIN not in words:
        raise InputError("--null: says how a list on stdin is written; give - as the source")
    alone = next((word for word in words if word == STDIN or is_live(word)), None)
    if config.watch:
        return Sources(config, watched=_folders_to_watch(words))
    if alone is not None and len(words) > 1:
        raise InputError(
            f"{alone}: a camera, a stream or a list on stdin is read alone; run a second command for the rest"
        )
    if alone == STDIN:
        return Sources(config, listed=stdin_descriptor())
    if alone is not None:
        return Sources(config, live=LiveSource(alone))
    return Sources(config, expand_sources(words, config.recursive))


def file_items(paths: Iterable[Path], every: int, depth: int, on_unreadable: OnUnreadable | None) -> Iterator[Any]:
    """The images among files as paths, videos frame by frame; without `on_unreadable`, errors are raised."""
    for path in paths:
        if not is_video_name(path):
            yield path
            continue
        frames = video_frames(path, every, depth)
        try:
            yield from frames
        except AnchoriteError as error:
            if on_unreadable is None:
                raise
            on_unreadable(error)
        finally:
            frames.close()


def _without_errors(items: Generator[Any, None, None], on_unreadable: OnUnreadable) -> Iterator[Any]:
    try:
        for item in items:
            if isinstance(item, AnchoriteError):
                on_unreadable(item)
            else:
                yield item
    finally:
        items.close()


def _folders_to_watch(words: Sequence[str]) -> list[Path]:
    folders = [Path(word) for word in words]
    for folder in folders:
        if not folder.is_dir():
            what = "a file" if folder.exists() else "no folder that exists"
            raise InputError(f"--watch {folder}: {what}; name the folder that images are written to")
    if not folders:
        raise InputError("--watch: name the folder that images are written to")
    return list({folder.resolve(): folder for folder in folders}.values())
