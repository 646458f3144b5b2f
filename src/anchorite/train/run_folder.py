"""The folder of a run: its files, what has changed since the run was started, and what state the run is in."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import AliasChoices, BaseModel, Field, ValidationError
from typing_extensions import TypedDict

from anchorite.choices import Change
from anchorite.data import DatasetIndex, LeftOut, without_images
from anchorite.errors import InputError, StorageError
from anchorite.files import is_locked, write_text_atomically
from anchorite.reading import read_json
from anchorite.train.checkpoint import FoundCheckpoint, found_checkpoints, has_checkpoint, leftovers
from anchorite.train.recipe import Recipe, load_recipe
from anchorite.train.recipe_names import RENAMED_COLUMNS, with_current_names

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
    backbone: _BackboneFacts | None = Field(None, validation_alias=AliasChoices("backbone", "borrowed"))
    derived: dict[str, Any] = {}


@dataclass(frozen=True)
class RunFolder:
    """Paths of runs/NAME and reading and writing of its small files."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def run(self) -> Path:
        return self.path / "run.json"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        return self.path / "best.safetensors"

    @property
    def last(self) -> Path:
        return self.path / "last.safetensors"

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
            write_text_atomically(draft.run, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
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

    @property
    def skipped(self) -> Path:
        return self.path / "skipped.jsonl"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from training in this folder; InputError when one does.

        Also checks, before any work is done, that the folder can be written: StorageError if not. The lock ends with
        the process.
        """
        path = self.path / ".lock"
        try:
            file = path.open("a+")
        except OSError as error:
            raise StorageError(
                f"{self.path}: cannot be written: {error.strerror or error}; nothing was trained. Change its "
                "permissions, or copy the run to a place that can be written"
            ) from error
        with file:
            _lock(file.fileno(), self.path)
            yield

    def is_held(self) -> bool:
        """Whether another process is training in this folder; False where that is unknown."""
        return is_locked(self.path / ".lock")

    def append_skipped(self, facts: dict[str, Any]) -> None:
        """Add a line to the log of skipped steps."""
        try:
            with self.skipped.open("a", encoding="utf-8") as file:
                file.write(json.dumps(facts, ensure_ascii=False) + "\n")
        except OSError as error:
            raise StorageError(f"{self.skipped}: cannot be written: {error.strerror or error}") from error

    def read_recipe(self) -> Recipe:
        """The recipe this run was started with."""
        return load_recipe(self.recipe)

    def read_facts(self) -> dict[str, Any]:
        """What else the run was started with: path, format, classes of the data set, how it was read, and anchors.

        Raises StorageError when the file is damaged.
        """
        try:
            facts = read_json(self.run, _MAX_FACTS_BYTES)
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


def _lock(descriptor: int, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # not a POSIX system: no lock
        return
    try:
        # Of the process, not of the open file, which worker processes inherit and may hold a moment longer.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise InputError(f"{folder}: another process is training in this folder; wait for it, or end it") from error
    except OSError:  # a file system without locks
        return


def format_row(row: dict[str, float]) -> dict[str, str]:
    """Numbers as text, short and without loss of meaning."""
    return {
        name: str(int(value)) if name in ("epoch", "train/skipped_steps") else f"{value:.6g}"
        for name, value in row.items()
    }


CHANGES: tuple[Change, ...] = get_args(Change)

_NUM_SHOWN = 5
# Fields that do not change what a run computes.
_FREE = frozenset({"name", "workers", "worker_timeout_s", "rank_timeout_s", "store", "checkpoint_minutes"})
# The tensors of a checkpoint do not fit with others of these.
_FIXED = frozenset({"model", "backbone", "optimizer.name"})


def comparable_facts(recipe: Recipe, dataset: DatasetIndex, num_ranks: int = 1) -> dict[str, Any]:
    """The entries of run.json that `refuse_changes` compares with when the run is resumed."""
    return {
        "class_names": list(dataset.class_names),
        "splits": {
            split: {
                "images": len(records),
                "boxes": records.num_boxes(),
                "fingerprint": records.fingerprint(),
            }
            for split, records in dataset.splits.items()
        },
        "recipe": recipe.model_dump(mode="json"),
        "world_size": num_ranks,
    }


def refuse_changes(
    facts: Mapping[str, Any],
    recipe: Recipe,
    dataset: DatasetIndex,
    allowed: Collection[Change] = (),
    num_ranks: int = 1,
) -> list[str]:
    """A line on each change that was allowed; InputError, with every difference, for one that was not.

    Other classes, another model or kind of optimizer are never allowed. Facts that an older run did not record are not
    compared.
    """
    now = comparable_facts(recipe, dataset, num_ranks)
    classes = facts.get("class_names", now["class_names"])
    fixed = []
    if classes != now["class_names"]:
        fixed.append(f"class_names: the run has {classes}, here it is {now['class_names']}")
    # A field that the run did not have yet had its present default.
    then = dict(_flat(Recipe().model_dump(mode="json")) + _flat(facts.get("recipe", now["recipe"])))
    changed = [
        f"recipe.yaml: {name} was {then.get(name)}, now it is {value}"
        for name, value in _flat(now["recipe"])
        if then.get(name) != value and name not in _FREE
    ]
    fixed += [line for line in changed if line.split()[1] in _FIXED]
    if fixed:
        lines = "\n".join(fixed)
        raise InputError(f"the run cannot be resumed with these changes:\n{lines}\nundo them, or start a new run")
    found: dict[Change, list[str]] = {
        "recipe": changed,
        "data": _data_changes(facts, now),
        "ranks": _rank_changes(facts.get("world_size", num_ranks), num_ranks, recipe.sync_batch_norm),
    }
    refused = [kind for kind, lines in found.items() if lines and kind not in allowed]
    if refused:
        shown = "\n".join(_shortened([line for kind in refused for line in found[kind]]))
        flags = " ".join(f"--allow {kind}" for kind in refused)
        raise InputError(
            f"what the run was started with has changed:\n{shown}\nundo the change, start a new run, or accept the "
            f"change: {flags}"
        )
    return [f"allowed: {line}" for lines in found.values() for line in lines]


def _rank_changes(then: int, now: int, shared_statistics: bool) -> list[str]:
    """The same batches in other parts: equal but for rounding, unless each part is normalised by its own statistics."""
    if then == now:
        return []
    effect = "sums round otherwise" if shared_statistics else "batch normalisation is over parts of another size"
    return [f"ranks: {then} then, {now} now: {effect}"]


def _data_changes(facts: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    then, here = facts.get("splits", now["splits"]), now["splits"]
    lines = []
    for split in dict.fromkeys((*then, *here)):
        before, after = then.get(split), here.get(split)
        if before == after:
            continue
        was, is_now = (
            "none" if one is None else f"{one['images']} images, {one['boxes']} boxes" for one in (before, after)
        )
        same = was == is_now
        lines.append(f"data: {split}: " + (f"other labels or names ({was})" if same else f"{was} then, {is_now} now"))
    return lines


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted names and values of nested mappings."""
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items():
        pairs += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return pairs


def _shortened(lines: list[str]) -> list[str]:
    more = len(lines) - _NUM_SHOWN
    return lines if more <= 0 else [*lines[:_NUM_SHOWN], f"and {more} more"]


@dataclass(frozen=True)
class RunState:
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


def read_run_state(path: Path) -> RunState:
    """The state of the run in a folder; every checkpoint is read whole and its hashes compared.

    Raises InputError when it is no run folder, StorageError when its files cannot be read.
    """
    folder = RunFolder.open(path, "runs")
    recipe, facts, rows = folder.read_recipe(), folder.read_facts(), folder.read_rows()
    scored = [(float(row["val/map"]), int(row["epoch"])) for row in rows if row.get("val/map", "nan") != "nan"]
    best_map, best_epoch = max(scored, key=lambda pair: (pair[0], -pair[1])) if scored else (None, None)
    summary = json.loads(folder.summary.read_text(encoding="utf-8")) if folder.summary.is_file() else {}
    skipped = folder.skipped.read_text(encoding="utf-8").splitlines() if folder.skipped.is_file() else []
    return RunState(
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
