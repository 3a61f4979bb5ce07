"""Random numbers that are functions of (seed, purpose, position), and a permutation that is computed.

Nothing here has state. A draw is a hash of its coordinates, so example number 10^9 is distorted the same
whether a run came to it in one go, after ten restarts or on another rank, and any step can be rebuilt alone.

The hash is the finalizer of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
generators", OOPSLA 2014), applied to a key per (seed, purpose) and then to key + position.
"""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from types import ModuleType

    from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = 16  # of the Feistel network; with 12, permutations of five elements are visibly not uniform


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer: a bijection of 64-bit words in which each input bit flips half the output."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@functools.lru_cache(maxsize=1024)
def _keys(seed: int, purposes: tuple[str, ...]) -> NDArray[np.uint64]:
    digests = (hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest() for purpose in purposes)
    return np.array([int.from_bytes(digest, "little") for digest in digests], np.uint64)


@functools.cache
def _compiled() -> ModuleType | None:
    """The same arithmetic, compiled; None where Numba cannot be imported."""
    try:
        from foveal import seeding_kernels
    except ImportError:
        return None
    return seeding_kernels


def _words(keys: NDArray[np.uint64], positions: ArrayLike) -> NDArray[np.uint64]:
    """64 random bits for each key and position: uint64 ``[K, B]`` for positions ``[B]``."""
    counters = np.asarray(positions).astype(np.uint64)
    if compiled := _compiled():
        return compiled.words(keys, counters)  # type: ignore[no-any-return]
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        return _mix(_mix(counters * _GOLDEN + keys[:, None]) + _GOLDEN)


def bits(seed: int, purpose: str, positions: ArrayLike) -> NDArray[np.uint64]:
    """64 random bits for each position.

    Args:
        seed: any integer.
        purpose: what the draw is for; different purposes are independent.
        positions: integers >= 0, any shape.

    Returns:
        uint64 array of the shape of ``positions``.
    """
    counters = np.asarray(positions)
    return _words(_keys(seed, (purpose,)), counters.ravel()).reshape(counters.shape)


def seed_for(seed: int, purpose: str, position: int) -> int:
    """A seed in [0, 2^63) for a generator that keeps its own state (dropout's, for one)."""
    return int(bits(seed, purpose, [position])[0] >> np.uint64(1))


@dataclass(frozen=True, eq=False)
class Ranges:
    """Several numbers to draw for each example, and the range of each.

    Attributes:
        purposes: ``K`` of them, one a number.
        low: float64 ``[K]``.
        high: float64 ``[K]``.
        whole: bool ``[K]``: integers in [low, high], or else real numbers in [low, high).
    """

    purposes: tuple[str, ...]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    whole: NDArray[np.bool_]


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch: one per example and purpose.

    Attributes:
        seed: the recipe's data seed.
        positions: int64 ``[B]``, the examples' places in the stream of the whole run.
        indices: int64 ``[B]``, which examples they are, for what is drawn once for each of them.
        epochs: int64 ``[B]``, the pass over the data that each belongs to, from 0.
    """

    seed: int
    positions: NDArray[np.int64]
    indices: NDArray[np.int64] | None = None
    epochs: NDArray[np.int64] | None = None

    def words(self, purposes: tuple[str, ...]) -> NDArray[np.uint64]:
        """64 random bits of each of ``K`` purposes: uint64 ``[K, B]``."""
        return _words(_keys(self.seed, purposes), self.positions)

    def sample(self, ranges: Ranges) -> NDArray[np.float64]:
        """Float64 ``[K, B]``: each row as :meth:`uniform` or :meth:`integers` gives it, all at once."""
        keys = _keys(self.seed, ranges.purposes)
        if compiled := _compiled():
            counters = np.asarray(self.positions).astype(np.uint64)
            return compiled.sample(keys, counters, ranges.low, ranges.high, ranges.whole)  # type: ignore[no-any-return]
        words = _words(keys, self.positions)
        low, high, whole = ranges.low[:, None], ranges.high[:, None], ranges.whole[:, None]
        return np.where(whole, low + _below(words, high - low + 1), low + (high - low) * _unit(words))

    def uniform(self, purpose: str, low: float = 0.0, high: float = 1.0) -> NDArray[np.float64]:
        """Float64 ``[B]``, uniform in [low, high)."""
        return low + (high - low) * _unit(bits(self.seed, purpose, self.positions))

    def integers(self, purpose: str, low: int, high: int) -> NDArray[np.int64]:
        """Int64 ``[B]``, uniform in [low, high]; both ends included."""
        return low + _below(bits(self.seed, purpose, self.positions), high - low + 1).astype(np.int64)


def _unit(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """In [0, 1)."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _below(words: NDArray[np.uint64], count: ArrayLike) -> NDArray[np.uint64]:
    """In {0, ..., count - 1}."""
    # The product of a 32-bit draw and the count is exact in 64 bits; the bias is below count / 2^32.
    return ((words >> np.uint64(32)) * np.asarray(count).astype(np.uint64)) >> np.uint64(32)


def permute(ranks: ArrayLike, size: int, seed: int, purpose: str) -> NDArray[np.int64]:
    """Where a random permutation of ``range(size)`` sends each rank; constant memory, any rank at once.

    A Feistel network over Z_a x Z_b with a*b just above ``size``, walked until it lands inside
    (Black, Rogaway: "Ciphers with arbitrary finite domains", CT-RSA 2002). A bijection for every size.

    Args:
        ranks: integers in [0, size), any shape.
        size: number of elements, at least 1.
        seed: with ``purpose``, chooses the permutation.
        purpose: for example ``"shuffle/epoch 3"``.

    Returns:
        int64 array of the shape of ``ranks``, values in [0, size).
    """
    keys = _round_keys(seed, purpose)
    wide = np.uint64(2 * math.ceil(math.sqrt(size) / 2))  # even: odd shifts give even permutations alone
    tall = np.uint64(-(-size // int(wide)))
    values = np.asarray(ranks).astype(np.uint64)
    if compiled := _compiled():
        flat = compiled.permute(values.ravel(), np.uint64(size), wide, tall, keys)
        return flat.reshape(values.shape)  # type: ignore[no-any-return]
    outside = np.ones(values.shape, dtype=bool)
    while outside.any():
        values[outside] = _feistel(values[outside], wide, tall, keys)
        outside = values >= np.uint64(size)
    return values.astype(np.int64)


@functools.lru_cache(maxsize=64)
def _round_keys(seed: int, purpose: str) -> NDArray[np.uint64]:
    return bits(seed, purpose, np.arange(_ROUNDS))


def _feistel(
    values: NDArray[np.uint64], wide: np.uint64, tall: np.uint64, keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """Shift each coordinate by a hash of the other, in turn: undone by shifting back, so a bijection."""
    left, right = values % wide, values // wide
    with np.errstate(over="ignore"):
        for even, odd in zip(keys[0::2], keys[1::2], strict=True):
            left = (left + _mix(right * _GOLDEN + even) % wide) % wide
            right = (right + _mix(left * _GOLDEN + odd) % tall) % tall
    return left + right * wide
