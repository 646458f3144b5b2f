"""The folder of a run: which files it has, and the log of metrics that survives a crash at any byte."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anchorite.errors import InputError, StorageError
from anchorite.files import write_text_atomically
from anchorite.train.recipe import Recipe, load_recipe


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
        """A new run folder with its recipe and facts; InputError when something is there already."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(
                f"--out {path}: exists already; choose another folder, or continue it with --resume {path}"
            )
        folder = cls(path)
        try:
            folder.checkpoints.mkdir(parents=True)
        except OSError as error:
            raise StorageError(f"--out {path}: cannot be made: {error.strerror}; choose another folder") from error
        write_text_atomically(folder.recipe, recipe.to_yaml())
        write_text_atomically(folder.run, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run folder; InputError when it is none."""
        folder = cls(path)
        missing = [file.name for file in (folder.recipe, folder.run) if not file.is_file()]
        if missing:
            raise InputError(
                f"--resume {path}: not a run folder (no {' and no '.join(missing)}); name a runs/NAME folder"
            )
        return folder

    def read_recipe(self) -> Recipe:
        """The recipe this run was started with."""
        return load_recipe(self.recipe)

    def read_facts(self) -> dict[str, Any]:
        """What else the run was started with: path, format, classes of the data set, how it was read, and anchors."""
        try:
            facts = json.loads(self.run.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StorageError(f"{self.run}: cannot be read: {error}") from error
        if not isinstance(facts, dict) or not {"data", "format", "class_names", "anchors"} <= facts.keys():
            raise StorageError(f"{self.run}: damaged: it must say data, format, class_names and anchors of the run")
        return facts

    def read_rows(self) -> list[dict[str, str]]:
        """The rows of metrics.csv, none when there is no file yet."""
        if not self.metrics.is_file():
            return []
        return list(csv.DictReader(io.StringIO(self.metrics.read_text(encoding="utf-8"))))

    def write_rows(self, rows: list[dict[str, str]]) -> None:
        """Replace metrics.csv; columns in the order of the last row."""
        text = io.StringIO()
        if rows:
            writer = csv.DictWriter(text, fieldnames=list(rows[-1]), restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        write_text_atomically(self.metrics, text.getvalue())


def format_row(row: dict[str, float]) -> dict[str, str]:
    """Numbers as text, short and without loss of meaning."""
    return {name: str(int(value)) if name == "epoch" else f"{value:.6g}" for name, value in row.items()}
