"""`anchorite predict`."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from anchorite.choices import OutputKind
from anchorite.cli.display import write_line
from anchorite.cli.folders import refuse_taken
from anchorite.cli.options import LimitOptions, OutputOptions, PositiveInt, RunningOptions, Weights
from anchorite.cli.refining import ViewOptions
from anchorite.errors import InputError
from anchorite.reading import one_line

if TYPE_CHECKING:
    from anchorite.boxes import Detections
    from anchorite.errors import AnchoriteError
    from anchorite.predict import Ensemble, FrameResult, PredictConfig, Predictor, Save, SourceConfig, Sources


@Parameter(name="*")
@dataclass(frozen=True)
class SourceOptions:
    """How sources are read, and the one source that is written like a flag."""

    stdin: Annotated[bool, Parameter("-", help="Paths come on stdin, one a line.")] = False
    recursive: Annotated[bool, Parameter(help="Look into the subfolders of folders, too.")] = False
    every: Annotated[PositiveInt, Parameter(help="Use each so-many-th frame of videos and cameras.")] = 1
    watch: Annotated[bool, Parameter(help="Sources are folders being written to; Ctrl-C ends watching them.")] = False
    idle_seconds: Annotated[
        float | None, Parameter(validator=Number(gt=0), help="End --watch after so long without images.")
    ] = None
    null: Annotated[bool, Parameter(help="Paths on stdin end with NUL, as find -print0 writes them.")] = False

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
        list[OutputKind] | None,
        Parameter(help="Write this, in place of the usual; may be repeated."),
    ] = None
    without: Annotated[list[OutputKind] | None, Parameter(help="Leave this out of the usual.")] = None

    def chosen(self, is_streamed: bool) -> Save:
        """InputError where both are given."""
        from anchorite.predict import Save

        if self.save and self.without:
            raise InputError("--save and --without: choose one; --save names all that is written, and nothing else is")
        return Save.only(self.save) if self.save else Save.usual(is_streamed, self.without or ())


def predict(
    weights: Weights,
    *sources: Annotated[str, Parameter(help="Images, videos, folders, quoted globs; camera:0, rtsp://..., or -.")],
    limits: LimitOptions = LimitOptions(),
    out: Annotated[Path | None, Parameter(help="New folder for the results. Default: predictions, -2, -3, ...")] = None,
    reading: SourceOptions = SourceOptions(),
    saving: SavingOptions = SavingOptions(),
    running: RunningOptions = RunningOptions(),
    refining: ViewOptions = ViewOptions(),
    output: OutputOptions = OutputOptions(),
) -> None:
    """Find objects in images and videos: draws them, and writes them as JSON and as YOLO txt."""
    from anchorite.devices import keep_freed_memory
    from anchorite.export import load_predictor
    from anchorite.predict import fresh_folder, open_sources

    words = reading.words(sources)
    if not words:
        raise InputError("predict: SOURCE is missing: anchorite predict WEIGHTS SOURCE...")
    config = limits.config()
    refining.check(weights)
    folder = out or fresh_folder(Path("predictions"))
    refuse_taken(folder)
    # A source that is mistyped should cost neither the loading nor half of the results.
    opened = open_sources(words, reading.config())
    opened.refuse_output(folder)
    save = saving.chosen(opened.is_streamed)
    keep_freed_memory()
    predictor = load_predictor(weights, running.device, running.precision)
    image_size, stride = running.image_size, predictor.stride
    if image_size is not None and image_size < stride:
        raise InputError(f"--image-size {image_size}: must be at least {stride}, the coarsest stride of {weights}")
    network = refining.applied(predictor, weights, running, output)
    reporter = Reporter(output, folder)
    _predict_all(opened, network, config, running, save, reporter)
    reporter.end(opened.num_dropped)
    if reporter.num_refused:
        raise InputError(
            f"predict: {reporter.num_refused} of {opened.amount} could not be read, or not whole; see the lines above"
        )


def _predict_all(
    sources: Sources,
    network: Predictor | Ensemble,
    config: PredictConfig,
    running: RunningOptions,
    save: Save,
    reporter: Reporter,
) -> None:
    """Predict all sources, write and report the detections.

    Reading, the network, and drawing and writing run side by side; a slow disk slows the rest, nothing piles up.
    """
    from anchorite.predict import BackgroundWriter, PredictionWriter

    stop = threading.Event()
    ends = EndsWhenInterrupted(stop) if sources.is_endless else nullcontext()
    with (
        PredictionWriter(reporter.folder, network.info.class_names, save) as writer,
        BackgroundWriter(running.batch) as background,
        ends,
    ):

        def leave_out(error: AnchoriteError) -> None:
            reporter.unreadable(error)
            background.do(partial(writer.add_unreadable, error))

        with (
            closing(sources.items(stop, running.batch, leave_out)) as items,
            closing(network.stream(items, config, running.image_size, running.batch, leave_out)) as results,
        ):
            for result in results:
                background.do(partial(writer.add, result))
                reporter.image(result)


class Reporter:
    """Prints a line an image, or JSON lines, and a summary."""

    def __init__(self, output: OutputOptions, folder: Path) -> None:
        self.output, self.folder = output, folder
        self.num_images = self.num_frames = self.num_found = self.num_refused = 0
        self.started = time.perf_counter()

    def image(self, result: FrameResult) -> None:
        """One predicted image or frame."""
        is_frame, detections = result.frame.video is not None, result.detections
        self.num_images += not is_frame
        self.num_frames += is_frame
        self.num_found += len(detections)
        if self.output.json_lines:
            write_line("image", **result.to_dict())
        elif not self.output.quiet:
            print(_line(detections))

    def unreadable(self, error: AnchoriteError) -> None:
        """One that could not be read and was left out."""
        self.num_refused += 1
        print(f"anchorite: {error}", file=sys.stderr)
        if self.output.json_lines:
            write_line("unreadable", reason=str(error))

    def end(self, num_dropped: int) -> None:
        """The summary, and where the results are; num_dropped: camera frames left out to keep up."""
        seconds = time.perf_counter() - self.started
        if self.output.json_lines:
            counts = {"images": self.num_images, "frames": self.num_frames, "objects": self.num_found}
            counts |= {"unreadable": self.num_refused, "dropped": num_dropped}
            write_line("predicted", **counts, seconds=seconds, folder=self.folder)
            return
        predicted = [_count(self.num_images, "image")] if self.num_images or not self.num_frames else []
        predicted += [_count(self.num_frames, "frame")] if self.num_frames else []
        dropped = f"; {_count(num_dropped, 'frame')} left out, the network being slower" if num_dropped else ""
        sums = f"{' and '.join(predicted)}, {_count(self.num_found, 'object')}"
        print(f"{sums} in {seconds:.1f} s{dropped}; written to {self.folder}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _line(detections: Detections) -> str:
    """The image and what was found in it, on one line whatever its name contains."""
    counts = Counter(found.class_name for found in detections)
    found = ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing found"
    return one_line(f"{detections.source}: {found}")


class EndsWhenInterrupted:
    """Inside the block the first Ctrl-C or SIGTERM only sets `stop`; a second one takes effect as usual.

    Does nothing outside the main thread, where signals do not arrive, and for signals that no Python function handles.
    """

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def __enter__(self) -> EndsWhenInterrupted:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._end)
        return self

    def _end(self, number: int, frame: FrameType | None) -> None:
        if self._stop.is_set():
            self._handlers[number](number, frame)
        self._stop.set()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
