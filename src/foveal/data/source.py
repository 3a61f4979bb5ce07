"""What training reads from: a random-access collection of labelled images.

A source knows its examples and nothing else. Order, epochs, distortion and threads are decided elsewhere.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from foveal.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Batch:
    """Some examples, in the order they were asked for.

    Attributes:
        images: uint8 ``[B, H, W, C]``.
        targets: int64 ``[B]``, class indices.
        features: other columns by name, each with ``B`` rows.
    """

    images: NDArray[np.uint8]
    targets: NDArray[np.int64]
    features: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)


@runtime_checkable
class Source(Protocol):
    """Labelled images that can be read in any order, from any thread."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names; a target is an index into them."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""

    def __len__(self) -> int:
        """Number of examples."""

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """The examples at ``indices`` (int64 ``[B]``, each in [0, len)), in that order."""

    def key(self, index: int) -> str:
        """Where example ``index`` comes from, file and record, for messages."""

    def fingerprint(self) -> str:
        """A digest of the examples and the classes: equal for equal data, wherever they are stored."""


@runtime_checkable
class Sliceable(Source, Protocol):
    """A source of which a part can be held out."""

    def slice(self, start: int, stop: int) -> Source:
        """Examples ``start`` to ``stop`` as a source of their own."""


@dataclass(frozen=True)
class ArraySource:
    """A source held in memory.

    Attributes:
        images: uint8 ``[N, H, W, C]``.
        targets: int64 ``[N]``, each in [0, len(classes)).
        classes: class names.
        name: what :meth:`key` calls the collection, usually its file.
        offset: added to the index in :meth:`key`, when this is a part of a longer file.

    Raises:
        DataError: the arrays do not fit each other, or a label is out of range.
    """

    images: NDArray[np.uint8]
    targets: NDArray[np.int64]
    classes: tuple[str, ...]
    name: str = "array"
    offset: int = 0

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise DataError(
                f"{self.name}: images must be uint8 [N, height, width, channels], "
                f"not {self.images.dtype} {list(self.images.shape)}"
            )
        if self.targets.dtype != np.int64 or self.targets.ndim != 1:
            raise DataError(
                f"{self.name}: targets must be int64 [N], not {self.targets.dtype} {list(self.targets.shape)}"
            )
        if len(self.images) != len(self.targets):
            raise DataError(f"{self.name}: {len(self.images)} images but {len(self.targets)} labels")
        wrong = np.flatnonzero((self.targets < 0) | (self.targets >= len(self.classes)))
        if wrong.size:
            raise DataError(
                f"{self.key(int(wrong[0]))}: label {self.targets[wrong[0]]} is out of range: "
                f"there are {len(self.classes)} classes, 0 to {len(self.classes) - 1}"
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        _, height, width, channels = self.images.shape
        return height, width, channels

    def __len__(self) -> int:
        return len(self.targets)

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """The examples at ``indices``, copied."""
        return Batch(self.images[indices], self.targets[indices])

    def key(self, index: int) -> str:
        """``NAME record INDEX``."""
        return f"{self.name} record {self.offset + index}"

    def fingerprint(self) -> str:
        """SHA-256 of shape, pixels, labels and class names, as 16 hex digits."""
        digest = hashlib.sha256(repr((self.images.shape, self.classes)).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.targets).data)
        return digest.hexdigest()[:16]

    def slice(self, start: int, stop: int) -> ArraySource:
        """Examples ``start`` to ``stop`` as a source of their own; shares the memory."""
        return ArraySource(
            self.images[start:stop], self.targets[start:stop], self.classes, self.name, self.offset + start
        )


@dataclass(frozen=True)
class DataSet:
    """The parts of a data set; all have the same classes and image shape.

    Attributes:
        train: what is learnt from.
        validation: what choices are made on (the best checkpoint, early stopping), if anything is held out.
        test: what the final accuracy is measured on, if there is such a part.
    """

    train: Source
    validation: Source | None = None
    test: Source | None = None

    def __post_init__(self) -> None:
        for name, part in self.parts().items():
            if len(part) == 0:
                raise DataError(f"the {name} part of the data has no examples")
            if part.classes != self.train.classes:
                raise DataError(f"the {name} part has other classes than the train part")
            if part.image_shape != self.train.image_shape:
                raise DataError(
                    f"the {name} part has images of {part.image_shape}, "
                    f"the train part of {self.train.image_shape}"
                )

    def parts(self) -> dict[str, Source]:
        """The parts that exist, by name."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in named.items() if part is not None}

    def part(self, name: str) -> Source:
        """One part.

        Raises:
            DataError: this data set has no such part.
        """
        parts = self.parts()
        if name not in parts:
            raise DataError(f"the data have no {name} part; they have: {', '.join(parts)}")
        return parts[name]


def keys(source: Source, indices: Sequence[int] | NDArray[np.int64]) -> list[str]:
    """The origin of each example, for messages."""
    return [source.key(int(index)) for index in indices]
