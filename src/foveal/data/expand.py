"""Several examples out of one record: what TensorFlow's ``enqueue_many`` put into its queues."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from foveal.data.batches import join, kind, pick
from foveal.data.source import Batch, Encoded, blocks, check_indices
from foveal.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from foveal.data.source import Source


def expand(source: Source, function: Callable[[Batch], Batch]) -> Source:
    """Several examples out of each record, or none: what ``function`` makes of it.

    It is called for every record once, to count, and again for each record that is read.

    Args:
        source: the records.
        function: makes a batch of any number of examples out of a batch of one; always the same of the same.
            Its images are of one shape, or encoded; its targets are among the classes of ``source``. Threads
            call it at the same time.

    Raises:
        DataError: there are no records, one cannot be read, or ``function`` made something else of it.
    """
    if len(source) == 0:
        raise DataError("there are no records to expand")
    return _Expansion(source, function)


class _Expansion:
    """What a function makes of the records of a source; where each record's examples begin is known."""

    def __init__(self, source: Source, function: Callable[[Batch], Batch]) -> None:
        self._source, self._function = source, function
        self.classes, self.rejected = source.classes, getattr(source, "rejected", ())
        first = self._make(np.zeros(1, np.int64))[0]
        self._kind, self._none = kind(first), pick(first, np.empty(0, np.int64))
        images = first.images
        self.image_shape = None if isinstance(images, Encoded) else images.shape[1:]
        counts, digest = [], hashlib.sha256(repr((self.classes, self._kind)).encode())
        for indices in blocks(len(source), 64):
            batches = self._make(indices)
            self._check(batches, indices)
            counts += [len(batch.targets) for batch in batches]
            for piece in _contents(join(batches)):
                digest.update(piece)
        self._starts = np.cumsum([0, *counts])
        self._fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, indices: NDArray[np.int64]) -> Batch:
        check_indices(indices, len(self))
        if indices.size == 0:
            return self._none
        owners = np.searchsorted(self._starts, indices, side="right") - 1
        records, which = np.unique(owners, return_inverse=True)
        batches = self._make(records)
        self._check(batches, records)
        counts = np.array([len(batch.targets) for batch in batches])
        expected = self._starts[records + 1] - self._starts[records]
        if changed := np.flatnonzero(counts != expected).tolist():
            one = changed[0]
            raise DataError(
                f"{self._source.key(int(records[one]))}: {counts[one]} examples were made of it, "
                f"{expected[one]} when they were counted: the function must always make the same"
            )
        places = (np.cumsum(counts) - counts)[which] + indices - self._starts[owners]
        return pick(join(batches), places)

    def key(self, index: int) -> str:
        """``FILE record N example K``."""
        check_indices(np.array([index]), len(self))
        record = int(np.searchsorted(self._starts, index, side="right")) - 1
        return f"{self._source.key(record)} example {index - int(self._starts[record])}"

    def fingerprint(self) -> str:
        return self._fingerprint

    def _make(self, records: NDArray[np.int64]) -> list[Batch]:
        """What is made of each of some records."""
        batch = self._source.read(records)
        return [self._function(pick(batch, np.array([place]))) for place in range(len(records))]

    def _check(self, batches: Sequence[Batch], records: NDArray[np.int64]) -> None:
        for made, record in zip(batches, records.tolist(), strict=True):
            if len(made.images) != len(made.targets):
                problem = f"{len(made.images)} images but {len(made.targets)} labels were made of it"
            elif kind(made) != self._kind:
                problem = f"{kind(made)} were made of it, {self._kind} of another"
            elif made.targets.dtype != np.int64:
                problem = f"labels of {made.targets.dtype} were made of it, not int64"
            elif ((made.targets < 0) | (made.targets >= len(self.classes))).any():
                problem = f"labels {made.targets.tolist()} were made of it, for {len(self.classes)} classes"
            else:
                continue
            raise DataError(f"{self._source.key(record)}: {problem}")


def _contents(batch: Batch) -> Sequence[bytes | memoryview]:
    """All bytes of a batch, each encoded image after its length."""
    targets = np.ascontiguousarray(batch.targets).data
    if isinstance(batch.images, Encoded):
        pieces = [
            piece for each in batch.images.contents for piece in (len(each).to_bytes(8, "little"), each)
        ]
        return [*pieces, targets]
    return [np.ascontiguousarray(batch.images).data, targets]
