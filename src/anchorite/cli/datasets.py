"""Commands on datasets: `anchorite convert`, `split`, `anchors` and `inspect`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast, get_args

from cyclopts import Parameter

from anchorite.choices import ModelSize, WrittenFormat
from anchorite.cli.display import counting, data_lines, split_counts
from anchorite.cli.folders import refuse_taken
from anchorite.cli.options import AllowOutside, Data, Format, IgnoreClass, PositiveInt, ReadingOptions, Scores
from anchorite.errors import InputError
from anchorite.files import write_text_atomically
from anchorite.reading import filled, one_line

if TYPE_CHECKING:
    from anchorite.data import DatasetIndex

_MOST_NOTES = 10
_CHANGES_HEADING = """Made by `anchorite inspect --fix`. Images are byte copies. Of the labels this copy has what
anchorite reads: classes, boxes, ignored regions, weights (but in VOC), and areas in COCO. Masks, poses,
licences and comments are not in it.

"""

Copy = Annotated[Path, Parameter(help="New folder for the copy, outside DATA.")]


def convert(
    data: Data,
    out: Copy,
    *,
    to: Annotated[WrittenFormat, Parameter(help="Format of the copy.")],
    shard_mb: Annotated[PositiveInt | None, Parameter(help="Most megabytes of a shard; default: 128.")] = None,
    reading: ReadingOptions = ReadingOptions(),
) -> None:
    """Copy a dataset into another label format; read back and compared before it appears.

    What the format cannot hold, and what reading left out, is listed and written to changes.txt in the copy. Shards are
    tar files for training on more images than memory or a disk holds.
    """
    if shard_mb is not None and to != "shards":
        raise InputError(f"--shard-mb {shard_mb}: a copy as {to} has no shards; leave it out, or write --to shards")
    dataset = _read_for_copy(data, out, reading)
    _write_copy(dataset, out, to, "Made by `anchorite convert`.", shard_mb)


def split(
    data: Data,
    out: Copy,
    *,
    val: Annotated[float, Parameter(help="Share of the images to validate on.")] = 0.2,
    test: Annotated[float, Parameter(help="Share of the images to test on; 0 makes no split test.")] = 0.0,
    keep: Annotated[
        list[Literal["train", "val", "test"]] | None,
        Parameter(help="Splits that stay as they are; the others are pooled and divided again."),
    ] = None,
    seed: Annotated[int, Parameter(help="Decides between images that would fit equally well.")] = 0,
    to: Annotated[WrittenFormat | None, Parameter(help="Format of the copy; default: that of DATA, else coco.")] = None,
    reading: ReadingOptions = ReadingOptions(),
) -> None:
    """Copy a dataset with new splits: each class in its share, images of one view never in two splits.

    Every image is decoded once, to find those of one view.
    """
    from anchorite.inspect import resplit

    for flag, share in (("--val", val), ("--test", test)):
        if not 0 <= share < 1:
            raise InputError(f"{flag} {share:g}: a share of the images from 0 to under 1, as in {flag} 0.2")
    if val + test >= 1:
        raise InputError(f"--val {val:g} and --test {test:g}: nothing is left to train on; keep their sum under 1")
    kept = list(dict.fromkeys(keep or []))
    if "train" in kept:
        raise InputError("--keep train: then no images are left to divide; keep val or test, or leave it out")
    shares = {"train": 1 - val - test, "val": val, "test": test}
    made = {name: share for name, share in shares.items() if share > 0 and name not in kept}
    dataset = _read_for_copy(data, out, reading)
    missing = [name for name in kept if name not in dataset.splits]
    if missing:
        raise InputError(f"--keep {missing[0]}: {data} has no such split, but {', '.join(dataset.splits)}")
    with counting("decoded") as progress:
        dataset, groups = resplit(
            dataset, {name: share / sum(made.values()) for name, share in made.items()}, seed, kept, progress
        )
    if groups:
        print(f"{sum(groups)} images in {len(groups)} groups show the same view as another; each group is in one split")
    _print_class_table(dataset)
    _write_copy(dataset, out, to or _written_format(dataset), f"Made by `anchorite split`, seed {seed}.")


def _read_for_copy(data: Path, out: Path, reading: ReadingOptions) -> DatasetIndex:
    """The dataset, with what there is to say of it printed; InputError when `out` is taken or inside the dataset."""
    from anchorite.inspect import look_over

    refuse_taken(out, "OUT")
    dataset = reading.open(data, out)
    print("\n".join(data_lines(dataset, look_over(dataset))))
    return dataset


def _written_format(dataset: DatasetIndex) -> WrittenFormat:
    """The format of a copy: the dataset's own where it can be written, else COCO, which holds all that was read."""
    return cast(WrittenFormat, dataset.format) if dataset.format in get_args(WrittenFormat) else "coco"


