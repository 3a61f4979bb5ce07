"""Reading and decoding every example of a data set, to find the damaged ones before a run does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.data.corrupt import CorruptRecord
from foveal.data.decode import decode, read_header
from foveal.data.formats.parts import find_parts
from foveal.data.formats.recognise import recognise
from foveal.data.formats.tfrecords import SUFFIXES
from foveal.data.loader import Loader
from foveal.data.source import Batch, Encoded, keys
from foveal.errors import CorruptRecordError, DataError, ImageError
from foveal.tensorflow.record_framing import RecordError, detect
from foveal.tensorflow.records import read_blocks, read_records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeVar

    from numpy.typing import NDArray

    from foveal.data.download import ProgressReporter
    from foveal.data.source import DataSet, Source

    T = TypeVar("T")

_BLOCK_BYTES = 4 << 20  # of pixels that a thread works on at a time
_BLOCK = 32  # images, where their size is not known beforehand


@dataclass(frozen=True)
class Verification:
    """What reading every example gave.

    Attributes:
        parts: how many examples each part has.
        corrupt: the records that cannot be used, in order.
    """

    parts: dict[str, int]
    corrupt: tuple[CorruptRecord, ...]

    def report(self) -> dict[str, Any]:
        """Plain values, as the command line prints them."""
        return {
            "good": not self.corrupt,
            "examples": sum(self.parts.values()),
            "parts": self.parts,
            "bad": [vars(record) for record in self.corrupt],
        }


@dataclass(frozen=True)
class Readable:
    """Examples that can be read and decoded, their images of one size.

    Attributes:
        indices: int64 ``[B]``.
        images: uint8 or float32 ``[B, H, W, C]``.
        targets: int64 ``[B]``.
        stored: a buffer for each image: its bytes as the data set holds them.
    """

    indices: NDArray[np.int64]
    images: NDArray[Any]
    targets: NDArray[np.int64]
    stored: Any


def verify(data: DataSet, *, threads: int = 1, progress: ProgressReporter | None = None) -> Verification:
    """Read and decode every example of every part.

    Args:
        data: what to read.
        threads: that do it.
        progress: told how many examples are done.

    Raises:
        DataError: the data cannot be read at all, or change meanwhile.
    """
    corrupt = list(rejected(data))

    def check(source: Source, indices: NDArray[np.int64]) -> list[CorruptRecord]:
        found: list[CorruptRecord] = []
        for _ in readable(source, indices, found):
            pass
        return found

    for name, part in data.parts().items():
        work = blocks(part, np.arange(len(part)))
        for found in in_order(check, part, work, f"verifying {name}", threads, progress):
            corrupt += found
    return Verification({name: len(part) for name, part in data.parts().items()}, tuple(corrupt))


def verify_unreadable(where: str, error: DataError) -> Verification:
    """What is to be said of data that cannot even be opened: why, and bad records of TFRecords."""
    found = {where: _without_key(where, str(error))}
    for each in _damaged_records(Path(where)):
        if f"{each.key}," not in str(error):
            found[each.key] = each.reason
    return Verification({}, tuple(CorruptRecord(key, reason) for key, reason in found.items()))


def _damaged_records(path: Path) -> Iterator[CorruptRecord]:
    """The records of TFRecord files that are not what was written, whatever is in them."""
    try:
        if recognise(path) != "tfrecord":
            return
        files = [file for part in find_parts(path, SUFFIXES, {}).values() for file in part]
    except DataError:
        return
    for file in files:
        try:
            with file.open("rb") as opened:
                plain = detect(opened.read(12)) is None
            if not plain:
                for _ in read_records(file):
                    pass
                continue
            for block in read_blocks(file, damaged="keep"):
                for number in (block.number + np.flatnonzero(~block.intact)).tolist():
                    key = f"{file} record {number}"
                    yield CorruptRecord(key, "the checksum of its data is wrong: it is damaged")
        except RecordError as error:
            key = f"{file} record {error.record}"
            yield CorruptRecord(key, _without_key(key, str(error)))


def rejected(data: DataSet) -> Iterator[CorruptRecord]:
    """What was found to be no image when the data were indexed, and is no example therefore."""
    found = dict.fromkeys(pair for part in data.parts().values() for pair in getattr(part, "rejected", ()))
    for key, reason in found:  # parts of one source have the same
        yield CorruptRecord(key, _without_key(key, reason))


def readable(source: Source, indices: NDArray[np.int64], corrupt: list[CorruptRecord]) -> Iterator[Readable]:
    """Read some examples, encoded images one by one; what is damaged is added to ``corrupt`` instead.

    Raises:
        DataError: the data cannot be read at all, or have changed.
    """
    for some, batch in _read(source, indices, corrupt):
        if isinstance(batch.images, Encoded):
            yield from _decoded(source, some, batch, corrupt)
            continue
        images = np.ascontiguousarray(batch.images)
        good = np.isfinite(images).all(axis=(1, 2, 3)) if images.dtype == np.float32 else slice(None)
        reason = "has a value that is not a finite number"
        corrupt.extend(CorruptRecord(key, reason) for key in keys(source, np.delete(some, good)))
        yield Readable(some[good], images[good], batch.targets[good], images[good])


def blocks(source: Source, indices: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Indices in pieces that are worth a thread's while and small in memory."""
    shape = source.image_shape
    length = _BLOCK if shape is None else min(1024, max(1, _BLOCK_BYTES // int(np.prod(shape))))
    return [indices[first : first + length] for first in range(0, len(indices), length)]


def in_order(
    work: Callable[[Source, NDArray[np.int64]], T],
    source: Source,
    pieces: Sequence[NDArray[np.int64]],
    name: str,
    threads: int,
    progress: ProgressReporter | None,
) -> Iterator[T]:
    """The results of ``work`` on pieces of a source, made by several threads, in order, with progress."""
    if progress is not None:
        progress.start(name, sum(map(len, pieces)), 0)
    try:
        with Loader(
            lambda piece: work(source, pieces[piece]), range(len(pieces)), threads=threads
        ) as results:
            for piece, result in zip(pieces, results, strict=True):
                yield result
                if progress is not None:
                    progress.advance(len(piece))
    finally:
        if progress is not None:
            progress.finish()


def _read(
    source: Source, indices: NDArray[np.int64], corrupt: list[CorruptRecord]
) -> Iterator[tuple[NDArray[np.int64], Batch]]:
    """Read examples together; where that fails, each half of them, down to the record that is at fault."""
    try:
        batch = source.read(indices)
    except CorruptRecordError as error:
        if len(indices) == 1:
            key = source.key(int(indices[0]))
            corrupt.append(CorruptRecord(key, _without_key(key, str(error))))
            return
    else:
        yield indices, batch
        return
    middle = len(indices) // 2
    yield from _read(source, indices[:middle], corrupt)
    yield from _read(source, indices[middle:], corrupt)


def _decoded(
    source: Source, indices: NDArray[np.int64], batch: Batch, corrupt: list[CorruptRecord]
) -> Iterator[Readable]:
    """Each image of a batch, decoded at its own size."""
    assert isinstance(batch.images, Encoded)
    for row, (index, content) in enumerate(zip(indices.tolist(), batch.images.contents, strict=True)):
        key = source.key(index)
        try:
            pixels = decode(content, read_header(content, key), None, key)
        except ImageError as error:
            corrupt.append(CorruptRecord(key, _without_key(key, str(error))))
        else:
            here = slice(row, row + 1)
            yield Readable(indices[here], pixels[None], batch.targets[here], [content])


def _without_key(key: str, text: str) -> str:
    return text.removeprefix(key).lstrip(":, ")
