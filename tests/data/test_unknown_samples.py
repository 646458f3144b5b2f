"""What labels do not know, on its way into batches: ignore regions, weights, covered classes, background weights.

The truth is painted: a region is a rectangle of an image, and where its pixels end up the plan alone decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorite.anchors import AnchorSet
from anchorite.boxes import LabelCoverage, Targets
from anchorite.data import device as device_module
from anchorite.data.augment import (
    NO_JITTER,
    AugmentConfig,
    SamplePlan,
    SamplePlans,
    Scratch,
    draw_warped,
    paint,
    seen_extents,
)
from anchorite.data.batches import Batch, Capacities, EpochBatches, LoaderConfig, label_tensors
from anchorite.data.dataset import NO_CLASS, LabelSource, Record
from anchorite.data.device import DevicePainter, DeviceStore
from anchorite.data.host_loader import HostPainter
from anchorite.data.loader import Loader
from anchorite.data.samples import CELL_PX, SampleConfig, SampleKey, TrainSamples
from anchorite.data.store import ImageStore
from anchorite.loss import DetectionLoss
from tests.data.plan_cases import gathered
from tests.data.test_samples import EVERYTHING, make_records

SIZE, CLASSES = 160, 3
INWARDS = np.array([1, 1, -1, -1])
SOURCES = (
    LabelSource("all"),
    LabelSource("some", (True, True, True), 0.5),
    LabelSource("few", (True, True, False), 0.25),
)
MOSAIC = AugmentConfig(min_visible=0.0, min_side_px=0.0)
CONFIGS = {
    "letterbox": AugmentConfig.none(),
    "mosaic": MOSAIC,
    "flips": MOSAIC.model_copy(update={"flip_horizontal": 1.0, "flip_vertical": 1.0, "mosaic": 0.5}),
    "turns": MOSAIC.model_copy(update={"rotation": 180.0, "scale": 0.4}),
    "shear": MOSAIC.model_copy(update={"shear": 20.0, "mosaic": 0.5}),
    "mixup": MOSAIC.model_copy(update={"mixup": 1.0, "rotation": 30.0, "mosaic": 0.6}),
}


class Masks:
    """A store of masks: of each record, one region of its image in white, or the whole of it."""

    def __init__(self, samples: TrainSamples, shown: dict[int, np.ndarray]) -> None:
        self.records, self.sizes_hw, self.shown = samples.store.records, samples.store.sizes_hw, shown

    def image(self, index: int) -> np.ndarray:
        height, width = self.sizes_hw[index]
        mask = np.zeros((height, width, 3), np.uint8)
        if (box := self.shown.get(index)) is not None:
            record = self.records[index]
            scale = np.tile([width / record.width, height / record.height], 2)
            x0, y0, x1, y1 = np.rint(box * scale).astype(int)
            mask[y0:y1, x0:x1] = 255
        return mask


def records_of(folder: Path, num_records: int = 6) -> list[Record]:
    """Images with up to four boxes: of some, two are ignored regions; weights, and a source of three in turn."""
    records = []
    for number, record in enumerate(make_records(folder, num_records)):
        region = np.array([[0.0, 0.0, record.width, record.height / 2], [30, 40, 62, 76]])[: number % 3]
        boxes = np.concatenate([record.boxes_xyxy, region])
        class_ids = np.concatenate([record.class_ids % 2, [NO_CLASS, 2][: number % 3]]).astype(np.int64)
        ignored = np.arange(len(boxes)) >= len(record.boxes_xyxy)
        weights = np.linspace(0, 1, len(boxes), dtype=np.float32)
        areas, origins = np.ones(len(boxes)), ("",) * len(boxes)
        source = SOURCES[number % 3]
        changed = replace(record, boxes_xyxy=boxes, class_ids=class_ids, ignored=ignored, areas=areas)
        records.append(replace(changed, origins=origins, weights=weights, source=source))
    return records


def samples_of(records: Sequence[Record], config: AugmentConfig, size: int = SIZE) -> TrainSamples:
    store = ImageStore(records, size, "ram")
    store.build()
    return TrainSamples(store, SampleConfig(config, size, 5))


def plans_of(samples: TrainSamples, epochs: int = 4, size: int = SIZE) -> SamplePlans:
    return samples.plan([SampleKey(epoch, index, size) for epoch in range(epochs) for index in range(len(samples))])


def painted(samples: TrainSamples, plan: SamplePlan, shown: dict[int, np.ndarray]) -> np.ndarray:
    """(S, S) of each layer alone, how white it is."""
    bare = plan._replace(jitter=NO_JITTER)
    canvases = []
    for layer in plan.layers:
        canvas = np.empty((plan.size, plan.size, 3), np.uint8)
        paint(bare._replace(layers=(layer,)), Masks(samples, shown), canvas, Scratch())
        canvases.append(canvas[..., 0])
    return np.stack(canvases)


def extent_of(mask: np.ndarray) -> np.ndarray | None:
    rows, columns = np.nonzero(mask)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) if len(rows) else None


@pytest.mark.parametrize("name", CONFIGS)
def test_a_region_is_where_its_pixels_are_and_no_larger(name: str, tmp_path: Path) -> None:
    box = np.array([[32.0, 40.0, 72.0, 68.0]])
    (record, *_) = make_records(tmp_path, 1)
    record = replace(record, boxes_xyxy=box, class_ids=np.array([0]), ignored=np.array([True]))
    record = replace(record, areas=np.ones(1), origins=("",), weights=np.ones(1, np.float32))
    samples, checked, cut = samples_of([record], CONFIGS[name]), 0, 0
    for plan in plans_of(samples, epochs=24):
        regions = samples.labels(gathered([plan], samples.store.sizes_hw)).ignore_regions
        assert regions is not None
        found = [regions[:, 1:3] - regions[:, 3:] / 2, regions[:, 1:3] + regions[:, 3:] / 2]
        boxes = np.concatenate(found, axis=1) * SIZE
        assert (boxes > -1e-4).all()
        assert (boxes < SIZE + 1e-4).all()
        place = 0
        for layer in plan.layers:
            for tile in layer:
                canvas = np.zeros((SIZE, SIZE, 3), np.uint8)
                draw_warped(Masks(samples, {0: box[0]}).image(0), tile.warp, canvas)
                core, faint = extent_of(canvas[..., 0] > 127), extent_of(canvas[..., 0] > 8)
                if faint is None:
                    continue
                if core is not None:  # what is drawn of a turned image lacks half a source pixel at its edge
                    assert (boxes[place] * INWARDS <= core * INWARDS + 1).all()
                    assert (boxes[place] * INWARDS >= faint * INWARDS - 2.5).all()
                    cut += bool((core <= 0).any() or (core >= SIZE).any())
                    checked += 1
                place += 1
        assert len(regions) - place in range(2)  # one of less than a pixel may have left no trace
    assert checked >= 12
    assert cut or name == "letterbox"


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_what_is_seen_of_a_mapped_box_has_the_extent_of_its_points(seed: int, is_straight: bool) -> None:
    rng = np.random.default_rng(seed)
    maps = np.tile(np.eye(3), (5, 1, 1))
    maps[:, :2, :2] = rng.normal(size=(5, 2, 2)) * (np.eye(2) if is_straight else 1)
    maps[:, :2, 2] = rng.uniform(-4, 4, (5, 2))
    if np.abs(np.linalg.det(maps[:, :2, :2])).min() < 0.1:
        return
    low = rng.uniform(-5, 5, (2, 5, 2))
    box, seen = np.concatenate([low, low + rng.uniform(0.5, 6, (2, 5, 2))], axis=2)
    found = seen_extents(maps, box, seen)
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 101)] * 2), axis=-1).reshape(-1, 2)
    for one_map, one_box, one_seen, extent in zip(maps, box, seen, found, strict=True):
        points = (one_box[:2] + grid * (one_box[2:] - one_box[:2])) @ one_map[:2, :2].T + one_map[:2, 2]
        points = points[((points >= one_seen[:2]) & (points <= one_seen[2:])).all(axis=1)]
        if not len(points):
            assert (extent[2:] - extent[:2]).min() < 0.3
            continue
        assert (points.min(axis=0) >= extent[:2] - 1e-9).all()
        assert (points.max(axis=0) <= extent[2:] + 1e-9).all()
        assert np.abs(np.concatenate([points.min(axis=0), points.max(axis=0)]) - extent).max() < 0.5


def test_a_sliver_of_a_region_stays_where_an_object_would_go(tmp_path: Path) -> None:
    config = AugmentConfig(mosaic=1.0, min_visible=1.0, min_side_px=500.0)
    samples = samples_of(records_of(tmp_path), config)
    labels = samples.labels(plans_of(samples))
    assert not len(labels.rows)
    assert labels.ignore_regions is not None
    assert len(labels.ignore_regions) > 40
    assert labels.ignore_regions[:, 3:].min() * SIZE < 8


def test_objects_are_the_same_with_and_without_regions_and_carry_their_weights_and_sources(tmp_path: Path) -> None:
    records = records_of(tmp_path)
    samples = samples_of(records, EVERYTHING)
    plans = plans_of(samples)
    labels = samples.labels(plans)
    bare = [
        replace(
            one,
            boxes_xyxy=one.boxes_xyxy[~one.ignored],
            class_ids=one.class_ids[~one.ignored],
            areas=one.areas[~one.ignored],
            origins=one.origins[: int((~one.ignored).sum())],
            ignored=one.ignored[~one.ignored],
            weights=None,  # type: ignore[arg-type]
            source=SOURCES[0],
        )
        for one in records
    ]
    plain = samples_of(bare, EVERYTHING)
    found = plain.labels(plans)
    assert found[1:] == (None,) * 5
    assert np.array_equal(found.rows, labels.rows)
    # Of each object its class and number in a record of its own: as its weight and its source.
    for number, record in enumerate(records):
        only = [tile for plan in plans for layer in plan.layers for tile in layer if tile.source == number][:3]
        for tile in only:
            alone = gathered([plans[0]._replace(layers=((tile,),))], samples.store.sizes_hw)
            one = samples.labels(alone)
            assert one.weights is not None
            assert set(one.weights.tolist()) <= set(record.weights[~record.ignored].tolist())
            assert one.sources is not None
            assert set(one.sources.tolist()) <= {number % 3}
    assert labels.weights is not None
    assert (labels.weights.min(), labels.weights.dtype) == (0, np.float32)
    assert labels.covered is not None
    assert labels.covered.tolist() == [[True] * 3, [True] * 3, [True, True, False]]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_background_counts_as_the_tile_that_is_seen_says(name: str, tmp_path: Path) -> None:
    samples = samples_of(records_of(tmp_path), CONFIGS[name])
    plans = plans_of(samples)
    grids = samples.labels(plans).background
    assert grids is not None
    assert grids.shape == (24, SIZE // CELL_PX, SIZE // CELL_PX)
    middles = slice(CELL_PX // 2, None, CELL_PX)
    for plan, grid in zip(plans, grids, strict=True):
        seen = {tile.source for layer in plan.layers for tile in layer}
        # Each record's place is what is white when its images alone are painted white over the black of the others.
        wholes = {
            one: np.array([0, 0, samples.store.records[one].width, samples.store.records[one].height]) for one in seen
        }
        wanted = np.ones((len(plan.layers), *grid.shape))
        edges = np.zeros(wanted.shape, bool)
        for one in seen:
            masks = painted(samples, plan, {one: wholes[one]})
            weight = SOURCES[one % 3].background_weight
            wanted[masks[:, middles, middles] > 127] = weight
            for layer, mask in enumerate(masks):
                near = np.stack([np.roll(mask > 127, (dy, dx), (0, 1)) for dy in (-2, 0, 2) for dx in (-2, 0, 2)])
                edges[layer] |= (near.any(axis=0) & ~near.all(axis=0))[middles, middles]
        clear = ~edges.any(axis=0)
        assert clear.mean() > 0.4
        assert np.array_equal(grid[clear], wanted.min(axis=0)[clear].astype(np.float32))


@pytest.mark.parametrize("part", ["weights", "regions", "covered", "background"])
def test_each_part_is_there_in_every_batch_of_a_split_that_has_it_anywhere(part: str, tmp_path: Path) -> None:
    records = make_records(tmp_path)
    if part == "weights":
        records[3] = replace(records[3], weights=np.array([1, 0.5, 1], np.float32))
    elif part == "regions":
        records[3] = replace(records[3], ignored=np.array([True, False, False]))
    else:
        covered = (True, True, True) if part == "background" else (True, True, False)
        records[4] = replace(records[4], source=LabelSource("b", covered, 0.5 if part == "background" else 1.0))
    samples = samples_of(records, AugmentConfig.none())
    wanted = {"covered": {"sources", "covered"}, "regions": {"ignore_regions"}}.get(part, {part})
    for labels in (samples.labels(samples.plan([SampleKey(0, 0, SIZE)])), samples.parts.no_labels(SIZE)):
        assert {name for name, one in labels._asdict().items() if one is not None} == {"rows", *wanted}


def same(one: Batch, other: Batch) -> bool:
    """Whether images, objects, weights, sources and coverage are equal bit for bit, fillings left out."""
    return all(torch.equal(mine, theirs) for mine, theirs in zip(tensors(one), tensors(other), strict=True))


def tensors(batch: Batch) -> list[torch.Tensor]:
    targets, coverage = batch.targets.compact(), batch.coverage
    assert coverage is not None
    regions = coverage.ignore_regions
    assert regions is not None
    found = [batch.images, batch.indices, targets.rows, targets.weights, targets.sources, regions[regions[:, 3] > 0]]
    found += [coverage.covered_classes, coverage.background_weight]
    assert all(one is not None for one in found)
    return found  # type: ignore[return-value]


def batches_of(samples: TrainSamples, **options: Any) -> list[Batch]:
    with Loader(HostPainter(EpochBatches(samples, LoaderConfig(batch_size=4, **options)))) as loader:
        loader.set_epoch(1)
        return list(loader)


def test_workers_and_the_device_make_the_same_labels(tmp_path: Path) -> None:
    records = records_of(tmp_path, 11)
    samples = samples_of(records, EVERYTHING)
    alone = batches_of(samples)
    assert len(alone) == 3
    assert all(map(same, alone, batches_of(samples, workers=2)))
    store = DeviceStore(records, SIZE, "cpu")
    store.build()
    with Loader(DevicePainter(EpochBatches(samples, LoaderConfig(batch_size=4)), store)) as loader:
        assert "ignore regions to 64" in loader.painter.capacity_reason  # type: ignore[union-attr]
        loader.set_epoch(1)
        shapes = set()
        for batch, other in zip([*loader, loader.painter.empty], [*alone, batches_of(samples)[0]], strict=True):
            if len(batch.indices):
                assert same(replace(batch, images=other.images), other)
            assert batch.coverage is not None
            assert batch.coverage.ignore_regions is not None
            assert batch.targets.weights is not None
            shapes.add((batch.coverage.ignore_regions.shape, batch.targets.weights.shape))
    assert len(shapes) == 1


def test_a_batch_with_more_regions_than_rows_gets_more_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "CAPACITY_STEP", 2)
    monkeypatch.setattr(device_module, "choose_capacities", lambda *_: (Capacities(2, 2), "given"))
    records = records_of(tmp_path)
    samples, store = samples_of(records, MOSAIC), DeviceStore(records, SIZE, "cpu")
    store.build()
    with Loader(DevicePainter(EpochBatches(samples, LoaderConfig(batch_size=4)), store)) as loader:
        loader.set_epoch(1)
        for batch, other in zip(loader, batches_of(samples), strict=True):
            assert same(replace(batch, images=other.images), other)


def test_the_loss_of_a_batch_is_that_of_labels_made_by_hand(tmp_path: Path) -> None:
    config = AugmentConfig.none()
    samples = samples_of(records_of(tmp_path, 3), config, 64)
    keys = [SampleKey(0, index, 64) for index in range(3)]
    labels = samples.labels(samples.plan(keys))
    from_loader, coverage = label_tensors(labels)
    rows, weights, sources, regions = [], [], [], []
    background = torch.ones(3, 8, 8)
    for number, record in enumerate(samples.store.records):
        longer = max(record.width, record.height)
        pad = np.array([longer - record.width, longer - record.height]) / 2
        for box, class_id, ignored, weight in zip(
            record.boxes_xyxy, record.class_ids, record.ignored, record.weights, strict=True
        ):
            box = (box + np.tile(pad, 2)) / longer
            place = [*((box[:2] + box[2:]) / 2), *(box[2:] - box[:2])]
            if ignored:
                regions.append([number, *place])
                continue
            rows.append([number, class_id, *place])
            weights.append(weight)
            sources.append(number)
        # A cell lies on the image where its middle does: 160 x 120, 150 x 200 and 90 x 90 in 64 x 64.
        (top, bottom), (left, right) = [((1, 7), (0, 8)), ((0, 8), (1, 7)), ((0, 8), (0, 8))][number]
        background[number, top:bottom, left:right] = record.source.background_weight
    covered = torch.tensor([[True] * 3, [True] * 3, [True, True, False]])
    targets = Targets.from_rows(
        torch.tensor(np.array(rows), dtype=torch.float32), torch.tensor(weights), sources=torch.tensor(sources)
    )
    by_hand = LabelCoverage(torch.tensor(np.array(regions), dtype=torch.float32), covered, background)
    anchors = AnchorSet.from_rows([[10, 13, 30, 23], [40, 30, 50, 60]], [8, 16])
    logits = [torch.randn(3, 2, 5 + CLASSES, side, side, generator=torch.Generator().manual_seed(1)) for side in (8, 4)]
    criterion = DetectionLoss(anchors, CLASSES)
    found, wanted = criterion(logits, from_loader, coverage), criterion(logits, targets, by_hand)
    for name, one, other in zip(found._fields, found, wanted, strict=True):
        assert one.item() == pytest.approx(other.item(), rel=1e-4), name
    plain = criterion(logits, Targets.from_rows(from_loader.rows))
    assert all(abs(one - other) > 1e-3 for one, other in zip(plain, found, strict=True))