def _write_copy(
    dataset: DatasetIndex, out: Path, format: WrittenFormat, heading: str, shard_mb: int | None = None
) -> None:
    """Write the copy, with changes.txt where reading or writing changed something, and print a summary."""
    from anchorite.inspect import KINDS, kind_of

    changed = [f"{KINDS[kind_of(one)].words(1)}: {one.origin}: {one.detail}" for one in dataset.adjustments]
    extra = "\n".join([heading, *map(one_line, changed)]) if changed else ""
    notes = _write(dataset, out, format, extra, **({} if shard_mb is None else {"shard_bytes": shard_mb * 1_000_000}))
    listed = f"; {out / 'changes.txt'} lists what is not in it" if changed or notes else ""
    print(f"{format} copy: {out}, {split_counts(dataset)}; read back and the same{listed}")


def _write(dataset: DatasetIndex, out: Path, format: WrittenFormat, extra: str, **options: int) -> list[str]:
    """`write_dataset`, with what it tells printed."""
    from anchorite.data.convert import write_dataset

    with counting("copied") as progress:
        notes = write_dataset(dataset, out, format, extra=extra, progress=progress, **options)
    for note in notes[:_MOST_NOTES]:
        print(f"  {one_line(note)}")
    if len(notes) > _MOST_NOTES:
        print(f"  and {len(notes) - _MOST_NOTES} more")
    return notes


def _print_class_table(dataset: DatasetIndex) -> None:
    """Boxes of each class by split, with their share, to show whether the splits are alike."""
    rows = [("images", [len(records) for records in dataset.splits.values()])]
    for number, name in enumerate(dataset.class_names):
        boxes = [sum(int((one.class_ids == number).sum()) for one in records) for records in dataset.splits.values()]
        rows.append((one_line(name), boxes))
    width = min(30, max(len(label) for label, _ in rows))
    print(filled("cli", "split", {"names": dataset.splits, "rows": rows, "width": width}), end="")


def anchors(
    data: Data,
    *,
    image_size: Annotated[PositiveInt, Parameter(help="Longer side of the network input in pixels.")] = 640,
    model: Annotated[ModelSize, Parameter(help="Size of the network, whose default anchors are compared.")] = "n",
    seed: Annotated[int, Parameter(help="Seed of the fit.")] = 0,
    out: Annotated[Path | None, Parameter(help="New folder for anchors.yaml and a plot, anchors.png.")] = None,
    reading: ReadingOptions = ReadingOptions(),
) -> None:
    """Fit anchors to the training boxes and compare them with the default ones."""
    from anchorite.anchors import fit_anchors
    from anchorite.evaluate import require_side
    from anchorite.inspect import anchor_table, save_anchor_plot
    from anchorite.model import default_anchors

    default = default_anchors(model)
    require_side(image_size, default.strides[-1], f"--model {model}")
    if out is not None:
        refuse_taken(out)
    dataset = reading.open(data, out)
    wh_px = dataset.split("train").table().box_sides(image_size)
    if not len(wh_px):
        raise InputError(f"{data}: the split train has no boxes to compare anchors with")
    fitted = fit_anchors(wh_px, default.strides, default.num_anchors, seed=seed)
    tables = [
        anchor_table(name, anchors, wh_px, image_size)
        for name, anchors in ((f"default of {model}", default), ("fitted", fitted))
    ]
    rows = [", ".join(f"{side:g}" for side in row) for row in tables[1].anchors.to_rows()]
    recipe = "anchors:\n  rows:\n" + "".join(f"    - [{row}]\n" for row in rows)
    facts = {"num_boxes": len(wh_px), "image_size": image_size, "recipe": recipe}
    print(filled("cli", "anchors", {**facts, "default": tables[0], "fitted": tables[1]}))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_text_atomically(out / "anchors.yaml", f"# Fitted at {image_size} px.\n{recipe}")
        save_anchor_plot(out / "anchors.png", wh_px, tables, image_size)
        print(f"written: {out / 'anchors.yaml'}, {out / 'anchors.png'}")


