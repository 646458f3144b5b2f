"""`anchorite anchors`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from anchorite.cli.options import AT_LEAST_ONE, ReadingOptions

if TYPE_CHECKING:
    from anchorite.inspect import AnchorTable


def anchors(
    data: Annotated[Path, Parameter(help="Folder of labelled images, data.yaml or COCO json.")],
    *,
    image_size: Annotated[
        int, Parameter(validator=AT_LEAST_ONE, help="Longer side of the network input in pixels.")
    ] = 640,
    model: Annotated[
        Literal["n", "s", "m", "l", "x", "n6", "s6", "m6", "l6", "x6"],
        Parameter(help="Size of the network, whose default anchors are compared."),
    ] = "n",
    seed: Annotated[int, Parameter(help="Seed of the fit.")] = 0,
    out: Annotated[Path | None, Parameter(help="New folder for anchors.yaml and a plot, anchors.png.")] = None,
    reading: Annotated[ReadingOptions | None, Parameter(name="*")] = None,
) -> None:
    """Fit anchors to the training boxes and compare them with the default ones."""
    from anchorite.anchors import fit_anchors
    from anchorite.cli.folders import refuse_taken
    from anchorite.data.convert import refuse_inside_dataset
    from anchorite.errors import InputError
    from anchorite.evaluate import require_side
    from anchorite.inspect import anchor_table
    from anchorite.model import default_anchors

    default = default_anchors(model)
    require_side(image_size, default.strides[-1], f"--model {model}")
    if out is not None:
        refuse_taken(out)
    reading = reading or ReadingOptions()
    dataset = reading.open(data)
    if out is not None:
        refuse_inside_dataset(out, dataset)
    wh_px = dataset.split("train").table().box_sides(image_size)
    if not len(wh_px):
        raise InputError(f"{data}: the split train has no boxes to hold anchors against")
    fitted = fit_anchors(wh_px, default.strides, default.num_anchors, seed=seed)
    tables = [
        anchor_table(f"default of {model}", default, wh_px, image_size),
        anchor_table("fitted", fitted, wh_px, image_size),
    ]
    print(f"{len(wh_px)} training boxes at {image_size} px; how many of them anchors match, at all and by level:")
    _print_tables(tables)
    print("\nTo train with the fitted ones, in a recipe (pixels at this image size):")
    print(_recipe_lines(tables[1]), end="")
    print(_advice(*tables))
    if out is not None:
        _write(out, tables, wh_px, image_size)


def _print_tables(tables: list[AnchorTable]) -> None:
    strides = "".join(f"{f'stride {stride}':>11}" for stride in tables[0].anchors.strides)
    print(f"{'':<14}{'matched':>9}{strides}{'agreement':>11}")
    for table in tables:
        levels = "".join(f"{recall:>11.2%}" for recall in table.level_recalls)
        print(f"{table.name:<14}{table.recall:>9.2%}{levels}{table.agreement:>11.3f}")


def _recipe_lines(table: AnchorTable) -> str:
    rows = "".join(f"  - [{', '.join(f'{side:g}' for side in row)}]\n" for row in table.anchors.to_rows())
    return f"anchors:\n  rows:\n{rows.replace('  - ', '    - ')}"


def _advice(default: AnchorTable, fitted: AnchorTable) -> str:
    """Fitting pays where boxes are lost; a better agreement alone rarely does."""
    lost = 1 - default.recall
    if fitted.recall <= default.recall:
        return "The default anchors match as many boxes: keep them."
    if lost < 0.01:
        return f"The default anchors lose {lost:.2%} of the boxes: little to gain by others."
    return f"The default anchors lose {lost:.2%} of the boxes, the fitted ones {1 - fitted.recall:.2%}: take these."


def _write(out: Path, tables: list[AnchorTable], wh_px: object, image_size: int) -> None:
    import numpy as np

    from anchorite.cli.folders import make_folder
    from anchorite.files import write_text_atomically
    from anchorite.inspect import save_anchor_plot

    make_folder(out)
    write_text_atomically(out / "anchors.yaml", f"# Fitted at {image_size} px.\n{_recipe_lines(tables[1])}")
    save_anchor_plot(out / "anchors.png", np.asarray(wh_px), tables, image_size)
    print(f"written: {out / 'anchors.yaml'}, {out / 'anchors.png'}")
