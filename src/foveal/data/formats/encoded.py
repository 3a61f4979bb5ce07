"""Sources whose images are the bytes of image files: in folders, records, or columns of tables."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from array import array
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TypeVar

import google_crc32c
import numpy as np

from foveal.data.decode import decode_into, read_header
from foveal.data.formats.index import states
from foveal.data.source import Batch, DataSet, Encoded, check_indices, check_labels
from foveal.errors import DataError, ImageError, ReadError
from foveal.processors import processors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from foveal.data.download import ProgressReporter
    from foveal.data.source import Source

FILE_LIMIT = 1 << 30  # bytes of an image file
PRELOAD_LIMIT = 512 << 20  # bytes of pixels that are held in memory
_CHUNK = 64  # images that a thread works on in one go
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class ImageTable:
    """What indexing found out about every image; all ``[N]``.

    Attributes:
        targets: int64, class indices.
        heights: int32, upright (EXIF orientation applied).
        widths: int32, upright.
        channels: uint8: 1 for grey, 3 for all others.
        checksums: uint32, CRC-32C of the encoded bytes.
        lengths: int64, of the encoded bytes.
    """

    targets: NDArray[np.int64]
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]
    channels: NDArray[np.uint8]
    checksums: NDArray[np.uint32]
    lengths: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.targets)

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self:
        """The table in an index; ``vars(table)`` are its arrays."""
        return cls(*(arrays[name].astype(dtype, copy=False) for name, dtype in _COLUMNS.items()))

    def take(self, rows: slice | NDArray[np.int64] | NDArray[np.bool_]) -> Self:
        """Some rows."""
        return type(self)(*(column[rows] for column in vars(self).values()))


_COLUMNS = {
    "targets": np.int64,
    "heights": np.int32,
    "widths": np.int32,
    "channels": np.uint8,
    "checksums": np.uint32,
    "lengths": np.int64,
}


@dataclass(frozen=True)
class Inspection:
    """What some bytes are, of which each may be an image.

    Attributes:
        good: bool ``[N]``: which are images, as far as their headers tell.
        rows: int64 ``[sum(good), 5]``: height, width, channels, checksum and length of those.
        rejected: key and reason of each of the others.
    """

    good: NDArray[np.bool_]
    rows: NDArray[np.int64]
    rejected: list[tuple[str, str]]

    @classmethod
    def joined(cls, parts: Sequence[Inspection]) -> Inspection:
        """One inspection after another."""
        return cls(
            np.concatenate([np.empty(0, np.bool_), *(part.good for part in parts)]),
            np.concatenate([np.empty((0, 5), np.int64), *(part.rows for part in parts)]),
            [pair for part in parts for pair in part.rejected],
        )

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[np.generic]], key: Callable[[int], str]) -> Inspection:
        """The inspection in an index; ``key`` as for ``inspect_images``."""
        good = arrays["good"].astype(np.bool_)
        reasons = json.loads(arrays["reasons"].tobytes())
        numbers = np.flatnonzero(~good).tolist()
        rejected = [(key(number), reason) for number, reason in zip(numbers, reasons, strict=True)]
        return cls(good, arrays["rows"].astype(np.int64), rejected)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """The inspection for an index."""
        reasons = json.dumps([reason for _, reason in self.rejected])
        return {
            "good": self.good,
            "rows": self.rows,
            "reasons": np.frombuffer(reasons.encode(), np.uint8),
        }

    def table(self, targets: NDArray[np.int64]) -> ImageTable:
        """The images with their labels, of which there is one for each of the ``N``."""
        heights, widths, channels, checksums, lengths = np.ascontiguousarray(self.rows.T)
        return ImageTable(
            np.asarray(targets, np.int64)[self.good],
            heights.astype(np.int32),
            widths.astype(np.int32),
            channels.astype(np.uint8),
            checksums.astype(np.uint32),
            lengths.copy(),  # a column of its own: the others are not kept for its sake
        )


def inspect_images(contents: Iterable[bytes | DataError], key: Callable[[int], str]) -> Inspection:
    """Look at what may be images: at their headers, and at all bytes for the checksum.

    Args:
        contents: taken one at a time. An error stands for bytes that could not be read.
        key: where number ``i`` of them comes from, for messages.
    """
    good, rows, rejected = bytearray(), array("q"), []
    for number, content in enumerate(contents):
        try:
            if isinstance(content, DataError):
                raise content
            header = read_header(content, key(number))
        except DataError as error:
            where = key(number)
            rejected.append((where, str(error).removeprefix(f"{where}: ")))
            good.append(False)
        else:
            rows.extend((*header, google_crc32c.value(content), len(content)))
            good.append(True)
    return Inspection(np.frombuffer(good, np.bool_), np.array(rows, np.int64).reshape(-1, 5), rejected)


def inspect_files(
    paths: Sequence[str], key: Callable[[int], str], progress: ProgressReporter | None
) -> Inspection:
    """Look at files that may be images, in threads; ``key`` as for ``inspect_images``.

    Raises:
        DataError: a file is missing.
    """

    def load(number: int) -> bytes | DataError:
        try:
            return load_image_file(paths[number], key(number))
        except DataError as error:
            return error

    def work(numbers: range) -> tuple[Inspection, int]:
        found = inspect_images(map(load, numbers), lambda place: key(numbers[place]))
        return found, int(found.rows[:, 4].sum())

    total = int(states(paths)[:, 0].sum())
    return Inspection.joined(in_chunks(work, len(paths), "indexing", total, progress))


def load_image_file(path: str, key: str) -> bytes:
    """The bytes of an image file, which messages call ``key``.

    Raises:
        ReadError: it cannot be read.
        DataError: it has more than ``FILE_LIMIT`` bytes.
    """
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - a Path takes as long as a read
            if os.fstat(file.fileno()).st_size > FILE_LIMIT:
                raise DataError(f"{key}: is larger than the limit of {FILE_LIMIT >> 20} MiB")
            return file.read()
    except OSError as error:
        raise ReadError(f"{key}: cannot be read: {error.strerror}") from error


def in_chunks(
    work: Callable[[range], tuple[_Result, int]],
    count: int,
    name: str,
    total_bytes: int,
    progress: ProgressReporter | None,
) -> list[_Result]:
    """Do something with ``count`` images in threads, some at a time; the results, in order.

    Args:
        work: takes the numbers of some images, and gives a result and how many bytes it read.
        count: how many images there are.
        name: what is done, for the progress.
        total_bytes: how many bytes will be read.
        progress: is told.
    """
    if progress is not None:
        progress.start(name, total_bytes, 0)
    chunks = [range(first, min(first + _CHUNK, count)) for first in range(0, count, _CHUNK)]
    results = []
    with ThreadPoolExecutor(processors(), thread_name_prefix=name) as pool:
        try:
            for result, done in pool.map(work, chunks):
                results.append(result)
                if progress is not None:
                    progress.advance(done)
        finally:
            pool.shutdown(cancel_futures=True)
            if progress is not None:
                progress.finish()
    return results


class EncodedSource(ABC):
    """A source of encoded images, of which subclasses say where the bytes are.

    What is read is compared with the checksums of the index: data that change afterwards are an error.

    Args:
        table: what indexing found.
        classes: class names.
        rejected: key and reason of what indexing found not to be images.

    Attributes:
        size: height and width of every image, None where they differ.
        channels: 1 if all images are grey, else 3.

    Raises:
        DataError: there are no images, or a label is out of range.
    """

    def __init__(
        self, table: ImageTable, classes: Sequence[str], rejected: Sequence[tuple[str, str]] = ()
    ) -> None:
        self.table = table
        self.classes = tuple(classes)
        self.rejected = tuple(rejected)
        if not len(table):
            found = f": {': '.join(rejected[0])}" if rejected else ""
            raise DataError(f"there are no images in the data{found}")
        check_labels(table.targets, self.classes, self.key)
        sizes = [np.unique(column) for column in (table.heights, table.widths)]
        uniform = all(size.size == 1 for size in sizes)
        self.size = (int(sizes[0][0]), int(sizes[1][0])) if uniform else None
        self.channels = int(table.channels.max())

    @abstractmethod
    def _load(self, indices: NDArray[np.int64]) -> list[bytes]:
        """The bytes of some images."""

    @abstractmethod
    def key(self, index: int) -> str:
        """Where example ``index`` comes from, file and record, for messages."""

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Height, width and channels of every image, None where sizes differ; 1 channel if all are grey."""
        return None if self.size is None else (*self.size, self.channels)

    @property
    def targets(self) -> NDArray[np.int64]:
        """Every example's class index, int64 ``[N]``."""
        return self.table.targets

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """The examples at ``indices``, still encoded.

        Raises:
            DataError: an image cannot be read, or is not the one that was indexed.
            IndexError: there is no such example.
        """
        check_indices(indices, len(self))
        contents = self._load(indices)
        for index, content, checksum in zip(
            indices.tolist(), contents, self.table.checksums[indices].tolist(), strict=True
        ):
            if google_crc32c.value(content) != checksum:
                raise DataError(
                    f"{self.key(index)}: has changed since it was indexed: "
                    "run `foveal data index PATH --rebuild`, or give the data as they were"
                )
        sizes = np.stack([self.table.heights[indices], self.table.widths[indices]], axis=1)
        return Batch(Encoded(tuple(contents), sizes), self.targets[indices])

    def digests(self) -> NDArray[np.uint64]:
        """A hash of each image's bytes, uint64 ``[N]``: its CRC-32C above the low 32 bits of its length."""
        lengths = self.table.lengths.astype(np.uint64) & np.uint64(0xFFFFFFFF)
        return self.table.checksums.astype(np.uint64) << np.uint64(32) | lengths

    def fingerprint(self) -> str:
        """SHA-256 of checksums, lengths, labels and class names, as 16 hex digits."""
        digest = hashlib.sha256(repr((len(self), self.classes)).encode())
        for column in (self.table.checksums, self.table.lengths, self.targets):
            digest.update(np.ascontiguousarray(column).data)
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.table)


