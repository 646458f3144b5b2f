"""`anchorite predict`, `anchorite pseudo` and `anchorite serve`."""

from __future__ import annotations

import shlex
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from anchorite.choices import OutputKind, PrecisionName
from anchorite.cli.display import counting, write_line
from anchorite.cli.folders import free_path, refuse_taken
from anchorite.cli.options import (
    DEVICE,
    AllowOutside,
    LimitOptions,
    OutputOptions,
    PositiveInt,
    RunningOptions,
    ViewOptions,
    Weights,
    Whole,
    from_flags,
)
from anchorite.errors import AnchoriteError, InputError, import_extra
from anchorite.reading import one_line

if TYPE_CHECKING:
    from anchorite.predict import Ensemble, FrameResult, PredictConfig, PseudoLabels, Save, Sources


@Parameter(name="*")
@dataclass(frozen=True)
class SourceOptions:
    """How sources are read, and the one source that is written like a flag."""

    stdin: Annotated[bool, Parameter("-", help="Paths come on stdin, one a line.")] = False
    recursive: Annotated[bool, Parameter(help="Look into the subfolders of folders, too.")] = False
    every: Annotated[PositiveInt, Parameter(help="Use each so-many-th frame of videos and cameras.")] = 1
    watch: Annotated[bool, Parameter(help="Sources are folders being written to; Ctrl-C ends watching them.")] = False
    idle_seconds: Annotated[float | None, Parameter(validator=Number(gt=0), help="Idle time that ends --watch.")] = None
    null: Annotated[bool, Parameter(help="Paths on stdin end with NUL, as find -print0 writes them.")] = False


@Parameter(name="*")
@dataclass(frozen=True)
class SavingOptions:
    """What is written."""

    save: Annotated[list[OutputKind] | None, Parameter(help="Write this instead of the usual; may be repeated.")] = None
    without: Annotated[list[OutputKind] | None, Parameter(help="Leave this out of the usual.")] = None

    def __post_init__(self) -> None:
        if self.save and self.without:
            raise InputError("--save and --without: choose one; --save names all that is written, and nothing else is")


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
    """Find objects in images and videos: draws them, and writes them as JSON and YOLO txt."""
    from anchorite.devices import keep_freed_memory
    from anchorite.predict import Save, SourceConfig, open_sources
    from anchorite.predict.sources import passed_over_text

    words = [*sources, *["-"] * reading.stdin]
    if not words:
        raise InputError("predict: SOURCE is missing: anchorite predict WEIGHTS SOURCE...")
    config = limits.config()
    folder = out or free_path(Path("predictions"))
    refuse_taken(folder)
    # A source that is mistyped should cost neither the loading nor half of the results.
    how = SourceConfig(reading.recursive, reading.every, reading.watch, reading.idle_seconds, reading.null)
    opened = open_sources(words, how)
    opened.refuse_output(folder)
    save = Save.only(saving.save) if saving.save else Save.usual(opened.is_streamed, saving.without or ())
    keep_freed_memory()
    network = refining.load(weights, running, running.precision)
    if refining.is_asked_for and not (output.quiet or output.json_lines):
        print(network.description(running.image_size))
    reporter = Reporter(output, folder)
    if opened.passed_over:
        print(f"anchorite: {one_line(passed_over_text(opened.passed_over))}", file=sys.stderr)
    _predict_all(opened, network, config, running, save, reporter)
    reporter.end(opened.num_dropped)
    if refused := reporter.counts["unreadable"]:
        raise InputError(f"predict: {refused} of {opened.amount} could not be read, or not whole; see the lines above")


def _predict_all(
    sources: Sources, network: Ensemble, config: PredictConfig, running: RunningOptions, save: Save, reporter: Reporter
) -> None:
    """Predict all sources, write and report the detections. Reading, the network, and drawing and writing run side by
    side; a slow disk slows the rest, nothing piles up."""
    from anchorite.data.prefetch import prefetch
    from anchorite.interrupts import HeldInterrupts
    from anchorite.predict import PredictionWriter

    stop, writing = threading.Event(), threading.Lock()
    with (
        HeldInterrupts(on_first=stop.set) as interrupts,  # what is computed by then is written, too
        PredictionWriter(reporter.folder, network.info.class_names, save) as writer,
    ):

        def leave_out(error: AnchoriteError) -> None:
            with writing:
                reporter.unreadable(error)
                writer.add_unreadable(error)

        def predicted(_: threading.Event) -> Generator[FrameResult, None, None]:
            with (
                closing(sources.items(stop, running.batch)) as items,
                closing(network.stream(items, config, running.image_size, running.batch, leave_out)) as results,
            ):
                # Not by `stop`, which a list on stdin sets at its end, too.
                yield from results if sources.is_endless else takewhile(lambda _: interrupts.pending is None, results)

        with closing(prefetch(predicted, running.batch, stop)) as results:
            for result in results:
                with writing, HeldInterrupts():  # so that what is reported is written, whole
                    writer.add(result)
                    reporter.image(result)
        if sources.is_endless:
            interrupts.pending = None  # the usual end of these


