"""Generated label files of annotation tools, with the boxes that must be read of them.

A case is a dataset of two images. As long as no byte of its file was spoilt, whatever is read of an image must be the
boxes that were written: all of those without a trap, and no other unless there was a trap.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from random import Random
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np

from tests.data.format_samples import write_image
from tests.faults.label_fuzz import HEIGHT, NAMES, WIDTH, check_reading
from tests.faults.mutators import NUMBERS, TEXTS, maybe_spoilt

IMAGES = ("a.png", "b.png")
Box = tuple[float, float, float, float]


class _Tool:
    """A label file of both images; `_text` writes it and calls `_expect` for each object."""

    file_name = ""

    def __init__(self, folder: Path) -> None:
        self.folder, self._file = folder, folder / self.file_name
        for name in IMAGES:
            write_image(folder / "images" / name, WIDTH, HEIGHT)
        self._boxes: dict[str, list[Box]] = defaultdict(list)
        self._trapped: set[str] = set()
        self._is_spoilt = False

    def generate(self, rng: Random) -> dict[Path, bytes]:
        """The content of the label file."""
        self._boxes.clear()
        self._trapped.clear()
        written = self._text(rng).encode("utf-8", "surrogatepass")
        data = maybe_spoilt(rng, written)
        self._is_spoilt = data != written
        return {self._file: data}

    def _text(self, rng: Random) -> str:
        raise NotImplementedError

    def _expect(self, rng: Random, name: str, box: Box, traps: tuple[Any, ...]) -> Any:
        """Note a box of an image; in one case of ten a trap instead, to be put into it."""
        if rng.random() < 0.1:
            self._trapped.add(name)
            return rng.choice(traps)
        self._boxes[name].append(box)
        return None

    def check(self, _: dict[Path, bytes]) -> None:
        """As for every dataset; and the boxes are those that were written."""
        index = check_reading(self.folder)
        if index is None or self._is_spoilt:
            return
        for record in (record for split in index.splits.values() for record in split):
            name, read = record.path.name, record.boxes_xyxy
            limits = np.array([WIDTH, HEIGHT] * 2)
            written = np.clip(np.array(self._boxes[name]).reshape(-1, 4), 0, limits)
            written = written[((written[:, 2:] - written[:, :2]) > 1e-9).all(axis=1)]
            is_same = np.abs(read[:, None] - written[None]).max(axis=2, initial=0) < 1e-6
            assert is_same.any(axis=0).all(), "every box without a trap is read where its image is"
            assert is_same.any(axis=1).all() or name in self._trapped, "no box is read that was not written"


def _corners(rng: Random) -> Box:
    """A box that mostly lies in the image, with a few decimals."""
    x1, y1 = round(rng.uniform(-9, WIDTH - 9), 2), round(rng.uniform(-9, HEIGHT - 9), 2)
    return x1, y1, round(x1 + rng.uniform(0.5, 40), 2), round(y1 + rng.uniform(0.5, 30), 2)


def _polygon(rng: Random, box: Box) -> list[tuple[float, float]]:
    """Points that touch all four sides of a box."""
    x1, y1, x2, y2 = box
    inside = [(rng.uniform(x1, x2), rng.uniform(y1, y2)) for _ in range(rng.randint(0, 3))]
    points = [(x1, rng.uniform(y1, y2)), (rng.uniform(x1, x2), y1), (x2, y2), *inside]
    rng.shuffle(points)
    return points


class CvatXml(_Tool):
    """An annotations.xml of CVAT."""

    file_name = "annotations.xml"

    def _text(self, rng: Random) -> str:
        others = [text for text in TEXTS if text != "a"]  # which would be a.png
        names = [*IMAGES, *rng.choice(([], [], ["gone.png"], [rng.choice(others)]))]
        labels = "".join(f"<label><name>{name}</name></label>" for name in NAMES)
        meta = f"<meta><task><labels>{labels}</labels></task></meta>" if rng.random() < 0.5 else ""
        end = rng.choice(("\n", "\r\n", ""))
        images = end.join(self._image(rng, name, end) for name in names if rng.random() < 0.9)
        root = rng.choice(("annotations",) * 20 + ("annotation", "a"))
        return f"{rng.choice(('', _XML))}<{root}><version>1.1</version>{meta}{end}{images}</{root}>"

    def _image(self, rng: Random, name: str, end: str) -> str:
        width, height = rng.choice(
            ((WIDTH, HEIGHT),) * 12 + ((f"{WIDTH}.0", HEIGHT), (0, 0), (HEIGHT, WIDTH), ("x", 1))
        )
        subset = rng.choice(("",) * 8 + ('subset="train"', 'subset="val"', 'subset="x"'))
        shapes = end.join(self._shape(rng, name) for _ in range(rng.randint(0, 5)))
        return f'<image id="0" name={_quoted(name)} {subset} width="{width}" height="{height}">{shapes}</image>'

    def _shape(self, rng: Random, name: str) -> str:
        kind = rng.choice(("box", "polygon", "ellipse", "mask", "points"))
        if kind == "points":
            return '<points label="cat" points="1,2;3,4"/>'
        x1, y1, x2, y2 = box = _corners(rng)
        values: dict[str, Any] = {"label": rng.choice(NAMES)}
        if kind == "box":
            values |= {"xtl": x1, "ytl": y1, "xbr": x2, "ybr": y2}
        elif kind == "ellipse":
            cx, cy, rx, ry = values_of = [round(value, 2) for value in ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)]
            box = (cx - rx, cy - ry, cx + rx, cy + ry)
            values |= dict(zip(("cx", "cy", "rx", "ry"), values_of, strict=True))
        elif kind == "polygon":
            values["points"] = ";".join(f"{x!r},{y!r}" for x, y in _polygon(rng, box))
        else:
            left, top, width, height = (rng.randint(0, 20) for _ in range(4))
            mask = np.array([[rng.random() < 0.4 for _ in range(width + 1)] for _ in range(height + 1)])
            mask[rng.randint(0, height), rng.randint(0, width)] = True
            rows, columns = np.nonzero(mask)
            x1, y1, x2, y2 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            box, counts = (float(left + x1), float(top + y1), float(left + x2), float(top + y2)), [0]
            for is_set in mask.ravel().tolist():
                if is_set != (len(counts) % 2 == 0):
                    counts.append(0)
                counts[-1] += 1
            values |= {"left": left, "top": top, "width": width + 1, "height": height + 1}
            values["rle"] = ", ".join(map(str, counts))
        if (trap := self._expect(rng, name, box, (*NUMBERS, *TEXTS))) is not None:
            values[rng.choice(list(values))] = trap
        return f"<{kind} " + " ".join(f"{key}={_quoted(value)}" for key, value in values.items()) + "/>"


_XML = '<?xml version="1.0" encoding="utf-8"?>\n'


def _quoted(value: object) -> str:
    """An attribute's value, without the letters that no xml can hold."""
    return quoteattr("".join(sign for sign in str(value) if sign.isprintable() and not "\ud800" <= sign <= "\udfff"))