def assemble(sources: Mapping[str, Source], *, hold: bool, progress: ProgressReporter | None) -> DataSet:
    """A data set of the parts by name; with ``hold``, images are decoded into memory if ``preload`` can."""
    unify_shapes(source for source in sources.values() if isinstance(source, EncodedSource))
    parts = {
        part: preload(source, progress=progress) if hold and isinstance(source, EncodedSource) else source
        for part, source in sources.items()
    }
    return DataSet(**parts)


def unify_shapes(sources: Iterable[EncodedSource]) -> None:
    """Have the parts of a data set state one image shape: None where their sizes differ, grey if all are."""
    sources = list(sources)
    sizes = {source.size for source in sources}
    size = sizes.pop() if len(sizes) == 1 else None
    channels = max((source.channels for source in sources), default=3)
    for source in sources:
        source.size, source.channels = size, channels


def preload(
    source: EncodedSource, *, limit: int = PRELOAD_LIMIT, progress: ProgressReporter | None = None
) -> Source:
    """Decode all images into memory, once, where they have one shape and ``limit`` bytes hold their pixels.

    The result reads like an array: uint8 ``[B, H, W, C]``, under the keys, labels, digests and fingerprint of
    ``source``. A damaged image is an error when it is read, and not before. Other sources are given back as
    they are.

    Raises:
        DataError: an image cannot be read, or is not the one that was indexed.
    """
    shape = source.image_shape
    if shape is None or len(source) * int(np.prod(shape)) > limit:
        return source
    return _Preloaded(source, shape, progress)


