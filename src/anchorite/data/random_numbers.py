"""Random numbers that are a pure function of a seed and of what they are for: those of NumPy's PCG64.

To seed one generator takes longer than to plan a sample, so the numbers of a batch of samples are computed together,
from the same two algorithms, which NumPy promises to keep: `SeedSequence` hashes the seeds to a state and an increment,
and PCG64 (O'Neill, HMC-CS-2014-0905, "XSL RR") steps the state by s * A + c modulo 2**128. After k steps it is
s * A**k + c * (1 + A + ... + A**(k - 1)), so that every number is found without those before it.

Legend: B samples, K numbers of each, E 32-bit words that a sample's seeds have.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

_WORD, _LOW = (1 << 32) - 1, np.uint64((1 << 32) - 1)
_HALF_WORD, _FIRST, _SECOND = np.uint32(16), np.uint32(0xCA01F9DD), np.uint32(0x4973F715)  # of a SeedSequence
_POOL = 4  # words of the pool of a SeedSequence
_FACTOR = 0x2360ED051FC65DA44385DF649FCCF645  # A
Words = NDArray[np.uint32]
Halves = tuple[NDArray[np.uint64], NDArray[np.uint64]]  # the high and the low 64 bits of numbers


def rng_of(seed: int, epoch: int, *index: int, stream: tuple[int, ...] = ()) -> np.random.Generator:
    """The random numbers of one sample of an epoch, or of one purpose (stream) of the epoch itself.

    All are independent of each other.
    """
    # Samples have no spawn_key: no stream is one of theirs.
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch, *index), spawn_key=stream)))


def uniform_of(seed: int, epochs: Sequence[int], indices: Sequence[int], count: int) -> NDArray[np.float64]:
    """What `rng_of(seed, epoch, index).random(count)` is for each of B samples: (B, K) in 0..1.

    Epochs and indices are below 2**32.
    """
    words = [seed >> bit & _WORD for bit in range(0, max(1, seed.bit_length()), 32)]
    entropy = np.empty((len(words) + 2, len(indices)), np.uint32)
    entropy[:-2], entropy[-2], entropy[-1] = np.array(words, np.uint32)[:, None], epochs, indices
    start_high, start_low, stream_high, stream_low = _hashed_seeds(entropy)
    step_high, step_low = stream_high << 1 | stream_low >> 63, stream_low << 1 | 1
    low = step_low + start_low
    high = step_high + start_high + (low < step_low)
    # Two products for each number: of what the first step starts from, and of the increment.
    high, low = _product(np.array([high, step_high])[..., None], np.array([low, step_low])[..., None], *_jumps(count))
    low_sum = low[0] + low[1]
    high_sum = high[0] + high[1] + (low_sum < low[0])
    turn, mixed = high_sum >> 58, high_sum ^ low_sum
    return ((mixed >> turn | mixed << (64 - turn & 63)) >> 11) * 2.0**-53


@cache
def _jumps(count: int) -> Halves:
    """A**k and 1 + A + ... + A**(k - 1) for k from 2 up: (2, 1, K). The first number is drawn after two steps."""
    power, total, found = _FACTOR, 1, []
    for _ in range(count):
        power, total = power * _FACTOR % (1 << 128), total + power
        found.append((power, total % (1 << 128)))
    high, low = ([[one >> bits & (1 << 64) - 1 for one in pair] for pair in found] for bits in (64, 0))
    return np.array(high, np.uint64).T[:, None], np.array(low, np.uint64).T[:, None]


def _product(
    high: NDArray[np.uint64], low: NDArray[np.uint64], other_high: NDArray[np.uint64], other_low: NDArray[np.uint64]
) -> Halves:
    """Products modulo 2**128."""
    upper, lower, other_upper, other_lower = low >> 32, low & _LOW, other_low >> 32, other_low & _LOW
    middle = upper * other_lower + (lower * other_lower >> 32)
    carried = lower * other_upper + (middle & _LOW)
    most = upper * other_upper + (middle >> 32) + (carried >> 32)
    return most + high * other_low + low * other_high, low * other_low


def _hashed_seeds(entropy: Words) -> NDArray[np.uint64]:
    """(4, B), what `SeedSequence(words).generate_state(4, np.uint64)` is for the words of each sample, (E, B)."""
    constants = iter(zip(*_hash_constants(len(entropy)), strict=True))
    pool = np.zeros((_POOL, entropy.shape[1]), np.uint32)
    pool[: len(entropy)] = entropy[:_POOL]
    pool = _hashed(pool, *next(constants))
    for source in range(_POOL):
        mixed = _mixed(pool, _hashed(pool[source], *next(constants)))
        mixed[source] = pool[source]
        pool = mixed
    for word in entropy[_POOL:]:
        pool = _mixed(pool, _hashed(word, *next(constants)))
    powers = _powers(0x8B51F9DD, 0x58F38DED, 2 * _POOL + 1)
    words = _hashed(np.concatenate([pool, pool]), powers[:-1], powers[1:])
    return words[0::2] | words[1::2].astype(np.uint64) << np.uint64(32)


def _hashed(words: Words, xor: Words, factor: Words) -> Words:
    words = (words ^ xor) * factor
    return words ^ words >> _HALF_WORD


def _mixed(first: Words, second: Words) -> Words:
    words = first * _FIRST - second * _SECOND
    return words ^ words >> _HALF_WORD


@cache
def _hash_constants(num_words: int) -> tuple[Words, Words]:
    """What each hash of the pool combines its words with, by XOR and by multiplication, (steps, 4, 1).

    The constants come in one row: four to fill the pool, three a word to mix it into the others (its own place takes
    any), four for each further word of the seeds.
    """
    places = np.arange(_POOL)
    mixing = [_POOL + 3 * source + places - (places > source) for source in range(_POOL)]
    more = [4 * _POOL + _POOL * number + places for number in range(num_words - _POOL)]
    steps = np.array([places, *mixing, *more])
    powers = _powers(0x43B0D7E5, 0x931E8875, int(steps.max()) + 2)
    return powers[steps], powers[steps + 1]


@cache
def _powers(start: int, factor: int, count: int) -> Words:
    """start * factor**n modulo 2**32: (count, 1)."""
    return np.array([[start * pow(factor, power, 1 << 32) & _WORD] for power in range(count)], np.uint32)
