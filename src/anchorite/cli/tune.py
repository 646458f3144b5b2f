"""`anchorite tune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from anchorite.cli.folders import data_name, free_path, refuse_taken
from anchorite.cli.options import Data, PositiveInt, ReadingOptions, RecipeOptions
from anchorite.errors import InputError

if TYPE_CHECKING:
    from anchorite.data import DatasetIndex
    from anchorite.tune import Study, TrialDone


def tune(
    data: Data | None = None,
    *,
    trials: Annotated[PositiveInt, Parameter(help="Trials in all, the recipe as it is included.")] = 20,
    recipe: Annotated[str | None, Parameter(help="Built-in recipe or YAML file to start from.")] = None,
    space: Annotated[Path | None, Parameter(help="YAML: recipe field to {low, high, log} or {choices}.")] = None,
    out: Annotated[Path | None, Parameter(help="New folder for the study. Default: runs/tune-DATA, -2, ...")] = None,
    resume: Annotated[Path | None, Parameter(help="Folder of a study to go on with.")] = None,
    reading: ReadingOptions = ReadingOptions(),
    fields: RecipeOptions = RecipeOptions(),
) -> None:
    """Search recipe fields for a higher mAP on val; the result is a recipe file.

    Trial 0 is the recipe as it is. Trials that do worse than most are cut short. A study that was interrupted goes on
    by --resume, its unfinished trial from its newest checkpoint. Needs optuna: pip install 'anchorite[hpo]'.
    """
    from anchorite.tune import Study, default_space, read_space

    if resume is not None:
        given = {"--recipe": recipe, "--out": out, "--space": space}
        refused = [flag for flag, value in given.items() if value is not None] + fields.flags_given()
        if refused:
            raise InputError(f"{', '.join(refused)} with --resume: a study goes on as it was started; leave it out")
        study = Study.open(resume)
        dataset = reading.open_again(study.facts, data)
    elif data is None:
        raise InputError("tune: DATA is missing: anchorite tune DATA, or anchorite tune --resume FOLDER")
    else:
        folder = out or free_path(Path("runs") / f"tune-{data_name(data)}")
        refuse_taken(folder)
        (chosen, notes), searched = fields.recipe(recipe), default_space() if space is None else read_space(space)
        print("".join(f"{note}\n" for note in notes), end="")
        dataset = reading.open(data)
        study = Study.create(folder, dataset, chosen, searched)
    _search(study, dataset, trials)


def _search(study: Study, dataset: DatasetIndex, trials: int) -> None:
    import shlex

    from anchorite.cli import RESUME_HINT

    print(f"study: {study.folder}; searched: {', '.join(study.space)}")
    try:
        study.search(dataset, trials, _print_trial)
    except KeyboardInterrupt as error:
        error.add_note(f"{RESUME_HINT} anchorite tune --resume {shlex.quote(str(study.folder))} --trials {trials}")
        raise
    best = study.folder / "best.yaml"
    print(f"best recipe: {best}\nuse it: anchorite train DATA --recipe {shlex.quote(str(best))}")


def _print_trial(done: TrialDone) -> None:
    values = ", ".join(f"{name} {_shown(value)}" for name, value in done.values.items())
    mark = "  best so far" if done.is_best else ""
    spent = f"{done.epochs} epochs, {done.seconds:.0f} s"
    print(f"trial {done.number}: mAP {done.best_map:.4f}, {done.outcome}, {spent}{mark}")
    print(f"  {values}")


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
