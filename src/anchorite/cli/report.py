"""Commands that show runs and labels: `anchorite report`, `runs`, `explain` and `suspects`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from anchorite.cli.display import counting
from anchorite.cli.folders import free_path, refuse_taken, refuse_taken_page
from anchorite.cli.options import Data, PositiveInt, ReadingOptions, RunningOptions
from anchorite.errors import InputError
from anchorite.files import write_text_atomically
from anchorite.reading import filled, one_line


def report(
    run: Annotated[list[Path], Parameter(help="Folder of a run; of several, to compare them.")],
    *,
    out: Annotated[Path | None, Parameter(help="New .html file. Default: RUN/report.html, or comparison.html.")] = None,
    serve: Annotated[bool, Parameter(help="Show the page of one run, live, to browsers on this machine.")] = False,
    port: Annotated[int | None, Parameter(validator=Number(gte=0, lte=65535), help="Port of --serve; 0: any.")] = None,
) -> None:
    """Write the page of a run anew, or one that compares runs; or show it live while it trains (--serve)."""
    from anchorite.report import write_run_report

    for folder in run:
        if not (folder / "recipe.yaml").is_file():
            raise InputError(f"report {folder}: not a run folder (no recipe.yaml); name a runs/NAME folder")
    if serve:
        if out is not None or len(run) > 1:
            raise InputError("--serve: shows the page of one run and writes none; leave out --out and other runs")
        from anchorite.report.serve import DEFAULT_PORT, RunServer

        with RunServer(run[0], DEFAULT_PORT if port is None else port) as server:
            print(f"{server.address} shows {run[0]} while it trains, on this machine alone; end with Ctrl-C")
            try:
                server.serve_forever()
            except KeyboardInterrupt as error:  # the usual end
                if type(error) is not KeyboardInterrupt:  # SIGTERM, which has an exit code of its own
                    raise
                print("ended")
        return
    if port is not None:
        raise InputError(f"--port {port}: is for --serve; add that, or leave it out")
    if out is not None:
        refuse_taken_page(out)
        out.parent.mkdir(parents=True, exist_ok=True)
    if len(run) == 1:
        print(write_run_report(run[0], out))
    else:
        from anchorite.report.compare import comparison_page

        page = out or free_path(Path("comparison.html"))
        write_text_atomically(page, comparison_page(run))
        print(f"{page}: {len(run)} runs, {page.stat().st_size / 1e6:.1f} MB")


def runs(
    run: Annotated[Path, Parameter(help="Folder of a run, or one whose folders are runs.")] = Path("runs"),
) -> None:
    """Show a run's state, its checkpoints, each verified, and what a resume would do."""
    from anchorite.train.run_folder import describe_run

    if (run / "recipe.yaml").is_file() or not run.is_dir():
        print(filled("cli", "run", describe_run(run)))
        return
    folders = sorted(path.parent for path in run.glob("*/recipe.yaml"))
    if not folders:
        raise InputError(f"runs {run}: holds no run (no */recipe.yaml); name a runs/NAME folder, or train one")
    width = max(len(folder.name) for folder in folders)
    for folder in folders:
        state = describe_run(folder)
        print(f"{folder.name:<{width}}  {state['progress']}; resume: {state['resume']}")


