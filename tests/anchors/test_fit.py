"""Fitting anchors: recall counted by hand, and a fit that beats the default on data the default does not suit."""

from __future__ import annotations

import numpy as np
import pytest

from anchorite.anchors import AnchorSet, best_possible_recall, fit_anchors, mean_agreement
from anchorite.errors import InputError


def test_recall_by_hand() -> None:
    anchors = AnchorSet.from_rows([[10, 10], [40, 40]], (8, 16))
    # Matched: ratios 1 and 3.9; not matched: 160 / 40 = 4 is not under 4, and 41 / 10 with 10 / 41 fails on both.
    wh_px = np.array([[10.0, 10.0], [39.0, 39.0], [160.0, 40.0], [2.4, 10.0]])
    assert best_possible_recall(wh_px, anchors) == 0.5
    assert mean_agreement(wh_px, anchors) == pytest.approx((1 + 39 / 40) / 4)
    assert best_possible_recall(np.zeros((0, 2)), anchors) == 1.0


def test_fit_suits_the_data_better_and_repeats() -> None:
    generator = np.random.default_rng(0)
    wh_px = np.exp(generator.normal(np.log([300, 20]), 0.3, (400, 2)))
    default = AnchorSet.coco_p5()
    fitted = fit_anchors(wh_px, (8, 16, 32), generations=200, seed=1)
    assert best_possible_recall(wh_px, default) < 0.7
    assert best_possible_recall(wh_px, fitted) > 0.99
    assert mean_agreement(wh_px, fitted) > 0.8
    assert fitted == fit_anchors(wh_px, (8, 16, 32), generations=200, seed=1)
    areas = np.array(fitted.sizes_px).prod(axis=2).mean(axis=1)
    assert (np.diff(areas) > 0).all()


def test_refinement_never_makes_it_worse() -> None:
    wh_px = np.random.default_rng(3).uniform(5, 200, (300, 2))
    plain = fit_anchors(wh_px, (8, 16), num_anchors=2, generations=0)
    refined = fit_anchors(wh_px, (8, 16), num_anchors=2, generations=300)
    assert mean_agreement(wh_px, refined) >= mean_agreement(wh_px, plain) - 0.005
    assert mean_agreement(wh_px, refined) > 0.6


def test_too_few_boxes_are_refused() -> None:
    with pytest.raises(InputError, match="9 anchors cannot be fitted to 1 distinct"):
        fit_anchors(np.full((50, 2), 30.0), (8, 16, 32))
