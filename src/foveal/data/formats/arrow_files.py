"""Parquet and Arrow files, read a group of rows at a time.

Specifications: Apache Parquet (a file of row groups) and the Arrow IPC format (record batches, in a file with
a footer or in a stream, as Hugging Face's library keeps them). pyarrow reads them; whatever it says about
damaged bytes becomes one error that names the file and the group.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.data.formats.index import printable, states
from foveal.errors import DataError, ReadError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence
    from pathlib import Path

    import pyarrow as pa

GROUP_LIMIT = 2 << 30  # bytes of a row group in memory
CACHE_LIMIT = 512 << 20  # bytes of row groups that are kept
_ROWS_PER_BYTE = 64  # more rows than this in a byte of file are no data
_PIECE = 256  # rows that are unpacked between two looks at the limit
_END_MARK = b"\xff\xff\xff\xff\0\0\0\0"  # of an Arrow stream


class TableFile(ABC):
    """A table in a file. Groups of its rows can be read in any order, from any thread.

    Args:
        path: the file.

    Attributes:
        where: the file, for messages.
        schema: names and types of the columns.

    Raises:
        DataError: the file is missing, unreadable or damaged.
    """

    schema: pa.Schema

    def __init__(self, path: Path) -> None:
        self.path, self.where = path, printable(path)
        self._state = states([path])

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return int(self._state[0, 0])

    @abstractmethod
    def groups(self, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
        """Every group's place and rows, one after another.

        Raises:
            DataError: the file is damaged, or has changed since it was opened.
        """

    @abstractmethod
    def read(self, place: int, columns: Sequence[str]) -> pa.Table:
        """The rows of the group at ``place``.

        Raises:
            DataError: the file is damaged, or has changed since it was opened.
        """

    @contextmanager
    def _opened(self, group: str = "") -> Iterator[pa.OSFile]:
        """The file; errors within name it, and the group."""
        import pyarrow as pa

        try:
            with pa.OSFile(os.fsencode(self.path)) as file:
                yield file
        except DataError:
            raise
        except Exception as error:  # what pyarrow raises at damaged bytes has no common base
            self._check_unchanged()
            reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
            failed = isinstance(error, OSError) and error.errno is not None
            kind = ReadError if failed else DataError
            raise kind(f"{self.where}{group}: cannot be read: {reason[0]}") from error
        self._check_unchanged()

    def _check_unchanged(self) -> None:
        if not np.array_equal(self._state, states([self.path])):
            raise DataError(f"{self.where}: has changed since it was opened")

    def _check(self, table: pa.Table | pa.RecordBatch, group: str) -> None:
        if table.nbytes > GROUP_LIMIT:
            raise DataError(
                f"{self.where}{group}: more than {GROUP_LIMIT >> 30} GiB: write it with smaller row groups"
            )
        if table.num_rows > _ROWS_PER_BYTE * self.size:
            raise DataError(
                f"{self.where}{group}: {table.num_rows:,} rows in {self.size:,} bytes cannot be data"
            )


class _ParquetFile(TableFile):
    """A group is a row group; its place, the number of that."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._metadata: Any = None
        with self._opened() as file:
            opened = self._open(file)
            self._metadata, self.schema = opened.metadata, _decoded(opened.schema_arrow)
            rows = self._metadata.num_rows
        if not 0 <= rows <= _ROWS_PER_BYTE * self.size:
            raise DataError(
                f"{self.where}: {rows:,} rows in {self.size:,} bytes cannot be data: it is damaged"
            )

    def groups(self, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
        for number in range(self._metadata.num_row_groups):
            yield number, self.read(number, columns)

    def read(self, place: int, columns: Sequence[str]) -> pa.Table:
        import pyarrow as pa

        group = f" row group {place}"
        with self._opened(group) as file:
            batches: list[pa.RecordBatch] = []
            total = 0
            for batch in self._open(file).iter_batches(_PIECE, [place], list(columns), use_threads=False):
                batches.append(batch)
                total += batch.nbytes
                if total > GROUP_LIMIT:
                    break
            empty = self.schema.empty_table().select(columns)
            table = pa.Table.from_batches(batches) if batches else empty
            self._check(table, group)
            expected = self._metadata.row_group(place).num_rows
            if table.num_rows != expected:
                raise DataError(f"{self.where}{group}: has {table.num_rows} rows instead of {expected}")
            return table

    def _open(self, file: pa.OSFile) -> Any:
        from pyarrow import parquet

        return parquet.ParquetFile(file, metadata=self._metadata, page_checksum_verification=True)


class _ArrowFile(TableFile):
    """A group is a record batch; its place, its number in a file with a footer, or its byte in a stream."""

    def __init__(self, path: Path) -> None:
        from pyarrow import ipc

        super().__init__(path)
        with self._opened() as file:
            self._stream = file.read(6) != b"ARROW1"
            file.seek(0)
            self.schema = _decoded(ipc.read_schema(file) if self._stream else ipc.open_file(file).schema)
            self._first = file.tell()

    def groups(self, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
        from pyarrow import ipc

        if not self._stream:
            with self._opened() as file:
                count = ipc.open_file(file).num_record_batches
            yield from ((number, self.read(number, columns)) for number in range(count))
            return
        place = self._first
        while place < self.size - len(_END_MARK):
            table, after = self._load(place, columns)
            yield place, table
            place = after
        with self._opened() as file:
            file.seek(place)
            if file.read() != _END_MARK:
                raise DataError(f"{self.where}: does not end with an end mark: it is cut off or damaged")

    def read(self, place: int, columns: Sequence[str]) -> pa.Table:
        return self._load(place, columns)[0]

    def _load(self, place: int, columns: Sequence[str]) -> tuple[pa.Table, int]:
        """The rows of a group, and the byte after it."""
        import pyarrow as pa
        from pyarrow import ipc

        group = f" record batch {'at byte ' * self._stream}{place}"
        with self._opened(group) as file:
            if self._stream:
                file.seek(place)
                message = ipc.read_message(file)
                if message.type != "record batch":
                    raise DataError(f"{self.where}{group}: is a {message.type}: save the table as Parquet")
                batch = ipc.read_record_batch(message, self.schema)
            else:
                batch = ipc.open_file(file).get_batch(place)
            after = file.tell()
            table = pa.Table.from_batches([batch]).select(columns)
            self._check(table, group)
            table.validate(full=True)  # the library believes lengths and offsets until it is asked to check
            return table, after


def open_table(path: Path) -> TableFile:
    """A Parquet or Arrow file, recognised by its content.

    Raises:
        DataError: it is missing, unreadable, damaged, or neither; or pyarrow is not installed.
    """
    try:
        import pyarrow  # noqa: F401, ICN001
    except ImportError:
        raise DataError(
            f"{printable(path)}: reading it takes pyarrow: pip install 'foveal[parquet]'"
        ) from None
    states([path])
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot be opened: {error.strerror}") from None
    if not start:
        raise DataError(f"{printable(path)}: is empty")
    if start == b"PAR1":
        return _ParquetFile(path)
    if start in {b"ARRO", b"\xff\xff\xff\xff"}:
        return _ArrowFile(path)
    raise DataError(f"{printable(path)}: is neither a Parquet nor an Arrow file")


def _decoded(schema: pa.Schema) -> pa.Schema:
    """The schema. The library decodes names only when they are asked for, as they are here."""
    from pyarrow import types

    for column in schema:
        _ = column.name, [field.name for field in (column.type if types.is_struct(column.type) else ())]
    return schema


class GroupCache:
    """Groups of rows that were read last, up to a number of bytes. Safe to use from any thread.

    Args:
        limit: bytes; what was read last stays even if it has more.
    """

    def __init__(self, limit: int = CACHE_LIMIT) -> None:
        self._limit, self._bytes = limit, 0
        self._groups: OrderedDict[Hashable, Future[pa.Table]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, load: Callable[[], pa.Table]) -> pa.Table:
        """The group called ``key``, loaded unless it is here; if several threads want it, by one of them.

        Raises:
            Exception: whatever ``load`` raises.
        """
        with self._lock:
            if (here := self._groups.get(key)) is not None:
                self._groups.move_to_end(key)
            else:
                loading = self._groups[key] = Future()
        if here is not None:
            return here.result()
        try:
            table = load()
        except BaseException as error:
            with self._lock:
                del self._groups[key]
            loading.set_exception(error)
            raise
        with self._lock:
            loading.set_result(table)
            self._bytes += table.nbytes
            self._evict(key)
        return table

    def _evict(self, newest: Hashable) -> None:
        """Forget the groups that were used longest ago, but not what is being loaded."""
        for key, group in list(self._groups.items()):
            if self._bytes <= self._limit:
                return
            if key != newest and group.done():
                self._bytes -= self._groups.pop(key).result().nbytes
