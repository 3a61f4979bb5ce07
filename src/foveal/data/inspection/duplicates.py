"""Images that are in a data set more than once: stored in the same bytes, or showing the same picture.

Pictures are compared by grey thumbnails of 16 x 18, and found by a difference hash of these: 64 bits, each
telling whether a field is darker than its right neighbour. Hashes that differ in at most three bits are found
without comparing all pairs: of six blocks that a hash is cut into, at least three are equal then (Manku,
Jain, Das Sarma: "Detecting near-duplicates for web crawling", WWW 2007).
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

THUMBNAIL = (16, 18)  # rows and columns: two by two, the fields that are hashed
_LUMA = np.array([0.299, 0.587, 0.114])  # weights of red, green and blue in a grey value (ITU-R BT.601)
_DISTANCE = 3  # bits in which the hashes of near duplicates may differ
_BLOCKS = 6  # that a hash is cut into
_SIMILAR = 0.97  # least correlation of near duplicates
_WINDOW = 16  # entries of equal blocks that each is compared with
_PLAIN = math.prod(THUMBNAIL)  # squared deviations of an image of nothing: one grey level each
_CHUNK = 1 << 12  # pairs compared at a time


def thumbnails(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Mean grey values of the fields of a 16 x 18 grid: uint8 ``[B, 16, 18]`` of uint8 ``[B, H, W, C]``."""
    _, height, width, channels = images.shape
    rows, columns = THUMBNAIL
    top, left = np.arange(rows) * height // rows, np.arange(columns) * width // columns
    ends = np.append(top[1:], height).clip(top + 1)  # where the grid is finer than the image, pixels repeat
    bands = np.stack([images[:, a:b].sum(axis=1, dtype=np.uint32) for a, b in zip(top, ends, strict=True)], 1)
    grey = bands @ (_LUMA if channels == 3 else np.full(channels, 1 / channels))
    totals = np.add.reduceat(grey, left, axis=2)  # of equal starts it takes the one element
    tall, wide = ends - top, np.diff(left, append=width).clip(1)
    means: NDArray[np.float64] = totals / (tall[:, None] * wide)
    return np.rint(means).astype(np.uint8)


def difference_hashes(thumbnails: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Hashes that resized, recompressed and recoloured copies share but for a few bits.

    Args:
        thumbnails: uint8 ``[N, 16, 18]``.

    Returns:
        uint64 ``[N]``.
    """
    fields = _fields(thumbnails)
    darker = fields[:, :, :-1] < fields[:, :, 1:]
    return np.packbits(darker.reshape(len(darker), 64), axis=1).view(np.uint64)[:, 0]


def equal_groups(digests: NDArray[np.uint64]) -> list[NDArray[np.int64]]:
    """The examples of equal digests, for every digest that occurs more than once; by their first examples."""
    order = np.argsort(digests, kind="stable")
    ordered = digests[order]
    edges = np.concatenate([[0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1, [len(order)]])
    repeated = np.flatnonzero(np.diff(edges) > 1)
    groups = [order[edges[group] : edges[group + 1]] for group in repeated.tolist()]
    return sorted(groups, key=lambda group: int(group[0]))


def near_pairs(thumbnails: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The pairs of examples that look alike, equal ones among them.

    Brightness and contrast do not count. Among more than 16 images of nearly one hash, pairs may be missed.

    Args:
        thumbnails: uint8 ``[N, 16, 18]``.

    Returns:
        int64 ``[P, 2]``, the smaller index first, and the correlations of their grey values, float32 ``[P]``,
        all at least 0.97; the most similar first.
    """
    pairs = _near_hashes(thumbnails)
    similarity = _correlation(thumbnails, pairs)
    order = np.argsort(-similarity, kind="stable")
    order = order[similarity[order] >= _SIMILAR]
    return pairs[order], similarity[order]


def _near_hashes(thumbnails: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The pairs of examples whose hashes differ in at most three bits, int64 ``[P, 2]``, sorted."""
    hashes = difference_hashes(thumbnails)
    order = np.lexsort((thumbnails.sum(axis=(1, 2), dtype=np.uint32), hashes))  # like ones side by side
    size = max(1, len(hashes))
    codes = np.empty(0, np.int64)
    edges = [64 * block // _BLOCKS for block in range(_BLOCKS + 1)]
    for chosen in combinations(range(_BLOCKS), _BLOCKS - _DISTANCE):
        mask = sum((1 << edges[block + 1]) - (1 << edges[block]) for block in chosen)
        found = [codes]
        for first, second in _neighbours(hashes & np.uint64(mask), order):
            near = np.bitwise_count(hashes[first] ^ hashes[second]) <= _DISTANCE
            low, high = np.minimum(first, second)[near], np.maximum(first, second)[near]
            found.append(low * size + high)
        codes = np.sort(np.concatenate(found))
        codes = codes[np.diff(codes, prepend=-1) > 0]  # many times as fast as numpy.unique
    return np.stack(np.divmod(codes, size), axis=1)


def _neighbours(
    keys: NDArray[np.uint64], order: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of equal keys: each example with the 16 that follow it in ``order`` among those of its key."""
    members = order[np.argsort(keys[order], kind="stable")]
    keys = keys[members]
    places = np.arange(len(members))
    for offset in range(1, _WINDOW + 1):
        places = places[places + offset < len(members)]
        places = places[keys[places] == keys[places + offset]]
        yield members[places], members[places + offset]


def _correlation(thumbnails: NDArray[np.uint8], pairs: NDArray[np.int64]) -> NDArray[np.float32]:
    """Of the grey values of each pair, float32 ``[P]``; plain images agree if they are equally bright."""
    flat = thumbnails.reshape(-1, math.prod(THUMBNAIL))
    result = np.empty(len(pairs), np.float32)
    for start in range(0, len(pairs), _CHUNK):
        piece = slice(start, start + _CHUNK)
        a, b = flat[pairs[piece].T].astype(np.float32)
        mean_a, mean_b = a.mean(axis=1, keepdims=True), b.mean(axis=1, keepdims=True)
        a -= mean_a
        b -= mean_b
        product, square_a, square_b = (np.einsum("pv,pv->p", x, y) for x, y in ((a, b), (a, a), (b, b)))
        plain = np.maximum(square_a, square_b) < _PLAIN  # what correlates would be noise
        agree = plain & (np.abs(mean_a - mean_b)[:, 0] < 1)
        result[piece] = np.where(plain, agree, product / np.sqrt(square_a * square_b + 1e-6))
    return result


def _fields(thumbnails: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Sums of two by two values, uint16 ``[N, 8, 9]``."""
    rows, columns = THUMBNAIL
    blocks = thumbnails.reshape(-1, rows // 2, 2, columns // 2, 2)
    return np.asarray(blocks.sum(axis=(2, 4), dtype=np.uint16))
