"""Random numbers that are functions of (seed, purpose, position), and a permutation that is computed.

Nothing here has state. A draw is a hash of its coordinates, so example number 10^9 is distorted the same
whether a run came to it in one go, after ten restarts or on another rank, and any step can be rebuilt alone.

The hash is the finalizer of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
generators", OOPSLA 2014), applied to a key per (seed, purpose) and then to key + position.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = 16  # of the Feistel network; with 12, permutations of five elements are visibly not uniform


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer: a bijection of 64-bit words in which each input bit flips half the output."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _key(seed: int, purpose: str) -> np.uint64:
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def bits(seed: int, purpose: str, positions: ArrayLike) -> NDArray[np.uint64]:
    """64 random bits for each position.

    Args:
        seed: any integer.
        purpose: what the draw is for; different purposes are independent.
        positions: integers >= 0, any shape.

    Returns:
        uint64 array of the shape of ``positions``.
    """
    counters = np.asarray(positions).astype(np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        return _mix(_mix(counters * _GOLDEN + _key(seed, purpose)) + _GOLDEN)


def seed_for(seed: int, purpose: str, position: int) -> int:
    """A seed in [0, 2^63) for a generator that keeps its own state (dropout's, for one)."""
    return int(bits(seed, purpose, [position])[0] >> np.uint64(1))


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch: one per example and purpose.

    Attributes:
        seed: the recipe's data seed.
        positions: int64 ``[B]``, the examples' places in the stream of the whole run.
    """

    seed: int
    positions: NDArray[np.int64]

    def uniform(self, purpose: str, low: float = 0.0, high: float = 1.0) -> NDArray[np.float64]:
        """Float64 ``[B]``, uniform in [low, high)."""
        unit = (bits(self.seed, purpose, self.positions) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return low + (high - low) * unit

    def integers(self, purpose: str, low: int, high: int) -> NDArray[np.int64]:
        """Int64 ``[B]``, uniform in [low, high]; both ends included."""
        # The product of a 32-bit draw and the range is exact in 64 bits; the bias is below range / 2^32.
        top = bits(self.seed, purpose, self.positions) >> np.uint64(32)
        return low + ((top * np.uint64(high - low + 1)) >> np.uint64(32)).astype(np.int64)


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
    keys = bits(seed, purpose, np.arange(_ROUNDS))
    wide = np.uint64(2 * math.ceil(math.sqrt(size) / 2))  # even: odd shifts give even permutations alone
    tall = np.uint64(-(-size // int(wide)))
    values = np.asarray(ranks).astype(np.uint64)
    outside = np.ones(values.shape, dtype=bool)
    while outside.any():
        values[outside] = _feistel(values[outside], wide, tall, keys)
        outside = values >= np.uint64(size)
    return values.astype(np.int64)


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
