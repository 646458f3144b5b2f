"""The small files of a run folder, damaged: what a resume says of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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
