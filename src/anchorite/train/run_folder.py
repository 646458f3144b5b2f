"""The folder of a run: its files, and what state the run is in."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError
from safetensors.torch import save
from typing_extensions import TypedDict

from anchorite.data import Batch, DatasetIndex, LeftOut, without_images
from anchorite.errors import InputError, StorageError
from anchorite.evaluate import ValidationResult
from anchorite.files import is_locked, write_bytes_atomically, write_text_atomically
from anchorite.reading import read_json
from anchorite.recipe_names import RENAMED_COLUMNS, with_current_names
from anchorite.train.checkpoint import FoundCheckpoint, found_checkpoints, has_checkpoint, leftovers
from anchorite.train.events import RunFinished
from anchorite.train.recipe import Recipe, load_recipe

_MAX_FACTS_BYTES = 64_000_000


class _SplitFacts(TypedDict):
    images: int
    boxes: int
    fingerprint: str


class _LeftOutFacts(TypedDict):
    split: str
    image: str
    reason: str


class _StartFacts(TypedDict):
    weights: str
    sha256: str
    kept: str


class _BackboneFacts(TypedDict):
    config: dict[str, Any]
    sha256: str


class _Facts(BaseModel):
    """The fields of run.json that a resume needs; earlier releases wrote fewer."""

    data: str
    format: Literal["yolo", "coco", "voc", "shards"]
    class_names: list[str]
    anchors: list[list[float]]
    splits: dict[str, _SplitFacts] = {}
    recipe: dict[str, Any] = {}
    world_size: int = 1
    skip_bad: bool = False
    allow_outside: bool = False
    left_out: list[_LeftOutFacts] = []
    start: _StartFacts | None = None
    notes: list[str] = []
    backbone: _BackboneFacts | None = None
    derived: dict[str, Any] = {}


class RunFolder:
    """Paths of runs/NAME, and reading and writing of its small files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.run = path / "run.json"
        self.metrics = path / "metrics.csv"
        self.summary = path / "summary.json"
        self.skipped = path / "skipped.jsonl"
        self.checkpoints = path / "checkpoints"
        self.best = path / "best.safetensors"
        self.last = path / "last.safetensors"

    @classmethod
    def create(cls, path: Path, recipe: Recipe, facts: dict[str, Any]) -> RunFolder:
        """A new run folder with its recipe and facts; InputError when it exists already."""
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
            draft.path.replace(path)
        except OSError as error:
            raise StorageError(f"--out {path}: cannot be made: {error.strerror}; choose another folder") from error
        finally:
            shutil.rmtree(draft.path, ignore_errors=True)
        return cls(path)

    @classmethod
    def open(cls, path: Path, named: str = "--resume") -> RunFolder:
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

    def is_held(self) -> bool:
        """Whether another process is training in this folder; False where that is unknown."""
        return is_locked(self.path / ".lock")

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

    def as_trained(self, dataset: DatasetIndex) -> DatasetIndex:
        """The data set as opened, without the images that the run left out because they could not be decoded."""
        by_split: dict[str, dict[str, str]] = {}
        for one in self.read_facts().get("left_out", []):
            by_split.setdefault(one["split"], {})[one["image"]] = one["reason"]
        for split, reasons in by_split.items():
            records = [(record, _path_in_dataset(dataset, record.path)) for record in dataset.splits.get(split, ())]
            gone = [LeftOut(record, reasons[path]) for record, path in records if path in reasons]
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

    def write_post_mortem(self, path: Path, facts: dict[str, Any], batch: Batch) -> None:
        """Write the facts of a divergence as JSON in `path`, and beside it, as safetensors, the batch where it ended:
        images uint8, targets as rows. With several ranks that is rank 0's part.
        """
        targets = batch.targets.compact().rows.cpu().contiguous()
        tensors = {"images": batch.images.cpu().contiguous(), "targets": targets, "indices": batch.indices.cpu()}
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


def _path_in_dataset(dataset: DatasetIndex, image: Path) -> str:
    """An image's path from the dataset's folder, which may be moved, as text that UTF-8 can encode."""
    home = dataset.root if dataset.root.is_dir() else dataset.root.parent
    return os.fsencode(os.path.relpath(image, home)).decode("utf-8", "backslashreplace")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_text_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class RunStatus:
    """The state of a run folder.

    num_epochs: planned; epochs: done, by metrics.csv; best_epoch, best_map: of them, None without any mAP; reason: why
    it ended, None while it has not; in_use: another process is training in it; checkpoints: newest first, verified;
    leftovers: files that a crash left, which a resume removes; num_skipped: skipped steps; post_mortems:
    files that a divergence left; data: path of its data set.
    """

    path: Path
    model: str
    data: str
    num_epochs: int
    epochs: int
    best_epoch: int | None
    best_map: float | None
    reason: str | None
    in_use: bool
    checkpoints: tuple[FoundCheckpoint, ...]
    leftovers: tuple[Path, ...]
    num_skipped: int
    post_mortems: tuple[Path, ...]

    def would_resume(self) -> str:
        """What `anchorite train --resume` would do, a sentence."""
        if self.in_use:
            return "nothing: another process is training in this folder"
        if self.reason is not None:
            return f"nothing: the run has ended ({self.reason})"
        good = next((one for one in self.checkpoints if one.progress is not None), None)
        if good is None or good.progress is None:
            if self.checkpoints or self.epochs > 1:
                return "nothing: no checkpoint is valid; it would end with exit code 4"
            return "start over: the run was stopped before its first checkpoint"
        passed = sum(one.fault is not None for one in self.checkpoints[: self.checkpoints.index(good)])
        over = f", skipping {passed} damaged" if passed else ""
        return f"continue after {good.progress.describe()} of {self.num_epochs}, from {good.path.name}{over}"


def read_run_status(path: Path) -> RunStatus:
    """The state of the run in a folder; every checkpoint is read whole and its hashes compared.

    Raises InputError when it is no run folder, StorageError when its files cannot be read.
    """
    folder = RunFolder.open(path, "runs")
    recipe, facts, rows = folder.read_recipe(), folder.read_facts(), folder.read_rows()
    scored = [(float(row["val/map"]), int(row["epoch"])) for row in rows if row.get("val/map", "nan") != "nan"]
    best_map, best_epoch = max(scored, key=lambda pair: (pair[0], -pair[1])) if scored else (None, None)
    summary = json.loads(folder.summary.read_text(encoding="utf-8")) if folder.summary.is_file() else {}
    skipped = folder.skipped.read_text(encoding="utf-8").splitlines() if folder.skipped.is_file() else []
    return RunStatus(
        path=path,
        model=recipe.model,
        data=facts["data"],
        num_epochs=recipe.epochs,
        epochs=len(rows),
        best_epoch=best_epoch,
        best_map=best_map,
        reason=summary.get("reason"),
        in_use=folder.is_held(),
        checkpoints=tuple(found_checkpoints(folder.checkpoints)) if has_checkpoint(folder.checkpoints) else (),
        leftovers=tuple(leftovers(folder.checkpoints)),
        num_skipped=len(skipped),
        post_mortems=tuple(sorted(path.glob("post-mortem-*.json"))),
    )
