"""`anchorite train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from anchorite.cli.options import ReadingOptions, RecipeOptions


def train(
    data: Annotated[Path | None, Parameter(help="Folder of labelled images, data.yaml or COCO json.")] = None,
    *,
    recipe: Annotated[str | None, Parameter(help="Built-in recipe (see `anchorite recipes`) or YAML file.")] = None,
    out: Annotated[Path | None, Parameter(help="Folder of the run; must not exist. Default: runs/DATA-MODEL.")] = None,
    resume: Annotated[Path | None, Parameter(help="Run folder to continue; needs nothing else.")] = None,
    settings: Annotated[
        list[str] | None,
        Parameter("--set", negative="", help="Any recipe field, as in --set loss.label_smoothing=0.1."),
    ] = None,
    reading: Annotated[ReadingOptions | None, Parameter(name="*")] = None,
    fields: Annotated[RecipeOptions | None, Parameter(name="*")] = None,
) -> None:
    """Train a detector on a folder of labelled images (YOLO, COCO or Pascal VOC, recognised by looking)."""
    from anchorite.cli.progress import TrainingDisplay
    from anchorite.data import open_dataset
    from anchorite.errors import InputError
    from anchorite.report import write_run_report
    from anchorite.train import RunFolder, load_recipe, parse_setting
    from anchorite.train import resume as resume_run
    from anchorite.train import train as start_run

    reading = reading or ReadingOptions()
    with TrainingDisplay() as display:
        if resume is not None:
            facts = RunFolder.open(resume).read_facts()
            source = data or Path(facts["data"])
            dataset = open_dataset(source, reading.format or facts["format"], skip_bad=reading.skip_bad)
            display.dataset(dataset)
            finished = resume_run(resume, dataset, display)
        else:
            if data is None:
                raise InputError("train: name the data: anchorite train DATA (or --resume RUN)")
            overrides = {**(fields or RecipeOptions()).given(), **dict(parse_setting(text) for text in settings or [])}
            chosen = load_recipe(recipe, overrides)
            dataset = open_dataset(data, reading.format, skip_bad=reading.skip_bad)
            display.dataset(dataset)
            finished = start_run(chosen, dataset, out or free_run_folder(data, chosen.model), display)
    write_run_report(finished.folder)
    display.where_to_look(finished.folder)


def free_run_folder(data: Path, model: str) -> Path:
    """runs/DATA-MODEL, with a number behind it when that is taken."""
    stem = data.resolve().stem if data.suffix else data.resolve().name
    path = Path("runs") / f"{stem}-{model}"
    number = 2
    while path.exists():
        path = Path("runs") / f"{stem}-{model}-{number}"
        number += 1
    return path