def inspect(
    data: Data,
    *,
    out: Annotated[Path | None, Parameter(help="New folder for all findings: report.json, report.txt.")] = None,
    fix: Annotated[Path | None, Parameter(help="New folder for a corrected copy; same format, or coco.")] = None,
    image_size: Annotated[PositiveInt, Parameter(help="Longer side of the network input in pixels.")] = 640,
    model: Annotated[ModelSize, Parameter(help="Size of the network, whose default anchors are checked.")] = "n",
    format: Format = None,
    allow_outside: AllowOutside = False,
    ignore_class: IgnoreClass = None,
    scores: Scores = "ignore",
) -> None:
    """List what is wrong with a dataset (exit 2: labels or images get lost, or leak); correct it in a copy.

    Every image is decoded once. Nothing is ever written into DATA. Exit code 0: no error (there may be warnings);
    2: errors, that is, labels or images are refused, dropped or ignored, or an image is in two splits.
    """
    from anchorite.evaluate import require_side
    from anchorite.inspect import KINDS, corrected_dataset, inspect_dataset, report_text, summary_text
    from anchorite.model import default_anchors

    default = default_anchors(model)
    require_side(image_size, default.strides[-1], f"--model {model}")
    for flag, folder in (("--out", out), ("--fix", fix)):
        if folder is not None:
            refuse_taken(folder, flag)
    if out is not None and fix is not None:
        one, other = out.resolve(), fix.resolve()
        if one.is_relative_to(other) or other.is_relative_to(one):
            raise InputError(f"--out {out} and --fix {fix}: name two folders, neither in the other")
    dataset = ReadingOptions(format, True, allow_outside, ignore_class, scores).open(data, out, fix)
    with counting("decoded") as progress:
        inspection = inspect_dataset(dataset, default, image_size, progress, partial(progress, verb="compared"))
    print(summary_text(inspection), end="")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        text = report_text(inspection).encode("utf-8", "backslashreplace").decode("utf-8")
        write_text_atomically(out / "report.txt", text)
        write_text_atomically(out / "report.json", json.dumps(inspection.to_json(), indent=1) + "\n")
        print(f"\nevery finding: {out / 'report.txt'} and {out / 'report.json'}")
    if fix is not None:
        corrected, changes = corrected_dataset(inspection)
        changed = [f"{done}, {KINDS[finding.kind].words(1)}: {finding.line()}" for done, finding in changes]
        lines = "".join(f"{one_line(line)}\n" for line in changed)
        _write(corrected, fix, _written_format(corrected), _CHANGES_HEADING + lines)
        print(f"\ncorrected copy: {fix}, {len(changes)} changes, listed in {fix / 'changes.txt'}")
    errors = inspection.of_severity("error")
    if errors:
        of_kinds = inspection.counts().items()
        counts = "; ".join(KINDS[kind].counted(count) for kind, count in of_kinds if KINDS[kind].severity == "error")
        listing = "" if out is not None else "--out FOLDER lists every one, "
        advice = "" if fix is not None else f"; {listing}--fix FOLDER writes a corrected copy"
        raise InputError(f"{data}: {len(errors)} error{'' if len(errors) == 1 else 's'} ({counts}){advice}")
