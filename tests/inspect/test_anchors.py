"""Boxes against anchors, by the loss's own ratio test."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from anchorite.anchors import AnchorSet, best_possible_recall
from anchorite.inspect.anchors import how_far_off, levels_that_match, what_would_match
from tests.inspect.samples import inspected, yolo_folder

ANCHORS = AnchorSet.coco_p5()


def test_the_limit_is_strict() -> None:
    wh_px = np.array([[39.9, 13.0], [40.0, 13.0], [10.0, 3.25], [10.0, 3.3]])
    alone = AnchorSet.from_rows([[10, 13]], (8,))
    assert levels_that_match(wh_px, alone, 640)[0].tolist() == [True, False, False, True]


def test_it_agrees_with_the_best_possible_recall_of_each_level() -> None:
    wh_px = np.exp(np.random.default_rng(0).uniform(np.log(0.5), np.log(640), (3000, 2)))
    matched = levels_that_match(wh_px, ANCHORS, 640)
    assert matched.shape == (3, 3000)
    for level, row in enumerate(ANCHORS.to_rows()):
        alone = AnchorSet.from_rows([row], (ANCHORS.strides[level],))
        assert matched[level].mean() == pytest.approx(best_possible_recall(wh_px, alone))
    assert matched.any(axis=0).mean() == pytest.approx(best_possible_recall(wh_px, ANCHORS))


def matching_sizes(width: float, height: float) -> set[int]:
    """The image sizes, multiples of 32, at which a box of these sides at 640 px is matched, tried one by one."""
    sizes = np.arange(32, 4097, 32)
    matched = levels_that_match(sizes[:, None] / 640 * np.array([[width, height]]), ANCHORS, 640).any(axis=0)
    return set(sizes[matched].tolist())


def test_the_sizes_that_are_named_are_the_nearest_that_match() -> None:
    wh_px = np.exp(np.random.default_rng(1).uniform(np.log(0.4), np.log(640), (400, 2)))
    missed = wh_px[~levels_that_match(wh_px, ANCHORS, 640).any(axis=0)]
    assert len(missed) > 50
    for width, height in missed:
        sizes = matching_sizes(width, height)
        nearest = [(min(size for size in sizes if size > 640), "more")] if any(size > 640 for size in sizes) else []
        nearest += [(max(size for size in sizes if size < 640), "less")] if any(size < 640 for size in sizes) else []
        advice = what_would_match(width, height, ANCHORS, 640)
        assert [(int(size), word) for size, word in re.findall(r"(\d+) or (more|less)", advice)] == nearest
        assert ("only" in advice) == (not nearest)


def test_how_far_off_is_said_in_words() -> None:
    alone = AnchorSet.from_rows([[10, 20]], (8,))
    assert how_far_off(50, 20, alone) == "5.0 x wider than the nearest anchor, 10 x 20"
    assert how_far_off(2, 20, alone) == "5.0 x narrower than the nearest anchor, 10 x 20"
    assert how_far_off(10, 120, alone) == "6.0 x taller than the nearest anchor, 10 x 20"
    assert how_far_off(20, 4, alone) == "5.0 x flatter than the nearest anchor, 10 x 20"


def test_unmatched_and_tiny_boxes_are_found_at_the_size_asked_for(tmp_path: Path) -> None:
    # In an image of 128 px at 640 px: 1.28 x 9.6 px; 0.64 x 9.6 px; a box that fits.
    rows = "0 0.5 0.5 0.002 0.02\n0 0.4 0.4 0.001 0.02\n1 0.5 0.5 0.2 0.2\n"
    inspection = inspected(yolo_folder(tmp_path, {"train": {"a": rows}}))
    by_kind = {finding.kind: finding for finding in inspection.findings}
    assert by_kind["small-box"].origin == str(tmp_path / "labels/train/a.txt:1")
    assert by_kind["sub-pixel-box"].origin == str(tmp_path / "labels/train/a.txt:2")
    unmatched = [finding for finding in inspection.findings if finding.kind == "unmatched-box"]
    assert [finding.origin for finding in unmatched] == [str(tmp_path / f"labels/train/a.txt:{row}") for row in (1, 2)]
    assert "7.8 x narrower than the nearest anchor, 10 x 13" in unmatched[0].detail
    assert "an image size of 1280 or more" in unmatched[0].detail
    assert inspection.anchor_fit.recall == pytest.approx(1 / 3)
    larger = inspected(tmp_path, image_size=1280)
    assert larger.counts()["unmatched-box"] == 1
    assert larger.counts()["small-box"] == 1
