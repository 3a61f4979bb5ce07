"""Sources made of other sources: parts of them, concatenations, mixtures.

All of them are arithmetic on indices. Nothing is copied, any example can be read at any time from any thread,
and an example keeps the key that it has in its own source. What is held is at most an int64 per example.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from foveal.data.batches import join, kind, pick
from foveal.data.source import (
    Batch,
    blocks,
    channels_of,
    check_indices,
    class_names,
    digests_of,
    known_digests,
    known_labels,
    labels_of,
)
from foveal.errors import DataError, UnknownNameError, UsageError
from foveal.seeding import Draws

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from foveal.data.source import Source

_NONE = np.empty(0, np.int64)
_NONE.flags.writeable = False


def subset(source: Source, indices: range | NDArray[np.int64]) -> Source:
    """The examples at ``indices``, in that order and as often as they are named.

    Args:
        source: the examples.
        indices: each in [0, len(source)); of a range nothing is stored, of an array a copy.

    Raises:
        UsageError: an index is not that of an example.
    """
    if isinstance(indices, range):
        ends = np.array([indices[0], indices[-1]] if indices else [], np.int64)
        order: _Order = _Range(indices)
    else:
        ends = np.array(indices, np.int64 if len(indices) == 0 else None)
        if ends.ndim != 1 or not np.issubdtype(ends.dtype, np.integer):
            raise UsageError(f"indices must be integers [N], not {ends.dtype} {list(ends.shape)}")
        order = _Table(ends.astype(np.int64, copy=False))
    try:
        check_indices(ends, len(source))
    except IndexError as error:
        raise UsageError(f"{error}: they are counted from 0") from None
    return _View(source, order)


def take(source: Source, count: int) -> Source:
    """The first ``count`` examples; all where there are fewer.

    Raises:
        UsageError: ``count`` is negative.
    """
    return subset(source, range(len(source))[: _counted(count)])


def skip(source: Source, count: int) -> Source:
    """All examples but the first ``count``; none where there are not more.

    Raises:
        UsageError: ``count`` is negative.
    """
    return subset(source, range(len(source))[_counted(count) :])


def split(source: Source, shares: Mapping[str, float], seed: int = 0) -> dict[str, Source]:
    """Hold out shares of the examples, by a hash of each image's content.

    Equal images come to one side, and an example's side depends on nothing but its image: adding or removing
    others, or changing the other share, moves it nowhere. A larger share only takes from ``train``.

    Args:
        source: the examples; read through once where it has no digests of them.
        shares: of ``validation``, of ``test`` or of both, each in [0, 1), which the sizes will be close to;
            one that is 0 makes no part.
        seed: another one gives another split.

    Returns:
        The parts by name, each in the order of ``source``; ``train`` has the rest.

    Raises:
        UsageError: there is another name among the shares, or they leave nothing.
        DataError: an example cannot be read.
    """
    if unknown := sorted(shares.keys() - {"validation", "test"}):
        raise UnknownNameError("part to hold out", unknown[0], ["validation", "test"])
    validation, test = shares.get("validation", 0), shares.get("test", 0)
    if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
        raise UsageError(f"shares {dict(shares)}: each is at least 0, and together they are less than 1")
    unit = Draws(seed, digests_of(source).view(np.int64)).uniform("split")
    low, high = (
        unit < test,
        unit >= 1 - validation,
    )  # at the two ends: neither share moves the other's examples
    chosen = {"train": ~(low | high), "validation": high, "test": low}
    return {
        name: subset(source, np.flatnonzero(here))
        for name, here in chosen.items()
        if name == "train" or shares.get(name)
    }


def filtered(source: Source, predicate: Callable[[Batch], NDArray[np.bool_]]) -> Source:
    """The examples for which ``predicate`` holds; it is asked once, when this is called.

    Args:
        source: the examples.
        predicate: given some examples, says bool ``[B]`` which of them to keep.

    Raises:
        UsageError: ``predicate`` gave something else.
        DataError: an example cannot be read.
    """
    kept = [_NONE]
    for indices in blocks(len(source)):
        keep = np.asarray(predicate(source.read(indices)))
        if keep.dtype != np.bool_ or keep.shape != indices.shape:
            raise UsageError(
                f"the predicate of filtered() gave {keep.dtype} {list(keep.shape)} "
                f"for {len(indices)} examples, not bool [{len(indices)}]"
            )
        kept.append(indices[keep])
    return subset(source, np.concatenate(kept))


def concat(sources: Sequence[Source]) -> Source:
    """The examples of several sources, one source after another.

    Args:
        sources: of the same classes and the same kind of images. Encoded ones may differ in size.

    Raises:
        UsageError: there are none.
        DataError: they differ in their classes, the kind of their images, or their features.
    """
    if not sources:
        raise UsageError("concat() of no sources")
    first, found = sources[0], [source.read(_NONE) for source in sources]
    for number, (source, batch) in enumerate(zip(sources, found, strict=True)):
        if source.classes != first.classes:
            raise DataError(
                f"the sources to join have different classes: number {number} (from 0) has "
                f"{_some(source.classes)}, the first {_some(first.classes)}: relabel() can change them"
            )
        if kind(batch) != kind(found[0]):
            raise DataError(
                f"the sources to join hold different things: number {number} (from 0) holds {kind(batch)}, "
                f"the first {kind(found[0])}"
            )
    return _Concatenation(sources)


def mix(sources: Sequence[Source], weights: Sequence[float]) -> Source:
    """Several sources with shares of an epoch that are proportional to ``weights``.

    An epoch is the shortest in which every example of every source occurs. Those of the source with the most
    examples for its weight occur once; those of the others are repeated, each equally often or once more. The
    examples of one source stand together: it is the sampler that shuffles.

    Args:
        sources: as for :func:`concat`; none is empty.
        weights: one for each source, greater than 0.

    Raises:
        UsageError: the weights do not fit, or are so uneven that indices would not fit into 64 bits.
        DataError: a source is empty, or they cannot be joined.
    """
    if len(weights) != len(sources) or not all(0 < weight < math.inf for weight in weights):
        raise UsageError(f"weights {list(weights)} for {len(sources)} sources: each has one, greater than 0")
    sizes = [len(source) for source in sources]
    joined = concat(sources)
    if not all(sizes):
        raise DataError(f"source number {sizes.index(0)} (from 0) of those to mix has no examples")
    exact = [Fraction(float(weight)) for weight in weights]
    length = max(size / weight for size, weight in zip(sizes, exact, strict=True))
    return _View(joined, _Spread.over(sizes, [round(weight * length) for weight in exact]))


def balanced(source: Source) -> Source:
    """Every class equally often: as often as the largest; the examples of smaller ones are repeated evenly.

    Classes of which there is no example stay without.

    Raises:
        DataError: an example cannot be read, or there is none.
    """
    labels = labels_of(source)
    if labels.size == 0:
        raise DataError("there are no examples to balance")
    sizes = np.bincount(labels)
    sizes = sizes[sizes > 0].tolist()
    by_class = subset(source, np.argsort(labels, kind="stable"))
    return _View(by_class, _Spread.over(sizes, [max(sizes)] * len(sizes)))


def relabel(source: Source, groups: Mapping[str, str], classes: Sequence[str] | None = None) -> Source:
    """The same examples under other classes: renamed, grouped, or put into the order of another source's.

    Args:
        source: the examples.
        groups: the new class of an old one, by name; an old one that is not named keeps its name.
        classes: the new classes in their order, and perhaps more; by default those that there are then, in
            the order in which they first occur.

    Raises:
        UnknownNameError: ``groups`` names a class that ``source`` does not have.
        UsageError: a class of ``source`` is not among ``classes``.
    """
    for name in groups:
        if name not in source.classes:
            raise UnknownNameError("class", name, source.classes)
    renamed = [groups.get(name, name) for name in source.classes]
    names = class_names(tuple(dict.fromkeys(renamed)) if classes is None else tuple(classes))
    numbers = {name: number for number, name in enumerate(names)}
    if missing := [name for name in renamed if name not in numbers]:
        raise UsageError(f"{missing[0]!r} is not among the classes {_some(names)}")
    return _Relabelled(source, names, np.array([numbers[name] for name in renamed], np.int64))


class _Order(Protocol):
    """Which examples of a source, in which order: a function from int64 ``[B]`` to int64 ``[B]``."""

    def __len__(self) -> int: ...

    def __call__(self, places: NDArray[np.int64]) -> NDArray[np.int64]: ...

    def identity(self) -> object: ...


@dataclass(frozen=True)
class _Range:
    span: range

    def __len__(self) -> int:
        return len(self.span)

    def __call__(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.span.start + self.span.step * places

    def identity(self) -> object:
        return "range", *(self.span[:1] or [0]), len(self.span), self.span.step


@dataclass(frozen=True)
class _Table:
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def __call__(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.indices[places]

    def identity(self) -> object:
        return "indices", hashlib.sha256(self.indices.data).hexdigest()


@dataclass(frozen=True)
class _Spread:
    """Runs of ``sizes`` examples stretched to ``counts``: in one, each occurs equally often or once more."""

    sizes: NDArray[np.int64]
    counts: NDArray[np.int64]
    firsts: NDArray[np.int64]  # of each run, before stretching
    starts: NDArray[np.int64]  # of each run, after it, and the end of the last

    @classmethod
    def over(cls, sizes: Sequence[int], counts: Sequence[int]) -> _Spread:
        if any(size * count >= 1 << 63 for size, count in zip(sizes, counts, strict=True)):
            raise UsageError(
                f"an epoch would have {max(counts)} examples of one source: the weights are too uneven"
            )
        starts = np.cumsum([0, *counts])
        return cls(np.array(sizes), np.array(counts), np.cumsum([0, *sizes[:-1]]), starts)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __call__(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        run = np.searchsorted(self.starts, places, side="right") - 1
        return self.firsts[run] + (places - self.starts[run]) * self.sizes[run] // self.counts[run]

    def identity(self) -> object:
        return "spread", self.sizes.tolist(), self.counts.tolist()


class _View:
    """Examples of another source, in an order."""

    def __init__(self, source: Source, order: _Order) -> None:
        self._source, self._order = source, order
        self.classes, self.image_shape = source.classes, source.image_shape
        self.channels, self.rejected = channels_of(source), _rejected([source])

    def __len__(self) -> int:
        return len(self._order)

    def read(self, indices: NDArray[np.int64]) -> Batch:
        check_indices(indices, len(self))
        return self._source.read(self._order(indices))

    def key(self, index: int) -> str:
        return self._source.key(self._place(index))

    def fingerprint(self) -> str:
        return _fingerprint(self._source.fingerprint(), self._order.identity())

    @property
    def targets(self) -> NDArray[np.int64] | None:
        return self._picked(known_labels(self._source))

    def digests(self) -> NDArray[np.uint64] | None:
        return self._picked(known_digests(self._source))

    def _picked(self, column: NDArray[Any] | None) -> NDArray[Any] | None:
        return None if column is None else column[self._order(np.arange(len(self)))]

    def _place(self, index: int) -> int:
        place = np.array([index])
        check_indices(place, len(self))
        return int(self._order(place)[0])


class _Concatenation:
    """The examples of sources that have been found to be alike."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = tuple(sources)
        self._starts = np.cumsum([0, *map(len, sources)])
        self.classes = sources[0].classes
        shapes = {source.image_shape for source in sources}
        self.image_shape = shapes.pop() if len(shapes) == 1 else None
        self.channels, self.rejected = max(map(channels_of, sources)), _rejected(sources)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, indices: NDArray[np.int64]) -> Batch:
        check_indices(indices, len(self))
        which = np.searchsorted(self._starts, indices, side="right") - 1
        present = np.unique(which).tolist() or [0]
        places = [np.flatnonzero(which == number) for number in present]
        batches = [
            self._sources[number].read(indices[here] - self._starts[number])
            for number, here in zip(present, places, strict=True)
        ]
        return batches[0] if len(batches) == 1 else pick(join(batches), np.argsort(np.concatenate(places)))

    def key(self, index: int) -> str:
        check_indices(np.array([index]), len(self))
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._sources[number].key(index - int(self._starts[number]))

    def fingerprint(self) -> str:
        return _fingerprint("concat", [source.fingerprint() for source in self._sources])

    @property
    def targets(self) -> NDArray[np.int64] | None:
        return _joined([known_labels(source) for source in self._sources])

    def digests(self) -> NDArray[np.uint64] | None:
        return _joined([known_digests(source) for source in self._sources])