class _JsonTool(_Tool):
    def _dumped(self, rng: Random, content: Any) -> str:
        bom = rng.choice(("", "", "", "\ufeff"))
        return bom + json.dumps(
            content, ensure_ascii=rng.random() < 0.5, separators=rng.choice(((", ", ": "), (",\n", ":")))
        )


_TRAPS = (None, True, -1, 1e308, -1e308, 10**400, math.nan, math.inf, {}, [], [1], {"a": [1]}, "1", *TEXTS)


class LabelStudioJson(_JsonTool):
    """A list of tasks of Label Studio, of either export."""

    file_name = "project-1.json"

    def _text(self, rng: Random) -> str:
        is_min = rng.random() < 0.3
        tasks = [self._task(rng, number, name, is_min) for number, name in enumerate(IMAGES, start=1)]
        if rng.random() < 0.1:
            tasks.append(rng.choice(_TRAPS))
        return self._dumped(rng, tasks)

    def _task(self, rng: Random, number: int, name: str, is_min: bool) -> Any:
        image = rng.choice((name, f"/data/upload/1/0a1b2c3d-{name}", f"/data/local-files/?d=images/{name}"))
        task_id = number if rng.random() < 0.9 else rng.choice((None, "x", number + 0.5, 10**30))
        regions = [self._region(rng, name, is_min) for _ in range(rng.randint(0, 4))]
        if is_min:
            return {"image": image, "id": task_id, "label": regions, "annotation_id": 5, "annotator": 1}
        annotations: Any = [{"id": 9, "result": regions, "was_cancelled": False}]
        annotations += [{"id": 8, "result": [], "was_cancelled": rng.random() < 0.5}] * rng.choice((0, 0, 1))
        task: dict[str, Any] = {"id": task_id, "annotations": annotations, "data": {"image": image}}
        if rng.random() < 0.1:
            self._trapped.add(name)
            self._boxes[name].clear()
            return task | {rng.choice(("annotations", "data")): rng.choice(_TRAPS)}
        return task

    def _region(self, rng: Random, name: str, is_min: bool) -> Any:
        x1, y1, x2, y2 = box = _corners(rng)
        px, py = WIDTH / 100, HEIGHT / 100
        kind = rng.choice(("rectangle", "polygon", "ellipse"))
        values: dict[str, Any] = {"rotation": 0}
        if kind == "rectangle":
            values |= {"x": x1 / px, "y": y1 / py, "width": (x2 - x1) / px, "height": (y2 - y1) / py}
        elif kind == "ellipse":
            values |= {"x": (x1 + x2) / 2 / px, "y": (y1 + y2) / 2 / py}
            values |= {"radiusX": (x2 - x1) / 2 / px, "radiusY": (y2 - y1) / 2 / py}
        else:
            values["points"] = [[x / px, y / py] for x, y in _polygon(rng, box)]
        values[f"{kind}labels"] = [rng.choice(NAMES)]
        facts = {"original_width": WIDTH, "original_height": HEIGHT}
        if (trap := self._expect(rng, name, box, _TRAPS)) is not None or rng.random() < 0.02:
            self._trapped.add(name)
            place = rng.choice((values, values, facts))
            place[rng.choice(list(place))] = trap
        if is_min:
            return values | facts
        whole: dict[str, Any] = {
            "id": f"r{rng.randint(0, 9)}{rng.random()}",
            "type": f"{kind}labels",
            "value": values,
        } | facts
        if rng.random() < 0.02:
            self._trapped.add(name)
            self._boxes[name] = [one for one in self._boxes[name] if one != box]
            whole[rng.choice(("id", "type", "value"))] = rng.choice(_TRAPS)
        return whole