def explain(
    data: Data,
    *,
    split: Annotated[str, Parameter(help="Split whose images are shown.")] = "val",
    image: Annotated[list[str] | None, Parameter(help="File name or stem; default: the most instructive 12.")] = None,
    weights: Annotated[Path | None, Parameter(help="Weights, to show predictions and loss as well.")] = None,
    recipe: Annotated[str | None, Parameter(help="Recipe of the loss; default: that beside the weights.")] = None,
    image_size: Annotated[PositiveInt | None, Parameter(help="Longer side; default: of weights or recipe.")] = None,
    out: Annotated[Path | None, Parameter(help="New .html file; default: explain.html, or with a number.")] = None,
    reading: ReadingOptions = ReadingOptions(),
) -> None:
    """Show on one page which anchors and cells are assigned to which box and why, and what each box costs."""
    from anchorite.evaluate import require_images
    from anchorite.report.explain import choose_images, choose_setting, find_images
    from anchorite.report.explain import explain as explained

    page = out or free_path(Path("explain.html"))
    refuse_taken_page(page)
    dataset = reading.open_for(weights, data, page)
    page.parent.mkdir(parents=True, exist_ok=True)
    records = require_images(dataset, split)
    setting = choose_setting(dataset, weights, recipe, image_size)
    if image:
        chosen, how = find_images(dataset, split, image), "images: named by --image"
    else:
        chosen = choose_images(records, setting)
        how = (
            f"images: {len(chosen)} of the {len(records)} of split {split}, in turn those with most boxes that no "
            "anchor matches, cells claimed by several boxes, boxes, and ignored regions; --image names others"
        )
    root = dataset.root.resolve()
    title = f"{root.name if root.is_dir() else root.parent.name}, {split}"
    notes = [how, f"network input: longer side {setting.image_size} px, letterboxed as validation does"]
    with counting("explained") as progress:
        html, facts, left_out = explained(
            records, chosen, setting, title, notes, skip_unreadable=reading.skip_bad, progress=progress
        )
    write_text_atomically(page, html)
    for note in [*notes, *setting.sentences, *(f"left out: {reason}" for reason in left_out)]:
        print(note)
    print(f"{page}: {len(facts['images'])} images, {page.stat().st_size / 1e6:.1f} MB")


def suspects(
    data: Data,
    *,
    weights: Annotated[Path, Parameter(help="Weights, best those trained on this very data.")],
    split: Annotated[list[str] | None, Parameter(help="Split to rank; may be repeated. Default: all.")] = None,
    top: Annotated[PositiveInt, Parameter(help="Suspects on the page; the CSV has all.")] = 100,
    out: Annotated[Path | None, Parameter(help="New folder for page and CSV. Default: suspects, -2, -3, ...")] = None,
    running: RunningOptions = RunningOptions(),
    reading: ReadingOptions = ReadingOptions(),
) -> None:
    """Rank labels that are likely wrong: other classes, missing, misplaced, doubled; as a page and as CSV.

    A label is suspect when a detector contradicts it, even one that was trained with this label. Nothing is ever
    written into DATA.
    """
    from anchorite.devices import choose_device, choose_precision, keep_freed_memory
    from anchorite.evaluate import require_classes, require_images, require_side
    from anchorite.model import load_weights
    from anchorite.predict import TorchRuntime
    from anchorite.report.suspects import as_csv, rank_suspects, suspects_page

    folder = out or free_path(Path("suspects"))
    refuse_taken(folder)
    device = choose_device(running.device)
    dtype = choose_precision(running.precision, device).dtype
    keep_freed_memory()
    detector, info = load_weights(weights)
    size = require_side(running.image_size or info.image_size, info.anchors.strides[-1], str(weights))
    dataset = reading.open_for(weights, data, folder)
    require_classes(weights, info.class_names, data, dataset.class_names)
    for name in split or ():
        require_images(dataset, name)
    splits = list(dict.fromkeys(split or [name for name, records in dataset.splits.items() if records]))
    if not splits:
        raise InputError(f"{dataset.root}: has no images to rank; name a data set with labelled images")
    with counting("predicted") as progress:
        runtime = TorchRuntime(detector, info, device, precision=None, autocast_dtype=dtype)
        ranking = rank_suspects(dataset, splits, runtime, size, running.batch, progress=progress)
    title = f"{data.resolve().name}: {', '.join(splits)}"
    page = suspects_page(ranking, dataset.class_names, dataset.root, title, str(weights), top)
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomically(folder / "suspects.html", page)
    write_text_atomically(folder / "suspects.csv", as_csv(ranking.suspects, dataset.class_names, dataset.root))
    counts = ", ".join(f"{count} {kind}" for kind, count in ranking.counts().items() if count)
    among = f"among {ranking.num_labels} labels in {ranking.num_images} images"
    for sentence in ranking.unknown:
        print(one_line(sentence))
    print(f"{len(ranking.suspects)} suspects ({counts or 'none'}) {among}" + ("; the first:" if counts else ""))
    for one in ranking.suspects[:10]:
        where = f"{one.split}/{one.image.name}"
        print(one_line(f"{one.rank:4d}  {one.score:.2f}  {one.kind:<9}  {where}: {one.reason}"))
    print(f"page:  {folder / 'suspects.html'}\ntable: {folder / 'suspects.csv'}")
