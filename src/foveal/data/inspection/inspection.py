"""What a data set holds: classes and their balance, sizes, colours, statistics of its values, duplicates."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.data.inspection.duplicates import THUMBNAIL, equal_groups, near_pairs, thumbnails
from foveal.data.inspection.verification import blocks, in_order, readable, rejected
from foveal.data.source import channels_of
from foveal.seeding import permute

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from foveal.data.corrupt import CorruptRecord
    from foveal.data.download import ProgressReporter
    from foveal.data.inspection.verification import Readable
    from foveal.data.source import DataSet, Source

_SHOWN = 5  # groups of duplicates, and members of a group, of which the keys are told
_STRIP = 1 << 22  # pixel values that are squared at a time
_KEPT = np.dtype(  # of every example
    [
        ("part", np.int64),
        ("index", np.int64),
        ("target", np.int64),
        ("digest", np.uint64),
        ("size", np.int64, 2),
        ("grey", np.bool_),
        ("thumbnail", np.uint8, THUMBNAIL),
    ]
)


@dataclass(frozen=True)
class Statistics:
    """Of the values of each channel, or column of numbers; float64 ``[C]``.

    Every image counts the same, whatever its size, as it does when all have been made one size.
    """

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True)
class Repeats:
    """Examples that are there more than once, in groups.

    Attributes:
        groups: how many groups.
        examples: how many different examples are in one.
        first: ``key``, ``part`` and ``label`` of some members of the first groups.
    """

    groups: int
    examples: int
    first: tuple[tuple[dict[str, str], ...], ...]


@dataclass(frozen=True)
class Duplicates:
    """Groups of equal examples, or pairs of such that look alike.

    Attributes:
        all: all groups.
        leaks: those with members in several parts of the data.
        conflicts: those with members of several classes.
    """

    all: Repeats
    leaks: Repeats
    conflicts: Repeats


@dataclass(frozen=True)
class Inspection:
    """What was found out about a data set.

    Attributes:
        parts: how many examples each part has.
        examined: how many of all were read; what follows is about these.
        classes: class names.
        counts: int64 ``[classes]`` for each part: its examples by class.
        sizes: height and width of every image, int64 ``[N, 2]``.
        channels: of an image; or columns of a row of numbers, which is an image of one pixel.
        grey: how many images have no colour in any pixel.
        numeric: the values are floating-point numbers, not pixels.
        statistics: of the train part: of pixels as fractions of 255, of numbers as they are; None where
            nothing could be read.
        equal: examples that are stored in the same bytes.
        alike: pairs of images that look alike and are not stored in the same bytes; the most similar first.
        corrupt: examples that could not be read.
        rejected: what was found to be no image when the data were indexed.
    """

    parts: dict[str, int]
    examined: int
    classes: tuple[str, ...]
    counts: dict[str, NDArray[np.int64]]
    sizes: NDArray[np.int64]
    channels: int
    grey: int
    numeric: bool
    statistics: Statistics | None
    equal: Duplicates
    alike: Duplicates
    corrupt: tuple[CorruptRecord, ...]
    rejected: tuple[CorruptRecord, ...]

    @property
    def imbalance(self) -> float | None:
        """Training examples of the largest class for each of the smallest; None where a class has none."""
        counts = self.counts["train"]
        return float(counts.max() / counts.min()) if counts.min() else None

    def report(self) -> dict[str, Any]:
        """Plain values, as the command line prints them."""
        return {
            "parts": self.parts,
            "examples": sum(self.parts.values()),
            "examined": self.examined,
            "classes": [
                {"label": label, **{part: int(counts[index]) for part, counts in self.counts.items()}}
                for index, label in enumerate(self.classes)
            ],
            "imbalance": self.imbalance,
            "numeric": self.numeric,
            "channels": self.channels,
            "grey": self.grey,
            "sizes": len(np.unique(self.sizes, axis=0)),
            "height": _spread(self.sizes[:, 0]),
            "width": _spread(self.sizes[:, 1]),
            "statistics": self.statistics
            and {
                name: [float(f"{value:.6g}") for value in values]
                for name, values in vars(self.statistics).items()
            },
            "duplicates": {
                name: {which: vars(repeats) for which, repeats in vars(found).items()}
                for name, found in (("equal", self.equal), ("alike", self.alike))
            },
            "corrupt": [vars(record) for record in self.corrupt],
            "rejected": [vars(record) for record in self.rejected],
        }


def inspect(
    data: DataSet, *, sample: int | None = None, threads: int = 1, progress: ProgressReporter | None = None
) -> Inspection:
    """Read a data set through and say what it holds.

    Memory: about 350 bytes an example, and what the threads are decoding.

    Args:
        data: what to read.
        sample: read so many examples of each part only, drawn at random, always the same.
        threads: that read and decode.
        progress: told how many examples are done.

    Raises:
        DataError: the data cannot be read at all, or change meanwhile.
    """
    parts = data.parts()
    channels = channels_of(data.train)
    seen: list[_Seen] = []
    moments: list[_Moments] = []
    for number, (name, source) in enumerate(parts.items()):
        look = partial(_look, number, channels)
        pieces = blocks(source, _chosen(len(source), sample))
        seen += in_order(look, source, pieces, f"inspecting {name}", threads, progress)
        if name == "train":  # what training uses must not know of the others
            moments = [each.moments for each in seen if each.moments]
    kept = np.concatenate([each.kept for each in seen])
    numeric = any(each.numeric for each in seen)
    return Inspection(
        parts={name: len(source) for name, source in parts.items()},
        examined=len(kept) + sum(len(each.corrupt) for each in seen),
        classes=data.train.classes,
        counts={
            name: np.bincount(kept["target"][kept["part"] == number], minlength=len(data.train.classes))
            for number, name in enumerate(parts)
        },
        sizes=kept["size"],
        channels=channels,
        grey=int(kept["grey"].sum()),
        numeric=numeric,
        statistics=sum(moments[1:], moments[0]).statistics(1 if numeric else 255) if moments else None,
        equal=_duplicates(data, kept, equal_groups(kept["digest"])),
        alike=_duplicates(data, kept, [] if numeric else _alike(kept)),
        corrupt=tuple(record for each in seen for record in each.corrupt),
        rejected=tuple(rejected(data)),
    )


def _chosen(size: int, sample: int | None) -> NDArray[np.int64]:
    if sample is None or sample >= size:
        return np.arange(size)
    return np.sort(permute(np.arange(sample), size, 0, "inspection"))


def _spread(values: NDArray[np.int64]) -> dict[str, int] | None:
    if not values.size:
        return None
    return {"min": int(values.min()), "median": int(np.median(values)), "max": int(values.max())}


def _alike(kept: NDArray[Any]) -> list[NDArray[np.int64]]:
    """Pairs that look alike and are not the same."""
    pairs, _ = near_pairs(np.ascontiguousarray(kept["thumbnail"]))
    digests = kept["digest"][pairs]
    return list(pairs[digests[:, 0] != digests[:, 1]])


def _duplicates(data: DataSet, kept: NDArray[Any], groups: list[NDArray[np.int64]]) -> Duplicates:
    """All groups, and those with several parts, or labels, among their members."""

    def mixed(column: str) -> Repeats:
        return _repeats(data, kept, [group for group in groups if np.ptp(kept[column][group])])

    return Duplicates(_repeats(data, kept, groups), mixed("part"), mixed("target"))


def _repeats(data: DataSet, kept: NDArray[Any], groups: list[NDArray[np.int64]]) -> Repeats:
    parts = list(data.parts().items())

    def describe(row: int) -> dict[str, str]:
        name, source = parts[kept["part"][row]]
        label = source.classes[kept["target"][row]]
        return {"key": source.key(int(kept["index"][row])), "part": name, "label": label}

    examples = len(np.unique(np.concatenate(groups))) if groups else 0
    first = tuple(tuple(map(describe, group[:_SHOWN])) for group in groups[:_SHOWN])
    return Repeats(len(groups), examples, first)


@dataclass(frozen=True)
class _Seen:
    """What looking at a piece of a part gave; ``kept`` is of the type ``_KEPT``."""

    kept: NDArray[Any]
    moments: _Moments | None
    numeric: bool
    corrupt: list[CorruptRecord]


def _look(part: int, channels: int, source: Source, indices: NDArray[np.int64]) -> _Seen:
    kept, moments, numeric = [np.empty(0, _KEPT)], [], False
    corrupt: list[CorruptRecord] = []
    for some in readable(source, indices, corrupt):
        if len(some.indices):
            kept.append(_keep(part, some))
            moments.append(_Moments.of(some.images, channels))
            numeric = some.images.dtype == np.float32
    return _Seen(np.concatenate(kept), sum(moments[1:], moments[0]) if moments else None, numeric, corrupt)


def _keep(part: int, some: Readable) -> NDArray[Any]:
    kept = np.zeros(len(some.indices), _KEPT)
    kept["part"], kept["index"], kept["target"] = part, some.indices, some.targets
    digests = [hashlib.blake2b(stored, digest_size=8).digest() for stored in some.stored]
    kept["digest"] = np.frombuffer(b"".join(digests), np.uint64)
    kept["size"] = some.images.shape[1:3]
    if some.images.dtype == np.uint8:
        kept["grey"], kept["thumbnail"] = _is_grey(some.images), thumbnails(some.images)
    return kept


@dataclass(frozen=True)
class _Moments:
    """Mean and sum of squared deviations of ``count`` values a channel (Chan, Golub, LeVeque, 1983)."""

    count: int
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def __add__(self, other: _Moments) -> _Moments:
        count = self.count + other.count
        apart = other.mean - self.mean
        return _Moments(
            count,
            self.mean + apart * (other.count / count),
            self.squares + other.squares + apart**2 * (self.count * other.count / count),
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
        )

    @classmethod
    def of(cls, images: NDArray[Any], channels: int) -> _Moments:
        """Of images of one size, ``[B, H, W, C]``; each counts as one value with a deviation of its own."""
        mean, variance = _of_pixels(images) if images.dtype == np.uint8 else _of_numbers(images)
        center = mean.mean(axis=0)
        squares = (variance + (mean - center) ** 2).sum(axis=0)
        low, high = images.min(axis=(0, 1)).min(axis=0), images.max(axis=(0, 1)).max(axis=0)
        wide = (np.broadcast_to(value, channels).astype(np.float64) for value in (center, squares, low, high))
        return cls(len(images), *wide)

    def statistics(self, unit: float) -> Statistics:
        deviation = np.sqrt(self.squares / self.count)
        return Statistics(self.mean / unit, deviation / unit, self.low / unit, self.high / unit)


def _of_numbers(images: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and variance of each channel of each image, float64 ``[B, C]``."""
    values = images.reshape(len(images), -1, images.shape[3]).astype(np.float64)
    return values.mean(axis=1), values.var(axis=1)


def _of_pixels(images: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The same, from exact sums; rows first, which is ten times as fast as all pixels at once."""
    count, height, width, channels = images.shape
    rows = images.reshape(count, height, width * channels)
    step = max(1, _STRIP // rows[:, 0].size)
    sums = np.zeros((2, count, width * channels), np.uint64)
    for top in range(0, height, step):
        strip = rows[:, top : top + step]
        sums[0] += strip.sum(axis=1, dtype=np.uint64)
        sums[1] += np.square(strip, dtype=np.uint16).sum(axis=1, dtype=np.uint64)
    mean, square = sums.reshape(2, count, width, channels).sum(axis=2) / (height * width)
    return mean, np.maximum(square - mean**2, 0)


def _is_grey(images: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether each image has no colour, bool ``[B]``."""
    grey = np.ones(len(images), np.bool_)
    for channel in range(1, images.shape[3]):
        grey &= (images[..., channel] == images[..., 0]).all(axis=(1, 2))
    return grey