class LabelMeJson(_JsonTool):
    """The json of each image, of LabelMe."""

    file_name = "images/a.json"

    def generate(self, rng: Random) -> dict[Path, bytes]:
        """The jsons; only the first may be spoilt."""
        written = super().generate(rng)
        return written | {self.folder / "images" / "b.json": self._json(rng, "b.png").encode("utf-8", "surrogatepass")}

    def _text(self, rng: Random) -> str:
        return self._json(rng, "a.png")

    def _json(self, rng: Random, name: str) -> str:
        content: dict[str, Any] = {
            "version": "5.5.0",
            "shapes": [self._shape(rng, name) for _ in range(rng.randint(0, 5))],
        }
        content |= {"imagePath": name, "imageData": None, "imageHeight": HEIGHT, "imageWidth": WIDTH}
        if rng.random() < 0.1:
            self._trapped.add(name)
            self._boxes[name].clear()
            content[rng.choice(list(content))] = rng.choice(_TRAPS)
        return self._dumped(rng, content)

    def _shape(self, rng: Random, name: str) -> Any:
        x1, y1, x2, y2 = box = _corners(rng)
        kind = rng.choice(("rectangle", "polygon", "circle", "point"))
        if kind == "point":
            return {"label": "cat", "points": [[1, 2]], "shape_type": "point"}
        points: Any = [[x2, y1], [x1, y2]] if kind == "rectangle" else [list(point) for point in _polygon(rng, box)]
        if kind == "circle":
            points, radius = [[x1, y1], [x2, y2]], math.hypot(x2 - x1, y2 - y1)
            box = (x1 - radius, y1 - radius, x1 + radius, y1 + radius)
        shape: dict[str, Any] = {"label": rng.choice(NAMES), "points": points, "group_id": None, "shape_type": kind}
        if (trap := self._expect(rng, name, box, _TRAPS)) is not None:
            shape[rng.choice(("label", "points", "shape_type"))] = trap
        return shape


TOOL_FAMILIES = {"cvat": (CvatXml,), "label-studio": (LabelStudioJson,), "labelme": (LabelMeJson,)}
