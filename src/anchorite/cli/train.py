"""`anchorite train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from anchorite.cli.options import LoggingOptions, ReadingOptions, RecipeOptions

Change = Literal["data", "recipe", "ranks"]

if TYPE_CHECKING:
    from anchorite.cli.progress import Display
    from anchorite.data import DatasetIndex
    from anchorite.train import Event, Listener, Recipe


def train(
    data: Annotated[Path | None, Parameter(help="Folder of labelled images, data.yaml or COCO json.")] = None,
    *,
    recipe: Annotated[str | None, Parameter(help="Built-in recipe (see `anchorite recipes`) or YAML file.")] = None,
    out: Annotated[Path | None, Parameter(help="New folder for the run. Default: runs/DATA-MODEL, -2, -3, ...")] = None,
    resume: Annotated[
        Path | None, Parameter(help="Folder of a run to go on with; DATA only where the data has moved.")
    ] = None,
    allow: Annotated[
        list[Change] | None,
        Parameter(negative="", help="With --resume: what may have changed since the run was started."),
    ] = None,
    reading: Annotated[ReadingOptions | None, Parameter(name="*")] = None,
    fields: Annotated[RecipeOptions | None, Parameter(name="*")] = None,
    telling: Annotated[LoggingOptions | None, Parameter(name="*")] = None,
) -> None:
    """Train a detector on a folder of labelled images (YOLO, COCO or Pascal VOC, recognised by looking)."""
    from anchorite.errors import InputError
    from anchorite.launch import may_restart

    restarts, restarted = may_restart()
    if restarts and out is None and resume is None:
        raise InputError(
            "torchrun --max-restarts without --out: a restart has to find the run that it goes on with; name its folder"
        )
    if restarted and out is not None and (out / "run.json").is_file():
        out, resume, recipe, fields = None, out, None, None  # what they say is in the run
    reading, fields = reading or ReadingOptions(), fields or RecipeOptions()
    telling = telling or LoggingOptions()
    telling.output.check()
    if resume is not None:
        refused = [flag for flag, value in {"--recipe": recipe, "--out": out}.items() if value is not None]
        refused += fields.flags_given()
        if refused:
            raise InputError(
                f"{', '.join(refused)} with --resume: a run goes on as it was started; "
                f"leave {'it' if len(refused) == 1 else 'them'} out, or start a new run without --resume"
            )
        _go_on(resume, data, reading, allow or [], telling)
    elif allow:
        raise InputError("--allow is for --resume: a new run has nothing to differ from; leave it out")
    elif data is None:
        raise InputError("train: DATA is missing: anchorite train DATA, or anchorite train --resume RUN")
    else:
        _start(data, out, *fields.recipe(recipe), reading, telling)


def _start(
    data: Path,
    out: Path | None,
    recipe: Recipe,
    notes: tuple[str, ...],
    reading: ReadingOptions,
    telling: LoggingOptions,
) -> None:
    from anchorite.cli.folders import data_name, free_folder, refuse_taken
    from anchorite.cli.loggers import chosen_loggers
    from anchorite.cli.progress import choose_display, telling_how_to_go_on
    from anchorite.distributed import init_process_group
    from anchorite.report import conclude_run
    from anchorite.train import (
        RunFolder,
        choose_precision,
        device_of_rank,
        listeners,
        read_hf_backbone,
        read_pretrained,
    )
    from anchorite.train import train as start_run

    with init_process_group(recipe.rank_timeout_s) as world:
        # What reading and decoding the data would only delay is refused first.
        device = device_of_rank(recipe.device, world)
        choose_precision(recipe.precision, device)
        recipe, start = read_pretrained(recipe)
        read_hf_backbone(recipe, start)
        del start  # as large as the network
        folder = Path(world.broadcast(str(out or free_folder(Path("runs") / f"{data_name(data)}-{recipe.model}"))))
        if world.is_main:
            refuse_taken(folder)
        with (
            choose_display(telling.output, world.is_main) as display,
            telling_how_to_go_on(display),
            chosen_loggers(telling.of_rank(world.is_main), display) as logged,
        ):
            dataset = reading.open(data)
            display.dataset(dataset)
            listener = listeners(_with_hints(display, folder, dataset, recipe, device.type), logged)
            start_run(recipe, dataset, folder, listener, notes, world)
            if world.is_main:
                conclude_run(folder, RunFolder(folder).as_trained(dataset))
        display.finished(folder)


def _with_hints(display: Display, folder: Path, dataset: DatasetIndex, recipe: Recipe, device_type: str) -> Listener:
    """The display; for somebody's first run with hints on the data now, and with the others when the run starts."""
    from anchorite.cli.first_run import data_hints, is_first_run, machine_hints, running_hints
    from anchorite.train import RunStarted

    if not is_first_run(folder):
        return display
    for hint in data_hints(dataset, recipe):
        display.hint(*hint)

    def listen(event: Event) -> None:
        display(event)
        if isinstance(event, RunStarted):
            for hint in machine_hints(recipe, device_type) + running_hints(event.folder):
                display.hint(*hint)

    return listen


def _go_on(
    folder: Path,
    data: Path | None,
    reading: ReadingOptions,
    allow: list[Change],
    telling: LoggingOptions,
) -> None:
    from anchorite.cli.loggers import chosen_loggers
    from anchorite.cli.progress import choose_display, telling_how_to_go_on
    from anchorite.distributed import init_process_group
    from anchorite.report import conclude_run, is_concluded
    from anchorite.train import RunFolder, listeners
    from anchorite.train import resume as resume_run

    run = RunFolder.open(folder)
    facts = run.read_facts()
    with init_process_group(run.read_recipe().rank_timeout_s) as world:
        with (
            choose_display(telling.output, world.is_main) as display,
            telling_how_to_go_on(display),
            chosen_loggers(telling.of_rank(world.is_main), display, folder if world.is_main else None) as logged,
        ):
            if world.broadcast(is_concluded(folder)):
                display.say(f"{folder}: this run is complete; there is nothing to go on with, and nothing was changed")
            else:
                dataset = reading.open_again(facts, data)
                display.dataset(dataset)
                if not world.broadcast(run.summary.is_file()):
                    resume_run(folder, dataset, listeners(display, logged), allow, world)
                if world.is_main:
                    conclude_run(folder, run.as_trained(dataset))
        display.finished(folder)
