"""The folder of a run: its files, and what state the run is in."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from safetensors.torch import save
from typing_extensions import TypedDict

from anchorite.boxes import LabelCoverage
from anchorite.choices import FormatName, ScoresUse
from anchorite.data import Batch, DatasetIndex, LeftOut, without_images
from anchorite.errors import InputError, StorageError
from anchorite.evaluate import ValidationResult
from anchorite.files import StrPath, is_locked, write_bytes_atomically, write_text_atomically
from anchorite.inspect.resplit import require_no_val
from anchorite.reading import read_json
from anchorite.recipe_names import RENAMED_COLUMNS, with_current_names
from anchorite.train.checkpoint import Progress, found_checkpoints, leftovers, save_checkpoint
from anchorite.train.events import RunFinished
from anchorite.train.recipe import Recipe, load_recipe
from anchorite.train.step import TrainState

_MAX_FACTS_BYTES = 64_000_000


class _SplitFacts(TypedDict):
    images: int
    boxes: int
    fingerprint: str


class _LeftOutFacts(TypedDict):
    split: str
    image: str
    reason: str


class _ValFacts(TypedDict):
    share: float
    seed: int
    images: list[str]


class _StartFacts(TypedDict):
    weights: str
    sha256: str
    kept: str


class _BackboneFacts(TypedDict):
    config: dict[str, Any]
    sha256: str


class _ContinuesFacts(TypedDict):
    run: str
    epochs: int
    sha256: str


class _Facts(BaseModel):
    """The fields of run.json that a resume needs; earlier releases wrote fewer."""

    data: str
    format: FormatName
    class_names: list[str]
    anchors: list[list[float]]
    splits: dict[str, _SplitFacts] = {}
    recipe: dict[str, Any] = {}
    world_size: int = 1
    skip_bad: bool = False
    allow_outside: bool = False
    ignore_classes: list[str] = []
    scores: ScoresUse = "ignore"
    left_out: list[_LeftOutFacts] = []
    val_split: _ValFacts | None = None
    start: _StartFacts | None = None
    continues: _ContinuesFacts | None = None
    notes: list[str] = []
    backbone: _BackboneFacts | None = None
    derived: dict[str, Any] = {}


class RunFolder:
    """Paths of runs/NAME, and reading and writing of its small files."""

    def __init__(self, path: StrPath) -> None:
        self.path = path = Path(path)
        self.recipe = path / "recipe.yaml"
        self.run = path / "run.json"
        self.metrics = path / "metrics.csv"
        self.summary = path / "summary.json"
        self.skipped = path / "skipped.jsonl"
        self.checkpoints = path / "checkpoints"
        self.best = path / "best.safetensors"
        self.last = path / "last.safetensors"

    @classmethod
    def create(
        cls, path: StrPath, recipe: Recipe, facts: dict[str, Any], train_state: TrainState | None = None
    ) -> RunFolder:
        """A new run folder with its recipe and facts; InputError when it exists already.

        train_state: what its first checkpoint, before any epoch, is made of; None for no such checkpoint.
        """
        path = Path(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(
                f"--out {path}: exists already; choose another folder, or continue it with --resume {path}"
            )
        # Filled under another name and renamed when it is whole: at no moment is there half a run folder.
        draft = cls(path.absolute().with_name(f".{path.absolute().name}.{os.getpid()}.new"))
        try:
            draft.checkpoints.mkdir(parents=True)
            write_text_atomically(draft.recipe, recipe.to_yaml())
            _write_json(draft.run, facts)
            if train_state is not None:
                save_checkpoint(draft.checkpoints, train_state, Progress())
            draft.path.replace(path)
        except OSError as error:
            raise StorageError(f"--out {path}: cannot be made: {error.strerror}; choose another folder") from error
        finally:
            shutil.rmtree(draft.path, ignore_errors=True)
        return cls(path)

    @classmethod
    def open(cls, path: StrPath, named: str = "--resume") -> RunFolder:
        """An existing run folder; InputError when it is none. named: how the user named it, for the message."""
        folder = cls(path)
        missing = [file.name for file in (folder.recipe, folder.run) if not file.is_file()]
        if missing:
            raise InputError(
                f"{named} {path}: not a run folder (no {' and no '.join(missing)}); name a runs/NAME folder"
            )
        return folder

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from training in this folder; InputError when one does.

        Also checks, before any work is done, that the folder can be written: StorageError if not. The lock ends with
        the process.
        """
        try:
            file = (self.path / ".lock").open("a+")
        except OSError as error:
            raise StorageError(
                f"{self.path}: cannot be written: {error.strerror or error}; nothing was trained. Change its "
                "permissions, or copy the run to a place that can be written"
            ) from error
        with file:
            try:
                import fcntl

                # Of the process, not of the open file, which worker processes inherit and may hold a moment longer.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                raise InputError(
                    f"{self.path}: another process is training in this folder; wait for it, or end it"
                ) from error
            except (ImportError, OSError):  # no POSIX system, or a file system without locks
                pass
            yield

    def read_recipe(self) -> Recipe:
        """The recipe this run was started with."""
        return load_recipe(self.recipe)

    def read_facts(self) -> dict[str, Any]:
        """What else the run was started with: path, format, classes of the data set, how it was read, and anchors.

        Raises StorageError when the file is damaged.
        """
        try:
            facts = read_json(self.run, _MAX_FACTS_BYTES)
            if "borrowed" in facts:  # its name in earlier releases
                facts["backbone"] = facts.pop("borrowed")
            _Facts.model_validate(facts, strict=True)
            if "recipe" in facts:
                facts["recipe"], _ = with_current_names(facts["recipe"])
        except ValidationError as error:
            names = sorted({str(problem["loc"][0]) for problem in error.errors(include_url=False)})
            raise StorageError(
                f"{self.run}: damaged: it must say data, format, class_names and anchors of the run; see "
                f"{', '.join(names)}"
            ) from None
        except InputError as error:
            raise StorageError(f"{error}; the run cannot be resumed without it") from error
        return facts

    def with_val(self, dataset: DatasetIndex) -> DatasetIndex:
        """The data set as opened, with the split val that the run made of train, if it did; raises as `with_val`."""
        made = self.read_facts().get("val_split")
        return with_val(dataset, made["images"]) if made else dataset

    def as_trained(self, dataset: DatasetIndex) -> DatasetIndex:
        """The data set `with_val`, without the images that the run left out because they could not be decoded."""
        dataset, facts = self.with_val(dataset), self.read_facts()
        by_split: dict[str, dict[str, str]] = {}
        for one in facts.get("left_out", []):
            by_split.setdefault(one["split"], {})[one["image"]] = one["reason"]
        for split, reasons in by_split.items():
            paths = list(dataset.split(split).paths())
            keys = [_path_in_dataset(dataset, path) for path in paths]
            gone = [LeftOut(path, reasons[key]) for path, key in zip(paths, keys, strict=True) if key in reasons]
            dataset = without_images(dataset, split, gone)
        return dataset

    def read_rows(self) -> list[dict[str, str]]:
        """The rows of metrics.csv, none when there is no file yet."""
        if not self.metrics.is_file():
            return []
        rows = csv.DictReader(io.StringIO(self.metrics.read_text(encoding="utf-8")))
        return [{RENAMED_COLUMNS.get(name, name): value for name, value in row.items()} for row in rows]

    def write_rows(self, rows: list[dict[str, str]]) -> None:
        """Replace metrics.csv; columns in the order of the last row."""
        text = io.StringIO()
        if rows:
            writer = csv.DictWriter(text, fieldnames=list(rows[-1]), restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        write_text_atomically(self.metrics, text.getvalue())

    def add_row(self, row: dict[str, float]) -> None:
        """Add a row to metrics.csv, its numbers short but without loss of meaning."""
        whole = ("epoch", "train/skipped_steps")
        texts = {name: str(int(value)) if name in whole else f"{value:.6g}" for name, value in row.items()}
        self.write_rows([*self.read_rows(), texts])

    def remove_rows_after(self, epoch: int) -> None:
        """Take rows of metrics.csv away that a resumed run will write again."""
        if self.metrics.is_file():
            self.write_rows([row for row in self.read_rows() if int(row["epoch"]) <= epoch])

    def append_skipped(self, facts: dict[str, Any]) -> None:
        """Add a line to the log of skipped steps."""
        try:
            with self.skipped.open("a", encoding="utf-8") as file:
                file.write(json.dumps(facts, ensure_ascii=False) + "\n")
        except OSError as error:
            raise StorageError(f"{self.skipped}: cannot be written: {error.strerror or error}") from error

    def write_post_mortem(self, path: StrPath, facts: dict[str, Any], batch: Batch) -> None:
        """Write the facts of a divergence as JSON in `path`, and beside it, as safetensors, the batch where it ended:
        images uint8, targets as rows, and whatever else its labels have. With several ranks that is rank 0's part.
        """
        path = Path(path)
        targets, coverage = batch.targets.compact(), batch.coverage or LabelCoverage()
        found = {"images": batch.images, "targets": targets.rows, "indices": batch.indices, **vars(coverage)}
        found |= {"weights": targets.weights, "sources": targets.sources}
        tensors = {name: one.cpu().contiguous() for name, one in found.items() if one is not None}
        write_bytes_atomically(path.with_suffix(".safetensors"), save(tensors))
        _write_json(path, facts)

    def write_summary(
        self, finished: RunFinished, validation: ValidationResult | None, decisions: Sequence[str]
    ) -> None:
        """Write summary.json, which says that the run is complete."""
        summary = {
            "reason": finished.reason,
            "best_epoch": finished.best_epoch,
            "best_map": finished.best_map if finished.best_epoch is not None else None,
            "seconds": round(finished.seconds, 1),
            "decisions": list(decisions),
            "last_validation": None if validation is None else validation.to_json(),
        }
        _write_json(self.summary, summary)


def left_out_facts(opened: DatasetIndex, trained_on: DatasetIndex) -> list[dict[str, str]]:
    """The entry of run.json for the images that were left out after the dataset was opened."""
    return [
        {"split": str(one.split), "image": _path_in_dataset(opened, Path(one.origin)), "reason": one.detail}
        for one in trained_on.adjustments[len(opened.adjustments) :]
    ]


def val_images(dataset: DatasetIndex) -> list[str]:
    """What run.json says of the split val: the paths of its images from the dataset's folder."""
    return [_path_in_dataset(dataset, path) for path in dataset.split("val").paths()]


def with_val(dataset: DatasetIndex, images: Collection[str]) -> DatasetIndex:
    """The dataset with a split val of images that are in train now, named as by `val_images`; of those that are not
    there nothing is said. InputError where it has a split val already.
    """
    require_no_val(dataset)
    train, names = dataset.split("train"), set(images)
    is_val = [_path_in_dataset(dataset, path) in names for path in train.paths()]
    rows = [row for row, chosen in enumerate(is_val) if chosen]
    val = train.table().select(rows)
    made = {"train": train.without(set(train.paths_at(rows))), "val": val}
    return replace(dataset, splits={**made, **{name: one for name, one in dataset.splits.items() if name not in made}})


def _path_in_dataset(dataset: DatasetIndex, image: Path) -> str:
    """An image's path from the dataset's folder, which may be moved, as text that UTF-8 can encode."""
    home = dataset.root if dataset.root.is_dir() else dataset.root.parent
    return os.fsencode(os.path.relpath(image, home)).decode("utf-8", "backslashreplace")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_text_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def describe_run(path: Path) -> dict[str, Any]:
    """What `anchorite runs` shows of a run folder; every checkpoint is read whole and its hashes compared.

    path; data: path of its data set; progress: model, epochs and best mAP in words; reason: why it ended, None while it
    has not; in_use: another process is training in it; checkpoints: newest first, verified; num_skipped: skipped steps;
    post_mortems: files that a divergence left; leftovers: files that a crash left; resume: what `anchorite train
    --resume` would do. Raises InputError when it is no run folder, StorageError when its files cannot be read.
    """
    folder = RunFolder.open(path, "runs")
    recipe, data, rows = folder.read_recipe(), folder.read_facts()["data"], folder.read_rows()
    scored = [(float(row["val/map"]), int(row["epoch"])) for row in rows if row.get("val/map", "nan") != "nan"]
    best_map, best_epoch = max(scored, key=lambda pair: (pair[0], -pair[1]), default=(0.0, 0))
    best = f", best mAP {best_map:.4f} at epoch {best_epoch}" if scored else ""
    summary = json.loads(folder.summary.read_text(encoding="utf-8")) if folder.summary.is_file() else {}
    skipped = folder.skipped.read_text(encoding="utf-8").splitlines() if folder.skipped.is_file() else []
    checkpoints = list(found_checkpoints(folder.checkpoints))
    reason, in_use = summary.get("reason"), is_locked(path / ".lock")
    number, good = next(((n, one.progress) for n, one in enumerate(checkpoints) if one.progress), (0, None))
    if in_use:
        resume = "nothing: another process is training in this folder"
    elif reason is not None:
        resume = f"nothing: the run has ended ({reason})"
    elif good is not None:
        over = f", skipping {number} damaged" if number else ""
        resume = f"continue after {good.describe()} of {recipe.epochs}, from {checkpoints[number].path.name}{over}"
    elif checkpoints or len(rows) > 1:
        resume = "nothing: no checkpoint is valid; it would end with exit code 4"
    else:
        resume = "start over: the run was stopped before its first checkpoint"
    return {
        "path": path,
        "data": data,
        "progress": f"model {recipe.model}, {len(rows)} of {recipe.epochs} epochs{best}",
        "reason": reason,
        "in_use": in_use,
        "checkpoints": checkpoints,
        "num_skipped": len(skipped),
        "post_mortems": sorted(path.glob("post-mortem-*.json")),
        "leftovers": leftovers(folder.checkpoints),
        "resume": resume,
    }