class Reporter:
    """Prints a line an image, or JSON lines, and a summary."""

    def __init__(self, output: OutputOptions, folder: Path) -> None:
        self.output, self.folder = output, folder
        self.counts = {"images": 0, "frames": 0, "objects": 0, "unreadable": 0}
        self.started, self.is_grey = time.perf_counter(), True  # all images so far

    def image(self, result: FrameResult) -> None:
        """One predicted image or frame, on one line whatever its name contains."""
        from anchorite.data.images import is_grey

        detections = result.detections
        self.counts["images" if result.frame.video is None else "frames"] += 1
        self.counts["objects"] += len(detections)
        self.is_grey = self.is_grey and is_grey(result.frame.image)
        if self.output.json_lines:
            write_line("image", **result.to_dict())
        elif not self.output.quiet:
            by_class = Counter(found.class_name for found in detections)
            found = ", ".join(f"{count} {name}" for name, count in by_class.items()) or "nothing found"
            print(one_line(f"{detections.source}: {found}"))

    def unreadable(self, error: AnchoriteError) -> None:
        """One that could not be read and was left out."""
        self.counts["unreadable"] += 1
        print(f"anchorite: {error}", file=sys.stderr)
        if self.output.json_lines:
            write_line("unreadable", reason=str(error))

    def end(self, num_dropped: int) -> None:
        """The summary, and where the results are; num_dropped: camera frames left out to keep up."""
        seconds, counts = time.perf_counter() - self.started, self.counts
        if self.output.json_lines:
            write_line("predicted", **counts, dropped=num_dropped, seconds=seconds, folder=self.folder)
            return
        shown = [name for name in ("images", "frames") if counts[name]] or ["images"]
        predicted = " and ".join(_count(counts[name], name) for name in shown)
        dropped = f"; {_count(num_dropped, 'frames')} left out, the network being slower" if num_dropped else ""
        objects = _count(counts["objects"], "objects")
        if self.is_grey and counts["images"] and not self.output.quiet:
            print("all images are grey: the one channel is repeated to three, as in training")
        print(f"{predicted}, {objects} in {seconds:.1f} s{dropped}; written to {self.folder}")


def _count(number: int, what: str) -> str:
    return f"{number} {what.removesuffix('s') if number == 1 else what}"


@Parameter(name="*")
@dataclass(frozen=True)
class PseudoOptions:
    """Which detections become labels, and of which images."""

    confident: Annotated[float, Parameter(help="Least score of an object.")] = 0.6
    doubtful: Annotated[float, Parameter(help="Least score of an ignore region, from there up to an object.")] = 0.1
    keep_empty: Annotated[bool, Parameter(help="Keep images without an object, as background.")] = False
    recursive: Annotated[bool, Parameter(help="Look into the subfolders of FOLDER, too.")] = False
    iou_threshold: Annotated[float, Parameter(help="IoU above which the weaker box goes.")] = 0.45
    max_detections: Annotated[Whole, Parameter(help="Most detections per image, regions too.")] = 300
    class_agnostic: Annotated[bool, Parameter(help="Boxes of all classes suppress each other.")] = False

    def config(self) -> PredictConfig:
        """How detections compete; InputError for values out of range."""
        from anchorite.predict import PredictConfig

        names = ("iou_threshold", "max_detections", "class_agnostic")
        return from_flags(PredictConfig, **{name: getattr(self, name) for name in names})


def pseudo(
    weights: Weights,
    folder: Annotated[Path, Parameter(help="Folder of images without labels.")],
    out: Annotated[Path, Parameter(help="New folder for the data set, outside FOLDER.")],
    *,
    to: Annotated[Literal["yolo", "coco"], Parameter(help="Format of the labels.")] = "yolo",
    labelled: Annotated[Path | None, Parameter(help="Data to train on besides: makes OUT.yaml of both.")] = None,
    allow_outside: AllowOutside = False,
    choosing: PseudoOptions = PseudoOptions(),
    running: RunningOptions = RunningOptions(),
    refining: ViewOptions = ViewOptions(),
) -> None:
    """Label images with a detector, to train another: sure detections become objects, doubtful ones ignore regions.

    An object counts as much as its score. Images without one are left out, and with --labelled those that are in it.
    FOLDER is only read, images alone; OUT appears when all is done.
    """
    from anchorite.devices import keep_freed_memory
    from anchorite.predict import pseudo_label

    config = choosing.config()
    refuse_taken(out, "OUT")
    keep_freed_memory()
    network = refining.load(weights, running, running.precision)
    with counting("labelled") as progress:
        labels = pseudo_label(
            network, folder, out, confident=choosing.confident, doubtful=choosing.doubtful, format=to,
            labelled=labelled, allow_outside=allow_outside, keep_empty=choosing.keep_empty,
            recursive=choosing.recursive, config=config, image_size=running.image_size, batch_size=running.batch,
            on_unreadable=lambda error: print(f"anchorite: {error}", file=sys.stderr), progress=progress,
        )  # fmt: skip
    _print_pseudo(labels, labelled, choosing.keep_empty)
    if refused := len(labels.unreadable):
        raise InputError(f"pseudo: {refused} images could not be read; see the lines above")


