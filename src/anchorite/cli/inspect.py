"""`anchorite inspect`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

from cyclopts import Parameter

from anchorite.cli.options import AT_LEAST_ONE

if TYPE_CHECKING:
    from anchorite.inspect import Inspection

_CHANGES_HEADING = """Made by `anchorite inspect --fix`. Images are byte copies. Of the labels this copy has what
anchorite reads: classes, boxes, crowd or difficult flags, and areas in COCO. Masks, poses, licences
and comments are not in it.

"""


def inspect(
    data: Annotated[Path, Parameter(help="Folder of labelled images, data.yaml or COCO json.")],
    *,
    out: Annotated[
        Path | None, Parameter(help="New folder for report.json and report.txt, with every finding.")
    ] = None,
    fix: Annotated[Path | None, Parameter(help="New folder for a corrected copy in the same format.")] = None,
    image_size: Annotated[
        int, Parameter(validator=AT_LEAST_ONE, help="Longer side of the network input in pixels to hold boxes against.")
    ] = 640,
    model: Annotated[
        Literal["n", "s", "m", "l", "x", "n6", "s6", "m6", "l6", "x6"],
        Parameter(help="Size of the network, whose default anchors are held against the boxes."),
    ] = "n",
    format: Annotated[
        Literal["yolo", "coco", "voc"] | None, Parameter(help="Label format, if looking guesses wrong.")
    ] = None,
    allow_outside: Annotated[
        bool, Parameter(negative="", help="Follow paths and links that lead out of the dataset; for data you trust.")
    ] = False,
) -> None:
    """List what is wrong with a dataset (exit 2: labels or images get lost, or leak); correct it in a copy.

    Every image is decoded once. Nothing is ever written into DATA. Exit code 0: no error (there may be warnings);
    2: errors, that is, labels or images are refused, dropped or ignored, or an image stands in two splits.
    """
    from anchorite.cli.counting import counting
    from anchorite.data import open_dataset
    from anchorite.data.convert import refuse_inside_dataset
    from anchorite.errors import InputError
    from anchorite.evaluate import require_side
    from anchorite.inspect import inspect_dataset, summary_text
    from anchorite.model import default_anchors

    anchors = default_anchors(model)
    require_side(image_size, anchors.strides[-1], f"--model {model}")
    _refuse_folders(out, fix)
    dataset = open_dataset(data, format, skip_bad=True, allow_outside=allow_outside)
    for folder in (out, fix):
        if folder is not None:
            refuse_inside_dataset(folder, dataset)
    with counting("decoded") as progress:
        inspection = inspect_dataset(dataset, anchors, image_size, progress, partial(progress, verb="compared"))
    print(summary_text(inspection), end="")
    if out is not None:
        _write_report(inspection, out)
    if fix is not None:
        _write_copy(inspection, fix)
    errors = inspection.of_severity("error")
    if errors:
        counts = ", ".join(f"{count} {kind}" for kind, count in inspection.counts().items() if _is_error(kind))
        raise InputError(f"{data}: {len(errors)} error{'' if len(errors) == 1 else 's'} ({counts}){_advice(out, fix)}")


def _is_error(kind: str) -> bool:
    from anchorite.inspect import KINDS

    return KINDS[kind].severity == "error"


def _advice(out: Path | None, fix: Path | None) -> str:
    if out is None and fix is None:
        return "; --out FOLDER lists every one, --fix FOLDER writes a corrected copy"
    return "" if fix is not None else "; --fix FOLDER writes a corrected copy"


def _refuse_folders(out: Path | None, fix: Path | None) -> None:
    """Refuse, before anything is read, folders that are taken or lie in each other."""
    from anchorite.cli.folders import refuse_taken
    from anchorite.errors import InputError

    for flag, folder in (("--out", out), ("--fix", fix)):
        if folder is not None:
            refuse_taken(folder, flag)
    if out is not None and fix is not None:
        places = out.resolve(), fix.resolve()
        if places[0].is_relative_to(places[1]) or places[1].is_relative_to(places[0]):
            raise InputError(f"--out {out} and --fix {fix}: name two folders, neither in the other")


def _write_report(inspection: Inspection, out: Path) -> None:
    import json

    from anchorite.cli.folders import make_folder
    from anchorite.files import write_text_atomically
    from anchorite.inspect import report_text

    make_folder(out)
    text = report_text(inspection).encode("utf-8", "backslashreplace").decode("utf-8")
    write_text_atomically(out / "report.txt", text)
    write_text_atomically(out / "report.json", json.dumps(inspection.to_json(), indent=1) + "\n")
    print(f"\nevery finding: {out / 'report.txt'} and {out / 'report.json'}")


def _write_copy(inspection: Inspection, fix: Path) -> None:
    from anchorite.cli.counting import counting
    from anchorite.data.convert import write_dataset
    from anchorite.data.formats import FormatName
    from anchorite.inspect import corrected_dataset
    from anchorite.reading import one_line

    dataset, changes = corrected_dataset(inspection)
    lines = _CHANGES_HEADING + "".join(f"{one_line(change.line())}\n" for change in changes)
    with counting("copied") as progress:
        notes = write_dataset(dataset, fix, cast(FormatName, dataset.format), extra=lines, progress=progress)
    print(f"\ncorrected copy: {fix}, {len(changes)} changes, listed in {fix / 'changes.txt'}")
    for note in notes:
        print(f"  {note}")
