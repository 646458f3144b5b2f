"""Findings about images: what is damaged, and which stand in the data twice.

Legend: N images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from anchorite.data import DatasetIndex, Record
from anchorite.inspect.findings import Finding
from anchorite.inspect.pictures import Picture, Progress, look_at
from anchorite.inspect.similar import similar_pairs


@dataclass(frozen=True, slots=True)
class SeenImage:
    """A record, its split and its picture."""

    split: str
    record: Record
    picture: Picture


def see_images(dataset: DatasetIndex, progress: Progress | None = None) -> list[SeenImage]:
    """Every image of the dataset decoded, in the order of the splits; one that stands in two splits is decoded once."""
    places = [(split, record) for split, records in dataset.splits.items() for record in records]
    paths = list(dict.fromkeys(record.path for _, record in places))
    pictures = dict(zip(paths, look_at(paths, progress), strict=True))
    return [SeenImage(split, record, pictures[record.path]) for split, record in places]


def same_pixels(images: Sequence[SeenImage]) -> list[list[SeenImage]]:
    """The groups of two or more readable images that have the same pixels."""
    groups: dict[bytes, list[SeenImage]] = {}
    for image in images:
        if image.picture.error is None:
            groups.setdefault(image.picture.digest, []).append(image)
    return [group for group in groups.values() if len(group) > 1]


def picture_findings(images: Sequence[SeenImage], progress: Progress | None = None) -> Iterator[Finding]:
    """Damaged images, the same pixels twice, and the same view twice; progress is that of `similar_pairs`."""
    for image in images:
        if image.picture.error is not None:
            yield Finding("unreadable-image", image.picture.error, image.split, str(image.record.path))
    for group in same_pixels(images):
        first = group[0]
        for image in group[1:]:
            is_shared = len({one.split for one in group}) > 1
            twin = next((one for one in group if one.split != image.split), first)
            yield Finding(
                "shared-image" if is_shared else "repeated-picture",
                f"the same pixels as {twin.split} {twin.record.path.name}",
                image.split,
                str(image.record.path),
                others=(str(twin.record.path),),
            )
    yield from _similar_findings(images, progress)


def _similar_findings(images: Sequence[SeenImage], progress: Progress | None) -> Iterator[Finding]:
    readable = list(
        {(image.picture.digest, image.split): image for image in images[::-1] if not image.picture.error}.values()
    )
    readable.reverse()
    if len(readable) < 2:
        return
    numbers = {split: number for number, split in enumerate({image.split: None for image in readable})}
    split_ids = np.array([numbers[image.split] for image in readable], np.int64)
    thumbnails = np.stack([image.picture.thumbnail for image in readable])
    for pair in similar_pairs(thumbnails, split_ids, progress):
        first, second = readable[pair.first], readable[pair.second]
        if first.picture.digest == second.picture.digest:
            continue
        yield Finding(
            "similar-image" if first.split == second.split else "similar-shared-image",
            f"the same view as {second.split} {second.record.path.name} (agreement {pair.agreement:.3f})",
            first.split,
            str(first.record.path),
            others=(str(second.record.path),),
        )
