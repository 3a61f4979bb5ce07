"""Many TFRecord files as one sequence of records, read at random; compressed ones are unpacked once."""

from __future__ import annotations

import functools
import hashlib
import shutil
from typing import TYPE_CHECKING

import numpy as np
import platformdirs
from filelock import FileLock

from foveal.data.formats.index import printable, states
from foveal.errors import DataError, ReadError
from foveal.tensorflow.example import parse_batch
from foveal.tensorflow.record_framing import detect
from foveal.tensorflow.record_writer import RecordWriter
from foveal.tensorflow.records import RecordBlock, RecordFile, read_records

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from foveal.data.download import ProgressReporter
    from foveal.tensorflow.example import Columns, FixedLength, VariableLength

MEMORY_LIMIT = 512 << 20  # bytes of files that are held in memory
_OPEN_LIMIT = 256  # files of a part that are open at once: ImageNet has 1,024
_RESERVE = 1 << 30  # bytes of the disk that stay free
_CHECK = 64 << 20  # bytes between two looks at how much is free


class RecordFiles:
    """The records of files, numbered through them in order. Threads may share it.

    Args:
        paths: the files, as messages name them.
        plain: the same files, or what they unpack to.
        counts: how many records each has.
        index: int64 ``[N, 2]``, what ``index_records`` gives for each, one below the other.
    """

    def __init__(
        self, paths: Sequence[Path], plain: Sequence[Path], counts: Sequence[int], index: NDArray[np.int64]
    ) -> None:
        self._paths, self._plain, self._index = tuple(paths), tuple(plain), index
        self._starts = np.cumsum([0, *counts], dtype=np.int64)
        self._states = states(self._plain)
        self._hold = 1 << 62 if self._states[:, 0].sum() <= MEMORY_LIMIT else 0
        self._open = functools.lru_cache(None if self._hold else _OPEN_LIMIT)(self._opened)

    def __len__(self) -> int:
        return len(self._index)

    def key(self, number: int) -> str:
        """``FILE record N``, counted from 0 within the file."""
        file = int(np.searchsorted(self._starts, number, side="right")) - 1
        return f"{printable(self._paths[file])} record {number - int(self._starts[file])}"

    def columns(
        self, numbers: NDArray[np.int64], specification: Mapping[str, FixedLength | VariableLength]
    ) -> Columns:
        """Features of some records, as ``parse_batch`` gives them.

        Raises:
            RecordError: a record is damaged, or not the one that was indexed.
            DataError: a file has changed since it was opened.
            ReadError: the device failed.
            ExampleError: a record does not hold what was asked for.
        """
        return parse_batch(self._read(numbers), specification, lambda row: self.key(int(numbers[row])))

    def release(self) -> None:
        """Let go of files that are open or in memory, until records are read again."""
        self._open.cache_clear()

    def _read(self, numbers: NDArray[np.int64]) -> RecordBlock:
        files = np.searchsorted(self._starts, numbers, side="right") - 1
        order = np.argsort(files, kind="stable")
        contents, starts, stops, base = [], np.empty_like(numbers), np.empty_like(numbers), 0
        for file in np.unique(files).tolist():
            rows = order[files[order] == file]
            if not np.array_equal(states([self._plain[file]])[0], self._states[file]):
                raise DataError(f"{printable(self._paths[file])}: has changed since it was opened")
            try:
                block = self._open(file).read_block(numbers[rows] - self._starts[file])
            except OSError as error:
                raise ReadError(
                    f"{printable(self._paths[file])}: cannot be read: {error.strerror}"
                ) from error
            starts[rows], stops[rows] = block.starts + base, block.stops + base
            contents.append(block.content)
            base += len(block.content)
        return RecordBlock(contents[0] if len(contents) == 1 else b"".join(contents), starts, stops)

    def _opened(self, file: int) -> RecordFile:
        index = self._index[self._starts[file] : self._starts[file + 1]]
        return RecordFile(self._plain[file], index, self._hold, name=printable(self._paths[file]))


def plain_file(path: Path, progress: ProgressReporter | None = None) -> Path:
    """The file itself or, where it is compressed, what it unpacks to: a file in the user's cache folder.

    That is made once, and again when the file's size or time of change differs; it replaces the older one.
    All checksums are verified on the way. Processes that want the same one wait for the one that makes it.

    Raises:
        RecordError: the file is cut off or damaged.
        DataError: it cannot be read, or there is no room for what it unpacks to.
    """
    size, changed = states([path])[0].tolist()
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot be opened: {error.strerror}") from None
    if detect(head) is None:
        return path
    folder = platformdirs.user_cache_path("foveal") / "unpacked"
    place, state = (
        hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]
        for text in (str(path.resolve()), f"{size}/{changed}")
    )
    target = folder / f"{place}-{state}.tfrecord"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{place}.lock"):
            if not target.exists():
                for older in folder.glob(f"{place}-*.tfrecord"):
                    older.unlink()
                _unpack(path, size, target, progress)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{printable(path)}: cannot be unpacked into {folder}: {reason}") from None
    return target


def _unpack(path: Path, size: int, target: Path, progress: ProgressReporter | None) -> None:
    written = checked = 0
    if progress is not None:
        progress.start(f"unpacking {path.name}", size, 0)
    try:
        with RecordWriter(target) as writer:
            for record in read_records(path):
                written += len(record.data) + 16
                if written > checked:
                    _require_room(path, target.parent, len(record.data) + _CHECK)
                    checked = written + _CHECK
                writer.write(record.data)
        if progress is not None:
            progress.advance(size)
    finally:
        if progress is not None:
            progress.finish()


def _require_room(path: Path, folder: Path, size: int) -> None:
    if shutil.disk_usage(folder).free < size + _RESERVE:
        raise DataError(
            f"{printable(path)}: no room for what it unpacks to: {folder} has less than "
            f"{(size + _RESERVE) >> 20} MiB free"
        )
