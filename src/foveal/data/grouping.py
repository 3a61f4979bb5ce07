"""Parts of a data set of which no two share an image, or one that looks alike: a burst's, a smaller copy.

What is found out by looking at all images is kept in the user's cache folder, by the data's fingerprint.
"""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING, Final

import numpy as np
import platformdirs

from foveal.data.combine import subset
from foveal.data.decode import decode_batch
from foveal.data.inspection.duplicates import THUMBNAIL, equal_groups, near_pairs, thumbnails
from foveal.data.inspection.verification import in_order
from foveal.data.source import Encoded, blocks, digests_of, labels_of
from foveal.errors import CorruptRecordError
from foveal.files import write_atomically
from foveal.processors import processors
from foveal.seeding import Draws

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from foveal.data.download import ProgressReporter
    from foveal.data.source import Source

_ENLARGED: Final = (64, 72, 3)  # to which images are decoded: thumbnails are means of four by four pixels
_LENGTH: Final = 64  # images that a thread looks at, at a time


def split_alike(
    source: Source, shares: Mapping[str, float], seed: int = 0, *, progress: ProgressReporter | None = None
) -> dict[str, Source]:
    """Hold out shares of every class, so that images that are equal or look alike come to one side.

    Which of the groups of such images is held out is decided by a hash of what is in them. Of a class with at
    least two groups, each share has one at least as long as the training part keeps one.

    Args:
        source: the examples; all are read, unless they have been before.
        shares: of ``validation``, of ``test`` or of both, each in [0, 1), together below 1.
        seed: another one gives another split.
        progress: told how many images have been looked at.

    Returns:
        The parts by name, each in the order of ``source``; ``train`` has the rest. There is none without
        examples but ``train``.

    Raises:
        DataError: an example cannot be read.
    """
    labels, digests = labels_of(source), digests_of(source)
    groups = _groups(digests, _look(source, progress))
    draws = Draws(seed, digests.view(np.int64)).uniform("split")
    chosen = np.full(len(source), "train", dtype="<U10")
    order = np.lexsort((digests, groups))  # a group's first is then the one of the least digest
    first = order[np.diff(groups[order], prepend=-1) > 0]
    sizes = np.bincount(groups)
    for label in np.unique(labels[first]):
        here = first[labels[first] == label]
        left = groups[here[np.argsort(draws[here], kind="stable")]]
        total = sizes[left].sum()
        for name in ("test", "validation"):
            if not shares.get(name):
                continue
            taken = _take(left, sizes, round(shares[name] * total))
            chosen[np.isin(groups, taken)] = name
            left = left[~np.isin(left, taken)]
    return {
        name: subset(source, np.flatnonzero(chosen == name))
        for name in ("train", "validation", "test")
        if name == "train" or (chosen == name).any()
    }


def same_pictures(source: Source, *, progress: ProgressReporter | None = None) -> NDArray[np.int64]:
    """The pairs of examples that are equal or look alike, int64 ``[P, 2]``, sorted, the smaller index first.

    Of many equal ones, each is paired with the first. All are read, unless they have been before.

    Raises:
        DataError: an example cannot be read.
    """
    pairs = [(group[0], other) for group in equal_groups(digests_of(source)) for other in group[1:]]
    found = np.array(pairs, np.int64).reshape(-1, 2)
    looks = _look(source, progress)
    alike = found if looks is None else near_pairs(looks)[0]
    return np.unique(np.sort(np.concatenate([found, alike]), axis=1), axis=0)


def _take(groups: NDArray[np.int64], sizes: NDArray[np.int64], wanted: int) -> NDArray[np.int64]:
    """The first groups that together have as many examples as are wanted, or few less; never all of them."""
    if len(groups) < 2:
        return groups[:0]
    taken: list[int] = []
    room = wanted
    for group in groups[:-1].tolist():
        if sizes[group] <= room:
            taken.append(group)
            room -= sizes[group]
    return np.array(taken or [min(groups[:-1].tolist(), key=lambda group: sizes[group])], np.int64)


def _groups(digests: NDArray[np.uint64], looks: NDArray[np.uint8] | None) -> NDArray[np.int64]:
    """The number of each example's group, int64 ``[N]``, from 0: of what is equal or looks alike."""
    parents = np.arange(len(digests))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = index = parents[parents[index]]
        return index

    for group in equal_groups(digests):
        parents[group] = group[0]
    for one, other in () if looks is None else near_pairs(looks)[0].tolist():
        parents[root(one)] = root(other)
    roots = np.array([root(index) for index in range(len(digests))], np.int64)
    return np.unique(roots, return_inverse=True)[1].reshape(-1)


def _look(source: Source, progress: ProgressReporter | None) -> NDArray[np.uint8] | None:
    """A thumbnail of every example, uint8 ``[N, 16, 18]``; None of a source of numbers that are no pixels."""
    if getattr(source.read(np.empty(0, np.int64)).images, "dtype", np.uint8) != np.uint8:
        return None
    path = platformdirs.user_cache_path("foveal") / "thumbnails" / f"{source.fingerprint()}.npz"
    if (known := _load(path, len(source))) is not None:
        return known
    pieces = list(blocks(len(source), _LENGTH))
    found = in_order(_thumbnails, source, pieces, "comparing images", processors(), progress)
    made = np.concatenate([np.empty((0, *THUMBNAIL), np.uint8), *found])
    _store(path, made)
    return made


def _thumbnails(source: Source, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Of some examples; a damaged image is like no other, and is reported when it is used."""
    try:
        images = source.read(indices).images
        if not isinstance(images, Encoded):
            return thumbnails(images.astype(np.uint8, copy=False))
        keys = [source.key(index) for index in indices.tolist()]
        return thumbnails(decode_batch(images.contents, _ENLARGED, None, keys))
    except CorruptRecordError:
        if len(indices) == 1:
            return np.random.default_rng(indices).integers(0, 256, (1, *THUMBNAIL), np.uint8)
        return np.concatenate([_thumbnails(source, indices[row : row + 1]) for row in range(len(indices))])


def _load(path: Path, count: int) -> NDArray[np.uint8] | None:
    try:
        with np.load(path, allow_pickle=False) as archive:
            found: NDArray[np.uint8] = archive["thumbnails"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    fits = found.dtype == np.uint8 and found.shape == (count, *THUMBNAIL)
    return found if fits else None


def _store(path: Path, made: NDArray[np.uint8]) -> None:
    """Keep them for the next time, where there is room."""
    content = io.BytesIO()
    np.savez(content, thumbnails=made)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.getvalue())
    except OSError:
        return
