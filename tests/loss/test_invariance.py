"""What must not change the loss: repetition, order, mirroring, renaming; and what batches have to do with singles.

The loss of a batch is a mean over candidates, so it is no sum of the losses of its images in general. What does hold:
the objectness term is the mean of those of the images; the box and class terms of one level are the mean of those of
the images weighted by their candidates; where all images have equally many candidates, every term is the plain mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from anchorite.anchors import AnchorSet
from tests import oracle
from tests.loss.cases import Case, random_case
from tests.unchecked import unchecked_shapes

SEEDS = range(18)


@pytest.fixture(autouse=True)
def _unchecked() -> Iterator[None]:
    with unchecked_shapes():  # test_oracle.py has them checked, on cases such as these
        yield


def terms_of(case: Case) -> np.ndarray:
    """Total, box, objectness, class."""
    compact, padded = (np.array([term.item() for term in case.package_terms(spare)]) for spare in (None, 2))
    np.testing.assert_allclose(compact, padded, rtol=1e-13)
    return compact


def assert_same(one: np.ndarray, other: np.ndarray) -> None:
    np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-14)


def generic_case(seed: int, **options: object) -> Case:
    """A case whose centres lie off all borders, so that moving them by a rounding changes no decision."""
    case = random_case(seed).with_settings(**options)
    rows, rng = case.rows.copy(), np.random.default_rng(seed)
    rows[:, 2:4] = rng.uniform(0.01, 0.99, (len(rows), 2))
    rows[:, 4:] *= rng.uniform(0.97, 1.03, (len(rows), 2))
    return replace(case, rows=rows)


def single(case: Case, image: int) -> Case:
    rows = case.rows[case.rows[:, 0] == image].copy()
    rows[:, 0] = 0
    return replace(case, num_images=1, rows=rows, logits=tuple(level[image : image + 1] for level in case.logits))


def num_candidates(case: Case) -> int:
    return sum(
        len(oracle.candidates(case.rows, case.anchors_cells[number], *grid, case.settings.ratio_limit))
        for number, grid in enumerate(case.grids)
    )


def test_the_cases_of_this_page_match_something() -> None:
    assert sum(num_candidates(generic_case(seed)) for seed in SEEDS) > 5 * len(SEEDS)


@pytest.mark.parametrize("collision", ["last", "best"])
def test_batch_twice_over_has_the_same_terms_and_twice_the_total(collision: str) -> None:
    for seed in SEEDS:
        case = random_case(seed).with_settings(collision=collision)
        again = case.rows.copy()
        again[:, 0] += case.num_images
        rows = np.concatenate([case.rows, again])
        logits = tuple(np.concatenate([level, level]) for level in case.logits)
        twice = terms_of(replace(case, num_images=2 * case.num_images, rows=rows, logits=logits))
        assert_same(twice, terms_of(case) * [2, 1, 1, 1])


def test_objectness_of_a_batch_is_the_mean_of_its_images() -> None:
    for seed in SEEDS:
        case = random_case(seed)
        singles = [terms_of(single(case, image))[2] for image in range(case.num_images)]
        assert_same(terms_of(case)[2], np.mean(singles))


def test_terms_of_one_level_are_means_weighted_by_candidates() -> None:
    compared = 0
    for seed in range(250):
        case = random_case(seed)
        if len(case.grids) > 1 or case.num_images == 1:
            continue
        parts = [single(case, image) for image in range(case.num_images)]
        counts = np.array([num_candidates(part) for part in parts])
        terms = np.array([terms_of(part) for part in parts])
        expected = (counts[:, None] * terms).sum(0) / max(counts.sum(), 1)
        assert_same(terms_of(case)[[1, 3]], expected[[1, 3]])
        compared += np.count_nonzero(counts) > 1
    assert compared > 5


def test_images_with_the_same_objects_sum_to_the_batch() -> None:
    for seed in SEEDS:
        case = random_case(seed)
        rows = np.concatenate([case.rows] * case.num_images)
        rows[:, 0] = np.repeat(np.arange(case.num_images), len(case.rows))
        case = replace(case, rows=rows)
        singles = np.array([terms_of(single(case, image)) for image in range(case.num_images)])
        assert_same(terms_of(case)[1:], singles.mean(0)[1:])
        assert_same(terms_of(case)[0], singles.sum(0)[0])


def test_an_empty_image_changes_only_the_objectness() -> None:
    for seed in SEEDS:
        case = random_case(seed)
        rng = np.random.default_rng(seed)
        logits = tuple(np.concatenate([level, rng.standard_normal((1, *level.shape[1:]))]) for level in case.logits)
        more = terms_of(replace(case, num_images=case.num_images + 1, logits=logits))
        assert_same(more[[1, 3]], terms_of(case)[[1, 3]])


def test_order_of_images_does_not_count() -> None:
    for seed in SEEDS:
        case = random_case(seed)
        order = np.random.default_rng(seed).permutation(case.num_images)
        rows = case.rows.copy()
        rows[:, 0] = np.argsort(order)[case.rows[:, 0].astype(int)]
        assert_same(
            terms_of(replace(case, rows=rows, logits=tuple(level[order] for level in case.logits))), terms_of(case)
        )


def test_order_of_objects_counts_only_in_collisions() -> None:
    for seed in SEEDS:
        case = random_case(seed)
        rows = case.rows[np.random.default_rng(seed).permutation(len(case.rows))]
        before, after = terms_of(case), terms_of(replace(case, rows=rows))
        assert_same(before[[1, 3]], after[[1, 3]])
        free = case.with_settings(collision="best")
        assert_same(terms_of(replace(free, rows=rows)), terms_of(free))


def test_order_does_count_for_the_last_of_a_collision() -> None:
    def turns_on_the_order(seed: int) -> bool:
        case = random_case(seed).with_settings(collision="last", objectness_iou_ratio=1.0)
        return bool(abs(terms_of(case)[2] - terms_of(replace(case, rows=case.rows[::-1].copy()))[2]) > 1e-9)

    assert any(turns_on_the_order(seed) for seed in range(200))


def test_names_of_classes_do_not_count() -> None:
    for seed in SEEDS:
        case = random_case(seed)
        order = np.random.default_rng(seed).permutation(case.num_classes)
        rows, channels = case.rows.copy(), [*range(5), *(5 + order)]
        rows[:, 1] = np.argsort(order)[case.rows[:, 1].astype(int)]
        logits = tuple(level[:, :, channels] for level in case.logits)
        assert_same(terms_of(replace(case, rows=rows, logits=logits)), terms_of(case))


def test_order_of_anchors_does_not_count() -> None:
    for seed in SEEDS:
        case = random_case(seed)
        order = np.random.default_rng(seed).permutation(case.anchors.num_anchors)
        sizes = tuple(tuple(row[number] for number in order) for row in case.anchors.sizes_px)
        logits = tuple(level[:, order] for level in case.logits)
        other = replace(case, anchors=AnchorSet(sizes, case.anchors.strides), logits=logits)
        assert_same(terms_of(other), terms_of(case))


def mirrored(case: Case, axis: int) -> Case:
    """The case seen in a mirror: axis 0 left to right, axis 1 upside down."""
    rows = case.rows.copy()
    rows[:, 2 + axis] = 1 - rows[:, 2 + axis]
    logits = []
    for level in case.logits:
        flipped = np.flip(level, axis=4 - axis).copy()
        flipped[:, :, axis] *= -1
        logits.append(flipped)
    return replace(case, rows=rows, logits=tuple(logits))


@pytest.mark.parametrize("axis", [0, 1])
def test_mirroring_does_not_count(axis: int) -> None:
    # Left and right change places in canonical order, so collisions must not turn on it.
    for seed in SEEDS:
        case = generic_case(seed, collision="best")
        assert_same(terms_of(mirrored(case, axis)), terms_of(case))


def test_exchanging_the_axes_does_not_count() -> None:
    for seed in SEEDS:
        case = generic_case(seed, collision="best")
        anchors = AnchorSet(tuple(tuple((h, w) for w, h in row) for row in case.anchors.sizes_px), case.anchors.strides)
        channels = [1, 0, 3, 2, 4, *range(5, 5 + case.num_classes)]
        other = replace(
            case,
            anchors=anchors,
            grids=tuple((width, height) for height, width in case.grids),
            rows=case.rows[:, [0, 1, 3, 2, 5, 4]],
            logits=tuple(level[:, :, channels].swapaxes(3, 4).copy() for level in case.logits),
        )
        assert_same(terms_of(other), terms_of(case))
