"""Commands that train: `anchorite train`, `demo` and `tune`; and `recipes`, what there is to start from."""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from anchorite.choices import Change
from anchorite.cli.display import Display, data_lines
from anchorite.cli.folders import data_name, free_path, refuse_taken
from anchorite.cli.messages import RESUME_HINT
from anchorite.cli.options import (
    DEVICE,
    QUIET_HELP,
    Data,
    OutputOptions,
    PositiveInt,
    ReadingOptions,
    RecipeOptions,
    Whole,
)
from anchorite.errors import InputError

if TYPE_CHECKING:
    from anchorite.data import DatasetIndex
    from anchorite.train import Event, Listener, Recipe
    from anchorite.tune import TrialDone

_NUM_TRAIN, _NUM_VAL, _NUM_TEST = 1000, 60, 60
_DEMO_SIZE_PX, _DEMO_SEED = 192, 0
_FEW_IMAGES = 100
_TINY_PX, _MANY = 8.0, 0.25  # sides at the network input, and share of the boxes, that call for a larger input
_QUICK_PX = 320


def train(
    data: Data | None = None,
    *,
    out: Annotated[Path | None, Parameter(help="New folder for the run. Default: runs/DATA-MODEL, -2, -3, ...")] = None,
    resume: Annotated[
        Path | None,
        Parameter(help="Folder of a run to go on with; an ended one for longer, with --epochs. DATA if it moved."),
    ] = None,
    allow: Annotated[list[Change] | None, Parameter(help="With --resume: what may have changed since.")] = None,
    reading: ReadingOptions = ReadingOptions(),
    fields: RecipeOptions = RecipeOptions(),
    tensorboard: Annotated[bool, Parameter(help="Write RUN/events for TensorBoard, also when resumed.")] = False,
    output: OutputOptions = OutputOptions(),
) -> None:
    """Train a detector on a folder of labelled images (YOLO, COCO, Pascal VOC, or an annotation tool's export)."""
    # Whether torchrun may start the processes again when one fails, and whether it has done so.
    restarts, restarted = (int(os.environ.get(f"TORCHELASTIC_{n}", "0")) for n in ("MAX_RESTARTS", "RESTART_COUNT"))
    if restarts and out is None and (resume is None or fields.epochs is not None):
        raise InputError("torchrun --max-restarts without --out: a restart has to find its run; name the run's folder")
    if restarted and out is not None and (out / "run.json").is_file():
        out, resume, fields = None, out, RecipeOptions()  # the run holds their values
    epochs = fields.epochs if resume is not None else None
    if epochs is not None:
        replace(fields, epochs=None).refuse_on_resume("run")
    elif resume is not None:
        fields.refuse_on_resume("run", out=out)
    elif allow:
        raise InputError("--allow is for --resume: a new run has nothing to differ from; leave it out")
    elif data is None:
        raise InputError("train: DATA is missing: anchorite train DATA, or anchorite train --resume RUN")
    from anchorite import train as training
    from anchorite.devices import choose_precision
    from anchorite.distributed import init_process_group
    from anchorite.report.conclusion import conclude_run, is_concluded

    if resume is None:
        recipe, notes = fields.read()
        facts: dict[str, Any] = {"data": data, "format": None, **_asked_for(recipe)}
    else:
        run = training.RunFolder.open(resume)
        recipe, notes, facts = run.read_recipe(), (), run.read_facts()
        if epochs is not None:
            training.extended_recipe(run, epochs)  # refuses before the data is read
        elif run.summary.is_file() and recipe.epochs > (then := facts.get("recipe", {}).get("epochs", recipe.epochs)):
            changed = f"{run.recipe}: epochs was {then}, now it is {recipe.epochs}, and this run has ended"
            raise InputError(f"{changed}; {_how_to_extend(resume, recipe.epochs)}")
    with init_process_group(recipe.rank_timeout_s) as world:
        if resume is None:
            # Refused before the data is read and decoded, which takes long.
            device = training.device_of_rank(recipe.device, world)
            choose_precision(recipe.precision, device)
            recipe, start = training.read_pretrained(recipe)
            training.read_hf_backbone(recipe, start)
            del start  # as large as the network
        if resume is None or epochs is not None:
            wanted = out or free_path(resume or Path("runs") / f"{data_name(facts['data'])}-{recipe.model}")
            run = training.RunFolder(world.broadcast(str(wanted)))
            if world.is_main:
                refuse_taken(run.path)
        with (
            Display(output, world.is_main) as display,
            tensorboard_logger(tensorboard and world.is_main, display, run.path if world.is_main else None) as logged,
        ):
            if resume is not None and epochs is None and world.broadcast(is_concluded(resume)):
                display.say(f"{resume}: this run is complete; there is nothing to go on with, and nothing was changed")
                total = recipe.epochs + (facts.get("continues") or {}).get("epochs", 0)
                display.say(_how_to_extend(resume, 2 * total))
            else:
                dataset = reading.open_again(facts, data)
                if resume is None:
                    listener = training.listeners(_with_hints(display, run.path, recipe, device.type), logged)
                    training.train(recipe, dataset, run.path, listener, notes, world)
                elif epochs is not None:
                    listener = training.listeners(display, logged)
                    training.extend(resume, dataset, epochs, run.path, listener, allow or (), world)
                elif not world.broadcast(run.summary.is_file()):
                    training.resume(resume, dataset, training.listeners(display, logged), allow or (), world)
                if world.is_main:
                    conclude_run(run.path, run.as_trained(dataset), display.concluding)
        display.finished(run.path)