class _Preloaded:
    """The pixels of an ``EncodedSource``; what it does not say itself, that does."""

    def __init__(
        self, source: EncodedSource, shape: tuple[int, int, int], progress: ProgressReporter | None
    ) -> None:
        self.classes, self.targets, self.rejected = source.classes, source.targets, source.rejected
        self.key, self.digests, self.fingerprint = source.key, source.digests, source.fingerprint
        self.image_shape = shape
        self._images = np.zeros((len(source), *shape), np.uint8)
        self._damaged: dict[int, str] = {}
        in_chunks(
            lambda numbers: (None, self._decode(source, numbers)),
            len(source),
            "decoding",
            int(source.table.lengths.sum()),
            progress,
        )

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """The examples at ``indices``, copied.

        Raises:
            ImageError: one could not be decoded.
        """
        if self._damaged:
            for index in indices.tolist():
                if index in self._damaged:
                    raise ImageError(self._damaged[index])
        return Batch(self._images[indices], self.targets[indices])

    def _decode(self, source: EncodedSource, numbers: range) -> int:
        """Decode some images; the bytes that they took."""
        indices = np.array(numbers)
        images = source.read(indices).images
        assert isinstance(images, Encoded)
        for index, content in zip(indices.tolist(), images.contents, strict=True):
            try:
                decode_into(self._images[index], content, None, source.key(index))
            except ImageError as error:
                self._damaged[index] = str(error)
        return sum(map(len, images.contents))
