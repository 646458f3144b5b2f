"""Validation batches: every image once, little padding, boxes back where they came from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from anchorite.data.batches import letterboxed_batches, plan_letterboxed
from anchorite.data.images import FILL, letterbox, rectangular_size
from anchorite.data.store import ImageStore
from anchorite.errors import InputError
from tests.data.test_samples import make_records


@pytest.mark.parametrize("rectangular", [True, False])
@pytest.mark.parametrize("from_store", [True, False])
def test_every_image_comes_once_as_letterboxed_alone(tmp_path: Path, rectangular: bool, from_store: bool) -> None:
    records = make_records(tmp_path, 11)
    store = ImageStore(records, 128, "ram")
    store.build()
    source = store if from_store else records
    seen = []
    for batch in letterboxed_batches(source, 128, 4, stride=32, rectangular=rectangular):
        assert batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        height, width = batch.images.shape[2:]
        assert height % 32 == width % 32 == 0
        assert max(height, width) == 128
        for image, transform, index in zip(batch.images, batch.transforms, batch.indices.tolist(), strict=True):
            expected, _ = letterbox(store.image(index), (height, width))
            assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)
            assert transform.source_size_hw == (records[index].height, records[index].width)
            boxes = transform.to_network(records[index].boxes_xyxy)
            for class_id, box in zip(records[index].class_ids, boxes, strict=True):
                x0, y0, x1, y1 = box.round().astype(int)
                assert np.median(expected[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2, class_id]) > 200
        seen += batch.indices.tolist()
    assert sorted(seen) == list(range(11))


def test_rectangular_batches_pad_less_and_square_ones_keep_the_order(tmp_path: Path) -> None:
    records = make_records(tmp_path, 12)
    square = plan_letterboxed(records, 128, 4, rectangular=False)
    assert [index for plan in square for index in plan.indices] == list(range(12))
    assert {plan.size_hw for plan in square} == {(128, 128)}
    tight = plan_letterboxed(records, 128, 4)
    assert {plan.size_hw for plan in tight} == {(96, 128), (128, 128), (128, 96)}
    assert sorted(index for plan in tight for index in plan.indices) == list(range(12))
    for plan in tight:
        assert {rectangular_size((records[i].height, records[i].width), 128, 32) for i in plan.indices} == {
            plan.size_hw
        }


def test_an_images_input_does_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    records = make_records(tmp_path, 12)
    by_batch_size = [
        {index: plan.size_hw for plan in plan_letterboxed(records, 128, batch) for index in plan.indices}
        for batch in (1, 5, 12)
    ]
    assert by_batch_size[0] == by_batch_size[1] == by_batch_size[2]


def test_a_store_of_another_size_is_resized(tmp_path: Path) -> None:
    records = make_records(tmp_path, 4)
    store = ImageStore(records, 200, "ram")
    store.build()
    for batch in letterboxed_batches(store, 128, 2):
        assert max(batch.images.shape[2:]) == 128
        covered = (batch.images != FILL).any(dim=1).float().mean()
        assert covered > 0.7


def test_a_size_that_is_no_multiple_of_the_stride_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="take 160"):
        plan_letterboxed(make_records(tmp_path, 1), 150, 4)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    records = make_records(tmp_path, 4)
    records[2].path.write_bytes(b"")
    with pytest.raises(InputError, match=r"image 2\.png"):
        list(letterboxed_batches(records, 128, 2))
