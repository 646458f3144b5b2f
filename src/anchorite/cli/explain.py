"""`anchorite explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from anchorite.cli.options import AT_LEAST_ONE, ReadingOptions


def explain(
    data: Annotated[Path, Parameter(help="Folder of labelled images, data.yaml or COCO json.")],
    *,
    split: Annotated[str, Parameter(help="Split whose images are shown.")] = "val",
    image: Annotated[
        list[str] | None,
        Parameter(negative="", help="Images to show, by file name or stem; default: the most instructive 12."),
    ] = None,
    weights: Annotated[
        Path | None, Parameter(help="Weights, such as runs/NAME/best.safetensors: adds predictions and loss.")
    ] = None,
    recipe: Annotated[
        str | None, Parameter(help="Recipe with model, anchors and loss; default: that beside the weights.")
    ] = None,
    image_size: Annotated[
        int | None,
        Parameter(validator=AT_LEAST_ONE, help="Longer side of the input; default: of the weights, or of the recipe."),
    ] = None,
    out: Annotated[Path | None, Parameter(help="New .html file; default: explain.html, or a number behind it.")] = None,
    reading: ReadingOptions | None = None,
) -> None:
    """Show on one page which anchors and cells answer for which box and why, and what each box costs."""
    from anchorite.cli.counting import counting
    from anchorite.cli.folders import free_page, make_folder, refuse_taken_page
    from anchorite.data.convert import refuse_inside_dataset
    from anchorite.evaluate import require_images
    from anchorite.files import write_text_atomically
    from anchorite.report.explain import choose_images, choose_setting, find_images
    from anchorite.report.explain import explain as explained

    reading = reading or ReadingOptions()
    page = out or free_page(Path("explain.html"))
    refuse_taken_page(page)
    dataset = reading.open(data)
    refuse_inside_dataset(page, dataset)
    make_folder(page.parent)
    records = require_images(dataset, split)
    setting = choose_setting(dataset, weights, recipe, image_size)
    if image:
        chosen, how = find_images(dataset, split, image), "images: named by --image"
    else:
        chosen = choose_images(records, setting)
        how = (
            f"images: {len(chosen)} of the {len(records)} of split {split}, in turn the ones with most boxes that "
            "no anchor matches, most anchor cells assigned to several boxes, and most boxes; --image names others"
        )
    root = dataset.root.resolve()
    title = f"{root.name if root.is_dir() else root.parent.name}, {split}"
    notes = [how, f"network input: longer side {setting.image_size} px, letterboxed as validation does"]
    with counting("explained") as progress:
        done = explained(records, chosen, setting, title, notes, skip_unreadable=reading.skip_bad, progress=progress)
    write_text_atomically(page, done.page)
    for note in [*notes, *setting.sentences, *(f"left out: {reason}" for reason in done.left_out)]:
        print(note)
    print(f"{page}: {len(done.facts['images'])} images, {page.stat().st_size / 1e6:.1f} MB")
