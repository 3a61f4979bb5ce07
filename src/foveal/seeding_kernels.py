"""The arithmetic of :mod:`foveal.seeding`, compiled: the same numbers, without the interpreter's lock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def _kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    return numba.njit(nogil=True, cache=True, boundscheck=False)(function)


def _short_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """One that takes less time than it takes to give the lock away and to get it back."""
    return numba.njit(cache=True, boundscheck=False)(function)


@_kernel
def mix(value: np.uint64) -> np.uint64:
    """SplitMix64's finalizer."""
    value = (value ^ (value >> np.uint64(30))) * _FIRST
    value = (value ^ (value >> np.uint64(27))) * _SECOND
    return value ^ (value >> np.uint64(31))


@_short_kernel
def words(keys: NDArray[np.uint64], counters: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A hash of each key with each counter, uint64 ``[K, B]``."""
    out = np.empty((len(keys), len(counters)), np.uint64)
    for k in range(len(keys)):
        for b in range(len(counters)):
            out[k, b] = mix(mix(counters[b] * _GOLDEN + keys[k]) + _GOLDEN)
    return out


@_short_kernel
def sample(
    keys: NDArray[np.uint64],
    counters: NDArray[np.uint64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    whole: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """The hashes as numbers in each key's range, float64 ``[K, B]``."""
    out: NDArray[np.float64] = words(keys, counters).view(np.float64)
    for k in range(len(keys)):
        hashes = out[k].view(np.uint64)
        if whole[k]:
            count = np.uint64(high[k] - low[k] + 1)
            for b in range(len(counters)):
                out[k, b] = low[k] + np.float64(((hashes[b] >> np.uint64(32)) * count) >> np.uint64(32))
        else:
            for b in range(len(counters)):
                out[k, b] = low[k] + (high[k] - low[k]) * (np.float64(hashes[b] >> np.uint64(11)) * 2.0**-53)
    return out


@_kernel
def permute(
    ranks: NDArray[np.uint64], size: np.uint64, wide: np.uint64, tall: np.uint64, keys: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """The Feistel network, walked until it lands below ``size``."""
    out = np.empty(len(ranks), np.int64)
    for b in range(len(ranks)):
        value = ranks[b]
        while True:
            left, right = value % wide, value // wide
            for k in range(0, len(keys), 2):
                left += mix(right * _GOLDEN + keys[k]) % wide
                if left >= wide:
                    left -= wide
                right += mix(left * _GOLDEN + keys[k + 1]) % tall
                if right >= tall:
                    right -= tall
            value = left + right * wide
            if value < size:
                break
        out[b] = value
    return out
