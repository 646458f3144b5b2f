"""The small files of a run folder, damaged: what a resume says of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from anchorite.boxes import LabelCoverage, Targets
from anchorite.data import Batch
from anchorite.errors import StorageError
from anchorite.train import RunFolder

WHOLE = {"data": "d", "format": "yolo", "class_names": ["a"], "anchors": [[1.0, 2.0]]}
DAMAGED = {
    "cut short": ('{"data": "d",\n', r"run\.json:2:1: not valid JSON"),
    "deep": ("[" * 100_000, "not readable as JSON"),
    "a long number": ('{"data": ' + "9" * 5000 + "}", "not readable as JSON"),
    "a list": ("[]", "a JSON object"),
    "no text": (b"\xff", r"run\.json:1: not UTF-8"),
    "nothing in it": ("{}", "see anchors, class_names, data, format"),
    "other types": (json.dumps(WHOLE | {"data": 7, "class_names": "abc"}), "see class_names, data"),
    "no format": (json.dumps(WHOLE | {"format": "../x"}), "see format"),
    "splits of another kind": (json.dumps(WHOLE | {"splits": {"train": 3}}), "see splits"),
    "a recipe of another kind": (json.dumps(WHOLE | {"recipe": []}), "see recipe"),
}


@pytest.mark.parametrize(("content", "reason"), DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_facts_are_told_and_nothing_else_happens(content: str | bytes, reason: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.run.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(StorageError, match=reason) as caught:
        folder.read_facts()
    assert str(folder.run) in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(folder.run))


def test_the_facts_of_an_earlier_release_are_read(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.run.write_text(json.dumps(WHOLE))
    assert folder.read_facts() == WHOLE


def test_a_post_mortem_keeps_all_that_the_labels_of_the_batch_say(tmp_path: Path) -> None:
    targets = Targets.from_rows(torch.rand(2, 6), torch.rand(2), sources=torch.arange(2), capacity=4)
    known = LabelCoverage(torch.rand(3, 5), torch.ones(2, 3, dtype=torch.bool), torch.rand(1, 4, 4))
    batch = Batch(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), targets, torch.tensor([5]), known)
    RunFolder(tmp_path).write_post_mortem(tmp_path / "a.json", {}, batch)
    kept, compact = load_file(tmp_path / "a.safetensors"), targets.compact()
    wanted = {"images": batch.images, "indices": batch.indices, "targets": compact.rows} | vars(known)
    wanted |= {"weights": compact.weights, "sources": compact.sources}
    assert kept.keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in kept.items())
