"""What `anchorite predict` reads, writes and prints."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from anchorite.cli.ending import EndsWhenInterrupted
from anchorite.cli.json_lines import write_line
from anchorite.cli.options import AT_LEAST_ONE, WHOLE, OutputOptions, RunningOptions
from anchorite.reading import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    from anchorite.boxes import Detections
    from anchorite.errors import AnchoriteError
    from anchorite.model import WeightsInfo
    from anchorite.predict import Frame, PredictConfig, Save, SourceConfig, Sources

    class Finder(Protocol):
        """What finds objects: a `Predictor`, or whatever looks with its `stream`."""

        @property
        def info(self) -> WeightsInfo:
            """Class names and input size."""

        def stream(
            self, sources: Any, config: PredictConfig, image_size: int | None, batch_size: int, on_unreadable: Any
        ) -> Any:
            """As `Predictor.stream`."""


# As anchorite.predict.Kind, which would take seconds to import for help alone.
Kind = Literal["images", "video", "txt", "json", "jsonl", "coco", "crops"]


@Parameter(name="*")
@dataclass(frozen=True)
class SourceOptions:
    """How sources are read, and the one source that is written like a flag."""

    stdin: Annotated[bool, Parameter("-", negative="", help="Paths come on stdin, one a line.")] = False
    recursive: Annotated[bool, Parameter(negative="", help="Look into the subfolders of folders, too.")] = False
    every: Annotated[
        int, WHOLE, Parameter(validator=AT_LEAST_ONE, help="Use each so-many-th frame of videos and cameras.")
    ] = 1
    watch: Annotated[
        bool, Parameter(negative="", help="Sources are folders being written to; Ctrl-C ends watching them.")
    ] = False
    idle_seconds: Annotated[
        float | None, Parameter(validator=Number(gt=0), help="End --watch when no image came for so long.")
    ] = None
    null: Annotated[bool, Parameter(negative="", help="Paths on stdin end with NUL, as find -print0 writes them.")] = (
        False
    )

    def words(self, sources: Sequence[str]) -> list[str]:
        """The sources that are named, with - among them if it was."""
        return [*sources, "-"] if self.stdin else list(sources)

    def config(self) -> SourceConfig:
        """How they are read, as the library takes it."""
        from anchorite.predict import SourceConfig

        return SourceConfig(self.recursive, self.every, self.watch, self.idle_seconds, self.null)


@Parameter(name="*")
@dataclass(frozen=True)
class SavingOptions:
    """What is written."""

    save: Annotated[
        list[Kind] | None,
        Parameter(negative="", help="Write this, in place of the usual; may be repeated."),
    ] = None
    without: Annotated[list[Kind] | None, Parameter(negative="", help="Leave this out of the usual.")] = None

    def chosen(self, is_streamed: bool) -> Save:
        """InputError where both are given."""
        from anchorite.errors import InputError
        from anchorite.predict import Save

        if self.save and self.without:
            raise InputError("--save and --without: choose one; --save names all that is written, and nothing else is")
        return Save.only(self.save) if self.save else Save.usual(is_streamed, self.without or ())


def find_in(
    sources: Sources, finder: Finder, config: PredictConfig, running: RunningOptions, save: Save, told: Told
) -> None:
    """Look at all of the sources, write what is found and tell of it.

    Reading, the network, and drawing and writing go on side by side; a slow disk slows the rest, it never piles up.
    """
    from anchorite.predict import BackgroundWriter, PredictionWriter, Underway

    stop, underway = threading.Event(), Underway()
    ends = EndsWhenInterrupted(stop) if sources.is_endless else nullcontext()
    with (
        PredictionWriter(told.folder, finder.info.class_names, save) as writer,
        BackgroundWriter(running.batch) as behind,
        ends,
    ):

        def pass_over(error: AnchoriteError) -> None:
            told.unreadable(error)
            behind.do(partial(writer.add_unreadable, error))

        with (
            closing(sources.items(stop, running.batch, pass_over)) as items,
            closing(
                finder.stream(underway.noting(items), config, running.image_size, running.batch, pass_over)
            ) as found,
        ):
            for image, detections in found:
                frame = underway.frame_of(detections)
                behind.do(partial(writer.add, image, detections, frame))
                told.image(detections, frame)


class Told:
    """What is printed as it goes: a line an image, or JSON, or the end alone."""

    def __init__(self, output: OutputOptions, folder: Path) -> None:
        self.output, self.folder = output, folder
        self.num_images = self.num_frames = self.num_found = self.num_refused = 0
        self.started = time.perf_counter()

    def image(self, detections: Detections, frame: Frame | None) -> None:
        """One image or frame that was looked at."""
        from anchorite.predict.sources import entry_of

        is_frame = frame is not None and frame.video is not None
        self.num_images += not is_frame
        self.num_frames += is_frame
        self.num_found += len(detections)
        if self.output.json_lines:
            write_line("image", entry_of(detections, frame))
        elif not self.output.quiet:
            print(_line(detections))

    def unreadable(self, error: AnchoriteError) -> None:
        """One that was passed over."""
        self.num_refused += 1
        print(f"anchorite: {error}", file=sys.stderr)
        if self.output.json_lines:
            write_line("unreadable", {"reason": str(error)})

    def end(self, num_dropped: int) -> None:
        """The sums, and where the results are; num_dropped: frames of a camera that there was no time for."""
        seconds = time.perf_counter() - self.started
        if self.output.json_lines:
            counts = {"images": self.num_images, "frames": self.num_frames, "objects": self.num_found}
            counts |= {"unreadable": self.num_refused, "dropped": num_dropped}
            write_line("predicted", {**counts, "seconds": seconds, "folder": self.folder})
            return
        looked_at = [_count(self.num_images, "image")] if self.num_images or not self.num_frames else []
        looked_at += [_count(self.num_frames, "frame")] if self.num_frames else []
        dropped = f"; {_count(num_dropped, 'frame')} left out, the network being slower" if num_dropped else ""
        sums = f"{' and '.join(looked_at)}, {_count(self.num_found, 'object')}"
        print(f"{sums} in {seconds:.1f} s{dropped}; written to {self.folder}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _line(detections: Detections) -> str:
    """The image and what was found in it, on one line whatever its name holds."""
    counts: dict[str, int] = {}
    for found in detections:
        counts[found.class_name] = counts.get(found.class_name, 0) + 1
    text = f"{detections.source}: " + (
        ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing found"
    )
    return one_line(text)
