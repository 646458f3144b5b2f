"""New splits of a dataset: every class in its share in each split, and images of one view never in two splits.

Iterative stratification (Sechidis, Tsoumakas, Vlahavas 2011, "On the stratification of multi-label data"), of groups of
images instead of single ones. Legend: N images, G groups, S splits, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from anchorite.data import DatasetIndex, as_split
from anchorite.errors import InputError
from anchorite.inspect.similar import Progress, same_pixels, scan_images, similar_pairs


@dataclass(frozen=True, slots=True)
class Resplit:
    """A dataset with new splits. groups: how many groups of two or more images of one view were kept together, and of
    how many images."""

    dataset: DatasetIndex
    num_groups: int
    num_grouped_images: int


def resplit(
    dataset: DatasetIndex,
    shares: Mapping[str, float],
    seed: int = 0,
    keep: Sequence[str] = (),
    progress: Progress | None = None,
) -> Resplit:
    """Distribute all images of the splits that are not in `keep` to splits in the given shares, which sum to 1.

    Every image is decoded once, to find those of one view; progress is called with (images decoded, images in all). An
    image in several of these splits is taken once. The order of images within a split is that of the
    dataset. The same input and seed give the same splits. Raises InputError where an image cannot be decoded, or where
    there are too few groups of images for every split to get one.
    """
    pool = replace(dataset, splits={name: records for name, records in dataset.splits.items() if name not in keep})
    images = list({image.record.path: image for image in scan_images(pool, progress)}.values())
    for image in images:
        if image.error is not None:
            raise InputError(
                f"{image.record.path}: {image.error}; remove it, or correct the dataset by `anchorite inspect --fix`"
            )
    number_of = {image.record.path: number for number, image in enumerate(images)}
    twins = [[number_of[image.record.path] for image in group] for group in same_pixels(images)]
    pairs = [(group[0], number) for group in twins for number in group]
    if len(images) > 1:
        thumbnails = np.stack([image.thumbnail for image in images])
        pairs += [(pair.first, pair.second) for pair in similar_pairs(thumbnails, np.zeros(len(images), np.int64))]
    groups = connected(len(images), pairs)
    counts = np.zeros((len(images), len(dataset.class_names)))
    for number, image in enumerate(images):
        np.add.at(counts[number], image.record.class_ids, 1)
    owner = stratified(groups, counts, list(shares.values()), seed)
    splits = {
        name: tuple(image.record for image, split in zip(images, owner, strict=True) if split == number)
        for number, name in enumerate(shares)
    }
    empty = [name for name, records in splits.items() if not records]
    if empty:
        views = "1 view is" if len(groups) == 1 else f"{len(groups)} different views are"
        raise InputError(
            f"{dataset.root}: {views} too few for a split {empty[0]} of {shares[empty[0]]:.0%}; add images, give it a "
            "larger share, or leave it out"
        )
    unchanged = {name: dataset.splits[name] for name in keep}
    several = [group for group in groups if len(group) > 1]
    return Resplit(
        replace(dataset, splits={name: as_split(records) for name, records in splits.items()} | unchanged),
        len(several),
        sum(map(len, several)),
    )


def connected(num_items: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """The connected groups of items 0 to num_items - 1 under pairs of them, each rising, ordered by their first."""
    parent = list(range(num_items))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for first, second in pairs:
        low, high = sorted((root(first), root(second)))
        parent[high] = low
    groups: dict[int, list[int]] = {}
    for item in range(num_items):
        groups.setdefault(root(item), []).append(item)
    return list(groups.values())


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
    owner_of_group = np.full(len(groups), -1)

    def give(group: int, wish: NDArray[np.float64]) -> None:
        open_splits = lacking_images > 0.5
        allowed = open_splits if open_splits.any() else part > 0
        split = int(np.lexsort((rng.permutation(len(part)), lacking_images, np.where(allowed, wish, -np.inf)))[-1])
        owner_of_group[group] = split
        lacking[split] -= of_group[group]
        lacking_images[split] -= sizes[group]

    while True:
        waiting = owner_of_group < 0
        left = of_group[waiting].sum(axis=0)
        if not (left > 0).any():
            break
        rarest = int(np.where(left > 0, left, np.inf).argmin())
        having = np.flatnonzero(waiting & (of_group[:, rarest] > 0))
        # The largest first, while there is room to make up for them.
        for group in having[np.lexsort((chance[having], -of_group[having, rarest]))]:
            give(int(group), lacking[:, rarest])
    for group in np.flatnonzero(owner_of_group < 0)[np.argsort(chance[owner_of_group < 0])]:
        give(int(group), lacking_images)
    owner = np.empty(len(counts), np.int64)
    for group, members in enumerate(groups):
        owner[list(members)] = owner_of_group[group]
    return owner
