"""`anchorite demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

_NUM_TRAIN, _NUM_VAL, _NUM_TEST = 400, 60, 60
_SIZE_PX = 256
_SEED = 0


def demo(
    *,
    out: Annotated[Path, Parameter(help="Folder of data, run and predictions; must not exist.")] = Path("runs/demo"),
    epochs: Annotated[int | None, Parameter(help="Passes over the training images; default: the recipe's.")] = None,
    device: Annotated[str, Parameter(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Train a detector on synthetic scenes, validate it, draw its boxes and write a report."""
    import time

    from anchorite.cli.progress import TrainingDisplay
    from anchorite.data import open_dataset
    from anchorite.data.scenes import write_scenes
    from anchorite.evaluate import ValidationConfig, Validator
    from anchorite.model import load_weights
    from anchorite.predict import PredictionWriter, load
    from anchorite.report import write_run_report
    from anchorite.train import choose_device, load_recipe, train

    started = time.perf_counter()
    folder = free_folder(out)
    data = write_scenes(folder / "data", _NUM_TRAIN, _NUM_VAL, _NUM_TEST, _SEED, _SIZE_PX)
    overrides: dict[str, object] = {"device": device} | ({"epochs": epochs} if epochs is not None else {})
    with TrainingDisplay() as display:
        dataset = open_dataset(data)
        display.dataset(dataset)
        finished = train(load_recipe("demo", overrides), dataset, folder / "run", display)
    weights = finished.folder / "best.safetensors"
    detector, info = load_weights(weights)
    validator = Validator(dataset.splits["test"], dataset.class_names, info.image_size)
    result = validator.run(detector, ValidationConfig(), choose_device(device))
    result.save_plots(finished.folder / "plots")
    predictor = load(weights, device)
    with PredictionWriter(folder / "predictions", info.class_names) as writer:
        for image, detections in predictor.stream_with_images([folder / "data" / "images" / "test"]):
            writer.add(image, detections)
    page = write_run_report(finished.folder)
    print(f"\nOn {len(dataset.splits['test'])} test images that training never saw:\n{result.table()}")
    print(f"\nDone in {time.perf_counter() - started:.0f} s. Where to look:")
    print(f"  {folder / 'predictions' / 'images'}   test images with the boxes found")
    print(f"  {page}   how the run went")
    print(f"  {weights}   the detector: anchorite predict {weights} YOUR_IMAGES")


def free_folder(wanted: Path) -> Path:
    """`wanted`, or with a number behind it where that is taken."""
    path, number = wanted, 2
    while path.exists():
        path = wanted.with_name(f"{wanted.name}-{number}")
        number += 1
    return path
