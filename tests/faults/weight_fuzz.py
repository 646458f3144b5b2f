"""Generated weight files: a good one with its header or its body spoilt, and what must hold however it is read."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from random import Random
from typing import Any

import torch

from anchorite.errors import AnchoriteError
from anchorite.model import Detector, WeightsInfo, default_anchors, load_weights, save_weights
from tests.faults.mutators import NUMBERS, TEXTS, spoilt

_NAMES = ("cat", "dog")


class WeightFile:
    """A weight file of the smallest detector."""

    def __init__(self, folder: Path) -> None:
        anchors = default_anchors("n")
        torch.manual_seed(0)
        self.file = folder / "weights.safetensors"
        save_weights(self.file, Detector("n", len(_NAMES), anchors), WeightsInfo("n", _NAMES, anchors, 320))
        content = self.file.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        self._header, self._body = content[8 : 8 + length], content[8 + length :]

    def generate(self, rng: Random) -> tuple[bytes, bytes]:
        """Header and body of a file, one of them or both spoilt."""
        body = self._body
        if rng.random() < 0.2:
            place = rng.randrange(len(body))
            body = body[:place] + spoilt(rng, body[place : place + 64]) + body[place + 64 :]
            body = body[: rng.randrange(len(body))] if rng.random() < 0.3 else body
        return self._spoilt_header(rng), body

    def _spoilt_header(self, rng: Random) -> bytes:
        chance = rng.random()
        if chance < 0.1:
            return _framed(self._header)
        if chance < 0.3:
            return _framed(spoilt(rng, self._header))
        if chance < 0.35:
            length = rng.choice((0, 1, 2**31, 2**63, 2**64 - 1, len(self._header) - 1, rng.randrange(2**40)))
            return struct.pack("<Q", length) + self._header
        fields = json.loads(self._header)
        if chance < 0.75:
            fields["__metadata__"] = self._metadata(rng, fields["__metadata__"])
        else:
            self._change_tensors(rng, fields)
        header = json.dumps(fields).encode()
        return _framed(spoilt(rng, header) if rng.random() < 0.15 else header)

    def _metadata(self, rng: Random, metadata: dict[str, str]) -> Any:
        """Our own header with a field replaced, taken out or added, as JSON text or spoilt text."""
        own = json.loads(metadata["anchorite"])
        for _ in range(rng.randint(1, 2)):
            key = rng.choice((*own, "surprise"))
            if rng.random() < 0.15:
                own.pop(key, None)
            else:
                own[key] = self._value(rng, own.get(key))
        text = json.dumps(own)
        if rng.random() < 0.3:
            text = spoilt(rng, text.encode()).decode("utf-8", "replace")
        return {"anchorite": text} if rng.random() < 0.95 else rng.choice(({}, {"format": "pt"}, {"anchorite": 1}, []))

    def _value(self, rng: Random, value: Any) -> Any:
        if isinstance(value, list) and value and rng.random() < 0.6:
            place = rng.randrange(len(value))
            return [*value[:place], self._value(rng, value[place]), *value[place + rng.randint(0, 1) :]]
        plain = (None, True, 0, 1, -1, 2.5, 10**30, 1e308, float("nan"), float("inf"), [], {}, [[1.0]], ["n"] * 5000)
        return rng.choice((*plain, "n", "s", "x6", *TEXTS, *NUMBERS))

    def _change_tensors(self, rng: Random, fields: dict[str, Any]) -> None:
        name = rng.choice([name for name in fields if name != "__metadata__"])
        entry, chance = fields[name], rng.random()
        if chance < 0.2:
            del fields[name]
        elif chance < 0.4:
            entry["dtype"] = rng.choice(("F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "X", "", None, 3))
        elif chance < 0.7:
            shapes = ([], [0], [-1], [2**31, 2**31], [2**62, 4], [1.5], entry["shape"][::-1], "x", [1] * 99)
            entry["shape"] = rng.choice(shapes)
        else:
            start, end = entry["data_offsets"]
            size = len(self._body)
            places = (0, -1, start, end, start + 1, end - 1, size, size + 1, 2**63, 2**64)
            entry["data_offsets"] = [rng.choice(places), rng.choice(places)]

    def check(self) -> bool:
        """Whether it was loaded: the file is refused by its name, or gives the detector that it describes."""
        try:
            detector, info = load_weights(self.file)
        except AnchoriteError as error:
            check_refusal(str(error), self.file)
            return False
        assert not detector.training
        assert detector.num_classes == len(info.class_names) > 0
        assert info.image_size > 0
        with torch.device("meta"):
            expected = Detector(info.size, len(info.class_names), info.anchors).state_dict()
        assert {n: t.shape for n, t in detector.state_dict().items()} == {n: t.shape for n, t in expected.items()}
        return True


def check_refusal(message: str, file: Path) -> None:
    """A refusal names the file and says something more."""
    assert message.startswith(f"{file}: "), message[:300]
    assert len(message) > len(f"{file}: ") + 8


def _framed(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


def check_weights(case: WeightFile, rng: Random) -> bool:
    """Generate a weight file, write it, read it and check what came of it; whether it was loaded."""
    start, body = case.generate(rng)
    case.file.write_bytes(start + body)
    try:
        return case.check()
    except BaseException as error:
        error.add_note(f"the metadata was {start[-3000:]!r}")
        raise
