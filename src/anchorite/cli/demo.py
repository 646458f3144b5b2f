"""`anchorite demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from anchorite.cli.options import QUIET_HELP, WHOLE

_NUM_TRAIN, _NUM_VAL, _NUM_TEST = 1000, 60, 60
_SIZE_PX = 192
_SEED = 0


def demo(
    *,
    out: Annotated[
        Path | None, Parameter(help="New folder for data, run and predictions. Default: runs/demo, -2, -3, ...")
    ] = None,
    epochs: Annotated[
        int | None, WHOLE, Parameter(help="Passes over the training images; default: the recipe's.")
    ] = None,
    device: Annotated[str, Parameter(help="auto, cpu, cuda or cuda:N.")] = "auto",
    quiet: Annotated[bool, Parameter(negative="", help=QUIET_HELP)] = False,
) -> None:
    """Train a detector on synthetic scenes, validate it, draw its boxes and write a report."""
    import time

    from anchorite.cli.folders import free_folder, refuse_taken
    from anchorite.cli.progress import TrainingDisplay, telling_how_to_go_on
    from anchorite.cli.screens import choose_screen
    from anchorite.data import open_dataset
    from anchorite.data.scenes import write_scenes
    from anchorite.evaluate import ValidationConfig, Validator
    from anchorite.model import load_weights
    from anchorite.predict import PredictionWriter, load
    from anchorite.report import conclude_run
    from anchorite.train import choose_device, load_recipe, train

    started = time.perf_counter()
    overrides: dict[str, object] = {"device": device} | ({"epochs": epochs} if epochs is not None else {})
    recipe = load_recipe("demo", overrides, flags=overrides.keys())
    chosen_device = choose_device(device)
    folder = out or free_folder(Path("runs/demo"))
    refuse_taken(folder)
    run = folder / "run"
    with TrainingDisplay(choose_screen(quiet)) as display, telling_how_to_go_on(display):
        display.say(f"drawing {_NUM_TRAIN + _NUM_VAL + _NUM_TEST} synthetic scenes into {folder / 'data'}")
        dataset = open_dataset(write_scenes(folder / "data", _NUM_TRAIN, _NUM_VAL, _NUM_TEST, _SEED, _SIZE_PX))
        display.dataset(dataset)
        train(recipe, dataset, run, display)
        page = conclude_run(run, dataset)
    weights = run / "best.safetensors"
    detector, info = load_weights(weights)
    validator = Validator(dataset.splits["test"], dataset.class_names, info.image_size)
    result = validator.run(detector, ValidationConfig(), chosen_device)
    with PredictionWriter(folder / "predictions", info.class_names) as writer:
        for image, detections in load(weights, device).stream([folder / "data" / "images" / "test"]):
            writer.add(image, detections)
    print(f"\nOn {len(dataset.splits['test'])} test images that training never saw:\n{result.table()}")
    print(f"\nDone in {time.perf_counter() - started:.0f} s. Where to look:")
    print(f"  {folder / 'predictions' / 'images'}   test images with the boxes found")
    print(f"  {page}   how the run went")
    print(f"  {weights}   the detector: anchorite predict {weights} YOUR_IMAGES")
