"""Files of fixed-length records: label bytes, then the pixels of one image, with nothing in between.

CIFAR-10's binary version is the best known of them (its page: https://www.cs.toronto.edu/~kriz/cifar.html),
and TensorFlow's ``FixedLengthRecordReader`` read any. There are no checksums in such a file, so what can be
found wrong with it is its length and its labels.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
import weakref
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from foveal.data.formats.parts import find_parts
from foveal.data.source import Batch, DataSet, check_indices, check_labels, class_names
from foveal.errors import DataError, ReadError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from foveal.data.download import ProgressReporter

MEMORY_LIMIT = 512 << 20  # bytes of files that are held in memory
_BLOCK = 1 << 20  # bytes read at once where everything is read: it stays in the processor's cache
_SUFFIXES = (".bin", ".dat", ".data", ".raw")


@dataclass(frozen=True, kw_only=True)
class RecordLayout:
    """What a file consists of: a header, records without gaps, a footer. A record: labels, then pixels.

    Attributes:
        image_shape: height, width and channels.
        label_bytes: how many bytes stand before the pixels, each a label of its own.
        label_at: which of them is the target.
        channels_first: the pixels are stored as [channels, height, width], else [height, width, channels].
        header_bytes: skipped at the start of every file.
        footer_bytes: skipped at its end.

    Raises:
        RecipeError: a size is negative, there is no pixel, or the target is not among the label bytes.
    """

    image_shape: tuple[int, int, int]
    label_bytes: int = 1
    label_at: int = 0
    channels_first: bool = True
    header_bytes: int = 0
    footer_bytes: int = 0

    def __post_init__(self) -> None:
        if len(self.image_shape) != 3 or not all(isinstance(n, int) and n >= 1 for n in self.image_shape):
            raise RecipeError(f"image_shape = {self.image_shape}: three numbers, each at least 1")
        if not 0 <= self.label_at < self.label_bytes:
            raise RecipeError(f"label_at = {self.label_at}: not one of {self.label_bytes} label bytes")
        if self.header_bytes < 0 or self.footer_bytes < 0:
            raise RecipeError(f"{self.header_bytes} header_bytes and {self.footer_bytes} footer_bytes")

    @property
    def record_bytes(self) -> int:
        """The length of a record."""
        return self.label_bytes + math.prod(self.image_shape)

    def unpack(self, records: NDArray[np.uint8], images: NDArray[np.uint8]) -> None:
        """Fill ``images`` (uint8 ``[B, H, W, C]``) from ``records`` (uint8 ``[B, record_bytes]``)."""
        height, width, channels = self.image_shape
        flat = records[:, self.label_bytes :]
        if self.channels_first:
            planes = flat.reshape(len(flat), channels, height, width)
            for channel in range(channels):  # 3 to 4 times as fast as transposing all of it at once
                images[..., channel] = planes[:, channel]
        else:
            images[...] = flat.reshape(images.shape)

    def count(self, path: Path, size: int) -> int:
        """How many records a file of ``size`` bytes holds.

        Raises:
            DataError: none, or not a whole number of them.
        """
        if size == 0:
            raise DataError(f"{path}: is empty")
        around = self.header_bytes + self.footer_bytes
        if size < around:
            raise DataError(f"{path}: {size} bytes, fewer than the {around} of its header and footer")
        records, over = divmod(size - around, self.record_bytes)
        if over:
            raise DataError(
                f"{path}: {records} records of {self.record_bytes} bytes and {over} bytes over: "
                "it is cut off, damaged, or has another layout"
            )
        if records == 0:
            raise DataError(f"{path}: holds no records, only a header and a footer")
        return records


def open_fixed_length(
    path: Path,
    progress: ProgressReporter | None = None,  # noqa: ARG001 - all formats are called alike
    *,
    image_shape: Sequence[int],
    classes: Sequence[str] | int,
    label_bytes: int = 1,
    label_at: int = 0,
    channels_first: bool = True,
    header_bytes: int = 0,
    footer_bytes: int = 0,
    train: str | Sequence[str] | None = None,
    validation: str | Sequence[str] | None = None,
    test: str | Sequence[str] | None = None,
) -> DataSet:
    """Files of fixed-length records, of one layout (see :class:`RecordLayout`).

    Args:
        path: a file, a folder with files ``*.bin``, ``*.dat``, ``*.data`` or ``*.raw``, or a pattern.
        progress: told of nothing: it is quick.
        image_shape: height, width and channels.
        classes: the class names, or how many classes there are.
        label_bytes: how many bytes stand before the pixels.
        label_at: which of them is the target.
        channels_first: the pixels are stored as [channels, height, width], else [height, width, channels].
        header_bytes: skipped at the start of every file.
        footer_bytes: skipped at its end.
        train: names or patterns of the files to train on; by default their names decide, see ``find_parts``.
        validation: as ``train``.
        test: as ``train``.

    Raises:
        DataError: as for :class:`FixedLengthSource`, or there are no such files.
        RecipeError: the layout or the classes cannot be.
    """
    layout = RecordLayout(
        image_shape=tuple(image_shape),  # type: ignore[arg-type]  # its length is checked there
        label_bytes=label_bytes,
        label_at=label_at,
        channels_first=channels_first,
        header_bytes=header_bytes,
        footer_bytes=footer_bytes,
    )
    names = class_names(classes)
    patterns = {"train": train, "validation": validation, "test": test}
    parts = find_parts(path, _SUFFIXES, patterns)
    return DataSet(**{part: FixedLengthSource(paths, layout, names) for part, paths in parts.items()})


class FixedLengthSource:
    """The images in files of fixed-length records, one file after another: a ``Source``.

    Files that together are small are read once, turned to NHWC, and their labels checked. Of larger ones,
    each record is read when it is asked for, and its label is checked then; the files are closed when the
    source is no longer referred to. A file that changes meanwhile is an error. One
    that is replaced under its name is not noticed: the source still has the old one.

    Args:
        paths: the files, in the order in which their records are numbered.
        layout: what they consist of.
        classes: the class names.
        memory_limit: bytes that all files together may have to be held in memory.

    Raises:
        DataError: a file is missing, empty, not a whole number of records long or, if it is held in
            memory, has a label that is out of range.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        layout: RecordLayout,
        classes: Sequence[str],
        *,
        memory_limit: int = MEMORY_LIMIT,
    ) -> None:
        self.classes = tuple(classes)
        self._layout = layout
        self._files = _RecordFiles(paths, layout)
        self._digest = ""
        self._held: tuple[NDArray[np.uint8], NDArray[np.int64]] | None = None
        if self._files.total_bytes <= memory_limit:
            try:
                self._held = self._load()
            finally:
                self._files.close()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        return self._layout.image_shape

    @property
    def targets(self) -> NDArray[np.int64] | None:
        """Every example's class index, int64 ``[N]``; None where the files are not held in memory."""
        return None if self._held is None else self._held[1]

    def __len__(self) -> int:
        return self._files.records

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """The examples at ``indices``, copied.

        Raises:
            DataError: a file has changed since it was opened, or a label is out of range.
            ReadError: the device failed.
            IndexError: there is no such example.
        """
        return Batch(*self._read(indices))

    def key(self, index: int) -> str:
        """``FILE record N``, counted from 0 within the file."""
        return self._files.key(index)

    def fingerprint(self) -> str:
        """SHA-256 of shape, pixels, labels and class names, as 16 hex digits; equal to an ``ArraySource``'s.

        It covers every byte, wherever the files are kept: large ones are read through, once in the life of
        the source, at about the speed of the disk.
        """
        if not self._digest:
            digest = hashlib.sha256(repr(((len(self), *self.image_shape), self.classes)).encode())
            labels = []  # a byte each until their turn comes, after all pixels
            for first, stop in self._blocks():
                images, targets = self._read(np.arange(first, stop))
                digest.update(images.data)
                labels.append(targets.astype(np.uint8))
            for some in labels:
                digest.update(some.astype(np.int64).data)
            self._digest = digest.hexdigest()[:16]
        return self._digest

    def _read(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        check_indices(indices, len(self))
        if self._held is not None:
            images, targets = self._held
            return images[indices], targets[indices]
        records = self._files.read(indices)
        images = np.empty((len(indices), *self.image_shape), np.uint8)
        self._layout.unpack(records, images)
        return images, self._checked_targets(records, indices)

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """Ranges of examples that cover all of them, each of about the same number of bytes."""
        length = max(1, _BLOCK // self._layout.record_bytes)
        return ((first, min(first + length, len(self))) for first in range(0, len(self), length))

    def _load(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        images = np.empty((len(self), *self.image_shape), np.uint8)
        targets = np.empty(len(self), np.int64)
        for first, stop in self._blocks():
            numbers = np.arange(first, stop)
            records = self._files.read(numbers)
            self._layout.unpack(records, images[first:stop])
            targets[first:stop] = self._checked_targets(records, numbers)
        return images, targets

    def _checked_targets(self, records: NDArray[np.uint8], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        targets = records[:, self._layout.label_at].astype(np.int64)
        check_labels(targets, self.classes, lambda place: self._files.key(int(numbers[place])))
        return targets


class _RecordFiles:
    """Open files, their records numbered through. Reading is safe from any thread: no file has a position."""

    def __init__(self, paths: Sequence[Path], layout: RecordLayout) -> None:
        if not paths:
            raise DataError("no file of records is given")
        self._paths, self._layout = tuple(paths), layout
        with ExitStack() as opened:
            self._descriptors = [_open(path, opened) for path in paths]
            self._states = [_state(descriptor) for descriptor in self._descriptors]
            counts = [layout.count(path, size) for path, (size, _) in zip(paths, self._states, strict=True)]
            # A reading thread refers to this object, so no descriptor is closed, and given to another file,
            # while it is in use.
            self.close = weakref.finalize(self, opened.pop_all().close)
        self._starts = np.cumsum([0, *counts], dtype=np.int64)  # number of each file's first record
        self.records = sum(counts)
        self.total_bytes = sum(size for size, _ in self._states)

    def key(self, number: int) -> str:
        file = int(np.searchsorted(self._starts, number, side="right")) - 1
        return f"{self._paths[file]} record {number - self._starts[file]}"

    def read(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The records of these numbers, as uint8 ``[B, record_bytes]``.

        Each is read once, in the order of their places, and neighbours together.
        """
        wanted, places = np.unique(numbers, return_inverse=True)
        records = np.empty((len(wanted), self._layout.record_bytes), np.uint8)
        files = np.searchsorted(self._starts, wanted, side="right") - 1
        apart = (np.diff(wanted) != 1) | (np.diff(files) != 0)
        edges = [0, *(np.flatnonzero(apart) + 1).tolist(), len(wanted)]
        for first, stop in pairwise(edges if wanted.size else []):
            self._fill(records[first:stop], int(files[first]), int(wanted[first]))
        for file in np.unique(files).tolist():
            self._check_unchanged(file)
        return records if np.array_equal(wanted, numbers) else records[places]

    def _fill(self, records: NDArray[np.uint8], file: int, number: int) -> None:
        """Read the records of one file from ``number`` on."""
        target = records.reshape(-1).data
        length = self._layout.record_bytes
        offset = self._layout.header_bytes + (number - int(self._starts[file])) * length
        done = 0
        while done < len(target):
            at = number + done // length
            try:
                piece = os.pread(self._descriptors[file], len(target) - done, offset + done)
            except OSError as error:
                raise ReadError(f"{self.key(at)}: cannot be read: {error.strerror}") from error
            if not piece:
                raise DataError(f"{self.key(at)}: the file ends before it: it has become shorter")
            target[done : done + len(piece)] = piece
            done += len(piece)

    def _check_unchanged(self, file: int) -> None:
        if _state(self._descriptors[file]) != self._states[file]:
            raise DataError(f"{self._paths[file]}: has changed since it was opened")


def _open(path: Path, opened: ExitStack) -> int:
    """A descriptor for reading, closed with ``opened``."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # before opening: a named pipe would wait for its writer
            raise DataError(f"{path}: is a folder or a device, not a file of records")
        return opened.enter_context(path.open("rb", buffering=0)).fileno()
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be opened: {error.strerror}") from None


def _state(descriptor: int) -> tuple[int, int]:
    """Size and time of change of an open file."""
    now = os.fstat(descriptor)
    return now.st_size, now.st_mtime_ns
