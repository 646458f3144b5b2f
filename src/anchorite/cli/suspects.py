"""`anchorite suspects`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from anchorite.cli.options import AT_LEAST_ONE, ReadingOptions, RunningOptions

if TYPE_CHECKING:
    from anchorite.data import DatasetIndex
    from anchorite.report.suspects import Ranking


def suspects(
    data: Annotated[Path, Parameter(help="Folder of labelled images, data.yaml or COCO json.")],
    *,
    weights: Annotated[Path, Parameter(help="Weights, best those trained on this very data.")],
    split: Annotated[
        list[str] | None, Parameter(negative="", help="Split to look at; may be repeated. Default: all.")
    ] = None,
    top: Annotated[int, Parameter(validator=AT_LEAST_ONE, help="Suspects on the page; the CSV has all.")] = 100,
    out: Annotated[
        Path | None, Parameter(help="New folder for suspects.html and suspects.csv. Default: suspects, -2, -3, ...")
    ] = None,
    running: RunningOptions | None = None,
    reading: ReadingOptions | None = None,
) -> None:
    """Rank labels that are likely wrong: other classes, missing, misplaced, doubled; as a page and as CSV.

    A label is suspect when a detector contradicts it, even one that was trained with this label. Nothing is ever
    written into DATA.
    """
    from anchorite.cli.counting import counting
    from anchorite.cli.folders import free_folder, refuse_taken
    from anchorite.data.convert import refuse_inside_dataset
    from anchorite.devices import choose_device, choose_precision, keep_freed_memory
    from anchorite.evaluate import require_classes, require_side
    from anchorite.model import load_weights
    from anchorite.report.suspects import Observer, as_csv, rank_suspects, suspects_page

    reading, running = reading or ReadingOptions(), running or RunningOptions()
    folder = out or free_folder(Path("suspects"))
    refuse_taken(folder)
    device = choose_device(running.device)
    dtype = choose_precision(running.precision, device).dtype
    keep_freed_memory()
    detector, info = load_weights(weights)
    size = require_side(running.image_size or info.image_size, info.anchors.strides[-1], str(weights))
    dataset = reading.open(data)
    require_classes(weights, info.class_names, data, dataset.class_names)
    splits = _splits(dataset, split)
    refuse_inside_dataset(folder, dataset)
    with counting("predicted") as progress:
        ranking = rank_suspects(dataset, splits, Observer(detector, device, dtype), size, running.batch, progress)
    title = f"{data.resolve().name}: {', '.join(splits)}"
    page = suspects_page(ranking, dataset.class_names, dataset.root, title, str(weights), top)
    _write(folder, page, as_csv(ranking.suspects, dataset.class_names, dataset.root))
    print(_summary(ranking))
    print(f"page:  {folder / 'suspects.html'}\ntable: {folder / 'suspects.csv'}")


def _splits(dataset: DatasetIndex, wanted: list[str] | None) -> list[str]:
    from anchorite.errors import InputError
    from anchorite.evaluate import require_images

    there = [name for name, records in dataset.splits.items() if records]
    for name in wanted or ():
        require_images(dataset, name)
    if not there:
        raise InputError(f"{dataset.root}: has no images to look at; name a data set with labelled images")
    return list(dict.fromkeys(wanted)) if wanted else there


def _write(folder: Path, page: str, table: str) -> None:
    from anchorite.cli.folders import make_folder
    from anchorite.files import write_text_atomically

    make_folder(folder)
    write_text_atomically(folder / "suspects.html", page)
    write_text_atomically(folder / "suspects.csv", table)


def _summary(ranking: Ranking) -> str:
    """How many of each kind, and the first ten, in lines whatever the names hold."""
    from anchorite.reading import one_line

    counts = ", ".join(f"{count} {kind}" for kind, count in ranking.counts().items() if count)
    where = f"among {ranking.num_labels} labels in {ranking.num_images} images"
    lines = [f"{len(ranking.suspects)} suspects ({counts or 'none'}) {where}" + ("; the first:" if counts else "")]
    for suspect in ranking.suspects[:10]:
        lines.append(
            f"{suspect.rank:4d}  {suspect.score:.2f}  {suspect.kind:<9}  {suspect.split}/{suspect.image.name}: "
            f"{suspect.reason}"
        )
    return "\n".join(one_line(line) for line in lines)
