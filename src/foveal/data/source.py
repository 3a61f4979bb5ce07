"""What training reads from: a random-access collection of labelled images.

A source knows its examples and nothing else. Order, epochs, distortion and threads are decided elsewhere.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from foveal.errors import CorruptRecordError, DataError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

CLASS_LIMIT = 1 << 20  # more are taken for a mistake: labels that are no class indices


@dataclass(frozen=True)
class Encoded:
    """Images as the bytes of their files: the pipeline decodes them, to a size and a part that it chooses.

    Attributes:
        contents: the bytes of each.
        sizes: int32 ``[B, 2]``, height and width of each upright image, where they are known already.
    """

    contents: Sequence[bytes]
    sizes: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.contents)


@dataclass(frozen=True)
class Batch:
    """Some examples, in the order they were asked for.

    Attributes:
        images: uint8 or float32 ``[B, H, W, C]``, or encoded. A row of plain numbers is an image of one
            pixel: float32 ``[B, 1, 1, columns]``.
        targets: int64 ``[B]``, class indices.
        features: other columns by name, each with ``B`` rows: arrays, or
            ``foveal.tensorflow.example.Ragged``.
    """

    images: NDArray[np.uint8] | NDArray[np.float32] | Encoded
    targets: NDArray[np.int64]
    features: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Source(Protocol):
    """Labelled images that can be read in any order, from any thread."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names; a target is an index into them."""

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Height, width and channels of every image; None where they differ, and are encoded therefore."""

    def __len__(self) -> int:
        """Number of examples."""

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """The examples at ``indices`` (int64 ``[B]``, each in [0, len); B may be 0), in that order."""

    def key(self, index: int) -> str:
        """Where example ``index`` comes from, file and record, for messages."""

    def fingerprint(self) -> str:
        """A digest of the examples and the classes: equal for equal data, wherever they are stored.

        That of a combination of sources stands for theirs and for how they are combined.
        """


@dataclass(frozen=True)
class ArraySource:
    """A source held in memory.

    Attributes:
        images: uint8 or float32 ``[N, H, W, C]``.
        targets: int64 ``[N]``, each in [0, len(classes)).
        classes: class names.
        name: what :meth:`key` calls the collection, usually its file.

    Raises:
        DataError: the arrays do not fit each other, or a label is out of range.
    """

    images: NDArray[np.uint8] | NDArray[np.float32]
    targets: NDArray[np.int64]
    classes: tuple[str, ...]
    name: str = "array"

    def __post_init__(self) -> None:
        if self.images.dtype not in (np.uint8, np.float32) or self.images.ndim != 4:
            raise DataError(
                f"{self.name}: images must be uint8 or float32 [N, height, width, channels], "
                f"not {self.images.dtype} {list(self.images.shape)}"
            )
        if self.targets.dtype != np.int64 or self.targets.ndim != 1:
            raise DataError(
                f"{self.name}: targets must be int64 [N], not {self.targets.dtype} {list(self.targets.shape)}"
            )
        if len(self.images) != len(self.targets):
            raise DataError(f"{self.name}: {len(self.images)} images but {len(self.targets)} labels")
        check_labels(self.targets, self.classes, self.key)

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
        return f"{self.name} record {index}"

    def fingerprint(self) -> str:
        """SHA-256 of shape, pixels, labels and class names, as 16 hex digits."""
        digest = hashlib.sha256(repr((self.images.shape, self.classes)).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.targets).data)
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class DataSet:
    """The parts of a data set; all have the same classes.

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


def known_labels(source: Source) -> NDArray[np.int64] | None:
    """The source's ``targets``, int64 ``[N]``; None where it has none, or they are None."""
    known = getattr(source, "targets", None)
    return None if known is None else np.asarray(known, np.int64)


def known_digests(source: Source) -> NDArray[np.uint64] | None:
    """What the source's ``digests()`` gives, uint64 ``[N]``; None where it has none, or it gives None."""
    known = getattr(source, "digests", lambda: None)()
    return None if known is None else np.asarray(known, np.uint64)


def labels_of(source: Source) -> NDArray[np.int64]:
    """The target of every example, int64 ``[N]``; read through where the source does not know them.

    Raises:
        DataError: an example cannot be read.
    """
    if (known := known_labels(source)) is not None:
        return known
    targets = [source.read(indices).targets for indices in blocks(len(source))]
    return np.concatenate([np.empty(0, np.int64), *targets])


def digests_of(source: Source) -> NDArray[np.uint64]:
    """A hash of every example's image as it is stored, uint64 ``[N]``: equal images have equal ones.

    Read through where the source does not know them.

    Raises:
        DataError: an example cannot be read.
    """
    if (known := known_digests(source)) is not None:
        return known
    found = []
    for indices in blocks(len(source)):
        images = source.read(indices).images
        contents = images.contents if isinstance(images, Encoded) else [image.tobytes() for image in images]
        found += [hashlib.blake2b(each, digest_size=8).digest() for each in contents]
    return np.frombuffer(b"".join(found), np.uint64)


def channels_of(source: Source) -> int:
    """Channels of the images: of encoded ones that differ in size, the source's ``channels``, or else 3."""
    return source.image_shape[2] if source.image_shape else getattr(source, "channels", 3)


def blocks(size: int, length: int = 1024) -> Iterator[NDArray[np.int64]]:
    """The indices of ``size`` examples, ``length`` at a time."""
    return (np.arange(first, min(first + length, size)) for first in range(0, size, length))


def check_indices(indices: NDArray[np.int64], size: int) -> None:
    """Raise IndexError unless all of ``indices`` are in [0, size)."""
    if indices.size and not 0 <= indices.min() <= indices.max() < size:
        raise IndexError(f"indices from {indices.min()} to {indices.max()}, of {size} examples")


def check_labels(targets: NDArray[Any], classes: Sequence[str], key: Callable[[int], str]) -> None:
    """Raise CorruptRecordError for the first of ``targets`` (integers ``[B]``) that is no class index.

    ``key`` says where number ``i`` of them comes from.
    """
    wrong = np.flatnonzero((targets < 0) | (targets >= len(classes)))
    if wrong.size:
        raise CorruptRecordError(
            f"{key(int(wrong[0]))}: label {targets[wrong[0]]} is out of range: "
            f"there are {len(classes)} classes, 0 to {len(classes) - 1}"
        )


def class_names(classes: Sequence[str] | int) -> tuple[str, ...]:
    """Class names as they are given in options: a list, or how many there are, called ``"0"``, ``"1"``, ...

    Raises:
        RecipeError: there is none, a name stands twice, or one is no text.
    """
    if isinstance(classes, int) and not isinstance(classes, bool):
        if not 1 <= classes <= CLASS_LIMIT:
            raise RecipeError(f"classes = {classes}: from 1 to {CLASS_LIMIT} of them")
        return tuple(map(str, range(classes)))
    if not isinstance(classes, list | tuple) or not all(isinstance(name, str) for name in classes):
        raise RecipeError(f"classes = {classes!r}: a list of names, or how many there are")
    if not classes:
        raise RecipeError("classes = []: at least one name")
    name, times = Counter(classes).most_common(1)[0]
    if times > 1:
        raise RecipeError(f"classes: {name!r} is named {times} times")
    return tuple(classes)


def keys(source: Source, indices: Sequence[int] | NDArray[np.int64]) -> list[str]:
    """The origin of each example, for messages."""
    return [source.key(int(index)) for index in indices]