def _asked_for(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says of how a dataset is read."""
    return {"ignore_classes": recipe.ignore_classes, "scores": recipe.scores}


def _how_to_extend(run: Path, epochs: int) -> str:
    command = f"anchorite train --resume {shlex.quote(str(run))} --epochs {epochs}"
    return f"to train it for longer, in a new folder: {command}"


@contextmanager
def tensorboard_logger(is_asked_for: bool, display: Display, run: Path | None = None) -> Iterator[Listener]:
    """A listener that writes events for TensorBoard where that is requested, or where the run to resume has had them.

    Raises InputError where a package is missing; a run that goes on without being asked then does so without events.
    """
    from anchorite import train as training
    from anchorite.train.events import ignore
    from anchorite.train.tensorboard import EVENTS_FOLDER

    board = None
    if is_asked_for or (run is not None and (run / EVENTS_FOLDER).is_dir()):
        try:
            board = training.TensorBoard()
        except InputError as error:
            if is_asked_for:
                raise
            display.warn(f"{run}/{EVENTS_FOLDER} is not continued: {error}")
    if board is None:
        yield ignore
        return

    def say_where(event: Event) -> None:
        if isinstance(event, training.RunStarted):
            runs = shlex.quote(str(event.folder.parent))
            display.say(f"events: {event.folder / EVENTS_FOLDER}; to look at them: tensorboard --logdir {runs}")

    with board:
        yield training.listeners(say_where, training.loggers(board, tell=display.warn))


def _with_hints(display: Display, folder: Path, recipe: Recipe, device_type: str) -> Listener:
    """The display; for the first run (none beside it has ended) with hints on the data and on the run."""
    from anchorite.train import DataChecked, RunStarted

    if any(folder.parent.glob("*/summary.json")):
        return display

    def listen(event: Event) -> None:
        """Show an event, and the hints that belong to it."""
        display(event)
        if isinstance(event, DataChecked):
            _hint_on_data(display, event.dataset, recipe)
        elif isinstance(event, RunStarted):
            smaller = [f"--image-size {_QUICK_PX}"] if recipe.image_size > _QUICK_PX else []
            smaller += ["--model n"] if recipe.model not in ("n", "n6") and recipe.weights is None else []
            if device_type == "cpu" and recipe.device == "auto" and smaller:
                display.hint(f"no GPU was found; {' and '.join(smaller)} would be several times as fast")
            run = shlex.quote(str(event.folder))
            display.hint("Ctrl-C stops the run and loses nothing. To go on with it:", f"anchorite train --resume {run}")
            page = event.folder / "report.html"
            display.hint(f"a page with the curves so far, {page}, is written at any time by", f"anchorite report {run}")

    return listen


def _hint_on_data(display: Display, dataset: DatasetIndex, recipe: Recipe) -> None:
    """Hints where there are few images, or many boxes that are small for the network input."""
    records = dataset.split("train")
    if 0 < len(records) < _FEW_IMAGES:
        few = f"{len(records)} training images are few: more of them help more than any setting. Are these in order?"
        display.hint(few, f"anchorite inspect {shlex.quote(str(dataset.root))}")
    sides_px = records.box_sides(recipe.image_size).min(axis=1)
    tiny = float((sides_px < _TINY_PX).mean()) if len(sides_px) else 0.0
    if tiny > _MANY:
        narrow = f"{tiny:.0%} of the training boxes are narrower than {_TINY_PX:.0f} px"
        remedy = f"at image size {recipe.image_size}, hard to find; try --image-size {recipe.image_size * 2}"
        display.hint(f"{narrow} {remedy}")


def demo(
    *,
    out: Annotated[Path | None, Parameter(help="New folder for everything. Default: runs/demo, -2, ...")] = None,
    epochs: Annotated[Whole | None, Parameter(help="Passes over the training images; default: the recipe's.")] = None,
    device: Annotated[str, DEVICE] = "auto",
    quiet: Annotated[bool, Parameter(help=QUIET_HELP)] = False,
) -> None:
    """Train on synthetic scenes, validate, draw and report, in minutes."""
    import time

    from anchorite import train as training
    from anchorite.data import open_dataset
    from anchorite.data.scenes import write_scenes
    from anchorite.devices import choose_device
    from anchorite.evaluate import Validator
    from anchorite.model import load_weights
    from anchorite.predict import PredictionWriter, load
    from anchorite.report.conclusion import conclude_run

    started = time.perf_counter()
    given = {"device": device} | ({} if epochs is None else {"epochs": epochs})
    recipe = training.load_recipe("demo", given, flags=given.keys())
    chosen_device = choose_device(device)
    folder = out or free_path(Path("runs/demo"))
    refuse_taken(folder)
    run, scenes = folder / "run", folder / "data"
    with Display(OutputOptions(quiet)) as display:
        display.say(f"drawing {_NUM_TRAIN + _NUM_VAL + _NUM_TEST} synthetic scenes into {scenes}")
        dataset = open_dataset(write_scenes(scenes, _NUM_TRAIN, _NUM_VAL, _NUM_TEST, _DEMO_SEED, _DEMO_SIZE_PX))
        training.train(recipe, dataset, run, display)
        page = conclude_run(run, dataset, display.concluding)
    weights, test = run / "best.safetensors", dataset.splits["test"]
    detector, info = load_weights(weights)
    result = Validator(test, dataset.class_names, info.image_size).run(detector, device=chosen_device)
    with PredictionWriter(folder / "predictions", info.class_names) as writer:
        for prediction in load(weights, device).stream([scenes / "images" / "test"]):
            writer.add(prediction)
    print(f"\nOn {len(test)} test images that training never saw:\n{result.table()}")
    print(f"\nDone in {time.perf_counter() - started:.0f} s. Results:")
    print(f"  {folder / 'predictions' / 'images'}   test images with the boxes found")
    print(f"  {page}   course of the run")
    print(f"  {weights}   the detector: anchorite predict {weights} YOUR_IMAGES")


def tune(
    data: Data | None = None,
    *,
    trials: Annotated[PositiveInt, Parameter(help="Trials in all, the recipe as it is included.")] = 20,
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
    from anchorite.inspect import look_over
    from anchorite.tune import Study, default_space, read_space

    if resume is not None:
        fields.refuse_on_resume("study", out=out, space=space)
        study = Study.open(resume)
        dataset = reading.open_again(study.facts, data)
    elif data is None:
        raise InputError("tune: DATA is missing: anchorite tune DATA, or anchorite tune --resume FOLDER")
    else:
        folder = out or free_path(Path("runs") / f"tune-{data_name(data)}")
        refuse_taken(folder)
        (chosen, notes), searched = fields.read(), default_space() if space is None else read_space(space)
        print("".join(f"{note}\n" for note in notes), end="")
        dataset = reading.open_again({"format": None, **_asked_for(chosen)}, data)
        print("\n".join(data_lines(dataset, look_over(dataset, chosen.background_ok))))
        study = Study.create(folder, dataset, chosen, searched)
    print(f"study: {study.folder}; searched: {', '.join(study.space)}")
    try:
        study.search(dataset, trials, _print_trial)
    except KeyboardInterrupt as error:
        error.add_note(f"{RESUME_HINT} anchorite tune --resume {shlex.quote(str(study.folder))} --trials {trials}")
        raise
    best = study.folder / "best.yaml"
    print(f"best recipe: {best}\nuse it: anchorite train DATA --recipe {shlex.quote(str(best))}")


def _print_trial(done: TrialDone) -> None:
    mark = "  best so far" if done.is_best else ""
    spent = f"{done.epochs} epochs, {done.seconds:.0f} s"
    print(f"trial {done.number}: mAP {done.best_map:.4f}, {done.outcome}, {spent}{mark}")
    values = {name: f"{one:.4g}" if isinstance(one, float) else one for name, one in done.values.items()}
    print(f"  {', '.join(f'{name} {value}' for name, value in values.items())}")


def recipes(
    name: Annotated[str | None, Parameter(help="Recipe to print whole; without it, all are listed.")] = None,
) -> None:
    """List the built-in recipes, or print one as YAML to start your own from."""
    from anchorite.recipe_names import built_in_recipes

    texts = built_in_recipes()
    if name is None:
        for known, text in texts.items():
            head = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
            print(f"{known}\n" + "\n".join(f"    {line}" for line in head))
    elif name in texts:
        print(texts[name], end="")
    else:
        close = difflib.get_close_matches(name, texts, n=1)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise InputError(f"recipes {name}: no such recipe; there are {', '.join(texts)}{meant}")
