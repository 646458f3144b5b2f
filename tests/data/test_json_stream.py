"""Reading a JSON object piece by piece gives what reading it whole gives, and refuses what that refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorite.data.formats import json_stream
from anchorite.data.formats.json_stream import stream_json
from anchorite.errors import InputError
from anchorite.reading import read_json
from tests.data.format_samples import write_text

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12)
KEYS = st.text(max_size=4)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=12)
ITEMS = st.dictionaries(KEYS, VALUES, max_size=4) | VALUES


def streamed(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value, items in stream_json(path, least_bytes=0):
        if items is None:
            content[key] = value
        elif not items:
            content[key] = []
        else:
            content[key] += items
    return content


def outcome(read: Callable[[Path], str], path: Path) -> str:
    try:
        return read(path)
    except InputError as error:
        return str(error)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("streams")


@given(
    content=st.dictionaries(st.text(max_size=5), VALUES | st.lists(ITEMS, max_size=20), max_size=5),
    block=st.integers(16, 200),
    indent=st.sampled_from([None, 0, 2]),
    is_ascii=st.booleans(),
)
def test_any_object_is_read_as_a_whole_file_is(
    folder: Path, content: dict[str, Any], block: int, indent: int | None, is_ascii: bool
) -> None:
    text = json.dumps(content, indent=indent, ensure_ascii=is_ascii).encode("utf-8", "replace")
    path = write_text(folder / "any.json", text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_BLOCK_BYTES", block)
        assert streamed(path) == read_json(path)


@pytest.mark.parametrize("block", [16, 1 << 22])
@pytest.mark.parametrize("damage", ["cut", "x", "\x00", "]", ",", "\xff"])
def test_damage_anywhere_is_refused_in_the_same_words(
    folder: Path, monkeypatch: pytest.MonkeyPatch, damage: str, block: int
) -> None:
    items = [{"id": number, "name": f"a}},{{ {number}", "box": [1.5, -2e3, True, None]} for number in range(4)]
    text = json.dumps({"info": {"year": 2026}, "items": items, "more": []}, indent=1).encode()
    monkeypatch.setattr(json_stream, "_BLOCK_BYTES", block)
    monkeypatch.setattr(json_stream, "_MOST_BYTES_AGAIN", 0)
    for place in range(1, len(text), 7):
        damaged = text[:place] if damage == "cut" else text[:place] + damage.encode("latin-1") + text[place + 1 :]
        path = write_text(folder / "damaged.json", damaged)
        assert outcome(lambda path: repr(streamed(path)), path) == outcome(lambda path: repr(read_json(path)), path)


@pytest.mark.parametrize("text", ["[1, 2]", "3", '"a"', "", "{} {}", '{"a": 1,}', '{"a": [1,]}', '{"a": ' + "[" * 5000])
def test_what_is_no_object_is_refused_in_the_words_of_the_whole(folder: Path, text: str) -> None:
    path = write_text(folder / "none.json", text)
    with pytest.raises(InputError) as whole:
        read_json(path)
    with pytest.raises(InputError) as refused:
        streamed(path)
    assert str(refused.value) == str(whole.value)


def test_a_byte_order_mark_and_repeated_keys_are_taken_as_json_takes_them(folder: Path) -> None:
    path = write_text(folder / "twice.json", b'\xef\xbb\xbf{"a": [1, 2], "b": 3, "a": [{"c": 4}, {"c": 5}], "b": []}')
    assert streamed(path) == read_json(path) == {"a": [{"c": 4}, {"c": 5}], "b": []}


@pytest.mark.parametrize("mask", ["[]", '{"counts": "abc", "size": [4, 4]}', '[{"counts": "abc"}, {"counts": "de"}]'])
def test_no_text_is_parsed_many_times_over(mask: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "_BLOCK_BYTES", 40_000)
    images = ", ".join(f'{{"id": {number}, "file_name": "{number:07d}.jpg"}}' for number in range(2000))
    boxes = ", ".join(f'{{"id": {number}, "mask": {mask}, "bbox": [1, 2, 3, 4]}}' for number in range(2000))
    path = write_text(
        tmp_path / "a.json", f'{{"images": [{images}], "annotations": [{boxes}], "info": [{"1, " * 30_000}1]}}'
    )
    parsed, loads = 0, json.loads

    def counted(text: str) -> Any:
        nonlocal parsed
        parsed += len(text)
        return loads(text)

    expected = json.loads(path.read_text())
    monkeypatch.setattr(json, "loads", counted)
    assert streamed(path) == expected
    assert parsed < 3 * path.stat().st_size