def _print_pseudo(labels: PseudoLabels, labelled: Path | None, is_empty_kept: bool) -> None:
    """What was written, and how to go on."""
    for name, count in labels.boxes.items():
        print(one_line(f"{count:7} {name}"))
    print(f"{labels.regions:7} ignore regions")
    what = "kept as background" if is_empty_kept else "left out; --keep-empty takes them as background"
    if labels.without_object:
        print(f"{_count(labels.without_object, 'images')} without an object: {what}")
    if labels.known:
        print(f"{_count(labels.known, 'images')} left out that {labelled} has, too")
    for note in labels.notes:
        print(one_line(note))
    print(f"{_count(labels.images, 'images')} written to {labels.folder}")
    if labels.sources is not None and labelled is not None:
        is_inside = labelled.resolve().is_relative_to(labels.sources.parent.resolve())
        outside = "" if is_inside else " --allow-outside"
        print(f"with {labelled}: anchorite train {shlex.quote(str(labels.sources))}{outside}")


@Parameter(name="*")
@dataclass(frozen=True)
class RequestOptions:
    """What is taken in, and how much of it at once."""

    max_batch: Annotated[PositiveInt, Parameter(help="Most images that the network sees at once.")] = 8
    max_waiting: Annotated[PositiveInt, Parameter(help="Requests in hand; more are answered 503.")] = 32
    max_megabytes: Annotated[float, Parameter(validator=Number(gt=0), help="Most that a request may send.")] = 20.0
    max_megapixels: Annotated[float, Parameter(validator=Number(gt=0), help="Largest image that is decoded.")] = 50.0


def serve(
    weights: Weights,
    *,
    host: Annotated[str, Parameter(help="Address to listen on; the default is for this machine alone.")] = "127.0.0.1",
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535), help="Port; 0 takes a free one.")] = 8000,
    device: Annotated[str, DEVICE] = "auto",
    precision: Annotated[PrecisionName, Parameter(help="Number format.")] = "auto",
    limits: RequestOptions = RequestOptions(),
) -> None:
    """Answer requests with detections: POST an image to /predict, get JSON; a page to drop an image on is at /.

    Needs starlette and uvicorn: pip install 'anchorite[serve]'. Whoever can reach the address can use it: there are no
    passwords and no encryption. Ctrl-C ends it.
    """
    import_extra("starlette", "serve")
    uvicorn = import_extra("uvicorn", "serve")
    from anchorite.export import load_predictor
    from anchorite.serve import ServeConfig, make_app

    predictor = load_predictor(weights, device, precision)
    listening = _listening(host, port)
    is_loopback = host in ("127.0.0.1", "::1", "localhost")
    address = f"[{host}]" if ":" in host else host
    print(f"serving {weights} on http://{address}:{listening.getsockname()[1]} (Ctrl-C ends it)")
    if not is_loopback:
        print("anyone who can reach this address can use it; there are no passwords and no encryption")
    config = ServeConfig(
        max_bytes=int(limits.max_megabytes * 1e6),
        max_pixels=int(limits.max_megapixels * 1e6),
        max_batch=limits.max_batch,
        max_waiting=limits.max_waiting,
        allowed_hosts=ServeConfig.allowed_hosts if is_loopback else ("*",),
    )
    settings = uvicorn.Config(
        make_app(predictor, config), log_level="warning", access_log=False, server_header=False,
        timeout_keep_alive=5, limit_concurrency=limits.max_waiting * 4 + 16, timeout_graceful_shutdown=5, lifespan="on",
    )  # fmt: skip
    with listening:
        uvicorn.Server(settings).run(sockets=[listening])


def _listening(host: str, port: int) -> socket.socket:
    """A socket that is listened on already, so that whoever reads the printed address can connect at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named as TCP, because asyncio turns Nagle's delay (40 ms an answer) off only where it sees that it is.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        fault = f"cannot listen there: {error.strerror or error}; name another port, or 0 for any that is free"
        if isinstance(error, socket.gaierror):
            fault = "no such address; name one of this machine's, such as 127.0.0.1"
        raise InputError(f"--host {host} --port {port}: {fault}") from error
    return listening
