"""Feeding: examples from plain Python, a generator or a pipe, which come once and in one order.

Such a stream cannot seek. What a step trains on depends on how the run came there, so a run that is resumed
begins the stream anew and is not the run it would have been without the interruption. Everything else, the
draws of augmentation among it, depends on an example's number in the stream as it does elsewhere.
"""

from __future__ import annotations

import itertools
import operator
import sys
import threading
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from foveal.data.batches import pick
from foveal.data.source import Batch, Encoded, check_labels
from foveal.errors import DataError
from foveal.seeding import Draws

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

_Row = tuple[Any, int]  # an image, as an array or as bytes, and its label
_DRAWN = 1024  # places of the shuffle buffer that are drawn at once


class StreamSource:
    """Examples from an iterable: a ``Source`` that can be read from its beginning on, in no other order.

    An item is a pair ``(image, label)`` or a whole ``Batch`` (whose other columns are left out). An image is
    an array of ``image_shape`` or, without one, the bytes of an image file. What is yielded is copied: an
    iterable may use the same array for every item.

    At its end the iterable is started again. An iterator, a generator object for one, cannot be: it ends.

    Args:
        examples: an iterable of items, or a function that makes one for each pass.
        classes: class names; a label is an index into them.
        image_shape: height, width and channels of every image; None for image files of any size.
        dtype: of the images: ``uint8``, or ``float32`` for plain numbers (``image_shape = (1, 1, columns)``).
        shuffle_buffer: how many examples are held, and handed out in a random order; 0 keeps theirs.
        seed: of that order.
        name: what messages call the stream.
    """

    def __init__(
        self,
        examples: Callable[[], Iterable[Any]] | Iterable[Any],
        classes: Iterable[str],
        image_shape: tuple[int, int, int] | None,
        *,
        dtype: Literal["uint8", "float32"] = "uint8",
        shuffle_buffer: int = 0,
        seed: int = 0,
        name: str = "stream",
    ) -> None:
        self.classes = tuple(classes)
        self.image_shape = image_shape and (image_shape[0], image_shape[1], image_shape[2])  # a list, perhaps
        self._examples, self._name = examples, name
        self._dtype = np.dtype(dtype)
        self._shuffle_buffer, self._seed = shuffle_buffer, seed
        self._lock = threading.Lock()
        self._rows: Iterator[_Row] | None = None
        self._next = 0
        self._last = self._batch(*self._room(0))

    def __len__(self) -> int:
        """Not known: as many as a length can be."""
        return sys.maxsize

    def batches(self, batch_size: int, *, passes: int | None = None) -> Iterator[Batch]:
        """The examples from the beginning, in batches that run on from pass to pass.

        At most ``batch_size + shuffle_buffer`` examples, and an item, are held at a time.

        Args:
            batch_size: examples a batch; the last one may have fewer.
            passes: how often the iterable is run through; None for ever.

        Raises:
            DataError: the iterable raises an error, gives something else than examples, or gives nothing.
        """
        rows = self._passes(passes, 0)
        while (batch := self._take(rows, batch_size)).targets.size:
            yield batch

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """The next examples, or some of those that were read last, which are kept for that.

        Args:
            indices: int64 ``[B]``, the examples' numbers in the stream.

        Raises:
            DataError: they are not those that come next; as in :meth:`batches`; or the iterable has ended.
        """
        with self._lock:
            first = self._next - self._last.targets.size
            if indices.size and first <= indices.min() <= indices.max() < self._next:
                return pick(self._last, indices - first)
            if not np.array_equal(indices, np.arange(self._next, self._next + len(indices))):
                raise DataError(
                    f"{self.key(int(indices[0]))} was asked for where {self._next} comes next: a stream is "
                    "read in order, by one thread (loader_threads = 1)"
                )
            if self._rows is None:
                self._rows = self._passes(None, self._next)
            batch = self._take(self._rows, len(indices))
            if batch.targets.size < len(indices):
                raise DataError(
                    f"{self._name}: ended before example {self._next + len(indices) - 1}: train for fewer "
                    "steps, or give a function that makes the iterable, so that it can be started again"
                )
            self._next, self._last = self._next + len(indices), batch
            return batch

    def restart(self, number: int) -> None:
        """Give this number to what comes next, or to what was read last if that is to be read again.

        A run calls this before its first step: it may be resumed, and it may have looked at a batch already.
        """
        with self._lock:
            self._next = number + self._last.targets.size

    def key(self, index: int) -> str:
        """``NAME example INDEX``."""
        return f"{self._name} example {index}"

    def fingerprint(self) -> str:
        """Always ``stream``: what will come is not known."""
        return "stream"

    def _room(self, length: int) -> tuple[NDArray[Any] | list[bytes], NDArray[np.int64]]:
        """For so many images and their labels."""
        if self.image_shape is None:
            return [b""] * length, np.empty(length, np.int64)
        return np.empty((length, *self.image_shape), self._dtype), np.empty(length, np.int64)

    def _batch(self, images: Any, targets: NDArray[np.int64]) -> Batch:
        return Batch(Encoded(tuple(images)) if self.image_shape is None else images, targets)

    def _take(self, rows: Iterator[_Row], length: int) -> Batch:
        """The next examples; fewer where there are no more."""
        images, targets = self._room(length)
        taken = 0
        for image, target in itertools.islice(rows, length):
            images[taken], targets[taken] = image, target
            taken += 1
        return self._batch(images[:taken], targets[:taken])

    def _passes(self, passes: int | None, first: int) -> Iterator[_Row]:
        """Examples, each to be copied before the next is asked for; the first has the number ``first``."""
        draws = self._uniform(first)
        for number in itertools.count() if passes is None else range(passes):
            items = self._started()
            rows = self._checked(items)
            given = False
            for row in self._shuffled(rows, draws) if self._shuffle_buffer else rows:
                given = True
                yield row
            if not given:
                again = " when it is started again: give a function that makes it" if number else ""
                raise DataError(f"{self._name}: the iterable gives no examples{again}")
            if items is self._examples:
                return

    def _started(self) -> Iterator[Any]:
        try:
            return iter(self._examples() if callable(self._examples) else self._examples)
        except Exception as error:
            raise DataError(f"{self._name}: cannot be started: {_summary(error)}") from error

    def _checked(self, items: Iterator[Any]) -> Iterator[_Row]:
        """The examples that the iterable gives."""
        for number in itertools.count():
            where = f"{self._name} item {number}"
            try:
                item = next(items)
            except StopIteration:
                return
            except Exception as error:
                raise DataError(f"{where}: {_summary(error)}") from error
            if isinstance(item, Batch):
                yield from self._unpacked(item, where)
            elif isinstance(item, tuple | list) and len(item) == 2:
                image, label = item
                yield self._row(image, label, where)
            else:
                raise DataError(f"{where}: {_kind(item)}, not a pair (image, label) or a Batch")

    def _unpacked(self, batch: Batch, where: str) -> Iterator[_Row]:
        images: Any = batch.images.contents if isinstance(batch.images, Encoded) else batch.images
        if len(images) != len(batch.targets):
            raise DataError(f"{where}: {len(images)} images but {len(batch.targets)} labels")
        for number, (image, label) in enumerate(zip(images, batch.targets, strict=True)):
            yield self._row(image, label, f"{where} row {number}")

    def _row(self, image: Any, label: Any, where: str) -> _Row:
        """An example, checked."""
        try:
            target = operator.index(label)
        except TypeError:
            raise DataError(f"{where}: the label is {_kind(label)}, not a whole number") from None
        if not 0 <= target < len(self.classes):
            check_labels(np.array([target]), self.classes, lambda _: where)
        if self.image_shape is None:
            if not isinstance(image, bytes | bytearray | memoryview):
                raise DataError(
                    f"{where}: {_kind(image)}, not an image file's bytes; arrays need an image_shape"
                )
            return bytes(image), target
        if not isinstance(image, np.ndarray) or (image.dtype, image.shape) != (self._dtype, self.image_shape):
            raise DataError(f"{where}: {_kind(image)}, not {self._dtype} {list(self.image_shape)}")
        return image, target

    def _shuffled(self, rows: Iterator[_Row], draws: Iterator[float]) -> Iterator[_Row]:
        """One pass in a random order: what a full buffer gives away is replaced by what comes next."""
        images, targets = self._room(self._shuffle_buffer)
        held = 0
        for image, target in rows:
            if held < self._shuffle_buffer:
                place, held = held, held + 1
            else:
                place = int(next(draws) * held)
                yield images[place], int(targets[place])
            images[place], targets[place] = image, target
        while held:
            place = int(next(draws) * held)
            yield images[place], int(targets[place])
            held -= 1
            images[place], targets[place] = images[held], targets[held]

    def _uniform(self, first: int) -> Iterator[float]:
        """Numbers in [0, 1), one for each example from number ``first`` on."""
        for start in itertools.count(first, _DRAWN):
            positions = np.arange(start, start + _DRAWN, dtype=np.int64)
            yield from Draws(self._seed, positions).uniform("shuffle/stream").tolist()


def _kind(value: Any) -> str:
    """What something is, in few words."""
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__


def _summary(error: Exception) -> str:
    """Kind and text of an error, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
