"""From images to the ranking with a detector that is always right: what it contradicts is what was planted."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from anchorite.data import DatasetIndex, Record
from anchorite.data.dataset import NO_CLASS, LabelSource
from anchorite.errors import DivergedError, InputError
from anchorite.report.suspects import Ranking, as_csv, crop_box, make_crops, rank_suspects
from anchorite.report.suspects_evidence import observe
from tests.report.suspects_samples import EVIL, NAMES, SIDE, TruthfulRuntime, free_corner, right_dataset


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> DatasetIndex:
    return right_dataset(tmp_path_factory.mktemp("data"))


def with_label(record: Record, box: tuple[float, ...], class_id: int) -> Record:
    return replace(
        record,
        boxes_xyxy=np.concatenate([record.boxes_xyxy, np.array([box], dtype=np.float64)]),
        class_ids=np.append(record.class_ids, class_id),
        ignored=np.append(record.ignored, False),
        areas=np.append(record.areas, 1.0),
        origins=(*record.origins, f"{record.path.stem}.txt:4"),
        weights=None,
    )


def without_label(record: Record, label: int) -> Record:
    kept = np.arange(len(record.class_ids)) != label
    arrays = {name: getattr(record, name)[kept] for name in ("boxes_xyxy", "class_ids", "ignored", "areas", "weights")}
    return replace(record, origins=tuple(np.array(record.origins)[kept].tolist()), **arrays)


def planted(right: DatasetIndex) -> tuple[DatasetIndex, set[tuple[str, str, str]]]:
    """The data set with one error of each kind, and (kind, image, origin) of each."""
    train, val = list(right.splits["train"]), list(right.splits["val"])
    swapped = train[1].class_ids.copy()
    swapped[0] = (swapped[0] + 1) % len(NAMES)
    train[1] = replace(train[1], class_ids=swapped)
    train[3] = without_label(train[3], 2)
    moved = train[5].boxes_xyxy.copy()
    moved[1, [0, 2]] += 14
    train[5] = replace(train[5], boxes_xyxy=moved)
    left, top = free_corner(val[0])
    val[0] = with_label(val[0], (left, top, left + 30, top + 30), 0)
    val[2] = with_label(val[2], tuple(val[2].boxes_xyxy[0] + 0.5), int(val[2].class_ids[0]))
    errors = {
        ("class", train[1].path.name, train[1].origins[0]),
        ("missing", train[3].path.name, ""),
        ("box", train[5].path.name, train[5].origins[1]),
        ("spurious", val[0].path.name, val[0].origins[3]),
        ("duplicate", val[2].path.name, val[2].origins[3]),
    }
    return replace(right, splits={"train": tuple(train), "val": tuple(val)}), errors


def ranked(truth: DatasetIndex, dataset: DatasetIndex, **settings: object) -> Ranking:
    return rank_suspects(dataset, list(dataset.splits), TruthfulRuntime(truth), SIDE, **settings)  # type: ignore[arg-type]


def test_right_labels_are_not_suspect(right: DatasetIndex) -> None:
    ranking = ranked(right, right)
    assert ranking == Ranking((), 12, 36)
    assert as_csv(ranking.suspects, NAMES, right.root).count("\n") == 1


def test_what_was_planted_is_all_that_is_found(right: DatasetIndex) -> None:
    dataset, errors = planted(right)
    ranking = ranked(right, dataset)
    assert {(one.kind, one.image.name, one.origin) for one in ranking.suspects} == errors
    assert len(ranking.suspects) == len(errors)
    assert all(one.kind_rank == 1 and one.score > 0.5 for one in ranking.suspects)
    assert sum(ranking.counts().values()) == 5
    by_kind = {one.kind: one for one in ranking.suspects}
    assert by_kind["class"].seen_class == right.splits["train"][1].class_ids[0]
    assert by_kind["class"].split == "train"
    missing = by_kind["missing"]
    assert missing.class_id is None
    assert missing.label_xyxy is None
    np.testing.assert_allclose(missing.seen_xyxy, right.splits["train"][3].boxes_xyxy[2], atol=0.5)
    np.testing.assert_allclose(by_kind["box"].seen_xyxy, right.splits["train"][5].boxes_xyxy[1], atol=0.5)
    assert by_kind["spurious"].split == "val"


def test_what_labels_do_not_know_is_said_and_not_suspected(right: DatasetIndex) -> None:
    """Without labels everything that is found is missing one; but not where they are not known to be complete."""
    splits = {name: [without_labels(record) for record in records] for name, records in right.splits.items()}
    bare = replace(right, splits=splits)
    found = ranked(right, bare)
    assert (found.counts()["missing"], found.unknown) == (36, ())
    region = {
        "boxes_xyxy": np.array([[0.0, 0, SIDE, SIDE]]),
        "class_ids": np.array([NO_CLASS]),
        "ignored": np.ones(1, bool),
    }
    region |= {"areas": np.ones(1), "origins": ("a.txt:1",), "weights": None}
    first, second, third, *rest = bare.splits["train"]
    plain = LabelSource("plain", (True, True, False))
    found_alone = LabelSource("found", None, 0.5)
    train = [replace(first, **region), replace(second, source=found_alone), replace(third, source=plain), *rest]
    found = ranked(right, replace(bare, splits={**bare.splits, "train": train}))
    covered = int((right.splits["train"][2].class_ids < 2).sum())
    assert found.counts()["missing"] == 36 - 3 - 3 - (3 - covered)
    assert len(found.unknown) == 3
    assert any("plain" in one and "1 image of plain" in one for one in found.unknown)


def without_labels(record: Record) -> Record:
    for label in (2, 1, 0):
        record = without_label(record, label)
    return record


def test_neither_batches_nor_the_number_of_views_change_the_order(right: DatasetIndex) -> None:
    dataset, _ = planted(right)
    first = ranked(right, dataset, batch_size=16)
    second = ranked(right, dataset, batch_size=5)
    once = rank_suspects(dataset, ["train", "val"], TruthfulRuntime(right), SIDE, mirrored=False)
    for other in (second, once):
        assert [(a.kind, a.image, a.origin) for a in other.suspects] == [
            (b.kind, b.image, b.origin) for b in first.suspects
        ]
        np.testing.assert_allclose([a.score for a in other.suspects], [b.score for b in first.suspects], atol=2e-3)


def test_mirrored_views_are_mapped_back_to_the_pixels_of_the_image(right: DatasetIndex) -> None:
    runtime = TruthfulRuntime(right)
    records = [record for split in right.splits.values() for record in split]
    told = []
    for index, (plain, mirrored) in observe(runtime, records, SIDE, 5, progress=lambda *counts: told.append(counts)):
        expected = np.unique(records[index].boxes_xyxy, axis=0)
        for view in (plain, mirrored):
            np.testing.assert_allclose(np.unique(view.boxes_xyxy.round(2), axis=0), expected, atol=0.5)
            assert (view.losses < 0.06).all()
    assert runtime.num_mirrored == 12
    assert told == [(5, 12), (10, 12), (12, 12)]


def test_losses_go_to_their_labels_and_not_to_ignored_ones(right: DatasetIndex) -> None:
    record = right.splits["train"][1]
    wrong = record.class_ids.copy()
    wrong[2] = (wrong[2] + 1) % len(NAMES)
    changed = replace(record, class_ids=wrong, ignored=np.array([True, False, False]))
    ((_, views),) = observe(TruthfulRuntime(right), [changed], SIDE)
    for view in views:
        assert np.isnan(view.losses[0])
        assert view.losses[1] < 0.06
        # 9 from the class that is labelled and not seen, 6 from the one that is seen and not labelled.
        assert view.losses[2] == pytest.approx(9 + 6, abs=0.06)


def test_an_output_that_is_not_finite_names_the_image(right: DatasetIndex) -> None:
    class Broken(TruthfulRuntime):
        def outputs(self, images: torch.Tensor) -> list[torch.Tensor]:
            levels = super().outputs(images)
            levels[0][1, 0, 0, 0, 0] = torch.nan
            return levels

    records = right.splits["train"]
    with pytest.raises(DivergedError, match=r"01 <b>\.png: the network"):
        list(observe(Broken(right), records, SIDE))


def test_the_table_is_safe_for_spreadsheets(right: DatasetIndex) -> None:
    dataset, _ = planted(right)
    suspects = ranked(right, dataset).suspects
    evil = replace(suspects[0], reason="@SUM(1)", split="-1+1", origin="+f:1")
    text = as_csv([*suspects, evil], NAMES, right.root)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 6
    assert [row["rank"] for row in rows[:5]] == ["1", "2", "3", "4", "5"]
    assert rows[0]["image"].startswith("images/")
    for row in rows:
        assert not any(row[name].startswith(("=", "+", "-", "@", "\t", "\r")) for name in row)
    assert (rows[5]["reason"], rows[5]["split"], rows[5]["origin"]) == ("'@SUM(1)", "'-1+1", "'+f:1")
    names = {row["label_class"] for row in rows} | {row["seen_class"] for row in rows}
    assert names <= {"", EVIL, f"'{NAMES[1]}", "plain"}
    of_kind = {row["kind"]: row for row in rows[:5]}
    assert of_kind["class"]["origin"].startswith("labels/")
    assert of_kind["missing"]["left"] == ""
    assert of_kind["missing"]["origin"] == ""
    box = right.splits["train"][3].boxes_xyxy[2]
    assert float(of_kind["missing"]["seen_left"]) == pytest.approx(box[0], abs=0.5)


def test_a_crop_holds_the_boxes_and_stays_in_the_image() -> None:
    assert crop_box([(40, 40, 60, 60), (50, 50, 80, 70)], 200, 100) == (22, 22, 98, 88)
    assert crop_box([(0, 0, 128, 128)], 128, 128) == (0, 0, 128, 128)
    left, top, right, bottom = crop_box([(50, 50, 51, 51)], 200, 100)
    assert right - left >= 32
    assert bottom - top >= 32
    assert crop_box([(199.5, 99.5, 200, 100)], 200, 100)[2:] == (200, 100)
    assert crop_box([(0, 0, 1, 1)], 1, 1) == (0, 0, 1, 1)


def test_crops_shrink_and_then_get_fewer_to_fit(right: DatasetIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, _ = planted(right)
    suspects = ranked(right, dataset).suspects
    fine = make_crops(suspects, 10**6)
    size = sum(len(crop.uri) for crop in fine)
    assert len(fine) == 5
    assert max(max(crop.width, crop.height) for crop in fine) <= 320
    coarse = make_crops(suspects, size - 1)
    assert len(coarse) == 5
    assert sum(len(crop.uri) for crop in coarse) < size
    assert make_crops(suspects, 10) == []
    monkeypatch.setattr("anchorite.report.suspects._CROP_SIZES", ((320, 82),))
    sizes = [len(crop.uri) for crop in fine]
    assert len(make_crops(suspects, sum(sizes[:3]))) == 3
    assert len(make_crops(suspects, sum(sizes[:3]) - 1)) == 2
    gone = replace(suspects[0], image=Path("gone.png"))
    with pytest.raises(InputError, match=r"gone\.png"):
        make_crops([gone], 10**6)
