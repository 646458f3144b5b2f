"""Which images show the same view: a quick pass over all pairs, then a comparison in detail, shifts allowed for.

Both work on grey thumbnails of 64 x 64. The comparison in detail takes away what is smooth (light, vignette, ground),
looks for the shift at which two pictures agree best, and correlates what they share there: the agreement. Measured on
BCCD and on photographs of cards: pairs that show the same view reach 0.856 and more, all others 0.804 at most.

The quick pass, up to 2000 images: every pair at every shift of up to a third of the side, by Fourier transforms of
32 x 32, about 10 microseconds a pair. More: pairs whose 16 x 16 thumbnails correlate, by one matrix product in blocks,
N * N * 128 multiplications; that finds shifts of up to a twentieth. Beyond 100 000: pairs across splits only. Memory:
9 kB an image, and blocks of 64 MB. Turned and mirrored copies are not found. Legend: N images.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from anchorite.inspect.pictures import Progress

MAX_EXHAUSTIVE = 2_000
MAX_WITHIN_SPLITS = 100_000
SAME_VIEW = 0.84
_MAX_SHIFT = 1 / 3  # of the side
_COARSE_SIDE, _COARSE_LIMIT = 16, 0.7
_SPECTRUM_SIDE, _SPECTRUM_LIMIT = 32, 0.3
_SMOOTH_SIDE = 9
_MOST_CANDIDATES = 20  # of an image in one kind (within a split, or across)
_BLOCK_NUMBERS = 16_000_000
_MOST_REMEMBERED = 4_096
_FLAT = 1.0  # standard deviation in grey levels below which a thumbnail shows nothing to compare


class SimilarPair(NamedTuple):
    """Two images, by number, first < second, and their agreement in 0..1."""

    first: int
    second: int
    agreement: float


def similar_pairs(
    thumbnails: NDArray[np.uint8], split_ids: NDArray[np.int64], progress: Progress | None = None
) -> list[SimilarPair]:
    """The pairs of N thumbnails (N, 64, 64) that agree by 0.84 or more, the most alike first.

    progress is called with (images compared with all others, images that show something to compare).

    Of many alike (the frames of a still camera) each image has its most alike one in its own split and its most alike
    one in another, so that there are at most 2 N pairs.
    """
    details = Details(thumbnails)
    found: list[SimilarPair] = []
    for first, second in candidate_pairs(thumbnails, split_ids, progress):
        agreement = details.agreement(first, second)
        if agreement >= SAME_VIEW:
            found.append(SimilarPair(first, second, agreement))
    found.sort(key=lambda pair: (-pair.agreement, pair.first, pair.second))
    return _most_alike(found, split_ids)


def candidate_pairs(
    thumbnails: NDArray[np.uint8], split_ids: NDArray[np.int64], progress: Progress | None = None
) -> Iterator[tuple[int, int]]:
    """The pairs worth a comparison in detail, first < second; progress is called as each image is done with."""
    pictured = np.flatnonzero(thumbnails.reshape(len(thumbnails), -1).std(axis=1) >= _FLAT)
    scored = _by_shift if len(pictured) <= MAX_EXHAUSTIVE else _by_thumbnail
    within = len(pictured) <= MAX_WITHIN_SPLITS
    for row, columns, scores in scored(thumbnails[pictured]):
        is_other = split_ids[pictured[columns]] != split_ids[pictured[row]]
        for kind in (is_other, ~is_other) if within else (is_other,):
            best = np.argsort(-scores[kind], kind="stable")[:_MOST_CANDIDATES]
            for column in np.sort(columns[kind][best]):
                yield int(pictured[row]), int(pictured[column])
        if progress is not None:
            progress(row + 1, len(pictured))


class Details:
    """Thumbnails compared in detail, two at a time; what was prepared for the last few thousand is remembered."""

    def __init__(self, thumbnails: NDArray[np.uint8]) -> None:
        self._thumbnails = thumbnails
        self._prepared: dict[int, tuple[NDArray[np.float32], NDArray[np.complexfloating]]] = {}

    def agreement(self, first: int, second: int) -> float:
        """The correlation, at most 1, of what two thumbnails share at the shift at which they agree best."""
        (a, spectrum_a), (b, spectrum_b) = self._prepare(first), self._prepare(second)
        reach = int(len(a) * _MAX_SHIFT)
        crossed = np.fft.irfft2(spectrum_a * np.conj(spectrum_b), s=a.shape)
        shifts = np.r_[0 : reach + 1, -reach:0]
        row, column = np.unravel_index(int(crossed[np.ix_(shifts, shifts)].argmax()), (len(shifts), len(shifts)))
        down, right = int(shifts[row]), int(shifts[column])
        return _correlation(_overlap(a, down, right), _overlap(b, -down, -right))

    def _prepare(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.complexfloating]]:
        if index not in self._prepared:
            if len(self._prepared) >= _MOST_REMEMBERED:
                self._prepared.clear()
            softened = cv2.GaussianBlur(self._thumbnails[index].astype(np.float32), (0, 0), 1)  # forgives half a pixel
            picture = _without_smooth(np.asarray(softened, np.float32))
            self._prepared[index] = picture, np.fft.rfft2(picture)
        return self._prepared[index]


def _by_thumbnail(thumbnails: NDArray[np.uint8]) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.float32]]]:
    """For each image the later ones whose coarse thumbnails correlate, and how much."""
    small = np.stack(
        [cv2.resize(one, (_COARSE_SIDE, _COARSE_SIDE), interpolation=cv2.INTER_AREA) for one in thumbnails]
    )
    vectors = _standardised(small)
    num_rows = max(1, _BLOCK_NUMBERS // len(vectors))
    for start in range(0, len(vectors), num_rows):
        block = vectors[start : start + num_rows] @ vectors[start:].T
        for row, scores in enumerate(block):
            columns = np.flatnonzero(scores[row + 1 :] >= _COARSE_LIMIT) + row + 1
            yield start + row, columns + start, scores[columns]


def _by_shift(thumbnails: NDArray[np.uint8]) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.float32]]]:
    """For each image the later ones that resemble it at some shift, and how much."""
    side = (_SPECTRUM_SIDE, _SPECTRUM_SIDE)
    small = [cv2.resize(one, side, interpolation=cv2.INTER_AREA).astype(np.float32) for one in thumbnails]
    vectors = _standardised(np.stack([_without_smooth(one) for one in small])) if small else np.zeros((0, 1))
    spectra = torch.fft.rfft2(torch.from_numpy(vectors).view(-1, *side)) if small else torch.zeros(0)
    reach = int(_SPECTRUM_SIDE * _MAX_SHIFT)
    shifts = torch.cat([torch.arange(reach + 1), torch.arange(_SPECTRUM_SIDE - reach, _SPECTRUM_SIDE)])
    for row in range(len(small) - 1):
        crossed = torch.fft.irfft2(spectra[row + 1 :] * spectra[row].conj(), s=side)
        scores = crossed[:, shifts][:, :, shifts].amax(dim=(1, 2)).numpy()
        columns = np.flatnonzero(scores >= _SPECTRUM_LIMIT)
        yield row, columns + row + 1, scores[columns]
    if small:
        yield len(small) - 1, np.zeros(0, np.int64), np.zeros(0, np.float32)


def _most_alike(pairs: list[SimilarPair], split_ids: NDArray[np.int64]) -> list[SimilarPair]:
    """Of pairs, best first, those that are the best of their kind for one of the two images."""
    served: set[tuple[int, bool]] = set()
    kept = []
    for pair in pairs:
        across = bool(split_ids[pair.first] != split_ids[pair.second])
        ends = {(pair.first, across), (pair.second, across)}
        if not ends <= served:
            kept.append(pair)
        served |= ends
    return kept


def _standardised(pictures: NDArray[np.generic]) -> NDArray[np.float32]:
    """(N, S, S) as N rows of mean 0 and length 1; those that show nothing are all 0."""
    rows = pictures.reshape(len(pictures), -1).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 1e-3))


def _without_smooth(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    smooth = cv2.blur(picture, (_SMOOTH_SIDE, _SMOOTH_SIDE), borderType=cv2.BORDER_REFLECT)
    return np.asarray(picture - smooth, np.float32)


def _overlap(picture: NDArray[np.float32], down: int, right: int) -> NDArray[np.float32]:
    height, width = picture.shape
    return picture[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)]


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    a, b = a - a.mean(), b - b.mean()
    energy = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / energy if energy > 1e-3 else 0.0