class _Relabelled:
    """A source under other classes: ``table`` has the new number of each old one."""

    def __init__(self, source: Source, classes: tuple[str, ...], table: NDArray[np.int64]) -> None:
        self._source, self._table = source, table
        self.classes, self.image_shape, self.key = classes, source.image_shape, source.key
        self.channels, self.rejected = channels_of(source), _rejected([source])

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: NDArray[np.int64]) -> Batch:
        batch = self._source.read(indices)
        return Batch(batch.images, self._table[batch.targets], batch.features)

    def fingerprint(self) -> str:
        return _fingerprint(self._source.fingerprint(), "relabel", self.classes, self._table.tolist())

    @property
    def targets(self) -> NDArray[np.int64] | None:
        old = known_labels(self._source)
        return None if old is None else self._table[old]

    def digests(self) -> NDArray[np.uint64] | None:
        return known_digests(self._source)


def _counted(count: int) -> int:
    if count < 0:
        raise UsageError(f"{count} examples: it must be at least 0")
    return count


def _fingerprint(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _joined(columns: Sequence[NDArray[Any] | None]) -> NDArray[Any] | None:
    known = [column for column in columns if column is not None]
    return np.concatenate(known) if len(known) == len(columns) else None


def _rejected(sources: Sequence[Source]) -> tuple[tuple[str, str], ...]:
    """What indexing found not to be images: no example, and therefore in no view, but known to all."""
    found = (pair for source in sources for pair in getattr(source, "rejected", ()))
    return tuple(dict.fromkeys(found))  # those of a source that is there twice once


def _some(names: Sequence[str]) -> str:
    """A few of many names, for a message."""
    return f"{len(names)}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
