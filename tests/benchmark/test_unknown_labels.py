"""The data sets of benchmarks/unknown_labels.py: what each variant knows."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from anchorite.data import DatasetIndex, open_dataset
from benchmarks.unknown_labels import NAMES, STUDENT_FLAGS, Work


def small_cards(folder: Path) -> Path:
    """Twelve images, eight of them to train on, with two or three cards each."""
    rng = random.Random(0)
    for split, number in (("train", 8), ("val", 2), ("test", 2)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(number):
            Image.new("RGB", (32, 32), (index, 0, 0)).save(folder / "images" / split / f"{index}.png")
            rows = [f"{rng.randrange(6)} 0.{place}5 0.5 0.1 0.2\n" for place in range(1, 4)]
            (folder / "labels" / split / f"{index}.txt").write_text("".join(rows))
    lines = [f"{split}: images/{split}" for split in ("train", "val", "test")]
    (folder / "data.yaml").write_text("\n".join([*lines, f"names: [{', '.join(NAMES)}]"]))
    return folder


def boxes_of(dataset: DatasetIndex, ignored: bool = False) -> Counter[tuple[str, int, tuple[float, ...]]]:
    return Counter(
        (record.path.name, int(class_id), tuple(np.round(box, 6)))
        for record in dataset.split("train")
        for class_id, box, is_ignored in zip(record.class_ids, record.boxes_xyxy, record.ignored, strict=True)
        if is_ignored == ignored
    )


def test_each_variant_knows_what_it_should(tmp_path: Path) -> None:
    cards = small_cards(tmp_path / "cards")
    (tmp_path / "bccd").mkdir()
    work = Work(tmp_path / "work", cards, tmp_path / "bccd")
    (work.folder / "data").mkdir(parents=True)
    opened = {}
    for variant in work.variants(seed=3):
        if variant.name in STUDENT_FLAGS or variant.name in ("bccd", "merged"):
            continue
        if not variant.data.exists():
            variant.prepare()
        opened[variant.name] = open_dataset(variant.data)
        assert (opened[variant.name].class_names, variant.test) == (NAMES, work.folder / "data" / "cards_known")
        assert len(opened[variant.name].split("test")) == 2
    truth = boxes_of(opened["known"])
    assert boxes_of(opened["ignore"]) == boxes_of(opened["background"]) < truth
    assert opened["background"].split("train").num_boxes() == 16
    assert opened["ignore"].split("train").num_ignored() == 8
    assert boxes_of(opened["partial"]) == boxes_of(opened["naive"]) < truth
    for record in opened["partial"].split("train"):
        assert record.source.covered is not None
        assert all(record.source.covered[class_id] for class_id in record.class_ids)
    quarter, rest = opened["quarter"].split("train"), work.folder / "data" / "cards_quarter_3" / "unlabelled"
    assert (len(quarter), len(list(rest.iterdir()))) == (2, 6)
    assert {path.name for path in quarter.paths()}.isdisjoint(path.name for path in rest.iterdir())
