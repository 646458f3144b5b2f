"""`anchorite train` and `anchorite demo`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from anchorite.choices import Change
from anchorite.cli.options import DEVICE, QUIET_HELP, Data, LoggingOptions, ReadingOptions, RecipeOptions, Whole

if TYPE_CHECKING:
    from anchorite.cli.display import Display
    from anchorite.data import DatasetIndex
    from anchorite.train import Event, Listener, Recipe

_NUM_TRAIN, _NUM_VAL, _NUM_TEST = 1000, 60, 60
_DEMO_SIZE_PX, _DEMO_SEED = 192, 0
_FEW_IMAGES = 100
_TINY_PX, _MANY = 8.0, 0.25  # sides at the network input, and share of the boxes, that call for a larger input
_QUICK_PX = 320


def train(
    data: Data | None = None,
    *,
    recipe: Annotated[str | None, Parameter(help="Built-in recipe (see `anchorite recipes`) or YAML file.")] = None,
    out: Annotated[Path | None, Parameter(help="New folder for the run. Default: runs/DATA-MODEL, -2, -3, ...")] = None,
    resume: Annotated[Path | None, Parameter(help="Folder of a run to go on with; DATA only if it has moved.")] = None,
    allow: Annotated[
        list[Change] | None,
        Parameter(help="With --resume: what may have changed since the run was started."),
    ] = None,
    reading: ReadingOptions = ReadingOptions(),
    fields: RecipeOptions = RecipeOptions(),
    logging: LoggingOptions = LoggingOptions(),
) -> None:
    """Train a detector on a folder of labelled images (YOLO, COCO or Pascal VOC; the format is recognised)."""
    from anchorite.errors import InputError
    from anchorite.launch import may_restart

    restarts, restarted = may_restart()
    if restarts and out is None and resume is None:
        raise InputError("torchrun --max-restarts without --out: a restart has to find its run; name the run's folder")
    if restarted and out is not None and (out / "run.json").is_file():
        out, resume, recipe, fields = None, out, None, RecipeOptions()  # the run holds their values
    logging.output.check()
    if resume is not None:
        refused = [flag for flag, value in {"--recipe": recipe, "--out": out}.items() if value is not None]
        refused += fields.flags_given()
        if refused:
            raise InputError(
                f"{', '.join(refused)} with --resume: a run goes on as it was started; "
                f"leave {'it' if len(refused) == 1 else 'them'} out, or start a new run without --resume"
            )
        _resume(resume, data, reading, allow or [], logging)
    elif allow:
        raise InputError("--allow is for --resume: a new run has nothing to differ from; leave it out")
    elif data is None:
        raise InputError("train: DATA is missing: anchorite train DATA, or anchorite train --resume RUN")
    else:
        _start(data, out, *fields.recipe(recipe), reading, logging)


def _start(
    data: Path,
    out: Path | None,
    recipe: Recipe,
    notes: tuple[str, ...],
    reading: ReadingOptions,
    logging: LoggingOptions,
) -> None:
    from anchorite.cli.display import choose_display, resume_hint
    from anchorite.cli.folders import data_name, free_path, refuse_taken
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
        # Refused before the data is read and decoded, which takes long.
        device = device_of_rank(recipe.device, world)
        choose_precision(recipe.precision, device)
        recipe, start = read_pretrained(recipe)
        read_hf_backbone(recipe, start)
        del start  # as large as the network
        folder = Path(world.broadcast(str(out or free_path(Path("runs") / f"{data_name(data)}-{recipe.model}"))))
        if world.is_main:
            refuse_taken(folder)
        with (
            choose_display(logging.output, world.is_main) as display,
            resume_hint(display),
            chosen_loggers(logging.of_rank(world.is_main), display) as logged,
        ):
            dataset = reading.open(data)
            display.dataset(dataset)
            listener = listeners(_with_hints(display, folder, dataset, recipe, device.type), logged)
            start_run(recipe, dataset, folder, listener, notes, world)
            if world.is_main:
                conclude_run(folder, RunFolder(folder).as_trained(dataset))
        display.finished(folder)


def _resume(
    folder: Path, data: Path | None, reading: ReadingOptions, allow: list[Change], logging: LoggingOptions
) -> None:
    from anchorite.cli.display import choose_display, resume_hint
    from anchorite.distributed import init_process_group
    from anchorite.report import conclude_run, is_concluded
    from anchorite.train import RunFolder, listeners
    from anchorite.train import resume as resume_run

    run = RunFolder.open(folder)
    facts = run.read_facts()
    with init_process_group(run.read_recipe().rank_timeout_s) as world:
        with (
            choose_display(logging.output, world.is_main) as display,
            resume_hint(display),
            chosen_loggers(logging.of_rank(world.is_main), display, folder if world.is_main else None) as logged,
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


@contextmanager
def chosen_loggers(logging: LoggingOptions, display: Display, run: Path | None = None) -> Iterator[Listener]:
    """A listener that passes everything on to the loggers asked for, and to those that a run to resume has had.

    Raises InputError where one that was asked for needs a package that is missing; one that was not asked for is then
    left out, with a message.
    """
    from anchorite.errors import InputError
    from anchorite.train import RunStarted, TensorBoard, listeners, loggers
    from anchorite.train.events import ignore
    from anchorite.train.tensorboard import EVENTS_FOLDER

    def to_stderr(text: str) -> None:
        print(f"anchorite: {text}", file=sys.stderr)

    say = to_stderr if logging.output.quiet or logging.output.json_lines else display.say
    if not logging.tensorboard and (run is None or not (run / EVENTS_FOLDER).is_dir()):
        yield ignore
        return
    try:
        board = TensorBoard()
    except InputError as error:
        if logging.tensorboard:
            raise
        say(f"{run}/{EVENTS_FOLDER} is not continued: {error}")
        yield ignore
        return

    def say_where(event: Event) -> None:
        if isinstance(event, RunStarted):
            runs = shlex.quote(str(event.folder.parent))
            display.say(f"events: {event.folder / EVENTS_FOLDER}; to look at them: tensorboard --logdir {runs}")

    with board:
        yield listeners(say_where, loggers(board, tell=say))


def _with_hints(display: Display, folder: Path, dataset: DatasetIndex, recipe: Recipe, device_type: str) -> Listener:
    """The display; for the first run (none beside it has ended) with hints on the data now, others when it starts."""
    from anchorite.train import RunStarted

    if any(folder.parent.glob("*/summary.json")):
        return display
    for sentence, command in _data_hints(dataset, recipe):
        display.hint(sentence, command)
    smaller = [f"--image-size {_QUICK_PX}"] if recipe.image_size > _QUICK_PX else []
    smaller += ["--model n"] if recipe.model not in ("n", "n6") and recipe.weights is None else []

    def listen(event: Event) -> None:
        display(event)
        if isinstance(event, RunStarted):
            if device_type == "cpu" and recipe.device == "auto" and smaller:
                display.hint(f"no GPU was found; {' and '.join(smaller)} would be several times as fast")
            run = shlex.quote(str(event.folder))
            display.hint("Ctrl-C stops the run and loses nothing. To go on with it:", f"anchorite train --resume {run}")
            page = event.folder / "report.html"
            display.hint(f"a page with the curves so far, {page}, is written at any time by", f"anchorite report {run}")

    return listen


def _data_hints(dataset: DatasetIndex, recipe: Recipe) -> Iterator[tuple[str, str | None]]:
    """What about the data will limit the results: a sentence, and a command where one helps."""
    records, data = dataset.split("train"), shlex.quote(str(dataset.root))
    if 0 < len(records) < _FEW_IMAGES:
        few = f"{len(records)} training images are few: more of them help more than any setting. Are these in order?"
        yield few, f"anchorite inspect {data}"
    if not dataset.splits.get("val"):
        unknown = "without a val split nobody knows how good the detector is. A copy that has one:"
        yield unknown, f"anchorite split {data} NEW_FOLDER"
    sides_px = records.box_sides(recipe.image_size).min(axis=1)
    tiny = float((sides_px < _TINY_PX).mean()) if len(sides_px) else 0.0
    if tiny > _MANY:
        boxes = (
            f"{tiny:.0%} of the training boxes are narrower than {_TINY_PX:.0f} px at image size {recipe.image_size}"
        )
        yield f"{boxes}, hard to find; try --image-size {recipe.image_size * 2}", None


def demo(
    *,
    out: Annotated[Path | None, Parameter(help="New folder for everything. Default: runs/demo, -2, ...")] = None,
    epochs: Annotated[Whole | None, Parameter(help="Passes over the training images; default: the recipe's.")] = None,
    device: Annotated[str, DEVICE] = "auto",
    quiet: Annotated[bool, Parameter(help=QUIET_HELP)] = False,
) -> None:
    """Train a detector on synthetic scenes, validate it, draw its boxes and write a report."""
    import time

    from anchorite.cli.display import TextDisplay, resume_hint
    from anchorite.cli.folders import free_path, refuse_taken
    from anchorite.data import open_dataset
    from anchorite.data.scenes import write_scenes
    from anchorite.evaluate import ValidationConfig, Validator
    from anchorite.model import load_weights
    from anchorite.predict import PredictionWriter, load
    from anchorite.report import conclude_run
    from anchorite.train import choose_device, load_recipe
    from anchorite.train import train as start_run

    started = time.perf_counter()
    overrides: dict[str, object] = {"device": device} | ({"epochs": epochs} if epochs is not None else {})
    recipe = load_recipe("demo", overrides, flags=overrides.keys())
    chosen_device = choose_device(device)
    folder = out or free_path(Path("runs/demo"))
    refuse_taken(folder)
    run, scenes = folder / "run", folder / "data"
    with TextDisplay(quiet) as display, resume_hint(display):
        display.say(f"drawing {_NUM_TRAIN + _NUM_VAL + _NUM_TEST} synthetic scenes into {scenes}")
        dataset = open_dataset(write_scenes(scenes, _NUM_TRAIN, _NUM_VAL, _NUM_TEST, _DEMO_SEED, _DEMO_SIZE_PX))
        display.dataset(dataset)
        start_run(recipe, dataset, run, display)
        page = conclude_run(run, dataset)
    weights = run / "best.safetensors"
    detector, info = load_weights(weights)
    validator = Validator(dataset.splits["test"], dataset.class_names, info.image_size)
    result = validator.run(detector, ValidationConfig(), chosen_device)
    with PredictionWriter(folder / "predictions", info.class_names) as writer:
        for prediction in load(weights, device).stream([scenes / "images" / "test"]):
            writer.add(prediction)
    print(f"\nOn {len(dataset.splits['test'])} test images that training never saw:\n{result.table()}")
    print(f"\nDone in {time.perf_counter() - started:.0f} s. Results:")
    print(f"  {folder / 'predictions' / 'images'}   test images with the boxes found")
    print(f"  {page}   course of the run")
    print(f"  {weights}   the detector: anchorite predict {weights} YOUR_IMAGES")
