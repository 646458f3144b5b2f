"""New splits of a dataset: every class in its share in each split, and images of one view never in two splits.

Iterative stratification (Sechidis, Tsoumakas, Vlahavas 2011, "On the stratification of multi-label data"), of groups of
images instead of single ones. Legend: N images, G groups, S splits, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from anchorite.data import DatasetIndex, LeftOut, as_split, without_images
from anchorite.errors import InputError
from anchorite.inspect.similar import Progress, same_pixels, scan_images, similar_pairs


def resplit(
    dataset: DatasetIndex,
    shares: Mapping[str, float],
    seed: int = 0,
    keep: Sequence[str] = (),
    progress: Progress | None = None,
) -> tuple[DatasetIndex, list[int]]:
    """The dataset with its images, but for the splits in `keep`, distributed to splits in the given shares, which sum
    to 1; and how many images each group of two or more of one view has, all of which are in one split.

    Every image is decoded once, to find those of one view; progress is called with (images decoded, images in all). An
    image in several of these splits is taken once. The order of images within a split is that of the
    dataset. The same input and seed give the same splits. Images that cannot be decoded are left out where the dataset
    was opened with skip_bad. Raises InputError where it was not, or where there are too few groups of images for every
    split to get one.
    """
    pool = replace(dataset, splits={name: records for name, records in dataset.splits.items() if name not in keep})
    images = list({image.record.path: image for image in scan_images(pool, progress)}.values())
    damaged = [image for image in images if image.error is not None]
    if damaged and not dataset.skip_bad:
        raise InputError(
            f"{damaged[0].record.path}: {damaged[0].error}; remove it, leave it out by --skip-bad (skip_bad=True), or "
            "correct the dataset by `anchorite inspect --fix`"
        )
    for image in damaged:
        dataset = without_images(dataset, image.split, [LeftOut(image.record.path, str(image.error))])
    images = [image for image in images if image.error is None]
    number_of = {image.record.path: number for number, image in enumerate(images)}
    pairs = [
        (number_of[one.record.path], number_of[two.record.path]) for one, *more in same_pixels(images) for two in more
    ]
    if len(images) > 1:
        thumbnails = np.stack([image.thumbnail for image in images])
        pairs += [pair[:2] for pair in similar_pairs(thumbnails, np.zeros(len(images), np.int64))]
    groups = connected(len(images), pairs)
    num_classes = len(dataset.class_names)
    # Regions without a class, NO_CLASS = -1, are counted first, and not used.
    counted = [np.bincount(one.record.class_ids + 1, minlength=num_classes + 1)[1:] for one in images]
    counts = np.array(counted, np.float64)
    owner = stratified(groups, counts.reshape(len(images), num_classes), list(shares.values()), seed)
    splits = {
        name: as_split([image.record for image, split in zip(images, owner, strict=True) if split == number])
        for number, name in enumerate(shares)
    }
    for name, records in splits.items():
        if not records:
            views = "1 view is" if len(groups) == 1 else f"{len(groups)} different views are"
            raise InputError(
                f"{dataset.root}: {views} too few for a split {name} of {shares[name]:.0%}; add images, give it a "
                "larger share, or leave it out"
            )
    kept = {name: dataset.splits[name] for name in keep}
    return replace(dataset, splits=splits | kept), [len(group) for group in groups if len(group) > 1]


def take_val(dataset: DatasetIndex, share: float, seed: int = 0, progress: Progress | None = None) -> DatasetIndex:
    """The dataset with a split val, which gets this share of the images of train: `resplit` of train alone.

    Raises InputError as `require_no_val` and `resplit` do.
    """
    require_no_val(dataset)
    splits = {name: records for name, records in dataset.splits.items() if name != "val"}
    others = [name for name in splits if name != "train"]
    whole = replace(dataset, splits=splits)
    return resplit(whole, {"train": 1 - share, "val": share}, seed, others, progress)[0]


def require_no_val(dataset: DatasetIndex) -> None:
    """InputError where no images of train can become a split val: where there is one already, and of shards, which are
    read in their order."""
    says, remedy = "--val (val_share) takes images of train to validate on", "anchorite split DATA NEW_FOLDER --val 0.2"
    if val := dataset.split("val"):
        raise InputError(
            f"{says}, but {dataset.root} has a split val of {len(val)} images; leave it out, or divide anew: {remedy}"
        )
    if dataset.split("train").is_shuffled:
        raise InputError(f"{says}, but {dataset.root} is in shards; divide what they were made of: {remedy}")


def connected(num_items: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """The connected groups of items 0 to num_items - 1 under pairs of them, each rising, ordered by their first."""
    group_of = [[item] for item in range(num_items)]
    for first, second in pairs:
        if group_of[first] is not group_of[second]:
            small, large = sorted((group_of[first], group_of[second]), key=len)
            large += small
            for item in small:
                group_of[item] = large
    groups = {id(group): group for group in group_of}
    return [sorted(group) for group in groups.values()]


def stratified(
    groups: Sequence[Sequence[int]], counts: NDArray[np.float64], shares: Sequence[float], seed: int
) -> NDArray[np.int64]:
    """The split (N,) of each image: images of a group in the same, each class of `counts` (N, K) in its share.

    The rarest class that is left goes first, to the split that lacks most of it; images without boxes go last. A split
    that has its share of images gets no more while another lacks some.
    """
    rng = np.random.default_rng(seed)
    sizes = np.array([len(group) for group in groups], np.float64)
    of_group = np.array([counts[list(group)].sum(axis=0) for group in groups]).reshape(len(groups), counts.shape[1])
    part = np.array(shares, np.float64)
    lacking = part[:, None] * of_group.sum(axis=0)  # (S, K) boxes that each split has yet to get
    lacking_images = part * sizes.sum()
    chance = rng.permutation(len(groups))
    owner = np.full(len(counts), -1)
    is_waiting = np.ones(len(groups), np.bool_)

    def give(group: int, wish: NDArray[np.float64]) -> None:
        open_splits = lacking_images > 0.5
        allowed = open_splits if open_splits.any() else part > 0
        split = int(np.lexsort((rng.permutation(len(part)), lacking_images, np.where(allowed, wish, -np.inf)))[-1])
        owner[list(groups[group])], is_waiting[group] = split, False
        lacking[split] -= of_group[group]
        lacking_images[split] -= sizes[group]

    while (left := of_group[is_waiting].sum(axis=0)).any():
        rarest = int(np.where(left > 0, left, np.inf).argmin())
        having = np.flatnonzero(is_waiting & (of_group[:, rarest] > 0))
        # The largest first, while there is room to make up for them.
        for group in having[np.lexsort((chance[having], -of_group[having, rarest]))].tolist():
            give(group, lacking[:, rarest])
    without_boxes = np.flatnonzero(is_waiting)
    for group in without_boxes[np.argsort(chance[without_boxes])].tolist():
        give(group, lacking_images)
    return owner
